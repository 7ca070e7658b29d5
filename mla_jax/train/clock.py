"""How fast a run trains, and how long it waits for its data."""

import time
from typing import Any


class Clock:
    """Throughput between logs (evaluation and saving excluded) and the share of time spent waiting for data.

    steps: since the last `restart`; the loop counts them up.
    """

    def __init__(self, tokens_per_step: int):
        self._tokens = tokens_per_step
        self._rates: list[float] = []
        self._waited = self._counted = 0.0
        self.restart()

    def restart(self) -> None:
        """Steps and time count from now on: after a log, and after whatever should not count."""
        self._began, self.steps = time.perf_counter(), 0

    def timed_next(self, iterator: Any, count: bool) -> Any:
        """next(iterator); with `count` the time it took counts as waiting."""
        before = time.perf_counter()
        batch = next(iterator)
        if count:
            after = time.perf_counter()
            self._waited += after - before
            self._counted_from = getattr(self, "_counted_from", before)
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
        """Share of wall time spent waiting for batches since step 50 of this process; 0 before that."""
        return self._waited / self._counted if self._counted else 0.0
