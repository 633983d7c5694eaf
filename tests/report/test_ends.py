"""Where runs end, on the page: finished studies, unfinished ones, and those too short to tell."""

from __future__ import annotations

import polars as pl
import pytest

from scaling_jax.records.store import Records
from scaling_jax.report import ends as module
from scaling_jax.report import page
from scaling_jax.report.ends import measure_ends, pictures_of_ends, words_of
from scaling_jax.report.page import write_report
from tests.report.test_page import check

RUN = "d48"


@pytest.fixture(autouse=True)
def no_other_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "pictures_of", lambda *_: ([], []))


@pytest.fixture(scope="module")
def unfinished(study) -> Records:
    """The study with one run at a third of its steps."""
    run_id = study.runs.filter(name=RUN)["run_id"].item()
    own = pl.col("run_id") == run_id
    state = pl.when(own).then(pl.lit("running")).otherwise("status")
    runs = study.runs.with_columns(status=state)
    return Records(runs, study.curves.filter(~own | (pl.col("step") < 4000)), study.source)


def section(html: str) -> str:
    assert "<h2>Where runs end" in html
    return html.split("<h2>Where runs end")[1].split("<h2>")[0]


def test_a_finished_study_tells_how_good_forecasts_are(study, tmp_path) -> None:
    ends = measure_ends(study)
    assert ends is not None and not ends.forecasts.runs
    html = write_report(study, None, "no fit", None, tmp_path, ends=ends).read_text()
    check(html)
    said = section(html)
    assert "final losses of the unfinished" not in said
    assert "The end of finished runs, forecast from a part of their steps" in said
    assert "of this study" in said and "Covered: by 90% intervals" in said
    for stem in ("forecast_errors", "forecast_calibration"):
        assert (tmp_path / "figures" / f"{stem}.svg").read_bytes().startswith(b"<?xml")
        assert (tmp_path / "figures" / f"{stem}.png").exists()
    assert not (tmp_path / "figures" / "forecasts.svg").exists()


def test_an_unfinished_study_has_its_forecasts(unfinished, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "declared_laws", lambda _: ("l_n",))
    ends = measure_ends(unfinished)
    assert ends is not None and ends.stops is not None
    html = write_report(unfinished, None, "no fit", None, tmp_path, ends=ends).read_text()
    check(html)
    said = section(html)
    words = words_of(ends)
    heads, row = words["runs"]
    assert row[0] == RUN and row[heads.index("may stop")] in ("yes", "no")
    for cell in row:
        assert f">{cell}</td>" in said
    assert "moves no exponent by more than 10%" in said
    assert next(picture.stem for picture in pictures_of_ends(ends)) == "forecasts"
    assert (tmp_path / "figures" / "forecasts.png").exists()


def test_why_no_run_may_stop_is_said(unfinished, monkeypatch) -> None:
    few = unfinished.runs["name"].is_in([RUN, "d12"])
    monkeypatch.setattr(module, "declared_laws", lambda _: ("l_ns",))
    records = Records(unfinished.runs.filter(few), unfinished.curves, "few")
    records = Records(records.runs, records.curves.join(records.runs, on="run_id", how="semi"), "")
    ends = measure_ends(records)
    assert ends is not None and ends.stops is None
    assert "not known yet, by l_ns" in words_of(ends)["rule"]


def test_a_study_too_short_to_tell_has_no_such_section(study, tmp_path) -> None:
    short = Records(study.runs, study.curves.filter(pl.col("step") < 3), study.source)
    assert measure_ends(short) is None
    nothing = Records(study.runs, study.curves.head(0), study.source)
    assert measure_ends(nothing) is None
    html = write_report(nothing, None, "no fit", None, tmp_path, ends=None).read_text()
    assert "Where runs end" not in html
