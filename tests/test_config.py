from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_jax.config import ModelConfig, OptimizerConfig, RunConfig, override, parse_config
from scaling_jax.errors import RequestError

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
    "data.seed": "1",
    "data.unique_tokens": "1000",
    "batch.sequences": "32",
    "batch.microbatches": "2",
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
    "noise.enabled": "false",
    "noise.groups": "4",
    "steps": "200",
    "seed": "1",
    "matmul_precision": "default",
    "compute_dtype": "bfloat16",
}
# Fields with one possible value, and one that only some optimizers may set.
WITHOUT_A_CHANGE = {"model.arch", "data.source", "optimizer.momentum"}
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
}


def leaves(doc: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in doc.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    n_head = draw(st.integers(1, 8))
    microbatches = draw(st.integers(1, 8))
    steps = draw(st.integers(1, 10**6))
    optimizer = draw(st.sampled_from(["adamw", "adam", "sgd", "adafactor", "muon"]))
    return RunConfig.model_validate(
        {
            "model": {
                "n_layer": draw(st.integers(1, 12)),
                "d_model": n_head * draw(st.integers(1, 64)),
                "n_head": n_head,
                "d_ff": draw(st.integers(1, 1024)),
                "activation": draw(st.sampled_from(["relu", "gelu", "silu"])),
                "dropout": draw(st.floats(0, 0.9)),
            },
            "data": {
                "seed": draw(st.integers(0, 2**31 - 1)),
                "unique_tokens": draw(st.none() | st.integers(1, 10**12)),
            },
            "batch": {
                "sequences": microbatches * draw(st.integers(1, 64)),
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
            "evaluation": {"tokens": draw(st.integers(1, 10**6))},
            "noise": {"groups": draw(st.none() | st.integers(1, 8))},
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
    assert fields == set(CHANGES) | WITHOUT_A_CHANGE | set(PLACEMENT)


@pytest.mark.parametrize(("dotted", "text"), PLACEMENT.items())
def test_run_id_is_unaffected_by_placement(dotted: str, text: str) -> None:
    moved = override(BASE, {dotted: text})
    assert moved != BASE
    assert moved.run_id(CORPUS) == BASE.run_id(CORPUS)


def test_the_identity_holds_precisions_and_no_placement() -> None:
    identity = BASE.identity()
    assert identity["compute_dtype"] == "float32"
    assert identity["matmul_precision"] == "highest"
    assert not identity.keys() & {"mesh", "engine"}


def test_run_id_is_changed_by_everything_else() -> None:
    changed = [override(BASE, {dotted: text}) for dotted, text in CHANGES.items()]
    sgd = override(BASE, {"optimizer.name": "sgd"})
    changed.append(override(sgd, {"optimizer.momentum": "0.9"}))
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


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        BASE.steps = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_overriding_d_model_keeps_the_ratio_of_d_ff() -> None:
    wide = override(BASE, {"model.d_ff": "64"})
    assert override(wide, {"model.d_model": "48"}).model.d_ff == 96
    assert override(wide, {"model.d_model": "48", "model.d_ff": "50"}).model.d_ff == 50


def test_overriding_the_optimizer_brings_its_momentum() -> None:
    muon = override(BASE, {"optimizer.name": "muon"})
    assert muon.optimizer == OptimizerConfig(name="muon", momentum=0.95)
    assert override(muon, {"optimizer.name": "adamw"}).optimizer == OptimizerConfig()
    set_by_hand = override(BASE, {"optimizer.name": "sgd", "optimizer.momentum": "0.5"})
    assert override(set_by_hand, {"optimizer.name": "sgd"}).optimizer.momentum == 0.5


def test_null_is_none() -> None:
    clipped = override(BASE, {"optimizer.grad_clip": "1.0"})
    assert clipped.optimizer.grad_clip == 1.0
    assert override(clipped, {"optimizer.grad_clip": "null"}).optimizer.grad_clip is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model.n_layers": "3"}, "Did you mean 'model.n_layer'?"),
        ({"stesp": "3"}, "Did you mean 'steps'?"),
        ({"steps.x": "3"}, "No config field 'steps.x'"),
        ({"model": "3"}, "group of fields; set one of: model.arch"),
        ({"steps": "many"}, "steps: .*integer.*'many'"),
        ({"steps": "0"}, "steps: .*greater than 0"),
        ({"steps": "1.5"}, "steps: .*integer"),
        ({"model.activation": "tanh"}, "model.activation: .*'relu'"),
        ({"model.n_head": "3"}, "n_head 3 does not divide d_model 32"),
        ({"batch.microbatches": "3"}, "batch.sequences 16 is not divisible"),
        ({"schedule.warmup_steps": "100"}, "leaves nothing of 100 steps"),
        ({"optimizer.name": "adam", "optimizer.weight_decay": "0.1"}, "weight_decay .*adamw"),
        ({"optimizer.name": "sgd", "optimizer.weight_decay": "0.1"}, "weight_decay .*not sgd"),
        ({"optimizer.momentum": "0.9"}, "momentum belongs to sgd and muon, not adamw"),
        ({"optimizer.name": "lion"}, "optimizer.name: .*'muon'"),
        ({"engine.attention": "flash"}, "engine.attention: .*'splash'.*'flash'"),
        ({"engine.lanes": "0"}, "engine.lanes: .*greater than 0"),
        ({"mesh.fdsp": "2"}, "Did you mean 'mesh.fsdp'?"),
        ({"compute_dtype": "float16"}, "compute_dtype: .*'bfloat16'"),
        ({"data.unique_tokens": "0"}, "data.unique_tokens: .*greater than 0"),
        ({"optimizer.lr_peak": "NaN"}, "optimizer.lr_peak: .*finite"),
        ({"model.dropout": "1"}, "model.dropout: .*less than 1"),
        ({"seed": str(2**31)}, "seed: .*less than 2147483648"),
    ],
)
def test_a_wrong_override_is_named(settings: dict[str, str], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        override(BASE, settings)


def test_every_fault_of_a_config_is_named() -> None:
    doc = {"model": {"d_modle": 32}, "steps": -1, "optimiser": {}}
    with pytest.raises(RequestError) as caught:
        parse_config(doc)
    message = str(caught.value)
    assert "Did you mean 'model.d_model'?" in message
    assert "steps" in message
    assert "optimiser" in message


def test_a_config_without_steps_is_refused() -> None:
    with pytest.raises(RequestError, match="steps: Field required"):
        parse_config({"model": {}})
