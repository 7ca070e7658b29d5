"""mla_jax.train.clock: throughput between restarts, and the share of time that went into waiting for data."""

import pytest

from mla_jax.train import clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as a list of one number that tests set."""
    time = [100.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: time[0])
    return time


def test_throughput_counts_from_the_last_restart_and_its_median_leaves_out_the_first(now: list[float]) -> None:
    watch = clock.Clock(tokens_per_step=1000)
    assert watch.median_tokens_per_s() == 0
    for seconds in (40.0, 2.0, 1.0, 4.0):  # the first has the compilation in it
        watch.restart()
        watch.steps = 4
        now[0] += seconds
        assert watch.tokens_per_s() == 4000 / seconds
    assert watch.median_tokens_per_s() == 2000


def test_waiting_counts_once_the_first_steps_are_over(now: list[float]) -> None:
    watch = clock.Clock(1)

    def slow():
        while True:
            now[0] += 1.0
            yield "batch"

    data = slow()
    last = clock.WAITING_COUNTS_AFTER
    assert watch.timed_next(data, last) == "batch" and watch.data_wait() == 0
    for since_start in range(last + 1, last + 6):
        watch.timed_next(data, since_start)
        now[0] += 3.0  # a step
    assert watch.data_wait() == pytest.approx(5 / 17)  # five waits of 1 s, and four steps between them
