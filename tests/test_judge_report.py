import json
import time
from collections import Counter

import numpy as np
import pytest
from judge_helpers import make_run, make_stories, rows, settings

from mla_jax.errors import UserError
from mla_jax.judge import controls, tasks
from mla_jax.judge.findings import find
from mla_jax.judge.report import write_report
from mla_jax.judge.rubric import RUBRICS
from mla_jax.judge.store import write_rows
from mla_jax.judge.study import load_study
from mla_jax.judge.study_folder import identity, save_stories

STORIES = make_stories(400)
SEEN = {controls.REAL: 8.0, controls.SENTENCES_SHUFFLED: 6.5, controls.WORDS_SHUFFLED: 2.0}
SEEN |= {controls.NAMES_SWAPPED: 7.0, controls.ALMOST_EMPTY: 1.5}


def write_study(
    out,
    quality,
    noise=0.7,
    order_bias=0.0,
    failed=0.0,
    failed_source="",
    seed=0,
    names=("a", "b"),
    checker=False,
    **changes,
):
    """A judged folder whose judge is simulated: grade = quality of the source + noise, rounded into 1 to
    10.
    """
    out.mkdir(parents=True, exist_ok=True)
    s = settings(**({"repeats": 2, "repeat_share": 0.2, "num_controls": 40, "num_prompts": 60} | changes))
    runs = [make_run(name, STORIES) for name in names]
    controls_rows = controls.build_controls(STORIES, s.num_controls, s.seed)
    save_stories(out, identity(s, runs), runs, STORIES, controls_rows, s, "command")
    stories = rows(out / "stories.jsonl")
    rng, rubric, found = np.random.default_rng(seed), RUBRICS[s.rubric], []
    for task in tasks.plan(stories, s):
        row = tasks.base_row(task, stories, s, rubric)
        row |= {"tokens_in": 400, "tokens_out": 40, "cost_usd": 0.001, "cached": False}
        if rng.random() < (failed if not failed_source or row["source"] == failed_source else 0):
            row |= {"status": "unparsable", "error": "the reply is empty", "reply": ""}
        elif task.second is not None:
            d = quality[row["source"]] - quality[row["other_source"]] + order_bias + rng.logistic()
            row |= {"status": "ok", "reason": "r", "winner": "first" if d > 0 else "second"}
        else:
            grades = np.clip(np.rint(quality[row["source"]] + noise * rng.standard_normal(3)), 1, 10)
            row |= {
                "status": "ok",
                "reason": "because | so",
                "scores": dict(zip(rubric.names, grades, strict=True)),
            }
            if rubric.age_group:
                row["age_group"] = "6-7"
        found.append(row)
    write_rows(out / "judgements.jsonl", found)
    if checker:
        made = [{"id": st["id"], "scores": {"words": float(len(st["text"].split()))}} for st in stories]
        write_rows(out / "checker.jsonl", made)
    return len(found)


def test_a_judge_that_sees_damage_is_called_sensitive_and_its_scores_are_right(tmp_path):
    planned = write_study(tmp_path, SEEN | {"a": 7.0, "b": 5.5}, checker=True)
    text = write_report(tmp_path, 1000, planned).read_text()
    assert "The judge is sensitive" in text and "Unfinished" not in text
    by_name = {r["name"]: r["metrics"] for r in rows(tmp_path / "rows.jsonl")}
    for name, truth in SEEN.items() | {("a", 7.0), ("b", 5.5)}:
        assert abs(by_name[name]["overall"] - truth) < 0.35
        assert by_name[name]["overall_low"] < by_name[name]["overall"] < by_name[name]["overall_high"]
    difference = by_name["a - b"]
    assert difference["overall_low"] < 1.5 < difference["overall_high"] and difference["p"] < 0.01
    for part in (
        "## Differences",
        "## Agreement with itself",
        "rank correlation",
        "a: best 5",
        "b: worst 5",
        "words",
    ):
        assert part in text, part
    assert not [line for line in text.splitlines() if line.startswith("|") and line.count("|") < 3]


def test_a_judge_that_sees_nothing_is_called_insensitive_in_words(tmp_path):
    write_study(tmp_path, dict.fromkeys(SEEN, 7.0) | {"a": 7.0, "b": 7.0})
    text = write_report(tmp_path, 400).read_text()
    assert "**The judge is insensitive: it tells real stories from none of their damaged forms" in text
    assert "say nothing about quality" in text


def test_a_judge_that_misses_one_damage_is_told_which(tmp_path):
    write_study(tmp_path, SEEN | {controls.NAMES_SWAPPED: 8.0, "a": 7.0, "b": 7.0})
    findings = find(load_study(tmp_path), 400)
    assert [d.b for d in findings.missed] == [controls.NAMES_SWAPPED]
    assert findings.verdict().startswith("The judge is insensitive to names swapped (p = ")
    assert "It does see sentences shuffled" in findings.verdict()


def test_a_judge_that_answers_too_seldom_to_be_tested_is_not_called_anything_else(tmp_path):
    write_study(tmp_path, SEEN | {"a": 7.0, "b": 7.0}, failed=0.7, num_controls=12)
    assert find(load_study(tmp_path), 400).verdict().startswith("The judge is untested: of no control can more than")


def test_a_judge_that_prefers_damage_is_insensitive_too(tmp_path):
    write_study(tmp_path, dict.fromkeys(SEEN, 9.0) | {controls.REAL: 4.0, "a": 7.0, "b": 7.0})
    assert len(find(load_study(tmp_path), 400).missed) == 4


@pytest.mark.parametrize(("failed", "refused"), [(0.01, False), (0.12, True)])
def test_below_95_percent_parsed_there_is_no_headline(tmp_path, failed, refused):
    write_study(tmp_path, SEEN | {"a": 7.0, "b": 5.5}, failed=failed)
    text, metrics = write_report(tmp_path, 400).read_text(), rows(tmp_path / "rows.jsonl")[0]["metrics"]
    study = load_study(tmp_path)
    share = study.status["a"]["ok"] / study.judged("a")
    assert (share < 0.95) == refused == ("**a**: no headline score" in text) == bool(metrics["refused"])
    assert ("overall" in metrics) != refused
    assert metrics["failure_rate"] == pytest.approx(1 - share, abs=1e-6)
    counts = study.status["a"]
    assert f"| a | {counts['ok']} | {counts['unparsable']} | 0 | 0 | 0 | 0 | {study.judged('a')} |" in text


def test_one_run_that_the_judge_fails_on_has_no_headline_and_the_others_keep_theirs(tmp_path):
    write_study(tmp_path, SEEN | {"a": 7.0, "b": 5.5}, failed=0.12, failed_source="a")
    text = write_report(tmp_path, 400).read_text()
    assert load_study(tmp_path).parsed_share() > 0.95
    assert "**a**: no headline score: only " in text and "**b**: no headline" not in text


def test_pairwise_removes_the_order_bias(tmp_path):
    write_study(tmp_path, SEEN | {"a": 6.0, "b": 6.0, "c": 5.0}, order_bias=1.5, pairwise=True, names=("a", "b", "c"))
    findings = find(load_study(tmp_path), 1000)
    a, b, c = findings.ratings.rating
    assert findings.ratings.first_share > 0.7 and findings.ratings.order_bias.low > 0.5
    assert abs(a.mean - b.mean) < 0.5 and c.high < min(a.mean, b.mean)
    rates = {(x, y): i for x, y, i in findings.win_rates}
    assert rates["a", "b"].low < 0.5 < rates["a", "b"].high and rates["a", "c"].low > 0.5
    assert "the ratings are free of it" in write_report(tmp_path, 400).read_text()


def test_repeats_measure_the_judges_own_noise_and_count_once(tmp_path):
    write_study(tmp_path, SEEN | {"a": 7.0, "b": 7.0}, noise=0.0)
    quiet = find(load_study(tmp_path), 400)
    assert quiet.agreement.equal == 1 and quiet.agreement.n > 20
    write_study(tmp_path / "noisy", SEEN | {"a": 7.0, "b": 7.0}, noise=1.5)
    noisy = find(load_study(tmp_path / "noisy"), 400)
    assert noisy.agreement.equal < 0.5 and noisy.agreement.distance > 1
    assert noisy.scores[0].stories == noisy.scores[0].intervals[0].n == 60 < noisy.scores[0].judgements


def test_age_groups_are_shown(tmp_path):
    write_study(tmp_path, SEEN | {"a": 7.0, "b": 7.0}, rubric="tinystories")
    assert "| a | 0% | 0% | 100% | 0% | 0% | 0% |" in write_report(tmp_path, 400).read_text()


def test_an_unfinished_study_and_one_without_any_judgement(tmp_path):
    planned = write_study(tmp_path, SEEN | {"a": 7.0, "b": 7.0})
    path = tmp_path / "judgements.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:100]))
    assert f"**Unfinished: 100 of {planned} judgements were made.**" in write_report(tmp_path, 400, planned).read_text()
    path.write_text("")
    text = write_report(tmp_path, 400, planned).read_text()
    assert "nothing judged" in text and "untested" in text
    json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0], parse_constant=pytest.fail)


def test_no_study_is_said(tmp_path):
    with pytest.raises(UserError, match="holds no judged study"):
        write_report(tmp_path, 400)


def test_ten_thousand_rows_are_reported_within_ten_seconds(tmp_path):
    quality = SEEN | {f"run{i}": 5 + 0.2 * i for i in range(8)}
    made = write_study(
        tmp_path,
        quality,
        names=tuple(f"run{i}" for i in range(8)),
        num_prompts=100,
        stories_per_prompt=10,
        num_controls=200,
        pairwise=False,
        checker=True,
        failed=0.01,
    )
    assert made > 10_000
    started, worked = time.monotonic(), time.process_time()
    write_report(tmp_path, 2000)
    took, worked = time.monotonic() - started, time.process_time() - worked
    print(f"{made} rows reported in {took:.1f} s, {worked:.1f} s of them work")
    assert worked < 10  # a machine that is busy with something else takes longer by the clock
    assert Counter(r["name"].count(" - ") for r in rows(tmp_path / "rows.jsonl")) == {0: 13, 1: 28}
