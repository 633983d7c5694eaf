from __future__ import annotations

import random

import pytest
from etils import epath

from scaling_jax.records import load
from scaling_jax.records.coverage import recorded_until, set_aside_damaged
from scaling_jax.records.writer import write_study
from tests.records.runs import ZERO, begun, damage, noise, row, segment


def flushed(out: epath.Path, *steps: int, resumed_at: int | None = None) -> None:
    """An attempt with a segment a row."""
    run = begun(out, "aaa", resumed_at=resumed_at)
    for step in steps:
        run.append([ZERO if step == 0 else row(step, noise=[noise()])])
        run.flush()


def test_nothing_is_recorded_of_a_run_that_never_started(out: epath.Path) -> None:
    assert recorded_until(out, "aaa") == -1
    begun(out, "aaa")
    assert recorded_until(out, "aaa") == -1


def test_rows_of_attempts_that_go_on_from_each_other(out: epath.Path) -> None:
    flushed(out, 0)
    assert recorded_until(out, "aaa") == 0
    flushed(out, 0, 10, 20, 30)
    assert recorded_until(out, "aaa") == 30
    flushed(out, 20, resumed_at=15)
    assert recorded_until(out, "aaa") == 20, "the row of 20 to 30 is superseded"
    flushed(out, 30, 40, resumed_at=20)
    assert recorded_until(out, "aaa") == 40


@pytest.mark.parametrize(("piece", "until"), [("00000", -1), ("00001", 0), ("00003", 20)])
@pytest.mark.parametrize("lost", [False, True])
def test_what_lies_after_a_damaged_or_lost_segment_does_not_count(
    out: epath.Path, piece: str, until: int, lost: bool
) -> None:
    flushed(out, 0, 10, 20, 30, 40)
    path = segment(out, "aaa", f"001-{piece}")
    path.unlink() if lost else damage(path)
    assert recorded_until(out, "aaa") == until


def test_a_later_attempt_mends_what_was_damaged(out: epath.Path) -> None:
    flushed(out, 0, 10, 20, 30)
    damage(segment(out, "aaa", "001-00002"))
    assert recorded_until(out, "aaa") == 10
    flushed(out, 20, 30, resumed_at=10)
    assert recorded_until(out, "aaa") == 30
    write_study(out, "ladder", "", [], {"a": "aaa"})
    assert load(out).curves["step"].to_list() == [0, 10, 20, 30]


def test_a_damaged_side_table_counts_as_its_windows_do(out: epath.Path) -> None:
    flushed(out, 0, 10, 20, 30)
    damage(segment(out, "aaa", "001-00001", "noise"))
    assert recorded_until(out, "aaa") == 10
    damage(segment(out, "aaa", "001-00000", "noise"))
    assert recorded_until(out, "aaa") == -1


@pytest.mark.parametrize("table", ["evaluations", "positions"])
def test_the_last_file_of_evaluations_is_not_lost_unseen(out: epath.Path, table: str) -> None:
    flushed(out, 0, 10, 20, 30, 40, 50)
    segment(out, "aaa", "001-00002", table).unlink()
    assert recorded_until(out, "aaa") == 30, "40 was evaluated"
    for path in (out / "aaa" / table).iterdir():
        path.unlink()
    assert recorded_until(out, "aaa") == -1


def test_one_file_of_an_attempt_counts_whole(out: epath.Path) -> None:
    run = begun(out, "aaa")
    for step in (10, 20):
        run.append([row(step)])
        run.flush()
    run.finish("interrupted")
    assert recorded_until(out, "aaa") == 20
    damage(segment(out, "aaa", "001-all"))
    assert recorded_until(out, "aaa") == -1


def test_what_is_set_aside_is_kept_under_another_name(out: epath.Path) -> None:
    flushed(out, 10, 20)
    path = segment(out, "aaa", "001-00001")
    damage(path)
    damaged = path.read_bytes()
    assert set_aside_damaged(out / "aaa") == [path]
    assert (path.parent / f"{path.name}.damaged").read_bytes() == damaged
    assert not path.exists()
    assert set_aside_damaged(out / "aaa") == []


def test_it_says_what_a_reader_finds(out: epath.Path) -> None:
    """Random attempts over a curve of windows of ten steps, against the rows that are loaded."""
    rng = random.Random(0)
    write_study(out, "ladder", "", [], {"a": "aaa"})
    for _ in range(30):
        start = 10 * rng.randint(0, max(0, recorded_until(out, "aaa") // 10))
        run = begun(out, "aaa", resumed_at=start + rng.randint(0, 9))
        run.append([row(start + 10 * (i + 1)) for i in range(rng.randint(0, 5))])
        run.flush()
        found = load(out).curves["step"].to_list()
        assert found == list(range(10, 10 * len(found) + 1, 10))
        assert recorded_until(out, "aaa") == (found[-1] if found else -1)
