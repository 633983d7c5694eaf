"""The noise scale with the Hessian at fixed parameters, from rows drawn for nothing else."""

from __future__ import annotations

from functools import partial
from math import gcd
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaling_jax.config import EngineConfig, MeshConfig, RunConfig
from scaling_jax.data.corpus import Corpus
from scaling_jax.data.sampler import host_windows
from scaling_jax.data.tokens import gather_rows
from scaling_jax.data.training_set import training_set
from scaling_jax.errors import RequestError, WorkError
from scaling_jax.training.curvature import (
    CurvatureMoments,
    cross_entropy_forms,
    cross_entropy_loss,
    curvature_moments,
)
from scaling_jax.training.engine import SCAN_FROM
from scaling_jax.training.mesh import make_mesh
from scaling_jax.training.sharding import replicated
from scaling_jax.training.step import dropout_keys, make_model

# In the place of a step of training, which it never is, so that these draws are apart.
_APART = 2**32 - 1
# Tokens of one pass through the model on one device.
_TOKENS_AT_ONCE = 2048


class Draws(NamedTuple):
    """What is drawn at a step: `draws` times `sequences` rows and `hessian_sequences` others.

    The gradients are those of the rows in `groups`, the curvature that of the others.
    """

    draws: int = 16
    groups: int = 8
    sequences: int = 256
    hessian_sequences: int = 8

    def describe(self) -> str:
        """As in `16 draws of 256 sequences in 8 groups, in the curvature of 8 others`."""
        return (
            f"{self.draws} draws of {self.sequences} sequences in {self.groups} groups, in the "
            f"curvature of {self.hessian_sequences} others"
        )

    def check(self) -> None:
        """Raises `RequestError` for numbers that measure nothing."""
        for name, least in (("draws", 2), ("groups", 2), ("hessian_sequences", 1)):
            if getattr(self, name) < least:
                raise RequestError(f"{name} is {least} at least, not {getattr(self, name)}")
        if self.sequences < 1 or self.sequences % self.groups:
            nearest = self.groups * max(round(self.sequences / self.groups), 1)
            raise RequestError(
                f"{self.sequences} sequences do not divide into {self.groups} groups; the nearest "
                f"that do are {nearest}"
            )


class CurvatureProgram:
    """Measures the parameters of runs of one shape; compiled when first used.

    In float32 whatever the run computes in, since a second derivative loses digits, with dropout as
    the run has it. Rows are laid over as many devices as divide them.
    """

    def __init__(self, config: RunConfig, corpus: Corpus, draws: Draws) -> None:
        draws.check()
        self._config = config.model_copy(update={"compute_dtype": "float32"})
        self._tokens = training_set([config], corpus).tokens
        self._separator = corpus.separator
        self._draws = draws
        each = draws.sequences // draws.groups
        shards = gcd(jax.device_count(), each, draws.hessian_sequences)
        self._mesh = make_mesh(MeshConfig(data=shards))
        at_once = shards * max(_TOKENS_AT_ONCE // config.model.n_ctx, 1)
        self._cuts = (
            (draws.groups, *_microbatches(each, at_once)),
            _microbatches(draws.hessian_sequences, at_once),
        )
        self._compiled: Any = None

    def measure(self, params: Any, step: int) -> list[dict[str, Any]]:
        """The moments at the parameters after `step` updates, as `write_measured` takes them.

        One row a metric. The rows of a draw are random windows of the tokens that the run draws
        from, whatever its order, by a seed derived from its data seed and `step`. Raises
        `WorkError` where a form is not finite.
        """
        params = jax.device_put(params, replicated(self._mesh))
        drawn = [self._draw(params, step, i) for i in range(self._draws.draws)]
        tokens = self._draws.sequences * self._config.model.n_ctx
        rows = []
        for metric in drawn[0].small:
            small, big = (
                np.array([forms[metric] for forms in each], np.float64)
                for each in ([d.small for d in drawn], [d.big for d in drawn])
            )
            if not np.isfinite([small, big]).all():
                raise WorkError(f"the {metric} form is not finite at step {step}")
            rows.append(
                {
                    "metric": metric,
                    "part": "total",
                    "grad_sq_small": small.mean(),
                    "grad_sq_big": big.mean(),
                    "grad_sq_small_sq": np.square(small).mean(),
                    "grad_sq_big_sq": np.square(big).mean(),
                    "grad_sq_small_big": (small * big).mean(),
                    "noise_steps": len(drawn),
                    "batch_small": tokens // self._draws.groups,
                    "batch_big": tokens,
                }
            )
        return rows

    def starts(self, step: int, draw: int) -> np.ndarray:
        """Where the windows of a draw start: the rows of its gradients, then those of curvature."""
        config, rows = self._config, self._draws.sequences + self._draws.hessian_sequences
        seed, n_tokens = _apart(config.data.seed, step), config.unique_tokens(len(self._tokens))
        return host_windows([seed], [draw], rows, [n_tokens], config.model.n_ctx)[0, 0]

    def _draw(self, params: Any, step: int, draw: int) -> CurvatureMoments:
        config, draws = self._config, self._draws
        rows = draws.sequences + draws.hessian_sequences
        width = config.model.n_ctx + 1
        window_bt = gather_rows(self._tokens, self.starts(step, draw), width).astype(np.int32)
        keys_b = None
        if config.model.dropout:
            keys_b = dropout_keys(jnp.uint32(_apart(config.seed, step)), jnp.uint32(draw), rows)
        parts = zip(self._cuts, (slice(draws.sequences), slice(draws.sequences, None)), strict=True)
        cut = [jax.tree.map(partial(_cut, cut, part), (window_bt, keys_b)) for cut, part in parts]
        with jax.set_mesh(self._mesh), jax.default_matmul_precision("highest"):
            if self._compiled is None:
                platform = self._mesh.devices.flat[0].platform
                moments = _make_moments(config, platform, self._separator)
                self._compiled = jax.jit(moments).lower(params, *cut).compile()
            return jax.device_get(self._compiled(params, *cut))


def _make_moments(config: RunConfig, platform: str, separator: int) -> Any:
    # Attention that is differentiable forwards, twice.
    layers = "scan" if config.model.n_layer >= SCAN_FROM.get(platform, 8) else "unrolled"
    model = make_model(config, EngineConfig(attention="blocks", layers=layers), separator)

    def predict(params: Any, rows: tuple[jax.Array, Any]) -> tuple[jax.Array, jax.Array]:
        window_bt, keys_b = rows
        return model(params, window_bt[:, :-1], keys_b), window_bt[:, 1:]

    return partial(curvature_moments, cross_entropy_loss(predict), cross_entropy_forms(predict))


def _cut(shape: tuple[int, ...], part: slice, x_b: Any) -> Any:
    return x_b[part].reshape(*shape, *x_b.shape[1:])


def _microbatches(rows: int, at_once: int) -> tuple[int, int]:
    """How many microbatches `rows` are cut into, and the rows of each, `at_once` at most."""
    each = max(i for i in range(1, rows + 1) if rows % i == 0 and i <= at_once)
    return rows // each, each


def _apart(seed: int, step: int) -> int:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), np.uint32(_APART)), step)
    return int(jax.random.bits(key))
