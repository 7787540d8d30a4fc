"""The spool: what a stream of questions has brought and has not yet been learnt, on the disk.

One file holds one question with all its tries. It is written whole, in one step: from then on the question is answered,
its score stands, and no death of a process loses it or has it asked again. It lies in `answered/` until its score is
recorded and the memory has taken it in, then in `ready/` until the weights have learnt it, and is then removed; or kept
in `learnt/` for as long as it is learnt from again (`learn.replay`).

One process at a time owns a spool; the one that trains reads the files it is told of, and writes nothing.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from mia.errors import LearnError, RecordError
from mia.learn.rollouts import Dropped, Rollout, load_rollout
from mia.redaction import Redactor
from mia.store.base import storable
from mia.types import Episode, load_episode

FORMAT = 1
_SUFFIX = ".json.gz"

Fate = Literal["stays", "changed", "goes"]
"""What becomes of a group that an erasure meets; "changed": where it stood."""


def group_id(question_id: str, epoch: int) -> str:
    """Of a question in one pass over its stream: what its rollouts are grouped by, and its memories credited once
    for."""
    return f"{question_id}/{epoch}"


@dataclass(frozen=True)
class Group:
    """One question of a stream with all its tries, as it was scored. Holds no reference answer."""

    question_id: str
    epoch: int
    """Which pass over the stream, from 0."""
    reported: int
    """Index into the episodes."""
    episodes: tuple[Episode, ...]
    rollouts: tuple[Rollout, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    """Tries that nothing is learnt from, and why."""
    by_rule: Mapping[str, int] = field(default_factory=dict)
    """Indices of what other ways of choosing would have reported."""
    version: str = ""
    """The version that was to answer; empty: the base model."""
    canary: bool = False
    """Held out: neither memory nor weights take it in."""

    @property
    def id(self) -> str:
        return group_id(self.question_id, self.epoch)

    @property
    def episode(self) -> Episode:
        """The reported one."""
        return self.episodes[self.reported]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data; `load_group` reads it."""
        return {
            "format": FORMAT,
            "question_id": self.question_id,
            "epoch": self.epoch,
            "reported": self.reported,
            "by_rule": dict(self.by_rule),
            "version": self.version,
            "canary": self.canary,
            "dropped": [{"group": one.group, "why": one.why} for one in self.dropped],
            "rollouts": [one.as_dict() for one in self.rollouts],
            "episodes": [one.model_dump(mode="json") for one in self.episodes],
        }


def load_group(content: Mapping[str, Any]) -> Group:
    """What `as_dict` wrote. Raises LearnError for anything else."""
    try:
        if content["format"] != FORMAT:
            raise LearnError(
                f"this group of rollouts has format {content['format']!r}; this MIA reads {FORMAT}.",
                hint="go on with the MIA that wrote it",
            )
        return Group(
            question_id=str(content["question_id"]),
            epoch=int(content["epoch"]),
            reported=int(content["reported"]),
            by_rule={str(rule): int(index) for rule, index in content["by_rule"].items()},
            version=str(content["version"]),
            canary=bool(content["canary"]),
            dropped=tuple(Dropped(str(one["group"]), str(one["why"])) for one in content["dropped"]),
            rollouts=tuple(map(load_rollout, content["rollouts"])),
            episodes=tuple(load_episode(json.dumps(one)) for one in content["episodes"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LearnError(f"this is no group of rollouts ({type(error).__name__}: {error}).") from error


@dataclass(frozen=True)
class Wiped:
    """What an erasure did in a spool."""

    changed: list[Path]
    """Files that were written anew, or removed."""
    left: list[Path]
    """Files that should have been, and were not: they are in use, or cannot be read."""


class Spool:
    """The groups of one stream that are not yet learnt. Sync: a call writes a small file or two."""

    def __init__(self, folder: Path, redactor: Redactor | None = None) -> None:
        """Open or create. `redactor`: blacks out what must not be written; None: keys, tokens and passwords. Raises
        LearnError where it cannot be written, or another process owns it."""
        self.folder = folder
        self._redactor = redactor or Redactor()
        self._answered = folder / "answered"
        self._ready = folder / "ready"
        self._learnt = folder / "learnt"
        try:
            for part in self._parts:
                part.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(folder / "lock")
            for torn in self._answered.glob("*.tmp"):
                torn.unlink()
            known = [int(path.name.partition("-")[0]) for part in self._parts for path in _files(part)]
        except (OSError, ValueError) as error:
            raise LearnError(
                f"cannot open '{folder}': {getattr(error, 'strerror', None) or error}.",
                hint="make it writable, or name another folder",
            ) from error
        self._next = max(known, default=0) + 1
        self._numbering = threading.Lock()

    @property
    def _parts(self) -> tuple[Path, ...]:
        return self._answered, self._ready, self._learnt

    def put(self, group: Group) -> None:
        """Keep an answered question; it is on the disk when this returns. Raises LearnError, and nothing is left."""
        path = self._answered / self._fresh_name(group)
        page = replace(group, episodes=tuple(map(self._redactor.model, group.episodes))).as_dict()
        _write_whole(path, _packed(page))

    def answered(self) -> list[Group]:
        """What the memory may not yet have taken in, oldest first. Raises LearnError for a file that cannot be read."""
        return [read_group(path) for path in _files(self._answered)]

    def ready(self) -> list[Path]:
        """The files of what the weights are still to learn, oldest first."""
        return _files(self._ready)

    def make_ready(self, group: Group) -> None:
        """Score and memory are done: what is left is for the weights. Raises LearnError."""
        path = self._find(self._answered, group)
        if path is not None:
            try:
                # A number of its own: what is learnt does not depend on which answer came first.
                path.replace(self._ready / self._fresh_name(group))
                _sync(self._ready)
                _sync(self._answered)
            except OSError as error:
                raise _unwritable(path, error) from error

    def finish(self, group: Group) -> None:
        """Nothing is left to do with an answered group. Raises LearnError."""
        path = self._find(self._answered, group)
        if path is not None:
            self.remove([path])

    def learnt(self) -> list[Path]:
        """The files of what was learnt last, as many as were kept, oldest first."""
        return _files(self._learnt)

    def retire(self, paths: Sequence[Path], keep: int) -> None:
        """The weights have learnt these. So many of the learnt stay, the latest. Raises LearnError."""
        for path in paths if keep else ():
            try:
                path.replace(self._learnt / path.name)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _unwritable(path, error) from error
        learnt = _files(self._learnt)
        self.remove([*paths, *learnt[: max(0, len(learnt) - keep)]])

    def remove(self, paths: Iterable[Path]) -> None:
        """Nothing is to be done with these any more. Raises LearnError."""
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise _unwritable(path, error) from error

    def erase(self, edit: Callable[[dict[str, Any]], Fate], *, in_use: Collection[str] = ()) -> Wiped:
        """Take out for good what `edit` says of each group, as JSON (`Group.as_dict`). One without rollouts is only
        kept where it was not brought into the memory yet. `in_use`: of "answered", "ready" and "learnt", those from
        which no file is removed. No group is put, or made ready, meanwhile. Raises LearnError."""
        wiped = Wiped([], [])
        for part in self._parts:
            for path in _files(part):
                try:
                    page = json.loads(gzip.decompress(path.read_bytes()))
                    fate = edit(page)
                except FileNotFoundError:
                    continue
                except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
                    wiped.left.append(path)
                    continue
                if fate == "stays":
                    continue
                goes = fate == "goes" or part != self._answered
                if goes and part.name in in_use:
                    wiped.left.append(path)
                    continue
                if goes:
                    self.remove([path])
                else:
                    _write_whole(path, _packed(page))
                wiped.changed.append(path)
        return wiped

    def close(self) -> None:
        """Let another process have it."""
        self._lock.close()

    def _fresh_name(self, group: Group) -> str:
        with self._numbering:
            number, self._next = self._next, self._next + 1
        return f"{number:08}-{_name(group.id)}{_SUFFIX}"

    def _find(self, folder: Path, group: Group) -> Path | None:
        return next(iter(sorted(folder.glob(f"*-{_name(group.id)}{_SUFFIX}"))), None)


def read_group(path: Path) -> Group:
    """A group from its file. Raises LearnError."""
    try:
        return load_group(json.loads(gzip.decompress(path.read_bytes())))
    except (OSError, EOFError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_rollouts(paths: Sequence[Path]) -> list[Rollout]:
    """The rollouts in some files, in their order. Raises LearnError."""
    rollouts: list[Rollout] = []
    for path in paths:
        try:
            page = json.loads(gzip.decompress(path.read_bytes()))
            rollouts += map(load_rollout, page["rollouts"])
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(path, error) from error
    return rollouts


def append_line(path: Path, page: Mapping[str, Any]) -> None:
    """One more line of JSON, on the disk when this returns; a line that a death tore off is cut away first. Raises
    LearnError, and the file is then as before."""
    line = storable(json.dumps(page, ensure_ascii=False)).encode() + b"\n"
    try:
        with path.open("a+b") as file:
            end = _whole(file)
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(file.fileno(), rest) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise
    except OSError as error:
        raise _unwritable(path, error) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of such a file; none where it is not there. Raises RecordError for a broken one."""
    return list(each_line(path))


def each_line(path: Path) -> Iterator[dict[str, Any]]:
    """`read_lines`, one after the other: a file may be longer than what one would hold at once."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # A death tore it off.
            try:
                page = json.loads(line)
            except ValueError as error:
                raise RecordError(f"'{path}', line {number}: no JSON ({error}).") from error
            if not isinstance(page, dict):
                raise RecordError(f"'{path}', line {number}: no JSON object.")
            yield page


def _whole(file: BinaryIO) -> int:
    """Cut a torn last line away; where the file then ends."""
    end = file.seek(0, os.SEEK_END)
    if not end:
        return 0
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return end
    file.seek(0)
    kept = file.read().rfind(b"\n") + 1
    file.truncate(kept)
    return kept


def _name(id: str) -> str:
    """Ids of questions may hold what names of files may not."""
    return hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()[:16]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith(_SUFFIX))


def _lock(path: Path) -> BinaryIO:
    file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise LearnError(
            f"another process is learning in '{path.parent}'.", hint="wait for it, or name another folder"
        ) from error
    return file


def _packed(page: Mapping[str, Any]) -> bytes:
    # Not as UTF-8 at once: texts of models may hold lone surrogates.
    return gzip.compress(storable(json.dumps(page, ensure_ascii=False)).encode(), compresslevel=1)


def _write_whole(path: Path, content: bytes) -> None:
    """On the disk, whole, or not there. Raises LearnError."""
    fresh = path.with_suffix(".tmp")
    try:
        try:
            # Its owner's alone: tokens cannot be redacted.
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            _sync(path.parent)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(path, error) from error


def _sync(folder: Path) -> None:
    """Make the names in it durable."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _unwritable(path: Path, error: OSError) -> LearnError:
    return LearnError(
        f"cannot write '{path}': {error.strerror}.",
        hint="make room on the disk, or make it writable; what was answered is kept",
    )


def _unreadable(path: Path, error: Exception) -> LearnError:
    return LearnError(
        f"cannot read '{path}' ({type(error).__name__}: {error}).",
        wanted="what this MIA wrote there",
        hint="move the file away: its question has been scored, and only the learning from it is lost",
    )
