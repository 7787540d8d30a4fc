"""Lineage: what became of what. memory → episode → reward → version → the episodes that the version answered.

A memory was shown to an episode; the episode was a rollout and had a reward; a version was made of the rollout; the
version answered later episodes, of which new memories were made. `lineage` finds the whole chain from any of its links.
Ids and verdicts come from the memory store and from the records of the adapter stores, which outlive a prune; an
episode that the memory store does not hold (any more) is named by its id alone.

When a version is rolled back, what it left in the memory can be put aside with it (`quarantine`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mia.errors import RecordError
from mia.learn.adapters import AdapterStore, RolloutRow, Version
from mia.store.base import KeptEpisode, MemoryStore
from mia.types import MemoryState, Role

Kind = Literal["memory", "episode", "rollout", "version"]
_LAST = "last"
"""Refers to the episode that was saved last, as everywhere."""


@dataclass(frozen=True)
class Answered:
    """An episode, as far as lineage goes."""

    id: str
    known: bool = False
    """The memory store holds it; if not, the rest is empty."""
    question: str = ""
    outcome: str = ""
    """Its verdict; empty: none."""
    adapters: Mapping[Role, str] = field(default_factory=dict)
    """The version that answered, for each role where it was not the model as it came."""
    shown: tuple[str, ...] = ()
    """The memories that it was shown."""
    made: tuple[str, ...] = ()
    """The memories that were made of it."""


@dataclass(frozen=True)
class Rewarded:
    """A rollout, and the version that was made of it."""

    row: RolloutRow
    version: str


@dataclass(frozen=True)
class Lineage:
    """The chain through one of its links."""

    subject: str
    kind: Kind
    memories: tuple[str, ...]
    """Those that were shown to `episodes`; of a memory, itself."""
    origin: str
    """Of a memory: the episode that it was made of; else empty."""
    episodes: tuple[Answered, ...]
    rewards: tuple[Rewarded, ...]
    """What these episodes were worth as rollouts."""
    versions: tuple[Version, ...]
    """Those that were made of these rollouts, the oldest first."""
    parents: tuple[str, ...]
    """Of a version: those that it was trained on from, the nearest first; else empty."""
    answered: tuple[Answered, ...]
    """The episodes that these versions answered."""


def lineage(
    reference: str, adapters: Sequence[AdapterStore], memory: MemoryStore | None, *, scope: str | None = None
) -> Lineage:
    """The chain through a memory, an episode, a rollout or a version, by id or unambiguous beginning of one (an episode
    also as "last"; a version also by number). `memory` None: there is none, and episodes are ids alone. `scope`: only
    episodes of it and all below it are told (None: all).

    It reads every episode of the scope once. Raises RecordError for what nothing has as its id, or more than one;
    StoreError, LearnError.
    """
    records = _read(adapters, memory, scope)
    subject, kind = _resolve(reference, records, adapters, memory, scope)
    origin = ""
    if kind == "version":
        rewards = [one for one in records.rewards if one.version == subject]
    elif kind == "rollout":
        rewards = [one for one in records.rewards if one.row.id == subject]
    if kind in ("version", "rollout"):
        ids = [one.row.episode_id for one in rewards]
    else:
        ids = [subject]
        if kind == "memory":
            assert memory is not None
            origin = memory.memory(subject).provenance.episode_id
            ids = [one.id for one in records.episodes.values() if subject in one.shown]
        chosen = set(ids)
        rewards = [one for one in records.rewards if one.row.episode_id in chosen]
    episodes = [records.episode(id) for id in dict.fromkeys(ids) if id]
    shown = dict.fromkeys(id for one in episodes for id in one.shown)
    names = {subject} if kind == "version" else {one.version for one in rewards}
    return Lineage(
        subject=subject,
        kind=kind,
        memories=(subject,) if kind == "memory" else tuple(shown),
        origin=origin,
        episodes=tuple(episodes),
        rewards=tuple(rewards),
        versions=tuple(version for name, version in records.versions.items() if name in names),
        parents=tuple(records.parents(subject)) if kind == "version" else (),
        answered=tuple(records.answered_by(names)),
    )


def left_behind(versions: Collection[str], adapters: Sequence[AdapterStore], memory: MemoryStore) -> tuple[str, ...]:
    """The ids of the memories in sight that were made of episodes which these versions answered, the oldest first."""
    answered = _read(adapters, memory, None).answered_by(set(versions))
    return tuple(one.id for one in memory.memories_of([episode.id for episode in answered]))


def quarantine(
    versions: Collection[str], adapters: Sequence[AdapterStore], memory: MemoryStore, *, reason: str = ""
) -> tuple[str, ...]:
    """Put aside what versions left in the memory, in all scopes, until somebody has looked at it; the ids of the
    memories that it changed. `mia memory restore` undoes it. Raises StoreError."""
    ids = left_behind(versions, adapters, memory)
    if not ids:
        return ()
    why = reason or f"made by {', '.join(versions)}, which was rolled back"
    return memory.transaction(
        lambda writing: writing.set_state(ids, MemoryState.QUARANTINED, action="quarantine", reason=why)
    )


def find_version(reference: str, adapters: Sequence[AdapterStore]) -> tuple[AdapterStore, Version]:
    """The version of this name or number, in whichever store. Raises RecordError if there is none, or one in several
    stores."""
    found = [(store, version) for store in adapters if (version := store.find(reference)) is not None]
    if len(found) == 1:
        return found[0]
    if found:
        raise RecordError(
            f"'{reference}' is a version of {' and of '.join(f'the {version.role}' for _, version in found)}.",
            wanted=f"one of: {', '.join(version.name for _, version in found)}",
        )
    raise RecordError(f"there is no version '{reference}'.", hint="mia adapters list")


# ── what is known ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Records:
    versions: Mapping[str, Version]
    """By name: store after store, the oldest first."""
    rewards: Sequence[Rewarded]
    episodes: Mapping[str, Answered]
    """By id, the first saved first."""

    def episode(self, id: str) -> Answered:
        return self.episodes.get(id) or Answered(id)

    def answered_by(self, names: Collection[str]) -> list[Answered]:
        """The episodes that say so, then those of which only a rollout says it."""
        found = [one.id for one in self.episodes.values() if not set(names).isdisjoint(one.adapters.values())]
        sampled = [one.row.episode_id for one in self.rewards if one.row.adapter_version in names]
        return [self.episode(id) for id in dict.fromkeys((*found, *sampled)) if id]

    def parents(self, name: str) -> Iterator[str]:
        while (name := self.versions[name].parent) in self.versions:
            yield name


def _read(adapters: Sequence[AdapterStore], memory: MemoryStore | None, scope: str | None) -> _Records:
    versions = {version.name: version for store in adapters for version in store.versions()}
    rewards = [
        Rewarded(row, version.name)
        for store in adapters
        for version in store.versions()
        for row in store.rollouts(version.name)
    ]
    kept = memory.export_episodes(scope) if memory is not None else ()
    return _Records(versions, rewards, {one.episode.id: _answered(one) for one in kept})


def _answered(kept: KeptEpisode) -> Answered:
    episode = kept.episode
    return Answered(
        id=episode.id,
        known=True,
        question=episode.question.text,
        outcome=episode.verdict.outcome.value if episode.verdict else "",
        adapters=episode.adapters,
        shown=tuple(one.memory_id for one in episode.recall.shown) if episode.recall else (),
        made=kept.lessons,
    )


def _resolve(
    reference: str, records: _Records, adapters: Sequence[AdapterStore], memory: MemoryStore | None, scope: str | None
) -> tuple[str, Kind]:
    """Whose id it is."""
    if reference == _LAST and memory is not None:
        return memory.load_episode(_LAST, scope=scope).id, "episode"
    found: dict[str, Kind] = {}
    for store in adapters:
        if (version := store.find(reference)) is not None:
            found[version.name] = "version"
    for one in records.rewards:
        if one.row.id.startswith(reference):
            found[one.row.id] = "rollout"
    episodes = (*records.episodes, *(one.row.episode_id for one in records.rewards))
    found |= dict.fromkeys((id for id in episodes if id.startswith(reference)), "episode")
    if not found and memory is not None:
        try:
            return memory.memory(reference).id, "memory"
        except RecordError as error:
            got = error.got.rstrip(".")
            raise RecordError(
                f"no version, rollout or episode has the id '{reference}', and as for memories: {got}.",
                wanted=error.wanted,
                hint="mia adapters list, mia memory list",
            ) from error
    if reference in found:
        return reference, found[reference]
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        some = ", ".join(sorted(found)[:3])
        raise RecordError(f"several things have an id that begins with '{reference}': {some}.", wanted="more of the id")
    raise RecordError(
        f"nothing has the id '{reference}'.",
        wanted="the id of a memory, an episode, a rollout or a version",
        hint="mia adapters list, mia memory list",
    )
