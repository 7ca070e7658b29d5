"""Attention of one new token per row over its cache, by `backend.decode_impl`: the Pallas kernels or cuDNN.

Only for T = 1; everything else, and `xla`, stays on the plain paths of the attention modules, which are the twins
that these are tested against. Caches are read as they are stored: no copy in another dtype is made. The kernels also
write the new entry, which spares a launch for each array of the cache; int8 entries are written beforehand.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mla_jax.kernels.head_decode import head_decode
from mla_jax.kernels.latent_decode import latent_decode
from mla_jax.kernels.operands import Entry, addressable
from mla_jax.model import cache
from mla_jax.model.backend import Backend


def applies(backend: Backend, length: int, store: cache.LayerCache) -> bool:
    """Whether `length` new tokens a row go by a fast path: no array may be too long for the kernels' addresses."""
    if length != 1 or backend.decode_impl == "xla":
        return False
    return backend.decode_impl == "cudnn" or addressable(store)


def over_heads(
    q: jax.Array, new: cache.HeadCache, store: cache.HeadCache, start: jax.Array, scale: float, backend: Backend
) -> tuple[jax.Array, cache.HeadCache]:
    """q [B, 1, H, K] at position start [B], with the entries k, v [B, 1, G, K] there -> [B, 1, H, V], the cache."""
    out, k, v, _ = _heads(q, None, (new.k, new.v, None), (store.k, store.v, None), start, scale, backend)
    return out, cache.HeadCache(k, v)


def over_per_head_latents(
    q_latent: jax.Array,
    q_rope: jax.Array | None,
    new: cache.PerHeadLatentCache,
    store: cache.PerHeadLatentCache,
    start: jax.Array,
    scale: float,
    backend: Backend,
) -> tuple[jax.Array, cache.PerHeadLatentCache]:
    """q_latent [B, 1, H, r], q_rope [B, 1, H, R] | None at position start [B] -> [B, 1, H, r], the cache."""
    if not cache.is_int8(store):
        entry, kept = (new.k_latent, new.v_latent, new.k_rope), (store.k_latent, store.v_latent, store.k_rope)
        out, k, v, k_rope = _heads(q_latent, q_rope, entry, kept, start, scale, backend)
        return out, store.replace(k_latent=k, v_latent=v, k_rope=k_rope)
    store = cache.write(store, new, start)
    if backend.decode_impl == "cudnn":
        plain = cache.dequantise(cache.read(store, q_latent.dtype))  # cuDNN knows no scales
        return _cudnn(q_latent, plain.k_latent, plain.v_latent, start, scale), store
    rotary = (None if q_rope is None else q_rope[:, 0], store.k_rope)
    operands = (q_latent[:, 0], store.k_latent, store.v_latent, _lengths(start), scale, *rotary)
    out, _ = head_decode(*operands, store.k_scale, store.v_scale, interpret=backend.interpret)
    return out[:, None], store


def over_latents(
    q_latent: jax.Array,
    q_rope: jax.Array | None,
    new: cache.LatentCache,
    store: cache.LatentCache,
    start: jax.Array,
    scale: float,
    backend: Backend,
) -> tuple[jax.Array, cache.LatentCache]:
    """q_latent [B, 1, H, C], q_rope [B, 1, H, R] | None at position start [B] -> [B, 1, H, C], the cache."""
    q, rotary = q_latent[:, 0], None if q_rope is None else q_rope[:, 0]
    if cache.is_int8(store):
        store = cache.write(store, new, start)
        entries = (store.c_kv, store.k_rope, _lengths(start), scale, store.scale)
        return latent_decode(q, rotary, *entries, interpret=backend.interpret)[0][:, None], store
    entry = (new.c_kv[:, 0], None if new.k_rope is None else new.k_rope[:, 0])
    operands = (q, rotary, store.c_kv, store.k_rope, start.astype(jnp.int32), scale)
    out, c_kv, k_rope = latent_decode(*operands, interpret=backend.interpret, new=entry)
    return out[:, None], store.replace(c_kv=c_kv, k_rope=k_rope)


def _heads(
    q: jax.Array, q_rope: jax.Array | None, new: tuple, store: tuple, start: jax.Array, scale: float, backend: Backend
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """new and store: (k, v, k_rope | None) with a T axis of 1 and with S positions -> out, k, v, k_rope."""
    if backend.decode_impl == "cudnn":
        kept = cache.write(cache.HeadCache(*store[:2]), cache.HeadCache(*new[:2]), start)
        return _cudnn(q, kept.k.astype(q.dtype), kept.v.astype(q.dtype), start, scale), kept.k, kept.v, None
    entry = Entry(*(None if a is None else a[:, 0] for a in new))
    rotary = (None if q_rope is None else q_rope[:, 0], store[2])
    operands = (q[:, 0], *store[:2], start.astype(jnp.int32), scale, *rotary)
    out, kept = head_decode(*operands, interpret=backend.interpret, new=entry)
    return out[:, None], kept.k, kept.v, kept.k_rope


def _lengths(start: jax.Array) -> jax.Array:
    return start.astype(jnp.int32) + 1


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, start: jax.Array, scale: float) -> jax.Array:
    options: dict[str, Any] = {"key_value_seq_lengths": _lengths(start), "scale": scale, "implementation": "cudnn"}
    return jax.nn.dot_product_attention(q, k, v, **options)
