"""The service below its doors: cancelling, ending, and faults in the background."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from service_team import RIGHT, WORKFLOW, make_service

from mia.errors import StoreError
from mia.types import Question, Task

QUESTION = "Where was the discoverer of Titan born?"


def task(text: str = QUESTION) -> Task:
    return Task(question=Question.of(text), references=(RIGHT,))


async def test_ending_cancels_what_is_asked_and_tells_whoever_listens(tmp_path: Path) -> None:
    service = make_service(tmp_path, delay=60)
    await service.start()
    ask = service.live.begin("default", task().question, "api")
    with ask.subscribe() as reader:
        asking = asyncio.create_task(service.ask(task(), "default", ask=ask))
        await reader.next()
        await asyncio.wait_for(service.close(), 5)
        assert asking.cancelled()
        while await reader.next() is not None:
            pass
    assert ask.error == "cancelled"
    assert service.live.under_way == 0
    await service.close()
    with pytest.raises(StoreError, match="ending"):
        await service.ask(task(), "default")


async def test_a_fault_with_one_of_them_keeps_no_other_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = make_service(tmp_path)
    manager = service.memory("default")
    real = manager.add

    def add(question: str, *rest: object, **more: object) -> object:
        if "cursed" in question:
            raise KeyError("a bug")
        return real(question, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(manager, "add", add)
    await service.start()
    try:
        content = {"workflow": WORKFLOW, "judgement": "correct"}
        cursed = await service.remember_soon("default", {"question": "cursed", **content})
        fine = await service.remember_soon("default", {"question": QUESTION, **content})
        assert await service.absorbed(fine)
        assert not await service.absorbed(cursed, timeout=0.5)
        (waiting,) = service.durable.pending()
        assert waiting.id == cursed
        assert "KeyError" in waiting.error
        assert service.is_working
    finally:
        await service.close()


async def test_a_memory_that_was_stored_before_a_death_is_not_stored_again(tmp_path: Path) -> None:
    service = make_service(tmp_path)
    content = {"question": QUESTION, "workflow": WORKFLOW, "judgement": "incorrect"}
    await service.remember("default", QUESTION, WORKFLOW, "incorrect")
    # As a death leaves it: the memory has it, and it waits all the same.
    receipt = await service.remember_soon("default", content)
    await service.start()
    assert await service.absorbed(receipt)
    assert len(service.store.audit(limit=10)) == 1
    await service.close()


async def test_scopes_that_are_put_aside_go_on_and_come_back(tmp_path: Path) -> None:
    service = make_service(tmp_path, serve__max_scopes=2)
    await service.start()
    try:
        scopes = [f"tenant{number}" for number in range(6)]
        episodes = await asyncio.gather(*(service.ask(task(), scope) for scope in scopes))
        for episode, scope in zip(episodes, scopes, strict=True):
            assert await service.absorbed(episode.id)
            assert [memory.scope for memory in service.store.memories_of([episode.id])] == [scope]
        for scope in scopes:
            again = await service.ask(task(), scope)
            assert again.recall is not None
            assert len(again.recall.shown) == 1
    finally:
        await service.close()
