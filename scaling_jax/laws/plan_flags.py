"""What to hold against a plan: the range it leaves, and the caveats of its source that bite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from scaling_jax.laws.frontier import PF_DAY, contradiction, required_data
from scaling_jax.laws.plan_input import Basis
from scaling_jax.laws.plan_spending import Batch, Spending
from scaling_jax.laws.published import published

_FAR = 10.0  # times beyond what was measured
_CONTEXT = 1024  # tokens of Kaplan's contexts
_ASPECT = 64.0  # d_model / n_layer, of a shape to judge d_model by
# The larger of the two models whose batch was swept: B_crit was seen at no lower loss than its.
_LARGEST_SWEPT = 8.5e7
_SMALLEST_DATA = 2.2e7  # tokens; Kaplan et al. leave this subset out of the fit of L(N, D)
_ORDER = 10.0


class Flag(NamedTuple):
    """A name that scripts can test, and what it means here."""

    name: str
    text: str


class Reach(NamedTuple):
    """A planned value beside the measured range: `factor` is how many times beyond, 1 inside."""

    value: float
    low: float
    high: float
    factor: float


def reach(basis: Basis, flops: float, plan: Spending) -> dict[str, Reach]:
    """How far N, D, S_min and C lie beyond what the constants were fitted to, where that is known.

    Without a range of C, that of 6 N D stands for it: the fit saw no more, so that the factor is
    the least there can be.
    """
    planned = {"N": float(plan.params), "D": float(plan.tokens), "C": flops}
    if plan.flops_min is not None and plan.critical_batch is not None:
        planned["S_min"] = float(plan.flops_min / (6.0 * plan.params * plan.critical_batch))
    ranges = dict(basis.ranges)
    if "C" not in ranges and {"N", "D"} <= set(ranges):
        ends = zip(ranges["N"], ranges["D"], strict=True)
        low, high = (6.0 * size * tokens for size, tokens in ends)
        ranges["C"] = (low, high)
    return {
        name: Reach(planned[name], low, high, max(planned[name] / high, low / planned[name], 1.0))
        for name, (low, high) in ranges.items()
        if name in planned
    }


def flags(basis: Basis, plan: Spending, batch: Batch, reaches: dict[str, Reach]) -> list[Flag]:
    """Every caveat that bites, the fit's own flags first."""
    found = [Flag(name, f"a flag of the fit itself; see {basis.name}") for name in basis.flags]
    found += _extrapolation(basis, reaches)
    if basis.draws is None:
        found.append(Flag("no_intervals", f"{basis.no_draws}: no interval is given"))
    found += _batch(basis, plan, batch)
    if basis.law in ("frontier", "frontier_powers") and basis.of_a_fit is None:
        found += _kaplan(plan)
    found += [Flag(*note) for note in _OF_A_SET.get(basis.name, ())]
    if basis.of_a_fit == "data_constrained":
        found.append(_FRESH)
    return found


def _extrapolation(basis: Basis, reaches: dict[str, Reach]) -> Iterator[Flag]:
    far = {name: each for name, each in reaches.items() if each.factor > _FAR}
    if far:
        said = ", ".join(f"{name} by {times(each.factor)} times" for name, each in far.items())
        yield Flag(
            "extrapolation",
            f"beyond what {basis.name} was fitted to: {said}. Intervals do not cover a form that "
            "fails out there",
        )
    elif not reaches:
        yield Flag("unknown_range", f"{basis.name} does not say what range it was fitted to")


def _batch(basis: Basis, plan: Spending, batch: Batch) -> Iterator[Flag]:
    if basis.law == "l_nd_chinchilla":
        open_ = "left open (give it in tokens)" if isinstance(batch, str) else "the one asked for"
        yield Flag(
            "no_critical_batch",
            "no law of the critical batch goes with L(N, D), and one from elsewhere is not mixed "
            f"in: the batch is {open_}",
        )
    elif basis.law == "deepseek" and batch == "critical":
        yield Flag(
            "no_critical_batch",
            "the batch is DeepSeek's best one at this compute, not a critical one",
        )
    elif basis.law == "deepseek" and batch == "small":
        yield Flag("no_critical_batch", "no bound on a small batch is known here")
    elif basis.of_a_fit is not None:
        yield Flag(
            "critical_batch_given",
            "B_star and alpha_B were given to the fit and are not part of its intervals; they "
            "belong to a corpus, and gradient noise scales under Adam are a trend, not a "
            "measurement of B_crit",
        )


def _kaplan(plan: Spending) -> Iterator[Flag]:
    yield Flag(
        "k20_frontier",
        "K20 frontier, not an optimum: its exponents inherit a fixed warm-up, one learning-rate "
        "schedule and batch, and a count without embeddings and head. Later work that tunes these "
        "grows N as about C^0.5. Dropout, repeated data and the cost of inference are left out",
    )
    loss, size = float(plan.loss), float(plan.params)  # type: ignore[arg-type]
    l_n = published("kaplan2020.table5.l_n").params
    lowest = (l_n["N_c"] / _LARGEST_SWEPT) ** l_n["alpha_N"]
    if loss < lowest:
        yield Flag(
            "b_crit_range",
            f"B_crit(L) was measured on models of 3M and 85M parameters, which stay above "
            f"{lowest:.2f} nats; here it is used at {loss:.2f}",
        )
    width = (size * _ASPECT / 12.0) ** (1.0 / 3.0)
    if 12.0 * width <= _CONTEXT:
        yield Flag(
            "context_compute",
            f"C = 6 N B S leaves attention out: at {_CONTEXT} tokens of context it matters below "
            f"d_model = {_CONTEXT / 12:.0f}, and this size has about {width:.0f}",
        )
    tokens = float(plan.tokens)
    if tokens <= _SMALLEST_DATA:
        yield Flag(
            "small_data",
            f"{tokens:.2g} tokens: K20's laws fit badly at or below {_SMALLEST_DATA:.2g}",
        )
    needed = float(required_data(size, published("kaplan2020.table2").params))
    if tokens < needed:
        yield Flag(
            "required_data",
            f"one pass is {tokens:.3g} tokens, and K20 asks for {needed:.3g} against overfitting "
            "at this size (eq. 4.4)",
        )
    assert plan.flops_min is not None
    limit = float(
        contradiction(
            *(
                published(f"kaplan2020.{name}").params
                for name in ("table5.l_c_min", "table5.l_d", "table6")
            )
        ).C_min
    )
    if plan.flops_min >= limit / _ORDER:
        yield Flag(
            "contradiction_point",
            f"C_min is {float(plan.flops_min) / PF_DAY:.3g} PF-days. Near {limit / PF_DAY:.0e}, an "
            "order of magnitude either way, K20's loss falls below what its data allow: one of "
            "the laws must fail before",
        )


_FRESH = Flag(
    "fresh_tokens",
    "planned as if every token were new; with fewer unique tokens than that, repeats are worth "
    "less and the plan is too optimistic",
)
_REFITTED = (
    "refitted",
    "Besiroglu et al. 2024 found that this fit stopped early; see besiroglu2024",
)
_OF_A_SET: dict[str, tuple[tuple[str, str], ...]] = {
    "hoffmann2022": (_REFITTED,),
    "hoffmann2022.rounded": (
        _REFITTED,
        ("rounded_constants", "the printed digits alone move D / N by half; see hoffmann2022"),
    ),
    "muennighoff2023": (_FRESH,),
    "deepseek2024": (
        (
            "params_from_flops",
            "params is M / 6 with M the non-embedding FLOPs a token, attention included: more "
            "than the weights",
        ),
        ("depends_on_data", "DeepSeek's division of compute moves with the quality of the data"),
    ),
}


def times(factor: float) -> str:
    """Three digits of a factor: 1.33, 12.5, 3,330, 1.2e+09."""
    return f"{float(f'{factor:.3g}'):,.0f}" if 1e3 <= factor < 1e7 else f"{factor:.3g}"


def to_json(reaches: dict[str, Reach]) -> dict[str, Any]:
    """Plain data."""
    return {
        name: {"value": r.value, "range": [r.low, r.high], "factor": r.factor}
        for name, r in reaches.items()
    }
