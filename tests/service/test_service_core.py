"""The service below its doors: cancelling, ending, and faults in the background."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from service_team import RIGHT, WORKFLOW, make_service, says, settings
from shelf import ShelfTool

from mia.errors import ModelUnavailable, StoreError
from mia.learn.spool import read_group
from mia.models import Models
from mia.models.base import ChatRequest, Price, TokenReply
from mia.service.core import Service, given_verdict
from mia.store import open_store
from mia.types import Episode, MemoryState, Question, Task, Usage

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


# ── a service that learns ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Telling:
    """The model of `service_team`, which tells its tokens: what learning asks for."""

    name: str = "telling"
    context_window: int = 100_000
    max_tokens: int = 1_000
    price: Price | None = None
    down: bool = False

    async def complete(self, request: ChatRequest) -> TokenReply:
        if request.purpose != "probe" and self.down:
            raise ModelUnavailable("nobody is there")
        text = "?" if request.purpose == "probe" else says(request)
        ids = tuple(text.encode())
        asked = tuple("|".join(one.content for one in request.messages).encode())
        usage = Usage(calls=1, prompt_tokens=len(asked), completion_tokens=len(ids))
        return TokenReply(text=text, usage=usage, prompt_ids=asked, ids=ids, logprobs=(-0.5,) * len(ids))

    async def close(self) -> None: ...


@asynccontextmanager
async def learning(home: Path, model: Telling | None = None, **flags: Any) -> AsyncIterator[Service]:
    model = model or Telling()
    given = {"enabled": True, "into": "memory", "samples": 3, "canary": 0, "report": "first", **flags}
    config = settings(home, memory__floor=-1.0, **{f"learn__{name}": value for name, value in given.items()})
    service = Service(config, models=Models(model, model, model, model), tools=[ShelfTool()])
    await service.start()
    try:
        yield service
    finally:
        await service.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110  # On the disk.
            await asyncio.sleep(0.02)


def counts(service: Service) -> dict[str, tuple[int, int]]:
    return {one.id: (one.uses, one.wins) for one in service.store.list_memories(None, limit=100)}


def shown(episode: Episode) -> set[str]:
    assert episode.recall is not None
    return {one.memory_id for one in episode.recall.shown}


async def test_a_verdict_takes_the_place_of_the_learners_credit(tmp_path: Path) -> None:
    async with learning(tmp_path) as service:
        known = await service.remember("default", QUESTION, WORKFLOW, "correct")
        episode = await service.ask(task(), "default")
        assert shown(episode) == {known.id}
        # Once for all three tries.
        assert counts(service)[known.id] == (2, 2)
        made = service.store.count_memories()
        tries = [one.id for one in service.store.list_episodes(scope="default", limit=10)]
        assert sorted(tries) == [episode.id, f"{episode.id}.1", f"{episode.id}.2"]
        for id, correct, expected in (
            (episode.id, False, (2, 1)),
            (episode.id, False, (2, 1)),
            # Whoever looks at another try judges the same group.
            (f"{episode.id}.2", True, (2, 2)),
            (episode.id, True, (2, 2)),
        ):
            settled = await service.feedback(id, given_verdict(correct))
            assert settled.credited == 1
            assert counts(service)[known.id] == expected
        # What was learnt from it was learnt again, and not beside what was there.
        assert service.store.count_memories() == made
        assert not service.durable.pending()
    async with learning(tmp_path) as service:
        # A restart credits nothing again, and finds the group by the same name.
        assert counts(service)[known.id] == (2, 2)
        await service.feedback(episode.id, given_verdict(False))
        assert counts(service)[known.id] == (2, 1)


async def test_nothing_is_learnt_from_what_a_user_says_of_a_held_out_question(tmp_path: Path) -> None:
    async with learning(tmp_path, canary=1) as service:
        known = await service.remember("default", QUESTION, WORKFLOW, "correct")
        held_out = await service.ask(task(), "default")
        settled = await service.feedback(held_out.id, given_verdict(False, "no"))
        assert (settled.credited, settled.memories) == (0, ())
        assert counts(service) == {known.id: (1, 1)}
        # The verdict itself is kept.
        kept = await service.episode(held_out.id)
        assert kept is not None
        assert kept[0].verdict is not None
        assert kept[0].verdict.reason == "no"
        # The same question of another scope is nobody's canary.
        other = await service.ask(task(), "other")
        assert await service.absorbed(other.id)
        assert (await service.feedback(other.id, given_verdict(False))).memories


async def test_what_is_shown_from_the_beginning_is_the_id_of_the_answer(tmp_path: Path) -> None:
    async with learning(tmp_path, report="random", canary=1) as service:
        asks = [service.live.begin("default", task(f"{QUESTION} {number // 2}").question, "api") for number in range(6)]
        episodes = await asyncio.gather(
            *(service.ask(Task(question=Question.of(one.question)), "default", ask=one) for one in asks)
        )
        for ask, episode in zip(asks, episodes, strict=True):
            assert ask.episode is episode
            assert ask.id == episode.id
            found = await service.episode(ask.id)
            assert found is not None
            assert found[0].answer == episode.answer
            # Told of its own tries, though the same question is asked beside it.
            executed = [one for one in ask.events if one.kind == "stage_finished" and one.stage == "execute"]
            assert len(executed) in (1, 3)
        job = await service.submit([task("Once more: where?")], "default")
        await until(lambda: service.durable.job(job.id).finished_at is not None)
        (item,) = service.durable.items(job.id)
        assert item.episode_id in {one.id for one in service.live.asks()}
        assert await service.episode(item.episode_id) is not None


async def test_a_scope_beside_the_stream_is_answered_and_absorbed_as_ever(tmp_path: Path) -> None:
    async with learning(tmp_path) as service:
        assert service.learner is not None
        await asyncio.gather(*(service.ask(task(), scope) for scope in ("default", "other", "other/below", "default")))
        await until(lambda: not service.durable.pending_count())
        assert len(service.learner.scores) == 2
        everything = service.store.list_memories(None, states=tuple(MemoryState), limit=100)
        assert {one.scope for one in everything} == {"default", "other", "other/below"}
        assert service.store.count_episodes("other") == 2


async def test_a_model_that_is_down_ends_no_stream_for_good(tmp_path: Path) -> None:
    model = Telling()
    async with learning(tmp_path, model) as service:
        model.down = True
        for number in range(5):
            with pytest.raises(ModelUnavailable, match="could not be asked"):
                await service.ask(task(f"{QUESTION} {number}"), "default")
        model.down = False
        assert (await service.ask(task(), "default")).answer is not None


@dataclass
class Held(Telling):
    """Says nothing for these purposes until it may."""

    purposes: tuple[str, ...] = ("execute",)
    waiting: Counter[str] = field(default_factory=Counter)
    may: asyncio.Event = field(default_factory=asyncio.Event)

    async def complete(self, request: ChatRequest) -> TokenReply:
        if request.purpose in self.purposes:
            self.waiting[request.purpose] += 1
            await self.may.wait()
        return await super().complete(request)

    def go_on_to(self, *purposes: str) -> None:
        self.may.set()
        self.purposes, self.may = purposes, asyncio.Event()


SECRET = "zanzibarparrot"


def telling_of(folder: Path) -> list[Path]:
    """The files of a stream that are still to be learnt, and tell the secret, in words or in tokens."""
    tokens = json.dumps(list(SECRET.encode())).strip("[]")
    pages = {path: json.dumps(json.loads(gzip.decompress(path.read_bytes()))) for path in folder.rglob("*.json.gz")}
    return [path for path, page in pages.items() if SECRET in page or tokens in page]


async def test_what_is_erased_while_tries_are_under_way_is_not_in_what_they_leave(tmp_path: Path) -> None:
    model, spool = Held(), tmp_path / "learning" / "spool"
    async with learning(tmp_path, model) as service:
        known = await service.remember("default", f"{QUESTION} {SECRET}", WORKFLOW, "correct")
        asking = asyncio.create_task(service.ask(task(), "default"))
        await until(lambda: model.waiting["execute"] == 3)
        erasure = await service.erase_memory(known.id)
        # Nothing is left to call again for.
        assert erasure.unreached == ()
        model.go_on_to("compress")
        await until(lambda: model.waiting["compress"] > 0)
        (path,) = spool.rglob("*.json.gz")
        assert telling_of(spool) == []
        group = read_group(path)
        assert shown(group.episode) == {known.id}
        assert (len(group.episodes), group.rollouts) == (3, ())
        model.go_on_to()
        assert (await asking).answer is not None
        (made,) = service.store.memories_of([group.episode.id])
        assert SECRET not in made.model_dump_json()
        assert service.store.count_episodes("default") == 3


async def test_what_is_erased_while_tries_are_brought_into_the_memory_goes_from_their_file(tmp_path: Path) -> None:
    model, spool = Held(purposes=("compress",)), tmp_path / "learning" / "spool"
    async with learning(tmp_path, model) as service:
        known = await service.remember("default", f"{QUESTION} {SECRET}", WORKFLOW, "correct")
        asking = asyncio.create_task(service.ask(task(), "default"))
        await until(lambda: model.waiting["compress"] > 0)
        assert len(telling_of(spool)) == 1
        erasure = await service.erase_memory(known.id)
        assert erasure.unreached == ()
        # Also if the process died here.
        assert telling_of(spool) == []
        assert [read_group(path).rollouts for path in spool.rglob("*.json.gz")] == [()]
        model.go_on_to()
        await asking


async def test_of_tries_that_began_before_all_of_their_scope_was_erased_nothing_is_kept(tmp_path: Path) -> None:
    model = Held()
    async with learning(tmp_path, model) as service:
        asking = asyncio.create_task(service.ask(task(), "default"))
        await until(lambda: model.waiting["execute"] == 3)
        # By another process, which cannot reach what this one holds.
        with open_store(service.config.store_path) as other:
            other.erase(scope="default")
        model.go_on_to()
        assert (await asking).answer is not None
        assert service.store.count_episodes("default") == 0
        assert service.store.count_memories("default") == 0
        assert not list((tmp_path / "learning" / "spool").rglob("*.json.gz"))
        # What is asked from now on is learnt from again.
        again = await service.ask(task(), "default")
        assert service.store.memories_of([again.id])
