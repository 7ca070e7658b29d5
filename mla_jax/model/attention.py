"""Scaled dot-product attention: the one home of masks, positions and of the choice between cuDNN and plain XLA.

Shapes: q [B, T, H, K], k [B, S, G, K], v [B, S, G, V]; G divides H (head h reads group h // (H/G)).
"""

import functools

import chex
import jax
import jax.numpy as jnp
from flax import struct

from mla_jax import mesh
from mla_jax.model.backend import Backend
from mla_jax.model.functions import MASKED


@struct.dataclass
class Where:
    """Where the tokens of a forward pass stand.

    positions [B, T] int32, or None for 0..T-1 in every row (which lets tables be sliced instead of gathered).
    segment_ids [B, T] int32: attention stays inside a segment; None = one segment a row.
    """

    positions: jax.Array | None = None
    segment_ids: jax.Array | None = None

    def at(self, length: int) -> jax.Array:
        """positions as [T] or [B, T]."""
        return jnp.arange(length) if self.positions is None else self.positions


def causal_mask(where: Where, length: int) -> jax.Array:
    """[1 or B, T, T] bool: query t may see key s <= t of its own segment."""
    mask = jnp.tril(jnp.ones((length, length), bool))[None]
    if where.segment_ids is not None:
        mask = mask & (where.segment_ids[:, :, None] == where.segment_ids[:, None, :])
    return mask


def attend(q: jax.Array, k: jax.Array, v: jax.Array, where: Where, scale: float, backend: Backend) -> jax.Array:
    """Causal self-attention over one chunk -> [B, T, H, V], by the backend's implementation.

    Both implementations compute softmax in float32 (Vaswani et al. 2017, eq. 1).
    """
    chex.assert_rank([q, k, v], 4)
    chex.assert_equal_shape_prefix([q, k, v], 2)
    # Split alike, by rows and heads: cuDNN's own partitioning refuses anything else.
    q, k, v = (mesh.constrain(a, backend.mesh, mesh.BATCH, None, "tensor") for a in (q, k, v))
    length = q.shape[1]
    # cuDNN's kernels want lengths that are multiples of 8; odd ones (a prompt, an unusual window) go the plain way.
    if backend.attention_impl == "cudnn" and length % 8 == 0:
        return _attend_cudnn(q, k, v, where, scale)
    return attend_reference(q, k, v, causal_mask(where, length), scale)


def _attend_cudnn(q: jax.Array, k: jax.Array, v: jax.Array, where: Where, scale: float) -> jax.Array:
    width, value_width = q.shape[-1], v.shape[-1]
    unequal = value_width < width and width % 8 == 0 == value_width % 8 and where.segment_ids is None
    if unequal and takes_unequal_heads():
        return _attend_cudnn_unequal(q, k, v, scale)
    # cuDNN through JAX wants one head size: pad with zeros, cut the result
    wide = max(width, value_width)
    q, k, v = widened(q, wide), widened(k, wide), widened(v, wide)
    mask = None if where.segment_ids is None else causal_mask(where, q.shape[1])[:, None]
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, scale=scale, implementation="cudnn")
    return out[..., :value_width]


def widened(x: jax.Array, width: int) -> jax.Array:
    """x [..., K] with zeros up to [..., width]."""
    missing = width - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


@functools.cache
def takes_unequal_heads() -> bool:
    """Whether cuDNN here takes v of a smaller head size than k, backward too: from 9.10 on, Hopper and later.

    Measured on Hopper alone.
    """
    try:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn

        return cudnn.check_cudnn_version() >= 91000 and bool(cudnn.check_compute_capability("9.0"))
    except (ImportError, AttributeError, RuntimeError):  # JAX's own parts move; padding works everywhere
        return False


def _attend_cudnn_unequal(q: jax.Array, k: jax.Array, v: jax.Array, scale: float) -> jax.Array:
    # JAX has it, but not behind `jax.nn` yet. Size m, MLA+RoPE, 128 x 512 on an H200: 42.8 ms a step, padded 44.7.
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    return cudnn.dot_product_attention(q, k, v, scale=scale, mask_type=cudnn.MaskType.CAUSAL)


def attend_reference(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, scale: float) -> jax.Array:
    """Plain XLA attention -> [B, T, H, V]. mask [1 or B, T, S] bool; softmax in float32."""
    heads, groups = q.shape[2], k.shape[2]
    q = q.reshape(*q.shape[:2], groups, heads // groups, q.shape[-1])
    logits = jnp.einsum("btgqk,bsgk->bgqts", q, k, preferred_element_type=jnp.float32) * scale
    logits = jnp.where(mask[:, None, None], logits, MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum("bgqts,bsgv->btgqv", weights, v)
    return out.reshape(*out.shape[:2], heads, v.shape[-1])


def visible(start: jax.Array, length: int, cache_length: int) -> jax.Array:
    """[B, T, S] bool: the query at position start + t sees cache positions up to its own."""
    position = start[:, None] + jnp.arange(length)
    return jnp.arange(cache_length) <= position[..., None]


def largest_logit(q: jax.Array, k: jax.Array, where: Where, scale: float) -> jax.Array:
    """The largest attention logit of each head in the first row, float32 [H]: one row tells of divergence as all do.

    Costs nothing where its result is not used: XLA removes it.
    """
    heads, groups = q.shape[2], k.shape[2]
    first = q[:1].reshape(1, q.shape[1], groups, heads // groups, q.shape[-1])
    logits = jnp.einsum("btgqk,bsgk->bgqts", first, k[:1], preferred_element_type=jnp.float32) * scale
    row = Where(segment_ids=None if where.segment_ids is None else where.segment_ids[:1])
    seen = jnp.where(causal_mask(row, q.shape[1])[:, None, None], logits, -jnp.inf)
    return jnp.max(seen, axis=(0, 3, 4)).reshape(heads)
