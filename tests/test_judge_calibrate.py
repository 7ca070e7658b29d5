import pytest

from mla_jax.judge.calibrate import calibrate, draw, wrong_answers
from mla_jax.judge.corruptions import CORRUPTIONS, STRENGTHS
from mla_jax.world import stories
from mla_jax.world.dice import Dice


@pytest.fixture(scope="module")
def texts():
    return [row["text"] for row in stories(60, 4, "valid")]


@pytest.fixture(scope="module")
def table(texts):
    return calibrate(texts)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_score_falls_with_the_strength(table, name):
    scores = [row["score"] for row in table[name]]
    assert scores[0] >= 0.99
    drops = [before - after for before, after in zip(scores, scores[1:], strict=False)]
    assert all(drop > 0.02 for drop in drops), scores
    # In proportion: the score at half strength lies between those of a quarter and three quarters of the
    # way, and no single step makes up for more than three quarters of the whole fall.
    assert max(drops) < 0.75 * (scores[0] - scores[-1]), scores


def test_what_is_wrong_is_named(table):
    assert table["word shuffle"][-1]["unparsed"] > 0.5
    assert table["sentence shuffle"][-1]["contradicting_order"] > 1
    assert table["name swap"][-1]["contradicting_name"] + table["name swap"][-1]["contradicting_ownership"] > 1
    assert table["attribute flip"][-1]["contradicting_attribute"] > 1
    assert table["attribute flip"][-1]["contradicting_place"] > 0.3
    assert table["truncation"][-1]["resolved"] < 0.2


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_strength_zero_changes_nothing(texts, name):
    assert all(CORRUPTIONS[name](text, 0.0, Dice(1)) == text for text in texts)


@pytest.mark.parametrize("name", ["word shuffle", "sentence shuffle"])
def test_shuffles_keep_every_word(texts, name):
    for strength in STRENGTHS:
        spoiled = CORRUPTIONS[name](texts[0], strength, Dice(2))
        assert sorted(spoiled.split(" ")) == sorted(texts[0].split(" "))


def test_plot(table, tmp_path):
    draw(table, str(tmp_path / "calibration.png"))
    assert (tmp_path / "calibration.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_most_wrong_answers_are_found():
    found = wrong_answers(list(stories(60, 4, "valid")))
    shares = {kind: n / of for kind, (n, of) in found.items()}
    assert sum(of for _, of in found.values()) > 400
    assert all(shares[kind] == 1 for kind in ("owner", "food", "source"))
    assert all(shares[kind] > 0.9 for kind in ("color", "place", "pronoun")), shares
