"""What the ladder measured: one record for each rung in each world, in a file that a second call goes on with.

`ladder.jsonl` begins with what all its results were made under; each further line is a finished `Result`. A result that
was made under other settings is refused, not mixed in. More worlds and more rungs are no other settings: what is in the
file is not measured again. A line that a crash tore off is cut away. One process writes a file at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from mia.config import differences
from mia.evals.lines import Lines, refuse_others
from mia.types import Record

RESULTS = "ladder.jsonl"


class Answered(Record):
    """One question of a rung in a world."""

    correct: bool
    hops: int
    via: bool
    """Some relation that it asks for is kept under another entity."""
    executor_calls: int
    searches: int
    prompt_tokens: int
    completion_tokens: int
    """Of all roles, remembering included, as are those of the prompts."""
    replans: int
    unreadable: int
    """Replies that were not what was asked for: turns without call or answer, plans without a step, reflections that
    say neither yes nor no, memories that rules had to write."""
    failures: int
    """Stages that failed otherwise, e.g. for a prompt too long."""
    stop: str
    """Why the last execution ended."""
    seconds: float
    """Wall clock, with the waiting for a place in the model's batch."""


class Result(Record):
    """A rung in a world: its questions, in the order of the stream."""

    rung: str
    seed: int
    seconds: float
    """Wall clock, beside other rungs and worlds."""
    config: dict[str, Any]
    """The resolved page of settings that answered, without what depends on the place."""
    questions: tuple[Answered, ...]


class ResultLog:
    """The results of a folder, open for more."""

    def __init__(self, lines: Lines, results: dict[tuple[int, str], Result]) -> None:
        self.results = results
        """By seed and rung."""
        self._lines = lines

    @classmethod
    def open(cls, folder: Path, made_under: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> Self:
        """Open or begin the file of a folder.

        `made_under`: what all results depend on; `configs`: the settings of each rung, by name. Raises ConfigError if
        the folder was begun under others, RecordError for a broken line, StoreError if it cannot be written or another
        process writes it.
        """
        path = folder / RESULTS
        begun = f"the ladder in '{folder}' was begun"
        results: dict[tuple[int, str], Result] = {}

        def check(page: Mapping[str, Any], header: Mapping[str, Any]) -> None:
            refuse_others(differences(page, header), path, begun)

        def take(page: Any) -> None:
            result = Result.model_validate(page)
            if result.rung in configs:
                changed = differences(result.config, configs[result.rung])
                refuse_others([f"{name} (of the rung '{result.rung}')" for name in changed], path, begun)
            results[result.seed, result.rung] = result

        return cls(Lines.open(path, made_under, what="a ladder", check=check, take=take), results)

    def append(self, result: Result) -> None:
        """Add a result; it is on the disk when this returns. Raises StoreError."""
        self._lines.append(result.model_dump(mode="json"))
        self.results[result.seed, result.rung] = result

    def close(self) -> None:
        self._lines.close()
