"""What a judge is. Only a judge ever sees the reference answers."""

from __future__ import annotations

from typing import Protocol

from mia.models.ledger import Ledger
from mia.types import Attempt, Task, Verdict


class Judge(Protocol):
    @property
    def prompts(self) -> dict[str, str]:
        """Prompt name → version, for the episode."""
        ...

    async def judge(self, task: Task, attempt: Attempt, ledger: Ledger) -> Verdict:
        """Raises JudgeError when no verdict can be had: the line then records "unjudged", never "incorrect".

        The trace of `attempt` holds every step that led to its answer, those before a replan too: a judge that asks
        whether the answer rests on what was found must see all that was found.
        """
        ...
