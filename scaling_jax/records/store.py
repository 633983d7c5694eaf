"""The analysis side of the records: whatever the source, the same polars frames."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

from scaling_jax.records.files import as_path, read_record, reading
from scaling_jax.records.flat import read_flat
from scaling_jax.records.folders import read_folder
from scaling_jax.records.schema import CURVE_COLUMNS, RUN_COLUMNS, SIDE_TABLES, UNDER_WAY
from scaling_jax.records.status import STALE_S
from scaling_jax.records.tables import typed

_BATCH = "tokens of the last batch"


@dataclass(frozen=True)
class Records:
    """`runs`, one row a run, and `curves`, one row a recorded window.

    Columns, types and units are those of `records.schema`; a table's further columns are kept in
    `curves`, and in `runs` too where each run has one value. `sides` holds the side tables by
    name, those that the source has. Losses of other corpora are columns of `curves`, loss_<corpus>
    and loss_<corpus>_se.
    """

    runs: pl.DataFrame
    curves: pl.DataFrame
    source: str
    made_ids: bool = False  # run_id was not in the table
    sides: Mapping[str, pl.DataFrame] = field(default_factory=dict)

    @property
    def noise(self) -> pl.DataFrame:
        """The side table of NOISE_COLUMNS, without a row where the source has none."""
        return self._side("noise")

    @property
    def evaluations(self) -> pl.DataFrame:
        """The side table of EVALUATION_COLUMNS, likewise."""
        return self._side("evaluations")

    @property
    def positions(self) -> pl.DataFrame:
        """The side table of POSITION_COLUMNS, likewise."""
        return self._side("positions")

    def _side(self, name: str) -> pl.DataFrame:
        found = self.sides.get(name)
        return typed(pl.DataFrame(), SIDE_TABLES[name], self.source) if found is None else found


def load(path: str | os.PathLike[str]) -> Records:
    """Read a study's folder, a folder of studies, or one flat table (CSV, Parquet).

    A row that a later attempt of its run went over again is dropped, and the rows of side tables
    with it. A run that says `running` is `stale` where no process holds the folder or it was not
    heard of for 15 minutes; one that never started is `queued`. In a folder of studies a run of two
    studies is listed once, under the first by name. In a table without `run_id`, rows of equal size
    (every column named params...), seed, lr_peak, d_model and n_layer are one run, and without any
    of these every row is one.

    Raises `RequestError` where the source is absent, empty, cut, damaged, or of another kind.
    """
    source = as_path(path)
    with reading(source):
        if source.is_dir():
            runs, curves, sides = read_folder(source)
            return Records(runs, curves, str(source), sides=sides)
        runs, curves, made_ids = read_flat(source)
        return Records(runs, curves, str(source), made_ids)


def declared_laws(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The slugs of the laws that the studies of a source are to feed, as declared; none of a table.

    Raises `RequestError` where a study is damaged.
    """
    source = as_path(path)
    with reading(source):
        if not source.is_dir():
            return ()
        own = source / "study.json"
        beneath = [own] if own.exists() else [p / "study.json" for p in sorted(source.iterdir())]
        studies = [read_record(study) for study in beneath if study.exists()]
    return tuple(dict.fromkeys(law for study in studies for law in study.get("laws", ())))


def overview(records: Records, now: float | None = None) -> pl.DataFrame:
    """One row a run: where it stands, its last losses (nats a token), size, rate and seed.

    Of a run under way `heard_s` is how long ago its process wrote, in seconds before `now` (by
    default this moment), null where a clock has jumped; while it is running `left_s` is the time
    that its last rate leaves for the rest, compilation apart.
    """
    curves = typed(records.curves, CURVE_COLUMNS, records.source, foreign=True)
    runs = typed(records.runs, RUN_COLUMNS, records.source, foreign=True)
    last = (
        curves.sort("run_id", "step")
        .group_by("run_id")
        .agg(
            pl.col("step").max(),
            pl.col("batch_tokens").drop_nulls().last().alias(_BATCH),
            *(pl.col(name).drop_nulls().last() for name in ("train_loss", "val_loss")),
            pl.col("tokens_per_s").drop_nulls().last(),
        )
    )
    joined = runs.join(last, on="run_id", how="left", maintain_order="left")
    heard = (time.time() if now is None else now) - pl.col("heartbeat")
    known = pl.col("status").is_in(UNDER_WAY) & (heard > -STALE_S)
    left = (pl.col("steps") - pl.col("step")) * pl.col(_BATCH) / pl.col("tokens_per_s")
    rated = (pl.col("status") == "running") & (pl.col("tokens_per_s") > 0)
    return joined.select(
        "study",
        "name",
        "status",
        pl.col("step").fill_null(0),
        "steps",
        "train_loss",
        "val_loss",
        "params_non_embedding",
        "lr_peak",
        "seed",
        "tries",
        pl.when(known).then(heard.clip(lower_bound=0.0)).alias("heard_s"),
        pl.when(rated).then(left).alias("left_s"),
        "message",
    )
