"""mla_jax.train.stop: the first signal is noted, the second one acts, and handlers come back."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from mla_jax.train.stop import StopOnSignal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted(number: signal.Signals) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    with StopOnSignal() as stop:
        assert stop.signal_name is None
        os.kill(os.getpid(), number)
        assert stop.signal_name == number.name
        assert {n: signal.getsignal(n) for n in before} == before  # from here on a second one acts
    assert {n: signal.getsignal(n) for n in before} == before


def test_a_second_ctrl_c_interrupts() -> None:
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs that a shell put aside ignore Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt), StopOnSignal():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the second one did nothing")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_second_sigterm_kills() -> None:
    code = (
        "import signal\nfrom mla_jax.train.stop import StopOnSignal\n"
        "with StopOnSignal():\n    signal.raise_signal(signal.SIGTERM)\n    print('one', flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM)\n    print('two')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "one\n")


def test_handlers_come_back_when_nothing_happens_or_something_fails() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopOnSignal():
        assert signal.getsignal(signal.SIGTERM) != before
        1 / 0  # noqa: B018
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_nothing_is_caught_and_nothing_fails() -> None:
    outcome: list[object] = []

    def work() -> None:
        try:
            with StopOnSignal() as stop:
                outcome.append(stop.signal_name)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == [None]
