import numpy as np
import pytest

from mla_jax.world import stories
from mla_jax.world.ngram import NGram
from mla_jax.world.questions import Probe


def test_unigram_by_hand():
    model = NGram(1).fit(["a a b"])
    # Witten-Bell: (count + types * uniform) / (total + types), uniform over a, b and the unknown word.
    probe = Probe("", "color", "", ("a", "b", "zzz"), 0)
    expected = np.array([(2 + 2 / 3) / 5, (1 + 2 / 3) / 5, (2 / 3) / 5])
    np.testing.assert_allclose(np.exp(model.answer([probe])[0]), expected)


def test_bigram_by_hand():
    model = NGram(2).fit(["a b", "a c"])
    one = {"a": (2 + 3 / 4) / 7, "b": (1 + 3 / 4) / 7}
    probe = Probe("", "color", "x a", (" b", " a"), 0)
    expected = [(1 + 2 * one["b"]) / 4, 2 * one["a"] / 4]
    np.testing.assert_allclose(np.exp(model.answer([probe])[0]), expected)


def test_probabilities_sum_to_one():
    texts = [row["text"] for row in stories(30, 1)]
    model = NGram(5).fit(texts)
    words = tuple(" " + word for word in model.words) + (" unheard-of",)
    for prefix in ("Once upon a time, there was", "The best friend of Tom", "zzz yyy"):
        (logs,) = model.answer([Probe("", "color", prefix, words, 0)])
        assert sum(np.exp(logs)) == pytest.approx(1.0, abs=1e-9)


def test_more_context_predicts_better():
    model = NGram(5).fit(row["text"] for row in stories(800, 1))
    held_out = [row["text"] for row in stories(60, 1, "valid")]
    bits = [model.entropy(held_out, order)["bits_per_word"] for order in (1, 2, 3)]
    assert bits[0] > bits[1] + 1 > bits[2] + 1.5


def test_limits_are_said():
    with pytest.raises(ValueError, match="order 6"):
        NGram(6)
    letters = "abcdefghijklmnopqrstuvwxyz"
    with pytest.raises(ValueError, match="different words"):
        NGram(2).fit([" ".join(x + y + z for x in letters for y in letters for z in letters[:7])])
