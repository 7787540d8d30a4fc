"""Versions of trained weights: each is written once and never changes; what changes is which of them answers.

A version is a folder: the weights, the learner's own state (to train on from it), and the rollouts that made it. All
that can change (which version is current, the state of each, the next number) is one small file, `store.json`, that is
replaced as a whole by one rename. So a kill at any instant leaves either what was before or what comes after, and a
version is listed only once all of it is on the disk.

    <folder>/store.json                   the page: role, base, current, every version
             lock                         held by whoever changes the page
             versions/<name>/saved/       what `Learner.save` wrote: weights, optimizer, schedule, random state
                             rollouts.jsonl.gz, tokens.jsonl.gz (optional), version.json
                             hold         locked by whoever reads the weights
             versions/.<name>/            being written, or left by a process that died meanwhile

Any number of processes may use one store on a local disk. Locks are the system's own (flock): they end with their
process, however that ends.

One name is used everywhere, in episodes, at servers and on the disk: `planner-3f9ac2-v000007`. The middle is the
store's own, drawn when it was made, so that neither two roles nor two stores ever give one server the same name for
other weights. A number is never used again, also after a failure or a prune. `v7` and `7` find it too.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from mia.errors import LearnError
from mia.learn.canary import CanaryResult
from mia.learn.rollouts import Rollout, load_rollout
from mia.types import Record, Role

SAVED = "saved"
_LEAVING = "saved.pruned"
CURRENT = "current"
"""Refers to the version that answers."""
BASE = "base"
"""For `rollback`: no version, the model as it came."""
FORMAT = 1
_FULL = (errno.ENOSPC, errno.EDQUOT)
_PAGE, _LOCK, _HOLD = "store.json", "lock", "hold"
_ROLLOUTS, _TOKENS, _VERSION = "rollouts.jsonl.gz", "tokens.jsonl.gz", "version.json"
_KINDS: dict[str, Literal["lora", "full"]] = {"adapter_config.json": "lora", "config.json": "full"}
"""The file that says how to read weights, and what they then are."""
_HINT = "mia adapters list"


class State(StrEnum):
    CANDIDATE = "candidate"
    """Written, and not decided on."""
    PROMOTED = "promoted"
    """It answers, or did before a later one."""
    REJECTED = "rejected"
    """The canary found it worse; it never answered."""
    ROLLED_BACK = "rolled_back"
    """It answered, and was taken back."""


class Version(Record):
    """One version. The fields down to `metrics` never change."""

    name: str
    number: int
    role: Role
    base: str
    """Digest of the model that it belongs to (`Weights.digest`)."""
    parent: str
    """The version that training went on from; empty: the base model."""
    kind: Literal["lora", "full"]
    created_at: float
    rollouts: tuple[str, ...] = ()
    """The ids of those that made it."""
    reward: float | None = None
    """Their mean reward; None where there were none."""
    metrics: dict[str, float | None] = {}
    """Of the update; None where it was no finite number."""

    state: State = State.CANDIDATE
    changed_at: float
    """When the state was last changed."""
    reason: str = ""
    """Why it was."""
    before: str = ""
    """What answered when it was promoted, and what a rollback returns to; empty: the base model."""
    canary: CanaryResult | None = None
    pruned_at: float | None = None
    """Since then only the record is left: weights and learner's state are gone."""

    folder: Path = Field(default=Path(), exclude=True, repr=False)
    """What `Learner.restore` takes. Known to whoever asks a store; not part of the record."""


class RolloutRow(Record):
    """What a version keeps of a rollout that made it: no text and no tokens."""

    id: str
    group: str
    reward: float
    parts: dict[str, float] = {}
    adapter_version: str = ""
    """The version that sampled it; empty: the base model."""
    episode_id: str = ""
    tokens: int = 0
    """So many were learnt from."""


@dataclass(frozen=True)
class Rollback:
    """What a rollback did."""

    was: str
    now: str
    """Empty: the base model."""
    rolled_back: tuple[str, ...]
    """The versions that were taken back, the newest first."""


class _Page(Record):
    format: int = FORMAT
    role: Role
    base: str
    tag: str
    next: int = 1
    current: str = ""
    versions: dict[str, Version] = {}

    def with_version(self, version: Version) -> _Page:
        return self.evolve(versions={**self.versions, version.name: version})

    def served(self, name: str) -> list[Version]:
        """The version of this name, and what answered before it, one after the other down to the base model."""
        chain: list[Version] = []
        while name in self.versions:
            chain.append(self.versions[name])
            name = chain[-1].before
        return chain


class AdapterStore:
    """The versions of one role. See the module's docstring. Every method raises LearnError, and is sync: async callers
    go through a thread, since a change waits for the disk and for other processes."""

    def __init__(self, folder: Path, base_digest: str, role: Role) -> None:
        """The store in this folder; made where there is none. Raises LearnError if the one there belongs to another
        base or role."""
        self.folder = folder
        self._parsed: tuple[str, _Page | None] = ("", None)
        """The page as it was read last, so that one that has not changed is not parsed again."""
        try:
            (folder / "versions").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _failed(f"'{folder}' cannot hold adapters", error) from error
        with self._alone():
            if not (folder / _PAGE).exists():
                self._write(_Page(role=role, base=base_digest, tag=secrets.token_hex(3)))
        page = self._read()
        if page.role is not role:
            raise LearnError(
                f"'{folder}' holds adapters of the {page.role}, not of the {role}.", hint="name another folder"
            )
        if page.base != base_digest:
            raise LearnError(
                f"the adapters in '{folder}' belong to another base model.",
                wanted=f"the model whose weights have the digest {page.base}, not {base_digest}",
                hint="set models.*.path back to it, or begin anew in another --home",
            )

    @classmethod
    def open(cls, folder: Path) -> AdapterStore:
        """The store in this folder, whatever its base and role. Raises LearnError if there is none."""
        if not (folder / _PAGE).is_file():
            raise LearnError(f"no adapters at '{folder}'.", hint="mia run --learn makes some")
        store = cls.__new__(cls)
        store.folder, store._parsed = folder, ("", None)
        store._read()
        return store

    @property
    def role(self) -> Role:
        return self._read().role

    @property
    def base(self) -> str:
        """The digest of the base model."""
        return self._read().base

    # ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────

    def versions(self) -> tuple[Version, ...]:
        """All that were ever made, the oldest first; of pruned ones the record is left."""
        return tuple(map(self._told, sorted(self._read().versions.values(), key=lambda version: version.number)))

    def current(self) -> Version | None:
        """The version that answers; None: the base model. Another process may change it at any time."""
        page = self._read()
        return self._told(page.versions[page.current]) if page.current else None

    def served(self) -> tuple[Version, ...]:
        """The current version, and what answered before it, one after the other: where rollbacks lead. What was rolled
        back is not in it."""
        page = self._read()
        return tuple(self._told(version) for version in page.served(page.current) if version.state is State.PROMOTED)

    def latest_candidate(self) -> Version | None:
        """The newest version that nobody has decided on."""
        candidates = [version for version in self.versions() if version.state is State.CANDIDATE]
        return candidates[-1] if candidates else None

    def get(self, reference: str) -> Version:
        """By name, number ("v000007", "v7", "7") or "current"."""
        return self._told(self._find(self._read(), reference))

    def find(self, reference: str) -> Version | None:
        """The same; None where there is no such version."""
        found = _look_up(self._read(), reference)
        return self._told(found) if found is not None else None

    def weights(self, reference: str) -> Path:
        """The folder of a version's weights, as peft or transformers reads it. Inside `hold` it stays there."""
        version = self.get(reference)
        self._check_there(version)
        return _find_weights(version.folder)[0]

    def is_there(self, version: Version) -> bool:
        """Whether its weights are on the disk: not pruned, nor removed by hand."""
        return version.pruned_at is None and (self._place(version.name) / SAVED).is_dir()

    def rollouts(self, reference: str) -> tuple[RolloutRow, ...]:
        """The rollouts that made a version; they stay when it is pruned."""
        path = self._place(self.get(reference).name) / _ROLLOUTS
        return tuple(RolloutRow.model_validate(row) for row in _read_rows(path))

    def samples(self, reference: str) -> tuple[Rollout, ...]:
        """The same with their tokens; empty where these were not kept, or were pruned."""
        return tuple(load_rollout(row) for row in _read_rows(self._place(self.get(reference).name) / _TOKENS))

    @contextmanager
    def hold(self, reference: str) -> Iterator[Version]:
        """Keep a version from being pruned, by any process, while its weights are read or answer. A kill lets go."""
        version = self.get(reference)
        descriptor = self._try_hold(version)
        if descriptor is None:
            self._check_there(self.get(version.name))
            raise LearnError(f"'{version.name}' is damaged: its file '{_HOLD}' is gone.", hint=_HINT)
        try:
            yield version
        finally:
            os.close(descriptor)

    @contextmanager
    def hold_current(self) -> Iterator[Version | None]:
        """Hold whichever version answers now; None: the base model, which nobody prunes."""
        while (version := self.current()) is not None:
            descriptor = self._try_hold(version)
            if descriptor is not None:
                try:
                    yield version
                finally:
                    os.close(descriptor)
                return
            # Another took its place before we held it, and it was pruned; or it was removed by hand.
            if self.current() == version:
                self._check_there(version)
        yield None

    def keeps_samples(self) -> bool:
        """Whether any version keeps tokens."""
        return any((self.folder / "versions").glob(f"*/{_TOKENS}"))

    # ── changing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def create(
        self,
        parent: str,
        write: Callable[[Path], None],
        rollouts: Sequence[Rollout],
        metrics: Mapping[str, float] | None = None,
        *,
        tokens: bool = False,
    ) -> Version:
        """A new version, as a candidate: wholly on the disk when this returns, and not there at all when it raises.

        `parent`: what training went on from; empty: the base model. `write` is handed an empty folder, and writes into
        it what training goes on from (`Learner.save`): the weights as peft or transformers saves them, in it or in one
        subfolder, and whatever else. `tokens`: keep the rollouts' tokens too.

        Raises LearnError if the disk is full or cannot be written, if the weights are missing, torn or of another base,
        or a reward is no finite number; what `write` raises passes through.
        """
        if wrong := [rollout.id for rollout in rollouts if not math.isfinite(rollout.reward)]:
            raise LearnError(f"the reward of the rollout '{wrong[0]}' is no finite number.")
        page = self._read()
        role, base, parent = page.role, page.base, self._find(page, parent).name if parent else ""
        name, number, fresh, lock = self._begin()
        try:
            saved = fresh / SAVED
            saved.mkdir()
            write(saved)
            kind = _check_weights(saved, base)
            _write_rows(fresh / _ROLLOUTS, (_row(rollout).model_dump(mode="json") for rollout in rollouts))
            if tokens:
                _write_rows(fresh / _TOKENS, (rollout.as_dict() for rollout in rollouts))
            now = time.time()
            rewards = [rollout.reward for rollout in rollouts]
            version = Version(
                name=name,
                number=number,
                role=role,
                base=base,
                parent=parent,
                kind=kind,
                created_at=now,
                rollouts=tuple(rollout.id for rollout in rollouts),
                reward=math.fsum(rewards) / len(rewards) if rewards else None,
                metrics={key: value if math.isfinite(value) else None for key, value in (metrics or {}).items()},
                changed_at=now,
            )
            (fresh / _VERSION).write_text(version.model_dump_json(indent=2), encoding="utf-8")
            _sync_tree(fresh)
            with self._alone():
                fresh.rename(self._place(name))
                _sync(self.folder / "versions")
                self._write(self._read().with_version(version))
        except BaseException as error:
            # Not every library that writes weights says a full disk as an OSError.
            full = isinstance(error, Exception) and _is_of_a_full_disk(error, self.folder)
            self._discard(name)
            if isinstance(error, OSError) or full:
                failure = OSError(errno.ENOSPC, "") if full else error
                raise _failed(f"the version '{name}' could not be written to '{self.folder}'", failure) from error
            raise
        finally:
            os.close(lock)
        return self._told(version)

    def promote(self, reference: str, canary: CanaryResult | None = None, *, reason: str = "") -> Version:
        """Let a candidate answer from now on. Doing it twice is harmless.

        Raises LearnError if it was decided on already, if its weights are gone, if it descends from a version that was
        rolled back, or if the canary compared it with another version than the current one.
        """

        def edit(page: _Page) -> _Page:
            version = self._find(page, reference)
            if version.name == page.current:
                return page
            if version.state is not State.CANDIDATE:
                raise LearnError(
                    f"'{version.name}' is {version.state}, and no candidate any more.",
                    hint=f"mia adapters rollback {version.name}, if it shall answer all the same",
                )
            self._check_there(version)
            if bad := next((one for one in _ancestors(page, version) if one.state is State.ROLLED_BACK), None):
                raise LearnError(
                    f"'{version.name}' was trained on from '{bad.name}', which was rolled back.",
                    hint="train on from the current version",
                )
            if canary is not None and canary.current != page.current:
                raise LearnError(
                    f"'{version.name}' was compared with '{canary.current or BASE}', and now "
                    f"'{page.current or BASE}' answers.",
                    hint="examine it again",
                )
            why = reason or (canary.reason if canary else "")
            promoted = _decided(version, State.PROMOTED, why, before=page.current, canary=canary)
            return page.with_version(promoted).evolve(current=version.name)

        return self._told(self._find(self._change(edit), reference))

    def reject(self, reference: str, canary: CanaryResult | None = None, *, reason: str = "") -> Version:
        """Decide that a candidate never answers. Raises LearnError for anything but a candidate."""

        def edit(page: _Page) -> _Page:
            version = self._find(page, reference)
            if version.state is not State.CANDIDATE:
                raise LearnError(f"'{version.name}' is {version.state}, and no candidate any more.", hint=_HINT)
            why = reason or (canary.reason if canary else "")
            return page.with_version(_decided(version, State.REJECTED, why, canary=canary))

        return self._told(self._find(self._change(edit), reference))

    def rollback(self, to: str = "", *, reason: str = "") -> Rollback:
        """Let an earlier version answer again. `to`: any that has answered before, also one that was rolled back, or
        "base"; empty: the last good one before the current, at last the base model.

        What answered between the two is rolled back. Raises LearnError if there is nothing to go back to, if `to` never
        answered, or if its weights are gone.
        """
        done: list[Rollback] = []

        def edit(page: _Page) -> _Page:
            chain = page.served(page.current)
            target = self._target(page, chain, to)
            name = target.name if target else ""
            staying = {one.name for one in page.served(name)}
            taken = [version for version in chain if version.name not in staying]
            for version in taken:
                page = page.with_version(_decided(version, State.ROLLED_BACK, reason))
            if target is not None and target.state is not State.PROMOTED:
                page = page.with_version(_decided(target, State.PROMOTED, reason))
            was = chain[0].name if chain else ""
            done[:] = [Rollback(was, name, tuple(version.name for version in taken))]
            return page.evolve(current=name)

        self._change(edit)
        return done[0]

    def prune(self, keep: int, *, dry_run: bool = False) -> tuple[str, ...]:
        """Remove the weights of all but `keep` versions; returns the names of those that went, the oldest first.

        Kept first are the current one and those that rollbacks would lead to, the newest first, then the newest of the
        others. Beyond that number stays what somebody holds, and the newest candidate where it is newer than the
        current version. Records and rollouts stay for ever, so that lineage does.
        """
        if keep < 1:
            raise LearnError(f"a prune that keeps {keep} versions.", wanted="1 or more")
        pruned: list[str] = []
        with self._alone():
            page = self._read() if dry_run else self._sweep(self._read())
            for version in self._dispensable(page, keep):
                with _if_idle(self._place(version.name) / _HOLD) as idle:
                    if not idle:
                        continue
                    pruned.append(version.name)
                    if not dry_run:
                        page = self._remove(page, version)
        return tuple(pruned)

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _place(self, name: str) -> Path:
        return self.folder / "versions" / name

    def _find(self, page: _Page, reference: str) -> Version:
        found = _look_up(page, reference)
        if found is not None:
            return found
        if reference == CURRENT:
            raise LearnError(f"no version of the {page.role} answers: it is the base model.", hint=_HINT)
        newest = sorted(page.versions, reverse=True)[:3]
        raise LearnError(
            f"there is no version '{reference}' of the {page.role}.",
            wanted=f"a name or number, e.g. {', '.join(newest)}" if newest else "",
            hint=_HINT,
        )

    def _told(self, version: Version) -> Version:
        return version.model_copy(update={"folder": self._place(version.name) / SAVED})

    def _check_there(self, version: Version) -> None:
        """Raises LearnError for a version whose weights are gone."""
        if not self.is_there(version):
            what = "were pruned" if version.pruned_at is not None else "are not on the disk any more"
            raise LearnError(f"the weights of '{version.name}' {what}.", hint="mia adapters rollback")

    def _try_hold(self, version: Version) -> int | None:
        """A descriptor that holds a version until it is closed; None where its weights are gone."""
        try:
            descriptor = os.open(self._place(version.name) / _HOLD, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed(f"'{version.name}' cannot be held", error) from error
        try:
            # Waits while somebody prunes it.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            there = self.is_there(self.get(version.name))
        except OSError as error:
            os.close(descriptor)
            raise _failed(f"'{version.name}' cannot be held", error) from error
        except BaseException:
            os.close(descriptor)
            raise
        if not there:
            os.close(descriptor)
            return None
        return descriptor

    def _target(self, page: _Page, chain: Sequence[Version], to: str) -> Version | None:
        """Where a rollback leads; None: to the base model."""
        if to and to != BASE:
            target = self._find(page, to)
            if target.state in (State.CANDIDATE, State.REJECTED):
                raise LearnError(
                    f"'{target.name}' is {target.state}, and has never answered.",
                    wanted=f"a version that has, or '{BASE}'",
                    hint=_HINT,
                )
            self._check_there(target)
            return target
        if not chain:
            raise LearnError("there is nothing to roll back: the base model answers.", hint=_HINT)
        if to == BASE:
            return None
        good = (one for one in chain[1:] if one.state is State.PROMOTED and self.is_there(one))
        return next(good, None)

    def _dispensable(self, page: _Page, keep: int) -> list[Version]:
        """What a prune may take, the oldest first, as far as nobody holds it."""
        there = {name: version for name, version in page.versions.items() if self.is_there(version)}
        targets = [one.name for one in page.served(page.current) if one.state is State.PROMOTED and one.name in there]
        order = dict.fromkeys(targets)
        order |= dict.fromkeys(sorted(there, key=lambda name: there[name].number, reverse=True))
        staying = set(list(order)[:keep])
        newest = max(there.values(), key=lambda version: version.number, default=None)
        if newest is not None and newest.state is State.CANDIDATE:
            staying.add(newest.name)
        return sorted((there[name] for name in order if name not in staying), key=lambda version: version.number)

    def _begin(self) -> tuple[str, int, Path, int]:
        """A name that nobody had, and its folder, locked as long as the descriptor is open."""
        with self._alone():
            page = self._sweep(self._read())
            number = page.next
            name = f"{page.role}-{page.tag}-v{number:06d}"
            # Counted before anything is written under the name: whatever happens to it, nobody gets it again.
            self._write(page.evolve(next=number + 1))
            fresh = self._place(f".{name}")
            try:
                fresh.mkdir()
                descriptor = os.open(fresh / _HOLD, os.O_CREAT | os.O_RDWR, 0o644)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            except OSError as error:
                shutil.rmtree(fresh, ignore_errors=True)
                raise _failed(f"the version '{name}' could not be begun in '{self.folder}'", error) from error
        return name, number, fresh, descriptor

    def erase_samples(self, episode_ids: Collection[str], question_ids: Collection[str]) -> list[Path]:
        """Remove the tokens of these episodes, and of all tries of these questions and of the questions of these
        episodes; the rows without text and tokens stay. Returns the files that were changed."""
        changed = []
        with self._alone():
            # Also what a process left that died while it wrote a version.
            self._sweep(self._read())
            for path in sorted((self.folder / "versions").glob(f"*/{_TOKENS}")):
                rows = _read_rows(path)
                groups = {row["group"] for row in rows if row["episode_id"] in episode_ids}
                kept = [row for row in rows if row["group"] not in groups and not _is_of(row["group"], question_ids)]
                if len(kept) == len(rows):
                    continue
                fresh = path.with_name(f".{path.name}")
                try:
                    _write_rows(fresh, iter(kept))
                    _sync(fresh)
                    fresh.replace(path)
                    _sync(path.parent)
                except OSError as error:
                    fresh.unlink(missing_ok=True)
                    raise _failed(f"tokens in '{path}' cannot be removed", error) from error
                changed.append(path)
        return changed

    def _discard(self, name: str) -> None:
        """Remove what there is of a version, unless it is listed: an interrupt may come after it was."""
        with suppress(LearnError), self._alone():
            if name not in self._read().versions:
                for place in (self._place(f".{name}"), self._place(name)):
                    shutil.rmtree(place, ignore_errors=True)

    def _sweep(self, page: _Page) -> _Page:
        """Clear away what processes left that died in the middle. For the holder of the lock."""
        for place in sorted((self.folder / "versions").iterdir()):
            version = page.versions.get(place.name)
            if version is not None:
                if (place / _LEAVING).is_dir():
                    page = self._remove(page, version)
                continue
            with _if_idle(place / _HOLD) as idle:
                if idle:
                    shutil.rmtree(place, ignore_errors=True)
        return page

    def _remove(self, page: _Page, version: Version) -> _Page:
        """Prune one version. Its weights leave by one rename, so that nobody ever finds half of them, and before a word
        is written, since the disk may be full; an empty folder reminds whoever comes next until the page says it."""
        place = self._place(version.name)
        leaving = place / _LEAVING
        try:
            if (place / SAVED).is_dir():
                (place / SAVED).rename(leaving)
            for path in leaving.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            (place / _TOKENS).unlink(missing_ok=True)
            page = page.with_version(version.evolve(pruned_at=version.pruned_at or time.time()))
            self._write(page)
            leaving.rmdir()
        except OSError as error:
            raise _failed(f"the weights of '{version.name}' cannot be removed", error) from error
        return page

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else changes the store meanwhile."""
        try:
            descriptor = os.open(self.folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise _failed(f"'{self.folder}' cannot be changed", error) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                raise _failed(f"'{self.folder}' cannot be locked", error) from error
            yield
        finally:
            os.close(descriptor)

    def _change(self, edit: Callable[[_Page], _Page]) -> _Page:
        with self._alone():
            before = self._read()
            after = edit(before)
            if after != before:
                self._write(after)
        return after

    def _read(self) -> _Page:
        path = self.folder / _PAGE
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _failed(f"cannot read '{path}'", error) from error
        known, page = self._parsed
        if page is None or text != known:
            page = _parse(path, text)
            self._parsed = (text, page)
        return page

    def _write(self, page: _Page) -> None:
        """At once or not at all; durable when it returns. For the holder of the lock."""
        path = self.folder / _PAGE
        fresh = path.with_suffix(".tmp")
        try:
            with fresh.open("w", encoding="utf-8") as file:
                file.write(page.model_dump_json(indent=1))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise _failed(f"'{path}' could not be written, and nothing was changed", error) from error
        try:
            _sync(self.folder)
        except OSError as error:
            raise _failed(f"'{path}' was written, and may be lost if this machine stops now", error) from error


def open_stores(folder: Path) -> tuple[AdapterStore, ...]:
    """The stores under `<home>/adapters`, in the order of the roles; none where there is none."""
    return tuple(AdapterStore.open(folder / role) for role in Role if (folder / role / _PAGE).is_file())


# ── versions ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _parse(path: Path, text: str) -> _Page:
    try:
        found = json.loads(text).get("format")
        if isinstance(found, int) and found > FORMAT:
            raise LearnError(
                f"'{path}' has the format {found}; this MIA reads up to {FORMAT}.",
                hint="install the newer MIA that wrote it",
            )
        page = _Page.model_validate_json(text)
    except (ValidationError, ValueError, AttributeError) as error:
        raise LearnError(
            f"'{path}' is damaged ({type(error).__name__}).", wanted="the page of an adapter store as MIA wrote it"
        ) from error
    if page.current and page.current not in page.versions:
        raise LearnError(f"'{path}' is damaged: its current version '{page.current}' is not among its versions.")
    return page


def _look_up(page: _Page, reference: str) -> Version | None:
    """By name, number or "current"."""
    name = page.current if reference == CURRENT else reference
    if name in page.versions:
        return page.versions[name]
    match = re.fullmatch(r"v?(\d{1,9})", reference, re.ASCII)
    number = int(match[1]) if match else 0
    return next((version for version in page.versions.values() if version.number == number), None)


def _decided(version: Version, state: State, reason: str, **changes: Any) -> Version:
    """The version in another state; a canary that is None leaves the one it has."""
    changes = {name: value for name, value in changes.items() if value is not None}
    return version.evolve(state=state, changed_at=time.time(), reason=reason, **changes)


def _ancestors(page: _Page, version: Version) -> Iterator[Version]:
    while version.parent in page.versions:
        version = page.versions[version.parent]
        yield version


def _is_of(group: str, question_ids: Collection[str]) -> bool:
    """Whether a group is that of one of these questions: named by it, or as a stream names it, `run/question/epoch`."""
    return group in question_ids or group.partition("/")[2].rpartition("/")[0] in question_ids


def _row(rollout: Rollout) -> RolloutRow:
    return RolloutRow(
        id=rollout.id,
        group=rollout.group,
        reward=rollout.reward,
        parts=dict(rollout.parts),
        adapter_version=rollout.adapter_version,
        episode_id=rollout.episode_id,
        tokens=rollout.learned,
    )


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _find_weights(saved: Path) -> tuple[Path, Literal["lora", "full"]]:
    """The folder that holds weights, and what they are: the one that was saved, or a subfolder of it."""
    for folder in (saved, *sorted(path for path in saved.iterdir() if path.is_dir())):
        for name, kind in _KINDS.items():
            if (folder / name).is_file() and any(folder.glob("*.safetensors")):
                return folder, kind
    raise LearnError(
        f"there are no weights in '{saved}'.",
        wanted=f"{' or '.join(_KINDS)}, with *.safetensors",
        hint="let Learner.save, or save_weights, write them",
    )


def _check_weights(saved: Path, base_digest: str) -> Literal["lora", "full"]:
    """Whether weights are there, whole, and of this base: what kind they are. Nothing is loaded."""
    folder, kind = _find_weights(saved)
    stated = {"config.json": _base_of_model(folder / "config.json")} if kind == "full" else {}
    stated |= {file.name: _base_of(file) for file in sorted(folder.glob("*.safetensors"))}
    for file, base in stated.items():
        if base and base != base_digest:
            raise LearnError(
                f"the new version was trained on another base model than the store's ({file}).",
                wanted=f"a base whose weights have the digest {base_digest}, not {base}",
            )
    return kind


def _base_of_model(config: Path) -> str:
    """What a whole model's configuration says of the base it was trained from; empty if nothing."""
    try:
        return str(json.loads(config.read_text(encoding="utf-8")).get("mia_base", ""))
    except (ValueError, AttributeError) as error:
        raise LearnError(f"'{config.name}' of the new version is no JSON object.") from error


def _base_of(file: Path) -> str:
    """What a safetensors file says of its base; empty if nothing. Raises LearnError for one that is not whole.

    The format: 8 bytes, the length of a header; the header, JSON; then the tensors, whose ends the header tells.
    """
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        size = os.fstat(content.fileno()).st_size
        try:
            if length > size:
                raise ValueError("cut short")
            header = json.loads(content.read(length))
            metadata = header.pop("__metadata__", {})
            end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
            if size != 8 + length + end:
                raise ValueError("cut short")
            return str(metadata.get("mia_base", ""))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise LearnError(f"'{file.name}' of the new version is no whole safetensors file ({error}).") from error


def _write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _read_rows(path: Path) -> list[Any]:
    """Nothing where there is no such file."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except FileNotFoundError:
        return []
    except (OSError, EOFError, ValueError) as error:
        raise LearnError(f"cannot read '{path}': {error}.") from error


@contextmanager
def _if_idle(hold: Path) -> Iterator[bool]:
    """Whether nobody holds this file; while it stands, nobody can begin to."""
    if not hold.exists():
        # Without the file nobody can hold it.
        yield True
        return
    try:
        file = hold.open("r+b")
    except OSError as error:
        raise _failed(f"'{hold}' cannot be opened", error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            idle = True
        except BlockingIOError:
            idle = False
        yield idle


def _sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _is_of_a_full_disk(error: Exception, folder: Path) -> bool:
    """Libraries that write weights say it in their own words, and some only that they could not write; some clear away
    what they had written. So: by number, by what the system calls it, or by trying."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    if os.strerror(errno.ENOSPC) in str(error):
        return True
    probe = folder / ".probe"
    try:
        probe.write_bytes(bytes(262_144))
    except OSError as failure:
        return failure.errno in _FULL
    finally:
        probe.unlink(missing_ok=True)
    return False


def _failed(what: str, error: BaseException) -> LearnError:
    full = isinstance(error, OSError) and error.errno in _FULL
    why = (error.strerror if isinstance(error, OSError) else "") or str(error)
    hint = "free some space (mia adapters prune), then go on: what was there is as it was" if full else ""
    return LearnError(f"{what}: {'the disk is full' if full else why}.", hint=hint)
