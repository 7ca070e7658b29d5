"""mla_jax.peers: whatever ends a process of several, the others say so in time; nothing is said of one that is done."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import Processes
from run_tools import REPOSITORY

from mla_jax import peers

DRIVER = [sys.executable, str(Path(__file__).with_name("peers_driver.py"))]


def spawn(folder: Path, count: int, how: str) -> Processes:
    processes = Processes(folder, [], count, devices=1, driver=(DRIVER, how))
    for index in range(count):
        processes.wait_for("all are here", 100, index)
    return processes


@pytest.mark.parametrize("victim", [0, 2])
def test_the_death_of_one_ends_the_others_with_a_sentence(tmp_path: Path, victim: int) -> None:
    processes = spawn(tmp_path, 3, "wait")
    began = time.monotonic()
    processes.children[victim].kill()
    survivors = [i for i in range(3) if i != victim]
    codes = [processes.children[i].wait(60) for i in survivors]
    assert time.monotonic() - began < 20  # not by a heartbeat: the connection tells
    for i, code in zip(survivors, codes, strict=True):
        assert code == peers.PEER_LOST, processes.text(i)
        assert processes.text(i).count("lost another one") == 1
        assert f"mla_jax: process {i} of 3 lost another one (process {victim} " in processes.text(i)


def test_an_abort_of_the_communication_is_outrun(tmp_path: Path) -> None:
    processes = spawn(tmp_path, 2, "abort")
    processes.children[1].kill()
    assert processes.children[0].wait(60) == peers.PEER_LOST, processes.text(0)
    assert "process 0 of 2 lost another one (process 1 has ended)" in processes.text(0)


def test_processes_that_come_to_their_end_are_not_missed(tmp_path: Path) -> None:
    processes = spawn(tmp_path, 2, "end")
    assert processes.wait(60) == [0, 0], [processes.text(i) for i in (0, 1)]
    for i in (0, 1):
        assert "ended well" in processes.text(i) and "lost" not in processes.text(i)


def test_a_process_that_fails_alone_says_why_and_the_other_that_it_is_gone(tmp_path: Path) -> None:
    processes = spawn(tmp_path, 2, "refuse")
    assert processes.wait(60) == [peers.PEER_LOST, 2]
    assert "mla_jax: mine alone" in processes.text(1) and "lost" not in processes.text(1)
    assert "process 0 of 2 lost another one (process 1 has ended)" in processes.text(0)


@pytest.mark.parametrize("speaker, code", [("threading.Timer(1, os._exit, [4]).start()", 4), ("", -6)])
def test_an_abort_leaves_time_to_say_why_and_then_happens(speaker: str, code: int) -> None:
    abort = "ctypes.CDLL(None).abort()"  # without the lock of Python, as a thread of XLA does it
    text = (
        f"import ctypes, os, threading\nfrom mla_jax import peers\nwith peers._slow_aborts():\n  {speaker}\n  {abort}"
    )
    done = subprocess.run([sys.executable, "-c", text], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
