"""Byte-level BPE: text to bytes to merged pairs, so that every text comes back whole.

Sennrich et al. (2016) on bytes, as in GPT-2 (Radford et al. 2019), by the package `tokenizers`.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from scaling_jax.data.sources.source import Document
from scaling_jax.data.splits import split_of
from scaling_jax.data.tokenizers import (
    TRAINED_ON,
    Told,
    decoded_text,
    dtype_of,
    need,
    require_size,
)
from scaling_jax.errors import RequestError

_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
_BATCH = 2**20  # characters at a time: what the package returns is a hundred times as large
# Before a word and its space, or at the beginning of a line: no known way to split text has a token
# on both sides of that.
_BORDER = re.compile(r"(?<=\S)(?= \w)|(?<=\S\n)(?=\w)")
_OF_CHARACTERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"}


class BytePairs:
    """A byte-level BPE read from a `tokenizer.json`.

    Its end of text is the separator where it has one, and else one token more. What looks like a
    special token in a text is text. Raises `RequestError` for another kind of tokenizer.
    """

    kind = "bpe"

    def __init__(self, data: bytes, where: str) -> None:
        package = need("tokenizers")
        try:
            document = json.loads(data)
            self._model = package.Tokenizer.from_str(data.decode())
        except Exception:  # the package raises plain ones
            raise RequestError(
                f"{where} is not a tokenizer.json that tokenizers {package.__version__} can read."
            ) from None
        _require_byte_level(document, where)
        normalizers, prefixed = _normalizers(document), _is_prefixed(document)
        self.lost = [f"what the normalizer {name} changes" for name in normalizers]
        self.lost += ["whether a document begins with a space"] * prefixed
        self._may_cut = (
            _OF_CHARACTERS.issuperset(normalizers) and not prefixed and _is_split(document)
        )
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True
        self._data = data
        vocabulary: dict[str, int] = self._model.get_vocab(with_added_tokens=True)
        added = self._model.get_added_tokens_decoder()
        special = {token.content: i for i, token in added.items() if token.special}
        ends = [special[name] for name in _ENDS if name in special]
        n_ids = max(vocabulary.values(), default=-1) + 1
        self.separator = ends[0] if ends else n_ids
        self.n_vocab = max(n_ids, self.separator + 1)
        self._bytes_of = _bytes_of(vocabulary, added)
        self._bytes_of.pop(self.separator, None)
        self.token_bytes: np.ndarray | None = np.zeros(self.n_vocab, np.int64)
        for token, content in self._bytes_of.items():
            self.token_bytes[token] = len(content)
        self.fingerprint = _fingerprint(document, self.separator)

    def encode(self, documents: Sequence[Document]) -> list[np.ndarray]:
        pieces, counts = [], []
        for document in documents:
            text = decoded_text(document)
            cut = list(_pieces(text)) if self._may_cut else [text]
            pieces.extend(cut)
            counts.append(len(cut))
        rows = iter(self._encode_all(pieces))
        empty = np.empty(0, dtype_of(self.n_vocab))
        return [np.concatenate([empty, *(next(rows) for _ in range(count))]) for count in counts]

    def _encode_all(self, texts: list[str]) -> Iterator[np.ndarray]:
        dtype = dtype_of(self.n_vocab)
        for batch in _batches(texts):
            for encoding in self._model.encode_batch_fast(batch, add_special_tokens=False):
                yield np.array(encoding.ids, dtype)

    def decode(self, tokens: np.ndarray) -> str:
        found = (self._bytes_of.get(token, b"") for token in np.asarray(tokens).tolist())
        return b"".join(found).decode(errors="replace")

    def to_bytes(self) -> bytes | None:
        return self._data


def train(texts: Iterable[str], n_vocab: int) -> BytePairs:
    """A byte-level BPE of exactly `n_vocab` tokens, the separator among them.

    The same texts in the same order give the same tokenizer.
    Raises `RequestError` where 256 bytes and the separator are more, or the texts give fewer.
    """
    require_size(n_vocab)
    package = need("tokenizers")
    model = package.Tokenizer(package.models.BPE())
    model.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = package.decoders.ByteLevel()
    trainer = package.trainers.BpeTrainer(
        vocab_size=n_vocab - 1,
        initial_alphabet=sorted(_BYTES),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    found = BytePairs(model.to_str().encode(), "The tokenizer just trained")
    if found.n_vocab != n_vocab:
        raise RequestError(
            f"The training split gives a bpe of {found.n_vocab} tokens and no more: let "
            f"data.tokenizer.n_vocab be {found.n_vocab} or fewer, not {n_vocab}, or take more text."
        )
    return found


def sample(
    documents: Iterator[Document], split_on: str | None, told: Told
) -> tuple[list[Document], int]:
    """What a tokenizer is trained on, and the bytes of all documents together.

    Documents of the training split, of `TRAINED_ON` bytes or less, drawn by their ids from all of
    them, in their order.
    """
    kept: list[tuple[bytes, int, Document]] = []  # a heap, the first to go on top
    size = read = next_told = 0
    for i, document in enumerate(documents):
        read += len(document.content)
        if read >= next_told:
            told("reading for the tokenizer", read, None)
            next_told = read + _BATCH
        if split_of(document.id, split_on) != "train":
            continue
        rank = hashlib.sha256(f"tokenizer {document.id}".encode()).digest()
        heapq.heappush(kept, (rank, i, document))
        size += len(document.content)
        while size > TRAINED_ON:
            size -= len(heapq.heappop(kept)[2].content)
    return [document for _, _, document in sorted(kept, key=lambda entry: entry[1])], read


def _pieces(text: str) -> Iterator[str]:
    """A long text in pieces whose tokens are those of the whole, where it has such borders."""
    start = 0
    while len(text) - start > _BATCH:
        border = _BORDER.search(text, start + _BATCH)
        if border is None:
            break
        yield text[start : border.start()]
        start = border.start()
    yield text[start:]


def _batches(texts: list[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _characters() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    table = {chr(byte): byte for byte in shown}
    return table | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTES = _characters()


def _bytes_of(vocabulary: dict[str, int], added: dict[int, Any]) -> dict[int, bytes]:
    """The bytes of each token that text can become."""
    found = {}
    for name, token in vocabulary.items():
        if token in added:
            if not added[token].special:
                found[token] = name.encode()
        elif all(character in _BYTES for character in name):
            found[token] = bytes(_BYTES[character] for character in name)
    return found


def _require_byte_level(document: dict[str, Any], where: str) -> None:
    """Refuses what would lose text."""
    model = document.get("model") or {}
    known = model.get("vocab") or {}
    missing = sum(character not in known for character in _BYTES)
    if model.get("type", "BPE") != "BPE" or not _byte_levels(document) or missing:
        raise RequestError(
            f"{where} is no byte-level BPE (model {model.get('type')}, {missing} of 256 bytes "
            "missing): text would be lost in it. Take a byte-level tokenizer.json, a SentencePiece "
            "model, or train one with data.tokenizer.n_vocab."
        )


def _byte_levels(document: dict[str, Any]) -> list[dict[str, Any]]:
    parts = _parts(document.get("pre_tokenizer"), "pretokenizers")
    return [part for part in parts if part["type"] == "ByteLevel"]


def _is_prefixed(document: dict[str, Any]) -> bool:
    return any(part.get("add_prefix_space") for part in _byte_levels(document))


def _is_split(document: dict[str, Any]) -> bool:
    """Whether text is split before pairs are merged, so that no token goes across words."""
    parts = _parts(document.get("pre_tokenizer"), "pretokenizers")
    return any(part["type"] != "ByteLevel" or part.get("use_regex", True) for part in parts)


def _normalizers(document: dict[str, Any]) -> list[str]:
    return [part["type"] for part in _parts(document.get("normalizer"), "normalizers")]


def _parts(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return part[inner] if part["type"] == "Sequence" else [part]


def _fingerprint(document: dict[str, Any], separator: int) -> str:
    named = ("normalizer", "pre_tokenizer", "model", "added_tokens")
    encoding = {name: document.get(name) for name in named} | {"separator": separator}
    canonical = json.dumps(encoding, sort_keys=True).encode()
    return hashlib.sha256(b"scaling_jax bpe\n" + canonical).hexdigest()
