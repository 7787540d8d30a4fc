"""Where the questions of a training come from, and those that it is examined on.

A `Source` gives situations: a question, with the team that answers it and the memory as it is now. After a step it may
take in what came of them. An `Exam` asks questions that no training sees, always the same ones, and always greedily.

In the world, questions come from many worlds side by side. Each world is a stream with a memory of its own, which grows
as the stream goes on: so a step sees young memories and old ones, as they are when the line answers. A stream's first
question of one world follows the last of another. Worlds of training are those of the training split that the warm-up
did not use; exams are held on validation worlds, and nobody here looks at test worlds.

A user's own questions come from a list, with the memory that the user has. That memory is read and never written: a
second pass over the list would else find its own answers there.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Generic, Protocol, TypeVar

from mia.episode import absorb, live
from mia.errors import ConfigError, LearnError, MiaError
from mia.memory.base import MemoryStrategy
from mia.models import Models
from mia.models.ledger import Ledger
from mia.team import Team, build_team
from mia.tools.search import SearchTool
from mia.types import Episode, Memory, MemoryKind, Outcome, Question, Recall, Task, Verdict
from mia.world import preset
from mia.world.engine import WorldEngine
from mia.world.facts import World
from mia.world.questions import MOST_HOPS, tasks
from mia.world.seeds import TRAIN, VALIDATION

T = TypeVar("T")
S = TypeVar("S")
"""What is put to the learner: a `Situation`, or a text with a question (`mia.learn.reading`)."""
R = TypeVar("R")
"""What came of it: an `Episode`, or a `Reading`."""
S_co = TypeVar("S_co", covariant=True)
R_contra = TypeVar("R_contra", contravariant=True)


@dataclass(frozen=True)
class Situation:
    """A question, and who answers it. However often it is answered, the memory shows the same."""

    task: Task
    team: Team


Tell = Callable[[int, int], None]
"""Told how many of how many are done."""
AnsweringOf = Callable[[S], Awaitable[R]]
Answering = AnsweringOf[Situation, Episode]
Marks = dict[str, list[float]]
"""World (or question) → 1 for each question that was answered correctly, 0 for each that was not. What could not be
judged is left out."""


class SourceOf(Protocol[S, R_contra]):
    """Questions without end."""

    def page(self) -> dict[str, Any]:
        """What decides its questions, as plain JSON data: a training that goes on must find the same."""
        ...

    def check(self, count: int) -> None:
        """Raises ConfigError if it never has so many questions at once."""
        ...

    async def prepare(self, tell: Tell) -> None:
        """Called once, before the first question, unless `restore` is."""
        ...

    async def draw(self, count: int) -> list[S]:
        """The next questions, all different. Raises ConfigError if there are never so many, and StoreError."""
        ...

    async def absorb(self, groups: Sequence[tuple[S, Sequence[R_contra]]]) -> None:
        """Take in what came of the questions that were drawn last: all of them, each with its outcomes."""
        ...

    async def save(self, folder: Path) -> None:
        """Keep in a folder, which is empty, what `restore` needs. Situations drawn before are void."""
        ...

    async def restore(self, folder: Path) -> None:
        """Go on from what `save` kept. Raises LearnError if it cannot be read."""
        ...

    async def close(self) -> None: ...


class ExamOf(Protocol[S_co, R_contra]):
    """Questions to measure with."""

    def page(self) -> dict[str, Any]:
        """What decides its questions, as plain JSON data."""
        ...

    async def hold(self, answering: AnsweringOf[S_co, R_contra], tell: Tell) -> Marks:
        """Ask all of them; what a former exam left in a memory is forgotten. Raises what `answering` raises, and
        StoreError."""
        ...

    async def close(self) -> None: ...


Source = SourceOf[Situation, Episode]
Exam = ExamOf[Situation, Episode]


async def side_by_side(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All at once; what they return, in their order. Raises the first MiaError, and lets the others end."""
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(one) for one in work]
    except* MiaError as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
    return [task.result() for task in running]


class FoundOnce:
    """A memory that has looked already: however often the question is answered, it shows the same."""

    def __init__(self, memory: MemoryStrategy, recall: Recall) -> None:
        self._memory = memory
        self._recall = recall

    @property
    def prompts(self) -> dict[str, str]:
        return self._memory.prompts

    async def recall(
        self,
        question: Question,
        *,
        kind: MemoryKind = MemoryKind.WORKFLOW,
        skip: frozenset[str] = frozenset(),
        ledger: Ledger | None = None,
    ) -> Recall:
        """Other kinds, and memories beyond those shown, are looked up as they are now. Raises StoreError."""
        if kind is MemoryKind.WORKFLOW and not skip:
            return self._recall
        return await self._memory.recall(question, kind=kind, skip=skip, ledger=ledger)

    async def remember(self, group: Sequence[Episode], ledger: Ledger) -> tuple[Memory, ...]:
        """Raises StoreError."""
        return await self._memory.remember(group, ledger)

    async def credit(self, group: str, shown: frozenset[str], verdict: Verdict) -> int:
        """Raises StoreError."""
        return await self._memory.credit(group, shown, verdict)

    async def close(self) -> None:
        """The memory is its owner's to close."""


async def _situation(task: Task, team: Team) -> Situation:
    if team.memory is None:
        return Situation(task, team)
    recall = await team.memory.recall(task.question, ledger=Ledger(task.question.id))
    return Situation(task, replace(team, memory=FoundOnce(team.memory, recall)))


def mark_of(episode: Episode) -> float | None:
    """Of an exam; None where nobody could judge."""
    if episode.verdict is None or episode.verdict.outcome is Outcome.UNJUDGED:
        return None
    return float(episode.verdict.correct)


# ── the world ─────────────────────────────────────────────────────────────────────────────────────────────────────


class _Stream:
    """The questions of one world in their order, and the memory that they fill."""

    def __init__(self, world: World, asked: list[Task], models: Models, home: Path, position: int = 0) -> None:
        self.world = world
        self.position = position
        self._tasks = asked
        self._models = models
        self._home = home
        self._config = preset.page(home)
        self._engine = WorldEngine(world)
        self.team = self._build()

    @property
    def ended(self) -> bool:
        return self.position == len(self._tasks)

    @property
    def task(self) -> Task:
        return self._tasks[self.position]

    async def situation(self) -> Situation:
        """Raises StoreError."""
        return await _situation(self.task, self.team)

    async def take(self, episode: Episode | None) -> None:
        """What came of the present question, if anything did; then comes the next. Raises StoreError."""
        if episode is not None:
            await absorb(episode, self.team, Ledger(self.task.question.id))
        self.position += 1

    async def live(self) -> Episode:
        """Answer and absorb the present question with the team as it is."""
        episode = await live(self.task, self.team, Ledger(self.task.question.id))
        self.position += 1
        return episode

    async def copy_memory(self, path: Path) -> None:
        """The store is closed meanwhile: a closed store is a single file."""
        await self.team.close()
        await asyncio.to_thread(shutil.copyfile, self._config.store_path, path)
        self.team = self._build()

    async def close(self) -> None:
        await self.team.close()
        await asyncio.to_thread(shutil.rmtree, self._home)

    def _build(self) -> Team:
        return build_team(self._config, models=self._models, tools=[SearchTool(self._engine, preset.PASSAGES)])

    @classmethod
    def begin(
        cls,
        seed: int,
        shifted: bool,
        questions: int,
        models: Models,
        *,
        hops: int = MOST_HOPS,
        position: int = 0,
        memory: Path | None = None,
    ) -> _Stream:
        """`memory`: a store to begin with, which is copied. Raises StoreError."""
        home = Path(mkdtemp(prefix="mia-stream-"))
        try:
            if memory is not None:
                shutil.copyfile(memory, preset.page(home).store_path)
            world = World.make(seed, shifted=shifted)
            return cls(world, tasks(world, questions, hops=hops), models, home, position)
        except BaseException:
            shutil.rmtree(home)
            raise


@dataclass(frozen=True)
class Worlds:
    """Which worlds a training draws from."""

    first_seed: int
    """The first of them; those after it follow, up to the end of the training split."""
    streams: int = 16
    """Worlds side by side."""
    questions: int = 60
    """In each world."""
    hops: int = MOST_HOPS
    """Relations of a question at most: fewer are answered more often, and each answer tells more of each relation."""
    shifted: bool = False
    """Worlds without favourite sources."""
    staggered: bool = True
    """The first worlds are not begun together: before the first step the frozen team answers the beginnings of all but
    one, so that memories of all ages are there. Else all memories begin empty."""

    def __post_init__(self) -> None:
        """Raises ConfigError for worlds that are not for training."""
        for name in ("streams", "questions", "hops"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}.", wanted="a whole number from 1 up")
        last = self.first_seed + self.streams - 1
        if self.first_seed not in TRAIN or last not in TRAIN:
            raise ConfigError(
                f"the worlds {self.first_seed} to {last} are not all for training.",
                wanted=f"seeds from {TRAIN.start} to {TRAIN.stop - 1}",
            )

    def first_position(self, stream: int) -> int:
        return self.questions * stream // self.streams if self.staggered else 0


class WorldSource:
    """Streams of worlds side by side; each draw takes the next question of each."""

    def __init__(self, worlds: Worlds, models: Models) -> None:
        """`models`: the frozen ones; they answer what is asked ahead, and write the memories."""
        self._worlds = worlds
        self._models = models
        self._streams: list[_Stream] = []
        self._next_seed = worlds.first_seed
        self._first = 0
        self._drawn: list[int] = []

    def page(self) -> dict[str, Any]:
        return {"kind": "worlds", **asdict(self._worlds)}

    def check(self, count: int) -> None:
        """Raises ConfigError for more questions than there are streams."""
        if not 1 <= count <= self._worlds.streams:
            raise ConfigError(
                f"{count} questions of {self._worlds.streams} worlds: a world's questions are asked one after the "
                "other.",
                wanted=f"1 to {self._worlds.streams} questions a step",
                hint="more worlds side by side (--worlds)",
            )

    async def prepare(self, tell: Tell) -> None:
        """Begin the streams, and answer ahead where they are staggered. Raises StoreError."""
        positions = [self._worlds.first_position(number) for number in range(self._worlds.streams)]
        done, total = 0, sum(positions)
        self._streams = [self._begin() for _ in positions]

        async def ahead(stream: _Stream, questions: int) -> None:
            nonlocal done
            for _ in range(questions):
                await stream.live()
                done += 1
                tell(done, total)

        if total:
            await side_by_side(ahead(*one) for one in zip(self._streams, positions, strict=True))

    async def draw(self, count: int) -> list[Situation]:
        """Raises ConfigError for more questions than there are streams, and StoreError."""
        self.check(count)
        order = [(self._first + number) % self._worlds.streams for number in range(count)]
        situations = await side_by_side(self._streams[number].situation() for number in order)
        self._drawn = order
        return situations

    async def absorb(self, groups: Sequence[tuple[Situation, Sequence[Episode]]]) -> None:
        """Each world remembers the first episode of its question, as if the line had been asked once. Raises
        StoreError."""
        drawn, self._drawn = self._drawn, []
        episodes = [episodes[0] if episodes else None for _, episodes in groups]
        await side_by_side(self._streams[number].take(episode) for number, episode in zip(drawn, episodes, strict=True))
        for number in drawn:
            if self._streams[number].ended:
                await self._streams[number].close()
                self._streams[number] = self._begin()
        self._first = (self._first + len(drawn)) % self._worlds.streams

    async def save(self, folder: Path) -> None:
        """Raises StoreError."""
        page = {
            "next_seed": self._next_seed,
            "first": self._first,
            "streams": [{"seed": stream.world.seed, "position": stream.position} for stream in self._streams],
        }
        for number, stream in enumerate(self._streams):
            await stream.copy_memory(folder / f"memory-{number}.db")
        (folder / "streams.json").write_text(json.dumps(page), encoding="utf-8")

    async def restore(self, folder: Path) -> None:
        """Raises LearnError, StoreError."""
        await self.close()
        try:
            page = json.loads((folder / "streams.json").read_text(encoding="utf-8"))
            self._next_seed, self._first = int(page["next_seed"]), int(page["first"])
            for number, stream in enumerate(page["streams"]):
                self._streams.append(
                    _Stream.begin(
                        int(stream["seed"]),
                        self._worlds.shifted,
                        self._worlds.questions,
                        self._models,
                        hops=self._worlds.hops,
                        position=int(stream["position"]),
                        memory=folder / f"memory-{number}.db",
                    )
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LearnError(
                f"the streams of worlds in '{folder}' cannot be read ({error}).", wanted="those of a checkpoint, whole"
            ) from error

    async def close(self) -> None:
        streams, self._streams = self._streams, []
        for stream in streams:
            await stream.close()

    def _begin(self) -> _Stream:
        """The next world. After the last of the split comes the first again."""
        seed = self._next_seed
        self._next_seed = seed + 1 if seed + 1 in TRAIN else self._worlds.first_seed
        worlds = self._worlds
        return _Stream.begin(seed, worlds.shifted, worlds.questions, self._models, hops=worlds.hops)


@dataclass(frozen=True)
class ExamWorlds:
    """Which worlds an exam is held in."""

    worlds: int = 24
    questions: int = 20
    """In each world."""
    first_seed: int = VALIDATION.start
    shifted: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for worlds that are not for validation, and for fewer than two."""
        last = self.first_seed + self.worlds - 1
        if self.worlds < 2 or self.questions < 1:
            raise ConfigError(
                f"{self.worlds} worlds with {self.questions} questions each are no exam.",
                wanted="two worlds or more, each with a question or more",
            )
        if self.first_seed not in VALIDATION or last not in VALIDATION:
            raise ConfigError(
                f"the worlds {self.first_seed} to {last} are not all for validation.",
                wanted=f"seeds from {VALIDATION.start} to {VALIDATION.stop - 1}",
            )


class WorldExam:
    """The first questions of some worlds, each with a memory that begins empty and grows."""

    def __init__(self, worlds: ExamWorlds, models: Models) -> None:
        """`models`: the frozen ones; they write the memories."""
        self._worlds = worlds
        self._models = models

    def page(self) -> dict[str, Any]:
        return {"kind": "worlds", **asdict(self._worlds)}

    async def hold(self, answering: Answering, tell: Tell) -> Marks:
        """Raises what `answering` raises, and StoreError."""
        done, total = 0, self._worlds.worlds * self._worlds.questions

        async def one_world(seed: int) -> list[float]:
            nonlocal done
            marks: list[float] = []
            stream = _Stream.begin(seed, self._worlds.shifted, self._worlds.questions, self._models)
            try:
                while not stream.ended:
                    episode = await answering(Situation(stream.task, stream.team))
                    await stream.take(episode)
                    mark = mark_of(episode)
                    if mark is not None:
                        marks.append(mark)
                    done += 1
                    tell(done, total)
            finally:
                await stream.close()
            return marks

        seeds = range(self._worlds.first_seed, self._worlds.first_seed + self._worlds.worlds)
        marks = await side_by_side(one_world(seed) for seed in seeds)
        return {str(seed): list(found) for seed, found in zip(seeds, marks, strict=True) if found}

    async def close(self) -> None:
        """Nothing is kept between exams."""


# ── questions of one's own ────────────────────────────────────────────────────────────────────────────────────────


class ListSource(Generic[T]):
    """Draws from a list, in another order in each pass over it; a source (`SourceOf`) but for its `page` and `draw`.
    Nothing is remembered (see the module's docstring)."""

    def __init__(self, items: Sequence[T], *, seed: int = 1) -> None:
        """Raises ConfigError for an empty list."""
        if not items:
            raise ConfigError("there are no questions to learn from.", wanted="a question or more")
        self.items = tuple(items)
        self.seed = seed
        self._pass = 0
        self._place = 0
        """Items of this pass that were drawn and absorbed."""
        self._drawn = 0

    def check(self, count: int) -> None:
        """Raises ConfigError for more than the list has."""
        if not 1 <= count <= len(self.items):
            raise ConfigError(
                f"{count} questions a step, of a list of {len(self.items)}.",
                wanted=f"1 to {len(self.items)}",
                hint=f"--questions-per-step {len(self.items)}",
            )

    async def prepare(self, tell: Tell) -> None:
        """Nothing is made ahead, and a memory is as its owner made it."""

    def next(self, count: int) -> list[T]:
        """The next ones; they come again until they are absorbed. Raises ConfigError for more than the list has."""
        self.check(count)
        if self._place + count > len(self.items):
            # Too few are left for a step; in the order of the next pass their turn comes sooner or later.
            self._pass, self._place = self._pass + 1, 0
        order = random.Random(f"questions {self.seed} {self._pass}").sample(self.items, len(self.items))
        self._drawn = count
        return order[self._place : self._place + count]

    async def absorb(self, groups: Sequence[object]) -> None:
        """Those that were drawn last are done with."""
        self._place += self._drawn
        self._drawn = 0

    async def save(self, folder: Path) -> None:
        (folder / "questions.json").write_text(json.dumps({"pass": self._pass, "place": self._place}), encoding="utf-8")

    async def restore(self, folder: Path) -> None:
        """Raises LearnError."""
        try:
            page = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
            self._pass, self._place = int(page["pass"]), int(page["place"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LearnError(
                f"the place in the list of questions, kept in '{folder}', cannot be read ({error}).",
                wanted="that of a checkpoint, whole",
            ) from error

    async def close(self) -> None:
        """Nothing to let go of."""


class TaskSource(ListSource[Task]):
    """A list of questions, in another order in each pass over it. The team is its owner's to close."""

    def __init__(self, tasks: Sequence[Task], team: Team, *, seed: int = 1) -> None:
        """Raises ConfigError for an empty list."""
        super().__init__(tasks, seed=seed)
        self._team = team

    def page(self) -> dict[str, Any]:
        return {"kind": "questions", "seed": self.seed, "ids": [task.question.id for task in self.items]}

    async def draw(self, count: int) -> list[Situation]:
        """Raises ConfigError for more questions than the list has, and StoreError."""
        return await side_by_side(_situation(task, self._team) for task in self.next(count))


class TaskExam:
    """A list of questions, asked side by side, with the memory that there is. The team is its owner's to close."""

    def __init__(self, tasks: Sequence[Task], team: Team) -> None:
        """Raises ConfigError for fewer than two questions."""
        if len(tasks) < 2:
            raise ConfigError(f"{len(tasks)} questions are no exam.", wanted="two or more")
        self._tasks = tuple(tasks)
        self._team = team

    def page(self) -> dict[str, Any]:
        return {"kind": "questions", "ids": [task.question.id for task in self._tasks]}

    async def hold(self, answering: Answering, tell: Tell) -> Marks:
        """Raises what `answering` raises."""
        done = 0

        async def one(task: Task) -> float | None:
            nonlocal done
            mark = mark_of(await answering(Situation(task, self._team)))
            done += 1
            tell(done, len(self._tasks))
            return mark

        marks = await side_by_side(one(task) for task in self._tasks)
        pairs = zip(self._tasks, marks, strict=True)
        return {task.question.id: [mark] for task, mark in pairs if mark is not None}

    async def close(self) -> None:
        """Nothing to let go of."""
