"""Documents of Zipf-distributed facts: a corpus whose entropy and exponents are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from scaling_jax.data.sources.source import Document
from scaling_jax.errors import RequestError, nearest
from scaling_jax.zipf import ZipfFacts

_VERSION = 1
_DOCUMENTS_AT_ONCE = 4096
_MOST_VOCABULARY = 2**24  # tables of all token ids are held
_MOST_FACTS = 10_000  # so that the documents drawn at once take some hundred MB
# What a spec calls the fields, and how each is read.
_FIELDS = {
    "tokens": ("tokens", int),
    "seed": ("seed", int),
    "keys": ("n_keys", int),
    "values": ("n_values", int),
    "alpha": ("alpha", float),
    "facts": ("mean_facts", float),
}


@dataclass(frozen=True)
class Synthetic:
    """The documents of a `process` drawn from `seed`, until they have `tokens` with separators.

    Token ids are those of the keys, from the most frequent on, and then of the values. More tokens
    of one seed begin with the same documents. Raises `RequestError` for fewer than one token, a
    negative seed, more facts a document than 10,000, and 2^24 token ids or more.
    """

    process: ZipfFacts = field(default_factory=ZipfFacts)
    tokens: int = 1_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise RequestError(f"synthetic tokens {self.tokens}: it is 1 or more")
        if self.seed < 0:
            raise RequestError(f"synthetic seed {self.seed}: it is 0 or more")
        if self.process.mean_facts > _MOST_FACTS:
            raise RequestError(
                f"synthetic facts {self.process.mean_facts:g}: it is {_MOST_FACTS:,} or fewer"
            )
        if self.n_vocab >= _MOST_VOCABULARY:
            raise RequestError(
                f"synthetic has {self.n_vocab} token ids: it is to have fewer than 2^24"
            )

    @classmethod
    def from_spec(cls, text: str) -> Synthetic:
        """`synthetic[:KEY=VALUE,...]`, as in `synthetic:tokens=2000000,keys=512,alpha=0.7`.

        Keys: `tokens`, `seed`, `keys`, `values`, `alpha`, `facts` (of a document, on average).
        Raises `RequestError` for another key and for a value that is no number.
        """
        named: dict[str, Any] = {}
        for word in filter(None, text.partition(":")[2].split(",")):
            name, _, value = (part.strip() for part in word.partition("="))
            if name not in _FIELDS:
                raise RequestError(f"{text}: no option {name!r}.{nearest(name, _FIELDS)}")
            own, kind = _FIELDS[name]
            if own in named:
                raise RequestError(f"{text}: {name} is given twice")
            try:
                named[own] = kind(value)
            except ValueError:
                what = "a whole number" if kind is int else "a number"
                raise RequestError(f"{text}: {name} is {what}, not {value!r}") from None
        drawn = {own: named.pop(own) for own in ("tokens", "seed") if own in named}
        return cls(ZipfFacts(**named), **drawn)

    @property
    def name(self) -> str:
        return "synthetic"

    @property
    def n_vocab(self) -> int:
        return self.process.n_keys + self.process.n_values

    @property
    def licence(self) -> str | None:
        return None

    @property
    def facts(self) -> dict[str, Any]:
        """The process, its entropy in nats a token, and its exponents."""
        return {
            **asdict(self.process),
            "entropy_nats": self.process.entropy_nats,
            "data_exponent": self.process.data_exponent,
            "capacity_exponent": self.process.capacity_exponent,
        }

    @property
    def skipped(self) -> dict[str, int]:
        return {}

    def key(self) -> dict[str, Any]:
        """The options, which determine every document."""
        return {"kind": "synthetic", "version": _VERSION, **asdict(self)}

    def documents(self) -> Iterator[Document]:
        """Documents of token ids, numbered from 0 in their ids."""
        # Only uniform draws, which stay the same from one version of NumPy to the next.
        process, dtype = self.process, np.min_scalar_type(self.n_vocab)
        value_of = self._values()
        shares = np.cumsum(process.key_probabilities)
        shares[-1] = 1.0
        number = told = block = 0
        while True:
            block += 1
            rng = np.random.default_rng([self.seed, block])
            ends = np.log1p(-rng.random(_DOCUMENTS_AT_ONCE)) / math.log1p(-1.0 / process.mean_facts)
            n_facts = 1 + ends.astype(np.int64)
            keys = np.searchsorted(shares, rng.random(int(n_facts.sum())), side="right")
            tokens = np.stack([keys, value_of[keys]], axis=1).astype(dtype)
            for own in np.split(tokens, np.cumsum(n_facts)[:-1]):
                if told >= self.tokens:
                    return
                yield Document(f"facts-{number:08d}", own.ravel())
                number += 1
                told += own.size + 1

    def _values(self) -> np.ndarray:
        """Token id of the value of each key: int64 [n_keys]."""
        n_keys, n_values = self.process.n_keys, self.process.n_values
        drawn = n_values * np.random.default_rng([self.seed, 0]).random(n_keys)
        return n_keys + drawn.astype(np.int64)
