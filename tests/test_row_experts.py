"""mla_jax.kernels.row_experts: values against the layer itself in interpret mode, choices, and lowering for a GPU."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import TRITON_CALL, lower_for_h100
from tiny import REFERENCE, quick_jit, tiny_config

from mla_jax.config import ModelConfig
from mla_jax.kernels import row_experts, row_linear
from mla_jax.kernels.row_experts import ExpertBlocks
from mla_jax.kernels.row_linear import NormWeights, RowBlocks
from mla_jax.model import moe, norms, serving

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

# rows, width D, routed E, shared S, top K, hidden F, block, score, other knobs
CASES: list[tuple] = [
    (1, 32, 62, 2, 6, 16, "gpt", "sigmoid", {}),  # paper B's numbers
    (4, 37, 7, 0, 3, 11, "default", "softmax", {}),  # widths that no block divides, nothing shared
    (
        2,
        48,
        5,
        3,
        5,
        24,
        "default",
        "sigmoid",
        {"router_renormalize": False, "routed_scaling_factor": 2.5},
    ),  # all chosen
    (3, 20, 1, 1, 1, 5, "gpt", "softmax", {"router_renormalize": False}),
    (2, 16, 17, 0, 4, 40, "gpt", "sigmoid", {"routed_scaling_factor": 0.5}),
]


def case_of(case: tuple) -> tuple[ModelConfig, int]:
    rows, width, routed, shared, top_k, hidden, block, score, knobs = case
    cfg = tiny_config("moe_mla_rope").model
    sizes = {"n_routed_experts": routed, "n_shared_experts": shared, "top_k": top_k, "d_expert": hidden}
    return dataclasses.replace(cfg, d_model=width, block=block, router_score=score, **sizes, **knobs), rows


def operands(cfg: ModelConfig, rows: int) -> tuple[Any, jax.Array, jax.Array]:
    """Parameters of norm and layer, x [rows, D], router_bias [2, E]."""
    rng = np.random.default_rng(0)
    layer = moe.MoE(cfg, REFERENCE)
    like = (jnp.zeros((1, 1, cfg.d_model)), jnp.zeros(cfg.n_routed_experts))
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), *like))["params"]
    names = ("gain", "bias") if cfg.block == "gpt" else ("gain",)
    norm = {name: jnp.asarray(rng.standard_normal(cfg.d_model), jnp.float32) for name in names}
    params = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.standard_normal(a.shape), a.dtype), shapes)
    bias = 0.2 * rng.standard_normal((2, cfg.n_routed_experts))
    x = rng.standard_normal((rows, cfg.d_model))
    return {"ffn": params, "ffn_norm": norm}, jnp.asarray(x, jnp.float32), jnp.asarray(bias, jnp.float32)


def by_the_layer(cfg: ModelConfig, params: Any, x: jax.Array, bias: jax.Array) -> jax.Array:
    def run(params: Any, x: jax.Array, bias: jax.Array) -> jax.Array:
        normed = norms.Norm(cfg.block).apply({"params": params["ffn_norm"]}, x[:, None])
        return x + moe.MoE(cfg, REFERENCE).apply({"params": params["ffn"]}, normed, bias)[0][:, 0]

    return quick_jit(run)(params, x, bias)


def by_the_kernels(
    cfg: ModelConfig, params: Any, x: jax.Array, bias: jax.Array, blocks: ExpertBlocks | None = None
) -> jax.Array:
    def run(params: Any, x: jax.Array, bias: jax.Array) -> jax.Array:
        weights, norm = serving._experts(cfg, params["ffn"], jnp.float32), serving._norm(params["ffn_norm"])
        return row_experts.row_experts(x, weights, bias, 1, norm, serving.rule(cfg), blocks, interpret=True)

    return quick_jit(run)(params, x, bias)


def by_the_twin(cfg: ModelConfig, params: Any, x: jax.Array, bias: jax.Array) -> jax.Array:
    def run(params: Any, x: jax.Array, bias: jax.Array) -> jax.Array:
        weights, norm = serving._experts(cfg, params["ffn"], jnp.float32), serving._norm(params["ffn_norm"])
        return row_experts.row_experts_reference(x, weights, bias, norm, serving.rule(cfg))

    return quick_jit(run)(params, x, bias)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_three_launches_are_the_layer(case: tuple) -> None:
    cfg, rows = case_of(case)
    params, x, bias = operands(cfg, rows)
    with jax.default_matmul_precision("highest"):
        expected = by_the_layer(cfg, params, x, bias[1])
        twin = by_the_twin(cfg, params, x, bias[1])
    np.testing.assert_allclose(by_the_kernels(cfg, params, x, bias), expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(twin, expected, atol=1e-5, rtol=1e-5)


def test_blocks_wider_than_an_expert_change_nothing() -> None:
    cfg, rows = case_of(CASES[1])
    given = (cfg, *operands(cfg, rows))
    wide = by_the_kernels(*given, ExpertBlocks(RowBlocks(4, 4), RowBlocks(32, 4), RowBlocks(64, 4)))
    np.testing.assert_allclose(wide, by_the_kernels(*given), atol=1e-6)


@pytest.mark.parametrize(
    ("what", "score"),
    [("equal scores", "softmax"), ("masked", "sigmoid"), ("fewer than K left", "softmax"), ("a NaN row", "sigmoid")],
)
def test_ties_masks_and_what_is_no_number_go_the_way_of_the_layer(what: str, score: str) -> None:
    cfg, rows = case_of((2, 24, 9, 1, 4, 8, "default", score, {}))
    params, x, bias = operands(cfg, rows)
    if what == "equal scores":  # all of them: the bias decides, which has equal numbers too
        params["ffn"]["w_router"] = jnp.zeros_like(params["ffn"]["w_router"])
        bias = jnp.round(4 * bias) / 4
        assert len(set(bias[1].tolist())) < cfg.n_routed_experts
    elif what == "masked":
        bias = bias.at[1, jnp.asarray([0, 3, 8])].set(-jnp.inf)
    elif what == "fewer than K left":
        bias = bias.at[1, 2:].set(-jnp.inf)
    else:
        x = x.at[1].set(jnp.nan)
    with jax.default_matmul_precision("highest"):
        expected = by_the_layer(cfg, params, x, bias[1])
    np.testing.assert_allclose(by_the_kernels(cfg, params, x, bias), expected, atol=1e-5, rtol=1e-5)


def test_the_table_fills_a_warps_loads_and_limits_are_told() -> None:
    assert [row_experts.choose_blocks(hidden).down.columns for hidden in (16, 32, 176, 512)] == [16, 8, 1, 1]
    cfg, _ = case_of(CASES[0])
    assert serving.packs_experts(cfg)
    for knobs in ({"n_routed_experts": 1025}, {"top_k": 31}, {"moe_impl": "gathered"}):
        assert not serving.packs_experts(dataclasses.replace(cfg, **knobs))
    params, x, bias = operands(cfg, row_linear.MAX_ROWS + 1)
    with pytest.raises(ValueError, match="at most 8 rows, not 9"):
        by_the_kernels(cfg, params, x, bias)


@pytest.mark.parametrize(("block", "routed", "hidden"), [("gpt", 62, 256), ("default", 256, 176)])
def test_the_kernels_lower_for_a_gpu(block: str, routed: int, hidden: int) -> None:
    cfg, _ = case_of((1, 512, routed, 2, 6, hidden, block, "sigmoid", {}))

    def like(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    experts, gate = routed + 2, (2,) if block == "default" else ()
    weights = row_experts.ExpertWeights(
        like(routed, 512),
        like(*gate, experts, hidden, 512, dtype=jnp.bfloat16),
        like(experts, 512, hidden, dtype=jnp.bfloat16),
        like(experts, hidden) if block == "gpt" else None,
        like(512) if block == "gpt" else None,
    )
    norm = NormWeights(like(512), like(512) if block == "gpt" else None)

    def run(x: jax.Array, weights: Any, bias: jax.Array, norm: NormWeights) -> jax.Array:
        return row_experts.row_experts(x, weights, bias, 3, norm, serving.rule(cfg))

    text = lower_for_h100(run, like(2, 512, dtype=jnp.bfloat16), weights, like(9, routed), norm)
    assert text.count(TRITON_CALL) == 3
