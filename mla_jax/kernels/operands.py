"""What the decode kernels read: operands, how they lie in memory, how the work is cut, and which sizes can be had."""

import dataclasses
import math
from typing import Any

import jax
from flax import struct

from mla_jax.kernels.tiles import MIN_BLOCK

_REACH_32 = 2**31  # elements that signed 32 bits count, from 0 on


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How the work is cut. positions: cache positions per step of a program, a power of two from 16 on; splits:
    programs that share a row; warps, stages: of a program, and of its software pipeline; late_sum: the weights are
    summed over positions once, at a program's end, instead of at every step, which costs registers."""

    positions: int
    splits: int
    warps: int
    stages: int
    late_sum: bool = False


@struct.dataclass
class Operands:
    """B rows, G groups of Q query heads, S positions; widths K (keys), V (values), R (rotary).

    q [B, G Q, K], q_rope [B, G Q, R] | None (or more rows: see Layout), k [B, S, G, K], v [B, S, G, V] | None (then the
    values are the keys), k_rope [B, S, R] | None (all heads share it), k_scale and v_scale [B, S] float32 | None (of
    int8 k and v; one that is both k and v has k_scale only), lengths [B] int32: how many positions of a row count.
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
    """What each row's newest position adds to the cache: k [B, G, K], v [B, G, V] | None, k_rope [B, 1, R] | None."""

    k: jax.Array
    v: jax.Array | None
    k_rope: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Layout:
    """Heads, and the first rows of operands that are views of one larger array (the output of a merged product).

    groups G, heads Q of each; q, q_rope: row of head 0 in Operands; k, v, k_rope: row of group 0 in Entry.
    """

    groups: int
    heads: int
    q: int = 0
    q_rope: int = 0
    k: int = 0
    v: int = 0
    k_rope: int = 0


@struct.dataclass
class Raw:
    """What is still to be done to queries and to a new entry, and is done here on the way.

    turn [B, W] float32 | None, cosines and then sines: rotate q_rope and the entry's k_rope (or, without these, q and
    the entry's k), by half-split pairs; the width W must be a multiple of 32. gain [K] float32 | None: the entry's k is
    divided by its root mean square and multiplied by this (the latent norm).
    """

    turn: jax.Array | None = None
    gain: jax.Array | None = None


def addressable(arrays: Any) -> bool:
    """Whether every array of a tree can be addressed by the kernel.

    Pallas' Triton lowering counts elements in signed 32 bits up to 2^32 bytes and in 64 bits from there on, so that
    only arrays of single bytes have sizes between.
    """

    def reached(leaf: jax.Array) -> bool:
        elements = math.prod(leaf.shape)
        return elements <= _REACH_32 or elements * leaf.dtype.itemsize > 2**32

    return all(map(reached, jax.tree.leaves(arrays)))


def rotates(width: int) -> bool:
    """Whether `Raw` can rotate vectors of this width: halves must be whole blocks."""
    return width % (2 * MIN_BLOCK) == 0
