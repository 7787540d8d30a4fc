"""The episodes of a run in one JSON Lines file: what is in it was answered, and survives any death.

A line is on the disk before its question counts as answered. Lines that arrive together are synced together, so many
questions at once cost few syncs. A line that a crash tore off is cut away on opening; a broken line anywhere else is
somebody's edit and refused by number. One process writes a log at a time. Secrets are blacked out before they are
written, as in the memory store.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from mia.errors import RecordError, StoreError
from mia.redaction import Redactor
from mia.store.base import storable
from mia.types import Episode, load_episode


class EpisodeLog:
    """An append-only file of episodes, open for one run."""

    def __init__(self, file: BinaryIO, path: Path, redactor: Redactor) -> None:
        self.path = path
        self._redactor = redactor
        self._file = file
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    @classmethod
    def open(cls, path: Path, redactor: Redactor | None = None) -> EpisodeLog:
        """Open or create the log, cut a torn last line away, and end a whole one that lacks only its line break.
        `redactor` blacks out what must not be stored; None: keys, tokens and passwords.

        Raises StoreError if the file cannot be written or another process writes it.
        """
        return cls(_open_locked(path, "a+b"), path, redactor or Redactor())

    def episodes(self) -> Iterator[Episode]:
        """The episodes that are in the file, one at a time. Raises RecordError naming a broken line."""
        yield from read_episodes(self.path)

    async def append(self, episode: Episode) -> None:
        """Add one episode; returns when it is on the disk. Raises StoreError, and the file is then as before."""
        # Not model_dump_json: it refuses text with lone surrogates, which an episode may well hold.
        page = self._redactor.model(episode).model_dump(mode="json")
        line = storable(json.dumps(page, ensure_ascii=False)).encode() + b"\n"
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((line, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        # Shielded: a cancelled question must not break off the write that others share.
        await asyncio.shield(done)

    async def close(self) -> None:
        """Wait for what is being written, then let go of the file and its lock."""
        if self._writer is not None:
            await self._writer
        self.release()

    def release(self) -> None:
        """Let go of the file and its lock, where nothing is being written."""
        self._file.close()

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            failure: StoreError | None = None
            try:
                await asyncio.to_thread(self._append, b"".join(line for line, _ in batch))
            except OSError as error:
                failure = StoreError(
                    f"cannot write '{self.path}': {error.strerror}.",
                    hint="make room on the disk, then run the same command with --resume",
                )
            for _, done in batch:
                if done.cancelled():
                    continue
                if failure is None:
                    done.set_result(None)
                else:
                    done.set_exception(failure)

    def _append(self, lines: bytes) -> None:
        end = self._file.seek(0, os.SEEK_END)
        try:
            view = memoryview(lines)
            while view:
                view = view[os.write(self._file.fileno(), view) :]
            os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), end)
            raise


def read_episodes(path: Path) -> Iterator[Episode]:
    """The episodes of a log or of any file of episodes, one at a time. Raises RecordError naming a broken line."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        yield load_episode(line)
                    except RecordError as error:
                        raise RecordError(f"'{path}', line {number}: {error.got}", hint=error.hint) from error
    except OSError as error:
        raise RecordError(f"cannot read '{path}': {error.strerror}.") from error


def rewrite(path: Path, edit: Callable[[bytes], bytes]) -> bool:
    """Replace each line by what `edit` makes of it (nothing, to take it out), at once or not at all; whether anything
    changed. Lines come and go with their line breaks; those that stay keep every byte. `edit` is called twice for each.

    Raises StoreError if the file cannot be written or another process writes it.
    """
    fresh = path.with_name(f"{path.name}.rewriting")
    with _open_locked(path, "r+b") as file:
        try:
            fresh.unlink(missing_ok=True)  # Of a rewriting that was killed.
            if all(edit(line) == line for line in _lines(file)):
                return False
            try:
                with fresh.open("wb") as target:
                    for line in _lines(file):
                        target.write(edit(line))
                    target.flush()
                    os.fsync(target.fileno())
                shutil.copymode(path, fresh)
                fresh.replace(path)
            except BaseException:
                fresh.unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)
        except OSError as error:
            raise StoreError(f"cannot write '{path}': {error.strerror}.") from error
    return True


def _lines(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    return iter(file)


def _open_locked(path: Path, mode: Literal["a+b", "r+b"]) -> BinaryIO:
    """The log for reading and writing, its last line mended, for this process alone. Raises StoreError."""
    while True:
        try:
            file = path.open(mode)
        except OSError as error:
            raise StoreError(f"cannot write '{path}': {error.strerror}.") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise StoreError(
                f"another process is writing '{path}'.", hint="wait for it, or give this run another --out"
            ) from error
        try:
            if _is_at(file, path):
                _mend_last_line(file)
                return file
        except OSError as error:
            file.close()
            raise StoreError(f"cannot write '{path}': {error.strerror}.") from error
        # Rewritten between opening and locking: what we hold has no name any more.
        file.close()


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether this file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    """Make the names in it durable."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _mend_last_line(file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    begin = _last_line_break(file, end) + 1
    file.seek(begin)
    last = file.read(end - begin)
    if not last:
        return
    try:
        json.loads(last)
    except ValueError:
        file.truncate(begin)
        return
    file.write(b"\n")
    file.flush()
    os.fsync(file.fileno())


def _last_line_break(file: BinaryIO, end: int) -> int:
    """Where the last line break stands; -1 if there is none."""
    while end > 0:
        begin = max(0, end - 65_536)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found
        end = begin
    return -1
