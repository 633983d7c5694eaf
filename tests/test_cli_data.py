from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scaling_jax import cli, cli_data
from scaling_jax.cli_data import PreparationProgress
from scaling_jax.config_data import DataConfig
from scaling_jax.data.corpus import load_corpus
from tests.data.stores import TEXTS

SPLIT = ("--split-on", "#")


@pytest.fixture
def lines(tmp_path: Path) -> str:
    path = tmp_path / "tiny.jsonl"
    path.write_text("".join(json.dumps({"id": i, "body": t.decode()}) + "\n" for i, t in TEXTS))
    return str(path)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    def say(*argv: str) -> tuple[int, str, str]:
        status = cli.main(["data", *argv])
        out = capsys.readouterr()
        return status, out.out, out.err

    return say


def prepared(said: Any, lines: str, out: Path, *more: str) -> tuple[int, str, str]:
    return said("prepare", lines, "--out", str(out), "--text-field", "body", *SPLIT, *more)


def test_prepare_then_inspect(said, lines, tmp_path):
    out = tmp_path / "store"
    status, words, errors = prepared(said, lines, out, "--tokenizer", "bpe", "--n-vocab", "290")
    assert status == 0 and f"{out} is prepared" in words
    assert errors == "training a tokenizer of 290 tokens\n"
    status, _, errors = said("inspect", str(out), "--samples", "-2")
    assert status == 2 and "--samples -2" in errors
    status, words, _ = said("inspect", str(out), "--samples", "2")
    assert words.count(" in 1 shard\n") == 1
    assert status == 0 and f"{out}: every file is as it was written" in words
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["fingerprint"] in words and "bpe, 290 tokens" in words
    assert f"source       {lines}, licence not known" in words
    assert words.count("Chapter ") >= 2 and "train document 0, " in words


def test_the_json_of_both(said, lines, tmp_path):
    out = tmp_path / "store"
    status, words, _ = prepared(said, lines, out, "--json")
    made = json.loads(words)
    size = sum(len(text) for _, text in TEXTS)
    assert status == 0 and made["built"] is True
    assert (made["documents"], made["text_bytes"]) == (150, size)
    assert made["bytes_per_token"] == pytest.approx(size / (size + 150))
    assert json.loads(prepared(said, lines, out, "--json")[1])["built"] is False
    status, words, _ = said("inspect", str(out), "--samples", "3", "--json")
    found = json.loads(words)
    assert found["verified"] is True and found["fingerprint"] == made["fingerprint"]
    assert [sample["text"][:8] for sample in found["samples"]] == ["Chapter "] * 3
    assert found["tokenizer"]["kind"] == "bytes"
    assert load_corpus(DataConfig(source=str(out))).fingerprint == made["fingerprint"]


def test_a_second_preparation_says_that_it_is_there(said, lines, tmp_path):
    out = tmp_path / "store"
    prepared(said, lines, out)
    status, words, _ = prepared(said, lines, out)
    assert status == 0 and "was prepared before: nothing was done" in words


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("--tokenizer", "bpe"), "say --n-vocab, as 4096"),
        (("--n-vocab", "300"), "--n-vocab is that of --tokenizer bpe, not of bytes"),
        (("--tokenizer", "bpe", "--n-vocab", "0"), "--n-vocab 0 is no size"),
        (("--tokenizer", "bpe", "--n-vocab", "100"), "257 or more"),
        (("--tokenizer", "words"), "'words' is neither bytes nor bpe"),
        (("--tokenizer", "none.json"), "Cannot read the tokenizer none.json"),
        (("--tokenizer", "none.model"), "Cannot read the tokenizer none.model"),
    ],
)
def test_a_wrong_tokenizer_is_refused(said, lines, tmp_path, argv, why):
    status, words, errors = prepared(said, lines, tmp_path / "store", *argv)
    assert (status, words) == (2, "") and why in errors


def test_a_size_that_cannot_be_had_is_refused_before_anything_is_made(said, lines, tmp_path):
    assert prepared(said, lines, tmp_path / "store", "--tokenizer", "bpe", "--n-vocab", "100")[0]
    assert prepared(said, lines, tmp_path / "store")[0] == 0


def test_an_empty_mark_and_an_unknown_home_folder_are_refused(said, lines, tmp_path):
    status, _, errors = said("prepare", lines, "--out", str(tmp_path / "store"), "--split-on", "")
    assert status == 2 and "mark to split on is empty" in errors
    status, _, errors = said("inspect", "~no_such_user/store")
    assert status == 2 and "is no token store" in errors


def test_another_store_in_the_way_is_refused(said, lines, tmp_path):
    prepared(said, lines, tmp_path / "store")
    status, _, errors = said("prepare", lines, "--out", str(tmp_path / "store"), *SPLIT)
    assert status == 2 and "holds another token store" in errors and "another --out" in errors


def test_a_store_is_no_source_of_documents(said, lines, tmp_path):
    prepared(said, lines, tmp_path / "store")
    status, _, errors = said("prepare", str(tmp_path / "store"), "--out", str(tmp_path / "b"))
    assert status == 2 and "is a token store already" in errors


def test_inspect_refuses_what_is_damaged_and_what_is_no_store(said, lines, tmp_path):
    out = tmp_path / "store"
    prepared(said, lines, out)
    shard = out / "shards" / "00000.tokens"
    shard.write_bytes(b"\xff" + shard.read_bytes()[1:])
    status, words, errors = said("inspect", str(out))
    assert (status, words) == (2, "") and "damaged in shards/00000.tokens" in errors
    status, words, errors = said("inspect", str(tmp_path))
    assert (status, words) == (2, "") and "is no token store" in errors


def test_list_shows_the_sources_and_what_the_cache_has(said, lines, tmp_path, monkeypatch):
    monkeypatch.setenv("SCALING_JAX_CACHE", str(tmp_path / "cache"))
    status, words, _ = said("list")
    assert status == 0 and "tfds:NAME[/CONFIG]:SPLIT" in words and "0 token stores in" in words
    data = DataConfig(source=lines, text_field="body")
    load_corpus(data, cache=tmp_path / "cache")
    unfinished = tmp_path / "cache" / "stores" / "other-0123"
    unfinished.mkdir()
    (unfinished / "building.json").write_text("{}")
    for name, manifest in (("cut", "{"), ("old", '{"kind": "store", "format": 1}')):
        (tmp_path / "cache" / "stores" / name).mkdir()
        (tmp_path / "cache" / "stores" / name / "manifest.json").write_text(manifest)
    status, words, _ = said("list", "--json")
    found = {store["name"]: store for store in json.loads(words)["stores"]}
    assert found["tiny"]["state"] == "whole" and found["tiny"]["source"] == lines
    assert found["tiny"]["tokenizer"] == "bytes 257" and found["tiny"]["documents"] == 150
    assert found["other-0123"]["state"] == "unfinished"
    assert found["cut"]["state"] == "damaged" and found["old"]["state"] == "unreadable"
    status, words, _ = said("list")
    assert status == 0 and "other-0123: unfinished" in words
    assert f" tokens (bytes 257) of 150 documents of {lines}\n" in words


def heard(terminal: bool, *told: tuple[str, int, int | None]) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    with PreparationProgress(console) as progress:
        for each in told:
            progress.told(*each)
    return out.getvalue()


def test_off_a_terminal_a_wait_is_told_once_and_quick_work_not_at_all(monkeypatch):
    wait = ("waiting for pid 7", 0, None)
    assert heard(False, ("verified", 5, 9), wait, wait, wait) == "waiting for pid 7\n"
    monkeypatch.setattr(cli_data, "LINE_EVERY_S", 0.0)
    assert heard(False, ("tokens", 2_000_000, 9_000_000)) == "tokens: 2 MB of 9\n"


def test_on_a_terminal_there_is_a_bar():
    words = heard(True, ("reading", 1, None), ("tokens", 2_000_000, 9_000_000))
    assert "tokens" in words and "2.0/9.0 MB" in words
