"""Neural scaling laws in JAX: train families of models, fit their laws, plan the compute."""

from __future__ import annotations

__version__ = "0.1.0"
