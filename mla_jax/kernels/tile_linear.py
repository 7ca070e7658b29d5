"""Products of many rows with a matrix, with what comes before and after in one launch (Pallas, Triton).

The twin of `row_linear` for batches whose rows fill tensor-core tiles: RMS norm, product, activation and residual are
one kernel where XLA makes two to four. The norm costs nothing: its gain is a part of the matrix (serving.pack), and its
scale, a number a row, commutes with the product: x W / rms(x), with the squares summed on the way.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels.flash_decode import RMS_EPS
from mla_jax.kernels.row_linear import Linear

MAX_ROWS = 8192  # beyond, cuBLAS's tiles win back what the launches cost
_PROGRAMS = 120  # to have at least, of an H100's 132 multiprocessors


@dataclasses.dataclass(frozen=True)
class TileBlocks:
    """rows x columns of a program's output tile and the depth of a step through K, powers of two from 16 on; warps;
    stages of the software pipeline."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def choose_blocks(rows: int, n: int) -> TileBlocks:
    """Tiles of 64 x 64, made smaller until they are about as many as multiprocessors."""
    height, width = max(16, min(64, pl.next_power_of_2(rows))), 64
    while pl.cdiv(rows, height) * pl.cdiv(n, width) < _PROGRAMS and (height > 16 or width > 16):
        height, width = (height, width // 2) if width > 16 else (height // 2, width)
    return TileBlocks(height, width, 64 if height * width >= 4096 else 128, 4, 3)


def tile_linear(
    x: jax.Array,
    linear: Linear,
    rms: bool = False,
    activation: str = "none",
    residual: jax.Array | None = None,
    blocks: TileBlocks | None = None,
    interpret: bool = False,
) -> jax.Array:
    """activation(x / (RMS(x) if rms) w^T + bias) + residual -> [B, N] in w's dtype, one launch.

    x [B, K]; w, bias, activation and residual as `row_linear` takes them. Sums are in float32.
    """
    rows, n = x.shape[0], linear.w.shape[-2]
    blocks = blocks or choose_blocks(rows, n)
    return pl.pallas_call(
        functools.partial(_program, blocks=blocks, rms=rms, activation=activation),
        out_shape=jax.ShapeDtypeStruct((rows, n), linear.w.dtype),
        grid=(pl.cdiv(rows, blocks.rows), pl.cdiv(n, blocks.columns)),
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name="tile_linear",
    )(x, linear, residual)


def _program(
    x: Any, linear: Linear, residual: Any, out: Any, *, blocks: TileBlocks, rms: bool, activation: str
) -> None:
    n, width = linear.w.shape[-2:]
    zero = pl.program_id(0) * 0
    first_row, first_column = pl.program_id(0) * blocks.rows, pl.program_id(1) * blocks.columns
    down, across = pl.ds(first_row, blocks.rows), pl.ds(first_column, blocks.columns)
    row_valid = (first_row + jnp.arange(blocks.rows)) < x.shape[0]
    column_valid = (first_column + jnp.arange(blocks.columns)) < n
    gates = ((zero,), (zero + 1,)) if activation == "swiglu" else ((),)

    def step(index: jax.Array, carry: tuple) -> tuple:
        squares, sums = carry
        start = index * blocks.depth
        here = pl.ds(start, blocks.depth)
        valid = (start + jnp.arange(blocks.depth)) < width
        part = _load(x, (down, here), row_valid, valid)
        if rms:
            part32 = part.astype(jnp.float32)
            squares = squares + jnp.sum(part32 * part32, axis=1)
        tiles = [_load(linear.w, (*gate, across, here), column_valid, valid) for gate in gates]
        return squares, tuple(total + _dot(part, tile) for total, tile in zip(sums, tiles, strict=True))

    empty = tuple(jnp.zeros((blocks.rows, blocks.columns), jnp.float32) for _ in gates)
    steps = pl.cdiv(width, blocks.depth)
    squares, sums = jax.lax.fori_loop(0, steps, step, (jnp.zeros((blocks.rows,), jnp.float32), empty))
    if rms:
        scale = jax.lax.rsqrt(squares / width + RMS_EPS)
        sums = tuple(total * scale[:, None] for total in sums)
    y = sums[0]
    if linear.bias is not None:
        y += plgpu.load(linear.bias.at[across], mask=column_valid, other=0.0)[None, :]
    if activation == "swiglu":
        y = y * jax.nn.sigmoid(y) * sums[1]
    elif activation == "gelu":
        y = jax.nn.gelu(y, approximate=True)
    mask = row_valid[:, None] & column_valid[None, :]
    if residual is not None:
        zeros = jnp.zeros((), residual.dtype)
        y += plgpu.load(residual.at[down, across], mask=mask, other=zeros).astype(jnp.float32)
    plgpu.store(out.at[down, across], y.astype(out.dtype), mask=mask)


def _load(ref: Any, where: tuple, rows: jax.Array, columns: jax.Array) -> jax.Array:
    mask = rows[:, None] & columns[None, :]
    return plgpu.load(ref.at[where], mask=mask, other=jnp.zeros((), ref.dtype))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """a [M, K] times b [N, K] -> [M, N] float32; float32 operands keep float32 precision."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)
