"""The joined norm of gradients, and clipping by it, beside optax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import random_params, reference_model, tiny_config

from mla_jax.config import OptimConfig
from mla_jax.train import clip
from mla_jax.train.optim import make_optimizer


def tree(scale: float = 1.0) -> dict[str, jax.Array]:
    """Small and large arrays, many rows and few."""
    rng = np.random.default_rng(0)
    shapes = {
        "bias": (24,),
        "heads": (300, 4, 64),
        "output": (4, 64, 300),
        "long": (70_000,),
        "scalar": (),
        "half": (8, 3),
    }
    found = {name: jnp.asarray(scale * rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    return found | {"half": found["half"].astype(jnp.bfloat16)}


def test_the_norm_is_that_of_optax() -> None:
    given = tree()
    found = jax.jit(clip.joint_norm)(given)
    wanted = optax.tree.norm(jax.tree.map(lambda a: a.astype(jnp.float32), given))
    assert found.dtype == jnp.float32 and found.shape == ()
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    for name in given:  # no array is left out
        without = clip.joint_norm({**given, name: jnp.zeros_like(given[name])})
        np.testing.assert_allclose(found**2 - without**2, jnp.sum(given[name].astype(jnp.float32) ** 2), rtol=1e-2)
    assert np.isnan(clip.joint_norm(given | {"long": given["long"].at[3].set(jnp.nan)}))


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_clipping_is_that_of_optax_whoever_computes_the_norm(scale: float) -> None:
    given = {name: a for name, a in tree(scale).items() if name != "half"}
    wanted, _ = optax.clip_by_global_norm(1.0).update(given, optax.EmptyState())
    mine = clip.clip_by_norm(1.0)
    for known in ({}, {"grad_norm": clip.joint_norm(given)}):
        found, state = mine.update(given, mine.init(given), **known)
        assert state == optax.EmptyState()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted)
    clipped, _ = mine.update(given, mine.init(given), grad_norm=jnp.float32(100.0))  # the norm that is given counts
    np.testing.assert_allclose(clipped["bias"], given["bias"] / 100, rtol=1e-5)


@pytest.mark.parametrize("knobs", [{}, {"name": "muon"}, {"ema_decay": 0.9}])
def test_the_norm_reaches_the_clipping_inside_every_optimizer(knobs: dict) -> None:
    config = tiny_config("mla_rope", **{"optim.clip_norm": 0.5})
    params = random_params(reference_model(config))
    optimizer = make_optimizer(OptimConfig(**{**vars(config.optim), **knobs}))
    state, grads = optimizer.init(params), jax.tree.map(jnp.ones_like, params)
    with_norm = optimizer.update(grads, state, params, grad_norm=jnp.float32(jnp.nan))[0]
    assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(with_norm))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(optimizer.update(grads, state, params)[0]))
