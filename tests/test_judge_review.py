"""What a review of the judge found, held: each test is a way in which it once lost, leaked or invented something."""

import dataclasses
import json
from pathlib import Path

import pytest
from fault_server import FaultServer
from judge_helpers import KEY, make_run, make_stories, rows, settings, study

from mla_jax.errors import UserError
from mla_jax.judge import evaluate, judging, study_folder, tasks
from mla_jax.judge.client import Answer
from mla_jax.judge.rubric import get_rubric
from mla_jax.judge.settings import knobs, validate
from mla_jax.judge.store import JudgementFile, ReplyCache
from mla_jax.judge.waiting import retry_after


def answer(text: str, finish: str = "stop") -> Answer:
    return Answer(text, "", finish, "m", 1, 1, True, 1, 0.1)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('<think>Perhaps {"reason": "x", "grammar": 3, "creativity": 3, "consistency": 3} - no, wait', "truncated"),
        ('{"reason": "x", "grammar": 3, "creativity": 3, "consistency": 3}', "ok"),
    ],
)
def test_a_draft_inside_a_cut_reply_is_no_judgement(text: str, status: str) -> None:
    row = tasks.answered_row({"kind": "score"}, answer(text, "length"), False, settings("x"), get_rubric("paper_a"))
    assert row["status"] == status


def test_the_command_on_disk_has_no_password(tmp_path: Path) -> None:
    with FaultServer() as server:
        secret = server.url.replace("http://", "http://user:s3cretpw@")
        chosen = dataclasses.replace(settings(server.url), base_url=secret)
        evaluate_command = evaluate._without_secrets(f"mla-jax --base_url {secret} --yes", chosen)
        assert evaluate_command == f"mla-jax --base_url {server.url} --yes"


def test_knobs_of_the_command_line() -> None:
    assert knobs(["stories_per_prompt=3", "pairwise=true", "timeout_s=2.5", "model=a=b"]) == {
        "stories_per_prompt": 3,
        "pairwise": True,
        "timeout_s": 2.5,
        "model": "a=b",
    }
    for pair, words in (("stories=3", "did you mean"), ("seed", "NAME=VALUE"), ("seed=x", "must be of type int")):
        with pytest.raises(UserError, match=words):
            knobs([pair])


def test_a_seed_that_the_sampler_refuses_is_refused_first() -> None:
    with pytest.raises(UserError, match="judge.seed is -1"):
        validate(settings("http://localhost/v1", seed=-1))


@pytest.mark.parametrize("date", ["Wed, 99 Oct 99999 07:28:00 GMT", "Wed, 21 Oct 0000 07:28:00 GMT", "x"])
def test_a_date_that_no_calendar_has_is_no_date(date: str) -> None:
    assert retry_after({"retry-after": date}) in (None, 0.0)


def test_a_damaged_reply_in_the_cache_is_asked_again(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path)
    cache.put("good", dataclasses.asdict(answer("x")))
    cache.put("bad", {"text": "x"})
    cache._db.execute("INSERT INTO replies VALUES ('worse', '{')")
    assert judging._known(cache, "good") == answer("x")
    assert judging._known(cache, "bad") is None and judging._known(cache, "worse") is None
    cache.close()


def test_a_row_without_a_status_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "judgements.jsonl").write_text('{"id": "zzz"}\n')
    with JudgementFile(tmp_path) as file:
        assert file.done == set()
    assert "zzz" in (tmp_path / "damaged.txt").read_text()


def test_lost_stories_are_noticed(tmp_path: Path) -> None:
    with FaultServer() as server:
        study(server, tmp_path)
        (out,) = {path.parent for path in tmp_path.rglob("stories.jsonl")}
        lines = (out / "stories.jsonl").read_text().splitlines(keepends=True)
        assert json.loads((out / "judge.json").read_text())["stories"] == len(lines) == len(rows(out / "stories.jsonl"))
        (out / "stories.jsonl").write_text("".join(lines[:-3]))
        with pytest.raises(UserError, match=rf"has {len(lines) - 3} of the {len(lines)} stories"):
            study(server, tmp_path)


def test_an_output_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out is .*, but .*/file' is no folder"):
        study_folder.check_place(tmp_path / "file" / "out")


def test_a_sampler_that_refuses_leaves_no_folder(tmp_path: Path) -> None:
    def refuses(*_: object, **__: object) -> list[str]:
        raise UserError("too long")

    run = dataclasses.replace(make_run("a", make_stories(60)), generate=refuses)
    with FaultServer(key=KEY) as server, pytest.raises(UserError, match="too long"):
        study(server, tmp_path / "a" / "out", [run])
    assert not list(tmp_path.iterdir())
