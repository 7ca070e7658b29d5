"""How the next token is drawn from logits."""

import dataclasses

import jax
import jax.numpy as jnp

from mla_jax.errors import UserError

MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class Method:
    """temperature 0 is greedy; top_k 0 keeps all tokens. Hashable: a static argument of the jitted sampler."""

    temperature: float
    top_k: int

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; it must be 0 (greedy) or more: e.g. 0.8.")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more: e.g. 40.")


def draw(logits: jax.Array, keys: jax.Array, method: Method, n_tokens: int) -> jax.Array:
    """logits [B, vocab], keys [B] -> token ids [B] int32. Ids from `n_tokens` on are surplus, never drawn."""
    logits = logits.astype(jnp.float32)
    column = jnp.arange(logits.shape[-1])
    logits = jnp.where(column < n_tokens, logits, MASKED)
    if method.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if 0 < method.top_k < n_tokens:
        kept, ids = jax.lax.top_k(logits, method.top_k)
        chosen = jax.vmap(jax.random.categorical)(keys, kept / method.temperature)
        return jnp.take_along_axis(ids, chosen[:, None], axis=-1)[:, 0].astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, logits / method.temperature).astype(jnp.int32)
