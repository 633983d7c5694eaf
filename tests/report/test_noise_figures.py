"""The noise scale with its law and parts, the critical batch both ways, a batch that changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
from matplotlib.colors import to_hex

from scaling_jax.errors import RequestError
from scaling_jax.laws.critical_batch import ladder
from scaling_jax.laws.hyperbola import Bounded
from scaling_jax.laws.noise_critical import NoiseRung
from scaling_jax.laws.noise_law import fit_noise_law
from scaling_jax.laws.noise_parts import NoiseRatio
from scaling_jax.laws.noise_report import measure_noise
from scaling_jax.records.schema import NOISE_COLUMNS
from scaling_jax.report import figures
from scaling_jax.report.pictures import pictures_of

RATIO = NoiseRatio(None, None, "groups", "euclidean", "norms", 1.4, 1.3, 1.5, 0.97, 6, 6)


def said(figure):
    return "\n".join(text.get_text() for text in figure.legends[0].get_texts())


def heights(axes):
    return np.concatenate([np.asarray(c.get_offsets())[:, 1] for c in axes.collections])


def series(part="total", scale=1.0, source="groups", metric="euclidean"):
    loss = np.geomspace(5.0, 3.0, 6)
    b = scale * 1e6 / loss**4
    step = 100 * np.arange(1, 7)
    return pl.DataFrame(
        {
            "run_id": "a", "name": "run-a", "params_non_embedding": 1540, "n_ctx": 64,
            "source": source, "metric": metric, "part": part, "main": part == "total",
            "step_start": step - 100, "step": step, "tokens": 512 * step, "loss": loss,
            "b_simple": b, "b_simple_low": b / 1.1, "b_simple_high": b * 1.1,
            "undetermined": False, "lr": 1e-3, "batch_tokens": 512,
        }
    )  # fmt: skip


def sweep():
    rows = [
        {"batch": batch, "loss": loss, "steps": 300 * (1 + 1e6 / loss**5 / batch)}
        for loss in (5.0, 4.5, 4.0)
        for batch in 128 * 2.0 ** np.arange(8)
    ]
    return ladder(pl.DataFrame(rows))


def rung(loss, b_simple):
    value = Bounded(b_simple, 0.1, b_simple / 1.2, b_simple * 1.2)
    mean = Bounded(b_simple / 2, 0.1, b_simple / 2.4, b_simple / 1.7)
    return NoiseRung(loss, None, value, value, value, mean, mean, 0.0, 8, "")


def test_the_law_of_the_loss_is_drawn_over_its_points():
    frame = series()
    law = fit_noise_law(frame, frame.select("run_id").unique())
    assert law.law is not None
    figure = figures.noise_against_loss(frame, law=law)
    (line,) = [
        np.asarray(each.get_xydata())
        for each in figure.axes[0].lines
        if each.get_linestyle() == "--"
    ]
    np.testing.assert_allclose(line[:, 1], 1e6 / line[:, 0] ** 4, rtol=1e-3)
    assert (line[:, 0].min(), line[:, 0].max()) == pytest.approx((3.0, 5.0))
    assert r"$\alpha_B$ = 0.25" in said(figure)
    without = figures.noise_against_loss(frame, law=dataclasses.replace(law, law=None))
    assert "alpha" not in said(without)


def test_parts_stand_beside_the_total_and_over_it():
    total, norms = series(), series("norms", 1.4)
    lost = norms.with_columns(undetermined=pl.col("step") == 300)
    figure = figures.noise_parts(pl.concat([total, lost]), [RATIO])
    tokens, over = figure.axes
    known = lost.filter(~pl.col("undetermined"))["b_simple"].to_list()
    assert sorted(heights(tokens)) == pytest.approx(sorted([*total["b_simple"], *known]))
    np.testing.assert_allclose(heights(over), 1.4)
    assert len(heights(over)) == 5
    levels = [np.asarray(line.get_ydata())[0] for line in over.lines]
    assert levels == [1.0, 1.4]
    assert "norms\n1.4 (1.3 to 1.5)" in said(figure) and "total" in said(figure)
    left, right = tokens.get_xlim()
    assert left > right


def test_other_sources_and_metrics_have_names_of_their_own():
    adam = series(metric="adam").with_columns(main=False)
    single = series(source="sequences").with_columns(main=False)
    words = said(figures.noise_parts(pl.concat([series(), adam, single])))
    assert "total, metric of Adam" in words and "total, single sequences" in words


def test_the_critical_batch_is_measured_in_two_ways_on_one_figure():
    found = sweep()
    beside = [rung(5.0, 800.0), rung(4.5, 1200.0)]
    figure = figures.critical_both_ways(found, beside, series())
    axes = figure.axes[0]
    points = {
        (round(float(x), 2), round(float(y), 1))
        for line in axes.lines
        if line.get_marker() not in ("None", "", None)
        for x, y in np.asarray(line.get_xydata())
    }
    for loss in (5.0, 4.5, 4.0):
        assert any(x == loss and abs(y / (1e6 / loss**5) - 1) < 0.01 for x, y in points)
    assert {y for _, y in points} >= {800.0, 1200.0, 400.0, 600.0}
    words = said(figure)
    for name in ("E_{min}", "noise scale\nat the loss", "mean over", "Kaplan et al. 2020"):
        assert name in words
    assert sum(to_hex(line.get_color()) == "#8a8a8a" for line in axes.lines) == 2
    assert "tokens" in axes.get_ylabel()


def test_a_sweep_without_a_critical_batch_is_not_drawn():
    flat = pl.DataFrame(
        [{"batch": batch, "loss": 4.0, "steps": 300.0} for batch in 128 * 2.0 ** np.arange(5)]
    )
    with pytest.raises(RequestError, match="nothing to draw"):
        figures.critical_both_ways(ladder(flat), [])


def test_a_batch_that_a_policy_chose_over_its_tokens(study):
    run_id = study.curves["run_id"][0]
    own = pl.col("run_id") == run_id
    batch = pl.when(own & (pl.col("step") > 1000)).then(1024).otherwise("batch_tokens")
    changed = dataclasses.replace(study, curves=study.curves.with_columns(batch_tokens=batch))
    noise = measure_noise(changed)
    figure = figures.batch_over_training(changed, noise.main)
    above, below = figure.axes
    curve = changed.curves.filter(own & (pl.col("step") > 0))
    lines = [np.asarray(line.get_xydata()) for line in above.lines]
    np.testing.assert_allclose(lines[0], curve.select("tokens", "batch_tokens").to_numpy())
    np.testing.assert_allclose(np.asarray(below.lines[0].get_ydata()), curve["lr"].to_numpy())
    assert above.lines[0].get_drawstyle() == "steps-pre"
    assert "d12" in said(figure) and "noise scale" in said(figure)
    pictures, _ = pictures_of(changed, None, noise)
    assert pictures[-1].stem == "batch_over_training"
    with pytest.raises(RequestError, match="No run changed its batch"):
        figures.batch_over_training(study)


def test_a_study_with_parts_has_a_picture_of_them(study):
    curves = study.curves
    names = [name for name in NOISE_COLUMNS if name in curves.columns]
    side = curves.select(
        *names, source=pl.lit("sequences"), metric=pl.lit("euclidean"), part=pl.lit("norms")
    ).drop_nulls("noise_steps").select(*NOISE_COLUMNS)  # fmt: skip
    with_parts = dataclasses.replace(study, sides={"noise": side})
    pictures, not_drawn = pictures_of(with_parts, None, measure_noise(with_parts))
    stems = [picture.stem for picture in pictures]
    assert stems[-2:] == ["noise_against_loss", "noise_parts"]
    assert not any("noise" in reason.lower() for reason in not_drawn)
