"""Who answers: the one place that chooses implementations.

`build_team` turns a configuration into a team; every part can be handed in instead, which is how tests, rollouts and
comparisons change one thing and leave the rest. What stands above the line (a learner) is built by the door and handed
in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from mia.agents.captioner import Captioner
from mia.agents.executor import Executor
from mia.agents.planner import Planner
from mia.config import LineSettings
from mia.judges.base import Judge
from mia.memory.base import MemoryStrategy
from mia.types import Episode


class Learner(Protocol):
    """What the line needs of a learner: a durable place to put an episode. Learning itself is another process."""

    async def enqueue(self, episode: Episode) -> None: ...


@dataclass(frozen=True)
class Team:
    """Who answers. Every part may be missing but the Executor, and every part may be another."""

    executor: Executor
    planner: Planner | None = None
    memory: MemoryStrategy | None = None
    judge: Judge | None = None
    captioner: Captioner | None = None
    learner: Learner | None = None
    line: LineSettings = field(default_factory=LineSettings)
    withhold: bool = False
    """Hold back a reported answer that the judge finds weakly supported."""
    config: str = ""
    """Digest of the configuration that built it."""

    @property
    def prompts(self) -> dict[str, str]:
        """Prompt name → version, over all parts."""
        parts = (self.executor, self.planner, self.memory, self.judge, self.captioner)
        return {name: version for part in parts if part is not None for name, version in part.prompts.items()}
