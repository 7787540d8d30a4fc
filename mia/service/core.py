"""The service without its doors: answers questions for many scopes, and loses nothing.

    ask:       answer (episode.py) → kept on the disk → replied → absorbed in the background
    remember:  kept on the disk → replied → stored in the background; or stored before the reply
    job:       kept on the disk → answered question by question, whatever is restarted meanwhile

Every door (API, compatibility, chat, MCP, dashboard) calls this and nothing below it. All methods belong to one event
loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mia.config import Config
from mia.embeddings import memory_embedder
from mia.episode import absorb, answer
from mia.errors import ConfigError, LearnError, MiaError, ModelUnavailable, RecordError
from mia.events import OnEvent, ignore
from mia.memory.manager import Judgement, MemoryManager
from mia.models import Models, build_models
from mia.models.ledger import Ledger
from mia.service.durable import Durable, Job, Pending
from mia.service.live import Ask, Live
from mia.store import open_store
from mia.team import StoreArchive, Team, budget, build_team, refuse_babble
from mia.types import Episode, Memory, Outcome, Role, Task, Verdict

if TYPE_CHECKING:
    from mia.learn.adapters import AdapterStore
    from mia.learn.online import OnlineLearner
    from mia.search.base import SearchEngine
    from mia.store.base import MemoryStore
    from mia.tools.base import Tool

DURABLE = "service.db"
"""In `home`."""
LEARNING = "learning"
"""In `home`: the stream that the service learns from."""
_ABSORBED_AT_ONCE = 16
_FIRST_DELAY, _LONGEST_DELAY = 2.0, 300.0


@dataclass(frozen=True)
class Settled:
    """What came of feedback."""

    episode: Episode
    credited: int
    """Memories whose counts changed."""
    memories: tuple[Memory, ...]
    """What is in sight because of the episode now."""


class Service:
    """Builds what the configuration describes. `start` it, and `close` it."""

    def __init__(
        self,
        config: Config,
        *,
        models: Models | None = None,
        tools: Sequence[Tool] | None = None,
        engine: SearchEngine | None = None,
    ) -> None:
        """What is handed in is used as it is, and not closed. Raises ConfigError, CorpusError, StoreError,
        MissingExtra, RecordError: before anything listens."""
        if models is None and tools is None and engine is None:
            refuse_babble(config)
        self.config = config
        self.live = Live()
        self.started_at = time.time()
        self.learner: OnlineLearner | None = None
        """Where the service learns while it answers."""
        self.adapters: AdapterStore | None = None
        """The versions of the Planner that answer, where it learns."""
        self._owns_models = models is None
        self.durable = Durable(config.home / DURABLE)
        try:
            self.store: MemoryStore = open_store(config.store_path, redact=config.memory.redact)
            try:
                self.models = models if models is not None else build_models(config.models)
                self.embedder = memory_embedder(config, self.store.space())
                self._managers: OrderedDict[str, MemoryManager] = OrderedDict()
                # The memory is a scope's, and is put in when the scope is known.
                self._base = build_team(
                    config,
                    models=self.models,
                    tools=tools,
                    engine=engine,
                    memory=self.memory(config.memory.scope),
                )
            except BaseException:
                self.store.close()
                raise
        except BaseException:
            self.durable.close()
            raise
        self._wake = asyncio.Event()
        self._job_wake = asyncio.Event()
        self._progress = asyncio.Event()
        """Set, and renewed, whenever something was absorbed or put off."""
        self._answering: dict[str, asyncio.Task[Any]] = {}
        """Job → the task that answers it."""
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False

    async def start(self) -> None:
        """Take up what a death left, and begin to work in the background. Raises LearnError, ConfigError."""
        if self.config.learn.enabled:
            await self._start_learning()
        self._tasks = [
            asyncio.create_task(self._absorb_forever(), name="absorb"),
            asyncio.create_task(self._work_off_jobs(), name="jobs"),
        ]

    async def close(self) -> None:
        """Finish what is being stored, leave the rest for the next start, and let go of everything."""
        self._closing = True
        for task in (*self._answering.values(), *self._tasks):
            task.cancel()
        for task in (*self._answering.values(), *self._tasks):
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self.learner is not None:
            await self.learner.close()
        await self._base.close()
        if self._owns_models:
            await self.models.close()
        for manager in self._managers.values():
            await asyncio.to_thread(manager.release)
        await asyncio.to_thread(self.store.close)
        await asyncio.to_thread(self.durable.close)

    # ── who answers ───────────────────────────────────────────────────────────────────────────────────────────────

    def memory(self, scope: str) -> MemoryManager:
        """The memory of a scope; the ones used last are held ready."""
        manager = self._managers.pop(scope, None)
        if manager is None:
            settings = self.config.memory.model_copy(update={"scope": scope})
            style = self.config.models.of(Role.MANAGER).prompts
            manager = MemoryManager(self.store, self.embedder, settings, self.models.manager, style=style)
        self._managers[scope] = manager
        while len(self._managers) > self.config.serve.max_scopes:
            _, oldest = self._managers.popitem(last=False)
            oldest.release()
        return manager

    def team(self, scope: str) -> Team:
        """Who answers for a scope."""
        memory = self.config.memory
        return replace(
            self._base,
            memory=self.memory(scope) if memory.enabled else None,
            archive=StoreArchive(self.store, scope) if not memory.enabled or memory.frozen else None,
        )

    # ── questions ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def ask(
        self,
        task: Task,
        scope: str,
        *,
        door: str = "api",
        id: str = "",
        stream: bool = False,
        on_event: OnEvent = ignore,
        ask: Ask | None = None,
        run: str = "",
    ) -> Episode:
        """Answer a question; when this returns, the episode is on the disk, and it is absorbed soon. `stream`: events
        with the models' text as it comes. `ask`: begun by the caller (`live.begin`), who has subscribed to it.

        Cancelling cancels the work. Raises StoreError, and LearnError where the service learns.
        """
        ask = ask or self.live.begin(scope, task.question, door, id=id)
        under_way = ask

        def tell(event: Any) -> None:
            under_way.tell(event)
            on_event(event)

        try:
            if self._learns(scope):
                episode = await self._ask_learning(task)
            else:
                episode = await self._answer(task, scope, ask.id, run, stream, tell)
                await self.accept(episode, scope)
        except asyncio.CancelledError:
            ask.finish(None, "cancelled")
            raise
        except MiaError as error:
            ask.finish(None, error.got)
            raise
        except BaseException as error:
            ask.finish(None, type(error).__name__)
            raise
        ask.finish(episode)
        return episode

    async def _answer(self, task: Task, scope: str, id: str, run: str, stream: bool, on_event: OnEvent) -> Episode:
        ledger = Ledger(task.question.id, budget=budget(self.config.budget.question), on_event=on_event, stream=stream)
        return await answer(task, self.team(scope), ledger, id=id, run=run)

    async def accept(self, episode: Episode, scope: str) -> None:
        """Keep an answered episode; it is absorbed in the background. Raises StoreError."""
        await asyncio.to_thread(self.durable.accept, episode, scope)
        self._wake.set()

    async def absorbed(self, id: str, timeout: float = 30.0) -> bool:
        """Whether an episode has been absorbed; waits for it so long."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    # Taken before the look, so that what happens after it is not missed.
                    progress = self._progress
                    if await asyncio.to_thread(self.durable.pending_episode, id) is None:
                        return True
                    await progress.wait()
        except TimeoutError:
            return False

    async def episode(self, id: str) -> tuple[Episode, str] | None:
        """An episode of exactly this id and its scope, absorbed or not. Raises StoreError."""
        waiting = await asyncio.to_thread(self.durable.pending_episode, id)
        if waiting is not None:
            return waiting
        kept = await asyncio.to_thread(self.store.kept_episode, id)
        return (kept.episode, kept.scope) if kept is not None else None

    async def feedback(self, id: str, verdict: Verdict) -> Settled:
        """A late verdict: it credits the memories that were shown, and what was learnt from the episode is learnt
        again under it. Raises RecordError where there is no such episode, StoreError, ConfigError (frozen)."""
        await self.absorbed(id)
        found = await self.episode(id)
        if found is None:
            raise RecordError(f"no episode '{id}'.", hint="GET /v1/episodes lists them")
        episode, scope = found
        manager = self.memory(scope)
        shown = frozenset(one.memory_id for one in episode.recall.shown) if episode.recall is not None else frozenset()
        credited = await manager.credit(episode.id, shown, verdict)
        judged = episode.evolve(verdict=verdict)
        ledger = Ledger(episode.question.id, budget=budget(self.config.budget.question))
        memories = await manager.remember([judged], ledger)
        return Settled(judged, credited, memories)

    # ── what a user knows ─────────────────────────────────────────────────────────────────────────────────────────

    async def remember(self, scope: str, question: str, workflow: str, judgement: Judgement, **more: str) -> Memory:
        """Store what a user knows, and wait for it. Raises RecordError, ConfigError, StoreError, ModelError."""
        return await asyncio.to_thread(self.memory(scope).add, question, workflow, judgement, **more)

    async def remember_soon(self, scope: str, content: Mapping[str, Any]) -> str:
        """Accept what a user knows, as the arguments of `MemoryManager.add`: on the disk when this returns, stored in
        the background. Returns a receipt. Raises RecordError for what cannot be a memory, StoreError."""
        self.memory(scope).check(**content)
        receipt = await asyncio.to_thread(self.durable.accept_memory, content, scope)
        self._wake.set()
        return receipt

    # ── jobs ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def submit(self, tasks: Sequence[Task], scope: str) -> Job:
        """Keep a batch of questions; they are answered in the background. Raises RecordError, StoreError."""
        if not tasks:
            raise RecordError("a job without questions.", wanted="at least one")
        job = await asyncio.to_thread(self.durable.submit, tasks, scope)
        self._job_wake.set()
        return job

    async def cancel(self, id: str) -> Job:
        """What of a job is under way is broken off, and the rest is not begun. Raises RecordError, StoreError."""
        await asyncio.to_thread(self.durable.job, id)
        await asyncio.to_thread(self.durable.cancel_job, id)
        task = self._answering.get(id)
        if task is not None:
            task.cancel()
        return await asyncio.to_thread(self.durable.job, id)

    # ── learning ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _start_learning(self) -> None:
        from mia.learn.online import OnlineLearner, check
        from mia.learn.opening import build_training, learning_models
        from mia.redaction import Redactor

        config = self.config
        if not config.memory.enabled or config.memory.frozen:
            raise ConfigError("the service is to learn, and the memory takes nothing in.", hint="memory.enabled = true")
        folder = config.home / LEARNING
        folder.mkdir(parents=True, exist_ok=True)
        team = build_team(
            config, models=learning_models(self.models, config), memory=self.memory(config.memory.scope),
            tools=list(self._base.executor.tools.values()),
        )  # fmt: skip
        training = build_training(self.models.planner, config, folder)
        check(team, config.learn, training)
        self.learner = OnlineLearner(
            team,
            self.models.planner,  # type: ignore[arg-type]  # Whether it tells its tokens is asked of it.
            config.learn,
            folder,
            training=training,
            at_once=config.run.concurrency * config.learn.samples,
            greedy=config.models.of(Role.EXECUTOR).temperature == 0,
            question_budget=budget(config.budget.question),
            redactor=Redactor(config.memory.redact),
            on_event=self._tell_learner,
        )
        self.adapters = training.store if training is not None else None
        await self.learner.start()

    def _learns(self, scope: str) -> bool:
        """Whether what this scope asks is learnt from: one stream, of one memory."""
        return self.learner is not None and scope == self.config.memory.scope

    def _tell_learner(self, event: Any) -> None:
        for ask in self.live.asks():
            if ask.finished_at is None and ask.question_id == event.question_id:
                ask.tell(event)

    async def _ask_learning(self, task: Task) -> Episode:
        assert self.learner is not None
        group = await self.learner.submit(task)
        if group is None:
            why = self.learner.unanswered.get(task.question.id, "its model could not be asked")
            raise ModelUnavailable(f"the question could not be asked: {why}", hint="mia doctor")
        return group.episode

    # ── in the background ─────────────────────────────────────────────────────────────────────────────────────────

    async def _absorb_forever(self) -> None:
        while True:
            self._wake.clear()
            due = await asyncio.to_thread(self.durable.pending, due_at=time.time(), limit=_ABSORBED_AT_ONCE)
            if due:
                await asyncio.gather(*(self._absorb(one) for one in due))
                self._progress.set()
                self._progress = asyncio.Event()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._wake.wait()

    async def _absorb(self, one: Pending) -> None:
        try:
            if one.kind == "absorb":
                episode = one.episode
                ledger = Ledger(episode.question.id, budget=budget(self.config.budget.question))
                await absorb(episode, self.team(one.scope), ledger)
            else:
                await asyncio.to_thread(self.memory(one.scope).add, **one.content)
        except RecordError:
            # It was looked at when it was accepted; what is wrong with it now will not get better.
            pass
        except MiaError as error:
            seconds = min(_LONGEST_DELAY, _FIRST_DELAY * 2**one.attempts)
            await asyncio.to_thread(self.durable.put_off, one.id, error.got, seconds)
            return
        await asyncio.to_thread(self.durable.absorbed, [one.id])

    async def _work_off_jobs(self) -> None:
        """Jobs one after the other, each with as many questions at a time as a run has."""
        while True:
            self._job_wake.clear()
            waiting = await asyncio.to_thread(self.durable.jobs, unfinished=True, limit=1_000)
            for job in reversed(waiting):
                task = asyncio.create_task(self._answer_job(job), name=job.id)
                self._answering[job.id] = task
                try:
                    await asyncio.wait([task])
                finally:
                    self._answering.pop(job.id, None)
                    task.cancel()
                if not task.cancelled():
                    task.result()
            if not waiting:
                await self._job_wake.wait()

    async def _answer_job(self, job: Job) -> None:
        await asyncio.to_thread(self.durable.begin_job, job.id)
        places = asyncio.Semaphore(self.config.run.concurrency)

        async def one(number: int, task: Task) -> None:
            async with places:
                try:
                    ask = self.live.begin(job.scope, task.question, "job")
                    episode = await self._answer_item(task, job, ask)
                except MiaError as error:
                    await asyncio.to_thread(self.durable.finish_item, job.id, number, None, error.got)
                    return
                why = episode.stop.sentence if episode.answer is None and episode.stop is not None else ""
                # Where the service learns, the learner has absorbed it.
                scope = "" if self._learns(job.scope) else job.scope
                await asyncio.to_thread(self.durable.finish_item, job.id, number, episode, why, accept_for=scope)
                self._wake.set()

        async with asyncio.TaskGroup() as group:
            for number, task in await asyncio.to_thread(self.durable.open_items, job.id):
                group.create_task(one(number, task))
        await asyncio.to_thread(self.durable.finish_job, job.id)

    async def _answer_item(self, task: Task, job: Job, ask: Ask) -> Episode:
        try:
            if self._learns(job.scope):
                episode = await self._ask_learning(task)
            else:
                episode = await self._answer(task, job.scope, ask.id, job.id, False, ask.tell)
        except BaseException as error:
            ask.finish(None, error.got if isinstance(error, MiaError) else type(error).__name__)
            raise
        ask.finish(episode)
        return episode


def given_verdict(correct: bool, reason: str = "") -> Verdict:
    """What a user says of an answer."""
    return Verdict(outcome=Outcome.CORRECT if correct else Outcome.INCORRECT, judge="user", reason=reason)


def require_learner(service: Service) -> OnlineLearner:
    """Raises LearnError where the service does not learn."""
    if service.learner is None:
        raise LearnError("this server does not learn.", hint="mia serve --learn")
    return service.learner
