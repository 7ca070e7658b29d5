"""Tries every fault and writes docs/reliability.md's table: `bash launch/reliability.sh [--quick]`."""

import argparse
import contextlib
import datetime
import io
import json
import os
import platform
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import kills
import signals
import storage
from absl import logging
from kills import Place
from outcome import Outcome

REPORT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- table: launch/reliability.sh -->\n", "<!-- end of table -->\n"
Trial = Callable[[Place], Iterator[Outcome]]
# Parts of the time that trials get; what one leaves the later ones have. Those not named here take what they need.
SHARES = {"resume": 4, "disk": 4, "preemption": 5, "training": 25, "preparation": 5, "sampling": 4, "judging": 2}
SHARES |= {"study": 8, "files": 3}


def trials(kill_count: int) -> dict[str, tuple[str, Trial]]:
    """{trial: (its group, the work)}; what one trial leaves in its group's folder the next of the group uses."""
    few = max(1, kill_count // 5)
    return {
        "files": ("storage", lambda place: storage.damaged_files(place, every=1)),
        "resume": ("storage", lambda place: storage.resumed_after_damage(place, 10)),
        "read_only": ("storage", storage.read_only),
        "disk": ("storage", lambda place: storage.full_disk(place, (1, 2, 3, 5, 8))),
        "two": ("storage", storage.two_in_one_folder),
        "tokens": ("storage", storage.damaged_tokens),
        "export": ("storage", storage.damaged_export),
        "tokenizer": ("storage", storage.foreign_tokenizer),
        "preemption": ("signals", lambda place: signals.preemption(place, few)),
        "twice": ("signals", signals.second_signal),
        "training": ("training", lambda place: kills.training(place, kill_count, few)),
        "preparation": ("preparation", lambda place: kills.preparation(place, few)),
        "sampling": ("sampling", lambda place: kills.sampling(place, few)),
        "judging": ("judging", lambda place: kills.judging(place, few)),
        "study": ("study", lambda place: kills.studies(place, few)),
    }


def quick_trials() -> dict[str, tuple[str, Trial]]:
    """One or two of each, in two minutes. A study takes longer: tests/test_study_mode.py kills one twice."""
    return {
        "files": ("storage", lambda place: storage.damaged_files(place, every=18)),
        "resume": ("storage", lambda place: storage.resumed_after_damage(place, 1)),
        "read_only": ("storage", storage.read_only),
        "disk": ("storage", lambda place: storage.full_disk(place, (1,), ("run folder",))),
        "tokens": ("storage", storage.damaged_tokens),
        "export": ("storage", storage.damaged_export),
        "tokenizer": ("storage", storage.foreign_tokenizer),
        "preemption": ("signals", lambda place: signals.preemption(place, 1)),
        "training": ("training", lambda place: kills.training(place, 2, 0)),
        "preparation": ("preparation", lambda place: kills.preparation(place, 1, 4_000)),
        "judging": ("judging", lambda place: kills.judging(place, 2)),
    }


def table(rows: list[dict]) -> str:
    """Markdown: one line an outcome."""
    lines = ["| fault | times tried | as promised | what happened | s |", "|---|---|---|---|---|"]
    names = ("fault", "tried", "held", "detail", "seconds")
    lines += ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def measured(rows: list[dict]) -> str:
    """When and on what, and how long all of it took."""
    minutes = sum(row["seconds"] for row in rows) / 60
    date, versions = datetime.date.today(), f"Python {platform.python_version()}, jax {jax.__version__}"
    return f"Measured {date}: {os.cpu_count()} CPU cores, {versions}; {minutes:.0f} minutes in all.\n\n"


def attempt(key: str, trial: Trial, place: Place) -> tuple[list[dict], str]:
    """(rows of what was tried, "" or the first line of what did not hold)."""
    rows: list[dict] = []
    began = time.monotonic()
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            for outcome in trial(place):
                now = time.monotonic()
                rows.append({"trial": key, **vars(outcome), "seconds": round(now - began)})
                began = now
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    except Exception as error:  # an assertion, a process that hangs, a file that is not there: all are findings
        print(said.getvalue()[-10_000:], file=sys.stderr)
        traceback.print_exc()
        return rows, f"{key}: {error}"
    return rows, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few of each, in two minutes; writes nothing")
    parser.add_argument("--kills", type=int, default=100, help="kills in training; a fifth of it anywhere else")
    parser.add_argument("--minutes", type=float, default=60, help="on a slow machine fewer attempts are made")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="comma-separated trials or groups: storage, training, disk, ...")
    parser.add_argument("--rows", type=Path, help="a file: trials whose rows it holds are not tried again")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.FATAL)  # damage is reported a hundred times here, as it should be
    chosen, failed = quick_trials() if arguments.quick else trials(arguments.kills), []
    only = set(filter(None, arguments.only.split(",")))
    if unknown := only - set(chosen) - {group for group, _ in chosen.values()}:
        parser.error(f"--only: {', '.join(sorted(unknown))} is no trial; there are {', '.join(chosen)}")
    kept = arguments.rows
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept and kept.exists() else []
    kept_trials = {row["trial"] for row in rows}
    todo = {
        key: value for key, value in chosen.items() if key not in kept_trials and (not only or only & {key, value[0]})
    }
    begun, spent, whole = time.monotonic(), 0, max(1, sum(SHARES.get(key, 0) for key in todo))
    with tempfile.TemporaryDirectory(prefix="mla_jax-reliability-") as folder:
        for key, (group, trial) in todo.items():
            spent += SHARES.get(key, 0)
            deadline = begun + 60 * arguments.minutes * spent / whole
            # In two minutes there is no time to compile the same step for each group anew.
            programs = Path(folder) / "programs" if arguments.quick else None
            place = Place(Path(folder) / group, random.Random(arguments.seed), deadline, programs)
            found, problem = attempt(key, trial, place)
            if problem:
                failed.append(problem)
                print(f"FAILED {problem}", file=sys.stderr, flush=True)
                continue
            rows += found
            if kept:
                with kept.open("a", encoding="utf-8") as out:
                    out.writelines(json.dumps(row) + "\n" for row in found)
    if not arguments.quick and not only and not failed:
        rows.sort(key=lambda row: list(chosen).index(row["trial"]))
        text = REPORT.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        REPORT.write_text(before + BEGIN + measured(rows) + table(rows) + END + after, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
