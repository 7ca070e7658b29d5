import json

import pytest

from mla_jax.errors import UserError
from mla_jax.judge.rubric import RUBRICS, ReplyError, get_rubric, messages, parse_reply

GOOD = {"reason": "nice", "grammar": 7, "creativity": 3, "consistency": 10}

# A changed text is another rubric: give it a new version, and its hash here.
FINGERPRINTS = {
    "paper_a-v1": "d8dd81deddd8316b",
    "paper_b-v1": "befddec97502804b",
    "tinystories-v1": "136629604a27a673",
}


def test_a_rubrics_text_belongs_to_its_version():
    assert {r.id: r.fingerprint()[:16] for r in RUBRICS.values()} == FINGERPRINTS


def test_dimensions_are_those_of_the_sources():
    assert RUBRICS["paper_a"].names == ("grammar", "creativity", "consistency")
    assert set(RUBRICS["paper_b"].names) == {"coherence", "creativity", "grammar"}
    assert RUBRICS["tinystories"].names == ("grammar", "creativity", "consistency")
    assert RUBRICS["tinystories"].age_group


@pytest.mark.parametrize("name", RUBRICS)
@pytest.mark.parametrize("pairwise", [False, True])
def test_schema_is_what_strict_structured_output_takes(name, pairwise):
    schema = RUBRICS[name].schema(pairwise)
    assert schema["required"] == list(schema["properties"]) and schema["additionalProperties"] is False
    assert list(schema["properties"])[0] == "reason"  # thought before the grade, not after
    for value in schema["properties"].values():
        assert set(value) <= {"type", "enum"}
    text = RUBRICS[name].instructions(pairwise)
    for key in schema["properties"]:
        assert f'"{key}"' in text  # a server without schemas must know the keys all the same


def test_stories_are_put_in_as_they_are_and_apart():
    system, user = messages(RUBRICS["paper_a"], "A {first} b", "c {0} {prompt}")
    assert "<<<\nA {first} b\n>>>" in user["content"] and "<<<\nc {0} {prompt}\n>>>" in user["content"]
    assert system["role"] == "system"
    pair = messages(RUBRICS["paper_a"], "p", "one", "two")[1]["content"]
    assert pair.index("<<<\np\n>>>") < pair.index("<<<\none\n>>>") < pair.index("<<<\ntwo\n>>>")


@pytest.mark.parametrize(
    "wrap",
    [
        "{}",
        "```json\n{}\n```",
        "Here is my grade: {} I hope it helps.",
        '<think>perhaps {{"grammar": 1}} but no</think>\n{}',
    ],
)
def test_reply_is_found_in_what_surrounds_it(wrap):
    result = parse_reply(wrap.format(json.dumps(GOOD)), RUBRICS["paper_a"])
    assert result["scores"] == {"grammar": 7.0, "creativity": 3.0, "consistency": 10.0}
    assert result["reason"] == "nice"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("", "is empty"),
        ("Ten out of ten!", "no JSON object"),
        (json.dumps(GOOD)[:-1], "cut short"),
        (json.dumps({"reason": "x", "grammar": 5}), "'creativity' is missing"),
        (json.dumps(GOOD | {"grammar": 0}), "outside 1 to 10"),
        (json.dumps(GOOD | {"grammar": 11}), "outside 1 to 10"),
        (json.dumps(GOOD | {"grammar": 10**400}), "outside 1 to 10"),
        ('{"grammar": ' + "9" * 5000 + "}", "cut short"),
        (json.dumps(GOOD | {"grammar": "7"}), "not a number"),
        (json.dumps(GOOD | {"grammar": True}), "not a number"),
        (json.dumps(GOOD | {"grammar": None}), "not a number"),
        (json.dumps(GOOD | {"grammar": float("nan")}), "not a number"),
        (json.dumps([GOOD["grammar"], 3, 10]), "no JSON object"),
        (json.dumps(GOOD | {"reason": 5}), "'reason'"),
    ],
)
def test_unusable_replies_are_named_not_repaired(reply, said):
    with pytest.raises(ReplyError, match=said):
        parse_reply(reply, RUBRICS["paper_a"])


def test_the_ends_of_the_scale_are_grades():
    for grade in (1, 10, 1.0, 9.5):
        assert parse_reply(json.dumps(GOOD | {"grammar": grade}), RUBRICS["paper_a"])["scores"]["grammar"] == grade


@pytest.mark.parametrize("before", ["{", "{{", "{ {", "[{", "{}{", "so: \\\\boxed{"])
def test_an_object_is_found_after_braces_that_open_none(before):
    """Also right behind one: the search goes on at the very next character."""
    result = parse_reply(before + json.dumps(GOOD), RUBRICS["paper_a"])
    assert result["scores"]["grammar"] == 7.0


@pytest.mark.parametrize(
    "reply",
    [
        '{"reason": "it says ' + json.dumps(GOOD) + ' which is bad", "grammar": 1',  # quoted in a broken one
        '{"a": {"b": {' + json.dumps(GOOD),
        json.dumps(GOOD) + ' No, again: {"reason": "on the whole',  # a draft, and a cut last word
    ],
)
def test_a_quotation_and_a_draft_are_no_judgement(reply):
    with pytest.raises(ReplyError, match="is cut short"):
        parse_reply(reply, RUBRICS["paper_a"])


def test_an_empty_object_after_a_judgement_takes_nothing_away():
    assert parse_reply(json.dumps(GOOD) + " Note: {}", RUBRICS["paper_a"])["scores"]["grammar"] == 7.0
    broken_and_closed = '{"not": json} ' + json.dumps(GOOD)
    assert parse_reply(broken_and_closed, RUBRICS["paper_a"])["scores"]["grammar"] == 7.0


def test_what_is_quoted_of_a_reply_is_short():
    with pytest.raises(ReplyError) as error:
        parse_reply(json.dumps(GOOD | {"grammar": "x" * 10_000}), RUBRICS["paper_a"])
    assert len(str(error.value)) < 100
    with pytest.raises(ReplyError) as error:
        parse_reply(json.dumps(GOOD | {"grammar": 10**300}), RUBRICS["paper_a"])
    assert len(str(error.value)) < 100


def test_age_group_and_winner():
    tiny = RUBRICS["tinystories"]
    assert parse_reply(json.dumps(GOOD | {"age_group": "8-9"}), tiny)["age_group"] == "8-9"
    with pytest.raises(ReplyError, match="age_group"):
        parse_reply(json.dumps(GOOD), tiny)
    assert parse_reply('{"reason": "", "winner": "tie"}', tiny, pairwise=True)["winner"] == "tie"
    with pytest.raises(ReplyError, match="winner"):
        parse_reply('{"reason": "", "winner": "both"}', tiny, pairwise=True)


def test_unknown_rubric_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean 'tinystories'"):
        get_rubric("tinystory")
