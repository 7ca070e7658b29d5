"""mla_jax.kernels.best_experts: the routing rule's choices, scores and gradients, in interpret mode; lowering."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import TRITON_CALL, lower_for_h100
from tiny import REFERENCE, quick_jit, tiny_config

from mla_jax.kernels import best_experts
from mla_jax.model.moe import route

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

KERNELS = dataclasses.replace(REFERENCE, train_impl="pallas", interpret=True)


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
@pytest.mark.parametrize("masked", [0, 3, 7])
def test_the_rule_is_the_plain_one(masked: int, score: str) -> None:
    """Ties, a bias that decides, and masked experts, fewer than a token takes too."""
    rng = np.random.default_rng(masked)
    knobs = {"ffn": "moe", "n_routed_experts": 9, "top_k": 4, "d_expert": 8, "router_score": score}
    cfg = tiny_config(**{f"model.{name}": value for name, value in knobs.items()}).model
    logits = jnp.asarray(rng.integers(0, 4, (128, 9)), jnp.float32)
    bias = jnp.asarray(rng.integers(-1, 2, 9) / 8, jnp.float32).at[:masked].set(-jnp.inf)
    out = jnp.asarray(rng.standard_normal((128, 4)), jnp.float32)

    def both_ways(backend: Any) -> Any:
        def loss(logits: jax.Array) -> Any:
            idx, weight, load = route(logits, bias, cfg, backend)
            return jnp.sum(weight * out), (idx, weight, load)

        return quick_jit(jax.value_and_grad(loss, has_aux=True))(logits)

    ((_, (idx, weight, load)), slope) = both_ways(KERNELS)
    ((_, wanted), wanted_slope) = both_ways(REFERENCE)
    np.testing.assert_array_equal(idx, wanted[0])
    np.testing.assert_array_equal(load, wanted[2])
    np.testing.assert_allclose(weight, wanted[1], atol=1e-6)
    np.testing.assert_allclose(slope, wanted_slope, atol=1e-6)


def test_choices_stay_in_range_when_scores_are_not_numbers() -> None:
    idx, score = best_experts.best_experts(jnp.full((64, 7), jnp.nan), jnp.zeros(7), 7, True)
    np.testing.assert_array_equal(idx, np.tile(np.arange(7), (64, 1)))
    assert np.isnan(score).all()


def test_rows_that_programs_divide_are_taken() -> None:
    assert best_experts.applies((65_536, 62)) and best_experts.applies((64, 256))
    assert not best_experts.applies((63, 62)) and not best_experts.applies((64, 257))


def test_it_lowers_for_a_gpu() -> None:
    scores, bias = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1024, 62), (62,)))

    def both(scores: jax.Array, bias: jax.Array) -> Any:
        (idx, score), pull = jax.vjp(lambda s: best_experts.best_experts(s, bias, 6, False), scores)
        return idx, pull((np.zeros(idx.shape, jax.dtypes.float0), score))

    assert lower_for_h100(both, scores, bias).count(TRITON_CALL) == 1
