import hashlib
import json

import pytest

from mla_jax.errors import UserError
from mla_jax.world import WORLD_VERSION, stories

# Written once by the generator of this version; another platform or Python has to give the same bytes.
GOLDEN = {6: "3b87de05e0ffa275"}


@pytest.fixture(scope="module")
def rows():
    return list(stories(1500, 11))


def test_same_bytes_everywhere():
    rows = "\n".join(json.dumps(row, sort_keys=True) for row in stories(50, 3))
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == GOLDEN[WORLD_VERSION]


def test_a_story_does_not_depend_on_the_range_it_is_drawn_in(rows):
    assert list(stories(40, 11, start=500)) == rows[500:540]


def test_seed_and_split_change_every_story(rows):
    texts = {row["text"] for row in rows[:100]}
    for other in (stories(100, 12), stories(100, 11, "valid"), stories(100, 11, "test")):
        assert not texts & {row["text"] for row in other}


def test_lengths_and_distinctness(rows):
    lengths = [len(row["text"].split()) for row in rows]
    assert min(lengths) >= 120 and max(lengths) <= 250
    assert len({row["text"] for row in rows}) >= 0.999 * len(rows)


def test_facts_stand_where_their_spans_say(rows):
    for row in rows[:300]:
        text = row["text"]
        for fact in row["facts"]["facts"]:
            spans = [fact["setup"], *fact["uses"]]
            assert spans == sorted(spans)
            for start, end in spans:
                shown = text[start:end]
                assert shown and shown.isascii()
                if fact["kind"] == "pronoun":
                    assert (fact["value"] == "she") == (shown.lower() in ("she", "her", "herself"))
                else:
                    assert shown.lower() == fact["value"].lower()


def test_events_point_at_their_sentences(rows):
    for row in rows[:100]:
        for _, start, _ in row["facts"]["events"]:
            assert start == 0 or row["text"][start - 1] == " "
            assert row["text"][start] == '"' or row["text"][start].isupper()


def test_long_range_facts_are_common(rows):
    far = 0
    for row in rows:
        for fact in row["facts"]["facts"]:
            if fact["kind"] in ("color", "owner", "home", "place", "pronoun"):
                spans = [fact["setup"], *fact["uses"]]
                far += any(
                    row["text"].count(" ", before[0], after[0]) >= 50
                    for before, after in zip(spans, spans[1:], strict=False)
                )
    assert far >= 2 * len(rows)


def combinations(rows):
    pairs, homes = set(), set()
    for row in rows:
        entities = row["facts"]["entities"]
        pairs.add((entities["o0"]["noun"], entities["o0"]["color"]))
        homes.add((entities["c0"]["name"], entities["p0"]["noun"]))
    return pairs, homes


def test_held_out_splits_differ_in_combinations(rows):
    train = {
        (entity["noun"], entity["color"])
        for row in rows
        for entity in row["facts"]["entities"].values()
        if entity["type"] == "thing"
    }
    train_homes = combinations(rows)[1]
    valid, valid_homes = combinations(stories(500, 11, "valid"))
    test, _ = combinations(stories(500, 11, "test"))
    assert not train & valid and not train & test and not valid & test
    assert not train_homes & valid_homes


def test_bad_requests_are_refused_in_a_sentence():
    with pytest.raises(UserError, match="no split 'dev'"):
        stories(1, 0, "dev")
    with pytest.raises(UserError, match="-1 stories"):
        stories(-1, 0)
    assert list(stories(0, 0)) == []
