"""mla_jax.train.trace: which steps are traced, and that a trace that was begun is always written."""

from pathlib import Path

import jax
import pytest

from mla_jax.train.trace import FIRST, Trace


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: seen.append(f"start {Path(folder).name}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append("stop"))
    return seen


def steps(trace: Trace, calls: list[str], numbers: range) -> None:
    for number in numbers:
        trace.at(number, {})
        calls.append(str(number))


def test_so_many_steps_are_traced(calls: list[str], tmp_path: Path) -> None:
    trace = Trace(tmp_path / "profile", 2)
    steps(trace, calls, range(1, 30))
    trace.end({})
    before, after = [str(n) for n in range(1, FIRST)], [str(n) for n in range(FIRST + 2, 30)]
    assert calls == [*before, "start profile", str(FIRST), str(FIRST + 1), "stop", *after]


def test_a_run_that_ends_inside_the_trace_writes_it(calls: list[str], tmp_path: Path) -> None:
    trace = Trace(tmp_path / "profile", 50)
    steps(trace, calls, range(FIRST, FIRST + 3))
    steps(trace, calls, range(FIRST, FIRST + 2))  # rolled back: one trace goes on
    trace.end({})
    assert [call for call in calls if not call.isdigit()] == ["start profile", "stop"]


def test_no_step_is_traced_unless_asked(calls: list[str], tmp_path: Path) -> None:
    trace = Trace(tmp_path / "profile", 0)
    steps(trace, calls, range(1, 40))
    trace.end({})
    assert not {"stop", "start profile"} & set(calls)
