"""Judges by reference where a question has references, else by peer review."""

from __future__ import annotations

from mia.judges.base import Judge
from mia.models.ledger import Ledger
from mia.types import Attempt, Task, Verdict


class AutoJudge:
    """Chooses between two judges, question by question."""

    def __init__(self, with_references: Judge, without_references: Judge) -> None:
        self._with = with_references
        self._without = without_references

    @property
    def prompts(self) -> dict[str, str]:
        """Prompt name → version, of both judges."""
        return {**self._with.prompts, **self._without.prompts}

    async def judge(self, task: Task, attempt: Attempt, ledger: Ledger) -> Verdict:
        """Raises JudgeError as the chosen judge does."""
        chosen = self._with if any(reference.strip() for reference in task.references) else self._without
        return await chosen.judge(task, attempt, ledger)
