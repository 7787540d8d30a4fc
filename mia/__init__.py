"""MIA: a research agent that learns from its own past.

    import mia

    config = mia.load_config(flags={"search.corpus": ("./docs",)})
    episode = mia.ask("Who found Titan?", config)
    print(episode.answer.text if episode.answer else episode.stop)

Names are loaded when they are first used, so that `import mia` stays instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mia.config import Config, load_config
    from mia.episode import absorb, answer, ask, live
    from mia.errors import MiaError
    from mia.memory.opened import OpenMemory, open_memory
    from mia.models.ledger import Budget, Ledger
    from mia.team import Team, build_team
    from mia.types import Episode, Image, Memory, Question, Recall, Task, Verdict

__version__ = "0.1.0"

_HOMES = {
    "Budget": "mia.models.ledger",
    "Config": "mia.config",
    "Episode": "mia.types",
    "Image": "mia.types",
    "Ledger": "mia.models.ledger",
    "Memory": "mia.types",
    "MiaError": "mia.errors",
    "OpenMemory": "mia.memory.opened",
    "Question": "mia.types",
    "Recall": "mia.types",
    "Task": "mia.types",
    "Team": "mia.team",
    "Verdict": "mia.types",
    "absorb": "mia.episode",
    "answer": "mia.episode",
    "ask": "mia.episode",
    "build_team": "mia.team",
    "live": "mia.episode",
    "load_config": "mia.config",
    "open_memory": "mia.memory.opened",
}

__all__ = [
    "Budget",
    "Config",
    "Episode",
    "Image",
    "Ledger",
    "Memory",
    "MiaError",
    "OpenMemory",
    "Question",
    "Recall",
    "Task",
    "Team",
    "Verdict",
    "absorb",
    "answer",
    "ask",
    "build_team",
    "live",
    "load_config",
    "open_memory",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mia' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
