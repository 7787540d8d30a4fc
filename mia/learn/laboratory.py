"""Streams of the offline world that are learnt from while they are answered, and experiments over many of them.

A stream is one world's questions in their order, with a memory and versions of its own. An experiment asks the same
questions of the same worlds under several *arms*, which differ in one thing: what the tries of a question go into.
Every arm tries each question as often, with the same seeds, and hears the same verdicts.

    frozen    nothing: the memory takes in the reported answers, as it does without test-time learning
    memory    the memory takes in all tries of a question; the weights stay
    weights   the weights learn from the tries; the memory takes in the reported answers
    both      MIA

Results are lines of JSON in a file; what is there is not measured again.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from mia.config import LearnSettings, ModelsSettings
from mia.errors import LearnError, ModelUnavailable
from mia.learn.adapters import AdapterStore
from mia.learn.online import OnlineLearner, Training
from mia.learn.publishing import LocalPublisher
from mia.learn.sources import side_by_side
from mia.learn.spool import append_line, read_lines
from mia.learn.trainers import Beginning, InlineTrainer
from mia.models import Models, build_models
from mia.models.base import ChatModel
from mia.models.local import LocalModel
from mia.team import Team, build_team
from mia.tools.search import SearchTool
from mia.types import Episode, Role, Task
from mia.world import preset
from mia.world.engine import WorldEngine
from mia.world.facts import World
from mia.world.questions import tasks

OpenStream = Callable[[Team, ChatModel, Path], Awaitable["OnlineStream"]]
ARMS = {"frozen": "nothing", "memory": "memory", "weights": "weights", "both": "both"}
"""Arm → `learn.into`."""
_BATCH = 128
"""Conversations that are sampled side by side."""


class OnlineStream:
    """One stream, learnt from in this process: with the same seeds it comes out the same."""

    def __init__(self, learner: OnlineLearner) -> None:
        self.learner = learner

    @classmethod
    async def open(
        cls, team: Team, model: ChatModel, folder: Path, *, settings: LearnSettings, adapter: str = "", seed: int = 0
    ) -> OnlineStream:
        """`model`: the Planner's, in this process; `adapter`: the folder of the one that it begins with. Raises
        ConfigError, LearnError and MissingExtra."""
        if not isinstance(model, LocalModel):
            raise LearnError(
                f"{model.name} is not in this process.", wanted="a model of this process", hint='provider = "local"'
            )
        training = None
        if settings.into in ("both", "weights"):
            store = AdapterStore(folder / "adapters", model.digest, Role.PLANNER)
            beginning = Beginning(model=str(model.folder), adapter=adapter)
            training = Training(store, InlineTrainer(beginning, settings, store), LocalPublisher(model))
        learner = OnlineLearner(team, model, settings, folder, training=training, seed=seed, greedy=True)
        await learner.start()
        return cls(learner)

    async def answer(self, task: Task) -> tuple[Episode, ...]:
        """All tries of a question, the reported one first. Raises ModelUnavailable where the model could not be asked,
        LearnError, StoreError."""
        group = await self.learner.submit(task)
        if group is None:
            raise ModelUnavailable(f"the question could not be asked: {self.learner.unanswered[task.question.id]}")
        others = tuple(one for number, one in enumerate(group.episodes) if number != group.reported)
        return (group.episode, *others)

    async def close(self) -> None:
        await self.learner.close()


@dataclass(frozen=True)
class Trial:
    """One arm in one world."""

    arm: str
    world: int
    seed: int
    """Of the sampling."""
    questions: int
    settings: LearnSettings
    shifted: bool = False
    judge: str = "reference"
    adapter: str = ""
    """The folder of the adapter that the Planner begins with; empty: the embedded model as it is."""

    @property
    def key(self) -> tuple[str, int, int]:
        return self.arm, self.world, self.seed


@dataclass(frozen=True)
class Outcome:
    """What came of a trial: its questions in their order."""

    arm: str
    world: int
    seed: int
    correct: tuple[bool, ...]
    """Of the reported answers, by the reference, whatever the rewards came from; pass after pass."""
    tries: tuple[float, ...]
    """Share of correct tries."""
    versions: int
    """Versions that came to answer."""
    seconds: float
    learning_seconds: float

    @property
    def key(self) -> tuple[str, int, int]:
        return self.arm, self.world, self.seed


async def run_trial(trial: Trial, models: Models) -> Outcome:
    """`models`: of this process; they may serve other trials at the same time. Raises LearnError, StoreError,
    ModelUnavailable."""
    begun = time.monotonic()
    world = World.make(trial.world, shifted=trial.shifted)
    settings = trial.settings.model_copy(update={"into": ARMS[trial.arm]})
    with TemporaryDirectory(prefix="mia-trial-") as home:
        config = preset.page(Path(home), judge=trial.judge)
        team = build_team(config, models=models, tools=[SearchTool(WorldEngine(world), preset.PASSAGES)])
        stream = None
        try:
            stream = await OnlineStream.open(
                team,
                models.planner,
                Path(home) / "online",
                settings=settings,
                adapter=trial.adapter,
                seed=trial.seed,
            )
            correct, shares = [], []
            for task in tasks(world, trial.questions) * settings.epochs:
                marks = [_right(task, one) for one in await stream.answer(task)]
                correct.append(marks[0])
                shares.append(sum(marks) / len(marks))
            await stream.learner.flush()
        finally:
            if stream is not None:
                await stream.close()
            await team.close()
    updates = stream.learner.updates
    return Outcome(
        trial.arm,
        trial.world,
        trial.seed,
        tuple(correct),
        tuple(shares),
        sum(update.kept for update in updates),
        time.monotonic() - begun,
        sum(update.learnt.seconds for update in updates),
    )


def _right(task: Task, episode: Episode) -> bool:
    """By the reference: a name of the world is the answer or it is not."""
    return episode.answer is not None and episode.answer.text.strip() in task.references


def run_trials(
    trials: Sequence[Trial],
    path: Path,
    *,
    processes: int = 1,
    at_once: int = 8,
    on_outcome: Callable[[int, int], None] = lambda done, total: None,
) -> list[Outcome]:
    """Run what the file does not hold yet, and return all. Trials of one file differ in arm, world and seed alone.

    `at_once`: trials of one arm that share a process's model at a time; no result depends on it. Raises
    ConfigError, LearnError, StoreError, ModelUnavailable.
    """
    _check_same(trials, path)
    known = {outcome.key: outcome for outcome in read_outcomes(path)}
    left = [trial for trial in trials if trial.key not in known]
    on_outcome(len(trials) - len(left), len(trials))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        running = [pool.submit(_run, share) for share in _shares(left, at_once)]
        try:
            for future in as_completed(running):
                for outcome in future.result():
                    append_line(path, asdict(outcome))
                    known[outcome.key] = outcome
                on_outcome(sum(trial.key in known for trial in trials), len(trials))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [known[trial.key] for trial in trials]


def _shares(trials: Sequence[Trial], size: int) -> list[list[Trial]]:
    """Trials of one arm each: those of another would hold them up."""
    by_arm = [[trial for trial in trials if trial.arm == arm] for arm in ARMS]
    return [group[start : start + size] for group in by_arm for start in range(0, len(group), size)]


def read_outcomes(path: Path) -> list[Outcome]:
    """Raises LearnError for a line that is none."""
    try:
        return [
            Outcome(**{**page, "correct": tuple(page["correct"]), "tries": tuple(page["tries"])})
            for page in read_lines(path)
        ]
    except (KeyError, TypeError) as error:
        raise LearnError(
            f"'{path}' holds a line that is no outcome of a trial ({error}).", hint="another --out"
        ) from error


def _run(share: Sequence[Trial]) -> list[Outcome]:
    """In a process of its own."""

    async def run() -> list[Outcome]:
        model = preset.model_settings(batch=_BATCH)
        planner = model.model_copy(update={"adapter": share[0].adapter})
        models = build_models(ModelsSettings(default=model, planner=planner))
        try:
            return await side_by_side(run_trial(trial, models) for trial in share)
        finally:
            await models.close()

    return asyncio.run(run())


def _check_same(trials: Iterable[Trial], path: Path) -> None:
    """What all trials of a file share stands beside it; another one is refused."""
    shared = {
        json.dumps(
            {
                "questions": one.questions,
                "settings": one.settings.model_dump(mode="json", exclude={"into"}),
                "shifted": one.shifted,
                "judge": one.judge,
                "adapter": one.adapter,
            },
            sort_keys=True,
        )
        for one in trials
    }
    if len(shared) > 1:
        raise LearnError("trials of one file differ in more than arm, world and seed.")
    page, beside = shared.pop() if shared else "{}", path.with_suffix(".settings.json")
    if not beside.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(page + "\n", encoding="utf-8")
    elif beside.read_text(encoding="utf-8").strip() != page:
        raise LearnError(f"'{path}' holds trials with other settings.", wanted=str(beside), hint="another --out")


def opener(settings: LearnSettings, adapter: str = "", seed: int = 0) -> OpenStream:
    """What opens an `OnlineStream`, for whoever brings team, model and folder."""
    return partial(OnlineStream.open, settings=settings, adapter=adapter, seed=seed)
