"""What the commands of `mia memory` share: how they open the memory, ask before they destroy, and read times."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mia.cli import options, output
from mia.errors import ConfigError

if TYPE_CHECKING:
    from mia.config import Config
    from mia.memory.manager import MemoryManager
    from mia.models.base import ChatModel
    from mia.store.sqlite import SqliteStore

DAY = 86_400.0
MOST = 1_000_000_000
"""What a number on the command line may be at most: SQLite counts further, and nobody has more."""
_LAST_MOMENT = datetime(9999, 12, 31).timestamp()

Scope = Annotated[
    str | None,
    typer.Option(help="Whose memories: tenant/project/user, with all below it.", show_default="memory.scope"),
]
AllScopes = Annotated[bool, typer.Option("--all-scopes", help="Those of everybody in the file.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")]
Ids = Annotated[list[str], typer.Argument(help="Ids of memories, or the beginnings of such.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the audit.")]


def configure(context: typer.Context, scope: str | None = None) -> Config:
    return options.shared(context).config({"memory.scope": scope})


def choose(config: Config, scope: str | None, all_scopes: bool) -> str | None:
    """The scope to look into; None: all. Raises ConfigError if both were asked for."""
    if all_scopes and scope is not None:
        raise ConfigError("--scope with --all-scopes.", wanted="one of them")
    return None if all_scopes else config.memory.scope


def refuse_the_store(config: Config, target: Path) -> None:
    """A file to be written must not be the memory, nor any file of it. Raises ConfigError."""
    path = config.store_path
    own = [path, *(path.with_name(f"{path.name}{ending}") for ending in ("-wal", "-shm", "-journal"))]
    cache = path.with_name(f"{path.name}.cache").resolve()
    place = target.resolve()
    same = any(place == one.resolve() or (place.exists() and one.exists() and place.samefile(one)) for one in own)
    if same or place == cache or cache in place.parents:
        raise ConfigError(f"'{target}' belongs to the memory '{path}'.", wanted="another file: nothing was written")


@contextmanager
def reading(config: Config) -> Iterator[SqliteStore]:
    """The store as it is; none is made. Raises StoreError."""
    from mia.store import open_store

    with open_store(config.store_path, create=False, redact=config.memory.redact) as store:
        yield store


@contextmanager
def changing(config: Config, *, create: bool = False) -> Iterator[SqliteStore]:
    """The store, to be changed. Raises ConfigError if the memory is frozen, StoreError."""
    from mia.store import open_store

    if config.memory.frozen:
        raise ConfigError(
            "the memory is frozen: it recalls, and is not changed.",
            hint="MIA_MEMORY__FROZEN=false in front of the command, if you mean it",
        )
    with open_store(config.store_path, create=create, redact=config.memory.redact) as store:
        yield store


def manager(config: Config, store: SqliteStore, model: ChatModel | None = None) -> MemoryManager:
    """With the embedder that the store was made with. Raises ConfigError, MissingExtra."""
    from mia.embeddings import memory_embedder
    from mia.memory.manager import MemoryManager
    from mia.types import Role

    style = config.models.of(Role.MANAGER).prompts
    return MemoryManager(store, memory_embedder(config, store.space()), config.memory, model, style=style)


def caretaker(config: Config, store: SqliteStore) -> MemoryManager:
    """For what embeds nothing: it works where the store's embedder is not installed."""
    from mia.embeddings.hashing import HashingEmbedder
    from mia.memory.manager import MemoryManager

    return MemoryManager(store, HashingEmbedder(), config.memory)


def resolve(store: SqliteStore, references: Sequence[str]) -> tuple[str, ...]:
    """The ids of memories; each once. Raises RecordError for one that is none, or more than one."""
    return tuple(dict.fromkeys(store.memory(reference).id for reference in references))


def confirm(question: str, *, yes: bool) -> None:
    """Ask at a terminal; elsewhere `--yes` must have been given. Raises ConfigError, typer.Exit."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(f"nobody is here to answer: {question}", hint="add --yes, if you mean it")
    if not typer.confirm(output.visible(question), err=True):
        output.note("Nothing was changed.")
        raise typer.Exit(1)


def say_time(at: float) -> str:
    """In local time."""
    try:
        return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{at:.0f} s after 1970"


def read_time(text: str) -> float:
    """Seconds since the epoch, of an ISO date or time; local time unless it says otherwise. Raises ConfigError."""
    refuse_bare_date(text)
    try:
        at = datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f"no time: {text!r}.",
            wanted="a date or a time as 2026-03-01, 2026-03-01T09:30 or 2026-03-01T09:30:00+01:00",
        ) from None
    return _within_the_calendar(at, text)


def refuse_bare_date(text: str) -> None:
    """Eight digits may be a date or a number; which of them, nobody can tell. Raises ConfigError."""
    if re.fullmatch(r"(19|2\d)\d{6}", text.strip(), re.ASCII):
        try:
            date = datetime.strptime(text.strip(), "%Y%m%d")
        except ValueError:
            return
        raise ConfigError(f"{text!r} reads like a date.", hint=f"write {date:%Y-%m-%d}")


def _within_the_calendar(at: float, text: str) -> float:
    if at > _LAST_MOMENT:
        raise ConfigError(f"no time: {text!r}.", wanted="one before the end of the year 9999")
    return at


def read_expiry(text: str) -> float | None:
    """Seconds since the epoch, of a date or of days from now; None for "never". Raises ConfigError."""
    if text.strip().casefold() == "never":
        return None
    if re.fullmatch(r"\d+(\.\d+)?", text.strip()):
        refuse_bare_date(text)
        return _within_the_calendar(time.time() + float(text) * DAY, text)
    return read_time(text)
