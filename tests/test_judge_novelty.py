import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_jax.judge.novelty import NoveltyIndex
from mla_jax.world import stories
from mla_jax.world.sentences import tokenize


def longest_by_hand(text, corpus, n):
    words, best = tokenize(text), 0
    for story in map(tokenize, corpus):
        for i in range(len(words)):
            for j in range(len(story)):
                size = 0
                while i + size < len(words) and j + size < len(story) and words[i + size] == story[j + size]:
                    size += 1
                best = max(best, size)
    return best if best >= n else 0


sentences = st.lists(st.sampled_from("abc"), max_size=14).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(sentences, max_size=4), sentences)
def test_longest_span_and_share_are_exact(corpus, text):
    n = 3
    result = NoveltyIndex.build(corpus, n).compare(text)
    assert result["longest_copied_span"] == longest_by_hand(text, corpus, n)
    grams = {tuple(w[i : i + n]) for w in map(tokenize, corpus) for i in range(len(w) - n + 1)}
    words = tokenize(text)
    own = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    expected = sum(gram in grams for gram in own) / len(own) if own else 0.0
    assert result["copied_share"] == pytest.approx(expected)


def test_a_training_story_is_all_copied_and_a_new_one_is_not():
    corpus = [row["text"] for row in stories(300, 1)]
    index = NoveltyIndex.build(corpus)
    copy = index.compare(corpus[7])
    assert copy == {"copied_share": 1.0, "longest_copied_span": float(len(tokenize(corpus[7])))}
    fresh = [index.compare(row["text"]) for row in stories(50, 1, "valid")]
    assert np.mean([row["copied_share"] for row in fresh]) < 0.5
    assert max(row["longest_copied_span"] for row in fresh) < 60


def test_spans_do_not_run_from_one_story_into_the_next():
    index = NoveltyIndex.build(["a b c", "b c d"], 3)
    assert index.compare("a b c d") == {"copied_share": 1.0, "longest_copied_span": 3.0}


def test_size_is_twelve_bytes_an_n_gram():
    index = NoveltyIndex.build(["a b c d e"], 2)
    assert index.nbytes == 4 * 12


def test_nothing_to_compare():
    empty = {"copied_share": 0.0, "longest_copied_span": 0.0}
    assert NoveltyIndex.build([]).compare("a b c d e f g h i") == empty
    assert NoveltyIndex.build(["a b c"], 2).compare("") == empty
