"""Well-known corpora of TensorFlow Datasets by short names, with what its catalogue says of them.

Sizes and numbers of documents are those of the catalogue page of the version named, and licences
those that TFDS declares; where it gives none there is None, and not a guess. OpenWebText is no
dataset of TFDS: `c4/webtextlike`, the nearest, needs a list of addresses fetched by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_CC_BY_SA = "CC BY-SA 3.0"


@dataclass(frozen=True)
class Recipe:
    """A corpus that `open_source` knows by name."""

    name: str
    source: str
    """`tfds:NAME[/CONFIG]:SPLIT`."""
    about: str
    version: str
    """Of which the sizes are, in the catalogue tensorflow.org/datasets/catalog."""
    gib: float | None
    """GiB of the prepared dataset, all its splits."""
    documents: Mapping[str, int]
    """How many in each split."""
    licence: str | None
    beam: bool
    """Whether TFDS prepares it with Apache Beam, which is not begun by asking for it."""
    text_field: str = "text"


def recipes() -> tuple[Recipe, ...]:
    """Every recipe, sorted by name."""
    return _RECIPES


_RECIPES = (
    Recipe(
        name="c4",
        source="tfds:c4/en:train",
        about="Web pages in English, cleaned and deduplicated (Raffel et al. 2019)",
        version="3.0.1",
        gib=806.92,
        documents={"train": 364_868_901, "validation": 364_608},
        licence=None,
        beam=True,
    ),
    Recipe(
        name="c4_realnewslike",
        source="tfds:c4/realnewslike:train",
        about="The pages of C4 from the domains of RealNews",
        version="3.0.1",
        gib=36.89,
        documents={"train": 13_799_838, "validation": 13_863},
        licence=None,
        beam=True,
    ),
    Recipe(
        name="librispeech_lm",
        source="tfds:librispeech_lm:train",
        about="Lines of books, in capitals and without punctuation (Panayotov et al. 2015)",
        version="0.1.0",
        gib=4.62,
        documents={"train": 40_418_260},
        licence=None,
        beam=False,
    ),
    Recipe(
        name="lm1b",
        source="tfds:lm1b:train",
        about="The One Billion Word Benchmark: shuffled sentences of news (Chelba et al. 2013)",
        version="1.0.0",
        gib=None,
        documents={"train": 30_301_028, "test": 306_688},
        licence=None,
        beam=False,
    ),
    Recipe(
        name="pg19",
        source="tfds:pg19:train",
        about="Whole books published before 1919, of Project Gutenberg (Rae et al. 2019)",
        version="0.1.1",
        gib=10.94,
        documents={"train": 28_602, "validation": 50, "test": 100},
        licence=None,
        beam=False,
        text_field="book_text",
    ),
    Recipe(
        name="wiki40b",
        source="tfds:wiki40b/en:train",
        about="Articles of the English Wikipedia, filtered and cleaned (Guo et al. 2020)",
        version="1.3.0",
        gib=9.91,
        documents={"train": 2_926_536, "validation": 163_597, "test": 162_274},
        licence=_CC_BY_SA,
        beam=True,
    ),
    Recipe(
        name="wikipedia",
        source="tfds:wikipedia/20230601.en:train",
        about="Articles of the English Wikipedia of June 2023, stripped of markup",
        version="1.0.0",
        gib=19.88,
        documents={"train": 6_672_479},
        licence=_CC_BY_SA,
        beam=True,
    ),
)
