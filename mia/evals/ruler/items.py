"""One question about one long text, and what it takes to make one: the words that all tasks share."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mia.evals.ruler.documents import Corpus
from mia.evals.ruler.haystacks import Haystack
from mia.evals.ruler.tokens import CountTokens

Measure = Literal["share", "lenient", "lenient_stated"]
"""A name of `mia.judges.verifiers`: the share of references contained, or one of several references."""


@dataclass(frozen=True)
class Work:
    """Which item: its task, its length (tokens; documents for RULER-HotpotQA) and its number, from 0. With a seed it
    names one text for ever."""

    task: str
    length: int
    number: int

    @property
    def id(self) -> str:
        return f"{self.task}-{self.length}-{self.number}"


@dataclass(frozen=True)
class Item:
    """A long text, a question about it, and what is known of the answer."""

    work: Work
    text: str
    tokens: int
    """Of the text, by the count that it was made with."""
    question: str
    references: tuple[str, ...]
    depths: tuple[float, ...]
    """Where in the text that stands which the answer needs, 0 to 1; empty where it is everywhere. By the measure
    "share", one for each reference, in their order."""
    measure: Measure


@dataclass(frozen=True)
class Sources:
    """What texts are made of."""

    count: CountTokens
    essays: Haystack
    seed: int = 0
    corpus: Corpus | None = None
    """A user's questions with documents, for the tasks that need some."""

    def chance(self, work: Work, attempt: int = 0) -> random.Random:
        """Of one item alone: the same whatever else is made, and in whatever order."""
        return random.Random(f"ruler {self.seed} {work.task} {work.length} {work.number} {attempt}")


Make = Callable[[Work, Sources], Item]
"""Makes an item. Raises ConfigError where the length cannot hold the task."""
