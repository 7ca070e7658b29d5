"""Every path of the experts against the reference at 20 random shapes, with free, starved and all-to-one routing.

Prints the largest differences. Two shapes run always; all of them, the interpreted kernels and tokamax are slow.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_moe import moe_config, random_layer, values_and_gradients

from mla_jax.config import ModelConfig

ROUTINGS = ("free", "starved", "all_to_one")
SHAPES = [pytest.param(seed, marks=[] if seed in (3, 6) else pytest.mark.slow) for seed in range(20)]


def random_shape(seed: int) -> ModelConfig:
    """The `seed`th layer: E below 70, K up to 8, any width."""
    rng = np.random.default_rng(seed)
    n_experts = int(rng.integers(1, 70))
    return moe_config(
        n_routed_experts=n_experts,
        top_k=int(rng.integers(1, min(n_experts, 8) + 1)),
        d_expert=int(rng.integers(1, 40)),
        d_model=16 * int(rng.integers(1, 6)),  # 4 heads, and rotary keys of half a head come in pairs
        block=str(rng.choice(["default", "gpt"])),
        router_score=str(rng.choice(["sigmoid", "softmax"])),
    )


@functools.cache
def references(seed: int) -> list[tuple[Any, Any]]:
    """Layers of random numbers of tokens, one a routing, with their values and gradients: once for all paths."""
    cfg, rng = random_shape(seed), np.random.default_rng([seed, 1])
    layers = [random_layer(cfg, int(rng.integers(1, 300)), seed, routing) for routing in ROUTINGS]
    return [(layer, values_and_gradients(cfg, "reference", "xla", layer)) for layer in layers]


def check(seed: int, path: str, capsys: pytest.CaptureFixture) -> None:
    """One path against the reference at three routings."""
    cfg, largest = random_shape(seed), np.zeros(2)
    impl, _, grouped_impl = path.partition(":")

    def scaled(a: jax.Array, b: jax.Array) -> float:
        """Of gradients, sums over hundreds of tokens: a share of the array's largest entry where that is above 1."""
        return float(jnp.abs(a - b).max() / jnp.maximum(1.0, jnp.abs(b).max()))

    for layer, (wanted, wanted_grads) in references(seed):
        y, grads = values_and_gradients(cfg, impl, grouped_impl or "xla", layer)
        gradients = jax.tree.leaves(jax.tree.map(scaled, grads, wanted_grads))
        largest = np.maximum(largest, [float(jnp.abs(y - wanted).max()), max(gradients)])
    with capsys.disabled():
        shape = f"E {cfg.n_routed_experts} K {cfg.top_k} D {cfg.d_model} F {cfg.d_expert} {cfg.block}"
        print(f"\n{path} {seed} ({shape}): values {largest[0]:.1e}, gradients {largest[1]:.1e}", end=" ")
    assert np.isfinite(largest).all() and (largest < 1e-5).all()


@pytest.mark.parametrize("seed", SHAPES)
@pytest.mark.parametrize("path", ["masked_dense", "grouped:xla", "gathered"])
def test_every_path_equals_the_reference(path: str, seed: int, capsys: pytest.CaptureFixture) -> None:
    check(seed, path, capsys)


@pytest.mark.slow  # the interpreter takes seconds a shape
@pytest.mark.parametrize("seed", range(20))
def test_the_pallas_kernels_equal_the_reference(seed: int, capsys: pytest.CaptureFixture) -> None:
    check(seed, "grouped:pallas", capsys)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_tokamax_equals_the_reference(seed: int, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("tokamax", reason="needs pip install '.[gpu]'")
    check(seed, "grouped:tokamax", capsys)
