"""Measure `forecast`: how far off it is on public curves, what intervals cover, what advice saves.

The folder of `--tables` holds gemstones.csv (McLeish et al. 2025), multipowerlaw_curves.csv (Luo et
al. 2025) and, for the advice, porian_isoflop_points.csv (Porian et al. 2024), tidied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from scaling_jax.errors import RequestError
from scaling_jax.laws.forecast.backtest import (
    OBSERVED,
    Asked,
    Backtest,
    Outcome,
    ask,
    backtest_runs,
    judge,
)
from scaling_jax.laws.forecast.curve import Curve, curves_of
from scaling_jax.laws.forecast.new_runs import backtest_schedules, larger_models
from scaling_jax.laws.forecast.power import power_offset
from scaling_jax.laws.forecast.predict import Question
from scaling_jax.laws.forecast.schedule import fit_schedule_law
from scaling_jax.records import load
from tools.benchmarks.advice import advice
from tools.benchmarks.tables import Table
from tools.benchmarks.timing import Effort

LEVEL = 0.9
LARGE = 1e9  # parameters: what is forecast from smaller models
TIMED = 400  # curves
_GEMSTONES, _LUO = "gemstones.csv", "multipowerlaw_curves.csv"
_PORIAN = "porian_isoflop_points.csv"
_BASELINES = ("last_value", "power_law", "power_offset")
_PER_TOKEN = "nats"


def forecast(effort: Effort, folder: Path) -> Iterator[Table]:
    """The end of a run, another schedule, a larger model, coverage, advice, and the time."""
    gemstones, luo = _gemstones(folder), _luo(folder)
    observed = OBSERVED[-1:] if effort.quick else OBSERVED
    tests = {
        "gemstones": backtest_runs(gemstones, observed, LEVEL),
        "multipowerlaw": backtest_runs(luo, observed, LEVEL),
    }
    yield _ends(tests, _from_smaller_sizes(luo, observed))
    yield _schedules(luo)
    yield _left_out(luo)
    yield _larger(gemstones)
    yield _coverage(tests, {"gemstones": gemstones, "multipowerlaw": luo}, observed)
    yield advice(effort, folder / _PORIAN, gemstones)
    yield _timed(effort, gemstones, luo)


def require_tables(folder: Path) -> None:
    """Raises `RequestError` where the folder lacks the curves."""
    for name in (_GEMSTONES, _LUO):
        if not (folder / name).is_file():
            raise RequestError(f"--tables {folder} has no {name}")


def _gemstones(folder: Path) -> list[Curve]:
    """The 22 shapes at constant learning rate."""
    columns = {"N": "params_incl_head_single_embed"}
    return curves_of(load(folder / _GEMSTONES), columns, "subset = 'hot_100b+_477'")[0]


def _luo(folder: Path) -> list[Curve]:
    """Three sizes under nine schedules; N is in the label alone, as in 25M."""
    records = load(folder / _LUO)
    size = pl.col("params_label").str.strip_suffix("M").cast(pl.Float64) * 1e6
    records = replace(records, curves=records.curves.with_columns(N=size))
    return curves_of(records, {"N": "N"})[0]


def _schedule(curve: Curve) -> str:
    return curve.run_id.rpartition("/")[2]


def _constant(curve: Curve) -> bool:
    return _schedule(curve).startswith("constant")


def _ends(tests: dict[str, Backtest], smaller: Backtest) -> Table:
    """The end of a run from a part of its steps."""
    rows = []
    for name, test, kept in (
        ("gemstones, constant", tests["gemstones"], lambda curve: True),
        ("multipowerlaw, constant", tests["multipowerlaw"], _constant),
        ("multipowerlaw, decaying", tests["multipowerlaw"], lambda curve: not _constant(curve)),
        ("multipowerlaw, decaying, helped by smaller sizes alone", smaller, lambda curve: True),
    ):
        part = _part(test, kept)
        for group in part.groups:
            rows.append({"curves": name, "seen": group} | _errors(part.summary(group)))
    return Table(
        "The end of a run from a part of its steps, each helped by the other runs that are no "
        "larger; absolute errors",
        {"curves": "", "seen": "share", "n": ""}
        | dict.fromkeys(("median", "90 %", "offset's 90 %"), _PER_TOKEN)
        | dict.fromkeys((_words(name) for name in _BASELINES), _PER_TOKEN)
        | {"covered": f"of {LEVEL:.0%}", "half-width": "median errors"},
        rows,
        "Of the baselines medians. Intervals rest on the other curves of the set.",
    )


def _from_smaller_sizes(curves: Sequence[Curve], observed: Sequence[float]) -> Backtest:
    asked = []
    for share in observed:
        for curve in curves:
            smaller = [other for other in curves if (other.size or 0) < (curve.size or 0)]
            if smaller and not _constant(curve):
                asked.append(ask(f"{share:g}", curve, share * curve.end, smaller))
    return judge("run", asked, LEVEL)


def _part(test: Backtest, kept: Callable[[Curve], bool]) -> Backtest:
    """The outcomes of the curves that are kept."""
    pairs = [
        pair for pair in zip(test.outcomes, test.intervals, strict=True) if kept(_curve_of(pair[0]))
    ]
    return replace(
        test,
        outcomes=tuple(outcome for outcome, _ in pairs),
        intervals=tuple(ends for _, ends in pairs),
    )


def _curve_of(outcome: Outcome) -> Curve:
    return outcome.question.observed


def _errors(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table from the summary of a backtest."""
    baselines = {_words(name): each["median_error"] for name, each in row["baselines"].items()}
    offset = row["baselines"].get("power_offset")
    return {
        "n": row["n"],
        "median": row["median_error"],
        "90 %": row["p90_error"],
        "offset's 90 %": None if offset is None else offset["p90_error"],
        **baselines,
        "covered": f"{row['covered']} of {row['n']}",
        "half-width": row["half_width_of_median_error"],
    }


def _words(name: str) -> str:
    return name.replace("_", " ")


def _schedules(curves: Sequence[Curve]) -> Table:
    """Whole curves of new schedules, from one constant and one cosine run of the model."""
    by_size: dict[float | None, dict[str, Curve]] = {}
    for curve in sorted(curves, key=lambda each: each.size or 0.0):
        by_size.setdefault(curve.size, {})[_schedule(curve)] = curve
    rows, found = [], {"decay": [], "longer": []}
    for size, runs in by_size.items():
        known = [runs["constant_24000"], runs["cosine_24000"]]
        fit = fit_schedule_law(known)
        for name, curve in runs.items():
            part, begin = _hidden(name)
            if part is None or curve.lr is None:
                continue
            late = curve.step > begin
            plan = np.stack([curve.step, curve.lr], axis=1)
            ours = np.abs(fit.predict(plan, curve.step) - curve.loss)[late].mean()
            offset = np.array(
                [power_offset(known[0].step, known[0].loss, step) for step in curve.step[late]],
                dtype=np.float64,
            )
            theirs = np.abs(offset - curve.loss[late]).mean()
            found[part].append((size, float(ours), float(theirs)))
    for part, title in (("decay", "WSD, decay part"), ("longer", "72,000 steps, after 24,000")):
        for size in (*by_size, None):
            own = np.array([each[1:] for each in found[part] if size in (None, each[0])])
            rows.append(
                {
                    "forecast": title,
                    "model": "all" if size is None else f"{size / 1e6:.0f}M",
                    "n": len(own),
                    "median": float(np.median(own[:, 0])),
                    "mean": float(own[:, 0].mean()),
                    "largest": float(own[:, 0].max()),
                    "power offset": float(np.median(own[:, 1])),
                }
            )
    return Table(
        "Runs under other schedules, from the constant and the cosine run of 24,000 steps; mean "
        "absolute error of a run over the part",
        {"forecast": "", "model": "", "n": ""}
        | dict.fromkeys(("median", "mean", "largest", "power offset"), _PER_TOKEN),
        rows,
        "Multipowerlaw. The power law with an offset is that of the constant run; its median.",
    )


def _hidden(schedule: str) -> tuple[str | None, float]:
    """What is asked of a schedule, and the step after which: where its rate begins to fall."""
    if schedule.startswith("wsdcon"):
        return "decay", 8_000.0
    if schedule.startswith("wsd"):
        return "decay", 20_000.0
    return ("longer", 24_000.0) if schedule.endswith("72000") else (None, 0.0)


def _left_out(curves: Sequence[Curve]) -> Table:
    """Runs that have not begun, from those of the model under other schedules."""
    test = backtest_schedules(curves, LEVEL)
    names = dict.fromkeys(n for each in test.outcomes for n in each.prediction.baselines)
    rows = [
        {"schedule": "all", "refused": len(test.refused)} | _errors(test.summary()),
        *({"schedule": group} | _errors(test.summary(group)) for group in test.groups),
    ]
    return Table(
        "The end of a run that has not begun, from all runs under other schedules; absolute errors",
        {"schedule": "", "n": "", "refused": ""}
        | dict.fromkeys(("median", "90 %"), _PER_TOKEN)
        | dict.fromkeys((_words(name) for name in names), _PER_TOKEN)
        | {"covered": f"of {LEVEL:.0%}", "half-width": "median errors"},
        rows,
        "Multipowerlaw. The baselines go on along the longest run of the model.",
    )


def _larger(curves: Sequence[Curve]) -> Table:
    """Models from `LARGE` parameters on, from all that are smaller than that."""
    smaller = [curve for curve in curves if (curve.size or 0.0) < LARGE]
    asked = []
    for curve in curves:
        if curve not in smaller:
            unseen = curve.where(np.zeros(curve.step.size, bool))
            asked.append(Asked("large", curve, Question(unseen, curve.end, smaller, None), 1.0))
    test = judge("larger", asked, LEVEL, forecast=larger_models)
    row = test.summary()
    names = row["baselines"]
    return Table(
        f"Gemstones of {LARGE:g} parameters and more, from those below; absolute errors at the end",
        {"models": "", "from": ""}
        | dict.fromkeys(("median", "90 %", *map(_words, names)), _PER_TOKEN),
        [
            {
                "models": row["n"],
                "from": len(smaller),
                "median": row["median_error"],
                "90 %": row["p90_error"],
                **{_words(name): each["median_error"] for name, each in names.items()},
            }
        ],
    )


def _coverage(
    tests: dict[str, Backtest], sets: dict[str, list[Curve]], observed: Sequence[float]
) -> Table:
    """Intervals from the errors of one set on the curves of another."""
    rows = []
    for name, curves in sets.items():
        for other, test in tests.items():
            own = name == other
            judged = test if own else backtest_runs(curves, observed, LEVEL, test.calibration)
            row = judged.summary()
            rows.append(
                {
                    "judged": name,
                    "errors of": "the other curves" if own else other,
                    "n": row["n"],
                    "covered": row["coverage"],
                    "half-width": row["half_width"],
                    "over the median error": row["half_width_of_median_error"],
                }
            )
    return Table(
        f"What {LEVEL:.0%} intervals of the ends of runs cover",
        {"judged": "", "errors of": "", "n": "", "covered": "share", "half-width": _PER_TOKEN}
        | {"over the median error": "ratio"},
        rows,
        f"Seen {', '.join(f'{share:.0%}' for share in observed)} of a run, all together.",
    )


def _timed(effort: Effort, gemstones: Sequence[Curve], luo: Sequence[Curve]) -> Table:
    """The time of a backtest over copies of the curves of one set."""
    count = 40 if effort.quick else TIMED
    rows = []
    for name, curves in (("gemstones", gemstones), ("multipowerlaw", luo)):
        many = list(_copies(curves, count))
        began, busy = time.perf_counter(), time.process_time()
        test = backtest_runs(many, OBSERVED, LEVEL)
        rows.append(
            {
                "curves": count,
                "like": name,
                "points": sum(curve.step.size for curve in many),
                "forecasts": len(test.outcomes),
                "time": time.perf_counter() - began,
                "of the processor": time.process_time() - busy,
            }
        )
    return Table(
        "A backtest of the ends of runs from 10, 25 and 50 % of their steps",
        {"curves": "", "like": "", "points": "", "forecasts": "", "time": "s"}
        | {"of the processor": "s"},
        rows,
        "Copies of the curves of a set, of other sizes and losses; once.",
    )


def _copies(curves: Sequence[Curve], count: int) -> Iterator[Curve]:
    rng = np.random.default_rng(0)
    for i in range(count):
        curve, times = curves[i % len(curves)], 1.07 ** (i // len(curves))
        noise = np.exp(0.001 * rng.standard_normal(curve.step.size))
        yield replace(
            curve,
            run_id=f"{i}",
            size=(curve.size or 1.0) * times,
            loss=curve.loss * times**-0.05 * noise,
        )
