"""mla_jax.sample: the tokens of its plain twin, prompts in pieces, log-probabilities, the loop and its platforms."""

import dataclasses
import functools

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from run_tools import story_texts
from sampler_tools import (
    EVERYTHING,
    PLAIN,
    PROMPTS,
    compile_as_written,
    plain_forward,
    text_of,
    tiny_sampler,
    tokenizer,
    twin,
)
from sampler_tools import compile_quickly as compile_quickly
from tiny import NAMED

from mla_jax.sample import loop, request
from mla_jax.sample.loop import Vocabulary
from mla_jax.sample.methods import GREEDY, Method
from mla_jax.sample.sampler import Sampler

_SLOW = ("gqa", "mla", "mha_rope", "mla_rope_paper_b")  # that their caches are right is test_model's part


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in NAMED])
def test_the_tokens_are_those_of_the_plain_twin(name: str) -> None:
    """With all methods at once; prompts of other lengths in one batch."""
    found = tiny_sampler(name).generate_with_details(PROMPTS, max_new_tokens=12, seed=3, **EVERYTHING)
    for row in (0, 1, 3):
        assert list(found[row].tokens) == twin(name, PROMPTS[row], 12, Method(**EVERYTHING), 3 + row)
    assert len({each.text for each in found}) > 1


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
    compile_as_written(monkeypatch)
    sampler = tiny_sampler("mla_rope")
    ask = request.build(tokenizer(), sampler.config, ["fox"], GREEDY, 8, 0, (), given)
    state = jax.eval_shape(lambda: sampler._start(ask, False))
    assert state.store[0].c_kv.dtype == wanted


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


def test_the_loop_lowers_for_every_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all methods, and the wide digits that a GPU's search has."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    compile_as_written(monkeypatch)
    sampler, method = tiny_sampler("mla_rope"), Method(**EVERYTHING)
    ask = request.build(tokenizer(), sampler.config, PROMPTS, method, 12, 0, (), "int8")
    state = jax.eval_shape(lambda: sampler._start(ask, True))
    static = (sampler.model, loop.CHECK_EVERY, sampler._vocabulary, method.form)
    step = jax.jit(functools.partial(loop._decode_until_done.few.__wrapped__, *static))
    exported = jax.export.export(step, platforms=("cpu", "cuda", "tpu"))(sampler.variables, method.values, state)
    assert "256x" in exported.mlir_module() or "255x" in exported.mlir_module()


def test_many_rows_on_a_gpu_have_a_program_of_their_own_that_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its compiler's options differ, which mean nothing on a CPU; the choice is by platform and rows."""
    monkeypatch.setattr(loop, "_CUBLAS_FROM", 2)
    few = tiny_sampler("mla_rope")
    called: list[str] = []
    programs = loop._decode_until_done
    real = programs.many
    monkeypatch.setattr(programs, "many", lambda *a: called.append("many") or real(*a))
    expected = few.generate(PROMPTS[:2], max_new_tokens=6, **PLAIN)
    assert not called
    model = few.model.clone(backend=dataclasses.replace(few.model.backend, platform="gpu"))
    many = Sampler(model, few.variables, few.tokenizer, few.config)
    assert many.generate(PROMPTS[:2], max_new_tokens=6, **PLAIN) == expected
    assert called == ["many"]
