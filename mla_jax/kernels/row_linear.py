"""Products of a few rows with a matrix, with what comes before and after in one launch (Pallas, Triton).

At batch 1 a decode step is bound by the number of kernels it launches (some 2 us each on an H100, in CUDA graphs too),
and XLA makes two to four of each norm-product-residual group: a product of one row becomes a sum of stored terms.
Here a group is one kernel: every program normalises the rows again, which is cheap, and makes a few output columns by
multiply and add in float32. Rows are a Python loop, so this is for few of them (`MAX_ROWS`).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels.flash_decode import combine
from mla_jax.kernels.kernel_call import kernel_call
from mla_jax.kernels.tiles import pieces
from mla_jax.model import functions
from mla_jax.model.functions import LAYER_NORM_EPS, RMS_EPS

MAX_ROWS = 8
_WHOLE_HEAD = 128  # values of a head from which it is a piece of its own: a join's weights are then few
MAX_PARTS = 8  # splits of attention that are joined on the way; more are joined before


@struct.dataclass
class Linear:
    """A product as decoding reads it. w [N, K] (columns of the usual matrix are rows here: each is read at one go) or,
    gated, [2, N, K]: gate and up; bias [N] float32 | None."""

    w: jax.Array
    bias: jax.Array | None = None


@struct.dataclass
class NormWeights:
    """Of RMSNorm: gain [K] float32, or None where it is a part of the matrix. Of LayerNorm: gain and bias [K]."""

    gain: jax.Array | None
    bias: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class RowBlocks:
    """columns: output columns of a program, a power of two; warps: of a program."""

    columns: int
    warps: int


def choose_blocks(n: int) -> RowBlocks:
    """Measured in steps of size m at 1 x 512 on an H100 (launch/decode_tuning.py): 4 columns and 4 warps were best."""
    return RowBlocks(4, 4) if n <= 4096 else RowBlocks(16, 8)


def row_linear(
    x: jax.Array | tuple[jax.Array, jax.Array, jax.Array],
    linear: Linear,
    norm: NormWeights | None = None,
    activation: str = "none",
    residual: jax.Array | None = None,
    blocks: RowBlocks | None = None,
    interpret: bool = False,
) -> jax.Array:
    """activation(norm(x) w^T + bias) + residual -> [B, N] in w's dtype, one launch; B at most MAX_ROWS.

    x [B, K], or the parts (out [P, B, ..., V], maxima, sums [P, B, ...] float32) that `flash_decode` leaves, joined and
    flattened here to K = heads x V. activation: "none", "gelu" (tanh), or "swiglu" (silu(x w_gate^T) * (x w_up^T)).
    residual [B, N]. Sums are in float32 throughout.
    """
    parts = isinstance(x, tuple)
    gated = activation == "swiglu"
    n = linear.w.shape[-2]
    batch = x[0].shape[1] if parts else x.shape[0]
    if batch > MAX_ROWS:
        raise ValueError(f"row_linear is for at most {MAX_ROWS} rows, not {batch}")
    blocks = blocks or choose_blocks(n)
    if parts:
        out, top, total = x
        value_width = out.shape[-1]
        x = (out.reshape(*out.shape[:2], -1), top.reshape(*top.shape[:2], -1), total.reshape(*total.shape[:2], -1))
    else:
        value_width = 0
    program = functools.partial(
        _program, columns=blocks.columns, value_width=value_width, activation=activation, gated=gated
    )
    return kernel_call(
        program,
        out_shape=jax.ShapeDtypeStruct((batch, n), linear.w.dtype),
        grid=(pl.cdiv(n, blocks.columns),),
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=1),
        interpret=interpret,
        name="row_linear",
    )(x, linear, norm, residual)


def join(x: tuple[jax.Array, jax.Array, jax.Array], dtype: Any, interpret: bool = False) -> jax.Array:
    """`flash_decode.combine` of parts, flattened to [B, heads x V] in `dtype`: one launch where XLA makes two."""
    out, top, total = (a.reshape(*a.shape[:2], -1) for a in x)
    batch, width = out.shape[1:]
    size = min(1024, 1 << ((width & -width).bit_length() - 1))  # the largest power of two that divides the width
    program = functools.partial(_join_program, size=size, value_width=x[0].shape[-1])
    return kernel_call(
        program,
        out_shape=jax.ShapeDtypeStruct((batch, width), dtype),
        grid=(batch, width // size),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="join",
    )(out, top, total)


def row_linear_reference(
    x: jax.Array | tuple[jax.Array, jax.Array, jax.Array],
    linear: Linear,
    norm: NormWeights | None = None,
    activation: str = "none",
    residual: jax.Array | None = None,
) -> jax.Array:
    """The plain twin of `row_linear`, for any number of rows; products in w's dtype, as XLA makes them."""
    if isinstance(x, tuple):
        x = combine(*x).reshape(x[0].shape[1], -1).astype(linear.w.dtype)
    if norm is not None:
        x = normalise_reference(x, norm)
    if activation == "swiglu":
        gate_up = x @ linear.w.reshape(-1, linear.w.shape[-1]).T  # one product, cut after it
        gate, up = jnp.split(gate_up, 2, axis=-1)
        y = jax.nn.silu(gate) * up
    else:
        y = x @ linear.w.T
        if linear.bias is not None:
            y = y + linear.bias.astype(y.dtype)
        if activation == "gelu":
            y = jax.nn.gelu(y, approximate=True)
    return y if residual is None else y + residual


def normalise_reference(x: jax.Array, norm: NormWeights) -> jax.Array:
    """x [..., K] normalised, in its dtype, by the model's norms: LayerNorm where `norm` has a bias, else RMSNorm."""
    gain = jnp.ones(x.shape[-1]) if norm.gain is None else norm.gain
    return functions.rms_norm(x, gain) if norm.bias is None else functions.layer_norm(x, gain, norm.bias)


def _program(
    x: Any, linear: Linear, norm: NormWeights | None, residual: Any, out: Any, *, columns: int, value_width: int,
    activation: str, gated: bool,
) -> None:  # fmt: skip
    n, width = linear.w.shape[-2:]
    by_head = value_width >= _WHOLE_HEAD and value_width & (value_width - 1) == 0
    cut = [(first, value_width) for first in range(0, width, value_width)] if by_head else pieces(width)
    lane = pl.program_id(0)
    zero, first = lane * 0, lane * columns
    here, valid = pl.ds(first, columns), (first + jnp.arange(columns)) < n
    tiles = [load_tiles(linear.w, ((0,) if gated else ()), here, valid, cut, zero)]
    if gated:
        tiles.append(load_tiles(linear.w, (1,), here, valid, cut, zero))
    for row in range(out.shape[0]):
        vector = (
            _joined(x, zero + row, cut, width, value_width, zero)
            if value_width
            else load_vector(x, (zero + row,), cut, width, zero)
        )
        if norm is not None:
            vector = normalise(vector, norm, cut, width, zero)
        sums = [
            sum(jnp.sum(tile.astype(jnp.float32) * part[None, :], axis=1) for tile, part in zip(t, vector, strict=True))
            for t in tiles
        ]
        if linear.bias is not None:
            sums[0] += plgpu.load(linear.bias.at[here], mask=valid, other=0.0)
        y = activate(sums, activation)
        if residual is not None:
            y += plgpu.load(residual.at[zero + row, here], mask=valid, other=jnp.zeros((), residual.dtype)).astype(
                jnp.float32
            )
        plgpu.store(out.at[zero + row, here], y.astype(out.dtype), mask=valid)


def _join_program(out: Any, top: Any, total: Any, joined: Any, *, size: int, value_width: int) -> None:
    row, first = pl.program_id(0), pl.program_id(1) * size
    (value,) = _joined((out, top, total), row, [(0, size)], out.shape[-1], value_width, first)
    plgpu.store(joined.at[row, pl.ds(first, size)], value.astype(joined.dtype))


def load_tiles(w: Any, index: tuple, here: Any, valid: jax.Array, cut: list, zero: jax.Array) -> list[jax.Array]:
    """Rows `here` of w, [columns, piece] each: all loads are under way before the first is needed."""
    width = w.shape[-1]
    found = []
    for offset, size in cut:
        mask = valid[:, None]
        if offset + size > width:
            mask = mask & ((offset + jnp.arange(size)) < width)[None, :]
        source = w.at[(*(zero + i for i in index), here, pl.ds(zero + offset, size))]
        found.append(plgpu.load(source, mask=mask, other=jnp.zeros((), w.dtype)))
    return found


def load_vector(ref: Any, index: tuple, cut: list, width: int, zero: jax.Array) -> list[jax.Array]:
    """A vector [width] in float32 pieces, zeros past its end."""
    found = []
    for offset, size in cut:
        mask = (offset + jnp.arange(size)) < width
        source = ref.at[(*index, pl.ds(zero + offset, size))]
        found.append(plgpu.load(source, mask=mask, other=jnp.zeros((), ref.dtype)).astype(jnp.float32))
    return found


def _joined(parts: tuple, row: jax.Array, cut: list, width: int, value_width: int, first: jax.Array) -> list[jax.Array]:
    """As `load_vector` from element `first` on, of attention's splits: `flash_decode.combine` of a piece's elements."""
    out, top, total = parts
    found = []
    for offset, size in cut:
        element = first + offset + jnp.arange(size)
        mask = element < width
        if size == value_width and offset % size == 0:  # one head: its weights are scalars
            head = (first + offset) // value_width
        else:
            head = jnp.minimum(element, width - 1) // value_width
        tops, totals, values = [], [], []
        for part in range(out.shape[0]):
            split = row * 0 + part
            tops.append(plgpu.load(top.at[split, row, head]))
            totals.append(plgpu.load(total.at[split, row, head]))
            zero = jnp.zeros((), out.dtype)
            values.append(plgpu.load(out.at[split, row, pl.ds(first + offset, size)], mask=mask, other=zero))
        largest = functools.reduce(jnp.maximum, tops)
        weights = [total * jnp.exp2(one - largest) for one, total in zip(tops, totals, strict=True)]
        joined = sum(weight * value.astype(jnp.float32) for weight, value in zip(weights, values, strict=True))
        found.append(joined / jnp.maximum(sum(weights), 1e-30))
    return found


def normalise(vector: list[jax.Array], norm: NormWeights, cut: list, width: int, zero: jax.Array) -> list[jax.Array]:
    """The row of `load_vector` normalised, inside a kernel: pieces [size] float32 of one row, zeros past its width.

    LayerNorm where `norm` has a bias, else RMSNorm; cut: the pieces as (offset, size); zero: a traced 0.
    """
    square = sum(jnp.sum(part * part) for part in vector) / width
    if norm.gain is None:
        return [part * jax.lax.rsqrt(square + RMS_EPS) for part in vector]
    gains = load_vector(norm.gain, (), cut, width, zero)
    if norm.bias is None:
        scale = jax.lax.rsqrt(square + RMS_EPS)
        return [part * scale * gain for part, gain in zip(vector, gains, strict=True)]
    mean = sum(jnp.sum(part) for part in vector) / width
    scale = jax.lax.rsqrt(square - mean * mean + LAYER_NORM_EPS)
    biases = load_vector(norm.bias, (), cut, width, zero)  # zero past the end, as the gains are
    return [(part - mean) * scale * gain + bias for part, gain, bias in zip(vector, gains, biases, strict=True)]


def activate(sums: list[jax.Array], activation: str) -> jax.Array:
    """ "swiglu" of sums [gate, up], "gelu" (tanh) or "none" of the only one: [columns] float32."""
    if activation == "swiglu":
        gate, up = sums
        return gate * jax.nn.sigmoid(gate) * up
    return jax.nn.gelu(sums[0], approximate=True) if activation == "gelu" else sums[0]
