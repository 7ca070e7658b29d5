"""The decode loop updates the cache where it lies: its optimised program copies no array of a cache's size."""

import re

import jax
import jax.numpy as jnp
import pytest
from tiny import random_params, reference_model, tiny_config

from mla_jax.model.cache import init_cache

BATCH, CAPACITY = 3, 24


def while_bodies(hlo: str) -> str:
    """The text of the computations that are bodies of while loops."""
    names = set(re.findall(r"body=%?([\w.\-]+)", hlo))
    blocks = re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ \(.*\{)", hlo)
    return "\n".join(b for b in blocks if (m := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(", b)) and m[1] in names)


def copied_shapes(text: str) -> set[str]:
    """Shapes, e.g. "3,24,8", of the results of copy instructions."""
    return set(re.findall(r"= \w+\[([\d,]+)\]\S* copy(?:-start)?\(", text))


@pytest.mark.parametrize("name", ["mla_rope", "mha_rope", pytest.param("mla_per_head", marks=pytest.mark.slow)])
def test_a_decode_loop_copies_no_cache(name: str) -> None:
    config = tiny_config(name, **{"model.max_len": CAPACITY})
    model = reference_model(config)
    params = random_params(model)
    store = init_cache(config.model, BATCH, CAPACITY, jnp.float32)

    def loop(tokens, start, store):
        def step(_, carry):
            tokens, start, store = carry
            logits, store = model.apply({"params": params}, tokens[:, None], start, store, method="decode")
            return jnp.argmax(logits[:, 0], -1).astype(jnp.int32), start + 1, store

        return jax.lax.fori_loop(0, 8, step, (tokens, start, store))

    tokens = start = jnp.zeros(BATCH, jnp.int32)
    hlo = jax.jit(loop, donate_argnums=2).lower(tokens, start, store).compile().as_text()
    bodies = while_bodies(hlo)
    assert "dot(" in bodies or "fusion(" in bodies, "the loop was not found"
    shapes = {",".join(map(str, leaf.shape)) for leaf in jax.tree.leaves(store)}
    assert not shapes & copied_shapes(bodies), "a cache is copied at every step"


def test_the_search_finds_a_copy_that_is_there() -> None:
    """A loop that keeps the old value has to copy it."""

    def loop(a):
        return jax.lax.fori_loop(0, 4, lambda i, c: (c[0].at[i].set(c[1][0]), c[0]), (a, a))

    hlo = jax.jit(loop, donate_argnums=0).lower(jnp.zeros((7, 5))).compile().as_text()
    assert "7,5" in copied_shapes(while_bodies(hlo))
