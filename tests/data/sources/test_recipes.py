from __future__ import annotations

import pytest

from scaling_jax.data.sources import recipes


def test_recipes_are_told_apart_by_name():
    names = [recipe.name for recipe in recipes()]
    assert names == sorted(set(names))
    assert {"c4", "lm1b", "wikipedia"} <= set(names)


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.name)
def test_a_recipe_is_what_tfds_has_under_that_name(recipe):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("tensorflow_datasets.text")  # registers the older ones
    _, full_name, split = recipe.source.split(":")
    assert split in recipe.documents
    kind = tfds.builder_cls(full_name.split("/")[0])
    assert issubclass(kind, tfds.core.BeamBasedBuilder) == recipe.beam
    info = tfds.builder(full_name, data_dir="/nonexistent", file_format="array_record").info
    assert isinstance(info.features[recipe.text_field], tfds.features.Text)
    declared = info.redistribution_info.license
    assert ("Attribution-ShareAlike" in declared) == (recipe.licence == "CC BY-SA 3.0")
    assert bool(declared) == (recipe.licence is not None)
