"""Published constants as named, sourced sets. Each is a regression of its own: never mix two."""

from __future__ import annotations

from dataclasses import dataclass

from scaling_jax.errors import RequestError, nearest


@dataclass(frozen=True)
class Constants:
    """One regression: the law it belongs to, its parameters, their units, and where it stands."""

    name: str
    law: str
    params: dict[str, float]
    units: str
    source: str


KAPLAN_2020 = "Kaplan et al. 2020 (arXiv 2001.08361)"

PUBLISHED = {
    constants.name: constants
    for constants in (
        Constants(
            name="kaplan2020.table3",
            law="l_ns",
            params={"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76},
            units="N_c non-embedding parameters, S_c minimum steps S_min, L nats a token",
            source=f"{KAPLAN_2020}, Table 3 (joint fit of L(N, S_min), eq. 5.6)",
        ),
        Constants(
            name="kaplan2020.b_crit",
            law="b_crit",
            params={"B_star": 2.1e8, "alpha_B": 0.21},
            units="B_star tokens, L nats a token",
            source=f"{KAPLAN_2020}, Table 5 (eq. 5.3)",
        ),
    )
}


def published(name: str) -> Constants:
    """The set of that name. Raises `RequestError` with the nearest known one."""
    if name not in PUBLISHED:
        raise RequestError(f"No published constants {name!r}.{nearest(name, PUBLISHED)}")
    return PUBLISHED[name]
