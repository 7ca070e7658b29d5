"""Where a completion ends: the separator, its length, stop strings; and the stream of its text."""

import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_tools import EVERYTHING, PROMPTS, tiny_sampler, tokenizer, twin
from sampler_tools import compile_quickly as compile_quickly

from mla_jax.sample import loop
from mla_jax.sample import sampler as sampler_module
from mla_jax.sample.loop import Vocabulary
from mla_jax.sample.methods import GREEDY
from mla_jax.sample.sampler import Sampler


def test_more_steps_than_one_round_of_the_loop() -> None:
    """Every length around multiples of CHECK_EVERY, and a row's own end at any of them."""
    sampler = tiny_sampler("mla_rope")
    wanted = twin("mla_rope", PROMPTS[0], 40, GREEDY)
    for count in (1, 2, 15, 16, 17, 18, 32, 33, 40):
        found = sampler.generate_with_details([PROMPTS[0]], max_new_tokens=count, temperature=0, top_k=0)[0]
        assert list(found.tokens) == wanted[:count]


def ending_rows(rows: int = 64, count: int = 24) -> list[sampler_module.Completion]:
    """Nearly uniform draws: some rows meet the separator."""
    return tiny_sampler("mha").generate_with_details([""] * rows, count, temperature=1e6, top_k=0, logprobs=True)


def test_a_story_ends_at_its_separator() -> None:
    separator, ended = tokenizer().separator_id, 0
    for each in ending_rows():
        assert separator not in each.tokens[:-1] and len(each.logprobs) == len(each.tokens)
        if each.finish_reason == "eos":
            ended += 1
            assert each.tokens[-1] == separator and each.text == tokenizer().decode(each.tokens[:-1])
        else:
            assert each.finish_reason == "length" and len(each.tokens) == 24
            assert each.tokens[-1] != separator and each.text == tokenizer().decode(each.tokens)
    assert 0 < ended < 64


def test_nothing_is_written_past_a_rows_own_end() -> None:
    """Neither by the steps until all are done nor by a round of CHECK_EVERY."""
    sampler, vocabulary = tiny_sampler("mha"), Vocabulary(tokenizer().vocab_size, -1)
    tokens, lengths = jnp.asarray([[3, 5, 9], [3, 7, 0]]), jnp.asarray([3, 2])
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    logits, store = loop.prefill(sampler.model, 32, "float32", sampler.variables, tokens, lengths)
    state = loop.begin(logits, store, tokens, lengths, keys, jnp.asarray([18, 4]), 24, GREEDY, vocabulary)
    state = loop.decode_until_done(sampler.model, sampler.variables, state, GREEDY, vocabulary)
    written = np.asarray(state.store[0].k).any(axis=(2, 3))
    assert written[0].tolist() == [True] * 21 + [False] * 11
    assert written[1].tolist() == [True] * 6 + [False] * 26


def test_a_stop_string_ends_the_decoding_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only the text: rows are looked at every CHECK_EVERY steps; without stop strings the device is not asked."""
    sampler, steps = tiny_sampler("mla_rope"), []
    decode = loop.decode_loop

    def counted(*arguments: object) -> object:
        steps.append(arguments[3])
        return decode(*arguments)

    monkeypatch.setattr(loop, "decode_loop", counted)
    settings = {"max_new_tokens": 40, "temperature": 0, "top_k": 0}
    text = sampler.generate([PROMPTS[0]], **settings)[0]
    assert steps == []
    sampler.generate([PROMPTS[0]], stop=[text[:2]], **settings)
    assert sum(steps) <= loop.CHECK_EVERY


def stream(sampler: Sampler, prompt: str, **settings: object) -> str:
    pieces = list(sampler.stream(prompt, **settings))
    assert all(pieces)
    return "".join(pieces)


def test_a_stream_is_the_text_of_generate() -> None:
    """Random bytes among the tokens: characters of several bytes, and bytes that form none."""
    sampler = tiny_sampler("mha")
    for seed in range(4):
        settings = {"max_new_tokens": 24, "temperature": 1e6, "top_k": 0, "seed": seed}
        wanted = sampler.generate([""], **settings)[0]
        assert stream(sampler, "", **settings) == wanted
        middle = wanted[len(wanted) // 2 :][:2]
        assert "\ufffd" in wanted
        stop = [middle.strip("\ufffd") or wanted[0]]
        assert stream(sampler, "", stop=stop, **settings) == sampler.generate([""], stop=stop, **settings)[0]


def test_a_completion_ends_before_a_stop_string() -> None:
    """Wherever it lies in the rows, across tokens too; rows without it go on to their own ends."""
    sampler = tiny_sampler("mla_rope")
    settings = {"max_new_tokens": 40, "logprobs": True, **EVERYTHING}
    free = sampler.generate_with_details(PROMPTS, **settings)
    text = free[0].text
    stop = [re.search("[^\ufffd]{4}", text[8:])[0], "never to be found"]  # of characters: bytes may yet form some
    assert len(tokenizer().encode(stop[0])) > 1
    found = sampler.generate_with_details(PROMPTS, stop=stop, **settings)
    assert found[0].text == text[: text.find(stop[0])] and found[0].finish_reason == "stop"
    n = len(found[0].tokens)
    assert found[0].tokens == free[0].tokens[:n] and found[0].logprobs == free[0].logprobs[:n]
    assert stop[0] in tokenizer().decode(found[0].tokens) and stop[0] not in tokenizer().decode(found[0].tokens[:-1])
    for with_stop, without in zip(found[1:], free[1:], strict=True):
        if stop[0] not in without.text:
            assert with_stop == without
    assert any(each.finish_reason == "length" for each in found)
