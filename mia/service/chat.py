"""`/v1/chat/completions` and `/v1/models`: MIA as a model, for any program that speaks with OpenAI's API.

The last turn of the user is researched like any question: recalled for, judged, remembered. In a longer chat it is
rewritten to stand alone first (`rewriting.py`), and shown. What happens on the way is told as reasoning, a line for
each stage and each use of a tool; then comes the answer, with its sources as footnotes.

Text that pages and tools wrote is shown by programs that draw Markdown, and that fetch an image as soon as they draw
it: it is escaped, so that no page can have anything fetched.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from mia.config import Config
from mia.errors import BudgetExceeded, MiaError
from mia.events import Retrying, StageFinished, StepFinished
from mia.models.ledger import Ledger
from mia.service.api.asks import HEARTBEAT, unanswered, unheard
from mia.service.chat_problems import OPENAI_PROBLEMS, OpenAIRoute, openai_answer
from mia.service.chat_schemas import (
    MODEL,
    Asked,
    ChatBody,
    Choice,
    Completion,
    Findings,
    ModelCard,
    ModelList,
    Said,
    Spent,
    check_model,
    read_chat,
)
from mia.service.context import ClientGone, TheScope, TheService, while_connected
from mia.service.core import Service
from mia.service.live import ReaderTooSlow
from mia.service.metrics import Metrics
from mia.service.problems import request_id
from mia.service.rewriting import Rewriter
from mia.team import budget
from mia.transcript import describe_call
from mia.types import Episode, Question, Role, StopReason, Task, Usage, new_id

router = APIRouter(prefix="/v1", tags=["chat"], responses=OPENAI_PROBLEMS, route_class=OpenAIRoute)

LINE = 300
"""Characters of a line of reasoning, or of a title."""

_LIMITS = frozenset((StopReason.CALL_LIMIT, StopReason.TIME_LIMIT, StopReason.CONTEXT_LIMIT, StopReason.BUDGET))
_MARKDOWN = re.compile(r"[\\`<\[\]]")


@router.post(
    "/chat/completions",
    response_model=Completion,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    summary="Answer the last turn of a chat",
)
async def complete(request: Request, body: ChatBody, service: TheService, scope: TheScope) -> Response:
    """As OpenAI's endpoint of this name, with the model `mia`. The stages are told as `reasoning_content`, in the
    message or piece by piece; `mia` holds the episode, the memories and the verdict. Whoever hangs up cancels the work.
    """
    asked = read_chat(body)
    metrics: Metrics = request.app.state.metrics
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        pieces = _pieces(service, asked, scope, metrics, request_id(request), usage)
        return StreamingResponse(pieces, media_type="text/event-stream")
    try:
        return await while_connected(request, _complete(service, asked, scope, metrics, request_id(request)))
    except ClientGone:
        return Response(status_code=499)


@router.get("/models", response_model=ModelList, summary="The models: one")
async def list_models(service: TheService) -> ModelList:
    return ModelList(data=(_card(service),))


@router.get("/models/{model}", response_model=ModelCard, summary="A model")
async def show_model(model: str, service: TheService) -> ModelCard:
    check_model(model)
    return _card(service)


# ── the answer ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Put:
    """The question as it is put."""

    question: Question
    shown: str
    """The line that tells it, where it was to be rewritten."""
    spent: Usage
    """On rewriting it."""


async def _put(service: Service, asked: Asked) -> _Put:
    """Rewrite the question to stand alone, where something was said before it."""
    as_it_stands = Question.of(asked.last, images=asked.images)
    if not asked.before:
        return _Put(as_it_stands, "", Usage())
    config: Config = service.config
    rewriter = Rewriter(service.models.manager, style=config.models.of(Role.MANAGER).prompts)
    ledger = Ledger(as_it_stands.id, budget=budget(config.budget.question))
    rewritten = await rewriter.rewrite(asked.before, asked.last, ledger)
    if rewritten is None:
        return _Put(as_it_stands, f"question: {_line(asked.last)} (as it stands)", ledger.total)
    question = Question.of(rewritten, images=asked.images)
    return _Put(question, f"question: {_line(rewritten, most=len(rewritten))}", ledger.total)


async def _complete(service: Service, asked: Asked, scope: str, metrics: Metrics, request_id: str) -> Response:
    put = await _put(service, asked)
    begun = service.live.begin(scope, put.question, "chat")
    episode = await service.ask(Task(question=put.question), scope, ask=begun)
    metrics.answered(episode, "chat")
    if unheard(episode):
        return openai_answer(unanswered(episode), request_id, episode_id=episode.id)
    lines = [put.shown, *map(_told, begun.events)]
    said = Said(content=_content(episode), reasoning_content="\n".join(filter(None, lines)))
    made = Completion(
        id=new_id("chatcmpl"),
        created=int(time.time()),
        choices=(Choice(message=said, finish_reason=_finish_reason(episode)),),
        usage=Spent.of(put.spent + episode.total_usage),
        mia=_findings(episode),
    )
    return JSONResponse(made.model_dump(mode="json"))


async def _pieces(
    service: Service, asked: Asked, scope: str, metrics: Metrics, request_id: str, usage: bool
) -> AsyncIterator[bytes]:
    """The same, piece by piece. When the reader goes, the work is cancelled."""
    head: dict[str, Any] = {
        "id": new_id("chatcmpl"),
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": MODEL,
    }
    if usage:
        head["usage"] = None

    def piece(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        return _sent({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], **more})

    under_way: list[asyncio.Task[Any]] = []
    try:
        yield piece({"role": "assistant", "content": ""})
        putting = asyncio.create_task(_put(service, asked))
        under_way.append(putting)
        async for beat in _beats(putting):
            yield beat
        put = await putting
        if put.shown:
            yield piece({"reasoning_content": f"{put.shown}\n"})
        begun = service.live.begin(scope, put.question, "chat")
        with begun.subscribe() as reader:
            work = asyncio.create_task(service.ask(Task(question=put.question), scope, ask=begun))
            under_way.append(work)
            while True:
                coming = asyncio.create_task(reader.next())
                under_way.append(coming)
                async for beat in _beats(coming):
                    yield beat
                under_way.remove(coming)
                event = await coming
                if event is None:
                    break
                if line := _told(event):
                    yield piece({"reasoning_content": f"{line}\n"})
        episode = await work
        metrics.answered(episode, "chat")
        if unheard(episode):
            yield _failed(unanswered(episode), request_id, episode_id=episode.id)
            return
        yield piece({"content": _content(episode)})
        yield piece({}, _finish_reason(episode), mia=_findings(episode).model_dump(mode="json"))
        if usage:
            spent = Spent.of(put.spent + episode.total_usage)
            yield _sent({**head, "choices": [], "usage": spent.model_dump(mode="json")})
        yield b"data: [DONE]\n\n"
    except MiaError as error:
        yield _failed(error, request_id)
    except ReaderTooSlow:
        yield _failed(
            BudgetExceeded("too little of the stream was read.", limit="seconds", scope="question"), request_id
        )
    finally:
        for one in under_way:
            one.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _beats(task: asyncio.Task[Any]) -> AsyncIterator[bytes]:
    """A sign of life whenever a task lets a reader wait long; ends when it is done."""
    while not (await asyncio.wait((task,), timeout=HEARTBEAT))[0]:
        yield b": still there\n\n"


def _failed(error: MiaError, request_id: str, **more: Any) -> bytes:
    """The last piece of a stream that has begun."""
    return _sent(json.loads(bytes(openai_answer(error, request_id, **more).body)))


def _sent(data: object) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


# ── how it is told ────────────────────────────────────────────────────────────────────────────────────────────────


def _told(event: Any) -> str:
    """The line that tells an event; empty for one that is not told."""
    if isinstance(event, StageFinished):
        return f"{event.stage}{'' if event.ok else ' failed'}: {_line(event.summary)}"
    if isinstance(event, StepFinished) and event.step.tool_call is not None:
        observation = event.step.observation
        failed = "" if observation is None or observation.ok else " (failed)"
        return f"{_line(describe_call(event.step.tool_call))}{failed}"
    if isinstance(event, Retrying):
        return f"{event.role.value}: its model is asked again {event.when} ({_line(event.reason)})"
    return ""


def _content(episode: Episode) -> str:
    """The answer with its footnotes, or why there is none."""
    if episode.withheld:
        return "There is an answer, and it is held back: what was found does not support it well enough."
    if episode.answer is None:
        return f"There is no answer: {episode.stop.sentence if episode.stop is not None else 'nothing was found.'}"
    citations = episode.answer.citations
    # What a page could have put there to be fetched; else the answer is left as it is, for programs that read it.
    text = episode.answer.text.replace("![", "!\\[")
    marks = "".join(f"[{number}]" for number in range(1, len(citations) + 1))
    notes = [
        f"[{number}] {_line(one.title or one.passage_id)}: “{_line(one.quote, most=len(one.quote))}”"
        for number, one in enumerate(citations, 1)
    ]
    return "\n\n".join([f"{text} {marks}".strip(), *notes])


def _line(text: str, *, most: int = LINE) -> str:
    """A text of a model, a page or a user on one line, with the signs of Markdown and HTML escaped."""
    folded = " ".join(text.split())
    cut = folded if len(folded) <= most else f"{folded[: most - 1]}…"
    return _MARKDOWN.sub(lambda sign: f"\\{sign.group()}", cut)


def _finish_reason(episode: Episode) -> Any:
    ended = episode.answer is None and episode.stop is not None and episode.stop.reason in _LIMITS
    return "length" if ended and not episode.withheld else "stop"


def _findings(episode: Episode) -> Findings:
    return Findings(
        episode_id=episode.id,
        question=episode.question.text,
        memories=tuple(one.memory_id for one in episode.recall.shown) if episode.recall is not None else (),
        verdict=episode.verdict,
        citations=episode.answer.citations if episode.answer is not None else (),
        withheld=episode.withheld,
        stop=episode.stop,
        version=episode.adapters.get(Role.PLANNER, ""),
    )


def _card(service: Service) -> ModelCard:
    # Its name without the address, which is nobody's business but of whoever runs the server.
    names = {role.value: service.models.of(role).name.partition(" @ ")[0] for role in Role}
    return ModelCard(created=int(service.started_at), mia=names)
