"""Training on random tokens, whose speed and memory are those of stories: the knobs, and one fixed batch."""

from typing import Any

import jax
import jax.numpy as jnp

from mla_jax.config import Config


def vocabulary(size: int) -> dict[str, Any]:
    """Knobs of a model with `size` embedding rows and no tokenizer that could say so."""
    return {"model.vocab_size": size, "tokenizer.vocab_size": size}


def knobs(vocab: int, batch: int, length: int) -> dict[str, Any]:
    """Those, and what `batch` sequences of `length` tokens need."""
    sizes = {"train.batch_size": batch, "train.seq_len": length, "model.max_len": length}
    return vocabulary(vocab) | sizes | {"sample.max_new_tokens": max(1, min(256, length - 1))}


def fixed_batch(config: Config) -> dict[str, jax.Array]:
    """Random tokens {tokens, segment_ids: int32 [B, T+1]}, one segment a row."""
    shape = (config.train.batch_size, config.train.seq_len + 1)
    tokens = jax.random.randint(jax.random.key(0), shape, 0, config.tokenizer.vocab_size)
    return {"tokens": tokens, "segment_ids": jnp.ones(shape, jnp.int32)}
