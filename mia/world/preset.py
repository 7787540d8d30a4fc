"""How the embedded model is served, and what of the line is set otherwise in the world: one place for all who need it.

The values were chosen on validation worlds (benchmarks/LOG.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mia.config import (
    Config,
    ExecutorSettings,
    JudgeSettings,
    LineSettings,
    MemorySettings,
    ModelSettings,
    ModelsSettings,
    SearchSettings,
)

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


PLANNER = Path(__file__).parents[1] / "models" / "planner"
"""The adapter that comes with the embedded model: its Planner after reinforcement learning (docs/learning.md)."""
READING = Path(__file__).parents[1] / "models" / "reader"
"""The adapter that comes with the embedded model: its reader of long texts after reinforcement (docs/reader.md)."""
READER: dict[str, Any] = {"chunk_tokens": 64, "memory_tokens": 24}
"""Of `reader`, as the embedded model learns to read long texts: a memory holds two facts, a chunk about six."""
LEARN: dict[str, Any] = {
    "samples": 4,
    "batch": 2,
    "canary": 0,
    "report": "first",
    "temperature": 1.2,
    "first_temperature": 0.0,
    "advantage": "success",
    "replay": 16,
    "rank": 16,
    "rate": 1e-3,
    "kl": 0.0,
    "recompute": True,
}
"""Of `learn`, for test-time learning in one world. The embedded model was not taught to choose among plans; after
reinforcement its tries are mostly alike, so that differences between them teach little."""
_PATIENCE = 86_400.0
"""Seconds for one question: a busy machine must not change an answer."""


def page(
    home: Path,
    *,
    models: ModelsSettings | None = None,
    line: LineSettings | None = None,
    memory: dict[str, Any] | None = None,
    judge: str = "reference",
) -> Config:
    """The settings of a line in the world, for measuring and learning. `memory`: where it is not `MEMORY`."""
    return Config(
        home=home,
        models=models or ModelsSettings(default=model_settings()),
        line=line or LineSettings(),
        executor=ExecutorSettings(max_seconds=_PATIENCE),
        memory=MemorySettings(**MEMORY | (memory or {})),
        search=SearchSettings(engine="world", k=PASSAGES),
        judge=JudgeSettings.model_validate({"kind": judge}),
    )


def model_settings(**others: Any) -> ModelSettings:
    """The embedded model's settings. `others`: e.g. `path` for another folder of the same kind."""
    return ModelSettings(**MODEL | others)
