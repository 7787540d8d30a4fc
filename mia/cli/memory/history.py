"""`mia memory audit | rollback`: what happened, and how to undo it."""

from __future__ import annotations

import json as json_format
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mia.cli import output
from mia.cli.memory import access
from mia.cli.stages import one_line
from mia.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mia.store.base import Change
    from mia.store.sqlite import SqliteStore

_PAGE = 1_000
_VALUE = 60
"""Characters of a value that are shown."""


def audit(
    context: typer.Context,
    id: Annotated[str, typer.Argument(help="Only changes of this memory: its id, or the beginning of one.")] = "",
    k: Annotated[int, typer.Option("-k", min=1, max=access.MOST, help="How many, newest first.")] = 20,
    before: Annotated[int | None, typer.Option(min=1, max=access.MOST, help="Only those before this number.")] = None,
    scope: access.Scope = None,
    all_scopes: access.AllScopes = False,
    json: output.JsonFlag = False,
) -> None:
    """List what happened to the memories.

    Number, time, change, what was before and after, and why. The number is what `mia memory rollback --to` takes.
    """
    config = access.configure(context, scope)
    with access.reading(config) as store:
        memory_id = _find(store, id) if id else ""
        everywhere = all_scopes or (memory_id and scope is None)
        chosen = access.choose(config, scope, bool(everywhere))
        changes = store.audit(memory_id=memory_id, scope=chosen, limit=k + 1, before=before)
    shown, more = changes[:k], len(changes) > k
    if json:
        output.result_json([asdict(change) for change in shown])
    elif shown:
        output.result("\n".join(_line(change) for change in shown))
        if more:
            output.note(f"There are more: --before {shown[-1].sequence} shows earlier ones, -k more at once.")
    else:
        output.note("Nothing has happened yet.")


def rollback(
    context: typer.Context,
    to: Annotated[
        str, typer.Option(help="A date or time (2026-03-01T09:30, local), or the number of the last change to stand.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be undone.")] = False,
    yes: access.Yes = False,
    scope: access.Scope = None,
    json: output.JsonFlag = False,
) -> None:
    """Make the memories what they were.

    What came since is forgotten, what was forgotten comes back, verdicts counted since are taken back. All of it is in
    the audit, so that a rollback can be rolled back. What was purged since cannot come back.
    """
    config = access.configure(context, scope)
    moment = _moment(to)
    opening = access.reading if dry_run else access.changing
    with opening(config) as store:
        _refuse_the_future(store, moment)
        since = list(_since(store, config.memory.scope, moment))
        if dry_run or not since:
            _preview(since, json=json)
            return
        question = (
            f"Undo {output.plural(len(since), 'change')} ({_counts(since)}) in the scope '{config.memory.scope}'?"
        )
        access.confirm(question, yes=yes)
        done = store.rollback(moment, scope=config.memory.scope)
    if json:
        output.result_json(asdict(done))
        return
    output.result(f"{output.plural(len(done.changes), 'change')} undone; as it was after change {done.to}")
    for lost in done.lost:
        output.warn(f"{lost} was removed for good since, and cannot come back.")
    if done.changes:
        output.note(f"To undo this: mia memory rollback --to {done.changes[0].sequence - 1}")


def _find(store: SqliteStore, reference: str) -> str:
    """The id of a memory; one that was purged is known to the audit by its whole id. Raises RecordError."""
    from mia.errors import RecordError

    try:
        return store.memory(reference).id
    except RecordError:
        if store.audit(memory_id=reference, limit=1):
            return reference
        raise


def _moment(text: str) -> int | float:
    """The number of a change, or seconds since the epoch. Raises ConfigError."""
    if not text.isdecimal():
        return access.read_time(text)
    access.refuse_bare_date(text)
    # No store has come so far; longer ones Python refuses to read.
    return int(text[:20]) if len(text) <= 20 else 10**20


def _refuse_the_future(store: SqliteStore, moment: int | float) -> None:
    """Raises ConfigError for the number of a change that has not happened."""
    last = max((change.sequence for change in store.audit(limit=1)), default=0)
    if isinstance(moment, int) and moment > last:
        raise ConfigError(f"there is no change {moment:,}.", wanted=f"a number up to {last}", hint="mia memory audit")


def _since(store: SqliteStore, scope: str, moment: int | float) -> Iterator[Change]:
    """The changes after a moment, newest first."""
    before: int | None = None
    while changes := store.audit(scope=scope, limit=_PAGE, before=before):
        for change in changes:
            if (change.sequence if isinstance(moment, int) else change.at) <= moment:
                return
            yield change
        before = changes[-1].sequence


def _preview(since: list[Change], *, json: bool) -> None:
    if json:
        output.result_json({"dry_run": True, "changes": [asdict(change) for change in since]})
    elif since:
        output.result("\n".join(_line(change) for change in since))
        output.note(f"{output.plural(len(since), 'change')} would be undone: {_counts(since)}.")
    else:
        output.note("Nothing has changed since.")


def _counts(changes: list[Change]) -> str:
    counted = Counter(change.action for change in changes)
    return ", ".join(f"{count} {action}" for action, count in counted.most_common())


def _line(change: Change) -> str:
    subject = change.memory_id or ", ".join(_subjects(change))
    reason = f"  ({one_line(change.reason, _VALUE)})" if change.reason else ""
    return (
        f"{change.sequence:>6}  {access.say_time(change.at)}  {change.action:<10}  {subject}  {_fields(change)}{reason}"
    )


def _subjects(change: Change) -> tuple[str, ...]:
    return tuple(change.after.get("counts") or change.after.get("memory_ids") or ())


def _fields(change: Change) -> str:
    """What changed, as `name: before → after`."""
    if "memory_ids" in change.after or "memory_ids" in change.before:
        return f"{_verdict(change.before)}{' → ' if change.before else ''}{_verdict(change.after) or 'no verdict'}"
    changed = [name for name, value in change.after.items() if change.before.get(name) != value]
    return ", ".join(
        f"{name}: {_value(name, change.before)} → {_value(name, change.after)}"
        if name in change.before
        else f"{name}: {_value(name, change.after)}"
        for name in changed
    )


def _verdict(credit: Mapping[str, Any]) -> str:
    return "" if "correct" not in credit else "right" if credit["correct"] else "wrong"


def _value(name: str, fields: Mapping[str, Any]) -> str:
    value = fields.get(name)
    if value is None or value == "":
        return "never" if name == "expires_at" else "none"
    if name == "expires_at" and isinstance(value, int | float):
        return access.say_time(value)
    return one_line(value if isinstance(value, str) else json_format.dumps(value, ensure_ascii=False), _VALUE)
