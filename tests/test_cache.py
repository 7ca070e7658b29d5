"""mla_jax.model.cache: int8 latents with a scale per token: what rounding costs, and where the scales are applied."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import grid_config, quick_jit, random_params, random_tokens, reference_model

from mla_jax.model import cache
from mla_jax.model.cache import LatentCache, PerHeadLatentCache, init_cache

ROWS, LENGTH, PROMPT = 3, 16, 9
POINTS = [
    "joint-decoupled-norm_rms",
    "joint-learned-norm_none",
    "per_head-decoupled-norm_none",
    "per_head-none-norm_rms",
    "joint-decompressed-norm_rms",
    "per_head-decoupled-qk_norm",
]


def entries(kind: str, rows: int = 2, length: int = 5) -> LatentCache | PerHeadLatentCache:
    rng = np.random.default_rng(0)
    shape = (rows, length, 12) if kind == "joint" else (rows, length, 4, 5)
    latents = [
        jnp.asarray(rng.standard_normal(shape) * 10 ** rng.uniform(-3, 3, (rows, length, *(1,) * (len(shape) - 2))))
    ]
    latents.append(latents[0][:, ::-1] * 3)
    k_rope = jnp.asarray(rng.standard_normal((rows, length, 4)), jnp.float32)
    if kind == "joint":
        return LatentCache(latents[0].astype(jnp.float32), k_rope)
    return PerHeadLatentCache(latents[0].astype(jnp.float32), latents[1].astype(jnp.float32), k_rope)


@pytest.mark.parametrize("kind", ["joint", "per_head"])
def test_rounding_is_half_a_step_of_the_tokens_own_largest(kind: str) -> None:
    exact = entries(kind)
    held = cache.quantise(exact)
    back = cache.dequantise(cache.read(held, jnp.float32))
    assert jax.tree.structure(back) == jax.tree.structure(exact)
    for before, after in zip(jax.tree.leaves(exact), jax.tree.leaves(back), strict=True):
        largest = jnp.max(jnp.abs(before), axis=tuple(range(2, before.ndim)), keepdims=True)
        assert (jnp.abs(after - before) <= largest / 127 / 2 * 1.0001).all()
    latents = jax.tree.leaves(held)[0]
    assert latents.dtype == jnp.int8 and int(jnp.abs(latents).max()) == 127


def test_a_token_of_zeros_stays_zeros() -> None:
    held = cache.quantise(LatentCache(jnp.zeros((1, 2, 4)), None))
    assert (np.asarray(cache.dequantise(cache.read(held, jnp.float32)).c_kv) == 0).all()
    assert np.isfinite(held.scale).all()


@pytest.mark.parametrize("point", POINTS)
def test_decoding_over_int8_is_decoding_over_what_int8_holds(point: str) -> None:
    """The scales, applied to logits and weights, do what multiplying the latents would: float32, 1e-5.

    And rounding costs little: logits of size 1 to 10 move by less than 0.2, and move.
    """
    config = grid_config(point)
    model, tokens = reference_model(config), random_tokens(config, ROWS, LENGTH)
    lengths = jnp.asarray([1, 5, PROMPT])

    def run(params: dict, tokens: jax.Array) -> tuple[jax.Array, ...]:
        apply = functools.partial(model.apply, {"params": params})

        def decode(store: cache.Cache) -> jax.Array:
            some = jnp.take_along_axis(tokens, lengths[:, None] + jnp.arange(3), axis=1)
            return apply(some, lengths, store, method="decode")[0]

        def first_token_only(store: cache.Cache) -> jax.Array:
            some = jnp.take_along_axis(tokens, lengths[:, None], axis=1)
            return apply(some, lengths, store, method="decode")[0]

        def fill(dtype: str) -> cache.Cache:
            store = init_cache(config.model, ROWS, LENGTH, dtype)
            return apply(tokens[:, :PROMPT], lengths, store, method="prefill")[1]

        held = fill("int8")
        # The same numbers, in float32: those of the prompt as int8 holds them, and the token's own likewise.
        grown = apply(jnp.take_along_axis(tokens, lengths[:, None], axis=1), lengths, held, method="decode")[1]
        opened = tuple(cache.dequantise(cache.read(layer, jnp.float32)) for layer in grown)
        return (
            decode(held),
            decode(fill("float32")),
            first_token_only(held),
            _over(model, params, tokens, lengths, opened),
        )

    low, exact, one, over_opened = map(np.asarray, quick_jit(run)(random_params(model), tokens))
    np.testing.assert_allclose(one, over_opened, atol=1e-5, rtol=0)
    assert np.abs(exact).max() > 1
    assert 1e-4 < np.abs(low - exact).max() < 0.2


def _over(model, params, tokens, lengths, opened) -> jax.Array:
    """The decode step over a float32 cache that already holds the token: what is written there changes nothing."""

    def keep_what_is_there(store: cache.LayerCache, entries: cache.LayerCache, start: jax.Array) -> cache.LayerCache:
        return store

    some = jnp.take_along_axis(tokens, lengths[:, None], axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "write", keep_what_is_there)
        return model.apply({"params": params}, some, lengths, opened, method="decode")[0]
