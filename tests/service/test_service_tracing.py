"""Spans as OpenTelemetry's SDK gets them: one tree a question, no texts unless asked for, no question lost to them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from service_team import RIGHT, make_service, models, says, settings
from shelf import ShelfTool, call
from starlette.testclient import TestClient

from mia.errors import ModelUnavailable
from mia.models.base import ChatRequest
from mia.service.app import create_app
from mia.service.core import Service
from mia.service.live import Live
from mia.service.tracing import traced_models

QUESTION = "Where was Christiaan Huygens born?"
SECRET = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Where the spans go: the process has one provider for good, so that it is put in the place of asking for it."""
    exporter = InMemorySpanExporter()
    collect(monkeypatch, SimpleSpanProcessor(exporter))
    return exporter


def collect(monkeypatch: pytest.MonkeyPatch, processor: SpanProcessor) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)


def finds(request: ChatRequest) -> Any:
    if request.purpose == "execute":
        found = any("[h-1]" in message.content for message in request.messages)
        return f"<answer>{RIGHT}</answer>" if found else call("huygens")
    return says(request)


def client_of(home: Path, answers: Callable[[ChatRequest], Any] = finds, **flags: Any) -> TestClient:
    config = settings(home, **{"serve__traces": True, **flags})
    service = Service(config, models=traced_models(models(answers), config), tools=[ShelfTool()])
    return TestClient(create_app(service), raise_server_exceptions=False)


def ask(client: TestClient, question: str = QUESTION) -> Any:
    return client.post("/v1/ask", json={"question": question, "references": [RIGHT]})


def of_the_question(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    """The spans of the one trace whose root is a question; calls for the memory's sake come later and are their own."""
    finished = exporter.get_finished_spans()
    (root,) = [span for span in finished if span.name == "invoke_agent mia"]
    return [span for span in finished if span.context.trace_id == root.context.trace_id]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_question_is_one_tree(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    with client_of(tmp_path) as client:
        page = ask(client).json()
    found = of_the_question(spans)
    by_id = {span.context.span_id: span for span in found}
    tree = [
        (by_id[span.parent.span_id].name if span.parent else "", span.name)
        for span in sorted(found, key=lambda span: span.start_time or 0)
    ]
    assert tree == [
        ("", "invoke_agent mia"),
        ("invoke_agent mia", "recall"),
        ("invoke_agent mia", "plan"),
        ("plan", "chat scripted"),
        ("invoke_agent mia", "execute"),
        ("execute", "chat scripted"),
        ("execute", "execute_tool shelf"),
        ("execute", "chat scripted"),
        ("invoke_agent mia", "reflect"),
        ("reflect", "chat scripted"),
        ("invoke_agent mia", "judge"),
    ]
    root = attributes(next(span for span in found if span.parent is None))
    assert root["gen_ai.operation.name"] == "invoke_agent"
    assert root["gen_ai.agent.name"] == "mia"
    assert root["mia.episode_id"] == page["episode_id"]
    assert root["mia.outcome"] == "correct"
    assert root["mia.door"] == "api"
    chats = [attributes(span) for span in found if span.name == "chat scripted"]
    assert [one["mia.purpose"] for one in chats] == ["plan", "execute", "execute", "reflect"]
    for name, wanted in (("input", page["usage"]["prompt_tokens"]), ("output", page["usage"]["completion_tokens"])):
        assert root[f"gen_ai.usage.{name}_tokens"] == wanted
        assert sum(one[f"gen_ai.usage.{name}_tokens"] for one in chats) == wanted
    assert all(one["gen_ai.operation.name"] == "chat" for one in chats)
    assert all(one["gen_ai.request.model"] == one["gen_ai.response.model"] == "scripted" for one in chats)
    assert all(tuple(one["gen_ai.response.finish_reasons"]) == ("stop",) for one in chats)
    (tool,) = [attributes(span) for span in found if span.name == "execute_tool shelf"]
    assert tool["gen_ai.tool.name"] == "shelf"
    # A child lies within its parent.
    for span in found:
        if span.parent:
            parent = by_id[span.parent.span_id]
            assert (parent.start_time or 0) <= (span.start_time or 0) <= (span.end_time or 0) <= (parent.end_time or 0)


def test_no_text_is_in_a_span(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    with client_of(tmp_path) as client:
        assert ask(client).json()["answer"] == RIGHT
    everything = "\n".join(span.to_json() for span in spans.get_finished_spans())
    for text in ("Huygens", "huygens", RIGHT, "Look up", "<answer>"):
        assert text not in everything


def test_texts_are_redacted_and_the_judges_stay_out(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    reference = "The Hague (the reference)"
    flags = {"serve__trace_texts": True, "judge__kind": "llm"}
    with client_of(tmp_path, **flags) as client:
        client.post("/v1/ask", json={"question": f"{QUESTION} My key is {SECRET}.", "references": [reference]})
    found = of_the_question(spans)
    everything = "\n".join(span.to_json() for span in spans.get_finished_spans())
    assert SECRET not in everything
    assert "[redacted: api key]" in everything
    assert reference not in everything
    root = attributes(next(span for span in found if span.parent is None))
    assert json.loads(root["gen_ai.input.messages"])[0]["parts"][0]["content"].startswith(QUESTION)
    assert json.loads(root["gen_ai.output.messages"])[0]["parts"][0]["content"] == RIGHT
    (tool,) = [attributes(span) for span in found if span.name == "execute_tool shelf"]
    assert json.loads(tool["gen_ai.tool.call.arguments"]) == {"word": "huygens"}
    assert "born in The Hague" in tool["gen_ai.tool.call.result"]
    for chat in (attributes(span) for span in found if span.name == "chat scripted"):
        assert ("gen_ai.input.messages" in chat) == (chat["mia.role"] != "judge")
    assert any(attributes(span).get("mia.role") == "judge" for span in found)


def test_what_fails_is_marked_without_its_words(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    def down(request: ChatRequest) -> Any:
        return ModelUnavailable("the endpoint said: PRIVATE")

    with client_of(tmp_path, down) as client:
        assert ask(client).status_code == 503
    kinds = {span.name: attributes(span).get("error.type") for span in of_the_question(spans)}
    assert kinds["chat scripted"] == "ModelUnavailable"
    assert kinds["invoke_agent mia"] == "unreachable"
    assert kinds["plan"] == "stage_failed"
    assert kinds["recall"] is None
    assert "PRIVATE" not in "\n".join(span.to_json() for span in spans.get_finished_spans())


def test_what_dies_of_a_bug_leaves_no_span_open(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    with client_of(tmp_path, lambda request: ZeroDivisionError()) as client:
        assert ask(client).status_code == 500
        kinds = {span.name: attributes(span).get("error.type") for span in of_the_question(spans)}
        assert kinds == {
            "recall": None,
            "chat scripted": "ZeroDivisionError",
            "plan": "stage_failed",
            "invoke_agent mia": "_OTHER",
        }
        assert not trace.get_current_span().get_span_context().is_valid


def test_questions_at_a_time_do_not_mix(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with client_of(tmp_path) as client, ThreadPoolExecutor(6) as threads:
        replies = list(threads.map(lambda number: ask(client, f"{QUESTION} ({number})"), range(6)))
    assert [reply.status_code for reply in replies] == [200] * 6
    finished = spans.get_finished_spans()
    roots = [span for span in finished if span.name == "invoke_agent mia"]
    assert len({span.context.trace_id for span in roots}) == 6
    for root in roots:
        own = [span.name for span in finished if span.context.trace_id == root.context.trace_id]
        assert len(own) == 11
        assert own.count("chat scripted") == 4


class Broken(SpanProcessor):
    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("on start")

    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError("on end")


class BrokenAtTheEnd(SpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        raise RuntimeError("on end")


@pytest.mark.parametrize("processor", [Broken(), BrokenAtTheEnd()])
def test_a_broken_sdk_fails_no_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: SpanProcessor
) -> None:
    collect(monkeypatch, processor)
    with client_of(tmp_path) as client:
        for _ in range(2):
            assert ask(client).json()["answer"] == RIGHT


def test_nobody_to_take_them_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mia.service"), client_of(tmp_path) as client:
        assert ask(client).status_code == 200
    assert "opentelemetry-instrument" in caplog.text


def test_a_shared_model_stays_shared(tmp_path: Path) -> None:
    config = settings(tmp_path)
    built = traced_models(models(), config)
    assert built.planner is built.executor is built.manager is built.judge
    assert traced_models(built, config).planner is built.planner
    assert built.cold_start is None


def test_off_means_no_span_at_all(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    service = make_service(tmp_path)
    with TestClient(create_app(service)) as client:
        assert ask(client).status_code == 200
    assert spans.get_finished_spans() == ()
    assert type(service.live) is Live
