"""A decode step on packed weights (model/serving.py): five launches a layer where the modules take 17 to 25.

One token a row. Small batches go through `row_linear`, larger ones through XLA's products; attention is `flash_decode`,
which rotates, normalises and writes the new entry on the way. The modules' own `decode` is the plain twin. Experts of
few rows take three launches (`row_experts`); of more they are left to their module.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mla_jax.config import ModelConfig
from mla_jax.kernels import blocks as blocks_lib
from mla_jax.kernels import row_experts, row_linear
from mla_jax.kernels.flash_decode import flash_decode
from mla_jax.kernels.operands import Entry, Layout, Operands, Raw, rotates
from mla_jax.kernels.row_linear import Linear, NormWeights
from mla_jax.model import cache, decode_attention, functions
from mla_jax.model.backend import Backend
from mla_jax.model.serving import ServingLayer, rule

# Rows x groups from which cuDNN's attention over heads is faster than the kernel, cache write included. On an H100 a
# step of size m took 3.509 ms instead of 3.672 at 1024 x 512 (8,192), and 1.913 instead of 1.925 at 64 x 4096 (512).
_CUDNN_FROM = 4096

Parts = tuple[jax.Array, jax.Array | None, jax.Array | None]  # of one split: out alone


def applies(backend: Backend, length: int, store: cache.Cache) -> bool:
    """Whether `length` new tokens a row can go this way. int8 latents need the kernel: cuDNN knows no scales."""
    known = backend.decode_impl == "pallas" or not cache.is_int8(store[0])
    return known and decode_attention.applies(backend, length, store[0])


def heads_impl(cfg: ModelConfig, backend: Backend, batch: int, cache_dtype: Any) -> str:
    """Whose attention over heads: `backend.decode_impl`, or cuDNN for many rows where the choice is ours.

    A cache in another dtype stays with the kernel, which reads it as it is: for cuDNN all of it would be converted at
    every step.
    """
    ours = cfg.decode_impl == "auto" and backend.attention_impl == "cudnn" and cache_dtype == backend.jnp_dtype
    return "cudnn" if ours and batch * cfg.n_kv_heads >= _CUDNN_FROM else backend.decode_impl


def angles(cfg: ModelConfig, start: jax.Array) -> jax.Array | None:
    """Cosines and sines [B, W] of the position that each row is at; None without RoPE."""
    width = cfg.qk_rope_head_dim if cfg.attention == "mla" else cfg.head_dim
    rotary = bool(width) if cfg.attention == "mla" else cfg.position == "rope"
    return jnp.concatenate(functions.rope_angles(start, width, cfg.rope_theta), axis=-1) if rotary else None


def attention(
    cfg: ModelConfig,
    backend: Backend,
    weights: ServingLayer,
    x: jax.Array,
    start: jax.Array,
    turn: jax.Array | None,
    store: cache.LayerCache,
) -> tuple[jax.Array, cache.LayerCache]:
    """x + attention(norm(x)) [B, D] of one token a row at position start [B], and the cache with its entry."""
    y = linear(x, weights.w_in, backend, norm=weights.attention_norm)
    start = start.astype(jnp.int32)
    if cfg.attention == "mla":
        over = _over_int8_latents if cache.is_int8(store) else _over_latents
        parts, store = over(cfg, backend, weights, y, start, turn, store)
    else:
        parts, store = _over_heads(cfg, backend, y, start, turn, store)
    return linear(parts, weights.w_out, backend, residual=x), store


def feed_forward(cfg: ModelConfig, backend: Backend, weights: ServingLayer, x: jax.Array) -> jax.Array:
    """x + ffn(norm(x)) [B, D] of a dense layer."""
    activation = "gelu" if cfg.block == "gpt" else "swiglu"
    hidden = linear(x, weights.ffn_in, backend, norm=weights.ffn_norm, activation=activation)
    return linear(hidden, weights.ffn_out, backend, residual=x)


def experts(
    cfg: ModelConfig, backend: Backend, weights: ServingLayer, x: jax.Array, router_bias: jax.Array, layer: int
) -> jax.Array:
    """x + experts(norm(x)) [B, D] of few rows, where `packs_experts`; router_bias [L_moe, E], of which row `layer`."""
    given = (x, weights.experts, router_bias, layer, weights.ffn_norm, rule(cfg))
    return row_experts.row_experts(*given, interpret=backend.interpret)


def linear(
    x: jax.Array | Parts,
    weights: Linear,
    backend: Backend,
    norm: NormWeights | None = None,
    activation: str = "none",
    residual: jax.Array | None = None,
) -> jax.Array:
    """norm, product, activation and residual -> [B, N]: `row_linear` for few rows, XLA's products for more.

    Kernels like `row_linear` on tensor-core tiles were no gain over XLA's with their launches: on an H100 3 layers
    took 515 us against 508 at 1024 x 512, and 335 against 309 at 64 x 4096 (size m).
    """
    rows = x[0].shape[1] if isinstance(x, tuple) else x.shape[0]
    if isinstance(x, tuple) and x[0].shape[0] == 1:
        x = x[0].reshape(rows, -1)
    elif isinstance(x, tuple) and (rows > row_linear.MAX_ROWS or x[0].shape[0] > row_linear.MAX_PARTS):
        x = row_linear.join(x, weights.w.dtype, backend.interpret)
    if rows > row_linear.MAX_ROWS:
        return row_linear.row_linear_reference(x, weights, norm, activation, residual)
    return row_linear.row_linear(x, weights, norm, activation, residual, interpret=backend.interpret)


def _over_latents(
    cfg: ModelConfig,
    backend: Backend,
    weights: ServingLayer,
    y: jax.Array,
    start: jax.Array,
    turn: jax.Array | None,
    store: cache.LatentCache,
) -> tuple[Parts, cache.LatentCache]:
    """y [B, (H + 1) (C + R)], the product with `w_in` -> parts [S, B, 1, H, C], the cache with its new entry."""
    batch, heads, rank, rope = y.shape[0], cfg.n_heads, cfg.kv_lora_rank, cfg.qk_rope_head_dim
    at = (heads + 1) * rank  # where the rotary columns begin
    latents, raw, layout = y.reshape(batch, -1, rank), Raw(gain=weights.latent_gain), Layout(1, heads, k=heads)
    rotary = k_rope = None
    if rope and rotates(rope) and rank % rope == 0:  # views of the product's output, turned in the kernel
        rotary = k_rope = y.reshape(batch, -1, rope)
        layout = Layout(1, heads, k=heads, q_rope=at // rope, k_rope=at // rope + heads)
        raw = Raw(turn, weights.latent_gain)
    elif rope:
        rotary = k_rope = _turned_columns(cfg, y, turn)
        layout = Layout(1, heads, k=heads, k_rope=heads)
    blocks = blocks_lib.choose(rank + rope, False, batch, 1, store.c_kv.shape[1])
    operands = Operands(latents, rotary, store.c_kv[:, :, None], None, store.k_rope, None, None, start)
    scale = cfg.qk_head_dim**-0.5
    parts, kept = flash_decode(operands, scale, blocks, layout, backend.interpret, Entry(latents, None, k_rope), raw)
    return parts, store.replace(c_kv=kept.k[:, :, 0], k_rope=kept.k_rope)


def _over_int8_latents(
    cfg: ModelConfig,
    backend: Backend,
    weights: ServingLayer,
    y: jax.Array,
    start: jax.Array,
    turn: jax.Array | None,
    store: cache.LatentCache,
) -> tuple[Parts, cache.LatentCache]:
    """As `_over_latents`, but XLA makes, quantises and writes the new entry: its scale is a maximum over all of it."""
    batch, heads, rank, rope = y.shape[0], cfg.n_heads, cfg.kv_lora_rank, cfg.qk_rope_head_dim
    latents = y[:, : (heads + 1) * rank].reshape(batch, heads + 1, rank)
    rotary = _turned_columns(cfg, y, turn) if rope else None
    c_kv, k_rope = latents[:, heads:], rotary[:, heads:] if rope else None
    if weights.latent_gain is not None:
        c_kv = functions.rms_norm(c_kv, weights.latent_gain)
    store = cache.write(store, cache.LatentCache(c_kv, k_rope), start)
    blocks = blocks_lib.choose(rank + rope, True, batch, 1, store.c_kv.shape[1])
    operands = Operands(latents, rotary, store.c_kv[:, :, None], None, store.k_rope, store.scale, None, start + 1)
    parts, _ = flash_decode(operands, cfg.qk_head_dim**-0.5, blocks, Layout(1, heads), backend.interpret)
    return parts, store


def _over_heads(
    cfg: ModelConfig, backend: Backend, y: jax.Array, start: jax.Array, turn: jax.Array | None, store: cache.HeadCache
) -> tuple[Parts, cache.HeadCache]:
    batch, heads, groups, width = y.shape[0], cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
    rows = q_and_k = y.reshape(batch, -1, width)
    impl = heads_impl(cfg, backend, batch, store.k.dtype)
    raw, kernel = Raw(), impl == "pallas"
    if turn is not None and kernel and rotates(width) and batch <= row_linear.MAX_ROWS:
        raw = Raw(turn)
    elif turn is not None:  # in the kernel it would halve the keys' contiguous reads
        q_and_k = _turned(rows[:, : heads + groups], turn)
    if not kernel:
        q, k = q_and_k[:, None, :heads], q_and_k[:, None, heads : heads + groups]
        new = cache.HeadCache(k, rows[:, None, heads + groups :])
        by = dataclasses.replace(backend, decode_impl=impl)
        out, store = decode_attention.over_heads(q, new, store, start, width**-0.5, by)
        return (out.reshape(1, batch, groups, heads // groups, width), None, None), store
    layout = Layout(groups, heads // groups, k=heads, v=heads + groups)
    blocks = blocks_lib.choose(2 * width, False, batch, groups, store.k.shape[1])
    operands = Operands(q_and_k, None, store.k, store.v, None, None, None, start)
    entry = Entry(q_and_k, rows, None)
    parts, kept = flash_decode(operands, width**-0.5, blocks, layout, backend.interpret, entry, raw)
    return parts, store.replace(k=kept.k, v=kept.v)


def _turned_columns(cfg: ModelConfig, y: jax.Array, turn: jax.Array) -> jax.Array:
    """The rotary columns of y, behind its latents, by `angles` -> [B, H + 1, R]: the queries', then the new key's."""
    heads, rope = cfg.n_heads, cfg.qk_rope_head_dim
    at = (heads + 1) * cfg.kv_lora_rank
    return _turned(y[:, at : at + (heads + 1) * rope].reshape(y.shape[0], heads + 1, rope), turn)


def _turned(x: jax.Array, turn: jax.Array) -> jax.Array:
    """x [B, H, W] by `angles` [B, W], by XLA."""
    cos, sin = jnp.split(turn[:, None], 2, axis=-1)
    return functions.apply_rope(x[:, None], cos, sin)[:, 0]
