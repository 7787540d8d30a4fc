"""What an endpoint may do to us, over real sockets, and what comes of it."""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fake_endpoint import (
    Behaviour,
    FakeEndpoint,
    Flood,
    after,
    breaks_off,
    completion,
    drips,
    event,
    fails,
    hangs,
    hangs_up,
    piece,
    says,
    sends,
    streams,
)

from mia.errors import (
    ConfigError,
    ContextOverflow,
    ModelError,
    ModelRefused,
    ModelReplyError,
    ModelUnavailable,
    RealCallForbidden,
)
from mia.models.base import ChatRequest, Price, ToolSchema, estimate_tokens
from mia.models.ledger import Ledger
from mia.models.openai import Endpoint, OpenAIModel
from mia.types import Image, Message, Role, ToolCall

KEY = "sk-very-secret-0123456789"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


def request(text: str = "Where is the Louvre?", **changes: Any) -> ChatRequest:
    messages = changes.pop("messages", (Message(role="user", content=text),))
    return ChatRequest(messages, Role.EXECUTOR, "q", "execute", **changes)


@asynccontextmanager
async def serving(*behaviours: Behaviour, **settings: Any) -> AsyncIterator[tuple[OpenAIModel, FakeEndpoint]]:
    settings = {"timeout_seconds": 2.0, "backoff_seconds": 0.01, "allow_when_forbidden": True, **settings}
    async with FakeEndpoint(*behaviours) as endpoint:
        model = OpenAIModel(Endpoint(endpoint.base_url, KEY, key_hint="export THE_KEY=…"), "tiny", **settings)
        try:
            yield model, endpoint
        finally:
            await model.close()


# ── whole replies ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_reply_comes_back_with_its_text_model_and_usage() -> None:
    async with serving(says("In Paris."), price=Price(1.0, 2.0)) as (model, endpoint):
        reply = await model.complete(request(stop=("<tool_response>",), temperature=0.5, seed=3, max_tokens=99))
    assert (reply.text, reply.finish_reason, reply.model) == ("In Paris.", "stop", "tiny-1")
    assert (reply.usage.calls, reply.usage.prompt_tokens, reply.usage.completion_tokens) == (1, 11, 7)
    assert reply.usage.cost == pytest.approx((11 + 14) / 1_000_000)
    assert reply.usage.seconds > 0
    (sent,) = endpoint.requests
    assert sent.path == "/v1/chat/completions"
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert sent.body == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Where is the Louvre?"}],
        "max_tokens": 99,
        "stop": ["<tool_response>"],
        "temperature": 0.5,
        "seed": 3,
    }


async def test_an_adapter_is_asked_for_by_its_name_and_the_ledger_keeps_it() -> None:
    ledger = Ledger("q")
    async with serving(says("Yes.")) as (model, endpoint):
        await ledger.complete(model, request(adapter="planner-3f9ac2-v000007"))
        await ledger.complete(model, request())
    assert [received.body["model"] for received in endpoint.requests] == ["planner-3f9ac2-v000007", "tiny"]
    assert ledger.adapters == {request().role: "planner-3f9ac2-v000007"}


async def test_usage_is_estimated_where_the_endpoint_counts_nothing() -> None:
    async with serving(says("x" * 400, usage=False)) as (model, _):
        asked = request("y" * 4000)
        usage = (await model.complete(asked)).usage
    assert usage.prompt_tokens == estimate_tokens(asked.messages)
    assert usage.completion_tokens == 101
    assert usage.cost is None


async def test_a_reply_that_was_cut_says_so() -> None:
    async with serving(says("The Louvre is", finish="length")) as (model, _):
        reply = await model.complete(request())
    assert (reply.text, reply.finish_reason) == ("The Louvre is", "length")


async def test_stop_strings_hold_at_an_endpoint_that_ignores_them() -> None:
    async with serving(says("A call.<tool_response>made up</tool_response>")) as (model, _):
        assert (await model.complete(request(stop=("<tool_response>",)))).text == "A call."


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_beside_the_text_is_kept(field: str) -> None:
    async with serving(says("Paris.", **{field: "Louvre → Paris"})) as (model, _):
        reply = await model.complete(request())
    assert (reply.text, reply.thinking) == ("Paris.", "Louvre → Paris")


async def test_a_content_in_parts_is_joined() -> None:
    parts: Any = [{"type": "text", "text": "In "}, {"type": "text", "text": "Paris."}]
    async with serving(says(parts)) as (model, _):
        assert (await model.complete(request())).text == "In Paris."


async def test_conversations_travel_with_images_calls_and_broken_characters() -> None:
    image = Image.from_bytes(PNG)
    messages = (
        Message(role="system", content="Be brief."),
        Message(role="user", content="What is \ud83d this?", images=(image,)),
        Message(role="assistant", content="", tool_calls=(ToolCall(name="search", arguments={"q": "é"}, id="c1"),)),
        Message(role="tool", content="a cat", tool_call_id="c1"),
    )
    async with serving(says("A cat.")) as (model, endpoint):
        await model.complete(request(messages=messages))
    _, user, assistant, tool = endpoint.requests[0].body["messages"]
    assert user["content"] == [
        {"type": "text", "text": "What is \ufffd this?"},
        {"type": "image_url", "image_url": {"url": image.data_url()}},
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"q": "é"}'}}
    assert assistant["tool_calls"] == [call]
    assert tool == {"role": "tool", "content": "a cat", "tool_call_id": "c1"}


async def test_halves_of_characters_are_joined_or_replaced() -> None:
    """A model that writes an emoji byte by byte may send half of it; nothing could store or print that."""
    call = wire_call('{"q": "\\ud83d"}')
    pieces: list[str] = []
    events = [piece("\ud83d"), piece("\ude00 \ud83d"), piece(tool_calls=[{"index": 0, **call}]), piece(finish="stop")]
    async with serving(streams(*events)) as (model, _):
        reply = await model.complete(request(on_text=pieces.append))
    assert reply.text == "😀 \ufffd"
    assert reply.tool_calls[0].arguments == {"q": "\ufffd"}
    "".join(pieces).encode()


# ── native tool calls ─────────────────────────────────────────────────────────────────────────────────────────────

SEARCH = ToolSchema("search", "Searches.", {"type": "object", "properties": {"q": {"type": "string"}}})


def wire_call(arguments: Any, name: str = "search", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


async def test_native_calls_are_offered_and_parsed() -> None:
    calls = [wire_call('{"q": "Louvre"}', id="c1"), wire_call({"q": "Paris"})]
    async with serving(says(None, finish="tool_calls", tool_calls=calls)) as (model, endpoint):
        reply = await model.complete(request(tools=(SEARCH,)))
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [
        ("search", {"q": "Louvre"}),
        ("search", {"q": "Paris"}),
    ]
    assert reply.tool_calls[0].id == "c1"
    assert reply.tool_calls[1].id, "a call that comes without an id gets one, for the answer to it needs one"
    assert (reply.text, reply.finish_reason, reply.malformed_call) == ("", "tool_calls", "")
    function = endpoint.requests[0].body["tools"][0]["function"]
    assert function == {"name": "search", "description": "Searches.", "parameters": SEARCH.parameters}


@pytest.mark.parametrize("arguments", ['{"q": ', '["q"]', "", "null", None, "[" * 100_000, 7])
async def test_arguments_that_are_no_object_are_a_malformed_call(arguments: Any) -> None:
    async with serving(says(None, tool_calls=[wire_call(arguments)])) as (model, _):
        reply = await model.complete(request(tools=(SEARCH,)))
    assert reply.tool_calls == ()
    assert '"name": "search"' in reply.malformed_call
    assert reply.finish_reason == "tool_calls"


# ── streaming ─────────────────────────────────────────────────────────────────────────────────────────────────────

USAGE = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})
DONE = event("[DONE]")


async def test_a_stream_is_told_piece_by_piece_and_returned_whole() -> None:
    events = [
        ": keep-alive\n\n",
        piece("In ", reasoning_content="hm"),
        piece("Paris."),
        piece(finish="stop"),
        USAGE,
        DONE,
    ]
    pieces: list[str] = []
    async with serving(streams(*events)) as (model, endpoint):
        first = await model.complete(request(on_text=pieces.append))
        await model.complete(request(on_text=pieces.append))
    assert pieces == ["In ", "Paris."] * 2
    assert (first.text, first.thinking, first.model) == ("In Paris.", "hm", "tiny-1")
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (5, 2)
    assert endpoint.requests[0].body["stream_options"] == {"include_usage": True}
    assert endpoint.connections == 1, "a stream that was read to its end gives its connection back"


async def test_streamed_calls_are_put_together() -> None:
    events = [
        piece(tool_calls=[{"index": 0, "id": "c1", "function": {"name": "search", "arguments": '{"q"'}}]),
        piece(tool_calls=[{"index": 1, "id": "c2", "function": {"name": "search", "arguments": "oops"}}]),
        piece(tool_calls=[{"index": 0, "function": {"arguments": ': "x"}'}}]),
        piece(finish="tool_calls"),
    ]
    async with serving(streams(*events)) as (model, _):
        reply = await model.complete(request(tools=(SEARCH,), on_text=lambda text: None))
    assert reply.tool_calls == (ToolCall(name="search", arguments={"q": "x"}, id="c1"),)
    assert "oops" in reply.malformed_call


async def test_an_endpoint_that_ignores_streaming_is_read_all_the_same() -> None:
    pieces: list[str] = []
    async with serving(says("In Paris.")) as (model, _):
        reply = await model.complete(request(on_text=pieces.append))
    assert (reply.text, pieces) == ("In Paris.", ["In Paris."])


async def test_a_torn_stream_is_tried_again() -> None:
    retries: list[tuple[int, float, str]] = []
    whole = streams(piece("In Paris."), piece(finish="stop"), DONE)
    async with serving(streams(piece("In ")), streams("data: {\n\n"), whole) as (model, _):
        asked = request(on_text=lambda text: None, on_retry=lambda *retry: retries.append(retry))
        assert (await model.complete(asked)).text == "In Paris."
    assert [attempt for attempt, _, _ in retries] == [1, 2]
    assert "broke off" in retries[0][2]


async def test_an_error_inside_a_stream_is_no_text() -> None:
    error = event({"error": {"message": "out of memory"}})
    async with serving(streams(piece("In "), error), max_attempts=1) as (model, _):
        with pytest.raises(ModelUnavailable, match="out of memory"):
            await model.complete(request(on_text=lambda text: None))


# ── what an endpoint refuses and can do without ───────────────────────────────────────────────────────────────────


def refusing(part: str, message: str) -> Behaviour:
    """Answers 400 to every request that has this part."""

    async def behave(received: Any, writer: asyncio.StreamWriter) -> None:
        await (fails(400, message) if part in received.body else says("{}"))(received, writer)

    return behave


@pytest.mark.parametrize(
    ("part", "message", "changes"),
    [
        ("response_format", "json_schema is not supported", {"json_schema": {"type": "object"}}),
        ("response_format", "bad request", {"json_schema": {"type": "object"}}),
        ("stream_options", "unknown field", {"on_text": lambda text: None}),
        ("stop", "Unsupported parameter: 'stop'", {"stop": ("x",)}),
        ("max_tokens", "use 'max_completion_tokens' instead of 'max_tokens'", {}),
    ],
)
async def test_a_refused_part_is_left_out_and_that_is_remembered(part: str, message: str, changes: Any) -> None:
    async with serving(refusing(part, message)) as (model, endpoint):
        assert (await model.complete(request(**changes))).text == "{}"
        assert (await model.complete(request(**changes))).text == "{}"
    assert [part in sent.body for sent in endpoint.requests] == [True, False, False]


async def test_a_refusal_about_something_else_is_not_remembered() -> None:
    schema = {"type": "object"}
    async with serving(fails(400, "bad image"), fails(400, "bad image"), says("{}")) as (model, endpoint):
        with pytest.raises(ModelRefused, match="bad image"):
            await model.complete(request(json_schema=schema))
        await model.complete(request(json_schema=schema))
    assert "response_format" in endpoint.requests[-1].body


# ── failures that pass ────────────────────────────────────────────────────────────────────────────────────────────

PASSING: dict[str, Behaviour] = {
    **{str(status): fails(status) for status in (408, 409, 425, 429, 500, 502, 503, 504, 529)},
    "empty": sends(""),
    "blank": sends("  \n"),
    "html": sends("<!doctype html><h1>Welcome</h1>", content_type="text/html"),
    "html in disguise": sends("<html>Bad gateway</html>"),
    "text": sends("OK", content_type="text/plain"),
    "torn JSON": sends('{"choices": [{"message": {"content": "In'),
    "broken off": breaks_off('{"choices": ['),
    "hung up": hangs_up,
    "no object": sends("[]"),
    "nested": sends("[" * 200_000),
    "no choices": sends('{"choices": []}'),
    "strange choices": sends('{"choices": [7]}'),
    "no text": says(""),
    "no content": says(None),
    "error with 200": sends('{"error": {"message": "overloaded", "code": 503}}'),
    "bad gzip": sends(b"not gzip", content_encoding="gzip"),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
async def test_a_failure_that_passes_is_tried_again(fault: Behaviour) -> None:
    async with serving(fault, says("In Paris.")) as (model, endpoint):
        assert (await model.complete(request())).text == "In Paris."
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
async def test_a_failure_that_stays_is_an_error_and_never_a_reply(fault: Behaviour) -> None:
    async with serving(fault, max_attempts=3) as (model, endpoint):
        with pytest.raises((ModelUnavailable, ModelReplyError), match="3 attempts"):
            await model.complete(request())
    assert len(endpoint.requests) == 3


async def test_an_endpoint_that_refuses_connections_is_unavailable() -> None:
    async with FakeEndpoint(hangs) as gone:
        pass
    model = OpenAIModel(Endpoint(gone.base_url), "tiny", backoff_seconds=0.01, allow_when_forbidden=True)
    with pytest.raises(ModelUnavailable, match=r"cannot be reached.*4 attempts"):
        await model.complete(request())
    await model.close()


async def test_an_endpoint_that_hangs_is_left_after_the_timeout() -> None:
    async with serving(hangs, timeout_seconds=0.1, max_attempts=2) as (model, _):
        begun = time.monotonic()
        with pytest.raises(ModelUnavailable, match=r"sent nothing for 0.1 s .*2 attempts"):
            await model.complete(request())
    assert time.monotonic() - begun < 1.5


async def test_an_endpoint_that_drips_is_left_after_five_timeouts() -> None:
    async with serving(drips(0.02), timeout_seconds=0.1, max_attempts=1) as (model, _):
        begun = time.monotonic()
        with pytest.raises(ModelUnavailable, match=r"no complete reply within 0.5 s"):
            await model.complete(request())
    assert 0.4 < time.monotonic() - begun < 1.5


async def test_all_tries_together_have_a_limit() -> None:
    async with serving(hangs, timeout_seconds=0.2, max_attempts=100, max_retry_seconds=0.5) as (model, endpoint):
        begun = time.monotonic()
        with pytest.raises(ModelUnavailable):
            await model.complete(request())
    assert time.monotonic() - begun < 1.5
    assert len(endpoint.requests) <= 3


@pytest.mark.parametrize("header", [lambda: "1", lambda: email.utils.formatdate(time.time() + 2, usegmt=True)])
async def test_retry_after_is_honoured(header: Callable[[], str]) -> None:
    waits: list[float] = []
    async with serving(fails(429, retry_after=header()), says("In Paris.")) as (model, _):
        begun = time.monotonic()
        await model.complete(request(on_retry=lambda attempt, wait, reason: waits.append(wait)))
    assert time.monotonic() - begun >= waits[0] >= 0.9


async def test_a_wait_beyond_the_limit_is_not_begun() -> None:
    async with serving(fails(429, "slow down", retry_after="3600")) as (model, endpoint):
        begun = time.monotonic()
        with pytest.raises(ModelUnavailable, match=r"slow down.*asks to wait 3600 s"):
            await model.complete(request())
    assert time.monotonic() - begun < 1
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("header", ["soon", "-5", "", "nan", "inf"])
async def test_a_strange_retry_after_does_no_harm(header: str) -> None:
    async with serving(fails(429, retry_after=header), says("In Paris.")) as (model, _):
        assert (await model.complete(request())).text == "In Paris."


# ── failures that stay ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (400, "settings"),
        (401, "export THE_KEY"),
        (403, "key may"),
        (404, "--model"),
        (422, "settings"),
        (301, "--base-url"),
    ],
)
async def test_a_refusal_is_not_tried_again_and_says_what_to_type(status: int, hint: str) -> None:
    async with serving(fails(status, "not for you")) as (model, endpoint):
        with pytest.raises(ModelRefused, match="not for you") as raised:
            await model.complete(request())
    assert hint in raised.value.hint
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens.",
        "the request exceeds the available context size",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "Input exceeds the context window of this model",
        '{"code": "context_length_exceeded"}',
    ],
)
async def test_a_prompt_that_the_endpoint_finds_too_long_is_an_overflow(message: str) -> None:
    async with serving(fails(400, message)) as (model, endpoint):
        with pytest.raises(ContextOverflow):
            await model.complete(request(json_schema={}))
    assert len(endpoint.requests) == 1


async def test_a_prompt_longer_than_the_window_is_never_sent() -> None:
    async with serving(says("x"), context_window=300) as (model, endpoint):
        with pytest.raises(ContextOverflow):
            await model.complete(request("y" * 2000))
        await model.complete(request("y" * 800))
    (sent,) = endpoint.requests
    assert sent.body["max_tokens"] == 300 - 208, "the reply gets what the prompt leaves"


async def test_a_filtered_reply_is_an_error() -> None:
    async with serving(says("The", finish="content_filter")) as (model, endpoint):
        with pytest.raises(ModelReplyError, match="content filter"):
            await model.complete(request())
    assert len(endpoint.requests) == 1


STREAM_LINE = piece("x" * 1000).encode()
FLOODS = {
    "body": Flood(),
    "a single line": Flood(content_type="text/event-stream"),
    "events": Flood(content_type="text/event-stream", line=STREAM_LINE),
    "comments": Flood(content_type="text/event-stream", line=b": x\n"),
}


@pytest.mark.parametrize("fault", FLOODS.values(), ids=FLOODS.keys())
async def test_a_flood_is_cut(fault: Flood) -> None:
    async with serving(fault, timeout_seconds=20) as (model, endpoint):
        with pytest.raises(ModelReplyError, match=r"more than \d+ MB"):
            await model.complete(request(on_text=lambda text: None))
    assert len(endpoint.requests) == 1
    assert fault.sent < 100


async def test_a_flood_of_error_text_is_cut() -> None:
    flood = Flood(status=500)
    async with serving(flood, max_attempts=1) as (model, _):
        with pytest.raises(ModelUnavailable) as raised:
            await model.complete(request())
    assert len(str(raised.value)) < 1000
    assert flood.sent < 50


# ── keys, strangers, limits ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fault",
    [
        fails(401, f"Incorrect API key provided: {KEY}."),
        fails(500, "x" * 290 + KEY),
        sends(f"<h1>Bearer {KEY}</h1>", status=502, content_type="text/html"),
        sends(json.dumps({"detail": {"seen": KEY}}), status=400),
        sends(json.dumps({"error": KEY})),
        streams(event({"error": KEY})),
    ],
)
async def test_no_key_is_ever_said(fault: Behaviour, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    reasons: list[str] = []
    async with serving(fault, max_attempts=2) as (model, _):
        asked = request(on_text=lambda text: None, on_retry=lambda attempt, wait, reason: reasons.append(reason))
        with pytest.raises(ModelError) as raised:
            await model.complete(asked)
        said = [str(raised.value), raised.value.hint, repr(model), repr(model.endpoint), model.name, *reasons]
        said += traceback.format_exception(raised.value)
    for text in [*said, caplog.text]:
        assert KEY[:12] not in text


async def test_nothing_of_the_environment_goes_to_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-the-environment")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-mine")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer sk-ambient")
    async with FakeEndpoint(says("x")) as endpoint:
        model = OpenAIModel(Endpoint(endpoint.base_url), "tiny", allow_when_forbidden=True)
        await model.complete(request())
        await model.close()
    headers = endpoint.requests[0].headers
    assert "authorization" not in headers
    assert not any("mine" in value or "sk-" in value for value in headers.values())


@pytest.mark.parametrize("address", ["localhost:11434", "ftp://x/v1", "http://", "http://[::1", "not an address"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="base URL"):
        Endpoint(address)


def test_a_password_in_an_address_stays_out_of_names() -> None:
    endpoint = Endpoint("http://me:hunter2@localhost:9/v1")
    model = OpenAIModel(endpoint, "tiny")
    assert model.name == "tiny @ localhost:9"
    assert "hunter2" not in repr(endpoint) + repr(model)


async def test_calls_under_way_are_limited_over_all_models_of_an_endpoint() -> None:
    async with FakeEndpoint(after(0.02, says("x"))) as fake:
        endpoint = Endpoint(fake.base_url, concurrency=3)
        models = [OpenAIModel(endpoint, name, allow_when_forbidden=True) for name in ("a", "b")]
        await asyncio.gather(*(models[n % 2].complete(request()) for n in range(20)))
        await endpoint.close()
    assert fake.most_active == 3
    assert fake.connections <= 3
    assert len(fake.requests) == 20


async def test_a_call_that_waits_for_its_retry_holds_no_slot() -> None:
    async with FakeEndpoint(fails(429, retry_after="1"), says("x")) as fake:
        endpoint = Endpoint(fake.base_url, concurrency=1)
        model = OpenAIModel(endpoint, "tiny", allow_when_forbidden=True)
        waiting = asyncio.Event()
        slow = asyncio.create_task(model.complete(request(on_retry=lambda *_: waiting.set())))
        await waiting.wait()
        await asyncio.wait_for(model.complete(request()), timeout=0.8)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        await endpoint.close()


async def test_a_cancelled_call_gives_its_slot_back() -> None:
    async with FakeEndpoint(hangs, says("x")) as fake:
        endpoint = Endpoint(fake.base_url, concurrency=1)
        model = OpenAIModel(endpoint, "tiny", allow_when_forbidden=True)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(model.complete(request()), timeout=0.1)
        assert (await asyncio.wait_for(model.complete(request()), timeout=2)).text == "x"
        await endpoint.close()
        await endpoint.close()


async def test_a_closed_endpoint_opens_again_when_it_is_asked() -> None:
    async with serving(says("x")) as (model, endpoint):
        await model.complete(request())
        await model.close()
        await model.complete(request())
    assert endpoint.connections == 2


async def test_forbidden_calls_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIA_FORBID_REAL_CALLS", "1")
    async with FakeEndpoint(says("x")) as endpoint:
        forbidden = OpenAIModel(Endpoint(endpoint.base_url), "tiny")
        with pytest.raises(RealCallForbidden):
            await forbidden.complete(request())
        assert endpoint.requests == []
        allowed = OpenAIModel(Endpoint(endpoint.base_url), "tiny", allow_when_forbidden=True)
        assert (await allowed.complete(request())).text == "x"
        await allowed.close()


async def test_a_call_costs_no_more_processor_time_than_the_bare_sdk() -> None:
    """The whole measurement is in benchmarks/; this keeps the order of magnitude."""
    import openai

    messages = [Message(role="user" if n % 2 else "assistant", content="word " * 300) for n in range(10)]
    asked = request(messages=tuple(messages))
    async with serving(says("word " * 100)) as (model, endpoint):
        bare = openai.AsyncOpenAI(base_url=endpoint.base_url, api_key="x")
        wire: Any = [{"role": message.role, "content": message.content} for message in messages]
        spent = {}
        for name, call in (
            ("bare", lambda: bare.chat.completions.create(model="tiny", messages=wire)),
            ("ours", lambda: model.complete(asked)),
        ):
            await call()
            begun = time.process_time()
            for _ in range(60):
                await call()
            spent[name] = (time.process_time() - begun) / 60
        await bare.close()
    assert spent["ours"] < spent["bare"] + 0.001


def test_the_reply_of_the_fake_is_what_the_sdk_takes() -> None:
    from openai.types.chat import ChatCompletion

    assert ChatCompletion.model_validate(completion("x")).choices[0].message.content == "x"
