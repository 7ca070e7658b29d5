"""The newest position of a row, inside the decode kernel: normalised, rotated, written into the cache, attended to."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mla_jax.kernels.operands import Entry, Layout, Operands, Raw
from mla_jax.kernels.tiles import pieces
from mla_jax.model.functions import RMS_EPS


def rotary_pieces(width: int) -> list[tuple[int, int]]:
    """As `pieces`, of the first half and then alike of the second: what `rotated` turns."""
    half = pieces(width // 2)
    return half + [(width // 2 + offset, size) for offset, size in half]


def angles_of(raw: Raw, row: jax.Array, zero: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """cos and sin of a row, cut as the halves of what they turn."""
    if raw.turn is None:
        return []
    half = raw.turn.shape[-1] // 2
    starts = [[pl.ds(zero + first + offset, size) for first in (0, half)] for offset, size in pieces(half)]
    return [tuple(plgpu.load(raw.turn.at[row, here]) for here in pair) for pair in starts]


def rotated(parts: list[jax.Array], angles: list[tuple[jax.Array, jax.Array]]) -> list[jax.Array]:
    """Pieces [..., W_i] by `rotary_pieces`, turned in float32: (a, b) -> (a cos - b sin, b cos + a sin)."""
    n, dtype = len(parts) // 2, parts[0].dtype
    halves = [(a.astype(jnp.float32), b.astype(jnp.float32)) for a, b in zip(parts[:n], parts[n:], strict=True)]
    firsts = [a * c - b * s for (a, b), (c, s) in zip(halves, angles, strict=True)]
    seconds = [b * c + a * s for (a, b), (c, s) in zip(halves, angles, strict=True)]
    return [part.astype(dtype) for part in firsts + seconds]


@dataclasses.dataclass(frozen=True)
class Newest:
    """The newest position's entry. where: row, group, position; write: whether this program stores it."""

    refs: Operands
    new: Entry
    raw: Raw
    cache: Entry
    layout: Layout
    where: tuple
    zero: jax.Array
    write: jax.Array
    dtype: Any

    def fetch(self, key_pieces: list, rope_pieces: list) -> tuple[list, list, list, list]:
        """Key, value, rotary key and gains as they are in memory, float32."""
        row, group, _ = self.where
        keys = self._loaded(self.new.k, (row, self.layout.k + group), key_pieces)
        values, rope, gains = [], [], []
        if self.new.v is not None:
            values = self._loaded(self.new.v, (row, self.layout.v + group), pieces(self.refs.v.shape[-1]))
        if self.new.k_rope is not None:
            rope = self._loaded(self.new.k_rope, (row, self.zero + self.layout.k_rope), rope_pieces)
        if self.raw.gain is not None:
            gains = self._loaded(self.raw.gain, (), key_pieces)
        return keys, values, rope, gains

    def take(
        self, fetched: tuple, q: list, q_rope: list, key_pieces: list, rope_pieces: list, angles: list
    ) -> tuple[list[jax.Array], jax.Array]:
        """Write what was fetched into the cache -> the entry's value pieces and the scores of q, float32.

        What is attended to is what the cache holds: rounded to its dtype.
        """
        row, group, position = self.where
        place = (row, position, group)
        keys, values, rope, gains = fetched
        if gains:
            keys = self._normed(keys, gains)
        if angles and self.new.k_rope is None:
            keys = rotated(keys, angles)
        keys = self._stored(keys, self.cache.k, place, key_pieces)
        if self.new.v is None:
            values = keys
        else:
            values = self._stored(values, self.cache.v, place, pieces(self.refs.v.shape[-1]))
        if self.new.k_rope is not None:
            rope = rotated(rope, angles) if angles else rope
            keys = keys + self._stored(rope, self.cache.k_rope, (row, position), rope_pieces)
        pairs = zip(q + q_rope, keys, strict=True)
        return values, sum(jnp.sum(a.astype(jnp.float32) * k[None, :], axis=1) for a, k in pairs)

    def _valid(self, width: int, piece: tuple[int, int]) -> jax.Array:
        return (piece[0] + jnp.arange(piece[1])) < width

    def _loaded(self, ref: Any, index: tuple, cut: list) -> list[jax.Array]:
        """A vector in float32, zeros where a piece reaches past its width."""
        found = []
        for offset, size in cut:
            source = ref.at[(*index, pl.ds(self.zero + offset, size))]
            valid = self._valid(ref.shape[-1], (offset, size))
            found.append(plgpu.load(source, mask=valid, other=jnp.zeros((), ref.dtype)).astype(jnp.float32))
        return found

    def _normed(self, parts: list[jax.Array], gains: list[jax.Array]) -> list[jax.Array]:
        width = self.refs.k.shape[-1]
        scale = jax.lax.rsqrt(sum(jnp.sum(part * part) for part in parts) / width + RMS_EPS)
        return [part * scale * gain for part, gain in zip(parts, gains, strict=True)]

    def _stored(self, parts: list[jax.Array], target: Any, place: tuple, cut: list) -> list[jax.Array]:
        write = self.write & (self.where[2] < self.refs.k.shape[1])
        rounded = [part.astype(target.dtype) for part in parts]
        for part, (offset, size) in zip(rounded, cut, strict=True):
            valid = self._valid(target.shape[-1], (offset, size))
            plgpu.store(target.at[(*place, pl.ds(self.zero + offset, size))], part, mask=valid & write)
        return [part.astype(self.dtype).astype(jnp.float32) for part in rounded]
