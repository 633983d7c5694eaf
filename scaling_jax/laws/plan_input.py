"""What a plan rests on: a published set, or the file that `scaling-jax fit --json` wrote."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scaling_jax.errors import RequestError, nearest
from scaling_jax.laws.published import PUBLISHED, published
from scaling_jax.laws.result import FORMAT

_CHINCHILLA = ("E", "A", "B", "alpha", "beta")
# The parameters that a plan takes from a fit of each law that can plan.
_FITTED = {
    "l_ns": ("N_c", "S_c", "alpha_N", "alpha_S"),
    "l_nd_chinchilla": _CHINCHILLA,
    "data_constrained": _CHINCHILLA,
}
_CRITICAL_BATCH = ("B_star", "alpha_B")
# The parameters without which a published set of each law cannot plan.
_ENOUGH = {
    "frontier": (*_FITTED["l_ns"], *_CRITICAL_BATCH),
    "frontier_powers": ("N_e", "p_N", "B_e", "p_B", "S_e", "p_S"),
    "l_nd_chinchilla": _CHINCHILLA,
    "data_constrained": _CHINCHILLA,
    "deepseek": ("M_scale", "M_C", "B_scale", "B_C"),
}


@dataclass(frozen=True)
class Basis:
    """Constants to plan with, and how well they are known.

    `law` says how compute is spent: `frontier` (L(N, S_min) with B_crit(L)), `frontier_powers`
    (Kaplan's Table 6), `l_nd_chinchilla` or `deepseek`. `convention` is what N counts. `draws` are
    joint draws (K,) of `params`, at which a plan's intervals of `level` are carried with the share
    `tail` cut off at each end; None where there are none, and then `no_draws` says why. `ranges`
    are of what was fitted: N, S_min, D, C. `of_a_fit` is the fitted law's slug.
    """

    name: str
    law: str
    params: dict[str, float]
    convention: str
    source: str
    level: float = 0.9
    tail: float = 0.05
    draws: dict[str, np.ndarray] | None = None
    no_draws: str = ""
    flags: tuple[str, ...] = ()
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    of_a_fit: str | None = None


def from_published(name: str) -> Basis:
    """A published set that can plan. Raises `RequestError` for one that is unknown or cannot."""
    constants = published(name)
    if name not in (able := plannable()):
        hint = "L(N, S) plans together with B_crit(L), as in kaplan2020. "
        raise RequestError(
            f"{name} ({constants.law}) does not say how to spend compute. "
            f"{hint if constants.law == 'l_ns' else ''}Sets that do: {', '.join(able)}."
        )
    fitted = constants.law in _FITTED
    return Basis(
        name=name,
        law="l_nd_chinchilla" if fitted else constants.law,
        params={
            each: constants.params[each] for each in (_CHINCHILLA if fitted else constants.params)
        },
        convention=_CONVENTIONS.get(name) or constants.N_counts or "what it counts is not stated",
        source=constants.source,
        no_draws=(
            f"{name} has standard errors but no published correlation of its parameters, "
            "without which no interval can be carried"
            if constants.standard_errors
            else f"{name} has no published joint uncertainty"
        ),
        ranges=_RANGES.get(name.split(".")[0], {}),
    )


def plannable() -> list[str]:
    """The names of the published sets that say how to spend compute."""
    return [
        name
        for name, constants in PUBLISHED.items()
        if set(_ENOUGH.get(constants.law, ("",))) <= set(constants.params)
    ]


def from_fit(fit: Mapping[str, Any] | str | os.PathLike[str]) -> Basis:
    """The basis in a fit's JSON, given as an object or as the path of a file.

    Nothing in it is trusted: every key that is used is checked, and none is executed. Raises
    `RequestError` for a file that cannot be read, for another format, for a law that cannot plan,
    and for a missing or impossible value, by its name.
    """
    if isinstance(fit, Mapping):
        doc, where = fit, "the fit"
    else:
        doc, where = _read(Path(fit)), str(fit)
    if "refused" in doc:
        raise RequestError(f"{where} holds no fit, it was refused: {doc['refused']}")
    read = _Reader(doc, where)
    read.format()
    law = read.law()
    wanted = _FITTED[law]
    params = read.params("params", wanted, required=True)
    assert params is not None
    level = read.share("level", 0.9, 1.0)
    tail = read.share("tail", (1 - level) / 2, 0.5)
    draws, no_draws = read.draws(wanted, tail)
    if law == "l_ns":
        constants = read.params("critical_batch", _CRITICAL_BATCH, required=False)
        if constants is None:
            raise RequestError(
                f"{where} fits L(N, S) at fixed batch: a plan needs S_min and B_crit(L). Fit again "
                "with --critical-batch B_star=...,alpha_B=..., as measured on the same corpus"
            )
        params |= constants
        if draws is not None:
            draws |= {name: np.full(1, value) for name, value in constants.items()}
    return Basis(
        name=where,
        law="frontier" if law == "l_ns" else "l_nd_chinchilla",
        params=params,
        convention=read.text("convention"),
        source=f"fit of {law} in {where}",
        level=level,
        tail=tail,
        draws=draws,
        no_draws=no_draws,
        flags=read.flags(),
        ranges=read.ranges(law),
        of_a_fit=law,
    )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        doc = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"No such file: {path}") from None
    except IsADirectoryError:
        raise RequestError(f"{path} is a folder; --fit takes what fit --json printed") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise RequestError(
            f"{path} is not one JSON object; write it with scaling-jax fit ... --json > {path.name}"
        ) from None
    if not isinstance(doc, dict):
        raise RequestError(f"{path} is JSON, but not the object that fit --json prints")
    return doc


class _Reader:
    """One fit's keys, each checked as it is taken."""

    def __init__(self, doc: Mapping[str, Any], where: str) -> None:
        self.doc, self.where = doc, where

    def wrong(self, message: str) -> RequestError:
        return RequestError(f"{self.where}: {message}")

    def need(self, key: str) -> Any:
        if key not in self.doc:
            raise self.wrong(f"has no {key!r}; is it what fit --json printed?")
        return self.doc[key]

    def number(self, value: Any, name: str, low: float = 0.0, zero: bool = False) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(f"{name} is a number, not {str(value)[:40]!r}")
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value) or value < low or (value == low and not zero):
            raise self.wrong(f"{name} is a finite number above {low:g}, not {value:g}")
        return value

    def format(self) -> None:
        value = self.need("format")
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(f"format is a whole number, not {str(value)[:40]!r}")
        if value != FORMAT:
            age = "a newer" if value > FORMAT else "an older"
            raise self.wrong(
                f"format {value} is of {age} version of scaling_jax; this one reads format "
                f"{FORMAT}. Fit again with this version"
            )

    def law(self) -> str:
        law = self.need("law")
        if not isinstance(law, str) or law not in _FITTED:
            raise self.wrong(
                f"a fit of {str(law)[:40]!r} cannot plan. Laws that can: {', '.join(_FITTED)}"
            )
        return law

    def text(self, key: str) -> str:
        value = self.need(key)
        if not isinstance(value, str):
            raise self.wrong(f"{key} is a text, not {str(value)[:40]!r}")
        return value

    def share(self, key: str, default: float, below: float) -> float:
        value = self.doc.get(key)
        if value is None:
            return default
        value = self.number(value, key)
        if value >= below:
            raise self.wrong(f"{key} is below {below:g}, not {value:g}")
        return value

    def object(self, key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self.wrong(f"{key} is an object of names and numbers, not {str(value)[:40]!r}")
        return dict(value)

    def params(self, key: str, wanted: tuple[str, ...], required: bool) -> dict[str, float] | None:
        value = self.need(key) if required else self.doc.get(key)
        if value is None and not required:
            return None
        given = self.object(key, value)
        if missing := [name for name in wanted if name not in given]:
            raise self.wrong(f"{key} lacks {', '.join(missing)}.{nearest(missing[0], given)}")
        return {
            name: self.number(given[name], f"{key}.{name}", zero=name == "E") for name in wanted
        }

    def draws(
        self, wanted: tuple[str, ...], tail: float
    ) -> tuple[dict[str, np.ndarray] | None, str]:
        value = self.doc.get("draws")
        if value is None:
            return None, f"{self.where} holds no joint draws of its parameters"
        given = self.object("draws", value)
        columns = {}
        for name in wanted:
            if not isinstance(given.get(name), (list, tuple)):
                raise self.wrong(f"draws.{name} is a list of numbers")
            columns[name] = np.array(
                [self.number(v, f"draws.{name}", zero=name == "E") for v in given[name]]
            )
        lengths = {len(column) for column in columns.values()}
        if len(lengths) > 1:
            raise self.wrong("the draws of the parameters differ in length; they must be joint")
        count = lengths.pop()
        if count * tail < 1:
            return None, f"{count} joint draws are too few for a tail of {tail:.3g}"
        return columns, ""

    def flags(self) -> tuple[str, ...]:
        value = self.need("flags")
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise self.wrong("flags is a list of texts")
        return tuple(value)

    def ranges(self, law: str) -> dict[str, tuple[float, float]]:
        given = self.object("ranges", self.doc.get("ranges") or {})
        found = {}
        for name, ends in given.items():
            if not isinstance(ends, (list, tuple)) or len(ends) != 2:
                raise self.wrong(f"ranges.{name} is a pair [min, max]")
            low, high = (self.number(end, f"ranges.{name}") for end in ends)
            if low > high:
                raise self.wrong(f"ranges.{name} has its ends the wrong way round")
            # The S of a fit that can plan is S_min.
            found["S_min" if name == "S" else name] = (low, high)
        return found


_CONVENTIONS = {"deepseek2024": "M / 6, M the non-embedding FLOPs a token"}
# What the published regressions rest on: non-embedding N, S after the warm-up and all tokens of a
# run (Kaplan et al. 2020, section 2 and D.6), total N and D (Hoffmann et al. 2022, from whose
# figure Besiroglu et al. 2024 read their points), N alone (Muennighoff et al. 2023), budgets
# (DeepSeek 2024).
_HOFFMANN = {"N": (7e7, 1.6e10), "D": (5e9, 5e11)}
_RANGES = {
    "kaplan2020": {"N": (768, 1.5e9), "S_min": (3000.0, 2.5e5), "D": (1.57e9, 1.31e11)},
    "hoffmann2022": _HOFFMANN,
    "besiroglu2024": _HOFFMANN,
    "muennighoff2023": {"N": (7e6, 9e9)},
    "deepseek2024": {"C": (1e17, 3e20)},
}
