"""How the embedded model is served, and what of the line is set otherwise in the world: one place for all who need it.

The values were chosen on validation worlds (benchmarks/LOG.md).
"""

from __future__ import annotations

from typing import Any

from mia.config import ModelSettings

MODEL: dict[str, Any] = {
    "provider": "local",
    "prompts": "compact",
    "temperature": 0.0,
    "context_window": 1536,
    "max_tokens": 256,
}
"""Of `models.default`."""
PASSAGES = 1
"""`search.k`: passages per query, as in training."""
MEMORY: dict[str, Any] = {
    "embedder": "hashing",
    "k_positive": 3,
    "k_negative": 1,
    "floor": -1.0,
    "coverage_weight": 4.0,
}
"""Of `memory`: questions of the world are alike in most words, and each of their parts has a route of its own."""


def model_settings(**others: Any) -> ModelSettings:
    """The embedded model's settings. `others`: e.g. `path` for another folder of the same kind."""
    return ModelSettings(**MODEL | others)
