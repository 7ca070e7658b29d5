"""The train step: microbatches, the mean over real targets, non-finite values, donation; and the evaluation step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import quick, quick_jit, random_params, reference_model, tiny_config

from mla_jax.config import Config, replace
from mla_jax.model.attention import Where
from mla_jax.train.loss import cross_entropy_reference
from mla_jax.train.optim import make_optimizer
from mla_jax.train.state import TrainState, abstract_state, init_state
from mla_jax.train.step import make_eval_step, make_logit_probe, make_param_norm, make_train_step

LENGTH, ROWS, PIECES, EMBEDDING_ROWS = 12, 8, 300, 304

KNOBS = {
    "model.vocab_size": EMBEDDING_ROWS,
    "tokenizer.vocab_size": PIECES,
    "train.seq_len": LENGTH,
    "train.batch_size": ROWS,
    "optim.warmup_steps": 0,
    "optim.eps": 1e-3,  # Adam divides small gradients by themselves: eps keeps their rounding from being blown up
    "model.n_layers": 1,
}


def config_of(**knobs: Any) -> Config:
    return tiny_config("mla_rope", **(KNOBS | knobs))


def fresh_state(config: Config) -> TrainState:
    return init_state(reference_model(config), make_optimizer(config.optim), random_params(reference_model(config)))


def batch_of(seed: int = 0) -> dict[str, jax.Array]:
    """Two stories a row, then padding: none in the first rows, nearly all of the last ones."""
    rng = np.random.default_rng(seed)
    segments = np.ones((ROWS, LENGTH + 1), np.int32)
    segments[:, 5:] = 2
    for row in range(ROWS):
        segments[row, LENGTH + 1 - row :] = 0
    tokens = rng.integers(0, PIECES, segments.shape)
    return {"tokens": jnp.asarray(tokens, jnp.int32), "segment_ids": jnp.asarray(segments)}


@functools.lru_cache
def step_of(config: Config) -> Any:
    """The train step, compiled once for each config."""
    step = make_train_step(reference_model(config), make_optimizer(config.optim), config)
    return quick(step, jax.eval_shape(lambda: fresh_state(config)), batch_of())


def copy(tree: Any) -> Any:
    """The step donates its state."""
    return jax.tree.map(lambda a: np.array(a), tree)


def expected_loss(config: Config, params: Any, batch: Any) -> float:
    """By the plain twin, in numpy, over the targets that are no padding."""
    tokens, segments = np.asarray(batch["tokens"]), np.asarray(batch["segment_ids"])
    logits = quick_jit(reference_model(config).apply)({"params": params}, batch["tokens"][:, :-1], Where())[0]
    nll = np.asarray(cross_entropy_reference(logits, batch["tokens"][:, 1:], PIECES))
    real = segments[:, 1:] > 0
    assert 0 < real.sum() < real.size
    assert tokens.max() < PIECES
    return float(nll[real].sum() / real.sum())


@pytest.fixture(scope="module")
def whole() -> Any:
    """One step of the whole batch: config, state before, the donated state, state after, metrics."""
    config = config_of()
    state = fresh_state(config)
    before = copy(state)
    after, metrics = step_of(config)(state, batch_of())
    return config, before, state, after, metrics


def test_the_loss_is_the_mean_over_real_targets(whole: Any) -> None:
    config, before, _, _, metrics = whole
    assert float(metrics["loss"]) == pytest.approx(expected_loss(config, before.params, batch_of()), abs=1e-5)
    assert float(metrics["finite"]) == 1


def test_what_stands_in_the_padding_changes_nothing(whole: Any) -> None:
    config, before, _, after, metrics = whole
    batch = batch_of()
    padding = batch["segment_ids"] == 0
    other = batch | {"tokens": jnp.where(padding, (batch["tokens"] + 11) % PIECES, batch["tokens"])}
    again, same = step_of(config)(jax.tree.map(jnp.asarray, before), other)
    np.testing.assert_allclose(metrics["loss"], same["loss"], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again.params, after.params)


def test_a_step_moves_every_parameter_and_counts_itself(whole: Any) -> None:
    _, before, _, after, _ = whole
    assert int(after.step) == int(before.step) + 1
    moved = jax.tree.map(lambda a, b: float(np.abs(a - np.asarray(b)).max()), before.params, after.params)
    assert min(jax.tree.leaves(moved)) > 1e-5


def test_the_norm_of_the_parameters(whole: Any) -> None:
    config, _, _, after, _ = whole
    norm = np.sqrt(sum(float(jnp.sum(p**2)) for p in jax.tree.leaves(after.params)))
    assert float(make_param_norm(reference_model(config))(after.params)) == pytest.approx(norm, rel=1e-5)


def test_surplus_rows_are_not_trained(whole: Any) -> None:
    _, before, _, after, _ = whole
    np.testing.assert_array_equal(after.params["embedding"][PIECES:], before.params["embedding"][PIECES:])


def test_the_old_state_is_donated(whole: Any) -> None:
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(whole[2].params))


def test_the_state_keeps_its_shapes_and_dtypes(whole: Any) -> None:
    config, _, _, after, _ = whole
    abstract = abstract_state(reference_model(config), make_optimizer(config.optim))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), abstract)


@pytest.mark.parametrize("parts", [2, 4])
def test_microbatches_change_nothing_but_rounding(whole: Any, parts: int) -> None:
    """Rows are padded unequally, so a mean of the parts' means would be another number."""
    config, before, _, after, metrics = whole
    split = replace(config, **{"train.microbatches": parts})
    other, other_metrics = step_of(split)(jax.tree.map(jnp.asarray, before), batch_of())
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], other_metrics[name], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, other.params)


def test_the_gradient_norm_is_that_before_clipping(whole: Any) -> None:
    config, before, _, _, metrics = whole
    batch, model = batch_of(), reference_model(config)
    real = (batch["segment_ids"][:, 1:] > 0).astype(jnp.float32)

    def loss(params: Any) -> jax.Array:
        logits = model.apply({"params": params}, batch["tokens"][:, :-1])[0]
        return jnp.sum(cross_entropy_reference(logits, batch["tokens"][:, 1:], PIECES) * real) / jnp.sum(real)

    gradients = quick_jit(jax.grad(loss))(before.params)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradients)))
    assert norm > config.optim.clip_norm  # so that clipping would show
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)


# A position that only a story of full length reaches: one batch is finite and another is not, in the same state.
POISONED = {
    "model.attention": "mha",
    "model.position": "learned",
    "model.kv_lora_rank": 0,
    "data.document_mask": True,
    "train.on_nonfinite": "skip",
}


def one_story(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return batch | {"segment_ids": jnp.ones_like(batch["segment_ids"])}


@pytest.fixture(scope="module")
def poisoned() -> tuple[Config, Any]:
    config = config_of(**POISONED)
    params = random_params(reference_model(config))
    table = params["position_embedding"].at[LENGTH - 1].set(jnp.inf)
    state = init_state(reference_model(config), make_optimizer(config.optim), params | {"position_embedding": table})
    return config, copy(state)


def test_skip_keeps_the_state_and_goes_on(poisoned: tuple[Config, Any]) -> None:
    config, before = poisoned
    step, short_stories = step_of(config), batch_of()
    kept, metrics = step(jax.tree.map(jnp.asarray, before), one_story(short_stories))
    assert float(metrics["finite"]) == 0
    assert not np.isfinite(float(metrics["loss"]))
    jax.tree.map(np.testing.assert_array_equal, kept.params, before.params)
    schedules = [optax.tree.get_all_with_path(state.opt_state, "count") for state in (before, kept)]
    moments = [optax.tree.set(state.opt_state, count=0) for state in (before, kept)]
    jax.tree.map(np.testing.assert_array_equal, *moments)
    assert int(kept.step) == 1  # the step is over, and its batch is gone
    counts = [[int(value) for _, value in found] for found in schedules]
    assert counts == [[0, 0], [0, 1]]  # of Adam's moments, and of the schedule, which ends at optim.decay_steps
    went_on, metrics = step(kept, short_stories)
    assert float(metrics["finite"]) == 1
    assert int(went_on.step) == 2
    first, last = (state.params["layer_0"]["attention"]["w_q"] for state in (before, went_on))
    assert float(np.abs(last - first).max()) > 1e-5


def test_stop_flags_what_is_not_finite(poisoned: tuple[Config, Any]) -> None:
    config, before = poisoned
    step = step_of(replace(config, **{"train.on_nonfinite": "stop"}))
    after, metrics = step(jax.tree.map(jnp.asarray, before), one_story(batch_of()))
    assert float(metrics["finite"]) == 0
    assert not np.isfinite(after.params["layer_0"]["attention"]["w_q"]).all()  # why the loop has to stop


def test_dropout_depends_on_the_step_and_the_seed_alone() -> None:
    config = config_of(**{"model.dropout": 0.3, "optim.learning_rate": 1e-12, "optim.weight_decay": 0.0})
    step, batch = step_of(config), batch_of()
    state = copy(fresh_state(config))

    def loss_at(number: int, run: Any = step) -> float:
        return float(run(jax.tree.map(jnp.asarray, state).replace(step=jnp.int32(number)), batch)[1]["loss"])

    assert loss_at(3) == loss_at(3)
    assert abs(loss_at(3) - loss_at(4)) > 1e-3
    assert abs(loss_at(3, step_of(replace(config, **{"train.seed": 1}))) - loss_at(3)) > 1e-3


def test_evaluation_gives_each_real_target_its_loss_and_padding_none(whole: Any) -> None:
    config, before, _, _, _ = whole
    batch = batch_of()
    nll = np.asarray(make_eval_step(reference_model(config), config)(before.variables, batch))
    real = np.asarray(batch["segment_ids"])[:, 1:] > 0
    assert nll.dtype == np.float32
    np.testing.assert_array_equal(nll[~real], 0)
    assert (nll[real] > 0).all()
    assert nll.sum() / real.sum() == pytest.approx(expected_loss(config, before.params, batch), abs=1e-5)


def test_with_the_document_mask_a_story_is_judged_alone(whole: Any) -> None:
    config, before, _, _, _ = whole
    batch = batch_of()
    other = batch | {"tokens": batch["tokens"].at[:, :5].set((batch["tokens"][:, :5] + 9) % PIECES)}
    changes = {}
    for document_mask in (True, False):
        evaluate = make_eval_step(reference_model(config), replace(config, **{"data.document_mask": document_mask}))
        one, two = (np.asarray(evaluate(before.variables, each)) for each in (batch, other))
        difference = np.abs(one - two)
        changes[document_mask] = difference[0, 5:]  # targets of the second story, asked from inside it
    assert (changes[True] == 0).all()
    assert (changes[False] > 1e-5).all()


def test_the_logit_probe_reads_the_first_row(whole: Any) -> None:
    config, before, _, _, _ = whole
    batch = batch_of()
    probe = make_logit_probe(reference_model(config), config)
    value = probe(before.variables, batch)
    apply = quick_jit(reference_model(config).apply)
    aux = apply({"params": before.params}, batch["tokens"][:1, :-1])[1]
    assert float(value) == pytest.approx(float(aux.attn_logit_max.max()), abs=1e-5)
    changed = batch | {"tokens": batch["tokens"].at[1:].set(0)}
    assert float(probe(before.variables, changed)) == float(value)
