"""The global norm of the gradients in few kernels, and clipping by it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

_SMALL = 65_536  # numbers of an array that is joined as it is
_MANY = 256  # rows that keep a device busy


def joint_norm(tree: Any, shardings: Any = None) -> jax.Array:
    """`optax.tree.norm`, float32 []: sums of squares of a large array's rows, joined with all small arrays into one.

    XLA makes a kernel of each small array and two of each large one, all of which wait to be launched: 270 a step of
    size l with biases. shardings: a tree of NamedSharding, of arrays on a mesh; each device sums its own parts.
    """
    if shardings is None:
        return jnp.sqrt(_total(jax.tree.leaves(tree)))
    placed = jax.tree.leaves(shardings)
    mesh, copies = placed[0].mesh, [_copies(sharding) for sharding in placed]

    def on_one_device(leaves: list[jax.Array]) -> jax.Array:
        groups = {n: [leaf for leaf, m in zip(leaves, copies, strict=True) if m == n] for n in set(copies)}
        own = sum(_total(group) / n for n, group in groups.items())  # what n devices have counts on each for a part
        return jax.lax.psum(own, mesh.axis_names)

    specs = ([sharding.spec for sharding in placed],)
    total = jax.shard_map(on_one_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    return jnp.sqrt(total(jax.tree.leaves(tree)))


def _total(leaves: list[jax.Array]) -> jax.Array:
    """The sum of all squares, float32 []."""
    parts = [_row_sums(leaf.astype(jnp.float32)) for leaf in leaves]
    return jnp.sum(jax.lax.optimization_barrier(jnp.concatenate(parts)))  # else XLA sums each part by itself again


def _copies(sharding: NamedSharding) -> int:
    """How many devices of the mesh have the same part of an array."""
    split = [axis for entry in sharding.spec if entry for axis in (entry if isinstance(entry, tuple) else (entry,))]
    return sharding.mesh.size // math.prod(sharding.mesh.shape[axis] for axis in split)


def _row_sums(leaf: jax.Array) -> jax.Array:
    """[some numbers], whose sum is that of leaf's squares."""
    squares = leaf * leaf
    if leaf.size <= _SMALL or leaf.ndim < 2:
        return squares.ravel()
    rows = leaf.shape[0] if leaf.shape[0] >= _MANY else leaf.size // leaf.shape[-1]
    return jnp.sum(squares.reshape(rows, -1), axis=1)


def clip_by_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm`; its `update` takes the norm as `grad_norm` where it has been computed already."""

    def update(updates: Any, state: Any, params: Any = None, *, grad_norm: jax.Array | None = None, **_: Any) -> tuple:
        if grad_norm is None:
            grad_norm = optax.tree.norm(updates)
        small = grad_norm < max_norm
        return jax.tree.map(lambda u: jnp.where(small, u, u / grad_norm.astype(u.dtype) * max_norm), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
