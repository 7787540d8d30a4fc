"""A file of results that a second call goes on with: JSON Lines, of which the first says what all were made under.

A line is on the disk before it counts; one that a crash tore off is cut away. One process writes a file at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

from pydantic import ValidationError

import mia
from mia.errors import ConfigError, RecordError, StoreError
from mia.store.base import storable

_VERSION = 1


class Lines:
    """Such a file, open for more."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    @classmethod
    def open(
        cls,
        path: Path,
        made_under: Mapping[str, Any],
        *,
        what: str,
        check: Callable[[Mapping[str, Any], Mapping[str, Any]], None],
        take: Callable[[Any], None],
    ) -> Self:
        """Open or begin it, with its folder. `what`: whose lines they are, for errors. `check`: is handed the first
        line as it stands and as it would be written now. `take`: is handed each line after it.

        Raises what `check` raises, RecordError for a line that is broken or that `take` cannot read, StoreError if the
        file cannot be written or another process writes it.
        """
        header = {"version": _VERSION, "mia": mia.__version__, **made_under}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lines = cls(file, path)
            for number, line in enumerate(_whole_lines(file), start=1):
                try:
                    page = json.loads(line)
                    check(page, header) if number == 1 else take(page)
                except ConfigError:
                    raise
                except (ValidationError, ValueError, TypeError, AttributeError) as error:
                    raise RecordError(
                        f"'{path}', line {number}, is no line of {what}.", hint="name another folder with --out"
                    ) from error
            if file.seek(0, os.SEEK_END) == 0:
                lines.append(header)
        except BlockingIOError as error:
            file.close()
            raise StoreError(
                f"another process is writing '{path}'.", hint="wait for it, or name another folder with --out"
            ) from error
        except BaseException:
            file.close()
            raise
        return lines

    def append(self, page: Mapping[str, Any]) -> None:
        """On the disk when this returns. Raises StoreError, and the file is then as before."""
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

    def close(self) -> None:
        self._file.close()


def refuse_others(changed: list[str], path: Path, what: str) -> None:
    """Raises ConfigError where settings differ. `what`: how the sentence begins, e.g. "the ladder in 'a' was begun"."""
    if changed:
        raise ConfigError(
            f"{what} under other settings. These differ: {', '.join(changed)}.",
            hint=f"set them as they were ('{path.name}' holds them), or name another folder with --out",
        )


def _whole_lines(file: BinaryIO) -> list[bytes]:
    """What a crash tore off the end is cut away."""
    file.seek(0)
    content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        file.truncate(len(whole))
    return whole.splitlines()


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"cannot write '{path}': {error.strerror}.",
        hint="make room on the disk, or make it writable; what was measured is kept, and the same command goes on",
    )
