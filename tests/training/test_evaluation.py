from __future__ import annotations

import itertools
import logging
import math
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling_jax.config import EngineConfig, MeshConfig
from scaling_jax.data.corpus import Split
from scaling_jax.data.sampler import validation_windows
from scaling_jax.errors import RequestError
from scaling_jax.training.evaluation import (
    SINGLE_POSITIONS,
    evaluation_entries,
    evaluation_set,
    make_evaluate,
    mean_and_error,
    position_ends,
    require_evaluations,
    rows_at_once,
)
from scaling_jax.training.mesh import make_mesh
from scaling_jax.training.program import Program, compile_program
from scaling_jax.training.step import TrainState, make_model

N_CTX, TOKENS = 8, 800


@pytest.fixture(scope="module")
def several(corpus):
    """The corpus with ten others to be evaluated on."""
    draws = np.random.default_rng(3)
    others = {
        name: Split(draws.integers(97, 123, n).astype(np.uint16), np.array([0, n // 3, n // 2]))
        for name, n in (("short", N_CTX + 1), ("noise", 700))
    }
    return replace(corpus, evaluations=others | {f"same{i}": corpus.validation for i in range(8)})


@pytest.fixture(scope="module")
def of_several(tiny, several):
    corpora = dict.fromkeys(several.evaluations, "somewhere")
    return tiny(model={"dropout": 0.1}, evaluation={"tokens": TOKENS, "corpora": corpora})


class Trained(NamedTuple):
    program: Program
    state: TrainState
    compilations: list[str]


@pytest.fixture(scope="module")
def trained(several, of_several, train) -> Trained:
    """A program of one lane and its state after enough updates for losses to differ."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    logging.getLogger("jax").addHandler(handler)
    try:
        with jax.log_compiles(), jax.numpy_dtype_promotion("standard"):
            program = compile_program([of_several], several, make_mesh(MeshConfig()))
            state = train(program, [of_several], [100])[0]
            program.evaluate(state)
    finally:
        logging.getLogger("jax").removeHandler(handler)
    return Trained(program, state, [each for each in told if each.startswith("Finished XLA")])


@pytest.fixture(scope="module")
def evaluated(several, quick_jit):
    """`evaluated(config, params, axes)`: the entries of a model on a mesh, evaluation alone."""

    def run(config, params, lanes: bool = False, **axes: int):
        mesh = make_mesh(MeshConfig(**axes))
        made = evaluation_set(config, several, axes.get("data", 1) * axes.get("fsdp", 1))
        evaluate = make_evaluate(config, EngineConfig(), several.separator)
        if lanes:
            evaluate = jax.vmap(evaluate, in_axes=(0, None), spmd_axis_name="lane")
        with jax.set_mesh(mesh):
            losses = np.asarray(quick_jit(evaluate)(params, made.window_nbt))
        assert losses.dtype == np.float32
        return [evaluation_entries(made, each) for each in (losses if lanes else losses[None])]

    return run


def split_of(corpus, name: str) -> Split:
    return {"validation": corpus.validation, "test": corpus.test, **corpus.evaluations}[name]


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_every_window_of_every_corpus_is_there_once(several, of_several, shards):
    window_nbt, portions = evaluation_set(of_several, several, shards)
    assert window_nbt.shape[1] % shards == 0
    assert [portion.corpus for portion in portions] == ["validation", "test", *several.evaluations]
    at = 0
    for portion in portions:
        split = split_of(several, portion.corpus)
        starts = validation_windows(len(split.tokens), N_CTX, TOKENS)
        assert portion.first == at
        at += len(starts)
        np.testing.assert_array_equal(
            window_nbt.reshape(-1, N_CTX + 1)[portion.first : at],
            [split.tokens[start : start + N_CTX + 1] for start in starts],
        )
        documents = np.array(
            [
                [(split.doc_starts <= start + 1 + t).sum() - 1 for t in range(N_CTX)]
                for start in starts.tolist()
            ]
        )
        np.testing.assert_array_equal(np.unique(documents)[portion.document_wt], documents)
        targets = [split.tokens[start + 1 : start + N_CTX + 1] for start in starts]
        assert portion.n_bytes == (np.array(targets) != several.separator).sum()
    assert at <= window_nbt.shape[0] * window_nbt.shape[1] < at + window_nbt.shape[1]


def test_a_split_without_a_window_is_left_out_and_unknown_bytes_are_not_counted(corpus, tiny):
    small = Split(np.zeros(N_CTX, np.uint16), np.array([0]))
    made = evaluation_set(tiny(), replace(corpus, test=small, token_bytes=None), 1)
    (portion,) = made.portions
    assert (portion.corpus, portion.n_bytes) == ("validation", None)
    losses = np.ones((*made.window_nbt.shape[:2], N_CTX), np.float32)
    entries = evaluation_entries(made, losses)
    assert entries is not None
    (row,) = entries["evaluations"]
    assert row["bits_per_byte"] is None
    assert (row["loss"], entries["val_loss"]) == (1.0, 1.0)


def test_a_set_of_fewer_windows_than_shards(corpus, tiny):
    few = Split(np.arange(30, dtype=np.uint16), np.array([0, 13]))
    made = evaluation_set(tiny(), replace(corpus, validation=few, test=few), 8)
    assert made.window_nbt.shape == (1, 8, N_CTX + 1)
    assert [len(portion.document_wt) for portion in made.portions] == [3, 3]


def test_a_large_vocabulary_or_context_has_no_more_rows_than_training_has(tiny):
    assert rows_at_once(tiny(), 1000, 1) == 64
    assert rows_at_once(tiny(), 1000, 3) == 66
    assert rows_at_once(tiny(), 5, 1) == 5
    large = {"n_ctx": 1024, "n_vocab": 50257}
    assert rows_at_once(tiny(model=large), 1000, 1) == 4  # a microbatch
    assert rows_at_once(tiny(model={"n_ctx": 1024, "n_vocab": 4096}), 1000, 1) == 4
    assert rows_at_once(tiny(model={"n_ctx": 256, "n_vocab": 4096}), 1000, 1) == 16
    heads = {"n_ctx": 512, "d_model": 64, "n_head": 64}
    assert rows_at_once(tiny(model=heads), 1000, 1) == 4


def test_losses_are_those_of_the_model_one_corpus_at_a_time(
    several, of_several, trained, quick_jit
):
    program, state, _ = trained
    entries = evaluation_entries(program.evaluation, np.asarray(program.evaluate(state))[0])
    assert entries is not None
    params = jax.tree.map(lambda leaf: np.asarray(leaf)[0], state.params)
    model = quick_jit(make_model(of_several, EngineConfig()))
    for row, portion in zip(entries["evaluations"], program.evaluation.portions, strict=True):
        split = split_of(several, portion.corpus)
        starts = validation_windows(len(split.tokens), N_CTX, TOKENS)
        windows = np.array([split.tokens[s : s + N_CTX + 1] for s in starts], np.int32)
        logits = np.asarray(model(params, windows[:, :-1]), np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses = -np.take_along_axis(log_p, windows[:, 1:, None], -1)[..., 0]
        documents = (
            np.searchsorted(split.doc_starts, starts[:, None] + np.arange(1, N_CTX + 1), "right")
            - 1
        )
        sums, tokens = zip(
            *((losses[documents == d].sum(), (documents == d).sum()) for d in np.unique(documents)),
            strict=True,
        )
        mean, error = mean_and_error(np.array(sums), np.array(tokens))
        assert row["corpus"] == portion.corpus
        assert row["loss"] == pytest.approx(losses.mean(), rel=1e-6)
        assert row["loss"] == pytest.approx(mean, rel=1e-6)
        assert row["loss_se"] == pytest.approx(error, rel=1e-4, nan_ok=True)
        assert row["tokens"] == losses.size
        n_bytes = (windows[:, 1:] != several.separator).sum()
        assert row["bits_per_byte"] == pytest.approx(losses.sum() / np.log(2) / n_bytes, rel=1e-6)
        if portion.corpus == "validation":
            assert losses.std() > 0.1
            assert (entries["val_loss"], entries["val_loss_se"]) == (row["loss"], row["loss_se"])
            found = entries["positions"]
            assert [(at["position_start"], at["position"]) for at in found] == [
                (t, t) for t in range(1, N_CTX + 1)
            ]
            np.testing.assert_allclose([at["loss"] for at in found], losses.mean(0), rtol=1e-6)
    assert entries["evaluations"][3]["loss"] > entries["val_loss"] + 1


def assert_about_equal(mine, theirs, rel: float) -> None:
    assert mine is not None and theirs is not None
    for table in ("evaluations", "positions"):
        for one, other in zip(mine[table], theirs[table], strict=True):
            assert one.pop("corpus") == other.pop("corpus")
            assert one == pytest.approx(other, rel=rel, nan_ok=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_mesh_and_so_the_filling_rows_change_nothing(
    of_several, some_parameters, evaluated, dtype
):
    config = of_several.model_copy(update={"compute_dtype": dtype})
    params = some_parameters(config.model)
    (alone,) = evaluated(config, params)
    (spread,) = evaluated(config, params, data=2, fsdp=2, tensor=2)
    assert_about_equal(spread, alone, 1e-5 if dtype == "float32" else 1e-2)


def test_lanes_have_their_own_losses(of_several, some_parameters, evaluated):
    one = some_parameters(of_several.model)
    other = jax.tree.map(lambda leaf: leaf / 2, one)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, other)
    lanes = evaluated(of_several, stacked, lanes=True, lane=2)
    for lane, params in zip(lanes, (one, other), strict=True):
        (own,) = evaluated(of_several, params)
        assert_about_equal(lane, own, 1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_an_evaluation_masks_as_training_does(tiny, corpus, some_parameters, quick_jit, masked):
    config = tiny(model={"document_mask": masked})
    window_nbt = np.array([[[97, 98, 99, corpus.separator, 100, 101, 102, 103, 104]]], np.int32)
    other = np.where(np.arange(N_CTX + 1) < 3, 120, window_nbt)  # in the document before
    with jax.set_mesh(make_mesh(MeshConfig())):
        evaluate = quick_jit(make_evaluate(config, EngineConfig(), corpus.separator))
        params = some_parameters(config.model)
        change = np.abs(evaluate(params, window_nbt) - evaluate(params, other))[0, 0]
    assert change[2] > 1e-3
    assert (change[-4:] < 1e-6).all() == masked


def test_ten_corpora_take_one_compilation(several, trained):
    assert len(several.evaluations) == 10
    assert sum("jit(evaluate)" in each for each in trained.compilations) == 1
    losses = np.asarray(trained.program.evaluate(trained.state))[0]
    entries = evaluation_entries(trained.program.evaluation, losses)
    assert entries is not None
    validation, _, _, _, *same = entries["evaluations"]
    del validation["corpus"]
    assert [row.pop("corpus") for row in same] == [f"same{i}" for i in range(8)]
    assert all(row == pytest.approx(validation, rel=1e-6) for row in same)


@settings(max_examples=60)
@given(data=st.data(), n_ctx=st.integers(1, 1500), tokens=st.integers(1, 20000))
def test_positions_average_to_the_loss(corpus, tiny, data, n_ctx, tokens):
    config = tiny(model={"n_ctx": n_ctx}, evaluation={"tokens": tokens})
    seed = data.draw(st.integers(0, 2**32 - 1))
    draws = np.random.default_rng(seed)
    n_tokens = n_ctx + 1 + int(draws.integers(0, 20000))
    starts = np.unique(draws.integers(0, n_tokens, draws.integers(1, 40)))
    starts[0] = 0
    tokens_n = draws.integers(0, 257, n_tokens).astype(np.uint16)
    made = evaluation_set(
        config, replace(corpus, validation=Split(tokens_n, starts)), int(draws.integers(1, 9))
    )
    losses = draws.exponential(3.0, (*made.window_nbt.shape[:2], n_ctx)).astype(np.float32)
    entries = evaluation_entries(made, losses)
    assert entries is not None
    rows = entries["positions"]
    ends = [row["position"] for row in rows]
    assert [row["position_start"] for row in rows] == [1, *(end + 1 for end in ends[:-1])]
    assert ends[-1] == n_ctx
    own = losses.reshape(-1, n_ctx)[: len(made.portions[0].document_wt)].astype(np.float64)
    assert sum(row["tokens"] for row in rows) == own.size == entries["evaluations"][0]["tokens"]
    mean = sum(row["tokens"] * row["loss"] for row in rows) / own.size
    assert abs(mean - entries["val_loss"]) < 1e-6
    assert abs(own.mean() - entries["val_loss"]) < 1e-6
    for row in rows[:: max(1, len(rows) // 7)]:
        part = own[:, row["position_start"] - 1 : row["position"]]
        assert row["loss"] == pytest.approx(part.mean(), rel=1e-12)


@pytest.mark.parametrize("n_ctx", [1, 8, 256, 257, 300, 1024, 5000])
def test_positions_are_single_and_then_log_spaced(n_ctx):
    ends = position_ends(n_ctx).tolist()
    assert ends[-1] == n_ctx
    assert ends[: min(n_ctx, SINGLE_POSITIONS)] == list(range(1, min(n_ctx, SINGLE_POSITIONS) + 1))
    late = ends[SINGLE_POSITIONS - 1 : -1]
    for one, other in itertools.pairwise(late):
        assert other / one == pytest.approx(2 ** (1 / 32), abs=0.005)
    assert len(ends) <= SINGLE_POSITIONS + 32 * math.log2(max(n_ctx / 256, 1)) + 1


def test_a_loss_that_is_not_finite_is_no_loss(several, of_several):
    made = evaluation_set(of_several, several, 1)
    losses = np.ones((*made.window_nbt.shape[:2], N_CTX), np.float32)
    flat = losses.reshape(-1, N_CTX)
    last = made.portions[-1]
    flat[last.first + len(last.document_wt) :] = np.nan  # rows that fill
    assert evaluation_entries(made, losses) is not None
    flat[last.first, 3] = np.inf
    assert evaluation_entries(made, losses) is None


def test_a_named_corpus_without_a_window_is_refused(several, tiny):
    fits = tiny(evaluation={"corpora": {"short": "b"}})
    require_evaluations(fits, several)
    longer = tiny(model={"n_ctx": 9}, evaluation={"corpora": {"noise": "a", "short": "b"}})
    with pytest.raises(RequestError, match=r"^evaluation\.corpora 'short' has 9 tokens.* the 10 "):
        require_evaluations(longer, several)


def test_the_error_by_hand():
    # mean 2; the documents' sums differ from 2 tokens each by -2, 0, 2
    mean, error = mean_and_error(np.array([2.0, 4.0, 10.0]), np.array([2, 2, 4]))
    assert mean == 2.0
    assert error == pytest.approx(math.sqrt(3 / 2 * 8) / 8)


def test_the_error_is_that_of_resampled_documents():
    draws = np.random.default_rng(0)
    tokens = draws.integers(20, 400, 60)
    level = 2 + 0.3 * draws.standard_normal(60)  # documents differ more than their tokens do
    sums = tokens * level + np.sqrt(tokens) * draws.standard_normal(60)
    _, error = mean_and_error(sums, tokens)
    picks = draws.integers(0, 60, (4000, 60))
    resampled = sums[picks].sum(1) / tokens[picks].sum(1)
    assert error == pytest.approx(resampled.std(), rel=0.1)
    assert error > 2 / math.sqrt(tokens.sum())  # what independent tokens would have


def test_equal_documents_have_no_error():
    assert mean_and_error(np.array([3.0, 6.0]), np.array([1, 2])) == (3.0, 0.0)


def test_one_document_has_no_known_error():
    mean, error = mean_and_error(np.array([6.0]), np.array([3]))
    assert mean == 2.0
    assert math.isnan(error)
