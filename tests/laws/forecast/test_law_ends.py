"""What a law would have of an unfinished run: its own losses, at its own inputs."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast.law_ends import (
    Ending,
    is_of_curves,
    judged_law,
    law_of_loss,
    losses_of,
    unfinished_ends,
)
from scaling_jax.laws.forecast.run import forecast
from scaling_jax.laws.forecast.stop import stops_of
from scaling_jax.laws.forms import find_law
from scaling_jax.records.store import Records

L_ND = find_law("l_nd")
TRUTH = {"N_c": 1e7, "D_c": 1e6, "alpha_N": 0.1, "alpha_D": 0.15}
SIZES, SUBSETS = (1e4, 4e4, 1.6e5, 6.4e5), (1e6, 4e6, 1.6e7)
GAP = 0.2  # of the test split above validation
LATE = "n160000-u4000000"  # the run that is under way


def study(end: int = 400, rise: float = 0.0) -> Records:
    """Sizes by subsets of the data, each run down to its law by step 1,000; LATE is at `end`.

    With `rise` its loss has passed its lowest, at half of its steps.
    """
    runs, curves = [], []
    for k, (n, d) in enumerate((n, d) for n in SIZES for d in SUBSETS):
        run = f"n{n:.0f}-u{d:.0f}"
        step = np.arange(20, 1001, 20)
        floor = float(L_ND.predict(TRUTH, N=n, D=d))
        noise = 1e-3 * np.random.default_rng(k).normal(size=step.size)
        loss = floor + 4 * step**-0.7 - 4 * 1000**-0.7 + noise
        last = end if run == LATE else 1000
        if run == LATE:
            loss = loss + rise * np.maximum(0.0, step / end - 0.5)
        runs.append({
            "run_id": run, "name": run, "status": "running" if last < 1000 else "done",
            "params_non_embedding": n, "unique_tokens": d, "batch_tokens": 512, "steps": 1000,
            "schedule": "constant",
        })  # fmt: skip
        curves += [
            {"run_id": run, "step_start": int(s), "step": int(s), "tokens": int(s) * 512,
             "val_loss": v, "loss_test": v + GAP}
            for s, v in zip(step, loss, strict=True) if s <= last
        ]  # fmt: skip
    return Records(pl.DataFrame(runs), pl.DataFrame(curves), "study")


def test_a_law_that_stops_early_is_of_the_test_split() -> None:
    records = study()
    assert losses_of(records, L_ND, None, None) == "loss_test"
    assert losses_of(records, find_law("l_nd_chinchilla"), None, None) == "val_loss"
    without = Records(records.runs, records.curves.drop("loss_test"), "study")
    assert losses_of(without, L_ND, None, None) == "val_loss"


def test_its_place_is_the_data_that_it_draws_from_and_not_what_it_has_read() -> None:
    end = Ending(LATE, 1.6e5, 1000.0, 512_000.0, 1.6, 1.65, chosen_on=1.4)
    (found,), reasons = unfinished_ends(study(), L_ND, {"loss": "loss_test"}, None, [end], {})
    assert found.place == (1.6e5, 4e6) and reasons == {}
    assert (found.low, found.high) == (1.6, 1.65)
    chinchilla = find_law("l_nd_chinchilla")
    (found,), _ = unfinished_ends(study(), chinchilla, None, None, [end], {})
    assert found.place == (1.6e5, 512_000.0)


def test_an_end_above_the_lowest_that_was_seen_is_that_one() -> None:
    records = study(rise=2.0)
    own = records.curves.filter(run_id=LATE).sort("val_loss")
    lowest = float(own["loss_test"][0])
    end = Ending(LATE, 1.6e5, 1000.0, None, lowest - 0.1, lowest + 0.3, chosen_on=lowest)
    (found,), _ = unfinished_ends(records, L_ND, {"loss": "loss_test"}, None, [end], {})
    assert (found.low, found.high) == (pytest.approx(lowest - 0.1), pytest.approx(lowest))


def test_forecasts_are_made_again_of_the_losses_of_the_law() -> None:
    """The unfinished run lies on the law of the test losses: its validation loss would not."""
    records = study()
    found = forecast(records)
    assert [run.run_id for run in found.runs] == [LATE]
    stops = stops_of(records, found, "l_nd", share=0.9)
    (verdict,) = stops.runs
    assert verdict.may_stop, verdict
    moved = max((verdict.moves or {}).values())
    mine = pl.col("run_id") == LATE
    lower = records.curves.with_columns(loss_test=pl.col("loss_test") - GAP * mine)
    off = Records(records.runs, lower, "study")
    (other,) = stops_of(off, forecast(off), "l_nd", share=0.9).runs
    assert max((other.moves or {"none": np.inf}).values()) > 3 * moved


def test_which_laws_can_judge() -> None:
    assert judged_law(["b_crit", "no law", "l_nd", "l_ns"]) == "l_nd"
    assert judged_law(["pareto"]) is None
    for slug, says in (("b_crit", "no law of the loss"), ("l_nss", "Did you mean")):
        with pytest.raises(RequestError, match=says):
            law_of_loss(slug)


def test_what_has_no_place_says_why() -> None:
    ends = [
        Ending(LATE, None, None, None, 5.0, 5.2),
        Ending("n10000-u1000000", 1e4, None, None, 5.0, 5.2),
    ]
    found, reasons = unfinished_ends(study(), find_law("l_nd_chinchilla"), None, None, ends, {})
    assert found == []
    assert set(reasons.values()) == {"its N and D are not known"}
    running = study().runs.with_columns(status=pl.lit("running"))
    with pytest.raises(WorkError):
        losses_of(Records(running, study().curves, "study"), L_ND, None, None)


def test_a_table_without_a_status_has_unfinished_runs_all_the_same() -> None:
    """Their last loss is not the end of a run, whatever the table takes them for."""
    records = study()
    status = records.runs.with_columns(status=pl.lit("done"))
    unsaid = Records(status, records.curves, "table")
    found = [stops_of(each, forecast(each), "l_n", share=0.9) for each in (records, unsaid)]
    assert found[0].exponents == found[1].exponents
    assert [run.run_id for run in found[1].runs] == [LATE]
    whole = forecast(unsaid, horizon=3000.0)
    assert len(whole.runs) == 12 and len(stops_of(unsaid, whole, "l_n").runs) == 1


def test_what_is_seen_of_a_curve_comes_with_its_end() -> None:
    end = Ending(LATE, 1.6e5, 1000.0, 512_000.0, 1.6, 1.65)
    chinchilla = find_law("l_nd_chinchilla")
    (found,), _ = unfinished_ends(study(), chinchilla, None, None, [end], {})
    own = study().curves.filter(run_id=LATE)
    assert found.losses.tolist() == own["val_loss"].to_list()
    assert found.seen.tolist() == [[1.6e5, tokens] for tokens in own["tokens"]]
    assert is_of_curves(chinchilla) and not is_of_curves(L_ND)
    found, reasons = unfinished_ends(study(), chinchilla, None, None, [end], {"N": 2e5})
    assert found == [] and "selection leaves it out" in reasons[LATE]
