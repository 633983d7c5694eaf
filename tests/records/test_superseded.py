from __future__ import annotations

import polars as pl
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from scaling_jax.records import load
from scaling_jax.records.superseded import one_row_a_step
from scaling_jax.records.writer import write_study
from tests.records.runs import begun, row

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
    kept = one_row_a_step(pl.concat([frame, other]))
    assert dict(kept.filter(run_id="a").sort("step").select("step", "attempt").rows()) == curve
    assert kept.filter(run_id="a").height == len(curve)
    assert kept.filter(run_id="b").height == other.height


def test_a_resumed_attempt_supersedes_from_where_its_window_was_opened(out: epath.Path) -> None:
    """The checkpoint of step 25 was taken inside the window 20..30, which had been written."""
    first = begun(out, "aaa")
    first.append([row(10), row(20), row(30), row(40), row(50)])
    first.flush()
    second = begun(out, "aaa", resumed_at=25)
    second.flush()
    write_study(out, "ladder", "", [], {"a": "aaa"})
    assert load(out).curves["step"].to_list() == [10, 20, 30, 40, 50], "nothing is superseded yet"
    second.append([row(30), row(40)])
    second.flush()
    assert load(out).curves.select("attempt", "step").rows() == [
        (1, 10),
        (1, 20),
        (2, 30),
        (2, 40),
    ]


def test_a_third_attempt_may_begin_before_the_second(out: epath.Path) -> None:
    for resumed_at, steps in ((None, (10, 20, 30)), (20, (30, 40)), (10, (20,))):
        run = begun(out, "aaa", resumed_at=resumed_at)
        run.append([row(step) for step in steps])
        run.flush()
    write_study(out, "ladder", "", [], {"a": "aaa"})
    assert load(out).curves.select("attempt", "step").rows() == [(1, 10), (3, 20)]
