"""Studies on a server that does not behave, and in processes that are killed."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fault_server import PASSING, PERMANENT, FaultServer, hidden_quality
from judge_helpers import KEY, STORIES, give_up_slow_replies_at_once, judged, make_run, rows, settings, study

from mla_jax.errors import UserError
from mla_jax.judge import judging, tasks
from mla_jax.judge.rubric import RUBRICS
from mla_jax.judge.study_folder import RunToJudge


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch, tmp_path):
    monkeypatch.setattr("mla_jax.judge.client.backoff", lambda attempt: 0.01)
    monkeypatch.setenv("MLA_JAX_CACHE", str(tmp_path / "cache"))


STATUS = dict.fromkeys(PASSING, "ok") | {"": "ok", "cut_content": "truncated", "wrong_schema": "unparsable"}
STATUS |= {"prose": "unparsable", "refusal": "refused", "content_filter": "refused"}


def test_a_thousand_judgements_with_every_fault_are_all_accounted_for(tmp_path, monkeypatch):
    """1,000 judgements, 20 % faults of 12 kinds: one row each, and every row says what was done to it."""
    give_up_slow_replies_at_once(0.2, monkeypatch.setattr)
    with FaultServer(fault_rate=0.2, slow_s=200, key=KEY, retry_after="0.02") as server:
        report = study(
            server, tmp_path, num_prompts=200, num_controls=160, repeats=1, concurrency=40, timeout_s=60, max_retries=5
        )
    found, stories = judged(tmp_path), rows(tmp_path / "stories.jsonl")
    assert len(found) == 1000 and len({r["id"] for r in found}) == 1000
    done = {}
    for task in tasks.plan(stories, settings(repeats=1)):
        done[task.id] = server.fault(tasks.task_messages(task, stories, RUBRICS["paper_a"])[1]["content"])
    assert min(Counter(done.values()).values()) > 3 and len(set(done.values())) == 13
    assert 0.15 < sum(map(bool, done.values())) / 1000 < 0.25
    assert {r["id"]: r["status"] for r in found} == {i: STATUS[kind] for i, kind in done.items()}
    assert all((r["attempts"] > 1) >= (done[r["id"]] in PASSING) for r in found)
    assert all(r["reply"] for r in found if r["status"] in ("unparsable", "truncated"))
    text = report.read_text()
    assert f"{sum(r['status'] == 'ok' for r in found) / 1000:.1%} of all gave one" in text
    assert "no headline score" in text


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
    with FaultServer(fault_rate=0.2, slow_s=200, key=KEY, retry_after="0.02", delay_s=0.01) as server:
        command = [sys.executable, str(Path(__file__).with_name("judge_driver.py"))]
        command += [server.url, str(out), str(cache), str(prompts), "0.2"]
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


def test_a_spent_budget_still_takes_what_the_cache_has(tmp_path):
    """Answers that were paid for cost nothing: they are done whatever the order of judging is."""
    one = (400 + 2 * 40) / 1e6
    with FaultServer() as server:
        study(server, tmp_path / "paid", num_prompts=20, repeats=1)
        known, asked = len(judged(tmp_path / "paid")), server.requests.total()
        runs = [make_run("a", STORIES), make_run("b", STORIES)]
        study(server, tmp_path / "more", runs, num_prompts=20, repeats=1, budget_usd=5.5 * one, concurrency=1)
    rows = judged(tmp_path / "more")
    assert sum(r["cached"] for r in rows) == known  # every one of them
    new = [r for r in rows if not r["cached"]]
    assert 1 <= len(new) < 20 and server.requests.total() - asked == len(new)
    assert sum(r["cost_usd"] for r in rows) <= 5.5 * one


def test_a_server_that_stops_answering_stops_the_run_and_is_asked_again(tmp_path):
    with FaultServer() as server:
        server.break_after = 40
        with pytest.raises(UserError, match="5 judgements in a row got no answer .*continues once it answers"):
            study(server, tmp_path, num_prompts=60, max_retries=1, give_up_after=5)
        broken = judged(tmp_path)
        assert {"ok", "error"} == {r["status"] for r in broken}
        server.break_after = 0
        study(server, tmp_path, num_prompts=60, max_retries=1)
    assert {r["status"] for r in judged(tmp_path)} == {"ok"}
    failed = [r["id"] for r in broken if r["status"] == "error"]
    assert [r["id"] for r in rows(tmp_path / "retried.jsonl")] == failed


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
