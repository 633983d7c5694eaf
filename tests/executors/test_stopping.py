from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from scaling_jax.executors.stopping import SIGNALS, StopOnSignal


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_a_reason_and_the_second_has_its_default(number: signal.Signals):
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopOnSignal() as stop:
        assert stop() is None
        assert all(signal.getsignal(each) not in before for each in SIGNALS)
        signal.raise_signal(number)
        assert stop() == f"stopped by {number.name}"
        assert [signal.getsignal(each) for each in SIGNALS] == [signal.SIG_DFL] * 2
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert stop() == f"stopped by {number.name}"


def test_handlers_come_back_after_an_error_and_without_a_signal():
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopOnSignal() as stop:
        pass
    assert stop() is None
    assert [signal.getsignal(each) for each in SIGNALS] == before
    with pytest.raises(KeyError), StopOnSignal():
        raise KeyError
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_the_second_signal_ends_the_process():
    script = (
        "import signal\n"
        "from scaling_jax.executors.stopping import StopOnSignal\n"
        "with StopOnSignal() as stop:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print(stop(), flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "stopped by SIGINT\n"
    assert done.returncode == -signal.SIGTERM
