"""Logits, methods and draws that the tests of sample/methods.py and of its kernel share."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from tiny import QUICK, REFERENCE

from mla_jax.model.backend import Backend
from mla_jax.sample.methods import Method, draw

N_TOKENS, VOCAB = 60, 64  # four surplus rows
KERNEL = dataclasses.replace(REFERENCE, decode_impl="pallas", interpret=True)  # as plain JAX
SEEN = (1, 5, 17)  # tokens that the penalty meets

METHODS = [
    Method(1.0, 0),
    Method(0.5, 0),
    Method(3.0, 7),
    Method(1.0, 1),
    Method(1.0, 59),
    Method(1.0, 60),
    Method(1.0, 1000),
    Method(0.8, 0, top_p=0.9),
    Method(0.8, 0, top_p=0.1),
    Method(0.8, 0, top_p=1e-6),
    Method(0.8, 0, top_p=0.999),
    Method(0.8, 0, min_p=0.05),
    Method(0.8, 0, min_p=1.0),
    Method(1.0, 0, repetition_penalty=1.3),
    Method(1.0, 0, repetition_penalty=0.7),
    Method(0.9, 30, 0.9, 0.02, 1.2),
]


def random_logits(rows: int, dtype: jnp.dtype, seed: int = 0) -> jax.Array:
    """The surplus rows are the largest."""
    x = np.random.default_rng(seed).standard_normal((rows, VOCAB)) * 2
    x[:, N_TOKENS:] += 50
    return jnp.asarray(x, dtype)


def with_ties(rows: int) -> jax.Array:
    """Few values, zeros of both signs among them."""
    x = np.random.default_rng(1).choice([-1.5, -0.0, 0.0, 0.5, 2.0], (rows, VOCAB))
    return jnp.asarray(x, jnp.float32)


def draw_with(uniform: npt.ArrayLike, logits: jax.Array, method: Method, backend: Backend) -> np.ndarray:
    """Ids [B], where `uniform` [B] stands for what the keys would give."""
    table, keys = jnp.asarray(uniform, jnp.float32), jax.vmap(jax.random.key)(jnp.arange(len(logits)))
    seen = jnp.zeros(logits.shape, bool).at[:, jnp.asarray(SEEN)].set(True)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(logits: jax.Array) -> jax.Array:
        return draw(logits, keys, method.form, method.values, N_TOKENS, seen, backend)

    with pytest.MonkeyPatch.context() as patch:
        # The key of row i is key(i), whose last word is i.
        patch.setattr(jax.random, "uniform", lambda key, **_: table[jax.random.key_data(key)[-1]])
        return np.asarray(run(logits))
