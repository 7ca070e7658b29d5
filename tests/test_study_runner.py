"""study.runner and --mode study: what is missing is done, what is done is not done again, whatever fails or stops."""

import dataclasses
import fcntl
import json
import math
import time
import types
from pathlib import Path

import pytest
import rich.console
from study_rows import row, study

from mla_jax.errors import UserError
from mla_jax.study import runner, spent, study_mode
from mla_jax.study.plan import CostModel
from mla_jax.study.rows import gather

pytest_plugins = ["run_fixtures"]


@pytest.fixture
def console(tmp_path: Path) -> rich.console.Console:
    return rich.console.Console(file=(tmp_path / "said.txt").open("w"), width=200)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were begun; a run takes no time and its loss grows with its learning rate.

    The repository's own rows are left out: the runner reads them before every run, which takes longer than all else.
    """
    begun: list[str] = []

    def run_task(study, task, folder, console, deadline):
        begun.append(task.name)
        return row(task, 2.0 + 10 * task.config.optim.learning_rate)

    monkeypatch.setattr(runner, "run_task", run_task)
    monkeypatch.setattr(runner, "prepare", lambda config: types.SimpleNamespace(fingerprint="f" * 64))
    monkeypatch.setattr(runner, "POLL_S", 0.05)
    monkeypatch.setattr(runner, "forget_programs", lambda: None)  # those of other tests: these runs compile nothing
    monkeypatch.setattr("mla_jax.study.rows.committed_files", list)
    return begun


def do(tmp_path: Path, console, minutes: float = math.inf, **settings) -> runner.Outcome:
    made = runner.Runner(study(**settings), tmp_path / "study", minutes, console)
    made.prepare()
    return made.run()


def test_all_runs_are_done_once_and_the_second_call_does_nothing(tmp_path, console, trained) -> None:
    outcome = do(tmp_path, console)
    assert (outcome.done, outcome.left, outcome.stopped, outcome.failed) == (11, 0, None, {})
    assert len(trained) == len(set(trained)) == 11
    seeds = [name for name in trained if "-s1-" in name or "-s2-" in name]
    rows = gather(tmp_path / "study", with_committed=False).by_key.values()
    assert len(seeds) == 4
    said = (tmp_path / "said.txt").read_text()
    numbers = [line.split("]")[0].split("[")[1] for line in said.splitlines() if "begins" in line]
    assert numbers == [f"{n}/11" for n in range(1, 12)]  # waiting seeds are counted from the beginning
    assert {r["study"]["learning_rate"] for r in rows if r["study"]["seed"]} == {1e-3}  # the best of the three
    assert do(tmp_path, console).done == 11 and len(trained) == 11


def test_committed_rows_count_as_done(tmp_path, console, trained, monkeypatch) -> None:
    do(tmp_path, console)
    rows = gather(tmp_path / "study", with_committed=False).by_key.values()
    committed = tmp_path / "all.jsonl"
    committed.write_text("".join(json.dumps(r) + "\n" for r in list(rows)[:7]))
    monkeypatch.setattr("mla_jax.study.rows.committed_files", lambda: [committed])
    trained.clear()
    outcome = do(tmp_path / "elsewhere", console)
    assert outcome.left == 0 and len(trained) == 4


def test_a_damaged_row_is_named_once_trained_again_and_replaced(tmp_path, console, trained, caplog) -> None:
    do(tmp_path, console)
    paths = sorted((tmp_path / "study" / "rows").glob("s_mha-*"))
    paths += sorted((tmp_path / "study" / "rows").glob("mha-s2-*"))
    whole = [path.read_text() for path in paths]
    paths[0].write_text(whole[0][:200])
    paths[1].write_text(json.dumps(json.loads(whole[1]) | {"study": {}}))
    trained.clear()
    assert do(tmp_path, console).left == 0
    assert sorted(trained) == sorted(path.stem for path in paths)
    assert [path.read_text() for path in paths] == whole
    assert len(caplog.messages) == 2 and all("counts as missing" in line for line in caplog.messages)


def test_a_failed_run_keeps_its_error_and_does_not_stop_the_rest(tmp_path, console, trained, monkeypatch) -> None:
    good = runner.run_task

    def sometimes(study, task, *rest):
        if task.point.name == "s_mha" or (task.point.name == "mha" and task.learning_rate == 4e-3):
            raise RuntimeError("RESOURCE_EXHAUSTED: too little memory")
        return good(study, task, *rest)

    monkeypatch.setattr(runner, "run_task", sometimes)
    outcome = do(tmp_path, console)
    assert len(outcome.failed) == 2 and all("RESOURCE_EXHAUSTED" in error for error in outcome.failed.values())
    assert outcome.done == 7 and outcome.left == 4  # two failed ones, and two seeds that wait for a learning rate
    kept = [r for r in gather(tmp_path / "study", False).by_key.values() if r["study"]["status"] == "failed"]
    assert len(kept) == 2 and all("too little memory" in r["study"]["error"] for r in kept)
    assert "Traceback" in next((tmp_path / "study" / "logs").glob("s_mha-*")).read_text()
    monkeypatch.setattr(runner, "run_task", good)
    assert do(tmp_path, console).left == 0  # a failed run is tried again by the next call


def test_a_run_whose_own_row_cannot_be_used_has_failed(tmp_path, console, trained, monkeypatch) -> None:
    """It would not count as done, and be trained again and again."""
    good = runner.run_task

    def without_speed(study, task, *rest):
        made = good(study, task, *rest)
        assert len(trained) < 40, "a run is trained again and again"
        return made | {"metrics": made["metrics"] | {"tokens_per_s": 0.0}} if task.point.name == "s_mha" else made

    monkeypatch.setattr(runner, "run_task", without_speed)
    outcome = do(tmp_path, console)
    assert len([name for name in trained if name.startswith("s_mha-")]) == len(outcome.failed) > 0
    assert all("tokens_per_s is '0.0' and must be a number above 0" in text for text in outcome.failed.values())


def test_a_row_has_the_device_seconds_of_all_calls_that_worked_at_it(tmp_path, console, trained, monkeypatch) -> None:
    """Stopped alone on the device, failed with one beside it, done with three: 8 + 4 / 2 + 4 / 4 seconds."""
    made, clock = study(), [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: clock[0])
    good = runner.run_task

    def call(sharing: int, seconds: float, ending: str) -> dict | None:
        one = runner.Runner(made, tmp_path / "study", math.inf, console, sharing)
        task = runner.plan(made, gather(tmp_path / "study", False)).tasks[0]
        (tmp_path / "study" / "runs" / task.name).mkdir(parents=True, exist_ok=True)
        for name in ("rows", "logs"):
            (tmp_path / "study" / name).mkdir(exist_ok=True)

        def work(*rest):
            clock[0] += seconds
            if ending == "failed":
                raise RuntimeError("RESOURCE_EXHAUSTED")
            return good(*rest) if ending == "done" else None

        monkeypatch.setattr(runner, "run_task", work)
        one._do(task, "1/1")
        path = tmp_path / "study" / "rows" / f"{task.name}.json"
        return json.loads(path.read_text())["study"] if path.exists() else None

    assert call(1, 8.0, "stopped") is None
    assert call(2, 4.0, "failed")["status"] == "failed"
    about = call(4, 4.0, "done")
    assert (about["status"], about["sharing"], about["seconds"]) == ("done", 4, 44.0)
    assert about["seconds"] / about["sharing"] == 8 + 4 / 2 + 4 / 4
    assert not list(tmp_path.rglob("spent.json"))  # a lost row is trained again from nothing


@pytest.mark.parametrize("value", ["", "null", '"a"', "NaN", "1e999", "-3", "9" * 400, "[1]"])
def test_damaged_seconds_cost_no_row(tmp_path, value: str) -> None:
    text = f'{{"device_s": {value}}}' if value else "{"
    (tmp_path / "spent.json").write_text(text)
    assert spent.device_s(tmp_path) == 0.0
    spent.keep(tmp_path / "absent", 3.0)
    assert spent.device_s(tmp_path / "absent") == 0.0
    spent.keep(tmp_path, 3.0)
    assert spent.device_s(tmp_path) == 3.0


def test_points_that_share_a_config_share_its_lock_and_its_folder(tmp_path, console, trained) -> None:
    """`only` may leave out the point that a run was begun under."""
    made = study()
    task = runner.plan(made, gather(tmp_path / "study", False)).tasks[0]
    other = dataclasses.replace(task, point=dataclasses.replace(task.point, name="another-name"))
    one = runner.Runner(made, tmp_path / "study", math.inf, console)
    assert other.key == task.key and other.name != task.name
    assert one._folder(other) == tmp_path / "study" / "runs" / other.name
    (tmp_path / "study" / "runs" / task.name).mkdir(parents=True)
    assert one._folder(other) == one._folder(task) == tmp_path / "study" / "runs" / task.name
    do(tmp_path, console)
    held = {path.name for path in (tmp_path / "study" / "locks").iterdir()}
    assert f"{task.key}.lock" in held


def test_one_of_the_processes_tries_the_kernels(tmp_path, console, trained, monkeypatch) -> None:
    """Before its first run; a process that comes meanwhile begins to train."""
    chosen = []
    monkeypatch.setattr(runner.backend, "choose", lambda model: chosen.append(len(trained)))
    do(tmp_path / "one", console)
    assert chosen == [0]
    do(tmp_path / "one", console)
    assert len(chosen) == 1, "nothing is left to do"
    (tmp_path / "two" / "study" / "locks").mkdir(parents=True)
    with open(tmp_path / "two" / "study" / "locks" / "kernels.lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert do(tmp_path / "two", console).left == 0
    assert len(chosen) == 1

    def refuse(model: object) -> None:
        raise UserError("model.decode_impl is 'pallas', which this device cannot have: use auto.")

    monkeypatch.setattr(runner.backend, "choose", refuse)
    assert do(tmp_path / "three", console).left == 0, "one point that cannot be had stops no other"


@pytest.mark.parametrize("rows_only", [False, True])
def test_the_report_can_be_left_out(tmp_path, console, trained, rows_only: bool) -> None:
    assert study_mode.run(study(), str(tmp_path / "study"), None, console, rows_only=rows_only) == 0
    console.file.flush()
    said = (tmp_path / "said.txt").read_text()
    assert "11 runs done, 0 to go" in said and ("report.md" in said) != rows_only
    assert (tmp_path / "study" / "report.md").exists() != rows_only


def test_runs_that_another_process_holds_are_left_to_it(tmp_path, console, trained, monkeypatch) -> None:
    monkeypatch.setattr(runner, "cost_model", lambda *_: CostModel("cpu", 1e15, 0.0, 1.0, 0.0, 0))
    one = dict(rates=(), seeds=(0,))
    held = runner.plan(study(**one), gather(None, False)).tasks[1]
    folder = tmp_path / "study"
    (folder / "locks").mkdir(parents=True)
    with (folder / "locks" / f"{held.key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        outcome = do(tmp_path, console, minutes=0.05, **one)  # enough for the other runs on a busy machine too
        assert time.monotonic() - began > 2.5  # it waited for the other process as long as it was allowed to
        assert outcome.stopped.startswith("the time limit") and outcome.left == 1 and held.name not in trained
    assert do(tmp_path, console, **one).left == 0 and trained[-1] == held.name


def test_runs_that_do_not_fit_into_the_time_left_are_not_begun(tmp_path, console, trained, monkeypatch) -> None:
    monkeypatch.setattr(runner, "cost_model", lambda *_: CostModel("cpu", 1e12, 0.0, 1.0, 100.0, 0))
    outcome = do(tmp_path, console, minutes=1)
    assert len(trained) == 1 and "no run fits" in outcome.stopped  # the first of a call always begins
    monkeypatch.setattr(runner, "cost_model", lambda *_: CostModel("cpu", 1e12, 0.0, 1.0, 1.0, 0))
    assert do(tmp_path, console, minutes=1).left == 0
