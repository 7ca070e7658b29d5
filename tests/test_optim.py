"""Schedule, decay mask, clipping and AdamW's own numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import GRID, NAMED, abstract_params, grid_config, reference_model, tiny_config

from mla_jax.config import OptimConfig, replace
from mla_jax.config_files import load_config
from mla_jax.train.optim import decay_mask, make_optimizer, schedule


def optim(**knobs: Any) -> OptimConfig:
    base = {"optim.learning_rate": 1e-2, "optim.warmup_steps": 10, "optim.decay_steps": 100}
    return load_config("base", **(base | {f"optim.{key}": value for key, value in knobs.items()})).optim


def check_mask(config: Any) -> None:
    """Matrices decay; embeddings, gains and biases do not. Told apart by what they are, not by their names' rule."""
    params = abstract_params(reference_model(config))
    mask = decay_mask(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    for (path, decays), leaf in zip(jax.tree_util.tree_leaves_with_path(mask), jax.tree.leaves(params), strict=True):
        name = path[-1].key
        is_bias = name in ("b_q", "b_k", "b_v")  # [heads, width]: two axes, and yet no matrix
        assert decays == (leaf.ndim >= 2 and "embedding" not in name and not is_bias), path
    assert 0 < sum(jax.tree.leaves(mask)) < len(jax.tree.leaves(mask))


@pytest.mark.parametrize("name", NAMED)
def test_the_mask_covers_every_parameter_of_the_named_configs(name: str) -> None:
    check_mask(tiny_config(name))
    check_mask(tiny_config(name, **{"model.block": "gpt", "model.qk_norm": True}))


@pytest.mark.parametrize("point", GRID)
def test_the_mask_covers_every_parameter_of_the_grid(point: str) -> None:
    check_mask(grid_config(point))


@pytest.mark.parametrize("name", ["kernel", "router", "W_q", "wq", "norm"])
def test_an_unknown_parameter_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' matches no rule"):
        decay_mask({"layer_0": {"w_q": jnp.ones((2, 2)), name: jnp.ones((2, 2))}})


def test_the_schedule_warms_up_and_falls_by_a_cosine() -> None:
    rate = schedule(optim())
    values = np.asarray([float(rate(step)) for step in range(150)])
    np.testing.assert_allclose(values[:11], np.linspace(0, 1e-2, 11), atol=1e-8)
    middle = 1e-3 + 9e-3 * 0.5 * (1 + np.cos(np.pi * (np.arange(10, 101) - 10) / 90))
    np.testing.assert_allclose(values[10:101], middle, rtol=1e-4)
    np.testing.assert_allclose(values[100:], 1e-3, rtol=1e-5)  # final_fraction of the peak, and no rise after


def test_the_schedule_without_warm_up_starts_at_the_peak() -> None:
    rate = schedule(optim(warmup_steps=0))
    assert float(rate(0)) == pytest.approx(1e-2)
    assert float(rate(1)) < 1e-2


def test_the_cosine_ends_with_the_run_unless_told_otherwise() -> None:
    config = load_config("base", **{"train.steps": 300})
    assert config.optim.decay_steps == 300
    assert replace(config, **{"optim.decay_steps": 500}).optim.decay_steps == 500


PARAMS = {"w_q": jnp.full((2, 3), 2.0), "gain": jnp.ones((3,)), "embedding": jnp.ones((4, 3)), "b_q": jnp.ones((3,))}


def first_moment(cfg: OptimConfig, gradients: Any) -> Any:
    optimizer = make_optimizer(cfg)
    _, state = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
    return optax.tree_utils.tree_get(state, "mu")


@pytest.mark.parametrize(("size", "clip"), [(100.0, 1.0), (0.01, 1.0), (100.0, 0.0)], ids=["large", "small", "off"])
def test_gradients_are_clipped_by_their_global_norm(size: float, clip: float) -> None:
    """Seen in the first moment, (1 - beta1) times the clipped gradient: the step itself hides a gradient's size."""
    gradients = jax.tree.map(lambda p: jnp.full_like(p, size), PARAMS)
    norm = size * np.sqrt(sum(p.size for p in PARAMS.values()))
    factor = min(1.0, clip / norm) if clip else 1.0
    moments = first_moment(optim(clip_norm=clip), gradients)
    for moment, gradient in zip(jax.tree.leaves(moments), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(moment, 0.1 * factor * gradient, rtol=1e-5)


def test_weight_decay_shrinks_matrices_alone() -> None:
    cfg = optim(weight_decay=0.1, warmup_steps=0)
    optimizer = make_optimizer(cfg)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["w_q"], -1e-2 * 0.1 * 2.0, rtol=1e-5)
    for name in ("gain", "embedding", "b_q"):
        np.testing.assert_array_equal(updates[name], 0)


def test_two_steps_are_adamw_by_hand() -> None:
    cfg = optim(weight_decay=0.1, warmup_steps=0, clip_norm=0.0, beta1=0.8, beta2=0.95, eps=1e-3, decay_steps=10**6)
    optimizer = make_optimizer(cfg)
    params, state = PARAMS, optimizer.init(PARAMS)
    value, m, v = 2.0, 0.0, 0.0
    for step, gradient in enumerate((0.5, -0.2), start=1):
        gradients = jax.tree.map(lambda p, g=gradient: jnp.full_like(p, g), PARAMS)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        m, v = 0.8 * m + 0.2 * gradient, 0.95 * v + 0.05 * gradient**2
        direction = m / (1 - 0.8**step) / (np.sqrt(v / (1 - 0.95**step)) + 1e-3)
        value -= 1e-2 * (direction + 0.1 * value)
    np.testing.assert_allclose(params["w_q"], value, rtol=1e-5)


def test_wsd_holds_the_peak_and_falls_in_a_straight_line() -> None:
    rate = schedule(optim(schedule="wsd", decay_fraction=0.2))
    values = np.asarray([float(rate(step)) for step in range(150)])
    np.testing.assert_allclose(values[:11], np.linspace(0, 1e-2, 11), atol=1e-8)
    np.testing.assert_allclose(values[10:81], 1e-2, rtol=1e-5)
    np.testing.assert_allclose(values[80:101], np.linspace(1e-2, 1e-3, 21), rtol=1e-4)
    np.testing.assert_allclose(values[100:], 1e-3, rtol=1e-5)


@pytest.mark.parametrize(("warmup", "fraction"), [(0, 0.0), (0, 1.0), (10, 1.0), (10, 0.0)])
def test_wsd_at_its_edges(warmup: int, fraction: float) -> None:
    rate = schedule(optim(schedule="wsd", decay_fraction=fraction, warmup_steps=warmup))
    values = np.asarray([float(rate(step)) for step in range(150)])
    assert values.max() == pytest.approx(1e-2)
    assert values[warmup] == pytest.approx(1e-2)
    np.testing.assert_allclose(values[100:], 1e-3, rtol=1e-5)
    assert (np.diff(values[warmup:]) <= 1e-9).all()
