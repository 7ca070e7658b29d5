"""mla_jax.sample.scoring: text read through a KV cache has the losses of the plain forward pass; int8 is near."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import quick, random_params, random_tokens, reference_model, tiny_config

from mla_jax.errors import UserError
from mla_jax.sample.scoring import make_cached_eval_step
from mla_jax.train.step import make_eval_step


def batch_of(config: object, rows: int = 3, length: int = 13) -> dict:
    """Windows of `length` + 1 tokens, the last one half padding."""
    tokens = random_tokens(config, rows, length + 1)
    return {"tokens": tokens, "segment_ids": jnp.ones_like(tokens).at[-1, length // 2 :].set(0)}


@pytest.mark.parametrize("name", ["mha_rope", "mla_rope", "mla_per_head"])
def test_losses_through_a_cache_are_those_of_the_forward_pass(name: str) -> None:
    """Pieces of 5 tokens, of which 13 are no multiple."""
    config = tiny_config(name, **{"tokenizer.vocab_size": 300, "model.vocab_size": 310})
    model = reference_model(config)
    variables, batch = {"params": random_params(model)}, batch_of(config)
    wanted = np.asarray(quick(make_eval_step(model, config), variables, batch)(variables, batch))

    def through(cache_dtype: str) -> np.ndarray:
        step = make_cached_eval_step(model, config, cache_dtype, chunk=5)
        return np.asarray(quick(step, variables, batch)(variables, batch))

    assert wanted.shape == (3, 13) and wanted.max() > 1 and (wanted[-1, 6:] == 0).all()
    np.testing.assert_allclose(through("float32"), wanted, atol=1e-5, rtol=0)
    if name != "mha_rope":
        low = through("int8")
        assert 1e-4 < np.abs(low - wanted).max() < 0.2 and (low[-1, 6:] == 0).all()


def test_what_no_cache_holds_is_refused() -> None:
    for name, knobs, dtype, words in (
        ("mla_rope", {}, "int4", "cache_dtype is 'int4'"),
        ("mha", {}, "int8", "model.attention is 'mha'"),
        ("mla_rope", {"data.document_mask": True}, "auto", "data.document_mask"),
    ):
        config = tiny_config(name, **knobs)
        with pytest.raises(UserError, match=words):
            make_cached_eval_step(reference_model(config), config, dtype)
