"""What `fit --json` prints, as plans read it."""

from __future__ import annotations

from typing import Any

import numpy as np

L_NS = {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76}
CRITICAL = {"B_star": 2e8, "alpha_B": 0.21}
L_ND = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}


def a_fit(law: str = "l_ns", **changed: Any) -> dict[str, Any]:
    params = L_NS if law == "l_ns" else L_ND
    rng = np.random.default_rng(0)
    doc = {
        "format": 1,
        "law": law,
        "params": params,
        "intervals": {},
        "level": 0.9,
        "convention": "params_non_embedding",
        "correlation": np.eye(len(params)).tolist(),
        "draws": {n: list(v * np.exp(0.01 * rng.normal(size=400))) for n, v in params.items()},
        "flags": ["decades_of_N"],
        "critical_batch": CRITICAL if law == "l_ns" else None,
        "ranges": {"N": [1e5, 1e9], "S" if law == "l_ns" else "D": [3e3, 2e5]},
    }
    return {name: value for name, value in {**doc, **changed}.items() if value is not ...}
