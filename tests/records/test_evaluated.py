"""Losses on other corpora as columns of the curve, by position, and each run's best."""

from __future__ import annotations

from typing import Any

import pytest
from etils import epath

from scaling_jax.laws.corpora import measure_transfer
from scaling_jax.records import load
from scaling_jax.records.schema import CURVE_COLUMNS, EVALUATION_COLUMNS, POSITION_COLUMNS
from scaling_jax.records.tables import DTYPES
from scaling_jax.records.writer import write_study
from tests.records.runs import begun, row


def evaluated(step: int, val_loss: float, **others: float) -> dict[str, Any]:
    """A row of the curve with its evaluations, and two positions that average to the loss."""
    losses = {"validation": val_loss} | others
    rows = [
        {"corpus": name, "loss": loss, "loss_se": 0.01 * loss, "tokens": 100, "bits_per_byte": None}
        for name, loss in losses.items()
    ]
    positions = [
        {
            "corpus": "validation",
            "position_start": at,
            "position": at,
            "loss": val_loss + change,
            "tokens": 50,
        }
        for at, change in ((1, 0.5), (2, -0.5))
    ]
    sides: dict[str, Any] = {"evaluations": rows, "positions": positions}
    return row(step, val_loss=val_loss, **sides)


@pytest.fixture
def ladder(out: epath.Path) -> epath.Path:
    """Run a over two attempts, the second from step 20; run b on one corpus more."""
    first = begun(out, "aaa")
    first.append(
        [
            evaluated(10, 4.0, test=4.1, zeta=6.0),
            row(20, val_loss=None, evaluations=[], positions=[]),
        ]
    )
    first.append([evaluated(30, 1.0, test=1.1, zeta=1.0)])
    first.flush()
    second = begun(out, "aaa", resumed_at=20)
    second.append([evaluated(30, 3.0, test=3.3, zeta=5.0), evaluated(40, 3.5, test=3.2, zeta=5.5)])
    second.finish("done")
    other = begun(out, "bbb", seed=1)
    other.append([evaluated(10, 3.9, alpha=7.0)])
    other.finish("done")
    write_study(out, "ladder", "", [], {"a": "aaa", "b": "bbb"})
    return out / "ladder"


def test_losses_of_other_corpora_are_columns_of_the_curve(ladder: epath.Path) -> None:
    curves = load(ladder).curves
    assert curves.columns[len(CURVE_COLUMNS) :] == [
        "loss_test",
        "loss_test_se",
        "loss_alpha",
        "loss_alpha_se",
        "loss_zeta",
        "loss_zeta_se",
    ]
    wide = curves.select("run_id", "step", "val_loss", "loss_test", "loss_alpha", "loss_zeta")
    assert wide.rows() == [
        ("aaa", 10, 4.0, 4.1, None, 6.0),
        ("aaa", 20, None, None, None, None),
        ("aaa", 30, 3.0, 3.3, None, 5.0),
        ("aaa", 40, 3.5, 3.2, None, 5.5),
        ("bbb", 10, 3.9, None, 7.0, None),
    ]
    assert curves["loss_test_se"][0] == pytest.approx(0.041)


def test_side_rows_are_told_apart_and_superseded_with_their_windows(ladder: epath.Path) -> None:
    records = load(ladder)
    for frame, columns in (
        (records.evaluations, EVALUATION_COLUMNS),
        (records.positions, POSITION_COLUMNS),
    ):
        assert dict(frame.schema) == {name: DTYPES[kind] for name, kind in columns.items()}
    a = records.positions.filter(run_id="aaa")
    assert a.select("attempt", "step_start", "step", "position", "loss").rows() == [
        (1, 0, 10, 1, 4.5),
        (1, 0, 10, 2, 3.5),
        (2, 20, 30, 1, 3.5),
        (2, 20, 30, 2, 2.5),
        (2, 30, 40, 1, 4.0),
        (2, 30, 40, 2, 3.0),
    ]
    at_30 = records.evaluations.filter(run_id="aaa", step=30)
    assert at_30.select("attempt", "corpus", "loss").rows() == [
        (2, "validation", 3.0),
        (2, "test", 3.3),
        (2, "zeta", 5.0),
    ]


def test_the_best_is_chosen_on_validation_and_read_on_test(ladder: epath.Path) -> None:
    runs = load(ladder).runs
    assert runs.select("name", "best_step", "best_val_loss", "best_test_loss").rows() == [
        ("a", 30, 3.0, 3.3),
        ("b", 10, 3.9, None),
    ]


def test_a_run_without_evaluations_has_no_best_and_no_column(out: epath.Path) -> None:
    run = begun(out, "aaa")
    run.append([row(10), row(20, val_loss=float("nan"), evaluations=[], positions=[])])
    run.finish("diverged")
    write_study(out, "ladder", "", [], {"a": "aaa", "c": "ccc"})
    records = load(out)
    assert records.curves.columns == list(CURVE_COLUMNS)
    assert records.evaluations.is_empty() and records.positions.is_empty()
    best = records.runs.select("best_step", "best_val_loss", "best_test_loss")
    assert best.rows() == [(None, None, None), (None, None, None)]


def test_the_first_of_two_equal_losses_is_the_best(out: epath.Path) -> None:
    run = begun(out, "aaa")
    run.append([evaluated(10, 2.0, test=5.0), evaluated(20, 2.0, test=4.0)])
    run.finish("done")
    write_study(out, "ladder", "", [], {"a": "aaa"})
    assert load(out).runs["best_step"].item() == 10
    assert load(out).runs["best_test_loss"].item() == 5.0


def test_the_columns_are_other_corpora_to_the_laws(out: epath.Path) -> None:
    for i in range(5):
        run = begun(out, f"run{i}", seed=i)
        run.append(
            [
                evaluated(10 * (j + 1), 4.0 - j / 4 - i / 8, test=5.0 - j / 4 - i / 8)
                for j in range(4)
            ]
        )
        run.finish("done")
    write_study(out, "ladder", "", [], {f"{i}": f"run{i}" for i in range(5)})
    (corpus,) = measure_transfer(load(out), ["loss_test"]).corpora
    assert corpus.line is not None
    assert corpus.line.slope.value == pytest.approx(1.0)
    assert corpus.line.offset.value == pytest.approx(1.0)
