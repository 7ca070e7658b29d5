"""Where the time before the first step goes. Imported first, and imports nothing heavy: its own import is the start."""

import time

_process_began: float | None = time.perf_counter()


class StartClock:
    """Seconds by phase, one after the other. The first clock of a process counts from the process's start."""

    def __init__(self) -> None:
        global _process_began
        self._last = time.perf_counter() if _process_began is None else _process_began
        _process_began = None
        self.parts: dict[str, float] = {}

    def mark(self, phase: str) -> None:
        """`phase` ends here: what passed since the last mark was its."""
        now = time.perf_counter()
        self.parts[phase] = self.parts.get(phase, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def seconds(self) -> dict[str, float]:
        """{phase: seconds, ..., "total": seconds}, to the millisecond."""
        return {name: round(value, 3) for name, value in (self.parts | {"total": self.total}).items()}

    def line(self) -> str:
        parts = " · ".join(f"{name} {value:.1f}" for name, value in self.parts.items())
        return f"start-up  {self.total:.1f} s: {parts}"
