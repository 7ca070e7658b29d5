"""Slices that end beyond an array: Triton holds powers of two of places, and a mask says which of them are there."""

import jax
from jax.experimental import pallas as pl


def padded(size: int, width: int) -> pl.Slice:
    """The first `size` places of an axis of `width`, inside a kernel; to be read and written under a mask if more.

    JAX 0.12 refuses a constant slice that ends beyond the axis; one whose start is computed it does not check.
    """
    start: int | jax.Array = pl.program_id(0) * 0 if size > width else 0
    return pl.ds(start, size)
