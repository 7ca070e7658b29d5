"""The loss of text read through the KV cache, as sampling reads it: what a cache's dtype costs in nats."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mla_jax import accounting
from mla_jax.config import Config
from mla_jax.data.pipeline import shift
from mla_jax.errors import UserError
from mla_jax.model.cache import init_cache
from mla_jax.model.transformer import Transformer
from mla_jax.sample import settings
from mla_jax.train.loss import cross_entropy

CHUNK = 64  # tokens that go through the model at once, on top of the cache


def make_cached_eval_step(
    model: Transformer, config: Config, cache_dtype: str, chunk: int = CHUNK
) -> Callable[[Any, dict[str, jax.Array]], jax.Array]:
    """As `train.step.make_eval_step`: (variables, {tokens, segment_ids [B, T+1]}) -> nll [B, T] float32.

    Every token is written to a cache of `cache_dtype` (auto, bfloat16, float32 or int8) and attention reads all of
    them there, `chunk` at a time; in an exact dtype the result is that of the plain forward pass. Raises UserError
    for a cache that the model cannot have, and for a model trained with stories kept apart, which no cache holds.
    """
    accounting.check_cache_dtype(model.cfg, settings.choice("cache_dtype", cache_dtype))
    if config.data.document_mask:
        raise UserError(
            "cache_dtype is given, and the run was trained with data.document_mask: its windows hold several stories "
            "that do not see each other, which a cache cannot tell apart: leave --cache_dtype out."
        )
    dtype = model.backend.dtype if cache_dtype == "auto" else cache_dtype

    def eval_step(variables: Any, batch: dict[str, jax.Array]) -> jax.Array:
        shifted = shift(batch, document_mask=False)
        rows, length = shifted["inputs"].shape
        parts = -(-length // chunk)

        def in_parts(x: jax.Array) -> jax.Array:
            """[B, T] -> [parts, B, chunk], the last one padded."""
            return jnp.pad(x, ((0, 0), (0, parts * chunk - length))).reshape(rows, parts, chunk).swapaxes(0, 1)

        def read(store: Any, part: tuple) -> tuple[Any, jax.Array]:
            tokens, targets, start = part
            starts = jnp.full(rows, start)
            logits, store = model.apply(variables, tokens, starts, store, method="decode")
            return store, cross_entropy(logits, targets, config.tokenizer.vocab_size)

        store = init_cache(model.cfg, rows, parts * chunk, dtype)
        starts = jnp.arange(parts, dtype=jnp.int32) * chunk
        nll = jax.lax.scan(read, store, (in_parts(shifted["inputs"]), in_parts(shifted["targets"]), starts))[1]
        return nll.swapaxes(0, 1).reshape(rows, -1)[:, :length] * shifted["loss_mask"]

    return jax.jit(eval_step)
