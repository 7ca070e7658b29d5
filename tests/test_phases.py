"""Where the time before the first step goes: the clock, and its rows in a run folder."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mla_jax.phases import StartClock
from mla_jax.rows import read_rows

pytest_plugins = ["run_fixtures"]
PHASES = {"imports", "device", "data", "state", "batch", "compile", "first step"}


def test_phases_follow_each_other_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    StartClock()  # the process's first, which counts its imports
    now = iter([10.0, 11.0, 13.5, 14.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = StartClock()
    for phase in ("data", "state", "data"):
        clock.mark(phase)
    assert clock.parts == {"data": 1.5, "state": 2.5}
    assert clock.seconds() == {"data": 1.5, "state": 2.5, "total": 4.0}
    assert clock.line() == "start-up  4.0 s: data 1.5 · state 2.5"


def test_the_first_clock_of_a_process_counts_from_its_start() -> None:
    code = (
        "import mla_jax.main, time; time.sleep(0.2); from mla_jax.phases import StartClock\n"
        "for _ in range(2):\n    clock = StartClock(); clock.mark('x'); print(clock.total)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(out[0]) >= 0.2
    assert float(out[1]) < 0.1


def test_a_run_says_where_its_start_up_went(trained_run: Path) -> None:
    rows = [row for row in read_rows(trained_run / "metrics.jsonl") if row["kind"] == "startup"]
    assert len(rows) == 1
    assert rows[0]["step"] == 0
    assert {phase.replace(" ", "_") for phase in PHASES} < rows[0].keys()
    parts = json.loads((trained_run / "result.json").read_text())["metrics"]["startup_s"]
    assert parts.keys() == PHASES | {"total"}
    assert parts["imports"] > 0.1
    assert parts["compile"] > 0.1
    assert parts["total"] == pytest.approx(sum(value for name, value in parts.items() if name != "total"), abs=0.01)
