"""What a long command shows on stderr: a bar or a count at a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mia.cli import output

NOTE_SECONDS = 10.0
"""How often a command without a terminal says where it stands."""


@contextmanager
def counting(verb: str) -> Iterator[Callable[[int], None]]:
    """For what has no known end: call it with how many are done."""
    with measuring(verb) as on_progress:
        yield lambda done: on_progress(done, None)


@contextmanager
def measuring(verb: str) -> Iterator[Callable[[int, int | None], None]]:
    """Call it with how many are done, of how many."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = output.console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    noted = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(verb, total=None)

        def on_progress(done: int, total: int | None) -> None:
            nonlocal noted
            bar.update(task, completed=done, total=total)
            if not console.is_terminal and time.monotonic() - noted > NOTE_SECONDS:
                noted = time.monotonic()
                output.note(f"{verb}: {done:,}" + (f" of {total:,}" if total is not None else ""))

        yield on_progress
