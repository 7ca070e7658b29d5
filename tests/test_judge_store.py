import json
import multiprocessing

import pytest
from judge_helpers import settings

from mla_jax.errors import UserError
from mla_jax.judge import tasks
from mla_jax.judge.rubric import get_rubric
from mla_jax.judge.store import JudgementFile, ReplyCache, read_rows


def row(i, status="ok", **more):
    return {"id": f"r{i}", "status": status, "cost_usd": 0.5, "reason": "süß ✓"} | more


def fill(folder, rows):
    with JudgementFile(folder) as file:
        for r in rows:
            file.append(r)


def test_a_row_is_on_disk_when_append_returns(tmp_path):
    with JudgementFile(tmp_path) as file:
        file.append(row(1))
        assert list(read_rows(tmp_path / "judgements.jsonl")) == [row(1)]
        with pytest.raises(KeyError):
            file.append(row(1))
    with JudgementFile(tmp_path) as file:
        assert file.done == {"r1"} and file.spent_usd == 0.5 and not file.notes


def test_a_file_cut_at_any_byte_keeps_every_whole_row(tmp_path):
    fill(tmp_path, [row(i) for i in range(3)])
    path = tmp_path / "judgements.jsonl"
    whole = path.read_bytes()
    ends = [i + 1 for i, b in enumerate(whole) if b == 10]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with JudgementFile(tmp_path) as file:
            expected = sum(end <= cut for end in ends)
            assert len(file.done) == expected, cut
            file.append(row(99))
        assert [r["id"] for r in read_rows(path)] == [f"r{i}" for i in range(expected)] + ["r99"]
    assert "süß" in (tmp_path / "damaged.txt").read_text()


def test_unanswered_rows_are_asked_again_and_kept(tmp_path):
    fill(tmp_path, [row(1), row(2, "error"), row(3, "unparsable"), row(4, "rejected")])
    with JudgementFile(tmp_path) as file:
        assert file.done == {"r1", "r3", "r4"} and "1 judgements got no answer" in file.notes[0]
        file.append(row(2))
    assert [json.loads(x)["id"] for x in (tmp_path / "retried.jsonl").read_text().splitlines()] == ["r2"]
    assert sorted(r["id"] for r in read_rows(tmp_path / "judgements.jsonl")) == ["r1", "r2", "r3", "r4"]


def test_garbage_and_a_row_twice_are_set_aside(tmp_path):
    fill(tmp_path, [row(1), row(2)])
    path = tmp_path / "judgements.jsonl"
    path.write_bytes(b"\xff\xfe nonsense\n[1]\n" + path.read_bytes() + path.read_bytes())
    with JudgementFile(tmp_path) as file:
        assert file.done == {"r1", "r2"} and "4 damaged lines" in file.notes[0] and file.spent_usd == 1.0
    assert len(list(read_rows(path))) == 2


def test_only_one_process_judges_a_folder(tmp_path):
    with JudgementFile(tmp_path), pytest.raises(UserError, match="another process is judging"):
        JudgementFile(tmp_path)
    JudgementFile(tmp_path).close()


def _put(folder, start):
    cache = ReplyCache(folder)
    for i in range(start, start + 50):
        cache.put(str(i), {"text": str(i)})
    cache.close()


def test_the_cache_serves_several_processes(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_put, args=(tmp_path, 50 * i)) for i in range(2)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    cache = ReplyCache(tmp_path)
    assert [cache.get(str(i)) for i in range(100)] == [{"text": str(i)} for i in range(100)]
    assert cache.get("x") is None
    cache.close()


def test_no_place_for_a_cache_is_no_failure(tmp_path):
    (tmp_path / "file").write_text("")
    cache = ReplyCache(tmp_path / "file")
    assert "no reply cache" in cache.note
    cache.put("a", {})
    assert cache.get("a") is None
    (tmp_path / "replies.sqlite").write_text("not a data base at all, but long enough to be read as one" * 20)
    assert "no reply cache" in ReplyCache(tmp_path).note


def test_a_reply_is_of_the_seed_that_was_sent() -> None:
    task, asked, rubric = tasks.Task("a", 0), [{"role": "user", "content": "x"}], get_rubric("paper_a")
    keys = [tasks.cache_key(task, asked, settings(seed=seed), rubric) for seed in (0, 7, 0, 8)]
    assert keys[0] == keys[2] and len(set(keys)) == 3
