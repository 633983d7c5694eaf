"""The parts of a run's config that say what it reads: corpus, tokenizer, evaluation."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

Seed = Annotated[int, Field(ge=0, lt=2**31)]

_CORPUS_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ERROR = "_se"  # ends the name of the column of its standard error
_OWN_SPLITS = ("train", "validation", "test")


class Part(BaseModel):
    """A part of a config: frozen, its fields known by name, its numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TokenizerConfig(Part):
    """How text becomes tokens: single `bytes`, byte-level `bpe`, or a `sentencepiece` model.

    `bpe` is read from `file`, a `tokenizer.json`, or trained on the training split until it has
    `n_vocab` tokens, the separator of documents among them. `sentencepiece` is read from `file`.
    """

    name: Literal["bytes", "bpe", "sentencepiece"] = "bytes"
    n_vocab: PositiveInt | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _fields_belong(self) -> TokenizerConfig:
        if self.n_vocab is not None and (self.name != "bpe" or self.file is not None):
            raise ValueError(
                "data.tokenizer.n_vocab is that of a bpe to be trained: leave it out for bytes "
                "and with data.tokenizer.file"
            )
        if self.name == "bytes" and self.file is not None:
            raise ValueError("data.tokenizer.file belongs to bpe and sentencepiece, not bytes")
        if self.name == "bpe" and self.file is None and self.n_vocab is None:
            raise ValueError(
                "data.tokenizer bpe needs n_vocab, to train one of that size, or file, a "
                "tokenizer.json"
            )
        if self.name == "sentencepiece" and self.file is None:
            raise ValueError("data.tokenizer sentencepiece needs file, a model of it")
        return self


class DataConfig(Part):
    """Where tokens come from, and in which order; `seed` draws it, apart from the run's `seed`.

    `source` is what `scaling-jax data list` shows: `embedded`, a token store, text, JSON lines or
    Parquet, a recipe, `tfds:NAME[/CONFIG]:SPLIT`, or `synthetic[:KEY=VALUE,...]`. Documents are
    split by their ids, of which `split_on` ends the part that counts, so that the chapters of a
    book stay together.

    `order`: uniform `random` windows; `epochs`, every token once in each; `documents`, the same
    with windows that begin with a document and train on nothing beyond its end.
    `unique_tokens` confines training to exactly so many tokens: the first of the training
    documents in an order drawn from `subset_seed`, so that a smaller subset lies in a larger one.
    """

    source: str = "embedded"
    text_field: str = "text"
    tokenizer: TokenizerConfig = TokenizerConfig()
    split_on: str | None = None
    order: Literal["random", "epochs", "documents"] = "random"
    seed: Seed = 0
    unique_tokens: PositiveInt | None = None
    subset_seed: Seed = 0


class EvaluationConfig(Part):
    """What is read at `per_decade` log-spaced steps: `tokens` of one fixed set of each corpus.

    The validation and test splits, and further `corpora`, name to source, each of them whole.
    """

    tokens: PositiveInt = 32768
    per_decade: PositiveInt = 12
    corpora: dict[str, str] = {}

    @model_validator(mode="after")
    def _names_are_columns(self) -> EvaluationConfig:
        for name in self.corpora:
            if not _CORPUS_NAME.fullmatch(name) or name in _OWN_SPLITS or name.endswith(_ERROR):
                raise ValueError(
                    f"evaluation.corpora {name!r} is to name a column: small letters, digits and "
                    f"'_', not {', '.join(_OWN_SPLITS)}, and without {_ERROR} at its end"
                )
        return self
