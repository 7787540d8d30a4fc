"""`mia memory stats | queue | reembed`: what there is, what waits for a model, and another embedder."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mia.cli import options, output
from mia.cli.memory import access
from mia.cli.memory.progress import measuring
from mia.cli.stages import one_line
from mia.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mia.config import Config
    from mia.memory.retrying import Retried
    from mia.models import Models
    from mia.store.base import Statistics, Waiting
    from mia.store.reembedding import Reembedding
    from mia.store.sqlite import SqliteStore

_ERROR = 80
"""Characters of an error in a list."""


# ── stats ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def stats(
    context: typer.Context,
    scope: access.Scope = None,
    all_scopes: access.AllScopes = False,
    json: output.JsonFlag = False,
) -> None:
    """Count what the memory holds, and how it fared."""
    config = access.configure(context, scope)
    chosen = access.choose(config, scope, all_scopes)
    with access.reading(config) as store:
        found = store.statistics(chosen)
    if json:
        output.result_json({"scope": chosen, **asdict(found)})
        return
    output.result("\n".join(f"{name:<14}{value}" for name, value in _figures(found, chosen)))


def _figures(found: Statistics, scope: str | None) -> list[tuple[str, str]]:
    trials, won = found.uses - sum(found.kinds.values()), found.wins - sum(found.kinds.values())
    lines = [
        ("scope", scope if scope is not None else "all"),
        ("memories", _counts(found.states) or "none"),
        ("judged", _counts(found.judgements)),
        ("kinds", _counts(found.kinds)),
        ("categories", _counts(found.categories)),
        ("origins", _counts(found.origins)),
        ("expired", f"{found.expired:,} of those in sight" if found.expired else ""),
        ("shown", f"{trials:,} times, and {won:,} times the answer was right" if trials > 0 else "never yet"),
        ("made", _span(found.oldest, found.newest)),
        ("episodes", f"{found.episodes:,}"),
        ("waiting", _counts(found.queue)),
        ("changes", f"{found.changes:,} in the audit"),
        ("embedder", found.space),
        ("on the disk", _sizes(found)),
    ]
    return [(name, value) for name, value in lines if value]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())


def _span(oldest: float | None, newest: float | None) -> str:
    if oldest is None or newest is None:
        return ""
    first, last = access.say_time(oldest), access.say_time(newest)
    return first if first == last else f"from {first} to {last}"


def _sizes(found: Statistics) -> str:
    parts = [f"{_bytes(found.database_bytes + found.log_bytes)} of rows"]
    if found.cache_bytes:
        parts.append(f"{_bytes(found.cache_bytes)} of caches, which can be made again")
    return ", ".join(parts)


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


# ── queue ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def queue(
    context: typer.Context,
    run: Annotated[bool, typer.Option("--run", help="Work it off now, with the Manager's model.")] = False,
    scope: access.Scope = None,
    all_scopes: access.AllScopes = False,
    json: output.JsonFlag = False,
) -> None:
    """List what waits for a model, or do it now.

    Whatever a model or an embedder could not be asked for. Each entry is tried again when its time has come: by a
    server on its own, else beside a question. --run does all of it, of the scope alone, at once.
    """
    if run and all_scopes:
        raise ConfigError("--run with --all-scopes.", wanted="one scope at a time", hint="--scope tenant/project/user")
    config = access.configure(context, scope)
    chosen = access.choose(config, scope, all_scopes)
    if run:
        with access.changing(config) as store:
            _run_queue(config, store, json=json)
        return
    with access.reading(config) as store:
        waiting = store.queue(chosen)
    if json:
        output.result_json([asdict(one) for one in waiting])
    elif waiting:
        output.result("\n".join(_waiting(one) for one in waiting))
    else:
        output.note("Nothing waits.")


def _waiting(one: Waiting) -> str:
    again = f"again {'now' if one.retry_at <= time.time() else f'from {access.say_time(one.retry_at)}'}"
    when = "given up: it cannot succeed with this model" if one.given_up else again
    tried = f"tried {one.attempts} times" if one.attempts != 1 else "tried once"
    return f"{one.task.value:<10}  {one.subject}  {tried}, {when}  ({one_line(one.error, _ERROR)})"


def _run_queue(config: Config, store: SqliteStore, *, json: bool) -> None:
    scope = config.memory.scope
    waiting = [one for one in store.queue(scope) if one.scope == scope]
    models = _models(config, waiting)
    done = asyncio.run(_work_off(config, store, models))
    left = sum(one.scope == scope for one in store.queue(scope))
    if json:
        output.result_json({**asdict(done), "left": left})
    elif waiting:
        dropped = f", {done.dropped} dropped, whose subject is gone" if done.dropped else ""
        output.result(f"{done.done} done, {done.failed} failed{dropped}")
    else:
        output.note("Nothing waits.")
    if done.failed:
        if not json:
            output.warn("What failed stays in the queue: `mia memory queue` says why.")
        raise typer.Exit(1)


def _models(config: Config, waiting: list[Waiting]) -> Models | None:
    """None where none is named, and none is needed. Raises ConfigError."""
    from mia.models import build_models
    from mia.store.base import Task

    try:
        return build_models(config.models)
    except ConfigError:
        # An episode that waited for the embedder needs no model: rules write its workflow.
        if any(one.task is not Task.REMEMBER for one in waiting):
            raise
        return None


async def _work_off(config: Config, store: SqliteStore, models: Models | None) -> Retried:
    from mia.cli.stages import StageLines
    from mia.models.ledger import Ledger

    ledger = Ledger("memory queue", on_event=StageLines())
    try:
        with measuring("queue") as on_progress:
            manager = access.manager(config, store, models.manager if models is not None else None)
            return await manager.retry(ledger, on_progress=on_progress)
    finally:
        if models is not None:
            await models.close()


# ── reembed ───────────────────────────────────────────────────────────────────────────────────────────────────────


def reembed(
    context: typer.Context,
    embedder: Annotated[
        str | None, typer.Option(help="minilm, hashing or openai.", show_default="memory.embedder")
    ] = None,
    json: output.JsonFlag = False,
) -> None:
    """Change the embedder of the memory.

    All questions are embedded anew. The memory stays in use meanwhile, with the old one. Stopped and begun again, it
    goes on where it was.
    """
    from mia.embeddings import memory_embedder

    config = options.shared(context).config({"memory.embedder": embedder})
    with access.changing(config) as store:
        before = store.space()
        with measuring("embed") as on_progress:

            def show(state: Reembedding) -> None:
                on_progress(state.done, state.total)

            try:
                # Not the one that the store was made with: that is what is to change.
                done = store.reembed(memory_embedder(config), show)
            except KeyboardInterrupt:
                output.warn("Stopped. What was embedded is kept; run the same command again to go on.")
                raise
    if json:
        output.result_json({"before": before, **asdict(done)})
        return
    if done.dropped:
        output.note(f"An earlier attempt led to '{done.dropped}', and was dropped.")
    if before == done.space:
        output.note(f"The memory is in '{done.space}' already.")
        return
    resumed = f", {done.kept:,} of them by an earlier attempt" if done.kept else ""
    output.result(f"{output.plural(done.done, 'memory')} embedded by '{done.space}'{resumed}")
    if options.shared(context).config().memory.embedder not in ("auto", config.memory.embedder):
        output.note(f'Set memory.embedder = "{config.memory.embedder}" or "auto": with another, questions are refused.')
