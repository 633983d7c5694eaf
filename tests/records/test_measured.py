from __future__ import annotations

import pytest
from etils import epath

from scaling_jax.errors import RequestError
from scaling_jax.records import load
from scaling_jax.records.measured import MEASURED, write_measured
from scaling_jax.records.schema import NOISE_COLUMNS
from scaling_jax.records.segments import SegmentWriter
from tests.records.runs import begun, noise, row, segment


def measured(small: float = 2.0) -> list[dict]:
    return [noise(small=small) | {"metric": metric} for metric in ("euclidean", "hessian")]


def test_measures_stand_beside_the_windows_of_the_noise_table(out: epath.Path, study: epath.Path):
    run = begun(out, "bbb", seed=1)
    run.append([row(10, noise=[noise()])])
    run.finish("done")
    write_measured(out, "bbb", 40, measured(3.0))
    write_measured(out, "bbb", 0, measured(-1.0))
    table = load(study).noise.sort("step", "source", "metric")
    assert table.columns == list(NOISE_COLUMNS)
    assert table.select("step", "step_start", "source", "metric", "grad_sq_small").rows() == [
        (0, 0, "checkpoint", "euclidean", -1.0),
        (0, 0, "checkpoint", "hessian", -1.0),
        (10, 0, "groups", "euclidean", 2.0),
        (40, 40, "checkpoint", "euclidean", 3.0),
        (40, 40, "checkpoint", "hessian", 3.0),
    ]
    assert set(table["run_id"]) == {"bbb"}
    assert set(table["attempt"]) == {2}


def test_the_latest_measure_of_a_step_is_the_one(out: epath.Path, study: epath.Path):
    for small in (2.0, 3.0, 3.0):
        write_measured(out, "aaa", 20, measured(small))
        assert len(list((out / "aaa" / MEASURED).iterdir())) == 1
    assert load(study).noise["grad_sq_small"].to_list() == [3.0, 3.0]


def test_a_command_killed_before_it_removed_the_older_leaves_one_measure(
    out: epath.Path, study: epath.Path
):
    write_measured(out, "aaa", 20, measured(2.0))
    again = SegmentWriter(out / "aaa" / MEASURED, NOISE_COLUMNS, attempt=2, first=20)
    for each in load(study).noise.with_columns(grad_sq_small=3.0).rows(named=True):
        again.keep(each)
    again.flush()
    assert len(list((out / "aaa" / MEASURED).iterdir())) == 2
    table = load(study).noise
    assert sorted(table["metric"]) == ["euclidean", "hessian"]
    assert table["grad_sq_small"].n_unique() == 1
    write_measured(out, "aaa", 20, measured(4.0))
    assert load(study).noise["grad_sq_small"].to_list() == [4.0, 4.0]


def test_a_damaged_measure_is_named(out: epath.Path, study: epath.Path):
    write_measured(out, "aaa", 20, measured())
    path = segment(out, "aaa", "002-00020", MEASURED)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RequestError, match=r"Remove it to go on without") as caught:
        load(study)
    assert str(path) in str(caught.value)
