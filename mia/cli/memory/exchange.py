"""`mia memory export | import`: out as JSON Lines or Markdown, in from these and from the logs of other agents."""

from __future__ import annotations

import asyncio
import io
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal, cast

import typer

from mia.cli import output
from mia.cli.memory import access
from mia.cli.memory.progress import counting
from mia.errors import ConfigError, MissingExtra, RecordError

if TYPE_CHECKING:
    from mia.config import Config
    from mia.embeddings.base import Embedder
    from mia.memory.exchange import Format, Imported, OnProgress
    from mia.memory.manager import Judgement
    from mia.store.sqlite import SqliteStore

_JSON_LINES = (".jsonl", ".jsonl.gz")
_NAMED = 5
"""Refused lines that are named; --json lists all."""
_LOOKED_AT = 65_536
"""Bytes of stdin by which its format is told."""


def export(
    context: typer.Context,
    target: Annotated[
        Path,
        typer.Argument(help="FILE.jsonl or FILE.jsonl.gz: lossless; a folder: Markdown; `-`: JSON Lines to stdout."),
    ],
    episodes: Annotated[bool, typer.Option("--episodes", help="The episodes too (JSON Lines only).")] = False,
    no_vectors: Annotated[
        bool, typer.Option("--no-vectors", help="Smaller; an import then embeds anew (JSON Lines only).")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    scope: access.Scope = None,
    all_scopes: access.AllScopes = False,
    json: output.JsonFlag = False,
) -> None:
    """Write memories to a file or a folder.

    All of a scope, in whatever state. JSON Lines hold everything and come back by `mia memory import` as they were;
    Markdown is one page a memory, for people and for git.
    """
    from mia.memory.exchange import export_jsonl, export_markdown

    config = access.configure(context, scope)
    chosen = access.choose(config, scope, all_scopes)
    markdown = _is_markdown(target)
    if markdown and (episodes or no_vectors):
        raise ConfigError("--episodes and --no-vectors are for JSON Lines.", hint=f"mia memory export {target}.jsonl")
    piped = str(target) == "-"
    if not piped:
        access.refuse_the_store(config, target)
    if piped and json:
        raise ConfigError("`-` and --json both write to stdout.", wanted="one of them")
    with access.reading(config) as store, counting("export") as on_progress:
        if markdown:
            done = export_markdown(store, target, scope=chosen, force=force, on_progress=on_progress)
        else:
            done = export_jsonl(
                store,
                sys.stdout.buffer if piped else target,
                scope=chosen,
                episodes=episodes,
                vectors=not no_vectors,
                force=force,
                on_progress=on_progress,
            )
    if json:
        output.result_json({"target": str(target), **asdict(done)})
        return
    if not piped:
        output.result(str(target))
    kept = f", {done.unchanged:,} of them as they were" if done.unchanged else ""
    with_episodes = f" and {output.plural(done.episodes, 'episode')}" if episodes else ""
    output.note(f"{output.plural(done.memories, 'memory')}{kept}{with_episodes} written.")
    if done.edited:
        output.warn(f"Left alone, since somebody edited them: {', '.join(done.edited)}. Import them, or add --force.")


def import_(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A file (also .gz), a folder of Markdown, or `-` for stdin.")],
    format: Annotated[
        Literal["auto", "mia", "react", "openai", "markdown"],
        typer.Option(
            help="An export of ours, ReAct trajectories, OpenAI message lists, Markdown; `auto` looks into it."
        ),
    ] = "auto",
    judgement: Annotated[
        Literal["correct", "incorrect"] | None,
        typer.Option(help="Of runs in logs that carry no verdict.", show_default="kept, and not learnt from"),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(help="Put everything there.", show_default="where it was; logs: memory.scope"),
    ] = None,
    json: output.JsonFlag = False,
) -> None:
    """Take memories in from files.

    From an export, Markdown pages, or the logs of other agents. Importing the same again changes nothing. What cannot
    be taken is refused by line, and never stops the rest; the exit status is then 1. Workflows of logs are written by
    rules, without a model.
    """
    config = access.configure(context, scope)
    stream, chosen = _open(source, format)
    if judgement is not None and chosen not in ("react", "openai"):
        raise ConfigError(f"--judgement with the format '{chosen}'.", wanted="it for logs: react or openai")
    with access.changing(config, create=True) as store, counting("import") as on_progress:
        done = _import(config, store, stream, chosen, judgement, scope, on_progress)
    if json:
        output.result_json({"source": str(source), "format": chosen, **asdict(done)})
    else:
        _report(done)
    if done.refused:
        raise typer.Exit(1)


def _is_markdown(target: Path) -> bool:
    """By the name. Raises ConfigError for one that says nothing."""
    if target.is_dir():
        return True
    if target.name.endswith(_JSON_LINES) or str(target) == "-":
        return False
    if target.suffix:
        raise ConfigError(
            f"the name '{target}' says no format.",
            wanted="NAME.jsonl or NAME.jsonl.gz for JSON Lines, a name without an ending for a folder of Markdown",
            hint=f"mia memory export {target.with_suffix('.jsonl')}",
        )
    return True


def _open(source: Path, format: Format | Literal["auto"]) -> tuple[Path | BinaryIO, Format]:
    """What to read, and its format. Raises RecordError."""
    from mia.memory.exchange import detect_format

    if str(source) != "-":
        if not source.exists():
            raise RecordError(f"there is no '{source}'.", wanted="a file, or a folder of Markdown")
        return source, detect_format(source) if format == "auto" else format
    stream = io.BufferedReader(cast(io.RawIOBase, sys.stdin.buffer), _LOOKED_AT)
    return stream, detect_format(stream.peek(_LOOKED_AT)) if format == "auto" else format


def _import(
    config: Config,
    store: SqliteStore,
    source: Path | BinaryIO,
    format: Format,
    judgement: Judgement | None,
    scope: str | None,
    on_progress: OnProgress,
) -> Imported:
    from mia.memory.exchange import import_jsonl, import_markdown, import_trajectories

    settings = config.memory
    if format == "mia":
        embedder = _embedder_if_there(config, store)
        return import_jsonl(store, source, settings=settings, embedder=embedder, scope=scope, on_progress=on_progress)
    if format == "markdown":
        from mia.embeddings import memory_embedder

        if not isinstance(source, Path):
            raise ConfigError("Markdown cannot come from stdin.", hint="mia memory import FOLDER")
        embedder = memory_embedder(config, store.space())
        return import_markdown(
            store, source, settings=settings, embedder=embedder, scope=scope, on_progress=on_progress
        )
    manager = access.manager(config, store)
    return asyncio.run(
        import_trajectories(manager, source, format=format, judgement=judgement, on_progress=on_progress)
    )


def _embedder_if_there(config: Config, store: SqliteStore) -> Embedder | None:
    """An export brings its vectors: the embedder may be missing on this machine."""
    from mia.embeddings import memory_embedder

    try:
        return memory_embedder(config, store.space())
    except MissingExtra:
        return None


def _report(done: Imported) -> None:
    output.result(f"{output.plural(done.added, 'memory')} added, {done.known:,} known already")
    if done.episodes:
        output.note(f"{output.plural(done.episodes, 'episode')} kept.")
    for count, what in (
        (done.replaced, "of the memories took the place of another"),
        (done.quarantined, "of the memories are quarantined: they read like orders to the agent"),
        (done.unjudged, "of the episodes carry no verdict, and become memories when one comes (--judgement gives one)"),
        (done.waiting, "of the episodes wait for the embedder: mia memory queue --run"),
    ):
        if count:
            output.note(f"{count:,} {what}.")
    for refusal in done.refused[:_NAMED]:
        place = ", ".join(part for part in (refusal.file, f"line {refusal.line}" if refusal.line else "") if part)
        output.warn(f"refused  {f'{place}: ' if place else ''}{refusal.reason}")
    if len(done.refused) > _NAMED:
        output.warn(f"refused  {len(done.refused) - _NAMED:,} more (--json lists them)")
