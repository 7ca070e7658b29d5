"""Decode attention over a joint latent cache: absorbed MLA (DeepSeek-V2, arXiv 2405.04434, section 2.1).

All heads share one latent a position, which is key and value at once: it is read once (plain XLA reads it twice).
"""

import chex
import jax
import jax.numpy as jnp

from mla_jax.kernels import blocks as blocks_lib
from mla_jax.kernels.flash_decode import combine, flash_decode
from mla_jax.kernels.operands import Blocks, Entry, Layout, Operands
from mla_jax.model.functions import MASKED


def latent_decode(
    q_latent: jax.Array,
    q_rope: jax.Array | None,
    c_kv: jax.Array,
    k_rope: jax.Array | None,
    lengths: jax.Array,
    softmax_scale: float,
    scale: jax.Array | None = None,
    blocks: Blocks | None = None,
    interpret: bool = False,
    new: tuple[jax.Array, jax.Array | None] | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """One query per row over its latents -> [B, H, C] in q's dtype, c_kv, k_rope.

    q_latent [B, H, C]: q_nope w_uk; q_rope [B, H, R] or None, rotated; c_kv [B, S, C]; k_rope [B, S, R] or None,
    rotated; lengths [B] int32: positions that count, 1..S (those past it are not read).
    scale [B, S] float32: of c_kv where it is int8. blocks: None = `blocks.choose`.
    new: (c_kv [B, C], k_rope [B, R] | None) of position `lengths`, which may then be 0..S-1: written into the cache
    that is returned, in place, and attended to. Without it the cache comes back as it was.
    """
    chex.assert_rank([q_latent, c_kv, lengths], [3, 3, 1])
    batch, _, rank = q_latent.shape
    rope = 0 if q_rope is None else q_rope.shape[-1]
    blocks = blocks or blocks_lib.choose(rank + rope, scale is not None, batch, 1, c_kv.shape[1])
    operands = Operands(q_latent, q_rope, c_kv[:, :, None], None, k_rope, scale, None, lengths)
    entry = None if new is None else Entry(new[0][:, None], None, None if new[1] is None else new[1][:, None])
    layout = Layout(1, q_latent.shape[1])
    parts, cache = flash_decode(operands, softmax_scale, blocks, layout, interpret, entry)
    out = combine(*parts)[:, 0].astype(q_latent.dtype)
    return (out, c_kv, k_rope) if cache is None else (out, cache.k[:, :, 0], cache.k_rope)


def latent_decode_reference(
    q_latent: jax.Array,
    q_rope: jax.Array | None,
    c_kv: jax.Array,
    k_rope: jax.Array | None,
    lengths: jax.Array,
    softmax_scale: float,
    scale: jax.Array | None = None,
) -> jax.Array:
    """The plain twin of `latent_decode`, in float32 with full precision -> [B, H, C] in q's dtype."""
    precision = jax.lax.Precision.HIGHEST
    q32, c32 = q_latent.astype(jnp.float32), c_kv.astype(jnp.float32)
    if scale is not None:
        c32 = c32 * scale[..., None]
    scores = jnp.einsum("bhc,bsc->bhs", q32, c32, precision=precision)
    if q_rope is not None:
        rotated = jnp.einsum("bhr,bsr->bhs", q_rope, k_rope, precision=precision, preferred_element_type=jnp.float32)
        scores += rotated
    valid = jnp.arange(c_kv.shape[1]) < lengths[:, None]
    weights = jax.nn.softmax(jnp.where(valid[:, None], scores * softmax_scale, MASKED), axis=-1)
    return jnp.einsum("bhs,bsc->bhc", weights, c32, precision=precision).astype(q_latent.dtype)
