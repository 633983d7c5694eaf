"""Curves of simulated Gaussian gradients whose tr Sigma and |G|^2 are known."""

from __future__ import annotations

import numpy as np
import polars as pl

from scaling_jax.records.store import Records

DIM, GROUPS, BATCH = 24, 4, 512
N_CTX = 64


def squared_norms(rng, grad_sq, tr_sigma, shape, dim=DIM, groups=GROUPS, batch=BATCH):
    """(small, big) of updates, exactly as of `groups` isotropic Gaussian gradients in `dim`.

    `grad_sq` and `tr_sigma` broadcast to `shape`; the sum over groups of the squared distances to
    their mean is chi-square, so that no gradient needs to be drawn.
    """
    variance = np.asarray(tr_sigma) / batch / dim
    along = np.sqrt(grad_sq) + np.sqrt(variance) * rng.standard_normal(shape)
    big = along**2 + variance * rng.chisquare(dim - 1, shape)
    return big + variance * rng.chisquare(dim * (groups - 1), shape), big


def wandering(rng, shape, correlation, by=0.3):
    """A factor about 1, an AR(1) process along the last axis."""
    drawn = rng.standard_normal(shape)
    for i in range(1, shape[-1]):
        drawn[..., i] = (
            correlation * drawn[..., i - 1] + np.sqrt(1 - correlation**2) * drawn[..., i]
        )
    return np.maximum(1 + by * drawn, 0)


def curve(small, big, edges, run_id="a", groups=GROUPS, batch=BATCH, loss=None):
    """One row a window of updates edges[i] + 1 .. edges[i + 1], as the training wing records it.

    `loss` (a function of the step) is 5 - log10(step) unless given.
    """
    edges = np.asarray(edges)
    first, counts = edges[:-1] - edges[0], np.diff(edges)
    means = {
        name: np.add.reduceat(values, first) / counts
        for name, values in {
            "grad_sq_small": small,
            "grad_sq_big": big,
            "grad_sq_small_sq": small**2,
            "grad_sq_big_sq": big**2,
            "grad_sq_small_big": small * big,
        }.items()
    }
    return pl.DataFrame(
        {
            "run_id": [run_id] * len(counts),
            "attempt": [1] * len(counts),
            "step_start": edges[:-1],
            "step": edges[1:],
            "tokens": edges[1:] * batch,
            "lr": [1e-3] * len(counts),
            "batch_tokens": [batch] * len(counts),
            "train_loss": (loss or (lambda step: 5.0 - np.log10(step)))(edges[1:]),
            **means,
            "noise_steps": counts,
            "batch_small": [batch // groups] * len(counts),
            "batch_big": [batch] * len(counts),
        }
    )


def records(curves, sizes=None, noise=None, **run_columns) -> Records:
    """Records of the curves, a frame or a list of them, one run each."""
    frame = curves if isinstance(curves, pl.DataFrame) else pl.concat(curves)
    ids = frame["run_id"].unique(maintain_order=True)
    runs = pl.DataFrame(
        {
            "run_id": ids,
            "name": [f"run-{run_id}" for run_id in ids],
            "params_non_embedding": [(sizes or {}).get(run_id, 1540) for run_id in ids],
            "n_ctx": [N_CTX] * len(ids),
            **run_columns,
        }
    )
    return Records(runs, frame, "a table", sides={} if noise is None else {"noise": noise})


def side_rows(curves: pl.DataFrame, source: str, metric: str, part: str) -> pl.DataFrame:
    """The moments of curves as rows of the noise side table."""
    series = (("source", source), ("metric", metric), ("part", part))
    return curves.select(
        "run_id",
        "attempt",
        "step_start",
        "step",
        *(pl.lit(value).alias(name) for name, value in series),
        "grad_sq_small",
        "grad_sq_big",
        "grad_sq_small_sq",
        "grad_sq_big_sq",
        "grad_sq_small_big",
        "noise_steps",
        "batch_small",
        "batch_big",
    )
