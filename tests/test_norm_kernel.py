"""mla_jax.kernels.norm: values and gradients of the plain norms, in interpret mode, and lowering for a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import TRITON_CALL, lower_for_h100
from tiny import quick_jit

from mla_jax.kernels import norm
from mla_jax.model import functions

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")


@pytest.mark.parametrize("width", [64, 80, 192, 200, 768])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_norm_with_stream_is_the_plain_norm(with_bias: bool, centred: bool, width: int) -> None:
    """80 columns and 200 are padded, 192 are 128 and 64. The stream's own gradient is added to the norm's.

    with_bias: and the gradient of a bias that is added to the stream comes out of it.
    """
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    x, gain, bias, stream_bias = 3 + draw(4, 64, width), draw(width), draw(width), draw(width)
    d_stream, out = draw(4, 64, width), draw(4, 64, width)
    Two = tuple[jax.Array, jax.Array]

    def kernel(x: jax.Array, gain: jax.Array, bias: jax.Array, stream_bias: jax.Array) -> Two:
        vectors = (bias if centred else None, stream_bias if with_bias else None)
        return norm.norm_with_stream(x, gain, *vectors, 1e-5 if centred else 1e-6, True)

    def plain(x: jax.Array, gain: jax.Array, bias: jax.Array, stream_bias: jax.Array) -> Two:
        y = functions.layer_norm(x, gain, bias) if centred else functions.rms_norm(x, gain)
        return functions.with_bias_gradient(x, stream_bias if with_bias else None), y

    found, wanted = (
        quick_jit(lambda *a, f=f: (f(*a), jax.vjp(f, *a)[1]((d_stream, out))))(x, gain, bias, stream_bias)
        for f in (kernel, plain)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


def test_gradients_do_not_depend_on_blocks() -> None:
    x, dy = (jax.random.normal(jax.random.key(seed), (64, 80)) for seed in (0, 1))
    gain = jnp.ones((80,))
    wanted, found = (
        quick_jit(lambda x, dy, b=b: norm.backward(1e-5, True, (x, gain, gain, gain), (dy, dy), b))(x, dy)
        for b in (norm.BACKWARD._replace(steps=16), norm.Blocks(2, 4, 1))
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


def test_only_shapes_that_the_programs_divide_are_taken() -> None:
    assert norm.applies((128, 512, 512)) and norm.applies((1, 128, 768))
    assert not norm.applies((1, 127, 512)) and not norm.applies((128, 8192))
    for width in (512, 768, 1024, 4096):  # and the backward pass leaves no row out
        blocks = norm.backward_blocks(width)
        assert 64 % (blocks.rows * blocks.steps) == 0 and norm.applies((64, width))
        assert width / (32 * blocks.warps) <= 24  # numbers of a row in a thread


@pytest.mark.parametrize("width", [512, 768])
def test_both_ways_lower_for_a_gpu(width: int) -> None:
    x, gain = jax.ShapeDtypeStruct((2, 512, width), jnp.bfloat16), jax.ShapeDtypeStruct((width,), jnp.float32)

    def both_ways(x: jax.Array, gain: jax.Array) -> jax.Array:
        y, pull = jax.vjp(lambda x: norm.norm_with_stream(x, gain, gain, gain, 1e-5, False), x)
        return pull(y)

    assert lower_for_h100(both_ways, x, gain).count(TRITON_CALL) == 2
