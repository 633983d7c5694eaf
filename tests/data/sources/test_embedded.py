from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from scaling_jax.data.sources import embedded
from scaling_jax.errors import RequestError

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}


def test_it_is_the_library_of_the_running_interpreter():
    library = Path(sysconfig.get_path("stdlib"))
    ids = [document_id for document_id, _ in embedded.documents()]
    assert ids == sorted(ids)
    assert len(ids) == len(set(ids)) > 300
    assert {"ast.py", "json/decoder.py", "asyncio/base_events.py"} <= set(ids)
    assert not any(_LEFT_OUT & set(Path(document_id).parts) for document_id in ids)
    contents = dict(embedded.documents())
    assert contents["ast.py"] == (library / "ast.py").read_bytes()
    assert 5e6 < sum(map(len, contents.values())) < 3e7


def test_a_virtual_environment_has_its_base_library(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    script = (
        "import sys, sysconfig; assert sys.prefix != sys.base_prefix;"
        "print(sysconfig.get_path('stdlib'))"
    )
    found = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True)
    assert Path(found.stdout.strip()) == Path(sysconfig.get_path("stdlib"))


def test_what_is_left_out_and_in_what_order(tmp_path):
    wanted = {"b.py": b"b", "a/z.py": b"", "a.py": b"\xff\x00", "lib2to3/pgen.py": b"p"}
    unwanted = [
        "site-packages/x.py", "dist-packages/x.py", "test/x.py", "lib2to3/tests/x.py",
        "idlelib/x.py", "a/__pycache__/x.py", "notes.txt", "module.pyc",
    ]  # fmt: skip
    for document_id, content in {**wanted, **dict.fromkeys(unwanted, b"no")}.items():
        (tmp_path / document_id).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / document_id).write_bytes(content)
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert list(embedded.documents(tmp_path)) == sorted(wanted.items())


def test_a_library_without_source_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"No \.py files"):
        list(embedded.documents(tmp_path))
    with pytest.raises(RequestError, match="Cannot read"):
        list(embedded.documents(tmp_path / "nowhere"))


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RequestError, match=r"gone\.py"):
        list(embedded.documents(tmp_path))


def test_the_source_gives_the_documents_and_knows_its_files():
    source = embedded.Embedded()
    assert list(source.documents()) == list(embedded.documents())
    key = source.key()
    assert key == embedded.Embedded().key() == json.loads(json.dumps(key))
    assert [file[0] for file in key["files"]] == [
        document_id for document_id, _ in source.documents()
    ]
    assert (source.name, source.n_vocab, source.skipped) == ("embedded", None, {})
