"""What may be asked of a sampler, the shapes that are made of it, and what compiles again."""

import inspect
from typing import Any

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_tools import PLAIN, PROMPTS, text_of, tiny_sampler, tokenizer, twin
from sampler_tools import compile_quickly as compile_quickly

from mla_jax.errors import UserError
from mla_jax.sample import loop, request
from mla_jax.sample import sampler as sampler_module
from mla_jax.sample.methods import GREEDY, Method
from mla_jax.sample.sampler import Sampler


def test_calls_of_similar_size_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other prompts, lengths, numbers of rows, seeds, new tokens and numbers of the method; another form compiles."""
    jax.clear_caches()
    take = chex.assert_max_traces(loop._take, n=2)  # one in `begin`, one in the loop
    monkeypatch.setattr(loop, "_take", take)
    sampler = tiny_sampler("mla_rope", 160)
    sampler.generate(["fox"] * 4, 20, 0.8, 40, 0)
    sampler.generate([PROMPTS[0], "", "fox", "old key"], 33, 0.7, 12, 4)
    sampler.generate([""] * 4, 63, 0.1, 1, [1, 2, 3, 4])
    with pytest.raises(AssertionError, match="traced"):
        sampler.generate(["fox"] * 4, 20, temperature=0)


@pytest.mark.parametrize(
    ("n", "smallest", "wanted"),
    [(1, 1, 1), (3, 1, 3), (5, 1, 6), (7, 1, 8), (1, 64, 64), (65, 64, 96), (97, 64, 128), (129, 64, 192)],
)
def test_buckets(n: int, smallest: int, wanted: int) -> None:
    assert request.bucket(n, smallest) == wanted


def asked(prompts: list[str], max_new_tokens: int | None, chunk: int = 1024) -> request.Request:
    config = tiny_sampler("mla_rope", 200, chunk).config
    return request.build(tokenizer(), config, prompts, GREEDY, max_new_tokens, 7, (), "auto")


def test_the_shapes_of_a_request() -> None:
    """Rows are not rounded where they need not be; a prompt that fits into a piece is one; the rest only fills."""
    found = asked(["fox"], 20)
    assert found.rows == len(found.tokens) == 1 and found.columns == 64 and found.cache_length == 64
    assert found.pieces == ((0, 64),) and found.tokens.shape == (1, 64)
    found = asked(["fox"] * 5, 80)
    assert found.rows == 5 and found.tokens.shape == (6, 64) and found.columns == 96 and found.cache_length == 96
    assert found.limit.tolist() == [80] * 5 + [0] and found.lengths[5] == 1
    assert found.seeds.tolist() == [7, 8, 9, 10, 11, 0]
    assert asked(["fox"], 150).cache_length == 192 and asked(["fox"], 190).cache_length == 200
    words = tokenizer().decode(tokenizer().encode("fox " * 90)[:99])
    length = 1 + len(tokenizer().encode(words))
    assert asked([words], 8, chunk=length).pieces == ((0, request.bucket(length, 64)),)
    pieces = asked([words], 8, chunk=32).pieces
    assert [end - start for start, end in pieces] == [32] * len(pieces) and len(pieces) == -(-length // 32)
    assert pieces[-1][0] < length <= pieces[-1][1] and asked([words], 8, chunk=32).tokens.shape[1] == pieces[-1][1]


def test_the_settings_of_a_config_are_keywords_of_generate() -> None:
    cfg = tiny_sampler("mla_rope").config.sample
    settings = sampler_module.sample_settings(cfg)
    wanted = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "cache_dtype", "stop")
    assert settings == {name: getattr(cfg, name) for name in (*wanted, "max_new_tokens")}
    for call in (Sampler.generate_with_details, Sampler.stream):
        assert set(settings) <= set(inspect.signature(call).parameters)


def test_by_default_a_row_has_the_runs_number_of_new_tokens_or_what_fits() -> None:
    """What fits behind its own prompt: a longer mate does not cut it."""
    cfg = tiny_sampler("mla_rope", 200).config.sample
    assert cfg.max_new_tokens == 8 and asked(["fox"], None).limit.tolist() == [8]
    long = text_of(194, "fox " * 120)
    found = asked(["fox", long], None)
    assert found.lengths.tolist() == [1 + len(tokenizer().encode("fox")), 195]
    assert found.limit.tolist() == [8, 5] and found.cache_length == 200
    with pytest.raises(UserError, match=r"max_new_tokens is at least 1; together they must not exceed .*\(200\)"):
        asked(["fox", "fox " * 120], None)
    sampler = tiny_sampler("mla_rope")
    for text in (sampler.generate([PROMPTS[0]], **PLAIN)[0], "".join(sampler.stream(PROMPTS[0], **PLAIN))):
        assert text == sampler.generate([PROMPTS[0]], 8, **PLAIN)[0]


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
        (["fox"], {"top_p": 0}, "top_p is 0;"),
        (["fox"], {"min_p": 2}, "min_p is 2;"),
        (["fox"], {"repetition_penalty": 0}, "repetition_penalty is 0;"),
        (["fox"], {"stop": "."}, "stop is '.'"),
        (["fox"], {"stop": ["a", ""]}, "stop is ['a', '']"),
        (["fox"], {"stop": ["a", 13]}, "stop is ['a', 13]"),
        (["fox"], {"cache_dtype": "int4"}, "cache_dtype is 'int4'"),
        (["fox", "key"], {"seed": [1]}, "seed has 1 numbers for 2 prompts"),
        (["fox"], {"seed": [2**32]}, "seed is 4294967296"),
        ("fox", {}, "prompts is 'fox'"),
        ([None], {}, "prompts is [None]"),
        (["fox"], {"seed": -1}, "seed is -1"),
        (["fox"], {"seed": 2**32}, "seed is 4294967296"),
        (["\ud800"], {}, "surrogate"),
        ([], {}, "prompts is []; it must hold at least one string"),
        ([], {"max_new_tokens": -5}, "prompts is []"),
        (None, {}, "prompts is None"),
        (iter(["fox"]), {}, "prompts is <list_iterator"),
        (["fox"], {"temperature": "x"}, "temperature is 'x'; it must be a number"),
        (["fox"], {"temperature": None}, "temperature is None"),
        (["fox"], {"top_k": 2.7}, "top_k is 2.7; it must be a whole number"),
        (["fox"], {"top_k": True}, "top_k is True"),
        (["fox"], {"top_k": 2**31}, "top_k is 2147483648"),
        (["fox"], {"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        (["fox"], {"max_new_tokens": "4"}, "max_new_tokens is '4'"),
        (["fox"], {"repetition_penalty": 1e-4}, "repetition_penalty is 0.0001; it must be between 0.001 and 1000"),
        (["fox"], {"seed": 1.5}, "seed is 1.5"),
        (["fox"], {"seed": [1.9]}, "seed is 1.9"),
        (["fox"], {"seed": None}, "seed is None"),
        (["fox"], {"seed": jax.random.key(0)}, "seed is Array"),
        (["fox"], {"stop": None}, "stop is None"),
        (["fox"], {"cache_dtype": None}, "cache_dtype is None"),
        (["fox"], {"cache_dtype": ["auto"]}, "cache_dtype is ['auto']"),
        (["fox"], {"logprobs": "yes"}, "logprobs is 'yes'"),
    ],
)
def test_bad_requests_are_refused_before_tracing(
    monkeypatch: pytest.MonkeyPatch, prompts: Any, settings: dict, words: str
) -> None:
    def traced(*_: object) -> None:
        pytest.fail("it was traced")

    for name in ("prefill", "extend", "begin", "decode_loop", "decode_until_done"):
        monkeypatch.setattr(loop, name, traced)
    sampler, settings = tiny_sampler("mla_rope"), {"max_new_tokens": 8} | settings
    with pytest.raises(UserError) as error:
        sampler.generate(prompts, **settings)
    assert words in str(error.value)
    if isinstance(prompts, list) and len(prompts) == 1 and "logprobs" not in settings:
        with pytest.raises(UserError):
            sampler.stream(prompts[0], **settings)


def test_a_prompt_may_fill_the_model_to_the_last_position() -> None:
    sampler = tiny_sampler("mla_rope")
    prompt, count = PROMPTS[0], 64 - 1 - len(tokenizer().encode(PROMPTS[0]))
    found = sampler.generate_with_details([prompt], count, temperature=0)[0]
    assert list(found.tokens) == twin("mla_rope", prompt, count, GREEDY)


def test_numbers_and_lists_of_numpy_and_jax_are_as_good_as_pythons() -> None:
    sampler = tiny_sampler("mla_rope")
    python = {"max_new_tokens": 6, "temperature": 0.75, "top_k": 60, "min_p": 0.125, "seed": [4, 9]}
    others = {"max_new_tokens": np.int64(6), "temperature": np.float32(0.75), "top_k": jnp.int32(60)}
    others |= {"min_p": jnp.bfloat16(0.125), "seed": np.asarray([4, 9], np.uint32)}
    wanted = sampler.generate(PROMPTS[:2], **python)
    assert sampler.generate(np.asarray(PROMPTS[:2]), **others) == wanted
    assert sampler.generate(tuple(PROMPTS[:2]), **python | {"seed": jnp.asarray([4, 9])}) == wanted
    assert Method(np.float32(0.5), np.int8(3)) == Method(0.5, 3) and type(Method(0, np.int8(3)).top_k) is int
