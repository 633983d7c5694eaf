from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from scaling_jax.errors import RequestError
from scaling_jax.records import load
from tests.records.runs import fault, flat_of

POINTS = "params_non_embedding,step,val_loss\n100,10,3.5\n100,20,3.25\n200,10,3\n"


def fault_or_none(path: Path) -> str | None:
    try:
        load(path)
    except RequestError as error:
        return str(error)
    return None


def test_a_table_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text(
        "\ufeffparams, S ,loss,cluster,note\r\n6.4e4,1,2.5,x,\r\n6.4e4,2,nan,x,\r\n1e5,1,,y,\r\n"
    )
    records = load(tmp_path / "points.csv")
    assert records.runs.select("run_id", "name", "study", "status", "params", "cluster").rows() == [
        ("run-0001", "run-0001", "points", "done", 6.4e4, "x"),
        ("run-0002", "run-0002", "points", "done", 1e5, "y"),
    ]
    curves = records.curves
    assert curves["S"].to_list() == [1, 2, 1]
    assert curves["loss"].dtype == pl.Float64
    assert curves["loss"].is_nan().to_list() == [False, True, None]
    assert curves["cluster"].to_list() == ["x", "x", "y"]
    assert curves["attempt"].to_list() == [1, 1, 1]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("params,seed,loss\n1,0,3\n1,1,3\n1,0,2\n", ["run-0001", "run-0002", "run-0001"]),
        ("params_total,lr_peak\n1,\n1,0.5\n1,\n", ["run-0001", "run-0002", "run-0001"]),
        ("N,loss\n1,3\n1,3\n", ["run-0001", "run-0002"]),
        ("run_id,loss\n7,3\n8,3\n7,2\n", ["7", "8", "7"]),
        ("run_id\n7\n", ["7"]),
    ],
)
def test_runs_of_a_table(tmp_path: Path, text: str, ids: list[str]) -> None:
    (tmp_path / "points.csv").write_text(text)
    records = load(tmp_path / "points.csv")
    assert records.curves["run_id"].to_list() == ids
    assert records.runs["run_id"].to_list() == list(dict.fromkeys(ids))


def test_a_column_that_varies_within_a_run_stays_with_its_points(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("params,steps,loss\n1,100,3\n1,200,2\n2,100,3\n")
    records = load(tmp_path / "points.csv")
    assert records.curves["steps"].to_list() == [100, 200, 100]
    assert records.runs["steps"].to_list() == [None, None]


def test_numbers_come_as_whole_floats_words_and_integers(tmp_path: Path) -> None:
    pl.DataFrame(
        {
            "run_id": [1, 2],
            "step": [10.0, 20.0],
            "val_loss": ["3.5", "3.25"],
            "params_total": ["6.5e4", " 7 "],
            "tied_embeddings": ["True", "0"],
            "optimizer": pl.Series(["adam", "sgd"], dtype=pl.Categorical),
            "tokens": pl.Series([1, None], dtype=pl.UInt32),
        }
    ).write_parquet(tmp_path / "points.parquet")
    records = load(tmp_path / "points.parquet")
    assert records.curves.select("run_id", "step", "val_loss", "tokens").rows() == [
        ("1", 10, 3.5, 1),
        ("2", 20, 3.25, None),
    ]
    assert records.runs.select("params_total", "tied_embeddings", "optimizer").rows() == [
        (65000, True, "adam"),
        (7, False, "sgd"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("run_id,val_loss", "no CSV table"),
        ("run_id,val_loss\n", "holds no row"),
        ("run_id,val_loss\na,3\nb,low\n", "'val_loss' holds 'low' in row 2, where a number"),
        ("params,loss\n1,3\n1,oops\n", "'loss' holds 'oops' in row 2, where a number"),
        ("params,loss_python\n1,x\n", "'loss_python' holds 'x'"),
        ("run_id,step\na,1.5\n", "'step' holds '1.5' in row 1, where a whole number"),
        ("run_id,step\na,1e30\n", "'step' holds '1e30'"),
        ("run_id,step\na,inf\n", "'step' holds 'inf'"),
        ("run_id,tied_embeddings\na,maybe\n", "'tied_embeddings' holds 'maybe'"),
        ("run_id,step\na,1\n,2\n", "'run_id' is empty in some rows"),
        ("a,b\n1,2\n3\n", "Expected 2 columns, got 1"),
        ("a,b\n1,2,3\n", "Expected 2 columns, got 3"),
        ('a,b\n1,"2\n', "a quoted value does not end"),
        ("a, a\n1,2\n", "two columns named 'a'"),
        ("params;loss\n1;3\n", "is separated by ';': write it with commas"),
        ("params\tloss\n1\t3\n", r"is separated by '\t': write it with commas"),
    ],
)
def test_a_faulty_csv_is_named_once(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "points.csv").write_text(text)
    assert message in fault(tmp_path / "points.csv")


def test_amounts_beyond_whole_numbers_stay_floats(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("tokens,loss\n1e12,3\n1e30,2\n")
    assert load(tmp_path / "points.csv").curves["tokens"].to_list() == [1e12, 1e30]


@given(st.binary(max_size=200))
def test_no_bytes_break_the_readers(tmp_path_factory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("points.csv", "points.parquet"):
        (folder / name).write_bytes(data)
        message = fault_or_none(folder / name)
        assert message is None or name in message


def test_every_cut_of_a_csv_loads_whole_rows_or_is_named(tmp_path: Path, study: epath.Path) -> None:
    path = tmp_path / "flat.csv"
    whole = flat_of(load(study)).write_csv().encode()
    rows = whole.count(b"\n") - 1
    named = 0
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        message = fault_or_none(path)
        if message is None:
            assert load(path).curves.height <= rows
        else:
            assert "flat.csv" in message
            named += 1
    assert named > 10


def test_every_cut_of_a_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "points.parquet"
    pl.read_csv(POINTS.encode()).write_parquet(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        assert "is cut, or no Parquet table" in fault(path)


def test_a_parquet_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "points.parquet"
    pl.DataFrame({"step": [[1, 2]]}).write_parquet(path)
    assert "'step' holds List(Int64), where a whole number is due" in fault(path)
    pl.DataFrame({"step": [None, 1.5]}).write_parquet(path)
    assert "'step' holds 1.5 in row 2" in fault(path)
    pl.DataFrame().write_parquet(path)
    assert "no row" in fault(path)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "points.txt").write_text(POINTS)
    assert "ends in .csv or .parquet" in fault(tmp_path / "points.txt")
