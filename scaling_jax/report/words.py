"""How the report words numbers, parameters and the lamps of the panel."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import markupsafe

from scaling_jax.laws.noise_scale import noise_interval, short_number

if TYPE_CHECKING:
    from scaling_jax.laws.panel import Lamp

_ABSENT = "—"
_CONVENTIONS = {
    "params_non_embedding": "N without embeddings",
    "params_total": "N of all parameters",
}
_UNITS = {"N_c": "parameters", "S_c": "steps"}
_LIGHTS = {
    True: ("pass", "✔", "passed"),
    False: ("fail", "✘", "failed"),
    None: ("none", _ABSENT, "not measured"),
}


class _Label(NamedTuple):
    text: str
    limit: str  # at most, at least
    percent: bool = False


_INPUTS = ("N", "D", "U", "C", "S", "B", "L")
_LAMPS = {
    "complete_rows": _Label("Rows without their numbers", "at most"),
    "stopped": _Label("Runs whose loss was still falling at the end", "at most"),
    "lr_bracketed": _Label("Best learning rate between worse ones", "at least"),
    "batch_vs_noise": _Label("Noise scale over batch", "at most"),
    "epochs": _Label("Epochs over the data", "at most"),
    "below_floor": _Label("Curve below the bigram floor", "at least", True),
    "sizes": _Label("Model sizes in the fit", "at least"),
    **{f"decades_{name}": _Label(f"Decades of {name}", "at least") for name in _INPUTS},
    **{f"values_{name}": _Label(f"Distinct values of {name}", "at least") for name in _INPUTS},
    "interval_coverage": _Label("Runs that the intervals rest on", "at least"),
    "rms_residual": _Label("Residual, rms", "at most", True),
    "replicates": _Label("Spread of points at one place", "at most", True),
    "window": _Label("Residual in the best window", "at most", True),
    "largest_N": _Label("Largest N from the others", "at most", True),
    "largest_C": _Label("Largest compute from the rest", "at most", True),
    "largest_D": _Label("Largest D from the rest", "at most", True),
    "later_half": _Label("Later half from the earlier", "at most", True),
    "convention_shift": _Label("Exponents under the other N", "at most", True),
    "window_shift": _Label("Exponents under another window", "at most", True),
    "size_shift": _Label("Exponents without the smallest N", "at most", True),
    "single_minimum": _Label("Next minimum over the best", "at least"),
    "profiles": _Label("Parameters that the points leave open", "at most"),
    "equal_slopes": _Label("Chance of slopes this unequal if they are one", "at least"),
    "seed_noise": _Label("Spread over seeds", "at most", True),
}


def lamp_label(name: str) -> str:
    """What a lamp asks, for people."""
    return _LAMPS[name].text if name in _LAMPS else name.replace("_", " ")


def lamp_row(lamp: Lamp) -> dict[str, str]:
    """A lamp as the words of its row in the panel: light, value and threshold."""
    kind, icon, word = _LIGHTS[lamp.ok]
    label = _LAMPS.get(lamp.name, _Label("", ""))
    form = percent if label.percent else number
    return {
        "kind": kind, "icon": icon, "word": word, "label": lamp_label(lamp.name),
        "value": _ABSENT if lamp.value is None else form(lamp.value),
        "threshold": f"{label.limit} {form(lamp.threshold)}".strip(), "text": lamp.text,
    }  # fmt: skip


def number(value: Any, digits: int = 3) -> str:
    """A number to read: few digits, thousands apart; words as they are, None as a dash."""
    if value is None:
        return _ABSENT
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return str(value)
    if value == round(value) and abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) < 1000 else short_number(value)


def percent(value: float | None) -> str:
    """A share in per cent, one decimal."""
    return "not measured" if value is None else f"{100 * value:.1f} %"


def symbols(text: str) -> markupsafe.Markup:
    """`(N_c / N)^alpha_N` as it is written by hand: subscripts, superscripts, Greek letters."""
    escaped = str(markupsafe.escape(text))
    raised = re.sub(r"\^(\w+)", r"<sup>\1</sup>", escaped)
    lowered = re.sub(r"(\w)_(\w+)", r"\1<sub>\2</sub>", raised)
    return markupsafe.Markup(lowered.replace("alpha", "&alpha;").replace("beta", "&beta;"))


FILTERS: dict[str, Callable[..., Any]] = {
    "number": number,
    "percent": percent,
    "symbols": symbols,
    "short": lambda value: _ABSENT if value is None else short_number(value),
    "interval": noise_interval,
    "convention": lambda name: _CONVENTIONS.get(name, name),
    "unit": lambda name: _UNITS.get(name, ""),
}
