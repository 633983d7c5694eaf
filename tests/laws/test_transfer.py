"""Transfer lines: recovery, coverage by runs, phases on and off the line, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws import transfer

OFFSET, SLOPE = 0.3, 1.1


def transfer_line(*columns: Any, **options: Any) -> Any:
    """Without its type: a test takes the phase test to be there, and fails where it is not."""
    return transfer.transfer_line(*columns, **options)


def curves(
    seed: int, runs: int = 7, run_noise: float = 0.01, noise: float = 0.004, shift: float = 0.0
) -> tuple[np.ndarray, ...]:
    """Each run during training and, as its last point, converged; `shift` is of that point."""
    rng = np.random.default_rng(seed)
    parts = []
    for number in range(runs):
        x = np.linspace(4.5, 3.0, 12) + 2 * number / runs
        y = OFFSET + SLOPE * x + run_noise * rng.normal() + noise * rng.normal(size=12)
        y[-1] += shift
        phase = ["training"] * 11 + ["converged"]
        parts.append((x, y, np.full(12, f"run {number}"), np.array(phase)))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def one_curve(seed: int, shift: float = 0.0) -> tuple[np.ndarray, ...]:
    """As Kaplan's Fig. 8: converged runs of several sizes, and one large run during training."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([np.linspace(3.0, 5.0, 9), np.linspace(6.0, 3.1, 20)])
    run = np.array([f"size {i}" for i in range(9)] + ["large"] * 20)
    phase = np.array(["converged"] * 9 + ["training"] * 20)
    y = OFFSET + SLOPE * x + 0.003 * rng.normal(size=29)
    y[:9] += 0.01 * rng.normal(size=9)
    y[9:] += 0.01 * rng.normal() + shift
    return x, y, run, phase


def test_a_line_without_noise_is_exact() -> None:
    x, y, run, phase = curves(0, run_noise=0.0, noise=0.0)
    found = transfer_line(x, y, run, phase)
    assert found.offset.value == pytest.approx(OFFSET, abs=1e-9)
    assert found.slope.value == pytest.approx(SLOPE, rel=1e-9)
    assert found.gap.value == pytest.approx(OFFSET + 0.1 * found.centre, rel=1e-9)
    np.testing.assert_allclose(found.predict([2.0, 3.0]), [2.5, 3.6], rtol=1e-9)
    assert (found.n_points, found.n_runs) == (84, 7)
    assert found.phase_test.p_value > 0.01


def test_intervals_cover_by_runs_and_points_alone_would_claim_too_much() -> None:
    hits = np.zeros(3)
    for seed in range(300):
        x, y, run, _ = curves(seed)
        found = transfer_line(x, y, run)
        gap = OFFSET + (SLOPE - 1) * found.centre
        truth = ((found.offset, OFFSET), (found.slope, SLOPE), (found.gap, gap))
        hits += [each.low < value < each.high for each, value in truth]
    assert np.all((hits / 300 > 0.84) & (hits / 300 < 0.96))
    hit = 0
    for seed in range(100):
        x, y, _, _ = curves(seed)
        gap = transfer_line(x, y, np.arange(x.size)).gap
        hit += gap.low < OFFSET + (SLOPE - 1) * x.mean() < gap.high
    assert hit / 100 < 0.7


@pytest.mark.parametrize("make", [curves, one_curve])
def test_one_line_is_rejected_no_more_often_than_the_test_says(make) -> None:
    tests = [transfer_line(*make(seed)).phase_test for seed in range(300)]
    assert np.mean([test.p_value < 0.1 for test in tests]) < 0.135
    assert all(test.phases == ("training", "converged") for test in tests)


@pytest.mark.parametrize(
    ("make", "shift", "found"), [(curves, 0.02, 0.02), (one_curve, 0.06, -0.06)]
)
def test_a_phase_off_the_line_is_found_with_its_shift(make, shift: float, found: float) -> None:
    tests = [transfer_line(*make(seed, shift=shift)).phase_test for seed in range(60)]
    assert np.mean([test.p_value < 0.05 for test in tests]) > 0.9
    assert np.mean([test.shift for test in tests]) == pytest.approx(found, rel=0.1)


def test_a_phase_of_another_slope_is_found() -> None:
    x, y, run, phase = curves(1)
    bent = np.where(phase == "converged", y + 0.05 * (x - x[phase == "converged"].mean()), y)
    assert transfer_line(x, bent, run, phase).phase_test.p_value < 0.01
    assert abs(transfer_line(x, bent, run, phase).phase_test.shift) < 0.02


def test_a_run_in_both_phases_among_others_is_compared_between_runs() -> None:
    x, y, run, phase = one_curve(2)
    phase[-1] = "converged"
    test = transfer_line(x, y, run, phase).phase_test
    assert "between runs" in test.method and test.p_value > 0.01


def test_phases_that_cannot_be_told_apart_have_no_p_value() -> None:
    x, y, run, phase = curves(1, runs=3)
    few = transfer_line(x, y, run, np.where(run == "run 0", "training", "converged")).phase_test
    assert few.p_value is None and "cannot tell a phase" in few.reason
    rows = (phase == "converged") | (np.arange(x.size) % 12 < 2)
    short = transfer_line(x[rows], y[rows], run[rows], phase[rows]).phase_test
    assert short.p_value is None and "3 points or more in 'training'" in short.reason


def test_too_few_runs_and_bad_numbers_are_refused() -> None:
    x, y, run, phase = curves(1)
    two = np.isin(run, ["run 0", "run 1"])
    with pytest.raises(WorkError, match="2 runs give a line no interval"):
        transfer_line(x[two], y[two], run[two])
    with pytest.raises(WorkError, match="1 run gives a line no interval"):
        transfer_line(x[run == "run 0"], y[run == "run 0"], run[run == "run 0"])
    with pytest.raises(WorkError, match="loss_other is 2 at every point"):
        transfer_line(x, np.full(x.size, 2.0), run)
    with pytest.raises(WorkError, match="single loss_train"):
        transfer_line([3.0, 3.0, 4.0], [3.0, 3.1, 4.0], ["a", "b", "c"])
    with pytest.raises(RequestError, match="1 row of loss_other not positive"):
        transfer_line(x, np.where(np.arange(x.size) == 3, np.nan, y), run)
    with pytest.raises(RequestError, match="loss_other has shape"):
        transfer_line(x, y[:5], run)
    with pytest.raises(RequestError, match="two labels, not 1: training"):
        transfer_line(x, y, run, np.full(x.size, "training"))
    with pytest.raises(RequestError, match="phase has shape"):
        transfer_line(x, y, run, phase[:4])
