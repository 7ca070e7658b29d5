import pytest

from mla_jax.judge.checker import CONTRADICTING, UNPARSED, WELL_FORMED, check, check_many, summarize
from mla_jax.world import stories

STORY = (
    "Lily was a kind girl. She lived in a little house in the forest. Lily had a big red ball. "
    "The best friend of Lily was a brave fox named Pip. Pip had a blue drum that made everybody smile. "
    "He and his friend went out."
)


def classes(text):
    return [name for name, _ in check(text).sentences]


def problems(text):
    return check(text).problems


def test_corpus_stories_are_well_formed_consistent_and_resolved():
    for split in ("train", "valid", "test"):
        metrics = summarize(check_many(row["text"] for row in stories(150, 31, split)))
        assert metrics["well_formed"] >= 0.99
        assert metrics["score"] >= 0.99
        assert metrics["resolved"] >= 0.99


def test_three_classes():
    assert classes(STORY) == [WELL_FORMED] * 5 + [UNPARSED]


@pytest.mark.parametrize(
    ("sentence", "kind"),
    [
        ("Then Lily put the green ball next to her bed.", "attribute"),
        ("Before going to sleep, Lily looked at her ball and saw that it was red and tiny.", "attribute"),
        ("Pip was proud of his red drum.", "attribute"),
        ("Soon Lily was home again in the cave, where everything was cold and quiet.", "place"),
        ("Then Pip put the red ball next to his bed.", "ownership"),
        ("Lily was proud of his red ball.", "pronoun"),
        ("Tom felt like a king.", "name"),
        ("But when it was time to go, Pip could not find his ball.", "ownership"),
        ('"Where is my red ball?" cried Lily.', "order"),
        ("Now no girl in the world was as happy as Lily.", "order"),
    ],
)
def test_each_kind_of_contradiction(sentence, kind):
    story = STORY.replace(" He and his friend went out.", "")
    assert not problems(story)
    assert kind in problems(f"{story} {sentence}"), check(f"{story} {sentence}").sentences
    assert classes(f"{story} {sentence}")[-1] == CONTRADICTING


def test_a_pronoun_means_the_last_subject():
    story = "Lily was a kind girl. Tom was a brave boy. {} lived in a little house in the forest."
    assert not problems(story.format("He"))
    assert "pronoun" in problems(story.format("She"))


def test_a_neutral_name_keeps_its_first_pronoun():
    story = "Pip was a kind fox. She loved plums more than anything else. {} lived {} family in the forest."
    assert not problems(story.format("Pip", "with her"))
    assert "pronoun" in problems(story.format("Pip", "with his"))


def test_ownership_moves_with_a_trade():
    story = (
        "Lily was a kind girl. Lily had a big red ball. One Monday, Lily saw a tiny blue drum in the shop. "
        "A brave boy named Tom was selling it. So Lily gave the ball to Tom and got the drum. "
    )
    assert not problems(story + "And the red ball belonged to Tom.")
    assert "ownership" in problems(story + "And the red ball belonged to Lily.")
    assert not problems(story + "Now the blue drum belonged to Lily.")


def test_an_unparsed_introduction_does_not_condemn_the_rest():
    text = next(iter(stories(1, 8)))["text"]
    first, rest = text.split(". ", 1) if ". " in text else (text, "")
    broken = check("Girl the a " + first.lower() + " xyz " + first.split()[-1] + ". " + rest)
    assert broken.share(UNPARSED) > 0
    assert broken.share(CONTRADICTING) < 0.2


@pytest.mark.parametrize("text", ["", " ", "...", '"', "\x00\n", "no stop here", "a" * 10_000, "“Öl” 北 " * 50])
def test_any_text_gets_a_verdict(text):
    verdict = check(text)
    assert verdict.score == 0
    assert all(isinstance(value, float) for value in verdict.metrics().values())


def test_a_story_without_a_goal_is_not_resolved():
    assert check("Lily was a kind girl.").resolved == 0


def test_two_processes_say_the_same():
    texts = [row["text"] for row in stories(401, 2)]
    assert check_many(texts, processes=2) == check_many(texts)


def test_no_stories_no_figures():
    assert summarize([]) == {}
