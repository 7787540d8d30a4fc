"""`mia learn reader`: a warm-up by a teacher, where it is wanted, and then reinforcement."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mia.cli import options, output
from mia.cli.learn.options import LEARNING, OWN, WORLD, Training, takes_options
from mia.errors import ConfigError

if TYPE_CHECKING:
    from mia.cli.learn.watching import Watch
    from mia.cli.options import Shared
    from mia.config import Config, ModelSettings, ReaderSettings
    from mia.learn.reading import Answered, LongQuestion
    from mia.learn.sources import ExamOf, SourceOf
    from mia.learn.stages import StageResult
    from mia.reader.chunks import TokenCounter

WARM_UP = "warm-up"
"""The folder of the warm-up, in that of the training."""
EXAM_QUESTIONS = 4


@dataclass(frozen=True, kw_only=True)
class ReaderOptions(Training):
    """What a training of the reader takes, too."""

    reader: Annotated[Path | None, typer.Option(help="An adapter or a whole model that the reader begins with.")] = None
    warm_up: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Steps in which an adapter learns from a teacher first; 0 for none.",
            show_default="6000 for the embedded model, else 0",
            rich_help_panel=WORLD,
        ),
    ] = None
    chunks: Annotated[int, typer.Option(min=1, help="Of each text, about.", rich_help_panel=WORLD)] = 8
    first_seed: Annotated[
        int | None,
        typer.Option(
            help="The first world.", show_default="the first that the model was not made with", rich_help_panel=WORLD
        ),
    ] = None
    texts: Annotated[
        Path | None, typer.Option(help="What `mia eval long-data` wrote; then no worlds.", rich_help_panel=OWN)
    ] = None
    questions_per_step: Annotated[int, typer.Option(min=1, help="Texts in a step.", rich_help_panel=LEARNING)] = 8
    samples: Annotated[int, typer.Option(min=1, help="Readings of each text.", rich_help_panel=LEARNING)] = 16
    exam_questions: Annotated[
        int, typer.Option(min=1, help="Texts of each world, or held out of your own.", rich_help_panel="Exams")
    ] = EXAM_QUESTIONS
    kl: Annotated[
        float | None,
        typer.Option(
            help="Weight of the divergence from the base.",
            show_default="0 in the world, else 0.001",
            rich_help_panel=LEARNING,
        ),
    ] = None


@takes_options(ReaderOptions)
def reader(context: typer.Context, options: ReaderOptions) -> None:
    """Train the reader of long texts: what to keep in the memory after each chunk, and to answer from it.

    Reward: 1 where the boxed answer is a reference, letter for letter; each chunk of a reading shares its advantage.
    The folder then holds adapter/ or model/ (what did best in the exams), report.md, curves.png and metrics.jsonl.
    Ctrl-C ends the step under way and saves; the same command goes on from there.
    """
    _train(context, options)


def _train(context: typer.Context, wanted: ReaderOptions) -> None:
    from mia.cli.learn.stage import page, tell
    from mia.cli.learn.training import until_stopped

    shared = options.shared(context)
    result = until_stopped(lambda watch: _both(wanted, shared, watch))
    if wanted.json:
        output.result_json(page(result))
    else:
        tell(result)


async def _both(wanted: ReaderOptions, shared: Shared, watch: Watch) -> StageResult | None:
    """The warm-up, where one is wanted, and the stage; None where it was stopped. Raises ConfigError, LearnError,
    MissingExtra, RecordError."""
    from mia.cli.learn.training import check_runs_here, world_models
    from mia.types import Role

    config = _config(wanted, shared)
    own = config.models.of(Role.READER) if wanted.texts else world_models(wanted).of(Role.READER)
    check_runs_here(own, Role.READER)
    begin = wanted.reader
    if steps := _warm_up_steps(wanted, own):
        begin = await _warm_up(wanted, config, own, steps, watch)
        if begin is None:
            return None
    watch.begin("reader")
    return await _stage(wanted, config, own, begin, watch)


def _config(wanted: ReaderOptions, shared: Shared) -> Config:
    """The page, under what was typed; where that says nothing, as MemAgent was trained, and in the world, as the
    embedded model reads. Raises ConfigError."""
    from mia.cli.embedded import filled
    from mia.cli.learn.training import FULL_RATE, learn_flags
    from mia.learn.reading import PAPER
    from mia.world import preset

    flags = learn_flags(wanted)
    if wanted.texts and wanted.model:
        flags |= {"models.reader.provider": "local", "models.reader.path": str(wanted.model)}
    config = shared.config(flags)
    # The reference of the divergence is the base without its adapter, which in the world cannot read at all.
    learn = {**PAPER, "kl": PAPER["kl"] if wanted.texts else 0.0}
    if config.learn.weights == "full":
        learn["rate"] = FULL_RATE
    return config.model_copy(
        update={
            "learn": filled(config.learn, **learn),
            "reader": config.reader if wanted.texts else filled(config.reader, **preset.READER),
        }
    )


# ── the warm-up ───────────────────────────────────────────────────────────────────────────────────────────────────


def _warm_up_steps(wanted: ReaderOptions, own: ModelSettings) -> int:
    """Raises ConfigError for a warm-up where there is no teacher, or weights to begin with are named."""
    from mia.learn.warmup.imitation import Recipe

    if wanted.warm_up and (wanted.texts or wanted.reader or wanted.weights == "full"):
        named = "--texts" if wanted.texts else "--reader" if wanted.reader else "--weights full"
        raise ConfigError(
            f"--warm-up makes an adapter to begin with, in the offline world; {named} does not go with it.",
            hint="leave one of the two out",
        )
    if wanted.warm_up is not None:
        return wanted.warm_up
    return 0 if wanted.texts or wanted.reader or wanted.weights == "full" or own.path else Recipe.steps


async def _warm_up(wanted: ReaderOptions, config: Config, own: ModelSettings, steps: int, watch: Watch) -> Path | None:
    from mia.learn.stages import Progress
    from mia.learn.warmup.imitation import Recipe, imitate
    from mia.learn.warmup.steps import Progress as Steps

    recipe = Recipe(
        steps=steps,
        rank=config.learn.rank,
        alpha=config.learn.alpha,
        seed=wanted.seed,
    )
    cancelled = threading.Event()

    def tell(progress: Steps) -> None:
        left = progress.seconds / progress.done * (progress.total - progress.done) if progress.done else None
        watch(Progress(WARM_UP, progress.done, progress.total, left))

    watch.begin("reader")
    try:
        return await asyncio.to_thread(
            imitate,
            wanted.out / WARM_UP,
            recipe,
            config.reader,
            model=own.path,
            on_progress=tell,
            stop=lambda: cancelled.is_set() or watch.stopping,
            threads=own.threads,
        )
    except asyncio.CancelledError:
        # Its thread goes on until the step under way is saved, and the program waits for it.
        cancelled.set()
        raise


# ── the stage ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def _stage(
    wanted: ReaderOptions, config: Config, own: ModelSettings, begin: Path | None, watch: Watch
) -> StageResult | None:
    from mia.cli.learn.training import beginning, open_learner, report, schedule, trackers
    from mia.evals.ladder import digest
    from mia.learn.reading import ReaderStage, reading_reward
    from mia.learn.stages import read_metrics, train_stage
    from mia.models import build_model
    from mia.reader.chunks import token_counter
    from mia.reader.read import Reader

    base, adapter = beginning(own.path, begin, config.learn.weights)
    own = own.model_copy(update={"path": base, "adapter": ""})
    async with AsyncExitStack() as resources:
        model = build_model(own, section="reader")
        resources.push_async_callback(model.close)
        stage = ReaderStage(config.reader, own.prompts, token_counter(model))
        prompts = Reader(model, config.reader, style=own.prompts)
        prompts.check_window()
        source, exam = _questions(wanted, config.reader, stage.counter, base)
        learner = open_learner(base, adapter, own, config.learn, wanted.seed)
        resources.push_async_callback(learner.close)
        result = await train_stage(
            stage,
            source,
            learner,
            config.learn,
            wanted.out,
            reward=reading_reward(config.learn),
            model=model,
            schedule=schedule(wanted),
            exam=exam,
            page={
                "base": learner.base,
                "begins": {} if begin is None else {"reader": digest(begin)},
                "reader": config.reader.model_dump(mode="json"),
                "prompts": prompts.prompts,
            },
            trackers=trackers(wanted, wanted.out),
            on_progress=watch,
            stop=lambda: watch.stopping,
        )
    if result is not None:
        report(wanted.out, result, read_metrics(wanted.out))
    return result


def _questions(
    wanted: ReaderOptions, settings: ReaderSettings, counter: TokenCounter, base: str
) -> tuple[SourceOf[LongQuestion, Answered], ExamOf[LongQuestion, Answered] | None]:
    """Raises ConfigError, and RecordError for a file that is none of samples."""
    from mia.cli.learn.training import first_unused
    from mia.learn import reading

    if wanted.texts is None:
        first_seed = first_unused(base) if wanted.first_seed is None else wanted.first_seed
        texts = reading.WorldTexts(first_seed, wanted.chunks)
        source = reading.WorldTextSource(texts, settings, counter)
        if not wanted.exam_worlds:
            return source, None
        seeds = reading.exam_seeds(wanted.exam_worlds)
        asked = reading.world_questions(seeds, wanted.exam_questions, wanted.chunks, settings, counter.count)
        page = {
            "kind": "world texts",
            "worlds": wanted.exam_worlds,
            "texts": wanted.exam_questions,
            "chunks": wanted.chunks,
        }
        return source, reading.TextExam(asked, page=page)
    own = _own_texts(wanted.texts)
    random.Random(f"held out {wanted.seed}").shuffle(own)
    held_out = min(wanted.exam_questions, len(own) // 2) if wanted.exam_worlds else 0
    # One text that is held out is no exam; it is learnt from.
    held_out = held_out if held_out > 1 else 0
    exam = reading.TextExam(own[:held_out]) if held_out else None
    return reading.TextListSource(own[held_out:], seed=wanted.seed), exam


def _own_texts(path: Path) -> list[LongQuestion]:
    """Raises RecordError."""
    from mia.evals.longdata import read_samples
    from mia.learn.reading import LongQuestion
    from mia.types import Question, Task

    return [
        LongQuestion(Task(question=Question(id=one.id, text=one.question), references=one.answers), one.text)
        for one in read_samples(path)
    ]
