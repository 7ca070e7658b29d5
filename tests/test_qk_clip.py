"""QK-clip: heads whose logits were too large have them scaled to the limit, and no other head changes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import grid_config, quick_jit, random_params, random_tokens, reference_model, tiny_config

from mla_jax.config_files import load_config
from mla_jax.errors import UserError
from mla_jax.train.optim import make_optimizer
from mla_jax.train.qk_clip import clip_queries_and_keys
from mla_jax.train.state import init_state
from mla_jax.train.step import make_train_step

POINTS = ["joint-decoupled-gpt", "gqa-rope-gpt"]
SLOW = ["mha-learned-gpt", "per_head-decoupled-norm_none", "joint-decompressed-norm_rms", "mqa-rope"]


@pytest.mark.parametrize("point", [*POINTS, *(pytest.param(point, marks=pytest.mark.slow) for point in SLOW)])
def test_the_logits_of_a_clipped_head_shrink_to_the_limit(point: str) -> None:
    """One layer, so that the input of attention stays the same; tau between the heads' largest logits."""
    config = grid_config(point, **{"model.n_layers": 1})
    model, tokens = reference_model(config), random_tokens(config, 1, 12)
    params = random_params(model)
    apply = quick_jit(lambda params: model.apply({"params": params}, tokens)[1].attn_logit_max)
    before = np.asarray(apply(params))
    tau = float(np.median(before))
    assert before.min() < tau < before.max()
    after = np.asarray(apply(clip_queries_and_keys(params, jnp.asarray(before), tau, config.model)))
    np.testing.assert_allclose(after, np.minimum(before, tau), rtol=1e-5)


def test_nothing_changes_below_the_limit() -> None:
    config = tiny_config("mla_rope")
    params = random_params(reference_model(config))
    clipped = clip_queries_and_keys(params, jnp.full((2, 4), 3.0), 5.0, config.model)
    jax.tree.map(np.testing.assert_array_equal, clipped, params)
    negative = clip_queries_and_keys(params, jnp.full((2, 4), -3.0), 5.0, config.model)
    jax.tree.map(np.testing.assert_array_equal, negative, params)


@pytest.mark.slow
def test_the_step_clips_by_the_largest_logit_of_its_microbatches() -> None:
    knobs = {"model.n_layers": 1, "tokenizer.vocab_size": 300, "model.vocab_size": 300, "train.batch_size": 4}
    knobs |= {"optim.learning_rate": 1e-12, "optim.weight_decay": 0.0, "train.microbatches": 2}
    config = tiny_config("mla_rope", **knobs, **{"optim.qk_clip": 0.05})
    model, optimizer, tokens = reference_model(config), make_optimizer(config.optim), random_tokens(config, 4, 17)
    params = random_params(model)
    state = init_state(model, optimizer, jax.tree.map(jnp.array, params))
    state, _ = make_train_step(model, optimizer, config)(
        state, {"tokens": tokens, "segment_ids": jnp.ones_like(tokens)}
    )
    seen = [model.apply({"params": params}, tokens[row : row + 1, :-1])[1].attn_logit_max for row in (0, 2)]
    largest = jnp.maximum(*seen)
    assert float(jnp.abs(seen[0] - seen[1]).max()) > 1e-3
    expected = clip_queries_and_keys(params, largest, 0.05, config.model)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.params, expected)


def test_with_qk_norm_it_is_refused() -> None:
    with pytest.raises(UserError, match=r"optim.qk_clip is 50.0; with model.qk_norm .*use one of the two"):
        load_config("mla_rope", **{"model.qk_norm": True, "optim.qk_clip": 50.0})


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_bad_limit_is_a_sentence(value: Any) -> None:
    with pytest.raises(UserError, match=r"optim.qk_clip is"):
        load_config("mla_rope", **{"optim.qk_clip": value})
