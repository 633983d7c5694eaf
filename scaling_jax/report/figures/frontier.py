"""The compute-efficient frontier of L(N, S_min), what leaving it costs, and where it must end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from scaling_jax.errors import WorkError
from scaling_jax.laws import frontier as laws
from scaling_jax.laws.arrays import Params, columns, values
from scaling_jax.laws.published import PF_DAY
from scaling_jax.report.figures.style import (
    FAINT,
    INK,
    LOSS,
    PLAIN,
    SIZE,
    SizeColours,
    dress,
    legend,
    log_axis,
    new_figure,
    number,
    size_handles,
)

_COMPUTE = r"$C_{min}$ (FLOPs)"
_PANELS = (
    ("N", "N (parameters)", "p_N"),
    ("B_crit", r"$B_{crit}$ (tokens)", "p_B"),
    ("S_min", r"$S_{min}$ (steps)", "p_S"),
    ("D_min", r"$D_{min} = B_{crit} S_{min}$ (tokens)", "p_D"),
)
# Within so much of the least compute, a size is as good as the best (Kaplan et al. 2020, Fig. 12).
_BAND = 1.2


def efficient_frontier(
    params: Params,
    C_min: tuple[float, float] = (1e-6 * PF_DAY, 1e3 * PF_DAY),
    empirical: Params | None = None,
) -> Figure:
    """N, B_crit, S_min and D_min of the efficient frontier between two C_min (FLOPs).

    `params` as of `laws.frontier.efficient`; `empirical`, those of `laws.frontier.table6`, are
    dashed beside it. Kaplan et al. 2020, Fig. 14 and Appendix B. Raises `RequestError` as they do.
    """
    compute = np.geomspace(*C_min, 100)
    powers = laws.exponents(params)
    closed = laws.efficient(compute, params)
    fitted = None if empirical is None else laws.table6(compute, empirical)
    figure = Figure(figsize=SIZE, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True).ravel()
    for axes, (name, label, power) in zip(panels, _PANELS, strict=True):
        dress(axes)
        axes.plot(compute, getattr(closed, name), color=PLAIN, linewidth=1.6)
        if fitted is not None:
            axes.plot(compute, getattr(fitted, name), color=INK, linestyle="--", linewidth=1.1)
        log_axis(axes, "x", decades=6)
        log_axis(axes, "y", compact=True, decades=9)
        axes.set_ylabel(label)
        said = f"exponent {float(powers[power]):.3f}"
        if empirical is not None:
            said += f", empirical {_empirical_power(empirical, power):.3g}"
        axes.set_title(said, fontsize=10)
    figure.suptitle("The compute-efficient frontier")
    for axes in panels[2:]:
        axes.set_xlabel(_COMPUTE)
    if fitted is not None:
        legend(
            figure,
            [
                Line2D([], [], color=PLAIN, linewidth=1.6, label="closed form"),
                Line2D([], [], color=INK, linestyle="--", linewidth=1.1, label="empirical fit"),
            ],
        )
    return figure


def _empirical_power(empirical: Params, name: str) -> float:
    """That of `table6`; D_min there is B_crit S_min, and not the p_D of the table's own D_opt."""
    parts = ("p_B", "p_S") if name == "p_D" else (name,)
    return float(sum(values(empirical, *parts)))


def suboptimal_size(params: Params) -> Figure:
    """Compute and steps to one loss, over those of the efficient size, against N / N_eff.

    Shaded: the sizes that cost up to 20 % more compute. Left of the dotted line no training
    reaches the loss. Kaplan et al. 2020, eq. B.16, B.17 and Fig. 12.
    """
    least = float(laws.smallest_ratio(params))
    ratio = np.geomspace(1.001 * least, 10.0, 2000)
    excess, steps = laws.excess_compute(ratio, params), laws.relative_steps(ratio, params)
    within = ratio[excess <= _BAND]
    figure = Figure(figsize=SIZE, layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, over, label, limits in zip(
        panels,
        (excess, steps),
        ("Compute over that of the efficient size", "Steps over those of the efficient size"),
        ((0.9, 3.5), (0.2, 5.0)),
        strict=True,
    ):
        dress(axes)
        axes.axvspan(within[0], within[-1], color=PLAIN, alpha=0.12, linewidth=0)
        axes.axvline(least, color=FAINT, linestyle=":", linewidth=1.2)
        axes.axhline(1, color=INK, linewidth=0.8)
        axes.plot(ratio, over, color=PLAIN, linewidth=1.6)
        axes.set_xlim(min(0.2, least / 1.1), 10.0)
        axes.set_ylim(*limits)
        log_axis(axes, "x")
        log_axis(axes, "y")
        axes.set_xlabel(r"$N / N_{eff}$")
        axes.set_ylabel(label)
    panels[0].annotate(
        "never reaches the loss", (least, 0.98), xycoords=("data", "axes fraction"),
        xytext=(-4, 0), textcoords="offset points", rotation=90, ha="right", va="top",
        fontsize=8, color=INK,
    )  # fmt: skip
    low, high = within[0], within[-1]
    panels[0].set_title(
        rf"up to {_BAND - 1:.0%} more compute: {low:.2f} to {high:.2f} $N_{{eff}}$", fontsize=10
    )
    first, last = laws.relative_steps([low, high], params)
    panels[1].set_title(f"steps over that range: {first:.2f} to {last:.2f}", fontsize=10)
    figure.suptitle("What a size other than the efficient one costs at the same loss")
    return figure


def loss_at_fixed_compute(
    params: Params, C_min: Sequence[float] = (1e15, 1e16, 1e17, 1e18, 1e19, 1e20)
) -> Figure:
    """Loss against N, a line for each budget of C_min (FLOPs), with the efficient size of each.

    Kaplan et al. 2020, eq. B.3 and Fig. 11 left.
    """
    budgets = np.sort(np.asarray(C_min, dtype=np.float64))
    best = laws.efficient(budgets, params)
    colours = SizeColours(budgets)
    figure, axes = new_figure()
    for budget, optimum in zip(budgets, best.N, strict=True):
        size = optimum * np.geomspace(1 / 40, 40, 200)
        axes.plot(
            size, laws.loss_at_compute(size, budget, params), color=colours(budget), linewidth=1.5
        )
    axes.plot(best.N, best.loss, color=INK, linestyle="--", linewidth=1.0, zorder=3)
    axes.scatter(
        best.N, best.loss, s=22, c=[colours(budget) for budget in budgets], edgecolors=INK,
        linewidths=0.8, zorder=4,
    )  # fmt: skip
    log_axis(axes, "x", compact=True)
    log_axis(axes, "y")
    axes.set_xlabel("N (parameters)")
    axes.set_ylabel(LOSS)
    axes.set_title(r"Loss at fixed compute $C_{min}$ (FLOPs), and the efficient sizes")
    frontier = Line2D(
        [], [], color=INK, linestyle="--", linewidth=1, marker="o", markersize=4.5, mfc="none",
        label="efficient size",
    )  # fmt: skip
    legend(figure, [*size_handles(budgets, colours, r"$C_{min}$"), frontier])
    return figure


def contradiction(
    loss_law: Params,
    data_law: Params,
    powers: Params,
    draws: laws.Contradiction | None = None,
) -> Figure:
    """L(C_min) of the frontier and the loss that its own data allow, and where they meet.

    Arguments as of `laws.frontier.contradiction`; `draws` (say `contradiction_by_rounding`) show
    as a bar how far the point moves, from the 5th to the 95th percentile. Kaplan et al. 2020,
    Section 6.3 and Fig. 15.
    """
    point = laws.contradiction(loss_law, data_law, powers)
    meet = bool(np.isfinite(point.C_min))
    last = max(1e7, 100 * float(point.C_min) / PF_DAY) if meet else 1e7
    days = np.geomspace(1e-8, last, 200)
    c_c, alpha_c = values(loss_law, "C_c", "alpha_C")
    d_c, alpha_d = values(data_law, "D_c", "alpha_D")
    d_e, p_d = values(powers, "D_e", "p_D")
    figure, axes = new_figure()
    axes.plot(days * PF_DAY, (c_c / PF_DAY / days) ** alpha_c, color=PLAIN, linewidth=1.6)
    axes.plot(days * PF_DAY, (d_c / (d_e * days**p_d)) ** alpha_d, color=INK, linewidth=1.6)
    handles = [
        Line2D([], [], color=PLAIN, linewidth=1.6, label=r"$L(C_{min})$"),
        Line2D([], [], color=INK, linewidth=1.6, label=r"$L(D(C_{min}))$"),
    ]
    said = "they do not meet"
    if meet:
        said = f"they meet at {number(float(point.C_min))} FLOPs, {float(point.loss):.3g} nats"
        _crossing(axes, point, draws, handles)
    log_axis(axes, "x")
    log_axis(axes, "y")
    axes.set_xlabel(_COMPUTE)
    axes.set_ylabel(LOSS)
    axes.set_title(f"The frontier's loss and what its data allow:\n{said}", fontsize=11)
    legend(figure, handles)
    return figure


def _crossing(
    axes: Axes, point: laws.Contradiction, draws: laws.Contradiction | None, handles: list[Line2D]
) -> None:
    axes.plot([point.C_min], [point.loss], "o", color=INK, mfc="white", markersize=6.5, zorder=4)
    if draws is None:
        return
    low, high = np.quantile(draws.C_min, [0.05, 0.95])
    axes.plot([low, high], [point.loss] * 2, color=FAINT, linewidth=3, alpha=0.7, zorder=3)
    handles.append(
        Line2D([], [], color=FAINT, linewidth=3, alpha=0.7, label="5th to 95th\npercentile")
    )


def required_data(
    params_l_nd: Params,
    N: tuple[float, float] = (1e6, 1e12),
    excess: Sequence[float] = (0.005, 0.02, 0.1),
) -> Figure:
    """Tokens D(N) below which finite data cost a model of N more than each relative `excess`.

    `params_l_nd` {N_c, D_c, alpha_N, alpha_D}; the lines run between two N. The paper's is that of
    0.02, its noise from seed to seed. Kaplan et al. 2020, eq. 4.4. Raises `RequestError` as
    `laws.frontier.required_data`.
    """
    size = np.geomspace(*N, 50)
    alpha_n, alpha_d = values(params_l_nd, "alpha_N", "alpha_D")
    colours = SizeColours(excess)
    figure, axes = new_figure()
    handles = []
    for share in sorted(excess):
        axes.plot(
            size, laws.required_data(size, params_l_nd, share), color=colours(share), linewidth=1.6
        )
        label = f"{100 * share:.2g} % of L"
        handles.append(Line2D([], [], color=colours(share), linewidth=2.5, label=label))
    log_axis(axes, "x", compact=True)
    log_axis(axes, "y", compact=True)
    axes.set_xlabel("N (parameters)")
    axes.set_ylabel("D (distinct tokens)")
    axes.set_title(
        "Tokens below which overfitting costs more than a share of the loss\n"
        rf"$D \propto N^{{{float(alpha_n / alpha_d):.3f}}}$",
        fontsize=11,
    )
    legend(figure, handles)
    return figure


def early_stopping(
    S_stop: ArrayLike, loss_nd: ArrayLike, loss_n: ArrayLike, D: ArrayLike, params: Params
) -> Figure:
    """Steps at which runs on finite data were best (n,) against the least that eq. 5.7 allows.

    `S_stop` in steps converted to B >> B_crit (S_min), `loss_nd` the losses there and `loss_n`
    those of endless data (nats a token), `D` tokens; `params` {S_c, alpha_S}. Points should lie on
    or above the diagonal. Runs that finite data cost no loss have no bound and are counted in the
    legend. Kaplan et al. 2020, eq. 5.7 and Fig. 16 left. Raises `RequestError` for values that are
    not positive and finite, `WorkError` where no run has a bound.
    """
    stop, finite, endless, data = columns(S_stop=S_stop, loss_nd=loss_nd, loss_n=loss_n, D=D)
    s_c, alpha_s = (float(value) for value in values(params, "S_c", "alpha_S"))
    costs = finite > endless
    if not costs.any():
        raise WorkError("No run on finite data has a loss above that of endless data: no bound")
    bound = laws.early_stopping_bound(finite[costs], endless[costs], s_c, alpha_s)
    stop, data = stop[costs], data[costs]
    colours = SizeColours(data)
    figure, axes = new_figure()
    axes.scatter(bound, stop, s=26, c=[colours(each) for each in data], zorder=3)
    ends = np.array([min(bound.min(), stop.min()) / 1.5, max(bound.max(), stop.max()) * 1.5])
    axes.plot(ends, ends, color=INK, linewidth=1.1)
    log_axis(axes, "x", compact=True)
    log_axis(axes, "y", compact=True)
    axes.set_xlabel(r"$S_c \; [L(N, D) - L(N, \infty)]^{-1/\alpha_S}$ (steps)")
    axes.set_ylabel(r"$S_{stop}$, measured (steps)")
    above = int(np.sum(stop >= bound))
    axes.set_title(
        f"Early stopping: {above} of {stop.size} runs at or above the bound", fontsize=11
    )
    handles = size_handles(data, colours, "D", 9)
    handles.append(Line2D([], [], color=INK, linewidth=1.1, label="the bound"))
    if left_out := int(np.sum(~costs)):
        label = f"{left_out} without a bound:\ndata cost no loss"
        handles.append(Line2D([], [], linestyle="", label=label))
    legend(figure, handles)
    return figure
