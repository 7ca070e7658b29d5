"""Multi-head latent attention: what the joint and the per-head form share.

Two execution forms of one function (DeepSeek-V2, arXiv 2405.04434, section 2.1):
*expanded*: keys and values are computed from the latents, then ordinary attention (training, prefill);
*absorbed*: `w_uk` is folded into the query and `w_uv` applied after, so that decode reads the latents alone.
Where RoPE is applied to the expanded key (`rope_placement=decompressed`) or the key is normalised per head
(`qk_norm`), no fixed matrix stands between query and latent: decode expands the cache again at every step.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from mla_jax.config import ModelConfig
from mla_jax.model import attention, cache, decode_attention, functions, initial, norms, products, stds
from mla_jax.model.attention import Where
from mla_jax.model.backend import Backend


class LatentAttention(nn.Module):
    """Queries, rotary key, output and the three calls; subclasses own the latents. x [B, T, D] -> [B, T, D]."""

    cfg: ModelConfig
    backend: Backend

    def setup(self) -> None:
        cfg = self.cfg
        width, heads = cfg.d_model, cfg.n_heads
        init, zeros, ones = initial.normal(cfg.init_std), initial.ZEROS, initial.ONES
        if cfg.q_lora_rank:
            down, up = stds.factor_stds(cfg, cfg.q_lora_rank, normed=cfg.latent_norm == "rms")
            self.w_dq = self.param("w_dq", initial.normal(down), (width, cfg.q_lora_rank))
            self.w_uq = self.param("w_uq", initial.normal(up), (cfg.q_lora_rank, heads, cfg.qk_head_dim))
            if cfg.latent_norm == "rms":
                self.q_latent_gain = self.param("q_latent_gain", ones, (cfg.q_lora_rank,))
        else:
            self.w_q = self.param("w_q", init, (width, heads, cfg.qk_head_dim))
        if cfg.qk_rope_head_dim:
            self.w_kr = self.param("w_kr", init, (width, cfg.qk_rope_head_dim))
        self.w_o = self.param("w_o", initial.normal(stds.residual_std(cfg)), (heads, cfg.v_head_dim, width))
        if cfg.block == "gpt":
            # No bias on k or v: softmax ignores the one's constant shift, and the other's is a part of b_o.
            self.b_q = self.param("b_q", zeros, (heads, cfg.qk_head_dim))
            self.b_o = self.param("b_o", zeros, (width,))
        if cfg.qk_norm:
            self.q_gain = self.param("q_gain", ones, (cfg.qk_nope_head_dim,))
            self.k_gain = self.param("k_gain", ones, (cfg.qk_nope_head_dim,))
            if cfg.qk_rope_head_dim:
                self.q_rope_gain = self.param("q_rope_gain", ones, (cfg.qk_rope_head_dim,))
                self.k_rope_gain = self.param("k_rope_gain", ones, (cfg.qk_rope_head_dim,))

    # Subclasses say how latents are made, how they expand and how attention over them is absorbed.
    @property
    def down(self) -> tuple[jax.Array, ...]:
        """The matrices [D, ...] that make latents of x."""
        raise NotImplementedError

    def latents(self, down: Sequence[jax.Array], k_rope: jax.Array | None) -> cache.LayerCache:
        """The cache entries [B, T, ...] of x, from its products with `self.down` and the rotated key."""
        raise NotImplementedError

    def expand(self, entries: cache.LayerCache) -> tuple[jax.Array, jax.Array]:
        """Cache entries [B, S, ...] -> k_nope [B, S, H, N], v [B, S, H, V], not rotated, not normalised."""
        raise NotImplementedError

    def absorbed(
        self, q_nope: jax.Array, q_rope: jax.Array | None, entries: cache.LayerCache, mask: jax.Array
    ) -> jax.Array:
        """Attention of q over the latents of `cache.read`, mask [B, T, S] -> [B, T, H, V]."""
        raise NotImplementedError

    def absorbed_fast(
        self,
        q_nope: jax.Array,
        q_rope: jax.Array | None,
        new: cache.LayerCache,
        store: cache.LayerCache,
        start: jax.Array,
    ) -> tuple[jax.Array, cache.LayerCache]:
        """`absorbed` of one token a row at position start [B], and the cache with its entry `new`, by a kernel."""
        raise NotImplementedError

    @property
    def scale(self) -> float:
        return self.cfg.qk_head_dim**-0.5

    def __call__(self, x: jax.Array, where: Where, stream_bias: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Expanded form: self-attention over x -> (output [B, T, D], largest attention logit of each head [H]).

        stream_bias: `self.stream_bias()`, if the norm computes its gradient (`norms.Norm`).
        """
        q, k, v, _ = self._expanded(x, where)
        out = attention.attend(q, k, v, where, self.scale, self.backend)
        return self._output(out, stream_bias), attention.largest_logit(q, k, where, self.scale)

    def stream_bias(self) -> jax.Array | None:
        """What a call adds to every row whatever it attends to: b_o [D] float32."""
        return self.b_o if self.cfg.block == "gpt" else None

    def prefill(self, x: jax.Array, where: Where, store: cache.LayerCache) -> tuple[jax.Array, cache.LayerCache]:
        """As a call on an empty cache, whose positions 0..T-1 it fills."""
        q, k, v, entries = self._expanded(x, where)
        out = attention.attend(q, k, v, where, self.scale, self.backend)
        return self._output(out), cache.write(store, entries, None)

    def decode(self, x: jax.Array, start: jax.Array, store: cache.LayerCache) -> tuple[jax.Array, cache.LayerCache]:
        """x [B, T, D] at positions start [B] .. start+T-1: write, then attend over the cache."""
        length = x.shape[1]
        where = Where(positions=start[:, None] + jnp.arange(length))
        q, down, k_rope = self._project(x, where)
        q_nope, q_rope = self._queries(q, where)
        new = self.latents(down, k_rope)
        if self.cfg.absorbed and decode_attention.applies(self.backend, length, store):
            out, store = self.absorbed_fast(q_nope, q_rope, new, store, start)
            return self._output(out), store
        store = cache.write(store, new, start)
        entries = cache.read(store, x.dtype)
        capacity = jax.tree.leaves(store)[0].shape[1]
        mask = attention.visible(start, length, capacity)
        if self.cfg.absorbed:
            out = self.absorbed(q_nope, q_rope, entries, mask)
        else:
            k, v = self._keys_values(cache.dequantise(entries), Where())
            out = attention.attend_reference(_join(q_nope, q_rope), k, v, mask, self.scale)
        return self._output(out), store

    def _expanded(self, x: jax.Array, where: Where) -> tuple[jax.Array, jax.Array, jax.Array, cache.LayerCache]:
        q, down, k_rope = self._project(x, where)
        entries = self.latents(down, k_rope)
        k, v = self._keys_values(entries, where)
        return _join(*self._queries(q, where)), k, v, entries

    def _project(self, x: jax.Array, where: Where) -> tuple[jax.Array, list[jax.Array], jax.Array | None]:
        """All products of x: queries (or their latent) [B, T, .], those of `down`, and the rotary key, rotated."""
        cfg = self.cfg
        rotary = (self.w_kr,) if cfg.qk_rope_head_dim else ()
        matrices = (self.w_dq if cfg.q_lora_rank else self.w_q, *self.down, *rotary)
        q, *rest = products.of_one_input(x, matrices, self.backend.jnp_dtype)
        return q, rest[: len(self.down)], self._rotary_key(rest[-1], where) if rotary else None

    def _keys_values(self, entries: cache.LayerCache, where: Where) -> tuple[jax.Array, jax.Array]:
        """k [B, S, H, N + R], v [B, S, H, V]; `where` gives the entries' positions."""
        cfg = self.cfg
        k, v = self.expand(entries)
        if cfg.qk_norm:
            k = functions.rms_norm(k, self.k_gain)
        if cfg.rope_placement == "decompressed":
            cos, sin = functions.rope_angles(where.at(k.shape[1]), cfg.qk_nope_head_dim, cfg.rope_theta)
            k = functions.apply_rope(k, cos, sin)
        if cfg.qk_rope_head_dim:
            shared = jnp.broadcast_to(entries.k_rope[:, :, None], (*k.shape[:3], cfg.qk_rope_head_dim))
            k = jnp.concatenate([k, shared.astype(k.dtype)], axis=-1)
        return k, v

    def _queries(self, q: jax.Array, where: Where) -> tuple[jax.Array, jax.Array | None]:
        """q_nope [B, T, H, N] and q_rope [B, T, H, R] or None, rotated, of x's product with w_q (or w_dq)."""
        cfg, dtype = self.cfg, self.backend.jnp_dtype
        if cfg.q_lora_rank:
            if cfg.latent_norm == "rms":
                q = functions.rms_norm(q, self.q_latent_gain)
            q = jnp.einsum("btc,chk->bthk", q, self.w_uq.astype(dtype))
        else:
            q = q.reshape(*q.shape[:2], cfg.n_heads, cfg.qk_head_dim)
        if cfg.block == "gpt":
            q = q + self.b_q.astype(dtype)
        q_nope, q_rope = jnp.split(q, [cfg.qk_nope_head_dim], axis=-1)
        if cfg.qk_norm:
            q_nope = functions.rms_norm(q_nope, self.q_gain)
        if cfg.rope_placement == "decompressed":
            return functions.apply_rope(q_nope, *self._angles(where, q, cfg.qk_nope_head_dim)), None
        if not cfg.qk_rope_head_dim:
            return q_nope, None
        if cfg.qk_norm:
            q_rope = functions.rms_norm(q_rope, self.q_rope_gain)
        return q_nope, functions.apply_rope(q_rope, *self._angles(where, q, cfg.qk_rope_head_dim))

    def _rotary_key(self, k_rope: jax.Array, where: Where) -> jax.Array:
        """The rotary key that all heads share, [B, T, R], normalised and rotated."""
        cfg = self.cfg
        if cfg.qk_norm:
            k_rope = functions.rms_norm(k_rope, self.k_rope_gain)
        return functions.apply_rope(k_rope[:, :, None], *self._angles(where, k_rope, cfg.qk_rope_head_dim))[:, :, 0]

    def _angles(self, where: Where, x: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
        return functions.rope_angles(where.at(x.shape[1]), width, self.cfg.rope_theta)

    def _output(self, out: jax.Array, stream_bias: jax.Array | None = None) -> jax.Array:
        w_o = self.w_o
        if out.shape[-1] > self.cfg.v_head_dim:  # v was padded, and so is out: rows of zeros cut it
            w_o = jnp.pad(w_o, ((0, 0), (0, out.shape[-1] - self.cfg.v_head_dim), (0, 0)))
        y = products.joined_heads(out, w_o)
        return norms.add_bias(y, self.b_o if self.cfg.block == "gpt" else None, stream_bias)


def _join(q_nope: jax.Array, q_rope: jax.Array | None) -> jax.Array:
    return q_nope if q_rope is None else jnp.concatenate([q_nope, q_rope], axis=-1)


def softmax_over_cache(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """logits [B, H, T, S] float32, mask [B, T, S] -> weights, float32."""
    return jax.nn.softmax(jnp.where(mask[:, None], logits, functions.MASKED), axis=-1)


def per_token(x: jax.Array, scale: jax.Array | None) -> jax.Array:
    """x [B, H, T, S] times an int8 cache's scale [B, S] of each token, in float32; without scales x as it is."""
    return x if scale is None else x * scale[:, None, None, :]
