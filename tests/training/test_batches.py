from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling_jax.config import MeshConfig
from scaling_jax.data.epochs import window_table
from scaling_jax.data.feed import Fed
from scaling_jax.data.sampler import Draw
from scaling_jax.data.training_set import TrainingSet
from scaling_jax.training.batches import (
    CHUNK_STEPS,
    abstract_fed,
    gather_epoch_windows,
    gather_windows,
    resident,
    send,
)
from scaling_jax.training.mesh import make_mesh

TOKENS = np.random.default_rng(4).integers(0, 28, 500).astype(np.uint16)
TABLE = window_table(np.array([0, 99]), 500, 8)


def test_windows_are_gathered_as_they_stand():
    starts = jnp.array([0, 7, 491], jnp.int32)
    found = gather_windows(jnp.asarray(TOKENS), starts, 8)
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, [TOKENS[s : s + 9] for s in (0, 7, 491)])


def test_before_the_tokens_and_beyond_what_counts_is_the_separator():
    draw = Draw(jnp.array([-1, 40, 495]), jnp.array([8, 3, 4], jnp.int32))
    found = gather_epoch_windows(jnp.asarray(TOKENS), draw, 8, 28)
    assert found.dtype == jnp.int32
    expected = [
        [28, *TOKENS[:8]],
        [*TOKENS[40:44], 28, 28, 28, 28, 28],
        [*TOKENS[495:500], 28, 28, 28, 28],
    ]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("table", [None, TABLE])
def test_what_is_sent_has_the_shape_that_is_compiled_for(tiny, table):
    mesh = make_mesh(MeshConfig(lane=2))
    source = TrainingSet(TOKENS, 8, 28, table)
    valid = None if table is None else np.full((3, 2, 8), 5, np.int32)
    sent = send(Fed(np.full((3, 2, 8, 9), 7, np.uint16), valid), mesh, 2, 8)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), sent)
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), abstract_fed(source, tiny(), 2))
    assert shapes == expected
    assert sent.rows.shape[0] == CHUNK_STEPS
    assert (np.asarray(sent.rows)[:3] == 7).all() and not np.asarray(sent.rows)[3:].any()


def test_a_resident_table_is_of_int32():
    held = resident(TrainingSet(TOKENS, 8, 28, TABLE), make_mesh(MeshConfig(data=2)))
    assert {leaf.dtype for leaf in jax.tree.leaves(held.table)} == {np.dtype(np.int32)}
    np.testing.assert_array_equal(held.tokens, TOKENS)
    assert resident(TrainingSet(TOKENS, 8, 28, None), make_mesh(MeshConfig())).table is None
