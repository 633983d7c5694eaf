from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_jax.config import BatchConfig, ModelConfig, OptimizerConfig, RunConfig
from scaling_jax.errors import RequestError
from scaling_jax.settings import override, parse_config

CORPUS = "a-corpus"
BASE = parse_config({"model": {"d_model": 32, "n_head": 2}, "steps": 100})

# Another valid value of every field that is not a placement.
CHANGES: dict[str, str] = {
    "model.n_layer": "3",
    "model.d_model": "64",
    "model.n_head": "4",
    "model.d_ff": "96",
    "model.n_ctx": "64",
    "model.n_vocab": "300",
    "model.activation": "relu",
    "model.tied_embeddings": "true",
    "model.dropout": "0.1",
    "model.document_mask": "true",
    "data.order": "epochs",
    "data.seed": "1",
    "data.unique_tokens": "1000",
    "data.subset_seed": "1",
    "batch.sequences": "32",
    "batch.microbatches": "2",
    "batch.policy.every": "50",
    "batch.policy.lr_exponent": "0.7",
    "optimizer.name": "sgd",
    "optimizer.lr_peak": "0.01",
    "optimizer.beta1": "0.8",
    "optimizer.beta2": "0.99",
    "optimizer.eps": "1e-6",
    "optimizer.weight_decay": "0.1",
    "optimizer.grad_clip": "1.0",
    "schedule.name": "cosine",
    "schedule.warmup_steps": "10",
    "schedule.final_fraction": "0.1",
    "schedule.decay_fraction": "0.5",
    "evaluation.tokens": "1024",
    "evaluation.per_decade": "6",
    "evaluation.corpora": '{"wiki": "wiki.jsonl"}',
    "noise.enabled": "false",
    "noise.groups": "4",
    "noise.sequences": "norms",
    "noise.parts": "true",
    "noise.preconditioned": "true",
    "branch": '{"run": "0123456789ab", "step": 10}',
    "steps": "200",
    "seed": "1",
    "matmul_precision": "default",
    "compute_dtype": "bfloat16",
}
# Policies of the batch, with what belongs to them.
RAMP = {"batch.policy.name": "ramp", "batch.policy.ramp": "[[10, 32], [50, 48]]"}
FOLLOW = {
    "batch.policy.name": "noise_scale",
    "batch.policy.most_sequences": "128",
    "batch.policy.every": "50",
    "noise.groups": "2",
}
# Fields with one possible value, and those that only some optimizers or policies may set.
WITHOUT_A_CHANGE = {
    "model.arch",
    "optimizer.momentum",
    "batch.policy.name",
    "batch.policy.ramp",
    "batch.policy.most_sequences",
    "batch.policy.exchange",
}
# Where the corpus is read from and how: its fingerprint stands for what it holds.
READ_FROM = {
    "data.source": "other.jsonl",
    "data.text_field": "body",
    "data.split_on": "#",
    "data.tokenizer.name": "bpe",
    "data.tokenizer.n_vocab": "300",
    "data.tokenizer.file": "tokenizer.json",
}
PLACEMENT = {
    "mesh.lane": "2",
    "mesh.data": "4",
    "mesh.fsdp": "2",
    "mesh.tensor": "2",
    "engine.lanes": "1",
    "engine.feed": "host",
    "engine.attention": "xla",
    "engine.layers": "scan",
    "engine.remat": "full",
    "checkpoint.every_s": "5",
    "checkpoint.kept_per_decade": "3",
}


def leaves(doc: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in doc.items():
        if isinstance(value, dict) and prefix + name != "evaluation.corpora":
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@st.composite
def _noise(draw: st.DrawFn, optimizer: str, sequences: int) -> dict[str, Any]:
    return {
        "groups": draw(st.none() | st.integers(1, 8)),
        "sequences": draw(st.sampled_from(["none", "norms", "all"])) if sequences > 1 else "none",
        "parts": draw(st.booleans()),
        "preconditioned": draw(st.booleans()) if optimizer in ("adam", "adamw") else False,
    }


def _branch(steps: int) -> st.SearchStrategy[dict[str, Any] | None]:
    if steps == 1:
        return st.none()
    return st.none() | st.fixed_dictionaries({"run": st.text(), "step": st.integers(1, steps - 1)})


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    n_head = draw(st.integers(1, 8))
    microbatches = draw(st.integers(1, 8))
    steps = draw(st.integers(1, 10**6))
    optimizer = draw(st.sampled_from(["adamw", "adam", "sgd", "adafactor", "muon"]))
    dropout = draw(st.just(0.0) | st.floats(0, 0.9))
    sequences = microbatches * draw(st.integers(1, 64))
    return RunConfig.model_validate(
        {
            "model": {
                "n_layer": draw(st.integers(1, 12)),
                "d_model": n_head * draw(st.integers(1, 64)),
                "n_head": n_head,
                "d_ff": draw(st.integers(1, 1024)),
                "activation": draw(st.sampled_from(["relu", "gelu", "silu"])),
                "dropout": dropout,
            },
            "data": {
                "seed": draw(st.integers(0, 2**31 - 1)),
                "unique_tokens": draw(st.none() | st.integers(1, 10**12)),
            },
            "batch": {
                "sequences": sequences,
                "microbatches": microbatches,
            },
            "optimizer": {
                "name": optimizer,
                "lr_peak": draw(st.floats(1e-9, 10)),
                "weight_decay": 0.0 if optimizer in ("adam", "sgd") else draw(st.floats(0, 1)),
                "momentum": draw(st.floats(0, 0.99)) if optimizer in ("sgd", "muon") else 0.0,
                "grad_clip": draw(st.none() | st.floats(1e-3, 1e3)),
            },
            "schedule": {"warmup_steps": draw(st.integers(0, steps - 1))},
            "mesh": {
                axis: draw(st.none() | st.integers(1, 64))
                for axis in ("lane", "data", "fsdp", "tensor")
            },
            "engine": {
                "lanes": draw(st.none() | st.integers(1, 64)),
                "attention": draw(st.sampled_from([None, "xla", "blocks", "cudnn", "splash"])),
                "remat": draw(st.sampled_from(["none", "dots", "full"])),
            },
            "compute_dtype": draw(st.sampled_from(["float32", "bfloat16"])),
            "evaluation": {
                "tokens": draw(st.integers(1, 10**6)),
                "corpora": draw(st.dictionaries(st.sampled_from(["wiki", "law"]), st.text())),
            },
            "noise": draw(_noise(optimizer, sequences)) if dropout == 0 else {},
            "branch": draw(_branch(steps)),
            "steps": steps,
            "seed": draw(st.integers(0, 2**31 - 1)),
        }
    )


@given(configs())
def test_json_round_trip(config: RunConfig) -> None:
    again = parse_config(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert again == config
    assert again.run_id(CORPUS) == config.run_id(CORPUS)


@given(configs())
def test_overriding_with_its_own_values_changes_nothing(config: RunConfig) -> None:
    doc = config.model_dump(mode="json")
    settings = {}
    for dotted in leaves(doc):
        value: Any = doc
        for name in dotted.split("."):
            value = value[name]
        settings[dotted] = json.dumps(value)
    assert override(config, settings) == config


def test_every_field_is_covered() -> None:
    fields = set(leaves(BASE.model_dump(mode="json")))
    assert fields == set(CHANGES) | WITHOUT_A_CHANGE | set(READ_FROM) | set(PLACEMENT)


@pytest.mark.parametrize(("dotted", "text"), PLACEMENT.items())
def test_run_id_is_unaffected_by_placement(dotted: str, text: str) -> None:
    moved = override(BASE, {dotted: text})
    assert moved != BASE
    assert moved.run_id(CORPUS) == BASE.run_id(CORPUS)


def test_run_id_is_that_of_what_is_read_and_not_of_where() -> None:
    trained = {"data.tokenizer.name": "bpe", "data.tokenizer.n_vocab": "300"}
    loaded = {"data.tokenizer.name": "bpe", "data.tokenizer.file": "tokenizer.json"}
    others = {name: READ_FROM[name] for name in ("data.source", "data.text_field", "data.split_on")}
    for settings in (trained, loaded, *({name: text} for name, text in others.items())):
        moved = override(BASE, settings)
        assert moved != BASE
        assert moved.run_id(CORPUS) == BASE.run_id(CORPUS)
        assert moved.run_id("another corpus") != BASE.run_id(CORPUS)


def test_the_same_corpus_may_be_evaluated_from_another_place() -> None:
    here, there = (override(BASE, {"evaluation.corpora.wiki": path}) for path in ("a", "b"))
    assert here.run_id(CORPUS) == there.run_id(CORPUS) != BASE.run_id(CORPUS)


def test_the_identity_holds_precisions_and_no_placement() -> None:
    identity = BASE.identity()
    assert identity["compute_dtype"] == "float32"
    assert identity["matmul_precision"] == "highest"
    assert not identity.keys() & {"mesh", "engine", "checkpoint"}


def test_run_id_is_changed_by_everything_else() -> None:
    changed = [override(BASE, {dotted: text}) for dotted, text in CHANGES.items()]
    sgd = override(BASE, {"optimizer.name": "sgd"})
    changed.append(override(sgd, {"optimizer.momentum": "0.9"}))
    changed.append(override(BASE, RAMP))
    changed.append(override(BASE, RAMP | {"batch.policy.ramp": "[[10, 32]]"}))
    changed.append(override(BASE, FOLLOW))
    changed.append(override(BASE, FOLLOW | {"batch.policy.most_sequences": "64"}))
    changed.append(override(BASE, FOLLOW | {"batch.policy.exchange": "4"}))
    ids = [config.run_id(CORPUS) for config in [BASE, *changed]]
    assert len(set(ids)) == len(ids)


def test_run_id_is_changed_by_the_corpus() -> None:
    assert BASE.run_id("another") != BASE.run_id(CORPUS)


def test_run_id_is_twelve_hex_digits_and_the_same_in_every_process() -> None:
    run_id = BASE.run_id(CORPUS)
    assert len(run_id) == 12
    assert int(run_id, 16) >= 0
    assert run_id == parse_config({"steps": 100, "model": {"n_head": 2, "d_model": 32}}).run_id(
        CORPUS
    )


def test_d_ff_defaults_to_four_d_model() -> None:
    assert ModelConfig.model_validate({"d_model": 48}).d_ff == 192
    assert ModelConfig.model_validate({}).d_ff == 4 * ModelConfig.model_validate({}).d_model


def test_momentum_defaults_to_that_of_the_optimizer() -> None:
    defaults = {"adamw": 0.0, "adam": 0.0, "adafactor": 0.0, "sgd": 0.0, "muon": 0.95}
    for name, momentum in defaults.items():
        assert OptimizerConfig.model_validate({"name": name}).momentum == momentum
    assert OptimizerConfig(name="muon", momentum=0.5).momentum == 0.5


def test_unique_tokens_are_all_of_the_split_or_what_was_asked_for() -> None:
    assert BASE.unique_tokens(5000) == 5000
    assert override(BASE, {"data.unique_tokens": "300"}).unique_tokens(5000) == 300


def test_batch_tokens() -> None:
    config = override(BASE, {"batch.sequences": "8", "model.n_ctx": "64"})
    assert config.batch_tokens == 512


def test_the_batches_that_a_policy_may_lead_to() -> None:
    assert BASE.batch.sizes == (16,)
    assert override(BASE, RAMP).batch.sizes == (16, 32, 48)
    assert override(BASE, FOLLOW).batch.sizes == (16, 32, 64, 128)
    assert override(BASE, FOLLOW | {"batch.policy.most_sequences": "127"}).batch.sizes == (
        *(16, 32, 64),
    )


def test_at_another_batch_a_run_keeps_the_rows_of_a_microbatch() -> None:
    config = override(BASE, RAMP | {"batch.microbatches": "2"})
    assert config.at_batch(16).batch == BatchConfig(sequences=16, microbatches=2)
    assert config.at_batch(32).batch == BatchConfig(sequences=32, microbatches=4)
    assert config.at_batch(4).batch == BatchConfig(sequences=4, microbatches=1)
    assert config.at_batch(12).batch == BatchConfig(sequences=12, microbatches=2)
    assert override(BASE, {}).at_batch(16) == BASE


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({}, 2.0),
        ({"optimizer.name": "muon"}, 2.0),
        ({"optimizer.name": "sgd", "optimizer.momentum": "0.9"}, 4.0),
        ({"batch.policy.lr_exponent": "0"}, 1.0),
        ({"batch.policy.lr_exponent": "1.5"}, 8.0),
    ],
)
def test_at_another_batch_a_run_has_another_rate(settings: dict[str, str], factor: float) -> None:
    config = override(BASE, RAMP | settings)
    larger = config.at_batch(64)
    assert larger.optimizer.lr_peak == pytest.approx(factor * config.optimizer.lr_peak, rel=1e-15)
    assert config.at_batch(16).optimizer == config.optimizer
    same = {"batch", "optimizer"}
    assert larger.model_dump(exclude=same) == config.model_dump(exclude=same)


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        BASE.steps = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_a_policy_in_words() -> None:
    assert BASE.batch.policy.describe() == "fixed"
    assert override(BASE, RAMP).batch.policy.describe() == "ramp 10:32 50:48"
    said = "noise_scale {} every 50 steps up to 128 sequences"
    assert override(BASE, FOLLOW).batch.policy.describe() == said.format("B_simple")
    exchanged = override(BASE, FOLLOW | {"batch.policy.exchange": "4"})
    assert exchanged.batch.policy.describe() == said.format("sqrt(4 B_simple)")


@pytest.mark.parametrize("name", ["Wiki", "test", "validation", "wiki_se", "1st", "", "a-b"])
def test_a_corpus_is_named_as_a_column(name: str) -> None:
    with pytest.raises(RequestError, match="is to name a column"):
        parse_config({"model": {}, "steps": 9, "evaluation": {"corpora": {name: "x.jsonl"}}})


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        ({"name": "bpe"}, "needs n_vocab, to train one"),
        ({"name": "bpe", "n_vocab": 300, "file": "x.json"}, "leave it out"),
        ({"name": "bytes", "n_vocab": 257}, "leave it out for bytes"),
        ({"name": "bytes", "file": "x.json"}, "belongs to bpe and sentencepiece"),
        ({"name": "sentencepiece"}, "needs file"),
    ],
)
def test_the_fields_of_a_tokenizer_belong_to_its_kind(
    tokenizer: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        parse_config({"model": {}, "steps": 9, "data": {"tokenizer": tokenizer}})
