"""A folder of Markdown, one file for each memory: to be read, reviewed, edited and kept in git.

Export writes what changed and nothing else, so that a diff shows what the memory learnt. Import takes the folder back:
a page that the store knows changes nothing; one whose texts were edited becomes a new memory in the place of the old
one; one without an id is new, as if it came by `mia memory add`. Vectors are not in the pages, and are made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mia.config import MemorySettings
from mia.embeddings.base import Embedder
from mia.errors import RecordError, StoreError
from mia.memory import guard
from mia.memory.compress import CATEGORIES
from mia.memory.exchange.arrivals import Arrival, Arrivals, problem_with
from mia.memory.exchange.base import LONGEST_LINE, Exported, Imported, OnProgress, Tally, writing_to
from mia.memory.exchange.pages import Page, file_name, read_page, write_page
from mia.store.base import MemoryStore, Writing
from mia.types import Memory, MemoryKind, MemoryState, Provenance

BATCH = 256
"""Pages that are stored in one transaction."""
BATCH_BYTES = 32 * 2**20
"""Of pages; a batch ends where it reaches this."""
PROGRESS_EVERY = 64
AUDITED = 100
"""Changes of a memory that are read at a time."""
READ_ME = "readme.md"
"""A file of this name, however spelt, is for people and no page."""

_TEXTS = ("kind", "question", "caption", "workflow", "plan", "incorrect_plan", "judgement", "reviews")
"""What an editor of a page may change."""
_BACK_TO = re.compile(r", back to '(\S+)'\Z")


@dataclass(frozen=True)
class _Read:
    """A page and where it was."""

    name: str
    page: Page
    size: int


# ── out ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def export_markdown(
    store: MemoryStore,
    folder: Path,
    *,
    scope: str | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Exported:
    """One page for each memory of a scope and all below it (None: of all), in whatever state.

    A folder that exists is brought up to date: a page is written if it differs, and none is ever deleted. A page whose
    texts somebody edited and did not import is left alone and named in `edited`, unless `force`. Raises StoreError.
    """
    count = unchanged = 0
    edited: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder '{folder}': {error.strerror}.") from error
    for memory, _ in store.export(scope):
        count += 1
        path = folder / file_name(memory)
        content = write_page(memory).encode()
        there = _content(path)
        if there == content:
            unchanged += 1
        elif there is not None and not force and _is_edited(there, memory, store):
            edited.append(path.name)
        else:
            with writing_to(path, force=True, sync=False) as stream:
                stream.write(content)
        if on_progress is not None and count % PROGRESS_EVERY == 0:
            on_progress(count)
    return Exported(memories=count, unchanged=unchanged, edited=tuple(edited))


def _content(path: Path) -> bytes | None:
    """None if there is no file of its own."""
    try:
        return path.read_bytes() if path.is_file() and not path.is_symlink() else None
    except OSError:
        return b""


def _is_edited(content: bytes, memory: Memory, store: MemoryStore) -> bool:
    """Whether a page holds somebody's words that are nowhere else."""
    try:
        page = read_page(content)
    except RecordError:
        return True
    edited = _edited(page, memory)
    return page.memory.id != memory.id or not (
        _same_texts(page.memory, memory) or edited.id in store.memories([edited.id])
    )


# ── in ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def import_markdown(
    store: MemoryStore,
    folder: Path,
    *,
    embedder: Embedder,
    settings: MemorySettings | None = None,
    scope: str | None = None,
    on_progress: OnProgress | None = None,
) -> Imported:
    """All `*.md` below a folder (hidden ones, README.md and symbolic links are left out), or one file.

    `scope`: put everything there (None: where each page says, else `settings.scope`). Raises RecordError (no such
    folder), ConfigError (frozen), StoreError, ModelError (the embedder's); what came before is stored then.
    """
    importer = _Importer(store, settings or MemorySettings(), embedder, scope)
    for count, (name, path) in enumerate(_files(folder), start=1):
        importer.read(name, path)
        if on_progress is not None and count % PROGRESS_EVERY == 0:
            on_progress(count)
    importer.flush()
    return importer.tally.imported()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name within the folder, and path, in the order of names. Never outside the folder."""
    if folder.is_file():
        yield folder.name, folder
        return
    if not folder.is_dir():
        raise RecordError(f"there is no folder '{folder}'.")
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent) / name
            if name.endswith(".md") and not name.startswith(".") and name.lower() != READ_ME:
                yield str(path.relative_to(folder)), path


class _Importer:
    """Reads page after page and stores them in batches."""

    def __init__(self, store: MemoryStore, settings: MemorySettings, embedder: Embedder, scope: str | None) -> None:
        self.tally = Tally()
        self._store = store
        self._settings = settings
        self._arrivals = Arrivals(store, settings, embedder, self.tally)
        self._scope = scope
        self._now = time.time()
        self._batch: list[_Read] = []

    def read(self, name: str, path: Path) -> None:
        """One file; what is wrong with it is told in the tally."""
        try:
            content = _page_content(path)
            self._batch.append(_Read(name, read_page(content), len(content)))
        except RecordError as error:
            self.tally.refuse(0, error.got, name)
            return
        if len(self._batch) >= BATCH or sum(one.size for one in self._batch) >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Store what was read so far."""
        stored = self._store.memories({one.page.memory.id for one in self._batch})
        arrivals = []
        for one in self._batch:
            there = stored.get(one.page.memory.id) if "id" in one.page.fields else None
            try:
                arrival = self._arrival(one, there)
            except RecordError as error:
                self.tally.refuse(0, error.got, one.name)
            else:
                if arrival is None:
                    self.tally.known += 1
                else:
                    arrivals.append(arrival)
        self._batch = []
        if arrivals:
            self._arrivals.take(arrivals)

    def _arrival(self, read: _Read, there: Memory | None) -> Arrival | None:
        """What a page brings; None if the store has it. Raises RecordError saying what is wrong with it."""
        page = read.page
        if there is not None:
            return self._edit(read, there)
        scope = self._scope if self._scope is not None else page.memory.scope
        if self._scope is None and "scope" not in page.fields:
            scope = self._settings.scope
        memory = page.memory.model_copy(
            update={
                "scope": scope,
                "created_at": page.memory.created_at if "created" in page.fields else self._now,
                "updated_at": self._now,
            }
        )
        by_hand = "id" not in page.fields
        if by_hand:
            memory = self._by_hand(memory)
            if memory.id in self._store.memories([memory.id]):
                return None
        if problem := problem_with(memory):
            raise RecordError(problem)
        return Arrival(memory, 0, read.name, by_hand=by_hand)

    def _edit(self, read: _Read, there: Memory) -> Arrival | None:
        """The memory that an edited page becomes; None if nothing in it is new."""
        page = read.page
        scope = self._scope if self._scope is not None else page.memory.scope if "scope" in page.fields else there.scope
        if scope != there.scope:
            raise RecordError(f"the memory '{there.id}' is in the scope '{there.scope}' already")
        redacted = self._arrivals.redactor.model(page.memory)
        line = self._line(there)
        edited = _edited(page, line[-1])
        kept = next((one for one in line if _same_texts(page.memory, one) or _same_texts(redacted, one)), None)
        kept = kept or self._store.memories([edited.id]).get(edited.id)
        if kept is not None:
            if page.memory.state is MemoryState.ACTIVE and line[-1].state is MemoryState.ACTIVE:
                self._take_back(page.memory.id, kept, line[-1])
            return None
        if problem := problem_with(edited):
            raise RecordError(problem)
        return Arrival(edited, 0, read.name, replaces=line[-1].id, reason=_edited_in(page.memory.id))

    def _line(self, first: Memory) -> list[Memory]:
        """Edited more than once, a page still names the first of a line of memories: from that one to the one that
        stands for it now."""
        line, seen = [first], {first.id}
        while line[-1].state is not MemoryState.ACTIVE:
            back = _BACK_TO.search(self._put_aside(line[-1]))
            next_id = line[-1].replaced_by or (back[1] if back else "")
            following = self._store.memories([next_id]).get(next_id) if next_id else None
            if following is None or following.id in seen:
                break
            line.append(following)
            seen.add(following.id)
        return line

    def _take_back(self, page_id: str, kept: Memory, current: Memory) -> None:
        """Let a page's earlier text stand again, if it was an edit of this page that put it aside."""
        reason = _edited_in(page_id)
        if kept.state not in (MemoryState.REPLACED, MemoryState.FORGOTTEN):
            return
        if not self._put_aside(kept).startswith(reason):
            return

        def swap(writing: Writing) -> None:
            back = f"{reason}, back to '{kept.id}'"
            writing.set_state([kept.id], MemoryState.ACTIVE, action="restore", reason=back)
            writing.set_state([current.id], MemoryState.FORGOTTEN, action="forget", reason=back)

        self._store.transaction(swap)
        self.tally.replaced += 1

    def _put_aside(self, memory: Memory) -> str:
        """The reason of the last change of its state; empty if there was none."""
        before: int | None = None
        while changes := self._store.audit(memory_id=memory.id, limit=AUDITED, before=before):
            for change in changes:
                if "state" in change.after:
                    return change.reason
            before = changes[-1].sequence
        return ""

    def _by_hand(self, memory: Memory) -> Memory:
        """A page that somebody wrote from nothing, held to what `mia memory add` asks for."""
        texts = ("question", "caption", "workflow", "plan", "incorrect_plan")
        memory = memory.model_copy(update={name: getattr(memory, name).strip() for name in texts})
        if memory.kind is MemoryKind.WORKFLOW and not memory.workflow:
            raise RecordError("it has no '## Workflow'")
        if memory.kind is MemoryKind.PLAN_PAIR and not (memory.plan and memory.incorrect_plan):
            raise RecordError("a plan pair needs a '## Plan' and an '## Incorrect plan'")
        if memory.category not in CATEGORIES:
            raise RecordError(f"there is no category '{memory.category}', only {', '.join(CATEGORIES)}")
        if junk := guard.junk(memory.question, memory.workflow or memory.plan):
            raise RecordError(f"it is no workflow: {junk}")
        # Whatever else the page says of its past, nobody can have seen.
        fresh = {"provenance": Provenance(origin="user"), "uses": 1, "wins": 1, "id": _id_of(memory)}
        return memory.model_copy(update=fresh)


def _page_content(path: Path) -> bytes:
    """Raises RecordError."""
    if path.is_symlink():
        raise RecordError("it is a symbolic link, and may lead anywhere")
    try:
        with path.open("rb") as stream:
            content = stream.read(LONGEST_LINE + 1)
    except OSError as error:
        raise RecordError(f"it cannot be read: {error.strerror}") from error
    if len(content) > LONGEST_LINE:
        raise RecordError(f"it is longer than {LONGEST_LINE // 2**20} MiB")
    return content


def _same_texts(one: Memory, other: Memory) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in _TEXTS)


def _edited(page: Page, old: Memory) -> Memory:
    """What takes the place of a memory whose page was edited.

    Its id follows from its texts, so that the same page makes it once. It keeps the episode and what that one leaned
    on, so that whoever has an episode erased reaches it; its words are the user's. Its counts begin anew: they belong
    to the text that was shown.
    """
    now = time.time()
    changed = {name: getattr(page.memory, name) for name in _TEXTS}
    edited = old.model_copy(
        update={
            **changed,
            "provenance": old.provenance.model_copy(update={"origin": "user", "compressed_by": ""}),
            "state": MemoryState.ACTIVE if old.state is MemoryState.REPLACED else old.state,
            "replaced_by": "",
            "uses": 1,
            "wins": 1,
            "created_at": now,
            "updated_at": now,
        }
    )
    return edited.model_copy(update={"id": _id_of(edited, page.memory.id)})


def _edited_in(page: str) -> str:
    """The reason in the audit, by the id in the page."""
    return f"edited in the page '{page}'"


def _id_of(memory: Memory, page: str = "") -> str:
    """An id that follows from the texts of a memory, and from the id in its page."""
    content = memory.model_dump(mode="json", include={"scope", *_TEXTS})
    digest = hashlib.sha256(json.dumps([page, content], sort_keys=True).encode()).hexdigest()
    return f"mem-{digest[:20]}"
