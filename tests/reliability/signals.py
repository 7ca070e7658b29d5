"""SIGTERM in compilation, in a step, in a save; a second one; Ctrl-C."""

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Iterator

from kills import LONG, Place, in_a_save, unless
from outcome import Outcome
from run_tools import call, start, train_flags

from mla_jax.rows import read_rows
from mla_jax.runs import RunFolder


def preemption(place: Place, count: int) -> Iterator[Outcome]:
    """SIGTERM at random moments of a long run: exit 0 with a checkpoint, or 143 before there was anything to save."""
    codes: Counter[int] = Counter()
    run = place.folder / "preempted"
    knobs = LONG | {"train.steps": 100_000, "checkpoint.every": 50}
    number = -1
    while place.goes_on(number + 1, count):
        number += 1
        process = start(*train_flags(place.stories, run, **knobs), cache=place.cache)
        try:
            if number % 3 == 2:
                in_a_save(run, place.rng.uniform(0, 0.03))(process)
            else:
                time.sleep(place.rng.uniform(0.2, 12))
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=600)
        finally:
            process.kill()
        assert process.returncode in (0, 143, -signal.SIGTERM), f"exit {process.returncode}\n{out}\n{err}"
        assert "Traceback" not in out + err, err
        codes[process.returncode] += 1
        if process.returncode == 0:
            stopped = int(out.split("stopped at step ")[1].split()[0])
            assert RunFolder(run).steps()[-1] == stopped
            rows = [row["step"] for row in read_rows(run / "metrics.jsonl") if row["kind"] == "train"]
            assert rows == list(range(1, stopped + 1))
    detail = ", ".join(f"{number} exited with {code}" for code, number in sorted(codes.items()))
    made = number + 1
    fault, detail = "SIGTERM at any moment, a third of them inside a save", detail + unless(made, count)
    yield Outcome(fault, made, made, detail)


def second_signal(place: Place) -> Iterator[Outcome]:
    """A second SIGTERM, sent at once, ends the process; the folder can be used again."""
    run = place.folder / "twice"
    knobs = LONG | {"train.steps": 100_000}
    process = start(*train_flags(place.stories, run, **knobs), cache=place.cache)
    try:
        while not RunFolder(run).steps():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=600)
    finally:
        process.kill()
    steps = RunFolder(run).steps()
    call(*train_flags(place.stories, run, **LONG | {"train.steps": steps[-1] + 2}), cache=place.cache)
    yield Outcome("a second SIGTERM at once", 1, 1, f"exit {process.returncode}; the same command goes on")
