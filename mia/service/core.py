"""The service without its doors: answers questions for many scopes, and loses nothing.

    ask:       answer (episode.py) → kept on the disk → replied → absorbed in the background
    remember:  kept on the disk → replied → stored in the background; or stored before the reply
    job:       kept on the disk → answered question by question (jobs.py), whatever is restarted or down meanwhile

What fails in the background is tried again, later and later, and can be seen until then (`durable.pending`).

Every door (API, compatibility, chat, MCP, dashboard) calls this and nothing below it. All methods belong to one event
loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from mia.config import Config
from mia.embeddings import memory_embedder
from mia.episode import absorb, answer
from mia.erasure import LEARNING as LEARNING
from mia.erasure import Erasure, Reached, Selection, Unreached, edit_of_groups, erase_everywhere
from mia.errors import ConfigError, LearnError, MiaError, ModelUnavailable, RecordError, StoreError
from mia.events import OnEvent, ignore
from mia.memory.bank import Banks
from mia.memory.manager import Judgement, MemoryManager
from mia.models import Models, build_models
from mia.models.ledger import Ledger
from mia.redaction import Redactor
from mia.service.durable import Durable, Job, Pending
from mia.service.erasing import CANARY, DURABLE, note_scope, places, without_erased
from mia.service.jobs import Jobs, Turn
from mia.service.live import Ask, Live
from mia.service.patience import Patience
from mia.service.retrying import retry_when_due
from mia.store import open_store
from mia.team import StoreArchive, Team, budget, build_team, refuse_babble
from mia.types import Episode, Memory, MemoryKind, Outcome, Role, StopReason, Task, Usage, Verdict

if TYPE_CHECKING:
    from mia.learn.adapters import AdapterStore
    from mia.learn.online import OnlineLearner
    from mia.learn.spool import Group
    from mia.search.base import SearchEngine
    from mia.store.base import MemoryStore, Waiting
    from mia.tools.base import Tool

log = logging.getLogger("mia.service")

_ABSORBED_AT_ONCE = 16
_ALL = 1_000_000
_BREATH = 1.0
"""Seconds after which the background looks again, whatever it was told."""
_HELD_OF_THE_STREAM = 2_000
"""Scores that a learner holds in memory: as many as are drawn."""
_FIRST_DELAY, _LONGEST_DELAY = 2.0, 300.0


@dataclass(frozen=True)
class Settled:
    """What came of feedback."""

    episode: Episode
    credited: int
    """Memories whose counts changed."""
    memories: tuple[Memory, ...]
    """What is in sight because of the episode now."""


@dataclass(frozen=True)
class Queue:
    """What waits, the longest waiting first; nothing stands in it twice."""

    accepted: tuple[Pending, ...]
    accepted_total: int
    waiting: tuple[Waiting, ...]
    """For a model or the embedder; all of it."""


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
        self._redactor = Redactor(config.memory.redact)
        self._releasing: set[asyncio.Future[None]] = set()
        """Memories of scopes that were put aside, while they keep their caches."""
        self.durable = Durable(config.home / DURABLE, self._redactor)
        try:
            self.store: MemoryStore = open_store(config.store_path, redact=config.memory.redact)
            try:
                self.models = models if models is not None else build_models(config.models)
                if config.serve.traces and not config.learn.enabled:
                    # What learns asks its own model, and knows it by its kind.
                    from mia.service.tracing import traced_models

                    self.models = traced_models(self.models, config)
                self.embedder = memory_embedder(config, self.store.space())
                self._managers: OrderedDict[str, MemoryManager] = OrderedDict()
                self._banks = Banks(self.store)
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
        self._progress = asyncio.Event()
        """Set, and renewed, whenever something was absorbed or put off."""
        self._jobs = Jobs(self.durable, self._answer_turn, at_once=config.run.concurrency)
        self._asking: set[asyncio.Task[Any]] = set()
        """Who waits for an answer."""
        self._heard = 0
        """Questions of jobs for which a model could be asked."""
        self._settlings: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._canary: dict[str, Task] = {}
        """Question id → what the versions of a service that learns are examined with."""
        self._holding_out = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False

    async def start(self) -> None:
        """Take up what a death left, and begin to work in the background. Raises LearnError, ConfigError; then it is
        closed."""
        try:
            if self.config.learn.enabled:
                await self._start_learning()
        except BaseException:
            await self.close()
            raise
        self._tasks = [
            asyncio.create_task(self._absorb_forever(), name="absorb"),
            asyncio.create_task(self._jobs.work_off(), name="jobs"),
        ]
        if self.config.memory.enabled and not self.config.memory.frozen:
            self._tasks.append(asyncio.create_task(retry_when_due(self), name="queue"))
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Cancel what is being asked, finish what is being written, leave the rest for the next start, and let go of
        everything; calling it twice is harmless."""
        if self._closing:
            return
        self._closing = True
        under_way = [*self._asking, *self._tasks]
        for task in under_way:
            task.cancel()
        # The last that is pushed is closed first; each of them, whatever another one raises.
        async with contextlib.AsyncExitStack() as parts:
            parts.push_async_callback(asyncio.to_thread, self.durable.close)
            parts.push_async_callback(asyncio.to_thread, self.store.close)
            for manager in self._managers.values():
                parts.push_async_callback(asyncio.to_thread, manager.release)
            if self._owns_models:
                parts.push_async_callback(self.models.close)
            parts.push_async_callback(self._base.close)
            if self.learner is not None:
                parts.push_async_callback(self.learner.close)
            await asyncio.gather(*under_way, *self._releasing, return_exceptions=True)

    @property
    def is_working(self) -> bool:
        """Whether what is accepted is worked off in the background."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("'%s' works no more, until a restart: %s", task.get_name(), self._told(error))

    # ── who answers ───────────────────────────────────────────────────────────────────────────────────────────────

    def memory(self, scope: str) -> MemoryManager:
        """The memory of a scope; the ones used last are held ready."""
        manager = self._managers.pop(scope, None)
        if manager is None:
            settings = self.config.memory.model_copy(update={"scope": scope})
            style = self.config.models.of(Role.MANAGER).prompts
            manager = MemoryManager(
                self.store, self.embedder, settings, self.models.manager, style=style, banks=self._banks
            )
        self._managers[scope] = manager
        while len(self._managers) > self.config.serve.max_scopes:
            _, oldest = self._managers.popitem(last=False)
            # Whoever still recalls with it may go on; its caches are written meanwhile.
            releasing = asyncio.get_running_loop().run_in_executor(None, oldest.release)
            self._releasing.add(releasing)
            releasing.add_done_callback(self._released)
        return manager

    def _released(self, releasing: asyncio.Future[None]) -> None:
        self._releasing.discard(releasing)
        if not releasing.cancelled() and (error := releasing.exception()) is not None:
            # Only the cache is missing then.
            log.warning("the caches of a scope could not be kept: %s", self._told(error))

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
        if on_event is not ignore:
            ask.on_event = on_event
        asking = asyncio.current_task()
        assert asking is not None
        self._asking.add(asking)
        with self._noted(ask):
            try:
                if self._closing:
                    raise StoreError("this server is ending.", hint="ask again when it is back")
                if self._learns(scope):
                    ask.episode = await self._ask_learning(task, ask)
                else:
                    ask.episode = await self._answer(task, scope, ask.id, run, stream, ask.tell)
                    await self.accept(ask.episode, scope)
            finally:
                self._asking.discard(asking)
        return ask.episode

    @contextlib.contextmanager
    def _noted(self, ask: Ask) -> Iterator[None]:
        """Whatever becomes of it, those who listen are told the end."""
        try:
            yield
        except asyncio.CancelledError:
            ask.finish(None, "cancelled")
            raise
        except BaseException as error:
            ask.finish(None, error.got if isinstance(error, MiaError) else type(error).__name__)
            raise
        ask.finish(ask.episode)

    async def _answer(self, task: Task, scope: str, id: str, run: str, stream: bool, on_event: OnEvent) -> Episode:
        ledger = Ledger(task.question.id, budget=budget(self.config.budget.question), on_event=on_event, stream=stream)
        return await answer(task, self.team(scope), ledger, id=id, run=run)

    async def accept(self, episode: Episode, scope: str) -> None:
        """Keep an answered episode; it is absorbed in the background. Raises StoreError."""
        await asyncio.to_thread(self.durable.accept, episode, scope)
        self._wake.set()

    async def absorbed(self, id: str, timeout: float = 30.0) -> bool:
        """Whether what was accepted (an episode, a receipt) is in the memory; waits for it so long."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    # Taken before the look, so that what happens after it is not missed.
                    progress = self._progress
                    if await asyncio.to_thread(self.durable.pending_one, id) is None:
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
        again under it; where it still waits, it is learnt under this one alone. Of a question that versions are
        examined with nothing is learnt. Raises RecordError where there is no such episode, StoreError, ConfigError
        (frozen)."""
        from mia.learn.online import reported_id

        self._refuse_frozen()
        async with self._settling(id):
            found = await self.episode(id)
            if found is None:
                raise RecordError(f"no episode '{id[:100]}'.", hint="GET /v1/episodes lists them")
            episode, scope = found
            judged = episode.evolve(verdict=verdict)
            # From here on nothing absorbs it under the earlier verdict, whatever happens below.
            waited = await asyncio.to_thread(self.durable.amend, judged)
            credited, memories = 0, tuple[Memory, ...]()
            if self.config.memory.enabled and not self._is_held_out(judged):
                manager = self.memory(scope)
                credited = await manager.credit(reported_id(id), _shown(judged), verdict)
                ledger = Ledger(episode.question.id, budget=budget(self.config.budget.question))
                memories = await manager.remember([judged], ledger)
            # Also where the verdict is the same, and nothing was to be learnt anew.
            await asyncio.to_thread(self.store.save_episode, judged, scope=scope)
            self.live.judge(judged)
            if waited:
                await asyncio.to_thread(self.durable.absorbed, [id])
        self._tell_progress()
        return Settled(judged, credited, memories)

    async def erase(self, id: str) -> Erasure:
        """Remove an episode for good, with what was learnt from it: from the memory, the logs of runs, what waits, the
        jobs, what the reference's clients keep, what is still to be learnt, and what is shown as under way. Raises
        StoreError, ConfigError (frozen)."""
        self._refuse_frozen()
        async with self._settling(id):
            found = await self.episode(id)
            if found is not None:
                await self._let_go(found[0].question.id)
            self.live.forget(id)
            return await self._erase(Selection(episode_ids={id}))

    async def erase_memory(self, id: str) -> Erasure:
        """Remove a memory for good, in whatever state, with what anybody was shown of it. Raises StoreError,
        ConfigError (frozen)."""
        self._refuse_frozen()
        async with contextlib.AsyncExitStack() as settled:
            # What waits is not absorbed with the memory in it meanwhile.
            for one in await asyncio.to_thread(self.durable.pending, limit=_ALL):
                if one.kind == "absorb" and id in _shown(one.episode):
                    await settled.enter_async_context(self._settling(one.id))
            return await self._erase(Selection(memory_ids={id}))

    async def _erase(self, what: Selection) -> Erasure:
        erasure = await asyncio.to_thread(
            erase_everywhere,
            self.store,
            self.config.home,
            memory_ids=what.memory_ids,
            episode_ids=what.episode_ids,
            redactor=self._redactor,
            places=places(self.config.home, durable=self.durable, learns=self.learner is not None),
        )
        # Of what was to be asked, some may not be any more.
        self._jobs.changed()
        if self.learner is None:
            return erasure
        gone = Selection(
            memory_ids={*what.memory_ids, *erasure.erased.memories},
            episode_ids={*what.episode_ids, *erasure.erased.episodes},
        )
        reached = Reached()
        try:
            wiped = await self.learner.erase(edit_of_groups(gone, reached))
        except LearnError as error:
            left = [Unreached(self.config.home / LEARNING, error.got.rstrip("."))]
        else:
            reason = "it is being learnt from at this moment, or cannot be read"
            left = [Unreached(path, reason) for path in wiped.left]
            erasure = replace(erasure, cleaned=(*erasure.cleaned, *wiped.changed))
        return replace(
            erasure,
            unreached=(*erasure.unreached, *left),
            unknown=tuple(one for one in erasure.unknown if one not in reached.ids),
        )

    def _refuse_frozen(self) -> None:
        if self.config.memory.frozen:
            raise ConfigError(
                "the memory is frozen: it recalls, and is not changed.", hint="set memory.frozen = false, and restart"
            )

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
        self._jobs.added()
        return job

    async def cancel(self, id: str) -> Job:
        """What of a job is under way is broken off, and the rest is not begun. Raises RecordError, StoreError."""
        await asyncio.to_thread(self.durable.job, id)
        await asyncio.to_thread(self.durable.cancel_job, id)
        self._jobs.cancelled(id)
        return await asyncio.to_thread(self.durable.job, id)

    async def retry(self, id: str) -> Job:
        """Ask again what of a job could not be answered, or was cancelled. Raises RecordError, StoreError."""
        await asyncio.to_thread(self.durable.job, id)
        await asyncio.to_thread(self.durable.retry_job, id)
        self._jobs.changed(id)
        return await asyncio.to_thread(self.durable.job, id)

    async def forget_job(self, id: str) -> None:
        """Cancel a job, and remove it; the episodes that came of it stay. Raises RecordError, StoreError."""
        await self.cancel(id)
        await asyncio.to_thread(self.durable.delete_job, id)

    async def queue(self, scope: str | None, limit: int) -> Queue:
        """What waits, of a scope and all below it (None: of all); `limit`: of what was accepted. Raises StoreError."""
        accepted = await asyncio.to_thread(self.durable.pending, scope=scope, limit=limit)
        ids = await asyncio.to_thread(self.durable.pending_ids, scope)
        # An episode is in the memory's queue while it is brought in, and in both where a death came before the note of
        # it here. What is brought in between these lines is shown as it was.
        ids |= {one.id for one in accepted}
        waiting = await asyncio.to_thread(self.store.queue, scope)
        return Queue(accepted, len(ids), tuple(one for one in waiting if one.subject not in ids))

    async def hasten(self, scope: str | None) -> int:
        """Try again at once what was put off, of a scope and all below it (None: of all); how much that is. Raises
        StoreError."""
        count = await asyncio.to_thread(self.durable.hasten, scope)
        self._wake.set()
        return count

    # ── learning ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _start_learning(self) -> None:
        from mia.learn.online import OnlineLearner, check
        from mia.learn.opening import build_training, learning_models
        from mia.learn.spool import read_lines

        config = self.config
        if not config.memory.enabled or config.memory.frozen:
            raise ConfigError("the service is to learn, and the memory takes nothing in.", hint="memory.enabled = true")
        folder = config.home / LEARNING
        folder.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(note_scope, folder, config.memory.scope)
        team = build_team(
            config, models=learning_models(self.models, config), memory=self.memory(config.memory.scope),
            tools=list(self._base.executor.tools.values()),
        )  # fmt: skip
        # The learner brings into the memory what it learns from; what it holds out is kept all the same.
        team = replace(team, archive=StoreArchive(self.store, config.memory.scope))
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
            redactor=self._redactor,
            without_erased=functools.partial(without_erased, self.store, config.memory.scope),
            keep=_HELD_OF_THE_STREAM,
        )
        self.adapters = training.store if training is not None else None
        kept = [Task.model_validate(page) for page in await asyncio.to_thread(read_lines, folder / CANARY)]
        self._canary = {task.question.id: task for task in kept[: config.learn.canary]}
        await self.learner.start(list(self._canary.values()))

    def _learns(self, scope: str) -> bool:
        """Whether what this scope asks is learnt from: one stream, of one memory."""
        return self.learner is not None and scope == self.config.memory.scope

    def _is_held_out(self, episode: Episode) -> bool:
        """Whether it answers a question that the learner keeps out of the memory."""
        learner = self.learner
        return learner is not None and episode.run == learner.run_id and learner.holds_out(episode.question.id)

    async def _ask_learning(self, task: Task, ask: Ask) -> Episode:
        # Whoever knows its id already waits with a verdict until it is taken in.
        async with self._settling(ask.id):
            group = await self.try_out(task, episode_id=ask.id, on_event=ask.tell)
        if group is None:
            assert self.learner is not None
            why = self.learner.unanswered.get(task.question.id, "its model could not be asked")
            raise ModelUnavailable(f"the question could not be asked: {why}", hint="mia doctor")
        return group.episode

    async def try_out(self, task: Task, *, episode_id: str = "", on_event: OnEvent = ignore) -> Group | None:
        """All tries of a question, which are learnt from; None: its model could not be asked. Raises LearnError where
        the service does not learn, StoreError."""
        learner = require_learner(self)
        # A stream ends where its model is down; a server goes on, and asks again.
        learner.stopped = ""
        await self._hold_out(task)
        group = await learner.submit(task, episode_id=episode_id, on_event=on_event)
        if group is not None:
            await self._drop_erased(group.episodes, self.config.memory.scope)
        return group

    async def _hold_out(self, task: Task) -> None:
        """Keep the first questions, which the learner holds out, with their references: without them no version could
        be examined after a restart."""
        from mia.learn.spool import append_line

        # In this order the learner meets them.
        async with self._holding_out:
            id = task.question.id
            if id not in self._canary and self.learner is not None and self.learner.holds_out(id):
                self._canary[id] = task
                path = self.config.home / LEARNING / CANARY
                await asyncio.to_thread(append_line, path, task.model_dump(mode="json"))

    async def _let_go(self, question_id: str) -> None:
        """Keep a question no more that was held out. Raises StoreError."""
        from mia.learn.folder import write_rows

        async with self._holding_out:
            if self._canary.pop(question_id, None) is not None:
                left = [task.model_dump(mode="json") for task in self._canary.values()]
                try:
                    await asyncio.to_thread(write_rows, self.config.home / LEARNING / CANARY, left)
                except OSError as error:
                    raise StoreError(f"'{CANARY}' cannot be written: {error.strerror}; nothing was erased.") from error

    # ── in the background ─────────────────────────────────────────────────────────────────────────────────────────

    async def _absorb_forever(self) -> None:
        while True:
            self._wake.clear()
            try:
                due = await asyncio.to_thread(self.durable.pending, due_at=time.time(), limit=_ABSORBED_AT_ONCE)
                await asyncio.gather(*(self._absorb(one.id) for one in due))
            except StoreError as error:
                log.error("what waits could not be worked off: %s", error.got)
                await asyncio.sleep(_BREATH)
                continue
            if not due:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_BREATH):
                        await self._wake.wait()

    async def _absorb(self, id: str) -> None:
        """Bring one thing that waits into the memory, or put it off. Raises StoreError where what waits cannot be
        changed."""
        async with self._settling(id):
            # As it is now: a verdict may have come, or it may have been erased.
            one = await asyncio.to_thread(self.durable.pending_one, id)
            if one is None:
                return
            trouble = await self._bring_in(one)
            if trouble:
                seconds = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(one.attempts, 32))
                await asyncio.to_thread(self.durable.put_off, id, trouble, seconds)
            else:
                await asyncio.to_thread(self.durable.absorbed, [id])
        self._tell_progress()

    async def _bring_in(self, one: Pending) -> str:
        """What went wrong; empty: it is in the memory."""
        try:
            if one.kind == "absorb":
                episode = one.episode
                if not await self._drop_erased([episode], one.scope):
                    ledger = Ledger(episode.question.id, budget=budget(self.config.budget.question))
                    await absorb(episode, self.team(one.scope), ledger)
                    await self._drop_erased([episode], one.scope)
            else:
                await asyncio.to_thread(self._add_once, self.memory(one.scope), one)
        except MiaError as error:
            return error.got
        except Exception as error:  # noqa: BLE001 - what one of them meets must not keep the others waiting
            log.error("what waits as %s: %s", one.id, self._told(error))
            return f"a fault of the server ({type(error).__name__})"
        return ""

    async def _drop_erased(self, episodes: Sequence[Episode], scope: str) -> bool:
        """Whether all of its scope was erased since the answer to a question began, in however many tries, by whatever
        process; then nothing of it is left. Raises StoreError."""
        erased_at = await asyncio.to_thread(self.store.erased_at, scope)
        if min(episode.started_at for episode in episodes) > erased_at:
            return False
        await self._erase(Selection(episode_ids={episode.id for episode in episodes}))
        return True

    def _add_once(self, manager: MemoryManager, one: Pending) -> None:
        """Unless it is there: a death after the memory's commit leaves it waiting."""
        question, workflow, caption, plan = manager.check(**one.content)
        for held, _ in self.store.alike(one.scope, MemoryKind.WORKFLOW, question):
            same = (held.question, held.workflow, held.caption, held.plan) == (question, workflow, caption, plan)
            if same and held.judgement == one.content["judgement"]:
                return
        manager.add(**one.content)

    def _tell_progress(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()

    @contextlib.asynccontextmanager
    async def _settling(self, id: str) -> AsyncIterator[None]:
        """Nobody else absorbs, judges or erases this meanwhile."""
        async with self._settlings.setdefault(id, asyncio.Lock()):
            yield

    def _told(self, error: BaseException) -> str:
        """A fault for the log, without what must not be in it."""
        return self._redactor("".join(traceback.format_exception(error)))

    async def _answer_turn(self, turn: Turn) -> None:
        """One question of a job, until what came of it is on the disk."""
        patience = Patience(lambda: self._heard)
        while True:
            came = await self._answer_due(turn)
            if not came.unreachable:
                self._heard += 1
                break
            if (pause := patience.pause(in_part=came.usage.completion_tokens > 0)) is None:
                break
            log.warning("question %d of %s waits for a model: %s", turn.due.number, turn.job, came.why)
            with contextlib.suppress(StoreError):
                # Why it waits is only told; what matters is on the disk already.
                await asyncio.to_thread(self.durable.put_off_item, turn.job, turn.due.number, came.why, came.usage)
            await asyncio.sleep(pause)
        while True:
            try:
                await asyncio.to_thread(
                    self.durable.finish_item,
                    turn.job,
                    turn.due.number,
                    came.episode,
                    came.why,
                    accept_for=came.accept_for,
                )
                break
            except StoreError as error:
                # It is not asked again, and paid for, for want of room on the disk.
                log.error("an answer of %s waits to be kept: %s", turn.job, error.got)
                await asyncio.sleep(_BREATH)
        self._wake.set()

    async def _answer_due(self, turn: Turn) -> _Came:
        due, accept_for = turn.due, ""
        try:
            kept = await self.episode(due.episode_id)
            if kept is not None:
                # A death came between the answer and the note of it.
                episode = kept[0]
            else:
                ask = self.live.begin(turn.scope, due.task.question, "job", id=due.episode_id)
                with self._noted(ask):
                    if self._learns(turn.scope):
                        # The learner absorbs it.
                        ask.episode = await self._ask_learning(due.task, ask)
                    else:
                        ask.episode = await self._answer(due.task, turn.scope, ask.id, turn.job, False, ask.tell)
                        accept_for = turn.scope
                episode = ask.episode
        except ModelUnavailable as error:
            return _Came(None, error.got, unreachable=True)
        except MiaError as error:
            return _Came(None, error.got)
        except Exception as error:  # noqa: BLE001 - what one question meets must not keep the others from being asked
            log.error("question %s of %s: %s", due.task.question.id, turn.job, self._told(error))
            return _Came(None, f"a fault of the server ({type(error).__name__})")
        why, unreachable = "", False
        if episode.withheld:
            why = "the answer is withheld: its support is weak"
        elif episode.answer is None and episode.stop is not None:
            why, unreachable = episode.stop.sentence, episode.stop.reason is StopReason.UNREACHABLE
        return _Came(episode, why, accept_for, unreachable)


@dataclass(frozen=True)
class _Came:
    """What came of a question of a job."""

    episode: Episode | None
    why: str
    """There is no answer."""
    accept_for: str = ""
    """The scope for which the episode is still to be absorbed."""
    unreachable: bool = False
    """Whether the model could not be asked, so that a later try may be answered."""

    @property
    def usage(self) -> Usage:
        return self.episode.total_usage if self.episode is not None else Usage()


def _shown(episode: Episode) -> frozenset[str]:
    return frozenset(one.memory_id for one in episode.recall.shown) if episode.recall is not None else frozenset()


def given_verdict(correct: bool, reason: str = "") -> Verdict:
    """What a user says of an answer."""
    return Verdict(outcome=Outcome.CORRECT if correct else Outcome.INCORRECT, judge="user", reason=reason)


def require_learner(service: Service) -> OnlineLearner:
    """Raises LearnError where the service does not learn."""
    if service.learner is None:
        raise LearnError("this server does not learn.", hint="mia serve --learn")
    return service.learner
