"""mla_jax.kernels.masked_hidden: values and gradients of the plain masked layer, in interpret mode, and lowering."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_lowering import TRITON_CALL, lower_for_h100
from tiny import REFERENCE, quick_jit, tiny_config

from mla_jax.kernels import masked_hidden
from mla_jax.model import moe_paths
from mla_jax.model.experts import Experts, FeedForwardWeights
from mla_jax.model.functions import activation
from mla_jax.model.moe import MoE

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

KERNELS = dataclasses.replace(REFERENCE, train_impl="pallas", interpret=True)
TOKENS, WIDTH, EXPERTS, TOP_K = 64, 12, 7, 3


def draw(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def choices(rng: np.random.Generator, starved: int) -> jax.Array:
    """Different experts for each token, the last `starved` ones for none."""
    return jnp.asarray([rng.permutation(EXPERTS - starved)[:TOP_K] for _ in range(TOKENS)], jnp.int32)


def plain(x: Any, idx: jax.Array, weight: jax.Array, experts: Experts, shared: FeedForwardWeights | None) -> jax.Array:
    """`moe_paths.reference` plus the shared experts as a layer of their own."""
    y = moe_paths.reference(x, idx, weight, experts, REFERENCE)
    if shared is None:
        return y
    up = x @ shared.w_up if shared.b_up is None else x @ shared.w_up + shared.b_up
    y += activation(None if shared.w_gate is None else x @ shared.w_gate, up) @ shared.w_down
    return y if shared.b_down is None else y + shared.b_down


def close(a: jax.Array, b: jax.Array) -> None:
    np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("width", "n_shared", "starved"), [(8, 2, 0), (31, 1, 2), (32, 2, 4), (32, 0, 1)])
def test_the_masked_layer_is_the_plain_one(width: int, n_shared: int, starved: int, gated: bool) -> None:
    rng = np.random.default_rng(0)
    idx, weight = choices(rng, starved), jnp.abs(draw(rng, TOKENS, TOP_K))
    x, dy = draw(rng, TOKENS, WIDTH), draw(rng, TOKENS, WIDTH)
    into = [draw(rng, EXPERTS, WIDTH, width) if wanted else None for wanted in (gated, True)]
    experts = Experts(*into, draw(rng, EXPERTS, width, WIDTH) / 8)
    shared, units = None, n_shared * width
    if n_shared:
        into = [draw(rng, WIDTH, units) if wanted else None for wanted in (gated, True)]
        biases = (None, None) if gated else (draw(rng, units), draw(rng, WIDTH))
        shared = FeedForwardWeights(*into, draw(rng, units, WIDTH) / 8, *biases)

    def both_ways(layer: Any) -> Any:
        def run(*arguments: Any) -> Any:
            y, pull = jax.vjp(layer, *arguments)
            return y, pull(dy)

        return quick_jit(run)(x, weight, experts, shared)

    found = both_ways(lambda x, w, e, s: moe_paths.masked_dense(x, idx, w, e, KERNELS, s))
    jax.tree.map(close, found, both_ways(lambda x, w, e, s: plain(x, idx, w, e, s)))


@pytest.mark.parametrize("block", ["default", "gpt"])
def test_a_layer_takes_its_shared_experts_along(block: str) -> None:
    """The same parameters, values and gradients as with a feed-forward of their own."""
    knobs = {"ffn": "moe", "n_routed_experts": 6, "n_shared_experts": 2, "top_k": 2, "d_expert": 7, "block": block}
    cfg = tiny_config(
        **{f"model.{name}": value for name, value in (knobs | {"moe_impl": "masked_dense"}).items()}
    ).model
    rng = np.random.default_rng(3)
    x, bias = draw(rng, 4, 16, cfg.d_model), draw(rng, 6) / 8
    plain, kernels = MoE(cfg, REFERENCE), MoE(cfg, KERNELS)
    shapes = jax.eval_shape(lambda: plain.init(jax.random.key(0), x, bias))
    assert shapes == jax.eval_shape(lambda: kernels.init(jax.random.key(0), x, bias))
    params = jax.tree.map(lambda a: draw(rng, *a.shape) / 4, shapes)

    def both_ways(layer: MoE) -> Any:
        def loss(params: Any, x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(layer.apply(params, x, bias)[0]))

        return quick_jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)

    jax.tree.map(close, both_ways(kernels), both_ways(plain))
    assert "masked_hidden" in str(jax.make_jaxpr(lambda p: kernels.apply(p, x, bias)[0])(params))


def test_what_is_no_expert_is_not_computed() -> None:
    """On a mesh choices of other devices' experts are one past the last: they neither count nor have a gradient."""
    rng = np.random.default_rng(1)
    pre, idx = draw(rng, TOKENS, EXPERTS, 8), choices(rng, 0).at[::2, 1:].set(EXPERTS)
    weight = jnp.ones((TOKENS, TOP_K))
    h, pull = jax.vjp(lambda p, w: masked_hidden.masked_hidden((p,), None, idx, w, 0, True), pre, weight)
    d_pre, d_weight = pull(jnp.ones_like(h))
    chosen = np.any(np.asarray(idx)[..., None] == np.arange(EXPERTS), axis=1)
    np.testing.assert_allclose(h, np.where(chosen[..., None], activation(None, pre), 0), atol=1e-6)
    assert not np.asarray(d_pre)[~chosen].any()
    assert not np.asarray(d_weight)[::2, 1:].any() and np.asarray(d_weight)[1::2].all()


def test_bfloat16_is_rounded_once() -> None:
    rng = np.random.default_rng(2)
    pre, idx, weight = draw(rng, TOKENS, EXPERTS, 16), choices(rng, 0), jnp.abs(draw(rng, TOKENS, TOP_K))
    pre = pre.astype(jnp.bfloat16)
    h = masked_hidden.masked_hidden((pre,), None, idx, weight, 0, True)
    gate = moe_paths.combine_weights(idx, weight, EXPERTS)[..., None]
    wanted = activation(None, pre.astype(jnp.float32)) * gate
    assert h.dtype == jnp.bfloat16
    np.testing.assert_allclose(h.astype(jnp.float32), wanted, rtol=2**-8, atol=1e-6)


def test_rows_and_widths_that_programs_hold_are_taken() -> None:
    assert masked_hidden.applies(65_536, 6, 32) and masked_hidden.applies(64, 2, 4096)
    assert not masked_hidden.applies(65_537, 6, 32) and not masked_hidden.applies(64, 3, 4096)
    for width, top_k in ((32, 6), (512, 6), (4096, 2), (7, 3)):
        form = masked_hidden._Form(62, 2, width, top_k, 1, False)
        for blocks in (masked_hidden.FORWARD, masked_hidden.BACKWARD):
            fits = masked_hidden._fitting(form, blocks)
            assert masked_hidden._ROWS % fits.rows == 0 and fits.rows * fits.experts * width <= masked_hidden._NUMBERS


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(("width", "gated"), [(32, False), (29, False), (32, True)])
def test_both_ways_lower_for_a_gpu(width: int, gated: bool, dtype: Any) -> None:
    def like(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def both(pre: Any, bias: Any, idx: jax.Array, weight: jax.Array) -> Any:
        h, pull = jax.vjp(lambda p, b, w: masked_hidden.masked_hidden(p, b, idx, w, 2, False), pre, bias, weight)
        return pull(h)

    pre = (like((1024, 64, width), dtype),) * (1 + gated)
    bias = None if gated else like((2, width))
    assert lower_for_h100(both, pre, bias, like((1024, 6), jnp.int32), like((1024, 6))).count(TRITON_CALL) == 2
