"""A study from end to end, on a server that behaves."""

import itertools
from collections import Counter

import pytest
from fault_server import FaultServer, hidden_quality, parts_of
from judge_helpers import KEY, STORIES, judged, make_run, rows, study

from mla_jax.errors import UserError
from mla_jax.judge import controls
from mla_jax.judge.study_folder import RunToJudge, shared_held_out


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch, tmp_path):
    monkeypatch.setattr("mla_jax.judge.client.backoff", lambda attempt: 0.01)
    monkeypatch.setenv("MLA_JAX_CACHE", str(tmp_path / "cache"))


def test_a_study_from_end_to_end(tmp_path):
    with FaultServer(key=KEY) as server:
        report = study(server, tmp_path, [make_run("a", STORIES), make_run("b", STORIES, words=12)])
    stories, text = rows(tmp_path / "stories.jsonl"), report.read_text()
    assert Counter(s["source"] for s in stories) == {"a": 10, "b": 10} | dict.fromkeys(
        [controls.REAL, *controls.DAMAGED], 8
    )
    assert {r["story"] for r in judged(tmp_path)} == {s["id"] for s in stories}
    assert all(r["status"] == "ok" for r in judged(tmp_path))
    first = next(s for s in stories if s["source"] == "a")
    row = next(r for r in judged(tmp_path) if r["story"] == first["id"])
    expected = round(hidden_quality(first["text"][len(first["prompt"]) :].strip()))
    assert set(row["scores"].values()) == {expected}
    assert "* **a**: " in text and "n = 10 prompts" in text
    results = rows(tmp_path / "rows.jsonl")
    assert [r["name"] for r in results] == ["a", "b", controls.REAL, *controls.DAMAGED, "a - b"]
    contract = {"name", "config_hash", "metrics", "device", "versions"}
    assert set(results[0]) == contract | {"data_fingerprint", "tokenizer_sha256", "command", "time"}
    assert results[0]["config_hash"] == "ca" and results[0]["metrics"]["overall"] > results[1]["metrics"]["overall"]
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_says_what_the_server_did_not_take(tmp_path, capsys):
    """A temperature that the server never saw is not the judge's."""
    with FaultServer(rejects=["temperature", "json_schema"], keep=True) as server:
        text = study(server, tmp_path / "simple").read_text()
    assert not any("temperature" in body for body in server.bodies[-5:])
    said = "What was asked otherwise than set: the server does not take 'temperature': asked without it"
    assert said in text and "the server does not take json_schema replies: asked more simply" in text
    assert "does not take 'temperature'" in capsys.readouterr().err
    with FaultServer() as server:  # and nothing of the kind about one that takes everything
        assert "asked otherwise" not in study(server, tmp_path / "whole").read_text()


def test_the_judge_never_learns_who_wrote_a_story(tmp_path):
    with FaultServer(keep=True) as server:
        runs = [make_run("mla_rope_secret", STORIES), make_run("mha_secret", STORIES)]
        study(server, tmp_path, runs, pairwise=True)
    sent = "".join(str(b) for b in server.bodies)
    assert len(server.bodies) > 80 and "secret" not in sent and "control" not in sent
    prompts = {s["prompt"] for s in rows(tmp_path / "stories.jsonl")}
    for body in server.bodies[1:]:
        assert parts_of(body["messages"][1]["content"])[0] in prompts  # beginning and completion apart
    pairs = [r for r in judged(tmp_path) if r["kind"] == "pair"]
    assert len(pairs) == 20 and {(r["story"], r["other"]) for r in pairs} == {(r["other"], r["story"]) for r in pairs}


def test_a_finished_study_is_only_reported_again(tmp_path):
    with FaultServer() as server:
        report = study(server, tmp_path)
        before, asked = judged(tmp_path), server.requests.total()
        report.unlink()
        # no key and no server needed: nothing is left to ask
        assert study(server, tmp_path, environment={}).exists()
        assert judged(tmp_path) == before and server.requests.total() == asked


def test_replies_are_paid_for_once_across_studies(tmp_path):
    with FaultServer() as server:
        study(server, tmp_path / "one", repeats=1)
        asked = server.requests.total()
        study(server, tmp_path / "two", [make_run("a", STORIES), make_run("b", STORIES)], repeats=1)
        assert server.requests.total() == asked + 10  # only the new run's
        study(server, tmp_path / "three", repeats=1, model="judge-2")
        assert server.requests.total() == 2 * asked + 10  # another judge shares nothing
        study(server, tmp_path / "four", repeats=1, rubric="paper_b")
        assert server.requests.total() == 3 * asked + 10  # nor does another rubric
    assert sum(r["cost_usd"] for r in judged(tmp_path / "two")) == pytest.approx(10 * (400 + 2 * 40) / 1e6)


def test_nothing_is_spent_without_a_yes(tmp_path, capsys):
    questions = []
    with FaultServer() as server:
        with pytest.raises(UserError, match="not judged, as you said"):
            study(server, tmp_path, yes=False, confirm=lambda q: questions.append(q))
        assert server.requests.total() == 0 and len(rows(tmp_path / "stories.jsonl")) == 50
        assert "judgements by judge-1" in questions[0] and "$0.0" in questions[0] and "tokens in" in questions[0]
        study(server, tmp_path, yes=False, confirm=lambda q: True)
        spent = sum(r["cost_usd"] for r in judged(tmp_path))
    estimated = float(questions[0].split("about $")[1].split()[0])
    assert 0.5 * spent <= estimated + 0.01 <= 3 * spent + 0.02
    with FaultServer() as server, pytest.raises(UserError, match="add --yes"):
        study(server, tmp_path / "other", yes=False)


def test_samples_are_drawn_alike_for_all_runs_and_saved_first(tmp_path):
    calls = []

    def generate(prompts, **keywords):
        calls.append((prompts, keywords))
        return ["So it went."] * len(prompts)

    def saved_first(_):
        assert len(rows(tmp_path / "stories.jsonl")) == 2 * 30 + 40 and not (tmp_path / "judgements.jsonl").read_text()
        return True

    runs = [RunToJudge(name, generate, STORIES) for name in "ab"]
    with FaultServer() as server:
        study(server, tmp_path, runs, stories_per_prompt=3, yes=False, confirm=saved_first)
    seeds = [k.pop("seed") for _, k in calls]
    assert seeds == [0, 10, 20] * 2 and all(c == calls[0] for c in calls)
    assert calls[0][1] == dict(max_new_tokens=60, temperature=0.8, top_k=0)


def test_only_what_every_run_held_out_is_used():
    runs = [make_run("a", STORIES[:50]), make_run("b", STORIES[30:80])]
    assert shared_held_out(runs) == STORIES[30:50]


def test_order_of_judging_mixes_the_runs(tmp_path):
    with FaultServer() as server:
        study(server, tmp_path, [make_run("a", STORIES), make_run("b", STORIES)], num_prompts=40, concurrency=1)
    sources = [r["source"] for r in judged(tmp_path)]
    assert max(len(list(g)) for _, g in itertools.groupby(sources)) < 15


def test_the_machine_checkers_scores_stand_beside_the_judges(tmp_path):
    def checker(texts):
        return [{"words": float(len(text.split())), "constant": 1.0} for text in texts]

    with FaultServer() as server:
        report = study(server, tmp_path, checker=checker)
    stories = {s["id"]: s["text"] for s in rows(tmp_path / "stories.jsonl")}
    assert {r["id"]: r["scores"]["words"] for r in rows(tmp_path / "checker.jsonl")} == {
        i: len(text.split()) for i, text in stories.items()
    }
    assert "## Beside the machine checker" in report.read_text() and "| words | " in report.read_text()
