from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scaling_jax.errors import counted, nearest

KNOWN = ["steps", "seed", "model.n_layer"]


def test_a_near_name_is_offered() -> None:
    assert nearest("n_layers", KNOWN) == " Did you mean 'model.n_layer'?"
    assert nearest("step", KNOWN) == " Did you mean 'steps'?"


def test_a_name_in_other_letters_is_the_nearest() -> None:
    assert nearest("n", ["run", "N", "L"]) == " Did you mean 'N'?"
    assert nearest("L_ND", ["l_nd", "l_nd_chinchilla"]) == " Did you mean 'l_nd'?"


def test_one_is_not_many() -> None:
    assert [counted(n, "point") for n in (0, 1, 2)] == ["0 points", "1 point", "2 points"]


def test_all_names_are_offered_when_none_is_near() -> None:
    assert nearest("qqqq", KNOWN) == " Known: model.n_layer, seed, steps."


@given(st.text(), st.lists(st.text(min_size=1), min_size=1))
def test_what_is_offered_is_known(word: str, known: list[str]) -> None:
    ending = nearest(word, iter(known))
    assert any(name in ending or repr(name) in ending for name in known)


@given(st.lists(st.text(min_size=1), min_size=1), st.data())
def test_a_known_name_is_nearest_to_itself(known: list[str], data: st.DataObject) -> None:
    word = data.draw(st.sampled_from(known))
    assert nearest(word, known) == f" Did you mean {word!r}?"
