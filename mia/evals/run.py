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
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
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
from mia.redaction import Redactor
from mia.team import Team
from mia.types import Episode, StopReason, Task, Usage, new_id

RUN_VERSION = 1

MAY_DIFFER = re.compile(
    r"budget\.run\..*|run\.concurrency"
    r"|models\.\w+(\.(timeout_seconds|max_attempts|max_retry_seconds|concurrency|api_key|api_key_env))"
)
"""Settings that a resume may change: they bound the run or reach the same model, and cannot change an answer."""
LOG = "episodes.jsonl"
OWN_FILES = frozenset({"run.json", LOG, "summary.json"})


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
    answered: set[str] = field(default_factory=set)
    """Ids of the questions that this process answered."""


def open_run(folder: Path, tasks: Sequence[Task], config: Config, *, resume: bool) -> Run:
    """Create a run folder, or open one again. A folder in which nothing was answered yet is begun anew.

    Raises ConfigError if the folder is taken, or was made with other settings or questions; StoreError if it cannot be
    written.
    """
    path = folder / "run.json"
    if resume and not path.exists():
        raise ConfigError(f"there is no run in '{folder}' to resume.", hint="leave --resume out to begin one")
    others = [entry.name for entry in folder.iterdir() if entry.name not in OWN_FILES] if folder.is_dir() else []
    if others and not path.exists():
        raise ConfigError(
            f"the folder '{folder}' holds other files ({', '.join(sorted(others)[:3])}).",
            wanted="an empty folder, or one that is not there yet",
            hint="name another folder with --out",
        )
    page = {
        "version": RUN_VERSION,
        "id": new_id("run"),
        "mia": mia.__version__,
        "created_at": time.time(),
        "questions": _questions_hash(tasks),
        "config": config.resolved(),
    }
    with ExitStack() as on_failure:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from error
        # The log first: its lock keeps two processes from beginning in one folder.
        log = EpisodeLog.open(folder / LOG, Redactor(config.memory.redact))
        on_failure.callback(log.release)
        summary, done = Summary(), set[str]()
        for episode in log.episodes():
            summary.add(episode)
            done.add(episode.question.id)
        if resume:
            page = _check_same(_read_page(path), page, folder)
            summary.remembering, summary.unfinished = _spent_outside_episodes(folder / "summary.json")
        else:
            _begin(folder, page, begun=bool(done))
        on_failure.pop_all()
    return Run(id=str(page["id"]), folder=folder, log=log, summary=summary, done=done)


def scope_of(folder: Path) -> str | None:
    """Whose memories the run in this folder fills; None where its run.json cannot tell."""
    try:
        scope = json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"]["memory"]["scope"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return scope if isinstance(scope, str) else None


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
        """Answer every open question.

        Raises StoreError if an answer cannot be kept (the run can then be resumed), ReplayMismatch at the first call
        that a recording has no entry for; that question stays open.
        """
        try:
            await self._answer_all()
        except BaseException:
            with suppress(StoreError):  # What ended the run says more.
                await self._close()
            raise
        await self._close()
        return self.progress

    async def _answer_all(self) -> None:
        try:
            await self._absorb_recorded()
            self._on_progress(self.progress)
            tasks = iter(self._open)
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, len(self._open))):
                    group.create_task(self._work(tasks))
        except* MiaError as errors:
            raise first_error(errors) from None

    async def _close(self) -> None:
        await self._run.log.close()
        path = self._run.folder / "summary.json"
        try:
            _write_whole(path, self._run.summary.as_dict())
        except OSError as error:
            raise _unwritable(path, error) from error

    async def _work(self, tasks: Iterator[Task]) -> None:
        for task in tasks:
            if self.progress.stopped:
                return
            await self._answer(task)
            self._on_progress(self.progress)

    async def _answer(self, task: Task) -> None:
        ledger = Ledger(task.question.id, budget=self._question_budget, run=self._account, on_event=self._on_event)
        kept = False
        try:
            episode = await answer(task, self._team, ledger, id=self._episode_id(task), run=self._run.id)
            self._team.check_replays()
            if episode.stop is not None and episode.stop.reason.unheard:
                self._unheard(task, episode)
                return
            self._unheard_in_a_row = 0
            await self._run.log.append(episode)
            self._run.summary.add(episode)
            self.progress.answered.add(task.question.id)
            kept = True
        finally:
            if not kept:
                self._run.summary.unfinished += ledger.total
        if self._absorbs:
            await self._absorb(episode, ledger)
            self._team.check_replays()

    async def _absorb(self, episode: Episode, ledger: Ledger) -> None:
        before = ledger.total
        try:
            await absorb(episode, self._team, ledger)
        finally:
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


def first_error(errors: BaseExceptionGroup[MiaError]) -> MiaError:
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


def _begin(folder: Path, page: dict[str, Any], *, begun: bool) -> None:
    if begun:
        raise ConfigError(
            f"there are answers in '{folder}' already.",
            hint="add --resume to go on with their run, or name another folder with --out",
        )
    try:
        # What a run that answered nothing may have left.
        (folder / "summary.json").unlink(missing_ok=True)
        _write_whole(folder / "run.json", page)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _check_same(stored: dict[str, Any], current: dict[str, Any], folder: Path) -> dict[str, Any]:
    if stored["questions"] != current["questions"]:
        raise ConfigError(
            f"the run in '{folder}' was begun with other questions (a line was added, removed or changed).",
            hint="give it the questions file it was begun with, or name another folder with --out",
        )
    changed = [name for name in differences(stored["config"], current["config"]) if not MAY_DIFFER.fullmatch(name)]
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


def _spent_outside_episodes(path: Path) -> tuple[Usage, Usage]:
    """What earlier processes of this run spent on remembering, and on questions that stayed open; what a killed one
    spent so is not known."""
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
        return Usage.model_validate(page["remembering"]), Usage.model_validate(page["unfinished"])
    except (OSError, ValueError, KeyError, TypeError):
        return Usage(), Usage()


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"cannot write '{path}': {error.strerror}.",
        hint="make room on the disk, or make it writable; what was answered is kept",
    )


def _write_whole(path: Path, page: dict[str, Any]) -> None:
    """Written beside and moved into place, so that no reader sees half of it."""
    fresh = path.with_suffix(".tmp")
    try:
        fresh.write_text(json.dumps(page, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
