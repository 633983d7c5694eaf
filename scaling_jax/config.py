"""What one run is: `RunConfig` and its parts, frozen, validated, with a JSON round trip."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from scaling_jax.errors import RequestError, nearest

DECAYING = ("adamw", "adafactor", "muon")

Seed = Annotated[int, Field(ge=0, lt=2**31)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(_Part):
    """A decoder-only Transformer with the shape names of Kaplan et al. (2020), §2.1."""

    arch: Literal["transformer"] = "transformer"
    n_layer: PositiveInt = 2
    d_model: PositiveInt = 64
    n_head: PositiveInt = 4
    d_ff: PositiveInt = Field(default_factory=lambda fields: 4 * fields["d_model"])
    n_ctx: PositiveInt = 128
    n_vocab: PositiveInt = 257
    activation: Literal["relu", "gelu", "silu"] = "gelu"
    tied_embeddings: bool = False
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.d_model % self.n_head:
            raise ValueError(f"n_head {self.n_head} does not divide d_model {self.d_model}")
        return self


class DataConfig(_Part):
    """Where tokens come from; `seed` draws the windows and is apart from the run's `seed`.

    `unique_tokens` confines training to the first so many tokens of the training split.
    """

    source: Literal["embedded"] = "embedded"
    seed: Seed = 0
    unique_tokens: PositiveInt | None = None


class BatchConfig(_Part):
    """`sequences` of `n_ctx` tokens an update, cut into `microbatches` that are summed in turn."""

    sequences: PositiveInt = 16
    microbatches: PositiveInt = 1

    @model_validator(mode="after")
    def _microbatches_divide(self) -> BatchConfig:
        if self.sequences % self.microbatches:
            raise ValueError(
                f"batch.sequences {self.sequences} is not divisible by "
                f"batch.microbatches {self.microbatches}"
            )
        return self


class OptimizerConfig(_Part):
    """`weight_decay` is decoupled and acts on matrices only; `grad_clip` is a global norm.

    `muon` orthogonalises the matrices of the blocks, its updates scaled to the size of AdamW's so
    that rates carry over (Liu et al. 2025), and leaves all else to Adam. `adafactor` is without
    the scale of the parameters, so that its rates, too, are those of Adam.
    """

    name: Literal["adamw", "adam", "adafactor", "sgd", "muon"] = "adamw"
    lr_peak: PositiveFloat = 1e-3
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    eps: PositiveFloat = 1e-8
    momentum: float = Field(
        default_factory=lambda fields: 0.95 if fields["name"] == "muon" else 0.0, ge=0.0, lt=1.0
    )
    weight_decay: NonNegativeFloat = 0.0
    grad_clip: PositiveFloat | None = None

    @model_validator(mode="after")
    def _fields_belong(self) -> OptimizerConfig:
        if self.weight_decay and self.name not in DECAYING:
            raise ValueError(
                f"weight_decay is decoupled and belongs to {', '.join(DECAYING)}, not {self.name}"
            )
        if self.momentum and self.name not in ("sgd", "muon"):
            raise ValueError(f"momentum belongs to sgd and muon, not {self.name}")
        return self


class ScheduleConfig(_Part):
    """Linear warm-up, then the named shape down to `final_fraction` of the peak at the last step.

    `decay_fraction` is the share of the run that a `wsd` schedule spends decaying.
    """

    name: Literal["constant", "cosine", "linear", "wsd"] = "constant"
    warmup_steps: NonNegativeInt = 0
    final_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    decay_fraction: float = Field(default=0.2, gt=0.0, le=1.0)


class MeshConfig(_Part):
    """Devices along each mesh axis; `None` takes as many as fit.

    Lanes come first, then as much `fsdp` as one model needs to fit in memory, then `data`;
    `tensor` is taken only where it is asked for.
    """

    lane: PositiveInt | None = None
    data: PositiveInt | None = None
    fsdp: PositiveInt | None = None
    tensor: PositiveInt | None = None


class EngineConfig(_Part):
    """How a run is computed, which changes its numbers by rounding alone; `None` chooses.

    `lanes`: the most runs that train together in one program, 1 for each alone. `feed`: batches
    gathered from tokens on the device, or sent by the host. `layers`: one traced layer scanned, or
    each traced. `remat`: what the backward pass computes anew: nothing, all but the products with
    parameters, or whole layers.
    """

    lanes: PositiveInt | None = None
    feed: Literal["device", "host"] | None = None
    attention: Literal["xla", "blocks", "cudnn", "splash"] | None = None
    layers: Literal["scan", "unrolled"] | None = None
    remat: Literal["none", "dots", "full"] = "none"


class EvaluationConfig(_Part):
    """`tokens` of one fixed validation set, read at `per_decade` log-spaced steps."""

    tokens: PositiveInt = 32768
    per_decade: PositiveInt = 12


class NoiseConfig(_Part):
    """Record the gradient noise moments from at least `groups` equal groups of a batch's rows.

    `None` takes what the cut of the batch gives: microbatches times data shards.
    """

    enabled: bool = True
    groups: PositiveInt | None = None


class RunConfig(_Part):
    """One training of one model; two equal configs give equal numbers.

    `compute_dtype` is that of activations and products; parameters, optimizer state, losses and
    noise moments are float32 whatever it is. `matmul_precision` is that of float32 products.
    """

    model: ModelConfig
    data: DataConfig = DataConfig()
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    mesh: MeshConfig = MeshConfig()
    engine: EngineConfig = EngineConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    noise: NoiseConfig = NoiseConfig()
    steps: PositiveInt
    seed: Seed = 0
    matmul_precision: Literal["default", "high", "highest"] = "highest"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _warmup_ends(self) -> RunConfig:
        if self.schedule.warmup_steps >= self.steps:
            raise ValueError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} leaves nothing of "
                f"{self.steps} steps"
            )
        return self

    @property
    def batch_tokens(self) -> int:
        """Tokens an update."""
        return self.batch.sequences * self.model.n_ctx

    def unique_tokens(self, n_tokens: int) -> int:
        """Tokens that the run draws from, of a training split of `n_tokens`."""
        return n_tokens if self.data.unique_tokens is None else self.data.unique_tokens

    def identity(self) -> dict[str, Any]:
        """The fields that determine the run's numbers, and not where and how it is computed."""
        return self.model_dump(mode="json", exclude={"mesh", "engine"})

    def run_id(self, corpus_fingerprint: str) -> str:
        """Twelve hex digits of the identity together with the corpus it is trained on."""
        doc = {"config": self.identity(), "corpus": corpus_fingerprint}
        return hashlib.sha256(json.dumps(doc, sort_keys=True).encode()).hexdigest()[:12]


def parse_config(doc: Mapping[str, Any]) -> RunConfig:
    """A `RunConfig` from plain data.

    Raises `RequestError` naming each faulty field, with the nearest right name of an unknown one.
    """
    try:
        return RunConfig.model_validate(doc)
    except ValidationError as error:
        raise RequestError(explain(error)) from None


def override(config: RunConfig, settings: Mapping[str, str]) -> RunConfig:
    """The config with dotted fields replaced, as in `{"model.n_layer": "3"}`.

    A value is read as JSON where it is JSON and as a plain word otherwise. Setting `model.d_model`
    without `model.d_ff` keeps the ratio d_ff / d_model, and another `optimizer.name` without
    `optimizer.momentum` brings the momentum that it has by default. Raises `RequestError`.
    """
    doc = config.model_dump(mode="json")
    ff_ratio = config.model.d_ff / config.model.d_model
    for dotted, text in settings.items():
        *parents, leaf = dotted.split(".")
        part = doc
        for i, name in enumerate([*parents, leaf]):
            if not isinstance(part, dict) or name not in part:
                known = _dotted_fields(RunConfig)
                raise RequestError(f"No config field {dotted!r}.{nearest(dotted, known)}")
            if i < len(parents):
                part = part[name]
        if isinstance(part[leaf], dict):
            inside = ", ".join(f"{dotted}.{name}" for name in part[leaf])
            raise RequestError(f"{dotted!r} is a group of fields; set one of: {inside}")
        try:
            part[leaf] = json.loads(text)
        except json.JSONDecodeError:
            part[leaf] = text
    d_model = doc["model"]["d_model"]
    if doc["optimizer"]["name"] != config.optimizer.name and "optimizer.momentum" not in settings:
        del doc["optimizer"]["momentum"]
    if "model.d_model" in settings and "model.d_ff" not in settings and isinstance(d_model, int):
        doc["model"]["d_ff"] = round(ff_ratio * d_model)
    return parse_config(doc)


def _dotted_fields(part: type[BaseModel], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in part.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names += _dotted_fields(inner, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def explain(error: ValidationError) -> str:
    """What is wrong with a config, a line a fault, with the nearest right name of a field."""
    known = _dotted_fields(RunConfig)
    lines = []
    for fault in error.errors(include_url=False):
        if fault["type"] == "default_factory_not_called":  # the fault is in the field it reads
            continue
        dotted = ".".join(str(place) for place in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(f"No config field {dotted!r}.{nearest(dotted, known)}")
        else:
            whole_part = isinstance(fault["input"], Mapping)  # a fault between fields names them
            message = fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "value_error" and whole_part:
                lines.append(message)
            else:
                lines.append(
                    f"{dotted}: {message}" + ("" if whole_part else f" (got {fault['input']!r})")
                )
    return "\n".join(lines)
