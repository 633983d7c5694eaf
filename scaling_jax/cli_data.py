"""The commands of token stores: parse, call, print."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from tyro.conf import Positional, arg, subcommand

from scaling_jax.cli_common import Json, print_json, print_table
from scaling_jax.errors import RequestError

if TYPE_CHECKING:
    from scaling_jax.config_data import TokenizerConfig
    from scaling_jax.data.sources import Recipe

LINE_EVERY_S = 15.0
_FORMS = (
    ("embedded", "the source of the Python library, with no download"),
    (
        "PATH",
        "a file or a folder of text, JSON lines (plain, gz, xz, zst, bz2) or Parquet; a store",
    ),
    ("gs://..., s3://...", "the same in a bucket"),
    ("tfds:NAME[/CONFIG]:SPLIT", "a dataset of TensorFlow Datasets; those below have short names"),
    ("synthetic[:KEY=VALUE,...]", "a process whose entropy and exponents are known"),
)


class PreparationProgress:
    """How far the making of a corpus is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console):
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._what, self._last_line = "", time.monotonic()
        self._turn = threading.Lock()

    def __enter__(self) -> PreparationProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def told(self, what: str, done: int, total: int | None) -> None:
        """Moves the bar; any thread may call it."""
        with self._turn:
            if self._console.is_terminal:
                self._move(what, done, total)
            elif self._is_time(what, done):
                size = f": {done / 1e6:,.0f} MB" if done else ""
                of = f" of {total / 1e6:,.0f}" if done and total else ""
                self._console.print(
                    f"{what}{size}{of}", markup=False, highlight=False, soft_wrap=True
                )

    def _move(self, what: str, done: int, total: int | None) -> None:
        if self._task is None:
            self._bar.start()
        if self._task is None or what != self._what:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task, self._what = self._bar.add_task(what, total=total), what
        self._bar.update(self._task, completed=done, total=total)

    def _is_time(self, what: str, done: int) -> bool:
        """What has no size is told at once, and once; anything else when it takes long."""
        now = time.monotonic()
        begins, self._what = what != self._what and not done, what
        if not begins and (now - self._last_line < LINE_EVERY_S or not done):
            return False
        self._last_line = now
        return True


def prepare(
    source: Annotated[Positional[str], arg(metavar="SOURCE", help="As `data list` shows.")],
    out: Annotated[str, arg(metavar="DIR", help="Folder of the store, gs:// and s3:// too.")],
    tokenizer: Annotated[
        str, arg(metavar="bytes|bpe|FILE", help="FILE is a tokenizer.json or SentencePiece model.")
    ] = "bytes",
    n_vocab: Annotated[
        int | None, arg(metavar="V", help="Tokens of a bpe to be trained, the separator too.")
    ] = None,
    text_field: Annotated[
        str, arg(metavar="FIELD", help="Of JSON lines, Parquet and TFDS: where the text is.")
    ] = "text",
    split_on: Annotated[
        str | None,
        arg(metavar="MARK", help="Split by what stands before it in an id: # keeps a book whole."),
    ] = None,
    json: Json = False,
) -> int:
    """Tokenize a source once, into a folder or a bucket that runs can name as their source."""
    from scaling_jax.data.corpus import plan_store
    from scaling_jax.data.describe import describe_store
    from scaling_jax.data.prepare import prepare_store
    from scaling_jax.data.store import is_store
    from scaling_jax.data.tokenizers import open_tokenizer
    from scaling_jax.records.files import as_path

    config = _tokenizer_config(tokenizer, n_vocab)
    if is_store(as_path(source)):
        raise RequestError(f"{source} is a token store already: name it as the source of a run.")
    plan = plan_store(source, text_field, open_tokenizer(config) or config, split_on)
    with PreparationProgress(Console(stderr=True)) as progress:
        manifest, built = prepare_store(plan, as_path(out), progress.told)
    doc = describe_store(manifest) | {"folder": out, "built": built}
    if json:
        print_json(doc)
    else:
        print(f"{out} {'is prepared' if built else 'was prepared before: nothing was done'}")
        _print_store(doc)
    return 0


def inspect(
    folder: Annotated[Positional[str], arg(metavar="DIR", help="A store, gs:// and s3:// too.")],
    samples: Annotated[int, arg(metavar="K", help="Show so many documents, decoded.")] = 0,
    json: Json = False,
) -> int:
    """Verify every file of a token store, and say what is in it."""
    from scaling_jax.cache import default_cache
    from scaling_jax.data import describe
    from scaling_jax.data.corpus import open_place

    if samples < 0:
        raise RequestError(f"--samples {samples}: it is 0 or more.")
    with PreparationProgress(Console(stderr=True)) as progress:
        store = open_place(folder, default_cache(), progress.told, at_once=None)
    if store is None:
        raise RequestError(
            f"{folder} is no token store: `scaling-jax data prepare {folder} --out DIR` makes one "
            "of a source, and `scaling-jax data list` shows those of the cache."
        )
    doc = describe.describe_store(store.manifest) | {"folder": folder, "verified": True}
    shown = describe.samples(store, samples) if samples else []
    if json:
        print_json(doc | {"samples": shown})
        return 0
    print(f"{folder}: every file is as it was written")
    _print_store(doc)
    for sample in shown:
        print(f"\n{sample['split']} document {sample['document']:,}, {sample['tokens']:,} tokens:")
        print(sample["text"])
    return 0


def list_(json: Json = False) -> int:
    """Show what a source may be, and the token stores in the cache."""
    from scaling_jax.cache import default_cache
    from scaling_jax.data.describe import cached_stores
    from scaling_jax.data.sources import recipes

    cache = default_cache()
    stores = cached_stores(cache)
    if json:
        named = [asdict(recipe) for recipe in recipes()]
        doc = {"sources": dict(_FORMS), "recipes": named, "cache": str(cache), "stores": stores}
        print_json(doc)
        return 0
    print_table(("source", "what it is"), [[escape(cell) for cell in row] for row in _FORMS])
    print()
    columns = ("short name", "what it is", "GiB", "documents", "licence")
    print_table(columns, [_of_recipe(recipe) for recipe in recipes()])
    found = _counted(len(stores), "token store")
    print(f"\n{found} in {cache}, each of which may be named as a source:")
    for store in stores:
        print(f"\n{store['name']}: {_in_short(store)}")
        print(f"    {store['folder']}")
    return 0


def data(
    command: Annotated[
        Annotated[Any, subcommand("prepare", constructor=prepare)]
        | Annotated[Any, subcommand("inspect", constructor=inspect)]
        | Annotated[Any, subcommand("list", constructor=list_)],
        arg(name=""),
    ],
) -> int:
    """Make, verify and list token stores."""
    return command


def _tokenizer_config(tokenizer: str, n_vocab: int | None) -> TokenizerConfig:
    from scaling_jax.config_data import TokenizerConfig

    if tokenizer == "bpe" and n_vocab is None:
        raise RequestError("--tokenizer bpe is trained on the source: say --n-vocab, as 4096.")
    if tokenizer != "bpe" and n_vocab is not None:
        raise RequestError(
            f"--n-vocab is that of --tokenizer bpe, not of {tokenizer}: leave it out."
        )
    if tokenizer in ("bytes", "bpe"):
        try:
            return TokenizerConfig(name=tokenizer, n_vocab=n_vocab)
        except ValueError:
            raise RequestError(f"--n-vocab {n_vocab} is no size of a vocabulary.") from None
    if tokenizer.endswith(".json"):
        return TokenizerConfig(name="bpe", file=tokenizer)
    if tokenizer.endswith(".model"):
        return TokenizerConfig(name="sentencepiece", file=tokenizer)
    raise RequestError(
        f"--tokenizer {tokenizer!r} is neither bytes nor bpe, nor the path of a tokenizer.json "
        "or of a SentencePiece .model."
    )


def _of_recipe(recipe: Recipe) -> tuple[Any, ...]:
    prepared = f"{recipe.about}; prepared with Beam" if recipe.beam else recipe.about
    documents = max(recipe.documents.values())
    return (recipe.name, escape(prepared), recipe.gib, documents, recipe.licence or "not stated")


def _in_short(store: dict[str, Any]) -> str:
    if store["state"] != "whole":
        return store["state"]
    return (
        f"{store['tokens']:,} tokens ({store['tokenizer']}) of {store['documents']:,} documents "
        f"of {store['source']}"
    )


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _print_store(doc: dict[str, Any]) -> None:
    tokenizer, bigram, ratio = doc["tokenizer"], doc["bigram_nats"], doc["bytes_per_token"]
    print(f"source       {doc['source']}, licence {doc['licence'] or 'not known'}")
    if doc["split_on"] is not None:
        print(f"split on     {doc['split_on']}")
    print(f"fingerprint  {doc['fingerprint']}")
    print(
        f"tokenizer    {tokenizer['kind']}, {tokenizer['n_vocab']:,} tokens"
        f"{'' if ratio is None else f', {ratio:.3f} bytes of text a token'}"
    )
    for lost in tokenizer["lost"]:
        print(f"lost         {lost}")
    for name, value in doc["facts"].items():
        print(f"fact         {name}: {value}")
    for what, count in doc["skipped"].items():
        print(f"left out     {count:,} {what}")
    print(f"bigram       {'no validation' if bigram is None else f'{bigram:.4f} nats a token'}")
    print(f"files        {doc['file_bytes']:,} bytes in {_counted(doc['shards'], 'shard')}")
    rows = [[name, *split.values()] for name, split in doc["splits"].items()]
    total = ["all", doc["tokens"], doc["documents"], doc["text_bytes"]]
    print_table(("split", "tokens", "documents", "bytes of text"), [*rows, total])
