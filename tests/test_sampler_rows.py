"""Rows of a batch that know nothing of each other: seeds, mates, packed weights."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from sampler_tools import EVERYTHING, PLAIN, PROMPTS, tiny_sampler, tokenizer
from sampler_tools import compile_quickly as compile_quickly

from mla_jax.model import serving
from mla_jax.sample import sampler as sampler_module
from mla_jax.sample.sampler import Sampler


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
