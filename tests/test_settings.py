from __future__ import annotations

import pytest

from scaling_jax.config import OptimizerConfig
from scaling_jax.errors import RequestError
from scaling_jax.settings import override, parse_config

BASE = parse_config({"model": {"d_model": 32, "n_head": 2}, "steps": 100})
RAMP = {"batch.policy.name": "ramp", "batch.policy.ramp": "[[10, 32], [50, 48]]"}
FOLLOW = {
    "batch.policy.name": "noise_scale",
    "batch.policy.most_sequences": "128",
    "batch.policy.every": "50",
    "noise.groups": "2",
}


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
        ({"noise.sequences": "some"}, "noise.sequences: .*'all'"),
        (
            {"noise.sequences": "all", "batch.sequences": "1"},
            "noise.sequences=all .*raise batch.sequences",
        ),
        (
            {"noise.preconditioned": "true", "optimizer.name": "muon"},
            "second moments of adam or adamw, which muon has not",
        ),
        ({"noise.groups": "2", "model.dropout": "0.1"}, r"noise.groups .*set model.dropout=0"),
        ({"noise.parts": "true", "model.dropout": "0.1"}, r"noise.parts .*noise.enabled=false"),
        ({"engine.attention": "flash"}, "engine.attention: .*'splash'.*'flash'"),
        ({"engine.lanes": "0"}, "engine.lanes: .*greater than 0"),
        ({"mesh.fdsp": "2"}, "Did you mean 'mesh.fsdp'?"),
        ({"compute_dtype": "float16"}, "compute_dtype: .*'bfloat16'"),
        ({"data.unique_tokens": "0"}, "data.unique_tokens: .*greater than 0"),
        ({"optimizer.lr_peak": "NaN"}, "optimizer.lr_peak: .*finite"),
        ({"model.dropout": "1"}, "model.dropout: .*less than 1"),
        ({"seed": str(2**31)}, "seed: .*less than 2147483648"),
        ({"batch.policy.name": "double"}, "batch.policy.name: .*'noise_scale'.*'double'"),
        ({"batch.policy.most_sequence": "3"}, "Did you mean 'batch.policy.most_sequences'?"),
        ({"batch.policy.name": "ramp"}, r"needs batch.policy.ramp: .*\[\[1000, 32\]"),
        ({"batch.policy.ramp": "[[10, 32]]"}, "ramp belongs to the policy ramp, not fixed"),
        (RAMP | {"batch.policy.ramp": "[[10, 8], [5, 4]]"}, r"must increase: \[10, 5\]"),
        (RAMP | {"batch.policy.ramp": "[[10, 17]]"}, "a batch of 17, .* into 2 microbatches"),
        (RAMP | {"batch.policy.ramp": "[[10, 0]]"}, "batch.policy.ramp.0.1: .*greater than 0"),
        (RAMP | {"batch.policy.ramp": "[[100, 32]]"}, "at step 100, and the run has 100 steps"),
        (RAMP | {"batch.policy.exchange": "2"}, "exchange belongs to .* noise_scale, not ramp"),
        (FOLLOW | {"batch.policy.most_sequences": "null"}, "needs batch.policy.most_sequences"),
        (FOLLOW | {"batch.policy.most_sequences": "31"}, "leaves no size but .* 16: .* 32 or more"),
        (FOLLOW | {"noise.enabled": "false"}, "set noise.enabled=true"),
        (FOLLOW | {"noise.groups": "null"}, "set noise.groups or batch.microbatches"),
        (FOLLOW | {"batch.policy.every": "100"}, "leaves no decision within 100 steps"),
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
