"""What a reading tells while it happens: one record a chunk and one at the end. A trace is these records, one a line.

A reading that was interrupted and goes on may tell of a chunk twice, if it was stopped between telling and keeping;
the last record of a chunk counts. The memories in it are what the model wrote of a text from anywhere: data, not fact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Annotated, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError

from mia.errors import ConfigError, RecordError
from mia.types import Record

TRACE_VERSION = 1

Kept = Literal["", "empty", "thinking"]
"""Why the memory stayed as it was: the model wrote nothing, or nothing but its thinking. Empty: it was written anew."""
Form = Literal["boxed", "phrase", "whole", "none"]
"""How the answer was given: in \\boxed{…}, behind "the answer is", as the whole reply, or not at all."""


class _Told(Record):
    version: int = TRACE_VERSION
    question_id: str
    at: float = Field(default_factory=time.time)


class ChunkRead(_Told):
    """One chunk was read for one question."""

    kind: Literal["chunk_read"] = "chunk_read"
    chunk: int
    """From 0."""
    start: int
    """Of the chunk's first character in the text."""
    characters: int
    of_characters: int
    """Of the whole text; where a cap leaves the middle out, more than will be read."""
    tokens: int
    memory: str
    memory_tokens: int
    added: tuple[str, ...] = ()
    """Lines of the memory that were not there before."""
    removed: tuple[str, ...] = ()
    """Lines that are there no more."""
    kept: Kept = ""
    cut: bool = False
    """The model wrote more than the memory may have, and the end of it was cut off."""
    seconds: float

    @property
    def end(self) -> int:
        return self.start + self.characters


class ReadingFinished(_Told):
    """A question was answered from its memory, or could not be."""

    kind: Literal["reading_finished"] = "reading_finished"
    question: str
    answer: str
    form: Form
    memory: str
    chunks: int
    tokens: int
    left_out: int = 0
    """Characters of the middle that a cap left out."""
    failure: str = ""


Told = ChunkRead | ReadingFinished
OnTold = Callable[[Told], None]
_RECORD: TypeAdapter[Told] = TypeAdapter(Annotated[Told, Field(discriminator="kind")])


def ignore(told: Told) -> None:
    """The listener that does nothing."""


def changes(before: str, after: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The lines that are new, and those that are gone, in their order; blank lines and blanks around them aside."""
    old, new = _lines(before), _lines(after)
    return tuple(line for line in new if line not in old), tuple(line for line in old if line not in new)


def _lines(text: str) -> dict[str, None]:
    return dict.fromkeys(line.strip() for line in text.splitlines() if line.strip())


def describe(told: ChunkRead) -> str:
    """What a chunk changed, for people: a heading, then a line for each that came (+) or went (-)."""
    said = {"": "", "empty": ": no memory was written, the old one stays"}.get(
        told.kept, ": only thinking was written, the old memory stays"
    )
    if told.cut:
        said += ": too long, cut"
    heading = f"chunk {told.chunk + 1} (characters {told.start:,} to {told.end:,}){said}"
    nothing = ["  (nothing changed)"] if not (told.added or told.removed or told.kept) else []
    return "\n".join(
        [heading, *(f"- {line}" for line in told.removed), *(f"+ {line}" for line in told.added), *nothing]
    )


class Trace:
    """A trace being written: a listener, and a context manager."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    @classmethod
    def open(cls, path: Path, *, resume: bool = False) -> Self:
        """`resume`: go on with one that is there. Raises ConfigError where there is one, or none can be written."""
        if path.exists() and path.stat().st_size and not resume:
            raise ConfigError(f"there is a file '{path}' already.", hint="name another with --trace")
        try:
            return cls(path.open("a", encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"the trace '{path}' cannot be written: {error.strerror}.") from error

    def __call__(self, told: Told) -> None:
        # A line is written as one, so that a stop between two leaves no half of it behind.
        self._file.write(told.model_dump_json() + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_trace(path: Path) -> Iterator[Told]:
    """The records of a trace, in the order in which they were told. Raises RecordError."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield _RECORD.validate_json(line)
                except ValidationError as error:
                    raise RecordError(f"line {number} of '{path}' is no record of a reading.") from error
    except OSError as error:
        raise RecordError(f"cannot read the trace '{path}': {error.strerror}.") from error
