"""The global norm of the gradients in few kernels, and clipping by it."""

import collections
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

_SMALL = 65_536  # numbers of an array that is joined as it is
_MANY = 256  # rows that keep a device busy


def joint_norm(tree: Any, shardings: Any = None, stacked: bool = False) -> jax.Array:
    """`optax.tree.norm`, float32 []: sums of squares of large arrays' rows, joined with all small arrays into one.

    XLA makes a kernel of each small array and two of each large one, all of which wait to be launched: 270 a step of
    size l with biases. shardings: a tree of NamedSharding, of arrays on a mesh; each device sums its own parts.
    stacked: sum arrays of one shape in one kernel, 9 layers' matrices at once; for GPUs, where XLA reads them in place
    (on a CPU it copies them first).
    """
    if shardings is None:
        return jnp.sqrt(_total(jax.tree.leaves(tree), stacked))
    placed = jax.tree.leaves(shardings)
    mesh, copies = placed[0].mesh, [_copies(sharding) for sharding in placed]

    def on_one_device(leaves: list[jax.Array]) -> jax.Array:
        groups = {n: [leaf for leaf, m in zip(leaves, copies, strict=True) if m == n] for n in set(copies)}
        own = sum(
            _total(group, stacked) / n for n, group in groups.items()
        )  # what n devices have counts on each for a part
        return jax.lax.psum(own, mesh.axis_names)

    specs = ([sharding.spec for sharding in placed],)
    total = jax.shard_map(on_one_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    return jnp.sqrt(total(jax.tree.leaves(tree)))


def _total(leaves: list[jax.Array], stacked: bool) -> jax.Array:
    """The sum of all squares, float32 []."""
    alike = collections.defaultdict(list)
    for i, leaf in enumerate(leaves):
        alike[(leaf.shape, leaf.dtype) if stacked else i].append(leaf)
    parts = [_row_sums(jnp.stack(group)) for group in alike.values()]
    return jnp.sum(jax.lax.optimization_barrier(jnp.concatenate(parts)))  # else XLA sums each part by itself again


def _copies(sharding: NamedSharding) -> int:
    """How many devices of the mesh have the same part of an array."""
    split = [axis for entry in sharding.spec if entry for axis in (entry if isinstance(entry, tuple) else (entry,))]
    return sharding.mesh.size // math.prod(sharding.mesh.shape[axis] for axis in split)


def _row_sums(leaves: jax.Array) -> jax.Array:
    """[some numbers], whose sum is that of the squares of leaves [n, ...]."""
    n, shape = leaves.shape[0], leaves.shape[1:]
    squares = jnp.square(leaves.astype(jnp.float32))
    if math.prod(shape) <= _SMALL or len(shape) < 2:
        return squares.ravel()
    rows = shape[0] if shape[0] >= _MANY else math.prod(shape[:-1])
    return jnp.sum(squares.reshape(n * rows, -1), axis=1)


def clip_by_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm`; its `update` takes the norm as `grad_norm` where it has been computed already."""

    def update(updates: Any, state: Any, params: Any = None, *, grad_norm: jax.Array | None = None, **_: Any) -> tuple:
        if grad_norm is None:
            grad_norm = optax.tree.norm(updates)
        small = grad_norm < max_norm
        return jax.tree.map(lambda u: jnp.where(small, u, u / grad_norm.astype(u.dtype) * max_norm), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
