"""Matched sizes: the solvers against the closed forms, the named configs against the papers' figures, bad sizes."""

import pytest
from tiny import SIZES, tiny_config

from mla_jax import accounting, sizing
from mla_jax.config_files import load_config
from mla_jax.errors import UserError

MOE = ("moe_mha", "moe_mla", "moe_mla_rope", "moe_mla_rope_flop_matched", "moe_mla_rope_param_matched")
ROWS = {"model.vocab_size": 8192}


@pytest.mark.parametrize("name", MOE)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_of_the_named_configs_is_2_shared_and_62_routed_top_6(name: str, size: str) -> None:
    model = load_config(f"{name}:{size}").model
    assert (model.n_shared_experts, model.n_routed_experts, model.top_k) == (2, 62, 6)
    assert model.ffn == "moe"


@pytest.mark.parametrize("rows", [8192, 50_000])
@pytest.mark.parametrize("size", SIZES)
def test_parameter_matched_has_the_total_of_the_vanilla_transformer(size: str, rows: int) -> None:
    """12 d^2 a layer and the embedding, as the papers count, and norms and biases."""
    config = load_config(f"moe_mla_rope_param_matched:{size}", **{"model.vocab_size": rows})
    model, total = config.model, accounting.params(config.model)["total"]
    vanilla = accounting.params(
        load_config(f"mha_rope:{size}", **{"model.vocab_size": rows, "model.block": "gpt"}).model
    )
    assert total == pytest.approx(vanilla["total"], rel=2e-4)
    assert model.d_expert % 16 == model.d_ff % 16 == 0 and model.d_ff <= 4 * model.d_model
    assert model.first_k_dense == 1 and model.n_moe_layers == model.n_layers - 1
    if size == "m":
        assert (model.d_expert, model.d_ff) == (32, 1680)
        all_layers = {"model.first_k_dense": 0, "model.d_expert": 31, "model.vocab_size": rows}
        other = accounting.params(load_config("moe_mla_rope_param_matched:m", **all_layers).model)["total"]
        assert round(100 * (other / vanilla["total"] - 1), 2) == {8192: -0.55, 50_000: -0.33}[rows]
        assert total == pytest.approx({8192: 32.5e6, 50_000: 53.9e6}[rows], rel=5e-3)


@pytest.mark.parametrize("size", SIZES)
def test_flop_matched_is_the_dense_model_but_for_the_router(size: str) -> None:
    moe = load_config(f"moe_mla_rope_flop_matched:{size}", **ROWS)
    dense = load_config(f"mla_rope:{size}", **(ROWS | {"model.block": "gpt"}))
    flops, control = (accounting.flops_per_token(config.model, 512) for config in (moe, dense))
    model = moe.model
    assert flops - control == 6 * model.n_layers * model.d_model * 62
    if size == "m":
        assert model.d_expert == 256
        assert round(100 * (flops / control - 1), 1) == 0.7


@pytest.mark.parametrize("count", [8, 16, 32, 64, 128])
def test_the_expert_grid_has_8_active_experts_of_width_256(count: int) -> None:
    config = load_config(f"moe_experts:{count}", **ROWS)
    model = config.model
    dense = load_config("moe_experts:8", **ROWS)
    assert dense.model.d_ff == 8 * 256
    router = 6 * model.n_layers * model.d_model * model.n_routed_experts
    difference = accounting.flops_per_token(model, 512) - accounting.flops_per_token(dense.model, 512)
    assert difference == router
    assert count == 8 or model.n_routed_experts + model.n_shared_experts == count


def test_an_unknown_count_of_experts_is_a_sentence() -> None:
    with pytest.raises(UserError, match="'12' is not one of 8, 16, 32, 64, 128"):
        load_config("moe_experts:12")


@pytest.mark.parametrize("name", ["moe_mla_rope", "mla_rope"])
def test_the_solvers_find_the_nearest_width(name: str) -> None:
    config = load_config(f"{name}:s", **ROWS)
    quantities = {
        sizing.match_total_params: lambda model: accounting.params(model)["total"],
        sizing.match_active_params: lambda model: accounting.params(model)["active"],
        sizing.match_flops: lambda model: accounting.flops_per_token(model, config.train.seq_len),
    }
    for solve, quantity in quantities.items():
        target = int(1.01 * quantity(config.model))
        found = solve(config, target)
        assert quantity(found.config.model) == found.achieved
        assert found.residual == pytest.approx(found.achieved / target - 1)
        assert abs(found.residual) < 5e-3
        for other in (found.width - 1, found.width + 1):
            changed = load_config(f"{name}:s", **(ROWS | {found.knob: other}))
            assert abs(quantity(changed.model) - target) >= abs(found.achieved - target)


def test_widths_may_be_kept_to_multiples() -> None:
    config = load_config("moe_mla_rope:s", **ROWS)
    target = accounting.params(config.model)["total"]
    assert sizing.match_total_params(config, target, multiple=16).config == config
    assert sizing.match_total_params(config, target + 1_000_000, multiple=16).width % 16 == 0


def test_the_first_dense_layers_are_the_finer_knob() -> None:
    config = load_config("moe_mla_rope:s", **(ROWS | {"model.first_k_dense": 1}))
    target = accounting.params(config.model)["total"] + 100_000
    found = sizing.match_total_params(config, target, multiple=16, knob="model.d_ff")
    assert found.knob == "model.d_ff" and found.config.model.d_expert == config.model.d_expert
    assert 0 < abs(found.residual) < 5e-4


def test_what_cannot_be_matched_is_refused() -> None:
    with pytest.raises(UserError, match=r"model.d_ff changes nothing of this model: set model.first_k_dense=1"):
        sizing.match_total_params(load_config("moe_mla_rope", **ROWS), 10**8, knob="model.d_ff")
    with pytest.raises(UserError, match=r"vocab_size is 0"):
        sizing.match_total_params(load_config("moe_mla_rope"), 10**7)
    with pytest.raises(UserError, match=r"has .* with model.d_expert=1 already"):
        sizing.match_total_params(load_config("moe_mla_rope", **ROWS), 10**6)


GOOD = {"model.ffn": "moe", "model.n_routed_experts": 8, "model.top_k": 2, "model.d_expert": 4}


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"model.top_k": 9}, r"model.top_k is 9; .* at most model.n_routed_experts \(8\)"),
        ({"model.top_k": 0}, r"model.top_k is 0; a token goes to at least 1"),
        ({"model.n_routed_experts": 0}, r"model.n_routed_experts is 0; .* at least 1"),
        ({"model.n_routed_experts": -3}, r"model.n_routed_experts is -3; it must be at least 0"),
        ({"model.d_expert": 0}, r"model.d_expert is 0; an expert needs hidden units"),
        ({"model.n_shared_experts": 9}, r"model.n_shared_experts is 9; .* at most model.n_routed_experts \(8\)"),
        ({"model.first_k_dense": 2}, r"model.first_k_dense is 2; it leaves no layer"),
        ({"model.first_k_dense": 1, "model.scan_layers": True}, r"scan_layers needs layers that are all alike"),
        ({"model.router_bias_rate": -0.5}, r"model.router_bias_rate is -0.5; a rate is 0 \(off\) or more"),
        ({"model.router_bias_rate": float("nan")}, r"model.router_bias_rate is nan; it must be between"),
        ({"model.router_z_weight": -1.0}, r"model.router_z_weight is -1.0; it must be at least 0"),
        ({"model.moe_impl": "dense"}, r"model.moe_impl is 'dense'; it must be one of the values"),
        ({"model.ffn": "dense"}, r"model.n_routed_experts is 8; ffn=dense has no experts: .*ffn=moe"),
    ],
)
def test_bad_expert_knobs_are_sentences(knobs: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tiny_config(**(GOOD | knobs))


def test_the_default_rate_of_the_bias_follows_the_score() -> None:
    assert tiny_config(**GOOD).model.router_bias_rate == 3e-3
    assert tiny_config(**GOOD, **{"model.router_score": "softmax"}).model.router_bias_rate == pytest.approx(1.2e-2 / 8)
    assert tiny_config(**GOOD, **{"model.router_bias_rate": 0.0}).model.router_bias_rate == 0


@pytest.mark.parametrize("target", [float("nan"), float("inf"), 0, -1])
def test_a_target_is_a_positive_number(target: float) -> None:
    with pytest.raises(UserError, match="it must be a positive number"):
        sizing.match_total_params(load_config("moe_mla_rope", **ROWS), target)


def test_a_width_is_one_that_the_mesh_splits() -> None:
    config = load_config("moe_mla_rope", **ROWS, **{"mesh.data": 1, "mesh.tensor": 2})
    found = sizing.match_total_params(config, 165_000_000, multiple=3)
    assert found.width % 6 == 0 and found.config.model.d_expert == found.width
