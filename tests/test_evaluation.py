"""mla_jax.evaluation: each token counts once, and the figures are what their names say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mla_jax.data.token_file import TokenFile
from mla_jax.evaluation import EvalResult, evaluate

SEPARATOR = 1


def token_file(lengths: list[int]) -> TokenFile:
    """Stories of so many tokens, all different: the stream's token i is 10 + i, except for separators."""
    starts = np.cumsum([0, *(length + 1 for length in lengths)])
    tokens = np.arange(10, 11 + starts[-1], dtype=np.uint16)
    tokens[starts] = SEPARATOR
    return TokenFile(tokens, starts.astype(np.int64), np.asarray([3 * n for n in lengths], np.int64), SEPARATOR)


def target_as_loss(params: None, batch: dict[str, np.ndarray]) -> np.ndarray:
    """An eval step whose loss of a token is its id, and 0 where it is padding."""
    return np.where(batch["segment_ids"][:, 1:] > 0, batch["tokens"][:, 1:], 0).astype(np.float32)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 20), st.integers(1, 5))
def test_every_token_but_the_first_counts_once_in_order(lengths: list[int], seq_len: int, batch_size: int) -> None:
    file = token_file(lengths)
    result = evaluate(target_as_loss, None, file, seq_len, batch_size)
    np.testing.assert_array_equal(result.nll, file.tokens[1:].astype(np.float32))


def test_the_inputs_are_the_tokens_before_their_targets() -> None:
    seen = []

    def step(params: None, batch: dict[str, np.ndarray]) -> np.ndarray:
        real = batch["segment_ids"][:, 1:] > 0
        seen.extend(zip(batch["tokens"][:, :-1][real], batch["tokens"][:, 1:][real], strict=True))
        return target_as_loss(params, batch)

    file = token_file([4, 7, 2])
    evaluate(step, None, file, seq_len=5, batch_size=2)
    assert seen == list(zip(file.tokens[:-1], file.tokens[1:], strict=True))


def test_loss_perplexity_and_bits_per_byte_by_hand() -> None:
    result = EvalResult(np.asarray([1.0, 2.0, 3.0], np.float32), n_bytes=4, seq_len=2)
    assert result.loss == 2.0
    assert result.perplexity == pytest.approx(math.e**2)
    assert result.bits_per_byte == pytest.approx(6 / math.log(2) / 4)
    assert EvalResult(np.full(3, 1e6, np.float32), 4, 2).perplexity < math.inf


def test_the_mean_of_many_float32_losses_is_not_rounded_away() -> None:
    nll = np.full(3_000_000, 0.1, np.float32)
    assert EvalResult(nll, 1, 8).loss == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_by_position_by_hand() -> None:
    result = EvalResult(np.asarray([1, 2, 3, 5, 6, 7, 9], np.float32), n_bytes=1, seq_len=3)
    np.testing.assert_allclose(result.by_position(), [(1 + 5 + 9) / 3, (2 + 6) / 2, (3 + 7) / 2])
    np.testing.assert_allclose(EvalResult(np.ones(2, np.float32), 1, 4).by_position(), [1, 1, np.nan, np.nan])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_stories_add_up_to_the_whole(lengths: list[int]) -> None:
    file = token_file(lengths)
    result = EvalResult(np.random.default_rng(0).random(len(file.tokens) - 1, np.float32), file.n_bytes, 4)
    stories = result.by_story(file)
    assert [story["story"] for story in stories] == list(range(len(lengths)))
    assert [story["tokens"] for story in stories] == [length + 1 for length in lengths]  # and the closing separator
    assert [story["bytes"] for story in stories] == [3 * length for length in lengths]
    total = sum(story["loss"] * story["tokens"] for story in stories)
    assert total == pytest.approx(float(result.nll.sum(dtype=np.float64)))
    assert sum(story["tokens"] for story in stories) == len(result.nll)


def test_a_story_s_loss_is_of_its_own_tokens_and_the_separator_after_it() -> None:
    file = token_file([2, 3])
    assert file.tokens.tolist() == [1, 11, 12, 1, 14, 15, 16, 1]
    result = evaluate(target_as_loss, None, file, seq_len=3, batch_size=2)
    first, second = result.by_story(file)
    assert first["loss"] == pytest.approx((11 + 12 + 1) / 3)
    assert second["loss"] == pytest.approx((14 + 15 + 16 + 1) / 4)
