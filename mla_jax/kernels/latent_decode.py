"""Decode attention over a joint latent cache: absorbed MLA (DeepSeek-V2, arXiv 2405.04434, section 2.1).

All heads share one latent a position, which is key and value at once: it is read once (plain XLA reads it twice).
"""

import chex
import jax
import jax.numpy as jnp

from mla_jax.kernels import blocks as blocks_lib
from mla_jax.kernels.flash_decode import MASKED, Blocks, Operands, flash_decode


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
) -> jax.Array:
    """One query per row over its latents -> [B, H, C] in q's dtype.

    q_latent [B, H, C]: q_nope w_uk; q_rope [B, H, R] or None, rotated; c_kv [B, S, C]; k_rope [B, S, R] or None,
    rotated; lengths [B] int32: positions that count, 1..S (those past it are not read).
    scale [B, S] float32: of c_kv where it is int8. blocks: None = `blocks.choose`.
    """
    chex.assert_rank([q_latent, c_kv, lengths], [3, 3, 1])
    batch, _, rank = q_latent.shape
    rope = 0 if q_rope is None else q_rope.shape[-1]
    blocks = blocks or blocks_lib.choose(rank + rope, scale is not None, batch, 1, c_kv.shape[1])
    rope_operand = None if q_rope is None else q_rope[:, None]
    operands = Operands(q_latent[:, None], rope_operand, c_kv[:, :, None], None, k_rope, scale, None, lengths)
    return flash_decode(operands, softmax_scale, blocks, interpret)[:, 0]


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
