"""`scaling-jax plan`: one JSON object or a text, and exit status 2 for what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scaling_jax import cli

FIT = {
    "format": 1,
    "law": "l_nd_chinchilla",
    "params": {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37},
    "convention": "params_total",
    "flags": ["held_out_largest_N"],
}


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = cli.main(["plan", *argv])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_json_is_one_object_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = said(capsys, "--flops", "1e22", "--accelerator", "v4-32", "--json")
    doc = json.loads(out)
    assert status == 0 and err == "" and out.count("\n") == 1
    assert doc["flops"] == 1e22 and doc["flops_min"] == 5e21
    assert 6 * doc["params"] * doc["tokens"] == pytest.approx(1e22)
    assert doc["accelerator"]["chips"] == 16 and doc["accelerator"]["money_usd"] is None


def test_text_shows_the_plan_its_price_and_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = said(
        capsys, "--flops", "1e21", "--batch", "524288", "--accelerator", "H100", "--chips", "8",
        "--mfu", "0.5", "--price", "2.5",
    )  # fmt: skip
    assert status == 0 and "at a batch of 5.243e+05 tokens" in out
    assert "8 chips on 1 host" in out and "assumed MFU   0.5" in out and "USD at 2.5" in out
    assert "k20_frontier" in out


def test_a_fits_file_is_planned_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(FIT))
    status, out, _ = said(capsys, "--flops", "1e21", "--fit", str(path), "--json")
    doc = json.loads(out)
    assert status == 0 and doc["constants"]["name"] == str(path)
    assert {"held_out_largest_N", "no_intervals", "no_critical_batch"} <= set(doc["flags"])


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--flops", "0"], "flops is a finite number above 0, not 0"),
        (["--flops", "-1e20"], "flops"),
        (["--flops", "nan"], "flops"),
        (["--flops", "1e20", "--constants", "kaplan2021"], "No published constants 'kaplan2021'"),
        (["--flops", "1e20", "--constants", "kaplan2020", "--fit", "f"], "give one of them"),
        (["--flops", "1e20", "--fit", "none.json"], "No such file: none.json"),
        (["--flops", "1e20", "--batch", "big"], "batch is critical, small or tokens, not 'big'"),
        (["--flops", "1e20", "--accelerator", "v5x-8"], "No accelerator 'v5x-8'"),
        (["--flops", "1e20", "--accelerator", "v4", "--mfu", "1.2"], "mfu is a share"),
        (["--flops", "1e20", "--accelerator", "v4", "--chips", "0"], "chips are 1 or more"),
    ],
)
def test_wrong_requests_end_with_2_and_a_message(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = said(capsys, *argv, "--json")
    assert status == 2 and out == "" and says in err and err.startswith("scaling-jax: ")


def test_words_for_flops_and_no_flops_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--flops", "many"], []):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["plan", *argv])
        assert stopped.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_the_accelerator_is_left_alone_and_flax_is_not_needed() -> None:
    code = (
        "import sys; from scaling_jax import cli; status = cli.main(['plan', '--flops', '1e20']);"
        "import jax; assert jax.config.jax_platforms == 'cpu'; assert 'flax' not in sys.modules;"
        "sys.exit(status)"
    )
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and "Ten times the compute" in done.stdout
