"""KV caches: plain pytrees, one small struct per layer, passed in and returned (design.md's grid).

Shapes: B rows, S positions (`model.max_len` at most), G key/value heads, H heads, Dh head size, C latent, R rotary.
`accounting.kv_numbers` gives the same sizes in closed form; a test holds these arrays to it, byte for byte.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from mla_jax.config import ModelConfig


@struct.dataclass
class HeadCache:
    """MHA and GQA: k, v [B, S, G, Dh], k after rotation."""

    k: jax.Array
    v: jax.Array


@struct.dataclass
class LatentCache:
    """Joint MLA: c_kv [B, S, C] after the latent norm; k_rope [B, S, R] after rotation, None unless decoupled."""

    c_kv: jax.Array
    k_rope: jax.Array | None


@struct.dataclass
class PerHeadLatentCache:
    """Per-head MLA: k_latent, v_latent [B, S, H, r] after the latent norm; k_rope [B, S, R] or None."""

    k_latent: jax.Array
    v_latent: jax.Array
    k_rope: jax.Array | None


LayerCache = HeadCache | LatentCache | PerHeadLatentCache
Cache = tuple[LayerCache, ...]


def init_cache(cfg: ModelConfig, batch: int, length: int, dtype: Any = jnp.bfloat16) -> Cache:
    """Zeros for `batch` rows of `length` positions, one struct a layer."""

    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros((batch, length, *shape), dtype)

    def layer() -> LayerCache:
        if cfg.attention != "mla":
            return HeadCache(zeros(cfg.n_kv_heads, cfg.head_dim), zeros(cfg.n_kv_heads, cfg.head_dim))
        k_rope = zeros(cfg.qk_rope_head_dim) if cfg.qk_rope_head_dim else None
        if cfg.latent == "joint":
            return LatentCache(zeros(cfg.kv_lora_rank), k_rope)
        rank = cfg.kv_lora_rank
        return PerHeadLatentCache(zeros(cfg.n_heads, rank), zeros(cfg.n_heads, rank), k_rope)

    return tuple(layer() for _ in range(cfg.n_layers))


def write(cache: LayerCache, entries: LayerCache, start: jax.Array | None) -> LayerCache:
    """Put `entries` (arrays [B, T, ...]) into the cache from position `start` [B] on; None = from position 0.

    The caller has checked that start + T <= S: XLA would clamp or drop a write past the end without a word.
    """

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        new = new.astype(old.dtype)
        if start is None:
            return jax.lax.dynamic_update_slice_in_dim(old, new, 0, axis=1)
        rows = jnp.arange(old.shape[0])[:, None]
        columns = start[:, None] + jnp.arange(new.shape[1])
        return old.at[rows, columns].set(new, mode="drop", unique_indices=True)

    return jax.tree.map(put, cache, entries)
