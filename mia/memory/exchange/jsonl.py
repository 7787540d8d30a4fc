"""A whole memory as JSON Lines: every memory with its vectors, and on demand every episode; nothing is lost.

The first line is the header, `{"mia": "memory", "version": 1, "space": …, "dimension": …, "exported_at": …}`. Each
other line is `{"memory": …, "vectors": {"question": …, "caption": …}}` or `{"episode": …, "scope": …, "absorbed": …,
"lessons": […]}`, in the order of arrival (docs/memory-exchange.md). Written and read a piece at a time, whatever the
size. Files that were joined together are read as one: a header holds until the next.
"""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy

from mia.config import MemorySettings
from mia.embeddings.base import Embedder, Vectors
from mia.errors import ConfigError, MiaError, RecordError, StoreError
from mia.memory.exchange.arrivals import Arrival, Arrivals, problem_with
from mia.memory.exchange.base import (
    Exported,
    Imported,
    OnProgress,
    Source,
    Tally,
    parse,
    read_lines,
    writing_to,
)
from mia.scope import check_scope
from mia.store.base import KeptEpisode, MemoryStore, MemoryVectors, Writing, storable
from mia.store.rows import to_json
from mia.types import Episode, Memory, load_episode, load_memory

VERSION = 1
"""Of the file; its records carry versions of their own."""
BATCH = 256
"""Memories that are stored in one transaction."""
BATCH_BYTES = 32 * 2**20
"""Of lines; a batch ends where it reaches this, so that a few huge memories do not fill the machine."""
PROGRESS_EVERY = 256

_LENGTH_TOLERANCE = 1e-3
"""How far from 1 the length of a vector may be."""


# ── out ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def export_jsonl(
    store: MemoryStore,
    target: Path | BinaryIO,
    *,
    scope: str | None = None,
    episodes: bool = False,
    vectors: bool = True,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Exported:
    """Write a scope and all below it (None: all), in whatever state.

    `target`: a path, which is written whole or not at all and compressed if it ends in ".gz"; one that exists is
    refused unless `force`. Or an open binary stream. `vectors`: without them the file is smaller, and has to
    be embedded when it is imported. Raises RecordError, StoreError.
    """
    memories = store.export(scope)
    kept = store.export_episodes(scope) if episodes else iter(())
    bare = ((memory, None) for memory, _ in memories)
    return write_jsonl(target, memories if vectors else bare, kept, force=force, on_progress=on_progress)


def write_jsonl(
    target: Path | BinaryIO,
    memories: Iterable[tuple[Memory, MemoryVectors | None]],
    episodes: Iterable[KeptEpisode] = (),
    *,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Exported:
    """The same file from what comes from elsewhere, such as a salvaged store. Raises RecordError, StoreError."""
    if isinstance(target, Path):
        with writing_to(target, force=force) as stream:
            return _write(stream, memories, episodes, on_progress)
    return _write(target, memories, episodes, on_progress)


def _write(
    stream: BinaryIO,
    memories: Iterable[tuple[Memory, MemoryVectors | None]],
    episodes: Iterable[KeptEpisode],
    on_progress: OnProgress | None,
) -> Exported:
    rows = iter(memories)
    first = next(rows, None)
    example = first[1] if first else None
    space = example.space if example else ""
    header = {
        "mia": "memory",
        "version": VERSION,
        "space": space,
        "dimension": len(example.question) if example else 0,
        "exported_at": time.time(),
    }
    stream.write(f"{json.dumps(header, ensure_ascii=False)}\n".encode())
    memory_count = episode_count = 0
    for memory, vectors in itertools.chain([first] if first else [], rows):
        if vectors is not None and vectors.space != space:
            raise StoreError("the embedder of the store was changed during the export.", hint="export it again")
        stream.write(_memory_line(memory, vectors))
        memory_count += 1
        if on_progress is not None and memory_count % PROGRESS_EVERY == 0:
            on_progress(memory_count)
    for kept in episodes:
        about = {"scope": kept.scope, "absorbed": kept.absorbed, "lessons": list(kept.lessons)}
        rest = json.dumps(about, ensure_ascii=False).removeprefix("{")
        stream.write(f'{{"episode": {to_json(kept.episode)}, {rest}\n'.encode())
        episode_count += 1
    if on_progress is not None:
        on_progress(memory_count + episode_count)
    return Exported(memories=memory_count, episodes=episode_count)


def _memory_line(memory: Memory, vectors: MemoryVectors | None) -> bytes:
    line = f'{{"memory": {to_json(memory)}'
    if vectors is not None:
        caption = "null" if vectors.caption is None else f'"{_encoded(vectors.caption)}"'
        line += f', "vectors": {{"question": "{_encoded(vectors.question)}", "caption": {caption}}}'
    return f"{line}}}\n".encode()


def _encoded(vector: Vectors) -> str:
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode()


# ── in ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def import_jsonl(
    store: MemoryStore,
    source: Source,
    *,
    settings: MemorySettings | None = None,
    embedder: Embedder | None = None,
    scope: str | None = None,
    on_progress: OnProgress | None = None,
) -> Imported:
    """Take in what `export_jsonl` wrote. Idempotent by id: what is there stays as it is.

    `settings`: `redact`, `quarantine` and `frozen` count (None: the defaults). `embedder`: for memories whose vectors
    are missing, of another space, or of a text in which something was redacted; None: those are refused. `scope`: put
    everything there (None: where it was). Raises RecordError (a file that cannot be opened, or of a newer version),
    ConfigError (frozen), StoreError, ModelError (the embedder's); what came before is stored then.
    """
    tally = Tally()
    reader = _Reader(store, settings or MemorySettings(), embedder, scope, tally)
    for line in read_lines(source):
        if line.fault:
            tally.refuse(line.number, line.fault)
        else:
            try:
                reader.read(line.number, line.content)
            except _Newer as error:
                reader.flush()
                raise error.refusal from None
            except RecordError as error:
                tally.refuse(line.number, error.got)
        if on_progress is not None and line.number % PROGRESS_EVERY == 0:
            on_progress(line.number)
    reader.flush()
    return tally.imported()


class _Newer(Exception):
    """The file was written by a newer MIA: reading on would be guessing."""

    def __init__(self, refusal: RecordError) -> None:
        self.refusal = refusal


class _Reader:
    """Reads line after line and stores them in batches."""

    def __init__(
        self,
        store: MemoryStore,
        settings: MemorySettings,
        embedder: Embedder | None,
        scope: str | None,
        tally: Tally,
    ) -> None:
        self._store = store
        self._arrivals = Arrivals(store, settings, embedder, tally)
        self._scope = scope
        self._tally = tally
        self._space = ""
        self._dimension = 0
        """Of the vectors in the space that the last header named; 0: not known yet."""
        self._memories: list[Arrival] = []
        self._episodes: list[tuple[int, KeptEpisode]] = []
        self._bytes = 0

    def read(self, number: int, content: bytes) -> None:
        """One line. Raises RecordError saying what is wrong with it, _Newer."""
        value = parse(content)
        if not isinstance(value, dict):
            raise RecordError("it is no JSON object")
        if "mia" in value:
            self.flush()
            self._read_header(value)
        elif "memory" in value:
            self._memories.append(self._read_memory(number, value))
        elif "episode" in value:
            self._episodes.append((number, self._read_episode(value)))
        else:
            raise RecordError("it is neither a memory nor an episode nor the header")
        self._bytes += len(content)
        if len(self._memories) + len(self._episodes) >= BATCH or self._bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Store what was read so far."""
        if self._memories:
            self._arrivals.take(self._memories, self._space)
        if self._episodes:
            self._take_episodes(self._episodes)
        self._memories, self._episodes, self._bytes = [], [], 0

    def _read_header(self, value: dict[str, Any]) -> None:
        version, space, dimension = value.get("version"), value.get("space", ""), value.get("dimension", 0)
        if value["mia"] != "memory" or not isinstance(version, int) or version < 1:
            raise RecordError("it is no header of an exported memory")
        if version > VERSION:
            raise _Newer(
                RecordError(
                    f"this export has version {version}; this MIA knows versions up to {VERSION}.",
                    hint="install the newer MIA that wrote it",
                )
            )
        if not isinstance(space, str) or not isinstance(dimension, int) or dimension < 0:
            raise RecordError("its header names no embedding space")
        self._space, self._dimension = space, dimension
        if space and space == self._store.space():
            self._dimension = _dimension_of(self._store)

    def _read_memory(self, number: int, value: dict[str, Any]) -> Arrival:
        memory: Memory = _loaded(load_memory, value["memory"])
        if self._scope is not None:
            memory = memory.model_copy(update={"scope": self._scope})
        if problem := problem_with(memory):
            raise RecordError(problem)
        return Arrival(memory, number, vectors=self._read_vectors(memory, value.get("vectors")))

    def _read_vectors(self, memory: Memory, value: Any) -> MemoryVectors | None:
        """None where there are none that the store can use."""
        stored = self._store.space()
        if value is None or not self._space or (stored and stored != self._space):
            return None
        if not isinstance(value, dict):
            raise RecordError("its vectors are no JSON object")
        question, caption = _vector(value.get("question"), "question"), None
        if value.get("caption") is not None:
            caption = _vector(value["caption"], "caption")
        if (caption is None) is bool(memory.caption):
            raise RecordError("its caption and the vector of its caption are not both there")
        self._dimension = self._dimension or len(question)
        for vector in (question, caption):
            if vector is not None and len(vector) != self._dimension:
                raise RecordError(f"a vector has {len(vector)} dimensions; the others have {self._dimension}")
        return MemoryVectors(self._space, question, caption)

    def _read_episode(self, value: dict[str, Any]) -> KeptEpisode:
        episode: Episode = _loaded(load_episode, value["episode"])
        scope, absorbed, lessons = value.get("scope"), value.get("absorbed"), value.get("lessons", [])
        scope = self._scope if self._scope is not None else scope
        if not isinstance(scope, str) or not isinstance(absorbed, bool) or not isinstance(lessons, list):
            raise RecordError("it does not say the episode's scope, whether it was absorbed, and its lessons")
        if not all(isinstance(lesson, str) for lesson in lessons):
            raise RecordError("the lessons of the episode are no ids")
        try:
            return KeptEpisode(episode, check_scope(scope), absorbed, tuple(lessons))
        except ConfigError as error:
            raise RecordError(error.got) from error

    def _take_episodes(self, batch: list[tuple[int, KeptEpisode]]) -> None:
        fresh: dict[str, KeptEpisode] = {}
        for number, kept in batch:
            episode = self._arrivals.redactor.model(kept.episode)
            there = (
                fresh[episode.id].episode if episode.id in fresh else self._store.episodes([episode.id]).get(episode.id)
            )
            if there is None:
                fresh[episode.id] = KeptEpisode(episode, kept.scope, kept.absorbed, kept.lessons)
            elif there in (episode, kept.episode):
                self._tally.known += 1
            else:
                self._tally.refuse(
                    number, f"there is an episode '{episode.id}' with other content; nothing is overwritten"
                )

        def save(writing: Writing) -> None:
            for one in fresh.values():
                writing.save_episode(one.episode, scope=one.scope, absorbed=one.absorbed, lessons=one.lessons)

        if fresh:
            self._store.transaction(save)
        self._tally.episodes += len(fresh)


def _loaded(load: Callable[[str], Any], value: Any) -> Any:
    """A record from its JSON value. Raises RecordError."""
    try:
        return load(storable(json.dumps(value, ensure_ascii=False)))
    except MiaError:
        raise
    except (ValueError, RecursionError, TypeError) as error:
        raise RecordError(f"it cannot be read: {error}") from error


def _vector(value: Any, name: str) -> Vectors:
    """From base64. Raises RecordError for what no embedder gives."""
    try:
        content = base64.b64decode(value, validate=True)
    except (ValueError, TypeError) as error:
        raise RecordError(f"the vector of its {name} is no base64") from error
    if not content or len(content) % 4:
        raise RecordError(f"the vector of its {name} is cut off: {len(content)} bytes")
    vector = numpy.frombuffer(content, "<f4").astype(numpy.float32, copy=False)
    length = float(numpy.linalg.norm(vector.astype(numpy.float64)))
    if length and not abs(length - 1.0) <= _LENGTH_TOLERANCE:
        raise RecordError(f"the vector of its {name} has the length {length:g}, not 1")
    return vector


def _dimension_of(store: MemoryStore) -> int:
    """Of the vectors in a store; 0 if it has none."""
    return next((len(vectors.question) for _, vectors in store.export(None)), 0)
