"""mla_jax.kernels.gelu: values and gradients of the plain GELU, in interpret mode, and lowering for a GPU."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import TRITON_CALL, lower_for_h100
from tiny import quick_jit

from mla_jax.kernels import gelu
from mla_jax.model import functions

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")


def both_ways(function: Any, x: jax.Array, bias: jax.Array, dh: jax.Array) -> tuple:
    def run(x: jax.Array, bias: jax.Array, dh: jax.Array) -> tuple:
        h, pull = jax.vjp(function, x, bias)
        return h, *pull(dh)

    return quick_jit(run)(x, bias, dh)


def kernel(x: jax.Array, bias: jax.Array) -> jax.Array:
    return gelu.bias_gelu(x, bias, True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", [(128, 64), (2, 192, 80), (128, 1376), (128, 1024)])
def test_bias_gelu_is_the_plain_one(shape: tuple[int, ...], dtype: Any, tolerance: float) -> None:
    """Widths of whole and of masked tiles, one tile and several; 15 rows take the plain form."""
    rng = np.random.default_rng(0)
    x, bias, dh = (jnp.asarray(rng.standard_normal(s), dtype) for s in (shape, shape[-1:], shape))
    found = both_ways(kernel, 2 * x, bias, dh)
    wanted = both_ways(functions.bias_gelu, *(a.astype(jnp.float32) for a in (2 * x, bias, dh)))
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=tolerance * max(1.0, float(jnp.abs(b).max())))


def test_a_bias_of_more_digits_keeps_its_dtype() -> None:
    x, bias = jnp.ones((128, 64), jnp.bfloat16), jnp.ones((64,), jnp.float32)
    assert [a.dtype for a in both_ways(kernel, x, bias, x)] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]


def test_only_numbers_of_rows_that_programs_divide_are_taken() -> None:
    assert gelu.applies((128, 512, 2048)) and gelu.applies((1, 128, 1376))
    assert not gelu.applies((1, 127, 2048)) and not gelu.applies((64, 2048))


@pytest.mark.parametrize("shape", [(65_536, 2048), (65_536, 3072), (128 * 513, 4096), (512, 1376), (128, 80), (128, 7)])
def test_programs_cover_every_place_once(shape: tuple[int, int]) -> None:
    for wanted in (gelu.FORWARD, gelu.BACKWARD):
        blocks, (programs,), groups = gelu._divide(shape, wanted)
        tiles = programs // groups
        assert groups * blocks.rows * blocks.steps == shape[0]
        assert (tiles - 1) * blocks.columns < shape[1] <= tiles * blocks.columns
        assert blocks.rows * blocks.columns <= wanted.rows * wanted.columns


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("width", [1376, 2048])
def test_both_ways_lower_for_a_gpu(width: int, dtype: Any) -> None:
    x, bias = jax.ShapeDtypeStruct((2, 512, width), dtype), jax.ShapeDtypeStruct((width,), jnp.float32)

    def both(x: jax.Array, bias: jax.Array) -> tuple:
        h, pull = jax.vjp(lambda *a: gelu.bias_gelu(*a, False), x, bias)
        return pull(h)

    assert lower_for_h100(both, x, bias).count(TRITON_CALL) == 2
