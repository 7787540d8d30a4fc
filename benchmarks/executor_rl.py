"""Does reinforcement teach an under-trained Executor to follow plans?

    python benchmarks/executor_rl.py --out runs/executor-rl [--model FOLDER] [--seeds 3] [--steps 80]

1. A model that is trained too briefly: the recipe of `mia world train`, ended after `--warmup-steps` steps with as many
   dialogues for each step. Made once; `--model` names one that is there already.
2. For each seed the Executor stage (`mia.learn.stages`) from that model: other worlds of the training split, other
   sampling, another adapter. The Planner is frozen. Exams on validation worlds choose among the weights on the way.
3. Before and after, greedy, on worlds that nothing has seen: how often the Executor, handed an oracle's plan, answers
   with the truth, and what the parts of its reward are. As a control, plans of which one step names a source that has
   nothing about it: the only right answer is then that nothing is known, and nobody was rewarded for it.

Plans for training come from an oracle, unless `--plans planner` asks for those of the embedded model: whether an answer
is right then depends on the Executor alone. Of the embedded model's first plans about four in five are wrong in some
hop, and a question whose rollouts all fail teaches nothing. For the same reason there is no replan after a wrong answer
unless `--replan verdict` asks for it, as stage 1 has it: an oracle's second plan saves the answer of an Executor that
left the first, and both conversations get the reward.

The same command goes on where it was stopped; more `--steps` go on beyond the end. Differences are taken in pairs,
world by world; intervals are 95 % t intervals over worlds. Over several seeds the mean is taken in each world first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import platform
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from trainings import note, percent

from mia.agents.executor import Executor
from mia.agents.planner import Planner
from mia.config import LearnSettings, LineSettings, ModelsSettings
from mia.episode import answer
from mia.evals.ladder import digest
from mia.judges import ReferenceJudge
from mia.learn.folder import alone
from mia.learn.learner import Learner
from mia.learn.rewards import build_reward
from mia.learn.rollouts import Reward
from mia.learn.sources import Answering, Situation, Source, Tell, Worlds, WorldSource, mark_of, side_by_side
from mia.learn.stages import EXECUTOR, Progress, Schedule, StageResult, check_page, frozen_models, train_stage
from mia.learn.warmup import train as warmup
from mia.learn.warmup.steps import Progress as WarmupProgress
from mia.models import Models, build_models
from mia.models.base import ChatModel
from mia.models.ledger import Ledger
from mia.prompt import PromptStyle
from mia.statistics import clustered, paired
from mia.team import Team
from mia.tools.search import SearchTool
from mia.types import Episode, Plan, Role, Task
from mia.world import preset
from mia.world.engine import WorldEngine
from mia.world.facts import World
from mia.world.language import SOURCES, UNKNOWN, Route, RouteStep, read_question, write_plan
from mia.world.questions import tasks
from mia.world.seeds import TEST, TRAIN, VALIDATION, check_unseen
from mia.world.teacher import Teacher

FIRST_WORLD = TRAIN.start + 100_000
"""Of reinforcement; a warm-up takes its worlds from the beginning of the split."""
WORLDS_A_SEED = 10_000
"""From the first world of one seed to that of the next."""
FIRST_EXAM = VALIDATION.start + 10_000
"""Of the worlds that choose among the weights of a training."""
RATES = {"lora": 1e-3, "full": 3e-4}
"""Learning rates, unless one is named."""
BATCH = 128
"""Conversations that are sampled side by side."""
STYLE: PromptStyle = "compact"
MEASURES = {
    "follows": "an oracle's plan is followed to the truth",
    "reward": "reward",
    "tool": "tool reward",
    "format": "format reward",
    "unknown": "control: says that nothing is known where the plan leads nowhere",
}
"""Measure → its row in the table."""

Marks = dict[str, dict[str, list[float]]]
"""Measure → world → a value for each question."""


# ── the world ─────────────────────────────────────────────────────────────────────────────────────────────────────


def guided(world: World, model: ChatModel) -> Team:
    """This model as the Executor, an oracle as the Planner; without a memory, which an oracle does not need."""
    return Team(
        executor=Executor(
            model, [SearchTool(WorldEngine(world), preset.PASSAGES)], preset.page(Path()).executor, style=STYLE
        ),
        planner=Planner(Teacher(random.Random(world.seed), oracle=world), style=STYLE),
        judge=ReferenceJudge(),
        line=LineSettings(replan="never"),
    )


class OracleSource:
    """A question from each of many training worlds, each planned by an oracle. A `Source`."""

    def __init__(self, first_seed: int, hops: int, model: ChatModel) -> None:
        self._first_seed = first_seed
        self._hops = hops
        self._model = model
        self._drawn = 0

    def page(self) -> dict[str, Any]:
        return {"kind": "oracle", "first_seed": self._first_seed, "hops": self._hops}

    def check(self, count: int) -> None:
        """There are as many worlds as anyone wants."""

    async def prepare(self, tell: Tell) -> None:
        """Nothing."""

    async def draw(self, count: int) -> list[Situation]:
        first = self._first_seed + self._drawn
        self._drawn += count
        worlds = [World.make(seed) for seed in range(first, first + count)]
        return [Situation(tasks(world, 1, hops=self._hops)[0], guided(world, self._model)) for world in worlds]

    async def absorb(self, groups: Sequence[tuple[Situation, Sequence[Episode]]]) -> None:
        """Nothing is remembered."""

    async def save(self, folder: Path) -> None:
        (folder / "drawn.json").write_text(json.dumps(self._drawn), encoding="utf-8")

    async def restore(self, folder: Path) -> None:
        self._drawn = json.loads((folder / "drawn.json").read_text(encoding="utf-8"))

    async def close(self) -> None:
        """Nothing to let go of."""


class OracleExam:
    """The first questions of validation worlds, each planned by an oracle. An `Exam`."""

    def __init__(self, worlds: int, questions: int, model: ChatModel) -> None:
        self._seeds = range(FIRST_EXAM, FIRST_EXAM + worlds)
        self._questions = questions
        self._model = model

    def page(self) -> dict[str, Any]:
        return {"kind": "oracle", "worlds": len(self._seeds), "questions": self._questions}

    async def hold(self, answering: Answering, tell: Tell) -> dict[str, list[float]]:
        done = 0

        async def one_question(task: Task, team: Team) -> float:
            nonlocal done
            mark = mark_of(await answering(Situation(task, team)))
            # The judge has a reference for every question of the world.
            assert mark is not None
            done += 1
            tell(done, len(self._seeds) * self._questions)
            return mark

        async def one_world(seed: int) -> list[float]:
            world = World.make(seed)
            team = guided(world, self._model)
            return await side_by_side(one_question(task, team) for task in tasks(world, self._questions))

        marks = await side_by_side(one_world(seed) for seed in self._seeds)
        return {str(seed): found for seed, found in zip(self._seeds, marks, strict=True)}

    async def close(self) -> None:
        """Nothing to let go of."""


def misled(world: World, route: Route, chance: random.Random) -> Route | None:
    """The route with one step in a source that has nothing about it; None where each step leads over another one."""
    leads = {step.via for step in route}
    direct = [place for place, step in enumerate(route) if not step.via and step.relation not in leads]
    if not direct:
        return None
    place = chance.choice(direct)
    kept = world.keeping[route[place].relation]
    empty = chance.choice([source for source in SOURCES if source not in (kept.source, kept.patchy)])
    return (*route[:place], RouteStep(route[place].relation, empty), *route[place + 1 :])


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def measure(model: ChatModel, seeds: range, questions: int, tell: Tell) -> Marks:
    """The marks of a model as the Executor, on so many questions of each of these worlds."""
    reward = build_reward(LearnSettings(), Role.EXECUTOR, ("search",))
    marks: Marks = {name: {} for name in MEASURES}
    done = 0

    async def one_question(world: World, team: Team, task: Task) -> None:
        nonlocal done
        episode = await answer(task, team, Ledger(task.question.id))
        # Nothing the Executor's reward looks at is in what a recording heard.
        rewarded = await reward(task, episode, ())
        if not isinstance(rewarded, Reward):
            raise SystemExit(f"{task.question.id} cannot be measured: {rewarded.why}")
        found = {"follows": rewarded.parts["accuracy"], "reward": rewarded.total}
        found |= {name: rewarded.parts[name] for name in ("tool", "format")}
        chain = read_question(task.question.text)
        assert chain is not None
        wrong = misled(world, world.oracle(chain), random.Random(task.question.id))
        if wrong is not None:
            plan = Plan(text=write_plan(wrong))
            execution = await team.executor.execute(task.question, plan, "", Ledger(task.question.id))
            found["unknown"] = float(execution.answer is not None and execution.answer.text.strip() == UNKNOWN)
        for name, value in found.items():
            marks[name].setdefault(str(world.seed), []).append(value)
        done += 1
        tell(done, len(seeds) * questions)

    def all_questions() -> Iterator[tuple[World, Team, Task]]:
        for seed in seeds:
            world = World.make(seed)
            team = guided(world, model)
            for task in tasks(world, questions):
                yield world, team, task

    await side_by_side(one_question(*case) for case in all_questions())
    return marks


async def measured(path: Path, base: Path, weights: Path | None, wanted: argparse.Namespace, tell: Tell) -> Marks:
    """What the file holds, or else is measured and written into it. `weights`: an adapter of the base, or a model."""
    if path.is_file():
        kept: Marks = json.loads(path.read_text(encoding="utf-8"))
        return kept
    settings = preset.model_settings(path=str(base), batch=BATCH, threads=wanted.threads)
    if weights is not None:
        settings = settings.model_copy(update={"adapter" if wanted.weights == "lora" else "path": str(weights)})
    models = build_models(ModelsSettings(default=settings))
    try:
        marks = await measure(models.executor, _worlds(wanted), wanted.questions, tell)
    finally:
        await models.close()
    _write(path, json.dumps(marks))
    return marks


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────


def under_trained(wanted: argparse.Namespace) -> Path:
    """The model to begin with: the one that was named, or one that is trained here."""
    if wanted.model is not None:
        return Path(wanted.model)
    full = warmup.Recipe()
    recipe = replace(full, steps=wanted.warmup_steps, shards=math.ceil(full.shards * wanted.warmup_steps / full.steps))

    def tell(progress: WarmupProgress) -> None:
        loss = "" if progress.loss is None else f", loss {progress.loss:.3f}"
        note(f"under-trained model: {progress.done} of {progress.total} {progress.stage}{loss}")

    made = warmup.train(
        wanted.out / "warmup", recipe, on_progress=tell, processes=wanted.processes, threads=wanted.threads
    )
    assert made is not None
    return made


async def reinforced(base: Path, seed: int, wanted: argparse.Namespace) -> StageResult:
    """The Executor stage from this model; of its weights the best in exams on validation worlds."""
    rate = wanted.rate or RATES[wanted.weights]
    settings = LearnSettings(
        samples=wanted.samples, weights=wanted.weights, rate=rate, kl=wanted.kl, preset=wanted.preset
    )
    schedule = Schedule(
        steps=wanted.steps,
        questions=wanted.questions_per_step,
        exam_every=wanted.exam_every,
        save_every=wanted.save_every,
        seed=seed,
    )
    own = preset.model_settings(path=str(base), batch=BATCH, threads=wanted.threads)

    def tell(progress: Progress) -> None:
        row = progress.row
        if row or (progress.phase != "steps" and progress.done == progress.total):
            exam = "" if progress.accuracy is None else f", last exam {progress.accuracy:.2f}"
            parts = f", {_short(row['parts'])}" if row else ""
            note(f"seed {seed}: {progress.phase} {progress.done} of {progress.total}{parts}{exam}")

    async with AsyncExitStack() as resources:
        learner = Learner.open(base, settings, threads=wanted.threads, seed=seed, batch=BATCH)
        resources.push_async_callback(learner.close)
        released = preset.model_settings(batch=BATCH, threads=wanted.threads)
        planner = released.model_copy(update={"adapter": str(preset.PLANNER) if preset.PLANNER.is_dir() else ""})
        models = frozen_models(ModelsSettings(default=released, planner=planner, executor=own))
        resources.push_async_callback(models.close)
        source = _source(
            wanted.plans, FIRST_WORLD + WORLDS_A_SEED * seed, wanted.questions_per_step, wanted.hops, models
        )
        resources.push_async_callback(source.close)
        stage = replace(EXECUTOR, line={**EXECUTOR.line, "replan": wanted.replan})
        result = await train_stage(
            stage,
            source,
            learner,
            settings,
            wanted.out / f"seed-{seed}",
            reward=build_reward(settings, Role.EXECUTOR, ("search",)),
            model=models.executor,
            schedule=schedule,
            exam=OracleExam(wanted.exam_worlds, wanted.exam_questions, models.executor),
            page={"base": learner.base, "line": dict(stage.line)},
            on_progress=tell,
        )
    assert result is not None
    return result


def _source(plans: str, first_seed: int, questions: int, hops: int, models: Models) -> Source:
    if plans == "oracle":
        return OracleSource(first_seed, hops, models.executor)
    return WorldSource(Worlds(first_seed=first_seed, streams=questions, hops=hops, staggered=False), models)


# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────────


def figures(before: Marks, after: Mapping[int, Marks]) -> dict[str, dict[str, Any]]:
    """Measure → before, after for each seed and their mean, and the paired differences; each with its interval."""
    found: dict[str, dict[str, Any]] = {}
    for name in MEASURES:
        worlds = list(before[name])
        first = [fmean(before[name][world]) for world in worlds]
        then = {seed: [fmean(marks[name][world]) for world in worlds] for seed, marks in after.items()}
        mean = [fmean(values) for values in zip(*then.values(), strict=True)]
        found[name] = {
            "before": clustered([[value] for value in first]),
            "seeds": {
                seed: {"after": clustered([[value] for value in values]), "difference": paired(first, values)}
                for seed, values in then.items()
            },
            "after": clustered([[value] for value in mean]),
            "difference": paired(first, mean),
            "worlds_better": sum(value > old for old, value in zip(first, mean, strict=True)),
            "worlds_worse": sum(value < old for old, value in zip(first, mean, strict=True)),
        }
    return found


def table(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: all measures over the mean of the seeds, then each seed."""
    yield "| | before | after, mean of seeds | difference | worlds better / worse |"
    yield "|---|---|---|---|---|"
    for name, row in found.items():
        yield (
            f"| {MEASURES[name]} | {percent(row['before'])} | {percent(row['after'])} "
            f"| {percent(row['difference'], sign=True)} | {row['worlds_better']} / {row['worlds_worse']} |"
        )
    yield ""
    yield f"| seed | {' | '.join(found)} |"
    yield f"|---|{'---|' * len(found)}"
    for seed in found["follows"]["seeds"]:
        cells = [row["seeds"][seed] for row in found.values()]
        said = [f"{percent(cell['after'])} ({percent(cell['difference'], sign=True)})" for cell in cells]
        yield f"| {seed} | {' | '.join(said)} |"


# ── the whole ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def experiment(wanted: argparse.Namespace, base: Path) -> None:
    begun = time.monotonic()
    worlds = _worlds(wanted)
    page = {"base": digest(base), "first_world": worlds.start, "worlds": len(worlds), "questions": wanted.questions}
    check_page(wanted.out, page)
    before = await measured(wanted.out / "before.json", base, None, wanted, _telling("before"))
    after: dict[int, Marks] = {}
    seconds: dict[int, float] = {}
    chosen: dict[int, int] = {}
    for seed in range(1, wanted.seeds + 1):
        result = await reinforced(base, seed, wanted)
        seconds[seed], chosen[seed] = result.seconds, result.best_step
        path = wanted.out / f"seed-{seed}" / f"after-{result.best_step:06}.json"
        after[seed] = await measured(path, base, result.weights, wanted, _telling(f"seed {seed}, after"))
    found = figures(before, after)
    head = (
        f"{len(worlds)} {'validation' if wanted.validation else 'test'} worlds from seed {worlds.start}, "
        f"{wanted.questions} questions in each; {wanted.seeds} seed(s) of {wanted.steps} steps of "
        f"{wanted.questions_per_step} questions of up to {wanted.hops} relations × {wanted.samples}, "
        f"plans by the {wanted.plans}, {wanted.weights}, "
        f"weights of steps {', '.join(map(str, chosen.values()))}; "
        f"{platform.machine()}, {fmean(seconds.values()):.0f} s a seed."
    )
    text = "\n".join((head, "", *table(found)))
    _write(wanted.out / "table.md", text + "\n")
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(wanted).items()}
    content = {"options": options, **page, "seconds": seconds, "chosen_steps": chosen, "figures": found}
    _write(wanted.out / "result.json", json.dumps(content, indent=1) + "\n")
    print(text)
    note(f"done in {time.monotonic() - begun:.0f} s")


def _worlds(wanted: argparse.Namespace) -> range:
    return range(wanted.first_seed, wanted.first_seed + wanted.worlds)


def _telling(what: str) -> Tell:
    """A tenth at a time."""

    def tell(done: int, total: int) -> None:
        if done == total or done % max(1, total // 10) == 0:
            note(f"{what}: {done} of {total} questions")

    return tell


def _short(parts: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.2f}" for name, value in parts.items())


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f"{path.suffix}.tmp")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def main() -> None:
    wanted = _arguments()
    if wanted.first_seed is None:
        wanted.first_seed = VALIDATION.start if wanted.validation else TEST.start
    if not wanted.validation:
        check_unseen(wanted.first_seed, wanted.worlds)
    with alone(wanted.out):
        asyncio.run(experiment(wanted, under_trained(wanted)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder; the same command goes on with it")
    parser.add_argument("--model", type=Path, help="the folder of an under-trained model")
    parser.add_argument("--warmup-steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--questions-per-step", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--hops", type=int, default=4, help="relations of a question to learn from, at most")
    parser.add_argument("--weights", choices=("lora", "full"), default="lora")
    parser.add_argument("--rate", type=float, help="1e-3 for an adapter, 3e-4 for all weights, unless named")
    parser.add_argument("--kl", type=float, default=LearnSettings().kl)
    parser.add_argument("--preset", choices=("default", "paper"), default="default", help="of the accuracy reward")
    parser.add_argument("--plans", choices=("oracle", "planner"), default="oracle", help="who plans in training")
    parser.add_argument("--replan", choices=("verdict", "never"), default="never", help="after a wrong answer")
    parser.add_argument("--exam-every", type=int, default=8, help="steps between exams")
    parser.add_argument("--exam-worlds", type=int, default=24, help="validation worlds that choose the weights")
    parser.add_argument("--exam-questions", type=int, default=8, help="in each of them")
    parser.add_argument("--save-every", type=int, default=8, help="steps between checkpoints")
    parser.add_argument("--worlds", type=int, default=24)
    parser.add_argument("--first-seed", type=int, help="of the worlds to measure on")
    parser.add_argument("--questions", type=int, default=20, help="in each of them")
    parser.add_argument("--validation", action="store_true", help="measure on validation worlds, to choose settings by")
    parser.add_argument("--processes", type=int, default=2, help="that build the dialogues of the warm-up")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
