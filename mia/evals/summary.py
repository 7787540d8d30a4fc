"""What a run comes to, in counts that grow with each episode and never hold one.

Accuracy is the share of correct answers among the judged ones, with a Wilson 95 % interval; an unjudged answer counts
neither way and is shown beside it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from mia.statistics import Interval, wilson
from mia.types import Episode, Outcome, Role, Usage


class Summary:
    """Running totals over episodes; its size does not depend on how many there are."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.stops: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.by_role: dict[Role, Usage] = {}
        self.scores: Counter[str] = Counter()
        self.scored = 0
        self.replans = 0
        self.with_memory = 0
        self.seconds = 0.0
        self.remembering = Usage()
        """What was spent after the answers, on compressing them; no episode holds it."""
        self.unfinished = Usage()
        """What was spent on questions that then stayed open; no episode holds it either."""

    def add(self, episode: Episode) -> None:
        """Count one episode."""
        verdict = episode.verdict
        self.outcomes[verdict.outcome.value if verdict else Outcome.UNJUDGED.value] += 1
        self.stops[episode.stop.reason.value if episode.stop else "unknown"] += 1
        self.failures.update(f"{failure.stage}: {failure.error}" for failure in episode.failures)
        for role, usage in episode.usage.items():
            self.by_role[role] = self.by_role.get(role, Usage()) + usage
        if verdict and verdict.scores:
            self.scored += 1
            self.scores.update(verdict.scores)
        self.replans += len(episode.attempts) > 1
        self.with_memory += bool(episode.recall and episode.recall.shown)
        self.seconds += episode.seconds

    @property
    def answered(self) -> int:
        return sum(self.outcomes.values())

    @property
    def judged(self) -> int:
        return self.answered - self.outcomes[Outcome.UNJUDGED.value]

    @property
    def correct(self) -> int:
        return self.outcomes[Outcome.CORRECT.value]

    @property
    def accuracy(self) -> Interval | None:
        """None while nothing is judged."""
        return wilson(self.correct, self.judged)

    @property
    def usage(self) -> Usage:
        """All that was spent, remembering and questions that stayed open included."""
        return sum(self.by_role.values(), self.remembering + self.unfinished)

    def as_dict(self) -> dict[str, Any]:
        """For `summary.json` and `--json`."""
        accuracy, usage = self.accuracy, self.usage
        return {
            "answered": self.answered,
            "judged": self.judged,
            "correct": self.correct,
            "accuracy": accuracy.estimate if accuracy else None,
            "accuracy_95": [accuracy.low, accuracy.high] if accuracy else None,
            "outcomes": dict(self.outcomes),
            "scores": {name: total / self.scored for name, total in sorted(self.scores.items())},
            "stops": dict(self.stops),
            "failures": dict(self.failures),
            "replans": self.replans,
            "with_memory": self.with_memory,
            "calls": usage.calls,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cost": usage.cost,
            "question_seconds": self.seconds,
            "remembering": self.remembering.model_dump(),
            "unfinished": self.unfinished.model_dump(),
            "by_role": {role.value: usage.model_dump() for role, usage in self.by_role.items()},
        }
