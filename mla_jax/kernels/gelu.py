"""tanh-GELU of x + bias in one pass each way (Pallas, Triton).

Forward reads x and writes h; backward reads x and dh, writes dx and adds the bias' gradient up on the way.

XLA's tanh is a polynomial and a division, which takes longer than the memory; here it is two instructions for bfloat16.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels.kernel_call import kernel_call


class Blocks(NamedTuple):
    """What a program does: `steps` tiles [rows, columns] of the same columns, one after another."""

    rows: int
    columns: int
    steps: int
    warps: int


# [65536, 2048] in bfloat16 on an H200 (launch/elementwise_tuning.py): 143 and 232 us; XLA 200 and 282. 16 numbers a
# thread and array forward, 8 backward. Each row group of the backward pass leaves a row of parts: 512 for 65,536 rows.
FORWARD = Blocks(rows=8, columns=256, steps=1, warps=4)
BACKWARD = Blocks(rows=8, columns=256, steps=16, warps=8)

_ROWS = 128  # whose multiples are taken: enough for a program to have something to do
_LEAST_COLUMNS = 128  # narrower tiles waste memory transactions: the last one is masked instead
_SLOPE, _CUBIC = math.sqrt(2 / math.pi), 0.044715


def applies(shape: tuple[int, ...]) -> bool:
    """Whether x [..., F] has a number of rows that programs divide. Any width will do: the last tile is masked."""
    return math.prod(shape[:-1]) % _ROWS == 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def bias_gelu(x: jax.Array, bias: jax.Array, interpret: bool) -> jax.Array:
    """tanh-GELU of x [..., F] + bias [F], in float32 inside and x's dtype outside; x alone is kept for the gradient.

    The plain twin is functions.bias_gelu, for shapes too that `applies` does not take.
    """
    return forward(x, bias, interpret)


def forward(x: jax.Array, bias: jax.Array, interpret: bool, blocks: Blocks = FORWARD) -> jax.Array:
    """`bias_gelu`, without a gradient, with blocks of one's own: x [..., F], bias [F] -> [..., F] in x's dtype."""
    rows = x.reshape(-1, x.shape[-1])
    blocks, grid, _ = _divide(rows.shape, blocks)
    h = kernel_call(
        functools.partial(
            _forward_program, width=rows.shape[1], blocks=blocks, logistic=logistic_for(x.dtype, interpret)
        ),
        out_shape=jax.ShapeDtypeStruct(rows.shape, x.dtype),
        grid=grid,
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps),
        interpret=interpret,
        name="bias_gelu",
    )(rows, bias)
    return h.reshape(x.shape)


def backward(
    x: jax.Array, bias: jax.Array, dh: jax.Array, interpret: bool, blocks: Blocks = BACKWARD
) -> tuple[jax.Array, jax.Array]:
    """Of `bias_gelu`: x, dh [..., F], bias [F] -> dx [..., F] in x's dtype, and the bias' gradient [F] in its own.

    The latter is summed in float32, before dx is rounded.
    """
    width = x.shape[-1]
    rows, d_rows = x.reshape(-1, width), dh.reshape(-1, width)
    blocks, grid, n_parts = _divide(rows.shape, blocks)
    dx, parts = kernel_call(
        functools.partial(_backward_program, width=width, blocks=blocks, logistic=logistic_for(x.dtype, interpret)),
        out_shape=(jax.ShapeDtypeStruct(rows.shape, x.dtype), jax.ShapeDtypeStruct((n_parts, width), jnp.float32)),
        grid=grid,
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps),
        interpret=interpret,
        name="bias_gelu_backward",
    )(rows, bias, d_rows)
    return dx.reshape(x.shape), jnp.sum(parts, axis=0).astype(bias.dtype)


bias_gelu.defvjp(
    lambda x, bias, interpret: (forward(x, bias, interpret), (x, bias)),
    lambda interpret, kept, dh: backward(*kept, dh, interpret),
)


def _divide(shape: tuple[int, int], blocks: Blocks) -> tuple[Blocks, tuple[int], int]:
    """Blocks that divide the rows, of as many numbers as those asked for; the grid; the row groups in it."""
    n_rows, width = shape
    columns = min(blocks.columns, width & -width)
    if columns < min(blocks.columns, _LEAST_COLUMNS):
        columns = min(blocks.columns, _LEAST_COLUMNS, pl.next_power_of_2(width))
    rows = min(blocks.rows * blocks.columns // columns, n_rows & -n_rows)
    steps = math.gcd(blocks.steps, n_rows // rows)
    groups = n_rows // (rows * steps)
    return blocks._replace(rows=rows, columns=columns, steps=steps), (groups * pl.cdiv(width, columns),), groups


def logistic_for(dtype: Any, interpret: bool) -> Callable[[jax.Array], jax.Array]:
    """u -> 1 / (1 + exp(-2 u)) inside a program, as exact as `dtype` needs."""
    return _exact if interpret or dtype == jnp.float32 else _by_exp


def value(y: jax.Array, logistic: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """tanh-GELU: y s with s = 1 / (1 + exp(-2 u)) = (1 + tanh u) / 2, u = y (_SLOPE + _SLOPE _CUBIC y^2)."""
    return y * logistic(y * (_SLOPE + (_SLOPE * _CUBIC) * (y * y)))


def value_and_slope(y: jax.Array, logistic: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
    """`value`, and its derivative s + y s (1 - s) 2 du/dy."""
    square = y * y
    s = logistic(y * (_SLOPE + (_SLOPE * _CUBIC) * square))
    h = y * s
    rise = h * (2 * _SLOPE + (6 * _SLOPE * _CUBIC) * square)
    return h, s + (rise - rise * s)


def _exact(u: jax.Array) -> jax.Array:
    """1 / (1 + exp(-2 u))."""
    return 0.5 + 0.5 * jnp.tanh(u)


def _by_exp(u: jax.Array) -> jax.Array:
    # Relatively exact everywhere; plain exp2 and division guard cases that are none here. The one instruction that
    # there is for tanh was 3 us of 232 faster, but 1 + tanh loses its digits below -2, where GELU nears 0.
    power = _instruction("ex2.approx.ftz.f32", (-2 * math.log2(math.e)) * u)
    return _instruction("rcp.approx.ftz.f32", 1 + power)


def _instruction(name: str, a: jax.Array) -> jax.Array:
    like = jax.ShapeDtypeStruct(a.shape, a.dtype)
    [out] = plgpu.elementwise_inline_asm(
        f"{name} $0, $1;", args=[a], constraints="=f,f", pack=1, result_shape_dtypes=[like]
    )
    return out


class _Tile:
    """The places of a program: columns of its own, and of one row group the rows of one step after another."""

    def __init__(self, width: int, blocks: Blocks) -> None:
        tiles = pl.cdiv(width, blocks.columns)
        program = pl.program_id(0)  # neighbours share rows, as memory does
        self.group = jax.lax.div(program, tiles)
        first = jax.lax.rem(program, tiles) * blocks.columns
        self.blocks, self.columns = blocks, pl.ds(first, blocks.columns)
        self.inside = None if width % blocks.columns == 0 else first + jnp.arange(blocks.columns) < width

    def rows(self, step: Any) -> pl.Slice:
        return pl.ds((self.group * self.blocks.steps + step) * self.blocks.rows, self.blocks.rows)

    def load(self, ref: Any, *rows: pl.Slice) -> jax.Array:
        place = ref.at[*rows, self.columns]
        if self.inside is None:
            return plgpu.load(place).astype(jnp.float32)
        return plgpu.load(place, mask=self._mask(place.shape), other=0.0).astype(jnp.float32)

    def store(self, ref: Any, rows: pl.Slice, value: jax.Array) -> None:
        place = ref.at[rows, self.columns]
        mask = None if self.inside is None else self._mask(place.shape)
        plgpu.store(place, value.astype(ref.dtype), mask=mask)

    def loop(self, step: Any, carried: Any) -> Any:
        if self.blocks.steps == 1:
            return step(0, carried)
        return jax.lax.fori_loop(0, self.blocks.steps, step, carried)

    def _mask(self, shape: tuple[int, ...]) -> jax.Array:
        return jnp.broadcast_to(self.inside, shape)


def _forward_program(x_ref: Any, bias_ref: Any, h_ref: Any, *, width: int, blocks: Blocks, logistic: Any) -> None:
    tile = _Tile(width, blocks)
    bias = tile.load(bias_ref)[None, :]

    def step(index: Any, nothing: None) -> None:
        rows = tile.rows(index)
        tile.store(h_ref, rows, value(tile.load(x_ref, rows) + bias, logistic))

    tile.loop(step, None)


def _backward_program(
    x_ref: Any,
    bias_ref: Any,
    dh_ref: Any,
    dx_ref: Any,
    part_ref: Any,
    *,
    width: int,
    blocks: Blocks,
    logistic: Any,
) -> None:
    """Sums are kept for each place of the tile: rows are added once, at the end."""
    tile = _Tile(width, blocks)
    bias = tile.load(bias_ref)[None, :]

    def step(index: Any, sums: jax.Array) -> jax.Array:
        rows = tile.rows(index)
        y, dh = tile.load(x_ref, rows) + bias, tile.load(dh_ref, rows)
        dx = dh * value_and_slope(y, logistic)[1]
        tile.store(dx_ref, rows, dx)
        return sums + dx

    sums = tile.loop(step, jnp.zeros((blocks.rows, blocks.columns), jnp.float32))
    tile.store(part_ref, pl.ds(tile.group, 1), jnp.sum(sums, axis=0)[None, :])
