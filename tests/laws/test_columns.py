"""One flat table by role: which column is read, what a condition keeps, and what is told."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from scaling_jax.errors import RequestError
from scaling_jax.laws.columns import flat_table
from scaling_jax.records.store import Records, load

TABLE = {
    "run_id": ["a", "a", "b", "b"],
    "params": [1e6, 1e6, 1e7, 1e7],
    "n_layer": [1, 1, 4, 4],
    "optimizer": ["adamw", "adamw", "lion", "lion"],
    "tokens": [100, 200, 100, 200],
    "loss": [5.0, 4.0, 4.5, 3.5],
}
ROLES = ("run", "N", "D", "loss")


@pytest.fixture
def records(read) -> Records:
    return read(TABLE)


def test_usual_names_are_found(records) -> None:
    table = flat_table(records, required=ROLES)
    wanted = {"run": "run_id", "N": "params", "D": "tokens", "loss": "loss"}
    assert wanted.items() <= table.sources.items()
    assert table.points["N"].to_list() == [1e6, 1e6, 1e7, 1e7]
    assert table.points.schema["D"] == pl.Float64
    assert table.left_out.is_empty()
    assert table.missing("loss") is None
    assert table.missing("lr") == "column lr_peak missing"


def test_a_named_column_goes_before_the_usual_one(read) -> None:
    records = read({**TABLE, "loss_wiki": [3.0, 2.0, 2.5, 1.5]})
    table = flat_table(records, {"loss": "loss_wiki"}, ROLES)
    assert table.sources["loss"] == "loss_wiki"
    assert table.points["loss"].to_list() == [3.0, 2.0, 2.5, 1.5]


def test_first_columns_go_before_the_usual_and_after_the_named(read) -> None:
    records = read({**TABLE, "unique_tokens": [10, 10, 20, 20]})
    first = {"D": "unique_tokens"}
    assert flat_table(records, None, ROLES, first=first).sources["D"] == "unique_tokens"
    assert flat_table(records, {"D": "tokens"}, ROLES, first=first).sources["D"] == "tokens"
    absent = replace(records, curves=records.curves.drop("unique_tokens", strict=False),
                     runs=records.runs.drop("unique_tokens"))  # fmt: skip
    assert flat_table(absent, None, ROLES, first=first).sources["D"] == "tokens"


@pytest.mark.parametrize(
    ("given", "N", "other"),
    [
        (None, "params_non_embedding", "params_total"),
        ({"N": "params_total"}, "params_total", "params_non_embedding"),
        ({"N": "params_head"}, "params_head", None),
    ],
)
def test_both_conventions_of_N_are_kept(make_records, given, N, other) -> None:
    records = make_records()
    runs = records.runs.with_columns(params_head=pl.lit(257))
    table = flat_table(replace(records, runs=runs), given)
    assert table.sources["N"] == N
    assert table.sources.get("N_other") == other
    assert (other is not None) == ("N_other" in table.points.columns)


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("n_layer > 1", [4.5, 3.5]),
        ("optimizer = 'lion' AND tokens >= 200", [3.5]),
        ("optimizer IN ('adamw', 'sgd') OR loss < 4", [5.0, 4.0, 3.5]),
        ("tokens % 200 = 0", [4.0, 3.5]),
        ("NOT optimizer = 'lion'", [5.0, 4.0]),
        ("params * tokens < 3e8 AND loss BETWEEN 4 AND 4.2", [4.0]),
    ],
)
def test_a_condition_in_sql_keeps_what_meets_it(records, where: str, kept: list[float]) -> None:
    table = flat_table(records, required=ROLES, where=where)
    assert sorted(table.points["loss"].to_list()) == sorted(kept)
    assert table.points.height + table.left_out["n_points"].sum() == 4


def test_a_condition_that_is_unknown_for_a_row_leaves_it_out(read) -> None:
    records = read({**TABLE, "wall_s": [None, 0.1, 0.1, None]})
    table = flat_table(records, required=ROLES, where="wall_s < 0.2")
    assert table.points["loss"].to_list() == [4.0, 4.5]
    assert dict(table.left_out.sort("run").iter_rows()) == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("n_layr > 1", r"--where names 'n_layr', which .*theirs\.csv has not\. Did you mean 'n_l"),
        ("n_layer >", r"--where 'n_layer >' cannot be read .*condition in SQL, as in"),
        ("n_layer ** 'a' (", r"cannot be read"),
        ("n_layer + 1", r"--where 'n_layer \+ 1' is no condition: it gives Int64"),
        ("COUNT(*) > 1", r"is no condition on rows: it has one answer"),
        ("TRUE", r"is no condition on rows: it has one answer"),
        ("n_layer IN (SELECT 1)", r"holds a query; it is a condition alone"),
        ("n_layer > 100", r"--where 'n_layer > 100' leaves no row of .*theirs\.csv"),
        ("optimizer > 5", r"cannot be read|leaves no row"),
        ("", r"cannot be read"),
    ],
)
def test_a_condition_that_is_none_is_told(records, where: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as told:
        flat_table(records, required=ROLES, where=where)
    assert "\n" not in str(told.value)


def test_missing_columns_are_told_with_the_nearest(read, records) -> None:
    with pytest.raises(RequestError, match=r"No role 'los' for a column\. Did you mean 'loss'"):
        flat_table(records, {"los": "loss"}, ROLES)
    with pytest.raises(RequestError, match=r"No column 'token' for D in .*Did you mean 'tokens'"):
        flat_table(records, {"D": "token"}, ROLES)
    theirs = read(size=[1, 2], val_los=[3.0, 2.0])
    with pytest.raises(
        RequestError, match=r"'val_loss' for loss .*loss=COLUMN\. Did you mean 'val_los'"
    ):
        flat_table(theirs, {"N": "size"}, ("run", "N", "loss"))


def test_words_in_a_column_of_numbers_are_told(read) -> None:
    theirs = read({**TABLE, "size": ["small", "small", "big", "big"]})
    with pytest.raises(RequestError, match=r"Not numbers .*column size \(N\), as in 'small'"):
        flat_table(theirs, {"N": "size"}, ROLES)


def test_a_column_of_both_tables_is_read_from_the_curve_first(make_records) -> None:
    records = make_records(bracket=False)
    runs = records.runs.with_columns(batch_tokens=pl.lit(1024))
    curves = records.curves.with_columns(
        batch_tokens=pl.when(pl.col("step") > 100).then(256).otherwise(None)
    )
    points = flat_table(Records(runs, curves, "both")).points
    late = points["S"] > 100
    assert set(points.filter(late)["batch_tokens"]) == {256}
    assert set(points.filter(~late)["batch_tokens"]) == {1024}


def test_the_word_in_a_column_of_numbers_is_shown_and_not_a_number_before_it(read) -> None:
    with pytest.raises(RequestError, match=r"column params \(N\), as in '1\.5B'"):
        flat_table(read({**TABLE, "params": ["1e6", "1e6", "1.5B", "1e7"]}), required=ROLES)


def test_a_type_that_is_none_of_numbers_is_named_on_one_line(tmp_path) -> None:
    path = tmp_path / "lists.parquet"
    pl.DataFrame({**TABLE, "params": [[1, 2]] * 4}).write_parquet(path)
    records = load(path)
    with pytest.raises(RequestError, match=r"column params \(N\) holds List\(Int64\)$"):
        flat_table(records, required=ROLES)


def test_an_unknown_role_is_told_with_the_roles_alone(records) -> None:
    with pytest.raises(RequestError, match="Known: B, B_crit, C, D, L, N, S, U, budget, loss, lr"):
        flat_table(records, {"X": "params"}, ROLES)
    with pytest.raises(RequestError, match=r"No role 'n' for a column\. Did you mean 'N'"):
        flat_table(records, {"n": "params"}, ROLES)


def test_compute_is_made_of_size_and_tokens_where_it_is_required_and_absent(read) -> None:
    table = flat_table(read(TABLE), required=("run", "C", "loss"))
    assert table.sources["C"] == "6 params tokens"
    assert table.points["C"].to_list() == [6e8, 1.2e9, 6e9, 1.2e10]
    counted = flat_table(read({**TABLE, "flops": [1, 2, 3, 4]}), required=("run", "C", "loss"))
    assert counted.sources["C"] == "flops"
    assert "C" not in flat_table(read(TABLE), required=ROLES).sources


def test_what_a_run_draws_is_one_seed(read) -> None:
    """Runs of one seed that differ in their subset or order are told apart as by another seed."""
    seeds = {"seed": [0, 0, 0, 1], "data_seed": [0, 0, 1, 0], "subset_seed": [0, 1, 0, 0]}
    run = {"run_id": ["a", "b", "c", "d"], "loss": [4.0, 3.0, 2.0, 1.0]}
    points = flat_table(read(**run, **seeds), required=("run", "loss")).points
    assert points.sort("run")["seed"].to_list() == [0, 1, 2, 3]
    with_seed = {"seed": [7, 7, 9, 9], "data_seed": [1, 1, 2, 2]}  # one tells the other
    points = flat_table(read(**run, **with_seed), required=("run", "loss")).points
    assert points.sort("run")["seed"].to_list() == [7, 7, 9, 9]
