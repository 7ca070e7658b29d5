"""What several kernels do with tiles, whose sizes Triton wants to be powers of two."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

MIN_BLOCK = 16  # the smallest side of a tensor-core product


def pieces(width: int, least: int = MIN_BLOCK) -> list[tuple[int, int]]:
    """`width` as [(offset, size)]: sizes are powers of two, none below `least`, itself one.

    Only the last may reach past the width; with `least` 1 none does.
    """
    found, offset = [], 0
    while offset < width:
        size = max(least, 1 << ((width - offset).bit_length() - 1))
        found.append((offset, size))
        offset += size
    return found


def padded(size: int, width: int) -> pl.Slice:
    """The first `size` places of an axis of `width`; to be read and written under a mask if they are more.

    JAX 0.12 refuses a constant slice that ends beyond the axis; one whose start is computed it does not check.
    """
    start: int | jax.Array = pl.program_id(0) * 0 if size > width else 0
    return pl.ds(start, size)


def dot(a: jax.Array, b: jax.Array, contract: int = 0) -> jax.Array:
    """a [M, K] times b, whose axis `contract` is K -> [M, N] float32. float32 operands keep float32 precision."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((1,), (contract,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def ordered(a: jax.Array) -> jax.Array:
    """float32 as int32 in the same order; 0.0 and -0.0 are equal. sample/threshold.py has the plain one, unsigned."""
    bits = jax.lax.bitcast_convert_type(jnp.where(a == 0, 0.0, a), jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)
