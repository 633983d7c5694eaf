from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_jax.config_data import TokenizerConfig
from scaling_jax.data import bpe, tokenizers
from scaling_jax.data.bpe import BytePairs, train
from scaling_jax.data.sources import Document
from scaling_jax.data.splits import split_of
from scaling_jax.data.tokenizers import (
    ByteTokenizer,
    SentencePiece,
    TokenIds,
    dtype_of,
    open_tokenizer,
    tokenizer_from,
)
from scaling_jax.errors import RequestError

WORDS = [
    "the law",
    " of 1851,",
    "naïve\n",
    "\n\nÅngström",
    "  x = 3;\t",
    "<|endoftext|>",
    "日本",
    "😀 ",
]
TEXTS = ["".join(WORDS[(i * j + j) % len(WORDS)] for j in range(40)) for i in range(60)]


@pytest.fixture(scope="module")
def trained() -> BytePairs:
    return train(TEXTS, 300)


def of_text(tokenizer: Any, text: str) -> np.ndarray:
    (tokens,) = tokenizer.encode([Document("a", text.encode())])
    assert tokens.dtype == dtype_of(tokenizer.n_vocab)
    return tokens


def test_the_smallest_integers_that_fit():
    widths = {256: 1, 257: 2, 65536: 2, 65537: 4}
    assert {n: dtype_of(n).itemsize for n in widths} == widths


def test_bytes_are_their_own_tokens():
    tokenizer = ByteTokenizer()
    tokens = of_text(tokenizer, "añ")
    np.testing.assert_array_equal(tokens, [97, 195, 177])
    assert tokenizer.decode(np.append(tokens, 256)) == "añ"
    assert tokenizer.decode(tokens[:2]) == "a�"
    assert tokenizer.token_bytes is not None
    assert (tokenizer.token_bytes[:256] == 1).all() and tokenizer.token_bytes[256] == 0
    assert tokenizer.fingerprint.startswith("31132ec8")


def test_the_tokens_of_a_source_stay_as_they_are():
    tokenizer = TokenIds(300)
    assert (tokenizer.n_vocab, tokenizer.separator, tokenizer.token_bytes) == (301, 300, None)
    (tokens,) = tokenizer.encode([Document("a", np.array([299, 0], np.int64))])
    np.testing.assert_array_equal(tokens, [299, 0])
    assert tokens.dtype == np.uint16 and tokenizer.decode(tokens) == "299 0"
    assert tokenizer_from("tokens", None, "", 301).fingerprint == tokenizer.fingerprint
    for wrong in (np.array([300]), np.array([-1]), np.array([0.5]), np.array([[1]])):
        with pytest.raises(RequestError, match="A source of"):
            tokenizer.encode([Document("a", wrong)])


@given(st.text(), st.sampled_from(TEXTS))
def test_every_text_comes_back_from_a_trained_bpe(trained, text, known):
    for whole in (text, known, known[:30] + text + known):
        tokens = of_text(trained, whole)
        assert trained.decode(tokens) == whole
        assert trained.separator not in tokens
        assert trained.token_bytes[tokens].sum() == len(whole.encode())


def test_a_trained_bpe_has_the_size_asked_for_with_its_separator(trained):
    assert (trained.n_vocab, trained.separator) == (300, 299)
    assert trained.token_bytes.shape == (300,) and trained.token_bytes[299] == 0
    assert (trained.token_bytes[:299] > 0).all()
    assert len(of_text(trained, TEXTS[0])) < len(TEXTS[0].encode()) / 2
    assert trained.lost == []


def test_two_trainings_give_one_fingerprint_in_other_processes_too(trained):
    script = (
        "import sys, json; from scaling_jax.data.bpe import train;"
        "print(train(json.load(sys.stdin), 300).fingerprint)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(TEXTS), capture_output=True, text=True
    )
    assert run.stdout.strip() == trained.fingerprint
    assert train(TEXTS[1:], 300).fingerprint != trained.fingerprint
    assert train(TEXTS, 299).fingerprint != trained.fingerprint


def test_a_size_that_cannot_be_had_is_refused_with_one_that_can():
    with pytest.raises(RequestError, match="257 or more"):
        train(TEXTS, 256)
    assert train(TEXTS, 257).n_vocab == 257
    with pytest.raises(RequestError, match="be 259 or fewer") as refused:
        train(["abab"], 1000)
    assert "not 1000" in str(refused.value)
    assert train(["abab"], 259).n_vocab == 259


def test_it_reads_back_what_it_wrote(trained, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(trained.to_bytes())
    read = open_tokenizer(TokenizerConfig(name="bpe", file=str(tmp_path / "tokenizer.json")))
    assert read is not None
    assert (read.fingerprint, read.n_vocab, read.separator) == (trained.fingerprint, 300, 299)
    np.testing.assert_array_equal(of_text(read, TEXTS[3]), of_text(trained, TEXTS[3]))


def test_a_long_document_is_cut_where_no_token_is(trained, monkeypatch):
    spaced = "".join(TEXTS) + "\n" + "end of\nit all.\n\n\n so  it 7 is" * 50
    for text in (spaced, spaced.replace(" ", "")):
        with monkeypatch.context() as patch:
            whole = of_text(trained, text)
            patch.setattr(bpe, "_BATCH", 20)
            pieces = list(bpe._pieces(text))
            assert len(pieces) > 100 and "".join(pieces) == text
            np.testing.assert_array_equal(of_text(trained, text), whole)


def test_a_long_document_is_not_cut_where_a_cut_would_show(trained, monkeypatch):
    monkeypatch.setattr(bpe, "_BATCH", 100)
    text = "".join(TEXTS)
    splitting = json.loads(trained.to_bytes())["pre_tokenizer"] | {"add_prefix_space": True}
    prefixed = BytePairs(edited(trained, pre_tokenizer=splitting), "here")
    assert prefixed.decode(of_text(prefixed, text)) == " " + text
    lower = BytePairs(edited(trained, normalizer={"type": "Lowercase"}), "here")
    assert lower.decode(of_text(lower, text)) == text.lower()


def test_a_bpe_whose_tokens_go_across_words_is_not_cut(monkeypatch):
    package = pytest.importorskip("tokenizers")
    model = package.Tokenizer(package.models.BPE())
    model.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = package.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=sorted(bpe._BYTES), show_progress=False
    )
    model.train_from_iterator(TEXTS, trainer)
    tokenizer, text = BytePairs(model.to_str().encode(), "here"), "".join(TEXTS)
    whole = of_text(tokenizer, text)
    monkeypatch.setattr(bpe, "_BATCH", 20)
    np.testing.assert_array_equal(of_text(tokenizer, text), whole)


def test_documents_keep_to_themselves(trained):
    texts = ["", *TEXTS[:5], ""]
    documents = [Document(str(i), text.encode()) for i, text in enumerate(texts)]
    for text, tokens in zip(texts, trained.encode(documents), strict=True):
        np.testing.assert_array_equal(tokens, of_text(trained, text))


def test_a_document_that_is_no_text_is_named(trained):
    for content in (b"a\xff", np.array([1, 2])):
        with pytest.raises(RequestError, match="Document book/7"):
            trained.encode([Document("book/7", content)])


def edited(tokenizer: BytePairs, **fields: Any) -> bytes:
    data = tokenizer.to_bytes()
    assert data is not None
    return json.dumps({**json.loads(data), **fields}).encode()


def special(content: str, token: int, special: bool = True) -> dict[str, Any]:
    named = {"content": content, "id": token, "special": special}
    return named | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def test_a_loaded_one_has_its_own_end_of_text(trained):
    added = [special("<|endoftext|>", 299), special("<|pad|>", 300), special("xyz", 301, False)]
    read = BytePairs(edited(trained, added_tokens=added), "here")
    assert (read.n_vocab, read.separator) == (302, 299)
    tokens = of_text(read, "the<|endoftext|><|pad|>xyz")
    assert not {299, 300} & set(tokens.tolist())  # what looks like one in a text is text
    assert 301 in tokens
    assert read.decode(tokens) == "the<|endoftext|><|pad|>xyz"
    assert read.token_bytes is not None
    assert read.token_bytes[299:].tolist() == [0, 0, 3]


def test_a_piece_of_text_is_no_end_of_text(trained):
    model = json.loads(trained.to_bytes())["model"]
    model["vocab"] = model["vocab"] | {"</": 299, "</s": 300, "</s>": 301}
    model["merges"] = [["<", "/"], ["</", "s"], ["</s", ">"]]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    level["use_regex"] = False
    read = BytePairs(edited(trained, model=model, pre_tokenizer=level), "here")
    assert of_text(read, "</s>").tolist() == [301]
    assert (read.n_vocab, read.separator) == (303, 302)


def test_what_of_a_text_is_lost_is_said(trained):
    read = BytePairs(edited(trained, normalizer={"type": "Lowercase"}), "here")
    assert read.lost == ["what the normalizer Lowercase changes"]
    assert read.fingerprint != trained.fingerprint
    splitting = json.loads(trained.to_bytes())["pre_tokenizer"] | {"add_prefix_space": True}
    read = BytePairs(edited(trained, pre_tokenizer=splitting), "here")
    assert read.lost == ["whether a document begins with a space"]
    assert read.decode(of_text(read, "the")) == " the"


def test_padding_and_truncation_of_the_file_do_not_reach_the_tokens(trained):
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    read = BytePairs(edited(trained, truncation=truncation), "here")
    np.testing.assert_array_equal(of_text(read, TEXTS[0]), of_text(trained, TEXTS[0]))
    assert read.fingerprint == trained.fingerprint


def test_what_is_no_byte_level_bpe_is_refused(trained):
    words = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    whitespace = {"type": "Whitespace"}
    for fields in ({"model": words}, {"pre_tokenizer": whitespace}, {"pre_tokenizer": None}):
        with pytest.raises(RequestError, match=r"here\.json is no byte-level BPE"):
            BytePairs(edited(trained, **fields), "here.json")
    for data in (b"{}", b"\xff", b'{"model": 3}', b"[]", edited(trained)[:-9]):
        with pytest.raises(RequestError, match=r"here\.json is not a tokenizer"):
            BytePairs(data, "here.json")


@pytest.fixture(scope="module")
def piece_model() -> bytes:
    package = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    package.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=40, minloglevel=2
    )
    return model.getvalue()


def test_sentencepiece_by_file(piece_model, tmp_path):
    (tmp_path / "a.model").write_bytes(piece_model)
    read = open_tokenizer(TokenizerConfig(name="sentencepiece", file=str(tmp_path / "a.model")))
    assert read is not None
    assert (read.n_vocab, read.separator, read.token_bytes) == (40, 2, None)
    tokens = of_text(read, "the law of 1851, the law")
    assert read.decode(np.append(tokens, read.separator)) == "the law of 1851, the law"
    assert read.separator not in of_text(read, "</s> <|endoftext|>") and read.lost
    assert read.encode([]) == []
    again = tokenizer_from("sentencepiece", read.to_bytes(), "here")
    assert again.fingerprint == read.fingerprint
    for data in (b"no model", piece_model[:-4]):
        with pytest.raises(RequestError, match="here is not a SentencePiece model"):
            SentencePiece(data, "here")


def test_a_file_that_is_not_there_and_a_package_that_is_not_installed(monkeypatch, tmp_path):
    with pytest.raises(RequestError, match=r"none\.json .No such file"):
        open_tokenizer(TokenizerConfig(name="bpe", file=str(tmp_path / "none.json")))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'scaling_jax\[tokenizers\]'"):
        train(TEXTS, 300)
    with pytest.raises(RequestError, match=r"pip install 'scaling_jax\[sentencepiece\]'"):
        tokenizers.tokenizer_from("sentencepiece", b"", str(Path("a")))


def test_the_sample_of_a_training_is_drawn_from_all_of_the_training_split(monkeypatch):
    documents = [Document(f"doc{i}", b"x" * 10) for i in range(500)]
    trains = [d for d in documents if split_of(d.id) == "train"]
    found, size = bpe.sample(iter(documents), None, lambda *_: None)
    assert (found, size) == (trains, 5000)
    monkeypatch.setattr(bpe, "TRAINED_ON", 1005)
    few, _ = bpe.sample(iter(documents), None, lambda *_: None)
    assert len(few) == 100 and few == [d for d in trains if d in few]
    places = [trains.index(d) for d in few]
    assert abs(np.mean(places) / len(trains) - 0.5) < 0.1
    monkeypatch.setattr(bpe, "TRAINED_ON", 505)
    fewer, _ = bpe.sample(iter(documents), None, lambda *_: None)
    assert set(d.id for d in fewer) < set(d.id for d in few)
