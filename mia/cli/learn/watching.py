"""Shows where a training stands, and takes Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mia.cli import output

if TYPE_CHECKING:
    from mia.learn.stages import Progress

NOTE_SECONDS = 10.0
"""How often a training without a terminal says where it stands."""


class Watch:
    """A bar at a terminal, a line now and then elsewhere; and whether Ctrl-C was pressed."""

    def __init__(self, bar: Any, interactive: bool) -> None:
        self.stopping = False
        self._bar = bar
        self._interactive = interactive
        self._noted = 0.0
        self._stage = ""
        self._phase = ""
        self._stepped = False
        self._task: Any = None

    def begin(self, stage: str) -> None:
        """What follows is of this stage."""
        self._stage = stage
        self._phase = ""
        self._stepped = False

    def __call__(self, progress: Progress) -> None:
        begins = progress.phase != self._phase
        self._stepped = self._stepped or bool(progress.row)
        if begins:
            self._phase = progress.phase
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(f"{self._stage}: {progress.phase}", total=progress.total, say="")
        says = say(progress)
        self._bar.update(self._task, completed=progress.done, say=says)
        due = begins or progress.done == progress.total or time.monotonic() - self._noted > NOTE_SECONDS
        if not self._interactive and due:
            self._noted = time.monotonic()
            end = f" · {says}" if says else ""
            output.note(f"{self._stage}: {progress.phase}: {progress.done:,} of {progress.total:,}{end}")

    def listen(self) -> None:
        """From now on the first Ctrl-C ends a training after the step under way, and the second, or one before the
        first step, at once."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def interrupted() -> None:
            if self.stopping or not (self._stepped or self._phase == "steps"):
                task.cancel()
                return
            self.stopping = True
            output.warn("Ending the step under way; Ctrl-C again stops at once.")

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupted)


def say(progress: Progress) -> str:
    row = progress.row
    parts = []
    if row.get("reward") is not None:
        parts.append(f"reward {row['reward']:.3f}")
    if progress.accuracy is not None:
        parts.append(f"exam {progress.accuracy:.1%}")
    if row.get("seconds"):
        parts.append(f"{row['seconds']:.1f} s a step")
    if progress.seconds_left is not None and progress.done < progress.total:
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        parts.append(f"{minutes}:{seconds:02} left")
    return " · ".join(parts)


@contextmanager
def watching() -> Iterator[Watch]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    console = output.console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[say]}"))
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield Watch(bar, console.is_terminal)
