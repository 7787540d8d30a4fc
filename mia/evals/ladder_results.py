"""What the ladder measured: one record for each rung in each world, in a file that a second call goes on with.

`ladder.jsonl` begins with what all its results were made under; each further line is a finished `Result`. A result that
was made under other settings is refused, not mixed in. More worlds and more rungs are no other settings: what is in the
file is not measured again. A line that a crash tore off is cut away. One process writes a file at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from pydantic import ValidationError

import mia
from mia.config import differences
from mia.errors import ConfigError, RecordError, StoreError
from mia.types import Record

RESULTS = "ladder.jsonl"
_VERSION = 1


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

    def __init__(self, file: BinaryIO, path: Path, results: Mapping[tuple[int, str], Result]) -> None:
        self.results = dict(results)
        """By seed and rung."""
        self._file = file
        self._path = path

    @classmethod
    def open(cls, folder: Path, made_under: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> Self:
        """Open or begin the file of a folder.

        `made_under`: what all results depend on; `configs`: the settings of each rung, by name. Raises ConfigError if
        the folder was begun under others, RecordError for a broken line, StoreError if it cannot be written or another
        process writes it.
        """
        path = folder / RESULTS
        header = {"version": _VERSION, "mia": mia.__version__, **made_under}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            results = _read(file, path, header, configs)
            log = cls(file, path, results)
            if file.seek(0, os.SEEK_END) == 0:
                log._write(header)
        except BlockingIOError as error:
            file.close()
            raise StoreError(
                f"another process is writing '{path}'.", hint="wait for it, or name another folder with --out"
            ) from error
        except BaseException:
            file.close()
            raise
        return log

    def append(self, result: Result) -> None:
        """Add a result; it is on the disk when this returns. Raises StoreError."""
        self._write(result.model_dump(mode="json"))
        self.results[result.seed, result.rung] = result

    def close(self) -> None:
        self._file.close()

    def _write(self, page: Mapping[str, Any]) -> None:
        end = self._file.seek(0, os.SEEK_END)
        rest = memoryview(json.dumps(page, ensure_ascii=False).encode() + b"\n")
        try:
            # Past the buffer, which would keep what did not fit and write it behind the next line.
            while rest:
                rest = rest[os.write(self._file.fileno(), rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), end)
            raise _unwritable(self._path, error) from error


def _read(
    file: BinaryIO, path: Path, header: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[int, str], Result]:
    """The results of a file, which may be empty; what a crash tore off its end is cut away."""
    file.seek(0)
    content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        file.truncate(len(whole))
    results: dict[tuple[int, str], Result] = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            page = json.loads(line)
            if number == 1:
                _refuse_others(differences(page, header), path)
                continue
            result = Result.model_validate(page)
        except (ValidationError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise RecordError(
                f"'{path}', line {number}, is no line of a ladder.", hint="name another folder with --out"
            ) from error
        if result.rung in configs:
            changed = differences(result.config, configs[result.rung])
            _refuse_others([f"{name} (of the rung '{result.rung}')" for name in changed], path)
        results[result.seed, result.rung] = result
    return results


def _refuse_others(changed: list[str], path: Path) -> None:
    if changed:
        raise ConfigError(
            f"the ladder in '{path.parent}' was begun under other settings. These differ: {', '.join(changed)}.",
            hint=f"set them as they were ('{path.name}' holds them), or name another folder with --out",
        )


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"cannot write '{path}': {error.strerror}.",
        hint="make room on the disk, or make it writable; what was measured is kept, and the same command goes on",
    )
