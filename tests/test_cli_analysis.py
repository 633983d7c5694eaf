"""`allocate`, `critical-batch` and `transfer` as commands: one object or a text, and the status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from scaling_jax import cli
from scaling_jax.errors import WorkError
from scaling_jax.laws import approaches

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    """Calls the command beside the tables; without the fits of surfaces, which take long."""
    monkeypatch.chdir(tmp_path)
    write_tables(tmp_path)

    def refuse(*_: object) -> None:
        raise WorkError("not asked")

    for name in ("_fitted", "_projected"):
        monkeypatch.setattr(approaches, name, refuse)

    def call(*argv: str) -> tuple[int, str, str]:
        status = cli.main(list(argv))
        out = capsys.readouterr()
        return status, out.out, out.err

    return call


def write_tables(folder: Path) -> None:
    C, N = (
        a.ravel() for a in np.meshgrid(np.geomspace(1e18, 1e21, 5), np.geomspace(2e7, 2e10, 13))
    )
    N = N * np.sqrt(C / 3e19)
    loss = 1.82 + 482 / N**0.348 + 2085 / (C / 6 / N) ** 0.366
    budgets = pl.DataFrame({"size": N, "budget": C, "nats": loss})
    budgets.write_csv(folder / "budgets.csv")
    for name, least in (("sweep.csv", 256.0), ("small.csv", 1.0)):
        sweep = np.meshgrid(least * 2.0 ** np.arange(9), [3.2, 4.0, 4.8, 5.6])
        batch, level = (a.ravel() for a in sweep)
        steps = 400 * (5 / level) ** 6 * (1 + 2e6 / level ** (1 / 0.21) / batch)
        table = {"batch_tokens": batch, "L": level, "S": steps}
        pl.DataFrame(table).write_csv(folder / name)
    runs = [f"run {i}" for i in range(5) for _ in range(8)]
    train = np.tile(np.linspace(5, 3, 8), 5) + 0.1 * np.repeat(np.arange(5), 8)
    other = 0.2 + 1.1 * train + 0.001 * np.sin(9 * train)
    losses = {"run_id": runs, "step": list(range(1, 9)) * 5, "val_loss": train, "loss_books": other}
    pl.DataFrame(losses).write_csv(folder / "corpora.csv")


def one_object(out: str) -> dict[str, Any]:
    assert out.count("\n") == 1
    return json.loads(out)


def test_allocate(say: Say, tmp_path: Path) -> None:
    argv = ["allocate", "budgets.csv", "--columns", "N=size,loss=nats"]
    status, out, err = say(*argv, "--json", "--plot", "picture.svg")
    doc = one_object(out)
    assert (status, err) == (0, "")
    assert [each["method"] for each in doc["allocations"]] == [
        approaches.ISOFLOP, approaches.PARABOLA,
    ]  # fmt: skip
    assert doc["allocations"][0]["p_N"] == pytest.approx(0.366 / (0.348 + 0.366), abs=0.01)
    assert doc["refused"] == dict.fromkeys([approaches.SURFACE, approaches.PROJECTED], "not asked")
    assert (tmp_path / "picture.svg").read_text().startswith("<?xml")
    status, out, err = say(*argv, "--level", "0.8")
    assert (status, err) == (0, "") and "80% intervals" in out and "Refused:" in out


def test_allocate_with_nothing_left_ends_with_1(say: Say) -> None:
    argv = ["allocate", "budgets.csv", "--columns", "N=size,loss=nats", "--where", "budget < 1e19"]
    status, out, err = say(*argv, "--json", "--plot", "picture.svg")
    doc = one_object(out)
    assert status == 1 and doc["allocations"] == [] and len(doc["refused"]) == 4
    assert err.startswith("scaling-jax: No approach is left. 2: isoFLOP, Akima: 2 budgets")
    assert not Path("picture.svg").exists()
    assert say(*argv) == (1, "", err)


def test_critical_batch(say: Say, tmp_path: Path) -> None:
    argv = ["critical-batch", "sweep.csv"]
    status, out, err = say(*argv, "--json", "--plot", "picture.png")
    doc = one_object(out)
    assert (status, err) == (0, "")
    assert doc.keys() >= {"levels", "law", "definition", "reason", "excluded", "flags"}
    assert doc["law"]["alpha_B"]["value"] == pytest.approx(0.21) and len(doc["levels"]) == 4
    assert (tmp_path / "picture.png").read_bytes()[1:4] == b"PNG"
    status, out, err = say(*argv, "--definition", "zhang", "--reference-batch", "256")
    assert (status, err) == (0, "") and "B_0 = 256" in out
    status, out, _ = say(*argv)
    assert status == 0 and "--critical-batch B_star=2e+06,alpha_B=0.21" in out


def test_a_critical_batch_that_is_not_identified_ends_with_1(say: Say) -> None:
    status, out, err = say("critical-batch", "small.csv", "--json")
    doc = one_object(out)
    assert status == 1 and "shows one side of it" in err and doc["law"] is None
    assert not any(each["identified"] for each in doc["levels"])
    status, out, err = say("critical-batch", "small.csv")
    assert status == 1 and "larger batches are" in out and err.count("\n") == 1
    argv = ["critical-batch", "sweep.csv", "--where", "batch_tokens < 1000"]
    status, out, err = say(*argv, "--json")
    doc = one_object(out)
    assert status == 1 and doc["levels"] == [] and doc["flags"] == ["refused"]
    assert err == f"scaling-jax: {doc['reason']}\n"
    assert say(*argv) == (1, "", err)


def test_transfer(say: Say, tmp_path: Path) -> None:
    argv = ["transfer", "corpora.csv", "--other", "loss_books"]
    status, out, err = say(*argv, "--json", "--plot", "picture.svg")
    line = one_object(out)["transfer"]["loss_books"]
    assert (status, err) == (0, "") and line["slope"]["value"] == pytest.approx(1.1, abs=0.01)
    assert line["phase_test"]["phases"] == ["during", "end"]
    assert (tmp_path / "picture.svg").exists()
    status, out, err = say(*argv)
    assert (status, err) == (0, "") and "loss_books" in out and "slope" in out
    status, out, err = say(*argv, "--where", "run_id < 'run 2'", "--json")
    assert status == 1 and "2 runs" in one_object(out)["refused"]["loss_books"]
    assert say(*argv, "--where", "run_id < 'run 2'") == (1, "", err)


def test_transfer_to_every_corpus_of_the_table(say: Say, tmp_path: Path) -> None:
    table = pl.read_csv(tmp_path / "corpora.csv").with_columns(
        loss_books_se=0.01, loss_code=pl.col("val_loss") * 1.2
    )
    table.write_csv(tmp_path / "several.csv")
    status, out, err = say("transfer", "several.csv", "--json", "--plot", "picture.png")
    assert (status, err) == (0, "")
    assert list(one_object(out)["transfer"]) == ["loss_books", "loss_code"]
    assert (tmp_path / "picture.png").exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["allocate", "none.csv"], "There is no none.csv"),
        (["allocate", "budgets.csv"], "name the column with N=COLUMN"),
        (["allocate", "budgets.csv", "--columns", "N=sise,loss=nats"], "Did you mean 'size'"),
        (["allocate", "budgets.csv", "--columns", "M=size"], "No role 'M' for a column"),
        (["allocate", "budgets.csv", "--columns", "N=size,loss=nats", "--critical-batch",
          "B_star=2e8,alpha_B=0.21"], "rows with a budget (budget) are no curves"),
        (["allocate", "budgets.csv", "--critical-batch", "B_star=big"], "takes numbers"),
        (["allocate", "budgets.csv", "--plot", "picture.gif"], "draws .svg or .png"),
        (["allocate", "budgets.csv", "--columns", "N=size,loss=nats", "--where", "nats > 9"],
         "leaves no row"),
        (["critical-batch", "sweep.csv", "--levels", "3,4"], "levels of its own"),
        (["critical-batch", "sweep.csv", "--levels", "three"], "takes numbers, as in 3.2,3.4"),
        (["critical-batch", "sweep.csv", "--reference-batch", "-1"], "a number of tokens, not -1"),
        (["critical-batch", "sweep.csv", "--columns", "B=bach"], "Did you mean 'batch_tokens'"),
        (["critical-batch", "sweep.csv", "--columns", "B=batch_tokens,B=S"], "gives 'B' twice"),
        (["critical-batch", "corpora.csv"], "for B in corpora.csv holds a value"),
        (["transfer", "corpora.csv", "--other", "loss_boks"], "Did you mean 'loss_books'"),
        (["transfer", "corpora.csv", "--other", "val_loss"], "training corpus's loss itself"),
        (["transfer", "corpora.csv", "--other", ","], "--other takes columns"),
        (["transfer", "sweep.csv", "--columns", "loss=S"], "No other corpus in sweep.csv"),
        (["transfer", "corpora.csv", "--other", "loss_books", "--level", "90"], "level is a share"),
    ],
)  # fmt: skip
def test_wrong_requests_end_with_2_and_one_message(say: Say, argv: list[str], says: str) -> None:
    status, out, err = say(*argv, "--json")
    assert (status, out) == (2, "") and says in err
    assert err.startswith("scaling-jax: ") and err.count("\n") == 1


@pytest.mark.parametrize("argv", [["critical-batch", "sweep.csv", "--definition", "kaplen"],
                                  ["transfer"]])  # fmt: skip
def test_what_the_parser_refuses_ends_with_2(
    say: Say, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        say(*argv)
    assert stopped.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_a_noise_scale_that_was_not_recorded_is_an_object_too(say: Say) -> None:
    status, out, err = say("noise", "corpora.csv", "--json")
    doc = one_object(out)
    assert status == 1 and doc["runs"] == [] and doc["refused"] in err
    assert all(name in err for name in ("batch.microbatches", "noise.groups", "mesh.data"))


def test_the_noise_scale_of_anybodys_updates(say: Say) -> None:
    """Squared norms of single updates, |G|^2 = 1 and tr Sigma = 300, at batches of 64 and 256."""
    rng = np.random.default_rng(0)
    gradient = 1.0 + rng.standard_normal((2000, 4, 100)) * np.sqrt(300 / 64 / 100)
    gradient -= 0.9  # of 100 coordinates of 0.1
    table = {
        "step": np.arange(1, 2001),
        "grad_sq_small": (gradient**2).sum(-1).mean(-1),
        "grad_sq_big": (gradient.mean(1) ** 2).sum(-1),
        "batch_small": 64,
        "batch_big": 256,
        "loss": 3.0,
        "run_id": "theirs",
    }
    pl.DataFrame(table).write_csv("theirs.csv")
    status, out, _ = say("noise", "theirs.csv", "--json", "--precision", "1.05")
    doc = one_object(out)
    (run,) = doc["runs"]
    assert status == 0 and run["run_id"] == "theirs" and doc["precision"] == 1.05
    assert {"tokens", "loss", "noise_scale_tokens", "interval", "determined"} <= set(
        run["points"][0]
    )
    known = [point for point in run["points"] if point["determined"]]
    assert len(known) > 5
    inside = [point["interval"][0] <= 300 <= point["interval"][1] for point in known]
    assert np.mean(inside) > 0.8
    status, out, _ = say("noise", "theirs.csv")
    assert status == 0 and "B_simple = tr(Sigma)/|G|^2 in tokens" in out


def test_a_table_without_a_column_of_the_noise_scale_ends_with_2(say: Say) -> None:
    pl.DataFrame({"step": [1, 2], "grad_sq_small": [2.0, 3.0]}).write_csv("half.csv")
    status, out, err = say("noise", "half.csv", "--json")
    assert status == 2 and out == ""
    assert "grad_sq_big, batch_small, batch_big" in err and "tokens" in err
    status, _, err = say("noise", "half.csv", "--precision", "0.5")
    assert status == 2 and "precision is a factor above 1, not 0.5" in err
