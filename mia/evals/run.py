"""Answer a stream of questions into a folder: resumable, within a budget, several at a time.

The folder holds `run.json` (the resolved configuration and the questions' hash), `episodes.jsonl` (one finished episode
a line) and, at the end, `summary.json`. Always true: a question whose line is in the log is never asked again, and one
whose line is not will be. What a death between line and memory left undone is absorbed on resuming; both memory and
credit are idempotent by episode id, so doing it twice changes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mia
from mia.config import Config, differences
from mia.episode import absorb, answer
from mia.errors import ConfigError, MiaError, StoreError
from mia.evals.log import EpisodeLog
from mia.evals.summary import Summary
from mia.events import OnEvent, ignore
from mia.models.ledger import Account, Budget, Ledger
from mia.team import Team
from mia.types import Episode, StopReason, Task, Usage, new_id

RUN_VERSION = 1

MAY_DIFFER = ("budget.run.",)
"""Settings that a resume may change: they bound the run and cannot change an answer."""


@dataclass
class Run:
    """A run folder, open for answering."""

    id: str
    folder: Path
    log: EpisodeLog
    summary: Summary
    done: set[str]
    """Ids of the questions that are answered."""


@dataclass
class Progress:
    """Where a run stands, for a progress bar; `stopped` says why it ended early, if it did."""

    total: int
    summary: Summary
    unanswered: dict[str, str] = field(default_factory=dict)
    """Question id → why its model could not be asked; asked again on resume."""
    stopped: str = ""


def open_run(folder: Path, tasks: Sequence[Task], config: Config, *, resume: bool) -> Run:
    """Create a run folder, or open one again.

    Raises ConfigError if the folder is taken, or was made with other settings or questions; StoreError if it cannot be
    written.
    """
    page = {
        "version": RUN_VERSION,
        "id": new_id("run"),
        "mia": mia.__version__,
        "created_at": time.time(),
        "questions": _questions_hash(tasks),
        "config": config.resolved(),
    }
    path = folder / "run.json"
    if path.exists():
        page = _check_same(_read_page(path), page, folder, resume=resume)
    else:
        if resume:
            raise ConfigError(f"there is no run in '{folder}' to resume.", hint="leave --resume out to begin one")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_whole(path, page)
        except OSError as error:
            raise StoreError(f"cannot make the run folder '{folder}': {error.strerror}.") from error
    log = EpisodeLog.open(folder / "episodes.jsonl")
    summary, done = Summary(), set[str]()
    for episode in log.episodes():
        summary.add(episode)
        done.add(episode.question.id)
    summary.remembering = _spent_on_remembering(folder / "summary.json")
    return Run(id=str(page["id"]), folder=folder, log=log, summary=summary, done=done)


class Runner:
    """Answers the open questions of a run with one team."""

    def __init__(
        self,
        run: Run,
        tasks: Sequence[Task],
        team: Team,
        *,
        concurrency: int = 8,
        question_budget: Budget = Budget(),
        run_budget: Budget = Budget(),
        learn: bool = True,
        on_event: OnEvent = ignore,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self.progress = Progress(total=len(tasks), summary=run.summary)
        self._run = run
        self._open = [task for task in tasks if task.question.id not in run.done]
        self._team = team
        self._concurrency = concurrency
        self._question_budget = question_budget
        self._account = Account(run_budget, "run")
        self._account.spent = run.summary.usage
        self._absorbs = learn
        self._on_event = on_event
        self._on_progress = on_progress
        self._unheard_in_a_row = 0

    def stop(self, why: str) -> None:
        """Ask no further question; those under way are finished."""
        self.progress.stopped = self.progress.stopped or why

    async def run(self) -> Progress:
        """Answer every open question. Raises StoreError if an answer cannot be kept (the run can then be resumed)."""
        try:
            await self._absorb_recorded()
            self._on_progress(self.progress)
            tasks = iter(self._open)
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, len(self._open))):
                    group.create_task(self._work(tasks))
        except* MiaError as errors:
            raise _first(errors) from None
        finally:
            await self._run.log.close()
            _write_whole(self._run.folder / "summary.json", self._run.summary.as_dict())
        return self.progress

    async def _work(self, tasks: Iterator[Task]) -> None:
        for task in tasks:
            if self.progress.stopped:
                return
            await self._answer(task)
            self._on_progress(self.progress)

    async def _answer(self, task: Task) -> None:
        ledger = Ledger(task.question.id, budget=self._question_budget, run=self._account, on_event=self._on_event)
        episode = await answer(task, self._team, ledger, id=self._episode_id(task), run=self._run.id)
        if episode.stop is not None and episode.stop.reason.unheard:
            self._unheard(task, episode)
            return
        self._unheard_in_a_row = 0
        await self._run.log.append(episode)
        self._run.summary.add(episode)
        if self._absorbs:
            await self._absorb(episode, ledger)

    async def _absorb(self, episode: Episode, ledger: Ledger) -> None:
        before = ledger.total
        await absorb(episode, self._team, ledger)
        self._run.summary.remembering += ledger.total - before

    def _unheard(self, task: Task, episode: Episode) -> None:
        """The model could not be asked: the question stays open; too many in a row, and the run stops."""
        assert episode.stop is not None
        self.progress.unanswered[task.question.id] = episode.stop.sentence
        self._unheard_in_a_row += 1
        if episode.stop.reason is StopReason.RUN_BUDGET:
            self.stop(episode.stop.sentence)
        elif self._unheard_in_a_row >= max(3, self._concurrency):
            self.stop(f"{self._unheard_in_a_row} questions in a row could not be asked: {episode.stop.sentence}")

    async def _absorb_recorded(self) -> None:
        """Bring the memory up to the log: a death may have come between the two."""
        if not self._absorbs or self._team.memory is None:
            return
        for episode in self._run.log.episodes():
            await self._absorb(episode, Ledger(episode.question.id, run=self._account))

    def _episode_id(self, task: Task) -> str:
        """The same for the same question of the same run, however often it is resumed."""
        return "ep-" + hashlib.sha256(f"{self._run.id}\n{task.question.id}".encode()).hexdigest()[:20]


def _first(errors: BaseExceptionGroup[MiaError]) -> MiaError:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, MiaError)
    return error


def _questions_hash(tasks: Sequence[Task]) -> str:
    """Of ids, texts, images and references, in order: a changed reference would change what a verdict means."""
    digest = hashlib.sha256()
    for task in tasks:
        images = [image.sha256 for image in task.question.images]
        digest.update(json.dumps([task.question.id, task.question.text, images, task.references]).encode() + b"\n")
    return digest.hexdigest()[:16]


def _check_same(stored: dict[str, Any], current: dict[str, Any], folder: Path, *, resume: bool) -> dict[str, Any]:
    if not resume:
        raise ConfigError(
            f"there is a run in '{folder}' already.",
            hint="add --resume to go on with it, or name another folder with --out",
        )
    if stored["questions"] != current["questions"]:
        raise ConfigError(
            f"the run in '{folder}' was begun with other questions (a line was added, removed or changed).",
            hint="give it the questions file it was begun with, or name another folder with --out",
        )
    changed = [name for name in differences(stored["config"], current["config"]) if not name.startswith(MAY_DIFFER)]
    if changed:
        raise ConfigError(
            f"the run in '{folder}' was begun with other settings. These differ: {', '.join(changed)}.",
            hint="set them as they were (run.json holds them), or name another folder with --out",
        )
    return stored


def _read_page(path: Path) -> dict[str, Any]:
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read '{path}': {error}.", hint="name another folder with --out") from error
    if not isinstance(page, dict) or page.get("version") != RUN_VERSION:
        raise ConfigError(f"'{path}' is not of a run that this MIA can resume.", hint="name another folder with --out")
    return page


def _spent_on_remembering(path: Path) -> Usage:
    """What earlier processes of this run spent after their answers; what a killed one spent so is not known."""
    try:
        return Usage.model_validate(json.loads(path.read_text(encoding="utf-8"))["remembering"])
    except (OSError, ValueError, KeyError, TypeError):
        return Usage()


def _write_whole(path: Path, page: dict[str, Any]) -> None:
    """Written beside and moved into place, so that no reader sees half of it."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(page, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)
