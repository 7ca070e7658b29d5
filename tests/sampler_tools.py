"""What the tests of sampling share: a tiny sampler of random weights, its plain twin, programs that compile quickly."""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
import pytest
from run_tools import story_texts
from tiny import QUICK, quick_jit, random_params, reference_model, tiny_config

from mla_jax import config as config_lib
from mla_jax.data.tokenizer import Tokenizer, train_tokenizer
from mla_jax.model.moe import initial_router_bias
from mla_jax.model.transformer import variables_of
from mla_jax.sample import loop, reference
from mla_jax.sample.loop import Vocabulary
from mla_jax.sample.methods import Method
from mla_jax.sample.sampler import Sampler

PROMPTS = ["once upon a time", "", "the little fox found an old key", "caf\u00e9 \u65e5\u672c \U0001f600 \t\n"]
# Compiled without costly optimisations: where it is and its name there, static arguments, donated ones.
JITTED = ((loop, "prefill", (0, 1, 2), ()), (loop, "extend", 0, (5, 6)), (loop, "_begin", (0, 1, 2, 3), 6))
JITTED += tuple((programs, "few", (0, 1, 2, 3), 6) for programs in (loop._decode_steps, loop._decode_until_done))
_AS_WRITTEN = [(owner, name, getattr(owner, name)) for owner, name, *_ in JITTED]
PLAIN = {"temperature": 1.0, "top_k": 0}  # the draws that compile fastest
EVERYTHING = {"temperature": 1.2, "top_k": 60, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2}


@pytest.fixture(scope="module", autouse=True)
def compile_quickly() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, static, donated in JITTED:
            function = getattr(owner, name).__wrapped__
            quick = jax.jit(function, static_argnums=static, donate_argnums=donated, compiler_options=QUICK)
            patch.setattr(owner, name, quick)
        yield


def compile_as_written(patch: pytest.MonkeyPatch) -> None:
    """In a test that asks what `loop` itself compiles."""
    for owner, name, function in _AS_WRITTEN:
        patch.setattr(owner, name, function)


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
