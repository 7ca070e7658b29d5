"""Experts inside the whole model and its training: all forms agree, the bias is no parameter and comes back."""

import functools
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import quick, quick_jit, random_params, random_tokens, reference_model, tiny_config

from mla_jax import accounting
from mla_jax.config import CheckpointConfig, Config, replace
from mla_jax.errors import UserError
from mla_jax.model.cache import init_cache
from mla_jax.model.moe import initial_router_bias, router_bias_update
from mla_jax.model.transformer import variables_of
from mla_jax.restore import restore_weights
from mla_jax.runs import RunFolder
from mla_jax.train.checkpoint import Checkpoints
from mla_jax.train.optim import make_optimizer
from mla_jax.train.state import TrainState, abstract_state, init_state
from mla_jax.train.step import make_eval_step, make_train_step

EXPERTS = {
    "model.ffn": "moe",
    "model.n_routed_experts": 6,
    "model.n_shared_experts": 1,
    "model.top_k": 2,
    "model.d_expert": 8,
}


def random_bias(config: Config, seed: int = 0) -> jax.Array:
    """As large as the differences of scores, so that it decides many choices."""
    shape = (config.model.n_moe_layers, config.model.n_routed_experts)
    return jnp.asarray(0.2 * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def variables_for(config: Config) -> Any:
    return variables_of(random_params(reference_model(config)), random_bias(config))


# --- the whole model


@pytest.mark.parametrize("name", ["mla_rope", pytest.param("mha", marks=pytest.mark.slow)])
def test_prefill_and_decode_give_the_logits_of_the_whole(name: str) -> None:
    """With a dense first layer, and a bias of which each layer must get its own row."""
    config = tiny_config(name, **(EXPERTS | {"model.n_layers": 3, "model.first_k_dense": 1}))
    model, variables = reference_model(config), variables_for(config)
    tokens = random_tokens(config, 2, 9)
    whole, aux = quick_jit(model.apply)(variables, tokens)
    assert aux.router.expert_load.shape == (2, 6)
    assert aux.router.expert_idx.shape == (2, 2, 9, 2)
    assert aux.attn_logit_max.shape == (3, config.model.n_heads)
    np.testing.assert_array_equal(aux.router.expert_load.sum(axis=-1), 2 * 9 * 2)

    def run(variables: Any) -> jax.Array:
        store = init_cache(config.model, 2, 9, jnp.float32)
        lengths = jnp.asarray([5, 5])
        first, store = model.apply(variables, tokens[:, :5], lengths, store, method="prefill")
        rest, _ = model.apply(variables, tokens[:, 5:], lengths, store, method="decode")
        return jnp.concatenate([first[:, None], rest], axis=1)

    np.testing.assert_allclose(quick_jit(run)(variables), whole[:, 4:], atol=1e-5)
    other = variables_of(variables["params"], variables["router"]["bias"][::-1])
    assert float(jnp.abs(quick_jit(run)(other) - whole[:, 4:]).max()) > 1e-3


def test_scanned_layers_are_the_unrolled_ones() -> None:
    config = tiny_config(**EXPERTS)
    scanned = replace(config, **{"model.scan_layers": True})
    variables, tokens = variables_for(config), random_tokens(config, 2, 7)
    one, two = (quick_jit(reference_model(each).apply)(variables, tokens) for each in (config, scanned))
    np.testing.assert_allclose(one[0], two[0], atol=1e-5)
    np.testing.assert_array_equal(one[1].router.expert_idx, two[1].router.expert_idx)


def test_a_model_with_experts_refuses_to_run_without_its_bias() -> None:
    config = tiny_config(**EXPERTS)
    params = random_params(reference_model(config))
    with pytest.raises(ValueError, match="router bias"):
        jax.eval_shape(reference_model(config).apply, variables_of(params), random_tokens(config, 1, 4))


@pytest.mark.parametrize("block", ["default", "gpt"])
@pytest.mark.parametrize("first", [0, 1])
def test_parameters_are_counted_as_they_are(block: str, first: int) -> None:
    knobs = {"model.n_shared_experts": 2 * first, "model.first_k_dense": first, "model.block": block}
    config = tiny_config("mha", **(EXPERTS | knobs))
    params = random_params(reference_model(config))
    counted = accounting.params(config.model)
    assert counted["total"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    assert counted["ffn"] == sum(leaf.size for path, leaf in leaves if "ffn" in [key.key for key in path])
    matrices = 2 if block == "gpt" else 3
    idle = (2 - first) * (6 - 2) * matrices * 32 * 8  # 4 of 6 routed experts in each layer that has them
    assert counted["total"] - counted["active"] == idle


# --- training

KNOBS = EXPERTS | {
    "model.n_layers": 1,
    "model.vocab_size": 304,
    "tokenizer.vocab_size": 300,
    "train.seq_len": 12,
    "train.batch_size": 8,
    "optim.warmup_steps": 0,
    "optim.eps": 1e-3,
}


def config_of(**knobs: Any) -> Config:
    return tiny_config("mla_rope", **(KNOBS | knobs))


def batch_of(seed: int) -> dict[str, jax.Array]:
    tokens = np.random.default_rng(seed).integers(0, 300, (8, 13))
    return {"tokens": jnp.asarray(tokens, jnp.int32), "segment_ids": jnp.ones((8, 13), jnp.int32)}


def fresh_state(config: Config) -> TrainState:
    model = reference_model(config)
    return init_state(model, make_optimizer(config.optim), random_params(model), 0.01 * random_bias(config))


@functools.lru_cache
def step_of(config: Config) -> Any:
    step = make_train_step(reference_model(config), make_optimizer(config.optim), config)
    return quick(step, jax.eval_shape(lambda: fresh_state(config)), batch_of(0))


@pytest.fixture(scope="module")
def stepped() -> Any:
    """config, state before, state and metrics after one step."""
    config = config_of()
    before = jax.tree.map(np.array, fresh_state(config))
    after, metrics = step_of(config)(jax.tree.map(jnp.asarray, before), batch_of(0))
    return config, before, after, metrics


def test_a_step_moves_the_bias_by_the_rule_on_the_whole_batch(stepped: Any) -> None:
    config, before, after, metrics = stepped
    variables = variables_of(before.params, before.router_bias)
    _, aux = quick_jit(reference_model(config).apply)(variables, batch_of(0)["tokens"][:, :-1])
    np.testing.assert_array_equal(metrics["expert_load"], aux.router.expert_load)
    assert config.model.router_bias_rate == 3e-3
    expected = router_bias_update(jnp.asarray(before.router_bias), aux.router.expert_load, 3e-3)
    np.testing.assert_allclose(after.router_bias, expected, atol=1e-7)
    assert float(jnp.abs(after.router_bias - before.router_bias).max()) > 5e-4
    assert float(metrics["router_loss"]) == 0


def test_no_optimizer_sees_the_bias_and_every_expert_matrix_is_trained(stepped: Any) -> None:
    config, before, after, _ = stepped
    assert before.router_bias.shape not in [leaf.shape for leaf in jax.tree.leaves(after.opt_state)]
    assert "router_bias" not in str(jax.tree.structure(after.opt_state))
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), after.params, before.params)
    for name in ("w_router", "w_gate", "w_up", "w_down"):
        assert moved["layer_0"]["ffn"][name] > 1e-5
    abstract = abstract_state(reference_model(config), make_optimizer(config.optim))
    assert (abstract.router_bias.shape, abstract.router_bias.dtype) == ((1, 6), jnp.float32)
    assert not np.asarray(initial_router_bias(config.model)).any()


def split_config(config: Config) -> Config:
    """4 microbatches, and steps that are not finite skipped: one program for two tests."""
    return replace(config, **{"train.microbatches": 4, "train.on_nonfinite": "skip"})


def test_microbatches_change_nothing(stepped: Any) -> None:
    config, before, after, metrics = stepped
    split = split_config(config)
    other, other_metrics = step_of(split)(jax.tree.map(jnp.asarray, before), batch_of(0))
    np.testing.assert_array_equal(other.router_bias, after.router_bias)
    np.testing.assert_array_equal(other_metrics["expert_load"], metrics["expert_load"])
    np.testing.assert_allclose(other_metrics["router_entropy"], metrics["router_entropy"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, other.params)


def test_auxiliary_losses_train_and_do_not_show_in_the_loss(stepped: Any) -> None:
    config, before, after, metrics = stepped
    weighted = replace(config, **{"model.router_aux_weight": 1.0, "model.router_z_weight": 0.1})
    other, other_metrics = step_of(weighted)(jax.tree.map(jnp.asarray, before), batch_of(0))
    assert float(other_metrics["router_loss"]) > 1
    np.testing.assert_allclose(other_metrics["loss"], metrics["loss"], rtol=1e-6)
    difference = other.params["layer_0"]["ffn"]["w_router"] - after.params["layer_0"]["ffn"]["w_router"]
    assert float(jnp.abs(difference).max()) > 1e-5
    nll = quick_jit(make_eval_step(reference_model(weighted), weighted))(
        variables_of(before.params, before.router_bias), batch_of(0)
    )
    np.testing.assert_allclose(nll.mean(), metrics["loss"], rtol=1e-5)


def test_a_skipped_step_keeps_the_old_bias(stepped: Any) -> None:
    config, before, _, _ = stepped
    skipping = split_config(config)
    params = jax.tree.map(jnp.asarray, before.params)
    params["final_norm"]["gain"] = params["final_norm"]["gain"].at[0].set(jnp.inf)
    state = jax.tree.map(jnp.asarray, before).replace(params=params)
    after, metrics = step_of(skipping)(state, batch_of(0))
    assert float(metrics["finite"]) == 0
    np.testing.assert_array_equal(after.router_bias, before.router_bias)


def data_iterator() -> grain.DatasetIterator:
    return iter(grain.MapDataset.range(100).to_iter_dataset())


def test_the_bias_after_resuming_is_bit_equal_and_a_checkpoint_without_it_is_refused(
    stepped: Any, tmp_path: Path
) -> None:
    config, _, after, _ = stepped
    model, folder = reference_model(config), RunFolder(tmp_path / "run")
    keep = CheckpointConfig(1, 2, 1, ())
    saved = jax.tree.map(np.array, after)
    with Checkpoints(folder, keep) as checkpoints:
        checkpoints.save(jax.tree.map(jnp.asarray, saved), data_iterator(), None)
    abstract = abstract_state(model, make_optimizer(config.optim))
    with Checkpoints(folder, keep) as checkpoints:
        restored = checkpoints.restore(abstract, data_iterator())
    np.testing.assert_array_equal(restored.router_bias, saved.router_bias)
    straight, _ = step_of(config)(jax.tree.map(jnp.asarray, saved), batch_of(1))
    resumed, _ = step_of(config)(restored, batch_of(1))
    assert float(jnp.abs(straight.router_bias - saved.router_bias).max()) > 1e-4
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)
    weights = restore_weights(folder, model, 1)
    np.testing.assert_array_equal(weights["router_bias"], saved.router_bias)

    bare = RunFolder(tmp_path / "bare")
    with Checkpoints(bare, keep) as checkpoints:
        checkpoints.save(jax.tree.map(jnp.asarray, saved).replace(router_bias=None), data_iterator(), None)
    with pytest.raises(UserError, match=r"cannot be restored \(it has no router_bias, without which"):
        restore_weights(bare, model, 1)
    with Checkpoints(bare, keep) as checkpoints, pytest.raises(UserError, match="none of the checkpoints"):
        checkpoints.restore(abstract, data_iterator())
