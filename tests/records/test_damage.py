"""Whatever becomes of the bytes of a study, its numbers are those that were written or refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import polars as pl
import pytest
from etils import epath
from polars.testing import assert_frame_equal

from scaling_jax.errors import RequestError, WorkError
from scaling_jax.records import load
from scaling_jax.records.coverage import recorded_until
from scaling_jax.records.schema import SIDE_TABLES
from scaling_jax.records.store import Records
from scaling_jax.records.writer import write_study
from tests.records.runs import begun, damage, noise, row, segment

RUNS = {"a": "aaa", "b": "bbb"}


@pytest.fixture
def ladder(out: epath.Path) -> epath.Path:
    """Run a in several segments of two attempts, run b in one file of each table."""
    for resumed_at, steps in ((None, (10, 20, 30)), (20, (30, 40))):
        run = begun(out, "aaa", resumed_at=resumed_at)
        for step in steps:
            run.append([row(step, noise=[noise(), noise(part="head")])])
            run.flush()
    other = begun(out, "bbb", seed=1)
    for step in (10, 20):
        other.append([row(step, noise=[noise()])])
        other.flush()
    other.finish("done")
    write_study(out, "ladder", "A claim.", ["l_ns"], RUNS)
    return out / "ladder"


Change = Callable[[random.Random, bytes, bytes], bytes]


def truncate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def flip(rng: random.Random, data: bytes, other: bytes) -> bytes:
    bits = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        bits[rng.randrange(len(bits))] ^= 1 << rng.randrange(8)
    return bytes(bits)


def zero(rng: random.Random, data: bytes, other: bytes) -> bytes:
    at = rng.randrange(len(data))
    n = min(rng.choice((1, 16, 512)), len(data) - at)
    return data[:at] + bytes(n) + data[at + n :]


def append(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data + rng.choice((b" ", b"\n", b"\0", b"{}", rng.randbytes(20), data, other))


def swap(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return other


def exchange(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Two stretches of the file change places."""
    n = rng.randint(1, len(data) // 4)
    i = rng.randrange(len(data) // 2 - n + 1)
    j = rng.randrange(len(data) // 2, len(data) - n + 1)
    return data[:i] + data[j : j + n] + data[i + n : j] + data[i : i + n] + data[j + n :]


CHANGES: tuple[Change, ...] = (truncate, flip, zero, append, swap, exchange)


class Tally(NamedTuple):
    refused: int
    survived: int


def corrupt(ladder: epath.Path, seed: int, rounds: int) -> Tally:
    """Damages one file at a time, and says how often it was refused and how often made up for."""
    rng = random.Random(seed)
    whole = load(ladder)
    files = sorted(epath.Path(path) for path in ladder.parent.glob("*/*.json"))
    files += sorted(epath.Path(path) for path in ladder.parent.glob("*/*/*.parquet"))
    assert len(files) == 5 + 2 * (5 + 1) + 2 * 3
    refused = survived = 0
    for _ in range(rounds):
        path, other = rng.sample(files, 2)
        change = rng.choice(CHANGES)
        before = path.read_bytes()
        after = change(rng, before, other.read_bytes())
        path.write_bytes(after)
        if after == before:
            continue
        what = f"{change.__name__} of {path}"
        found = load_or_fault(ladder)
        if isinstance(found, str):
            assert path.name in found, what
            assert "\n" not in found, what
            refused += 1
        else:
            assert_same(found, whole, what)
            survived += 1
        path.write_bytes(before)
    assert_same(load(ladder), whole, "after all")
    return Tally(refused, survived)


def load_or_fault(ladder: epath.Path) -> Records | str:
    try:
        return load(ladder)
    except (RequestError, WorkError) as error:
        return str(error)


def assert_same(found: Records, whole: Records, what: str) -> None:
    for name in ("runs", "curves", *SIDE_TABLES):
        try:
            assert_frame_equal(getattr(found, name), getattr(whole, name), check_exact=True)
        except AssertionError as error:
            raise AssertionError(f"{what}: {error}") from None


def test_whatever_is_damaged_is_refused_by_name_or_changes_nothing(ladder: epath.Path) -> None:
    tally = corrupt(ladder, seed=0, rounds=300)
    assert tally.refused > 200
    assert tally.survived > 0, "a blank between two words of JSON is no damage"


@pytest.mark.slow
def test_three_thousand_ways_to_damage_a_study(ladder: epath.Path) -> None:
    tally = corrupt(ladder, seed=1, rounds=3_000)
    assert tally.refused > 2_500
    assert tally.survived > 0


def test_a_damaged_segment_says_which_rows_are_lost_and_what_to_do(ladder: epath.Path) -> None:
    out = ladder.parent
    path = segment(out, "aaa", "001-00001")
    damage(path)
    with pytest.raises(RequestError) as caught:
        load(ladder)
    assert str(caught.value) == (
        f"{path} is damaged: it does not match the digest in its name. It held the rows of "
        "attempt 1 from step 10 to step 20. Remove it to go on without them, or remove "
        f"{out / 'aaa'} to train that run anew."
    )
    path.unlink()
    assert load(ladder).curves.filter(run_id="aaa")["step"].to_list() == [10, 30, 40]
    assert recorded_until(out, "aaa") == 10


@pytest.mark.parametrize(
    ("run_id", "piece", "lost"),
    [
        ("aaa", "001-00000", "attempt 1 from its start to step 10"),
        ("aaa", "002-00001", "attempt 2 from step 30 on"),
        ("bbb", "001-all", "attempt 1 from its start on"),
    ],
)
@pytest.mark.parametrize("table", ["curve", "noise"])
def test_the_lost_rows_are_placed_by_what_lies_beside_them(
    ladder: epath.Path, run_id: str, piece: str, lost: str, table: str
) -> None:
    damage(segment(ladder.parent, run_id, piece, table))
    with pytest.raises(RequestError, match=f"held the rows of {lost}"):
        load(ladder)


def test_a_run_that_goes_on_makes_up_for_what_was_damaged(ladder: epath.Path) -> None:
    """It goes on from a checkpoint before the damage, which is then set aside."""
    out = ladder.parent
    whole = load(ladder)
    damage(segment(out, "aaa", "001-00001"))
    damage(segment(out, "aaa", "002-00000", "noise"))
    assert recorded_until(out, "aaa") == 10
    run = begun(out, "aaa", resumed_at=15)
    run.append([row(step, noise=[noise(), noise(part="head")]) for step in (20, 30, 40)])
    run.finish("done")
    found = load(ladder)
    for name in ("curves", *SIDE_TABLES):
        theirs, mine = (getattr(each, name).drop("attempt") for each in (whole, found))
        assert_frame_equal(mine, theirs, check_row_order=False)


def test_a_disk_that_gives_other_bytes_only_once(
    ladder: epath.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was verified is what is used: no file is read a second time for its rows."""
    read: list[str] = []
    whole = type(ladder).read_bytes
    monkeypatch.setattr(
        type(ladder), "read_bytes", lambda path: (read.append(str(path)), whole(path))[1]
    )
    load(ladder)
    assert len(read) == len(set(read)) > 10


def test_frames_are_compared_in_all_they_hold(ladder: epath.Path) -> None:
    """The damage test can fail: a changed number is seen."""
    whole = load(ladder)
    bent = whole.curves.with_columns(pl.col("train_loss") + 1e-12)
    with pytest.raises(AssertionError, match="a test"):
        assert_same(Records(whole.runs, bent, whole.source, sides=whole.sides), whole, "a test")
