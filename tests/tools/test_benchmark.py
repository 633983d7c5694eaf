"""The statistics, the words and the opponent of `tools/benchmark`; speed itself is for no test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scaling_jax.models.transformer import Transformer
from tools.benchmarks import timing
from tools.benchmarks.main import MEASURES, main
from tools.benchmarks.ours import Shape, flops_per_token, lanes_of, run_config, trained
from tools.benchmarks.reference import PlainTransformer, train_plainly
from tools.benchmarks.tables import Table, as_markdown, cell
from tools.benchmarks.timing import Candidate, Effort, Interval, interleave, ratio

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_ratio_is_the_median_of_the_ratios_of_rounds() -> None:
    # 2, 1, 4: not the ratio of the medians, which is 3.
    assert ratio(np.array([2.0, 3.0, 4.0]), np.array([1.0, 3.0, 1.0])).median == 2.0


def test_a_constant_ratio_has_no_width() -> None:
    base = np.linspace(1.0, 2.0, 15)
    assert ratio(3.0 * base, base) == pytest.approx((3.0, 3.0, 3.0))


def test_an_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    ratios = rng.lognormal(np.log(1.1), 0.05, (200, 25))
    intervals = [ratio(each, np.ones(25)) for each in ratios]
    covered = np.mean([low <= 1.1 <= high for _, low, high in intervals])
    assert 0.9 <= covered <= 0.99


class _Clock:
    """Time that passes only where a candidate says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def candidate(self, name: str, seconds_per_step: float) -> Candidate:
        def run(n: int) -> None:
            self.calls.append((name, n))
            self.now += n * seconds_per_step

        return Candidate(run, tokens_per_step=10)


def test_candidates_take_turns_and_the_order_turns_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)
    slow, quick = clock.candidate("slow", 0.5), clock.candidate("quick", 0.125)
    rates = interleave({"slow": slow, "quick": quick}, rounds=3, seconds=2.0)
    assert rates["slow"].tolist() == [20.0] * 3
    assert rates["quick"].tolist() == [80.0] * 3
    one, other = ("slow", 4), ("quick", 16)
    assert clock.calls[-6:] == [one, other, other, one, one, other]


def test_quick_is_three_short_rounds() -> None:
    assert (Effort(quick=True).rounds(100), Effort().rounds(100)) == (3, 100)
    assert Effort(quick=True).seconds(1.0) < Effort().seconds(1.0) == 1.0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "-"),
        ("cudnn", "cudnn"),
        (257, "257"),
        (0.0123456, "0.01235"),
        (48211.6, "48,212"),
        (2_097_152, "2.097 M"),
        (7.91e14, "791 T"),
        (Interval(2.0, 1.9, 2.125), "2 (1.9 to 2.125)"),
    ],
)
def test_a_cell(value: Any, words: str) -> None:
    assert cell(value) == words


def test_a_table_is_what_its_json_says() -> None:
    rows = [{"size": 2, "ratio": Interval(2.0, 1.9, 2.1)}, {"size": 3, "ratio": None}]
    table = Table("A title", {"size": "layers", "ratio": "95 %"}, rows, "A note.")
    assert Table.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_markdown_has_every_number_and_says_what_failed() -> None:
    table = Table("Sizes", {"size": "", "speed": "tokens/s"}, [{"size": "2 x 16", "speed": 5.0}])
    machine = {"processor": "some processor", "platform": "cpu", "devices": 2}
    text = as_markdown(
        {
            "date": "2026-01-02T03:04:05+00:00",
            "quick": True,
            "machine": machine,
            "measures": {
                "speed": {"seconds": 1.0, "tables": [table.to_json()], "fault": None},
                "mfu": {"seconds": 1.0, "tables": [], "fault": "MemoryError: too large"},
            },
        }
    )
    assert "| size | speed (tokens/s) |\n| --- | ---: |\n| 2 x 16 | 5 |" in text
    assert "Failed: MemoryError: too large" in text
    assert "2026-01-02" in text and "--quick" in text


def test_a_wrong_name_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["noise", "spede"]) == 2
    assert "'speed'" in capsys.readouterr().err


def test_the_script_parses_and_is_executable() -> None:
    script = REPOSITORY / "tools" / "benchmark"
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("option", ["--markdown", "--out"])
def test_a_wrong_file_is_refused(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("{}")
    path = tmp_path / "file" if option == "--markdown" else tmp_path / "file" / "out.json"
    assert main([option, str(path)]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.fixture
def promotion() -> Any:
    """JAX as a user finds it, as plain Flax and optax want it."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("promotion")
@pytest.mark.parametrize("shape", [Shape(2, 16, 1), Shape(3, 24, 3)])
def test_the_reference_computes_the_same_function(shape: Shape) -> None:
    config = run_config(shape, n_ctx=32)
    ours = Transformer(config.model, nnx.Rngs(0))
    rng = np.random.default_rng(0)
    nnx.update(ours, jax.tree.map(_random_like(rng), nnx.state(ours)))
    plain = PlainTransformer(config, nnx.Rngs(1))
    _copy_weights(ours, plain)
    tokens = jnp.asarray(rng.integers(0, config.model.n_vocab, (4, 32)))
    np.testing.assert_allclose(plain(tokens), ours(tokens), atol=1e-5)


def _random_like(rng: np.random.Generator) -> Callable[[jax.Array], jax.Array]:
    # LayerNorm's gains and biases, and the head, start as numbers that hide a wrong place.
    return lambda x: jnp.asarray(rng.normal(0.0, 0.2, x.shape), jnp.float32)


def _copy_weights(ours: Transformer, plain: PlainTransformer) -> None:
    d = ours.config.d_model
    plain.embedding.embedding[...] = ours.embedding[...]
    plain.position.embedding[...] = ours.position[...]
    plain.head.kernel[...] = ours.head[...]
    _copy_norm(ours.norm.gain[...], ours.norm.bias[...], plain.norm)
    stacked = ours.blocks
    for layer, block in enumerate(plain.blocks):
        qkv = stacked.attention.qkv[...][layer]  # d, head, one of q k v, c
        block.attention.qkv.kernel[...] = qkv.swapaxes(1, 2).reshape(d, 3 * d)
        block.attention.out.kernel[...] = stacked.attention.out[...][layer].reshape(d, d)
        block.up.kernel[...] = stacked.feed_forward.up[...][layer]
        block.down.kernel[...] = stacked.feed_forward.down[...][layer]
        for norm, into in (
            (stacked.norm_attention, block.norm1),
            (stacked.norm_feed_forward, block.norm2),
        ):
            _copy_norm(norm.gain[...][layer], norm.bias[...][layer], into)


def _copy_norm(gain: jax.Array, bias: jax.Array, into: nnx.LayerNorm) -> None:
    assert into.scale is not None and into.bias is not None
    into.scale[...] = gain
    into.bias[...] = bias


@pytest.mark.usefixtures("promotion")
def test_the_reference_trains() -> None:
    config = run_config(Shape(1, 16, 1), n_ctx=8)
    candidate = train_plainly(config, np.arange(100, dtype=np.uint16))
    candidate.run(2)
    assert candidate.tokens_per_step == 16 * 8


@pytest.mark.usefixtures("promotion")
def test_lanes_count_their_tokens() -> None:
    config = run_config(Shape(1, 8, 1), n_ctx=8)
    candidate = trained(lanes_of(config, 2))
    candidate.run(130)  # more than one chunk
    assert candidate.tokens_per_step == 2 * 16 * 8
    assert flops_per_token(config) > 6 * 12 * 8 * 8


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_works(name: str, tmp_path: Path) -> None:
    out = tmp_path / "benchmark.json"
    call = [sys.executable, "-m", "tools.benchmarks.main", name, "--quick", "--out", str(out)]
    subprocess.run(call, cwd=REPOSITORY, check=True)
    report = json.loads(out.read_text())
    assert report["measures"][name]["fault"] is None
    assert all(table["rows"] for table in report["measures"][name]["tables"])
    assert name in as_markdown(report)
