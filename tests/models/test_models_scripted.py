"""The stand-in model: it says what it is told, and counts what it said."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from mia.errors import ModelUnavailable, ReplayMismatch
from mia.models.base import ChatReply, ChatRequest, Price, estimate_tokens
from mia.models.scripted import ScriptedModel
from mia.types import Message, Role, ToolCall, Usage


def request(text: str = "Hello", role: Role = Role.PLANNER, purpose: str = "plan", **changes: Any) -> ChatRequest:
    return ChatRequest((Message(role="user", content=text),), role, "q", purpose, **changes)


async def test_a_function_answers_and_requests_are_kept() -> None:
    model = ScriptedModel(lambda asked: asked.messages[-1].content.upper(), price=Price(1.0, 1.0))
    pieces: list[str] = []
    asked = request("hello", on_text=pieces.append)
    reply = await model.complete(asked)
    assert (reply.text, pieces, model.requests) == ("HELLO", ["HELLO"], [asked])
    assert reply.usage.prompt_tokens == estimate_tokens(asked.messages)
    assert reply.usage.cost == pytest.approx(reply.usage.tokens / 1_000_000)


async def test_lists_answer_by_role_and_purpose_in_order() -> None:
    model = ScriptedModel({"planner/reflect": ["no"], "planner": ["a plan", "another"]})
    assert (await model.complete(request())).text == "a plan"
    assert (await model.complete(request(purpose="reflect"))).text == "no"
    assert (await model.complete(request(purpose="replan"))).text == "another"
    for purpose, role in (("plan", Role.PLANNER), ("reflect", Role.PLANNER), ("execute", Role.EXECUTOR)):
        with pytest.raises(ReplayMismatch, match=f"{role}/{purpose}"):
            await model.complete(request(purpose=purpose, role=role))


async def test_whole_replies_and_errors_are_answers_too() -> None:
    counted = ChatReply("x", (ToolCall(name="search", arguments={}),), "tool_calls", Usage(calls=1, prompt_tokens=3))
    model = ScriptedModel({"planner": [counted, ModelUnavailable("down")]}, keep_requests=False)
    assert await model.complete(request()) == counted
    with pytest.raises(ModelUnavailable, match="down"):
        await model.complete(request())
    assert model.requests == []


async def test_a_delay_is_waited_for_concurrently() -> None:
    model = ScriptedModel(lambda asked: "x", delay=0.05)
    begun = time.monotonic()
    await asyncio.gather(*(model.complete(request()) for _ in range(50)))
    assert 0.05 <= time.monotonic() - begun < 1
    await model.close()
