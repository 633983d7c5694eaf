from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from etils import epath
from etils.epath import testing as epath_testing
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records import files
from scaling_jax.records.files import FolderLock, is_locked

HOLDER = """
import sys
from etils import epath
from scaling_jax.records.files import FolderLock
with FolderLock(epath.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
print("let go", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def folder(tmp_path: Path) -> epath.Path:
    return epath.Path(tmp_path)


@pytest.fixture
def holder(folder: epath.Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, os.fspath(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def names(folder: epath.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_atomic_makes_folders_and_replaces(folder: epath.Path) -> None:
    path = folder / "a" / "b" / "x.bin"
    files.write_atomic(path, b"first")
    files.write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert names(path.parent) == ["x.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_rubbish(
    folder: epath.Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = folder / "x.bin"
    files.write_atomic(path, b"first")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(WorkError, match=r"x\.bin: No space left on device"):
        files.write_atomic(path, b"second")
    assert path.read_bytes() == b"first"
    assert names(folder) == ["x.bin"]


def test_a_limit_of_the_kernel_in_the_middle_of_a_write(folder: epath.Path) -> None:
    path = folder / "x.bin"
    files.write_atomic(path, b"first")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(WorkError, match=r"x\.bin"):
            files.write_atomic(path, bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"first"
    assert names(folder) == ["x.bin"]


def test_a_folder_that_is_a_file(folder: epath.Path) -> None:
    (folder / "a").write_text("")
    with pytest.raises(WorkError, match=r"a/x\.bin"):
        files.write_atomic(folder / "a" / "x.bin", b"")


def test_an_interrupt_leaves_no_rubbish(
    folder: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(folder / "x.bin", b"")
    assert names(folder) == []


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(folder: epath.Path) -> None:
    for name in (".x.bin.0a1b2c3d.tmp", "x.bin", ".lock", "notes.tmp"):
        (folder / name).write_text("")
    files.remove_leftovers(folder)
    assert names(folder) == [".lock", "notes.tmp", "x.bin"]


def test_a_bucket_gets_one_whole_object(folder: epath.Path) -> None:
    opened = []

    def into_the_folder(original, path, mode):
        opened.append((path, mode))
        return original(folder / path.removeprefix("gs://"), mode)

    with epath_testing.mock_epath(open=into_the_folder, makedirs=lambda *args, **kwargs: None):
        files.write_atomic(epath.Path("gs://x.bin"), b"whole")
    assert opened == [("gs://x.bin", "wb")]
    assert (folder / "x.bin").read_bytes() == b"whole"


def test_a_store_without_its_client_is_the_request() -> None:
    def absent(original, path):
        raise ImportError("Please install gcsfs to access Google Storage")

    with epath_testing.mock_epath(exists=absent), pytest.raises(RequestError, match="gcsfs"):
        files.as_path("gs://somewhere/runs")


@settings(max_examples=20)
@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.none()), min_size=1))
def test_every_cut_of_a_json_file_is_named(tmp_path_factory, doc) -> None:
    path = epath.Path(tmp_path_factory.mktemp("json")) / "doc.json"
    files.write_json(path, doc)
    assert files.read_json(path) == doc
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, max(1, len(whole) // 10)):
        path.write_bytes(whole[:length])
        with pytest.raises(RequestError, match=r"doc\.json"):
            files.read_json(path)


@pytest.mark.parametrize("data", [b"[1]", b"3", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_named(folder: epath.Path, data: bytes) -> None:
    (folder / "doc.json").write_bytes(data)
    with pytest.raises(RequestError, match=r"doc\.json"):
        files.read_json(folder / "doc.json")


def test_an_absent_json_file_is_named(folder: epath.Path) -> None:
    with pytest.raises(RequestError, match=r"doc\.json: No such file"):
        files.read_json(folder / "doc.json")


def test_nan_is_not_json(folder: epath.Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(folder / "doc.json", {"x": float("nan")})


@pytest.mark.parametrize("doc", [{"format": 2}, {}, {"format": "1"}])
def test_another_format_is_refused(folder: epath.Path, doc: dict[str, object]) -> None:
    files.write_json(folder / "doc.json", doc)
    with pytest.raises(RequestError, match="format"):
        files.read_record(folder / "doc.json")


def test_a_second_process_is_told_who_writes(
    folder: epath.Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_PATIENCE_S", 0.05)
    assert is_locked(folder)
    with (
        pytest.raises(RequestError, match=rf"pid {holder.pid} on .+, since 20"),
        FolderLock(folder),
    ):
        pass
    assert is_locked(folder), "asking must not disturb the holder"
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "let go\n"
    assert not is_locked(folder)
    assert (folder / ".lock").read_text() == ""
    with FolderLock(folder):
        assert is_locked(folder)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_ends_with_its_process(
    folder: epath.Path, holder: subprocess.Popen[str], number: signal.Signals
) -> None:
    holder.send_signal(number)
    holder.wait()
    assert not is_locked(folder)
    with FolderLock(folder):
        pass


def test_the_lock_is_let_go_though_a_child_lives_on(folder: epath.Path) -> None:
    """A forked worker shares the open file; closing ours alone would leave it locked."""
    with FolderLock(folder) as lock:
        assert lock._fd is not None
        shared = os.dup(lock._fd)
    try:
        assert not is_locked(folder)
    finally:
        os.close(shared)


def test_a_failure_inside_lets_go(folder: epath.Path) -> None:
    with pytest.raises(ZeroDivisionError), FolderLock(folder):
        _ = 1 / 0
    assert not is_locked(folder)


def test_one_process_does_not_take_a_folder_twice(
    folder: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_PATIENCE_S", 0.05)
    with FolderLock(folder):
        with pytest.raises(RequestError, match=f"pid {os.getpid()} "), FolderLock(folder):
            pass
        assert is_locked(folder)


def test_a_look_at_the_lock_does_not_turn_a_writer_away(folder: epath.Path) -> None:
    """`is_locked` holds a shared lock for an instant; here the instant is a tenth of a second."""
    (folder / ".lock").touch()
    fd = os.open(folder / ".lock", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    threading.Timer(0.1, os.close, [fd]).start()
    with FolderLock(folder):
        assert is_locked(folder)


def test_a_folder_never_written_is_not_locked(folder: epath.Path) -> None:
    assert not is_locked(folder)
    assert not is_locked(folder / "absent")
    assert names(folder) == []


def test_a_bucket_is_not_guarded() -> None:
    with FolderLock(epath.Path("gs://bucket/runs")):
        assert not is_locked(epath.Path("gs://bucket/runs"))
