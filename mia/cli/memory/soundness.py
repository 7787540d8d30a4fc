"""`mia memory check`: is the memory sound, what of it can be mended, and what can be saved of a damaged one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mia.cli import output
from mia.cli.memory import access
from mia.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from mia.config import Config
    from mia.store.base import KeptEpisode, MemoryVectors
    from mia.store.checking import Problem, Report
    from mia.store.salvaging import Salvage
    from mia.store.sqlite import SqliteStore
    from mia.types import Episode, Memory


@dataclass(frozen=True)
class _Checked:
    """The store and its caches."""

    report: Report
    caches: tuple[str, ...]
    """What the caches say otherwise than the rows."""

    @property
    def sound(self) -> bool:
        return self.report.sound and not self.caches


def check(
    context: typer.Context,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what can be mended without loss, after a copy of the store.")
    ] = False,
    salvage: Annotated[
        Path | None, typer.Option(help="Write all that can still be read of a damaged file to FILE.jsonl.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With --salvage: overwrite what is there.")] = False,
    json: output.JsonFlag = False,
) -> None:
    """Check the memory from end to end.

    File, rows, vectors, counts against the audit, episodes, the queue, and the caches. The exit status is 1 while
    anything is wrong. What --salvage writes comes back by `mia memory import` into a new memory.
    """
    if repair and salvage is not None:
        raise ConfigError("--repair and --salvage at once.", wanted="one of them")
    config = access.configure(context)
    if salvage is not None:
        _salvage(config, salvage, force=force, json=json)
        return
    opening = access.changing if repair else access.reading
    with opening(config) as store, output.console().status("Checking…"):
        mended, backup = _repair(config, store) if repair else ((), None)
        checked = _Checked(store.check(), tuple(_cache_troubles(store)))
    if json:
        output.result_json(_page(checked, mended, backup))
    else:
        _show(checked, mended, backup)
    if not checked.sound:
        raise typer.Exit(1)


# ── check and repair ──────────────────────────────────────────────────────────────────────────────────────────────


def _cache_troubles(store: SqliteStore) -> Iterator[str]:
    from mia.memory.cache import verify

    if not store.cache.is_dir():
        return
    for scope in sorted({memory.scope for memory, _ in store.export(None)}):
        for trouble in verify(store, scope):
            yield f"scope '{scope}': {trouble}"


def _repair(config: Config, store: SqliteStore) -> tuple[tuple[Problem, ...], Path | None]:
    """What was mended, and where the copy lies. Caches that are wrong are removed: they are made again when needed."""
    from mia.erasure import erase_everywhere
    from mia.memory.cache import drop

    done = store.repair()
    unfinished = tuple(problem for problem in done.left.problems if problem.kind == "erasure")
    if unfinished:
        erase_everywhere(store, config.home)
    if any(_cache_troubles(store)):
        try:
            drop(store.cache)
        except OSError as error:
            raise StoreError(f"cannot remove the caches in '{store.cache}': {error.strerror}.") from error
    return (*done.repaired, *unfinished), done.backup if not unfinished else None


def _page(checked: _Checked, mended: tuple[Problem, ...], backup: Path | None) -> dict[str, Any]:
    return {
        "sound": checked.sound,
        **asdict(checked.report),
        "caches": checked.caches,
        "repaired": [asdict(problem) for problem in mended],
        "backup": str(backup) if backup else None,
    }


def _show(checked: _Checked, mended: tuple[Problem, ...], backup: Path | None) -> None:
    report = checked.report
    for problem in mended:
        output.note(f"mended  {_say(problem)}")
    if backup is not None:
        output.note(f"The memory as it was: {backup}")
    lines = [_say(problem) for problem in report.problems]
    lines += [f"cache  {trouble}" for trouble in checked.caches]
    if lines:
        output.result("\n".join(lines))
        repairable = sum(problem.repairable for problem in report.problems) + len(checked.caches)
        hint = f"; --repair mends {repairable:,} of them" if repairable else ""
        output.warn(f"{output.plural(len(lines), 'problem')}{hint}.")
    else:
        counted = ", ".join(
            output.plural(count, noun)
            for count, noun in ((report.memories, "memory"), (report.episodes, "episode"), (report.changes, "change"))
        )
        output.result(f"sound: {counted}")


def _say(problem: Problem) -> str:
    return f"{problem.kind}  {problem.subject}: {problem.sentence}" if problem.subject else problem.sentence


# ── salvage ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _salvage(config: Config, target: Path, *, force: bool, json: bool) -> None:
    from mia.memory.exchange import write_jsonl
    from mia.store.salvaging import salvage

    path = config.store_path
    access.refuse_the_store(config, target)
    if not target.name.endswith((".jsonl", ".jsonl.gz")):
        raise ConfigError(f"--salvage {target}.", wanted="a file NAME.jsonl or NAME.jsonl.gz")
    if not path.is_file():
        raise StoreError(f"no memory at '{path}'.", hint="name its file with memory.path, or its folder with --home")
    with output.console().status("Reading what can be read…"):
        found = salvage(path)
        split = _Split(found, config.memory.scope)
        done = write_jsonl(target, split.memories(), split.episodes(), force=force)
    lost = {"broken": found.broken, "without_texts": found.without_texts, "without_counts": found.without_counts}
    if json:
        output.result_json({"target": str(target), "pages": found.pages, **asdict(done), **lost})
        return
    output.result(str(target))
    saved = f"{output.plural(done.memories, 'memory')} and {output.plural(done.episodes, 'episode')}"
    output.note(f"{saved} saved from {output.plural(found.pages, 'page')}.")
    for count, what in (
        (found.broken, "broken beyond reading"),
        (found.without_texts, "of which only the counts are left"),
        (found.without_counts, "of texts of which nobody can say whose they are"),
    ):
        if count:
            output.warn(f"Not saved: {output.plural(count, 'row')} {what}.")
    output.note(f"To go on: move '{path}' away, then mia memory import {target}")


class _Split:
    """What was salvaged comes in one stream, the memories first."""

    def __init__(self, found: Salvage, scope: str) -> None:
        self._items = found.read()
        self._scope = scope
        """Of episodes that no memory was made of: theirs is lost."""
        self._first: list[Episode] = []
        self._made: dict[str, list[Memory]] = {}
        """By the id of the episode."""

    def memories(self) -> Iterator[tuple[Memory, MemoryVectors | None]]:
        for item in self._items:
            if not isinstance(item, tuple):
                self._first.append(item)
                return
            self._made.setdefault(item[0].provenance.episode_id, []).append(item[0])
            yield item

    def episodes(self) -> Iterator[KeptEpisode]:
        """After the memories."""
        from mia.store.base import KeptEpisode

        for item in chain(self._first, self._items):
            assert not isinstance(item, tuple)
            made = self._made.get(item.id, [])
            yield KeptEpisode(
                item,
                scope=made[0].scope if made else self._scope,
                absorbed=bool(made),
                lessons=tuple(memory.id for memory in made),
            )
