"""`scaling-jax fit` on a table: one JSON object or a text, a picture, one message when wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from scaling_jax import cli

TRUTH = {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
KEYS = {"law", "params", "intervals", "level", "n_points", "n_runs", "objective",
        "rms_log_residual", "held_out", "flags", "excluded"}  # fmt: skip
SIZE = ["--law", "l_n", "--columns", "N=size,loss=nats"]
CURVES = ["--columns", "N=size,S=updates,loss=nats,run=size"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with tables of known laws in it."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    N, D = (
        axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e8, 1e11, 5))
    )
    loss = TRUTH["E"] + TRUTH["A"] / N ** TRUTH["alpha"] + TRUTH["B"] / D ** TRUTH["beta"]
    noisy = loss * np.exp(0.002 * rng.normal(size=30))
    pl.DataFrame({"params": N, "tokens": D, "val_loss": noisy}).write_csv("nd.csv")
    pl.DataFrame({"params": N, "tokens": 20 * N, "val_loss": noisy}).write_csv("line.csv")
    sizes = np.geomspace(1e5, 1e9, 20)
    nats = (8.8e13 / sizes) ** 0.076 * np.exp(0.002 * rng.normal(size=20))
    pl.DataFrame({"size": sizes, "nats": nats}).write_csv("n.csv")
    n, s = (
        axis.ravel() for axis in np.meshgrid([1e3, 3e3, 1e4, 3e4, 1e5], 200 * 2 ** np.arange(6))
    )
    pl.DataFrame(
        {"size": n, "updates": s, "nats": (6.5e4 / n) ** 0.2 + (40.0 / s) ** 0.3}
    ).write_csv("curves.csv")
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    try:
        status = cli.main(["fit", *argv])
    except SystemExit as ended:  # what the parser of the command line does
        status = ended.code if isinstance(ended.code, int) else 1
    out = capsys.readouterr()
    return status, out.out, out.err


def fitted(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    status, out, err = call(capsys, *argv, "--json")
    assert (status, err, out.count("\n")) == (0, "", 1)
    return json.loads(out)


def test_a_fit_of_a_table_finds_the_law_it_was_made_from(capsys) -> None:
    truth = {"N_c": 6.5e4, "S_c": 40.0, "alpha_N": 0.2, "alpha_S": 0.3}
    doc = fitted(capsys, "curves.csv", *CURVES, "--bootstrap", "100")
    assert doc["params"] == pytest.approx(truth, rel=1e-3)
    assert (doc["law"], doc["level"], doc["n_points"], doc["n_runs"]) == ("l_ns", 0.9, 30, 5)
    assert doc["intervals"].keys() == truth.keys()
    assert doc["held_out"].keys() == {"largest_N", "largest_C", "later_half"}
    assert doc.keys() >= KEYS


def test_any_law_is_fitted_by_its_slug(capsys) -> None:
    doc = fitted(capsys, "nd.csv", "--law", "l_nd_chinchilla", "--level", "0.8")
    assert doc.keys() >= KEYS and doc["level"] == 0.8
    assert doc["params"]["alpha"] == pytest.approx(0.35, rel=0.05)
    assert doc["objective_form"].endswith("delta = 0.001)")
    assert (doc["n_points"], doc["excluded"]) == (30, [])


def test_the_text_is_for_people(capsys) -> None:
    status, out, err = call(capsys, "n.csv", *SIZE)
    assert (status, err) == (0, "")
    for words in (
        "L(N) = (N_c / N)^alpha_N",
        "20 points of 20 runs",
        "N is size",
        "Validity panel",
    ):
        assert words in out
    assert "nan" not in out.lower() and max(map(len, out.splitlines())) < 100


def test_where_keeps_rows_by_a_condition(capsys) -> None:
    doc = fitted(capsys, "n.csv", *SIZE, "--where", "size > 1e6 AND nats < 3.6")
    assert doc["ranges"]["N"][0] > 1e6 and doc["ranges"]["loss"][1] < 3.6
    left_out = [row for row in doc["excluded"] if row["rule"] == "where"]
    assert doc["n_points"] + sum(row["n_points"] for row in left_out) == 20
    assert left_out[0]["reason"] == "not size > 1e6 AND nats < 3.6"


def test_parameters_are_held(capsys) -> None:
    argv = ["nd.csv", "--law", "l_nd_chinchilla", "--fix", "E=1.8", "--tie", "beta=alpha"]
    doc = fitted(capsys, *argv)
    assert doc["fixed"] == {"E": 1.8, "beta": "alpha"}
    assert doc["params"]["beta"] == doc["params"]["alpha"]
    assert doc["params"]["E"] == pytest.approx(1.8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Huber(log residual; delta = 0.01)"),
        (["--delta", "0.05"], "Huber(log residual; delta = 0.05)"),
        (["--objective", "huber"], "Huber(log residual; delta = 0.01)"),
        (["--objective", "log_squares"], "squared log residuals"),
        (["--objective", "squares"], "squared residuals, in units of the mean output"),
    ],
)
def test_the_objective_is_the_one_that_was_asked_for(capsys, options, said: str) -> None:
    doc = fitted(capsys, "n.csv", *SIZE, *options)
    assert said in doc["objective_form"]
    assert doc["params"]["alpha_N"] == pytest.approx(0.076, rel=0.02)


def test_intervals_by_resampling(capsys) -> None:
    doc = fitted(capsys, "n.csv", *SIZE, "--bootstrap", "100")
    assert doc["resamples"] == 100 and "100 resamples of 20 whole runs" in doc["interval_method"]


@pytest.mark.parametrize(("table", "options"), [("n.csv", SIZE), ("curves.csv", CURVES)])
def test_a_picture_is_drawn(capsys, here: Path, table: str, options: list[str]) -> None:
    for name, begins in (("fit.svg", b"<?xml"), ("fit.png", b"\x89PNG")):
        status, out, _ = call(capsys, table, *options, "--plot", name)
        assert status == 0 and "Validity panel" in out
        assert (here / name).read_bytes().startswith(begins)
    assert ElementTree.parse(here / "fit.svg").getroot().tag.endswith("svg")
    assert len(list(here.glob("fit.*"))) == 2


def test_a_picture_that_cannot_be_written_is_one_message(capsys, here: Path) -> None:
    (here / "file").write_text("")
    status, out, err = call(capsys, "n.csv", *SIZE, "--plot", "file/fit.svg", "--json")
    assert (status, out) == (1, "") and err.startswith("scaling-jax: Could not write file/fit.svg")
    assert err.count("\n") == 1


def test_a_refused_fit_is_an_object_too(capsys) -> None:
    argv = ["line.csv", "--law", "l_nd_chinchilla"]
    status, out, err = call(capsys, *argv, "--json")
    doc = json.loads(out)
    assert status == 1 and doc.keys() == {"law", "refused", "flags"}
    assert (doc["law"], doc["flags"]) == ("l_nd_chinchilla", ["refused"])
    assert "D = 20 N" in doc["refused"] and err == f"scaling-jax: {doc['refused']}\n"
    assert call(capsys, *argv) == (1, "", err)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--law", "l_nss"], ["No law 'l_nss'", "'l_ns'"]),
        (["--law", "l_n", "--columns", "N"], ["--columns takes KEY=VALUE, not 'N'"]),
        (["--columns", "N=size,S=size,loss=nat"], ["No column 'nat' for loss", "'nats'"]),
        (["--columns", "M=size"], ["No role 'M'"]),
        (["--law", "l_n"], ["for N in n.csv", "N=COLUMN"]),
        ([*SIZE, "--where", "sizes > 1"], ["--where names 'sizes'", "'size'"]),
        ([*SIZE, "--where", "size >"], ["--where 'size >' cannot be read"]),
        ([*SIZE, "--where", "size + 1"], ["is no condition"]),
        ([*SIZE, "--where", "size < 0"], ["leaves no row of n.csv"]),
        ([*SIZE, "--fix", "alpha_N"], ["--fix takes KEY=VALUE, not 'alpha_N'"]),
        ([*SIZE, "--fix", "alpha_N=x"], ["--fix takes numbers", "'alpha_N=x'"]),
        ([*SIZE, "--fix", "alpha_S=1"], ["no parameter 'alpha_S'", "'alpha_N'"]),
        ([*SIZE, "--fix", "alpha_N=-1"], ["alpha_N cannot be fixed at -1"]),
        ([*SIZE, "--fix", "alpha_N=0.1,N_c=1e13"], ["No parameter of l_n is left to fit"]),
        ([*SIZE, "--tie", "alpha_N"], ["--tie takes KEY=VALUE"]),
        ([*SIZE, "--tie", "alpha_N=beta"], ["no parameter 'beta'"]),
        ([*SIZE, "--delta", "0"], ["delta is a positive width"]),
        ([*SIZE, "--delta", "nan"], ["delta is a positive width"]),
        ([*SIZE, "--objective", "squares", "--delta", "0.1"], ["squares has none"]),
        ([*SIZE, "--critical-batch", "B_star=x,alpha_B=1"], ["--critical-batch takes numbers"]),
        ([*SIZE, "--critical-batch", "B_star=2e8,alpha_B=0.2"], ["l_n has no S"]),
        ([*SIZE, "--level", "90"], ["level is a share between 0 and 1"]),
        ([*SIZE, "--level", "nan"], ["level is a share between 0 and 1"]),
        ([*SIZE, "--bootstrap", "5"], ["5 resamples", "100 or more"]),
        ([*SIZE, "--bootstrap", "-200"], ["-200 resamples"]),
        ([*SIZE, "--plot", "fit.pdf"], [".svg or .png", "'fit.pdf'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_request_is_one_message(capsys, here: Path, argv, words) -> None:
    before = sorted(here.rglob("*"))
    for json_too in ([], ["--json"]):
        status, out, err = call(capsys, "n.csv", *argv, *json_too)
        assert (status, out) == (2, ""), err
        assert err.startswith("scaling-jax: ") and err.count("\n") == 1
        for word in words:
            assert word in err
    assert sorted(here.rglob("*")) == before


def test_an_objective_that_is_unknown_is_told_by_the_parser(capsys) -> None:
    status, out, err = call(capsys, "n.csv", *SIZE, "--objective", "huberr")
    assert (status, out) == (2, "") and "huberr" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ([0.0] * 20, "20 rows of nats (loss) not positive"),
        ([float("inf")] + [3.0] * 19, "1 row of nats (loss) not positive and finite"),
        (["three"] * 20, "Not numbers in bad.csv: column nats (loss), as in 'three'"),
        ([None] * 20, "'nats' for loss in bad.csv holds a value"),
    ],
)
def test_a_bad_column_is_one_message(capsys, column: list[Any], words: str) -> None:
    table = pl.read_csv("n.csv").with_columns(nats=pl.Series(column, strict=False))
    table.write_csv("bad.csv")
    status, out, err = call(capsys, "bad.csv", *SIZE)
    assert (status, out, err.count("\n")) == (2, "", 1) and words in err
