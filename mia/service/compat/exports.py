"""`/save_memory`, `/load_memory` and `/clear_memory`: plain names inside one folder, whatever path a client names.

Each scope has its own: `home/exports` that of the server's own scope, and `home/exports/of-<hash>` that of any other,
so that no token loads what another one saved.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from mia.config import Config
from mia.embeddings.base import Embedder
from mia.errors import RecordError, StoreError
from mia.memory.exchange.base import parse, read_lines, writing_to
from mia.memory.exchange.jsonl import export_jsonl, import_jsonl
from mia.memory.manager import MemoryManager
from mia.service.problems import NotFound
from mia.types import MemoryState

FOLDER = "exports"
"""In `home`."""
DEFAULT_NAME = "memory.jsonl"
EVALUATIONS = "evaluated.jsonl"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_PAGE = 1_000


def plain_name(given: str) -> str:
    """Raises RecordError for anything but the name of a file."""
    if not _NAME.fullmatch(given):
        raise RecordError(
            "this is no plain file name.",
            wanted="letters, digits, dots, dashes and underscores, e.g. memory.jsonl; no path",
        )
    return given


def last_name(given: str) -> str:
    """The last component of a path, for clients that send a full one. Raises RecordError for a path that climbs, and
    for one that ends in no plain name."""
    path = PureWindowsPath(given) if "\\" in given else PurePosixPath(given)
    if ".." in path.parts:
        raise RecordError("this path climbs out of its folder.", wanted="a plain file name, e.g. memory.jsonl")
    return plain_name(path.name)


def save(config: Config, manager: MemoryManager, name: str) -> int:
    """Write all that a scope and those below it hold; an older file of this name is replaced at once, when the new one
    is whole. Returns how many memories it holds. Raises RecordError, StoreError."""
    path = _place(config, manager.scope, name)
    return export_jsonl(manager.store, path, scope=manager.scope, force=True).memories


def save_pages(config: Config, scope: str, name: str, pages: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line. Raises RecordError, StoreError."""
    with writing_to(_place(config, scope, name), force=True) as stream:
        for page in pages:
            stream.write(f"{json.dumps(page, ensure_ascii=False)}\n".encode())


def load(config: Config, manager: MemoryManager, embedder: Embedder, name: str) -> tuple[int, int]:
    """Take in what was saved, into the scope; what was forgotten since comes back. Returns how many memories were
    added, and how many were brought back. Raises RecordError, NotFound, StoreError, ConfigError (frozen), ModelError.
    """
    path = _place(config, manager.scope, name)
    try:
        # Opened once, and never through a link: what was looked at is what is read.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFound("there is no export of this name.", hint="POST /save_memory makes one") from None
    except OSError as error:
        raise RecordError(f"this export cannot be read: {error.strerror}.") from error
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RecordError("this export is no file.", wanted="what POST /save_memory wrote")
        settings = config.memory.model_copy(update={"scope": manager.scope})
        done = import_jsonl(manager.store, stream, settings=settings, embedder=embedder, scope=manager.scope)
        stream.seek(0)
        active = [id for id, state in _states(stream) if state == MemoryState.ACTIVE]
    return done.added, len(_bring_back(manager, active))


def clear(manager: MemoryManager) -> int:
    """Forget what is in sight in exactly this scope; `restore` undoes it. Returns how many. Raises StoreError,
    ConfigError (frozen)."""
    ids: list[str] = []
    offset = 0
    while page := manager.list(limit=_PAGE, offset=offset):
        ids += [memory.id for memory in page if memory.scope == manager.scope]
        offset += len(page)
    return sum(
        len(manager.forget(ids[start : start + _PAGE], reason="cleared over the wire"))
        for start in range(0, len(ids), _PAGE)
    )


def folder_of(scope: str) -> str:
    """The name of the folder of a scope that is not the server's own."""
    return f"of-{hashlib.sha256(scope.encode()).hexdigest()[:24]}"


def _place(config: Config, scope: str, name: str) -> Path:
    """Raises RecordError for a name that is taken by anything but a file, StoreError."""
    exports = config.home / FOLDER
    folder = exports if scope == config.memory.scope else exports / folder_of(scope)
    try:
        # What is in memory.db may be read by its owner alone, and so may what was taken out of it.
        exports.mkdir(mode=0o700, parents=True, exist_ok=True)
        exports.chmod(0o700)
        folder.mkdir(exist_ok=True)
        path = folder / plain_name(name)
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise RecordError("this name is taken by something that is no file.", wanted="another name")
    except OSError as error:
        raise StoreError(f"cannot use '{folder}': {error.strerror}.") from error
    return path


def _states(stream: object) -> Iterator[tuple[str, str]]:
    """Id and state of each memory in an export; what cannot be read was refused already."""
    for line in read_lines(stream):  # type: ignore[arg-type]  # An open binary file.
        try:
            page = parse(line.content) if not line.fault else None
        except RecordError:
            continue
        memory = page.get("memory") if isinstance(page, dict) else None
        if isinstance(memory, dict) and isinstance(memory.get("id"), str):
            yield memory["id"], str(memory.get("state", MemoryState.ACTIVE))


def _bring_back(manager: MemoryManager, ids: list[str]) -> tuple[str, ...]:
    restored: list[str] = []
    for start in range(0, len(ids), _PAGE):
        known = manager.store.memories(ids[start : start + _PAGE])
        forgotten = [
            memory.id
            for memory in known.values()
            if memory.scope == manager.scope and memory.state is MemoryState.FORGOTTEN
        ]
        restored += manager.restore(forgotten, reason="loaded over the wire")
    return tuple(restored)
