"""A model that remembers: equal requests are asked once, and nothing else changes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import asking, write_adapter, write_model

from mia.errors import ModelUnavailable
from mia.models.base import ChatReply, ChatRequest, TokenModel, ToolSchema
from mia.models.local import LocalModel
from mia.models.memo import MemoModel
from mia.models.scripted import ScriptedModel
from mia.types import Message, Role


class Counting(ScriptedModel):
    """Says how often it had been asked when it was asked."""

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__({})
        self._seconds = delay

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.requests.append(request)
        number = len(self.requests)
        await asyncio.sleep(self._seconds)
        return ChatReply(f"answer {number}")


def greedy(text: str, **settings: Any) -> ChatRequest:
    return asking(text, temperature=0.0, **settings)


async def test_what_was_answered_is_not_asked_again() -> None:
    model = Counting()
    memo = MemoModel(model)
    first = await memo.complete(greedy("a"))
    assert await memo.complete(greedy("a")) is first
    assert (await memo.complete(greedy("b"))).text == "answer 2"
    assert (len(model.requests), memo.hits, memo.misses) == (2, 1, 2)
    memo.forget()
    assert (await memo.complete(greedy("a"))).text == "answer 3"


SAME = {"question_id": "another", "turn": 7, "on_retry": print}
OTHER: dict[str, Any] = {
    "messages": (Message(role="system", content="a"),),
    "role": Role.JUDGE,
    "purpose": "judge",
    "tools": (ToolSchema("search", "Finds.", {}),),
    "stop": ("</answer>",),
    "temperature": 0.5,
    "top_p": 0.5,
    "max_tokens": 3,
    "seed": 2,
    "json_schema": {"type": "object"},
    "adapter": "v2",
}


def test_every_field_of_a_request_was_thought_of() -> None:
    assert SAME.keys() | OTHER.keys() | {"on_text"} == ChatRequest.__dataclass_fields__.keys()


@pytest.mark.parametrize("name", SAME)
async def test_whose_question_it_is_decides_nothing(name: str) -> None:
    memo = MemoModel(Counting())
    first = await memo.complete(greedy("a"))
    assert await memo.complete(replace(greedy("a"), **{name: SAME[name]})) is first


@pytest.mark.parametrize("name", OTHER)
async def test_another_request_is_asked(name: str) -> None:
    memo = MemoModel(Counting())
    request = greedy("a", seed=1)
    first = await memo.complete(request)
    assert (await memo.complete(replace(request, **{name: OTHER[name]}))).text == "answer 2"
    assert await memo.complete(request) is first


@pytest.mark.parametrize(
    ("own", "temperature", "seed", "remembered"),
    [
        (False, 0.0, None, True),
        (False, None, None, False),
        (True, None, None, True),
        (True, 0.7, None, False),
        (False, 0.7, None, False),
        (False, 0.7, 3, True),
        (False, None, 3, True),
    ],
)
async def test_only_what_the_request_decides_is_remembered(
    own: bool, temperature: float | None, seed: int | None, remembered: bool
) -> None:
    model = Counting()
    memo = MemoModel(model, greedy=own)
    for _ in range(3):
        await memo.complete(asking("a", temperature=temperature, seed=seed))
    assert len(model.requests) == (1 if remembered else 3)
    assert memo.hits == (2 if remembered else 0)


async def test_text_arrives_in_one_piece_also_when_remembered() -> None:
    memo, seen = MemoModel(Counting()), list[str]()
    for _ in range(2):
        await memo.complete(greedy("a", on_text=seen.append))
    assert seen == ["answer 1", "answer 1"]


async def test_a_caller_that_cannot_listen_harms_nobody_else() -> None:
    def breaks(text: str) -> None:
        raise KeyError(text)

    memo = MemoModel(Counting(delay=0.02))
    broken, well = await asyncio.gather(
        memo.complete(greedy("a", on_text=breaks)), memo.complete(greedy("a")), return_exceptions=True
    )
    assert isinstance(broken, KeyError)
    assert isinstance(well, ChatReply)


async def test_equal_requests_at_the_same_time_are_one_call() -> None:
    model = Counting(delay=0.02)
    memo = MemoModel(model)
    replies = await asyncio.gather(*(memo.complete(greedy(text)) for text in "abababab"))
    assert len(model.requests) == 2
    assert [reply.text for reply in replies] == ["answer 1", "answer 2"] * 4
    assert (memo.hits, memo.misses) == (6, 2)


async def test_a_failure_is_everybodys_and_is_not_kept() -> None:
    model = ScriptedModel({"executor": [ModelUnavailable("down."), "up"]}, delay=0.02)
    memo = MemoModel(model)
    failed = await asyncio.gather(*(memo.complete(greedy("a")) for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in failed] == [ModelUnavailable] * 3
    assert (await memo.complete(greedy("a"))).text == "up"


async def test_who_is_cancelled_leaves_the_others_their_answer() -> None:
    model = Counting(delay=0.05)
    memo = MemoModel(model)
    first, second = (asyncio.create_task(memo.complete(greedy("a"))) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    assert (await second).text == "answer 1"
    assert first.cancelled()
    assert len(model.requests) == 1
    assert (await memo.complete(greedy("a"))).text == "answer 1"


class Slow(ScriptedModel):
    """Knows which of its calls were cancelled."""

    def __init__(self) -> None:
        super().__init__({"executor": ["late"] * 9})
        self.cancelled = 0

    async def complete(self, request: ChatRequest) -> ChatReply:
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await super().complete(request)


async def test_a_call_that_nobody_waits_for_any_more_ends() -> None:
    model = Slow()
    memo = MemoModel(model)
    waiting = [asyncio.create_task(memo.complete(greedy("a"))) for _ in range(3)]
    await asyncio.sleep(0.01)
    for one in waiting:
        one.cancel()
    # Who comes right after begins anew, and does not inherit the cancellation.
    after = asyncio.create_task(memo.complete(greedy("a")))
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in ended)
    assert (await after).text == "late"
    assert model.cancelled == 1


async def test_what_was_being_answered_while_it_forgot_is_not_remembered() -> None:
    model = Counting(delay=0.02)
    memo = MemoModel(model)
    old = asyncio.create_task(memo.complete(greedy("a")))
    await asyncio.sleep(0.01)
    memo.forget()
    new = asyncio.create_task(memo.complete(greedy("a")))
    assert [(await old).text, (await new).text] == ["answer 1", "answer 2"]
    assert (await memo.complete(greedy("a"))).text == "answer 2"


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 4))
def test_the_one_not_asked_for_the_longest_gives_way(asked: list[int], size: int) -> None:
    model = Counting()
    memo = MemoModel(model, size=size)
    kept: list[int] = []
    calls = 0

    async def ask_all() -> None:
        nonlocal calls
        for number in asked:
            await memo.complete(greedy(str(number)))
            calls += number not in kept
            if number in kept:
                kept.remove(number)
            kept.append(number)
            del kept[: max(0, len(kept) - size)]
            assert len(model.requests) == calls

    asyncio.run(ask_all())


async def test_half_a_character_can_be_remembered() -> None:
    memo = MemoModel(Counting())
    assert await memo.complete(greedy("\ud800")) is await memo.complete(greedy("\ud800"))


async def test_a_model_of_this_process_keeps_its_tokens_and_its_versions(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny")
    local = LocalModel.open(folder, max_tokens=12)
    memo: TokenModel = MemoModel(local)
    assert (memo.name, memo.context_window, memo.max_tokens, memo.price) == (local.name, 512, 12, None)
    plain = await local.complete(greedy("hello"))
    for _ in range(2):
        reply = await memo.complete(greedy("hello"))
        assert (reply.prompt_ids, reply.ids) == (plain.prompt_ids, plain.ids)
    # The request is the same, and who answers is another.
    await local.load_adapter("v1", write_adapter(folder, tmp_path / "v1"))
    local.set_adapter("v1")
    assert (await memo.complete(greedy("hello"))).adapter == "v1"
    local.set_adapter("")
    assert (await memo.complete(greedy("hello"))).adapter == ""
    await memo.close()
    with pytest.raises(ModelUnavailable, match="closed"):
        await local.complete(greedy("hello"))
