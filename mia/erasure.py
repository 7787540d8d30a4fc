"""Delete my data, everywhere: the store, the logs of runs, what streams still learn from, and the captions of images.

The store knows where copies of its episodes were written (`mia run` registers its folder) and takes its own traces off
the disk. What is left is done here, by what was asked for and not by what the store still holds: so it reaches episodes
that a run logged and never brought to the store, and the same call after a kill, or after a run that held its log, does
what the first one could not.

What floors above keep in `home`, they erase themselves: they are handed in as `Place`s, and told what goes.

Out of reach, and said so: folders that are gone, and whatever somebody made himself (exports, recordings, backups).
Weights that learnt from it keep what they learnt (docs/memory.md).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mia.errors import LearnError, StoreError
from mia.evals.log import rewrite
from mia.evals.run import LOG, scope_of
from mia.learn.adapters import AdapterStore, open_stores
from mia.learn.spool import Fate, Spool
from mia.redaction import Redactor
from mia.scope import covers
from mia.store.base import Erased, MemoryStore, fingerprint, storable
from mia.store.erasing import blot_out
from mia.types import Question

CAPTIONS = "captions"
"""The folder in `home` in which captions are kept, by the hash of the image."""
LEARNING = "learning"
"""The folder of a stream, in the folder of a run and in `home`."""
SPOOL = "spool"
"""In that folder: what is still to be learnt, or to be learnt again."""
ADAPTERS = "adapters"
"""In `home`: the versions of trained weights."""
_UNFINISHED = ".erasing"
"""In that folder while an erasure is under way."""
_PAGE = 1_000


@dataclass(frozen=True)
class Unreached:
    """A place that may still hold some of it."""

    place: Path
    reason: str
    """The end of a sentence."""


@dataclass(frozen=True)
class Erasure:
    """What was removed, and what could not be."""

    erased: Erased
    """From the store."""
    logged: frozenset[str] = frozenset()
    """Ids of episodes that were taken out of the logs of runs."""
    blotted: frozenset[str] = frozenset()
    """Ids of episodes that stay in those logs, and had been shown something that was erased."""
    captions: int = 0
    """Files of captions that were removed."""
    missing: tuple[Path, ...] = ()
    """Folders of runs that are gone: deleted, moved, or on a disk that is not there now."""
    unreached: tuple[Unreached, ...] = ()
    """What the same call may reach another time."""
    cleaned: tuple[Path, ...] = ()
    """Of the files that streams and a server keep: those out of which something was taken."""
    unknown: tuple[str, ...] = ()
    """Of the memories, the episodes and the words of questions that were asked for: what was nowhere, neither in the
    store nor in its audit nor in a log that could be read."""


@dataclass(frozen=True)
class Selection:
    """What goes: whatever one of these says."""

    scope: str | None = None
    """All of it and below it; None: of no scope."""
    memory_ids: Collection[str] = ()
    """Memories of which nothing is to be left, nor of what anybody was shown of them."""
    episode_ids: Collection[str] = ()
    question_ids: Collection[str] = ()
    words: Collection[int] = ()
    """Fingerprints of questions."""

    def covers(self, scope: str) -> bool:
        """Whether all of this scope goes."""
        return self.scope is not None and covers(self.scope, scope)

    def takes_question(self, id: str, text: str) -> bool:
        """Whether all that came of this question goes; by its scope only as far as the caller knows it."""
        return id in self.question_ids or (bool(self.words) and fingerprint(text) in self.words)

    def takes(self, episode: Mapping[str, Any]) -> bool:
        """Whether this episode, as JSON, goes; by its scope only as far as the caller knows it."""
        question = episode["question"]
        return episode["id"] in self.episode_ids or self.takes_question(question["id"], question["text"])

    def blot_out(self, episode: dict[str, Any]) -> bool:
        """Take out of an episode, as JSON, what it was shown; whether there was anything."""
        return blot_out(episode.get("recall") or {}, self.memory_ids)


@dataclass
class Reached:
    """What was found in a place, and is gone from it."""

    ids: set[str] = field(default_factory=set)
    """Of episodes, and of what else has an id."""
    blotted: set[str] = field(default_factory=set)
    """Of episodes that stay, without what they were shown."""
    images: set[str] = field(default_factory=set)
    """SHA-256 of the images of what is gone."""
    texts: set[int] = field(default_factory=set)
    """Fingerprints of its questions."""
    cleaned: list[Path] = field(default_factory=list)
    """Files that were changed or removed."""
    unreached: list[Unreached] = field(default_factory=list)

    def note(self, episode: Mapping[str, Any]) -> None:
        """An episode, as JSON, goes."""
        self.ids.add(episode["id"])
        self.note_question(episode["question"])

    def note_question(self, question: Mapping[str, Any]) -> None:
        """A question, as JSON, goes."""
        self.texts.add(fingerprint(question["text"]))
        self.images.update(image["sha256"] for image in question.get("images", ()))


class Place(Protocol):
    """Where a floor above keeps copies."""

    def erase(self, selection: Selection) -> Reached:
        """Remove what goes, with its traces on the disk; what cannot be is in `unreached`. The same call again does
        what one that was killed left."""
        ...


def erase_everywhere(
    store: MemoryStore,
    home: Path,
    *,
    scope: str | None = None,
    memory_ids: Collection[str] = (),
    episode_ids: Collection[str] = (),
    question_ids: Collection[str] = (),
    questions: Collection[str] = (),
    redactor: Redactor | None = None,
    places: Sequence[Place] = (),
) -> Erasure:
    """Remove for good everything of a scope and below it, these memories, these episodes, and whatever was learnt from
    these questions: by id, or by their words (`questions`), however they were written; see `MemoryStore.erase`.

    `home`: MIA's folder. `redactor`: the one that the store was filled with. `places`: what floors above keep. An
    erasure that was cut short before it came to the captions is finished by the next, whatever that is asked for: then
    all captions go, which only costs making them again. Raises StoreError if the store itself could not be cleaned;
    called again, it goes on from there.
    """
    words, given_memories = _fingerprints(questions, redactor or Redactor()), tuple(memory_ids)
    found_texts: set[int] = set()
    if words:
        found_questions, found_memories, found_texts = _of_words(store, words)
        question_ids = {*question_ids, *found_questions, *(Question.of(text).id for text in questions)}
        memory_ids = {*memory_ids, *found_memories}
    known = {id for id in memory_ids if store.audit(memory_id=id, limit=1)}
    captions = _Captions(home / CAPTIONS)
    captions.begin()
    samples = _Samples(home / ADAPTERS)
    # While the store still knows them: an erasure that is killed is told nothing of them the next time.
    sampled = samples.of(store, Selection(scope, (), episode_ids, question_ids, words))
    erased = store.erase(scope=scope, memory_ids=memory_ids, episode_ids=episode_ids, question_ids=question_ids)
    selection = Selection(
        scope,
        {*memory_ids, *erased.memories, *_removed(store, scope)},
        {*episode_ids, *erased.episodes},
        set(question_ids),
        words,
    )
    copies = [_Copy(place, selection) for place in erased.copies if place.is_dir()]
    unreached = [trouble for copy in copies for trouble in copy.clean()]
    reached = [copy.stream for copy in copies]
    reached += [place.erase(selection) for place in places]
    reached.append(samples.erase(sampled | samples.shown(store, selection), selection))
    images = itertools.chain(*(copy.images for copy in copies), *(one.images for one in reached))
    removed, trouble = captions.remove({*erased.images, *images})
    logged = frozenset(id for copy in copies for id in copy.gone)
    return Erasure(
        erased=erased,
        logged=logged,
        blotted=frozenset(id for copy in copies for id in copy.blotted),
        captions=removed,
        missing=tuple(place for place in erased.copies if not place.is_dir()),
        unreached=(*unreached, *(one for place in reached for one in place.unreached), *trouble),
        cleaned=tuple(dict.fromkeys(path for place in reached for path in place.cleaned)),
        unknown=_nowhere(
            {*known, *erased.memories, *erased.episodes, *logged, *(id for place in reached for id in place.ids)},
            found_texts.union(*(copy.texts for copy in copies), *(place.texts for place in reached)),
            asked=(*given_memories, *episode_ids),
            questions=questions,
            redactor=redactor,
        ),
    )


def questions_like(store: MemoryStore, questions: Collection[str], redactor: Redactor | None = None) -> tuple[str, ...]:
    """The questions in the store that `erase_everywhere` takes for these, as they were written. Raises StoreError."""
    words = _fingerprints(questions, redactor or Redactor())
    if not words:
        return ()
    memories = (memory.question for memory, _ in store.export(None))
    episodes = (kept.episode.question.text for kept in store.export_episodes(None))
    return tuple(sorted({text for text in itertools.chain(memories, episodes) if fingerprint(text) in words}))


def _nowhere(
    found: Collection[str],
    found_texts: Collection[int],
    *,
    asked: Collection[str],
    questions: Collection[str],
    redactor: Redactor | None,
) -> tuple[str, ...]:
    unknown = [id for id in asked if id not in found]
    unknown += [text for text in questions if not _fingerprints([text], redactor or Redactor()) & set(found_texts)]
    return tuple(dict.fromkeys(unknown))


# ── what is asked for ─────────────────────────────────────────────────────────────────────────────────────────────


def _fingerprints(questions: Collection[str], redactor: Redactor) -> frozenset[int]:
    """Of the questions as they were asked, and as they were stored."""
    return frozenset(fingerprint(text) for question in questions for text in (question, redactor(question)))


def _of_words(store: MemoryStore, words: Collection[int]) -> tuple[set[str], set[str], set[int]]:
    """The ids of the questions with these words, and of the memories with such a question, in whatever state; and
    those of the words that were there."""
    questions, memories, found = set(), set(), set()
    for memory, _ in store.export(None):
        if (hashed := fingerprint(memory.question)) in words:
            memories.add(memory.id)
            found.add(hashed)
    for kept in store.export_episodes(None):
        if (hashed := fingerprint(kept.episode.question.text)) in words:
            questions.add(kept.episode.question.id)
            found.add(hashed)
    return questions, memories, found


def _removed(store: MemoryStore, scope: str | None) -> set[str]:
    """All memories that were ever erased, by this call or one that was killed; and those that were purged from the
    scope: the rows are gone, and other episodes may have been shown them."""
    names: set[str] = set()
    before: int | None = None
    while changes := store.audit(limit=_PAGE, before=before):
        for change in changes:
            purged = change.action == "purge" and scope is not None and covers(scope, change.scope)
            if change.memory_id and (purged or change.action == "erase"):
                names.add(change.memory_id)
        before = changes[-1].sequence
    return names


# ── the logs of runs ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Copy:
    """The folder of one run."""

    place: Path
    selection: Selection
    gone: set[str] = field(default_factory=set)
    blotted: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)
    """SHA-256 of the images of episodes that are gone."""
    texts: set[int] = field(default_factory=set)
    """Fingerprints of their questions."""
    stream: Reached = field(default_factory=Reached)
    """What the run learns from."""
    all_go: bool = False
    """The whole run is of the scope."""
    unreadable: bool = False

    def clean(self) -> list[Unreached]:
        """Rewrite its log; what could not be done."""
        log, scope = self.place / LOG, self.selection.scope
        own = scope_of(self.place)
        self.all_go = own is not None and self.selection.covers(own)
        if (self.place / LEARNING).is_dir():
            self.stream = erase_stream(self.place / LEARNING, self.selection, all_go=self.all_go)
        if not log.is_file():
            return []
        try:
            rewrite(log, self._edit)
        except StoreError as error:
            self.gone.clear()
            self.blotted.clear()
            return [Unreached(log, error.got.rstrip("."))]
        troubles = []
        if self.unreadable:
            troubles.append(Unreached(log, "it has lines that are no episodes, which were left as they are"))
        if scope is not None and own is None:
            reason = "its run.json does not say whose run it is; only episodes that the store knew were taken out"
            troubles.append(Unreached(log, reason))
        return troubles

    def _edit(self, line: bytes) -> bytes:
        if not line.strip():
            return line
        try:
            episode = json.loads(line)
            if self.all_go or self.selection.takes(episode):
                self.gone.add(episode["id"])
                self.texts.add(fingerprint(episode["question"]["text"]))
                self.images.update(image["sha256"] for image in episode["question"].get("images", ()))
                return b""
            if self.selection.blot_out(episode):
                self.blotted.add(episode["id"])
                return storable(json.dumps(episode, ensure_ascii=False)).encode() + b"\n"
        except (ValueError, KeyError, TypeError, AttributeError):
            # No episode, so somebody's edit.
            if self.all_go:
                return b""
            self.unreadable = True
        return line


# ── what is learnt from ───────────────────────────────────────────────────────────────────────────────────────────


def erase_stream(
    folder: Path,
    selection: Selection,
    *,
    all_go: bool = False,
    beside: Callable[[Selection, Reached], None] = lambda selection, reached: None,
) -> Reached:
    """Take out of the folder of a stream what waits to be learnt, or to be learnt again. `all_go`: it is all of the
    scope. `beside`: cleans what else is in the folder, while no learner is at work there."""
    reached = Reached()
    if not (folder / SPOOL).is_dir():
        beside(selection, reached)
        return reached
    try:
        spool = Spool(folder / SPOOL)
    except LearnError as error:
        reached.unreached.append(Unreached(folder / SPOOL, f"{error.got.rstrip('.')}; stop it first"))
        return reached
    try:
        edit = edit_of_groups(selection, reached, all_go=all_go)
        done = spool.erase(edit)
        reached.cleaned += done.changed
        reached.unreached += [Unreached(path, UNREADABLE) for path in done.left]
        beside(selection, reached)
    except LearnError as error:
        reached.unreached.append(Unreached(folder / SPOOL, error.got.rstrip(".")))
    finally:
        spool.close()
    return reached


UNREADABLE = "it cannot be read; delete it yourself"
"""Of a file, why it was not reached."""


def edit_of_groups(selection: Selection, reached: Reached, *, all_go: bool = False) -> Callable[[dict[str, Any]], Fate]:
    """What becomes of a group in a spool: `Spool.erase` asks it. Tries of one question are learnt from together, and go
    together. Tokens hold what was shown, and cannot be blotted out: they go."""

    def edit(group: dict[str, Any]) -> Fate:
        episodes = group["episodes"]
        if all_go or group["question_id"] in selection.question_ids or any(map(selection.takes, episodes)):
            for episode in episodes:
                reached.note(episode)
            return "goes"
        blotted = {episode["id"] for episode in episodes if selection.blot_out(episode)}
        if not blotted:
            return "stays"
        reached.blotted |= blotted
        group["rollouts"] = []
        return "changed"

    return edit


class _Samples:
    """The tokens that versions of trained weights keep of the rollouts that made them, if they do."""

    def __init__(self, folder: Path) -> None:
        self._stores: tuple[AdapterStore, ...] = ()
        self._trouble: list[Unreached] = []
        try:
            self._stores = tuple(store for store in open_stores(folder) if store.keeps_samples())
        except LearnError as error:
            self._trouble.append(Unreached(folder, error.got.rstrip(".")))

    def of(self, store: MemoryStore, selection: Selection) -> set[str]:
        """The ids of the episodes of which tokens may be kept, and go. Raises StoreError."""
        if not self._stores:
            return set()
        return {
            kept.episode.id
            for kept in store.export_episodes(None)
            if selection.covers(kept.scope)
            or kept.episode.id in selection.episode_ids
            or selection.takes_question(kept.episode.question.id, kept.episode.question.text)
        }

    def shown(self, store: MemoryStore, selection: Selection) -> set[str]:
        """And of those that were shown a memory of which nothing is to be left. Raises StoreError."""
        if not self._stores:
            return set()
        episodes = (kept.episode for kept in store.export_episodes(None))
        return {
            one.id
            for one in episodes
            if one.recall is not None and any(shown.memory_id in selection.memory_ids for shown in one.recall.shown)
        }

    def erase(self, episode_ids: Collection[str], selection: Selection) -> Reached:
        reached = Reached(unreached=self._trouble)
        ids = {*episode_ids, *selection.episode_ids}
        for store in self._stores:
            try:
                reached.cleaned += store.erase_samples(ids, selection.question_ids)
            except LearnError as error:
                reached.unreached.append(Unreached(store.folder, error.got.rstrip(".")))
        return reached


# ── captions ──────────────────────────────────────────────────────────────────────────────────────────────────────


class _Captions:
    """The folder of captions, which are only a cache."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mark = folder / _UNFINISHED
        self._all = False
        """An erasure was cut short: nobody knows any more which images it took."""

    def begin(self) -> None:
        """Raises StoreError."""
        if not self._folder.is_dir():
            return
        self._all = self._mark.exists()
        try:
            self._mark.touch()
        except OSError as error:
            raise StoreError(f"cannot write in '{self._folder}': {error.strerror}; nothing was erased.") from error

    def remove(self, images: Collection[str]) -> tuple[int, list[Unreached]]:
        """Remove the captions of these images, and the mark; how many, and what could not be removed."""
        if not self._folder.is_dir():
            return 0, []
        removed = 0
        try:
            for file in list(self._folder.iterdir()):
                if file != self._mark and (self._all or file.name.partition(".")[0] in images):
                    file.unlink(missing_ok=True)
                    removed += 1
            self._mark.unlink(missing_ok=True)
        except OSError as error:
            return removed, [Unreached(self._folder, f"captions could not be removed: {error.strerror}")]
        return removed, []
