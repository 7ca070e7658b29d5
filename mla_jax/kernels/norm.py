"""LayerNorm and RMSNorm of the residual stream in one pass each way (Pallas, Triton).

XLA reads a row once for its statistics and once more to scale it, and in the backward pass adds the stream's own
gradient in a third pass. Here a program holds whole rows: forward reads x and writes y; backward reads x, dy and the
gradient of what goes on beside the norm, and writes their sum.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels.padding import padded


class Blocks(NamedTuple):
    """What a program of the backward pass does; one of the forward pass does a single step."""

    rows: int  # that it holds at a time
    steps: int  # blocks of rows that it adds gain's and bias' gradients over
    warps: int

    def params(self) -> plgpu.CompilerParams:
        return plgpu.CompilerParams(num_warps=self.warps, num_stages=2)


# Size m's stream [65536, 512] in bfloat16 on an H200: 105 us backward, XLA 169 (launch/elementwise_tuning.py).
FORWARD = Blocks(rows=4, steps=1, warps=4)
BACKWARD = Blocks(rows=2, steps=32, warps=2)
_LEAST = 64  # columns of a row's second piece


def applies(shape: tuple[int, ...]) -> bool:
    """Whether x [..., D] has a number of rows that the programs divide, and rows that one can hold."""
    n_rows = 1
    for size in shape[:-1]:
        n_rows *= size
    return all(n_rows % (b.rows * b.steps) == 0 for b in (FORWARD, BACKWARD)) and shape[-1] <= 4096


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def norm_beside(
    x: jax.Array, gain: jax.Array, bias: jax.Array | None, eps: float, interpret: bool
) -> tuple[jax.Array, jax.Array]:
    """x [..., D] -> x itself, and its norm times gain [D]: LayerNorm plus bias [D], or without a bias RMSNorm.

    In float32 inside; y in x's dtype. Whoever goes on with the x that comes back has its gradient added to the norm's
    in the kernel. The plain twins are layers.layer_norm and layers.rms_norm.
    """
    return forward(x, gain, bias, eps, interpret)[0]


def forward(
    x: jax.Array, gain: jax.Array, bias: jax.Array | None, eps: float, interpret: bool, blocks: Blocks = FORWARD
) -> tuple[tuple, tuple]:
    """What `norm_beside` returns, and what it keeps for the gradient."""
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    given = [gain] if bias is None else [gain, bias]
    y = pl.pallas_call(
        functools.partial(_forward_program, width=width, eps=eps, centred=bias is not None, n_rows=blocks.rows),
        out_shape=jax.ShapeDtypeStruct(rows.shape, x.dtype),
        grid=(rows.shape[0] // blocks.rows,),
        compiler_params=blocks.params(),
        interpret=interpret,
        name="norm",
    )(rows, *given)
    return (x, y.reshape(x.shape)), (x, gain, bias)


def backward(eps: float, interpret: bool, residuals: tuple, cotangents: tuple, blocks: Blocks = BACKWARD) -> tuple:
    """Gradients of x, gain and bias."""
    x, gain, bias = residuals
    width = x.shape[-1]
    rows, beside, dy = (a.reshape(-1, width) for a in (x, *cotangents))
    programs = rows.shape[0] // (blocks.rows * blocks.steps)
    parts = jax.ShapeDtypeStruct((programs, width), jnp.float32)
    d_x, d_gain, d_bias = pl.pallas_call(
        functools.partial(_backward_program, width=width, eps=eps, centred=bias is not None, blocks=blocks),
        out_shape=(jax.ShapeDtypeStruct(rows.shape, x.dtype), parts, parts),
        grid=(programs,),
        compiler_params=blocks.params(),
        interpret=interpret,
        name="norm_backward",
    )(rows, gain, beside, dy)
    d_bias = None if bias is None else jnp.sum(d_bias, axis=0).astype(bias.dtype)
    return d_x.reshape(x.shape), jnp.sum(d_gain, axis=0).astype(gain.dtype), d_bias


norm_beside.defvjp(forward, backward)


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
    beside_ref: Any,
    dy_ref: Any,
    dx_ref: Any,
    d_gain_ref: Any,
    d_bias_ref: Any,
    *,
    width: int,
    eps: float,
    centred: bool,
    blocks: Blocks,
) -> None:
    """With n the normed row, s its inverse deviation, g = dy gain: dx = s (g - n mean(g n) - mean(g))."""
    program, columns = pl.program_id(0), _Columns(width)
    gain = columns.load(gain_ref)

    def step(index: jax.Array, sums: tuple[Row, Row]) -> tuple[Row, Row]:
        rows = pl.ds((program * blocks.steps + index) * blocks.rows, blocks.rows)
        # Triton keeps loads and sums over warps in order: loads that come first wait for memory once, not three times.
        x, dy, beside = (columns.load(ref, rows) for ref in (x_ref, dy_ref, beside_ref))
        n, inverse = _normed(x, columns, width, eps, centred)
        g = _each(lambda dy, gain: dy * gain[None, :], dy, gain)
        along = _sums(_each(jnp.multiply, g, n)) / width
        dx = _each(lambda g, n: g - n * along, g, n)
        if centred:
            mean = _sums(g) / width
            dx = _each(lambda dx: dx - mean, dx)
        columns.store(dx_ref, rows, _each(lambda beside, dx: beside + dx * inverse, beside, dx))
        d_gain = _each(lambda total, dy, n: total + jnp.sum(dy * n, axis=0), sums[0], dy, n)
        return d_gain, _each(lambda total, dy: total + jnp.sum(dy, axis=0), sums[1], dy)

    nothing = [jnp.zeros((size,), jnp.float32) for size in columns.sizes]
    d_gain, d_bias = jax.lax.fori_loop(0, blocks.steps, step, (nothing, nothing))
    here = pl.ds(program, 1)
    columns.store(d_gain_ref, here, _each(lambda a: a[None, :], d_gain))
    columns.store(d_bias_ref, here, _each(lambda a: a[None, :], d_bias))
