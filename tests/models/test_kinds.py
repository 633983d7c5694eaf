from __future__ import annotations

import collections
import math
from typing import Any

import jax
import pytest
from flax import nnx
from jax.tree_util import DictKey, GetAttrKey

from scaling_jax.config import ModelConfig
from scaling_jax.models.counts import counts
from scaling_jax.models.kinds import KINDS, kind_of
from scaling_jax.models.transformer import Transformer


def numbers_by_kind(config: ModelConfig) -> dict[str, int]:
    state = nnx.state(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))
    sizes: dict[str, int] = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        sizes[kind_of(path)] += math.prod(leaf.shape)
    return sizes


@pytest.mark.parametrize("tied", [False, True])
def test_the_kinds_hold_every_parameter_and_agree_with_the_counts(tied):
    config = ModelConfig(
        n_layer=3, d_model=24, n_head=3, n_ctx=7, n_vocab=50, d_ff=31, tied_embeddings=tied
    )
    found, expected = numbers_by_kind(config), counts(config)
    assert set(found) == set(KINDS) - ({"head"} if tied else set())
    assert sum(found.values()) == expected.params_total
    assert found["embedding"] == expected.params_embedding
    assert found["attention"] == 3 * 4 * 24 * 24
    assert found["attention"] + found["feed_forward"] == expected.params_non_embedding
    assert found["norms"] == expected.params_other
    assert found.get("head", 0) == expected.params_head


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ((DictKey("blocks"), DictKey("attention"), DictKey("rotary")), "blocks.attention.rotary"),
        ((DictKey("head"), DictKey("scale"), GetAttrKey("value")), "head.scale"),
        ((), ""),
    ],
)
def test_a_parameter_of_no_kind_is_named(path: tuple[Any, ...], named: str):
    with pytest.raises(ValueError, match=f"no kind is known for the parameter '{named}'"):
        kind_of(path)


def test_a_plain_tree_of_arrays_has_the_same_paths():
    assert kind_of((DictKey("blocks"), DictKey("feed_forward"), DictKey("up"))) == "feed_forward"
