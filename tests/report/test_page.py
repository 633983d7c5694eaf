"""The page: whole, self-contained, and saying what it knows and what it does not."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from markupsafe import escape

from scaling_jax import laws
from scaling_jax.laws.noise_report import measure_noise
from scaling_jax.records.store import Records
from scaling_jax.report.beside import measure_beside
from scaling_jax.report.page import write_report
from scaling_jax.report.words import lamp_label, number

STEMS = (
    "learning_curves_steps",
    "learning_curves_tokens",
    "loss_against_compute",
    "l_ns_fit",
    "envelope",
    "noise_against_loss",
)


class Balanced(HTMLParser):
    """Checks nesting and collects what would be requested from elsewhere."""

    void = ("meta", "img", "br", "link", "hr")

    def __init__(self):
        super().__init__()
        self.open, self.requests, self.tags = [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.requests += [
            value
            for name, value in attrs
            if name in ("src", "href") and not (value or "").startswith("data:")
        ]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(html):
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert parser.requests == []
    assert not parser.tags & {"script", "link", "iframe"}
    assert "url(" not in html and "@import" not in html


@pytest.fixture(scope="module")
def written(study, fit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path = write_report(study, fit, None, measure_noise(study), folder)
    return folder, path.read_text()


def test_page_is_whole_and_asks_for_nothing(written):
    folder, html = written
    check(html)
    assert html.count("data:image/svg+xml;base64,") == len(STEMS)
    for stem in STEMS:
        assert (folder / "figures" / f"{stem}.svg").read_bytes().startswith(b"<?xml")
        assert (folder / "figures" / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["figures", "index.html"]


def test_panel_comes_first_and_shows_every_lamp(written, fit):
    html = written[1]
    panel, law = html.index("Can these numbers be trusted?"), html.index("<h2>The law")
    assert panel < law
    text = html[panel:law]
    for lamp in fit.lamps:
        assert lamp_label(lamp.name) in text
    for words in (
        "✔ passed</td>",
        "✘ failed</td>",
        "not measured</td>",
        "1 of 3 checks failed: Noise scale over batch",
        "4.3 %</td>",
        "at most 5.0 %",
        "at least 4",
    ):
        assert words in text


def test_text_is_escaped(written):
    assert "a batch of &lt;b&gt;" in written[1]
    assert "<b>" not in written[1]


def test_both_conventions_and_all_parameters(written):
    html = written[1]
    assert "N without embeddings" in html and "N of all parameters" in html
    law = html[html.index("<h2>The law") : html.index("<h2>What was measured")]
    assert "<td>&alpha;<sub>N</sub></td>" in law
    assert "(N<sub>c</sub> / N)<sup>&alpha;<sub>N</sub></sup> + " in law
    assert len(re.findall("0.198 … 0.253", law)) == 2
    assert "90 %: draws of whole runs and of the window&#39;s start." in law
    assert "from step 2,500 on" in law and "4.3 %" in law and "4.2 %" in law


def test_runs_exclusions_and_conditions(written):
    html = written[1]
    for text in (
        "d88-lr-x0.5",
        "queued",
        '<td>at or above the bigram floor</td><td class="num">32</td><td>d12, d16</td>',
        "3f2a9c41d07be6",
        "512 tokens",
        "TFRT_CPU_0",
        "± 0.0060",
        "11 done, 1 queued",
    ):
        assert text in html


def test_a_refused_fit_shows_the_refusal_in_the_panel(study, tmp_path):
    records = Records(study.runs.head(1), study.curves, "runs/one")
    refusal = "L(N, S) needs 3 sizes & 2 are left."
    html = write_report(records, None, refusal, None, tmp_path).read_text()
    check(html)
    assert "needs 3 sizes &amp; 2 are left." in html and "No law was fitted" in html
    assert "<h2>The law" not in html and "l_ns_fit" not in html
    assert "No run recorded noise moments" in html
    assert html.count("data:image/svg+xml") == 3
    not_drawn = html[html.index("<h3>Not drawn</h3>") : html.index("<h2>Runs</h2>")]
    assert "<li>The best loss at each compute: " in not_drawn
    assert "<li>Steps and tokens to the same loss: 1 of the sizes" in not_drawn


def test_a_study_without_curves_still_has_a_page(study, tmp_path):
    records = Records(study.runs.tail(1), study.curves.clear(), "runs/empty")
    html = write_report(records, None, None, None, tmp_path).read_text()
    check(html)
    assert "No curve has been recorded yet" in html


def test_a_true_fit_fills_the_page(study, tmp_path):
    found = laws.fit(study, resamples=100)
    records = Records(study.runs.head(1), study.curves, "runs/one")
    html = write_report(records, found, None, None, tmp_path).read_text()
    check(html)
    for lamp in found.lamps:
        assert lamp.name not in html or "_" not in lamp.name  # each has words for people
        assert lamp_label(lamp.name) in html
    assert "<h3>Exponents of single sizes</h3>" in html and "Note: one run a size" in html
    for one in found.excluded:
        assert str(escape(one["reason"])) in html


def test_positions_and_other_corpora_have_a_place_where_they_were_recorded(study, tmp_path):
    T = np.arange(1, 33)
    ends = study.curves.drop_nulls("val_loss").select("run_id", "attempt", "step_start", "step")
    table = ends.join(
        pl.DataFrame({"corpus": "validation", "position_start": T, "position": T, "tokens": 10,
                      "loss": 2 + 3 * T**-0.5 + 0.001 * np.sin(T)}),
        how="cross",
    )  # fmt: skip
    curves = study.curves.with_columns(
        loss_books=pl.col("val_loss") * 1.1 + 0.2 + 0.001 * pl.col("step").sin(),
        loss_books_se=pl.lit(0.02),
        loss_test=pl.col("val_loss") + 0.001 * pl.col("step").cos(),
        loss_poems=pl.lit(4.0),
        loss_code=pl.col("val_loss") + pl.col("step").sin(),
    )
    records = Records(study.runs, curves, study.source, sides={"positions": table})
    beside = measure_beside(records)
    html = write_report(records, None, "no fit", None, tmp_path, beside).read_text()
    check(html)
    for stem in ("loss_by_position", "position_over_training", "position_against_size", "transfer"):
        assert (tmp_path / "figures" / f"{stem}.svg").exists()
    along = html[html.index("<h2>Loss along the context") : html.index("<h2>Transfer to other")]
    assert "d88" in along and "a + b T<sup>−c</sup>" in along
    other = html[html.index("<h2>Transfer to other") : html.index("<h2>Gradient noise")]
    assert "books" in other and "test split" in other and "± 0.02" in other
    assert "every point: it is not a loss that was measured" in other  # poems
    assert "<li>code: points lie" in other
    assert measure_beside(study) == (None, None)
    plain = write_report(study, None, "no fit", None, tmp_path, measure_beside(study)).read_text()
    assert "<h2>Loss along" not in plain and "<h2>Transfer" not in plain


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (0.043, "0.043"),
        (12_000, "12,000"),
        (2.1e8, "210M"),
        (2303.4, "2.3k"),
        (0.005333, "0.00533"),
        ("x", "x"),
    ],
)
def test_numbers_are_readable(value, text):
    assert number(value) == text
