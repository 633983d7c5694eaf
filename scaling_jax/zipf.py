"""A process of Zipf-distributed facts whose entropy and scaling exponents are known exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from scaling_jax.errors import RequestError


@dataclass(frozen=True)
class ZipfFacts:
    """Documents of facts: a key drawn by Zipf's law, then the value that this key always has.

    Key i of `n_keys` has the probability p_i ~ i^-(1 + alpha), each time anew; its value is one of
    `n_values`, drawn once and uniformly. After every fact the document ends with probability
    1 / `mean_facts`, which its separator says. So the tokens are a Markov chain of order one: what
    follows depends on the last token alone, wherever a window begins and whatever its length, and
    one token of context is enough to reach the entropy.

    The exponents are those of learning the facts (Hutter 2021, arXiv 2102.04074; Michaud et al.
    2023, arXiv 2303.13506; Cabannes et al. 2024, arXiv 2310.02984, whose alpha is 1 + `alpha`).
    They hold whatever a fact costs that was seen so and so often, as long as that depends on how
    often alone: the sum over i of p_i g(n p_i) falls as n^(-alpha / (1 + alpha)) for every g that
    falls fast enough, until the rarest key is seen. Learning how frequent the keys are costs more
    beside; the fewer the values, the larger its share.

    Raises `RequestError` for values that make no such process.
    """

    n_keys: int = 512
    n_values: int = 256
    alpha: float = 1.0
    mean_facts: float = 16.0

    def __post_init__(self) -> None:
        for name, least in (("n_keys", 2), ("n_values", 2), ("mean_facts", 2)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least):
                raise RequestError(f"facts with {name} {value:g}: it is {least} or more")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise RequestError(f"facts with alpha {self.alpha:g}: it is above 0")

    @property
    def key_probabilities(self) -> np.ndarray:
        """float64 [n_keys], falling."""
        weights = np.arange(1, self.n_keys + 1, dtype=np.float64) ** -(1.0 + self.alpha)
        return weights / math.fsum(weights)

    @property
    def tokens_a_fact(self) -> float:
        """A key, a value, and the fact's share of the separator."""
        return 2.0 + 1.0 / self.mean_facts

    @property
    def entropy_nats(self) -> float:
        """Entropy rate, nats a token: no model's expected loss is below it.

        Per fact that of the key and of whether the document ends; the value of a known key has
        none.
        """
        p, end = self.key_probabilities, 1.0 / self.mean_facts
        of_key = -math.fsum(p * np.log(p))
        of_end = -(end * math.log(end) + (1.0 - end) * math.log1p(-end))
        return (of_key + of_end) / self.tokens_a_fact

    @property
    def data_exponent(self) -> float:
        """Of the excess loss in the tokens of training data, as they and the keys grow.

        alpha / (1 + alpha): beta of Hutter (2021), alpha_D of Michaud et al. (2023, §2),
        1 - 1 / alpha of Cabannes et al. (2024). That of the steps of a single epoch is the same.
        """
        return self.alpha / (1.0 + self.alpha)

    @property
    def capacity_exponent(self) -> float:
        """Of the excess loss in the number of facts that a model holds, the most frequent first.

        alpha: alpha_N of Michaud et al. (2023, §2), alpha - 1 of Cabannes et al. (2024).
        """
        return self.alpha

    def excess_of_data(self, tokens: ArrayLike) -> np.ndarray:
        """Nats a token above the entropy of a learner of `tokens` who knows all but the values.

        The mean over data and over values, exact at this number of keys: a fact that was seen
        costs nothing, one that was not ln(n_values). On average no learner has less.
        """
        return self._unseen(tokens).sum(-1) * math.log(self.n_values) / self.tokens_a_fact

    def local_data_exponent(self, tokens: ArrayLike) -> np.ndarray:
        """-d ln excess_of_data / d ln tokens: above `data_exponent` where keys run out."""
        rate, unseen = -np.log1p(-self.key_probabilities), self._unseen(tokens)
        return self._facts_in(tokens) * (unseen * rate).sum(-1) / unseen.sum(-1)

    def excess_of_capacity(self, facts: ArrayLike) -> np.ndarray:
        """Nats a token above the entropy of who holds that many `facts`, the most frequent."""
        left = np.append(np.cumsum(self.key_probabilities[::-1])[::-1], 0.0)
        held = np.minimum(np.asarray(facts, np.int64), self.n_keys)
        return left[held] * math.log(self.n_values) / self.tokens_a_fact

    def _facts_in(self, tokens: ArrayLike) -> np.ndarray:
        return np.asarray(tokens, np.float64) / self.tokens_a_fact

    def _unseen(self, tokens: ArrayLike) -> np.ndarray:
        """Probability of each key, and that it was not seen before: [..., n_keys]."""
        p, n = self.key_probabilities, self._facts_in(tokens)
        return p * np.exp(n[..., None] * np.log1p(-p))
