"""What a server keeps in `home`, as far as an erasure goes: what waits, jobs, what the reference's clients registered
and exported, and the stream that is learnt from.

The command line and the service call the same. Where a server holds a file, or a learner a stream, only that process
can reach it: anybody else is told so.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mia.erasure import LEARNING, Place, Reached, Selection, Unreached, edit_of_groups, erase_stream
from mia.errors import LearnError, MiaError, RecordError, StoreError
from mia.learn.folder import read_rows, write_rows, write_whole
from mia.learn.spool import Group, load_group
from mia.memory.exchange.base import parse, read_lines, writing_to
from mia.service.durable import Durable
from mia.store.base import MemoryStore, fingerprint

DURABLE = "service.db"
"""In `home`."""
CANARY = "canary.jsonl"
"""In the folder of the stream: the questions that new versions are examined with."""
_SCOPES = "scopes.json"
"""Beside it: whose questions the stream has held, ever."""
REGISTRY, EXPORTS = "compat.db", "exports"
"""In `home`; of `mia.service.compat`, which is only imported where they are there: it needs the extra `service`."""


def places(home: Path, *, durable: Durable | None = None, learns: bool = False) -> tuple[Place, ...]:
    """All of them. `durable`: held by this process; `learns`: so is the stream, which is then left to its learner."""
    kept: list[Place] = [_Waiting(home / DURABLE, durable), _Registered(home)]
    if not learns:
        kept.append(_Stream(home / LEARNING))
    return tuple(kept)


def note_scope(folder: Path, scope: str) -> None:
    """This stream holds questions of a scope. Raises LearnError."""
    scopes = _scopes(folder)
    if scope in scopes:
        return
    try:
        write_whole(folder / _SCOPES, json.dumps([*scopes, scope]).encode())
    except OSError as error:
        raise LearnError(f"cannot write '{folder / _SCOPES}': {error.strerror}.") from error


def _scopes(folder: Path) -> list[str]:
    """None where nothing says it."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / _SCOPES).read_text(encoding="utf-8"))
        if isinstance(found, list):
            return [str(scope) for scope in found]
    return []


def without_erased(store: MemoryStore, scope: str, group: Group) -> Group | None:
    """What of a question with its tries, which a scope asked, may be kept by now: whoever answered while something was
    erased, by whatever process, would bring it back. None where all of the scope was erased since the first try began;
    without what was shown of memories that were erased, and then without tokens, which hold it too. Raises
    StoreError."""
    if min(episode.started_at for episode in group.episodes) <= store.erased_at(scope):
        return None
    recalls = [episode.recall for episode in group.episodes if episode.recall is not None]
    named = {one.memory_id for recall in recalls for one in (*recall.shown, *recall.passed_over)}
    missing = named - store.memories(named).keys() if named else named
    # What was only purged for its age is no secret.
    erased = {id for id in missing if any(one.action == "erase" for one in store.audit(memory_id=id, limit=1))}
    if not erased:
        return group
    page = group.as_dict()
    edit_of_groups(Selection(memory_ids=erased), Reached())(page)
    return load_group(page)


class _Waiting:
    """Answers that wait to be absorbed, memories that wait to be stored, and jobs."""

    def __init__(self, path: Path, durable: Durable | None) -> None:
        self._path = path
        self._durable = durable

    def erase(self, selection: Selection) -> Reached:
        if self._durable is not None:
            return self._durable.erase(selection)
        if not self._path.exists():
            return Reached()
        try:
            with contextlib.closing(Durable(self._path)) as durable:
                return durable.erase(selection)
        except StoreError as error:
            return Reached(unreached=[Unreached(self._path, f"{error.got.rstrip('.')}; stop it first")])


class _Registered:
    """What the reference's clients registered, tried, had evaluated, and exported. What the web tools found is
    nobody's."""

    def __init__(self, home: Path) -> None:
        self._registry = home / REGISTRY
        self._exports = home / EXPORTS

    def erase(self, selection: Selection) -> Reached:
        if not self._registry.exists() and not self._exports.is_dir():
            return Reached()
        try:
            from mia.service.compat.exports import folder_of
            from mia.service.compat.registry import Registry
        except ImportError as error:
            place = self._registry if self._registry.exists() else self._exports
            return Reached(unreached=[Unreached(place, f"the extra `service` is not installed ({error.name})")])
        reached = Reached()
        # Which lines of exported evaluations are whose, only the rows say: these go last.
        evaluated: dict[Path, set[tuple[str, str]]] = {}
        if self._registry.exists():
            with contextlib.closing(Registry(self._registry)) as registry:
                try:
                    for scope, page in registry.evaluations_of(selection):
                        for folder in (self._exports, self._exports / folder_of(scope)):
                            evaluated.setdefault(folder, set()).add((page["data_id"], page["question"]))
                    self._erase_exports(selection, evaluated, reached)
                    done = registry.erase(selection)
                except StoreError as error:
                    reached.unreached.append(Unreached(self._registry, error.got.rstrip(".")))
                    return reached
            reached.ids |= done.ids
            reached.blotted |= done.blotted
            reached.images |= done.images
            reached.texts |= done.texts
            reached.cleaned += done.cleaned
        else:
            self._erase_exports(selection, evaluated, reached)
        return reached

    def _erase_exports(
        self, selection: Selection, evaluated: Mapping[Path, set[tuple[str, str]]], reached: Reached
    ) -> None:
        for torn in self._exports.rglob(".*.unfinished"):
            torn.unlink(missing_ok=True)
        for path in sorted(path for path in self._exports.rglob("*") if path.is_file() and not path.is_symlink()):
            try:
                if _erase_lines(path, _edit_of_exports(selection, evaluated.get(path.parent, set()), reached), reached):
                    reached.cleaned.append(path)
            except MiaError as error:
                reached.unreached.append(Unreached(path, error.got.rstrip(".")))


def _edit_of_exports(
    selection: Selection, evaluated: set[tuple[str, str]], reached: Reached
) -> Callable[[dict[str, Any]], bool]:
    """Whether a line of an export goes; what an episode was shown is blotted out where it stands."""

    def goes(page: dict[str, Any]) -> bool:
        if "memory" in page:
            memory = page["memory"]
            gone = (
                selection.covers(memory["scope"])
                or memory["id"] in selection.memory_ids
                or memory["provenance"]["episode_id"] in selection.episode_ids
                or selection.takes_question("", memory["question"])
            )
            if gone:
                reached.ids.add(memory["id"])
                reached.texts.add(fingerprint(memory["question"]))
            return gone
        if "episode" in page:
            gone = selection.covers(page["scope"]) or selection.takes(page["episode"])
            if gone:
                reached.note(page["episode"])
            elif selection.blot_out(page["episode"]):
                reached.blotted.add(page["episode"]["id"])
            return gone
        return "data_id" in page and (page["data_id"], page["question"]) in evaluated

    return goes


def _erase_lines(path: Path, goes: Callable[[dict[str, Any]], bool], reached: Reached) -> bool:
    """Rewrite an export without the lines that go, whole or not at all; whether it was changed. What is no line of
    ours stays, and is told. Raises RecordError, StoreError."""
    kept: list[bytes] = []
    changed = foreign = False
    for line in read_lines(path):
        if line.fault:
            raise RecordError(f"line {line.number} cannot be read: {line.fault}; the file was left as it is.")
        try:
            page = parse(line.content)
            before = json.dumps(page)
            if goes(page):
                changed = True
                continue
            if json.dumps(page) != before:
                changed = True
                kept.append(json.dumps(page, ensure_ascii=False).encode())
                continue
        except (RecordError, KeyError, TypeError, AttributeError):
            foreign = True
        kept.append(line.content.rstrip(b"\n"))
    if foreign:
        reached.unreached.append(
            Unreached(path, "it has lines that are no export of ours, which were left as they are")
        )
    if changed:
        with writing_to(path, force=True) as stream:
            stream.writelines(itertools.chain.from_iterable((line, b"\n") for line in kept))
    return changed


class _Stream:
    """What the server learnt from, or was to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def erase(self, selection: Selection) -> Reached:
        if not self._folder.is_dir():
            return Reached()
        scopes = _scopes(self._folder)
        covered = [scope for scope in scopes if selection.covers(scope)]
        all_go = bool(scopes) and len(covered) == len(scopes)
        reached = erase_stream(
            self._folder, selection, all_go=all_go, beside=lambda what, found: self._let_go(what, found, all_go)
        )
        if selection.scope is not None and not all_go and (covered or not scopes):
            whose = "it is of several scopes" if scopes else "it does not say whose it is"
            reason = f"{whose}; only what the store knew to be of this one was taken out"
            reached.unreached.append(Unreached(self._folder, reason))
        return reached

    def _let_go(self, selection: Selection, reached: Reached, all_go: bool) -> None:
        path = self._folder / CANARY
        # Of a writing that was killed.
        path.with_suffix(f"{path.suffix}.tmp").unlink(missing_ok=True)
        held = read_rows(path)
        scores = read_rows(self._folder / "scores.jsonl")
        ids = {score["question_id"] for score in scores if score.get("episode_id") in selection.episode_ids}
        left = []
        for task in held:
            question = task["question"]
            if all_go or question["id"] in ids or selection.takes_question(question["id"], question["text"]):
                reached.note_question(question)
            else:
                left.append(task)
        if len(left) != len(held):
            try:
                write_rows(path, left)
                reached.cleaned.append(path)
            except OSError as error:
                reached.unreached.append(Unreached(path, f"it cannot be written: {error.strerror}"))
