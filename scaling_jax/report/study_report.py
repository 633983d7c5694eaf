"""The report of a study: the fit or why there is none, and what else is known, on one page."""

from __future__ import annotations

import os
from dataclasses import dataclass

from etils import epath

from scaling_jax import laws
from scaling_jax.errors import WorkError
from scaling_jax.records.store import Records
from scaling_jax.report.beside import measure_beside
from scaling_jax.report.ends import measure_ends
from scaling_jax.report.page import write_report


@dataclass(frozen=True)
class StudyReport:
    """The page that was written, and the fit on it, or why it was refused."""

    page: epath.Path
    fit: laws.Fit | None
    refusal: str | None


def write_study_report(records: Records, folder: str | os.PathLike[str]) -> StudyReport:
    """Fit L(N, S), measure noise scale, loss by position and transfer, forecast where runs end, and
    write their page.

    A refused fit and a study without noise moments are said on the page; positions and other
    corpora have a place on it where they were recorded, and ends where curves tell of them.
    """
    fit, refusal, noise = None, None, None
    try:
        fit = laws.fit(records, law="l_ns")
    except WorkError as error:
        refusal = str(error)
    try:
        noise = laws.measure_noise(records)
    except WorkError:
        noise = None
    page = write_report(
        records, fit, refusal, noise, folder, measure_beside(records), measure_ends(records)
    )
    return StudyReport(page, fit, refusal)
