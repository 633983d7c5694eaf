from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from scaling_jax.errors import RequestError
from scaling_jax.executors import stopping
from scaling_jax.executors.stopping import SIGNALS, StopOnRequest, parse_time


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_a_reason_and_the_second_has_its_default(number: signal.Signals):
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopOnRequest() as stop:
        assert stop() is None
        assert all(signal.getsignal(each) not in before for each in SIGNALS)
        signal.raise_signal(number)
        assert stop() == f"stopped by {number.name}"
        assert [signal.getsignal(each) for each in SIGNALS] == [signal.SIG_DFL] * 2
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert stop() == f"stopped by {number.name}"


def test_handlers_come_back_after_an_error_and_without_a_signal():
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopOnRequest() as stop:
        pass
    assert stop() is None
    assert [signal.getsignal(each) for each in SIGNALS] == before
    with pytest.raises(KeyError), StopOnRequest():
        raise KeyError
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_the_second_signal_ends_the_process():
    script = (
        "import signal\n"
        "from scaling_jax.executors.stopping import StopOnRequest\n"
        "with StopOnRequest() as stop:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print(stop(), flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "stopped by SIGINT\n"
    assert done.returncode == -signal.SIGTERM


def test_a_budget_ends_by_a_clock_that_does_not_jump(monkeypatch: pytest.MonkeyPatch):
    now = 1000.0

    class Clock:
        def monotonic(self) -> float:
            return now

    monkeypatch.setattr(stopping, "time", Clock())
    with StopOnRequest(90.0) as stop, StopOnRequest() as never:
        assert stop() is None
        now = 1089.9
        assert stop() is None
        now = 1090.0
        assert stop() == "stopped at the end of the budget"
        assert never() is None


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("30m", 1800.0), ("2h", 7200.0), ("1.5h", 5400.0)]
)
def test_a_budget_is_a_time(text: str, seconds: float):
    assert parse_time(text, "--budget") == seconds


@pytest.mark.parametrize("text", ["2", "h", "2 hours", "-1h", "0s", "1e3s", ""])
def test_what_is_no_time_is_refused(text: str):
    with pytest.raises(RequestError, match="--budget takes a time as in 90s, 30m or 2h, not "):
        parse_time(text, "--budget")
