"""Stopping on request: SIGTERM, Ctrl-C and a time limit end training after the current step, with a checkpoint."""

import signal
import time
from typing import Any


class StopOnSignal:
    """While active, the first SIGTERM or SIGINT sets `signal_name`; a second one acts as if nobody listened.

    deadline: by time.monotonic(), after which `reason` asks to stop too.
    """

    def __init__(self, deadline: float = float("inf")) -> None:
        self.signal_name: str | None = None
        self._deadline = deadline
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

    @property
    def reason(self) -> str | None:
        """The signal's name, "the time limit", or None while there is no reason to stop."""
        return self.signal_name or ("the time limit" if time.monotonic() >= self._deadline else None)

    def _handle(self, number: int, frame: Any) -> None:
        self.signal_name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
