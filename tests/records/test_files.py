from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
from etils import epath
from etils.epath import testing as epath_testing
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records import files


@pytest.fixture
def folder(tmp_path: Path) -> epath.Path:
    return epath.Path(tmp_path)


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


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("gs://b/runs", r"pip install 'scaling_jax\[gcs\]'"),
        ("s3://b/runs", r"pip install 'scaling_jax\[s3\]'"),
        ("az://b/runs", r"no folder, gs:// or s3:// path"),
        ("file:///b/runs", r"no folder, gs:// or s3:// path"),
    ],
)
def test_a_store_without_its_client_is_the_request(
    path: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=f"Cannot reach {path}.*{fault}"):
        files.as_path(path)


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


def test_a_record_is_read_as_it_was_written(folder: epath.Path) -> None:
    doc = {"x": 1.5, "name": "lädder", "runs": {"b": "1", "a": "2"}, "none": None}
    files.write_record(folder / "doc.json", doc)
    assert files.read_record(folder / "doc.json") == doc
    assert list(files.read_record(folder / "doc.json")["runs"]) == ["b", "a"]


@pytest.mark.parametrize("number", [1, 3, "2", None])
def test_another_format_is_refused(folder: epath.Path, number: object) -> None:
    files.write_json(folder / "doc.json", {"format": number})
    with pytest.raises(RequestError, match=rf"doc\.json is of format {number!r} .* reads 2"):
        files.read_record(folder / "doc.json")


def test_an_edited_record_is_named_with_what_to_do(folder: epath.Path) -> None:
    path = folder / "doc.json"
    files.write_record(path, {"step": 20})
    path.write_text(path.read_text().replace("20", "30"))
    with pytest.raises(files.DamagedRecord, match=r"doc\.json is damaged or was .* Remove it"):
        files.read_record(path)
