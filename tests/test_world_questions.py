import math

import pytest

from mla_jax.world import stories
from mla_jax.world.ngram import NGram
from mla_jax.world.questions import KINDS, cut_context, probes, score


@pytest.fixture(scope="module")
def questions():
    return list(probes(stories(150, 5, "valid")))


def test_probes_cut_the_story_right_before_the_answer(questions):
    texts = {row["id"]: row["text"] for row in stories(150, 5, "valid")}
    assert {probe.kind for probe in questions} == set(KINDS)
    for probe in questions:
        text = texts[probe.story]
        assert text.startswith(probe.prefix + probe.answer)
        assert not text[len(probe.prefix + probe.answer)].isalpha()
        assert len(set(probe.candidates)) == len(probe.candidates) >= 2
        if probe.kind not in ("pronoun", "food", "owner", "source"):
            assert f" {probe.answer.strip()}" in probe.prefix


def test_distance_counts_words_since_the_last_cue(questions):
    for probe in questions:
        if probe.kind == "color":
            behind = probe.prefix.split(" ")[-probe.distance :]
            assert behind[0].strip('".,!?') == probe.answer.strip(), probe
            others = [word.strip('".,!?') for word in behind[1:]]
            assert probe.answer.strip() not in others or probe.distance < 50


def test_an_article_never_gives_the_answer_away():
    behind_an = 0
    for probe in probes(stories(600, 5)):
        if probe.prefix.endswith((" a", " an")):
            behind_an += 1
            vowels = {candidate.strip()[0] in "aeiou" for candidate in probe.candidates}
            assert len(vowels) == 1, probe
    assert behind_an > 50


def test_scoring_tells_a_perfect_model_from_a_blind_one(questions):
    perfect = score(questions, lambda probes: ([0.0] + [-20.0] * (len(p.candidates) - 1) for p in probes))
    assert all(row["accuracy"] == 1 and row["probability"] == 1 for row in perfect)
    blind = score(questions, lambda probes: ([-1.0] * len(p.candidates) for p in probes))
    assert all(row["accuracy"] == 0 and math.isclose(row["share"], row["chance"]) for row in blind)
    assert sum(row["n"] for row in perfect if row["kind"] == "all" and row["distance"] != ">=50") == len(questions)


def test_scoring_refuses_a_wrong_number_of_candidates(questions):
    with pytest.raises(ValueError, match="1 log-probabilities for"):
        score(questions, lambda probes: ([0.0] for _ in probes))


def test_cut_context_keeps_the_last_words(questions):
    probe = cut_context(questions[-1], 20)
    assert len(probe.prefix.split(" ")) == 20 and questions[-1].prefix.endswith(probe.prefix)


def test_a_five_gram_only_guesses_at_a_distance(questions):
    model = NGram(5).fit(row["text"] for row in stories(1500, 5))
    (row,) = [row for row in score(questions, model.answer) if row["kind"] == "all" and row["distance"] == ">=50"]
    assert row["n"] > 300
    assert row["accuracy"] < row["chance"] + 0.08
