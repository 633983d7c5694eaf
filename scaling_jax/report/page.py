"""The report of a study: one HTML page that needs nothing beside it, and the figures as files."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any

import jinja2
import polars as pl
from etils import epath

from scaling_jax.laws.corpora import corpus_name
from scaling_jax.laws.describe_noise import describe_noise_law
from scaling_jax.laws.forms import find_law
from scaling_jax.laws.noise_scale import short_number
from scaling_jax.records.files import write_atomic
from scaling_jax.report import figures, words
from scaling_jax.report.ends import pictures_of_ends, words_of
from scaling_jax.report.pictures import Picture, pictures_of

if TYPE_CHECKING:
    from scaling_jax.laws.noise_report import NoiseReport
    from scaling_jax.laws.result import Fit
    from scaling_jax.records.store import Records
    from scaling_jax.report.beside import Beside
    from scaling_jax.report.ends import Ends

_ORDER = ("params_non_embedding", "name", "step")


def write_report(
    records: Records,
    fit: Fit | None,
    refusal: str | None,
    noise: NoiseReport | None,
    folder: str | os.PathLike[str],
    beside: Beside | None = None,
    ends: Ends | None = None,
) -> epath.Path:
    """Write `folder/index.html` and `folder/figures/*.svg, *.png`; returns the page's path.

    `fit` is None where the fit was refused, and `refusal` says why; `noise` is None where no noise
    moments were recorded, `beside` has losses by position and on other corpora, `ends` the
    forecasts. The page holds its figures and its style, asks for no script and makes no request.
    """
    target = epath.Path(folder)
    (target / "figures").mkdir(parents=True, exist_ok=True)
    pictures, not_drawn = pictures_of(records, fit, noise, beside)
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=_title(records),
            source=records.source,
            measured=_measured(records),
            fit=fit,
            fits=[] if fit is None else [one for one in (fit, fit.other) if one is not None],
            lamps=[] if fit is None else [words.lamp_row(lamp) for lamp in fit.lamps],
            failed=[] if fit is None else [words.lamp_label(name) for name in fit.flags],
            excluded=[] if fit is None else _excluded(fit),
            law=None if fit is None else find_law(fit.law),
            refusal=refusal,
            pictures=[_drawn(picture, target) for picture in pictures],
            not_drawn=not_drawn,
            runs=_runs(records),
            noise=[] if noise is None else noise.main.sort(_ORDER, nulls_last=True).to_dicts(),
            noise_said=[] if noise is None else describe_noise_law(noise.law),
            noise_ratios=[] if noise is None else noise.ratios,
            positions=None if beside is None else beside.positions,
            transfer=None if beside is None else beside.transfer,
            ends=None if ends is None else words_of(ends),
            ends_pictures=[]
            if ends is None
            else [_drawn(picture, target) for picture in pictures_of_ends(ends)],
            trained_on=""
            if beside is None or beside.transfer is None
            else corpus_name(beside.transfer.column),
        )
    )
    path = target / "index.html"
    write_atomic(path, page.encode("utf-8"))
    return path


def _drawn(picture: Picture, target: epath.Path) -> dict[str, Any]:
    """Write a picture's files; itself, and its SVG as the page holds it."""
    svg = figures.render(picture.figure, "svg")
    write_atomic(target / "figures" / f"{picture.stem}.svg", svg)
    write_atomic(target / "figures" / f"{picture.stem}.png", figures.render(picture.figure, "png"))
    return {"picture": picture, "data": base64.b64encode(svg).decode("ascii")}


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("scaling_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= words.FILTERS
    return environment


def _title(records: Records) -> str:
    studies = sorted(set(records.runs["study"].drop_nulls()))
    return ", ".join(studies) if studies else os.path.basename(records.source.rstrip("/"))


def _measured(records: Records) -> list[tuple[str, str]]:
    """What, on what and where: (heading, text), without what the records do not say."""
    runs = records.runs
    sizes = runs["params_non_embedding"].drop_nulls().unique().sort()
    statuses = runs["status"].drop_nulls().value_counts(sort=True)
    several = {
        "Runs": ", ".join(f"{count} {status}" for status, count in statuses.iter_rows()),
        "Model sizes": (
            f"{len(sizes)} from N = {short_number(sizes[0])} to {short_number(sizes[-1])} "
            "(without embeddings)"
            if len(sizes)
            else ""
        ),
        "Architecture": _distinct(runs, "arch"),
        "Layers": _distinct(runs, "n_layer"),
        "Context": _distinct(runs, "n_ctx", "{} tokens"),
        "Batch": _distinct(runs, "batch_tokens", "{:,} tokens"),
        "Optimizer": _distinct(runs, "optimizer"),
        "Schedule": _distinct(runs, "schedule"),
        "Warm-up": _distinct(runs, "warmup_steps", "{:,} steps"),
        "Corpus": _distinct(runs, "data_source"),
        "Corpus fingerprint": _distinct(runs, "data_fingerprint"),
        "Training tokens": _distinct(runs, "unique_tokens", "{:,} distinct"),
        "Bigram model": _distinct(runs, "bigram_nats", "{:.3f} nats a token on validation"),
        "Device": _distinct(runs, "device"),
        "Versions": _distinct(runs, "versions"),
    }
    return [(heading, text) for heading, text in several.items() if text]


def _distinct(runs: pl.DataFrame, column: str, form: str = "{}") -> str:
    values = runs[column].drop_nulls().unique().sort().to_list()
    return ", ".join(form.format(value) for value in values)


def _runs(records: Records) -> list[dict[str, Any]]:
    by_step = pl.col("step")
    ends = records.curves.group_by("run_id").agg(
        last_step=by_step.max(),
        final_val=pl.col("val_loss").sort_by("step").drop_nulls().last(),
        final_se=pl.col("val_loss_se")
        .filter(pl.col("val_loss").is_not_null())
        .sort_by(by_step.filter(pl.col("val_loss").is_not_null()))
        .last(),
        final_train=pl.col("train_loss").sort_by("step").drop_nulls().last(),
        speed=pl.col("tokens_per_s").median(),
    )
    return (
        records.runs.join(ends, on="run_id", how="left")
        .sort("params_non_embedding", "name", "seed", nulls_last=True)
        .to_dicts()
    )


def _excluded(fit: Fit) -> list[dict[str, Any]]:
    """One row a reason, with the runs it took points from."""
    reasons: dict[str, dict[str, Any]] = {}
    for one in fit.excluded:
        row = reasons.setdefault(one["reason"], {"runs": [], "n_points": 0})
        row["runs"].append(one["name"] or one["run_id"])
        row["n_points"] += one["n_points"]
    return [{"reason": reason, **row} for reason, row in reasons.items()]
