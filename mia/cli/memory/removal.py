"""`mia memory purge`: remove for good, what is out of sight or all that somebody wants deleted."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mia.cli import output
from mia.cli.memory import access
from mia.cli.memory.entries import line
from mia.cli.show import load_in_scope
from mia.cli.stages import one_line
from mia.errors import ConfigError, RecordError
from mia.scope import covers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mia.config import Config
    from mia.erasure import Erasure
    from mia.store.sqlite import SqliteStore

_QUESTION = 80
"""Characters of a question that are shown."""


def purge(
    context: typer.Context,
    ids: Annotated[
        list[str] | None, typer.Argument(help="Only these memories that are out of sight; quarantined ones too.")
    ] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, max=access.MOST, help="Only what has been out of sight for so many days.")
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
    state, episodes, vectors, the audit's texts, caches, backups of the store, the logs of runs, and what a server
    keeps in the home. Stop a server before: what it holds is named, and not reached.
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
            "episode_ids": _known(
                lambda reference: load_in_scope(store, reference, config.memory.scope).id, episode or []
            ),
            "memory_ids": _known(lambda reference: store.memory(reference).id, memory or []),
            "questions": question or [],
        }
        if not yes:
            access.confirm(f"Delete for good {_say_what(config, store, what)}?", yes=yes)
        erasure = _erase(config, store, what)
    if json:
        output.result_json(_page(erasure))
    else:
        _report(erasure)
    if erasure.unreached or erasure.unknown:
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
        if ids and scope is not None:
            _refuse_others(store, ids, config.memory.scope)
        chosen = None if ids else config.memory.scope
        gone = store.purge(scope=chosen, before=before, ids=ids, dry_run=True).memories
        known = store.memories(gone)
        candidates = [known[id] for id in gone if id in known]
        if candidates and not dry_run:
            noun = output.plural(len(candidates), "memory")
            access.confirm(f"Remove {noun} for good? They cannot be restored.", yes=yes)
            removed = store.purge(scope=chosen, before=before, ids=ids).memories
    if json:
        shown = [memory.id for memory in candidates] if dry_run or not candidates else list(removed)
        output.result_json({"dry_run": dry_run, "memories": shown})
    elif not candidates:
        output.note("Nothing of that is out of sight.")
    elif dry_run:
        output.result("\n".join(line(memory) for memory in candidates))
        output.note(f"{output.plural(len(candidates), 'memory')} would be removed for good.")
    else:
        output.result(f"{output.plural(len(removed), 'memory')} removed for good")


def _refuse_others(store: SqliteStore, ids: Sequence[str], scope: str) -> None:
    """Raises ConfigError for a memory that is not in the scope that was named with it."""
    for memory in store.memories(ids).values():
        if not covers(scope, memory.scope):
            raise ConfigError(f"{memory.id} is in the scope '{memory.scope}', not in '{scope}'.", wanted="one of them")


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


def _say_what(config: Config, store: SqliteStore, what: dict[str, Any]) -> str:
    from mia.erasure import questions_like
    from mia.redaction import Redactor
    from mia.types import MemoryState

    if what["scope"] is not None:
        count = store.count_memories(what["scope"], states=tuple(MemoryState))
        return f"everything of the scope '{what['scope']}' and below it ({output.plural(count, 'memory')})"
    if what["episode_ids"]:
        return f"{', '.join(what['episode_ids'])}, and what was learned from it"
    if what["memory_ids"]:
        return ", ".join(what["memory_ids"])
    found = questions_like(store, what["questions"], Redactor(config.memory.redact))
    # The logs of runs may hold more, and are looked through in any case.
    listed = "; ".join(f"'{one_line(text, _QUESTION)}'" for text in found) or "none"
    return f"all that came of {output.plural(len(what['questions']), 'question')} (in the store: {listed})"


def _erase(config: Config, store: SqliteStore, what: dict[str, Any]) -> Erasure:
    from mia.erasure import erase_everywhere
    from mia.redaction import Redactor
    from mia.service.erasing import places

    redactor = Redactor(config.memory.redact)
    with output.console().status("Deleting…"):
        return erase_everywhere(store, config.home, redactor=redactor, places=places(config.home), **what)


def _page(erasure: Erasure) -> dict[str, Any]:
    erased = {name: [str(value) for value in values] for name, values in asdict(erasure.erased).items()}
    return {
        **erased,
        "logged": sorted(erasure.logged),
        "blotted": sorted(erasure.blotted),
        "captions": erasure.captions,
        "cleaned": [str(path) for path in erasure.cleaned],
        "missing": [str(place) for place in erasure.missing],
        "unknown": list(erasure.unknown),
        "unreached": [{"place": str(one.place), "reason": one.reason} for one in erasure.unreached],
    }


def _report(erasure: Erasure) -> None:
    erased = erasure.erased
    parts = [
        output.plural(len(erased.memories), "memory"),
        output.plural(len(erased.episodes), "episode"),
        f"{output.plural(len(erasure.logged), 'line')} of run logs",
        output.plural(erasure.captions, "caption"),
    ]
    output.result(f"deleted: {', '.join(parts)}")
    if erasure.blotted:
        blotted = output.plural(len(erasure.blotted), "line")
        output.note(f"In {blotted} of run logs, what was shown of it is blotted out.")
    if erased.backups:
        output.note(f"Removed with it: {', '.join(str(backup) for backup in erased.backups)}")
    if erasure.cleaned:
        output.note(f"Taken out of: {', '.join(str(path) for path in erasure.cleaned)}")
    for reference in erasure.unknown:
        output.warn(f"Found nowhere, or gone already: '{one_line(reference, _QUESTION)}'.")
    for place in erasure.missing:
        output.warn(f"Not there any more: '{place}'. If it was moved, delete it there.")
    for one in erasure.unreached:
        output.warn(f"Not reached: '{one.place}': {one.reason}. Run the same command again.")
    output.note("Exports, recordings (models.record) and backups of your own are yours to delete.")
