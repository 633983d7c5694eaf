"""Which form the loss has in one variable: power law, power law plus constant, or logarithm."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from scaling_jax.errors import WorkError
from scaling_jax.laws.arrays import columns

UNDECIDED = "undecided"
# The largest values of the variable that each form must predict, as a share of the distinct ones.
_HELD_OUT = 0.25
# Distinct values that must be left to fit: one more than the parameters of the longest form.
_LEAST = 4
# Starts of the constant, as shares of the smallest loss.
_CONSTANTS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97)
_RELATIVE_GAIN = 1e-9  # less than this share of the squares is no gain from a constant
_MOST_CALLS = 60
_ROUNDING = 1e-12  # of a log loss, and so the least scatter that there can be


class Form(NamedTuple):
    """One form through all points, and its error where it had to predict.

    `params` in the units of `formula`; None where a float cannot hold it. `aic` is n ln(RSS / n) +
    2 k of the log residuals. `held_out` is the rms log error at the largest values, from a fit
    without them, and `noise` what it would be by chance were the form true; None where the fit
    predicts no positive loss there. `at_bound`: the best constant is 0, so this is the power law.
    """

    formula: str
    params: dict[str, float | None]
    rms_log_residual: float
    aic: float
    held_out: float | None
    noise: float | None
    at_bound: bool


@dataclass(frozen=True)
class Comparison:
    """`forms` by name, and the one that predicts best, or "undecided" among `contenders`.

    `held_out_values` (m,) are the values of the variable that were predicted.
    """

    variable: str
    forms: dict[str, Form]
    chosen: str
    contenders: tuple[str, ...]
    reason: str
    held_out_values: np.ndarray
    n_points: int

    def predict(self, name: str, x: ArrayLike) -> np.ndarray:
        """Loss of the form `name` in nats a token at values of the variable."""
        params = {key: value for key, value in self.forms[name].params.items() if value is not None}
        log_x = np.log(np.asarray(x, dtype=np.float64))
        if name == "logarithm":
            return params["a"] - params["b"] * log_x
        scale, exponent = f"{self.variable}_c", f"alpha_{self.variable}"
        if scale not in params:
            raise WorkError(f"{scale} is too large for a number: the exponent is nearly nothing")
        power = np.exp(params[exponent] * (math.log(params[scale]) - log_x))
        return params.get("E", 0.0) + power

    def to_json(self) -> dict[str, Any]:
        """Plain data; a number that could not be had is null."""
        return {
            "variable": self.variable,
            "chosen": self.chosen,
            "contenders": list(self.contenders),
            "reason": self.reason,
            "held_out_values": self.held_out_values.tolist(),
            "n_points": self.n_points,
            "forms": {name: form._asdict() for name, form in self.forms.items()},
        }


def compare_forms(x: ArrayLike, loss: ArrayLike, variable: str = "N") -> Comparison:
    """Fits three forms of L in one variable by least squares on ln L and lets them predict.

    `x` (n,) is N, D or C, named by `variable`; `loss` (n,) in nats a token. The forms: `power_law`
    (X_c / X)^alpha, `power_law_offset` E + (X_c / X)^alpha with E >= 0, and `logarithm`
    a - b ln X. The chosen one has the least error at the largest quarter of the distinct x, from a
    fit to the others. Where another's error exceeds it by less than the noise of such a prediction
    nothing is chosen; AIC stands beside and decides nothing.

    Raises `RequestError` for values that are not positive and finite, `WorkError` for fewer than
    five distinct x, and where the loss does not fall with x.
    Source: Kaplan et al. (2020), appendix D.7, Fig. 23.
    """
    y, log_x = np.log(columns(**{"loss": loss, variable: x}))
    values = np.unique(log_x)
    hidden = max(1, round(_HELD_OUT * values.size))
    if values.size - hidden < _LEAST:
        raise WorkError(
            f"{values.size} distinct {variable} cannot tell forms apart: at least {_LEAST + 1}"
        )
    rest = log_x < values[-hidden]
    centre = float(log_x.mean())
    at = log_x - centre
    if np.polyfit(at, y, 1)[0] >= 0 or np.polyfit(at[rest], y[rest], 1)[0] >= 0:
        raise WorkError(f"The loss does not fall as {variable} grows: there is no form to compare")
    forms = {name: _form(name, at, y, rest, centre, variable) for name in _FITS}
    errors = {
        name: form.held_out
        for name, form in forms.items()
        if form.held_out is not None and not form.at_bound
    }
    best = min(errors, key=lambda name: errors[name])
    noise = forms[best].noise or 0.0
    contenders = tuple(name for name in errors if errors[name] - errors[best] <= noise)
    shown = ", ".join(f"{name} {errors[name]:.2%}" for name in errors)
    reason = f"rms error at the largest {variable}: {shown}; noise {noise:.2%}"
    return Comparison(
        variable=variable,
        forms=forms,
        chosen=best if len(contenders) == 1 else UNDECIDED,
        contenders=contenders,
        reason=reason,
        held_out_values=np.exp(values[-hidden:]),
        n_points=y.size,
    )


# theta (P,), x (n,) -> loss (n,) and its derivatives by theta (n, P).
_Model = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class _Fitted(NamedTuple):
    """Inner parameters, and the loss with its derivatives by them: x (n,) -> (n,), (n, P)."""

    theta: np.ndarray
    model: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    at_bound: bool = False


def _power_law(x: np.ndarray, y: np.ndarray) -> _Fitted:
    slope, value = np.polyfit(x, y, 1)
    theta = np.array([value, -slope])

    def model(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        loss = np.exp(value + slope * at)
        return loss, loss[:, None] * np.stack([np.ones_like(at), -at], axis=1)

    return _Fitted(theta, model)


def _offset_model(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(over="ignore"):  # a step of the solver may look that far
        power = np.minimum(np.exp(theta[1] - theta[2] * x), 1e100)
    return theta[0] + power, np.stack([np.ones_like(x), power, -x * power], axis=1)


def _power_law_offset(x: np.ndarray, y: np.ndarray) -> _Fitted:
    plain = _power_law(x, y)
    squares = float(np.sum((y - np.log(plain.model(x)[0])) ** 2))
    best = squares - max(_RELATIVE_GAIN * squares, y.size * _ROUNDING**2)
    found = None
    for share in _CONSTANTS:
        constant = share * math.exp(y.min())
        above = np.exp(y) - constant
        # d ln L = (1 - E / L) d ln(L - E) makes the weights of a line in ln(L - E).
        slope, value = np.polyfit(x, np.log(above), 1, w=above / np.exp(y))
        theta = _solve(_offset_model, np.array([constant, value, -slope]), x, y)
        left = float(np.sum(_log_residual(_offset_model, theta, x, y) ** 2))
        if theta[0] > 0 and theta[2] > 0 and left < best:
            best, found = left, theta
    if found is None:
        return _Fitted(np.concatenate([[0.0], plain.theta]), plain.model, at_bound=True)
    return _Fitted(found, lambda at: _offset_model(found, at))


def _logarithm_model(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return theta[0] - theta[1] * x, np.stack([np.ones_like(x), -x], axis=1)


def _logarithm(x: np.ndarray, y: np.ndarray) -> _Fitted:
    slope, value = np.polyfit(x, np.exp(y), 1)
    start = np.array([value, -slope])
    if np.any(_logarithm_model(start, x)[0] <= 0):  # the flat line is positive everywhere
        start = np.array([math.exp(y.mean()), 0.0])
    theta = _solve(_logarithm_model, start, x, y)
    return _Fitted(theta, lambda at: _logarithm_model(theta, at))


_FITS = {
    "power_law": _power_law,
    "power_law_offset": _power_law_offset,
    "logarithm": _logarithm,
}
_FORMULAS = {
    "power_law": "({X}_c / {X})^alpha_{X}",
    "power_law_offset": "E + ({X}_c / {X})^alpha_{X}",
    "logarithm": "a - b ln {X}",
}


def _log_residual(model: _Model, theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    loss = model(theta, x)[0]
    good = loss > 0
    return y - np.where(good, np.log(np.where(good, loss, 1.0)), -1e3)


def _solve(model: _Model, start: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least squares on ln L by Levenberg-Marquardt."""

    def jacobian(theta: np.ndarray) -> np.ndarray:
        loss, slopes = model(theta, x)
        return -slopes / np.where(loss > 0, loss, 1.0)[:, None]

    # Along a logarithm the constant runs to minus infinity, where it is not wanted anyway.
    return optimize.leastsq(
        lambda theta: _log_residual(model, theta, x, y), start, Dfun=jacobian,
        xtol=1e-12, ftol=1e-14, maxfev=_MOST_CALLS, full_output=True,
    )[0]  # fmt: skip


def _form(
    name: str, x: np.ndarray, y: np.ndarray, rest: np.ndarray, centre: float, variable: str
) -> Form:
    whole, part = _FITS[name](x, y), _FITS[name](x[rest], y[rest])
    residual = y - np.log(whole.model(x)[0])
    squares = max(float(residual @ residual), y.size * _ROUNDING**2)
    free = whole.theta.size - whole.at_bound
    held_out = noise = None
    predicted, slopes = part.model(x[~rest])
    if np.all(predicted > 0):
        held_out = float(np.sqrt(np.mean((y[~rest] - np.log(predicted)) ** 2)))
        fitted, fitted_slopes = part.model(x[rest])
        design, ahead = fitted_slopes / fitted[:, None], slopes / predicted[:, None]
        reach = np.sum((ahead @ np.linalg.pinv(design)) ** 2, axis=1)
        noise = math.sqrt(squares / (y.size - free) * float(np.mean(1 + reach)))
    return Form(
        formula=_FORMULAS[name].format(X=variable),
        params=_params(name, whole.theta, centre, variable),
        rms_log_residual=math.sqrt(float(residual @ residual) / y.size),
        aic=y.size * math.log(squares / y.size) + 2 * (free + 1),
        held_out=held_out,
        noise=noise,
        at_bound=whole.at_bound,
    )


def _params(name: str, theta: np.ndarray, centre: float, variable: str) -> dict[str, float | None]:
    if name == "logarithm":
        a, b = theta.tolist()
        return {"a": a + b * centre, "b": b}
    *constant, value, alpha = theta.tolist()
    log_scale = centre + value / alpha
    scale = math.exp(log_scale) if abs(log_scale) < 700 else None
    own = {f"{variable}_c": scale, f"alpha_{variable}": alpha}
    return {"E": constant[0], **own} if constant else own
