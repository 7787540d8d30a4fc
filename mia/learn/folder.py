"""The folder of a training: one process at a time, files that are whole, rows that survive a crash."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mia.errors import ConfigError


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else trains into the folder meanwhile. The lock ends with the process, however that ends. Raises
    ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"'{folder}' cannot hold a training ({error.strerror}).", wanted="a folder that can be written to"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process is training into '{folder}'.", hint="wait for it, or --out ANOTHER"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"'{folder}' cannot be locked against other trainings ({error.strerror}).",
                wanted="a folder on a file system with locks",
                hint="--out ANOTHER",
            ) from error
        yield


def write_whole(path: Path, content: bytes) -> None:
    """Whole and on the disk, or not at all. Raises OSError."""
    fresh = path.with_suffix(f"{path.suffix}.tmp")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines. Lines that a crash tore are passed over; no file: none."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Put these rows in place of a file's. Raises OSError."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
