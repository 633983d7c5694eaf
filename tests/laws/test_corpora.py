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
        train = np.linspace(3.7, 3.0, points) + 0.2 * i
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


def test_a_run_that_was_stopped_has_no_end(read: Callable[..., Records]) -> None:
    stopped = pl.when(run_id="run 0").then(pl.lit("stopped")).otherwise(pl.lit("done"))
    (books,) = measure(read(table().with_columns(status=stopped)), ["loss_books"]).corpora
    assert books.points["phase"].value_counts(sort=True).rows() == [("during", 55), ("end", 5)]
    every = table().with_columns(status=pl.lit("stopped"))
    (books,) = measure(read(every), ["loss_books"]).corpora
    assert books.line.phase_test is None


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
    with pytest.raises(RequestError, match=r"loss_se is the standard error of val_loss|No column"):
        measure(records, ["val_loss_se"])
    alone = read(table().select("run_id", "step", "val_loss"))
    with pytest.raises(RequestError, match=r"No other corpus.*no column loss_<corpus> beside val_"):
        measure(alone)
    with pytest.raises(RequestError, match="level is a share"):
        measure(records, ["loss_books"], level=1.0)
    with pytest.raises(RequestError, match=r"\(other\) not positive and finite"):
        measure(read(table().with_columns(loss_books=pl.lit(-1.0))), ["loss_books"])


def with_errors() -> pl.DataFrame:
    return table().with_columns(
        loss_books_se=pl.lit(0.03), val_loss_se=pl.lit(0.01), loss_test=pl.col("val_loss") + 0.01
    )


def test_every_corpus_of_the_table_is_measured_and_no_standard_error(
    read: Callable[..., Records],
) -> None:
    records = read(with_errors().with_columns(loss_code_se=pl.col("loss_books")))
    found = measure(records)
    # loss_code_se stands alone, and so is a corpus of that name
    names = {each.column: each.name for each in found.corpora}
    assert names == {
        "loss_books": "books", "loss_flat": "flat", "loss_test": "test split",
        "loss_code_se": "code se",
    }  # fmt: skip
    assert [each.column for each in found.corpora if each.line is None] == ["loss_flat"]
    with pytest.raises(RequestError, match="loss_books_se is the standard error of loss_books"):
        measure(records, ["loss_books_se"])
    others = measure(records, columns={"loss": "loss_books"})
    assert "loss_books" not in [each.column for each in others.corpora]
    assert "(validation split)" in laws.describe_transfer(found)


def test_the_documents_measured_are_an_error_of_their_own(read: Callable[..., Records]) -> None:
    (books,) = measure(read(with_errors()), ["loss_books"]).corpora
    assert books.sample_se == pytest.approx(np.hypot(0.03, SLOPE * 0.01), rel=0.01)
    (plain,) = measure(read(table()), ["loss_books"]).corpora
    assert plain.sample_se is None and plain.line == books.line
    text = laws.describe_transfer(measure(read(with_errors()), ["loss_books"]))
    assert "Other documents of the two corpora would move the gap by 0.032 more" in text


def test_the_first_part_of_training_is_left_out(read: Callable[..., Records]) -> None:
    """Before anything is learned all corpora lie at one loss, off the line."""
    first = table().filter(pl.col("step") == 100).with_columns(
        step=pl.lit(1, pl.Int64), val_loss=pl.lit(8.0), loss_books=pl.lit(8.0)
    )  # fmt: skip
    (books,) = measure(read(pl.concat([first, table()])), ["loss_books"]).corpora
    assert books.line.n_points == 60 and books.line.slope.low < SLOPE < books.line.slope.high
    assert {row["rule"] for row in books.excluded} == {"early"}
    assert sum(row["n_points"] for row in books.excluded) == 6


def test_sizes_stand_beside_the_points(read: Callable[..., Records]) -> None:
    sized = table().with_columns(params=pl.col("run_id").str.slice(-1).cast(pl.Int64) + 1)
    (books,) = measure(read(sized), ["loss_books"]).corpora
    assert sorted(set(books.points["N"])) == [1, 2, 3, 4, 5, 6]
    (bare,) = measure(read(table()), ["loss_books"]).corpora
    assert bare.points["N"].null_count() == bare.points.height
