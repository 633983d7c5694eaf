"""The noise scale of simulated gradients whose tr Sigma and |G|^2 are known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.noise_scale import LOSS_MOVE, noise_scale, noise_series, short_number
from tests.laws.noise_curves import BATCH, GROUPS, curve, records, side_rows, squared_norms

SMALL = BATCH // GROUPS


def flat(step):
    """A loss that does not move."""
    return np.full(len(step), 3.0)


def many_runs(rng, count, grad_sq, tr_sigma, updates=120, window=12, **kinds):
    """Records of `count` runs of one loss, from step 1000 on."""
    small, big = squared_norms(rng, grad_sq, tr_sigma, (count, updates), **kinds)
    edges = range(1000, 1000 + updates + 1, window)
    return records(
        [
            curve(s, b, edges, f"{i:04d}", loss=flat)
            for i, (s, b) in enumerate(zip(small, big, strict=True))
        ]
    )


def one_point(source, **options):
    """The frame where every run has one point: a precision that no run reaches."""
    return noise_scale(source, precision=1.0001, **options)


def test_recovers_the_known_ratio():
    rng = np.random.default_rng(1)
    small, big = squared_norms(rng, 2.0, 1000.0, 20_000)
    edges = range(2000, 22_001, 500)
    frame = one_point(records(curve(small, big, edges, loss=flat)))
    row = frame.row(0, named=True)
    assert len(frame) == 1 and row["noise_steps"] == 20_000 and row["ended_by"] == "end"
    assert row["tr_sigma"] == pytest.approx(1000.0, rel=0.02)
    assert row["grad_sq"] == pytest.approx(2.0, rel=0.02)
    assert row["b_simple"] == pytest.approx(500.0, rel=0.03)
    assert row["b_simple_low"] < row["b_simple"] < row["b_simple_high"]
    assert not row["undetermined"]


def test_a_point_is_as_long_as_its_precision_needs():
    small, big = squared_norms(np.random.default_rng(2), 2.0, 1000.0, 20_000)
    source = records(curve(small, big, range(2000, 22_001, 100), loss=flat))
    counts = []
    for precision in (1.1, 1.05):
        frame = noise_scale(source, precision=precision)
        inside = frame.filter(pl.col("ended_by") == "precise")
        low, centre, high = (inside[f"b_simple{end}"].to_numpy() for end in ("_low", "", "_high"))
        assert np.all(high <= precision * centre) and np.all(centre <= precision * low)
        assert frame["noise_steps"].sum() == 20_000
        assert frame["step_start"][1:].to_list() == frame["step"][:-1].to_list()
        counts.append(inside["noise_steps"].mean())
    # An interval half as wide takes four times the updates.
    assert 2.5 < counts[1] / counts[0] < 6


def test_a_point_ends_where_the_loss_has_moved():
    small, big = squared_norms(np.random.default_rng(3), 0.01, 1000.0, 9990)
    source = records(curve(small, big, np.unique(np.geomspace(10, 10_000, 80).astype(int))))
    frame = noise_scale(source)
    assert set(frame["ended_by"]) == {"loss", "end"}
    loss = 5.0 - np.log10(frame["step"].to_numpy())
    first = 5.0 - np.log10(np.maximum(frame["step_start"].to_numpy(), 10) * 1.12)
    assert np.all(first[:-1] / loss[:-1] <= LOSS_MOVE)
    assert frame["loss"].is_sorted(descending=True)
    assert frame["name"][0] == "run-a"


def test_the_noise_of_the_loss_ends_no_point():
    rng = np.random.default_rng(4)
    small, big = squared_norms(rng, 0.5, 1000.0, 2000)
    edges = range(1000, 3001, 20)
    steady = noise_scale(records(curve(small, big, edges, loss=flat)))
    noisy = curve(small, big, edges, loss=lambda s: 3.0 * np.exp(0.1 * rng.standard_normal(len(s))))
    assert len(noise_scale(records(noisy))) <= len(steady) + 2


def test_a_batch_that_changes_ends_a_point():
    rng = np.random.default_rng(5)
    before = curve(*squared_norms(rng, 0.3, 1000.0, 300), range(1000, 1301, 30), loss=flat)
    after = curve(
        *squared_norms(rng, 0.3, 1000.0, 300, batch=2 * BATCH), range(1300, 1601, 30),
        batch=2 * BATCH, loss=flat,
    )  # fmt: skip
    frame = one_point(records(pl.concat([before, after])))
    assert frame["ended_by"].to_list() == ["batch", "end"]
    assert frame["batch_tokens"].to_list() == [BATCH, 2 * BATCH]
    assert frame["tr_sigma"].to_list() == pytest.approx([1000.0, 1000.0], rel=0.1)


def test_what_is_left_over_joins_the_point_before_it():
    small, big = squared_norms(np.random.default_rng(6), 2.0, 1000.0, 620, dim=200)
    edges = [1000, 1200, 1400, 1600, 1620]
    frame = noise_scale(records(curve(small, big, edges, loss=flat)), precision=1.05)
    assert frame["step"].to_list() == [1200, 1400, 1620]
    assert frame["ended_by"].to_list() == ["precise", "precise", "end"]
    # Unless the loss has moved too far since.
    moved = curve(small, big, edges, loss=lambda s: np.where(s > 1600, 2.0, 3.0))
    assert noise_scale(records(moved), precision=1.05)["step"].to_list() == edges[1:]


def test_a_point_without_an_upper_bound_is_undetermined():
    frame = one_point(many_runs(np.random.default_rng(7), 200, 0.05, 1000.0, updates=60))
    undetermined = frame.filter("undetermined")
    assert len(undetermined) > 100
    for name in ("b_simple", "b_simple_high"):
        assert undetermined[name].null_count() == len(undetermined)
    low = undetermined["b_simple_low"].drop_nulls().to_numpy()
    assert np.median(low) > 500  # a bound that says something
    assert np.mean(frame["b_simple_low"].fill_null(np.inf).to_numpy() <= 20_000) > 0.85


def test_a_negative_gradient_estimate_is_kept_as_it_is():
    frame = one_point(many_runs(np.random.default_rng(8), 100, 0.0, 1000.0, updates=24))
    negative = frame.filter(pl.col("grad_sq") < 0)
    assert len(negative) > 20
    assert negative["undetermined"].all()
    assert frame["grad_sq"].mean() == pytest.approx(0.0, abs=0.2)


def test_ratio_of_means_and_not_mean_of_ratios():
    small, big = np.array([4.0] * 5 + [6.0] * 15), np.full(20, 3.0)
    row = one_point(records(curve(small, big, [110, 117, 130], loss=flat))).row(0, named=True)
    scale = SMALL * BATCH / (BATCH - SMALL)
    tr_sigma = (5 * 1.0 + 15 * 3.0) / 20 * scale
    grad_sq = (5 * (4 * 3 - 4) + 15 * (4 * 3 - 6)) / 3 / 20
    assert row["tr_sigma"] == pytest.approx(tr_sigma)
    assert row["grad_sq"] == pytest.approx(grad_sq)
    assert row["b_simple"] == pytest.approx(tr_sigma / grad_sq)
    mean_of_ratios = (5 * scale / (8 / 3) + 15 * 3 * scale / 2) / 20
    assert row["b_simple"] != pytest.approx(mean_of_ratios, rel=0.02)


def test_drift_along_a_point_does_not_widen_the_interval():
    """One window over the whole point takes the drift for noise; many short ones do not."""
    falling = np.linspace(8.0, 0.5, 700)
    small, big = squared_norms(np.random.default_rng(9), falling, 1000.0, 700)

    def width(window):
        edges = range(1000, 1701, window)
        row = one_point(records(curve(small, big, edges, loss=flat))).row(0, named=True)
        return (row["b_simple_high"] - row["b_simple_low"]) / row["b_simple"]

    assert width(20) < 0.75 * width(700)


def test_identical_rows_leave_no_noise_and_no_division_by_zero():
    rows = curve(np.full(100, 3.0), np.full(100, 3.0), [1000, 1050, 1100], loss=flat)
    row = noise_scale(records(rows)).row(0, named=True)
    assert row["tr_sigma"] == 0.0 and row["b_simple"] == 0.0


def test_other_series_are_read_at_the_points_of_the_total():
    rng = np.random.default_rng(10)
    edges = range(1000, 4001, 50)
    total = curve(*squared_norms(rng, 2.0, 1000.0, 3000), edges, loss=flat)
    norms = curve(*squared_norms(rng, 0.2, 140.0, 3000), edges)
    adam = curve(*squared_norms(rng, 3.0, 900.0, 3000), edges)[10:]
    side = pl.concat(
        [
            side_rows(norms, "groups", "euclidean", "norms"),
            side_rows(adam, "groups", "adam", "total"),
        ]
    )
    source = records(total, noise=side)
    frame = noise_series(source)
    main = frame.filter("main")
    assert main.equals(noise_scale(source))
    assert set(zip(main["source"], main["metric"], main["part"], strict=True)) == {
        ("groups", "euclidean", "total")
    }
    by_part = {part: frame.filter(part=part, main=False) for part in ("norms", "total")}
    assert by_part["norms"]["step"].to_list() == main["step"].to_list()
    assert by_part["norms"]["loss"].to_list() == pytest.approx(main["loss"].to_list())
    assert by_part["total"]["step_start"][0] >= 1500
    updates = by_part["norms"]["noise_steps"].to_numpy()
    for part, truth in (("norms", 700), ("total", 300)):
        rows = by_part[part]
        mean = rows["tr_sigma"].to_numpy() / rows["grad_sq"].to_numpy()
        assert np.average(mean, weights=updates[-len(rows) :]) == pytest.approx(truth, rel=0.06)


def test_single_sequences_alone_place_the_points_themselves():
    rng = np.random.default_rng(11)
    edges = range(1000, 2001, 50)
    rows = curve(*squared_norms(rng, 2.0, 1000.0, 1000, groups=8), edges, groups=8, loss=flat)
    bare = rows.drop("grad_sq_small", "grad_sq_big")
    frame = noise_scale(records(bare, noise=side_rows(rows, "sequences", "euclidean", "total")))
    assert frame["source"].unique().to_list() == ["sequences"]
    assert frame["loss"].unique().to_list() == [3.0]
    assert frame["tokens"][-1] == 2000 * BATCH
    assert np.median(frame["b_simple"].to_numpy()) == pytest.approx(500, rel=0.2)


def test_a_wrong_request_is_refused():
    source = records(curve(np.full(100, 3.0), np.full(100, 2.0), [1000, 1050, 1100]))
    with pytest.raises(RequestError, match="level is a share between 0 and 1, not 2"):
        noise_scale(source, level=2.0)
    with pytest.raises(RequestError, match="precision is a factor above 1, not 1"):
        noise_scale(source, precision=1.0)
    nothing = records(source.curves.with_columns(noise_steps=0))
    with pytest.raises(WorkError, match="noise moments"):
        noise_scale(nothing)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1540, "1.54k"), (24_576, "24.6k"), (999_999, "1M"), (3e9, "3G"), (None, "?")],
)
def test_short_numbers(value, text):
    assert short_number(value) == text
