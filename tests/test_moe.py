"""Routing, its balance rule, and the paths of the experts held to a plain numpy reading of DeepSeek-V3's equations."""

import functools
import importlib.util
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import quick_jit, tiny_config

from mla_jax.config import ModelConfig
from mla_jax.config_files import load_config
from mla_jax.errors import UserError
from mla_jax.model import moe_balance, moe_choice, moe_paths
from mla_jax.model.backend import Backend, choose
from mla_jax.model.experts import Experts
from mla_jax.model.moe import MoE, route, router_bias_update, router_scores
from mla_jax.model.moe_grouped import plan

FAST = ("masked_dense", "grouped", "gathered")
EXPERTS = {"model.ffn": "moe", "model.n_routed_experts": 8, "model.top_k": 3, "model.d_expert": 5}


def moe_config(**knobs: Any) -> ModelConfig:
    return tiny_config(**(EXPERTS | {f"model.{name}": value for name, value in knobs.items()})).model


def backend(impl: str = "xla") -> Backend:
    return Backend("float32", "xla", grouped_impl=impl, interpret=True)


# --- routing


def test_the_bias_selects_and_does_not_weigh() -> None:
    cfg = moe_config(n_routed_experts=4, top_k=2)
    logits = jnp.asarray([[2.0, 1.0, 0.0, -1.0]])
    scores = 1 / (1 + np.exp(-np.asarray(logits[0], np.float64)))
    idx, weight, load = route(logits, jnp.zeros(4), cfg)
    assert idx.tolist() == [[0, 1]]
    np.testing.assert_allclose(weight[0], scores[:2] / scores[:2].sum(), atol=1e-6)
    idx, weight, load = route(logits, jnp.asarray([0.0, -0.5, 0.0, 0.7]), cfg)
    assert idx.tolist() == [[3, 0]]  # 0.269 + 0.7 before 0.881; 0.731 - 0.5 falls behind
    np.testing.assert_allclose(weight[0], scores[[3, 0]] / scores[[3, 0]].sum(), atol=1e-6)
    assert load.tolist() == [1, 0, 0, 1]


def test_softmax_scores_scaling_and_no_renormalisation() -> None:
    cfg = moe_config(n_routed_experts=4, router_score="softmax", router_renormalize=False, routed_scaling_factor=2.5)
    logits = jnp.asarray([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 3.0, 1.0]])
    p = np.exp(np.asarray(logits, np.float64))
    p /= p.sum(axis=-1, keepdims=True)
    idx, weight, load = route(logits, jnp.zeros(4), cfg)
    np.testing.assert_allclose(weight, 2.5 * np.take_along_axis(p, np.asarray(idx), axis=-1), rtol=1e-6)
    assert load.tolist() == [2, 1, 2, 1]  # ties go to the first


def test_a_masked_expert_is_not_chosen_and_weighs_nothing_where_it_must_be() -> None:
    cfg = moe_config(n_routed_experts=4, top_k=2)
    logits = jnp.asarray([[-3.0, 9.0, -4.0, -5.0]])
    bias = jnp.asarray([-0.9, -jnp.inf, -0.9, -0.9])  # selection scores below 0: a mask of zeros would win
    idx, weight, load = route(logits, bias, cfg)
    assert idx.tolist() == [[0, 2]]
    assert load.tolist() == [1, 0, 1, 0]
    idx, weight, _ = route(logits, jnp.full(4, -jnp.inf).at[2].set(0.0), cfg)
    assert int(idx[0, 0]) == 2
    np.testing.assert_allclose(weight, [[1.0, 0.0]], atol=1e-6)
    updated = router_bias_update(bias, jnp.asarray([2.0, 0.0, 3.0, 1.0]), 0.1)
    assert updated[1] == -jnp.inf
    np.testing.assert_allclose(updated[jnp.asarray([0, 2, 3])], [0.0, -0.1, 0.1], atol=1e-6)


def test_gradients_reach_the_router_through_the_weights_only() -> None:
    cfg = moe_config()
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((6, 8)), jnp.float32)
    out = jnp.asarray(np.random.default_rng(1).standard_normal((6, 3)), jnp.float32)
    run = quick_jit(jax.grad(lambda *a: jnp.sum(route(*a, cfg)[1] * out), argnums=(0, 1)))
    d_logits, d_bias = run(logits, jnp.zeros(8))
    idx = np.asarray(route(logits, jnp.zeros(8), cfg)[0])
    chosen = (idx[..., None] == np.arange(8)).any(axis=1)
    assert (np.abs(np.asarray(d_logits))[chosen] > 1e-6).all()
    assert not np.asarray(d_logits)[~chosen].any()
    assert not np.asarray(d_bias).any()


def test_the_bias_rule_by_hand() -> None:
    """Load 7, 3, 4, 2 of 16 choices, mean 4: signs -, +, 0, +; moves -0.1, 0.1, 0, 0.1; their mean 0.025 goes off."""
    bias, load = jnp.asarray([0.2, -0.1, 0.0, -0.1]), jnp.asarray([7.0, 3.0, 4.0, 2.0])
    np.testing.assert_allclose(router_bias_update(bias, load, 0.1), [0.075, -0.025, -0.025, -0.025], atol=1e-7)
    # Proportional: (4 - load) / 4 x 0.1 = -0.075, 0.025, 0, 0.05.
    expected = [0.125, -0.075, 0.0, -0.05]
    np.testing.assert_allclose(router_bias_update(bias, load, 0.1, "proportional"), expected, atol=1e-7)
    np.testing.assert_array_equal(router_bias_update(bias, load, 0.0), bias)


def test_layers_are_balanced_apart() -> None:
    bias, load = jnp.zeros((2, 3)), jnp.asarray([[9.0, 0.0, 0.0], [3.0, 3.0, 3.0]])
    np.testing.assert_allclose(router_bias_update(bias, load, 0.3), [[-0.4, 0.2, 0.2], [0, 0, 0]], atol=1e-7)


def test_a_single_live_expert_has_no_bias_and_small_loads_move_it_less() -> None:
    """With one expert left the mean is its own; below a mean load of one token the distance is taken in tokens."""
    alone = router_bias_update(jnp.asarray([0.3, -jnp.inf]), jnp.asarray([4.0, 0.0]), 0.1)
    np.testing.assert_allclose(alone, [0.0, -np.inf], atol=1e-7)
    for load, share in (([0.0, 3.0], 1.0), ([0.0, 1.0], 0.5), ([2.0, 4.0], 1 / 3)):
        moved = router_bias_update(jnp.zeros(2), jnp.asarray(load), 0.1, "proportional")
        np.testing.assert_allclose(moved, [0.1 * share, -0.1 * share], atol=1e-7)


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_the_bias_evens_a_skewed_router(score: str) -> None:
    """Fixed logits with a preference for some experts: the default rate of either score evens them in 400 steps."""
    cfg = moe_config(n_routed_experts=16, top_k=2, router_score=score)
    rng = np.random.default_rng(0)
    logits = jnp.asarray(0.45 * (rng.standard_normal((2048, 16)) + rng.standard_normal(16)), jnp.float32)

    def step(bias: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
        load = route(logits, bias, cfg)[2]
        return router_bias_update(bias, load, cfg.router_bias_rate), load.max() / load.mean()

    vio = quick_jit(lambda: jax.lax.scan(step, jnp.zeros(16), None, length=400)[1])()
    assert float(vio[0]) > 2
    assert float(vio[-50:].mean()) < 1.2


# --- paths


def random_layer(cfg: ModelConfig, n_tokens: int, seed: int, routing: str) -> tuple[Any, ...]:
    """x, router logits, experts and a cotangent; routing: free, starved (half the experts get nothing), all_to_one."""
    rng = np.random.default_rng(seed)
    d, e, f = cfg.d_model, cfg.n_routed_experts, cfg.d_expert

    def draw(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)

    logits = draw(n_tokens, e)
    if routing == "starved":
        logits = logits.at[:, max(cfg.top_k, e // 2) :].add(-20.0)
    if routing == "all_to_one":  # every token's first choice is the same, and so are the others
        logits = jnp.tile(logits[:1], (n_tokens, 1))
    gate = draw(e, d, f, scale=d**-0.5) if cfg.block == "default" else None
    experts = Experts(gate, draw(e, d, f, scale=d**-0.5), draw(e, f, d, scale=f**-0.5))
    return draw(n_tokens, d), logits, experts, draw(n_tokens, d)


def numpy_moe(cfg: ModelConfig, x: jax.Array, logits: jax.Array, experts: Experts) -> np.ndarray:
    """DeepSeek-V3, eqs. 12-15, token by token in float64."""
    x, logits = np.asarray(x, np.float64), np.asarray(logits, np.float64)
    matrices = [None if w is None else np.asarray(w, np.float64) for w in experts]
    out = np.zeros_like(x)
    for n, token in enumerate(x):
        s = 1 / (1 + np.exp(-logits[n]))
        chosen = np.argsort(-s, kind="stable")[: cfg.top_k]
        for e in chosen:
            gate, up, down = (None if w is None else w[e] for w in matrices)
            h = token @ up
            if gate is None:
                h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
            else:
                g = token @ gate
                h *= g / (1 + np.exp(-g))
            out[n] += s[e] / s[chosen].sum() * (h @ down)
    return out


def values_and_gradients(cfg: ModelConfig, impl: str, grouped_impl: str, layer: tuple) -> tuple[Any, Any]:
    x, logits, experts, cotangent = layer

    def run(x: jax.Array, logits: jax.Array, experts: Any) -> tuple[jax.Array, jax.Array]:
        idx, weight, _ = route(logits, jnp.zeros(cfg.n_routed_experts), cfg)
        y = moe_paths.PATHS[impl](x, idx, weight, experts, backend(grouped_impl))
        return jnp.sum(y * cotangent), y

    (_, y), grads = quick_jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))(x, logits, experts)
    return y, grads


def check_path(cfg: ModelConfig, impl: str, layer: tuple, wanted: tuple, grouped_impl: str = "xla") -> None:
    """wanted: the reference's `values_and_gradients`."""
    y, grads = values_and_gradients(cfg, impl, grouped_impl, layer)
    wanted, wanted_grads = wanted
    np.testing.assert_allclose(y, wanted, atol=1e-5, rtol=1e-5)

    def close(a: jax.Array, b: jax.Array) -> None:  # of what is summed over hundreds of tokens: 1e-5 of the largest
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))

    jax.tree.map(close, grads, wanted_grads)


@pytest.mark.parametrize("block", ["default", "gpt"])
def test_the_reference_is_the_equations(block: str) -> None:
    cfg = moe_config(block=block)
    layer = random_layer(cfg, 11, 0, "free")
    y, _ = values_and_gradients(cfg, "reference", "xla", layer)
    np.testing.assert_allclose(y, numpy_moe(cfg, *layer[:3]), atol=2e-5)


@pytest.mark.parametrize("routing", ["free", "starved", "all_to_one"])
def test_every_path_equals_the_reference(routing: str) -> None:
    cfg = moe_config(block="gpt" if routing == "starved" else "default")
    layer = random_layer(cfg, 37, 1, routing)
    wanted = values_and_gradients(cfg, "reference", "xla", layer)
    for impl in FAST:
        check_path(cfg, impl, layer, wanted)


def test_the_pallas_kernels_give_the_values_and_gradients_of_the_reference() -> None:
    cfg = moe_config(n_routed_experts=3, top_k=2)
    layer = random_layer(cfg, 37, 1, "starved")
    check_path(cfg, "grouped", layer, values_and_gradients(cfg, "reference", "xla", layer), grouped_impl="pallas")


@pytest.mark.slow  # ragged_dot is slow to compile
@pytest.mark.parametrize("routing", ["free", "starved"])
def test_groups_without_padding_suit_a_ragged_product(routing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokamax path, its product replaced by JAX's own where the package is not installed."""
    if importlib.util.find_spec("tokamax") is None:
        monkeypatch.setitem(sys.modules, "tokamax", types.SimpleNamespace(ragged_dot=jax.lax.ragged_dot))
    cfg = moe_config(block="gpt")
    layer = random_layer(cfg, 37, 1, routing)
    wanted = values_and_gradients(cfg, "reference", "xla", layer)
    check_path(cfg, "grouped", layer, wanted, grouped_impl="tokamax")


@pytest.mark.parametrize("impl", ["xla", "tokamax", "pallas"])
@pytest.mark.parametrize("routing", ["free", "starved", "all_to_one"])
def test_the_plan_puts_every_choice_in_a_block_of_its_expert(routing: str, impl: str) -> None:
    cfg = moe_config()
    idx = route(random_layer(cfg, 50, 2, routing)[1], jnp.zeros(8), cfg)[0]
    groups = jax.jit(functools.partial(plan, n_experts=8, impl=impl))(idx)
    slot, source = np.asarray(groups.slot).reshape(-1), np.asarray(groups.source)
    assert len(set(slot)) == idx.size
    assert (source[slot] == np.arange(idx.size)).all()
    assert (np.delete(source, slot) == idx.size).all()
    np.testing.assert_array_equal(groups.sizes, np.bincount(np.asarray(idx).reshape(-1), minlength=8))
    if impl == "tokamax":
        assert source.size == idx.size
        assert (np.diff(np.asarray(idx).reshape(-1)[source]) >= 0).all()
    else:
        np.testing.assert_array_equal(np.asarray(groups.block_expert)[slot // groups.block], idx.reshape(-1))


# --- the choice of a path

GPU = Backend("bfloat16", "cudnn", platform="gpu", grouped_impl="pallas")


def test_the_cost_rule_at_the_sizes_of_the_papers() -> None:
    """One wide layer where all experts together are about as wide as the dense one, groups where they are far wider."""
    flop, param = (load_config(f"moe_mla_rope_{kind}_matched").model for kind in ("flop", "param"))
    assert moe_choice.choose(flop, 65_536, GPU).impl == "grouped"
    assert moe_choice.choose(param, 65_536, GPU).impl == "masked_dense"
    for cfg in (flop, param):
        assert moe_choice.choose(cfg, 1, GPU).impl == "gathered"
        assert moe_choice.choose(cfg, 4096, GPU).impl != "gathered"


def test_widths_up_to_4_d_are_one_dense_layer_unless_rows_are_ragged() -> None:
    def impl(width: int) -> str:
        cfg = load_config("moe_mla_rope_flop_matched", **{"model.d_expert": width}).model
        return moe_choice.choose(cfg, 65_536, GPU).impl

    assert impl(32) == "masked_dense"
    assert impl(31) == "grouped"  # 62 x 31 columns are no multiple of 8: measured, docs/results/moe_gpu.md
    assert impl(8 * 512 // 62) == "grouped"


def test_a_path_that_is_asked_for_is_taken_and_named() -> None:
    choice = moe_choice.choose(moe_config(moe_impl="reference"), 64, GPU)
    assert choice.impl == "reference" and "model.moe_impl" in choice.reason


@pytest.mark.parametrize("wish", ["tokamax", "pallas"])
def test_grouped_products_that_the_device_lacks_are_refused(wish: str) -> None:
    with pytest.raises(UserError, match=f"model.grouped_impl is '{wish}'.*: .*(pip install 'mla-jax|use auto)"):
        choose(moe_config(grouped_impl=wish))
    assert choose(moe_config()).grouped_impl == "xla"


# --- the layer


def layer_params(module: MoE, x: jax.Array) -> Any:
    """Random weights of std 0.3."""
    rng = np.random.default_rng(0)
    bias = jnp.zeros(module.cfg.n_routed_experts)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, bias)["params"]
    return jax.tree.map(lambda a: jnp.asarray(0.3 * rng.standard_normal(a.shape), a.dtype), shapes)


def test_the_layer_is_shared_plus_routed_and_says_what_it_did() -> None:
    cfg = moe_config(n_shared_experts=2, moe_impl="reference")
    module = MoE(cfg, backend())
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, cfg.d_model)), jnp.float32)
    params = layer_params(module, x)
    assert params["shared"]["w_up"].shape == (cfg.d_model, 2 * cfg.d_expert)
    y, aux = quick_jit(module.apply)({"params": params}, x, jnp.zeros(8))
    flat = x.reshape(12, -1)
    logits = flat @ params["w_router"]
    experts = Experts(params["w_gate"], params["w_up"], params["w_down"])
    shared = params["shared"]
    shared = (jax.nn.silu(flat @ shared["w_gate"]) * (flat @ shared["w_up"])) @ shared["w_down"]
    np.testing.assert_allclose(y.reshape(12, -1), numpy_moe(cfg, flat, logits, experts) + shared, atol=1e-4)
    idx, weight, load = route(logits, jnp.zeros(8), cfg)
    np.testing.assert_array_equal(aux.expert_idx.reshape(12, -1), idx)
    np.testing.assert_allclose(aux.expert_weight.reshape(12, -1), weight, atol=1e-5)
    np.testing.assert_array_equal(aux.expert_load, load)
    assert float(aux.router_loss) == 0
    p = np.asarray(jax.nn.sigmoid(logits), np.float64)
    p /= p.sum(axis=-1, keepdims=True)
    assert float(aux.router_entropy) == pytest.approx(-(p * np.log(p)).sum(axis=-1).mean(), abs=1e-5)


def test_router_logits_are_float32_in_a_bfloat16_model() -> None:
    """Two experts whose logits bfloat16 cannot tell apart: float32 must."""
    cfg = moe_config(n_routed_experts=2, top_k=1)
    x = jnp.ones((1, 1, cfg.d_model), jnp.bfloat16)
    module = MoE(cfg, Backend("bfloat16", "xla"))
    params = layer_params(module, x)
    apply = quick_jit(module.apply)
    for better in (0, 1):
        w_router = jnp.full((cfg.d_model, 2), 0.03).at[0, better].add(2e-5)
        _, aux = apply({"params": params | {"w_router": w_router}}, x, jnp.zeros(2))
        assert aux.expert_load.argmax() == better


# --- auxiliary losses


def test_the_switch_loss_by_hand() -> None:
    """2 experts, top-1, 4 tokens, 3 of them to expert 0: f = (1.5, 0.5); P = means of p; loss = sum f P."""
    scores = jnp.asarray([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7]])
    idx = jnp.asarray([[0], [0], [0], [1]])
    p = np.asarray(scores, np.float64).mean(axis=0)
    assert float(moe_balance.balance_loss(scores, idx, 1)) == pytest.approx(1.5 * p[0] + 0.5 * p[1], abs=1e-6)
    # By sequence, of 2 tokens each: f = (2, 0) with P0 = 0.75, and (1, 1) with P0 + P1 = 1.
    assert float(moe_balance.balance_loss(scores, idx, 2)) == pytest.approx((2 * 0.75 + 1) / 2, abs=1e-6)


def test_an_even_load_has_the_loss_1_and_the_z_loss_is_the_squared_logsumexp() -> None:
    idx = jnp.asarray([[0, 1], [2, 3]])
    assert float(moe_balance.balance_loss(jnp.full((2, 4), 0.3), idx, 1)) == pytest.approx(1, abs=1e-6)
    assert float(moe_balance.z_loss(jnp.zeros((3, 4)))) == pytest.approx(np.log(4) ** 2, abs=1e-5)


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_each_auxiliary_loss_changes_the_gradient_in_proportion_to_its_weight(score: str) -> None:
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((12, 8)), jnp.float32)

    def gradients(weight: float) -> list[jax.Array]:
        knobs = ("router_aux_weight", "router_sequence_weight", "router_z_weight")
        configs = [moe_config(router_score=score, **{knob: weight}) for knob in knobs]

        def loss(logits: jax.Array, cfg: ModelConfig) -> jax.Array:
            idx = route(logits, jnp.zeros(8), cfg)[0]
            return moe_balance.router_loss(logits, router_scores(logits, cfg), idx, (2, 6), cfg)

        return quick_jit(lambda logits: [jax.grad(loss)(logits, cfg) for cfg in configs])(logits)

    none, half, whole = (gradients(weight) for weight in (0.0, 0.5, 1.0))
    for zero, one, two in zip(none, half, whole, strict=True):
        assert not np.asarray(zero).any()
        assert float(jnp.abs(one).max()) > 1e-4
        np.testing.assert_allclose(two, 2 * one, atol=1e-6)
    assert float(jnp.abs(half[0] - half[1]).max()) > 1e-4  # the batch's balance is not the sequences'
