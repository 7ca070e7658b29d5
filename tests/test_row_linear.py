"""mla_jax.kernels.row_linear: values against the plain twin in interpret mode, and lowering for a GPU."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import TRITON_CALL, lower_for_h100
from tiny import quick_jit

from mla_jax.kernels import flash_decode, row_linear
from mla_jax.kernels.row_linear import Linear, NormWeights, RowBlocks
from mla_jax.model import functions

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")


def draw(seed: int, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


# rows, K, N, norm, activation, bias, residual
CASES = [
    (1, 32, 48, "rms", "none", False, False),
    (3, 48, 20, None, "none", True, True),  # K in two pieces, N no multiple of the columns
    (2, 37, 24, "layer", "gelu", True, False),  # K that no block divides
    (2, 64, 40, "rms", "swiglu", False, False),
    (8, 16, 7, None, "none", False, True),
]


def operands(case: tuple) -> tuple:
    rows, width, n, norm, activation, bias, residual = case
    shape = (2, n, width) if activation == "swiglu" else (n, width)
    linear = Linear(draw(0, *shape), draw(1, n) if bias else None)
    weights = None if norm is None else NormWeights(1 + draw(2, width), draw(3, width) if norm == "layer" else None)
    return draw(4, rows, width), linear, weights, activation, draw(5, rows, n) if residual else None


@pytest.mark.parametrize("case", CASES, ids=str)
def test_row_linear_is_its_plain_twin(case: tuple) -> None:
    x, linear, norm, activation, residual = operands(case)
    run = quick_jit(
        lambda *a: row_linear.row_linear(a[0], a[1], a[2], activation, a[3], RowBlocks(8, 4), interpret=True)
    )
    with jax.default_matmul_precision("highest"):
        expected = row_linear.row_linear_reference(x, linear, norm, activation, residual)
    np.testing.assert_allclose(run(x, linear, norm, residual), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [16, 128])  # several heads a piece; each head a piece
def test_splits_of_attention_are_joined_on_the_way(width: int) -> None:
    rows, parts, heads, n = 3, 4, 3, 24
    out, total = draw(0, parts, rows, 1, heads, width), jnp.abs(draw(1, parts, rows, 1, heads)) + 0.1
    top = 3 * draw(2, parts, rows, 1, heads)
    linear, residual = Linear(draw(3, n, heads * width) * width**-0.5), draw(4, rows, n)
    run = quick_jit(lambda x, w, r: row_linear.row_linear(x, w, residual=r, interpret=True))
    with jax.default_matmul_precision("highest"):
        joined = flash_decode.combine(out, top, total).reshape(rows, -1)
        expected = joined @ linear.w.T + residual
        twin = row_linear.row_linear_reference((out, top, total), linear, residual=residual)
    np.testing.assert_allclose(run((out, top, total), linear, residual), expected, atol=1e-5, rtol=1e-5)
    alone = quick_jit(lambda x: row_linear.join(x, jnp.float32, interpret=True))((out, top, total))
    np.testing.assert_allclose(alone, joined, atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(twin, expected, atol=1e-5, rtol=1e-5)


def test_the_kernels_norms_are_those_of_the_model() -> None:
    x, gain, bias = draw(0, 4, 32), draw(1, 32), draw(2, 32)

    def normed(norm: NormWeights) -> jax.Array:
        return quick_jit(lambda x, norm: row_linear.row_linear(x, Linear(jnp.eye(32)), norm, interpret=True))(x, norm)

    np.testing.assert_allclose(normed(NormWeights(gain)), functions.rms_norm(x, gain), atol=1e-5)
    np.testing.assert_allclose(normed(NormWeights(None)) * gain, functions.rms_norm(x, gain), atol=1e-5)
    np.testing.assert_allclose(normed(NormWeights(gain, bias)), functions.layer_norm(x, gain, bias), atol=1e-5)


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 8 rows, not 9"):
        row_linear.row_linear(draw(0, 9, 16), Linear(draw(1, 16, 16)), interpret=True)


@pytest.mark.parametrize("activation", ["none", "swiglu", "gelu"])
def test_row_linear_lowers_for_a_gpu(activation: str) -> None:
    def like(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    gated = activation == "swiglu"
    linear = Linear(like(*((2,) if gated else ()), 1376, 512), None if gated else like(1376, dtype=jnp.float32))
    norm = NormWeights(like(512, dtype=jnp.float32), like(512, dtype=jnp.float32))
    text = lower_for_h100(lambda x, w, n: row_linear.row_linear(x, w, n, activation), like(2, 512), linear, norm)
    assert text.count(TRITON_CALL) == 1


def test_joining_lowers_for_a_gpu() -> None:
    def like(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    parts = (like(4, 2, 1, 8, 256), like(4, 2, 1, 8), like(4, 2, 1, 8))
    linear, residual = Linear(like(512, 2048, dtype=jnp.bfloat16)), like(2, 512, dtype=jnp.bfloat16)
    text = lower_for_h100(lambda x, w, r: row_linear.row_linear(x, w, residual=r), parts, linear, residual)
    assert text.count(TRITON_CALL) == 1
