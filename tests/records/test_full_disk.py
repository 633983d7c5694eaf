"""A disk that is full: the run stops with a message, and what was there before stays readable."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from etils import epath

from scaling_jax.errors import WorkError
from scaling_jax.records import load
from scaling_jax.records.coverage import recorded_until
from scaling_jax.records.locks import FolderLock
from scaling_jax.records.writer import write_study
from tests.records.runs import begun, noise, row


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[epath.Path]:
    """400 kB of memory as a disk of its own."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(tmp_path)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a disk")
    yield epath.Path(tmp_path) / "runs"
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_stops_the_run_and_harms_nothing(small_disk: epath.Path) -> None:
    out = small_disk
    with FolderLock(out):
        write_study(out, "ladder", "", [], {"a": "aaa", "b": "bbb"})
        first = begun(out, "aaa")
        first.append([row(10, noise=[noise()])])
        first.finish("done")
        run = begun(out, "bbb", seed=1)
        step, message = 0, ""
        while not message:
            step += 10
            run.append([row(step, noise=[noise()])])
            try:
                run.flush()
            except WorkError as error:
                message = str(error)
        assert "bbb/" in message
        assert message.endswith("No space left on device. What was written before is whole.")
        run.finish("failed", message)
    records = load(out)
    assert records.runs["status"].to_list() in (["done", "stale"], ["done", "failed"])
    kept = records.curves.filter(run_id="bbb")["step"].to_list()
    assert kept == list(range(10, 10 * len(kept) + 1, 10)) != []
    assert kept[-1] >= step - 10
    assert not [path for path in out.glob("*/*/.*")], "nothing is left half written"

    (out / "aaa").rmtree()
    until = recorded_until(out, "bbb")
    assert until == kept[-1]
    again = begun(out, "bbb", seed=1, resumed_at=until)
    again.append([row(until + 10, noise=[noise()])])
    again.finish("done")
    mended = load(out).curves.filter(run_id="bbb")["step"].to_list()
    assert mended == [*kept, until + 10]


def test_a_process_that_may_not_write_so_much_is_told_so(out: epath.Path) -> None:
    """The kernel refuses a file in the middle, as a quota does."""
    code = f"""
import resource
from etils import epath
from scaling_jax.errors import WorkError
from scaling_jax.records.writer import write_study
from tests.records.runs import begun, row
out = epath.Path({str(out)!r})
write_study(out, "ladder", "", [], {{"a": "aaa"}})
run = begun(out, "aaa")
run.append([row(10)])
run.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
run.append([row(30, 10)])
try:
    run.flush()
except WorkError as error:
    print(error)
run.finish("failed", "no room")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "aaa/curve/001-00001" in done.stdout
    assert "File too large. What was written before is whole." in done.stdout
    records = load(out)
    assert records.curves["step"].to_list() == [10]
    assert records.runs["status"].to_list() == ["failed"]
    assert records.runs["message"].to_list() == ["no room"]
    assert not list(out.glob("*/*/.*"))
