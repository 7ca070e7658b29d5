"""KV caches: plain pytrees, one small struct per layer, passed in and returned (design.md's grid).

Shapes: B rows, S positions (`model.max_len` at most), G key/value heads, H heads, Dh head size, C latent, R rotary.
`accounting.kv_bytes` gives the same sizes in closed form; a test holds these arrays to it, byte for byte.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from mla_jax import accounting
from mla_jax.config import ModelConfig


@struct.dataclass
class HeadCache:
    """MHA and GQA: k, v [B, S, G, Dh], k after rotation."""

    k: jax.Array
    v: jax.Array


@struct.dataclass
class LatentCache:
    """Joint MLA: c_kv [B, S, C] after the latent norm; k_rope [B, S, R] after rotation, None unless decoupled.

    int8: c_kv is c_kv / scale rounded, scale [B, S] float32 is one number a token, and k_rope is bfloat16.
    """

    c_kv: jax.Array
    k_rope: jax.Array | None
    scale: jax.Array | None = None


@struct.dataclass
class PerHeadLatentCache:
    """Per-head MLA: k_latent, v_latent [B, S, H, r] after the latent norm; k_rope [B, S, R] or None.

    int8: as LatentCache, with a scale [B, S] for the keys' latents and one for the values'.
    """

    k_latent: jax.Array
    v_latent: jax.Array
    k_rope: jax.Array | None
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None


LayerCache = HeadCache | LatentCache | PerHeadLatentCache
Cache = tuple[LayerCache, ...]


def init_cache(cfg: ModelConfig, batch: int, length: int, dtype: Any = jnp.bfloat16) -> Cache:
    """Zeros for `batch` rows of `length` positions, one struct a layer. dtype: bfloat16, float32 or int8.

    Raises UserError for int8 without latents.
    """
    int8 = jnp.dtype(dtype) == jnp.int8
    accounting.check_cache_dtype(cfg, jnp.dtype(dtype).name)

    def zeros(*shape: int, dtype: Any = dtype) -> jax.Array:
        return jnp.zeros((batch, length, *shape), dtype)

    def scale() -> jax.Array | None:
        return zeros(dtype=jnp.float32) if int8 else None

    def layer() -> LayerCache:
        if cfg.attention != "mla":
            return HeadCache(zeros(cfg.n_kv_heads, cfg.head_dim), zeros(cfg.n_kv_heads, cfg.head_dim))
        rope_dtype = jnp.bfloat16 if int8 else dtype
        k_rope = zeros(cfg.qk_rope_head_dim, dtype=rope_dtype) if cfg.qk_rope_head_dim else None
        if cfg.latent == "joint":
            return LatentCache(zeros(cfg.kv_lora_rank), k_rope, scale())
        shape = (cfg.n_heads, cfg.kv_lora_rank)
        return PerHeadLatentCache(zeros(*shape), zeros(*shape), k_rope, scale(), scale())

    return tuple(layer() for _ in range(cfg.n_layers))


def write(cache: LayerCache, entries: LayerCache, start: jax.Array | None) -> LayerCache:
    """Put `entries` (arrays [B, T, ...]) into the cache from position `start` [B] on; None = from position 0.

    An int8 cache quantises them first. The caller has checked that start + T <= S: XLA would clamp or drop a write
    past the end without a word.
    """

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        new = new.astype(old.dtype)
        if start is None:
            return jax.lax.dynamic_update_slice_in_dim(old, new, 0, axis=1)
        rows = jnp.arange(old.shape[0])[:, None]
        columns = start[:, None] + jnp.arange(new.shape[1])
        return old.at[rows, columns].set(new, mode="drop", unique_indices=True)

    return jax.tree.map(put, cache, quantise(entries) if is_int8(cache) else entries)


def is_int8(cache: LayerCache) -> bool:
    """Whether the latents are held as int8 with scales."""
    return jax.tree.leaves(cache)[0].dtype == jnp.int8


def quantise(entries: LayerCache) -> LayerCache:
    """Entries as an int8 cache holds them: each token's latents over their largest magnitude, in 127 steps."""
    if isinstance(entries, LatentCache):
        c_kv, scale = _to_int8(entries.c_kv)
        return entries.replace(c_kv=c_kv, scale=scale)
    (k, k_scale), (v, v_scale) = _to_int8(entries.k_latent), _to_int8(entries.v_latent)
    return entries.replace(k_latent=k, v_latent=v, k_scale=k_scale, v_scale=v_scale)


def read(cache: LayerCache, dtype: Any) -> LayerCache:
    """The cache in the dtype of computation. Of an int8 cache the latents stay divided by their scales.

    int8 fits in bfloat16 exactly. Absorbed attention applies the scales to its logits and weights, H numbers a token
    where the latents have C; `dequantise` is for those who need the latents themselves.
    """

    def cast(a: jax.Array) -> jax.Array:
        return a if a.ndim == 2 else a.astype(dtype)  # scales stay float32

    return jax.tree.map(cast, cache)


def dequantise(cache: LayerCache) -> LayerCache:
    """`read`'s result with the latents multiplied by their scales, and no scales."""

    def times(a: jax.Array, scale: jax.Array) -> jax.Array:
        return (a.astype(jnp.float32) * scale.reshape(*scale.shape, *(1,) * (a.ndim - 2))).astype(a.dtype)

    if isinstance(cache, LatentCache) and cache.scale is not None:
        return cache.replace(c_kv=times(cache.c_kv, cache.scale), scale=None)
    if isinstance(cache, PerHeadLatentCache) and cache.k_scale is not None:
        return cache.replace(
            k_latent=times(cache.k_latent, cache.k_scale),
            v_latent=times(cache.v_latent, cache.v_scale),
            k_scale=None,
            v_scale=None,
        )
    return cache


def _to_int8(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x [B, T, ...] -> int8 [B, T, ...], scale [B, T] float32."""
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=tuple(range(2, x.ndim)), keepdims=True)
    scale = jnp.where(largest > 0, largest / 127, 1.0)
    return jnp.round(x / scale).astype(jnp.int8), scale.reshape(x.shape[:2])
