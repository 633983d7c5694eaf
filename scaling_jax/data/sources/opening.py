"""From the name of a source, as a config has it, to the source."""

from __future__ import annotations

from pathlib import PurePath

from scaling_jax.data.sources.embedded import Embedded
from scaling_jax.data.sources.files import Files
from scaling_jax.data.sources.listing import existing
from scaling_jax.data.sources.recipes import recipes
from scaling_jax.data.sources.source import Source

_TEXT_FIELD = "text"


def open_source(spec: str, text_field: str = _TEXT_FIELD) -> Source:
    """The source that `spec` names.

    `embedded`; `synthetic[:KEY=VALUE,...]`; `tfds:NAME[/CONFIG]:SPLIT`; the name of a recipe, such
    as `c4`; or the path, local or in a bucket, of a file or folder of text, JSON lines or Parquet.
    A path that has the name of another source is written `./c4`. `text_field` is the field, column
    or feature of the text; a recipe knows its own.
    Raises `RequestError` for a name that stands for nothing, and as the source named does.
    """
    kind, _, _ = spec.partition(":")
    if spec == "embedded":
        return Embedded()
    if kind == "synthetic":
        from scaling_jax.data.sources.synthetic import Synthetic

        return Synthetic.from_spec(spec)
    for recipe in recipes():
        if spec == recipe.name:
            own = recipe.text_field if text_field == _TEXT_FIELD else text_field
            return open_source(recipe.source, own)
    if kind == "tfds":
        from scaling_jax.data.sources.tfds import Tfds

        return Tfds(spec, text_field)
    names = ("embedded", "synthetic", *(recipe.name for recipe in recipes()))
    # a word that is no path may be meant for one of the names
    return Files(existing(spec, names if PurePath(spec).name == spec else ()), text_field)
