"""Progress of a long step: a rich bar on a terminal, a plain log line every few seconds elsewhere."""

import sys
import time
from typing import Any

from absl import logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_LINE_SECONDS = 10.0


class Progress:
    """`with Progress("Tokenizing", n_stories) as p: p.advance(n)`; quiet shows nothing."""

    def __init__(self, what: str, total: int, quiet: bool = False):
        self._what, self._total, self._done, self._quiet = what, total, 0, quiet
        self._last = time.monotonic()
        self._bar: Bar | None = None
        if not quiet and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
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

    def advance(self, amount: int) -> None:
        self._done += amount
        if self._bar:
            self._bar.update(self._task, completed=self._done)
        elif not self._quiet and time.monotonic() - self._last >= _LINE_SECONDS:
            self._last = time.monotonic()
            share = self._done / max(self._total, 1)
            logging.info("%s: %.0f %% of %s stories", self._what, 100 * share, f"{self._total:,}")
