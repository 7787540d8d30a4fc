"""Making an index and keeping it true to its documents.

An update reads only files that changed (size, time, then content), and touches only passages that changed. It is one
transaction: the new state is seen whole at its end; until then, and after a crash or broken input, the old one serves.
Vectors come afterwards, in small commits beside an index that can already be searched by words. One process at a time
may change an index; any number may search it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy

from mia.embeddings.base import Embedder
from mia.errors import CorpusError
from mia.search import documents
from mia.search.documents import INDEX_MARK, BrokenLines, Limits, Skipped, SourceFile, UnusableFile
from mia.search.lexical import LexicalIndex, LexicalWriter, Rows, Snapshot, number, version_number
from mia.search.vectors import VectorCache

INDEX_VERSION = 1
_UNSURE_SECONDS = 2.0
"""A file changed so shortly before it was read may have changed again within the clock's grain."""
_BATCH_SECONDS = 2.0
"""About as much work is lost when making vectors is killed."""


@dataclass(frozen=True)
class Progress:
    """How far indexing is. "read" counts passages, towards no known total; "vectors" counts to `total`."""

    stage: Literal["read", "vectors"]
    done: int
    total: int | None = None


OnProgress = Callable[[Progress], None]


class IndexBusy(CorpusError):
    """Another process is changing the index."""


@dataclass(frozen=True)
class IndexReport:
    """What an update found and did."""

    files: int
    passages: int
    added: int
    """A changed passage counts as one added and one removed."""
    removed: int
    skipped: tuple[Skipped, ...]
    seconds: float


@dataclass(frozen=True)
class VectorReport:
    """What making vectors did. `present` of `total` distinct texts have one now."""

    space: str
    made: int
    present: int
    total: int
    seconds: float


def ignore(progress: Progress) -> None:
    """The listener that does nothing."""


# ── the folder of an index ────────────────────────────────────────────────────────────────────────────────────────


def lexical_folder(folder: Path) -> Path:
    return folder / "lexical"


def vector_cache(folder: Path) -> VectorCache:
    return VectorCache(folder / "vectors.db")


def read_snapshot(folder: Path) -> tuple[Snapshot, dict[str, Any]]:
    """The last finished state of an index and its manifest. Raises CorpusError."""
    if not (folder / INDEX_MARK).is_file():
        raise CorpusError(f"there is no index in '{folder}'.", hint="mia index PATH… --out DIR")
    _check_version(folder)
    index = _open_lexical(folder)
    snapshot = index.snapshot() if index else None
    manifest = snapshot.manifest() if snapshot else None
    if snapshot is None or manifest is None:
        raise CorpusError(f"the index '{folder}' was begun and never finished.", hint="run `mia index` again")
    return snapshot, manifest


def _check_version(folder: Path) -> None:
    mark = folder / INDEX_MARK
    try:
        version = json.loads(mark.read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"'{mark}' cannot be read ({error}).", hint=_anew(folder)) from error
    if version != INDEX_VERSION:
        raise CorpusError(
            f"the index '{folder}' has version {version}.", wanted=f"version {INDEX_VERSION}", hint=_anew(folder)
        )


def _open_lexical(folder: Path, *, create: bool = False) -> LexicalIndex | None:
    """None where there is none yet."""
    try:
        return LexicalIndex(lexical_folder(folder), create=create)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if not os.access(lexical_folder(folder), os.W_OK):
            raise CorpusError(
                f"the index '{folder}' cannot be written, and is locked by a file in it while it is read.",
                hint=f"copy {folder} to where you may write, and name the copy with --index",
            ) from error
        raise CorpusError(f"the index '{folder}' is broken ({error}).", hint=_anew(folder)) from error


def _anew(folder: Path) -> str:
    return f"remove {folder} and run `mia index` again"


def _locked(folder: Path, wait_seconds: float) -> contextlib.closing[sqlite3.Connection]:
    """Only one process may change an index. The lock is SQLite's: the system lets go of it when a process dies."""
    try:
        database = sqlite3.connect(folder / "lock.db", timeout=wait_seconds, isolation_level=None)
    except sqlite3.OperationalError as error:
        raise CorpusError(f"cannot write the index '{folder}' ({error}).", hint="--out DIR") from error
    try:
        database.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        database.close()
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise CorpusError(f"cannot write the index '{folder}' ({error}).", hint="--out DIR") from error
        raise IndexBusy(
            f"the index '{folder}' is being changed by another process.",
            hint="wait for it to finish; searching works meanwhile",
        ) from error
    return contextlib.closing(database)


# ── passages ──────────────────────────────────────────────────────────────────────────────────────────────────────


def update_index(
    folder: Path,
    paths: Sequence[str | Path],
    *,
    limits: Limits = Limits(),
    on_progress: OnProgress = ignore,
    wait_seconds: float = 0.0,
) -> IndexReport:
    """Make the index in `folder` hold exactly the documents below `paths`.

    Raises CorpusError (nothing usable, broken JSONL lines, an index that is being changed for longer than
    `wait_seconds`); the index is then as it was.
    """
    started = time.monotonic()
    files, skipped = documents.find_files(paths)
    if not files:
        raise _nothing(paths, skipped)
    _check_folder(folder)
    with contextlib.suppress(CorpusError):
        _, manifest = read_snapshot(folder)
        if _is_current(manifest, files):
            return _report(manifest, skipped, started)
    with _locked(folder, wait_seconds):
        index = _begin(folder)
        snapshot = index.snapshot()
        with index.writer() as writer:
            update = _Update(writer, snapshot.rows(), snapshot.manifest(), limits, on_progress)
            for file in files:
                update.take(file)
            manifest = update.finish(paths, skipped)
    return _report(manifest, skipped, started, update)


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an index, or one that another process is just beginning."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise CorpusError(f"cannot write the index '{folder}': {error.strerror}.", hint="--out DIR") from error
    if INDEX_MARK not in names and not names <= {"lock.db", "lock.db-journal"}:
        raise CorpusError(
            f"'{folder}' is not empty and not an index.", wanted="a new folder, or an index", hint="--out DIR"
        )


def _begin(folder: Path) -> LexicalIndex:
    """Under the lock: the index that is there, or a new one."""
    mark = folder / INDEX_MARK
    if mark.exists():
        _check_version(folder)
    else:
        try:
            mark.write_text(json.dumps({"format": "mia-index", "version": INDEX_VERSION}) + "\n", encoding="utf-8")
        except OSError as error:
            raise CorpusError(f"cannot write the index '{folder}': {error.strerror}.", hint="--out DIR") from error
    index = _open_lexical(folder, create=True)
    assert index is not None
    return index


def _is_current(manifest: dict[str, Any], files: Sequence[SourceFile]) -> bool:
    known = manifest["files"]
    return len(known) == len(files) and all(_unchanged(manifest, file) for file in files)


def _unchanged(manifest: dict[str, Any], file: SourceFile) -> bool:
    """As far as size and time tell."""
    record = manifest["files"].get(file.key)
    sure = file.mtime_ns < (manifest["read_at"] - _UNSURE_SECONDS) * 1e9
    return record is not None and sure and [record["size"], record["mtime_ns"]] == [file.size, file.mtime_ns]


class _Update:
    """One pass over the files: what stays is left alone, what changed is replaced, what is gone is removed."""

    def __init__(
        self,
        writer: LexicalWriter,
        rows: Rows,
        manifest: dict[str, Any] | None,
        limits: Limits,
        on_progress: OnProgress,
    ) -> None:
        self._writer = writer
        self._manifest: dict[str, Any] = manifest or {"files": {}, "read_at": 0.0}
        self._limits = limits
        self._on_progress = on_progress
        self._versions: dict[int, dict[int, int]] = {}
        """For each file of the old state: version → id."""
        for file, version, id in zip(rows.file.tolist(), rows.version.tolist(), rows.id.tolist(), strict=True):
            self._versions.setdefault(file, {})[version] = id
        self._places: dict[int, tuple[str, int, str]] = {}
        """Where each id of the new state stands: file, line and, where it was read now, the id in letters."""
        self._records: dict[str, dict[str, Any]] = {}
        self._broken: list[BrokenLines] = []
        self._read_at = time.time()
        self.added = 0
        self.removed = 0

    def take(self, file: SourceFile) -> None:
        record = self._manifest["files"].get(file.key)
        digest = record["sha256"] if record is not None and _unchanged(self._manifest, file) else _digest(file.path)
        if record is not None and digest and record["sha256"] == digest:
            self._keep(file, record)
        else:
            self._replace(file, digest)

    def _keep(self, file: SourceFile, record: dict[str, Any]) -> None:
        for id in self._versions.pop(number(file.key), {}).values():
            self._claim(id, file.key)
        self._records[file.key] = {**record, "size": file.size, "mtime_ns": file.mtime_ns}

    def _replace(self, file: SourceFile, digest: str) -> None:
        old = self._versions.pop(number(file.key), {})
        record = {"size": file.size, "mtime_ns": file.mtime_ns, "sha256": digest, "skipped": ""}
        self._records[file.key] = record
        try:
            for row in documents.read_rows(file, self._limits):
                self._claim(number(row.passage.id), file.key, row.line, row.passage.id)
                if old.pop(version_number(row.passage), None) is None:
                    self._writer.add(row.passage, number(file.key))
                    self.added += 1
                if len(self._places) % 1000 == 0:
                    self._on_progress(Progress("read", len(self._places)))
        except UnusableFile as reason:
            record["skipped"] = str(reason)
        except BrokenLines as broken:
            self._broken.append(broken)
        self._remove(old)

    def _remove(self, versions: dict[int, int]) -> None:
        for version in versions:
            self._writer.remove(version)
        self.removed += len(versions)

    def _claim(self, id: int, key: str, line: int = 0, name: str = "") -> None:
        """Every id stands in one place only."""
        if id not in self._places:
            self._places[id] = (key, line, name)
            return
        other, other_line, other_name = self._places[id]
        here = f"line {line}: " if line else ""
        there = f"{other}, line {other_line}" if other_line else other
        self._broken.append(BrokenLines(key, [f"{here}the id '{name or other_name}' is also in {there}"]))

    def finish(self, paths: Sequence[str | Path], skipped: Sequence[Skipped]) -> dict[str, Any]:
        """Commit. Raises CorpusError, and nothing has changed."""
        if self._broken:
            raise CorpusError(
                f"the index was not changed: lines cannot be used.\n  {documents.describe(self._broken)}",
                wanted='one JSON object a line: {"id": "…", "title": "…", "text": "…"}, every id once',
                hint="correct the lines named",
            )
        if not self._places:
            raise _nothing(paths, [*skipped, *_skipped(self._records)])
        for versions in self._versions.values():
            self._remove(versions)
        manifest = {
            "sources": [str(Path(path).resolve()) for path in paths],
            "files": self._records,
            "passages": len(self._places),
            "read_at": self._read_at,
        }
        self._writer.commit(manifest)
        return manifest


def _nothing(paths: Sequence[str | Path], skipped: Sequence[Skipped]) -> CorpusError:
    reasons = "".join(f"\n  {each.key}: {each.reason}" for each in skipped[:5])
    return CorpusError(
        f"there is nothing to index in {', '.join(str(path) for path in paths)}.{reasons}", wanted=documents.ACCEPTED
    )


def _digest(path: Path) -> str:
    """Empty for a file that cannot be read; reading it then says why."""
    try:
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return ""


def _skipped(records: dict[str, dict[str, Any]]) -> list[Skipped]:
    return [Skipped(key, record["skipped"]) for key, record in records.items() if record["skipped"]]


def _report(
    manifest: dict[str, Any], skipped: Sequence[Skipped], started: float, update: _Update | None = None
) -> IndexReport:
    unusable = _skipped(manifest["files"])
    return IndexReport(
        files=len(manifest["files"]) - len(unusable),
        passages=manifest["passages"],
        added=update.added if update else 0,
        removed=update.removed if update else 0,
        skipped=(*skipped, *unusable),
        seconds=time.monotonic() - started,
    )


# ── vectors ───────────────────────────────────────────────────────────────────────────────────────────────────────


def make_vectors(
    folder: Path,
    embedder: Embedder,
    *,
    on_progress: OnProgress = ignore,
    max_seconds: float | None = None,
    wait_seconds: float = 0.0,
) -> VectorReport:
    """Make the vectors that are missing, for at most `max_seconds`. What is made stays made, whatever happens.

    Raises CorpusError, and the embedder's ModelError.
    """
    started = time.monotonic()
    snapshot, _ = read_snapshot(folder)
    cache = vector_cache(folder)
    space = embedder.space
    rows = snapshot.rows()
    wanted, first = numpy.unique(rows.content, return_index=True)
    missing = first[~numpy.isin(wanted, cache.contents(space))]
    missing.sort()
    present, made, size = len(wanted) - len(missing), 0, 64
    if not len(missing):
        return VectorReport(space, 0, present, len(wanted), time.monotonic() - started)
    with _locked(folder, wait_seconds):
        while made < len(missing) and (max_seconds is None or time.monotonic() - started < max_seconds):
            on_progress(Progress("vectors", present + made, len(wanted)))
            batch_started = time.monotonic()
            batch = missing[made : made + size]
            addresses = [rows.addresses[row] for row in batch]
            texts = [documents.passage_text(snapshot.passage((each.segment_ord, each.doc))) for each in addresses]
            cache.add(space, rows.content[batch].tolist(), embedder.embed(texts))
            made += len(batch)
            if time.monotonic() - batch_started < _BATCH_SECONDS / 2:
                size = min(2 * size, 4096)
        on_progress(Progress("vectors", present + made, len(wanted)))
        _forget_gone(cache, space, wanted)
    return VectorReport(space, made, present + made, len(wanted), time.monotonic() - started)


def _forget_gone(cache: VectorCache, space: str, wanted: Any) -> None:
    """Vectors of passages that are gone are kept in case they come back, until they outnumber the others."""
    contents = cache.contents(space)
    gone = contents[~numpy.isin(contents, wanted)]
    if len(gone) > len(wanted):
        cache.forget(space, gone.tolist())
