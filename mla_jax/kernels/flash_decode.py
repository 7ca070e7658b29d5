"""The engine of both decode kernels: attention of one query per row over its cache, in one pass (Pallas, Triton).

One program takes one row, one block of query heads that share keys, and one part ("split") of the row's positions.
It walks over them with an online softmax in float32 (Milakov & Gimelshein 2018) and writes an unnormalised result
with its maximum and sum, which `combine` joins (Flash-Decoding, Dao et al. 2023). Positions at and past a row's
length are not loaded. With `v=None` the loaded keys are also the values: that is what makes a latent cache cheap.

Triton takes blocks whose sizes are powers of two, so widths are cut into such pieces of at least 16 (`pieces`).
jax.experimental.pallas.triton is deprecated as of JAX 0.11 in favour of Mosaic GPU, which needs sm90: this one runs
from sm80 on.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

MASKED = -1e30  # finite, so that a difference of two is not NaN
_MIN_BLOCK = 16  # the smallest side of a tensor-core product
_MAX_INT32 = 2**31 - 1  # Pallas' Triton lowering counts elements in 32 bits


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How the work is cut. positions: cache positions per step of a program, a power of two from 16 on; splits:
    programs that share a row; warps, stages: of a program, and of its software pipeline."""

    positions: int
    splits: int
    warps: int
    stages: int


@struct.dataclass
class Operands:
    """B rows, G groups of Q query heads, S positions; widths K (keys), V (values), R (rotary).

    q [B, G, Q, K], q_rope [B, G, Q, R] | None, k [B, S, G, K], v [B, S, G, V] | None (then the values are the keys),
    k_rope [B, S, R] | None (all heads share it), k_scale and v_scale [B, S] float32 | None (of int8 k and v; one that
    is both k and v has k_scale only), lengths [B] int32: how many positions of a row count.
    """

    q: jax.Array
    q_rope: jax.Array | None
    k: jax.Array
    v: jax.Array | None
    k_rope: jax.Array | None
    k_scale: jax.Array | None
    v_scale: jax.Array | None
    lengths: jax.Array


@struct.dataclass
class Entry:
    """What the newest position of each row adds to the cache: k [B, G, K], v [B, G, V] | None, k_rope [B, R] | None."""

    k: jax.Array
    v: jax.Array | None
    k_rope: jax.Array | None


def pieces(width: int) -> list[tuple[int, int]]:
    """`width` as [(offset, size)]: sizes are powers of two, none below 16. Only the last may reach past the width."""
    found, offset = [], 0
    while offset < width:
        size = max(_MIN_BLOCK, 1 << ((width - offset).bit_length() - 1))
        found.append((offset, size))
        offset += size
    return found


def fits(operands: Operands) -> bool:
    """Whether every array can be addressed by the kernel (fewer than 2^31 elements)."""
    return all(math.prod(leaf.shape) <= _MAX_INT32 for leaf in jax.tree.leaves(operands))


def flash_decode(
    operands: Operands, softmax_scale: float, blocks: Blocks, interpret: bool = False, new: Entry | None = None
) -> tuple[jax.Array, Entry | None]:
    """softmax(softmax_scale * q k^T) v -> [B, G, Q, V] in q's dtype (V = K when v is None), and the cache.

    new: an entry for position `lengths` [B] of each row, which the kernel writes into the cache in place (its arrays
    k, v, k_rope are returned, and those given are to be forgotten) and attends to as well: one launch where a write
    beforehand takes one more for each array. Not for int8 caches.
    `interpret` runs the kernel as plain JAX, which is what a CPU can do.

    A row of length 0 gives zeros. Raises ValueError for arrays of 2^31 elements or more.
    """
    if not fits(operands):
        raise ValueError("flash_decode: an array has 2^31 elements or more, which its 32-bit addresses cannot reach")
    batch, groups, heads, _ = operands.q.shape
    width = (operands.k if operands.v is None else operands.v).shape[-1]
    head_block = min(64, max(_MIN_BLOCK, pl.next_power_of_2(heads)))
    head_blocks = pl.cdiv(heads, head_block)
    splits = blocks.splits
    dtype = operands.q.dtype
    log2_scale = softmax_scale * math.log2(math.e)  # exp2 is the instruction that the hardware has
    shapes = [
        jax.ShapeDtypeStruct((splits, batch, groups, heads, width), dtype if splits == 1 else jnp.float32),
        jax.ShapeDtypeStruct((splits, batch, groups, heads), jnp.float32),
        jax.ShapeDtypeStruct((splits, batch, groups, heads), jnp.float32),
    ]
    cache = None if new is None else Entry(operands.k, operands.v, operands.k_rope)
    shapes.append(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), cache))
    out, top, total, cache = pl.pallas_call(
        functools.partial(_program, blocks=blocks, head_block=head_block, log2_scale=log2_scale),
        out_shape=shapes,
        # The last axis runs fastest: programs that read neighbouring heads of one row run together.
        grid=(splits, batch, groups * head_blocks),
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        input_output_aliases=_aliases(operands, cache),
        interpret=interpret,
        name="flash_decode",
    )(operands, new)
    return (out[0] if splits == 1 else combine(out, top, total).astype(dtype)), cache


def _aliases(operands: Operands, cache: Entry | None) -> dict[int, int]:
    """Flat input -> flat output: the arrays of the cache are updated in place."""
    if cache is None:
        return {}
    first = 1 if operands.q_rope is None else 2  # behind q and q_rope come k, v, k_rope, as in `cache`
    return {first + place: 3 + place for place in range(len(jax.tree.leaves(cache)))}


def combine(out: jax.Array, top: jax.Array, total: jax.Array) -> jax.Array:
    """Join splits: unnormalised out [P, ..., V], maxima (in powers of two) and sums [P, ...] -> [..., V] float32."""
    weight = jnp.exp2(top - jnp.max(top, axis=0))
    denominator = jnp.sum(weight * total, axis=0)
    return jnp.sum(weight[..., None] * out, axis=0) / jnp.maximum(denominator, 1e-30)[..., None]


def _program(
    refs: Operands,
    new: Entry | None,
    out_ref: Any,
    top_ref: Any,
    total_ref: Any,
    cache: Entry | None,
    *,
    blocks: Blocks,
    head_block: int,
    log2_scale: float,
) -> None:
    """One program of the grid (split, row, group and block of heads). log2_scale: of the scores, for exp2."""
    groups, heads, key_width = refs.q.shape[1:]
    head_blocks = pl.cdiv(heads, head_block)
    split, row, lane = (pl.program_id(axis) for axis in range(3))
    group = lane if head_blocks == 1 else lane // head_blocks
    first_head = lane * 0 if head_blocks == 1 else (lane % head_blocks) * head_block
    head_slice = pl.ds(first_head, head_block)
    head_valid = (first_head + jnp.arange(head_block)) < heads

    load = functools.partial(_load, lane * 0)
    q = [load(refs.q, (row, group, head_slice), head_valid, piece) for piece in pieces(key_width)]
    rope_width = 0 if refs.q_rope is None else refs.q_rope.shape[-1]
    q_rope = [load(refs.q_rope, (row, group, head_slice), head_valid, piece) for piece in pieces(rope_width)]

    size = blocks.positions
    length = refs.lengths[row]
    share = pl.cdiv(pl.cdiv(length, blocks.splits), size) * size  # of the row's own length: splits are balanced
    low = split * share
    high = jnp.minimum(low + share, length)
    value_width = key_width if refs.v is None else refs.v.shape[-1]

    def step(index: jax.Array, carry: tuple) -> tuple:
        top, total, acc = carry
        start = low + index * size
        here = pl.ds(start, size)
        valid = (start + jnp.arange(size)) < high
        keys = [load(refs.k, (row, here, group), valid, piece, q[0].dtype) for piece in pieces(key_width)]
        values = keys
        if refs.v is not None:
            values = [load(refs.v, (row, here, group), valid, piece, q[0].dtype) for piece in pieces(value_width)]
        scores = sum(_dot(a, b, 1) for a, b in zip(q, keys, strict=True))
        k_scale = _load_scale(refs.k_scale, row, here, valid)
        v_scale = k_scale if refs.v is None else _load_scale(refs.v_scale, row, here, valid)
        if k_scale is not None:
            scores *= k_scale[None, :]
        for a, piece in zip(q_rope, pieces(rope_width), strict=True):
            scores += _dot(a, load(refs.k_rope, (row, here), valid, piece, a.dtype), 1)
        scores = jnp.where(valid[None, :], scores * log2_scale, MASKED)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.exp2(scores - new_top[:, None])
        shrink = jnp.exp2(top - new_top)
        total = total * shrink + jnp.sum(weights, axis=1)
        if v_scale is not None:
            weights *= v_scale[None, :]
        weights = weights.astype(values[0].dtype)
        acc = tuple(a * shrink[:, None] + _dot(weights, value, 0) for a, value in zip(acc, values, strict=True))
        return new_top, total, acc

    start = (
        jnp.full((head_block,), MASKED, jnp.float32),
        jnp.zeros((head_block,), jnp.float32),
        tuple(jnp.zeros((head_block, size), jnp.float32) for _, size in pieces(value_width)),
    )
    if new is not None:
        first = split == 0  # this split's programs have the newest position, from registers
        write = first if head_blocks == 1 else first & (lane % head_blocks == 0)
        values, score = _take_new(refs, new, cache, q, q_rope, (row, group, length), lane * 0, write)
        start = (
            jnp.where(first, score * log2_scale, MASKED),
            jnp.where(first, jnp.ones_like(score), 0.0),
            tuple(
                jnp.where(first, jnp.broadcast_to(v[None, :], a.shape), 0.0)
                for v, a in zip(values, start[2], strict=True)
            ),
        )
    steps = jnp.maximum(pl.cdiv(high - low, size), 0)
    top, total, acc = jax.lax.fori_loop(0, steps, step, start)

    scale = 1.0 / jnp.maximum(total, 1e-30) if blocks.splits == 1 else jnp.ones_like(total)
    for value, (offset, width) in zip(acc, pieces(value_width), strict=True):
        column = lane * 0 + offset
        mask = head_valid[:, None] & ((column + jnp.arange(width)) < value_width)[None, :]
        target = out_ref.at[split, row, group, head_slice, pl.ds(column, width)]
        plgpu.store(target, (value * scale[:, None]).astype(out_ref.dtype), mask=mask)
    plgpu.store(top_ref.at[split, row, group, head_slice], top, mask=head_valid)
    plgpu.store(total_ref.at[split, row, group, head_slice], total, mask=head_valid)


def _take_new(
    refs: Operands, new: Entry, cache: Entry, q: list, q_rope: list, where: tuple, zero: jax.Array, write: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """Write the newest position's entry into the cache (where `write`) -> its value pieces and scores, float32.

    where: row, group, position. What is attended to is what the cache holds: rounded to its dtype.
    """
    row, group, position = where
    write = write & (position < refs.k.shape[1])

    def entry(ref: Any, target: Any, index: tuple, place: tuple, piece: tuple[int, int]) -> jax.Array:
        offset, size = piece
        valid = (offset + jnp.arange(size)) < ref.shape[-1]
        column = pl.ds(zero + offset, size)
        value = plgpu.load(ref.at[(*index, column)], mask=valid, other=jnp.zeros((), ref.dtype)).astype(target.dtype)
        plgpu.store(target.at[(*place, column)], value, mask=valid & write)
        return value.astype(q[0].dtype).astype(jnp.float32)

    place = (row, position, group)
    keys = [entry(new.k, cache.k, (row, group), place, piece) for piece in pieces(refs.k.shape[-1])]
    values = keys
    if new.v is not None:
        values = [entry(new.v, cache.v, (row, group), place, piece) for piece in pieces(refs.v.shape[-1])]
    if new.k_rope is not None:
        rope = pieces(refs.k_rope.shape[-1])
        keys = keys + [entry(new.k_rope, cache.k_rope, (row,), (row, position), piece) for piece in rope]
    score = sum(jnp.sum(a.astype(jnp.float32) * k[None, :], axis=1) for a, k in zip(q + q_rope, keys, strict=True))
    return values, score


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
