"""mla_jax.sample: the tokens of its plain twin, rows that know nothing of each other, ends, stops, streams, shapes."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from run_tools import story_texts
from tiny import NAMED, QUICK, quick_jit, random_params, reference_model, tiny_config

from mla_jax import config as config_lib
from mla_jax.data.tokenizer import Tokenizer, train_tokenizer
from mla_jax.errors import UserError
from mla_jax.model import serving
from mla_jax.model.moe import initial_router_bias
from mla_jax.model.transformer import variables_of
from mla_jax.sample import loop, reference, request
from mla_jax.sample import sampler as sampler_module
from mla_jax.sample.loop import Vocabulary
from mla_jax.sample.methods import GREEDY, Method
from mla_jax.sample.sampler import Sampler

PROMPTS = ["once upon a time", "", "the little fox found an old key", "caf\u00e9 \u65e5\u672c \U0001f600 \t\n"]
# Compiled without costly optimisations: name in `loop`, static arguments, donated ones.
JITTED = (("prefill", (0, 1, 2), ()), ("extend", 0, (5, 6)), ("_begin", (0, 1, 2, 3), 6))
JITTED += (("_decode_steps", (0, 1, 2, 3), 6), ("_decode_until_done", (0, 1, 2, 3), 6))
AS_WRITTEN = {name: getattr(loop, name) for name, *_ in JITTED}
PLAIN = {"temperature": 1.0, "top_k": 0}  # the draws that compile fastest
EVERYTHING = {"temperature": 1.2, "top_k": 60, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2}


@pytest.fixture(scope="module", autouse=True)
def compile_quickly() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, static, donated in JITTED:
            function = getattr(loop, name).__wrapped__
            quick = jax.jit(function, static_argnums=static, donate_argnums=donated, compiler_options=QUICK)
            patch.setattr(loop, name, quick)
        yield


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer(train_tokenizer(story_texts(200), 320))


@functools.cache
def tiny_sampler(name: str, max_len: int = 64, prefill_chunk: int = 1024) -> Sampler:
    """Random weights, and more embedding rows than the tokenizer has pieces. One layer compiles in half the time."""
    knobs = {"model.n_layers": 1} | {
        "model.max_len": max_len,
        "tokenizer.vocab_size": 320,
        "sample.prefill_chunk": prefill_chunk,
    }
    config = config_lib.replace(tiny_config(name, **knobs), **{"model.vocab_size": tokenizer().vocab_size + 9})
    model = reference_model(config)
    return Sampler(model, variables_of(random_params(model), initial_router_bias(config.model)), tokenizer(), config)


@functools.cache
def plain_forward(name: str, max_len: int) -> Callable[[np.ndarray], np.ndarray]:
    """ids [T] -> logits [max_len, vocab] without a cache; the row is padded, which causality hides."""
    sampler = tiny_sampler(name, max_len)
    forward = quick_jit(lambda tokens: sampler.model.apply(sampler.variables, tokens)[0][0])
    return lambda ids: np.asarray(forward(np.pad(ids, (0, max_len - len(ids)))[None].astype(np.int32)))


def text_of(count: int, words: str) -> str:
    """A beginning of `words` that is `count` tokens."""
    return next(words[:n] for n in range(len(words)) if len(tokenizer().encode(words[:n])) == count)


def twin(name: str, prompt: str, count: int, method: Method, seed: int = 0, max_len: int = 64) -> list[int]:
    """The tokens of sample/reference.py."""
    vocabulary = Vocabulary(tokenizer().vocab_size, tokenizer().separator_id)
    ids = [tokenizer().separator_id, *tokenizer().encode(prompt)]
    return reference.generate(plain_forward(name, max_len), ids, seed, count, method, vocabulary)


_SLOW = ("gqa", "mla", "mha_rope", "mla_rope_paper_b")  # that their caches are right is test_model's part


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in NAMED])
def test_the_tokens_are_those_of_the_plain_twin(name: str) -> None:
    """With all methods at once; prompts of other lengths in one batch."""
    found = tiny_sampler(name).generate_with_details(PROMPTS, max_new_tokens=12, seed=3, **EVERYTHING)
    for row in (0, 1, 3):
        assert list(found[row].tokens) == twin(name, PROMPTS[row], 12, Method(**EVERYTHING), 3 + row)
    assert len({each.text for each in found}) > 1


def test_more_steps_than_one_round_of_the_loop() -> None:
    """Every length around multiples of CHECK_EVERY, and a row's own end at any of them."""
    sampler = tiny_sampler("mla_rope")
    wanted = twin("mla_rope", PROMPTS[0], 40, GREEDY)
    for count in (1, 2, 15, 16, 17, 18, 32, 33, 40):
        found = sampler.generate_with_details([PROMPTS[0]], max_new_tokens=count, temperature=0, top_k=0)[0]
        assert list(found.tokens) == wanted[:count]


def test_a_long_prompt_is_read_in_pieces() -> None:
    """Whether a prompt ends before, at or after the border of a piece; the tokens are the same to the last one."""
    words = "fox " * 60
    prompts = [tokenizer().decode(tokenizer().encode(words)[:n]) for n in (0, 1, 30, 31, 32, 33, 62, 63, 64, 100)]
    lengths = [1 + len(tokenizer().encode(prompt)) for prompt in prompts]
    assert {31, 32, 33, 64, 65} <= set(lengths) and max(lengths) > 96
    settings = {"max_new_tokens": 12, **PLAIN}
    whole = tiny_sampler("mla_rope", 160).generate_with_details(prompts, **settings)
    assert tiny_sampler("mla_rope", 160, 32).generate_with_details(prompts, **settings) == whole


def test_a_prompt_that_ends_with_a_piece_has_the_logits_of_its_last_token() -> None:
    """Compared by log-probabilities: words that repeat themselves are foretold alike at other places too."""
    words = " ".join(dict.fromkeys(" ".join(story_texts(9)).split())) * 2
    prompts = [text_of(length - 1, words) for length in (32, 63, 64, 65, 96)]
    settings = {"max_new_tokens": 2, "temperature": 0, "top_k": 0, "logprobs": True}
    whole = tiny_sampler("mla_rope", 160).generate_with_details(prompts, **settings)
    pieces = tiny_sampler("mla_rope", 160, 32).generate_with_details(prompts, **settings)
    assert len({each.logprobs[0] for each in whole}) == 5
    for one, other in zip(pieces, whole, strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_the_penalty_meets_every_token_of_the_prompt_and_what_is_drawn() -> None:
    """The first and the last; neither the separator nor what pads the row."""
    tokens, lengths = jnp.asarray([[1, 5, 9], [1, 7, 11]], jnp.int32), jnp.asarray([3, 2])
    logits = jnp.zeros((2, 20)).at[jnp.arange(2), jnp.asarray([13, 14])].set(9)
    method, keys = Method(0.0, 0, repetition_penalty=1.5), jax.vmap(jax.random.key)(jnp.arange(2))
    store = (jnp.zeros(1),)  # not looked at
    state = loop.begin(logits, store, tokens, lengths, keys, jnp.asarray([4, 4]), 4, method, Vocabulary(20, 1))
    assert [np.flatnonzero(row).tolist() for row in np.asarray(state.seen)] == [[5, 9, 13], [7, 14]]


@pytest.mark.parametrize(("given", "wanted"), [("auto", "float32"), ("bfloat16", "bfloat16"), ("int8", "int8")])
def test_the_cache_is_of_the_dtype_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, given: str, wanted: str) -> None:
    for name, function in AS_WRITTEN.items():
        monkeypatch.setattr(loop, name, function)
    sampler = tiny_sampler("mla_rope")
    ask = request.build(tokenizer(), sampler.config, ["fox"], GREEDY, 8, 0, (), given)
    state = jax.eval_shape(lambda: sampler._start(ask, False))
    assert state.store[0].c_kv.dtype == wanted


def test_a_row_does_not_depend_on_its_mates() -> None:
    """Neither their texts nor a length that makes all rows longer, and the cache with them."""
    sampler = tiny_sampler("mla_rope", 160)
    assert len(tokenizer().encode("fox " * 40)) > 64
    together = sampler.generate([PROMPTS[0], "fox " * 40, PROMPTS[2]], 16, seed=5, **PLAIN)
    assert sampler.generate([PROMPTS[0]], 16, seed=5, **PLAIN) == [together[0]]
    assert sampler.generate([PROMPTS[2]], 16, seed=7, **PLAIN) == [together[2]]


def test_the_seed_decides() -> None:
    sampler = tiny_sampler("mla_rope")
    settings = {"max_new_tokens": 16, **EVERYTHING}
    one = sampler.generate([PROMPTS[0]] * 4, seed=1, **settings)
    assert one == sampler.generate([PROMPTS[0]] * 4, seed=1, **settings)
    assert len(set(one)) == 4
    assert sampler.generate([PROMPTS[0]] * 4, seed=2, **settings)[:3] == one[1:]
    assert sampler.generate([PROMPTS[0]] * 4, seed=2**32 - 1, **settings)[2] == one[0]  # seeds wrap around


@hypothesis.settings(max_examples=8)
@hypothesis.given(
    mates=st.lists(st.sampled_from(PROMPTS), min_size=3, max_size=3),
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3),
    row=st.integers(0, 3),
)
def test_a_row_is_bit_equal_whoever_its_mates_are(mates: list[str], seeds: list[int], row: int) -> None:
    """Within a bucket of shapes: tokens and log-probabilities, to the last bit."""
    sampler = tiny_sampler("mla_rope")
    prompts, numbers = list(mates), list(seeds)
    prompts.insert(row, PROMPTS[2])
    numbers.insert(row, 77)
    found = sampler.generate_with_details(prompts, 16, seed=numbers, logprobs=True, **EVERYTHING)[row]
    assert found == _among_itself()


@functools.cache
def _among_itself() -> sampler_module.Completion:
    settings = {"seed": [77] * 4, "logprobs": True} | EVERYTHING
    return tiny_sampler("mla_rope").generate_with_details([PROMPTS[2]] * 4, 16, **settings)[0]


PACKED = [("mla_rope", 2, EVERYTHING), ("moe_mla_rope", 2, {"temperature": 0, "top_k": 0})]
PACKED += [
    pytest.param(name, rows, method, marks=pytest.mark.slow)
    for name in ("mla_rope", "mha_rope")
    for rows, method in ((1, EVERYTHING), (9, EVERYTHING), (9, {"temperature": 0, "top_k": 0}))
]


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("name", "rows", "method"), PACKED)
def test_packed_weights_and_kernels_draw_the_same_and_rows_know_nothing_of_each_other(
    name: str, rows: int, method: dict
) -> None:
    """As on a GPU, the kernels as plain JAX: tokens as by the modules; to the last bit whoever the mates are."""
    plain = tiny_sampler(name)
    backend = dataclasses.replace(plain.model.backend, decode_impl="pallas", interpret=True)
    packed = Sampler(plain.model.clone(backend=backend), plain.variables, tokenizer(), plain.config)
    assert serving.COLLECTION in packed.variables and serving.COLLECTION not in plain.variables
    prompts, seeds = [PROMPTS[i % 4] for i in range(rows)], [7 * i for i in range(rows)]
    settings = {"logprobs": True, **method}
    found = packed.generate_with_details(prompts, 12, seed=seeds, **settings)
    for ours, twins in zip(found, plain.generate_with_details(prompts, 12, seed=seeds, **settings), strict=True):
        assert ours.tokens == twins.tokens
        np.testing.assert_allclose(ours.logprobs, twins.logprobs, atol=1e-5)
    mates = packed.generate_with_details([*prompts[1:], prompts[0]], 12, seed=[*seeds[1:], seeds[0]], **settings)
    assert [*mates[-1:], *mates[:-1]] == found


def test_seeds_may_be_given_one_a_row() -> None:
    sampler = tiny_sampler("mla_rope")
    settings = {"max_new_tokens": 16, **EVERYTHING}
    one, two, three, _ = sampler.generate([PROMPTS[0]] * 4, seed=[9, 4, 9, 1], **settings)
    assert one == three != two
    assert sampler.generate([PROMPTS[0]] * 4, seed=4, **settings)[0] == two


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


def test_logprobs_are_those_of_the_model() -> None:
    """Whatever the method cuts off; a surplus row has no part in them."""
    sampler, n_tokens = tiny_sampler("mla_rope"), tokenizer().vocab_size
    found = sampler.generate_with_details(PROMPTS, 12, logprobs=True, **EVERYTHING)[0]
    ids = [tokenizer().separator_id, *tokenizer().encode(PROMPTS[0])]
    logits = plain_forward("mla_rope", 64)(np.asarray([*ids, *found.tokens[:-1]]))[len(ids) - 1 :, :n_tokens]
    wanted = jax.nn.log_softmax(logits[: len(found.tokens)])[jnp.arange(len(found.tokens)), jnp.asarray(found.tokens)]
    np.testing.assert_allclose(found.logprobs, wanted, atol=1e-5, rtol=0)
    assert sampler.generate_with_details(PROMPTS, 12, **EVERYTHING)[0].logprobs is None


def test_decode_loop_is_the_same_in_any_portions() -> None:
    """What the benchmark times is what the sampler runs; a row that is done changes no more."""
    sampler, vocabulary = tiny_sampler("mla_rope"), Vocabulary(tokenizer().vocab_size, -1)
    tokens, lengths = jnp.asarray([[3, 5, 9], [3, 7, 0]]), jnp.asarray([3, 2])
    keys = jax.vmap(jax.random.key)(jnp.arange(2))

    def start() -> loop.SamplerState:
        logits, store = loop.prefill(sampler.model, 32, "float32", sampler.variables, tokens, lengths)
        limit = jnp.asarray([20, 5])
        return loop.begin(logits, store, tokens, lengths, keys, limit, 24, Method(1.0, 0), vocabulary)

    def run(state: loop.SamplerState, *portions: int) -> loop.SamplerState:
        for n_steps in portions:
            state = loop.decode_loop(sampler.model, sampler.variables, state, n_steps, Method(1.0, 0), vocabulary)
        return state

    whole = run(start(), 11, 11)
    assert whole.count.tolist() == [20, 5] and whole.done.all() and int(whole.drawn) == 23
    assert whole.position.tolist() == [3 + 19, 2 + 4]  # the last token is drawn, and not read: nothing past the end
    assert (np.asarray(whole.out)[1, 5:] == 0).all()  # filler
    until = loop.decode_until_done(sampler.model, sampler.variables, start(), Method(1.0, 0), vocabulary)
    chex.assert_trees_all_equal(until.out, whole.out)
    assert int(until.drawn) == 1 + 2 * loop.CHECK_EVERY


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


def test_the_loop_lowers_for_every_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all methods, and the wide digits that a GPU's search has."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for name, function in AS_WRITTEN.items():
        monkeypatch.setattr(loop, name, function)
    sampler, method = tiny_sampler("mla_rope"), Method(**EVERYTHING)
    ask = request.build(tokenizer(), sampler.config, PROMPTS, method, 12, 0, (), "int8")
    state = jax.eval_shape(lambda: sampler._start(ask, True))
    static = (sampler.model, loop.CHECK_EVERY, sampler._vocabulary, method.form)
    step = jax.jit(functools.partial(loop._decode_until_done.__wrapped__, *static))
    exported = jax.export.export(step, platforms=("cpu", "cuda", "tpu"))(sampler.variables, method.values, state)
    assert "256x" in exported.mlir_module() or "255x" in exported.mlir_module()


def test_many_rows_on_a_gpu_have_a_program_of_their_own_that_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its compiler's options differ, which mean nothing on a CPU; the choice is by platform and rows."""
    monkeypatch.setattr(loop, "_CUBLAS_FROM", 2)
    few = tiny_sampler("mla_rope")
    called: list[str] = []
    real = loop._decode_until_done_many
    monkeypatch.setattr(loop, "_decode_until_done_many", lambda *a: called.append("many") or real(*a))
    expected = few.generate(PROMPTS[:2], max_new_tokens=6, **PLAIN)
    assert not called
    model = few.model.clone(backend=dataclasses.replace(few.model.backend, platform="gpu"))
    many = Sampler(model, few.variables, few.tokenizer, few.config)
    assert many.generate(PROMPTS[:2], max_new_tokens=6, **PLAIN) == expected
    assert called == ["many"]
