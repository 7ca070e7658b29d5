"""How time is taken: compile apart, warm-up, several repeats, the median and the spread."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, lowest and highest of `repeats`; first_s: the first call, compilation included."""

    median_s: float
    low_s: float
    high_s: float
    repeats: int
    first_s: float

    @classmethod
    def of(cls, times: Sequence[float], first_s: float) -> "Timing":
        return cls(statistics.median(times), min(times), max(times), len(times), first_s)

    def metrics(self, steps: int = 1) -> dict[str, Any]:
        """The fields that every row has; times are of one of `steps` steps that a call makes."""
        return {
            "ms": self.median_s / steps * 1e3,
            "ms_low": self.low_s / steps * 1e3,
            "ms_high": self.high_s / steps * 1e3,
            "repeats": self.repeats,
            "steps_per_call": steps,
            "compile_s": max(0.0, self.first_s - self.median_s),
        }


def measure(call: Callable[[Any], Any], prepare: Callable[[], Any], repeats: int) -> Timing:
    """Time `call(prepare())`, `repeats` times after two warm-up calls; `prepare` is not timed.

    What `call` returns must be all that it computes, and is waited for. prepare makes what a call consumes (donated
    buffers), or returns None.
    """
    first = _once(call, prepare)
    _once(call, prepare)
    return Timing.of([_once(call, prepare) for _ in range(repeats)], first)


def _once(call: Callable[[Any], Any], prepare: Callable[[], Any]) -> float:
    argument = jax.block_until_ready(prepare())
    began = time.perf_counter()
    jax.block_until_ready(call(argument))
    return time.perf_counter() - began
