"""launch/gpu_study.sh and the study part of launch/gpu_muon.sh: which processes they start, on which GPUs."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from run_tools import REPOSITORY

# In place of python: notes its GPU and flags, and leaves what a study leaves.
STAND_IN = """#!/usr/bin/env bash
echo "gpu=${CUDA_VISIBLE_DEVICES-unset} memory=${XLA_PYTHON_CLIENT_MEM_FRACTION-unset} $*" >>"$SEEN"
while [ "$1" != --workdir ]; do shift; done
mkdir -p "$2/rows"
echo '{}' >"$2/rows/one.json"
echo '{}' >"$2/study.json"
sleep "${WORKS:-0}"
"""


@pytest.fixture
def call(tmp_path: Path):
    """(script, arguments, environment) -> (what ended, the lines of the stand-in); in a copy that gets the runs."""
    copy = tmp_path / "repository"
    copy.mkdir()
    for name in ("configs", "launch", "mla_jax"):
        (copy / name).symlink_to(REPOSITORY / name)
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    seen = tmp_path / "seen"

    def begin(script: str, *arguments: str, pipe: int = subprocess.PIPE, **environment: str) -> subprocess.Popen:
        hidden = (
            "WORKERS",
            "SHARING",
            "GPUS",
            "CUDA_VISIBLE_DEVICES",
            "XLA_PYTHON_CLIENT_MEM_FRACTION",
            "SMOKE",
            "MINUTES",
            "REPORT",
        )
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        kept |= {"PYTHON": str(python), "SEEN": str(seen)} | environment
        command = ["bash", str(copy / "launch" / script), str(tmp_path / "out"), *arguments]
        return subprocess.Popen(command, env=kept, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    def run(script: str, *arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        with begin(script, *arguments, **environment) as process:
            out, errors = process.communicate(timeout=60)
        done = subprocess.CompletedProcess(process.args, process.returncode, out, errors)
        return done, sorted(seen.read_text().splitlines()) if seen.exists() else []

    run.begin = begin
    return run


def test_alone_one_process_takes_the_device_as_it_is(call, tmp_path: Path) -> None:
    done, seen = call("gpu_study.sh", "study_paper_b:files", "1", "--config.common.data.path=x.txt")
    assert done.returncode == 0, done.stderr
    (line,) = seen
    assert line.startswith("gpu=unset memory=unset -m mla_jax.main --mode study --config study_paper_b:files --workdir")
    assert line.endswith("--sharing 1 --config.common.data.path=x.txt")
    assert (tmp_path / "out" / "study_paper_b_files.rows.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize(
    ("script", "arguments"), [("gpu_study.sh", ("study_muon", "1")), ("gpu_muon.sh", ("study",))], ids=["study", "muon"]
)
def test_each_gpu_gets_its_workers_and_one_report_is_made(call, script: str, arguments: tuple[str, ...]) -> None:
    done, seen = call(script, *arguments, GPUS="2", WORKERS="3")
    assert done.returncode == 0, done.stderr
    *workers, report = sorted(seen, key=lambda line: "--report_only" in line)
    assert "--report_only" in report and len(workers) == 6
    for gpu in (0, 1):  # three processes share each
        assert sum(line.startswith(f"gpu={gpu} memory=0.3 ") and "--sharing 3" in line for line in workers) == 3


def test_a_rented_gpu_makes_no_report(call, tmp_path: Path) -> None:
    done, seen = call("gpu_study.sh", WORKERS="2", REPORT="0")
    assert done.returncode == 0, done.stderr
    assert len(seen) == 2 and all("--rows_only" in line and "--report_only" not in line for line in seen)
    _, seen = call("gpu_study.sh", REPORT="0")
    assert "--rows_only" in seen[-1]
    assert not list((tmp_path / "out").glob(".rows*"))


def test_a_call_beside_another_says_how_many_share_the_gpu(call) -> None:
    done, seen = call("gpu_study.sh", WORKERS="2", SHARING="7", REPORT="0")
    assert done.returncode == 0, done.stderr
    assert len(seen) == 2 and all("--sharing 7" in line for line in seen)
    assert all(line.startswith("gpu=unset memory=0.128571 ") for line in seen)  # 0.9 / 7
    done, _ = call("gpu_study.sh", WORKERS="2", SHARING="1")
    assert done.returncode == 2 and "SHARING is 1, but 2 WORKERS" in done.stderr


def test_a_process_leaves_room_for_what_each_takes_beside_its_share(call, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/usr/bin/env bash\necho 143771\necho 143771\n")
    tool.chmod(0o755)
    _, seen = call("gpu_study.sh", WORKERS="12", REPORT="0", PATH=f"{tmp_path}:{os.environ['PATH']}")
    share = float(seen[0].split("memory=")[1].split()[0])
    assert len(seen) == 12 and 12 * (share * 143771 + 1200) == pytest.approx(0.95 * 143771, rel=0.02)


def test_a_process_each_has_its_gpu_to_itself(call) -> None:
    done, seen = call("gpu_muon.sh", "study", GPUS="2")
    assert done.returncode == 0, done.stderr
    workers = [line for line in seen if "--report_only" not in line]
    assert [line.split(" -m")[0] for line in workers] == ["gpu=0 memory=unset", "gpu=1 memory=unset"]
    assert all("--sharing 1" in line for line in workers)


def test_a_run_for_seconds_shares_nothing_whatever_the_environment_says(call) -> None:
    done, seen = call("gpu_muon.sh", "alone", GPUS="2", WORKERS="3", SHARING="9")
    assert done.returncode == 0, done.stderr
    (line,) = seen
    assert line.startswith("gpu=unset memory=unset ") and "--config study_muon:alone" in line and "--sharing 1" in line


def test_a_call_that_is_killed_has_brought_its_finished_rows(call, tmp_path: Path) -> None:
    """As where a machine is taken back while a run is at work."""
    rows = tmp_path / "out" / "study_paper_a.rows.jsonl"
    process = call.begin("gpu_study.sh", "study_paper_a", "1", pipe=subprocess.DEVNULL, WORKS="100")
    try:
        until = time.monotonic() + 30
        while not (rows.exists() and rows.read_text()) and time.monotonic() < until:
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert rows.read_text() == "{}\n"
        time.sleep(4)
        os.utime(rows, (0, 0))
        time.sleep(4)
        assert rows.stat().st_mtime == 0  # nothing goes on writing
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_counts_that_are_none_are_refused(call) -> None:
    done, seen = call("gpu_study.sh", GPUS="two")
    assert done.returncode == 2 and "GPUS two and SHARING 1: all count from 1" in done.stderr and not seen


def test_assigned_gpus_are_the_ones_taken(call) -> None:
    done, seen = call("gpu_study.sh", GPUS="2", CUDA_VISIBLE_DEVICES="4,5")
    assert done.returncode == 0, done.stderr
    assert {line.split()[0] for line in seen if "--report_only" not in line} == {"gpu=4", "gpu=5"}


def test_more_gpus_than_were_assigned_are_refused(call) -> None:
    done, seen = call("gpu_study.sh", GPUS="3", CUDA_VISIBLE_DEVICES="4,5")
    assert done.returncode == 2 and "GPUS is 3, but CUDA_VISIBLE_DEVICES has 2: lower GPUS" in done.stderr and not seen
