"""The K best experts of each token and their scores, in one pass over the scores (Pallas, Triton).

XLA makes K maxima of it, a kernel each that reads all scores again, and as many sums to fetch what was chosen.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels.kernel_call import kernel_call
from mla_jax.kernels.tiles import padded


class Blocks(NamedTuple):
    """What a program does: so many rows."""

    rows: int
    warps: int


BLOCKS = Blocks(rows=32, warps=4)  # not measured yet: launch/elementwise_tuning.py, best_experts

_ROWS = 64  # whose multiples are taken
_EXPERTS = 256  # at most: a program holds whole rows


def applies(shape: tuple[int, ...]) -> bool:
    """Whether programs divide the rows of scores [N, E], and can hold them."""
    return shape[0] % _ROWS == 0 and shape[1] <= _EXPERTS


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def best_experts(scores: jax.Array, bias: jax.Array, k: int, interpret: bool) -> tuple[jax.Array, jax.Array]:
    """scores [N, E], bias [E], float32 -> the k largest of scores + bias, [N, k] int32, and their scores [N, k].

    In the order of `moe_router.top_choices`, its plain twin. The score of an expert whose bias is -inf is 0. Gradients
    reach the chosen scores alone.
    """
    return forward(scores, bias, k, interpret)


def forward(
    scores: jax.Array, bias: jax.Array, k: int, interpret: bool, blocks: Blocks = BLOCKS
) -> tuple[jax.Array, jax.Array]:
    """`best_experts`, without a gradient, with blocks of one's own."""
    n_rows = scores.shape[0]
    blocks = blocks._replace(rows=min(blocks.rows, _ROWS))
    return kernel_call(
        functools.partial(_program, n_experts=scores.shape[1], k=k, n_rows=blocks.rows),
        out_shape=(jax.ShapeDtypeStruct((n_rows, k), jnp.int32), jax.ShapeDtypeStruct((n_rows, k), jnp.float32)),
        grid=(n_rows // blocks.rows,),
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps),
        interpret=interpret,
        name="best_experts",
    )(scores, bias)


def _forward(scores: jax.Array, bias: jax.Array, k: int, interpret: bool) -> tuple[Any, Any]:
    expert_idx, score = forward(scores, bias, k, interpret)
    return (expert_idx, score), (expert_idx, bias)


def _backward(k: int, interpret: bool, kept: tuple[jax.Array, jax.Array], gradients: Any) -> tuple[jax.Array, None]:
    # A comparison, not a scatter: it joins the pass of the scores' own gradient.
    expert_idx, bias = kept
    chosen = (expert_idx[..., None] == jnp.arange(bias.shape[0])) & (bias != -jnp.inf)
    return jnp.sum(jnp.where(chosen, gradients[1][..., None], 0.0), axis=1), None


best_experts.defvjp(_forward, _backward)


def _program(
    scores_ref: Any, bias_ref: Any, idx_ref: Any, score_ref: Any, *, n_experts: int, k: int, n_rows: int
) -> None:
    rows, columns = pl.ds(pl.program_id(0) * n_rows, n_rows), padded(pl.next_power_of_2(n_experts), n_experts)
    expert = jnp.arange(columns.size)
    inside = expert < n_experts
    mask = jnp.broadcast_to(inside, (n_rows, columns.size))
    scores = plgpu.load(scores_ref.at[rows, columns], mask=mask, other=0.0)
    bias = plgpu.load(bias_ref.at[columns], mask=inside, other=0.0)
    selection = scores + bias[None, :]
    scores = jnp.where(selection == -jnp.inf, 0.0, scores)
    # -inf marks experts already taken and columns past E; NaN compares false and so becomes `least`.
    least = float(jnp.finfo(jnp.float32).min)
    left = jnp.where(mask, jnp.where(selection > least, selection, least), -jnp.inf)
    expert = jnp.broadcast_to(expert, left.shape)
    for place in range(k):
        best = jnp.max(left, axis=1)
        first = jnp.min(jnp.where(left == best[:, None], expert, columns.size), axis=1)
        here = expert == first[:, None]
        plgpu.store(idx_ref.at[rows, pl.ds(place, 1)], first[:, None])
        plgpu.store(score_ref.at[rows, pl.ds(place, 1)], jnp.sum(jnp.where(here, scores, 0.0), axis=1)[:, None])
        left = jnp.where(here, -jnp.inf, left)
