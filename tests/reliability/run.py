"""Tries every fault and writes docs/reliability.md's table: `bash launch/reliability.sh [--quick]`."""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kills
import signals
import storage
from kills import Place
from outcome import Outcome

REPORT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- table: launch/reliability.sh -->\n", "<!-- end of table -->\n"


def trials(quick: bool, kill_count: int) -> list[tuple[str, Callable[[Place], Iterator[Outcome]]]]:
    few = 2 if quick else 20
    many = 5 if quick else kill_count
    return [
        ("storage", lambda place: storage.damaged_files(place, every=9 if quick else 1)),
        ("storage", lambda place: storage.resumed_after_damage(place, 1 if quick else 10)),
        ("storage", storage.read_only),
        ("storage", lambda place: storage.full_disk(place, (1,) if quick else (1, 2, 3, 5, 8))),
        ("storage", storage.two_in_one_folder),
        ("signals", lambda place: signals.preemption(place, 3 if quick else 20)),
        ("signals", signals.second_signal),
        ("training", lambda place: kills.training(place, many)),
        ("preparation", lambda place: kills.preparation(place, few)),
        ("sampling", lambda place: kills.sampling(place, few)),
        ("judging", lambda place: kills.judging(place, few)),
    ]


def table(rows: list[tuple[Outcome, float]]) -> str:
    lines = ["| fault | times tried | as promised | what happened | s |", "|---|---|---|---|---|"]
    lines += [f"| {o.fault} | {o.tried} | {o.held} | {o.detail} | {seconds:.0f} |" for o, seconds in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few of each, in two minutes; writes nothing")
    parser.add_argument("--kills", type=int, default=100, help="kills in training; a fifth in saves and resumptions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="storage | signals | training | preparation | sampling | judging")
    arguments = parser.parse_args()
    rows: list[tuple[Outcome, float]] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mla_jax-reliability-") as folder:
        for name, trial in trials(arguments.quick, arguments.kills):
            if arguments.only and name != arguments.only:
                continue
            place, began = Place(Path(folder) / name, random.Random(arguments.seed)), time.monotonic()
            try:
                for outcome in trial(place):
                    rows.append((outcome, time.monotonic() - began))
                    began = time.monotonic()
                    print(table(rows[-1:]).splitlines()[-1], flush=True)
            except AssertionError as error:
                failed.append(f"{name}: {error}")
                print(f"FAILED {failed[-1]}", file=sys.stderr, flush=True)
    if not arguments.quick and not arguments.only and not failed:
        text = REPORT.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        REPORT.write_text(before + BEGIN + table(rows) + END + after, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
