"""Attention of one new token per row over its cache, by `backend.decode_impl`: the Pallas kernels or cuDNN.

Only for T = 1; everything else, and `xla`, stays on the plain paths of the attention modules, which are the twins
that these are tested against. Caches are read as they are stored: no copy in another dtype is made.
"""

import jax
import jax.numpy as jnp

from mla_jax.kernels.head_decode import head_decode
from mla_jax.kernels.latent_decode import latent_decode
from mla_jax.model import cache
from mla_jax.model.backend import Backend


def applies(backend: Backend, length: int) -> bool:
    """Whether `length` new tokens a row go by a fast path."""
    return length == 1 and backend.decode_impl != "xla"


def over_heads(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    start: jax.Array,
    scale: float,
    backend: Backend,
    q_rope: jax.Array | None = None,
    k_rope: jax.Array | None = None,
) -> jax.Array:
    """q [B, 1, H, K] at position start [B] over k [B, S, G, K], v [B, S, G, V] -> [B, 1, H, V].

    q_rope [B, 1, H, R], k_rope [B, S, R]: a rotary part that all heads share, or None.
    """
    lengths = start.astype(jnp.int32) + 1
    if backend.decode_impl == "cudnn":
        k, v = k.astype(q.dtype), v.astype(q.dtype)
        return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, scale=scale, implementation="cudnn")
    first = None if q_rope is None else q_rope[:, 0]
    return head_decode(q[:, 0], k, v, lengths, scale, first, k_rope, interpret=backend.interpret)[:, None]


def over_latents(
    q_latent: jax.Array,
    q_rope: jax.Array | None,
    store: cache.LatentCache,
    start: jax.Array,
    scale: float,
    backend: Backend,
) -> jax.Array:
    """q_latent [B, 1, H, C], q_rope [B, 1, H, R] | None at position start [B] over the latents -> [B, 1, H, C]."""
    lengths = start.astype(jnp.int32) + 1
    first = None if q_rope is None else q_rope[:, 0]
    out = latent_decode(q_latent[:, 0], first, store.c_kv, store.k_rope, lengths, scale, interpret=backend.interpret)
    return out[:, None]
