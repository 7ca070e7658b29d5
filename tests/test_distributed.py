"""mla_jax.distributed: how processes agree, and train one model; with real processes in the slow tests."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from processes import Processes, free_port
from run_tools import train_flags, write_stories

from mla_jax import distributed, peers, runs
from mla_jax.errors import UserError
from mla_jax.runs import RunFolder

KNOBS = {"train.microbatches": 1, "train.batch_size": 8, "mesh.fsdp": 2}


def test_one_process_alone_agrees_with_itself() -> None:
    assert distributed.exchange("x", "text") == ["text"]
    assert distributed.first_then_others("x", lambda: 3) == 3
    distributed.check_same("x", {"a": 1})
    agree = distributed.Agreement(None)
    assert agree(True) and not agree(False)
    with pytest.raises(UserError, match="^mine$"), distributed.together("x"):
        raise UserError("mine")
    peers.leave(7)  # nobody to leave: returns


def test_the_lock_shows_whether_the_folder_is_shared(tmp_path: Path) -> None:
    with runs.lock(RunFolder(tmp_path), "mark"):
        runs.check_lock(RunFolder(tmp_path), "mark")
        with pytest.raises(UserError, match="not the folder that process 0 has .* network file system"):
            runs.check_lock(RunFolder(tmp_path), "another")
    with pytest.raises(UserError, match="network file system"):
        runs.check_lock(RunFolder(tmp_path / "elsewhere"), "mark")


# --- real processes ---------------------------------------------------------------------------------------------


def by_step(workdir: Path) -> dict[tuple[str, int], float]:
    """{(kind, step): loss} of a run's metrics.jsonl."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {(row["kind"], row["step"]): row["loss"] for row in rows if "loss" in row}


def assert_same(found: dict[tuple[str, int], float], wanted: dict[tuple[str, int], float], steps: int) -> None:
    assert {("train", step) for step in range(1, steps + 1)} <= found.keys()
    for key in found.keys() & wanted.keys():
        assert abs(found[key] - wanted[key]) < 1e-5, (key, found[key], wanted[key])


def train(folder: Path, name: str, count: int, devices: int, **knobs: Any) -> Path:
    stories = folder / "stories.txt"
    flags = train_flags(stories if stories.exists() else write_stories(stories), folder / name, **(KNOBS | knobs))
    processes = Processes(folder, flags, count, devices)
    assert processes.wait() == [0] * count, [processes.text(i) for i in range(count)]
    return folder / name


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_train_as_one_and_go_on_as_one(tmp_path: Path) -> None:
    alone = by_step(train(tmp_path, "alone", 1, 1, **{"mesh.fsdp": 1, "train.steps": 14}))
    two = train(tmp_path, "two", 2, 4)
    for name in ("result.json", "samples.txt", "report.md", "plots/loss.png", "checkpoints/10"):
        assert (two / name).exists()
    assert_same(by_step(two), alone, steps=10)
    assert runs.load_run(two, 10).step == 10  # on this process' one device
    # The same folder goes on with one process: on one device, then on four.
    train(tmp_path, "two", 1, 1, **{"mesh.fsdp": 1, "train.steps": 12})
    train(tmp_path, "two", 1, 4, **{"train.steps": 14})
    assert_same(by_step(two), alone, steps=14)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_lost_process_ends_the_others_and_the_run_goes_on(tmp_path: Path) -> None:
    stories = write_stories(tmp_path / "stories.txt")
    long = KNOBS | {"train.steps": 100_000, "train.eval_every": 100_000, "checkpoint.every": 5}
    flags = train_flags(stories, tmp_path / "run", **long)
    processes = Processes(tmp_path, flags)
    processes.wait_for("step 12/")
    processes.children[1].kill()
    assert_ended_by_the_loss(processes, survivor=0)
    newest = RunFolder(tmp_path / "run").steps()[-1]

    processes = Processes(tmp_path, flags)
    processes.wait_for(f"resuming at step {newest}")
    processes.wait_for(f"step {newest + 5}/")
    processes.children[1].send_signal(signal.SIGTERM)  # one asks, all stop at the same step
    assert processes.wait(120) == [0, 0], [processes.text(0), processes.text(1)]
    assert f"stopped at step {RunFolder(tmp_path / 'run').steps()[-1]} by another process" in processes.text(0)

    processes = Processes(tmp_path, flags)
    processes.wait_for("resuming at step")
    processes.children[0].kill()
    assert_ended_by_the_loss(processes, survivor=1)


def assert_ended_by_the_loss(processes: Processes, survivor: int) -> None:
    began = time.monotonic()
    code = processes.children[survivor].wait(90)
    assert time.monotonic() - began < 60
    text = processes.text(survivor)
    assert code == peers.PEER_LOST, text
    assert f"mla_jax: process {survivor} of 2 lost another one" in text
    assert "training goes on from the newest checkpoint" in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_that_differ_or_fail_end_together(tmp_path: Path) -> None:
    stories = write_stories(tmp_path / "stories.txt")
    flags = train_flags(stories, tmp_path / "run", **KNOBS)
    processes = Processes(tmp_path, flags, each=[[], ["--config.train.seed=1"]])
    assert processes.wait(120) == [2, 2]
    for i in (0, 1):
        assert "processes 0 and 1 were started with different train.seed (0 and 1)" in processes.text(i)
    processes = Processes(tmp_path, train_flags(stories, tmp_path / "run", **(KNOBS | {"train.batch_size": 12})))
    assert processes.wait(120) == [2, 2]
    for i in (0, 1):
        assert "train.batch_size makes 12 rows; mesh data x fsdp x expert" in processes.text(i)
    assert not (tmp_path / "run").exists()
    processes = Processes(tmp_path, train_flags(stories, tmp_path / "bad", **(KNOBS | {"train.bad_loss": 1e-3})))
    assert processes.wait(240) == [3, 3], [processes.text(i) for i in (0, 1)]
    for i in (0, 1):
        assert "mla_jax: " in processes.text(i) and "Traceback" not in processes.text(i)
    # A process that nobody joins gives up in time.
    lonely = [f"--coordinator_address=localhost:{free_port()}", "--num_processes=2", "--process_id=0"]
    processes = Processes(tmp_path, [*flags, *lonely, "--init_timeout_s=3"], count=1)
    assert processes.wait(90) == [2] and "could not join the others within 3 s" in processes.text(0)
