"""Loss along the context as a power of the position with a floor: one fit a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from scaling_jax.errors import RequestError, WorkError, counted
from scaling_jax.laws.arrays import columns
from scaling_jax.laws.regression import profile_limit

FIRST = 2  # the target after a single token of context follows no power law
LEAST = 8  # bins
# Below, the form cannot be told from a logarithm in a context of any length; above, it has ended
# at the second position.
_LOWEST, _HIGHEST, _GRID_STEP = 0.02, 6.0, 0.05
_FINE = 400
_STEP = 1e-4  # relative, of c in a derivative
# Neighbours that go together this much say that the form bends away from the losses.
_MOST_INFLATION = 2.0


class Between(NamedTuple):
    """A number with its interval; None stands for what the positions do not fix."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PositionLaw:
    """L(T) = a + b T^-c, nats a token, of the target that is predicted from T tokens.

    `identified`: a, b and c have values; else `reason` says why not, and c at most a bound.
    `inflation`: how much wider than for independent residuals the squares of the intervals are,
    because neighbours go together. `rms_residual` in nats, weighted by tokens. `c_moves` maps the
    first position of each bin onto how far its residual moved c.
    """

    a: Between
    b: Between
    c: Between
    level: float
    rms_residual: float
    inflation: float
    n_points: int
    identified: bool
    reason: str
    c_moves: dict[int, float]

    @property
    def flags(self) -> list[str]:
        """What speaks against the form, as sentences."""
        if not self.identified or self.inflation <= _MOST_INFLATION:
            return []
        return [
            "neighbouring positions lie on one side of the form (squares of intervals times "
            f"{self.inflation:.2g}): it bends away from the losses"
        ]

    def predict(self, position: ArrayLike) -> np.ndarray:
        """L(T), nats a token; raises `WorkError` where the law is not identified."""
        a, b, c = self.a.value, self.b.value, self.c.value
        if a is None or b is None or c is None:
            raise WorkError(f"No L(T): {self.reason}")
        return a + b * np.asarray(position, dtype=np.float64) ** -c


def fit_positions(
    position_start: ArrayLike,
    position: ArrayLike,
    loss: ArrayLike,
    tokens: ArrayLike,
    level: float = 0.9,
) -> PositionLaw:
    """Least squares of the mean losses (n,) of bins, weighted by their `tokens` (n,).

    A bin holds the targets `position_start` to `position` (1-based, both included), and is compared
    with the mean of the form over just these, so that its place needs no choice. Bins that reach
    below `FIRST` are left out. a and b are linear given c, which is profiled; intervals at `level`
    come from the profile and the scatter of the residuals, widened where neighbours go together
    (Newey and West 1987). They are of these documents: other ones move a, and all positions with
    it.

    Raises `RequestError` for bins that are none, `WorkError` for fewer than `LEAST` of them.
    Source: Kaplan et al. (2020), appendix D.5.
    """
    first, last, y, w = columns(
        position_start=position_start, position=position, loss=loss, tokens=tokens
    )
    if np.any(first > last) or np.any(first != np.floor(first)) or np.any(last != np.floor(last)):
        raise RequestError("A bin is a whole position_start up to a whole position")
    kept = np.flatnonzero(first >= FIRST)
    kept = kept[np.argsort(first[kept])]
    if kept.size < LEAST:
        raise WorkError(
            f"{counted(kept.size, 'bin')} from position {FIRST} on cannot fix a + b T^-c: at least "
            f"{LEAST}"
        )
    fall = _Fall(first[kept].astype(int), last[kept].astype(int), y[kept], w[kept])
    return fall.law(level)


class _Fall:
    """The weighted line of the losses (n,) on the bins' means of T^-c, for any c."""

    def __init__(
        self, first: np.ndarray, last: np.ndarray, y: np.ndarray, tokens: np.ndarray
    ) -> None:
        self.first, self.last, self.y = first, last, y
        self.w = tokens / tokens.mean()
        self._log_T = np.log(np.arange(1, last.max() + 1))

    def powers(self, c: float) -> np.ndarray:
        """Means of T^-c over each bin (n,)."""
        up_to = np.concatenate([[0.0], np.cumsum(np.exp(-c * self._log_T))])
        return (up_to[self.last] - up_to[self.first - 1]) / (self.last - self.first + 1)

    def line(self, c: float) -> tuple[float, float, float, float, float]:
        """a, b, the squares left, and the variances of a and b where a residual's is one."""
        x, total = self.powers(c), self.w.sum()
        centre, level = self.w @ x / total, self.w @ self.y / total
        spread = self.w @ (x - centre) ** 2
        b = self.w @ ((x - centre) * (self.y - level)) / spread
        a = level - b * centre
        left = float(self.w @ (self.y - a - b * x) ** 2)
        return float(a), float(b), left, float(1 / total + centre**2 / spread), float(1 / spread)

    def squares(self, log_c: float) -> float:
        return self.line(math.exp(log_c))[2]

    def law(self, level: float) -> PositionLaw:
        grid = np.arange(math.log(_LOWEST), math.log(_HIGHEST) + _GRID_STEP, _GRID_STEP)
        squares = np.array([self.squares(at) for at in grid])
        near = int(np.argmin(squares))
        best = float(grid[near])
        if 0 < near < grid.size - 1:
            bracket = (grid[near - 1], grid[near + 1])
            found = optimize.minimize_scalar(
                self.squares, bounds=bracket, method="bounded", options={"xatol": 1e-10}
            )
            best = float(found.x)  # pyright: ignore[reportAttributeAccessIssue]
        a, b, least, _, _ = self.line(math.exp(best))
        df = self.y.size - 3
        residual = np.sqrt(self.w) * (self.y - a - b * self.powers(math.exp(best)))
        inflation = _inflation(residual)
        # Losses are known to rounding at best; without any scatter nothing else is left.
        noise = max(least, df * (1e-12 * self.y.max()) ** 2)
        limit = noise + inflation * (profile_limit(noise, level, df) - noise)
        low, high = self._ends(grid, best, limit)
        reason = _reason(low is None, high is None, a, b, int(self.last.max()))
        c = Between(math.exp(best), *(end if end is None else math.exp(end) for end in (low, high)))
        floor = slope = Between(None, None, None)
        if not reason and low is not None and high is not None:
            floor, slope = self._levels(low, high, limit, (a, b))
        else:
            c = Between(None, c.low, c.high)
        return PositionLaw(
            *(floor, slope, c),
            level=level,
            rms_residual=math.sqrt(least / self.w.sum()),
            inflation=inflation,
            n_points=self.y.size,
            identified=not reason,
            reason=reason,
            c_moves=self._moves(math.exp(best), b, residual),
        )

    def _moves(self, c: float, b: float, residual: np.ndarray) -> dict[int, float]:
        """By Gauss and Newton, from the slopes of the form in a, b and c."""
        by_c = b * (self.powers(c * (1 + _STEP)) - self.powers(c * (1 - _STEP))) / (2 * _STEP * c)
        slopes = np.stack([np.ones_like(by_c), self.powers(c), by_c], axis=1)
        gain = np.linalg.pinv(np.sqrt(self.w)[:, None] * slopes)[2]
        return dict(zip(self.first.tolist(), (gain * residual).tolist(), strict=True))

    def _ends(
        self, grid: np.ndarray, best: float, limit: float
    ) -> tuple[float | None, float | None]:
        """Logs of the outermost c whose squares are within the limit; None where it is open."""

        def outermost(points: np.ndarray) -> float | None:
            inside = [self.squares(at) <= limit for at in points[:-1]] + [True]
            first = inside.index(True)
            if first == 0:
                return None
            bracket = (points[first - 1], points[first])
            excess = optimize.root_scalar(lambda at: self.squares(at) - limit, bracket=bracket)
            return float(excess.root)

        low = outermost(np.append(grid[grid < best], best))
        high = outermost(np.append(grid[grid > best][::-1], best))
        return low, high

    def _levels(
        self, low: float, high: float, limit: float, at: tuple[float, float]
    ) -> tuple[Between, Between]:
        """Intervals of a and b: all that leave squares within the limit at some c."""
        rows = np.array([self.line(math.exp(each)) for each in np.linspace(low, high, _FINE)])
        room = np.maximum(limit - rows[:, 2], 0.0)
        reach = np.sqrt(room[:, None] * rows[:, 3:])
        ends = [
            Between(value, float((rows[:, i] - reach[:, i]).min()),
                    float((rows[:, i] + reach[:, i]).max()))
            for i, value in enumerate(at)
        ]  # fmt: skip
        return ends[0], ends[1]


def _inflation(residual: np.ndarray) -> float:
    """Long-run over plain variance of residuals in the order of positions, Bartlett's weights."""
    n, total = residual.size, float(residual @ residual)
    if total == 0:
        return 1.0
    lags = min(int(4 * (n / 100) ** (2 / 9)), n // 2)
    weights = ((1 - k / (lags + 1)) * (residual[k:] @ residual[:-k]) for k in range(1, lags + 1))
    return max(1.0, 1 + 2 * float(sum(weights)) / total)


def _reason(open_below: bool, open_above: bool, a: float, b: float, last: int) -> str:
    if open_below and open_above:
        return (
            f"the losses at positions {FIRST} to {last} carry every c equally: they show no fall "
            "along the context beyond their scatter; more tokens of evaluation are needed"
        )
    if b <= 0:
        return f"the loss does not fall along the context from position {FIRST} to {last}"
    if open_below:
        return (
            f"up to position {last} the fall cannot be told from a logarithm: c has no lower end; "
            "longer contexts or more tokens of evaluation are needed"
        )
    if open_above:
        return f"all of the fall is at the first positions from {FIRST} on: c has no upper end"
    if a <= 0:
        return f"the best fit would level off below zero ({a:.3g} nats): no floor is in sight"
    return ""
