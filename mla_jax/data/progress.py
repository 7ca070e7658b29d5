"""Progress of a long step: a rich bar on a terminal, a plain line every few seconds elsewhere; both on stderr."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_LINE_SECONDS = 10.0


def say(text: str) -> None:
    """One line for the user. Not a log: the command line shows warnings only."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """`with Progress("Tokenizing", n_stories) as p: p.advance(n)`; total None = unknown; quiet shows nothing.

    unit: what is counted.
    """

    def __init__(self, what: str, total: int | None, quiet: bool = False, unit: str = "stories"):
        self._what, self._total, self._done, self._quiet, self._unit = what, total, 0, quiet, unit
        self._last = time.monotonic()
        self._said = -1
        self._bar: Bar | None = None
        if not quiet and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar:
            self._bar.stop()
        elif error[0] is None and 0 <= self._said < self._done:
            self._line()  # who saw it begin sees it end

    def advance(self, amount: int = 1) -> None:
        """`amount` more are done."""
        self._done += amount
        if self._bar:
            self._bar.update(self._task, completed=self._done)
        elif not self._quiet and time.monotonic() - self._last >= _LINE_SECONDS:
            self._line()

    def _line(self) -> None:
        self._last, self._said = time.monotonic(), self._done
        if self._total is None:
            say(f"{self._what}: {self._done:,} {self._unit}")
        else:
            say(f"{self._what}: {100 * self._done / max(self._total, 1):.0f} % of {self._total:,} {self._unit}")
