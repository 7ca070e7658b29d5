"""mla_jax.sample: greedy equals the argmax of the plain forward pass, rows are independent, draws follow the method."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_tools import story_texts
from tiny import NAMED, quick_jit, random_params, reference_model, tiny_config

from mla_jax import config as config_lib
from mla_jax.data.tokenizer import Tokenizer, train_tokenizer
from mla_jax.errors import UserError
from mla_jax.model.transformer import variables_of
from mla_jax.sample import sampler as sampler_module
from mla_jax.sample.methods import Method, draw
from mla_jax.sample.sampler import Sampler

PROMPTS = ["once upon a time", "", "the little fox found an old key", "caf\u00e9 \u65e5\u672c \U0001f600 \t\n"]


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(story_texts(200), 320))


@functools.cache
def tiny_sampler(name: str, max_len: int = 64) -> Sampler:
    """Random weights, and more embedding rows than the tokenizer has pieces."""
    config = tiny_config(name, **{"model.max_len": max_len, "tokenizer.vocab_size": 320, "model.vocab_size": 0})
    config = config_lib.replace(config, **{"model.vocab_size": tokenizer().vocab_size + 9})
    model = reference_model(config)
    return Sampler(model, variables_of(random_params(model)), tokenizer(), config)


def argmax_roll_out(sampler: Sampler, prompt: str, count: int) -> str:
    """`count` greedy tokens by full forward passes without a cache; the row is padded, which causality hides."""
    forward = quick_jit(lambda variables, tokens: sampler.model.apply(variables, tokens)[0])
    separator = sampler.tokenizer.separator_id
    ids = [separator, *sampler.tokenizer.encode(prompt)]
    start = len(ids)
    for _ in range(count):
        row = np.full((1, sampler.config.model.max_len), separator, np.int32)
        row[0, : len(ids)] = ids
        logits = forward(sampler.variables, jnp.asarray(row))[0, len(ids) - 1, : sampler.tokenizer.vocab_size]
        ids.append(int(jnp.argmax(logits)))
        if ids[-1] == separator:
            return sampler.tokenizer.decode(ids[start:-1])
    return sampler.tokenizer.decode(ids[start:])


@pytest.mark.parametrize("name", NAMED)
def test_greedy_is_the_argmax_of_the_plain_forward_pass(name: str) -> None:
    sampler = tiny_sampler(name)
    found = sampler.generate(PROMPTS, max_new_tokens=12, temperature=0)
    wanted = [argmax_roll_out(sampler, prompt, 12) for prompt in (PROMPTS[0], PROMPTS[1], PROMPTS[3])]
    assert [found[0], found[1], found[3]] == wanted
    assert all(found) and len(set(found)) > 1


def test_a_row_does_not_depend_on_its_mates() -> None:
    """Neither their texts nor a length that makes all rows longer, and the cache with them."""
    sampler = tiny_sampler("mla_rope", 160)
    assert len(tokenizer().encode("fox " * 40)) > 64
    together = sampler.generate([PROMPTS[0], "fox " * 40, PROMPTS[2]], max_new_tokens=16, temperature=1.0, seed=5)
    assert sampler.generate([PROMPTS[0]], max_new_tokens=16, temperature=1.0, seed=5) == [together[0]]
    assert sampler.generate([PROMPTS[2]], max_new_tokens=16, temperature=1.0, seed=7) == [together[2]]


def test_the_seed_decides() -> None:
    sampler = tiny_sampler("mla_rope")
    settings = {"max_new_tokens": 16, "temperature": 1.0}
    one = sampler.generate([PROMPTS[0]] * 3, seed=1, **settings)
    assert one == sampler.generate([PROMPTS[0]] * 3, seed=1, **settings)
    assert len(set(one)) == 3
    assert sampler.generate([PROMPTS[0]] * 3, seed=2, **settings)[:2] == one[1:]
    assert sampler.generate([PROMPTS[0]] * 3, seed=2**32 - 1, **settings)[2] == one[0]  # seeds wrap around


def test_a_story_ends_at_its_separator() -> None:
    """Nearly uniform draws: some of 64 rows meet the separator, and nothing follows it."""
    sampler = tiny_sampler("mha")
    separator, count = tokenizer().separator_id, 24
    tokens = np.full((64, 1), separator, np.int32)
    keys = jax.vmap(jax.random.key)(jnp.arange(64))
    rows = sampler_module._generate(
        *(sampler.model, Method(1e6, 0), 64, count, tokenizer().vocab_size, separator, sampler.variables),
        *(jnp.asarray(tokens), jnp.ones(64, jnp.int32), keys),
    )
    rows = np.asarray(rows)
    assert rows.shape == (64, count) and rows.max() < tokenizer().vocab_size
    ended = 0
    for row in rows:
        ends = np.flatnonzero(row == separator)
        if len(ends):
            ended += 1
            assert (row[ends[0] :] == separator).all()
            assert sampler._text(row) == tokenizer().decode(row[: ends[0]].tolist())
        else:
            assert sampler._text(row) == tokenizer().decode(row.tolist())
    assert 0 < ended < 64


@pytest.mark.parametrize(
    ("prompts", "settings", "words"),
    [
        (["fox " * 60], {}, "model.max_len (64)"),
        (["fox"], {"max_new_tokens": 63}, "max_new_tokens is 63"),
        (["fox"], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (["fox"], {"temperature": -0.1}, "temperature is -0.1"),
        (["fox"], {"temperature": float("nan")}, "temperature is nan"),
        (["fox"], {"temperature": float("inf")}, "temperature is inf"),
        (["fox"], {"top_k": -1}, "top_k is -1"),
        (["fox"], {"seed": -1}, "seed is -1"),
        (["fox"], {"seed": 2**32}, "seed is 4294967296"),
        (["\ud800"], {}, "surrogate"),
    ],
)
def test_bad_requests_are_refused_before_tracing(
    monkeypatch: pytest.MonkeyPatch, prompts: list[str], settings: dict, words: str
) -> None:
    def traced(*_: object) -> None:
        pytest.fail("it was traced")

    monkeypatch.setattr(sampler_module, "_generate", traced)
    with pytest.raises(UserError) as error:
        tiny_sampler("mla_rope").generate(prompts, **({"max_new_tokens": 8} | settings))
    assert words in str(error.value)


def test_a_prompt_may_fill_the_model_to_the_last_position() -> None:
    sampler = tiny_sampler("mla_rope")
    prompt, count = PROMPTS[0], 64 - 1 - len(tokenizer().encode(PROMPTS[0]))
    assert sampler.generate([prompt], count, temperature=0) == [argmax_roll_out(sampler, prompt, count)]


def test_no_prompts_no_stories() -> None:
    assert tiny_sampler("mla_rope").generate([]) == []


LOGITS = jnp.asarray([0.0, 2.0, 1.0, -1.0, 0.5, 9.0, 99.0])  # the last two are surplus rows
N_TOKENS = 5


@functools.partial(jax.jit, static_argnums=(0, 1))
def shares(method: Method, count: int = 40_000) -> jax.Array:
    """How often each token is drawn, [7]."""
    keys = jax.vmap(jax.random.key)(jnp.arange(count))
    ids = draw(jnp.broadcast_to(LOGITS, (count, 7)), keys, method, N_TOKENS)
    return jnp.bincount(ids, length=7) / count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [0, 1, 3, 5, 100])
def test_draws_follow_temperature_and_top_k(temperature: float, top_k: int) -> None:
    logits = np.asarray(LOGITS[:N_TOKENS], np.float64)
    kept = logits >= np.sort(logits)[-top_k] if 0 < top_k < N_TOKENS else np.full(N_TOKENS, True)
    wanted = np.where(kept, np.exp(logits / temperature), 0)
    wanted = np.pad(wanted / wanted.sum(), (0, 2))
    found = np.asarray(shares(Method(temperature, top_k)))
    np.testing.assert_allclose(found, wanted, atol=0.012)  # five standard errors of 40,000 draws
    assert (found[wanted == 0] == 0).all()


@pytest.mark.parametrize("top_k", [0, 1, 3, 6, 100])
def test_temperature_0_is_greedy_and_never_a_surplus_row(top_k: int) -> None:
    assert np.asarray(shares(Method(0.0, top_k), 10)).argmax() == 1


def test_draws_are_in_float32_whatever_the_logits_are() -> None:
    key = jax.random.key(0)[None]
    ids = draw(jnp.zeros((1, 9), jnp.bfloat16), key, Method(1.0, 0), 9)
    assert ids.dtype == jnp.int32
    assert ids == draw(jnp.zeros((1, 9), jnp.float32), key, Method(1.0, 0), 9)
