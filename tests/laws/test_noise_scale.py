"""The noise scale of simulated gradients whose tr Sigma and |G|^2 are known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.noise_scale import (
    describe_noise,
    fieller,
    noise_interval,
    noise_scale,
    short_number,
)
from scaling_jax.records.store import Records

DIM, GROUPS, BATCH_SMALL = 24, 4, 128
BATCH_BIG = GROUPS * BATCH_SMALL


def squared_norms(rng, updates, grad_sq, tr_sigma, correlation=0.0):
    """(small, big) of each update, from Gaussian gradients of GROUPS small batches."""
    direction = np.zeros(DIM)
    direction[0] = 1.0
    noise = rng.standard_normal((updates, GROUPS, DIM)) * np.sqrt(tr_sigma / DIM / BATCH_SMALL)
    gradient = np.sqrt(np.broadcast_to(grad_sq, updates))[:, None] * direction
    if correlation:
        innovation = rng.standard_normal(updates)
        wander = np.empty(updates)
        wander[0] = innovation[0]
        for i in range(1, updates):
            step = np.sqrt(1 - correlation**2) * innovation[i]
            wander[i] = correlation * wander[i - 1] + step
        gradient = gradient * np.sqrt(np.maximum(1 + 0.3 * wander, 0))[:, None]
    groups = gradient[:, None, :] + noise
    small = (groups**2).sum(-1).mean(-1)
    big = (groups.mean(1) ** 2).sum(-1)
    return small, big


def curve(small, big, edges, run_id="a"):
    """One row a window of updates edges[i] + 1 .. edges[i + 1], as the training wing records it."""
    rows = []
    for start, stop in pairwise(edges):
        s, b = small[start - edges[0] : stop - edges[0]], big[start - edges[0] : stop - edges[0]]
        rows.append(
            {
                "run_id": run_id,
                "step_start": start,
                "step": stop,
                "tokens": stop * BATCH_BIG,
                "lr": 1e-3,
                "batch_tokens": BATCH_BIG,
                "train_loss": 5.0 - np.log10(stop),
                "grad_sq_small": s.mean(),
                "grad_sq_big": b.mean(),
                "grad_sq_small_sq": (s**2).mean(),
                "grad_sq_big_sq": (b**2).mean(),
                "grad_sq_small_big": (s * b).mean(),
                "noise_steps": len(s),
                "batch_small": BATCH_SMALL,
                "batch_big": BATCH_BIG,
            }
        )
    return rows


def records(rows, sizes=None):
    curves = pl.DataFrame(rows)
    ids = curves["run_id"].unique(maintain_order=True)
    sizes = sizes or {run_id: 1540 for run_id in ids}
    runs = pl.DataFrame(
        {
            "run_id": ids,
            "name": [f"run-{run_id}" for run_id in ids],
            "params_non_embedding": [sizes[run_id] for run_id in ids],
        }
    )
    return Records(runs=runs, curves=curves, source="a table")


def many_bins(rng, count, grad_sq, tr_sigma, updates=120, window=12):
    """`count` runs of one bin each (steps 1000 .. 1000 + updates lie in one bin)."""
    rows = []
    edges = list(range(1000, 1000 + updates + 1, window))
    for i in range(count):
        moments = squared_norms(rng, updates, grad_sq, tr_sigma)
        rows += curve(*moments, edges, run_id=f"{i:04d}")
    return noise_scale(records(rows), level=0.9)


def test_recovers_the_known_ratio():
    rng = np.random.default_rng(1)
    small, big = squared_norms(rng, 20_000, grad_sq=2.0, tr_sigma=1000.0)
    frame = noise_scale(records(curve(small, big, list(range(2000, 22_001, 500)))))
    assert frame["noise_steps"].sum() == 20_000
    last = frame.row(-1, named=True)
    assert last["tr_sigma"] == pytest.approx(1000.0, rel=0.02)
    assert last["grad_sq"] == pytest.approx(2.0, rel=0.02)
    assert last["b_simple"] == pytest.approx(500.0, rel=0.03)
    assert last["b_simple_low"] < last["b_simple"] < last["b_simple_high"]
    assert not last["undetermined"]


def covered(frame, truth):
    low = frame["b_simple_low"].fill_null(np.inf).to_numpy()
    high = frame["b_simple_high"].fill_null(np.inf).to_numpy()
    return float(np.mean((low <= truth) & (high >= truth)))


def test_interval_covers_as_often_as_it_says():
    frame = many_bins(np.random.default_rng(2), 400, grad_sq=2.0, tr_sigma=1000.0)
    assert len(frame) == 400
    assert 0.86 < covered(frame, truth=500) < 0.96


def test_interval_covers_where_updates_are_correlated():
    """Variance within windows alone covers 70 % here."""
    rng = np.random.default_rng(3)
    edges = list(range(1000, 3001, 25))
    rows = []
    for i in range(100):
        small, big = squared_norms(rng, 2000, 2.0, 1000.0, correlation=0.8)
        rows += curve(small, big, edges, f"{i:04d}")
    frame = noise_scale(records(rows)).filter(pl.col("noise_steps") > 300)
    assert 0.82 < covered(frame, truth=500) < 0.96


def test_one_sided_bound_covers_where_the_gradient_is_lost_in_noise():
    frame = many_bins(np.random.default_rng(3), 400, grad_sq=0.05, tr_sigma=1000.0, updates=60)
    undetermined = frame.filter("undetermined")
    assert len(undetermined) > 200
    assert undetermined["b_simple"].null_count() == len(undetermined)
    assert undetermined["b_simple_high"].null_count() == len(undetermined)
    truth = 1000.0 / 0.05
    assert covered(frame, truth) > 0.85
    assert (
        np.median(undetermined["b_simple_low"].drop_nulls().to_numpy()) > 500
    )  # a bound that says something


def test_a_negative_gradient_estimate_is_kept_as_it_is():
    frame = many_bins(np.random.default_rng(4), 100, grad_sq=0.0, tr_sigma=1000.0, updates=24)
    negative = frame.filter(pl.col("grad_sq") < 0)
    assert len(negative) > 20
    assert negative["undetermined"].all()
    assert frame["grad_sq"].mean() == pytest.approx(0.0, abs=0.2)


def test_ratio_of_means_and_not_mean_of_ratios():
    rows = curve(
        np.array([4.0] * 5 + [6.0] * 15), np.array([3.0] * 5 + [3.0] * 15), [110, 115, 130]
    )
    row = noise_scale(records(rows), bins_per_decade=1).row(-1, named=True)
    scale = BATCH_SMALL * BATCH_BIG / (BATCH_BIG - BATCH_SMALL)
    tr_sigma = (5 * 1.0 + 15 * 3.0) / 20 * scale
    grad_sq = (5 * (4 * 3 - 4) + 15 * (4 * 3 - 6)) / 3 / 20
    assert row["tr_sigma"] == pytest.approx(tr_sigma)
    assert row["grad_sq"] == pytest.approx(grad_sq)
    assert row["b_simple"] == pytest.approx(tr_sigma / grad_sq)
    mean_of_ratios = (5 * scale / (8 / 3) + 15 * 3 * scale / 2) / 20
    assert row["b_simple"] != pytest.approx(mean_of_ratios, rel=0.02)


def test_drift_across_a_bin_does_not_widen_the_interval():
    """One window over the whole bin takes the drift for noise; many short ones do not."""
    falling = np.linspace(8.0, 0.5, 700)
    small, big = squared_norms(np.random.default_rng(5), 700, falling, 1000.0)

    def width(edges):
        row = noise_scale(records(curve(small, big, edges))).row(0, named=True)
        return (row["b_simple_high"] - row["b_simple_low"]) / row["b_simple"]

    assert width(list(range(1000, 1701, 10))) < 0.75 * width([1000, 1700])


def test_windows_of_single_updates_have_an_interval_from_their_scatter():
    rng = np.random.default_rng(6)
    small, big = squared_norms(rng, 300, 2.0, 1000.0)
    row = noise_scale(records(curve(small, big, list(range(1000, 1301))))).row(0, named=True)
    assert row["b_simple_low"] < 500 < row["b_simple_high"]
    alone = noise_scale(records(curve(small[:2], big[:2], [1000, 1001, 1002]))).row(0, named=True)
    assert alone["undetermined"] and alone["b_simple_low"] is None


def test_windows_without_moments_are_skipped_and_their_absence_refused():
    small, big = squared_norms(np.random.default_rng(7), 200, 2.0, 1000.0)
    rows = curve(small, big, [1000, 1100, 1200])
    rows[1] |= {"noise_steps": 0}
    frame = noise_scale(records(rows))
    assert frame["noise_steps"].to_list() == [100]
    rows = [row | {"noise_steps": None, "grad_sq_big": None} for row in rows]
    with pytest.raises(WorkError, match=r"batch\.microbatches"):
        noise_scale(records(rows))
    bare = [{k: v for k, v in row.items() if not k.startswith("grad_sq")} for row in rows]
    with pytest.raises(WorkError, match="noise moments"):
        noise_scale(records(bare))
    with pytest.raises(RequestError, match="level is a share between 0 and 1, not 2"):
        noise_scale(records(rows), level=2.0)


def test_bins_are_log_spaced_and_describe_their_windows():
    small, big = squared_norms(np.random.default_rng(8), 9990, 2.0, 1000.0)
    frame = noise_scale(records(curve(small, big, list(range(10, 10_001, 10)))))
    assert 11 <= len(frame) <= 13
    assert frame["step_start"][0] == 10 and frame["step"][-1] == 10_000
    assert (frame["step"] * BATCH_BIG == frame["tokens"]).all()
    assert frame["loss"].is_sorted(descending=True)
    assert frame["name"][0] == "run-a"


def test_identical_rows_leave_no_noise_and_no_division_by_zero():
    rows = curve(np.full(100, 3.0), np.full(100, 3.0), [1000, 1050, 1100])
    row = noise_scale(records(rows)).row(0, named=True)
    assert row["tr_sigma"] == 0.0 and row["b_simple"] == 0.0


def test_fieller_solves_its_own_equation():
    covariance = np.array([[4.0, 0.3], [0.3, 0.09]])
    low, high, undetermined = fieller(30.0, 2.0, covariance, 0.9, np.inf)
    assert not undetermined and low is not None and high is not None
    assert low < 15.0 < high
    for bound in (low, high):
        sd = np.sqrt(np.array([1, -bound]) @ covariance @ np.array([1, -bound]))
        assert abs(30.0 - bound * 2.0) / sd == pytest.approx(1.6449, abs=1e-3)


def test_people_read_a_table_a_size():
    rng = np.random.default_rng(9)
    rows = []
    for run_id, grad_sq in (("a", 2.0), ("b", 1.0), ("c", 0.001)):
        moments = squared_norms(rng, 900, grad_sq, 1000.0)
        rows += curve(*moments, list(range(1000, 1901, 100)), run_id)
    frame = noise_scale(records(rows, {"a": 1540, "b": 24_576, "c": 24_576}))
    text = describe_noise(frame)
    assert "N = 1.54k" in text and "N = 24.6k" in text and "run-b" in text
    assert max(map(len, text.splitlines())) < 100
    assert "> " in text
    open_above = frame.filter("undetermined").row(0, named=True)
    assert noise_interval(open_above).startswith("> ")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1540, "1.54k"), (24_576, "24.6k"), (999_999, "1M"), (3e9, "3G"), (None, "?")],
)
def test_short_numbers(value, text):
    assert short_number(value) == text
