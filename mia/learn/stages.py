"""The stages of training: the Executor learns to follow plans, the Planner to write them, the other being frozen; and
the reader of long texts learns what to keep of them (`mia.learn.reading`).

    a step:  draw questions → roll each out several times, side by side → reward → update → remember → draw the next

The learner's role is sampled at `learn.temperature`; everybody else is greedy, as frozen models are built. Before the
first step, and now and then, an exam is held: greedy, on questions that no step sees, with the line as it is used. The
weights that did best there are what a training leaves behind; where none did better than those before it, these are
left, and the report says so.

A folder holds all of a training, and one process at a time writes into it:

    stage.json           what was trained, how and on what: going on with other settings is refused
    metrics.jsonl        a row for each step
    exams.jsonl          a row for each exam, with the marks of every world
    checkpoint-000010/   the last one: the learner, the source and where the training stands
    best-000025/         weights of the best exam so far; adapter/ or model/ once the training has ended
    result.json, report.md, curves.png

A training that was killed goes on from its checkpoint, with the same questions and the same seeds. Samplers round
probabilities in their last digits by what they answer side by side, so weights come out the same to rounding.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from mia.config import LearnSettings, ModelsSettings
from mia.episode import answer
from mia.errors import ConfigError, LearnError
from mia.learn import metrics
from mia.learn.folder import alone, read_rows, write_rows, write_whole
from mia.learn.metrics import JsonlMetrics, Metrics, MetricsSink
from mia.learn.rollouts import Dropped, RewardFunction, Rollout, Sampled, roll_out
from mia.learn.sources import ExamOf, Marks, R, S, Situation, SourceOf, mark_of, side_by_side
from mia.models import Models, build_models
from mia.models.base import ChatModel, ChatRequest, Price, TokenReply
from mia.models.ledger import Ledger
from mia.models.memo import MemoModel
from mia.statistics import Interval, clustered, paired
from mia.team import Team
from mia.types import Episode, Role, Task

if TYPE_CHECKING:
    from mia.learn.learner import Learner, Update

S_contra = TypeVar("S_contra", contravariant=True)

FORMAT = 1
"""The version of a training's folder."""
BARREN = 3
"""Steps in a row without a single reward that a training bears."""
_MAY_DIFFER = frozenset({"steps", "save_every"})
"""What may be another when a training goes on: longer, or saved more often."""


# ── what is trained ───────────────────────────────────────────────────────────────────────────────────────────────


class StageOf(Protocol[S_contra, R]):
    """Who learns, how it is put to work on a situation, and what is to be said of what came of it."""

    @property
    def name(self) -> str: ...

    @property
    def role(self) -> Role: ...

    def task(self, situation: S_contra) -> Task:
        """What the reward and the rollouts' group are of."""
        ...

    async def answer(self, situation: S_contra, model: ChatModel, *, exam: bool = False) -> R:
        """Do the work with this model in the learner's role. Raises ConfigError where that has nothing to do."""
        ...

    def mark(self, outcome: R) -> float | None:
        """1 for a right answer, 0 for a wrong one; None where nobody could judge."""
        ...

    def told(self, outcomes: Sequence[R]) -> dict[str, Any]:
        """More of a step for the metrics, as plain JSON data."""
        ...


@dataclass(frozen=True)
class Stage:
    """A role of the line that learns, and how the line is set for it."""

    name: str
    role: Role
    line: Mapping[str, Any]
    """Of `line`, while rolling out; an exam leaves the line as it is."""

    def team(self, team: Team, model: ChatModel, *, exam: bool = False) -> Team:
        """The team, with this model in the learner's role. Raises ConfigError for a line that gives it nothing to
        do."""
        line = team.line if exam else team.line.model_copy(update=dict(self.line))
        if self.role is Role.EXECUTOR:
            return replace(team, line=line, executor=team.executor.asking(model))
        if team.planner is None or not line.plan:
            raise ConfigError("the Planner is to learn, and the line has none.", hint="line.plan = true")
        if team.planner.wants_plan_pairs:
            raise ConfigError(
                "the Planner is to learn, and the line chooses among several plans.",
                wanted="one plan to a rollout",
                hint="line.best_of = 1",
            )
        return replace(team, line=line, planner=team.planner.asking(model))

    def task(self, situation: Situation) -> Task:
        return situation.task

    async def answer(self, situation: Situation, model: ChatModel, *, exam: bool = False) -> Episode:
        """Raises ConfigError."""
        team = self.team(situation.team, model, exam=exam)
        return await answer(situation.task, team, Ledger(situation.task.question.id))

    def mark(self, outcome: Episode) -> float | None:
        return mark_of(outcome)

    def told(self, outcomes: Sequence[Episode]) -> dict[str, Any]:
        return {"replans": _mean([float(len(episode.attempts) > 1) for episode in outcomes])}


EXECUTOR = Stage("executor", Role.EXECUTOR, {"replan": "verdict", "judge": "each"})
"""Stage 1. A replan follows a wrong answer, whatever the Planner thinks of it."""
PLANNER = Stage("planner", Role.PLANNER, {"replan": "reflect", "judge": "each"})
"""Stage 2. Plan, reflection and replan are one conversation; both answers are judged."""
STAGES = {stage.name: stage for stage in (EXECUTOR, PLANNER)}


@dataclass(frozen=True)
class Schedule:
    """How long, and how often what."""

    steps: int = 100
    questions: int = 16
    """In a step; each is rolled out `learn.samples` times."""
    exam_every: int = 25
    """Steps between exams."""
    patience: int = 0
    """Exams in a row that are no better than the best, after which the training ends; 0: it goes on."""
    save_every: int = 10
    """Steps between checkpoints."""
    seed: int = 1
    """Of all sampling."""

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers that mean nothing."""
        for name, least in (("steps", 1), ("questions", 1), ("exam_every", 1), ("patience", 0), ("save_every", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}.", wanted=f"a whole number from {least} up")


@dataclass(frozen=True)
class Progress:
    """Where a training stands."""

    phase: str
    """"memories ahead", "exam" or "steps"."""
    done: int
    total: int
    seconds_left: float | None = None
    """Of this phase; None before anything is known."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """Of the metrics, after a step."""
    accuracy: float | None = None
    """Of the last exam."""


OnProgress = Callable[[Progress], None]
Tracker = Callable[[int], MetricsSink]
"""Opens a sink, told the step that the training goes on from."""


@dataclass(frozen=True)
class Held:
    """One exam."""

    step: int
    marks: Marks

    @property
    def accuracy(self) -> Interval | None:
        """With an interval over worlds (or questions)."""
        return clustered(list(self.marks.values()))

    def over(self, before: Held) -> Interval | None:
        """How much better than another one, in pairs of what both have marks of."""
        both = [name for name in before.marks if name in self.marks]
        return paired([_mean(before.marks[name]) for name in both], [_mean(self.marks[name]) for name in both])


@dataclass(frozen=True)
class StageResult:
    """What a training left behind."""

    stage: str
    weights: Path
    """adapter/ or model/: what did best in the exams, or the last where none was held."""
    steps: int
    """That were taken."""
    best_step: int
    """After which the weights were these; 0: before the first."""
    exams: tuple[Held, ...]
    seconds: float
    ended_early: bool = False
    """Exams were no better for longer than `patience`."""

    @property
    def before(self) -> Held | None:
        return self.exams[0] if self.exams else None

    @property
    def best(self) -> Held | None:
        return next((held for held in self.exams if held.step == self.best_step), None)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        gain = self.best.over(self.before) if self.best is not None and self.before is not None else None
        return {
            "format": FORMAT,
            "stage": self.stage,
            "weights": self.weights.name,
            "steps": self.steps,
            "best_step": self.best_step,
            "ended_early": self.ended_early,
            "seconds": round(self.seconds, 1),
            "accuracy_before": _interval(self.before.accuracy if self.before else None),
            "accuracy_best": _interval(self.best.accuracy if self.best else None),
            "gain": _interval(gain),
        }


def _interval(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [round(value, 6) for value in interval]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def train_stage(
    stage: StageOf[S, R],
    source: SourceOf[S, R],
    learner: Learner,
    settings: LearnSettings,
    folder: Path,
    *,
    reward: RewardFunction[R],
    model: ChatModel,
    schedule: Schedule = Schedule(),
    exam: ExamOf[S, R] | None = None,
    page: Mapping[str, Any] | None = None,
    trackers: Sequence[Tracker] = (),
    on_progress: OnProgress = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> StageResult | None:
    """Train, or go on training, in a folder; None where `stop` said yes after a step, and the checkpoint is saved.

    `model`: the learner's role as it was before; its window and its reserve for a reply hold for the learner too.
    `page`: more that decides the outcome, as plain JSON data, e.g. a digest of the weights to begin with. Source, exam
    and learner are their owner's to close. `trackers`: what opens more sinks for the rows of metrics.jsonl.

    Raises ConfigError for a folder of another training or one that another process trains into; LearnError where
    nothing can be learnt or a checkpoint cannot be read; StoreError; what the reward function raises.
    """
    source.check(schedule.questions)
    with alone(folder):
        check_page(folder, _page(stage, source, exam, settings, schedule, page or {}))
        training = _Training(
            stage, source, learner, settings, folder, reward, model, schedule, exam, trackers, on_progress, stop
        )
        try:
            return await training.run()
        finally:
            training.metrics.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """A row for each step. Rows that a crash tore are passed over."""
    return metrics.read_metrics(folder / "metrics.jsonl")


def read_exams(folder: Path) -> list[Held]:
    """The exams that were held. Rows that a crash tore are passed over."""
    return [
        Held(row["step"], row["marks"]) for row in read_rows(folder / "exams.jsonl") if {"step", "marks"} <= row.keys()
    ]


def read_result(folder: Path) -> StageResult | None:
    """What a finished training left behind; None where there is none."""
    try:
        page = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return StageResult(
            stage=page["stage"],
            weights=folder / page["weights"],
            steps=page["steps"],
            best_step=page["best_step"],
            exams=tuple(read_exams(folder)),
            seconds=page["seconds"],
            ended_early=page["ended_early"],
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LearnError(
            f"the result in '{folder}' cannot be read ({error}).",
            wanted="what a finished training wrote",
            hint=f"rm '{folder / 'result.json'}' and the same command: it is made again from the checkpoint",
        ) from error


class Sampling:
    """The learner as a model: its weights as they are now, within the window of the model that it was."""

    price: Price | None = None

    def __init__(self, learner: Learner, like: ChatModel, *, greedy: bool = False) -> None:
        self.name = f"{like.name}, learning"
        self.context_window = like.context_window
        self.max_tokens = like.max_tokens
        self._learner = learner
        self._greedy = greedy

    async def complete(self, request: ChatRequest) -> TokenReply:
        """Raises ModelError."""
        if request.max_tokens is None:
            request = replace(request, max_tokens=self.max_tokens)
        if self._greedy and request.temperature is None:
            request = replace(request, temperature=0.0)
        return await self._learner.sample(request)

    async def close(self) -> None:
        """The learner is its owner's to close."""


@dataclass
class _State:
    """Where a training stands; a checkpoint keeps it."""

    step: int = 0
    """Steps that were taken."""
    seconds: float = 0.0
    """That they and the exams took, over all calls."""
    best_step: int = 0
    best: float = -math.inf
    """Mean accuracy of the best exam."""
    no_better: int = 0
    """Exams in a row."""
    barren: int = 0
    """Steps in a row without a reward."""


class _Training(Generic[S, R]):
    """One call of `train_stage`."""

    def __init__(
        self,
        stage: StageOf[S, R],
        source: SourceOf[S, R],
        learner: Learner,
        settings: LearnSettings,
        folder: Path,
        reward: RewardFunction[R],
        model: ChatModel,
        schedule: Schedule,
        exam: ExamOf[S, R] | None,
        trackers: Sequence[Tracker],
        on_progress: OnProgress,
        stop: Callable[[], bool],
    ) -> None:
        self.metrics = Metrics()
        self._stage = stage
        self._source = source
        self._learner = learner
        self._settings = settings
        self._folder = folder
        self._reward = reward
        self._model = model
        self._schedule = schedule
        self._exam = exam
        self._trackers = trackers
        self._on_progress = on_progress
        self._stop = stop
        self._state = _State()
        self._accuracy: float | None = None

    async def run(self) -> StageResult | None:
        finished = read_result(self._folder)
        if finished is not None and (finished.ended_early or finished.steps >= self._schedule.steps):
            return finished
        await self._begin()
        first, begun = self._state.step, time.monotonic()
        while not self._ended():
            row = await self._step()
            last = self._ended()
            if self._exam is not None and (last or self._state.step % self._schedule.exam_every == 0):
                await self._hold()
                last = self._ended()
            taken = self._state.step - first
            left = (time.monotonic() - begun) / taken * (self._schedule.steps - self._state.step)
            self._tell("steps", self._state.step, self._schedule.steps, left, row)
            stopped = not last and self._stop()
            if last or stopped or self._state.step % self._schedule.save_every == 0:
                await self._save()
            if stopped:
                return None
        return self._finish()

    def _ended(self) -> bool:
        return self._state.step >= self._schedule.steps or self._out_of_patience()

    def _out_of_patience(self) -> bool:
        return 0 < self._schedule.patience <= self._state.no_better

    async def _begin(self) -> None:
        """Go back to the checkpoint, or prepare all that comes before the first step."""
        kept = _checkpoints(self._folder)
        if kept:
            await self._restore(kept[-1])
        after = self._state.step if kept else -1
        _cut(self._folder / "exams.jsonl", after)
        self.metrics.add(JsonlMetrics(self._folder / "metrics.jsonl", after=after))
        for tracker in self._trackers:
            self.metrics.add(tracker(max(after, 0)))
        held = read_exams(self._folder)
        self._accuracy = _overall(held[-1].marks) if held else None
        self._tell("steps", self._state.step, self._schedule.steps)
        if kept:
            return
        begun = time.monotonic()
        await self._source.prepare(lambda done, total: self._tell_phase("memories ahead", done, total, begun))
        self._state.seconds += time.monotonic() - begun
        if self._exam is not None:
            await self._hold()
        await self._save()

    # ── a step ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _step(self) -> dict[str, Any]:
        state, begun = self._state, time.monotonic()
        situations = await self._source.draw(self._schedule.questions)
        samples = range(self._settings.samples)
        sampled = await side_by_side(
            self._roll_out(situation, f"{state.step} {number} {sample}")
            for number, situation in enumerate(situations)
            for sample in samples
        )
        sampling = time.monotonic() - begun
        rollouts = [one.sample for one in sampled if isinstance(one.sample, Rollout)]
        dropped = Counter(one.sample.why for one in sampled if isinstance(one.sample, Dropped))
        self._check_barren(rollouts, dropped)
        updating = time.monotonic()
        update = self._learner.update(rollouts) if rollouts else None
        updating = time.monotonic() - updating
        groups = [
            (situation, [one.outcome for one in sampled[number * len(samples) : (number + 1) * len(samples)]])
            for number, situation in enumerate(situations)
        ]
        await self._source.absorb(groups)
        state.step += 1
        seconds = time.monotonic() - begun
        state.seconds += seconds
        row = _row(self._stage, state.step, sampled, rollouts, dropped, update) | {
            "seconds": round(seconds, 3),
            "sampling_seconds": round(sampling, 3),
            "updating_seconds": round(updating, 3),
        }
        self.metrics.write(state.step, row)
        return row

    async def _roll_out(self, situation: S, place: str) -> Sampled[R]:
        async def agent(model: ChatModel, task: Task) -> R:
            return await self._stage.answer(situation, model)

        content = f"{self._schedule.seed} {self._stage.name} {place}"
        return await roll_out(
            agent,
            Sampling(self._learner, self._model),
            self._stage.task(situation),
            self._reward,
            role=self._stage.role,
            temperature=self._settings.temperature,
            seed=int.from_bytes(hashlib.sha256(content.encode()).digest()[:6]),
        )

    def _check_barren(self, rollouts: Sequence[Rollout], dropped: Counter[str]) -> None:
        """Raises LearnError where nothing has been learnt from for too long."""
        self._state.barren = 0 if rollouts else self._state.barren + 1
        if self._state.barren >= BARREN:
            why, count = dropped.most_common(1)[0]
            raise LearnError(
                f"in {BARREN} steps not one rollout got a reward; {count} of the last step: {why}.",
                wanted="rollouts that can be judged",
                hint="mend it; the same command goes on from the last checkpoint",
            )

    # ── an exam ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _hold(self) -> None:
        """Hold an exam, and keep the weights if they are the best so far."""
        assert self._exam is not None
        state, begun = self._state, time.monotonic()
        model = Sampling(self._learner, self._model, greedy=True)

        async def answering(situation: S) -> R:
            return await self._stage.answer(situation, model, exam=True)

        marks = await self._exam.hold(answering, lambda done, total: self._tell_phase("exam", done, total, begun))
        self._accuracy = accuracy = _overall(marks)
        if accuracy is None:
            raise LearnError(
                "nothing in the exam could be judged.", wanted="questions with reference answers, or a judge"
            )
        if accuracy > state.best:
            state.best, state.best_step, state.no_better = accuracy, state.step, 0
            self._learner_into(_best(self._folder, state.step))
        else:
            state.no_better += 1
        state.seconds += time.monotonic() - begun
        _append(self._folder / "exams.jsonl", {"step": state.step, "accuracy": accuracy, "marks": marks})

    # ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _save(self) -> None:
        """A checkpoint, whole or not at all; then the one before it, and weights that it does not name, may go."""
        path = self._folder / f"checkpoint-{self._state.step:06}"
        fresh = path.with_suffix(".tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        (fresh / "source").mkdir(parents=True)
        try:
            self._learner.save(fresh / "learner")
            await self._source.save(fresh / "source")
            (fresh / "state.json").write_text(json.dumps(asdict(self._state)), encoding="utf-8")
        except LearnError:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            raise LearnError(
                f"the checkpoint '{path}' cannot be written ({error.strerror}).",
                wanted="room on the disk",
                hint="the same command goes on from the last checkpoint",
            ) from error
        shutil.rmtree(path, ignore_errors=True)
        fresh.rename(path)
        for other in _checkpoints(self._folder):
            if other != path:
                shutil.rmtree(other)
        for other in self._folder.glob("best-*"):
            if other != _best(self._folder, self._state.best_step):
                shutil.rmtree(other)

    async def _restore(self, path: Path) -> None:
        try:
            self._state = _State(**json.loads((path / "state.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise LearnError(
                f"the checkpoint '{path}' cannot be read ({error}).",
                wanted="a checkpoint of this training, whole",
                hint=f"rm -r '{path}' and the same command: the steps begin anew",
            ) from error
        self._learner.restore(path / "learner")
        await self._source.restore(path / "source")

    def _finish(self) -> StageResult:
        """Give the best weights their name, and write down what came of it."""
        state, folder = self._state, self._folder
        weights = folder / ("adapter" if self._settings.weights == "lora" else "model")
        if self._exam is None:
            state.best_step = state.step
            self._learner_into(weights)
        elif (best := _best(folder, state.best_step)).is_dir():
            copied = weights.with_suffix(".tmp")
            shutil.rmtree(copied, ignore_errors=True)
            # Copied, for a training may yet go on for more steps.
            shutil.copytree(best, copied)
            shutil.rmtree(weights, ignore_errors=True)
            copied.rename(weights)
        result = StageResult(
            stage=self._stage.name,
            weights=weights,
            steps=state.step,
            best_step=state.best_step,
            exams=tuple(read_exams(folder)),
            seconds=state.seconds,
            ended_early=state.step < self._schedule.steps,
        )
        write_whole(folder / "result.json", (json.dumps(result.as_dict(), indent=2) + "\n").encode())
        return result

    def _learner_into(self, folder: Path) -> None:
        """The learner's weights as they are, in place of what may be there."""
        fresh = folder.with_suffix(".tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        self._learner.save_weights(fresh)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)

    # ── telling ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _tell_phase(self, phase: str, done: int, total: int, begun: float) -> None:
        self._tell(phase, done, total, (time.monotonic() - begun) * (total - done) / done)

    def _tell(
        self, phase: str, done: int, total: int, left: float | None = None, row: Mapping[str, Any] | None = None
    ) -> None:
        self._on_progress(Progress(phase, done, total, left, row or {}, self._accuracy))


def _overall(marks: Marks) -> float | None:
    """Each world (or question) counts the same."""
    return _mean([_mean(values) for values in marks.values()]) if marks else None


def _row(
    stage: StageOf[S, R],
    step: int,
    sampled: Sequence[Sampled[R]],
    rollouts: Sequence[Rollout],
    dropped: Mapping[str, int],
    update: Update | None,
) -> dict[str, Any]:
    """What a step has to say of itself, but for its time."""
    outcomes = [one.outcome for one in sampled]
    marks = [mark for outcome in outcomes if (mark := stage.mark(outcome)) is not None]
    parts = sorted({name for rollout in rollouts for name in rollout.parts})
    every = Counter(dropped)
    if update is not None:
        every.update(update.dropped)
    return {
        **({} if update is None else update.metrics),
        "step": step,
        "reward": _mean([rollout.reward for rollout in rollouts]) if rollouts else None,
        "accuracy": _mean(marks) if marks else None,
        **stage.told(outcomes),
        "parts": {
            name: _mean([rollout.parts[name] for rollout in rollouts if name in rollout.parts]) for name in parts
        },
        "rollouts": len(rollouts),
        "dropped": dict(every),
        "splits": sum(one.splits for one in sampled),
    }


# ── one stage after the other ─────────────────────────────────────────────────────────────────────────────────────

Train = Callable[[Stage, Path, Mapping[Role, Path]], Awaitable[StageResult | None]]
"""Trains a stage into a folder; given are the weights that each role has learnt so far. None where it was stopped."""


async def alternate(rounds: int, folder: Path, train: Train) -> list[StageResult] | None:
    """Executor, Planner, Executor, …: each stage goes on with what its role has learnt, beside the other as it is by
    then. The folders are 1-executor, 1-planner, 2-executor, …; None where a stage was stopped.

    Raises ConfigError for fewer rounds than one, and what `train` raises.
    """
    if rounds < 1:
        raise ConfigError(f"{rounds} rounds are none.", wanted="a round or more", hint="--rounds 1")
    weights: dict[Role, Path] = {}
    results: list[StageResult] = []
    for number in range(1, rounds + 1):
        for stage in (EXECUTOR, PLANNER):
            result = await train(stage, folder / f"{number}-{stage.name}", dict(weights))
            if result is None:
                return None
            weights[stage.role] = result.weights
            results.append(result)
    return results


def frozen_models(settings: ModelsSettings) -> Models:
    """The models of all roles, those that are greedy with a memory of what they have answered: a group of rollouts asks
    them the same again and again. Raises ConfigError, MissingExtra."""
    built = build_models(settings)
    memories: dict[int, ChatModel] = {}

    def remembering(name: Role | Literal["cold_start"], model: ChatModel) -> ChatModel:
        greedy = settings.of(name).temperature == 0
        return memories.setdefault(id(model), MemoModel(model, greedy=greedy))

    return Models(
        planner=remembering(Role.PLANNER, built.planner),
        executor=remembering(Role.EXECUTOR, built.executor),
        manager=remembering(Role.MANAGER, built.manager),
        judge=remembering(Role.JUDGE, built.judge),
        reader=built.reader and remembering(Role.READER, built.reader),
        cold_start=built.cold_start and remembering("cold_start", built.cold_start),
        replays=built.replays,
    )


# ── the folder ────────────────────────────────────────────────────────────────────────────────────────────────────


def check_page(folder: Path, page: Mapping[str, Any]) -> None:
    """Keep what decides a training, or compare with what was kept. Raises ConfigError where it differs."""
    path = folder / "stage.json"
    wanted = _flat(page)
    if path.is_file():
        try:
            kept = _flat(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"cannot read '{path}': {error}.", wanted="the settings of the training there", hint="--out ANOTHER"
            ) from error
        names = sorted(
            name
            for name in kept.keys() | wanted.keys()
            if kept.get(name) != wanted.get(name) and name.rpartition(".")[2] not in _MAY_DIFFER
        )
        if names:
            differences = ", ".join(f"{name} ({kept.get(name)} there, {wanted.get(name)} now)" for name in names)
            raise ConfigError(
                f"'{folder}' holds another training: it differs in {differences}.",
                wanted="the same settings, or another folder",
                hint="--out ANOTHER",
            )
    write_whole(path, (json.dumps(page, indent=2, sort_keys=True) + "\n").encode())


def _page(
    stage: StageOf[S, R],
    source: SourceOf[S, R],
    exam: ExamOf[S, R] | None,
    settings: LearnSettings,
    schedule: Schedule,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "stage": stage.name,
        "source": source.page(),
        "exam": exam.page() if exam is not None else None,
        "learn": settings.model_dump(mode="json"),
        "schedule": asdict(schedule),
        **more,
    }


def _flat(page: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Dotted names; lists are compared whole."""
    flat: dict[str, Any] = {}
    for name, value in page.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return flat


def _checkpoints(folder: Path) -> list[Path]:
    """The whole ones, the last at the end."""
    return sorted(path for path in folder.glob("checkpoint-*") if path.suffix != ".tmp")


def _best(folder: Path, step: int) -> Path:
    return folder / f"best-{step:06}"


def _cut(path: Path, step: int) -> None:
    """Leave out what was written after the checkpoint that a training goes on from, and what a crash tore."""
    rows = [row for row in read_rows(path) if row.get("step", math.inf) <= step]
    write_rows(path, rows)


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
