"""LayerNorm and RMSNorm of the residual stream in one pass each way (Pallas, Triton).

XLA reads a row once for its statistics and once more to scale it, and in the backward pass adds the stream's own
gradient in a third pass. Here a program holds whole rows: forward reads x and writes y; backward reads x, dy and the
gradient of what goes on beside the norm, and writes their sum.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu


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


class _Columns:
    """A row's places: a power of two of them, as Triton wants, of which `width` are there."""

    def __init__(self, width: int) -> None:
        self.slice = pl.ds(0, pl.next_power_of_2(width))
        self.inside = None if self.slice.size == width else jnp.arange(self.slice.size) < width

    def load(self, ref: Any, rows: Any = None) -> jax.Array:
        place = ref.at[self.slice] if rows is None else ref.at[rows, self.slice]
        if self.inside is None:
            return plgpu.load(place).astype(jnp.float32)
        return plgpu.load(place, mask=self._mask(place.shape), other=0.0).astype(jnp.float32)

    def store(self, ref: Any, rows: Any, value: jax.Array) -> None:
        place = ref.at[rows, self.slice]
        plgpu.store(place, value.astype(ref.dtype), mask=None if self.inside is None else self._mask(place.shape))

    def zero(self, value: jax.Array) -> jax.Array:
        """0 beyond the width."""
        return value if self.inside is None else jnp.where(self._mask(value.shape), value, 0.0)

    def _mask(self, shape: tuple[int, ...]) -> jax.Array:
        return jnp.broadcast_to(self.inside, shape)


def _normed(x: jax.Array, columns: _Columns, width: int, eps: float, centred: bool) -> tuple[jax.Array, jax.Array]:
    """Rows without scale, and 1 / their standard deviation (or root mean square) [R, 1]."""
    if centred:
        x = columns.zero(x - jnp.sum(x, axis=1, keepdims=True) / width)
    inverse = jax.lax.rsqrt(jnp.sum(x * x, axis=1, keepdims=True) / width + eps)
    return x * inverse, inverse


def _forward_program(x_ref: Any, gain_ref: Any, *refs: Any, width: int, eps: float, centred: bool, n_rows: int) -> None:
    rows, columns = pl.ds(pl.program_id(0) * n_rows, n_rows), _Columns(width)
    y, _ = _normed(columns.load(x_ref, rows), columns, width, eps, centred)
    y = y * columns.load(gain_ref)[None, :]
    if centred:
        y = y + columns.load(refs[0])[None, :]
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
    gain = columns.load(gain_ref)[None, :]

    def step(index: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rows = pl.ds((program * blocks.steps + index) * blocks.rows, blocks.rows)
        # Triton keeps loads and sums over warps in order: loads that come first wait for memory once, not three times.
        x, dy, beside = (columns.load(ref, rows) for ref in (x_ref, dy_ref, beside_ref))
        n, inverse = _normed(x, columns, width, eps, centred)
        g = dy * gain
        dx = g - n * (jnp.sum(g * n, axis=1, keepdims=True) / width)
        if centred:
            dx = dx - jnp.sum(g, axis=1, keepdims=True) / width
        columns.store(dx_ref, rows, beside + dx * inverse)
        return sums[0] + jnp.sum(dy * n, axis=0), sums[1] + jnp.sum(dy, axis=0)

    nothing = jnp.zeros((columns.slice.size,), jnp.float32)
    d_gain, d_bias = jax.lax.fori_loop(0, blocks.steps, step, (nothing, nothing))
    here = pl.ds(program, 1)
    columns.store(d_gain_ref, here, d_gain[None, :])
    columns.store(d_bias_ref, here, d_bias[None, :])
