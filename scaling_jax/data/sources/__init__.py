"""Where documents come from: each source gives them with an id, in a fixed order."""

from scaling_jax.data.sources.opening import open_source
from scaling_jax.data.sources.recipes import Recipe, recipes
from scaling_jax.data.sources.source import Document, Source

__all__ = ["Document", "Recipe", "Source", "open_source", "recipes"]
