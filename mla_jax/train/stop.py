"""Stopping on request: SIGTERM and Ctrl-C end training after the current step, with a checkpoint."""

import signal
from typing import Any


class StopOnSignal:
    """While active, the first SIGTERM or SIGINT sets `signal_name`; a second one acts as if nobody listened."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            # Outside the main thread (notebooks, tests) Python allows no handlers: then nothing is caught.
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:
                break
        return self

    def __exit__(self, *error: Any) -> None:
        self._restore()

    def _handle(self, number: int, frame: Any) -> None:
        self.signal_name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
