"""The whole grid: cached decode, causality, shapes, scan, stories kept apart, dropout, surplus rows."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    NAMED,
    REFERENCE,
    SIZES,
    SLOW_GRID,
    abstract_params,
    grid_config,
    quick_jit,
    random_params,
    random_tokens,
    reference_model,
    tiny_config,
)

from mla_jax import accounting
from mla_jax.config import Config
from mla_jax.config_files import load_config
from mla_jax.model import stream
from mla_jax.model.attention import Where
from mla_jax.model.backend import Backend
from mla_jax.model.cache import init_cache
from mla_jax.model.transformer import Transformer
from mla_jax.train.loss import cross_entropy

TOLERANCE = 1e-5  # float32, logits of size 1 to 10
ROWS, LENGTH, WIDTH = 4, 16, 9  # the cache's length is the model's
LENGTHS = (1, 4, 8, 9)  # of the prompts, padded to WIDTH


@functools.lru_cache(maxsize=64)
def model_and_params(config: Config) -> tuple[Transformer, Any]:
    model = reference_model(config)
    return model, random_params(model)


@pytest.mark.parametrize("point", SLOW_GRID)
def test_cached_decode_equals_the_full_forward_pass(point: str) -> None:
    """Ragged prompts, then one token at a time, every row to the cache's last position.

    One layer: that several fit together is the next test's part.
    """
    config = grid_config(point, **{"model.n_layers": 1})
    model, params = model_and_params(config)
    tokens, lengths = random_tokens(config, ROWS, LENGTH), jnp.asarray(LENGTHS)

    def both(params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        apply = functools.partial(model.apply, {"params": params})
        store = init_cache(config.model, ROWS, LENGTH, jnp.float32)
        # The padding is another text: nothing of it may be seen.
        column = jnp.arange(WIDTH)
        padded = jnp.where(column < lengths[:, None], tokens[:, :WIDTH], (tokens[:, :WIDTH] + 7) % 40)
        prefilled, store = apply(padded, lengths, store, method="prefill")

        def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
            start, store = carry
            token = jnp.take_along_axis(tokens, jnp.minimum(start, LENGTH - 1)[:, None], axis=1)
            logits, store = apply(token, start, store, method="decode")
            return (start + 1, store), logits[:, 0]

        decoded = jax.lax.scan(step, (lengths, store), None, length=LENGTH - min(LENGTHS))[1]
        return apply(tokens)[0], prefilled, decoded

    full, prefilled, decoded = map(np.asarray, quick_jit(both)(params, tokens))
    assert np.abs(full).max() > 1  # large enough for the tolerance to mean something
    compared = 0
    for row, length in enumerate(LENGTHS):
        np.testing.assert_allclose(prefilled[row], full[row, length - 1], atol=TOLERANCE, rtol=0)
        for position in range(length, LENGTH):
            np.testing.assert_allclose(decoded[position - length, row], full[row, position], atol=TOLERANCE, rtol=0)
            compared += 1
    assert compared == sum(LENGTH - length for length in LENGTHS)


@pytest.mark.parametrize("name", NAMED)
def test_decode_of_several_tokens_at_once(name: str) -> None:
    """A chunk on top of a cache, from another position in every row, up to the last one."""
    config = tiny_config(name)
    model, params = model_and_params(config)
    tokens, starts, chunk = random_tokens(config, 3, LENGTH), jnp.asarray([1, 6, 11]), 5

    def both(params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        apply = functools.partial(model.apply, {"params": params})
        store = init_cache(config.model, 3, LENGTH, jnp.float32)
        store = apply(tokens[:, :11], starts, store, method="prefill")[1]
        some = jnp.take_along_axis(tokens, starts[:, None] + jnp.arange(chunk), axis=1)
        return apply(tokens)[0], apply(some, starts, store, method="decode")[0]

    full, decoded = map(np.asarray, quick_jit(both)(params, tokens))
    for row, start in enumerate([1, 6, 11]):
        np.testing.assert_allclose(decoded[row], full[row, start : start + chunk], atol=TOLERANCE, rtol=0)


def one_story(length: int) -> Where:
    """As Where(), in arrays, so that one compiled program serves texts with and without stories kept apart."""
    return Where(jnp.arange(length)[None], jnp.ones((1, length), jnp.int32))


@pytest.mark.parametrize("name", [name for name in NAMED if name != "mla_rope_paper_b"])  # mla_rope, but for a width
def test_causality_by_gradient(name: str) -> None:
    """d logits[t] / d (embedding of token s) is exactly 0 for s > t, for s in another story, and nowhere else."""
    length = 8
    config = tiny_config(name, **{"model.vocab_size": length + 1})
    model, params = model_and_params(config)
    tokens = jnp.arange(length)[None]  # all different: a row of the embedding is a position of the text

    def logit_of_an_absent_token(embedding: jax.Array, where: Where) -> jax.Array:
        # Its own row is the output matrix's part in the gradient, and it is never an input.
        return model.apply({"params": params | {"embedding": embedding}}, tokens, where)[0][0, :, length]

    jacobian = quick_jit(jax.jacrev(logit_of_an_absent_token))
    two_stories = Where(jnp.asarray([[0, 1, 2, 0, 1, 2, 3, 4]]), jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 2]]))
    for where in (one_story(length), two_stories):
        influence = np.abs(np.asarray(jacobian(params["embedding"], where)))[:, :length].max(axis=-1)  # [t, s]
        segments = np.asarray(where.segment_ids[0])
        allowed = np.tril(np.ones((length, length), bool)) & (segments[:, None] == segments)
        assert (influence[~allowed] == 0).all()
        assert (influence[allowed] > 1e-6).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMED)
def test_shapes_of_every_size_and_variant(name: str, size: str) -> None:
    config = load_config(f"{name}:{size}", **{"model.vocab_size": 8192})
    model = Transformer(config.model, Backend("bfloat16", "xla"))

    shape = jax.ShapeDtypeStruct
    tokens, lengths = shape((2, 32), jnp.int32), shape((2,), jnp.int32)
    (logits, aux), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), tokens)
    assert (logits.shape, logits.dtype) == ((2, 32, 8192), jnp.bfloat16)
    assert (aux.attn_logit_max.shape, aux.attn_logit_max.dtype) == (
        (config.model.n_layers, config.model.n_heads),
        jnp.float32,
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    real = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))
    assert real == accounting.params(config.model)["total"]

    def cached(variables: Any, tokens: jax.Array, lengths: jax.Array) -> Any:
        store = init_cache(config.model, 2, 512)[:2]  # all layers are alike: two say whether they fit each other
        prefilled, filled = model.apply(variables, tokens, lengths, store, method="prefill")
        decoded, grown = model.apply(variables, tokens[:, :1], lengths, filled, method="decode")
        return prefilled, decoded, store, filled, grown

    prefilled, decoded, store, filled, grown = jax.eval_shape(cached, variables, tokens, lengths)
    assert (prefilled.shape, decoded.shape) == ((2, 8192), (2, 1, 8192))
    assert store == filled == grown  # shapes and dtypes: a decode step can be given its own output


@pytest.mark.parametrize(
    ("point", "dropout"),
    [("joint-decoupled-norm_rms", 0.3), ("per_head-decompressed-norm_none", 0.0)],
)
def test_scanned_layers_equal_unrolled_ones(point: str, dropout: float) -> None:
    knobs = {"model.dropout": dropout}
    unrolled, scanned = (grid_config(point, **knobs, **{"model.scan_layers": scan}) for scan in (False, True))
    params = random_params(reference_model(unrolled))
    assert jax.tree.structure(params) == jax.tree.structure(abstract_params(reference_model(scanned)))
    tokens = random_tokens(unrolled, 2, 8)

    def loss_of(config: Config) -> Any:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            key = jax.random.key(3, impl="rbg") if dropout else None  # as the train step makes it
            logits, aux = reference_model(config).apply({"params": params}, tokens, dropout_key=key)
            return jnp.mean(jnp.sin(logits)), (logits, aux)

        return quick_jit(jax.value_and_grad(loss, has_aux=True))

    one, other = loss_of(unrolled)(params), loss_of(scanned)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=0), one, other)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(one[1])) > 1e-3


STORY_POINTS = [
    "mha-learned",
    "gqa-rope",
    "joint-learned-norm_rms",
    "joint-decoupled-norm_rms",
    "joint-decompressed-norm_rms",
    "per_head-decoupled-norm_none",
    "per_head-decompressed-norm_none",
]


@pytest.mark.parametrize("point", STORY_POINTS)
def test_the_document_mask_keeps_stories_apart(point: str) -> None:
    config = grid_config(point)
    model, params = model_and_params(config)
    first, second = 6, 10
    tokens = random_tokens(config, 1, LENGTH)
    changed = tokens.at[:, :first].set((tokens[:, :first] + 5) % 40)
    positions = jnp.concatenate([jnp.arange(first), jnp.arange(second)])[None]
    where = Where(positions, jnp.asarray([[1] * first + [2] * second]))

    run = quick_jit(lambda tokens, where: model.apply({"params": params}, tokens, where)[0])
    apart, other = run(tokens, where), run(changed, where)
    np.testing.assert_array_equal(apart[:, first:], other[:, first:])
    assert float(jnp.abs(apart[:, :first] - other[:, :first]).max()) > 0.1
    # Positions restart: the second story reads as if it stood alone (what follows it is not seen).
    alone = run(jnp.roll(tokens, -first, axis=1), one_story(LENGTH))[:, :second]
    np.testing.assert_allclose(apart[:, first:], alone, atol=TOLERANCE, rtol=0)
    # Without the mask, stories do see each other, so the above is the mask's doing.
    together = run(tokens, one_story(LENGTH)) - run(changed, one_story(LENGTH))
    assert float(jnp.abs(together[:, first:]).max()) > 0.1


@pytest.mark.parametrize("name", ["mha", "mla_rope"])
def test_no_positions_are_the_plain_ones(name: str) -> None:
    config = tiny_config(name)
    model, params = model_and_params(config)
    tokens = random_tokens(config, 1, LENGTH)
    run = quick_jit(lambda where: model.apply({"params": params}, tokens, where)[0])
    np.testing.assert_allclose(run(Where()), run(one_story(LENGTH)), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("point", ["mha-rope", "joint-decoupled-norm_rms"])
def test_the_largest_attention_logit_is_the_first_rows(point: str) -> None:
    """Held to a model of one layer whose attention is computed by hand from the module's own q and k."""
    config = grid_config(point)
    model, params = model_and_params(config)
    tokens = random_tokens(config, 3, 8)
    run = quick_jit(lambda tokens: model.apply({"params": params}, tokens)[1].attn_logit_max)
    all_rows, first = run(tokens), run(tokens[:1])
    np.testing.assert_allclose(all_rows, first, atol=TOLERANCE, rtol=0)
    assert all_rows.shape == (2, 4)
    assert float(jnp.abs(run(tokens[1:]) - first).max()) > 1e-3


@pytest.fixture(scope="module")
def dropping() -> Any:
    config = tiny_config("mla_rope", **{"model.dropout": 0.2})
    model, params = model_and_params(config)
    tokens = random_tokens(config, 2, 8)
    run = quick_jit(lambda key: model.apply({"params": params}, tokens, dropout_key=key)[0])
    plain = model_and_params(tiny_config("mla_rope"))[0]
    return run, np.asarray(run(None)), np.asarray(plain.apply({"params": params}, tokens)[0])


def test_dropout_is_off_without_a_key(dropping: Any) -> None:
    run, without_key, without_dropout = dropping
    np.testing.assert_array_equal(without_key, run(None))
    np.testing.assert_allclose(without_key, without_dropout, atol=TOLERANCE, rtol=0)


def test_dropout_is_a_function_of_its_key(dropping: Any) -> None:
    run, without_key, _ = dropping
    one, again, other = (np.asarray(run(jax.random.key(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - without_key).max() > 0.1
    assert np.abs(one - other).max() > 0.1


def test_dropout_keeps_the_mean_and_drops_the_rate() -> None:
    x = jnp.ones((200, 200))
    y = np.asarray(stream.dropout(x, 0.2, jax.random.key(0)))
    np.testing.assert_allclose(y[y != 0], 1 / 0.8, rtol=1e-5)
    assert abs((y == 0).mean() - 0.2) < 0.01  # 5 standard deviations
    np.testing.assert_array_equal(stream.dropout(x, 0.0, jax.random.key(0)), x)
    np.testing.assert_array_equal(stream.dropout(x, 0.2, None), x)


def test_every_place_of_dropout_has_a_key_of_its_own() -> None:
    """With all blocks alike, one key for two places would drop the same entries twice."""
    seen: list[bytes] = []
    original = stream.dropout

    def watched(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
        seen.append(np.asarray(jax.random.key_data(key)).tobytes())
        return original(x, rate, key)

    config = tiny_config("mha", **{"model.dropout": 0.2})
    model, params = model_and_params(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "dropout", watched)
        model.apply({"params": params}, random_tokens(config, 1, 4), dropout_key=jax.random.key(0))
    assert len(seen) == len(set(seen)) == 1 + 2 * config.model.n_layers


@pytest.fixture(scope="module")
def surplus() -> Any:
    """The losses and gradients of a model with 40 rows and of one with 8 more, the tokenizer having 40 pieces."""
    knobs = {"model.n_layers": 1}
    narrow, wide = (tiny_config("mla_rope", **knobs, **{"model.vocab_size": rows}) for rows in (40, 48))
    tokens = random_tokens(narrow, 2, 9)
    params = random_params(reference_model(wide))

    def run(config: Config, params: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            logits = reference_model(config).apply({"params": params}, tokens[:, :-1])[0]
            return jnp.mean(cross_entropy(logits, tokens[:, 1:], 40))

        return quick_jit(jax.value_and_grad(loss))(params)

    return run(wide, params), run(narrow, params | {"embedding": params["embedding"][:40]})


def test_surplus_rows_change_no_loss_and_learn_nothing(surplus: Any) -> None:
    (wide_loss, wide_grad), (narrow_loss, narrow_grad) = surplus
    np.testing.assert_allclose(wide_loss, narrow_loss, atol=TOLERANCE, rtol=0)
    rows = np.asarray(wide_grad.pop("embedding"))
    assert (rows[40:] == 0).all()
    np.testing.assert_allclose(rows[:40], narrow_grad.pop("embedding"), atol=TOLERANCE, rtol=0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=0), wide_grad, narrow_grad)


def test_position_none_knows_no_order_but_the_causal_one() -> None:
    """The last token's logits do not change when the tokens before it change places; with positions they do."""
    for position, moves in (("none", False), ("learned", True), ("rope", True)):
        config = tiny_config("mha", **{"model.position": position, "model.n_layers": 1})
        model, params = model_and_params(config)
        tokens = random_tokens(config, 1, 8)
        swapped = tokens.at[0, jnp.asarray([1, 4])].set(tokens[0, jnp.asarray([4, 1])])
        run = quick_jit(lambda tokens, model=model, params=params: model.apply({"params": params}, tokens)[0][0, -1])
        difference = float(jnp.abs(run(tokens) - run(swapped)).max())
        assert (difference > 1e-3) == moves, position
        assert difference < TOLERANCE or moves


def test_bfloat16_computes_in_bfloat16_on_float32_weights() -> None:
    config = tiny_config("mla_rope")
    params = random_params(reference_model(config))
    tokens = random_tokens(config, 2, 8)
    half = quick_jit(Transformer(config.model, Backend("bfloat16", "xla")).apply)({"params": params}, tokens)[0]
    full = quick_jit(Transformer(config.model, REFERENCE).apply)({"params": params}, tokens)[0]
    assert half.dtype == jnp.bfloat16
    error = float(jnp.abs(half.astype(jnp.float32) - full).max())
    assert 1e-3 < error < 0.3  # rounded, but the same function
