"""Every lamp of every law has words of its own in the report."""

from __future__ import annotations

import numpy as np
import polars as pl

from scaling_jax import laws
from scaling_jax.laws.panel import Lamp
from scaling_jax.records.store import Records
from scaling_jax.report.words import lamp_label, lamp_row


def test_lamps_are_asked_in_words(study: Records) -> None:
    N, D = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e10, 6), np.geomspace(1e9, 1e12, 6)))
    runs = pl.DataFrame({"run_id": [str(i) for i in range(N.size)]})
    curves = runs.with_columns(N=N, tokens=D, loss=1.8 + 480 / N**0.35 + 2000 / D**0.37)
    surface = laws.fit(Records(runs, curves, "theirs"), law="l_nd_chinchilla")
    without_compute = laws.fit(Records(runs, curves.drop("N"), "theirs"), law="l_d")
    for fit in (laws.fit(study), surface, without_compute):
        for lamp in fit.lamps:
            assert lamp_label(lamp.name)[0].isupper() and "_" not in lamp_label(lamp.name)
            assert lamp_row(lamp)["threshold"].startswith(("at most", "at least"))
    row = lamp_row(Lamp("equal_slopes", 0.003, 0.01, False, "text"))
    assert (row["value"], row["threshold"], row["word"]) == ("0.003", "at least 0.01", "failed")
