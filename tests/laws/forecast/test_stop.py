"""Which runs may be stopped: those whose ends move nothing, judged by refits written out."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from scaling_jax import laws
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.fitting import fit_points
from scaling_jax.laws.forecast.stop import Ending, endings_of, may_be_stopped
from scaling_jax.laws.forms import L_NS, find_law
from scaling_jax.records.store import Records

LAW = find_law("l_nd_chinchilla")
TRUTH = {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
Read = Callable[..., Records]


def finished(noise: float = 0.003) -> pl.DataFrame:
    size, tokens = (
        axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 3e8, 5), np.geomspace(1e9, 2e10, 5))
    )
    scatter = noise * np.random.default_rng(0).normal(size=size.size)
    loss = LAW.predict(TRUTH, N=size, D=tokens) * np.exp(scatter)
    run = [f"r{k}" for k in range(size.size)]
    return pl.DataFrame({"run_id": run, "N": size, "D": tokens, "loss": loss})


def ending(run: str, size: float, tokens: float, half: float, off: float = 0.0) -> Ending:
    loss = float(LAW.predict(TRUTH, N=size, D=tokens)) * np.exp(off)
    return Ending(run, size, None, tokens, loss * np.exp(-half), loss * np.exp(half))


INSIDE = ending("inside", 5e7, 5e9, 0.001)
FAR = ending("far", 5e9, 5e11, 0.03)
ODD = ending("odd", 1e7, 2e10, 0.001, off=0.08)


def test_a_run_between_others_may_be_stopped_and_a_far_one_may_not(read: Read) -> None:
    found = may_be_stopped(read(finished()), [FAR, INSIDE], "l_nd_chinchilla")
    assert found.may_stop == ["inside"]
    assert [run.run_id for run in found.runs] == ["far", "inside"]
    far, inside = (max((run.moves or {"none": np.inf}).values()) for run in found.runs)
    assert inside <= 0.1 < far


def test_moves_are_those_of_fits_with_the_run_added(read: Read) -> None:
    records = read(finished())
    found = may_be_stopped(records, [INSIDE, ODD], "l_nd_chinchilla")
    base = laws.fit(records, "l_nd_chinchilla")
    for name in ("alpha", "beta"):
        expected = (base.params[name], *base.intervals[name])
        assert found.exponents[name] == pytest.approx(expected, rel=1e-6)
    for run, end in zip(found.runs, [INSIDE, ODD], strict=True):
        assert run.moves is not None
        fits = []
        for loss in (end.low, end.high):
            row = {"run_id": "new", "N": end.N, "D": end.D, "loss": loss}
            more = pl.concat([finished(), pl.DataFrame([row])])
            fits.append(fit_points(LAW, {"N": more["N"], "D": more["D"]}, more["loss"]).params)
        for name, (value, low, high) in found.exponents.items():
            expected = max(abs(fit[name] - value) for fit in fits) / (high - low)
            assert run.moves[name] == pytest.approx(expected, rel=0.02, abs=1e-4)


def test_many_that_matter_little_alone_matter_together(read: Read) -> None:
    records = read(finished())
    one = ending("a", 2e7, 3e9, 0.004)
    alone = may_be_stopped(records, [one], "l_nd_chinchilla", share=0.3)
    assert alone.may_stop == ["a"]
    many = [one._replace(run_id=f"a{k}") for k in range(40)]
    found = may_be_stopped(records, many, "l_nd_chinchilla", share=0.3)
    assert 0 < len(found.may_stop) < 40
    assert {run.reason for run in found.runs if not run.may_stop} == {
        "it may not be stopped together with the others"
    }


def test_a_wider_share_stops_no_fewer(read: Read) -> None:
    records, runs = read(finished()), [INSIDE, FAR, ODD]
    stopped = [
        set(may_be_stopped(records, runs, "l_nd_chinchilla", share=share).may_stop)
        for share in (0.001, 0.05, 0.2, 0.9)
    ]
    assert stopped[0] == set() and all(a <= b for a, b in itertools.pairwise(stopped))


def test_curves_are_judged_by_the_law_of_their_steps(make_records: Callable[..., Records]) -> None:
    whole = make_records(noise=0.003, seeds=3)
    same, odd, check = "n27648-s2-lr0.01", "n172032-s2-lr0.01", "n3456-s0-lr0.005"
    running = pl.col("run_id").is_in([same, odd, check])
    state = pl.when(running).then(pl.lit("running")).otherwise("status").alias("status")
    seen = whole.curves.filter(~running | (pl.col("step") < 1000))
    records = Records(whole.runs.with_columns(state), seen, "under way")

    def at(run: str, size: float, steps: float, off: float) -> Ending:
        truth = {"N_c": 3e6, "S_c": 30.0, "alpha_N": 0.12, "alpha_S": 0.4}
        loss = float(L_NS.predict(truth, N=size, S=steps)) * np.exp(off)
        return Ending(run, size, steps, None, loss * 0.9995, loss * 1.0005)

    unknown = Ending("unknown", None, 12_000.0, None, 3.0, 3.1)
    runs = [at(same, 27648, 12_000.0, 0.0), at(odd, 172032, 12_000.0, 0.1)]
    runs += [at(check, 3456, 1200.0, 0.05), unknown]
    found = may_be_stopped(records, runs, share=0.3)
    assert found.may_stop == [same]
    reasons = [run.reason for run in found.runs]
    assert reasons[2] == "the law's selection leaves it out: it is not judged"
    assert reasons[3] == "its N and S are not known" and found.runs[3].moves is None
    doc = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(doc["exponents"]) == {"alpha_N", "alpha_S"}
    assert "30% of its 90% interval" in doc["rule"]


def test_places_of_forecasts() -> None:
    def curve(run: str, batch: float | None, tokens: np.ndarray | None) -> SimpleNamespace:
        return SimpleNamespace(
            run_id=run, size=1e6, batch_tokens=batch, tokens=tokens, step=np.array([1.0, 50.0])
        )

    def run(name: str) -> SimpleNamespace:
        interval = SimpleNamespace(low=2.9, high=3.1)
        return SimpleNamespace(run_id=name, horizon_step=100.0, interval=interval)

    curves = (curve("a", 512.0, None), curve("b", None, np.array([8.0, 400.0])))
    forecasts = SimpleNamespace(
        curves=(*curves, curve("c", None, None)), runs=(run("a"), run("b"), run("c"))
    )
    found = endings_of(forecasts)  # pyright: ignore[reportArgumentType]
    assert [each.D for each in found] == [51_200.0, 800.0, None]
    assert found[0] == Ending("a", 1e6, 100.0, 51_200.0, 2.9, 3.1)


def test_what_cannot_be_asked(read: Read) -> None:
    records = read(finished())
    with pytest.raises(RequestError, match="share is of an exponent's interval"):
        may_be_stopped(records, [INSIDE], "l_nd_chinchilla", share=1.5)
    with pytest.raises(RequestError, match="no law of the loss"):
        may_be_stopped(records, [INSIDE], "b_crit")
    with pytest.raises(WorkError):
        may_be_stopped(read(finished().head(6)), [INSIDE], "l_nd_chinchilla")
    assert may_be_stopped(records, [], "l_nd_chinchilla").runs == ()


def test_runs_that_were_stopped_come_first_and_always_count(read: Read) -> None:
    records = read(finished())
    one = ending("a", 2e7, 3e9, 0.004)
    many = [one._replace(run_id=f"a{k:02d}") for k in range(40)]
    free = may_be_stopped(records, many, "l_nd_chinchilla", share=0.3)
    gone = ["a38", "a39"]
    found = may_be_stopped(records, many, "l_nd_chinchilla", share=0.3, stopped=gone)
    assert set(gone) < set(found.may_stop) and not set(gone) & set(free.may_stop)
    assert len(found.may_stop) == len(free.may_stop)
    assert {run.reason for run in found.runs if run.run_id in gone} == {
        "it was stopped or asked to already, and counts among those judged together"
    }
    # One that moves the fit by itself leaves no room for another.
    runs = [FAR, INSIDE]
    assert may_be_stopped(records, runs, "l_nd_chinchilla").may_stop == ["inside"]
    assert may_be_stopped(records, runs, "l_nd_chinchilla", stopped=["far"]).may_stop == ["far"]
    unknown = Ending("gone", None, None, None, 3.0, 3.1)
    (verdict,) = may_be_stopped(
        records, [unknown], "l_nd_chinchilla", stopped=["gone", "never seen"]
    ).runs
    assert verdict.may_stop and verdict.moves is None
