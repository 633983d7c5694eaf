"""The command that watches a study while it trains, and the same beside a run, as its child."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import IO, TYPE_CHECKING, Annotated, Any

from rich.console import Console
from tyro.conf import Positional, arg

from scaling_jax.cli_common import Json, leave_the_accelerator, print_json
from scaling_jax.errors import RequestError, WorkError

if TYPE_CHECKING:
    from etils import epath

    from scaling_jax.laws.forecast.watch import Watched

EVERY_S = 20.0  # as often as who trains writes
_PRIORITY = 10  # so much lower; at the lowest it hardly starts beside a run that takes every core
_LAST_LOOK_S = 20.0  # which may be in the middle of a fit when the run has ended

StopFor = Annotated[
    str | None,
    arg(metavar="SLUG", help="Ask runs to stop that cannot change the fit of this law."),
]

# It hears of the run's end, whatever that is, by the end of its standard input.
_CHILD = (
    "import sys; from scaling_jax.cli_monitor import watch_beside; "
    "sys.exit(watch_beside(sys.argv[1], sys.argv[2] or None))"
)


def monitor(
    folder: Annotated[Positional[str], arg(metavar="DIR", help="The folder of a study.")],
    every: Annotated[
        str, arg(metavar="TIME", help="Between two looks: 20s, 5m.")
    ] = f"{EVERY_S:.0f}s",
    stop_for: StopFor = None,
    json: Json = False,
) -> int:
    """Forecast a study while it trains, and write the forecasts into its folder."""
    from scaling_jax.executors.stopping import StopOnRequest, parse_time
    from scaling_jax.records.files import as_path

    every_s = parse_time(every, "--every")
    if every_s < 1:  # forecasts are named by the second
        raise RequestError(f"--every is a second or more, not {every}")
    study = as_path(folder)
    messages = Console(stderr=json)
    with StopOnRequest() as stop:
        _prepare()
        from scaling_jax.laws.forecast.watch import require_study

        require_study(study)
        found = _watch(study, stop_for, every_s, stop, lambda line: _say(messages, line))
    if json:
        print_json({"folder": str(study), **found._asdict()})
    return 0


class MonitorBeside:
    """While inside, a child watches the study at a low priority and on the CPU.

    What it tells lies in a file beside its forecasts; `said` is the last of it, once outside.
    """

    def __init__(self, study: epath.Path, law: str | None) -> None:
        """Raises `RequestError` for a law that no run can be judged by."""
        if law is not None:
            from scaling_jax.laws.forecast.law_ends import law_of_loss

            law_of_loss(law)
        self.said: str | None = None
        self._words = [str(study), law or ""]
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MonitorBeside:
        self._out: IO[bytes] = tempfile.TemporaryFile()
        self._child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, *self._words],
            stdin=subprocess.PIPE,
            stdout=self._out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the run, which ends this one
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        child = self._child
        assert child is not None and child.stdin is not None
        with contextlib.suppress(OSError):
            child.stdin.close()
        late = False
        try:
            child.wait(_LAST_LOOK_S)
        except subprocess.TimeoutExpired:
            late = True
            child.kill()
            child.wait()
        self._out.seek(0)
        told = self._out.read().decode(errors="replace").splitlines()
        self._out.close()
        without = "still looking when the run had ended" if late else f"status {child.returncode}"
        wrote = f"ended without a word ({without}); what it wrote is in {self._words[0]}/forecasts"
        self.said = next((line for line in reversed(told) if line.strip()), wrote)


def watch_beside(folder: str, law: str | None) -> int:
    """What the child of a run does, until its standard input ends; prints one line at the end."""
    from scaling_jax.records.files import as_path

    with contextlib.suppress(OSError):
        os.nice(_PRIORITY)
    study = as_path(folder)
    log = _Log(study)
    ended = threading.Event()
    threading.Thread(target=_read_to_the_end, args=(ended,), daemon=True).start()
    _prepare()

    def stop() -> str | None:
        return "the run has ended" if ended.is_set() else None

    found = _watch(study, law, EVERY_S, stop, log.tell)
    asked = f", {len(found.asked)} runs asked to stop" if law is not None else ""
    written = f"forecasts written: {len(found.forecasts)}{asked}"
    print(f"{written}; {log.last}; all of it in {log.path}")
    return 0


class _Log:
    """A file of lines in the folder of a study, once there is one.

    It is written anew with each line, as a bucket appends nothing.
    """

    def __init__(self, study: epath.Path) -> None:
        from scaling_jax.records.forecasts import file_now

        self.path = file_now(study, ".log")
        self._study = study
        self._lines: list[str] = []

    @property
    def last(self) -> str:
        return self._lines[-1]

    def tell(self, line: str) -> None:
        from scaling_jax.records.files import is_there, write_atomic

        self._lines.append(line)
        # a forecast that finds no room says so, too, and a run that is refused leaves nothing
        with contextlib.suppress(RequestError, WorkError):
            if is_there(self._study / "study.json"):
                write_atomic(self.path, "".join(f"{each}\n" for each in self._lines).encode())


def _read_to_the_end(ended: threading.Event) -> None:
    sys.stdin.buffer.read()
    ended.set()


def _prepare() -> None:
    leave_the_accelerator()
    from scaling_jax.cache import keep_compiled

    keep_compiled()


def _watch(
    study: epath.Path,
    law: str | None,
    every_s: float,
    stop: Callable[[], str | None],
    tell: Callable[[str], None],
) -> Watched:
    from scaling_jax.laws.forecast.watch import watch

    return watch(study, law, every_s, stop, tell)


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def written_forecasts(folder: str, studies: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How many forecasts were written of the studies in a source, and when the newest was."""
    from scaling_jax.records.files import as_path
    from scaling_jax.records.forecasts import forecast_files, forecasts_folder, written_at

    place = as_path(folder)
    if not place.is_dir():
        return {}
    own = (place / "study.json").exists()
    found = {}
    for study in [place] if own else [place / name for name in studies]:
        if files := forecast_files(study):
            count = {"count": len(files), "newest": written_at(files[-1])}
            found[str(forecasts_folder(study))] = count
    return found
