"""The ladder: what planning, memory and replanning bring, each step measured on worlds that no training has seen.

A rung is the line with some of its stages; a variant is one more entry in a tuple. Every rung answers the same stream
of questions in the same worlds, with the same model and the reference judge, so that steps can be taken in pairs. With
memory, the questions of a world are asked strictly in order, each rung with a store of its own that begins empty;
without, their order means nothing.

Many streams are answered side by side, since the model answers a batch almost as fast as one; so seconds say what the
whole takes, and little about one rung. At temperature 0 nothing else depends on what runs beside what, or in which
process (`mia.models.local`).
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import signal
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from mia.config import Config, LineSettings, ModelSettings, ModelsSettings
from mia.episode import absorb, answer
from mia.errors import (
    ConfigError,
    MiaError,
    ModelError,
    ModelRefused,
    ModelReplyError,
    ModelUnavailable,
    RealCallForbidden,
)
from mia.evals.ladder_results import Answered, Result, ResultLog
from mia.evals.run import first_error
from mia.memory.compress import RULES
from mia.models import Models, build_models
from mia.models.base import Around, ChatModel, ChatReply, ChatRequest
from mia.models.ledger import Budget, Ledger
from mia.team import Team, build_team
from mia.tools.base import ToolContext
from mia.tools.search import SearchTool
from mia.types import Episode, Observation, Question, Role, Step, StopReason, Task, Usage
from mia.world import preset
from mia.world.engine import WorldEngine
from mia.world.facts import World
from mia.world.language import SOURCES, Chain, Query, RouteStep, read_query, read_question
from mia.world.questions import tasks
from mia.world.seeds import TEST, check_unseen

MakeModels = Callable[[ModelsSettings], Models]


# ── the rungs ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Rung:
    """How the line is set."""

    name: str
    title: str
    line: Mapping[str, Any] = field(default_factory=dict)
    """Of `line`, where it is not the default."""
    memory: Mapping[str, Any] = field(default_factory=dict)
    """Of `memory`, where it is not `preset.MEMORY`."""
    search_per_hop: bool = False
    """The Executor has a call for each hop, and one to answer."""
    calls_of: str = ""
    """The Executor has as many calls as it made in this rung on the same question, and no source is asked twice for the
    same thing."""
    over: tuple[str, ...] = ()
    """The rungs that it is compared with."""
    learnt: bool = False
    """The Planner answers with the adapter of the settings."""
    online: bool = False
    """The Planner goes on learning from the stream that it answers."""

    @property
    def remembers(self) -> bool:
        return bool(self.memory.get("enabled", True))

    def config(self, model: ModelSettings, home: Path) -> Config:
        return preset.page(
            home,
            models=ModelsSettings(default=model),
            line=LineSettings(**self.line),
            memory=dict(self.memory),
        )

    def page(self, settings: LadderSettings) -> dict[str, Any]:
        """The settings on which its answers depend, as plain JSON data."""
        page = self.config(settings.model, Path()).resolved()
        del page["home"], page["run"], page["search"]["world"], page["learn"]
        for name in ("path", "batch", "threads", "device", "adapter"):
            del page["models"]["default"][name]
        if self.learnt:
            page["planner"] = settings.planner_weights
        if self.online:
            page["learn"] = dict(settings.learn)
        return page


_NO_MEMORY = {"enabled": False}
_FULL = "plan-memory-replan"

RUNGS = (
    Rung(
        "no-plan",
        "no plan",
        line={"plan": False, "replan": "never"},
        memory=_NO_MEMORY,
        search_per_hop=True,
    ),
    Rung(
        "no-plan-fair",
        "no plan, fair control",
        line={"plan": False, "replan": "never"},
        memory=_NO_MEMORY,
        calls_of=_FULL,
        over=("no-plan",),
    ),
    Rung("plan", "plan", line={"replan": "never"}, memory=_NO_MEMORY, over=("no-plan",)),
    Rung("plan-memory", "plan + memory", line={"replan": "never"}, over=("plan",)),
    Rung(_FULL, "plan + memory + replan", over=("plan-memory", "plan-replan", "no-plan-fair")),
    Rung("plan-replan", "plan + replan", memory=_NO_MEMORY, over=("plan",)),
)
VARIANTS = (
    Rung("three-replans", "up to 3 replans", line={"max_reflections": 3}, over=(_FULL,)),
    Rung("no-coverage", "recall without coverage", memory={"coverage_weight": 0.0}, over=(_FULL,)),
    Rung("verdict-replan", "replan by verdict", line={"replan": "verdict"}, over=(_FULL,)),
)
"""Of plan + memory + replan; only where they are asked for."""
LEARNT = (
    Rung("planner-rl", "+ Planner RL", learnt=True, over=(_FULL,)),
    Rung("ttl", "+ test-time learning", learnt=True, online=True, over=("planner-rl",)),
)
"""Those that need a Planner which has learnt (`mia learn planner`)."""


def choose(names: Collection[str]) -> tuple[Rung, ...]:
    """The rungs of these names, in the order of the ladder, with those whose calls they are given. Raises
    ConfigError."""
    known = {rung.name: rung for rung in (*RUNGS, *LEARNT, *VARIANTS)}
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        what = f"there is no rung '{wrong[0]}'." if wrong else "no rung is named."
        raise ConfigError(what, wanted=f"some of {', '.join(known)}")
    wanted = {*names, *(known[name].calls_of for name in names)}
    return tuple(rung for name, rung in known.items() if name in wanted)


class Online(Protocol):
    """A stream that is learnt from while it is answered."""

    async def answer(self, task: Task) -> Sequence[Episode]:
        """All tries of a question, the reported one first; its score was fixed before anything was learnt from it.
        Raises MiaError."""
        ...

    async def close(self) -> None: ...


OpenOnline = Callable[[Team, ChatModel, Path], Awaitable[Online]]
"""Team, the Planner's model, a folder → a stream. Handed in by the door, for measuring and learning do not know each
other."""


@dataclass(frozen=True)
class LadderSettings:
    """What is measured."""

    worlds: int = 24
    first_seed: int = TEST.start
    questions: int = 60
    """In each world."""
    shifted: bool = False
    rungs: tuple[Rung, ...] = RUNGS
    model: ModelSettings = field(default_factory=preset.model_settings)
    weights: str = ""
    """What tells this model from another of the same settings (`digest`)."""
    planner: str = ""
    """The folder of the adapter with which the learnt rungs plan."""
    planner_weights: str = ""
    """Its digest."""
    learn: Mapping[str, Any] = field(default_factory=dict)
    """The settings of test-time learning, for the record."""
    open_online: OpenOnline | None = None
    """Needed by rungs that learn online."""

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.worlds)


def digest(folder: Path) -> str:
    """The first 12 hex digits of the SHA-256 of the files in a model's folder. Raises ConfigError."""
    total = hashlib.sha256()
    try:
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            with path.open("rb") as file:
                total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise ConfigError(
            f"cannot read the model in '{folder}': {error.strerror}.",
            wanted="a folder of transformers, as `mia world train` leaves it in model/",
            hint="--model FOLDER; for what `mia learn planner` made, --planner FOLDER",
        ) from error
    return total.hexdigest()[:12]


# ── a rung in a world ─────────────────────────────────────────────────────────────────────────────────────────────


class FreshSources:
    """The search tool, which never asks a source twice for the same thing of the same entity: a query that would goes
    to the next source that was not asked. The query above its results names the source that was. Once all were asked,
    nothing is found."""

    def __init__(self, search: SearchTool) -> None:
        self.schema = search.schema
        self._search = search

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        """Raises ToolError or BadArguments."""
        queries = arguments.get("query_list")
        if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
            return await self._search.call(arguments, context)
        asked = [_key(query) for query in map(read_query, _searched(context.steps)) if query is not None]
        fresh: list[str] = []
        exhausted: list[str] = []
        for text in queries:
            other = _unasked(text, asked)
            (exhausted if other is None else fresh).append(text if other is None else other)
            if other is not None and (query := read_query(other)) is not None:
                asked.append(_key(query))
        found = Observation(text="")
        if fresh or not queries:
            found = await self._search.call({**arguments, "query_list": fresh}, context)
        nothing = [f"Query: {text}\n\nNothing was found for this query." for text in exhausted]
        return found.evolve(text="\n\n".join([*filter(None, [found.text]), *nothing]))

    async def close(self) -> None:
        await self._search.close()


def _searched(steps: Sequence[Step]) -> list[str]:
    """The queries that were run, as their results name them."""
    texts = [step.observation.text for step in steps if step.observation is not None]
    return [line.removeprefix("Query: ") for text in texts for line in text.splitlines() if line.startswith("Query: ")]


def _key(query: Query) -> tuple[str, str, str]:
    return query.step.wanted, query.entity, query.step.source


def _unasked(text: str, asked: Collection[tuple[str, str, str]]) -> str | None:
    """The query, at the first source from its own on that was not asked for the same; None if all were."""
    query = read_query(text)
    if query is None:
        return text
    step = query.step
    start = SOURCES.index(step.source)
    for source in (*SOURCES[start:], *SOURCES[:start]):
        other = Query(RouteStep(step.relation, source, step.via), query.entity)
        if _key(other) not in asked:
            return text if source == step.source else str(other)
    return None


class _Hearing:
    """Whether every call was heard. Where one could not be made, the line goes on with what it has: right for a user,
    and no measurement."""

    def __init__(self) -> None:
        self._error: ModelError | None = None

    def of(self, models: Models) -> Models:
        """The same models, listened to."""
        return Models(
            planner=_Heard(models.planner, self),
            executor=_Heard(models.executor, self),
            manager=_Heard(models.manager, self),
            judge=_Heard(models.judge, self),
            reader=models.reader and _Heard(models.reader, self),
            replays=models.replays,
        )

    def note(self, error: ModelError) -> None:
        self._error = self._error or error

    def check(self) -> None:
        """Raises ModelUnavailable if a model could not be asked."""
        if self._error is not None:
            raise ModelUnavailable(
                f"the model could not be asked: {self._error.got}",
                wanted=self._error.wanted,
                hint="with --out, the same command goes on from what was finished",
            ) from self._error


class _Heard(Around[ChatModel]):
    """A model as it is, but for telling when it could not be asked."""

    def __init__(self, model: ChatModel, hearing: _Hearing) -> None:
        super().__init__(model)
        self._hearing = hearing

    async def complete(self, request: ChatRequest) -> ChatReply:
        try:
            return await self.model.complete(request)
        except (ModelUnavailable, ModelRefused, RealCallForbidden) as error:
            self._hearing.note(error)
            raise


class _Stream:
    """The questions of one world, for one rung after the other or side by side."""

    def __init__(
        self,
        settings: LadderSettings,
        seed: int,
        models: Models,
        learnt: Models,
        hearing: _Hearing,
        room: asyncio.Semaphore,
    ) -> None:
        """`learnt`: with the Planner that has learnt. `room`: for questions out of order, over all worlds."""
        self._settings = settings
        self._models = models
        self._learnt = learnt
        self._hearing = hearing
        self._room = room
        self._world = World.make(seed, shifted=settings.shifted)
        self._engine = WorldEngine(self._world)
        self._tasks = tasks(self._world, settings.questions)

    async def measure(self, rung: Rung, before: Result | None, tell: Callable[[], None]) -> Result:
        """`before`: of the rung whose calls this one is given. `tell`: called after each question."""
        begun = time.monotonic()
        with TemporaryDirectory(prefix="mia-ladder-") as home:
            search = SearchTool(self._engine, preset.PASSAGES)
            models = self._learnt if rung.learnt else self._models
            team = build_team(
                rung.config(self._settings.model, Path(home)),
                models=models,
                tools=[FreshSources(search) if rung.calls_of else search],
            )
            try:
                if rung.online:
                    answered = await self._answer_online(team, Path(home), tell)
                else:
                    answered = await self._answer_all(rung, team, before, tell)
            finally:
                await team.close()
        return Result(
            rung=rung.name,
            seed=self._world.seed,
            seconds=time.monotonic() - begun,
            config=rung.page(self._settings),
            questions=answered,
        )

    async def _answer_all(
        self, rung: Rung, team: Team, before: Result | None, tell: Callable[[], None]
    ) -> tuple[Answered, ...]:
        async def answer_one(number: int) -> Answered:
            answered = await self._answer(self._tasks[number], rung, team, before.questions[number] if before else None)
            tell()
            return answered

        async def answer_in_room(number: int) -> Answered:
            async with self._room:
                return await answer_one(number)

        numbers = range(len(self._tasks))
        if rung.remembers:
            return tuple([await answer_one(number) for number in numbers])
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(answer_in_room(number)) for number in numbers]
        return tuple(task.result() for task in asked)

    async def _answer_online(self, team: Team, home: Path, tell: Callable[[], None]) -> tuple[Answered, ...]:
        assert self._settings.open_online is not None, "checked before anything was begun"
        planner = self._learnt.planner
        assert isinstance(planner, _Heard)
        online = await self._settings.open_online(team, planner.model, home / "online")
        found = []
        try:
            for task in self._tasks:
                begun = time.monotonic()
                tries = await online.answer(task)
                self._hearing.check()
                calls = sum(one.usage.get(Role.EXECUTOR, Usage()).calls for one in tries)
                spent = sum((one.total_usage for one in tries), Usage())
                found.append(self._answered(tries[0], spent, calls, 0, time.monotonic() - begun))
                tell()
        finally:
            await online.close()
        return tuple(found)

    async def _answer(self, task: Task, rung: Rung, team: Team, before: Answered | None) -> Answered:
        begun = time.monotonic()
        chain = _chain(task.question)
        calls = len(chain.relations) + 1 if rung.search_per_hop else max(1, before.executor_calls) if before else None
        # Where calls are limited, nobody but the Executor makes any.
        ledger = Ledger(task.question.id, budget=Budget(calls=calls))
        episode = await answer(task, team, ledger)
        memories = await absorb(episode, team, ledger) if team.memory is not None else ()
        self._hearing.check()
        by_rules = sum(memory.provenance.compressed_by == RULES for memory in memories)
        executor_calls = ledger.usage.get(Role.EXECUTOR, Usage()).calls
        return self._answered(episode, ledger.total, executor_calls, by_rules, time.monotonic() - begun)

    def _answered(self, episode: Episode, spent: Usage, executor_calls: int, by_rules: int, seconds: float) -> Answered:
        """`by_rules`: memories that rules had to write."""
        chain = _chain(episode.question)
        return Answered(
            correct=episode.verdict is not None and episode.verdict.correct,
            hops=len(chain.relations),
            via=any(self._world.keeping[relation].via for relation in chain.relations),
            executor_calls=executor_calls,
            searches=sum(step.tool_call is not None for step in episode.steps),
            prompt_tokens=spent.prompt_tokens,
            completion_tokens=spent.completion_tokens,
            replans=len(episode.attempts) - 1,
            unreadable=_unreadable(episode) + by_rules,
            failures=sum(failure.error != _NO_PLAN for failure in episode.failures),
            stop=episode.stop.reason.value if episode.stop else "",
            seconds=seconds,
        )


def _chain(question: Question) -> Chain:
    chain = read_question(question.text)
    assert chain is not None, "the world asks questions of its own language"
    return chain


_NO_PLAN = ModelReplyError.__name__


def _unreadable(episode: Episode) -> int:
    """Replies of the Planner and the Executor that were not what was asked for."""
    turns = sum(step.observation is not None and step.observation.error == "malformed" for step in episode.steps)
    # Told to answer, it did not.
    answers = sum(
        attempt.answer is None
        and attempt.trace.stop.reason in (StopReason.CALL_LIMIT, StopReason.CONTEXT_LIMIT, StopReason.MODEL_FAILED)
        for attempt in episode.attempts
    )
    reflections = sum(
        attempt.reflection is not None and attempt.reflection.replan is None for attempt in episode.attempts
    )
    return turns + answers + reflections + sum(failure.error == _NO_PLAN for failure in episode.failures)


# ── all of it, over processes ─────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Progress:
    """Where a ladder stands."""

    results: int
    """Rungs in worlds that are finished."""
    of_results: int
    questions: int
    """Answered by this call, and those of them that are left."""
    of_questions: int


@dataclass(frozen=True)
class _Job:
    """What one process measures."""

    settings: LadderSettings
    seeds: Sequence[int]
    done: Mapping[tuple[int, str], Result]
    make_models: MakeModels


Send = Callable[[Result | None], None]
"""Takes each finished result, and None for each question that was answered."""


def run_ladder(
    settings: LadderSettings,
    *,
    folder: Path | None = None,
    processes: int = 1,
    make_models: MakeModels = build_models,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Result, ...]:
    """Measure every rung in every world; what the folder holds already is not measured again.

    `processes`: how many share the worlds, each with a model of its own; more than one are spawned, and `make_models`
    must then be something that can be pickled. Raises ConfigError for worlds that are not test worlds, or a folder of
    other settings; ModelUnavailable if the model, or a process, ends; StoreError.
    """
    check_unseen(settings.first_seed, settings.worlds)
    _check_learnt(settings)
    with ExitStack() as resources:
        log, done = None, dict[tuple[int, str], Result]()
        wanted = [(seed, rung.name) for seed in settings.seeds for rung in settings.rungs]
        if folder is not None:
            log = ResultLog.open(folder, _made_under(settings), _pages(settings))
            resources.callback(log.close)
            done = {key: log.results[key] for key in wanted if key in log.results}
        progress = Progress(len(done), len(wanted), 0, (len(wanted) - len(done)) * settings.questions)

        def take(item: Result | None) -> None:
            if item is None:
                progress.questions += 1
            else:
                if log is not None:
                    log.append(item)
                done[item.seed, item.rung] = item
                progress.results += 1
            on_progress(progress)

        on_progress(progress)
        open_seeds = [seed for seed in settings.seeds if any((seed, rung.name) not in done for rung in settings.rungs)]
        shares = [open_seeds[start::processes] for start in range(min(processes, len(open_seeds)))]
        jobs = [_Job(settings, share, _of(done, share), make_models) for share in shares]
        if len(jobs) > 1:
            _run_spawned(jobs, take)
        elif jobs:
            asyncio.run(_measure(jobs[0], take))
        return tuple(done[key] for key in wanted)


def _check_learnt(settings: LadderSettings) -> None:
    for rung in settings.rungs:
        if rung.learnt and not settings.planner:
            raise ConfigError(
                f"the rung '{rung.name}' needs a Planner that has learnt, and none is named.",
                hint="--planner FOLDER, of an adapter that `mia learn planner` made",
            )
        if rung.online and settings.open_online is None:
            raise ConfigError(f"the rung '{rung.name}' learns online, and there is nothing to learn with.")


def _made_under(settings: LadderSettings) -> dict[str, Any]:
    return {"questions": settings.questions, "shifted": settings.shifted, "weights": settings.weights}


def _pages(settings: LadderSettings) -> dict[str, dict[str, Any]]:
    return {rung.name: rung.page(settings) for rung in settings.rungs}


def _of(done: Mapping[tuple[int, str], Result], seeds: Collection[int]) -> dict[tuple[int, str], Result]:
    return {key: result for key, result in done.items() if key[0] in seeds}


def _run_spawned(jobs: Sequence[_Job], take: Send) -> None:
    """A process for each job. They end with this one's interest in them, however that ends."""
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, BaseProcess] = {}
    try:
        for job in jobs:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_serve, args=(job, theirs), daemon=True)
            process.start()
            theirs.close()
            running[ours] = process
        waiting = set(running)
        while waiting:
            ready = wait(list(waiting))
            for pipe in [one for one in running if one in ready]:
                try:
                    item = pipe.recv()
                except EOFError:
                    waiting.discard(pipe)
                    _refuse_failed(running[pipe])
                    continue
                if isinstance(item, MiaError):
                    raise item
                take(item)
    finally:
        for pipe, begun in running.items():
            begun.terminate()
            begun.join()
            pipe.close()


def _refuse_failed(process: BaseProcess) -> None:
    process.join()
    if process.exitcode:
        raise ModelUnavailable(
            f"a process that held the model ended with the status {process.exitcode}.",
            wanted="room for a model in each process",
            hint="with --out, the same command goes on from what was finished; --processes 1 needs less memory",
        )


def _serve(job: _Job, pipe: Connection) -> None:
    """The life of a spawned process."""
    # Ctrl-C reaches all processes of a terminal; the one that spawned us ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pipe:
        try:
            asyncio.run(_measure(job, pipe.send))
        except MiaError as error:
            pipe.send(error)


async def _measure(job: _Job, send: Send) -> None:
    """Every world of a job side by side. Raises the first MiaError."""
    hearing = _Hearing()
    default = job.settings.model
    planner = default.model_copy(update={"adapter": job.settings.planner})
    learnt = hearing.of(job.make_models(ModelsSettings(default=default, planner=planner)))
    # The others are asked without the adapter, and share the model.
    models = replace(learnt, planner=learnt.executor)
    room = asyncio.Semaphore(job.settings.model.batch)
    try:
        async with asyncio.TaskGroup() as group:
            for seed in job.seeds:
                stream = _Stream(job.settings, seed, models, learnt, hearing, room)
                known = {name: result for (where, name), result in job.done.items() if where == seed}
                group.create_task(_measure_world(stream, job.settings.rungs, known, send))
    except* MiaError as errors:
        raise first_error(errors) from None
    finally:
        await learnt.close()


async def _measure_world(stream: _Stream, rungs: Sequence[Rung], known: Mapping[str, Result], send: Send) -> None:
    running: dict[str, asyncio.Task[Result]] = {}

    async def measure(rung: Rung) -> Result:
        before = None
        if rung.calls_of:
            before = known.get(rung.calls_of) or await running[rung.calls_of]
        result = await stream.measure(rung, before, lambda: send(None))
        send(result)
        return result

    async with asyncio.TaskGroup() as group:
        for rung in rungs:
            if rung.name not in known:
                running[rung.name] = group.create_task(measure(rung))
