"""Decode attention over keys and values of their own: MHA, GQA, and per-head latents after folding.

The baseline that latent attention is measured against, so it gets the same engine.
"""

import chex
import jax
import jax.numpy as jnp

from mla_jax.kernels import blocks as blocks_lib
from mla_jax.kernels.flash_decode import combine, flash_decode
from mla_jax.kernels.operands import Blocks, Entry, Layout, Operands
from mla_jax.model.functions import MASKED


def head_decode(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array,
    softmax_scale: float,
    q_rope: jax.Array | None = None,
    k_rope: jax.Array | None = None,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
    blocks: Blocks | None = None,
    interpret: bool = False,
    new: Entry | None = None,
) -> tuple[jax.Array, Entry]:
    """One query per row over its cache -> [B, H, V] in q's dtype, and the cache (k, v, k_rope).

    q [B, H, K]; k [B, S, G, K]; v [B, S, G, V]; head h reads group h // (H/G); lengths [B] int32: positions that
    count, 1..S. q_rope [B, H, R], k_rope [B, S, R]: a rotary part that all groups share (decoupled RoPE with per-head
    latents), or None. k_scale, v_scale [B, S] float32: of k and v where they are int8. blocks: None = `blocks.choose`.
    new: k [B, G, K], v [B, G, V], k_rope [B, R] | None of position `lengths`, which may then be 0..S-1: written into
    the cache that is returned, in place, and attended to. Without it the cache comes back as it was.
    """
    chex.assert_rank([q, k, v, lengths], [3, 4, 4, 1])
    batch, heads, width = q.shape
    groups, capacity = k.shape[2], k.shape[1]
    rope = 0 if q_rope is None else q_rope.shape[-1]
    blocks = blocks or blocks_lib.choose(width + v.shape[-1] + rope, k_scale is not None, batch, groups, capacity)

    operands = Operands(q, q_rope, k, v, k_rope, k_scale, v_scale, lengths)
    if new is not None and new.k_rope is not None:
        new = new.replace(k_rope=new.k_rope[:, None])
    parts, cache = flash_decode(operands, softmax_scale, blocks, Layout(groups, heads // groups), interpret, new)
    out = combine(*parts).astype(q.dtype)
    return out.reshape(batch, heads, v.shape[-1]), cache or Entry(k, v, k_rope)


def head_decode_reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lengths: jax.Array,
    softmax_scale: float,
    q_rope: jax.Array | None = None,
    k_rope: jax.Array | None = None,
    k_scale: jax.Array | None = None,
    v_scale: jax.Array | None = None,
) -> jax.Array:
    """The plain twin of `head_decode`, in float32 with full precision -> [B, H, V] in q's dtype."""
    precision = jax.lax.Precision.HIGHEST
    repeats = q.shape[1] // k.shape[2]
    k32, v32 = (jnp.repeat(a.astype(jnp.float32), repeats, axis=2) for a in (k, v))
    k32 = k32 if k_scale is None else k32 * k_scale[:, :, None, None]
    v32 = v32 if v_scale is None else v32 * v_scale[:, :, None, None]
    scores = jnp.einsum("bhk,bshk->bhs", q.astype(jnp.float32), k32, precision=precision)
    if q_rope is not None:
        rotated = jnp.einsum("bhr,bsr->bhs", q_rope, k_rope, precision=precision, preferred_element_type=jnp.float32)
        scores += rotated
    valid = jnp.arange(k.shape[1]) < lengths[:, None]
    weights = jax.nn.softmax(jnp.where(valid[:, None], scores * softmax_scale, MASKED), axis=-1)
    return jnp.einsum("bhs,bshv->bhv", weights, v32, precision=precision).astype(q.dtype)
