"""From what was typed to a training: models, questions, learner; and what is written when it has ended."""

from __future__ import annotations

import asyncio
import json
import random
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from mia.cli import output
from mia.cli.learn.watching import Watch, watching
from mia.errors import ConfigError, MissingExtra, require

if TYPE_CHECKING:
    from mia.cli.learn.options import Options, Training
    from mia.cli.options import Shared
    from mia.config import Config, LearnSettings, ModelSettings, ModelsSettings
    from mia.learn.learner import Learner
    from mia.learn.sources import Exam, Source
    from mia.learn.stages import Schedule, Stage, StageResult, Tracker
    from mia.models import Models
    from mia.types import Role

T = TypeVar("T")

BATCH = 128
"""Conversations that are sampled side by side in the world."""
FULL_RATE = 3e-4
"""Learning rate for all weights of the embedded model, unless one is named."""
_ADAPTER_MARK = "adapter_config.json"
"""The file of peft that tells an adapter's folder from that of a whole model."""


def until_stopped(work: Callable[[Watch], Awaitable[T | None]]) -> T:
    """What the work comes to; where Ctrl-C ended it, the program ends and says how to go on."""

    async def watched() -> T | None:
        with watching() as watch:
            watch.listen()
            return await work(watch)

    try:
        result = asyncio.run(watched())
    except (asyncio.CancelledError, KeyboardInterrupt):
        result = None
    if result is None:
        output.warn(f"Stopped. The same command goes on: {shlex.join(['mia', *sys.argv[1:]])}")
        raise typer.Exit(130)
    return result


async def train(
    stage: Stage, wanted: Options, shared: Shared, folder: Path, learnt: Mapping[Role, Path], watch: Watch
) -> StageResult | None:
    """Train a stage into a folder, and write its report; None where it was stopped. `learnt`: weights that stand for
    those which were named. Raises ConfigError, LearnError, MissingExtra, and what the line raises."""
    from mia.evals.ladder import digest
    from mia.learn.rewards import build_reward
    from mia.learn.stages import frozen_models, read_metrics, train_stage
    from mia.types import Role

    named = {Role.PLANNER: wanted.planner, Role.EXECUTOR: wanted.executor}
    begins = {role: path for role, path in named.items() if path is not None} | dict(learnt)
    config = _config(wanted, shared)
    models_settings = _models(config.models if wanted.questions else world_models(wanted), stage.role, begins)
    own = models_settings.of(stage.role)
    check_runs_here(own, stage.role)
    base, adapter = beginning(own.path, begins.get(stage.role), config.learn.weights)
    watch.begin(stage.name)
    async with AsyncExitStack() as resources:
        learner = open_learner(base, adapter, own, config.learn, wanted.seed)
        resources.push_async_callback(learner.close)
        models = frozen_models(models_settings)
        resources.push_async_callback(models.close)
        source, exam = await _questions(wanted, config, models, base, resources)
        page = {
            "base": learner.base,
            "begins": {role.value: digest(path) for role, path in sorted(begins.items())},
            "models": _comparable(models_settings),
        }
        result = await train_stage(
            stage,
            source,
            learner,
            config.learn,
            folder,
            reward=build_reward(config.learn, stage.role, config.executor.tools, native=_native(config)),
            model=models.of(stage.role),
            schedule=schedule(wanted),
            exam=exam,
            page=page,
            trackers=trackers(wanted, folder),
            on_progress=watch,
            stop=lambda: watch.stopping,
        )
    if result is not None:
        report(folder, result, read_metrics(folder))
    return result


def _config(wanted: Options, shared: Shared) -> Config:
    """The page, under what was typed. Raises ConfigError."""
    flags = learn_flags(wanted)
    if wanted.questions:
        flags |= {
            "search.corpus": tuple(str(path) for path in wanted.corpus) if wanted.corpus else None,
            "search.index": str(wanted.index) if wanted.index else None,
        }
        if wanted.model:
            flags |= {"models.default.provider": "local", "models.default.path": str(wanted.model)}
    config = shared.config(flags)
    if config.learn.weights == "full" and "rate" not in config.learn.model_fields_set:
        config = shared.config(flags | {"learn.rate": FULL_RATE})
    return config


def learn_flags(wanted: Training) -> dict[str, Any]:
    """What was typed of `learn`, under its dotted names."""
    return {
        "learn.batch": wanted.questions_per_step,
        "learn.samples": wanted.samples,
        "learn.weights": wanted.weights,
        "learn.rank": wanted.rank,
        "learn.rate": wanted.rate,
        "learn.kl": wanted.kl,
    }


def schedule(wanted: Training) -> Schedule:
    from mia.learn.stages import Schedule

    return Schedule(
        steps=wanted.steps,
        questions=wanted.questions_per_step,
        exam_every=wanted.exam_every,
        patience=wanted.patience,
        save_every=wanted.save_every,
        seed=wanted.seed,
    )


def trackers(wanted: Training, folder: Path) -> list[Tracker]:
    """Raises MissingExtra before anything is trained."""
    from mia.learn.metrics import TensorBoardMetrics, WandbMetrics

    found: list[Tracker] = []
    if wanted.tensorboard:
        require("tensorboard", extra="trackers", purpose="metrics for TensorBoard")
        found.append(lambda after: TensorBoardMetrics(folder / "tensorboard", after=after))
    if wanted.wandb:
        require("wandb", extra="trackers", purpose="metrics for Weights & Biases")
        found.append(lambda after: WandbMetrics(folder / "wandb", name=folder.name))
    return found


# ── models ────────────────────────────────────────────────────────────────────────────────────────────────────────


def world_models(wanted: Training) -> ModelsSettings:
    from mia.config import ModelsSettings
    from mia.world import preset

    path = str(wanted.model) if wanted.model else ""
    return ModelsSettings(default=preset.model_settings(path=path, batch=BATCH, threads=wanted.threads))


def _models(settings: ModelsSettings, learns: Role, begins: Mapping[Role, Path]) -> ModelsSettings:
    """The frozen roles with the weights that are theirs; the one that learns as its base."""
    return settings.model_copy(
        update={
            role.value: _with_weights(settings.of(role), path) for role, path in begins.items() if role is not learns
        }
    )


def _with_weights(settings: ModelSettings, path: Path) -> ModelSettings:
    return settings.model_copy(update={"adapter" if _is_adapter(path) else "path": str(path)})


def beginning(path: str, begin: Path | None, weights: str) -> tuple[str, Path | None]:
    """The base, and what the learner begins from where that is not the base itself. Raises ConfigError."""
    if begin is None:
        return path, None
    if weights == "lora" and not _is_adapter(begin):
        return str(begin), None
    if weights == "full" and _is_adapter(begin):
        raise ConfigError(
            f"'{begin}' holds an adapter, and all weights are to be trained.",
            wanted="the folder of a whole model to begin with",
            hint="--weights lora",
        )
    return path, begin


def _is_adapter(folder: Path) -> bool:
    """Raises ConfigError for a folder that holds neither an adapter nor a model."""
    if (folder / _ADAPTER_MARK).is_file():
        return True
    if (folder / "config.json").is_file():
        return False
    raise ConfigError(
        f"'{folder}' holds neither an adapter nor a model.",
        wanted=f"a folder with {_ADAPTER_MARK}, or one with config.json",
    )


def check_runs_here(model: ModelSettings, role: Role) -> None:
    """Raises ConfigError for a model whose weights are elsewhere."""
    if model.provider != "local":
        raise ConfigError(
            f"the {role.value} is asked over an endpoint, and its weights cannot be learnt there.",
            wanted="a model that runs here",
            hint=f'--model FOLDER, or models.{role.value}.provider = "local" with path',
        )


def open_learner(base: str, adapter: Path | None, model: ModelSettings, settings: LearnSettings, seed: int) -> Learner:
    """The learner of a model's weights: `base` and `adapter` as `beginning` tells them. Raises ConfigError,
    MissingExtra."""
    from mia.learn.learner import Learner

    return Learner.open(
        base,
        settings,
        device=model.device,
        threads=model.threads,
        adapter=adapter,
        seed=seed,
        batch=model.batch,
    )


def _comparable(settings: ModelsSettings) -> dict[str, Any]:
    """What of the models decides the outcome; weights are compared by their digests."""
    from mia.types import Role

    pages = {role.value: settings.of(role).model_dump(mode="json", exclude={"api_key"}) for role in Role}
    for page in pages.values():
        for name in ("path", "adapter", "batch", "threads", "device", "concurrency", "timeout_seconds"):
            del page[name]
    return pages


def _native(config: Config) -> bool:
    from mia.types import Role

    return config.models.of(Role.EXECUTOR).protocol == "native"


# ── questions ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def _questions(
    wanted: Options, config: Config, models: Models, base: str, resources: AsyncExitStack
) -> tuple[Source, Exam | None]:
    from mia.learn import sources

    source: Source
    exam: Exam | None = None
    if wanted.questions:
        from mia.cli.index import announce_first_use
        from mia.evals.tasks import read_tasks
        from mia.team import build_team

        tasks = read_tasks(wanted.questions)
        held_out = min(wanted.exam_questions, len(tasks) // 2) if wanted.exam_worlds else 0
        random.Random(f"held out {wanted.seed}").shuffle(tasks)
        announce_first_use(config)
        team = build_team(config, models=models)
        resources.push_async_callback(team.close)
        source = sources.TaskSource(tasks[held_out:], team, seed=wanted.seed)
        if held_out:
            exam = sources.TaskExam(tasks[:held_out], team)
    else:
        worlds = sources.Worlds(
            first_seed=first_unused(base) if wanted.first_seed is None else wanted.first_seed,
            streams=wanted.worlds or wanted.questions_per_step,
            questions=wanted.questions_per_world,
            hops=wanted.hops,
            shifted=wanted.shifted,
        )
        source = sources.WorldSource(worlds, models)
        if wanted.exam_worlds:
            exam = sources.WorldExam(
                sources.ExamWorlds(worlds=wanted.exam_worlds, questions=wanted.exam_questions, shifted=wanted.shifted),
                models,
            )
            resources.push_async_callback(exam.close)
    resources.push_async_callback(source.close)
    return source, exam


def first_unused(model: str) -> int:
    """The first training world that the warm-up of a model did not use, as its configuration tells; of a model that
    tells nothing, as if it had been made with the defaults."""
    from mia.learn.warmup.train import Recipe
    from mia.models.local import EMBEDDED
    from mia.world.seeds import TRAIN

    recipe = Recipe()
    used = {"shards": recipe.shards, "worlds_per_shard": recipe.worlds_per_shard}
    try:
        told = json.loads((Path(model or EMBEDDED) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        told = {}
    used |= told.get("mia_recipe") or {}
    return int(TRAIN.start + used["shards"] * used["worlds_per_shard"])


# ── when it is done ───────────────────────────────────────────────────────────────────────────────────────────────


def report(folder: Path, result: StageResult, rows: list[dict[str, Any]]) -> None:
    """The report, and the curves; a training without matplotlib is none the worse."""
    from mia.learn.report import draw, write_report

    page = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    write_report(folder, result, rows, page, shlex.join(["mia", *sys.argv[1:]]))
    try:
        draw(rows, result.exams, folder / "curves.png")
    except MissingExtra as error:
        output.warn(f"No curves: {error}")
