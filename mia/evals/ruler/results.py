"""What was measured: one line for each answered item, in a file that a second call goes on with.

`results.jsonl` begins with what all its results were made under; results under other settings are refused, not mixed
in. More tasks, lengths and samples are no other settings: what is in the file is not asked again. A result is on the
disk before its item counts as answered; a line that a crash tore off is cut away. One process writes a file at a time.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from pydantic import Field, ValidationError

import mia
from mia.config import differences
from mia.errors import ConfigError, RecordError, StoreError
from mia.evals.ruler.items import Work
from mia.store.base import storable
from mia.types import Record, Usage

RESULTS = "results.jsonl"
_VERSION = 1


class Result(Record):
    """One answered item."""

    task: str
    length: int
    number: int
    tokens: int
    """Of the text, by the count that it was made with."""
    references: tuple[str, ...]
    answer: str
    """The last reply, thinking included."""
    score: float = Field(ge=0, le=1)
    depths: tuple[float, ...]
    """Where in the text that stands which the answer needs."""
    hits: tuple[float, ...]
    """What was reached at each of these depths."""
    usage: Usage
    seconds: float
    """Wall clock, beside other items."""
    failure: str = ""
    """The error that stands for an answer, e.g. ContextOverflow for a text that the window does not hold; scored 0."""

    @property
    def work(self) -> Work:
        return Work(self.task, self.length, self.number)


class ResultLog:
    """The results of a folder, open for more."""

    def __init__(self, file: BinaryIO, path: Path, results: dict[Work, Result]) -> None:
        self.results = results
        self._file = file
        self._path = path
        self._writing = asyncio.Lock()

    @classmethod
    def open(cls, folder: Path, made_under: Mapping[str, Any]) -> Self:
        """Open or begin the file of a folder.

        Raises ConfigError if it was begun under other settings, RecordError for a broken line, StoreError if it cannot
        be written or another process writes it.
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
            results = _read(file, path, header)
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

    async def append(self, result: Result) -> None:
        """Add a result; it is on the disk when this returns. Raises StoreError, and the file is then as before."""
        async with self._writing:
            # Shielded: a cancelled item must not leave half a line behind for the next one.
            await asyncio.shield(asyncio.to_thread(self._write, result.model_dump(mode="json")))
            self.results[result.work] = result

    def close(self) -> None:
        self._file.close()

    def _write(self, page: Mapping[str, Any]) -> None:
        line = memoryview(storable(json.dumps(page, ensure_ascii=False)).encode() + b"\n")
        end = self._file.seek(0, os.SEEK_END)
        try:
            # Past the buffer of the file object, which would keep what did not fit and write it later.
            while line:
                line = line[os.write(self._file.fileno(), line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), end)
            raise _unwritable(self._path, error) from error


def _read(file: BinaryIO, path: Path, header: Mapping[str, Any]) -> dict[Work, Result]:
    """The results of a file, which may be empty; what a crash tore off its end is cut away."""
    file.seek(0)
    content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        file.truncate(len(whole))
    results: dict[Work, Result] = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            page = json.loads(line)
            if number == 1:
                _refuse_others(page, header, path)
                continue
            result = Result.model_validate(page)
        except ConfigError:
            raise
        except (ValidationError, ValueError, TypeError, AttributeError) as error:
            raise RecordError(
                f"'{path}', line {number}, is no line of results.", hint="name another folder with --out"
            ) from error
        results[result.work] = result
    return results


def _refuse_others(page: Mapping[str, Any], header: Mapping[str, Any], path: Path) -> None:
    changed = differences(dict(page), dict(header))
    if changed:
        raise ConfigError(
            f"the results in '{path.parent}' were made under other settings. These differ: {', '.join(changed)}.",
            hint=f"set them as they were ('{path.name}' holds them), or name another folder with --out",
        )


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"cannot write '{path}': {error.strerror}.",
        hint="make room on the disk, or make it writable; what was measured is kept, and the same command goes on",
    )
