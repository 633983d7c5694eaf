"""Stopping when asked: the first signal finishes what is in flight, the second ends at once."""

from __future__ import annotations

import re
import signal
import time
from types import FrameType, TracebackType
from typing import Any

from scaling_jax.errors import RequestError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def parse_time(text: str, option: str) -> float:
    """Seconds of `90s`, `30m`, `1.5h`; raises `RequestError` for anything else under `option`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or not (seconds := float(match[1]) * _SECONDS[match[2]]):
        raise RequestError(f"{option} takes a time as in 90s, 30m or 2h, not {text!r}")
    return seconds


class StopOnRequest:
    """Inside `with`, Ctrl-C, SIGTERM and the end of a budget are a reason to stop, if one asks.

    The budget is seconds from now on, by a clock that does not jump.
    """

    def __init__(self, budget_s: float | None = None) -> None:
        self._deadline = None if budget_s is None else time.monotonic() + budget_s
        self._reason: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopOnRequest:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> str | None:
        """Why to stop, or None."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        if self._reason is None and late:
            self._reason = "stopped at the end of the budget"
        return self._reason

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._reason = f"stopped by {signal.Signals(number).name}"
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
