"""The engine of both decode kernels: attention of one query per row over its cache, in one pass (Pallas, Triton).

One program takes one row, one block of query heads that share keys, and one part ("split") of the row's positions.
It walks over them with an online softmax in float32 (Milakov & Gimelshein 2018) and writes its result with the maximum
and the sum that it was normalised by, which `combine` joins (Flash-Decoding, Dao et al. 2023). Positions at and past a
row's length are not loaded. With `v=None` the loaded keys are also the values: that is what makes a latent cache cheap.

jax.experimental.pallas.triton is deprecated as of JAX 0.11 in favour of Mosaic GPU, which needs sm90: this one runs
from sm80 on.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels.flash_program import program, value_width
from mla_jax.kernels.kernel_call import kernel_call
from mla_jax.kernels.operands import Blocks, Entry, Layout, Operands, Raw, addressable
from mla_jax.kernels.tiles import MIN_BLOCK


def flash_decode(
    operands: Operands,
    softmax_scale: float,
    blocks: Blocks,
    layout: Layout,
    interpret: bool = False,
    new: Entry | None = None,
    raw: Raw | None = None,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Entry | None]:
    """softmax(softmax_scale * q k^T) v in parts ("splits") that `combine` joins, and the cache.

    Parts: out [P, B, G, Q, V] in q's dtype, each normalised, and maxima (in powers of two) and sums [P, B, G, Q]
    float32 of what it was normalised by.
    new: an entry for position `lengths` [B] of each row, which the kernel writes into the cache in place (its arrays
    k, v, k_rope are returned, and those given are to be forgotten) and attends to as well: one launch where a write
    beforehand takes one more for each array. Not for int8 caches. raw: see Raw.
    `interpret` runs the kernel as plain JAX, which is what a CPU can do.

    A row of length 0 gives zeros. Raises ValueError for arrays that are not `addressable`.
    """
    if not addressable(operands):
        raise ValueError(
            "flash_decode: an array has 2^31 to 2^32 elements of a byte, which 32-bit addresses cannot reach"
        )
    batch, groups, heads = operands.q.shape[0], layout.groups, layout.heads
    width = value_width(operands)
    head_block = min(64, max(MIN_BLOCK, pl.next_power_of_2(heads)))
    head_blocks = pl.cdiv(heads, head_block)
    splits = blocks.splits
    log2_scale = softmax_scale * math.log2(math.e)  # exp2 is the instruction that the hardware has
    shapes = [
        jax.ShapeDtypeStruct((splits, batch, groups, heads, width), operands.q.dtype),
        jax.ShapeDtypeStruct((splits, batch, groups, heads), jnp.float32),
        jax.ShapeDtypeStruct((splits, batch, groups, heads), jnp.float32),
    ]
    cache = None if new is None else Entry(operands.k, operands.v, operands.k_rope)
    shapes.append(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), cache))
    out, top, total, cache = kernel_call(
        functools.partial(program, blocks=blocks, layout=layout, head_block=head_block, log2_scale=log2_scale),
        out_shape=shapes,
        # The last axis runs fastest: programs that read neighbouring heads of one row run together.
        grid=(splits, batch, groups * head_blocks),
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        input_output_aliases=_aliases(operands, cache),
        interpret=interpret,
        name="flash_decode",
    )(operands, new, raw or Raw())
    return (out, top, total), cache


def _aliases(operands: Operands, cache: Entry | None) -> dict[int, int]:
    """Flat input -> flat output: the arrays of the cache are updated in place."""
    if cache is None:
        return {}
    first = 1 if operands.q_rope is None else 2  # behind q and q_rope come k, v, k_rope, as in `cache`
    return {first + place: 3 + place for place in range(len(jax.tree.leaves(cache)))}


def combine(out: jax.Array, top: jax.Array, total: jax.Array) -> jax.Array:
    """Join splits: out [P, ..., V], maxima (in powers of two) and sums [P, ...] -> [..., V], float32 where P > 1."""
    if out.shape[0] == 1:
        return out[0]
    weight = total * jnp.exp2(top - jnp.max(top, axis=0))
    denominator = jnp.sum(weight, axis=0)
    return jnp.sum(weight[..., None] * out, axis=0) / jnp.maximum(denominator, 1e-30)[..., None]
