from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from etils import epath
from etils.epath import testing as epath_testing
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from scaling_jax.errors import RequestError
from scaling_jax.records import load, store
from scaling_jax.records.files import FolderLock, write_json
from scaling_jax.records.schema import CURVE_COLUMNS, RUN_COLUMNS
from scaling_jax.records.store import Records, overview
from scaling_jax.records.tables import DTYPES
from scaling_jax.records.writer import RunWriter, write_study

HERE = {"versions": "jax 1", "device": "cpu", "mesh": "data=1"}
POINTS = "params_non_embedding,step,val_loss\n100,10,3.5\n100,20,3.25\n200,10,3\n"


@pytest.fixture
def out(tmp_path: Path) -> epath.Path:
    return epath.Path(tmp_path) / "runs"


def row(step: int, start: int | None = None, **others: Any) -> dict[str, Any]:
    losses = {
        "train_loss": 4 - step / 100,
        "val_loss": 4.5 - step / 100 if step % 20 == 0 else None,
    }
    place = {"step_start": step - 10 if start is None else start, "step": step}
    return place | {"tokens": 512 * step, "batch_tokens": 512, "batch_big": 512} | losses | others


def begun(out: epath.Path, run_id: str, seed: int = 0) -> RunWriter:
    run = RunWriter(out, run_id)
    known = {
        "seed": seed,
        "lr_peak": 1e-3 if seed else 1,  # JSON writes a whole float as an integer elsewhere
        "params_non_embedding": 1000,
        "tied_embeddings": False,
        "grad_clip": None,
        "optimizer": "adamw",
        "batch_tokens": 512,
        "steps": 40,
    }
    run.begin({"config": {"seed": seed}, "row": {"run_id": run_id} | known}, HERE, steps=40)
    return run


@pytest.fixture
def study(out: epath.Path) -> epath.Path:
    """Run a over two attempts, run b diverged; both done with."""
    first = begun(out, "aaa")
    first.append([{"step_start": 0, "step": 0, "val_loss": 5.5}, row(10), row(20), row(30)])
    first.flush()
    second = begun(out, "aaa")
    second.append([row(30, train_loss=9.0)])
    second.flush()
    second.append([row(40)])
    second.finish("done")
    other = begun(out, "bbb", seed=1)
    other.append([row(10, train_loss=float("nan"), grad_sq_big=float("inf"))])
    other.finish("diverged", "loss is not finite at step 10")
    write_study(out, "ladder", "A claim.", ["l_ns"], {"a": "aaa", "b": "bbb"})
    return out / "ladder"


def fault(path: epath.Path | Path) -> str:
    with pytest.raises(RequestError) as caught:
        load(path)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    return message


def fault_or_none(path: Path) -> str | None:
    try:
        load(path)
    except RequestError as error:
        return str(error)
    return None


def flat(records: Records) -> pl.DataFrame:
    return records.curves.join(records.runs.drop("batch_tokens"), on="run_id", how="left")


def test_two_attempts_make_one_curve(study: epath.Path) -> None:
    records = load(study)
    assert records.source == os.fspath(study)
    a = records.curves.filter(run_id="aaa")
    assert a["step"].to_list() == [0, 10, 20, 30, 40]
    assert a["attempt"].to_list() == [1, 1, 1, 2, 2]
    assert a["train_loss"].to_list() == [None, 3.9, 3.8, 9.0, 3.6]
    b = records.curves.filter(run_id="bbb")
    assert b["train_loss"].is_nan().item()
    assert b["grad_sq_big"].item() == float("inf")
    runs = records.runs.rows_by_key("run_id", named=True, unique=True)
    assert list(runs) == ["aaa", "bbb"]
    assert (runs["aaa"]["name"], runs["aaa"]["status"], runs["aaa"]["seed"]) == ("a", "done", 0)
    assert (runs["bbb"]["status"], runs["bbb"]["device"]) == ("diverged", "cpu")
    assert set(records.runs["study"]) == {"ladder"}


def test_types_are_those_of_the_schema(study: epath.Path, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text(POINTS)
    for records in (load(study), load(tmp_path / "points.csv")):
        assert dict(records.runs.schema) == {n: DTYPES[k] for n, k in RUN_COLUMNS.items()}
        assert dict(records.curves.schema) == {n: DTYPES[k] for n, k in CURVE_COLUMNS.items()}


@pytest.mark.parametrize("name", ["flat.csv", "flat.parquet", "FLAT.CSV"])
def test_every_source_gives_the_same_frames(study: epath.Path, tmp_path: Path, name: str) -> None:
    records = load(study)
    folder = load(study.parent)
    assert_frame_equal(folder.runs, records.runs)
    assert_frame_equal(folder.curves, records.curves)
    table = flat(records)
    write = table.write_parquet if name.endswith("parquet") else table.write_csv
    write(tmp_path / name)
    read = load(tmp_path / name)
    assert_frame_equal(read.runs, records.runs)
    assert_frame_equal(read.curves, records.curves)


def test_the_folder_may_be_here(study: epath.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    here = load(".")
    monkeypatch.chdir(study.parent)
    assert_frame_equal(load("ladder").runs, here.runs)
    assert_frame_equal(load(".").curves, here.curves)


attempts = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=5)


@given(attempts)
def test_superseding_is_what_a_replay_gives(lengths: list[tuple[int, int]]) -> None:
    """Attempts replayed one by one over a curve, each cutting it where it begins."""
    rows: list[dict[str, int]] = []
    curve: dict[int, int] = {}
    for attempt, (start, length) in enumerate(lengths, start=1):
        here = list(range(start + 1, start + 1 + length))
        if here:
            curve = {step: by for step, by in curve.items() if step <= start}
        curve |= dict.fromkeys(here, attempt)
        rows += [{"attempt": attempt, "step_start": s - 1, "step": s} for s in here]
    schema = {"run_id": pl.String} | {n: pl.Int64 for n in ("attempt", "step_start", "step")}
    frame = pl.DataFrame([{"run_id": "a"} | r for r in rows], schema=schema)
    other = frame.with_columns(run_id=pl.lit("b"), attempt=pl.lit(1, pl.Int64)).unique(
        "step", maintain_order=True
    )
    kept = store._one_row_a_step(pl.concat([frame, other]))
    assert dict(kept.filter(run_id="a").sort("step").select("step", "attempt").rows()) == curve
    assert kept.filter(run_id="a").height == len(curve)
    assert kept.filter(run_id="b").height == other.height


def test_an_attempt_from_the_start_repeats_step_0(out: epath.Path) -> None:
    for _ in range(2):
        run = begun(out, "aaa")
        run.append([{"step_start": 0, "step": 0, "val_loss": 5.5}, row(10)])
        run.flush()
    write_study(out, "ladder", "", [], {"a": "aaa"})
    curves = load(out).curves
    assert curves.select("attempt", "step").rows() == [(2, 0), (2, 10)]


def test_an_attempt_without_rows_supersedes_nothing(study: epath.Path) -> None:
    before = load(study).curves
    begun(study.parent, "aaa")
    assert_frame_equal(load(study).curves, before)


def test_running_is_believed_while_somebody_writes(study: epath.Path) -> None:
    begun(study.parent, "aaa")
    assert load(study).runs["status"].to_list() == ["interrupted", "diverged"]
    with FolderLock(study.parent):
        assert load(study).runs["status"].to_list() == ["running", "diverged"]


def test_runs_that_never_started_are_queued(study: epath.Path) -> None:
    out = study.parent
    write_study(out, "ladder", "", [], {"c": "ccc", "b": "bbb", "d": "ddd"})
    records = load(study)
    assert records.runs.select("name", "status").rows() == [
        ("c", "queued"),
        ("b", "diverged"),
        ("d", "queued"),
    ]
    assert set(records.curves["run_id"]) == {"bbb"}
    write_study(out, "ladder", "", [], {"c": "ccc"})
    assert load(study).curves.is_empty()
    assert dict(load(study).curves.schema) == {n: DTYPES[k] for n, k in CURVE_COLUMNS.items()}


def test_a_run_of_two_studies_is_one_run(study: epath.Path) -> None:
    out = study.parent
    write_study(out, "seeds", "", [], {"again": "bbb", "new": "ccc"})
    runs = load(out).runs
    assert runs.select("study", "name").rows() == [
        ("ladder", "a"),
        ("ladder", "b"),
        ("seeds", "new"),
    ]
    assert load(out / "seeds").runs["name"].to_list() == ["again", "new"]


def test_a_curve_may_be_compacted_while_it_is_read(
    study: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(study).curves
    listed = store.segments

    def late(curve: epath.Path) -> list[tuple[int, epath.Path]]:
        monkeypatch.setattr(store, "segments", listed)
        return [*listed(curve), (1, curve / "001-00009.parquet")]

    monkeypatch.setattr(store, "segments", late)
    assert_frame_equal(load(study).curves, before)


def test_a_bucket_holds_what_a_folder_does(tmp_path: Path) -> None:
    """A store without locks and renames: `running` cannot be doubted, an object comes whole."""

    def there(original, path, *args, **kwargs):
        return original(os.fspath(path).replace("gs://bucket", f"{tmp_path}/b"), *args, **kwargs)

    names = ("open", "exists", "isdir", "listdir", "makedirs", "remove")
    with epath_testing.mock_epath(**dict.fromkeys(names, there)):
        bucket = epath.Path("gs://bucket/runs")
        run = begun(bucket, "aaa")
        for step in (10, 20):
            run.append([row(step)])
            run.flush()
        run.finish("done")
        begun(bucket, "bbb", seed=1)
        write_study(bucket, "ladder", "A claim.", ["l_ns"], {"a": "aaa", "b": "bbb"})
        records = load("gs://bucket/runs/ladder")
    assert records.runs["status"].to_list() == ["done", "running"]
    assert records.curves["step"].to_list() == [10, 20]
    stored = [path.name for path in (tmp_path / "b").rglob("*") if path.is_file()]
    assert sorted(set(stored)) == ["001-all.parquet", "config.json", "status.json", "study.json"]


def test_columns_of_a_later_version_are_passed_over(study: epath.Path) -> None:
    before = load(study).curves
    segment = study.parent / "bbb" / "curve" / "001-00000.parquet"
    pl.read_parquet(segment.read_bytes()).with_columns(later=1).write_parquet(os.fspath(segment))
    assert_frame_equal(load(study).curves, before)


def test_overview_says_where_each_run_stands(study: epath.Path) -> None:
    write_study(study.parent, "ladder", "", [], {"a": "aaa", "b": "bbb", "c": "ccc"})
    view = overview(load(study))
    assert view.columns == [
        "study",
        "name",
        "status",
        "step",
        "steps",
        "train_loss",
        "val_loss",
        "params_non_embedding",
        "lr_peak",
        "seed",
    ]
    rows = view.drop("study").rows()
    assert rows[0] == ("a", "done", 40, 40, 3.6, 4.1, 1000, 1.0, 0)
    assert rows[1][:4] == ("b", "diverged", 10, 40)
    assert rows[2] == ("c", "queued", 0, None, None, None, None, None, None)


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
    whole = flat(load(study)).write_csv().encode()
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


def test_a_cut_segment_is_named(study: epath.Path) -> None:
    segment = study.parent / "aaa" / "curve" / "001-00000.parquet"
    whole = segment.read_bytes()
    for length in range(0, len(whole), 97):
        segment.write_bytes(whole[:length])
        with pytest.raises(RequestError, match=r"aaa/curve/001-00000\.parquet is cut"):
            load(study)


@pytest.mark.parametrize("name", ["ladder/study.json", "aaa/config.json", "bbb/status.json"])
def test_a_cut_or_future_document_is_named(study: epath.Path, name: str) -> None:
    path = study.parent / name
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 11):
        path.write_bytes(whole[:length])
        with pytest.raises(RequestError, match=f"{name} is not whole JSON"):
            load(study)
    write_json(path, {"format": 2})
    with pytest.raises(RequestError, match=f"{name} is of format 2 and this version reads 1"):
        load(study)


@pytest.mark.parametrize("runs", [None, [], {"a": 1}])
def test_a_study_without_names(study: epath.Path, runs: object) -> None:
    write_json(study / "study.json", {"format": 1, "runs": runs})
    assert "does not name its runs" in fault(study)


def test_folders_without_anything(out: epath.Path) -> None:
    assert "There is no" in fault(out)
    out.mkdir()
    assert "holds neither study.json nor studies" in fault(out)
    write_study(out, "ladder", "", [], {})
    assert "declares no run" in fault(out / "ladder")


def test_a_lost_config_is_named(study: epath.Path) -> None:
    (study.parent / "aaa" / "config.json").unlink()
    with pytest.raises(RequestError, match=r"aaa/config\.json"):
        load(study)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "points.txt").write_text(POINTS)
    assert "ends in .csv or .parquet" in fault(tmp_path / "points.txt")


def test_a_folder_that_may_not_be_read(out: epath.Path) -> None:
    def denied(original, path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    out.mkdir()
    with epath_testing.mock_epath(listdir=denied):
        assert fault(out) == f"Cannot read {out}: Permission denied."


def test_training_does_without_polars() -> None:
    code = (
        "import sys, scaling_jax.records, scaling_jax.records.writer\n"
        "assert 'polars' not in sys.modules\n"
        "from scaling_jax.records import load\n"
        "assert 'polars' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_of_the_room() -> None:
    with pytest.raises(ImportError, match="lod"):
        from scaling_jax.records import lod  # type: ignore[attr-defined]  # noqa: F401
