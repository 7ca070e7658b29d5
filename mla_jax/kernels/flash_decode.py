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
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels.new_entry import Newest, angles_of, rotary_pieces, rotated
from mla_jax.kernels.operands import MIN_BLOCK, Blocks, Entry, Layout, Operands, Raw, addressable, pieces

MASKED = -1e30  # finite, so that a difference of two is not NaN


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
    width = (operands.k if operands.v is None else operands.v).shape[-1]
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
    program = functools.partial(_program, blocks=blocks, layout=layout, head_block=head_block, log2_scale=log2_scale)
    out, top, total, cache = pl.pallas_call(
        program,
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


def _program(
    refs: Operands,
    new: Entry | None,
    raw: Raw,
    out_ref: Any,
    top_ref: Any,
    total_ref: Any,
    cache: Entry | None,
    *,
    blocks: Blocks,
    layout: Layout,
    head_block: int,
    log2_scale: float,
) -> None:
    """One program of the grid (split, row, group and block of heads). log2_scale: of the scores, for exp2."""
    heads, key_width = layout.heads, refs.q.shape[-1]
    head_blocks = pl.cdiv(heads, head_block)
    split, row, lane = (pl.program_id(axis) for axis in range(3))
    group = lane if head_blocks == 1 else lane // head_blocks
    first_head = lane * 0 if head_blocks == 1 else (lane % head_blocks) * head_block
    head_slice = pl.ds(first_head, head_block)
    head_valid = (first_head + jnp.arange(head_block)) < heads

    load = functools.partial(_load, lane * 0)
    first_row = group * heads + first_head
    angles = angles_of(raw, row, lane * 0)
    turned = raw.turn is not None
    rope_width = 0 if refs.q_rope is None else refs.q_rope.shape[-1]
    key_pieces, rope_pieces = (
        rotary_pieces(width) if turned and last else pieces(width)
        for width, last in ((key_width, not rope_width), (rope_width, True))
    )
    q = [load(refs.q, (row, pl.ds(layout.q + first_row, head_block)), head_valid, piece) for piece in key_pieces]
    rope_rows = pl.ds(layout.q_rope + first_row, head_block)
    q_rope = [load(refs.q_rope, (row, rope_rows), head_valid, piece) for piece in rope_pieces]
    length = refs.lengths[row]
    newest = None
    if new is not None:  # all that comes from memory is asked for before anything is waited for
        write = (split == 0) if head_blocks == 1 else (split == 0) & (lane % head_blocks == 0)
        newest = Newest(refs, new, raw, cache, layout, (row, group, length), lane * 0, write, q[0].dtype)
        fetched = newest.fetch(key_pieces, rope_pieces)
    if turned:
        q, q_rope = (q, rotated(q_rope, angles)) if rope_width else (rotated(q, angles), q_rope)

    size = blocks.positions
    share = pl.cdiv(pl.cdiv(length, blocks.splits), size) * size  # of the row's own length: splits are balanced
    low = split * share
    high = jnp.minimum(low + share, length)
    value_width = key_width if refs.v is None else refs.v.shape[-1]
    late = blocks.late_sum

    def step(index: jax.Array, carry: tuple) -> tuple:
        top, total, acc = carry
        start = low + index * size
        here = pl.ds(start, size)
        valid = (start + jnp.arange(size)) < high
        keys = [load(refs.k, (row, here, group), valid, piece, q[0].dtype) for piece in key_pieces]
        values = keys
        if refs.v is not None:
            values = [load(refs.v, (row, here, group), valid, piece, q[0].dtype) for piece in pieces(value_width)]
        scores = sum(_dot(a, b, 1) for a, b in zip(q, keys, strict=True))
        k_scale = _load_scale(refs.k_scale, row, here, valid)
        v_scale = k_scale if refs.v is None else _load_scale(refs.v_scale, row, here, valid)
        if k_scale is not None:
            scores *= k_scale[None, :]
        for a, piece in zip(q_rope, rope_pieces, strict=True):
            scores += _dot(a, load(refs.k_rope, (row, here), valid, piece, a.dtype), 1)
        scores = jnp.where(valid[None, :], scores * log2_scale, MASKED)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.exp2(scores - new_top[:, None])
        shrink = jnp.exp2(top - new_top)
        total = total * shrink[:, None] + weights if late else total * shrink + jnp.sum(weights, axis=1)
        if v_scale is not None:
            weights *= v_scale[None, :]
        weights = weights.astype(values[0].dtype)
        acc = tuple(a * shrink[:, None] + _dot(weights, value, 0) for a, value in zip(acc, values, strict=True))
        return new_top, total, acc

    start = (
        jnp.full((head_block,), MASKED, jnp.float32),
        jnp.zeros((head_block, size) if late else (head_block,), jnp.float32),
        tuple(jnp.zeros((head_block, size), jnp.float32) for _, size in pieces(value_width)),
    )
    steps = jnp.maximum(pl.cdiv(high - low, size), 0)
    top, total, acc = jax.lax.fori_loop(0, steps, step, start)
    total = jnp.sum(total, axis=1) if late else total
    if newest is not None:  # one more position, of the first split; behind the loop, whose loads it would keep waiting
        values, score = newest.take(fetched, q, q_rope, key_pieces, rope_pieces, angles)
        score = jnp.where(split == 0, score * log2_scale, MASKED)
        new_top = jnp.maximum(top, score)
        weight, shrink = jnp.where(split == 0, jnp.exp2(score - new_top), 0.0), jnp.exp2(top - new_top)
        total = total * shrink + weight
        acc = tuple(a * shrink[:, None] + weight[:, None] * v[None, :] for a, v in zip(acc, values, strict=True))
        top = new_top

    scale = 1.0 / jnp.maximum(total, 1e-30)
    for value, (offset, width) in zip(acc, pieces(value_width), strict=True):
        column = lane * 0 + offset
        mask = head_valid[:, None] & ((column + jnp.arange(width)) < value_width)[None, :]
        target = out_ref.at[split, row, group, head_slice, pl.ds(column, width)]
        plgpu.store(target, (value * scale[:, None]).astype(out_ref.dtype), mask=mask)
    plgpu.store(top_ref.at[split, row, group, head_slice], top, mask=head_valid)
    plgpu.store(total_ref.at[split, row, group, head_slice], total, mask=head_valid)


def _load(
    zero: jax.Array, ref: Any, where: tuple, valid: jax.Array, piece: tuple[int, int], dtype: Any = None
) -> jax.Array:
    """A block [rows, piece] of ref, zeros where `valid` [rows] is false or the piece reaches past the width.

    zero: a traced 0, since Pallas refuses a constant slice past the end, which the mask makes safe.
    """
    width = ref.shape[-1]
    offset, size = piece
    mask = valid[:, None]
    if offset + size > width:
        mask = mask & ((offset + jnp.arange(size)) < width)[None, :]
    block = plgpu.load(ref.at[(*where, pl.ds(zero + offset, size))], mask=mask, other=jnp.zeros((), ref.dtype))
    return block if dtype is None or block.dtype == dtype else block.astype(dtype)


def _load_scale(ref: Any, row: jax.Array, here: Any, valid: jax.Array) -> jax.Array | None:
    return None if ref is None else plgpu.load(ref.at[row, here], mask=valid, other=0.0)


def _dot(a: jax.Array, b: jax.Array, contract: int) -> jax.Array:
    """a [M, K] times b, whose axis `contract` is K -> float32. float32 operands keep float32 precision."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((1,), (contract,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)
