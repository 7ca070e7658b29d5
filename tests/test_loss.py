"""Cross-entropy: equal to its plain twin in value and gradient, blind to surplus rows, and light on memory."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mla_jax.train.loss import cross_entropy, cross_entropy_reference

TOKENS, VOCAB = 24, 512


def logits_and_targets(n_tokens: int, dtype: Any = jnp.float32, scale: float = 3.0) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(scale * rng.standard_normal((4, 6, VOCAB)), dtype)
    return logits, jnp.asarray(rng.integers(0, n_tokens, (4, 6)), jnp.int32)


def value_and_gradient(function: Any, logits: jax.Array, targets: jax.Array, n_tokens: int) -> tuple[Any, Any]:
    weights = jnp.linspace(-1, 2, targets.size).reshape(targets.shape)  # every token its own cotangent

    def total(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        nll = function(logits, targets, n_tokens)
        return jnp.sum(nll * weights), nll

    (_, nll), gradient = jax.value_and_grad(total, has_aux=True)(logits)
    return nll, gradient


@pytest.mark.parametrize("n_tokens", [VOCAB, 500, 1])
def test_it_equals_the_plain_twin(n_tokens: int) -> None:
    ours = value_and_gradient(cross_entropy, *logits_and_targets(n_tokens), n_tokens)
    plain = value_and_gradient(cross_entropy_reference, *logits_and_targets(n_tokens), n_tokens)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    assert ours[0].dtype == jnp.float32


def test_it_is_minus_log_softmax_in_float64() -> None:
    logits, targets = logits_and_targets(500)
    exact = np.asarray(logits, np.float64)[..., :500]
    log_z = np.log(np.exp(exact).sum(-1))
    expected = log_z - np.take_along_axis(exact, np.asarray(targets)[..., None], -1)[..., 0]
    np.testing.assert_allclose(cross_entropy(logits, targets, 500), expected, atol=1e-5)


def test_surplus_rows_get_no_probability_and_no_gradient() -> None:
    logits, targets = logits_and_targets(500)
    loud = logits.at[..., 500:].set(1e9)
    nll, gradient = value_and_gradient(cross_entropy, loud, targets, 500)
    np.testing.assert_allclose(nll, cross_entropy(logits, targets, 500), atol=1e-6)
    np.testing.assert_array_equal(gradient[..., 500:], 0)
    counted = cross_entropy(loud, targets, VOCAB)  # the same rows as tokens are heard
    assert float(counted.min()) > 1e8


@settings(max_examples=30)
@given(hnp.arrays(np.float32, (1, 7), elements=st.floats(-3e4, 3e4, width=32)), st.integers(0, 4), st.integers(5, 7))
def test_it_stays_finite_and_right_at_any_size(logits: np.ndarray, target: int, n_tokens: int) -> None:
    targets = jnp.asarray([target])
    ours = value_and_gradient(cross_entropy, jnp.asarray(logits), targets, n_tokens)
    plain = value_and_gradient(cross_entropy_reference, jnp.asarray(logits), targets, n_tokens)
    np.testing.assert_allclose(ours[0], plain[0], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(ours[1], plain[1], atol=1e-5 + 1e-6 * np.abs(logits).max())  # rounding of a logit
    assert np.isfinite(ours[1]).all()
    assert float(ours[0][0]) >= 0


def test_a_non_finite_logit_is_not_hidden() -> None:
    logits, targets = logits_and_targets(VOCAB)
    assert np.isnan(np.asarray(cross_entropy(logits.at[0, 0, 3].set(jnp.nan), targets, VOCAB))[0, 0])


def test_bfloat16_logits_are_reduced_in_float32() -> None:
    """The only rounding is that of the logits themselves: not of their sum, nor of the loss."""
    logits, targets = logits_and_targets(VOCAB, jnp.bfloat16)
    nll, gradient = value_and_gradient(cross_entropy, logits, targets, VOCAB)
    exact, exact_gradient = value_and_gradient(cross_entropy_reference, logits.astype(jnp.float32), targets, VOCAB)
    np.testing.assert_allclose(nll, exact, atol=1e-5)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient.astype(jnp.float32), exact_gradient, rtol=2**-8, atol=1e-6)


def kept_for_backward(function: Any) -> list[jax.Array]:
    """What the forward pass hands to the backward pass."""
    logits, targets = logits_and_targets(500, jnp.bfloat16)
    _, backward = jax.vjp(lambda logits: function(logits, targets, 500), logits)
    return [leaf for leaf in jax.tree.leaves(backward) if hasattr(leaf, "dtype")]


def wide_float32(leaves: list[jax.Array]) -> list[jax.Array]:
    return [leaf for leaf in leaves if leaf.dtype == jnp.float32 and leaf.size > TOKENS]


def test_no_float32_copy_of_the_logits_is_kept_for_the_backward_pass() -> None:
    kept = kept_for_backward(cross_entropy)
    assert not wide_float32(kept)
    assert sum(leaf.nbytes for leaf in kept) == TOKENS * VOCAB * 2 + TOKENS * (4 + 4)  # logits, targets, log_z
    assert wide_float32(kept_for_backward(cross_entropy_reference))  # the look tells the two apart


def wide_buffers(program: Any, *arguments: Any) -> list[str]:
    """float32 [tokens, vocab] results of the compiled program's own instructions (fusions keep theirs inside)."""
    text = jax.jit(program).lower(*arguments).compile().as_text()
    return re.findall(rf"= f32\[4,6,(?:{VOCAB}|500)\]\S* \w+", text[text.index("\nENTRY") :])


def test_the_backward_pass_makes_no_float32_copy_of_the_logits() -> None:
    logits, targets = logits_and_targets(500, jnp.bfloat16)
    cotangent = jnp.ones((4, 6))
    log_z = jnp.zeros((4, 6))
    from mla_jax.train.loss import _backward

    assert not wide_buffers(lambda *residuals: _backward(500, residuals, cotangent)[0], logits, targets, log_z)
    assert wide_buffers(lambda logits: jnp.sin(logits.astype(jnp.float32)), logits)  # the look finds one


@pytest.mark.skipif(jax.devices()[0].platform == "cpu", reason="XLA's CPU reductions read a float32 copy; GPUs fuse it")
def test_the_whole_loss_makes_no_float32_copy_of_the_logits() -> None:
    logits, targets = logits_and_targets(500, jnp.bfloat16)

    def mean(logits: jax.Array) -> jax.Array:
        return jnp.mean(cross_entropy(logits, targets, 500))

    assert not wide_buffers(jax.value_and_grad(mean), logits)
