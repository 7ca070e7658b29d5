"""mla_jax.kernels.grouped_matmul: values against the plain twins in interpret mode, and lowering for a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import TRITON_CALL, lower_for_h100
from tiny import quick_jit

from mla_jax.kernels import grouped_matmul as gm
from mla_jax.kernels.expert_hidden import hidden_backward, hidden_backward_reference

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


@pytest.mark.parametrize("shape", [(64, 32), (130, 300)])
def test_rows_fetched_in_a_product_are_rows_fetched_before_it(shape: tuple[int, int]) -> None:
    """`source` and `transposed`, of few rows that many places share, at widths that tiles divide or not."""
    depth, columns = shape
    rng = np.random.default_rng(1)
    block_expert, first_block = jnp.asarray([1, 0], jnp.int32), jnp.asarray([0, 1, 2], jnp.int32)

    def draw(*size: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(size), jnp.float32)

    few, w, g = draw(5, depth), draw(2, columns, depth), draw(2 * gm.ROWS, columns)
    source, other = (jnp.asarray(rng.integers(0, n, 2 * gm.ROWS), jnp.int32) for n in (5, 2 * gm.ROWS))
    out = quick_jit(lambda *a: gm.grouped_product(*a, transposed=True, interpret=True))(few, w, block_expert, source)
    wanted = gm.grouped_product_reference(few, w, block_expert, source, transposed=True)
    np.testing.assert_allclose(out, wanted, atol=1e-4)
    plain = gm.grouped_product_reference(few[source], jnp.swapaxes(w, 1, 2), block_expert)
    np.testing.assert_allclose(wanted, plain, atol=1e-4)
    for sources in ((source, None), (None, other), (source, other)):
        rows = few if sources[0] is not None else few[source]
        run = quick_jit(lambda r, g, f, s=sources: gm.grouped_outer(r, g, f, *s, interpret=True))
        wanted = gm.grouped_outer_reference(few[source], g if sources[1] is None else g[other], jnp.asarray([0, 1]), 2)
        np.testing.assert_allclose(run(rows, g, first_block), wanted, atol=2e-4)


@pytest.mark.parametrize("width", [512, 248])
def test_both_kernels_lower_for_a_gpu(width: int) -> None:
    rows, g = (jax.ShapeDtypeStruct((8 * gm.ROWS, d), jnp.bfloat16) for d in (512, width))
    w = jax.ShapeDtypeStruct((62, 512, width), jnp.bfloat16)
    block_expert, first = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in (8, 63))
    assert lower_for_h100(gm.grouped_product, rows, w, block_expert).count(TRITON_CALL) == 1
    assert lower_for_h100(gm.grouped_outer, rows, g, first).count(TRITON_CALL) == 1


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("width", [32, 40])
def test_hidden_units_backward_are_their_plain_twin(width: int, gated: bool) -> None:
    """Rows of weight 0 (padding) among them."""
    rng = np.random.default_rng(3)
    *pre, d_hidden = (jnp.asarray(rng.standard_normal((256, width)), jnp.float32) for _ in range(2 + gated))
    weight = jnp.asarray(rng.random(256) * (rng.random(256) > 0.3), jnp.float32)
    found = quick_jit(lambda *a: hidden_backward(*a, interpret=True))(pre, weight, d_hidden)
    wanted = hidden_backward_reference(pre, weight, d_hidden)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)


def test_hidden_units_backward_lower_for_a_gpu() -> None:
    rows = jax.ShapeDtypeStruct((256, 248), jnp.bfloat16)
    weight = jax.ShapeDtypeStruct((256,), jnp.float32)
    assert lower_for_h100(hidden_backward, [rows, rows], weight, rows).count(TRITON_CALL) == 1
