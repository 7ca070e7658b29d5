"""mla_jax.distributed: how processes find each other, agree and end; with real processes in the slow tests."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from run_tools import REPOSITORY, train_flags, write_stories

from mla_jax import distributed, runs
from mla_jax.distributed import Launch, launch_from
from mla_jax.errors import UserError
from mla_jax.runs import RunFolder

LAUNCHERS = ("JAX_", "SLURM_", "OMPI_", "TPU_")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(LAUNCHERS)]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "environment, launch",
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),  # the shell of salloc: no step
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, Launch("slurm", "", 4, 3, 9)),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, Launch("ompi", "", 2, 1, 9)),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, Launch("tpu", "", 2, 1, 9)),
        (
            {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
            Launch("explicit", "h:1", 2, 1, 9),
        ),
    ],
)
def test_launchers_are_found(environment: dict[str, str], launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launch_from(None, None, None, 9) == launch


def test_flags_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "5")
    assert launch_from("h:1", 2, 0, 9) == Launch("explicit", "h:1", 2, 0, 9)
    assert launch_from(None, 1, None, 9) is None  # one process alone, whatever the launcher says


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("h:1", None, None, 9), r"^--num_processes and --process_id missing: several processes need"),
        ((None, 2, 0, 9), r"^--coordinator_address missing"),
        (("h:1", 2, 2, 9), r"^--process_id is 2 and --num_processes 2; .* use 0 to 1"),
        (("h:1", 0, 0, 9), r"^--num_processes is 0"),
        (("h:1", 2, -1, 9), r"^--process_id is -1"),
        (("host", 2, 1, 9), r"^--coordinator_address is 'host'; it must be HOST:PORT"),
        (("host:99999", 2, 1, 9), r"^--coordinator_address is 'host:99999'"),
        (("h:1", 2, 1, 0), r"^--init_timeout_s is 0; it must be at least 1"),
    ],
)
def test_bad_launches_are_sentences(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        launch_from(*arguments)


def test_bad_environment_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match="^JAX_NUM_PROCESSES is 'two'; it must be a whole number"):
        launch_from(None, None, None, 9)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_an_unreachable_coordinator_is_a_sentence_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=r"could not reach within 1 s \(Connection refused\): start process 0 there"):
        distributed.start(Launch("explicit", f"localhost:{free_port()}", 2, 1, 1))
    assert time.monotonic() - began < 10


def test_one_process_alone_agrees_with_itself() -> None:
    assert distributed.exchange("x", "text") == ["text"]
    assert distributed.first_then_others("x", lambda: 3) == 3
    distributed.check_same("x", {"a": 1})
    agree = distributed.Agreement(None)
    assert agree(True) and not agree(False)
    with pytest.raises(UserError, match="^mine$"), distributed.together("x"):
        raise UserError("mine")
    distributed.leave(7)  # nobody to leave: returns


def test_the_lock_shows_whether_the_folder_is_shared(tmp_path: Path) -> None:
    with runs.lock(RunFolder(tmp_path), "mark"):
        runs.check_lock(RunFolder(tmp_path), "mark")
        with pytest.raises(UserError, match="not the folder that process 0 has .* network file system"):
            runs.check_lock(RunFolder(tmp_path), "another")
    with pytest.raises(UserError, match="network file system"):
        runs.check_lock(RunFolder(tmp_path / "elsewhere"), "mark")


# --- real processes ---------------------------------------------------------------------------------------------

KNOBS = {"train.microbatches": 1, "train.batch_size": 8, "mesh.fsdp": 2}


class Processes:
    """`count` processes of one run, with `devices` simulated devices each; their output goes to files."""

    def __init__(self, folder: Path, flags: list[str], count: int = 2, devices: int = 4, each: Any = None):
        self.logs = [folder / f"process{i}.txt" for i in range(count)]
        environment = {n: v for n, v in os.environ.items() if n != "JAX_COMPILATION_CACHE_DIR"}
        environment |= {"MLA_JAX_CACHE": str(folder / "cache"), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        port, self.children = free_port(), []
        for i in range(count):
            launch = [f"--coordinator_address=localhost:{port}", f"--num_processes={count}", f"--process_id={i}"]
            command = [sys.executable, "-m", "mla_jax.main", *flags, *(launch if count > 1 else [])]
            with self.logs[i].open("w") as log:
                command += each[i] if each else []
                self.children.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def wait(self, timeout: float = 400) -> list[int]:
        try:
            return [child.wait(timeout) for child in self.children]
        finally:
            for child in self.children:
                child.kill()

    def wait_for(self, text: str, timeout: float = 400) -> None:
        until = time.monotonic() + timeout
        while text not in self.text(0):
            assert time.monotonic() < until and self.children[0].poll() is None, self.text(0)
            time.sleep(0.2)

    def text(self, index: int) -> str:
        return self.logs[index].read_text()


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
    began = time.monotonic()
    code = processes.children[0].wait(90)
    assert time.monotonic() - began < 60
    # Open: jaxlib has been seen to abort (SIGABRT) before our watch speaks. That is red here, as it should be.
    assert code == distributed.PEER_LOST, processes.text(0)
    assert "mla_jax: process 0 of 2 lost another one" in processes.text(0)
    assert "training goes on from the newest checkpoint" in processes.text(0)
    newest = RunFolder(tmp_path / "run").steps()[-1]

    processes = Processes(tmp_path, flags)
    processes.wait_for(f"resuming at step {newest}")
    processes.wait_for(f"step {newest + 5}/")
    processes.children[1].send_signal(signal.SIGTERM)  # one asks, all stop at the same step
    assert processes.wait(120) == [0, 0], [processes.text(0), processes.text(1)]
    assert f"stopped at step {RunFolder(tmp_path / 'run').steps()[-1]} by another process" in processes.text(0)

    processes = Processes(tmp_path, flags)  # without process 0 jaxlib itself ends the others
    processes.wait_for("resuming at step")
    processes.children[0].kill()
    assert processes.children[1].wait(60) != 0


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
    # A process that nobody joins gives up in time.
    lonely = [f"--coordinator_address=localhost:{free_port()}", "--num_processes=2", "--process_id=0"]
    processes = Processes(tmp_path, [*flags, *lonely, "--init_timeout_s=3"], count=1)
    assert processes.wait(90) == [2] and "could not join the others within 3 s" in processes.text(0)
