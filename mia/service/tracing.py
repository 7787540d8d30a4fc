"""OpenTelemetry spans of what the service does, named by the conventions for generative AI (docs/tracing.md).

    invoke_agent mia              a question, through whatever door it came
      recall, plan, execute …     a stage
        chat MODEL                a call of a model
        execute_tool search       a use of a tool

Questions, stages and tools are made of what the line tells of itself (`live.py`), calls of models around the models.
The API of OpenTelemetry alone is used: where spans go is up to its SDK, which whoever wants them installs. No text of
anybody is in a span unless `serve.trace_texts` says so; then it is redacted as the memory is, and what the judge is
asked, which may hold references, stays out. Nothing here fails a question: what the SDK raises is logged.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode

import mia
from mia.config import Config
from mia.events import StageFinished, StageStarted, StepFinished
from mia.models import Models
from mia.models.base import Around, ChatModel, ChatReply, ChatRequest
from mia.redaction import Redactor
from mia.service.core import Service
from mia.service.live import Ask, Live, Subscription
from mia.types import Question, Role, Step, Usage

log = logging.getLogger("mia.service")

Texts = Callable[[Any], Any] | None
"""Redacts what goes into a span; None: no texts go into spans."""


@dataclass
class _Stage:
    """The stage that a context is in."""

    span: Span
    token: Token[contexts.Context]
    called_at: int = 0
    """When the last call of a model ended, in nanoseconds since the epoch: a tool runs from then on."""


_STAGE: ContextVar[_Stage | None] = ContextVar("mia_stage", default=None)


def install(service: Service) -> None:
    """Have a service make spans of its questions; before it is asked anything."""
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        log.warning("serve.traces is on, and nothing takes the spans; try: opentelemetry-instrument mia serve")
    service.live = _TracedLive(_texts(service.config))


def traced_models(models: Models, config: Config) -> Models:
    """The models, each call of which makes a span; one that does already is left as it is."""
    texts = _texts(config)
    # One around each: roles that share a model still do.
    around: dict[int, ChatModel] = {}
    changes: dict[str, Any] = {}
    for name in (*(role.value for role in Role), "cold_start"):
        model: ChatModel | None = getattr(models, name)
        if model is not None and not isinstance(model, TracedModel):
            changes[name] = around.setdefault(id(model), TracedModel(model, texts))
    return replace(models, **changes)


class TracedModel(Around[ChatModel]):
    """A model whose calls make spans."""

    def __init__(self, model: ChatModel, texts: Texts = None) -> None:
        super().__init__(model)
        self._texts = texts

    async def complete(self, request: ChatRequest) -> ChatReply:
        span: Span = trace.INVALID_SPAN
        token: Token[contexts.Context] | None = None
        with _harmless():
            span = self._begin(request)
            token = contexts.attach(trace.set_span_in_context(span))
        try:
            reply = await self.model.complete(request)
        except BaseException as error:
            with _harmless():
                _fail(span, type(error).__name__)
            raise
        else:
            with _harmless():
                self._describe(span, request, reply)
            return reply
        finally:
            with _harmless():
                stage = _STAGE.get()
                if stage is not None:
                    stage.called_at = time.time_ns()
                if token is not None:
                    contexts.detach(token)
                span.end()

    def _begin(self, request: ChatRequest) -> Span:
        model, _, where = self.name.partition(" @ ")
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai" if where.startswith("http") else "mia",
            "gen_ai.request.model": model,
            "gen_ai.request.max_tokens": request.max_tokens or self.max_tokens,
            "gen_ai.request.temperature": request.temperature,
            "gen_ai.request.top_p": request.top_p,
            "gen_ai.request.seed": request.seed,
            "mia.role": request.role.value,
            "mia.purpose": request.purpose,
            "mia.turn": request.turn,
        }
        span = _tracer().start_span(f"chat {model}", kind=SpanKind.CLIENT, attributes=_present(attributes))
        if self._may_tell(request):
            messages = [_message(one.role, one.content) for one in request.messages]
            self._tell(span, "gen_ai.input.messages", messages)
        return span

    def _describe(self, span: Span, request: ChatRequest, reply: ChatReply) -> None:
        span.set_attributes(
            {
                "gen_ai.response.model": reply.model or self.name.partition(" @ ")[0],
                "gen_ai.response.finish_reasons": [reply.finish_reason],
                **_spent(reply.usage),
            }
        )
        if self._may_tell(request):
            said = [{**_message("assistant", reply.text), "finish_reason": reply.finish_reason}]
            self._tell(span, "gen_ai.output.messages", said)

    def _may_tell(self, request: ChatRequest) -> bool:
        return self._texts is not None and request.role is not Role.JUDGE

    def _tell(self, span: Span, name: str, value: Any) -> None:
        assert self._texts is not None
        span.set_attribute(name, json.dumps(self._texts(value)))


class _TracedLive(Live):
    """Questions under way that make spans."""

    def __init__(self, texts: Texts) -> None:
        super().__init__()
        self._texts = texts

    def begin(self, scope: str, question: Question, door: str, *, id: str = "") -> Ask:
        ask = super().begin(scope, question, door, id=id)
        ask.listen(_Spans(ask, self._texts))
        return ask


class _Spans(Subscription):
    """A reader of a question's events that makes spans of them, in the context of whoever tells them."""

    def __init__(self, ask: Ask, texts: Texts) -> None:
        super().__init__()
        self._ask = ask
        self._texts = texts
        self._root: Span = trace.INVALID_SPAN
        self._open: list[Span] = []
        with _harmless():
            self._root = _tracer().start_span("invoke_agent mia", attributes=self._asked())

    def put(self, event: Any) -> None:
        with _harmless():
            if isinstance(event, StageStarted):
                self._begin_stage(event)
            elif isinstance(event, StageFinished):
                self._end_stage(event.ok)
            elif isinstance(event, StepFinished) and event.step.tool_call is not None:
                self._tool(event.step)
            elif event is None:
                self._finish()

    def _asked(self) -> dict[str, Any]:
        asked: dict[str, Any] = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": "mia",
            "gen_ai.agent.name": "mia",
            "gen_ai.agent.version": mia.__version__,
            "mia.episode_id": self._ask.id,
            "mia.question_id": self._ask.question_id,
            "mia.scope": self._ask.scope,
            "mia.door": self._ask.door,
        }
        if self._texts is not None:
            asked["gen_ai.input.messages"] = json.dumps(self._texts([_message("user", self._ask.question)]))
        return asked

    def _begin_stage(self, event: StageStarted) -> None:
        within = trace.set_span_in_context(self._root)
        span = _tracer().start_span(event.stage, context=within, attributes={"mia.stage": event.stage})
        self._open.append(span)
        # Models and tools are called in this context, or in one that is copied from it.
        _STAGE.set(_Stage(span, contexts.attach(trace.set_span_in_context(span))))

    def _end_stage(self, ok: bool) -> None:
        stage = _STAGE.get()
        if stage is None or stage.span not in self._open:
            return
        _STAGE.set(None)
        contexts.detach(stage.token)
        if not ok:
            _fail(stage.span, "stage_failed")
        self._open.remove(stage.span)
        stage.span.end()

    def _tool(self, step: Step) -> None:
        assert step.tool_call is not None
        now = time.time_ns()
        stage = _STAGE.get()
        begun = stage.called_at if stage is not None and stage.called_at else now - int(step.seconds * 1e9)
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": step.tool_call.name,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.id": step.tool_call.id or None,
            "mia.step": step.index,
        }
        if self._texts is not None:
            attributes["gen_ai.tool.call.arguments"] = json.dumps(self._texts(dict(step.tool_call.arguments)))
            attributes["gen_ai.tool.call.result"] = self._texts(step.observation.text) if step.observation else None
        span = _tracer().start_span(
            f"execute_tool {step.tool_call.name}",
            # In the stage where it is told in one; a learner tells what happened from a context of its own.
            context=None if stage is not None else trace.set_span_in_context(self._root),
            attributes=_present(attributes),
            start_time=begun,
        )
        if step.observation is not None and not step.observation.ok:
            _fail(span, step.observation.error or "tool_failed")
        span.end(end_time=now)

    def _finish(self) -> None:
        # What was cancelled, or died of a bug, has a stage that never finished.
        self._end_stage(ok=False)
        for span in self._open:
            _fail(span, "stage_failed")
            span.end()
        self._open.clear()
        episode = self._ask.episode
        if episode is None:
            _fail(self._root, "cancelled" if self._ask.error == "cancelled" else "_OTHER")
        else:
            self._root.set_attributes(
                _present(
                    {
                        **_spent(episode.total_usage),
                        "mia.outcome": episode.verdict.outcome.value if episode.verdict is not None else None,
                        "mia.memories": len(episode.recall.shown) if episode.recall is not None else 0,
                        "mia.stop": episode.stop.reason.value if episode.stop is not None else None,
                    }
                )
            )
            if episode.answer is None and not episode.withheld and episode.stop is not None:
                _fail(self._root, episode.stop.reason.value)
            if self._texts is not None and episode.answer is not None:
                said = [{**_message("assistant", episode.answer.text), "finish_reason": "stop"}]
                self._root.set_attribute("gen_ai.output.messages", json.dumps(self._texts(said)))
        self._root.end()


@contextmanager
def _harmless() -> Iterator[None]:
    """What processors and exporters of the SDK raise is logged, by its kind alone, and forgotten."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a span is worth no question
        log.warning("a span could not be made (%s)", type(error).__name__)


def _tracer() -> trace.Tracer:
    # Asked for each time: the SDK may be set up after the service.
    return trace.get_tracer("mia", mia.__version__)


def _texts(config: Config) -> Texts:
    return Redactor(config.memory.redact).record if config.serve.trace_texts else None


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def _spent(usage: Usage) -> dict[str, int]:
    return {"gen_ai.usage.input_tokens": usage.prompt_tokens, "gen_ai.usage.output_tokens": usage.completion_tokens}


def _present(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _fail(span: Span, kind: str) -> None:
    """Without a message, which may quote what was asked."""
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)
