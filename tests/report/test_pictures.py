"""What a page shows of a study, and the sentence on what the study cannot carry."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest

from scaling_jax.laws.panel import Lamp
from scaling_jax.laws.slopes import curve_slopes
from scaling_jax.records.store import Records
from scaling_jax.report.pictures import pictures_of

CRITICAL = {"B_star": 2e4, "alpha_B": 0.3}


def stems(pictures):
    return [picture.stem for picture in pictures]


def named(pictures, stem):
    return next(picture for picture in pictures if picture.stem == stem)


def lines(axes):
    return [np.asarray(line.get_xydata(), dtype=float).T for line in axes.get_lines()]


def said(figure):
    return "\n".join(text.get_text() for text in figure.legends[0].get_texts())


def of_sizes(study, keep):
    runs = study.runs.filter(keep)
    inside = pl.col("run_id").is_in(runs["run_id"].to_list())
    return Records(runs, study.curves.filter(inside), study.source)


@pytest.fixture(scope="module")
def fitted(study, fit):
    """The stand-in fit with the ids of the study's own runs and slopes of its points."""
    run_ids = dict(study.runs.filter(~pl.col("name").str.contains("lr")).select(
        pl.col("params_non_embedding").cast(pl.Float64), "run_id").iter_rows())  # fmt: skip
    points = fit.points.with_columns(run_id=pl.col("N").replace_strict(run_ids))
    slopes = curve_slopes(*(points[name] for name in ("run_id", "N", "S", "loss"))).to_json()
    return dataclasses.replace(fit, points=points, slopes=slopes)


def test_a_study_with_a_fit_has_every_picture(study, fitted):
    pictures, not_drawn = pictures_of(study, fitted, None)
    assert stems(pictures)[3:] == ["l_ns_fit", "envelope", "sample_efficiency", "curve_slopes"]
    assert not_drawn == []
    slopes = named(pictures, "curve_slopes")
    assert "Note: one run a size" in slopes.caption
    assert f"{fitted.slopes['shared_alpha']:.3f}" in said(slopes.figure)


def test_the_ladder_is_crossed_by_every_size_at_its_top_and_by_two_at_its_end(study, fitted):
    pictures, _ = pictures_of(study, fitted, None)
    steps = named(pictures, "sample_efficiency").figure.axes[0]
    marks = [n for n, _ in lines(steps)[1::2]]  # the lowest loss first
    assert len(marks) == 7
    assert len(marks[-1]) == fitted.points["N"].n_unique() and len(marks[0]) >= 2
    sizes = {round(n) for own in marks for n in own}
    assert sizes == {round(n) for n in fitted.points["N"].unique()}  # 12 wide is not in the fit


def test_without_a_critical_batch_compute_and_steps_are_at_the_batch_of_the_study(study, fitted):
    pictures, _ = pictures_of(study, fitted, None)
    efficiency = named(pictures, "sample_efficiency")
    assert efficiency.figure.axes[0].get_ylabel().startswith("S (steps")
    assert "not S_min" in efficiency.caption
    envelope = named(pictures, "envelope")
    assert "not C_min" in envelope.caption and "C_{min}" not in said(envelope.figure)


def test_a_critical_batch_adds_the_minimum_compute_and_steps(study, fitted):
    converted = dataclasses.replace(fitted, critical_batch=CRITICAL)
    pictures, not_drawn = pictures_of(study, converted, None)
    assert not_drawn == []
    envelope, efficiency = named(pictures, "envelope"), named(pictures, "sample_efficiency")
    assert "C_{min}" in said(envelope.figure) and "Dashed" in envelope.caption
    plain = named(pictures_of(study, fitted, None)[0], "sample_efficiency")
    least, steps = (lines(p.figure.axes[0])[0][1] for p in (efficiency, plain))
    assert np.all(least < steps)
    assert "S_{min}" in efficiency.figure.axes[0].get_ylabel()


def test_without_a_fit_the_longest_runs_are_compared_and_nothing_is_said_of_slopes(study):
    pictures, not_drawn = pictures_of(study, None, None)
    assert stems(pictures)[3:] == ["envelope", "sample_efficiency"]
    assert not_drawn == []
    marks = lines(named(pictures, "sample_efficiency").figure.axes[0])[-1][0]
    assert len(marks) == 7  # the shorter runs of other learning rates are not there


def test_what_cannot_be_drawn_is_one_sentence_each(study, fit):
    lamp = Lamp("equal_slopes", None, 0.01, None, "1 size with 6 points, 2 needed")
    poor = dataclasses.replace(fit, lamps=[lamp])
    two = of_sizes(study, pl.col("d_model").is_in([16, 24]))
    pictures, not_drawn = pictures_of(two, poor, None)
    assert "envelope" not in stems(pictures) and "curve_slopes" not in stems(pictures)
    assert len(not_drawn) == 3 and not any("\n" in text for text in not_drawn)
    assert not_drawn[0].startswith("The best loss at each compute: at every compute")
    assert not_drawn[-1] == "Exponents of single sizes: 1 size with 6 points, 2 needed"


def test_a_short_way_below_the_floor_is_no_ladder(study):
    low = study.curves.filter(pl.col("val_loss").is_not_null())["val_loss"].min()
    floor = pl.lit(float(low) * 1.05)  # pyright: ignore[reportArgumentType]
    deep = dataclasses.replace(study, runs=study.runs.with_columns(bigram_nats=floor))
    _, not_drawn = pictures_of(deep, None, None)
    assert [text for text in not_drawn if "too short a way" in text]


@pytest.mark.parametrize(
    ("column", "drawn"),
    [
        ("val_loss", ["learning_curves_steps", "learning_curves_tokens", "loss_against_compute"]),
        # Compute is then 6 N D, all but that of the axis.
        ("flops_6n", ["learning_curves_steps", "learning_curves_tokens", "envelope",
                      "sample_efficiency"]),
        ("batch_tokens", ["learning_curves_steps", "learning_curves_tokens",
                          "loss_against_compute"]),
        # Tokens are also known from compute, all but those of the axis.
        ("tokens", ["learning_curves_steps", "loss_against_compute", "envelope",
                    "sample_efficiency"]),
    ],
)  # fmt: skip
def test_a_column_without_values_is_named_and_the_rest_is_drawn(study, column, drawn):
    empty = pl.lit(None, pl.Float64).alias(column)
    runs = study.runs.with_columns(empty) if column in study.runs.columns else study.runs
    records = Records(runs, study.curves.with_columns(empty), study.source)
    pictures, not_drawn = pictures_of(records, None, None)
    assert stems(pictures) == drawn
    assert len(not_drawn) == 5 - len(drawn) and all(column in text for text in not_drawn)


def test_a_batch_that_changes_is_said(study):
    growing = pl.col("batch_tokens") * pl.when(pl.col("step") > 1000).then(2).otherwise(1)
    records = dataclasses.replace(study, curves=study.curves.with_columns(batch_tokens=growing))
    _, not_drawn = pictures_of(records, None, None)
    assert [text for text in not_drawn if "batch_tokens of run" in text and "changes" in text]
