"""The residual stream: how it lies in memory and on a mesh, what is added to it, and dropout of what is added.

Shapes: B batch, T queries, D model width (docs/architecture.md lists all letters).
"""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from mla_jax import mesh
from mla_jax.model.backend import Backend


def residual(x: jax.Array, backend: Backend) -> jax.Array:
    """The residual stream x [B, T, D] where a block reads it: rows split over the mesh, row-major in memory."""
    return row_major(mesh.constrain_rows(x, backend.mesh), backend)


def row_major(x: jax.Array, backend: Backend) -> jax.Array:
    """x itself, and its gradient, kept in row-major memory order on GPUs.

    Left alone, XLA lays the whole residual stream out as [T, D, B], because the gradient of a learned position table
    sums over B, and then transposes around every norm: about 8 of 51 ms of a size-m step on an H100.
    """
    if backend.attention_impl != "cudnn":
        return x
    rows = x.reshape(-1, x.shape[-1])  # as a matrix, for `added`
    return with_layout_constraint(rows, Layout((0, 1))).reshape(x.shape)


def added(x: jax.Array, y: jax.Array) -> jax.Array:
    """x + y, both [B, T, D], as matrices: the form of the product that y comes from.

    Where XLA has to reshape x for cuBLAS to add it, it takes the reshaped x for a value of its own that the sum may
    overwrite, and copies x first.
    """
    rows = x.reshape(-1, x.shape[-1])
    return (rows + y.reshape(rows.shape)).reshape(x.shape)


def whole(table: jax.Array, backend: Backend) -> jax.Array:
    """A table to be indexed, kept whole on a mesh: XLA would otherwise split it where its rows are taken, though a step
    has gathered it (train/fsdp.py), and gather it again."""
    return mesh.constrain(table, backend.mesh)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero entries with probability `rate` and rescale the rest; without a key (evaluation) the identity."""
    if key is None or rate == 0.0:
        return x
    kept = round((1.0 - rate) * 2**16)  # 16 random bits an entry: half the price of a uniform float
    keep = jax.random.bits(key, x.shape, jnp.uint16) < kept
    return jnp.where(keep, x * (2**16 / kept), 0).astype(x.dtype)
