"""Records in a bucket, through the real clients and a real server of each kind of store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec.config
import pytest
from etils import epath
from polars.testing import assert_frame_equal

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records import load
from scaling_jax.records.coverage import recorded_until
from scaling_jax.records.files import as_path
from scaling_jax.records.locks import FolderLock, is_locked
from scaling_jax.records.writer import write_study
from tests.records.object_stores import (
    ObjectStore,
    folder_of_test,
    make_bucket,
    serving,
    serving_bucket,
)
from tests.records.runs import begun, damage, noise, row

SCHEMES = ("s3", "gs")
NAME = "scaling"


@pytest.fixture(scope="module", params=SCHEMES)
def store(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    with serving_bucket(request.param, NAME) as running:
        yield running


@pytest.fixture
def bucket(store: ObjectStore, request: pytest.FixtureRequest) -> epath.Path:
    return folder_of_test(store, NAME, request)


def trained(out: epath.Path) -> None:
    """Run a in two attempts, run b under way."""
    first = begun(out, "aaa")
    for step in (10, 20, 30):
        first.append([row(step, noise=[noise()])])
        first.flush()
    second = begun(out, "aaa", resumed_at=20)
    for step in (30, 40):
        second.append([row(step, noise=[noise(part="head")])])
        second.flush()
    second.finish("done")
    other = begun(out, "bbb", seed=1)
    other.append([row(10)])
    other.flush()
    write_study(out, "ladder", "A claim.", ["l_ns"], {"a": "aaa", "b": "bbb"})


def objects(folder: epath.Path) -> list[str]:
    fs = fsspec.filesystem(os.fspath(folder).partition("://")[0])
    prefix = os.fspath(folder).partition("://")[2] + "/"
    return sorted(name.removeprefix(prefix) for name in fs.find(os.fspath(folder)))


def test_a_bucket_holds_what_a_folder_does(bucket: epath.Path, out: epath.Path) -> None:
    for place in (bucket, out):
        trained(place)
    here, there = load(out), load(bucket)
    assert there.curves["step"].to_list() == [10, 20, 30, 40, 10]
    for name in ("curves", "noise"):
        assert_frame_equal(getattr(there, name), getattr(here, name), check_exact=True)
    assert_frame_equal(*(each.runs.drop("heartbeat") for each in (here, there)))
    assert_frame_equal(load(bucket / "ladder").curves, there.curves)
    assert recorded_until(bucket, "aaa") == 40
    local = sorted(str(path.relative_to(out)) for path in out.glob("*/*") if path.is_file())
    local += sorted(str(path.relative_to(out)) for path in out.glob("*/*/*"))
    assert objects(bucket) == sorted(local), "an object a file, and nothing beside them"
    assert load(bucket).runs["status"].to_list() == ["done", "stale"]
    with FolderLock(bucket):
        assert load(bucket).runs["status"].to_list() == ["done", "running"]


def test_what_another_process_wrote_is_seen_at_once(bucket: epath.Path) -> None:
    trained(bucket)
    assert load(bucket).curves.filter(run_id="bbb")["step"].to_list() == [10]
    code = f"""
from scaling_jax.records.files import as_path
from tests.records.runs import begun, row
run = begun(as_path({os.fspath(bucket)!r}), "bbb", 1, resumed_at=10)
run.append([row(20)])
run.finish("done")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert load(bucket).curves.filter(run_id="bbb")["step"].to_list() == [10, 20]


def test_a_damaged_object_is_named(bucket: epath.Path) -> None:
    trained(bucket)
    (path,) = (p for p in (bucket / "aaa" / "curve").iterdir() if p.name.startswith("002-"))
    damage(path)
    with pytest.raises(RequestError, match=f"{path} is damaged"):
        load(bucket)
    begun(bucket, "aaa")
    assert f"aaa/curve/{path.name}.damaged" in objects(bucket)


HOLDER = """
import sys
from scaling_jax.records import leases
from scaling_jax.records.files import as_path
from scaling_jax.records.locks import FolderLock
leases.RENEW_S, leases._SETTLE_S = 0.1, 0.1
with FolderLock(as_path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_one_process_writes_in_a_bucket(bucket: epath.Path, hurry: None) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, os.fspath(bucket)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_locked(bucket)
        with pytest.raises(RequestError, match=f"pid {holder.pid} on "), FolderLock(bucket):
            pass
        holder.send_signal(signal.SIGKILL)
    assert objects(bucket) == [".lock"]
    with FolderLock(bucket) as lock:
        assert lock.lost() is None
    assert objects(bucket) == []
    assert not is_locked(bucket)


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    from scaling_jax.records import leases

    for name, seconds in (("RENEW_S", 0.1), ("LEASE_S", 3.0), ("_SETTLE_S", 0.1)):
        monkeypatch.setattr(leases, name, seconds)


def test_a_bucket_that_is_not_there_is_named(store: ObjectStore) -> None:
    nowhere = as_path(f"{store.scheme}://nowhere/runs")
    with pytest.raises(RequestError, match=f"There is no {nowhere}"):
        load(nowhere)
    with pytest.raises(WorkError, match=f"Could not write {nowhere}/.*bucket"):
        begun(nowhere, "aaa")
    with pytest.raises(WorkError, match=f"Could not write {nowhere}/.*bucket"), FolderLock(nowhere):
        pass


def test_a_bucket_that_vanishes_stops_the_run_and_says_so(
    store: ObjectStore, request: pytest.FixtureRequest
) -> None:
    make_bucket(store, "brief")
    out = as_path(f"{store.scheme}://brief/runs")
    run = begun(out, "aaa")
    fs = fsspec.filesystem(store.scheme)
    fs.rm("brief", recursive=True)
    run.append([row(10)])
    with pytest.raises(WorkError, match=r"Could not write .*brief/runs/aaa/curve/001-00000"):
        run.flush()
    run.finish("failed", "the bucket is gone")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_that_is_gone_stops_the_run_and_says_so(scheme: str) -> None:
    """The clients try again for 10 to 40 seconds before they give up."""
    with serving(scheme) as running:
        make_bucket(running, NAME)
        code = f"""
import os, signal
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records import load
from scaling_jax.records.files import as_path
from tests.records.runs import begun, row
out = as_path("{scheme}://{NAME}/runs")
run = begun(out, "aaa")
run.append([row(10)])
os.kill({running.process.pid}, signal.SIGKILL)
for act in (run.flush, lambda: load(out)):
    try:
        act()
    except (WorkError, RequestError) as error:
        print(type(error).__name__, error)
"""
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | running.env,
            text=True,
            capture_output=True,
            check=True,
        )
    first, second = done.stdout.splitlines()
    assert first.startswith(f"WorkError Could not write {scheme}://{NAME}/runs/aaa/curve/001-00000")
    assert second.startswith(f"RequestError Cannot read {scheme}://{NAME}/runs")
    assert "Traceback" not in done.stderr


EXPERIMENT = """
from scaling_jax.config import ModelConfig, RunConfig
from scaling_jax.study import Study
model = ModelConfig(n_layer=1, d_model=8, n_head=1, n_ctx=8)
study = Study("tiny", {f"seed{i}": RunConfig(model=model, steps=60, seed=i) for i in range(2)})
"""


@pytest.mark.slow
def test_a_study_is_trained_in_a_bucket(tmp_path: Path) -> None:
    """With its checkpoints, which Orbax writes through a client of its own; on S3 it has none."""
    (tmp_path / "tiny.py").write_text(EXPERIMENT)
    with serving("gs") as running:
        make_bucket(running, NAME)
        runs = f"gs://{NAME}/runs"

        def command(*argv: str) -> subprocess.CompletedProcess[str]:
            words = [sys.executable, "-m", "scaling_jax.cli", *argv]
            env = os.environ | running.env
            return subprocess.run(words, env=env, text=True, capture_output=True, check=True)

        trained = command("run", str(tmp_path / "tiny.py"), "--out", runs, "--json")
        assert json.loads(trained.stdout) == {
            "study": "tiny",
            "folder": f"{runs}/tiny",
            "runs": {"seed0": "done", "seed1": "done"},
        }
        told = json.loads(command("status", runs, "--json").stdout)["runs"]
        assert [(run["status"], run["step"], run["tries"]) for run in told] == [("done", 60, 1)] * 2
        again = command("run", str(tmp_path / "tiny.py"), "--out", runs)
        assert "compiled" not in again.stderr + again.stdout
