"""Where the law holds: the start of the window, and the sizes that do not follow it yet."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from scaling_jax import laws
from scaling_jax.laws.selection import select
from scaling_jax.laws.window import WINDOW_RMS, where_it_holds
from scaling_jax.records.store import Records

RULE = "the form does not hold yet"


def bend(records: Records, sizes: set[int], slope: float) -> Records:
    """The runs of some sizes fall more slowly than the law, by `slope` a decade of steps."""
    bent = pl.col("run_id").str.extract(r"^n(\d+)-").cast(pl.Int64).is_in(list(sizes))
    decades = (pl.col("step").clip(1) / 12_000).log10()
    factor = pl.when(bent).then((slope * decades).exp()).otherwise(1.0)
    return replace(
        records,
        curves=records.curves.with_columns(
            train_loss=pl.col("train_loss") * factor, val_loss=pl.col("val_loss") * factor
        ),
    )


@pytest.fixture(scope="module")
def records(make_records) -> Records:
    return make_records(seeds=2)


def left_out(fit: laws.Fit) -> set[str]:
    return {row["run_id"].split("-")[0] for row in fit.excluded if row["rule"] == RULE}


def test_a_law_that_holds_everywhere_keeps_every_size(records) -> None:
    fit = laws.fit(records, resamples=100)
    assert fit.window is not None and fit.window["criterion_met"]
    assert fit.points["N"].n_unique() == 7
    assert not left_out(fit)


def test_a_smallest_size_that_levels_off_is_left_out_and_said(records) -> None:
    fit = laws.fit(bend(records, {3456}, 0.35), resamples=100)
    assert left_out(fit) == {"n3456"}
    assert fit.points["N"].min() == 6144
    assert fit.window is not None and fit.window["criterion_met"]
    assert fit.rms_log_residual <= WINDOW_RMS
    # put back, the odd size moves the exponents, and the lamp says by how much
    assert size_shift(fit) > 3 * size_shift(laws.fit(records, resamples=100))


def size_shift(fit: laws.Fit) -> float:
    value = next(lamp.value for lamp in fit.lamps if lamp.name == "size_shift")
    assert value is not None
    return value


def test_where_leaving_out_does_not_help_every_size_is_kept(records) -> None:
    selection = select(bend(records, {12288, 98304}, 0.35))
    held = where_it_holds(selection, None)
    assert not held.window.met
    assert held.window.start == held.window.allowed[1]
    assert len(set(held.data.size)) == 7
    assert RULE not in {row["rule"] for row in selection.excluded}
