"""`POST /v1/ask`: a question, answered in one reply or told as it happens."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from mia.errors import MiaError, ModelUnavailable, RecordError
from mia.redaction import Redactor
from mia.service.context import ClientGone, TheScope, TheService, while_connected
from mia.service.core import Service
from mia.service.live import ReaderTooSlow
from mia.service.problems import answer_of, problem, request_id
from mia.service.schemas import PROBLEMS, AskBody, AskReply
from mia.store.base import storable
from mia.types import Episode, Image, Question, Task

router = APIRouter(prefix="/v1", tags=["ask"], responses=PROBLEMS)

HEARTBEAT = 15.0
"""Seconds after which a stream says that it is still there."""
EVENT = {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
"""The schema of a server-sent event; its data is JSON."""
_redacted = Redactor("secrets")


@router.post(
    "/ask",
    response_model=AskReply,
    responses={200: {"content": {"text/event-stream": {"schema": EVENT}}}},
    summary="Answer a question",
)
async def ask(request: Request, body: AskBody, service: TheService, scope: TheScope) -> Response:
    """Recalls, plans, searches, reflects, judges; answers, and absorbs what was learnt afterwards.

    With `stream`, events are `stage_started`, `stage_finished`, `step_finished`, `text_arrived` and `retrying`, each
    with a JSON object as data; the last is `answer` (as without `stream`) or `error`. Whoever hangs up cancels the
    work.
    """
    task = task_of(body)
    if body.stream:
        return StreamingResponse(_events(request, service, task, scope), media_type="text/event-stream")
    try:
        episode = await while_connected(request, service.ask(task, scope))
    except ClientGone:
        return Response(status_code=499)
    request.app.state.metrics.answered(episode, "api")
    return reply(episode, request_id(request))


def task_of(body: AskBody) -> Task:
    """Raises RecordError."""
    images = []
    for encoded in body.images:
        # A data URL is its base64; no other URL is followed.
        try:
            content = base64.b64decode(encoded.rpartition(",")[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise RecordError("an image is no base64.", wanted="PNG, JPEG, GIF or WebP in base64") from error
        images.append(Image.from_bytes(content))
    question = Question.of(body.question, id=body.id, images=tuple(images), caption=body.caption)
    return Task(question=question, references=tuple(body.references))


def unheard(episode: Episode) -> bool:
    """Whether the model could not be asked."""
    return episode.answer is None and episode.stop is not None and episode.stop.reason.unheard


def unanswered(episode: Episode) -> ModelUnavailable:
    """Of one that was `unheard`, as an error."""
    assert episode.stop is not None
    return ModelUnavailable(
        f"the model could not be asked: {episode.stop.sentence}",
        hint="look at the endpoint (mia doctor); what is remembered can still be recalled: POST /v1/recall",
    )


def reply(episode: Episode, request_id: str) -> Response:
    """The answer; 503 where the model could not be asked."""
    if unheard(episode):
        return answer_of(unanswered(episode), request_id, episode_id=episode.id)
    page = json.dumps(_redacted.record(AskReply.of(episode).model_dump(mode="json")), ensure_ascii=False)
    # A model's text may hold half a character, which cannot be sent.
    return Response(storable(page), media_type="application/json")


async def _events(request: Request, service: Service, task: Task, scope: str) -> AsyncIterator[bytes]:
    """The stages of a question as server-sent events. When the reader goes, the work is cancelled. Nothing begins
    before somebody reads."""
    begun = service.live.begin(scope, task.question, "api")
    with begun.subscribe() as reader:
        work = asyncio.create_task(service.ask(task, scope, ask=begun, stream=True))
        try:
            yield _event("begun", {"episode_id": begun.id, "question_id": task.question.id})
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        event = await reader.next()
                except TimeoutError:
                    yield b": still there\n\n"
                    continue
                except ReaderTooSlow:
                    yield _event("error", problem(499, "too little of the stream was read.", kind="ReaderTooSlow"))
                    return
                if event is None:
                    break
                yield _event(event.kind, event.model_dump(mode="json"))
            episode = await work
            answered: Response = reply(episode, request_id(request))
            if not unheard(episode):
                request.app.state.metrics.answered(episode, begun.door)
        except MiaError as error:
            answered = answer_of(error, request_id(request))
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
    kind = "answer" if answered.status_code == 200 else "error"
    yield _event(kind, json.loads(bytes(answered.body)))


def _event(kind: str, data: object) -> bytes:
    # What an endpoint says of a request that it refuses may hold the key that it came with.
    return f"event: {kind}\ndata: {json.dumps(_redacted.record(data))}\n\n".encode()
