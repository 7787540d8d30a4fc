"""`mia memory forget | restore`: out of sight, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mia.cli import output
from mia.cli.memory import access
from mia.errors import ConfigError

if TYPE_CHECKING:
    from mia.store.sqlite import SqliteStore


def forget(
    context: typer.Context,
    ids: access.Ids,
    reason: access.Reason = "",
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Until somebody has looked at it, and never purged unnamed.")
    ] = False,
    expire: Annotated[
        str | None,
        typer.Option(help="Not now, but from a date (2026-12-31), or in so many days (30); `never` takes that back."),
    ] = None,
    json: output.JsonFlag = False,
) -> None:
    """Put memories out of sight.

    They are not shown any more. `mia memory restore` undoes it; nothing is removed.
    """
    if quarantine and expire is not None:
        raise ConfigError("--quarantine and --expire at once.", wanted="one of them")
    config = access.configure(context)
    with access.changing(config) as store:
        chosen, manager = access.resolve(store, ids), access.caretaker(config, store)
        if expire is not None:
            changed = manager.expire(chosen, access.read_expiry(expire), reason=reason)
        elif quarantine:
            changed = manager.quarantine(chosen, reason=reason)
        else:
            changed = manager.forget(chosen, reason=reason)
        _report(store, chosen, changed, json=json)


def restore(context: typer.Context, ids: access.Ids, reason: access.Reason = "", json: output.JsonFlag = False) -> None:
    """Bring memories back into sight.

    Those that were forgotten, quarantined or replaced, or have expired.
    """
    config = access.configure(context)
    with access.changing(config) as store:
        chosen = access.resolve(store, ids)
        changed = access.caretaker(config, store).restore(chosen, reason=reason)
        _report(store, chosen, changed, json=json)


def _report(store: SqliteStore, chosen: tuple[str, ...], changed: tuple[str, ...], *, json: bool) -> None:
    """The ids that changed, for stdout; what was so already is said."""
    if json:
        memories = store.memories(chosen)
        page = [{"changed": id in changed, "memory": memories[id].model_dump(mode="json")} for id in chosen]
        output.result_json(page)
        return
    if changed:
        output.result("\n".join(changed))
    for id in chosen:
        if id not in changed:
            output.note(f"{id} was so already.")
