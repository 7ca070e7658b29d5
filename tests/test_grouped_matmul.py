"""mla_jax.kernels.grouped_matmul: values against the plain twins in interpret mode, and lowering for a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import TRITON_CALL, lower_for_h100
from tiny import quick_jit

from mla_jax.kernels import grouped_matmul as gm

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")


@pytest.mark.parametrize("shape", [(64, 32), (130, 200)])
def test_both_kernels_are_their_plain_twins(shape: tuple[int, int]) -> None:
    """Widths that no tile divides, an expert without blocks, and blocks after the last group."""
    depth, columns = shape
    rng = np.random.default_rng(0)
    block_expert = jnp.asarray([0, 0, 2, 3], jnp.int32)  # expert 1 has none; the last block is padding only
    first_block = jnp.asarray([0, 2, 2, 3, 3], jnp.int32)

    def draw(*size: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(size), jnp.float32)

    rows, w, g = draw(4 * gm.ROWS, depth), draw(4, depth, columns), draw(4 * gm.ROWS, columns)
    out = quick_jit(lambda *a: gm.grouped_product(*a, interpret=True))(rows, w, block_expert)
    np.testing.assert_allclose(out, gm.grouped_product_reference(rows, w, block_expert), atol=1e-4)
    g = g.at[3 * gm.ROWS :].set(0.0)  # what padding's cotangents are
    summed = quick_jit(lambda *a: gm.grouped_outer(*a, interpret=True))(rows, g, first_block)
    np.testing.assert_allclose(summed, gm.grouped_outer_reference(rows, g, block_expert, 4), atol=2e-4)
    assert not np.asarray(summed[1]).any()


@pytest.mark.parametrize("width", [512, 248])
def test_both_kernels_lower_for_a_gpu(width: int) -> None:
    rows, g = (jax.ShapeDtypeStruct((8 * gm.ROWS, d), jnp.bfloat16) for d in (512, width))
    w = jax.ShapeDtypeStruct((62, 512, width), jnp.bfloat16)
    block_expert, first = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in (8, 63))
    assert lower_for_h100(gm.grouped_product, rows, w, block_expert).count(TRITON_CALL) == 1
    assert lower_for_h100(gm.grouped_outer, rows, g, first).count(TRITON_CALL) == 1
