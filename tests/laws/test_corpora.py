"""Transfer out of records: which points are the end, what is refused, what is flagged."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from scaling_jax import laws
from scaling_jax.errors import RequestError
from scaling_jax.records.store import Records

OFFSET, SLOPE = 0.3, 1.1


def measure(*request: Any, **options: Any) -> Any:
    """Without its type: a test takes the line to be there, and fails where it is not."""
    return laws.measure_transfer(*request, **options)


def table(runs: int = 6, points: int = 10, shift: float = 0.0) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    parts = []
    for i in range(runs):
        train = np.linspace(5.0, 3.0, points) + 0.2 * i
        other = OFFSET + SLOPE * train + 0.003 * rng.normal(size=points)
        other[-1] += shift
        parts.append(
            pl.DataFrame(
                {
                    "run_id": f"run {i}",
                    "step": np.arange(1, points + 1) * 100,
                    "val_loss": train,
                    "loss_books": other,
                    "loss_flat": 7.0,
                    "words": "many",
                }
            )
        )
    return pl.concat(parts)


def test_a_line_and_the_test_of_its_ends(read: Callable[..., Records]) -> None:
    found = measure(read(table()), ["loss_books"])
    (books,) = found.corpora
    assert books.line.slope.low < SLOPE < books.line.slope.high
    assert books.line.offset.low < OFFSET < books.line.offset.high
    assert books.points["phase"].value_counts(sort=True).rows() == [("during", 54), ("end", 6)]
    assert books.line.phase_test.p_value > 0.01 and books.flags == []
    (moved,) = measure(read(table(shift=0.05)), ["loss_books"]).corpora
    assert moved.line.phase_test.p_value < 1e-4
    assert moved.line.phase_test.phases == ("during", "end")
    assert moved.line.phase_test.shift == pytest.approx(0.05, abs=0.005)


def test_runs_of_one_point_have_no_phases(read: Callable[..., Records]) -> None:
    (books,) = measure(read(table(points=10)), ["loss_books"], where="step = 1000").corpora
    assert books.line.phase_test is None and books.points["phase"].null_count() == 6
    assert books.excluded[0]["rule"] == "where"


def test_one_corpus_may_be_refused_beside_another(read: Callable[..., Records]) -> None:
    few = measure(read(table(runs=2)), ["loss_books"])
    assert few.corpora[0].line is None and "2 runs" in few.corpora[0].refusal
    empty = table().with_columns(loss_empty=pl.when(pl.col("step") < 0).then(1.0))
    records = read(empty.with_columns(pl.col("loss_empty").fill_null(float("nan"))))
    both = measure(records, ["loss_empty", "loss_books"])
    doc = json.loads(json.dumps(both.to_json(), allow_nan=False))
    assert list(doc["transfer"]) == ["loss_books"] and "No row has" in doc["refused"]["loss_empty"]
    text = laws.describe_transfer(both)
    assert "Refused: No row has" in text and "one line: p = " in text and "slope" in text


def test_rows_without_a_loss_are_counted(read: Callable[..., Records]) -> None:
    gap = table().with_columns(
        loss_books=pl.when(pl.col("step") == 300).then(None).otherwise("loss_books")
    )
    (books,) = measure(read(gap), ["loss_books"]).corpora
    assert books.line.n_points == 54
    assert sum(row["n_points"] for row in books.excluded) == 6


def test_runs_of_several_corpora_are_flagged(read: Callable[..., Records]) -> None:
    mixed = table().with_columns(
        loss_books=pl.col("loss_books") + 0.8 * (pl.col("run_id") > "run 2").cast(pl.Float64)
    )
    (books,) = measure(read(mixed), ["loss_books"]).corpora
    assert "of one training corpus" in books.flags[0]
    assert "Flag: points lie" in laws.describe_transfer(measure(read(mixed), ["loss_books"]))


def test_wrong_requests(read: Callable[..., Records]) -> None:
    records = read(table())
    with pytest.raises(RequestError, match=r"No column 'loss_boks' for other.*'loss_books'"):
        measure(records, ["loss_boks"])
    with pytest.raises(RequestError, match="training corpus's loss itself"):
        measure(records, ["val_loss"])
    with pytest.raises(RequestError, match=r"Not numbers in .*column words"):
        measure(records, ["words"])
    with pytest.raises(RequestError, match="name a column"):
        measure(records, [])
    with pytest.raises(RequestError, match="level is a share"):
        measure(records, ["loss_books"], level=1.0)
    with pytest.raises(RequestError, match=r"\(other\) not positive and finite"):
        measure(read(table().with_columns(loss_books=pl.lit(-1.0))), ["loss_books"])
