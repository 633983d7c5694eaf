"""What one run is: `RunConfig` and its parts, frozen, validated, with a JSON round trip."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from scaling_jax.config_data import DataConfig, EvaluationConfig, Part, Seed
from scaling_jax.config_data import TokenizerConfig as TokenizerConfig
from scaling_jax.records.schema import PLACEMENT, READ_FROM

DECAYING = ("adamw", "adafactor", "muon")
ADAPTIVE = ("adam", "adamw")


class ModelConfig(Part):
    """A decoder-only Transformer with the shape names of Kaplan et al. (2020), §2.1.

    With `document_mask` no token attends to what stands before its own document.
    """

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
    document_mask: bool = False

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.d_model % self.n_head:
            raise ValueError(f"n_head {self.n_head} does not divide d_model {self.d_model}")
        return self


class BatchPolicyConfig(Part):
    """How the batch changes in the course of a run; it begins with `batch.sequences`.

    `ramp` is pairs of a step and the sequences from that step on. `noise_scale` doubles or halves
    the batch, between `batch.sequences` and `most_sequences`, so that it follows B_simple (in
    sequences), or sqrt(exchange B_simple) where an exchange rate is given: as many sequences as
    one step is worth (McCandlish et al. 2018, eq. D.6). It decides after every `every` steps, by
    the updates since it decided last. A microbatch keeps its rows, and the learning rate is
    multiplied by (B / batch.sequences)^lr_exponent; without `lr_exponent` by the square root, and
    for `sgd` by B / batch.sequences itself (Malladi et al. 2022; Goyal et al. 2017).
    """

    name: Literal["fixed", "ramp", "noise_scale"] = "fixed"
    ramp: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    most_sequences: PositiveInt | None = None
    exchange: PositiveFloat | None = None
    every: PositiveInt = 100
    lr_exponent: NonNegativeFloat | None = None

    @model_validator(mode="after")
    def _fields_belong(self) -> BatchPolicyConfig:
        for field, policy in (
            ("ramp", "ramp"),
            ("most_sequences", "noise_scale"),
            ("exchange", "noise_scale"),
        ):
            if getattr(self, field) and self.name != policy:
                raise ValueError(
                    f"batch.policy.{field} belongs to the policy {policy}, not {self.name}"
                )
        if self.name == "ramp" and not self.ramp:
            raise ValueError(
                "the policy ramp needs batch.policy.ramp: pairs of a step and the sequences from "
                "that step on, as in [[1000, 32], [4000, 64]]"
            )
        if self.name == "noise_scale" and self.most_sequences is None:
            raise ValueError(
                "the policy noise_scale needs batch.policy.most_sequences, the largest batch"
            )
        steps = [step for step, _ in self.ramp]
        if sorted(set(steps)) != steps:
            raise ValueError(f"the steps of batch.policy.ramp must increase: {steps}")
        return self

    def describe(self) -> str:
        """As in `ramp 1000:32 4000:64`, in the runs table."""
        if self.name == "ramp":
            return " ".join(["ramp", *(f"{step}:{sequences}" for step, sequences in self.ramp)])
        if self.name == "noise_scale":
            follows = "B_simple" if self.exchange is None else f"sqrt({self.exchange:g} B_simple)"
            most = f"up to {self.most_sequences} sequences"
            return f"noise_scale {follows} every {self.every} steps {most}"
        return self.name


class BatchConfig(Part):
    """`sequences` of `n_ctx` tokens an update, cut into `microbatches` that are summed in turn."""

    sequences: PositiveInt = 16
    microbatches: PositiveInt = 1
    policy: BatchPolicyConfig = BatchPolicyConfig()

    @model_validator(mode="after")
    def _sizes_divide(self) -> BatchConfig:
        if self.sequences % self.microbatches:
            raise ValueError(
                f"batch.sequences {self.sequences} is not divisible by "
                f"batch.microbatches {self.microbatches}"
            )
        most = self.policy.most_sequences
        if most is not None and most < 2 * self.sequences:
            raise ValueError(
                f"batch.policy.most_sequences {most} leaves no size but batch.sequences "
                f"{self.sequences}: it takes {2 * self.sequences} or more, twice that, or the "
                "policy fixed"
            )
        for sequences in self.sizes:
            if sequences % self.microbatches_at(sequences):
                raise ValueError(
                    f"a batch of {sequences}, which batch.policy.ramp leads to, is not divisible "
                    f"into {self.microbatches_at(sequences)} microbatches of at most "
                    f"{self.sequences // self.microbatches} sequences"
                )
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every size that the policy may lead to, in sequences, ascending."""
        policy, sizes = self.policy, [self.sequences]
        while policy.most_sequences is not None and 2 * sizes[-1] <= policy.most_sequences:
            sizes.append(2 * sizes[-1])
        return tuple(sorted({*sizes, *(sequences for _, sequences in policy.ramp)}))

    def microbatches_at(self, sequences: int) -> int:
        """Microbatches of a batch of another size: as few as have no more rows than at first."""
        return -(-sequences * self.microbatches // self.sequences)


class OptimizerConfig(Part):
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


class ScheduleConfig(Part):
    """Linear warm-up, then the named shape down to `final_fraction` of the peak at the last step.

    `decay_fraction` is the share of the run that a `wsd` schedule spends decaying.
    """

    name: Literal["constant", "cosine", "linear", "wsd"] = "constant"
    warmup_steps: NonNegativeInt = 0
    final_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    decay_fraction: float = Field(default=0.2, gt=0.0, le=1.0)


class MeshConfig(Part):
    """Devices along each mesh axis; `None` takes as many as fit.

    Lanes come first, then as much `fsdp` as one model needs to fit in memory, then `data`;
    `tensor` is taken only where it is asked for.
    """

    lane: PositiveInt | None = None
    data: PositiveInt | None = None
    fsdp: PositiveInt | None = None
    tensor: PositiveInt | None = None


class EngineConfig(Part):
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


class NoiseConfig(Part):
    """Which gradient noise moments a run records: of at least `groups` equal groups of a batch.

    `groups=None` takes what the cut of the batch gives: microbatches times data shards.
    `sequences` adds the norms of single sequences' gradients, taken inside the backward pass: of
    the LayerNorms alone (`norms`) or of `all` kinds of parameters and their total. `parts` adds
    each kind of parameter beside the total of the groups. `preconditioned` adds the groups'
    moments under the metric of Adam's update; single sequences have none, since the backward pass
    knows no metric.

    The masks of dropout are part of the noise. The default records it so; whatever is asked for
    here by name is refused with dropout, which a noise scale that is compared with others lacks.
    """

    enabled: bool = True
    groups: PositiveInt | None = None
    sequences: Literal["none", "norms", "all"] = "none"
    parts: bool = False
    preconditioned: bool = False

    def asked(self) -> list[str]:
        """The fields that ask for more than the default records."""
        default = NoiseConfig()
        names = ("groups", "sequences", "parts", "preconditioned")
        return [name for name in names if getattr(self, name) != getattr(default, name)]


class BranchConfig(Part):
    """Where a run begins that another one trained until then: its checkpoint of `step`.

    `run` is another run of the study, by name, or any run of the same folder, by its run_id. The
    branch goes on with the parameters and the optimizer's state; `step` and `tokens` go on, too.
    Its batches are those of its own config: in an order, another size takes up another window.
    """

    run: str
    step: PositiveInt


class CheckpointConfig(Part):
    """How often a cohort's state is written, so that it can go on from there; never its numbers.

    Every `every_s` seconds, of which the last two stay, and at `kept_per_decade` log-spaced steps
    from 10 on, which stay for good. The last state always stays.
    """

    every_s: PositiveFloat = 60.0
    kept_per_decade: NonNegativeInt = 1


class RunConfig(Part):
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
    checkpoint: CheckpointConfig = CheckpointConfig()
    branch: BranchConfig | None = None
    steps: PositiveInt
    seed: Seed = 0
    matmul_precision: Literal["default", "high", "highest"] = "highest"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _noise_can_be_measured(self) -> RunConfig:
        noise = self.noise
        if not noise.enabled:
            return self
        if self.model.dropout and noise.asked():
            raise ValueError(
                f"noise.{noise.asked()[0]} would measure the masks of model.dropout "
                f"{self.model.dropout} with the gradients: set model.dropout=0, or noise.enabled="
                "false"
            )
        if noise.preconditioned and self.optimizer.name not in ADAPTIVE:
            raise ValueError(
                "noise.preconditioned needs the second moments of "
                f"{' or '.join(ADAPTIVE)}, which {self.optimizer.name} has not"
            )
        if noise.sequences != "none" and self.batch.sequences == 1:
            raise ValueError(
                f"noise.sequences={noise.sequences} compares single sequences with a batch of "
                "more: raise batch.sequences above 1"
            )
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> RunConfig:
        if self.schedule.warmup_steps >= self.steps:
            raise ValueError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} leaves nothing of "
                f"{self.steps} steps"
            )
        return self

    @model_validator(mode="after")
    def _branch_goes_on(self) -> RunConfig:
        if self.branch is not None and self.branch.step >= self.steps:
            raise ValueError(
                f"branch.step {self.branch.step} leaves nothing of {self.steps} steps, which count "
                "from step 0 of the run that it branches from"
            )
        return self

    @model_validator(mode="after")
    def _policy_can_decide(self) -> RunConfig:
        policy = self.batch.policy
        if policy.ramp and policy.ramp[-1][0] >= self.steps:
            raise ValueError(
                f"batch.policy.ramp changes the batch at step {policy.ramp[-1][0]}, and the run "
                f"has {self.steps} steps"
            )
        if policy.name != "noise_scale":
            return self
        if not self.noise.enabled:
            raise ValueError("the policy noise_scale reads the noise scale: set noise.enabled=true")
        if max(self.noise.groups or 1, self.batch.microbatches) == 1:
            raise ValueError(
                "the policy noise_scale needs two groups a batch or more, whatever the machine: "
                "set noise.groups or batch.microbatches"
            )
        if policy.every >= self.steps:
            raise ValueError(
                f"batch.policy.every {policy.every} leaves no decision within {self.steps} steps"
            )
        return self

    @property
    def begin_step(self) -> int:
        """The step that the run begins at: 0, but for a branch."""
        return self.branch.step if self.branch else 0

    @property
    def batch_tokens(self) -> int:
        """Tokens an update, at first where the batch changes."""
        return self.batch.sequences * self.model.n_ctx

    def at_batch(self, sequences: int) -> RunConfig:
        """The run while its batch has `sequences`: a batch that is fixed, and its learning rate."""
        exponent = self.batch.policy.lr_exponent
        if exponent is None:
            exponent = 1.0 if self.optimizer.name == "sgd" else 0.5
        microbatches = self.batch.microbatches_at(sequences)
        lr_peak = self.optimizer.lr_peak * (sequences / self.batch.sequences) ** exponent
        return self.model_copy(
            update={
                "batch": BatchConfig(sequences=sequences, microbatches=microbatches),
                "optimizer": self.optimizer.model_copy(update={"lr_peak": lr_peak}),
            }
        )

    def unique_tokens(self, n_tokens: int) -> int:
        """Tokens that the run draws from, of a training split of `n_tokens`."""
        return n_tokens if self.data.unique_tokens is None else self.data.unique_tokens

    def identity(self) -> dict[str, Any]:
        """The fields that determine the run's numbers, and not where and how it is computed.

        Of the corpora only the names: what they hold is in the corpus's fingerprint.
        """
        doc = self.model_dump(mode="json", exclude=set(PLACEMENT))
        for field in READ_FROM:
            del doc["data"][field]
        doc["evaluation"]["corpora"] = dict.fromkeys(self.evaluation.corpora, "")
        return doc

    def run_id(self, corpus_fingerprint: str) -> str:
        """Twelve hex digits of the identity together with the corpora it reads."""
        doc = {"config": self.identity(), "corpus": corpus_fingerprint}
        return hashlib.sha256(json.dumps(doc, sort_keys=True).encode()).hexdigest()[:12]
