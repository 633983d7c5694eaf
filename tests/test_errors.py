from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scaling_jax.errors import nearest

KNOWN = ["steps", "seed", "model.n_layer"]


def test_a_near_name_is_offered() -> None:
    assert nearest("n_layers", KNOWN) == " Did you mean 'model.n_layer'?"
    assert nearest("step", KNOWN) == " Did you mean 'steps'?"


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
