"""mla_jax.kernels.rotate_heads: values and gradients of the plain form, interpreted, and lowering for a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import TRITON_CALL, lower_for_h100
from tiny import quick_jit

from mla_jax.kernels import rotate_heads, rotate_in_place
from mla_jax.kernels.rotate_heads import BLOCKS, Blocks, Part
from mla_jax.model import functions

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

# Sizes that are and are not powers of two; the order of an odd head count and what is read ahead; several steps.
CASES = {
    "mla": ((Part(2, 12, 4), Part(1, 4, 4, latent=16)), True, BLOCKS),
    "mla, odd widths": ((Part(3, 13, 6), Part(1, 6, 6, latent=11)), True, (Blocks(8, 1, 1, 2), Blocks(8, 1, 2, 2, 4))),
    "mla, latent not normed": (
        (Part(2, 12, 4), Part(1, 4, 4, latent=16)),
        False,
        (Blocks(32, 1, 1, 16), Blocks(16, 1, 1, 16)),
    ),
    "gqa": ((Part(3, 8, 8), Part(1, 8, 8)), False, (Blocks(ahead=4), Blocks(ahead=4))),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_plain_form(case: str) -> None:
    parts, normed, blocks = CASES[case]
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    columns = [part.columns for part in parts]
    y, gain = draw(4, 32, sum(columns)), draw(parts[-1].latent) if normed else None
    gradients = tuple(draw(4, 32, n) for n in columns)
    cos, sin = functions.rope_angles(jnp.arange(32), parts[0].rotary, 10_000.0)

    def kernel(y: jax.Array, gain: jax.Array | None) -> tuple[jax.Array, ...]:
        return rotate_heads.split_and_rotate(y, cos, sin, gain, parts, 1e-6, True, blocks)

    def plain(y: jax.Array, gain: jax.Array | None) -> tuple[jax.Array, ...]:
        return rotate_heads.plain(y, cos, sin, gain, parts, 1e-6)

    found, wanted = (quick_jit(lambda *a, f=f: (f(*a), jax.vjp(f, *a)[1](gradients)))(y, gain) for f in (kernel, plain))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


def test_the_plain_form_is_what_the_layers_compute() -> None:
    rng = np.random.default_rng(1)
    y, gain = jnp.asarray(rng.standard_normal((2, 8, 40)), jnp.float32), jnp.linspace(0.5, 1.5, 16)
    cos, sin = functions.rope_angles(jnp.arange(8), 4, 10_000.0)
    q, joined = rotate_heads.plain(y, cos, sin, gain, (Part(2, 10, 4), Part(1, 4, 4, latent=16)), functions.RMS_EPS)
    q, heads = q.reshape(2, 8, 2, 10), y[..., :20].reshape(2, 8, 2, 10)
    np.testing.assert_array_equal(q[..., :6], heads[..., :6])
    np.testing.assert_allclose(q[..., 6:], functions.apply_rope(heads[..., 6:], cos, sin), atol=1e-6)
    np.testing.assert_allclose(joined[..., :16], functions.rms_norm(y[..., 20:36], gain), atol=1e-6)
    np.testing.assert_allclose(joined[..., 16:], functions.apply_rope(y[:, :, None, 36:], cos, sin)[:, :, 0], atol=1e-6)


def test_only_shapes_that_the_programs_divide_are_taken() -> None:
    assert rotate_heads.applies(128, 512) and rotate_heads.applies(2, 16)
    assert not rotate_heads.applies(128, 500) and not rotate_heads.applies(1, 16)


@pytest.mark.parametrize("sizes", ["mla", "mha"])
def test_both_ways_lower_for_a_gpu(sizes: str) -> None:
    mla = Part(8, 96, 32), Part(1, 32, 32, latent=256)
    parts = mla if sizes == "mla" else (Part(8, 64, 64), Part(8, 64, 64))
    y = jax.ShapeDtypeStruct((2, 512, sum(part.columns for part in parts)), jnp.bfloat16)
    table = jax.ShapeDtypeStruct((512, parts[0].rotary // 2), jnp.float32)
    gain = jax.ShapeDtypeStruct((256,), jnp.float32) if sizes == "mla" else None

    def both_ways(y: jax.Array, cos: jax.Array, sin: jax.Array, gain: jax.Array | None) -> tuple:
        def kernel(y: jax.Array, gain: jax.Array | None) -> tuple[jax.Array, ...]:
            return rotate_heads.split_and_rotate(y, cos, sin, gain, parts, 1e-6, False)

        out, pull = jax.vjp(kernel, y, gain)
        return pull(out)

    assert lower_for_h100(both_ways, y, table, table, gain).count(TRITON_CALL) == 2


def in_place(y: jax.Array, cos: jax.Array, sin: jax.Array, interpret: bool) -> tuple[jax.Array, jax.Array]:
    """The rotation, and its gradient for cotangents that are y."""
    out, pull = jax.vjp(lambda y: rotate_in_place.rotate(y, cos, sin, Part(3, 24, 8), interpret), y)
    return out, pull(y)[0]


@pytest.mark.parametrize("length", [48, 64])  # blocks of 16 rows, and of 32
def test_heads_turned_in_place_are_those_of_the_plain_form(length: int) -> None:
    y = jnp.asarray(np.random.default_rng(2).standard_normal((2, length, 72)), jnp.float32)
    cos, sin = functions.rope_angles(jnp.arange(length), 8, 10_000.0)
    (wanted,), pull = jax.vjp(lambda y: rotate_heads.plain(y, cos, sin, None, (Part(3, 24, 8),), 1e-6), y)
    found, gradient = quick_jit(lambda y: in_place(y, cos, sin, True))(y)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(gradient, pull((y,))[0], atol=1e-5)


def test_turning_in_place_lowers_for_a_gpu() -> None:
    y, angle = jax.ShapeDtypeStruct((2, 512, 72), jnp.bfloat16), jax.ShapeDtypeStruct((512, 4), jnp.float32)
    text = lower_for_h100(lambda y, cos, sin: in_place(y, cos, sin, False), y, angle, angle)
    assert text.count(TRITON_CALL) == 2 and text.count("output_operand_alias") >= 2
