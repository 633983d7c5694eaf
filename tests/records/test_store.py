from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath
from polars.testing import assert_frame_equal

from scaling_jax.records import load
from scaling_jax.records.locks import FolderLock
from scaling_jax.records.schema import CURVE_COLUMNS, NOISE_COLUMNS, RUN_COLUMNS
from scaling_jax.records.store import declared_laws, overview
from scaling_jax.records.tables import DTYPES
from scaling_jax.records.writer import write_study
from tests.records.runs import begun, flat_of, row

POINTS = "params_non_embedding,step,val_loss\n100,10,3.5\n100,20,3.25\n200,10,3\n"


def test_types_are_those_of_the_schema(study: epath.Path, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text(POINTS)
    for records in (load(study), load(tmp_path / "points.csv")):
        assert dict(records.runs.schema) == {n: DTYPES[k] for n, k in RUN_COLUMNS.items()}
        assert dict(records.curves.schema) == {n: DTYPES[k] for n, k in CURVE_COLUMNS.items()}
        assert dict(records.noise.schema) == {n: DTYPES[k] for n, k in NOISE_COLUMNS.items()}


@pytest.mark.parametrize("name", ["flat.csv", "flat.parquet", "FLAT.CSV"])
def test_every_source_gives_the_same_frames(study: epath.Path, tmp_path: Path, name: str) -> None:
    records = load(study)
    folder = load(study.parent)
    assert_frame_equal(folder.runs, records.runs)
    assert_frame_equal(folder.curves, records.curves)
    table = flat_of(records)
    write = table.write_parquet if name.endswith("parquet") else table.write_csv
    write(tmp_path / name)
    read = load(tmp_path / name)
    assert_frame_equal(read.runs, records.runs)
    assert_frame_equal(read.curves, records.curves)


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
        "tries",
        "heard_s",
        "left_s",
        "message",
    ]
    rows = view.drop("study").rows()
    assert rows[0] == ("a", "done", 40, 40, 3.6, 4.1, 1000, 1.0, 0, 2, None, None, None)
    assert rows[1][:4] == ("b", "diverged", 10, 40)
    assert rows[1][-4:] == (1, None, None, "loss is not finite at step 10")
    assert rows[2] == ("c", "queued", 0, *[None] * 10)


@pytest.mark.parametrize(("ago", "heard_s"), [(12.5, 12.5), (-3.0, 0.0), (-1e6, None), (1e6, 1e6)])
def test_overview_says_when_a_run_was_heard_of_and_how_long_it_will_take(
    out: epath.Path, ago: float, heard_s: float | None
) -> None:
    run = begun(out, "aaa")
    run.append([row(10, tokens_per_s=1024.0), row(20, tokens_per_s=256.0)])
    run.flush()
    write_study(out, "ladder", "", [], {"a": "aaa"})
    with FolderLock(out):
        records = load(out)
    view = overview(records, now=records.runs["heartbeat"].item() + ago)
    assert view["heard_s"].item() == pytest.approx(heard_s)
    assert view["left_s"].item() == 20 * 512 / 256
    stale = overview(load(out))
    assert stale["status"].item() == "stale"
    assert stale["left_s"].item() is None


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


def test_the_laws_of_a_source_are_those_that_its_studies_declare(tmp_path: Path) -> None:
    out = epath.Path(tmp_path) / "runs"
    write_study(out, "one", "", ["l_ns", "b_crit"], {"a": "aaa"})
    write_study(out, "two", "", ["l_ns", "l_nd"], {"a": "aaa"})
    assert declared_laws(out / "one") == ("l_ns", "b_crit")
    assert declared_laws(out) == ("l_ns", "b_crit", "l_nd")
    (tmp_path / "points.csv").write_text(POINTS)
    assert declared_laws(tmp_path / "points.csv") == ()
