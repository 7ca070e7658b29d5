"""Multi-head and grouped-query attention (Vaswani et al. 2017; Ainslie et al. 2023)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mla_jax.config import ModelConfig
from mla_jax.kernels.rotate_heads import Part
from mla_jax.model import attention, cache, decode_attention, functions, initial, norms, products, rotary, stds
from mla_jax.model.attention import Where
from mla_jax.model.backend import Backend


class MultiHeadAttention(nn.Module):
    """MHA (G = H) and GQA (G < H). x [B, T, D] -> [B, T, D]."""

    cfg: ModelConfig
    backend: Backend

    def setup(self) -> None:
        cfg = self.cfg
        width, heads, groups, head_dim = cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        init, zeros = initial.normal(cfg.init_std), initial.ZEROS
        self.w_q = self.param("w_q", init, (width, heads, head_dim))
        self.w_k = self.param("w_k", init, (width, groups, head_dim))
        self.w_v = self.param("w_v", init, (width, groups, head_dim))
        self.w_o = self.param("w_o", initial.normal(stds.residual_std(cfg)), (heads, head_dim, width))
        if cfg.block == "gpt":
            self.b_q = self.param("b_q", zeros, (heads, head_dim))
            self.b_k = self.param("b_k", zeros, (groups, head_dim))
            self.b_v = self.param("b_v", zeros, (groups, head_dim))
            self.b_o = self.param("b_o", zeros, (width,))
        if cfg.qk_norm:
            self.q_gain = self.param("q_gain", initial.ONES, (head_dim,))
            self.k_gain = self.param("k_gain", initial.ONES, (head_dim,))

    @property
    def scale(self) -> float:
        return self.cfg.head_dim**-0.5

    def __call__(self, x: jax.Array, where: Where, stream_bias: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Self-attention over x -> (output [B, T, D], largest attention logit of each head [H]).

        stream_bias: `self.stream_bias()`, if the norm computes its gradient (`norms.Norm`).
        """
        q, k, v = self._project(x, where, stream_bias is not None)
        out = attention.attend(q, k, v, where, self.scale, self.backend)
        return self._output(out, stream_bias), attention.largest_logit(q, k, where, self.scale)

    def stream_bias(self) -> jax.Array | None:
        """What a call adds to every row whatever it attends to, [D] float32: b_o + b_v w_o, since weights sum to 1."""
        if self.cfg.block != "gpt":
            return None
        b_v = jnp.repeat(self.b_v, self.cfg.n_heads // self.cfg.n_kv_heads, axis=0)
        w_o = self.w_o.astype(self.backend.jnp_dtype).astype(jnp.float32)  # as `_output` multiplies it
        return self.b_o + jnp.einsum("hv,hvd->d", b_v, w_o, precision=jax.lax.Precision.HIGHEST)

    def prefill(self, x: jax.Array, where: Where, store: cache.HeadCache) -> tuple[jax.Array, cache.HeadCache]:
        """As a call on an empty cache, whose positions 0..T-1 it fills."""
        q, k, v = self._project(x, where)
        out = attention.attend(q, k, v, where, self.scale, self.backend)
        return self._output(out), cache.write(store, cache.HeadCache(k, v), None)

    def decode(self, x: jax.Array, start: jax.Array, store: cache.HeadCache) -> tuple[jax.Array, cache.HeadCache]:
        """x [B, T, D] at positions start [B] .. start+T-1: write, then attend over the cache."""
        length = x.shape[1]
        q, k, v = self._project(x, Where(positions=start[:, None] + jnp.arange(length)))
        if decode_attention.applies(self.backend, length, store):
            new = cache.HeadCache(k, v)
            out, store = decode_attention.over_heads(q, new, store, start, self.scale, self.backend)
            return self._output(out), store
        store = cache.write(store, cache.HeadCache(k, v), start)
        mask = attention.visible(start, length, store.k.shape[1])
        out = attention.attend_reference(q, store.k.astype(q.dtype), store.v.astype(q.dtype), mask, self.scale)
        return self._output(out), store

    def _project(
        self, x: jax.Array, where: Where, v_without_bias: bool = False
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q, k, v of x [B, T, D]. v_without_bias: v's bias is a part of the stream bias."""
        cfg, dtype = self.cfg, self.backend.jnp_dtype
        biases = self._biases(v_without_bias)
        if rotary.rotates_in_one_pass(x, where.positions, cfg, self.backend):
            return self._project_in_one_pass(x, biases)
        matrices = (self.w_q, self.w_k, self.w_v)
        flat = products.of_one_input(x, matrices, dtype)
        q, k, v = (products.heads_of(y, w, b) for y, w, b in zip(flat, matrices, biases, strict=True))
        if cfg.qk_norm:
            q, k = functions.rms_norm(q, self.q_gain), functions.rms_norm(k, self.k_gain)
        if cfg.position == "rope":
            cos, sin = functions.rope_angles(where.at(x.shape[1]), cfg.head_dim, cfg.rope_theta)
            q, k = functions.apply_rope(q, cos, sin), functions.apply_rope(k, cos, sin)
        return q, k, v

    def _biases(self, v_without_bias: bool) -> tuple[jax.Array | None, ...]:
        """Of q, k and v. Softmax ignores what all keys share, unless they are rotated: no gradient, not a sum of 0."""
        if self.cfg.block != "gpt":
            return None, None, None
        if not v_without_bias:
            return self.b_q, self.b_k, self.b_v
        shared = self.cfg.position != "rope" and not self.cfg.qk_norm
        return self.b_q, jax.lax.stop_gradient(self.b_k) if shared else self.b_k, None

    def _project_in_one_pass(
        self, x: jax.Array, biases: tuple[jax.Array | None, ...]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        # v has a product of its own: attention takes it, and gives its gradient, without a copy.
        cfg, dtype, backend = self.cfg, self.backend.jnp_dtype, self.backend
        qk, v = products.of_one_input(x, (products.side_by_side((self.w_q, self.w_k), dtype), self.w_v), dtype)
        b_q, b_k, b_v = biases
        if b_q is not None:
            qk += jnp.concatenate([b_q.reshape(-1), b_k.reshape(-1)]).astype(dtype)
        if b_v is not None:
            v += b_v.reshape(-1).astype(dtype)
        parts = [Part(heads, cfg.head_dim, cfg.head_dim) for heads in (cfg.n_heads, cfg.n_kv_heads)]
        q, k = rotary.split_and_rotate(qk, parts, None, cfg, backend)
        weights = (self.w_q, self.w_k, self.w_v)
        return tuple(products.heads_of(y, w, None) for y, w in zip((q, k, v), weights, strict=True))

    def _output(self, out: jax.Array, stream_bias: jax.Array | None = None) -> jax.Array:
        y = products.joined_heads(out, self.w_o)
        return norms.add_bias(y, self.b_o if self.cfg.block == "gpt" else None, stream_bias)
