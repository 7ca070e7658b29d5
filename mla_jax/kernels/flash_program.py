"""What one program of the decode kernels does (Pallas, Triton): see flash_decode.py, which launches it.

It loads the queries of a block of heads, asks for the newest entry, walks over its part of the positions, adds the
newest one, and writes. Triton keeps loads in the order that is written here.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels.new_entry import Newest, angles_of, rotary_pieces, rotated
from mla_jax.kernels.operands import Blocks, Entry, Layout, Operands, Raw
from mla_jax.kernels.tiles import dot, pieces
from mla_jax.model.functions import MASKED


def value_width(refs: Operands) -> int:
    """Of the values, which are the keys where there are no others."""
    return (refs.k if refs.v is None else refs.v).shape[-1]


def program(
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
    place = _Place.of_program(layout.heads, head_block)
    angles = angles_of(raw, place.row, place.zero)
    cuts = _cuts(refs, raw)
    queries = _load_queries(refs, layout, place, cuts)
    length = refs.lengths[place.row]
    newest = None
    if new is not None:  # all that comes from memory is asked for before anything is waited for
        write, where = place.writes_entry(), (place.row, place.group, length)
        newest = Newest(refs, new, raw, cache, layout, where, place.zero, write, queries.q[0].dtype)
        fetched = newest.fetch(*cuts)
    if raw.turn is not None:
        q, q_rope = queries
        queries = _Queries(q, rotated(q_rope, angles)) if q_rope else _Queries(rotated(q, angles), q_rope)
    softmax = _walk(refs, place, length, queries, cuts, blocks, log2_scale)
    if newest is not None:  # one more position, of the first split; behind the loop, whose loads it would keep waiting
        values, score = newest.take(fetched, *queries, *cuts, angles)
        softmax = _with_newest(softmax, values, score, place.split, log2_scale)
    _write(place, softmax, out_ref, top_ref, total_ref)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a program is: its split of the positions, row, group, and block of the group's query heads.

    lane: the grid's last axis, groups and blocks of heads in one; head_blocks: of a group; heads: where the block lies
    among the group's heads; head_valid [Hb] bool: which of its heads there are; first_head: the first one, counted over
    all groups; load: `_load` with its zero.
    """

    split: jax.Array
    row: jax.Array
    lane: jax.Array
    group: jax.Array
    head_blocks: int
    heads: pl.Slice
    head_valid: jax.Array
    load: Callable[..., jax.Array]
    first_head: jax.Array

    @classmethod
    def of_program(cls, heads: int, head_block: int) -> "_Place":
        """heads: of a group."""
        head_blocks = pl.cdiv(heads, head_block)
        split, row, lane = (pl.program_id(axis) for axis in range(3))
        group = lane if head_blocks == 1 else lane // head_blocks
        first = lane * 0 if head_blocks == 1 else (lane % head_blocks) * head_block
        valid = (first + jnp.arange(head_block)) < heads
        load = functools.partial(_load, lane * 0)
        return cls(split, row, lane, group, head_blocks, pl.ds(first, head_block), valid, load, group * heads + first)

    @property
    def zero(self) -> jax.Array:
        """A traced 0 (see `_load`)."""
        return self.lane * 0

    def writes_entry(self) -> jax.Array:
        """Whether this is the one program of a row and group that writes the newest entry into the cache."""
        first_split = self.split == 0
        return first_split if self.head_blocks == 1 else first_split & (self.lane % self.head_blocks == 0)


class _Queries(NamedTuple):
    """Pieces [Hb, W_i] of the queries of a block of heads, and of their rotary part: as keys are cut."""

    q: list[jax.Array]
    q_rope: list[jax.Array]


class _Softmax(NamedTuple):
    """An online softmax: maxima [Hb] of the scores (in powers of two); sums [Hb] (or, under way, [Hb, positions]) of
    2^(score - maximum); the values' sums [Hb, V_i] with these weights. All float32."""

    top: jax.Array
    total: jax.Array
    acc: tuple[jax.Array, ...]


def _cuts(refs: Operands, raw: Raw) -> tuple[list, list]:
    """The pieces of keys and of rotary keys; those of what is rotated here are cut in halves alike."""
    rope_width = 0 if refs.q_rope is None else refs.q_rope.shape[-1]
    rotated_keys, rotated_rope = raw.turn is not None and not rope_width, raw.turn is not None
    key_width = refs.q.shape[-1]
    return (
        rotary_pieces(key_width) if rotated_keys else pieces(key_width),
        rotary_pieces(rope_width) if rotated_rope else pieces(rope_width),
    )


def _load_queries(refs: Operands, layout: Layout, place: _Place, cuts: tuple[list, list]) -> _Queries:
    head_block = place.head_valid.shape[0]
    row, load, valid = place.row, place.load, place.head_valid
    q = [load(refs.q, (row, pl.ds(layout.q + place.first_head, head_block)), valid, piece) for piece in cuts[0]]
    rope_rows = pl.ds(layout.q_rope + place.first_head, head_block)
    return _Queries(q, [load(refs.q_rope, (row, rope_rows), valid, piece) for piece in cuts[1]])


def _walk(
    refs: Operands,
    place: _Place,
    length: jax.Array,
    queries: _Queries,
    cuts: tuple[list, list],
    blocks: Blocks,
    log2_scale: float,
) -> _Softmax:
    """Attention to the positions of this split, block by block."""
    size, head_block = blocks.positions, place.head_valid.shape[0]
    share = pl.cdiv(pl.cdiv(length, blocks.splits), size) * size  # of the row's own length: splits are balanced
    low = place.split * share
    high = jnp.minimum(low + share, length)

    def step(index: jax.Array, softmax: _Softmax) -> _Softmax:
        start = low + index * size
        valid = (start + jnp.arange(size)) < high
        scores, values, v_scale = _scores(refs, place, queries, cuts, pl.ds(start, size), valid)
        scores = jnp.where(valid[None, :], scores * log2_scale, MASKED)
        return _added(softmax, scores, values, v_scale, blocks.late_sum)

    begin = _Softmax(
        jnp.full((head_block,), MASKED, jnp.float32),
        jnp.zeros((head_block, size) if blocks.late_sum else (head_block,), jnp.float32),
        tuple(jnp.zeros((head_block, width), jnp.float32) for _, width in pieces(value_width(refs))),
    )
    steps = jnp.maximum(pl.cdiv(high - low, size), 0)
    softmax = jax.lax.fori_loop(0, steps, step, begin)
    return softmax._replace(total=jnp.sum(softmax.total, axis=1)) if blocks.late_sum else softmax


def _scores(
    refs: Operands, place: _Place, queries: _Queries, cuts: tuple[list, list], here: pl.Slice, valid: jax.Array
) -> tuple[jax.Array, list[jax.Array], jax.Array | None]:
    """Of the positions `here`: scores [Hb, S'] without scale and mask, value pieces [S', V_i], and the values' scale.

    valid [S'] bool: which positions are loaded.
    """
    row, group, load, dtype = place.row, place.group, place.load, queries.q[0].dtype
    keys = [load(refs.k, (row, here, group), valid, piece, dtype) for piece in cuts[0]]
    values = keys
    if refs.v is not None:
        values = [load(refs.v, (row, here, group), valid, piece, dtype) for piece in pieces(refs.v.shape[-1])]
    scores = sum(dot(a, b, 1) for a, b in zip(queries.q, keys, strict=True))
    k_scale = _load_scale(refs.k_scale, row, here, valid)
    v_scale = k_scale if refs.v is None else _load_scale(refs.v_scale, row, here, valid)
    if k_scale is not None:
        scores *= k_scale[None, :]
    for a, piece in zip(queries.q_rope, cuts[1], strict=True):
        scores += dot(a, load(refs.k_rope, (row, here), valid, piece, a.dtype), 1)
    return scores, values, v_scale


def _added(
    softmax: _Softmax, scores: jax.Array, values: list[jax.Array], v_scale: jax.Array | None, late_sum: bool
) -> _Softmax:
    """The softmax with one more block of positions. late_sum: weights stay apart, to be summed at the end."""
    top, total, acc = softmax
    new_top = jnp.maximum(top, jnp.max(scores, axis=1))
    weights = jnp.exp2(scores - new_top[:, None])
    shrink = jnp.exp2(top - new_top)
    total = total * shrink[:, None] + weights if late_sum else total * shrink + jnp.sum(weights, axis=1)
    if v_scale is not None:
        weights *= v_scale[None, :]
    weights = weights.astype(values[0].dtype)
    acc = tuple(a * shrink[:, None] + dot(weights, value) for a, value in zip(acc, values, strict=True))
    return _Softmax(new_top, total, acc)


def _with_newest(
    softmax: _Softmax, values: list[jax.Array], score: jax.Array, split: jax.Array, log2_scale: float
) -> _Softmax:
    """The softmax with the newest position, value pieces [V_i] and scores [Hb], which split 0 alone attends to."""
    top, total, acc = softmax
    score = jnp.where(split == 0, score * log2_scale, MASKED)
    new_top = jnp.maximum(top, score)
    weight, shrink = jnp.where(split == 0, jnp.exp2(score - new_top), 0.0), jnp.exp2(top - new_top)
    total = total * shrink + weight
    acc = tuple(a * shrink[:, None] + weight[:, None] * v[None, :] for a, v in zip(acc, values, strict=True))
    return _Softmax(new_top, total, acc)


def _write(place: _Place, softmax: _Softmax, out_ref: Any, top_ref: Any, total_ref: Any) -> None:
    """The split's result, normalised, and what it was normalised by."""
    top, total, acc = softmax
    split, row, group, width = place.split, place.row, place.group, out_ref.shape[-1]
    scale = 1.0 / jnp.maximum(total, 1e-30)
    for value, (offset, size) in zip(acc, pieces(width), strict=True):
        column = place.zero + offset
        mask = place.head_valid[:, None] & ((column + jnp.arange(size)) < width)[None, :]
        target = out_ref.at[split, row, group, place.heads, pl.ds(column, size)]
        plgpu.store(target, (value * scale[:, None]).astype(out_ref.dtype), mask=mask)
    plgpu.store(top_ref.at[split, row, group, place.heads], top, mask=place.head_valid)
    plgpu.store(total_ref.at[split, row, group, place.heads], total, mask=place.head_valid)


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
