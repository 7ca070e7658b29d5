import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from judge_helpers import TINYSTORIES, make_stories

from mla_jax.errors import UserError
from mla_jax.judge import controls as C
from mla_jax.judge.prompts import OPENINGS, build_prompts
from mla_jax.judge.sentences import first_sentence, split_sentences

STORIES = make_stories(60)


def rng():
    return np.random.default_rng(0)


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet='ab AB.!?"\n,', max_size=60))
def test_splitting_loses_nothing(text):
    assert "".join(s + gap for s, gap in split_sentences(text)) == text.strip()


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Tom ran. He fell!", ["Tom ran.", "He fell!"]),
        ('"Stop!" he said. They stopped.', ['"Stop!" he said.', "They stopped."]),
        ('"Come here." Mom smiled.', ['"Come here."', "Mom smiled."]),
        ("Mr. Fox met Dr. Owl. They ate.", ["Mr. Fox met Dr. Owl.", "They ate."]),
        ("Wait... what? No", ["Wait... what?", "No"]),
        ("", []),
    ],
)
def test_sentences(text, sentences):
    assert [s for s, _ in split_sentences(text)] == sentences


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_shuffles_keep_every_piece_and_change_the_order(seed):
    text = STORIES[seed % len(STORIES)]
    by_sentence = C.shuffle_sentences(text, np.random.default_rng(seed))
    by_word = C.shuffle_words(text, np.random.default_rng(seed))
    assert by_sentence != text and by_word != text
    assert sorted(s for s, _ in split_sentences(by_sentence)) == sorted(s for s, _ in split_sentences(text))
    assert sorted(by_word.split()) == sorted(text.split())


def test_names_change_places_from_the_middle_on():
    text = "Lily saw Tom. Then Lily and Tom ran. Soon Lily called Tom. At last Tom found Lily."
    assert C.find_names("One day Lily saw Tom. " + text) == ["Lily", "Tom"]
    swapped = C.swap_names("One day Lily saw Tom.", text)
    assert swapped == "Lily saw Tom. Then Lily and Tom ran. Soon Tom called Lily. At last Lily found Tom."


def test_a_single_name_becomes_a_strangers_and_none_cannot_be_swapped():
    text = "It was red. He was glad. So Tim ran. Then Tim slept, and Tim woke."
    assert C.swap_names("One day Tim had a ball.", text).endswith("So Zara ran. Then Zara slept, and Zara woke.")
    assert C.swap_names("A cat sat.", "It was red. It ran. It slept.") is None


def test_controls_share_their_beginning_and_depend_on_the_seed_only():
    rows = C.build_controls(STORIES, 8, seed=3)
    assert rows == C.build_controls(STORIES, 8, seed=3) != C.build_controls(STORIES, 8, seed=4)
    assert len(rows) == 40 and len({r["id"] for r in rows}) == 40
    for group in (rows[i : i + 5] for i in range(0, 40, 5)):
        assert [r["source"] for r in group] == [C.REAL, *C.DAMAGED]
        assert len({r["prompt"] for r in group}) == 1 and len({r["text"] for r in group}) == 5
        assert group[0]["text"].split() == next(s for s in STORIES if s.startswith(group[0]["prompt"])).split()
        assert all(r["text"].startswith(r["prompt"]) and set(r) >= {"id", "text", "facts", "source"} for r in group)


def test_too_few_stories_for_controls_is_said():
    with pytest.raises(UserError, match="only 4 of 5 held-out stories can serve as controls"):
        C.build_controls([*STORIES[:4], "One sentence."], 8, seed=0)


def test_prompts_are_distinct_first_sentences_and_openings():
    prompts = build_prompts(STORIES + STORIES, 30, 10, seed=1)
    assert prompts == build_prompts(STORIES + STORIES, 30, 10, seed=1) and len(set(prompts)) == 30
    assert sum(p in OPENINGS for p in prompts) == 10
    assert set(prompts[:20]) <= {first_sentence(s) for s in STORIES}
    assert len(build_prompts(STORIES[:3], 100, 50, seed=1)) == 53  # openings fill up, then there are no more
    assert len(OPENINGS) == len(set(OPENINGS)) == 50


@pytest.mark.real_data
@pytest.mark.skipif(not TINYSTORIES.exists(), reason="TinyStories is not here (../shared/data/tinystories)")
def test_most_real_stories_can_serve_as_controls():
    stories = [s.strip() for s in TINYSTORIES.read_text().split("<|endoftext|>") if s.strip()]
    assert len(C.build_controls(stories, 10**6, seed=0)) / 5 >= 0.5 * len(stories)
