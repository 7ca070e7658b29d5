"""Muon: which parameter is which matrix, Newton-Schulz by hand, the same numbers as optax.contrib.muon, one batch."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers
from tiny import GRID, NAMED, abstract_params, grid_config, quick_jit, random_params, reference_model, tiny_config

from mla_jax.config import OptimConfig, replace
from mla_jax.train import muon
from mla_jax.train.optim import decay_mask, make_optimizer, optimizer_names, schedule

MUON = {"optim.name": "muon", "optim.muon_dtype": "float32", "optim.warmup_steps": 0}


def named(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


@pytest.mark.parametrize("point", [*NAMED, *GRID])
def test_hidden_matrices_get_muon_and_everything_else_adamw(point: str) -> None:
    config = tiny_config(point) if point in NAMED else grid_config(point)
    params = abstract_params(reference_model(config))
    names, shapes = named(optimizer_names(params)), named(params)
    for path, name in names.items():
        leaf = path.rpartition("/")[2]
        is_hidden_matrix = leaf.startswith("w_") and leaf != "w_router"
        assert name == ("muon" if is_hidden_matrix else "adamw"), path
        assert len(shapes[path].shape) >= 2 or name == "adamw"
    assert set(names.values()) == {"muon", "adamw"}


EXPERTS = {
    "embedding": jnp.ones((40, 8)),
    "ffn": {
        "w_router": jnp.ones((8, 4)),
        "w_gate": jnp.ones((4, 8, 6)),
        "w_up": jnp.ones((4, 8, 6)),
        "w_down": jnp.ones((4, 6, 8)),
        "shared": {"w_gate": jnp.ones((8, 12)), "w_down": jnp.ones((12, 8))},
    },
}


def test_experts_are_matrices_and_the_router_is_an_output_layer() -> None:
    names = named(optimizer_names(EXPERTS))
    assert {path for path, name in names.items() if name == "adamw"} == {"embedding", "ffn/w_router"}
    axes = muon.matrix_axes(EXPERTS)["ffn"]
    assert axes["w_gate"] == axes["w_down"] == MuonDimensionNumbers(1, 2)


def test_heads_are_one_matrix_but_where_each_has_its_own_latent() -> None:
    joint = muon.matrix_axes(abstract_params(reference_model(tiny_config("mla_rope"))))["layer_0"]["attention"]
    assert joint["w_uk"] == joint["w_uv"] == joint["w_q"] == MuonDimensionNumbers(0, (1, 2))
    assert joint["w_o"] == MuonDimensionNumbers((0, 1), 2)
    each = muon.matrix_axes(abstract_params(reference_model(tiny_config("mla_per_head"))))["layer_0"]["attention"]
    assert each["w_dk"] == each["w_dv"] == MuonDimensionNumbers(0, 2)
    assert each["w_uk"] == each["w_uv"] == MuonDimensionNumbers(1, 2)


@pytest.mark.parametrize("name", ["w_other", "kernel"])
def test_an_unknown_parameter_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="matches no rule"):
        optimizer_names({"layer_0": {name: jnp.ones((2, 3, 4))}})


def by_hand(matrix: np.ndarray) -> np.ndarray:
    """Newton-Schulz of one matrix, in float64, as in paper C: the smaller side first, five steps."""
    x = matrix.astype(np.float64)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    wide = wide / np.linalg.norm(wide)
    for _ in range(5):
        gram = wide @ wide.T
        wide = 3.4445 * wide - 4.7750 * gram @ wide + 2.0315 * gram @ gram @ wide
    scale = 0.2 * np.sqrt(max(x.shape))
    return scale * (wide if x.shape[0] <= x.shape[1] else wide.T)


def gaussian(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), jnp.float32)


TENSORS = {
    "layer_0": {
        "w_in": gaussian(12, 20),
        "w_out": gaussian(20, 12),
        "w_q": gaussian(12, 4, 5),
        "w_o": gaussian(4, 5, 12),
    },
    "layer_1": {"w_dk": gaussian(12, 3, 4), "w_uk": gaussian(3, 4, 6), "w_gate": gaussian(2, 12, 20)},
}


def test_newton_schulz_is_that_of_the_paper() -> None:
    result = muon.orthogonalize(TENSORS, "float32")
    dense, other = result["layer_0"], result["layer_1"]
    source, more = TENSORS["layer_0"], TENSORS["layer_1"]
    close = {"rtol": 1e-4, "atol": 1e-5}
    for name in ("w_in", "w_out"):
        np.testing.assert_allclose(dense[name], by_hand(np.asarray(source[name])), **close)
    flat = by_hand(np.asarray(source["w_q"]).reshape(12, 20))
    np.testing.assert_allclose(dense["w_q"], flat.reshape(12, 4, 5), **close)
    flat = by_hand(np.asarray(source["w_o"]).reshape(20, 12))
    np.testing.assert_allclose(dense["w_o"], flat.reshape(4, 5, 12), **close)
    for h in range(3):
        np.testing.assert_allclose(other["w_dk"][:, h], by_hand(np.asarray(more["w_dk"][:, h])), **close)
        np.testing.assert_allclose(other["w_uk"][h], by_hand(np.asarray(more["w_uk"][h])), **close)
    for e in range(2):
        np.testing.assert_allclose(other["w_gate"][e], by_hand(np.asarray(more["w_gate"][e])), **close)


@pytest.mark.parametrize("shape", [(64, 64), (64, 200), (300, 40)])
def test_an_update_has_the_size_of_adamws(shape: tuple[int, int]) -> None:
    """Root mean square about 0.2, whatever the shape and the gradient's size."""
    for size in (1e-6, 1.0, 1e4):
        update = muon.orthogonalize({"w_in": size * gaussian(*shape)}, "float32")["w_in"]
        assert float(jnp.sqrt(jnp.mean(update**2))) == pytest.approx(0.2, rel=0.25)


def test_a_zero_gradient_moves_nothing() -> None:
    update = muon.orthogonalize({"w_in": jnp.zeros((4, 6))}, "float32")["w_in"]
    np.testing.assert_array_equal(update, 0)


def test_bfloat16_products_are_near_enough() -> None:
    exact, rounded = (muon.orthogonalize(TENSORS, dtype)["layer_0"]["w_in"] for dtype in ("float32", "bfloat16"))
    assert rounded.dtype == jnp.float32
    error = float(jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact))
    assert 1e-4 < error < 0.1  # the iteration amplifies rounding, and lives with singular values of 0.7 to 1.2 anyway


def optax_muon(cfg: OptimConfig) -> optax.GradientTransformation:
    rate = schedule(cfg)
    return optax.contrib.muon(
        rate,
        beta=cfg.muon_beta,
        weight_decay=cfg.weight_decay,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=muon.matrix_axes,
    )


def check_against_optax(params: Any) -> None:
    """Three steps, of the matrices: optax gives the rest Adam with Nesterov momentum, we AdamW (test_optim.py)."""
    cfg = tiny_config(**MUON, **{"optim.clip_norm": 0.0}).optim
    ours, theirs, other = make_optimizer(cfg), optax_muon(cfg), params
    state, other_state = ours.init(params), theirs.init(other)
    steps = [quick_jit(optimizer.update) for optimizer in (ours, theirs)]
    for seed in range(3):
        rng = np.random.default_rng(seed)
        grads = jax.tree.map(lambda p, r=rng: jnp.asarray(r.standard_normal(p.shape), p.dtype), params)
        updates, state = steps[0](grads, state, params)
        params = optax.apply_updates(params, updates)
        updates, other_state = steps[1](grads, other_state, other)
        other = optax.apply_updates(other, updates)
    matrices = [path for path, name in named(optimizer_names(params)).items() if name == "muon"]
    assert matrices
    for path in matrices:
        np.testing.assert_allclose(named(params)[path], named(other)[path], atol=1e-5, err_msg=path)


def test_three_steps_equal_optax() -> None:
    check_against_optax(TENSORS["layer_1"] | {"w_o": TENSORS["layer_0"]["w_o"], "gain": jnp.ones(5)})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mla_rope", "mla_per_head", "moe_mla_rope"])
def test_three_steps_of_a_model_equal_optax(name: str) -> None:
    check_against_optax(random_params(reference_model(tiny_config(name, **{"model.n_layers": 1}))))


def test_matrices_of_a_shape_share_their_products_whatever_the_depth() -> None:
    def products(layers: int) -> int:
        config = tiny_config("mla_rope", **MUON, **{"model.n_layers": layers})
        optimizer, params = make_optimizer(config.optim), abstract_params(reference_model(config))
        state = jax.eval_shape(optimizer.init, params)
        return len(re.findall(r"dot_general", str(jax.make_jaxpr(optimizer.update)(params, state, params))))

    assert products(2) == products(4)
    assert products(2) % (3 * muon.STEPS) == 0


def test_adamw_takes_its_share_of_the_rate_and_muon_all_of_it() -> None:
    params = {"w_in": gaussian(6, 8), "embedding": gaussian(5, 6), "gain": jnp.ones(6)}
    grads = jax.tree.map(jnp.ones_like, params)
    results = []
    for fraction in (1.0, 0.25):
        config = tiny_config(**MUON, **{"optim.adamw_fraction": fraction})
        optimizer = make_optimizer(config.optim)
        results.append(optimizer.update(grads, optimizer.init(params), params)[0])
    np.testing.assert_allclose(results[1]["w_in"], results[0]["w_in"])
    for name in ("embedding", "gain"):
        np.testing.assert_allclose(results[1][name], 0.25 * results[0][name], rtol=1e-6)


def test_weight_decay_shrinks_what_muon_updates() -> None:
    params = {"w_in": gaussian(6, 8), "w_router": gaussian(6, 3), "embedding": gaussian(5, 6)}
    config = tiny_config(**MUON, **{"optim.weight_decay": 0.1, "optim.learning_rate": 1e-2})
    optimizer = make_optimizer(config.optim)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for name in ("w_in", "w_router"):
        np.testing.assert_allclose(updates[name], -1e-3 * params[name], rtol=1e-5)
    np.testing.assert_array_equal(updates["embedding"], 0)
    assert decay_mask(params)["w_router"]


def test_muon_learns_a_linear_map() -> None:
    target, inputs = gaussian(8, 8), gaussian(64, 8)
    config = tiny_config(**MUON, **{"optim.learning_rate": 0.1, "optim.weight_decay": 0.0, "train.steps": 150})
    config = replace(config, **{"optim.decay_steps": 150})
    optimizer = make_optimizer(config.optim)
    params = {"w_in": jnp.zeros((8, 8))}

    def loss(params: Any) -> jax.Array:
        return jnp.mean((inputs @ (params["w_in"] - target)) ** 2)

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    _, losses = jax.lax.scan(step, (params, optimizer.init(params)), length=150)
    assert losses[-1] < 0.02 * losses[0]
