from __future__ import annotations

import pytest

from scaling_jax.data.splits import SHARES, SPLITS, split_of


def test_the_split_is_by_document_and_about_90_5_5():
    names = [split_of(f"package{i}/module.py") for i in range(4000)]
    shares = [names.count(split) / len(names) for split in SPLITS]
    assert shares == pytest.approx(SHARES, abs=0.015)
    known = {"abc.py": "train", "functools.py": "validation", "gzip.py": "test"}
    assert {name: split_of(name) for name in known} == known


def test_of_an_id_counts_what_stands_before_the_mark():
    for book in ("abc.py", "functools.py", "gzip.py"):
        chapters = [f"{book}#{i}#{i}" for i in range(20)]
        assert {split_of(chapter, "#") for chapter in chapters} == {split_of(book)}
        assert len({split_of(chapter) for chapter in chapters}) > 1
        assert split_of(book, "#") == split_of(book)
