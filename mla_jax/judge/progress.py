"""How far the judging is: a bar on a terminal, plain lines elsewhere; and what else is said to the user."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_EVERY_S = 10.0


class JudgeProgress:
    """Call `row` with every judgement row; a context manager."""

    def __init__(self, total: int, spent_usd: float):
        self._total, self._spent, self._count, self._failed = total, spent_usd, 0, 0
        self._started = self._said = time.monotonic()
        console = Console(file=sys.stderr)
        self._bar = None
        if console.is_terminal:
            columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=console)
            self._task = self._bar.add_task("judging", total=total, note="")

    def row(self, row: dict[str, Any]) -> None:
        self._count += 1
        self._failed += row["status"] != "ok"
        self._spent += row["cost_usd"]
        note = f"{self._failed} without a score, ${self._spent:.2f}"
        if self._bar is not None:
            self._bar.update(self._task, advance=1, note=note)
        elif time.monotonic() - self._said > _LINE_EVERY_S or self._count == self._total:
            self._said = time.monotonic()
            rate = self._count / max(self._said - self._started, 1e-9)
            print(f"judged {self._count}/{self._total} ({rate:.1f}/s, {note})", file=sys.stderr, flush=True)

    def __enter__(self) -> "JudgeProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def say(lines: Sequence[str]) -> None:
    """Lines for the user, on stderr; empty ones are left out."""
    for line in lines:
        if line:
            print(f"judge: {line}", file=sys.stderr, flush=True)
