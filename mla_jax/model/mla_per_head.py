"""Per-head latent attention, paper A's equations (arXiv 2506.09342): a latent for K and one for V in every head."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mla_jax.model import cache, decode_attention, functions, initial, stds
from mla_jax.model.mla import LatentAttention, per_token, softmax_over_cache


class PerHeadLatentAttention(LatentAttention):
    """K_h = x w_dk,h w_uk,h and V_h = x w_dv,h w_uv,h, each of rank r = `kv_lora_rank`.

    The cache holds both latents of every head (and k_rope when decoupled): 2 H r (+ R) numbers a token and layer.
    """

    def setup(self) -> None:
        super().setup()
        cfg = self.cfg
        width, heads, rank = cfg.d_model, cfg.n_heads, cfg.kv_lora_rank
        down, up = stds.factor_stds(cfg, rank, normed=cfg.latent_norm == "rms")
        self.w_dk = self.param("w_dk", initial.normal(down), (width, heads, rank))
        self.w_dv = self.param("w_dv", initial.normal(down), (width, heads, rank))
        self.w_uk = self.param("w_uk", initial.normal(up), (heads, rank, cfg.qk_nope_head_dim))
        self.w_uv = self.param("w_uv", initial.normal(up), (heads, rank, cfg.v_head_dim))
        if cfg.latent_norm == "rms":
            self.k_latent_gain = self.param("k_latent_gain", initial.ONES, (rank,))
            self.v_latent_gain = self.param("v_latent_gain", initial.ONES, (rank,))

    @property
    def down(self) -> tuple[jax.Array, ...]:
        return self.w_dk, self.w_dv

    def latents(self, down: Sequence[jax.Array], k_rope: jax.Array | None) -> cache.PerHeadLatentCache:
        shape = (self.cfg.n_heads, self.cfg.kv_lora_rank)
        k_latent, v_latent = (a.reshape(*a.shape[:2], *shape) for a in down)
        if self.cfg.latent_norm == "rms":
            k_latent = functions.rms_norm(k_latent, self.k_latent_gain)
            v_latent = functions.rms_norm(v_latent, self.v_latent_gain)
        return cache.PerHeadLatentCache(k_latent, v_latent, k_rope)

    def expand(self, entries: cache.PerHeadLatentCache) -> tuple[jax.Array, jax.Array]:
        dtype = self.backend.jnp_dtype
        k_nope = jnp.einsum("bshr,hrn->bshn", entries.k_latent, self.w_uk.astype(dtype))
        v = jnp.einsum("bshr,hrv->bshv", entries.v_latent, self.w_uv.astype(dtype))
        return k_nope, v

    def absorbed(
        self, q_nope: jax.Array, q_rope: jax.Array | None, entries: cache.PerHeadLatentCache, mask: jax.Array
    ) -> jax.Array:
        dtype = self.backend.jnp_dtype
        q_latent = jnp.einsum("bthn,hrn->bthr", q_nope, self.w_uk.astype(dtype))
        logits = jnp.einsum("bthr,bshr->bhts", q_latent, entries.k_latent, preferred_element_type=jnp.float32)
        logits = per_token(logits, entries.k_scale)
        if q_rope is not None:
            logits += jnp.einsum("bthr,bsr->bhts", q_rope, entries.k_rope, preferred_element_type=jnp.float32)
        weights = per_token(softmax_over_cache(logits * self.scale, mask), entries.v_scale).astype(dtype)
        out = jnp.einsum("bhts,bshr->bthr", weights, entries.v_latent)
        return jnp.einsum("bthr,hrv->bthv", out, self.w_uv.astype(dtype))

    def absorbed_fast(
        self,
        q_nope: jax.Array,
        q_rope: jax.Array | None,
        new: cache.PerHeadLatentCache,
        store: cache.PerHeadLatentCache,
        start: jax.Array,
    ) -> tuple[jax.Array, cache.PerHeadLatentCache]:
        dtype = self.backend.jnp_dtype
        q_latent = jnp.einsum("bthn,hrn->bthr", q_nope, self.w_uk.astype(dtype))
        operands = (q_latent, q_rope, new, store, start, self.scale, self.backend)
        out, store = decode_attention.over_per_head_latents(*operands)
        return jnp.einsum("bthr,hrv->bthv", out, self.w_uv.astype(dtype)), store
