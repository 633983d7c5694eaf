"""The critical batch out of records: tables of steps and curves, known laws, one-sided sweeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from scaling_jax import laws
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forms import critical_batch
from scaling_jax.records.store import Records, load

ZHANG = Path(__file__).parents[2].parent / "shared" / "data" / "zhang_cbs_steps_to_target.csv"
real = pytest.mark.skipif(not ZHANG.exists(), reason="the real tables are not beside the checkout")
STAR, ALPHA = 2e6, 0.21
BATCHES = 2.0 ** np.arange(8, 17)
ROLES = {"L": "target", "S": "steps_to_target"}


def measure(*request: Any, **options: Any) -> Any:
    """Without its type: a test takes the law to be there, and fails where it is not."""
    return laws.measure_critical_batch(*request, **options)


def least_steps(loss: np.ndarray) -> np.ndarray:
    return 400 * (5 / loss) ** 6


def steps_table(batches: np.ndarray = BATCHES, star: float = STAR) -> pl.DataFrame:
    batch, loss = (a.ravel() for a in np.meshgrid(batches, np.linspace(3.2, 5.2, 6)))
    steps = least_steps(loss) * (1 + critical_batch(loss, star, ALPHA) / batch)
    return pl.DataFrame(
        {"batch_tokens": batch.astype(int), "target": loss, "steps_to_target": steps}
    )


def curves(
    batches: np.ndarray = BATCHES, rates: dict[float, float] | None = None, noise: float = 0.0
) -> pl.DataFrame:
    """Losses of runs recorded at log-spaced steps; `rates`: learning rate to slowness."""
    rng = np.random.default_rng(0)
    rows = []
    dense = np.linspace(7.0, 2.9, 600)
    for batch in batches:
        for rate, slow in (rates or {1e-3: 1.3, 2e-3: 1.0, 4e-3: 1.4}).items():
            steps = slow * least_steps(dense) * (1 + critical_batch(dense, STAR, ALPHA) / batch)
            at = np.unique(np.geomspace(steps[0] + 1, steps[-1], 120).astype(int))
            loss = np.exp(np.interp(np.log(at), np.log(steps), np.log(dense)))
            loss = loss * np.exp(noise * rng.normal(size=at.size))
            name = f"B{batch:.0f} lr{rate}"
            rows += [(name, s, int(batch), rate, x) for s, x in zip(at.tolist(), loss, strict=True)]
    columns = ["run_id", "step", "batch_tokens", "lr_peak", "loss"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def test_steps_to_levels_give_the_law(read: Callable[..., Records]) -> None:
    found = measure(read(steps_table()), ROLES)
    law = found.ladder.law
    assert law.B_star.value == pytest.approx(STAR, rel=1e-6)
    assert law.alpha_B.value == pytest.approx(ALPHA, rel=1e-6)
    assert found.identified and found.unit == "tokens" and found.levels == "as the table has them"
    assert found.sizes == [None] * 6 and found.flags == []
    assert found.columns == {"B": "batch_tokens", "S": "steps_to_target", "L": "target"}


def test_curves_give_the_law_at_levels_that_all_batches_pass(
    read: Callable[..., Records],
) -> None:
    found = measure(read(curves(noise=0.002)))
    losses = [rung.loss for rung in found.ladder.rungs]
    assert len(losses) == 8 and losses == sorted(losses, reverse=True)
    assert 2.9 <= losses[-1] < 3.0 and losses[0] < 7.0
    assert np.ptp(np.diff(np.log(losses))) < 1e-3
    for rung in found.ladder.rungs:
        # A batch size is missing where the noise of the last points lets no rate be the fastest.
        assert rung.hyperbola.batch.size == BATCHES.size or rung.loss == losses[-1]
    law = found.ladder.law
    assert law.alpha_B.low < ALPHA < law.alpha_B.high
    assert law.alpha_B.value == pytest.approx(ALPHA, rel=0.05)
    asked = measure(read(curves()), levels=[3.5, 4.0, 4.5])
    assert [rung.loss for rung in asked.ladder.rungs] == [4.5, 4.0, 3.5]
    for loss, hyperbola in asked.ladder.rungs:
        exact = critical_batch(loss, STAR, ALPHA)
        assert hyperbola.B_crit.value == pytest.approx(exact, rel=0.01)
    assert asked.levels == "as asked"


def test_rates_at_an_edge_are_left_out_and_single_ones_told(read: Callable[..., Records]) -> None:
    edge = measure(read(pl.concat([
        curves(BATCHES[1:]), curves(BATCHES[:1], {1e-3: 1.0, 2e-3: 1.5}),
    ])), levels=[4.0, 3.5, 3.2])  # fmt: skip
    out = [row for row in edge.excluded if row["rule"] == "learning_rate_edge"]
    assert {row["batch"] for row in out} == {256.0} and len(out) == 3
    single = measure(read(curves(rates={2e-3: 1.0})), levels=[4.0, 3.5, 3.2])
    assert single.flags == ["one learning rate at every batch size: not known to be the fastest"]
    assert single.ladder.law.alpha_B.value == pytest.approx(ALPHA, rel=0.02)
    untold = measure(read(curves(noise=1e-3).drop("lr_peak")), levels=[4.0, 3.5, 3.2])
    assert "several runs at one batch, and no learning rate" in untold.flags[0]


def of_seeds(slow: dict[int, float], beta2: float = 0.99) -> pl.DataFrame:
    """The same curves of several seeds, each as slow at every batch size."""
    return pl.concat(
        curves().with_columns(
            run_id=pl.format("{} {} {}", "run_id", pl.lit(seed), pl.lit(beta2)),
            seed=pl.lit(seed),
            beta2=pl.lit(beta2),
            step=(pl.col("step") * each).cast(pl.Int64),
        )
        for seed, each in slow.items()
    )


def test_seeds_are_averaged_and_what_else_was_tuned_is_not(read: Callable[..., Records]) -> None:
    slow = {0: 1.0, 1: 1.2}
    both = pl.concat(
        [of_seeds(slow), of_seeds(slow, beta2=0.999).with_columns(step=2 * pl.col("step"))]
    )
    found = measure(read(both), levels=[4.0, 3.5, 3.2])
    assert found.flags == []
    for loss, hyperbola in found.ladder.rungs:
        assert hyperbola.batch.size == BATCHES.size and hyperbola.rms_log_residual < 0.01
        exact = float(least_steps(np.array(loss))) * 1.2**0.5
        assert hyperbola.S_min.value == pytest.approx(exact, rel=0.01)
    uneven = both.filter((pl.col("seed") == 0) | (pl.col("batch_tokens") > 256))
    assert "seeds differ between batch sizes" in measure(read(uneven), levels=[4.0]).flags[0]


def test_levels_are_passed_by_every_seed_of_a_rate(read: Callable[..., Records]) -> None:
    table = of_seeds({0: 1.0, 1: 1.2})
    short = table.filter(
        (pl.col("seed") == 0) | (pl.col("batch_tokens") != 512) | (pl.col("loss") > 3.5)
    )
    found = measure(read(short))
    assert 3.5 <= found.ladder.rungs[-1].loss < 3.52
    assert found.ladder.rungs[-1].hyperbola.batch.size == BATCHES.size


def test_a_diverged_rate_brackets_the_one_below(make_sweep: Callable[..., Records]) -> None:
    lost = make_sweep({1e-3: 1.3, 2e-3: 1.0}, diverged=4e-3)
    found = measure(lost, levels=[4.0, 3.5, 3.2])
    assert not [row for row in found.excluded if row["rule"] == "learning_rate_edge"]
    assert [row["rule"] for row in found.excluded] == ["diverged"] * BATCHES.size
    open_end = make_sweep({1e-3: 1.3, 2e-3: 1.0}, diverged=None)
    with pytest.raises(WorkError, match="No loss level was reached at 3 usable batch sizes"):
        measure(open_end, levels=[4.0, 3.5, 3.2])


@pytest.fixture
def make_sweep() -> Callable[..., Records]:
    def make(rates: dict[float, float], diverged: float | None) -> Records:
        table = curves(rates=rates)
        if diverged is not None:
            broken = curves(rates={diverged: 1.0}).group_by("run_id", maintain_order=True).head(3)
            table = pl.concat([table, broken])
        runs = table.select("run_id", "lr_peak").unique(maintain_order=True)
        status = pl.when(pl.col("lr_peak") == (diverged or 0)).then(pl.lit("diverged"))
        runs = runs.with_columns(status=status.otherwise(pl.lit("done")), name=pl.col("run_id"))
        return Records(runs, table.drop("lr_peak"), "a sweep")

    return make


def test_levels_that_a_run_begins_below_are_not_read(read: Callable[..., Records]) -> None:
    late = curves().filter((pl.col("loss") < 4.2) | (pl.col("batch_tokens") != 256))
    found = measure(read(late), levels=[4.5, 4.0, 3.5, 3.2])
    assert found.ladder.rungs[0].hyperbola.batch.min() == 512
    assert found.ladder.rungs[1].hyperbola.batch.min() == 256
    assert "begins below this loss" in next(r for r in found.excluded if r["loss"] == 4.5)["reason"]
    chosen = measure(read(late))
    assert max(rung.loss for rung in chosen.ladder.rungs) < 4.2


def test_a_rate_whose_run_ended_may_be_the_fastest(read: Callable[..., Records]) -> None:
    short = curves().filter((pl.col("lr_peak") != 2e-3) | (pl.col("loss") > 3.4))
    found = measure(read(short), levels=[4.5, 4.0, 3.5, 3.2])
    assert [rung.loss for rung in found.ladder.rungs] == [4.5, 4.0, 3.5]
    out = [row for row in found.excluded if row["rule"] == "not_measured"]
    assert {row["loss"] for row in out} == {3.2} and len(out) == BATCHES.size
    assert "ends before the fastest" in out[0]["reason"]


def test_one_sided_sweeps_are_refused_side_by_side(read: Callable[..., Records]) -> None:
    small = measure(read(steps_table(BATCHES / 256)), ROLES)
    assert not small.identified and small.ladder.law is None
    assert all("larger batches are needed" in rung.hyperbola.reason for rung in small.ladder.rungs)
    large = measure(read(steps_table(BATCHES * 256)), ROLES)
    assert all("smaller batches are needed" in rung.hyperbola.reason for rung in large.ladder.rungs)
    text = " ".join(laws.describe_critical_batch(small).split())
    assert "No B_crit(L)" in text and "larger batches are needed" in text
    doc = small.to_json()
    assert doc["law"] is None and "0 of 6 loss levels" in doc["reason"]
    assert all(each["critical"] == {"kaplan": None, "zhang": None} for each in doc["levels"])
    assert {row["rule"] for row in doc["excluded"]} == {"one_sided"}


def test_sizes_have_hyperbolas_of_their_own_and_one_law(read: Callable[..., Records]) -> None:
    both = pl.concat(
        table.with_columns(params=pl.lit(size), steps_to_target=pl.col("steps_to_target") * slow)
        for size, slow, table in ((10**6, 1.0, steps_table()), (10**7, 0.5, steps_table()))
    )
    found = measure(read(both), ROLES)
    assert found.sizes == [1e6, 1e7] * 6 and len(found.ladder.rungs) == 12
    assert found.ladder.law.alpha_B.value == pytest.approx(ALPHA, rel=1e-6)
    assert "2 sizes N" in found.flags[0]
    assert "N = 1e+06: losses 5.2" in laws.describe_critical_batch(found)
    assert {each["N"] for each in found.to_json()["levels"]} == {1e6, 1e7}
    with pytest.raises(RequestError, match=r"2 rows have one batch and level.*N=COLUMN"):
        measure(read(both.rename({"params": "width"})), ROLES)


def test_text_has_both_definitions_and_what_the_constants_are_for(
    read: Callable[..., Records],
) -> None:
    found = measure(read(steps_table()), ROLES)
    text = laws.describe_critical_batch(found)
    for part in ("E_min/S_min", "20 % rule", "B_star=2e+06,alpha_B=0.21", "--critical-batch"):
        assert part in text
    rule = measure(read(steps_table()), ROLES, definition="zhang", reference_batch=512.0)
    assert "--critical-batch" not in laws.describe_critical_batch(rule)
    loss, hyperbola = rule.ladder.rungs[0]
    exact = 1.2 * 512 + 0.2 * critical_batch(loss, STAR, ALPHA)
    doc = json.loads(json.dumps(rule.to_json(), allow_nan=False))
    assert doc["levels"][0]["critical"]["zhang"]["value"] == pytest.approx(exact)
    assert doc["definition"] == "zhang" and hyperbola.identified


def test_wrong_requests(read: Callable[..., Records]) -> None:
    table = read(steps_table())
    with pytest.raises(RequestError, match=r"Known: .*steps_to_target.*Roles: B, S and L"):
        measure(table, {"L": "target"})
    with pytest.raises(RequestError, match="levels of its own"):
        measure(table, ROLES, levels=[3.0])
    with pytest.raises(RequestError, match="Did you mean 'kaplan'"):
        measure(table, ROLES, definition="kaplen")
    with pytest.raises(RequestError, match="reference_batch is a number of tokens"):
        measure(table, ROLES, reference_batch=-1.0)
    with pytest.raises(RequestError, match="losses above 0, not -1"):
        measure(read(curves()), levels=[-1.0])
    nameless = read(curves().drop("run_id").with_columns(params=pl.lit(5)))
    with pytest.raises(RequestError, match=r"rows at step = .* no curve|batch of run .* changes"):
        measure(nameless)
    apart = curves().filter(
        pl.when(pl.col("batch_tokens") == 256)
        .then(pl.col("loss") > 5)
        .otherwise(pl.col("loss") < 4)
    )
    with pytest.raises(WorkError, match="no loss that all 9 batch sizes pass"):
        measure(read(apart))
    # Their values are losses, but named as those of a curve.
    with pytest.raises(RequestError, match="Roles: B, S and L"):
        measure(table, {"loss": "target", "S": "steps_to_target", "run": "target"})


def test_decaying_schedules_are_flagged(read: Callable[..., Records]) -> None:
    found = measure(read(curves().with_columns(schedule=pl.lit("cosine"))), levels=[4, 3.5, 3.2])
    assert found.flags == ["schedule cosine: steps to a loss depend on how long a run was to be"]


@real
def test_zhang_et_al_as_published() -> None:
    roles = {"S": "steps_to_target", "L": "target_c4_val_loss", "N": "params_non_embedding_label"}
    found = measure(load(ZHANG), roles, definition="zhang", reference_batch=256 * 512)
    rule = [each["critical"]["zhang"]["value"] / 512 for each in found.to_json()["levels"]]
    assert rule == pytest.approx([745.3, 955.2, 1393.7, 1888.5, 2533.4], rel=1e-3)
    ratio = measure(load(ZHANG), roles)
    exact = [2191, 3240, 5433, 7907, 11131]
    assert [r.hyperbola.B_crit.value / 512 for r in ratio.ladder.rungs] == pytest.approx(
        exact, rel=1e-3
    )
    assert ratio.ladder.law.alpha_B.value == pytest.approx(0.133, abs=0.004)


def test_runs_without_curves_are_refused(read: Callable[..., Records]) -> None:
    ends = curves().group_by("run_id", maintain_order=True).last()
    with pytest.raises(WorkError, match="Every run has one row"):
        measure(read(ends))
    late = curves().group_by("run_id", maintain_order=True).tail(3)
    with pytest.raises(WorkError, match="begins below this loss"):
        measure(read(late), levels=[5.0])


def test_too_few_batch_sizes_are_counted(read: Callable[..., Records]) -> None:
    with pytest.raises(WorkError, match=r"batch_tokens has 2 values \(256, 512\)"):
        measure(read(steps_table(BATCHES[:2])), ROLES)
    alone = steps_table(BATCHES[:6]).with_columns(params=pl.col("batch_tokens") // 1025 + 1)
    with pytest.raises(WorkError) as refused:
        measure(read(alone.with_columns(params=pl.col("batch_tokens"))), ROLES)
    assert str(refused.value).endswith("(at each of 6 sizes N)")
    part = measure(read(alone.filter(pl.col("batch_tokens") < 3000)), ROLES)
    assert any(flag.startswith("N = ") and "No loss level" in flag for flag in part.flags)
