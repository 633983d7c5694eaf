"""Predictions written down before the outcome exists, and judged when it has come."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from etils import epath

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.laws.forecast.curve import END_SHARE, Curve
from scaling_jax.laws.forecast.larger import LARGER
from scaling_jax.records.files import as_path, is_local, read_json, write_atomic
from scaling_jax.records.schema import UNDER_WAY

KIND = "scaling_jax sealed forecast"
FORMAT = 1
_SAME_SIZE = 0.01  # relative
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)  # what mounts of buckets say, and FAT
_ROW = ("run_id", "observed_step", "horizon_step", "loss", "interval")


@dataclass(frozen=True)
class Judged:
    """One sealed prediction beside what came, losses in nats a token."""

    seal: str
    sealed_at: str
    run_id: str
    observed_step: float | None
    horizon_step: float
    loss: float
    interval: tuple[float, float]
    measured: float
    baselines: dict[str, float]

    @property
    def error(self) -> float:
        return abs(self.loss - self.measured)

    @property
    def covered(self) -> bool:
        return self.interval[0] <= self.measured <= self.interval[1]


@dataclass
class Score:
    """What became of sealed predictions: `judged`, and those that cannot be, with the reason.

    `pending` have no outcome yet. `changed` are curves that a seal saw and that the source now
    holds differently: predictions of their ends are not judged. Rows {seal, run_id, reason}.
    """

    level: float | None
    judged: list[Judged] = field(default_factory=list)
    pending: list[dict[str, str]] = field(default_factory=list)
    changed: list[dict[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                **{name: getattr(each, name) for name in _JUDGED},
                "interval": list(each.interval),
                "error": each.error,
                "covered": each.covered,
                "baseline_errors": {
                    name: abs(loss - each.measured) for name, loss in each.baselines.items()
                },
            }
            for each in self.judged
        ]
        return {
            "judged": rows,
            "pending": self.pending,
            "changed": self.changed,
            "summary": self.summary(),
        }

    def summary(self) -> dict[str, Any] | None:
        """Coverage and median errors (nats a token) with the counts behind them, or None."""
        if not self.judged:
            return None
        names = dict.fromkeys(name for each in self.judged for name in each.baselines)
        errors = {
            name: [abs(e.baselines[name] - e.measured) for e in self.judged if name in e.baselines]
            for name in names
        }
        median = float(np.median([each.error for each in self.judged]))
        half = float(np.median([(e.interval[1] - e.interval[0]) / 2 for e in self.judged]))
        return {
            "n": len(self.judged),
            "n_runs": len({each.run_id for each in self.judged}),
            "covered": sum(each.covered for each in self.judged),
            "level": self.level,
            "median_error": median,
            "half_width": half,
            "baselines": {
                name: {"median_error": float(np.median(of)), "n": len(of)}
                for name, of in errors.items()
            },
        }


_JUDGED = ("seal", "sealed_at", "run_id", "observed_step", "horizon_step", "loss", "measured")


def data_hash(curve: Curve) -> str:
    """SHA-256 of the steps and losses of a curve: what a forecast saw of it."""
    digest = hashlib.sha256()
    for column in (curve.step, curve.loss):
        digest.update(np.ascontiguousarray(column, dtype="<f8").tobytes())
    return digest.hexdigest()


def write_seal(
    path: str | os.PathLike[str],
    rows: Sequence[dict[str, Any]],
    seen: Sequence[Curve],
    level: float,
    source: str,
) -> None:
    """Write predictions down, whole or not at all, and never over a file that is there.

    `rows` are {run_id, observed_step, horizon_step, loss, interval, method, flags, baselines},
    and `seen` the curves that they rest on: their hashes go with them. Raises `RequestError` where
    the file exists or there is nothing to seal.
    """
    from scaling_jax import __version__

    if not rows:
        raise RequestError("There is no forecast to seal: no run is unfinished")
    doc = {
        "kind": KIND,
        "format": FORMAT,
        "sealed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": __version__,
        "source": source,
        "level": level,
        "data": {curve.run_id: {"step": curve.end, "hash": data_hash(curve)} for curve in seen},
        "runs": list(rows),
    }
    doc["seal"] = _digest(doc)
    _write_new(as_path(path), (json.dumps(doc, indent=1, allow_nan=False) + "\n").encode())


def require_new(path: str | os.PathLike[str]) -> None:
    """Raises `RequestError` where the file exists: a sealed forecast is never written over."""
    if as_path(path).exists():
        raise RequestError(f"{path} exists, and a sealed forecast is never written over")


def read_seal(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A sealed file. Raises `RequestError` for another kind of file and for one that was edited."""
    try:
        doc = read_json(as_path(path))
    except RequestError as error:
        raise RequestError(
            f"{error} score takes files of forecast --seal, then the source"
        ) from None
    if doc.get("kind") != KIND or doc.get("format") != FORMAT:
        raise RequestError(f"{path} is no sealed forecast; forecast --seal FILE writes one")
    rows = doc.get("runs")
    whole = isinstance(rows, list) and all(
        isinstance(row, dict) and all(name in row for name in _ROW) for row in rows
    )
    whole = whole and isinstance(doc.get("data"), dict)
    if not whole or doc.get("seal") != _digest(doc):
        raise RequestError(f"{path} was edited after it was sealed: its hash is another")
    return doc


def score(paths: Sequence[str | os.PathLike[str]], curves: Sequence[Curve]) -> Score:
    """Judge every sealed prediction against the curves that came.

    A prediction is judged on the mean loss of the last 2 % of the steps before its horizon. Raises
    `RequestError` for a file that is no seal or was edited.
    """
    seals = [(str(path), read_seal(path)) for path in paths]
    levels = {doc["level"] for _, doc in seals}
    found = Score(level=levels.pop() if len(levels) == 1 else None)
    by_id = {curve.run_id: curve for curve in curves}
    for path, doc in seals:
        changed = {}
        for run_id, saw in doc["data"].items():
            curve = by_id.get(run_id)
            if curve is not None and data_hash(curve.until(saw["step"])) != saw["hash"]:
                changed[run_id] = f"its losses up to step {saw['step']:,.0f} are not those sealed"
        found.changed += [
            {"seal": path, "run_id": run_id, "reason": reason} for run_id, reason in changed.items()
        ]
        for row in doc["runs"]:
            where = {"seal": path, "run_id": row["run_id"]}
            curve = by_id.get(row["run_id"]) or _begun_since(row, doc, curves)
            if row["run_id"] in changed:
                continue
            if curve is None:
                found.pending.append(where | {"reason": "the run is not in the source"})
            elif (measured := measured_at(curve, row["horizon_step"])) is None:
                reason = f"step {curve.end:,.0f} of {row['horizon_step']:,.0f}"
                if curve.status in ("diverged", "failed", "stopped"):
                    reason += f", {curve.status}"
                found.pending.append(where | {"reason": reason})
            else:
                found.judged.append(_judged(path, doc, row, measured))
    return found


def measured_at(curve: Curve, horizon: float) -> float | None:
    """The mean loss of the last 2 % of the steps up to `horizon`; None where that has not come."""
    if curve.end < horizon and curve.status in UNDER_WAY:
        return None
    late = (curve.step >= (1 - END_SHARE) * horizon) & (curve.step <= horizon)
    return float(np.mean(curve.loss[late])) if late.any() else None


def _begun_since(row: dict[str, Any], doc: dict[str, Any], curves: Sequence[Curve]) -> Curve | None:
    """The run that a forecast of a larger model was of: of that size, and not among those seen."""
    size = row.get("size")
    if row.get("observed_step") is not None or row.get("method") != LARGER.name or size is None:
        return None
    new = [curve for curve in curves if curve.size is not None and curve.run_id not in doc["data"]]
    of_size = [curve for curve in new if abs((curve.size or 0.0) / size - 1) <= _SAME_SIZE]
    return max(of_size, key=lambda curve: curve.end) if of_size else None


def _judged(path: str, doc: dict[str, Any], row: dict[str, Any], measured: float) -> Judged:
    low, high = row["interval"]
    return Judged(
        seal=path,
        sealed_at=doc["sealed_at"],
        run_id=row["run_id"],
        observed_step=row["observed_step"],
        horizon_step=row["horizon_step"],
        loss=row["loss"],
        interval=(low, high),
        measured=measured,
        baselines=dict(row.get("baselines") or {}),
    )


def _digest(doc: dict[str, Any]) -> str:
    sealed = {name: value for name, value in doc.items() if name != "seal"}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()


def _write_new(path: epath.Path, data: bytes) -> None:
    require_new(path)
    if not is_local(path):
        write_atomic(path, data)
        return
    whole = path.parent / f".{path.name}.{secrets.token_hex(4)}.whole"
    try:
        write_atomic(whole, data)
        _put(whole, path)
    except FileExistsError:
        require_new(path)
    except WorkError as error:  # the name of the file to come is no one's business
        raise WorkError(str(error).replace(str(whole), str(path))) from error
    except OSError as error:
        raise WorkError(f"Could not write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(whole)


def _put(whole: epath.Path, path: epath.Path) -> None:
    """A link fails where another process was faster, unlike a rename, which some disks are left."""
    try:
        os.link(whole, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        require_new(path)
        os.replace(whole, path)
