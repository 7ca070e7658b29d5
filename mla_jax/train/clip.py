"""The global norm of the gradients in few kernels, and clipping by it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

_SMALL = 65_536  # numbers of an array that is joined as it is
_MANY = 256  # rows that keep a device busy


def joint_norm(tree: Any) -> jax.Array:
    """`optax.tree.norm`, float32 []: sums of squares of a large array's rows, joined with all small arrays into one.

    XLA makes a kernel of each small array and two of each large one, all of which wait to be launched: 270 a step of
    size l with biases. For arrays on one device; those of a mesh would have to be gathered.
    """
    joined = jnp.concatenate([_square_sums(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(tree)])
    return jnp.sqrt(jnp.sum(jax.lax.optimization_barrier(joined)))  # else XLA sums each part by itself again


def _square_sums(leaf: jax.Array) -> jax.Array:
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
