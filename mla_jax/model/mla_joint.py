"""Joint latent attention, DeepSeek's form: one `c_kv` of width C for the keys and values of all heads."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mla_jax.kernels.rotate_heads import Part
from mla_jax.model import attention, cache, decode_attention, functions, initial, products, rotary, stds
from mla_jax.model.attention import Where
from mla_jax.model.mla import LatentAttention, per_token, softmax_over_cache


class JointLatentAttention(LatentAttention):
    """c_kv = RMSNorm(x w_dkv); k_nope = c_kv w_uk; v = c_kv w_uv (arXiv 2405.04434, eq. 9-11, 14-19).

    The cache holds c_kv after the norm and k_rope after the rotation: C + R numbers a token and layer.
    """

    def setup(self) -> None:
        super().setup()
        cfg = self.cfg
        rank, heads = cfg.kv_lora_rank, cfg.n_heads
        down, up = stds.factor_stds(cfg, rank, normed=cfg.latent_norm == "rms")
        self.w_dkv = self.param("w_dkv", initial.normal(down), (cfg.d_model, rank))
        self.w_uk = self.param("w_uk", initial.normal(up), (rank, heads, cfg.qk_nope_head_dim))
        self.w_uv = self.param("w_uv", initial.normal(up), (rank, heads, cfg.v_head_dim))
        if cfg.latent_norm == "rms":
            self.latent_gain = self.param("latent_gain", initial.ONES, (rank,))

    @property
    def down(self) -> tuple[jax.Array, ...]:
        return (self.w_dkv,)

    def latents(self, down: Sequence[jax.Array], k_rope: jax.Array | None) -> cache.LatentCache:
        (c_kv,) = down
        if self.cfg.latent_norm == "rms":
            c_kv = functions.rms_norm(c_kv, self.latent_gain)
        return cache.LatentCache(c_kv, k_rope)

    def _expanded(self, x: jax.Array, where: Where) -> tuple[jax.Array, jax.Array, jax.Array, cache.LayerCache]:
        """As the plain form, in one pass between the product of x and those of the latent."""
        cfg, dtype, backend = self.cfg, self.backend.jnp_dtype, self.backend
        plain = cfg.q_lora_rank or cfg.rope_placement == "decompressed" or not cfg.qk_rope_head_dim
        if plain or not rotary.rotates_in_one_pass(x, where.positions, cfg, backend):
            return super()._expanded(x, where)
        heads, rank, rope = cfg.n_heads, cfg.kv_lora_rank, cfg.qk_rope_head_dim
        q, y = products.of_one_input(x, (self.w_q, products.side_by_side((self.w_dkv, self.w_kr), dtype)), dtype)
        if cfg.block == "gpt":
            q = q + self.b_q.reshape(-1).astype(dtype)
        q = rotary.rotate_queries(q, Part(heads, cfg.qk_head_dim, rope), cfg, backend)
        gain = self.latent_gain if cfg.latent_norm == "rms" else None
        (joined,) = rotary.split_and_rotate(y, [Part(1, rope, rope, latent=rank)], gain, cfg, backend)
        # Rows of zeros for the rotary key cost v's product R/C more, and its operand no copy.
        w_k, w_v = self._key_matrix(), jnp.pad(self.w_uv.astype(dtype), ((0, rope), (0, 0), (0, 0)))
        k, v = products.of_one_input(joined, (w_k, w_v), dtype)
        entries = cache.LatentCache(joined[..., :rank], joined[..., rank:])
        return (
            products.heads_of(q, self.w_q, None),
            products.heads_of(k, w_k, None),
            products.heads_of(v, w_v, None),
            entries,
        )

    def _key_matrix(self) -> jax.Array:
        """[w_uk 0; 0 1], [C + R, H, N + R]: its unit matrix hands the rotary key to every head, exactly."""
        cfg, dtype = self.cfg, self.backend.jnp_dtype
        rope = cfg.qk_rope_head_dim
        copies = jnp.broadcast_to(jnp.eye(rope, dtype=dtype)[:, None], (rope, cfg.n_heads, rope))
        lower = jnp.pad(copies, ((0, 0), (0, 0), (cfg.qk_nope_head_dim, 0)))
        return jnp.concatenate([attention.widened(self.w_uk.astype(dtype), cfg.qk_head_dim), lower])

    def expand(self, entries: cache.LatentCache) -> tuple[jax.Array, jax.Array]:
        dtype = self.backend.jnp_dtype
        k_nope = jnp.einsum("bsc,chn->bshn", entries.c_kv, self.w_uk.astype(dtype))
        v = jnp.einsum("bsc,chv->bshv", entries.c_kv, self.w_uv.astype(dtype))
        return k_nope, v

    def absorbed(
        self, q_nope: jax.Array, q_rope: jax.Array | None, entries: cache.LatentCache, mask: jax.Array
    ) -> jax.Array:
        dtype = self.backend.jnp_dtype
        q_latent = jnp.einsum("bthn,chn->bthc", q_nope, self.w_uk.astype(dtype))
        logits = jnp.einsum("bthc,bsc->bhts", q_latent, entries.c_kv, preferred_element_type=jnp.float32)
        logits = per_token(logits, entries.scale)
        if q_rope is not None:
            logits += jnp.einsum("bthr,bsr->bhts", q_rope, entries.k_rope, preferred_element_type=jnp.float32)
        weights = per_token(softmax_over_cache(logits * self.scale, mask), entries.scale).astype(dtype)
        out = jnp.einsum("bhts,bsc->bthc", weights, entries.c_kv)
        return jnp.einsum("bthc,chv->bthv", out, self.w_uv.astype(dtype))

    def absorbed_fast(
        self,
        q_nope: jax.Array,
        q_rope: jax.Array | None,
        new: cache.LatentCache,
        store: cache.LatentCache,
        start: jax.Array,
    ) -> tuple[jax.Array, cache.LatentCache]:
        dtype = self.backend.jnp_dtype
        q_latent = jnp.einsum("bthn,chn->bthc", q_nope, self.w_uk.astype(dtype))
        operands = (q_latent, q_rope, new, store, start, self.scale, self.backend)
        out, store = decode_attention.over_latents(*operands)
        return jnp.einsum("bthc,chv->bthv", out, self.w_uv.astype(dtype)), store
