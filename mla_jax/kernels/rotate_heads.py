"""RoPE between one product and attention, in one pass each way (Pallas, Triton).

A joined product leaves a matrix [rows, W]: queries and keys of MHA, or latent and rotary key of MLA. Forward,
a program reads whole rows of it and writes the arrays that attention takes: heads rotated, the latent normalised.
Backward, it reads their gradients and writes the one matrix [rows, W] that the product back wants, where XLA would
join its columns at a quarter of the memory's speed. Heads of which only an end is rotated, as MLA's queries, are
rather turned where they lie (rotate_in_place.py): the columns before it are neither read nor written.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels.kernel_call import kernel_call
from mla_jax.kernels.tiles import pieces


class Part(NamedTuple):
    """Neighbouring columns of the matrix that become an array of their own: a latent, if any, and then heads."""

    heads: int
    width: int  # of a head
    rotary: int  # columns at a head's end that are rotated, in half-split pairs (i, i + rotary/2)
    latent: int = 0  # columns before the heads: RMS-normed where there is a gain, else copied

    @property
    def columns(self) -> int:
        return self.latent + self.heads * self.width


class Blocks(NamedTuple):
    """What a program holds. One warp a program: a reduction over columns or rows never leaves it."""

    rows: int = 16  # that a program takes at a time
    warps: int = 1
    ahead: int = 2  # heads that are read before the first of them is written
    norm_rows: int = 4  # of the latent, read at a time
    steps: int = 1  # blocks of rows that a program of the backward pass adds the gain's gradient over


# Forward and backward. All columns of MLA of size m, 65,536 rows in bfloat16 on an H200 (launch/rope_tuning.py): 89 and
# 113 us; XLA takes 122 and 230. (The model leaves queries to rotate_in_place.py since.)
BLOCKS = (Blocks(ahead=4), Blocks(steps=2))


def applies(batch: int, length: int, blocks: tuple[Blocks, Blocks] = BLOCKS) -> bool:
    """Whether [batch, length, W] has a number of rows that the programs divide, each block inside one sequence."""
    return all(length % b.rows == 0 and batch * length % (b.rows * b.steps) == 0 for b in blocks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def split_and_rotate(
    y: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    gain: jax.Array | None,
    parts: tuple[Part, ...],
    eps: float,
    interpret: bool,
    blocks: tuple[Blocks, Blocks] = BLOCKS,
) -> tuple[jax.Array, ...]:
    """y [B, T, W] -> for each part, in the order of y's columns, an array [B, T, part.columns] in y's dtype.

    Args:
      cos, sin: [T, rotary/2] float32, the same for every row of the batch; not differentiated.
      gain: [latent] of the RMS norm of the one part that has a latent; None leaves the latent as it is.
    Rotation and norm are in float32. The plain twin is `plain`.
    """
    return _forward(y, cos, sin, gain, parts, eps, interpret, blocks)[0]


def plain(
    y: jax.Array, cos: jax.Array, sin: jax.Array, gain: jax.Array | None, parts: Sequence[Part], eps: float
) -> tuple[jax.Array, ...]:
    """`split_and_rotate` in plain JAX."""
    found = []
    ends = _starts(parts)[1:]
    for part, columns in zip(parts, jnp.split(y, ends, axis=-1), strict=True):
        latent, heads = jnp.split(columns.astype(jnp.float32), [part.latent], axis=-1)
        if part.latent and gain is not None:
            latent = latent * jax.lax.rsqrt(jnp.mean(latent * latent, axis=-1, keepdims=True) + eps) * gain
        heads = heads.reshape(*y.shape[:2], part.heads, part.width)
        half = part.rotary // 2
        copied, first, second = jnp.split(heads, [part.width - part.rotary, part.width - half], axis=-1)
        c, s = cos[:, None], sin[:, None]
        heads = jnp.concatenate([copied, first * c - second * s, second * c + first * s], axis=-1)
        heads = heads.reshape(*y.shape[:2], -1)
        found.append(jnp.concatenate([latent, heads], axis=-1).astype(y.dtype))
    return tuple(found)


def _forward(
    y: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    gain: jax.Array | None,
    parts: tuple[Part, ...],
    eps: float,
    interpret: bool,
    both: tuple[Blocks, Blocks],
) -> tuple[tuple[jax.Array, ...], tuple]:
    blocks, _ = both
    matrix = y.reshape(-1, y.shape[-1])
    given = () if gain is None else (gain,)
    found = kernel_call(
        functools.partial(_forward_program, parts=parts, eps=eps, blocks=blocks),
        out_shape=[jax.ShapeDtypeStruct((matrix.shape[0], part.columns), y.dtype) for part in parts],
        grid=(matrix.shape[0] // blocks.rows,),
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=1),
        interpret=interpret,
        name="rotate_heads",
    )(matrix, cos, sin, *given)
    # The norm's backward pass wants y, its latent columns alone; a copy of them would be another pass.
    kept = (None if gain is None else y, cos, sin, gain)
    return tuple(a.reshape(*y.shape[:2], -1) for a in found), kept


def _backward(
    parts: tuple[Part, ...], eps: float, interpret: bool, both: tuple[Blocks, Blocks], kept: tuple, gradients: tuple
) -> tuple:
    _, blocks = both
    y, cos, sin, gain = kept
    shape = (*gradients[0].shape[:2], sum(part.columns for part in parts))
    flat = [a.reshape(-1, a.shape[-1]) for a in gradients]
    programs = flat[0].shape[0] // (blocks.rows * blocks.steps)
    out_shape = [jax.ShapeDtypeStruct((flat[0].shape[0], shape[-1]), gradients[0].dtype)]
    given: tuple = ()
    if gain is not None:
        given = (gain, y.reshape(-1, shape[-1]))
        out_shape.append(jax.ShapeDtypeStruct((programs, gain.shape[0]), jnp.float32))
    dy, *d_gain = kernel_call(
        functools.partial(_backward_program, parts=parts, eps=eps, blocks=blocks),
        out_shape=out_shape,
        grid=(programs,),
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=1),
        interpret=interpret,
        name="rotate_heads_backward",
    )(*flat, cos, sin, *given)
    summed = None if gain is None else jnp.sum(d_gain[0], axis=0).astype(gain.dtype)
    return dy.reshape(shape), None, None, summed


split_and_rotate.defvjp(_forward, _backward)


def _forward_program(
    y_ref: Any, cos_ref: Any, sin_ref: Any, *refs: Any, parts: tuple, eps: float, blocks: Blocks
) -> None:
    gain_ref = refs[0] if len(refs) > len(parts) else None
    refs = refs[-len(parts) :]
    first = pl.program_id(0) * blocks.rows
    rows, angles = pl.ds(first, blocks.rows), row_angles(cos_ref, sin_ref, first, blocks)
    for part, start, ref in zip(parts, _starts(parts), refs, strict=True):
        move_heads(At(y_ref, rows, start + part.latent), At(ref, rows, part.latent), part, angles, blocks.ahead)
    for part, start, ref in _with_latent(parts, refs):
        for i in range(0, blocks.rows, blocks.norm_rows):
            rows = pl.ds(first + i, blocks.norm_rows)
            latent = _load(At(y_ref, rows, start), part.latent)
            if gain_ref is not None:
                latent = [a * g for a, g in zip(_normed(latent, part.latent, eps)[0], _row(gain_ref), strict=True)]
            _store(At(ref, rows, 0), part.latent, latent)


def _backward_program(*refs: Any, parts: tuple, eps: float, blocks: Blocks) -> None:
    """With n the normed latent, s its inverse deviation, g = d gain: dx = s (g - n mean(g n))."""
    d_refs, (cos_ref, sin_ref, *refs) = refs[: len(parts)], refs[len(parts) :]
    if len(refs) == 1:
        gain_ref, (dy_ref,) = None, refs
    else:
        gain_ref, y_ref, dy_ref, d_gain_ref = refs
    program = pl.program_id(0)

    def step(index: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
        first = (program * blocks.steps + index) * blocks.rows
        rows, back = pl.ds(first, blocks.rows), [(c, -s) for c, s in row_angles(cos_ref, sin_ref, first, blocks)]
        for part, start, ref in zip(parts, _starts(parts), d_refs, strict=True):
            move_heads(At(ref, rows, part.latent), At(dy_ref, rows, start + part.latent), part, back, blocks.ahead)
        for part, start, ref in _with_latent(parts, d_refs):
            for i in range(0, blocks.rows, blocks.norm_rows):
                rows = pl.ds(first + i, blocks.norm_rows)
                d = _load(At(ref, rows, 0), part.latent)
                if gain_ref is not None:
                    n, inverse = _normed(_load(At(y_ref, rows, start), part.latent), part.latent, eps)
                    sums = [a + jnp.sum(b * c, axis=0) for a, b, c in zip(sums, d, n, strict=True)]
                    g = [a * b for a, b in zip(d, _row(gain_ref), strict=True)]
                    mean = _sum([a * b for a, b in zip(g, n, strict=True)]) / part.latent
                    d = [(a - b * mean) * inverse for a, b in zip(g, n, strict=True)]
                _store(At(dy_ref, rows, start), part.latent, d)
        return sums

    nothing = [] if gain_ref is None else [jnp.zeros((size,), jnp.float32) for _, size in pieces(gain_ref.shape[0], 1)]
    sums = jax.lax.fori_loop(0, blocks.steps, step, nothing)
    if gain_ref is not None:
        _store(At(d_gain_ref, pl.ds(program, 1), 0), gain_ref.shape[0], [a[None, :] for a in sums])


def _with_latent(parts: Sequence[Part], refs: Sequence[Any]) -> list[tuple[Part, int, Any]]:
    """The part with a latent, if any, its first column in the matrix, its array. Done last: it needs most registers."""
    return [item for item in zip(parts, _starts(parts), refs, strict=True) if item[0].latent]


class At(NamedTuple):
    """Where in a matrix: some rows, and the columns from one on."""

    ref: Any
    rows: Any
    column: int

    def move(self, columns: int) -> "At":
        return self._replace(column=self.column + columns)

    def piece(self, first: int, size: int) -> Any:
        return self.ref.at[self.rows, pl.ds(self.column + first, size)]


def _load(at: At, width: int) -> list[jax.Array]:
    return [plgpu.load(at.piece(*piece)).astype(jnp.float32) for piece in pieces(width, 1)]


def _store(at: At, width: int, values: list[jax.Array]) -> None:
    for piece, value in zip(pieces(width, 1), values, strict=True):
        plgpu.store(at.piece(*piece), value.astype(at.ref.dtype))


def _row(ref: Any) -> list[jax.Array]:
    return [plgpu.load(ref.at[pl.ds(*piece)]).astype(jnp.float32)[None, :] for piece in pieces(ref.shape[0], 1)]


def row_angles(cos_ref: Any, sin_ref: Any, first: jax.Array, blocks: Blocks) -> list[tuple[jax.Array, jax.Array]]:
    """Cosines and sines [blocks.rows, W_i] float32 of the matrix' rows from `first` on: a pair a piece of rotary/2.

    cos_ref, sin_ref: [T, rotary/2], the same for each sequence of T rows; a block lies inside one sequence.
    """
    length, half = cos_ref.shape
    rows = pl.ds(first % length, blocks.rows)
    return list(zip(*(_load(At(ref, rows, 0), half) for ref in (cos_ref, sin_ref)), strict=True))


def move_heads(source: At, target: At, part: Part, angles: list, ahead: int, copies: bool = True) -> None:
    """Copy a part's heads and rotate their ends. Reads go ahead of writes: no compiler moves a read over a write.

    copies: whether the columns that are not rotated are copied, or are there already.
    """
    copied, half = part.width - part.rotary, part.rotary // 2
    for first in range(0, part.heads, ahead):
        heads = [head * part.width for head in range(first, min(first + ahead, part.heads))]
        begins = [source.move(head) for head in heads]
        moved = copied if copies else 0
        read = [(_load(at, moved), _load(at.move(copied), half), _load(at.move(copied + half), half)) for at in begins]
        for head, (plain_columns, first_half, second_half) in zip(heads, read, strict=True):
            at = target.move(head)
            _store(at, moved, plain_columns)
            pairs = list(zip(first_half, second_half, angles, strict=True))
            _store(at.move(copied), half, [a * c - b * s for a, b, (c, s) in pairs])
            _store(at.move(copied + half), half, [b * c + a * s for a, b, (c, s) in pairs])


def _normed(x: list[jax.Array], width: int, eps: float) -> tuple[list[jax.Array], jax.Array]:
    """Rows without scale, in pieces, and 1 / their root mean square [R, 1]."""
    inverse = jax.lax.rsqrt(_sum([a * a for a in x]) / width + eps)
    return [a * inverse for a in x], inverse


def _sum(parts: list[jax.Array]) -> jax.Array:
    """Over the columns -> [R, 1]."""
    return sum(jnp.sum(a, axis=1, keepdims=True) for a in parts)


def _starts(parts: Sequence[Part]) -> list[int]:
    """The column of each part's beginning."""
    return [sum(part.columns for part in parts[:i]) for i in range(len(parts))]
