"""Documents to tokens and back. The separator, which closes a document, is a token beside them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from scaling_jax.config_data import TokenizerConfig
from scaling_jax.data.sources.source import Document, decoded
from scaling_jax.errors import RequestError

Told = Callable[[str, int, int | None], None]
"""Hears what is being done, how many bytes of it are done, and of how many where that is known."""

TRAINED_ON = 2**26
"""Bytes of text that a tokenizer is trained on, at most."""


class Tokenizer(Protocol):
    """What turns the contents of documents into token ids; several threads may use one."""

    @property
    def kind(self) -> str:
        """`bytes`, `bpe`, `sentencepiece`, or `tokens` where a source has its own vocabulary."""
        ...

    @property
    def n_vocab(self) -> int:
        """Number of token ids, the separator among them."""
        ...

    @property
    def separator(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of all that determines how it encodes."""
        ...

    @property
    def token_bytes(self) -> np.ndarray | None:
        """int64 [n_vocab], bytes of text a token stands for; None where they cannot be known."""
        ...

    @property
    def lost(self) -> list[str]:
        """What of a text decoding does not give back."""
        ...

    def encode(self, documents: Sequence[Document]) -> list[np.ndarray]:
        """The tokens of each document, without separator, in `dtype_of(n_vocab)`.

        Raises `RequestError` for content it cannot read.
        """
        ...

    def decode(self, tokens: np.ndarray) -> str:
        """The text of tokens, separators left out; bytes that are no text as U+FFFD."""
        ...

    def to_bytes(self) -> bytes | None:
        """The file from which it is read again; None where its kind and size say everything."""
        ...


def dtype_of(n_vocab: int) -> np.dtype:
    """The smallest unsigned integers, little-endian, that hold every token."""
    fitting = (width for width in (1, 2, 4) if n_vocab <= 256**width)
    return np.dtype(f"<u{next(fitting)}")


class ByteTokenizer:
    """A token for each byte."""

    kind = "bytes"
    n_vocab = 257
    separator = 256
    fingerprint = hashlib.sha256(b"scaling_jax bytes 257\n").hexdigest()

    def __init__(self) -> None:
        self.token_bytes: np.ndarray | None = np.array([1] * 256 + [0], np.int64)
        self.lost: list[str] = []

    def encode(self, documents: Sequence[Document]) -> list[np.ndarray]:
        return [np.frombuffer(text_of(document), np.uint8).astype("<u2") for document in documents]

    def decode(self, tokens: np.ndarray) -> str:
        tokens = np.asarray(tokens)
        return tokens[tokens < 256].astype(np.uint8).tobytes().decode(errors="replace")

    def to_bytes(self) -> bytes | None:
        return None


class TokenIds:
    """The tokens of a source that has its own vocabulary of `n_ids`, and a separator after them."""

    kind = "tokens"

    def __init__(self, n_ids: int) -> None:
        self.n_vocab, self.separator = n_ids + 1, n_ids
        self.fingerprint = hashlib.sha256(f"scaling_jax tokens {n_ids}\n".encode()).hexdigest()
        self.token_bytes: np.ndarray | None = None
        self.lost: list[str] = []

    def encode(self, documents: Sequence[Document]) -> list[np.ndarray]:
        return [self._checked(np.asarray(document.content)) for document in documents]

    def _checked(self, tokens: np.ndarray) -> np.ndarray:
        if tokens.ndim != 1 or (len(tokens) and not np.issubdtype(tokens.dtype, np.integer)):
            raise RequestError("A source of tokens is to yield flat arrays of integers.")
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < self.separator:
            raise RequestError(
                f"A source of {self.separator} token ids yields {tokens.min()} to {tokens.max()}."
            )
        return tokens.astype(dtype_of(self.n_vocab))

    def decode(self, tokens: np.ndarray) -> str:
        return " ".join(str(token) for token in np.asarray(tokens).tolist())

    def to_bytes(self) -> bytes | None:
        return None


class SentencePiece:
    """A SentencePiece model; its end of sentence is the separator where it has one."""

    kind = "sentencepiece"

    def __init__(self, data: bytes, where: str) -> None:
        package = need("sentencepiece")
        self._model = package.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(data)
        except (RuntimeError, ValueError, OSError):
            raise RequestError(f"{where} is not a SentencePiece model.") from None
        self._data = data
        n_pieces, end = self._model.get_piece_size(), self._model.eos_id()
        self.n_vocab = n_pieces if end >= 0 else n_pieces + 1
        self.separator = end if end >= 0 else n_pieces
        self.fingerprint = hashlib.sha256(b"scaling_jax sentencepiece\n" + data).hexdigest()
        self.token_bytes: np.ndarray | None = None
        self.lost = ["what the SentencePiece model normalises: spaces, line ends, rare characters"]

    def encode(self, documents: Sequence[Document]) -> list[np.ndarray]:
        texts = [decoded_text(document) for document in documents]
        rows = self._model.encode(texts, out_type=int, num_threads=1) if texts else []
        return [np.array(row, dtype_of(self.n_vocab)) for row in rows]

    def decode(self, tokens: np.ndarray) -> str:
        return self._model.decode([t for t in np.asarray(tokens).tolist() if t != self.separator])

    def to_bytes(self) -> bytes | None:
        return self._data


def open_tokenizer(config: TokenizerConfig) -> Tokenizer | None:
    """The tokenizer that `config` names, None for one that is to be trained.

    Raises `RequestError` for a file that cannot be read, a size that cannot be had, and for a
    package not installed.
    """
    if config.name == "bytes":
        return ByteTokenizer()
    if config.file is None:
        require_size(config.n_vocab or 0)
        return None
    try:
        data = Path(os.path.expanduser(config.file)).read_bytes()
    except OSError as error:
        raise RequestError(
            f"Cannot read the tokenizer {config.file} ({error.strerror}): "
            "data.tokenizer.file is to be a file on this machine."
        ) from None
    return tokenizer_from(config.name, data, config.file)


def tokenizer_from(kind: str, data: bytes | None, where: str, n_vocab: int = 0) -> Tokenizer:
    """The tokenizer of that kind that `to_bytes` gave; `n_vocab` counts for `tokens` alone."""
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "tokens":
        return TokenIds(n_vocab - 1)
    if kind == "sentencepiece":
        return SentencePiece(data or b"", where)
    from scaling_jax.data.bpe import BytePairs

    return BytePairs(data or b"", where)


def require_size(n_vocab: int) -> None:
    """Raises `RequestError` where a bpe of `n_vocab` tokens cannot hold what every one holds."""
    if n_vocab < 257:
        raise RequestError(
            f"A bpe of {n_vocab} tokens cannot hold the 256 bytes and the separator: "
            "let data.tokenizer.n_vocab be 257 or more."
        )


def need(package: str) -> Any:
    """The package of a tokenizer; raises `RequestError` naming our extra where it is missing."""
    if importlib.util.find_spec(package) is None:
        raise RequestError(
            f"This tokenizer needs the package {package}: pip install 'scaling_jax[{package}]'."
        )
    module: ModuleType = importlib.import_module(package)
    return module


def text_of(document: Document) -> bytes:
    """The bytes of a document of text."""
    if isinstance(document.content, bytes):
        return document.content
    raise RequestError(f"Document {document.id} is to be text and is token ids.")


def decoded_text(document: Document) -> str:
    """The text of a document; raises `RequestError` where its bytes are not UTF-8."""
    return decoded(text_of(document), f"Document {document.id}")
