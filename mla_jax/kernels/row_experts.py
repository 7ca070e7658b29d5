"""The routed and shared experts of a few rows in three launches (Pallas, Triton), norm and residual included.

XLA makes some 22 kernels a layer of them at batch 1, where a step is as long as the number of its launches: a product
of one row is a reduction of stored terms, a gathered matrix is a copy, the top K are K reductions. Here:
  1. the router's logits: `row_linear` with the router's matrix in float32;
  2. `_up_program`: every program chooses among the logits again, takes one of the row's experts, and makes a few of its
     hidden units, times the expert's weight;
  3. `_down_program`: a few output columns, over all the experts that launch 2 left the numbers of, plus the residual.
Shared experts stand behind the routed ones as experts that every row goes to with weight 1.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels.kernel_call import kernel_call
from mla_jax.kernels.row_linear import (
    MAX_ROWS,
    Linear,
    NormWeights,
    RowBlocks,
    activate,
    load_tiles,
    load_vector,
    normalise,
    normalise_reference,
    row_linear,
)
from mla_jax.kernels.tiles import ordered, pieces
from mla_jax.model import functions, moe_router

MAX_ROUTED = 1024  # experts whose scores a warp holds
MAX_CHOICES = 32  # experts that a row goes to, shared ones included: loops over them are unrolled
_LOAD = 256  # bfloat16 numbers that a warp loads at once
_WHOLE = 1024  # hidden units up to which a row is one block, with a mask where it is no power of two
_TAKEN = jnp.iinfo(jnp.int32).min  # below `ordered` of every score, -inf (a masked expert's) included


@struct.dataclass
class ExpertWeights:
    """As decoding reads them: E routed experts and behind them the shared ones, E' in all; F padded by zeros.

    router [E, D] float32; up [E', F, D] or, gated, [2, E', F, D]: gate and up; down [E', D, F]; of shared experts with
    biases up_bias [E', F] float32 (0 for routed ones) and down_bias [D] float32, else None.
    """

    router: jax.Array
    up: jax.Array
    down: jax.Array
    up_bias: jax.Array | None = None
    down_bias: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Rule:
    """`moe.route`'s: top_k; score "sigmoid" | "softmax"; whether weights are divided by their sum; their factor."""

    top_k: int
    score: str
    renormalize: bool
    factor: float


@dataclasses.dataclass(frozen=True)
class ExpertBlocks:
    """columns of router: experts; of up: hidden units of one expert; of down: the output's."""

    router: RowBlocks
    up: RowBlocks
    down: RowBlocks


def choose_blocks(hidden: int) -> ExpertBlocks:
    """One warp a program: a choice of experts is then a dozen instructions without a barrier (33 of them with four).

    Three layers of 62 experts of 256 at batch 1 on an H200 (launch/decode_tuning.py --only moe_1): 90.0 us a step;
    93.9 with one expert a program of the router, 92 to 105 with more warps or other columns of the first product. The
    second's are not measured: of narrow experts several columns make a warp's load.
    """
    down = min(16, max(1, _LOAD // pl.next_power_of_2(hidden)))
    return ExpertBlocks(RowBlocks(2, 1), RowBlocks(4, 1), RowBlocks(down, 1))


def applies(n_routed: int, n_shared: int, rule: Rule) -> bool:
    """Whether a layer's sizes are those that the programs hold."""
    return n_routed <= MAX_ROUTED and rule.top_k + n_shared <= MAX_CHOICES


def row_experts(
    x: jax.Array,
    weights: ExpertWeights,
    router_bias: jax.Array,
    layer: int,
    norm: NormWeights,
    rule: Rule,
    blocks: ExpertBlocks | None = None,
    interpret: bool = False,
) -> jax.Array:
    """x + experts(norm(x)) [B, D] in the matrices' dtype; x [B, D], B at most MAX_ROWS.

    router_bias [L, E] float32, of which row `layer` is read: cutting it out would be a launch of its own.
    """
    if x.shape[0] > MAX_ROWS:
        raise ValueError(f"row_experts is for at most {MAX_ROWS} rows, not {x.shape[0]}")
    batch, width = x.shape
    n_experts, _, hidden = weights.down.shape
    choices = rule.top_k + n_experts - weights.router.shape[0]
    blocks = blocks or choose_blocks(hidden)
    logits = row_linear(x, Linear(weights.router), norm, blocks=blocks.router, interpret=interpret)
    units, chosen = kernel_call(
        functools.partial(_up_program, columns=blocks.up.columns, layer=layer, rule=rule),
        out_shape=(
            jax.ShapeDtypeStruct((batch, choices, hidden), weights.up.dtype),
            jax.ShapeDtypeStruct((batch, choices), jnp.int32),
        ),
        grid=(pl.cdiv(hidden, blocks.up.columns), choices, batch),
        compiler_params=plgpu.CompilerParams(num_warps=blocks.up.warps, num_stages=1),
        interpret=interpret,
        name="experts_up",
    )(x, logits, router_bias, weights.up, weights.up_bias, norm)
    return kernel_call(
        functools.partial(_down_program, columns=blocks.down.columns),
        out_shape=jax.ShapeDtypeStruct((batch, width), weights.down.dtype),
        grid=(pl.cdiv(width, blocks.down.columns), batch),
        compiler_params=plgpu.CompilerParams(num_warps=blocks.down.warps, num_stages=1),
        interpret=interpret,
        name="experts_down",
    )(x, units, chosen, weights.down, weights.down_bias)


def row_experts_reference(
    x: jax.Array, weights: ExpertWeights, router_bias: jax.Array, norm: NormWeights, rule: Rule
) -> jax.Array:
    """The plain twin on the same weights, for any number of rows; the layer itself is `model.moe.MoE`."""
    normed = normalise_reference(x.astype(jnp.float32), norm)
    scores = moe_router.scores(moe_router.exact_product(normed, weights.router.T), rule.score)
    selection = scores + router_bias
    chosen = moe_router.top_choices(selection, rule.top_k)
    routed = jnp.take_along_axis(jnp.where(selection == -jnp.inf, 0.0, scores), chosen, axis=1)
    if rule.renormalize:
        routed = routed / (jnp.sum(routed, axis=1, keepdims=True) + 1e-20)
    shared = weights.down.shape[0] - weights.router.shape[0]
    weight = jnp.zeros_like(scores).at[jnp.arange(x.shape[0])[:, None], chosen].set(routed * rule.factor)
    weight = jnp.pad(weight, ((0, 0), (0, shared)), constant_values=1.0)  # [B, E']
    pre = jnp.einsum("bd,...efd->...bef", normed.astype(x.dtype), weights.up)
    if weights.up_bias is not None:
        pre = pre + weights.up_bias.astype(pre.dtype)
    units = functions.activation(pre[0], pre[1]) if weights.up.ndim == 4 else functions.activation(None, pre)
    y = x + jnp.einsum("bef,edf->bd", units * weight[..., None].astype(units.dtype), weights.down)
    return y if weights.down_bias is None else y + weights.down_bias.astype(y.dtype)


def _up_program(
    x: Any, logits: Any, router_bias: Any, up: Any, up_bias: Any, norm: NormWeights, units: Any, chosen: Any, *,
    columns: int, layer: int, rule: Rule,
) -> None:  # fmt: skip
    lane, choice, row = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    zero, width, hidden = lane * 0, x.shape[1], units.shape[2]
    cut = pieces(width)
    here, valid = pl.ds(lane * columns, columns), (lane * columns + jnp.arange(columns)) < hidden
    routed, weight = _routed(logits, router_bias, layer, row, choice, rule)
    shared = choice >= rule.top_k
    expert = jnp.where(shared, logits.shape[1] + choice - rule.top_k, routed)
    matrices = [(0, expert), (1, expert)] if up.ndim == 4 else [(expert,)]
    tiles = [load_tiles(up, index, here, valid, cut, zero) for index in matrices]
    vector = normalise(load_vector(x, (row,), cut, width, zero), norm, cut, width, zero)
    sums = [
        sum(jnp.sum(tile.astype(jnp.float32) * part[None, :], axis=1) for tile, part in zip(t, vector, strict=True))
        for t in tiles
    ]
    if up_bias is not None:
        sums[0] += plgpu.load(up_bias.at[expert, here], mask=valid, other=0.0)
    made = activate(sums, "swiglu" if up.ndim == 4 else "gelu") * jnp.where(shared, 1.0, weight)
    plgpu.store(units.at[row, choice, here], made.astype(units.dtype), mask=valid)
    plgpu.store(chosen.at[row, choice], expert)  # the same number by every program of the choice


def _routed(
    logits: Any, router_bias: Any, layer: int, row: jax.Array, choice: jax.Array, rule: Rule
) -> tuple[jax.Array, jax.Array]:
    """The row's expert number `choice` and its weight, by `moe.route`'s rule: K maxima, the first of equal ones.

    Over integers in the order of the scores, of which a warp finds the largest in one instruction.
    """
    n_routed = logits.shape[1]
    lane = jnp.arange(max(32, pl.next_power_of_2(n_routed)))
    valid, here = lane < n_routed, pl.ds(row * 0, lane.shape[0])
    scores = moe_router.scores(plgpu.load(logits.at[row, here], mask=valid, other=-jnp.inf), rule.score)
    selection = scores + plgpu.load(router_bias.at[row * 0 + layer, here], mask=valid, other=-jnp.inf)
    left = jnp.where(valid, ordered(selection), _TAKEN)
    scores = jnp.where(selection == -jnp.inf, 0.0, scores)
    expert = choice * 0
    for turn in range(rule.top_k):
        first = jnp.min(jnp.where(left == jnp.max(left), lane, n_routed - 1))
        expert = jnp.where(choice == turn, first, expert)
        left = jnp.where(lane == first, _TAKEN, left)
    weight = jnp.sum(jnp.where(lane == expert, scores, 0.0))
    if rule.renormalize:
        weight = weight / (jnp.sum(jnp.where(valid & (left == _TAKEN), scores, 0.0)) + 1e-20)
    return expert, weight * rule.factor


def _down_program(x: Any, units: Any, chosen: Any, down: Any, down_bias: Any, out: Any, *, columns: int) -> None:
    lane, row = pl.program_id(0), pl.program_id(1)
    zero, width, (choices, hidden) = lane * 0, x.shape[1], units.shape[1:]
    cut = [(0, pl.next_power_of_2(hidden))] if hidden <= _WHOLE else pieces(hidden)
    here, valid = pl.ds(lane * columns, columns), (lane * columns + jnp.arange(columns)) < width
    numbers = [plgpu.load(chosen.at[row, zero + choice]) for choice in range(choices)]
    tiles = [load_tiles(down, (number,), here, valid, cut, zero) for number in numbers]
    y = plgpu.load(x.at[row, here], mask=valid, other=jnp.zeros((), x.dtype)).astype(jnp.float32)
    terms = [jnp.zeros((columns, size), jnp.float32) for _, size in cut]
    for choice, each in enumerate(tiles):  # the sum over experts first, over hidden units once, at the end
        for i, ((offset, size), tile) in enumerate(zip(cut, each, strict=True)):
            terms[i] += tile.astype(jnp.float32) * _repeated(units, row, zero + choice, offset, (columns, size))
    y += sum(jnp.sum(a, axis=1) for a in terms)
    if down_bias is not None:
        y += plgpu.load(down_bias.at[here], mask=valid, other=0.0)
    plgpu.store(out.at[row, here], y.astype(out.dtype), mask=valid)


def _repeated(units: Any, row: jax.Array, choice: jax.Array, offset: int, shape: tuple[int, int]) -> jax.Array:
    """Hidden units in float32, loaded once for each column: each thread then has its own, where a vector's would go
    through shared memory between barriers, once for each expert."""
    index = jnp.broadcast_to(offset + jnp.arange(shape[1])[None, :], shape)
    zero = jnp.zeros((), units.dtype)
    return plgpu.load(units.at[row, choice, index], mask=index < units.shape[2], other=zero).astype(jnp.float32)
