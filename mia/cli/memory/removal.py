"""`mia memory purge`: remove for good, what is out of sight or all that somebody wants deleted."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mia.cli import output
from mia.cli.memory import access
from mia.cli.memory.entries import line
from mia.errors import ConfigError, RecordError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mia.config import Config
    from mia.erasure import Erasure
    from mia.store.base import Change
    from mia.store.sqlite import SqliteStore
    from mia.types import Memory

_PAGE = 1_000


def purge(
    context: typer.Context,
    ids: Annotated[
        list[str] | None, typer.Argument(help="Only these memories that are out of sight; quarantined ones too.")
    ] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, help="Only what has been out of sight for so many days.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    everything: Annotated[
        bool, typer.Option("--everything", help="Delete all of the scope given with --scope, and below it.")
    ] = False,
    episode: Annotated[
        list[str] | None, typer.Option(help="Delete this episode and what was learned from it. Repeatable.")
    ] = None,
    memory: Annotated[
        list[str] | None, typer.Option(help="Delete this memory, in sight or not, and its traces. Repeatable.")
    ] = None,
    question: Annotated[
        list[str] | None, typer.Option(help="Delete all that came of this question. Repeatable.")
    ] = None,
    yes: access.Yes = False,
    scope: access.Scope = None,
    json: output.JsonFlag = False,
) -> None:
    """Remove for good what is out of sight.

    Forgotten, replaced or expired memories; they cannot be restored.

    With --everything, --episode, --memory or --question: delete somebody's data. That reaches memories in whatever
    state, episodes, vectors, the audit's texts, caches, backups of the store, and the logs of runs.
    """
    asked = [name for name, given in _selectors(everything, episode, memory, question).items() if given]
    if not asked:
        _purge(context, ids or [], older_than, scope, dry_run=dry_run, yes=yes, json=json)
        return
    if len(asked) > 1 or ids or older_than is not None or dry_run:
        raise ConfigError(
            f"{asked[0]} together with something else.", wanted="one of --everything, --episode, --memory, --question"
        )
    if everything and scope is None:
        raise ConfigError("--everything without --scope.", wanted="whose data to delete", hint="--scope acme/ann")
    if not everything and scope is not None:
        raise ConfigError(f"{asked[0]} with --scope.", wanted=f"{asked[0]} alone: it deletes in whatever scope")
    config = access.configure(context, scope)
    with access.changing(config) as store:
        what: dict[str, Any] = {
            "scope": config.memory.scope if everything else None,
            "episode_ids": _known(lambda reference: store.load_episode(reference).id, episode or []),
            "memory_ids": _known(lambda reference: store.memory(reference).id, memory or []),
            "questions": question or [],
        }
        access.confirm(f"Delete for good {_say_what(store, what)}?", yes=yes)
        erasure = _erase(config, store, what)
    if json:
        output.result_json(_page(erasure))
    else:
        _report(erasure)
    if erasure.unreached:
        raise typer.Exit(1)


def _selectors(everything: bool, episode: object, memory: object, question: object) -> dict[str, object]:
    return {"--everything": everything, "--episode": episode, "--memory": memory, "--question": question}


# ── what is out of sight ──────────────────────────────────────────────────────────────────────────────────────────


def _purge(
    context: typer.Context,
    references: list[str],
    older_than: float | None,
    scope: str | None,
    *,
    dry_run: bool,
    yes: bool,
    json: bool,
) -> None:
    config = access.configure(context, scope)
    before = None if older_than is None else time.time() - older_than * access.DAY
    opening = access.reading if dry_run else access.changing
    with opening(config) as store:
        ids = access.resolve(store, references) if references else None
        candidates = _candidates(store, None if ids else config.memory.scope, before, ids)
        if candidates and not dry_run:
            noun = access.plural(len(candidates), "memory")
            access.confirm(f"Remove {noun} for good? They cannot be restored.", yes=yes)
            removed = store.purge(scope=None if ids else config.memory.scope, before=before, ids=ids).memories
    if json:
        shown = [memory.id for memory in candidates] if dry_run or not candidates else list(removed)
        output.result_json({"dry_run": dry_run, "memories": shown})
    elif not candidates:
        output.note("Nothing of that is out of sight.")
    elif dry_run:
        output.result("\n".join(line(memory) for memory in candidates))
        output.note(f"{access.plural(len(candidates), 'memory')} would be removed for good.")
    else:
        output.result(f"{access.plural(len(removed), 'memory')} removed for good")


def _candidates(store: SqliteStore, scope: str | None, before: float | None, ids: Sequence[str] | None) -> list[Memory]:
    """What a purge would remove; `MemoryStore.purge` says by which rule."""
    from mia.types import MemoryState

    now = time.time()
    hidden = {MemoryState.FORGOTTEN, MemoryState.REPLACED}
    found = store.memories(ids).values() if ids is not None else _all(store, scope)
    chosen = [
        memory
        for memory in found
        if memory.state in hidden
        or (memory.state is MemoryState.ACTIVE and memory.expired(now))
        or (ids is not None and memory.state is MemoryState.QUARANTINED)
    ]
    if before is None or not chosen:
        return chosen
    since = _out_of_sight_since(store, scope, {memory.id: memory for memory in chosen}, now)
    return [memory for memory in chosen if since[memory.id] < before]


def _all(store: SqliteStore, scope: str | None) -> Iterator[Memory]:
    from mia.types import MemoryState

    offset = 0
    while page := store.list_memories(scope, limit=_PAGE, offset=offset, states=tuple(MemoryState)):
        yield from page
        offset += len(page)


def _out_of_sight_since(
    store: SqliteStore, scope: str | None, memories: dict[str, Memory], now: float
) -> dict[str, float]:
    """When each memory went out of sight, as the audit tells it."""
    states: dict[str, float] = {}
    expiries: dict[str, float] = {}
    for change in _changes(store, scope):
        if change.action != "add" and change.memory_id in memories:
            if "state" in change.after:
                states.setdefault(change.memory_id, change.at)
            if "expires_at" in change.after:
                expiries.setdefault(change.memory_id, change.at)
    since = {}
    for id, memory in memories.items():
        moments = [] if memory.state.value == "active" else [states.get(id, memory.updated_at)]
        if memory.expires_at is not None and memory.expires_at <= now:
            moments.append(max(memory.expires_at, expiries.get(id, memory.created_at)))
        since[id] = min(moments)
    return since


def _changes(store: SqliteStore, scope: str | None) -> Iterator[Change]:
    before: int | None = None
    while changes := store.audit(scope=scope, limit=_PAGE, before=before):
        yield from changes
        before = changes[-1].sequence


# ── what is to be deleted ─────────────────────────────────────────────────────────────────────────────────────────


def _known(find: Callable[[str], str], references: list[str]) -> list[str]:
    """Their ids; what the store does not know (any more) may still be in the log of a run, by its whole id."""
    ids = []
    for reference in references:
        try:
            ids.append(find(reference))
        except RecordError as error:
            if error.got.startswith("several"):
                raise
            ids.append(reference)
    return ids


def _say_what(store: SqliteStore, what: dict[str, Any]) -> str:
    from mia.types import MemoryState

    if what["scope"] is not None:
        count = store.count_memories(what["scope"], states=tuple(MemoryState))
        return f"everything of the scope '{what['scope']}' and below it ({access.plural(count, 'memory')})"
    if what["episode_ids"]:
        return f"{', '.join(what['episode_ids'])}, and what was learned from it"
    if what["memory_ids"]:
        return ", ".join(what["memory_ids"])
    return f"all that came of {access.plural(len(what['questions']), 'question')}"


def _erase(config: Config, store: SqliteStore, what: dict[str, Any]) -> Erasure:
    from mia.erasure import erase_everywhere
    from mia.redaction import Redactor

    with output.console().status("Deleting…"):
        return erase_everywhere(store, config.home, redactor=Redactor(config.memory.redact), **what)


def _page(erasure: Erasure) -> dict[str, Any]:
    erased = {name: [str(value) for value in values] for name, values in asdict(erasure.erased).items()}
    return {
        **erased,
        "logged": sorted(erasure.logged),
        "blotted": sorted(erasure.blotted),
        "captions": erasure.captions,
        "missing": [str(place) for place in erasure.missing],
        "unreached": [{"place": str(one.place), "reason": one.reason} for one in erasure.unreached],
    }


def _report(erasure: Erasure) -> None:
    erased = erasure.erased
    parts = [
        access.plural(len(erased.memories), "memory"),
        access.plural(len(erased.episodes), "episode"),
        f"{access.plural(len(erasure.logged), 'line')} of run logs",
        access.plural(erasure.captions, "caption"),
    ]
    output.result(f"deleted: {', '.join(parts)}")
    if erasure.blotted:
        blotted = access.plural(len(erasure.blotted), "line")
        output.note(f"In {blotted} of run logs, what was shown of it is blotted out.")
    if erased.backups:
        output.note(f"Removed with it: {', '.join(str(backup) for backup in erased.backups)}")
    for place in erasure.missing:
        output.warn(f"Not there any more: '{place}'. If it was moved, delete it there.")
    for one in erasure.unreached:
        output.warn(f"Not reached: '{one.place}': {one.reason}. Run the same command again.")
    output.note("Exports, recordings (models.record) and backups of your own are yours to delete.")
