"""The reference's streaming trainer: samples come one by one, our learner answers and learns from them.

Of a sample its question counts (`extra_info`), and the reference answer that was registered under its id. Tokens that a
client sends are passed over: the learner has those of its own model. `global_steps` counts from 1, and grows by one
with each update of the weights, as the reference's does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, ValidationError

from mia.errors import LearnError, ModelUnavailable, RecordError
from mia.learn.online import OnlineLearner
from mia.learn.spool import Group, read_lines
from mia.service.compat import wire
from mia.service.compat.columns import read_columns
from mia.service.compat.context import Compatibility, TheCompatibility, held
from mia.service.context import TheScope, TheService
from mia.service.core import LEARNING, Service, require_learner
from mia.service.schemas import PROBLEMS
from mia.types import Outcome, Question, Task

router = APIRouter(tags=["reference: streaming trainer"], responses=PROBLEMS)

Columns = dict[str, Any]
Epoch = Annotated[int, Field(ge=-1_000_000, le=1_000_000)]


class SampleBody(wire.Sent):
    rollout: Columns
    epoch: Epoch = 0
    """Said again in the answer. Our learner counts itself: a question that comes again is one of the next pass."""
    finish: bool = False
    flush_partial: bool = False
    """Learn what waits, though it is no whole batch."""


class BatchBody(wire.Sent):
    batch: Columns
    epoch: Epoch = 0
    finish: bool = False


class RolledOut(wire.Given):
    """Samples wait."""

    status: Literal["rollout"] = "rollout"
    global_steps: int
    rollout_buffer_len: int
    epoch: int


class Stepped(wire.Given):
    """The weights were updated."""

    status: Literal["step"] = "step"
    metrics: dict[str, float]
    global_steps: int
    done: bool
    epoch: int


class Checkpoint(wire.Given):
    ok: Literal[True] = True
    checkpoint_global_step: int
    global_steps: int
    version: str
    """The version that answers now; every version is kept, whether this is asked for or not."""


class Health(wire.Given):
    """Of the reward service and of the streaming trainer."""

    status: Literal["ok"] = "ok"
    registered_gts: int
    global_steps: int
    total_training_steps: int | None
    """None: a stream has no end."""
    train_batch_size: int
    rollout_n: int
    rollout_buffer_samples: int
    """Sequences that wait: questions times tries."""
    rollout_buffer_len: int


class _ExtraInfo(wire.Sent):
    """What a sample says of itself."""

    question: wire.Asked
    data_id: wire.DataId = ""
    image_caption: wire.Caption = ""


@router.post("/submit_sample", response_model=RolledOut | Stepped, summary="Answer samples, and learn from them")
async def submit_sample(
    request: Request, body: SampleBody, service: TheService, compatibility: TheCompatibility, scope: TheScope
) -> RolledOut | Stepped | Response:
    """Waits for the update where these samples fill a batch. Whoever hangs up breaks off what is not yet answered."""
    flush = body.flush_partial or body.finish
    return await held(
        request, _submit(service, compatibility, scope, body.rollout, body.epoch, flush=flush, finish=body.finish)
    )


@router.post("/submit_batch", response_model=RolledOut | Stepped, summary="Answer a batch, and learn from it at once")
async def submit_batch(
    request: Request, body: BatchBody, service: TheService, compatibility: TheCompatibility, scope: TheScope
) -> RolledOut | Stepped | Response:
    return await held(
        request, _submit(service, compatibility, scope, body.batch, body.epoch, flush=True, finish=body.finish)
    )


@router.post(
    "/save_checkpoint",
    response_model=Checkpoint,
    summary="Which version answers",
)
async def save_checkpoint(
    service: TheService, compatibility: TheCompatibility, scope: TheScope, body: Annotated[Any, Body()] = None
) -> Checkpoint | Response:
    """400 before the first update. Versions are on the disk as soon as they are made; nothing is left to save."""
    learner = _learner(service, scope)
    steps = await asyncio.to_thread(_steps, service)
    if not steps:
        page = {"ok": False, "error": "there was no update of the weights yet.", "global_steps": 1}
        return JSONResponse(page, 400)
    return Checkpoint(checkpoint_global_step=steps, global_steps=steps + 1, version=learner.version)


@router.get("/health", response_model=Health, summary="Of the reward service and the streaming trainer")
async def health(service: TheService, compatibility: TheCompatibility, scope: TheScope) -> Health:
    learner, settings = service.learner, service.config.learn
    waiting = learner.waiting * settings.samples if learner is not None else 0
    return Health(
        registered_gts=await asyncio.to_thread(compatibility.registry.count_truths, scope),
        global_steps=1 + await asyncio.to_thread(_steps, service),
        total_training_steps=None,
        train_batch_size=settings.batch,
        rollout_n=settings.samples,
        rollout_buffer_samples=waiting,
        rollout_buffer_len=waiting,
    )


async def _submit(
    service: Service,
    compatibility: Compatibility,
    scope: str,
    batch: Mapping[str, Any],
    epoch: int,
    *,
    flush: bool,
    finish: bool,
) -> RolledOut | Stepped:
    """Raises LearnError, RecordError, StoreError, ModelUnavailable."""
    learner = _learner(service, scope)
    if compatibility.steps_told is None:
        compatibility.steps_told = await asyncio.to_thread(_steps, service)
    tasks = await asyncio.to_thread(_tasks, service, compatibility, scope, batch)
    groups = await _answered(service, learner, tasks)
    if flush or learner.is_learning:
        await learner.flush()
    steps = await asyncio.to_thread(_steps, service)
    new, compatibility.steps_told = steps - compatibility.steps_told, steps
    if new > 0:
        metrics = _metrics(learner, groups, new)
        return Stepped(metrics=metrics, global_steps=steps + 1, done=finish, epoch=epoch)
    waiting = learner.waiting * service.config.learn.samples
    return RolledOut(global_steps=steps + 1, rollout_buffer_len=waiting, epoch=epoch)


async def _answered(service: Service, learner: OnlineLearner, tasks: Sequence[Task]) -> list[Group]:
    """Raises ModelUnavailable where none of them could be asked."""
    answered = await asyncio.gather(*(service.try_out(task) for task in tasks))
    groups = [group for group in answered if group is not None]
    if not groups:
        why = learner.unanswered.get(tasks[0].question.id, "its model could not be asked")
        raise ModelUnavailable(f"none of {len(tasks)} samples could be asked: {why}", hint="mia doctor")
    return groups


def _tasks(service: Service, compatibility: Compatibility, scope: str, batch: Mapping[str, Any]) -> list[Task]:
    """Raises RecordError for samples that cannot be learnt from, before any of them is answered."""
    columns = read_columns(batch)
    if "extra_info" not in columns:
        raise RecordError("there is no column 'extra_info'.", wanted="objects with question and data_id, one a sample")
    tasks = []
    registry = compatibility.registry
    for number, page in enumerate(columns["extra_info"]):
        try:
            info = _ExtraInfo.model_validate(page)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise RecordError(
                f"sample {number} cannot be read{f' at {where}' if where else ''}.",
                wanted="in extra_info, an object with question and data_id",
            ) from None
        images = registry.images(scope, info.data_id) if info.data_id else ()
        question = Question.of(info.question, id=info.data_id, images=images, caption=info.image_caption)
        truth = registry.truth(scope, info.data_id) if info.data_id else ""
        tasks.append(Task(question=question, references=(truth,) if truth else ()))
    missing = sum(not task.references for task in tasks)
    if missing and service.config.learn.supervised:
        raise RecordError(
            f"{missing} of {len(tasks)} samples have no ground truth, and learning is supervised.",
            wanted="one for each data_id",
            hint="POST /register_gts before; or learn.supervised = false",
        )
    return tasks


def _learner(service: Service, scope: str) -> OnlineLearner:
    """Raises LearnError where nothing learns, or not for this scope."""
    learner = require_learner(service)
    if scope != service.config.memory.scope:
        raise LearnError("this server does not learn from your scope.", hint="a server of its own, with memory.scope")
    return learner


def _steps(service: Service) -> int:
    """Versions that the stream made since it was begun, over all starts of the server. Raises RecordError."""
    pages = read_lines(service.config.home / LEARNING / "updates.jsonl")
    return sum(bool(page.get("version")) for page in pages)


def _metrics(learner: OnlineLearner, groups: Sequence[Group], new: int) -> dict[str, float]:
    """Of the last update, and of the samples that were submitted with it."""
    metrics: dict[str, float] = {"updates": float(new)}
    if learner.updates:
        update = learner.updates[-1]
        metrics |= {"questions": float(update.questions), "kept": float(update.kept)}
        metrics |= {name: float(value) for name, value in update.learnt.metrics.items()}
    rewards = [rollout.reward for group in groups for rollout in group.rollouts]
    verdicts = [group.episode.verdict for group in groups]
    judged = [one for one in verdicts if one is not None and one.outcome is not Outcome.UNJUDGED]
    if rewards:
        metrics["reward/mean"] = sum(rewards) / len(rewards)
    if judged:
        metrics["accuracy"] = sum(one.correct for one in judged) / len(judged)
    return metrics
