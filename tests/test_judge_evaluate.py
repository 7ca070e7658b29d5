import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from fault_server import PASSING, PERMANENT, FaultServer, hidden_quality, parts_of
from judge_helpers import ENVIRONMENT, KEY, make_run, make_stories, rows, settings

from mla_jax.errors import UserError
from mla_jax.judge import controls, judging, tasks
from mla_jax.judge.evaluate import RunToJudge, run, shared_held_out

STORIES = make_stories(200)


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch, tmp_path):
    monkeypatch.setattr("mla_jax.judge.client.backoff", lambda attempt: 0.01)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def study(server, out, runs=None, environment=ENVIRONMENT, confirm=None, checker=None, **changes):
    runs = runs or [make_run("a", STORIES)]
    chosen = settings(server.url, **changes)
    return run(
        chosen,
        runs,
        out,
        command="main --mode judge",
        checker=checker,
        confirm=confirm,
        environment=environment,
    )


def judged(out):
    return rows(out / "judgements.jsonl")


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


def test_a_thousand_judgements_with_every_fault_are_all_accounted_for(tmp_path):
    """1,000 judgements, 20 % faults of 12 kinds: a row each, no duplicates, and the server's own count
    agrees.
    """
    with FaultServer(fault_rate=0.2, slow_s=2.0, key=KEY, retry_after="0.02") as server:
        report = study(
            server,
            tmp_path,
            num_prompts=200,
            num_controls=160,
            repeats=1,
            concurrency=32,
            timeout_s=1.0,
            max_retries=5,
        )
    found = judged(tmp_path)
    assert len(found) == 1000 and len({r["id"] for r in found}) == 1000
    status = Counter(r["status"] for r in found)
    done = server.requests
    assert all(done[kind] > 3 for kind in PERMANENT + PASSING), done
    assert status["unparsable"] == done["wrong_schema"] + done["prose"]
    assert status["truncated"] == done["cut_content"]
    assert status["refused"] == done["refusal"] + done["content_filter"]
    assert status["error"] == 0 and status["ok"] + sum(done[k] for k in PERMANENT) == 1000
    assert all(r["reply"] for r in found if r["status"] in ("unparsable", "truncated"))
    text = report.read_text()
    assert f"{status['ok'] / 1000:.1%} of all gave one" in text and "no headline score" in text


@pytest.mark.parametrize("concurrency", [1, 6])
def test_no_more_requests_at_a_time_than_allowed(tmp_path, concurrency):
    with FaultServer(delay_s=0.01) as server:
        study(server, tmp_path, concurrency=concurrency)
    assert server.most_at_once <= concurrency and (server.most_at_once > 1) == (concurrency > 1)


@pytest.mark.parametrize(
    ("kills", "prompts"), [(3, 40), pytest.param(12, 230, marks=pytest.mark.slow, id="a-thousand")]
)
def test_kill_9_at_any_point_loses_nothing_and_repeats_nothing(tmp_path, kills, prompts):
    out, cache = tmp_path / "out", tmp_path / "cache"
    (tmp_path / "home").mkdir()
    environment = os.environ | {"OPENAI_API_KEY": KEY, "PYTHONPATH": _path(), "HOME": str(tmp_path / "home")}
    with FaultServer(fault_rate=0.2, slow_s=2.0, key=KEY, retry_after="0.02", delay_s=0.01) as server:
        command = [sys.executable, str(Path(__file__).with_name("judge_driver.py"))]
        command += [server.url, str(out), str(cache), str(prompts)]
        total, said = 4 * prompts + 100, b""
        for kill in range(kills):
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            goal = total * (kill + 1) // (kills + 2)
            while _lines(out) < goal and process.poll() is None:
                time.sleep(0.005)
            assert process.poll() is None, process.communicate()[0].decode()
            os.kill(process.pid, signal.SIGKILL)
            said += process.communicate()[0]
        last = subprocess.run(command, env=environment, capture_output=True, timeout=120)
    said += last.stdout + last.stderr
    assert last.returncode == 0, said.decode()
    found = judged(out)
    plan = tasks.plan(rows(out / "stories.jsonl"), settings(pairwise=True))
    planned = len(plan)
    assert planned >= total and sorted(r["id"] for r in found) == sorted(t.id for t in plan)
    assert not (out / "report.md").read_text().count("Unfinished")
    # every reply that was on disk was paid for once: only those in flight at a kill were asked for again
    replies = sum(server.requests[k] for k in ("ok", *PERMANENT))
    assert planned <= replies <= planned + 8 * kills
    assert KEY.encode() not in said
    assert _grep(tmp_path, KEY) == []


def _path():
    return os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])


def _lines(out):
    path = out / "judgements.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _grep(folder, word):
    return [str(p) for p in folder.rglob("*") if p.is_file() and word.encode() in p.read_bytes()]


def test_the_key_is_nowhere_on_disk_or_in_what_is_said(tmp_path, capfd, caplog, monkeypatch):
    """Also where the server echoes it: in error messages, and in the story's grade itself."""
    caplog.set_level("DEBUG")
    monkeypatch.setenv("OPENAI_LOG", "debug")
    with FaultServer(key="sk-another") as server, pytest.raises(UserError) as error:
        study(server, tmp_path / "refused")
    assert KEY not in str(error.value) and "[key]" in str(error.value)
    with FaultServer(fault_rate=0.3, kinds=["prose", "500"]) as server:
        server.echo = KEY
        server.quality = lambda text, user: hidden_quality(text)
        study(server, tmp_path / "echoed")
    out, err = capfd.readouterr()
    assert KEY not in out + err + caplog.text
    assert _grep(tmp_path, KEY) == [] and _grep(tmp_path, "[key]") != []


def test_a_finished_study_is_only_reported_again(tmp_path):
    with FaultServer() as server:
        report = study(server, tmp_path)
        before, asked = judged(tmp_path), server.requests.total()
        report.unlink()
        # no key and no server needed: nothing is left to ask
        assert study(server, tmp_path, environment={}).exists()
        assert judged(tmp_path) == before and server.requests.total() == asked


def test_a_study_goes_on_after_a_torn_line(tmp_path):
    with FaultServer() as server:
        study(server, tmp_path)
        before = judged(tmp_path)
        path = tmp_path / "judgements.jsonl"
        path.write_bytes(path.read_bytes()[:-70])
        study(server, tmp_path)
    assert {r["id"] for r in judged(tmp_path)} == {r["id"] for r in before}
    assert len(judged(tmp_path)) == len(before) and before[-1]["id"] in (tmp_path / "damaged.txt").read_text()
    assert judged(tmp_path)[-1]["cached"]  # the reply was in the cache, and not paid for again


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


def test_the_budget_stops_cleanly_and_a_larger_one_goes_on(tmp_path, capsys):
    one = (400 + 2 * 40) / 1e6
    with FaultServer() as server:
        report = study(server, tmp_path, budget_usd=20.5 * one)
        first = judged(tmp_path)
        assert 10 <= len(first) <= 20 and sum(r["cost_usd"] for r in first) <= 20.5 * one
        assert "stopped at the budget" in capsys.readouterr().err and "**Unfinished: " in report.read_text()
        report = study(server, tmp_path, budget_usd=1.0)
    assert judged(tmp_path)[: len(first)] == first and len(judged(tmp_path)) > 50
    assert "Unfinished" not in report.read_text()


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


def test_a_server_that_stops_answering_stops_the_run_and_is_asked_again(tmp_path):
    server = FaultServer(delay_s=0.02)
    with server:
        timer = threading.Timer(0.4, lambda: setattr(server, "always", "500"))
        timer.start()
        with pytest.raises(UserError, match="5 judgements in a row got no answer .*continues once it answers"):
            study(server, tmp_path, num_prompts=60, max_retries=1, give_up_after=5)
        broken = judged(tmp_path)
        assert {"ok", "error"} == {r["status"] for r in broken}
        server.always = ""
        study(server, tmp_path, num_prompts=60, max_retries=1)
    assert {r["status"] for r in judged(tmp_path)} == {"ok"}
    failed = [r["id"] for r in broken if r["status"] == "error"]
    assert [r["id"] for r in rows(tmp_path / "retried.jsonl")] == failed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(num_prompts=11), "judge.num_prompts was 10 and is 11"),
        (dict(model="judge-2"), "judge.model was 'judge-1' and is 'judge-2'"),
        (dict(rubric="paper_b"), "judge.rubric was 'paper_a'"),
        (dict(runs=[make_run("z", STORIES)]), "its runs were a and are z"),
        (
            dict(runs=[RunToJudge("a", None, STORIES, "ca", "d", step=200)]),
            "step of run a was 100 and is 200",
        ),
    ],
)
def test_another_study_is_not_mixed_in(tmp_path, changes, said):
    with FaultServer() as server:
        study(server, tmp_path)
        before = (tmp_path / "judgements.jsonl").read_bytes()
        with pytest.raises(UserError, match=said):
            study(server, tmp_path, **changes)
    assert (tmp_path / "judgements.jsonl").read_bytes() == before


BAD_SETTINGS = [
    (dict(rubric="paper_x"), "judge.rubric is 'paper_x'"),
    (dict(model=""), "judge.model is empty"),
    (dict(budget_usd=0), "judge.budget_usd is 0, which buys no judgement"),
    (dict(budget_usd=float("nan")), "judge.budget_usd is nan"),
    (dict(base_url="localhost:80/v1"), "judge.base_url is 'localhost:80/v1'"),
    (dict(base_url="http://host:port/v1"), "judge.base_url"),
    (dict(base_url="ftp://host/v1"), "judge.base_url"),
    (dict(num_prompts=0), "judge.num_prompts is 0"),
    (dict(num_prompts=3), "judge.builtin_prompts is 4, more than"),
    (dict(num_controls=5), "judge.num_controls is 5, but must be a whole number from 8"),
    (dict(concurrency=0), "judge.concurrency is 0"),
    (dict(concurrency=2.5), "judge.concurrency is 2.5"),
    (dict(timeout_s=0), "judge.timeout_s is 0"),
    (dict(price_in=-1.0), "judge.price_in is -1.0"),
    (dict(repeat_share=1.5), "judge.repeat_share is 1.5"),
    (dict(stories_per_prompt=2, temperature=0.0), "identical stories"),
]


@pytest.mark.parametrize(("changes", "said"), BAD_SETTINGS, ids=[str(c) for c, _ in BAD_SETTINGS])
def test_bad_settings_are_one_sentence_and_write_nothing(tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as error:
        run(settings(**changes), [make_run("a", STORIES)], tmp_path / "out", environment=ENVIRONMENT)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_bad_surroundings_are_one_sentence_and_write_nothing(tmp_path):
    out, a = tmp_path / "out", make_run("a", STORIES)
    cases = [
        (dict(), [a], "gives no answer .*check judge.base_url"),
        (dict(base_url="https://judge.invalid/v1"), [a], "OPENAI_API_KEY is not set"),
        (dict(), [], "no run to judge"),
        (dict(), [a, a], "'a' is taken twice"),
        (dict(), [make_run("a", STORIES[:3])], "only 3 of 3 held-out stories can serve as controls"),
    ]
    for changes, runs, said in cases:
        with pytest.raises(UserError, match=said):
            run(settings(**changes), runs, out, environment={})
        assert not out.exists()
    with FaultServer(key="sk-another", models=["x"]) as server:
        for environment, said in (
            (ENVIRONMENT, "refuses the key"),
            ({"OPENAI_API_KEY": "sk-another"}, "does not serve"),
        ):
            with pytest.raises(UserError, match=said):
                run(settings(server.url), [a], out, environment=environment)
            assert not out.exists() and server.requests.total() == 0


def test_a_sampler_that_drops_a_story_is_found_out(tmp_path):
    short = RunToJudge("a", lambda prompts, **_: prompts[1:], STORIES)
    with FaultServer() as server, pytest.raises(UserError, match="gave 9 stories for 10 prompts"):
        study(server, tmp_path, [short])
    assert not (tmp_path / "stories.jsonl").exists()


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


@pytest.mark.slow
def test_memory_stays_flat_while_judging(tmp_path):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    seen, on_row = [], judging._Run._write

    def watch(self, row):
        on_row(self, row)
        if len(self.file.done) % 500 == 0:
            seen.append(resident())

    judging._Run._write, old = watch, on_row

    def distinct(prompts, *, seed, **_):
        return [f"{p} {seed} came to tea, and then there were {seed + i}." for i, p in enumerate(prompts)]

    try:
        with FaultServer() as server:
            writer = RunToJudge("a", distinct, STORIES)
            study(server, tmp_path, [writer], stories_per_prompt=400, concurrency=32, repeat_share=0.0)
    finally:
        judging._Run._write = old
    assert not any(r["cached"] for r in judged(tmp_path))
    print("resident MiB every 500 judgements:", [round(x, 1) for x in seen])
    assert len(seen) == 8 and seen[-1] - seen[1] < 8
