"""Published constants as named, sourced sets. Each is a regression of its own: never mix two."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scaling_jax.errors import RequestError, nearest

PF_DAY = 8.64e19  # FLOPs: 1e15 a second for a day


@dataclass(frozen=True)
class Constants:
    """One regression: the law it belongs to, its parameters, their units, and where it stands.

    `standard_errors` are the paper's, of the parameters it gives them for; `N_counts` says which
    parameters the paper's N counts (`params_non_embedding`, `params_total`, ...), None where N
    does not enter or the paper was not clear.
    """

    name: str
    law: str
    params: dict[str, float]
    units: str
    source: str
    standard_errors: dict[str, float] | None = None
    N_counts: str | None = None


KAPLAN_2020 = "Kaplan et al. 2020 (arXiv 2001.08361)"
HOFFMANN_2022 = "Hoffmann et al. 2022 (arXiv 2203.15556)"
PORIAN_2024 = "Porian et al. 2024 (arXiv 2406.19146)"

_L = "L nats a token"
_CHINCHILLA_UNITS = f"N parameters, D tokens, {_L}"
_PORIAN_UNITS = "exponents a of N_opt proportional to C^a at each step of the ladder, C in FLOPs"
_PORIAN_COUNTS = "params_non_embedding + params_head from head_flops on"


def _table5(law: str, units: str, name: str | None = None, **params: float) -> Constants:
    return Constants(
        name=name or f"kaplan2020.table5.{law}",
        law=law,
        params=params,
        units=f"{units}, {_L}",
        source=f"{KAPLAN_2020}, Table 5",
        N_counts="params_non_embedding" if "N_c" in params else None,
    )


def _porian(corpus: str, **params: float) -> Constants:
    return Constants(
        name=f"porian2024.{corpus}",
        law="size_exponents",
        params=params,
        units=_PORIAN_UNITS,
        source=f"{PORIAN_2024}, Table 1",
        N_counts=_PORIAN_COUNTS,
    )


PUBLISHED = {
    constants.name: constants
    for constants in (
        Constants(
            name="kaplan2020",
            law="frontier",
            params={
                "N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76,
                "B_star": 2e8, "alpha_B": 0.21,
            },
            units=f"N_c parameters, S_c minimum steps S_min, B_star tokens, {_L}",
            source=f"{KAPLAN_2020}, composed as its Appendix B does: Table 3 for L(N, S_min), and "
            "B_star = 2e8, alpha_B = 0.21 of eq. 5.3 (Table 5 prints B_star = 2.1e8)",
            N_counts="params_non_embedding",
        ),
        Constants(
            name="kaplan2020.table2",
            law="l_nd",
            params={"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
            units=f"N_c parameters, D_c tokens, {_L}",
            source=f"{KAPLAN_2020}, Table 2 (joint fit of L(N, D), eq. 1.5)",
            N_counts="params_non_embedding",
        ),
        Constants(
            name="kaplan2020.table3",
            law="l_ns",
            params={"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76},
            units=f"N_c parameters, S_c minimum steps S_min, {_L}",
            source=f"{KAPLAN_2020}, Table 3 (joint fit of L(N, S_min), eq. 5.6)",
            N_counts="params_non_embedding",
        ),
        _table5("l_n", "N_c parameters", N_c=8.8e13, alpha_N=0.076),
        _table5("l_d", "D_c tokens", D_c=5.4e13, alpha_D=0.095),
        _table5(
            "l_c", "C_c FLOPs (printed 1.6e7 PF-days), C at the fixed batch of 2^19 tokens",
            C_c=1.6e7 * PF_DAY, alpha_C=0.057,
        ),
        _table5(
            "l_c", "C_c FLOPs (printed 3.1e8 PF-days), C = C_min",
            name="kaplan2020.table5.l_c_min", C_c=3.1e8 * PF_DAY, alpha_C=0.050,
        ),
        _table5("l_s", "S_c minimum steps S_min", S_c=2.1e3, alpha_S=0.76),
        _table5("b_crit", "B_star tokens", B_star=2.1e8, alpha_B=0.21),
        _table5(
            "b_crit", "B_star tokens", name="kaplan2020.b_crit", B_star=2.1e8, alpha_B=0.21
        ),
        Constants(
            name="shehper.b_crit",
            law="b_crit",
            params={"B_star": 2.2e7, "alpha_B": 0.23},
            units=f"B_star tokens, {_L}",
            source=f"shehper/scaling_laws on GitHub: {KAPLAN_2020}, eq. 5.3, measured again on "
            "OpenWebText at losses of 9.0 to 5.9",
        ),
        Constants(
            name="kaplan2020.table6",
            law="frontier_powers",
            params={
                "N_e": 1.3e9, "p_N": 0.73, "B_e": 2.0e6, "p_B": 0.24,
                "S_e": 5.4e3, "p_S": 0.03, "D_e": 2e10, "p_D": 0.27,
            },
            units="prefactors at C_min = 1 PF-day: N_e parameters, B_e tokens, S_e minimum steps, "
            "D_e tokens of one epoch at B = B_crit, which is twice E_min",
            source=f"{KAPLAN_2020}, Table 6 (empirical fits, C_min in PF-days)",
            N_counts="params_non_embedding",
        ),
        Constants(
            name="kaplan2020.eq6_7",
            law="frontier_powers",
            params={"D_e": 4e10, "p_D": 0.26},
            units="D_e tokens of one epoch at B = B_crit and C_min = 1 PF-day",
            source=f"{KAPLAN_2020}, eq. 6.7 (twice Table 6's D_e, and another exponent)",
        ),
        Constants(
            name="kaplan2020.figure14",
            law="frontier_powers",
            params={"N_e": 1.6e9, "p_N": 0.88},
            units="N_e parameters at C = 1 PF-day, C at the fixed batch of 2^19 tokens",
            source=f"{KAPLAN_2020}, Figure 14 (not adjusted to C_min)",
            N_counts="params_non_embedding",
        ),
        Constants(
            name="hoffmann2022",
            law="l_nd_chinchilla",
            params={"E": 1.6934, "A": 406.4, "B": 410.7, "alpha": 0.3392, "beta": 0.2849},
            units=_CHINCHILLA_UNITS,
            source=f"{HOFFMANN_2022}, approach 3, the digits in the paper's TeX source",
            N_counts="params_total",
        ),
        Constants(
            name="hoffmann2022.rounded",
            law="l_nd_chinchilla",
            params={"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
            units=_CHINCHILLA_UNITS,
            source=f"{HOFFMANN_2022}, approach 3 as printed: the rounding alone moves D / N at "
            "5.76e23 FLOPs from 59 to 93",
            N_counts="params_total",
        ),
        Constants(
            name="besiroglu2024",
            law="l_nd_chinchilla",
            params={"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
            units=_CHINCHILLA_UNITS,
            source="Besiroglu et al. 2024 (arXiv 2404.10102), 240 points read off a figure of "
            f"{HOFFMANN_2022}",
            standard_errors={
                "E": 0.03, "A": 124.58, "B": 1293.23, "alpha": 0.02, "beta": 0.02,
            },
            N_counts="params_total",
        ),
        Constants(
            name="muennighoff2023",
            law="data_constrained",
            params={
                "E": math.exp(0.6254804), "A": math.exp(6.255414), "B": math.exp(7.3049974),
                "alpha": 0.3526596, "beta": 0.3526596,
                "R_D_star": 15.387756, "R_N_star": 5.309743,
            },
            units=f"N parameters, D tokens seen, U unique tokens, {_L}",
            source="Muennighoff et al. 2023 (arXiv 2305.16264), 182 runs",
        ),
        _porian(
            "openwebtext2",
            reproduction=0.864, head_flops=0.699, warmup=0.603, cosine=0.574, tuned=0.518,
        ),
        _porian(
            "refinedweb",
            reproduction=0.835, head_flops=0.706, warmup=0.602, cosine=0.571, tuned=0.497,
        ),
        Constants(
            name="pearce2024",
            law="total_parameters",
            params={"omega": 47491.0},
            units="N_total = N + omega N^(1/3), N non-embedding parameters",
            source="Pearce and Song 2024 (arXiv 2406.12907), fitted to Chinchilla's model table",
            N_counts="params_non_embedding",
        ),
        Constants(
            name="li2025.step_law",
            law="step_law",
            params={
                "lr_scale": 1.79, "lr_N": -0.713, "lr_D": 0.307,
                "B_scale": 0.58, "B_D": 0.571,
            },
            units="N parameters, D tokens, B tokens",
            source="Li et al. 2025 (arXiv 2503.04715), 3,700 runs",
            N_counts="params_non_embedding",
        ),
        Constants(
            name="deepseek2024",
            law="deepseek",
            params={
                "lr_scale": 0.3118, "lr_C": -0.1250, "B_scale": 0.2920, "B_C": 0.3271,
                "M_scale": 0.1715, "M_C": 0.5243, "D_scale": 5.8316, "D_C": 0.4757,
            },
            units="C = M D FLOPs, M non-embedding FLOPs a token, D and B tokens",
            source="Bi et al. 2024 (DeepSeek LLM, arXiv 2401.02954), eight budgets 1e17 to 3e20",
        ),
    )
}  # fmt: skip


def published(name: str) -> Constants:
    """The set of that name. Raises `RequestError` with the nearest known one, or with the family.

    Sets of one paper begin with its name: a name that only begins some sets is answered with them.
    """
    if name not in PUBLISHED:
        family = [known for known in PUBLISHED if known.startswith(name)]
        hint = f" Known: {', '.join(family)}." if family else nearest(name, PUBLISHED)
        raise RequestError(f"No published constants {name!r}.{hint}")
    return PUBLISHED[name]
