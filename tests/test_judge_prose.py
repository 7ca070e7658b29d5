from pathlib import Path

import pytest

from mla_jax.judge.machine import score_stories
from mla_jax.judge.novelty import NoveltyIndex
from mla_jax.judge.prose import check_prose, distinct, ends_well, names_of, pronoun_conflict, quotes_balanced
from mla_jax.world import stories

TINYSTORIES = Path(__file__).parents[2] / "shared" / "data" / "tinystories" / "valid.txt"


def test_quotes():
    assert quotes_balanced('"Hi," said Tom. "Bye."') and quotes_balanced("“Hi,” said Tom.")
    assert not quotes_balanced('"Hi, said Tom.') and not quotes_balanced("”Hi“")


def test_endings():
    assert ends_well("The end.") and ends_well('He said, "Yes!"\n') and ends_well("“Yes.”")
    assert not ends_well("And then the") and not ends_well("") and not ends_well('"Yes"')


def test_repetition_and_distinct():
    loop = check_prose("the cat sat on the mat and " * 20)
    plain = check_prose("One day a girl named Lily went out to find her lost red ball in the park.")
    assert loop["repetition"] > 0.9 and plain["repetition"] == 0
    assert distinct(["a", "b", "a", "b"], 2) == pytest.approx(2 / 3)
    assert check_prose("He ran. He ran. He ran.")["repeated_sentences"] == pytest.approx(2 / 3)


def test_names_and_pronouns():
    story = "One day Lily ran. Then Lily saw her cat. Soon Lily lost her hat. Later Lily hid {} bag."
    assert names_of(story)["Lily"] == 4
    assert pronoun_conflict(story.format("her")) == 0
    assert pronoun_conflict(story.format("his")) == pytest.approx(1 / 3)


@pytest.mark.parametrize("text", ["", " \n", '"""', "\x00", "🙂" * 5])
def test_any_text_gets_a_row(text):
    assert all(isinstance(value, float) for value in check_prose(text).values())


def test_rows_of_world_stories_hold_every_score():
    texts = [row["text"] for row in stories(3, 0)]
    world = score_stories(texts, of_world=True, index=NoveltyIndex.build(texts[:1]))
    assert [row["novelty_copied_share"] == 1 for row in world] == [True, False, False]
    assert all(row["score"] >= 0.99 and row["prose_ends_well"] == 1 for row in world)
    assert "score" not in score_stories(texts, of_world=False)[0]


@pytest.mark.skipif(not TINYSTORIES.exists(), reason=f"{TINYSTORIES.name} of TinyStories is not beside the project")
def test_real_stories_look_better_than_spoiled_ones():
    texts = [text.strip() for text in TINYSTORIES.read_text(encoding="utf-8").split("<|endoftext|>")]
    texts = [text for text in texts if text][:200]
    real = [check_prose(text) for text in texts]
    cut = [check_prose(text[: int(len(text) * 0.6)]) for text in texts]
    looped = [check_prose(text[:150] * 6) for text in texts]

    def mean(rows, key):
        return sum(row[key] for row in rows) / len(rows)

    assert mean(real, "ends_well") > 0.9 > 0.5 > mean(cut, "ends_well")
    assert mean(real, "quotes_balanced") > 0.9 > mean(cut, "quotes_balanced")
    assert mean(real, "repetition") < 0.1 < 0.7 < mean(looped, "repetition")
    assert mean(real, "pronoun_conflict") < 0.25
