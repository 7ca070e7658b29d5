"""mla_jax.launchers: alone or one of several, by flags, environment and launcher; joining that cannot be."""

import os
import time
from typing import Any

import pytest
from processes import free_port

from mla_jax import launchers
from mla_jax.errors import UserError
from mla_jax.launchers import Launch, launch_from

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


def test_an_unreachable_coordinator_is_a_sentence_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=r"could not reach within 1 s \(Connection refused\): start process 0 there"):
        launchers.start(Launch("explicit", f"localhost:{free_port()}", 2, 1, 1))
    assert time.monotonic() - began < 10
