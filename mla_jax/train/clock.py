"""How fast a run trains, and how long it waits for its data."""

import time
from typing import Any

WAITING_COUNTS_AFTER = 50  # steps of this process: they compile and fill the prefetch buffer


class Clock:
    """Throughput between logs (evaluation and saving excluded) and the share of time spent waiting for data.

    steps: since the last `restart`; the loop counts them up.
    """

    def __init__(self, tokens_per_step: int):
        self._tokens = tokens_per_step
        self._rates: list[float] = []
        self._waited = self._counted = 0.0
        self._counted_from: float | None = None  # when the first wait that counts began
        self.restart()

    def restart(self) -> None:
        """Steps and time count from now on: after a log, and after whatever should not count."""
        self._began, self.steps = time.perf_counter(), 0

    def timed_next(self, iterator: Any, since_start: int) -> Any:
        """next(iterator), for step number `since_start` of this process (from 1); the time that it takes is waiting."""
        before = time.perf_counter()
        batch = next(iterator)
        if since_start > WAITING_COUNTS_AFTER:
            after = time.perf_counter()
            if self._counted_from is None:
                self._counted_from = before
            self._waited += after - before
            self._counted = after - self._counted_from
        return batch

    def tokens_per_s(self) -> float:
        """Since the last `restart`; each call adds to what the median is of."""
        rate = self.steps * self._tokens / (time.perf_counter() - self._began)
        self._rates.append(rate)
        return rate

    def median_tokens_per_s(self) -> float:
        """Median over logs, the first (with compilation) left out when there are others."""
        rates = sorted(self._rates[1:] or self._rates)
        return rates[len(rates) // 2] if rates else 0.0

    def data_wait(self) -> float:
        """Share of wall time spent waiting for batches after step WAITING_COUNTS_AFTER; 0 up to there."""
        return self._waited / self._counted if self._counted else 0.0
