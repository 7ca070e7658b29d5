"""mla_jax.model.moe_router: logits exact to float32 from bfloat16 activations, and the order of jax.lax.top_k."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mla_jax.model.moe_router import exact_product, top_choices


def draw(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_logits_and_gradients_are_exact_to_float32(dtype: str) -> None:
    """Against NumPy in float64. x's gradient has x's dtype."""
    rng = np.random.default_rng(0)
    x, w, g = draw(rng, 48, 64).astype(dtype), draw(rng, 64, 10), draw(rng, 48, 10)
    y, pull = jax.vjp(jax.jit(exact_product), x, w)
    d_x, d_w = pull(g)
    wide_x, wide_w, wide_g = (np.asarray(a, np.float64) for a in (x, w, g))
    assert y.dtype == d_w.dtype == jnp.float32 and d_x.dtype == x.dtype
    np.testing.assert_allclose(y, wide_x @ wide_w, atol=1e-5)
    np.testing.assert_allclose(d_w, wide_x.T @ wide_g, atol=1e-5)
    np.testing.assert_allclose(
        d_x.astype(jnp.float32), wide_g @ wide_w.T, atol=2e-2 * 10**0.5 if dtype == "bfloat16" else 1e-5
    )


def test_a_product_rounded_to_bfloat16_would_be_seen() -> None:
    rng = np.random.default_rng(0)
    x, w = draw(rng, 48, 64).astype(jnp.bfloat16), draw(rng, 64, 10)
    rounded = jnp.matmul(x, w.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
    assert float(jnp.abs(rounded - exact_product(x, w)).max()) > 1e-3


@pytest.mark.parametrize("masked", [0.0, 0.5, 1.0])
def test_choices_are_those_of_top_k_with_ties_and_masked_experts(masked: float) -> None:
    rng = np.random.default_rng(2)
    scores = jnp.asarray(rng.integers(0, 5, (200, 9)), jnp.float32)  # many ties
    scores = jnp.where(jnp.asarray(rng.random((200, 9)) < masked), -jnp.inf, scores)
    for k in (1, 4, 9):
        np.testing.assert_array_equal(top_choices(scores, k), jax.lax.top_k(scores, k)[1])


def test_choices_stay_in_range_when_scores_are_not_numbers() -> None:
    """Training that diverged reports a loss of NaN; it does not read beyond the experts' matrices."""
    found = np.asarray(top_choices(jnp.full((3, 7), jnp.nan), 7))
    np.testing.assert_array_equal(np.sort(found), np.tile(np.arange(7), (3, 1)))
