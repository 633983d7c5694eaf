"""The command in processes of its own, on an experiment that is trained in a moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

EXPERIMENT = '''\
"""Seeds of a tiny model."""

from scaling_jax.config import BatchConfig, EvaluationConfig, ModelConfig, RunConfig
from scaling_jax.study import Study


def run(seed):
    return RunConfig(
        model=ModelConfig(n_layer=1, d_model=8, n_head=1, n_ctx=8),
        batch=BatchConfig(sequences=8, microbatches=2),
        evaluation=EvaluationConfig(tokens=64),
        steps=60,
        seed=seed,
    )


study = Study("tiny", {f"a-name-of-some-length-{i}": run(i) for i in range(2)})
'''
NAMES = ["a-name-of-some-length-0", "a-name-of-some-length-1"]
COMMAND = "import sys; from scaling_jax.cli import main; sys.exit(main())"
# As the command, and writing several times a second, so that a test need not wait for it.
EAGER = "import scaling_jax.training.trainer as t; t.FLUSH_S = 0.2; " + COMMAND


class Place(NamedTuple):
    """A folder with an experiment in it, and the command run there in processes of its own."""

    folder: Path
    env: dict[str, str]

    def start(self, *argv: str, code: str = EAGER) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, *argv],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        with self.start(*argv, code=COMMAND) as process:
            out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


def make_place(folder: Path, programs: Path, devices: int = 2, runs: int = 2) -> Place:
    """A place whose processes compile as a user's do, and share what is compiled in `programs`."""
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    folder.mkdir(exist_ok=True)
    (folder / "experiment.py").write_text(EXPERIMENT.replace("range(2)", f"range({runs})"))
    return Place(folder, env)


def one_object(text: str) -> dict[str, Any]:
    doc = json.loads(text)
    assert isinstance(doc, dict)
    return doc


def assert_one_message(out: str, err: str, *words: str) -> None:
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("scaling-jax: ")
    assert err.count("\n") == 1
    assert err.count("scaling-jax: ") == 1
    for word in words:
        assert word in err
