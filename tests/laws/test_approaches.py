"""Allocations out of records: known surfaces, the published exponents, refusals side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from scaling_jax import laws
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws import approaches
from scaling_jax.laws.allocation import Allocation
from scaling_jax.laws.approaches import ENVELOPE, ISOFLOP, PARABOLA, PROJECTED, SURFACE, allocate
from scaling_jax.records.store import Records, load

DATA = Path(__file__).parents[2].parent / "shared" / "data"
real = pytest.mark.skipif(not DATA.exists(), reason="the real tables are not beside the checkout")

# Besiroglu et al. 2024
TRUTH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
POWER = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])


def loss(N: np.ndarray, D: np.ndarray) -> np.ndarray:
    return TRUTH["E"] + TRUTH["A"] / N ** TRUTH["alpha"] + TRUTH["B"] / D ** TRUTH["beta"]


def budgets(noise: float = 1e-4) -> pl.DataFrame:
    """IsoFLOP points, each off its budget by up to 0.4 %, as real runs are."""
    rng = np.random.default_rng(0)
    C, N = (
        a.ravel() for a in np.meshgrid(np.geomspace(1e18, 1e21, 5), np.geomspace(2e7, 2e10, 13))
    )
    N = N * np.sqrt(C / 3e19)
    D = C / (6 * N)
    measured = loss(N, D) * np.exp(noise * rng.normal(size=C.size))
    spent = C * (1 - 0.004 * rng.random(C.size))
    return pl.DataFrame({"params": N, "tokens": D, "flops_budget": spent, "loss": measured})


def curves(sizes: int = 9, batch: float = 1e6) -> pl.DataFrame:
    N = np.geomspace(3e7, 8e9, sizes)[:, None]
    D = batch * np.geomspace(2e2, 2e6, 60).round()[None, :]
    size, tokens = np.broadcast_arrays(N, D)
    return pl.DataFrame(
        {
            "run_id": np.repeat([f"size {i}" for i in range(sizes)], 60),
            "params_total": size.ravel(),
            "step": np.round(tokens / batch).astype(int).ravel(),
            "tokens": tokens.ravel(),
            "batch_tokens": batch,
            "loss": loss(size, tokens).ravel(),
        }
    )


@pytest.fixture(scope="module")
def isoflops(tmp_path_factory: pytest.TempPathFactory) -> Records:
    path = tmp_path_factory.mktemp("theirs") / "budgets.csv"
    budgets().write_csv(path)
    return load(path)


def refuse(*_: object) -> None:
    raise WorkError("not asked")


@pytest.fixture
def minima_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the surfaces, which take most of the time."""
    for name in ("_fitted", "_projected"):
        monkeypatch.setattr(approaches, name, refuse)


def by_method(found: laws.Allocations) -> dict[str, Allocation]:
    return {each.method: each for each in found.allocations}


@pytest.fixture(scope="module")
def everything(isoflops: Records) -> laws.Allocations:
    return allocate(isoflops)


def test_budgets_give_every_approach_the_surfaces_exponent(everything: laws.Allocations) -> None:
    found = everything
    assert list(by_method(found)) == [ISOFLOP, PARABOLA, SURFACE, PROJECTED] and not found.refused
    for each in found.allocations:
        assert each.p_N == pytest.approx(POWER, abs=0.02 if each.method == PARABOLA else 0.006)
        assert each.intervals["p_N"][0] < each.p_N < each.intervals["p_N"][1]
        assert each.level == 0.9
    assert found.optima is not None and found.optima.height == 5
    assert found.columns["budget"] == "flops_budget" and found.columns["C"] == "6 N D"
    assert not found.flags


def test_the_surface_is_that_of_the_fit(isoflops: Records, everything: laws.Allocations) -> None:
    surface = by_method(everything)[SURFACE]
    fit = laws.fit(isoflops, law="l_nd_chinchilla")
    assert surface.params == pytest.approx(fit.params)
    value, low, high = fit.derived["a_opt"]
    assert (surface.p_N, *surface.intervals["p_N"]) == pytest.approx((value, low, high), rel=1e-9)


@pytest.mark.usefixtures("minima_alone")
def test_flops_take_the_place_of_tokens(read: Callable[..., Records], isoflops: Records) -> None:
    bare = budgets().drop("tokens").with_columns(pl.col("flops_budget").round_sig_figs(2))
    found = allocate(read(bare))
    assert found.columns["D"] == "flops_budget / (6 params)"
    assert by_method(found)[ISOFLOP].p_N == pytest.approx(POWER, abs=0.01)


@pytest.mark.usefixtures("minima_alone")
def test_curves_give_an_envelope(read: Callable[..., Records]) -> None:
    found = allocate(read(curves(sizes=12)))
    assert list(found.refused) == [SURFACE, PROJECTED]
    assert by_method(found)[ENVELOPE].p_N == pytest.approx(POWER, abs=0.03)
    assert found.grid is not None and found.optima is None


@pytest.mark.usefixtures("minima_alone")
def test_a_critical_batch_moves_the_envelope_to_less_compute(read: Callable[..., Records]) -> None:
    records = read(curves())
    plain = allocate(records)
    constants = {"B_star": 2e8, "alpha_B": 0.21}
    least = allocate(records, critical_batch=constants)
    assert by_method(least)[ENVELOPE].D_e < by_method(plain)[ENVELOPE].D_e
    assert least.critical_batch == constants and least.grid is not None and plain.grid is not None
    assert least.grid.budgets.min() < 0.5 * plain.grid.budgets.min()
    with pytest.raises(RequestError, match="no constant 'B_sta'"):
        allocate(records, critical_batch={"B_sta": 1.0, "alpha_B": 0.2})
    without = read(curves().drop("batch_tokens"))
    with pytest.raises(RequestError, match="batch in tokens: column batch_tokens missing"):
        allocate(without, critical_batch=constants)


def test_every_refusal_has_its_own_sentence(read: Callable[..., Records]) -> None:
    N = np.geomspace(1e7, 1e10, 12)
    found = allocate(read(params_total=N, tokens=20 * N, loss=loss(N, 20 * N)))
    assert found.allocations == [] and list(found.refused) == [ENVELOPE, SURFACE, PROJECTED]
    assert "no learning curves" in found.refused[ENVELOPE]
    assert "D follows N" in found.refused[PROJECTED] and found.refused[SURFACE]
    two = allocate(read(budgets().filter(pl.col("flops_budget") < 1e19)))
    assert "3 needed" in two.refused[ISOFLOP] and SURFACE in by_method(two)


@pytest.mark.usefixtures("minima_alone")
def test_minima_at_an_edge_are_left_out_and_told(read: Callable[..., Records]) -> None:
    low = budgets().filter((pl.col("flops_budget") < 9e20) | (pl.col("params") < 2e9))
    found = by_method(allocate(read(low)))[ISOFLOP]
    (row,) = found.excluded
    assert row["low"] == pytest.approx(1e21, rel=0.01) and "at the largest size" in row["reason"]


@pytest.mark.usefixtures("minima_alone")
def test_what_speaks_against_a_table_is_flagged(read: Callable[..., Records]) -> None:
    twice = pl.concat([budgets(), budgets().with_columns(pl.col("loss") * 1.1)])
    (flag,) = allocate(read(twice)).flags
    assert "differs by" in flag and "--where keeps one" in flag
    other = budgets().with_columns(flops=6.6 * pl.col("params") * pl.col("tokens"))
    assert "C is 1.1 to 1.1 times 6 N D" in allocate(read(other)).flags[0]
    repeated = budgets().with_columns(unique_tokens=pl.col("tokens") / 2)
    assert "65 points have seen their tokens more than once" in allocate(read(repeated)).flags[0]


@pytest.mark.usefixtures("minima_alone")
def test_rows_without_a_budget_are_counted(read: Callable[..., Records]) -> None:
    table = budgets().with_row_index()
    gaps = table.with_columns(
        flops_budget=pl.when(pl.col("index") < 2).then(None).otherwise("flops_budget")
    )
    found = allocate(read(gaps.drop("index")))
    assert found.points.height == 63 and found.excluded[0]["rule"] == "incomplete"


def test_wrong_requests(read: Callable[..., Records], isoflops: Records) -> None:
    with pytest.raises(RequestError, match="Did you mean 'params'"):
        allocate(isoflops, {"N": "parms"})
    with pytest.raises(RequestError, match="rows with a budget"):
        allocate(isoflops, critical_batch={"B_star": 2e8, "alpha_B": 0.21})
    with pytest.raises(RequestError, match="level is a share"):
        allocate(isoflops, level=90)
    words = budgets().with_columns(flops_budget=pl.lit("large"))
    with pytest.raises(RequestError, match=r"Not numbers: column flops_budget \(budget\)"):
        allocate(read(words))
    with pytest.raises(RequestError, match="leaves no row"):
        allocate(isoflops, where="loss > 100")
    empty = budgets().with_columns(flops_budget=pl.lit(0.0))
    with pytest.raises(WorkError, match="No row is left"):
        allocate(read(empty))


def test_json_and_text_say_the_same(everything: laws.Allocations) -> None:
    found = everything
    doc = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert doc.keys() >= {"allocations", "refused", "level", "columns", "flags", "excluded"}
    text = laws.describe_allocations(found)
    assert max(map(len, text.splitlines())) < 110
    for each in doc["allocations"]:
        assert each["method"] in text and f"{each['p_N']:.3g}" in text
    assert "Minima:" in text and "sd ln N" in text


PORIAN = {
    "kaplan": ("param_count = 'kaplan' AND decay = 'kaplan'", 0.835, 0.864),
    "head": ("param_count = 'standard' AND warmup = 'long'", 0.706, 0.699),
    "warmup": ("param_count = 'standard' AND warmup = 'short' AND decay = 'kaplan'", 0.602, 0.603),
    "cosine": ("param_count = 'standard' AND decay = 'chinchilla'", 0.571, 0.574),
    "tuned": ("param_count = 'standard' AND hparams = 'tuned'", 0.497, 0.518),
}


@real
@pytest.mark.parametrize("step", PORIAN)
@pytest.mark.usefixtures("minima_alone")
def test_porian_et_al_get_their_published_exponents(step: str) -> None:
    records = load(DATA / "porian_isoflop_points.csv")
    where, *published = PORIAN[step]
    for dataset, exponent in zip(("rw", "owt2"), published, strict=True):
        found = allocate(records, where=f"dataset = '{dataset}' AND {where}")
        assert by_method(found)[ISOFLOP].p_N == pytest.approx(exponent, abs=0.01)


@real
def test_gemstones_envelope_agrees_with_the_published_hull(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(approaches, "_projected", refuse)
    found = allocate(
        load(DATA / "gemstones.csv"),
        {"N": "params_incl_head_single_embed"},
        where="subset = 'hot_100b+_477' AND step % 2385 = 0",
    )
    envelope, surface = found.allocations
    low, high = envelope.intervals["p_N"]
    assert low < 0.4579 < high  # their slope of the hull
    assert surface.p_N == pytest.approx(0.59727 / (0.59727 + 0.25911), abs=1e-3)
