"""`tools/setup` against stand-ins for Python, pip and uv that only note how they are called."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = ["tools/setup", "tools/quickstart", "tools/test", ".ci/run"]
NEEDED = "bash cat cksum cp dirname flock mkdir mv paste rm sed sleep sort touch"

PYTHON = f"""#!{shutil.which("bash")}
case "$1 $2 $3" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/pyvenv.cfg" ;;
  "-m pip --version") ;;
  "-m pip install")
    echo "pip ${{@: -1}}" >>"$CALLS"
    sleep "${{PIP_TAKES:-0}}"
    exit "${{PIP_STATUS:-0}}" ;;
  *) exec {sys.executable} "$@" ;;
esac
"""

UV = f"""#!{shutil.which("bash")}
case "$1 $2" in
  "venv "*) exec python3 -m venv "${{@: -1}}" ;;
  "pip install") echo "uv ${{@: -1}}" >>"$CALLS" ;;
esac
"""

BROKEN_SHIM = f"#!{shutil.which('bash')}\nexit 127\n"
OLD_PYTHON = f"#!{shutil.which('bash')}\nexit 1\n"


def write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@dataclass
class Tree:
    """A repository with nothing in it but what setup reads, and a PATH of stand-ins."""

    root: Path
    bin: Path

    @property
    def calls(self) -> list[str]:
        """The installations so far, without the folder: `pip [dev]`."""
        log = self.bin / "calls"
        text = log.read_text() if log.exists() else ""
        return [line.replace(str(self.root), "") for line in text.splitlines()]

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.root / "tools" / "setup"), *args],
            env={"PATH": str(self.bin), "CALLS": str(self.bin / "calls"), **env},
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def setup(self, *args: str, status: int = 0, **env: str) -> str:
        """Call setup from another folder; returns what it said on standard error."""
        process = self.start(*args, **env)
        out, err = process.communicate(timeout=30)
        assert process.returncode == status, err
        assert out == "" or args == ("--help",)
        return err


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    root, bin_ = tmp_path / "a tree", tmp_path / "bin"
    (root / "tools").mkdir(parents=True)
    bin_.mkdir()
    for name in ("tools/setup", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, root / name)
    for tool in NEEDED.split():
        found = shutil.which(tool)
        if found is not None:
            (bin_ / tool).symlink_to(found)
    (bin_ / "env").symlink_to("/usr/bin/env")
    write_script(bin_ / "python3", PYTHON)
    return Tree(root, bin_)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse_and_are_executable(script: str) -> None:
    path = REPOSITORY / script
    subprocess.run(["bash", "-n", path], check=True)
    assert os.access(path, os.X_OK)


def test_no_suitable_python_is_named_with_the_way_out(tree: Tree) -> None:
    write_script(tree.bin / "python3.12", BROKEN_SHIM)
    write_script(tree.bin / "python3", OLD_PYTHON)
    message = tree.setup(status=2)
    assert "no Python 3.11 or later" in message
    assert "uv" in message
    assert not (tree.root / ".venv").exists()


def test_a_broken_shim_is_passed_over(tree: Tree) -> None:
    write_script(tree.bin / "python3.13", BROKEN_SHIM)
    tree.setup()
    assert tree.calls == ["pip "]


def test_an_unknown_argument_is_refused(tree: Tree) -> None:
    assert "--devel" in tree.setup("--devel", status=2)
    assert tree.calls == []


def test_an_unknown_extra_is_refused(tree: Tree) -> None:
    message = tree.setup(status=2, SCALING_JAX_EXTRAS="cdua")
    assert "'cdua'" in message
    assert "cuda tpu tfds tokenizers sentencepiece gcs s3 buckets dev" in message
    assert tree.calls == []


def test_help_is_the_head_of_the_script(tree: Tree) -> None:
    process = tree.start("--help")
    out, _ = process.communicate(timeout=30)
    assert out.startswith("Makes .venv")
    assert "set -euo" not in out


def test_a_second_call_does_nothing_and_says_nothing(tree: Tree) -> None:
    assert "ready" in tree.setup()
    assert tree.setup() == ""
    assert tree.calls == ["pip "]


def test_dev_serves_for_less_and_stays(tree: Tree) -> None:
    tree.setup()
    tree.setup("--dev")
    tree.setup()
    tree.setup(SCALING_JAX_EXTRAS="cuda,gcs")
    tree.setup("--dev")
    tree.setup(SCALING_JAX_EXTRAS="gcs")
    assert tree.calls == ["pip ", "pip [dev]", "pip [cuda,dev,gcs]"]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed(tree: Tree, name: str) -> None:
    tree.setup("--dev")
    with (tree.root / name).open("a") as file:
        file.write("# changed\n")
    tree.setup()
    assert tree.calls == ["pip [dev]", "pip [dev]"]


def test_an_interrupted_setup_is_completed(tree: Tree) -> None:
    tree.setup(status=3, PIP_STATUS="3")
    packages = tree.root / ".venv" / "lib" / "python3" / "site-packages"
    whole, cut = packages / "whole-1.dist-info", packages / "cut-1.dist-info"
    for info in (whole, cut):
        info.mkdir(parents=True)
    (whole / "RECORD").touch()
    tree.setup()
    assert tree.setup() == ""
    assert tree.calls == ["pip ", "pip "]
    assert whole.exists()
    assert not cut.exists()


def test_an_interrupted_change_is_made_good_and_loses_no_extra(tree: Tree) -> None:
    constraints = tree.root / "constraints.txt"
    before = constraints.read_text()
    tree.setup("--dev")
    constraints.write_text(before + "# changed\n")
    tree.setup(status=3, PIP_STATUS="3", SCALING_JAX_EXTRAS="tpu")
    constraints.write_text(before)
    tree.setup()
    assert tree.calls == ["pip [dev]", "pip [dev,tpu]", "pip [dev]"]


def test_a_venv_without_a_working_python_is_made_again(tree: Tree) -> None:
    tree.setup()
    (tree.root / ".venv" / "bin" / "python").unlink()
    assert "setup: made" in tree.setup()
    assert tree.calls == ["pip ", "pip "]


def test_a_moved_tree_is_set_up_again(tree: Tree) -> None:
    tree.setup()
    tree.root = tree.root.rename(tree.root.with_name("moved"))
    assert "setup: made" in tree.setup()


def test_a_venv_made_beforehand_keeps_its_python(tree: Tree) -> None:
    subprocess.run(
        [tree.bin / "python3", "-m", "venv", tree.root / ".venv"],
        env={"PATH": str(tree.bin)},
        check=True,
    )
    write_script(tree.bin / "python3", OLD_PYTHON)
    assert "setup: made" not in tree.setup()
    assert tree.calls == ["pip "]


@pytest.mark.skipif(shutil.which("flock") is None, reason="setups are serialised by flock")
def test_two_at_once_install_once(tree: Tree) -> None:
    both = [tree.start(PIP_TAKES="0.3") for _ in range(2)]
    said = [process.communicate(timeout=30)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert tree.calls == ["pip "]
    assert sum("ready" in err for err in said) == 1


def test_uv_is_preferred(tree: Tree) -> None:
    write_script(tree.bin / "uv", UV)
    tree.setup("--dev")
    assert tree.setup() == ""
    assert tree.calls == ["uv [dev]"]
