"""LayerNorm and RMSNorm of the residual stream in one pass each way (Pallas, Triton).

XLA reads a row once for its statistics and once more to scale it, and in the backward pass adds the stream's own
gradient in a third pass. Here a program holds whole rows: forward reads x and writes y; backward reads x, dy and the
gradient of the stream that passes the norm by, writes their sum, and sums that gradient's columns: the gradient of a
bias that is added to the stream further on, for which XLA reads it once more (model/norms.py).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels.kernel_call import kernel_call
from mla_jax.kernels.tiles import padded


class Blocks(NamedTuple):
    """What a program of the backward pass does; one of the forward pass does a single step."""

    rows: int  # that it holds at a time
    steps: int  # blocks of rows that it adds gradients of vectors over
    warps: int

    def params(self) -> plgpu.CompilerParams:
        return plgpu.CompilerParams(num_warps=self.warps, num_stages=2)


FORWARD = Blocks(rows=4, steps=1, warps=4)
BACKWARD = Blocks(rows=2, steps=32, warps=2)
_WIDE = Blocks(rows=2, steps=16, warps=1)  # sums never leave the warp
_LEAST = 64  # columns of a row's second piece


def backward_blocks(width: int) -> Blocks:
    """Measured on an H200 in bfloat16 (launch/elementwise_tuning.py): [65536, 512] takes 105 us, by XLA 169;
    [32768, 768] with a stream bias 96 us, 131 by BACKWARD and 158 by XLA. Wider ones are not measured: a warp holds as
    many numbers of a row as BACKWARD's."""
    if 512 < width <= 768:
        return _WIDE
    return BACKWARD._replace(warps=max(BACKWARD.warps, pl.next_power_of_2(width) // 512))


def applies(shape: tuple[int, ...]) -> bool:
    """Whether x [..., D] has a number of rows that the programs divide, and rows that one can hold."""
    n_rows = 1
    for size in shape[:-1]:
        n_rows *= size
    used = FORWARD, backward_blocks(shape[-1])
    return all(n_rows % (b.rows * b.steps) == 0 for b in used) and shape[-1] <= 4096


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def norm_with_stream(
    x: jax.Array, gain: jax.Array, bias: jax.Array | None, stream_bias: jax.Array | None, eps: float, interpret: bool
) -> tuple[jax.Array, jax.Array]:
    """x [..., D] -> x itself, and its norm times gain [D]: LayerNorm plus bias [D], or without a bias RMSNorm.

    In float32 inside; y in x's dtype. Whoever goes on with the x that comes back has its gradient added to the norm's
    in the kernel. stream_bias [D] or None: a bias that is added to that x further on, under stop_gradient; it gets its
    gradient here. The plain twins are functions.layer_norm and functions.rms_norm with `functions.with_bias_gradient`.
    """
    return forward(x, gain, bias, stream_bias, eps, interpret)[0]


def forward(
    x: jax.Array,
    gain: jax.Array,
    bias: jax.Array | None,
    stream_bias: jax.Array | None,
    eps: float,
    interpret: bool,
    blocks: Blocks = FORWARD,
) -> tuple[tuple, tuple]:
    """What `norm_with_stream` returns, and what it keeps for the gradient."""
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    given = [gain] if bias is None else [gain, bias]
    y = kernel_call(
        functools.partial(_forward_program, width=width, eps=eps, centred=bias is not None, n_rows=blocks.rows),
        out_shape=jax.ShapeDtypeStruct(rows.shape, x.dtype),
        grid=(rows.shape[0] // blocks.rows,),
        compiler_params=blocks.params(),
        interpret=interpret,
        name="norm",
    )(rows, *given)
    return (x, y.reshape(x.shape)), (x, gain, bias, stream_bias)


def backward(eps: float, interpret: bool, residuals: tuple, cotangents: tuple, blocks: Blocks | None = None) -> tuple:
    """Of what `forward` keeps and cotangents [..., D] of both results: gradients of x [..., D] and of gain, bias
    and stream_bias [D], None where there is none."""
    x, gain, *others = residuals
    width = x.shape[-1]
    blocks = blocks or backward_blocks(width)
    rows, d_stream, dy = (a.reshape(-1, width) for a in (x, *cotangents))
    programs = rows.shape[0] // (blocks.rows * blocks.steps)
    bias, stream_bias = (vector is not None for vector in others)
    n_vectors = 1 + bias + stream_bias
    d_x, parts = kernel_call(
        functools.partial(
            _backward_program, width=width, eps=eps, centred=bias, sums_stream=stream_bias, blocks=blocks
        ),
        out_shape=(
            jax.ShapeDtypeStruct(rows.shape, x.dtype),
            jax.ShapeDtypeStruct((programs * n_vectors, width), jnp.float32),
        ),
        grid=(programs,),
        compiler_params=blocks.params(),
        interpret=interpret,
        name="norm_backward",
    )(rows, gain, d_stream, dy)
    sums = iter(jnp.sum(parts.reshape(programs, n_vectors, width), axis=0))
    vectors = [None if vector is None else next(sums).astype(vector.dtype) for vector in (gain, *others)]
    return d_x.reshape(x.shape), *vectors


norm_with_stream.defvjp(forward, backward)


Row = list[jax.Array]  # pieces of a row, or of several


class _Columns:
    """A row's places in powers of two, as Triton wants: 768 are 512 and 256; what is no such sum is padded."""

    def __init__(self, width: int) -> None:
        whole = pl.next_power_of_2(width)
        pieces = whole // 2, width - whole // 2
        exact = pieces[1] >= _LEAST and pieces[1] == pl.next_power_of_2(pieces[1]) and width < whole
        self.sizes = pieces if exact else (whole,)
        self.slices = [pl.ds(0, pieces[0]), pl.ds(*pieces)] if exact else [padded(whole, width)]
        self.inside = None if exact or width == whole else jnp.arange(whole) < width

    def load(self, ref: Any, rows: Any = None) -> Row:
        places = [ref.at[here] if rows is None else ref.at[rows, here] for here in self.slices]
        if self.inside is None:
            return [plgpu.load(place).astype(jnp.float32) for place in places]
        return [plgpu.load(at, mask=self._mask(at.shape), other=0.0).astype(jnp.float32) for at in places]

    def store(self, ref: Any, rows: Any, values: Row) -> None:
        for here, value in zip(self.slices, values, strict=True):
            mask = None if self.inside is None else self._mask(value.shape)
            plgpu.store(ref.at[rows, here], value.astype(ref.dtype), mask=mask)

    def zero(self, values: Row) -> Row:
        """0 beyond the width."""
        return values if self.inside is None else [jnp.where(self._mask(v.shape), v, 0.0) for v in values]

    def _mask(self, shape: tuple[int, ...]) -> jax.Array:
        return jnp.broadcast_to(self.inside, shape)


def _each(function: Callable, *rows: Row) -> Row:
    return [function(*pieces) for pieces in zip(*rows, strict=True)]


def _sums(rows: Row) -> jax.Array:
    """[R, 1]: over all pieces."""
    return sum(jnp.sum(piece, axis=1, keepdims=True) for piece in rows)


def _normed(x: Row, columns: _Columns, width: int, eps: float, centred: bool) -> tuple[Row, jax.Array]:
    """Rows without scale, and 1 / their standard deviation (or root mean square) [R, 1]."""
    if centred:
        mean = _sums(x) / width
        x = columns.zero(_each(lambda x: x - mean, x))
    inverse = jax.lax.rsqrt(_sums(_each(jnp.square, x)) / width + eps)
    return _each(lambda x: x * inverse, x), inverse


def _forward_program(x_ref: Any, gain_ref: Any, *refs: Any, width: int, eps: float, centred: bool, n_rows: int) -> None:
    rows, columns = pl.ds(pl.program_id(0) * n_rows, n_rows), _Columns(width)
    y, _ = _normed(columns.load(x_ref, rows), columns, width, eps, centred)
    y = _each(lambda y, gain: y * gain[None, :], y, columns.load(gain_ref))
    if centred:
        y = _each(lambda y, bias: y + bias[None, :], y, columns.load(refs[0]))
    columns.store(refs[-1], rows, y)


def _backward_program(
    x_ref: Any,
    gain_ref: Any,
    d_stream_ref: Any,
    dy_ref: Any,
    dx_ref: Any,
    parts_ref: Any,
    *,
    width: int,
    eps: float,
    centred: bool,
    sums_stream: bool,
    blocks: Blocks,
) -> None:
    """With n the normed row, s its inverse deviation, g = dy gain: dx = s (g - n mean(g n) - mean(g))."""
    program, columns = pl.program_id(0), _Columns(width)
    gain = columns.load(gain_ref)
    n_vectors = 1 + centred + sums_stream

    def step(index: jax.Array, sums: list[Row]) -> list[Row]:
        rows = pl.ds((program * blocks.steps + index) * blocks.rows, blocks.rows)
        # Triton keeps loads and sums over warps in order: loads that come first wait for memory once, not three times.
        x, dy, d_stream = (columns.load(ref, rows) for ref in (x_ref, dy_ref, d_stream_ref))
        n, inverse = _normed(x, columns, width, eps, centred)
        g = _each(lambda dy, gain: dy * gain[None, :], dy, gain)
        along = _sums(_each(jnp.multiply, g, n)) / width
        dx = _each(lambda g, n: g - n * along, g, n)
        if centred:
            mean = _sums(g) / width
            dx = _each(lambda dx: dx - mean, dx)
        columns.store(dx_ref, rows, _each(lambda d_stream, dx: d_stream + dx * inverse, d_stream, dx))
        summands = [_each(jnp.multiply, dy, n), *([dy] if centred else []), *([d_stream] if sums_stream else [])]
        return [
            _each(lambda total, row: total + jnp.sum(row, axis=0), total, rows)
            for total, rows in zip(sums, summands, strict=True)
        ]

    nothing = [[jnp.zeros((size,), jnp.float32) for size in columns.sizes]] * n_vectors
    for i, vector in enumerate(jax.lax.fori_loop(0, blocks.steps, step, nothing)):
        columns.store(parts_ref, pl.ds(program * n_vectors + i, 1), _each(lambda a: a[None, :], vector))
