"""`mia serve --learn` with the embedded model: it answers whoever asks while versions of the weights are made, rolled
back and killed; what is shown is credited once, and nothing is learnt twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from embedded_team import needs_embedded_model
from serving import Server, Serving

pytest.importorskip("fastapi", reason="the extra `service` is not installed")
pytest.importorskip("mcp", reason="the extra `service` is not installed")

from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from mia.config import WORLD_SEED
from mia.learn.adapters import AdapterStore, State, open_stores
from mia.learn.spool import read_lines
from mia.service.core import LEARNING
from mia.store import open_store
from mia.store.audit import is_credit
from mia.types import MemoryState, Task
from mia.world.facts import World
from mia.world.questions import tasks

pytestmark = needs_embedded_model

PATIENCE = 300.0
BATCH = 2
SETTINGS = {
    "MIA_LEARN__INTO": "both",
    "MIA_LEARN__SAMPLES": "2",
    "MIA_LEARN__BATCH": str(BATCH),
    "MIA_LEARN__CANARY": "0",
    "MIA_LEARN__REPORT": "random",
    "MIA_LEARN__RANK": "4",
}


class Learning:
    """A server that learns, and whoever asks it what the world knows."""

    def __init__(self, serve: Serving, home: Path, **settings: str) -> None:
        self._serve = serve
        self._home = home
        self._settings = {**SETTINGS, **settings}
        self.questions = iter(tasks(World.make(WORLD_SEED), 400))
        self.told: list[dict[str, Any]] = []
        """All that was answered in its scope."""
        self.server: Server
        self.start()

    def start(self) -> None:
        self.server = self._serve(self._home, None, "--learn", **self._settings)

    @property
    def home(self) -> Path:
        """Of the world in which it answers."""
        return self._home / "world"

    def ask(self, task: Task | None = None) -> dict[str, Any]:
        task = task or next(self.questions)
        body = {"question": task.question.text, "id": task.question.id, "references": list(task.references)}
        told: dict[str, Any] = self.server.post("/v1/ask", body)
        self.told.append(told)
        return told

    def ask_until(self, true: Callable[[], Any]) -> None:
        """Two ask at a time."""
        until = time.monotonic() + PATIENCE

        def go_on() -> None:
            while not true():
                assert time.monotonic() < until, self.server.said
                self.ask()

        with ThreadPoolExecutor(2) as pool:
            for asking in [pool.submit(go_on) for _ in range(2)]:
                asking.result()

    @property
    def versions(self) -> list[dict[str, Any]]:
        """The oldest first."""
        page = self.server.get("/v1/adapters")
        assert page["learning"]
        assert page["trouble"] == ""
        return list(page["versions"])

    @property
    def current(self) -> str:
        """The version that answers; empty: the model as it came."""
        return next((one["name"] for one in self.versions if one["current"]), "")

    @property
    def is_updating(self) -> bool:
        """A batch is together: a version is being made of it, examined, or promoted."""
        return len(list((self.home / LEARNING / "spool" / "ready").glob("*.gz"))) >= BATCH

    def settle(self) -> None:
        """Wait until nothing more comes of what was answered."""
        self.server.wait_for(lambda: not self.is_updating, PATIENCE)

    def kill(self) -> None:
        """`kill -9`, while a question is under way; the process that trains does not outlive it."""
        helpers = psutil.Process(self.server.worker.pid).children()
        assert helpers, "nothing trains"

        def ask() -> None:
            with contextlib.suppress(httpx2.TransportError):
                self.ask()

        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask)
            time.sleep(0.3)
            self.server.worker.kill()
            asking.result()
        self.server.client.close()
        _, left = psutil.wait_procs(helpers, PATIENCE)
        assert not left

    @property
    def adapters(self) -> AdapterStore:
        (store,) = open_stores(self.home / "adapters")
        return store

    def counts(self, ids: list[str]) -> dict[str, tuple[int, int]]:
        pages = [self.server.get(f"/v1/memories/{id}") for id in ids]
        return {one["id"]: (one["uses"], one["wins"]) for one in pages}


def version_of(told: dict[str, Any]) -> str:
    return str(told["adapters"].get("planner", ""))


def test_it_answers_while_versions_are_made_and_follows_a_rollback(serve_learning: Serving, tmp_path: Path) -> None:
    one = Learning(serve_learning, tmp_path)
    # Somebody else's questions, beside the stream.
    beside = {"X-MIA-Scope": "beside"}
    task = next(one.questions)
    body = {"question": task.question.text, "references": list(task.references)}
    other = one.server.client.post("/v1/ask", json=body, headers=beside).json()

    one.ask_until(lambda: any(version_of(told) for told in one.told))
    # No request failed (`ask` looks), and every answer names its version.
    names = {"", *(version["name"] for version in one.versions)}
    assert {version_of(told) for told in one.told} <= names
    assert all(told["failures"] == [] for told in one.told)
    assert all(told["verdict"]["outcome"] in ("correct", "incorrect") for told in one.told)
    one.settle()
    latest = one.versions[-1]
    assert (latest["state"], latest["current"], latest["there"]) == ("promoted", True, True)
    text = one.server.client.get("/learning").text
    assert all(version["name"] in text for version in one.versions)

    # What is answered elsewhere is neither learnt from nor answered by what was learnt here.
    again = one.server.client.post("/v1/ask", json=body, headers=beside).json()
    assert (other["adapters"], again["adapters"]) == ({}, {})
    scores = read_lines(one.home / LEARNING / "scores.jsonl")
    assert {line["episode_id"] for line in scores} == {told["episode_id"] for told in one.told}
    one.server.absorb_all()
    mine = one.server.client.get("/v1/memories", headers=beside).json()["memories"]
    assert {memory["scope"] for memory in mine} == {"beside"}

    # Back to the model as it came: the next answer is its own.
    done = one.server.post("/v1/adapters/rollback", {"to": "base", "reason": "it was better"})
    assert (done["was"], done["now"]) == (latest["name"], "")
    assert version_of(one.ask()) == ""
    assert one.server.post("/v1/adapters/rollback", {"to": latest["name"]})["now"] == latest["name"]
    one.settle()
    assert version_of(one.ask()) == one.current

    _every_door_gives_the_id_of_the_answer(one)
    _a_verdict_is_counted_once(one)

    # Each rollout made one version at most.
    learnt = [id for version in one.adapters.versions() for id in version.rollouts]
    assert learnt
    assert len(learnt) == len(set(learnt))


def _every_door_gives_the_id_of_the_answer(one: Learning) -> None:
    """And that answer can be looked up by it, with its version."""
    scored = _scored(one)
    question = next(one.questions).question.text
    with one.server.client.stream("POST", "/v1/ask", json={"question": question, "stream": True}) as reply:
        lines = [line for line in reply.iter_lines() if line]
    events = [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in _pairs(lines)]
    assert events[0][0] == "begun"
    assert events[-1][0] == "answer", events[-1]
    streamed = events[0][1]["episode_id"]
    assert events[-1][1]["episode_id"] == streamed
    assert sum(kind == "stage_started" and data["stage"] == "plan" for kind, data in events) == 2

    question = next(one.questions).question.text
    chat = one.server.post(
        "/v1/chat/completions", {"model": "mia", "messages": [{"role": "user", "content": question}]}
    )
    researched = _research(one.server.url, next(one.questions).question.text)
    for id, version in (
        (streamed, version_of(events[-1][1])),
        (chat["mia"]["episode_id"], chat["mia"]["version"]),
        (researched["episode_id"], version_of(researched)),
    ):
        page = one.server.get(f"/v1/episodes/{id}")
        assert page["episode"]["id"] == id
        assert page["episode"]["adapters"].get("planner", "") == version
        assert one.server.client.get(f"/episodes/{id}").status_code == 200
        # In a page that watches it from the beginning, too.
        assert one.server.client.get(f"/asks/{id}").status_code == 200
    new = [line["episode_id"] for line in read_lines(one.home / LEARNING / "scores.jsonl")][scored:]
    assert new == [streamed, chat["mia"]["episode_id"], researched["episode_id"]]


def _pairs(lines: list[str]) -> Iterator[tuple[str, str]]:
    told = [line for line in lines if line.startswith(("event: ", "data: "))]
    return zip(told[::2], told[1::2], strict=True)


def _research(url: str, question: str) -> Any:
    """What an agent is given that asks over MCP."""

    async def call() -> Any:
        async with (
            httpx2.AsyncClient(timeout=PATIENCE) as http,
            Client(streamable_http_client(f"{url}/mcp", http_client=http), cache=None) as client,
        ):
            result = await client.call_tool("research", {"question": question})
            assert not result.is_error, result.content
            return result.structured_content

    return asyncio.run(call())


def _scored(one: Learning) -> int:
    return len(read_lines(one.home / LEARNING / "scores.jsonl"))


def _a_verdict_is_counted_once(one: Learning) -> None:
    told = one.ask()
    while not told["memories"]:
        told = one.ask()
    id, ids = told["episode_id"], told["memories"]
    credits_ = {change.reason: change.after for change in _credits(one) if set(change.after["memory_ids"]) & set(ids)}
    was_right = credits_[id]["correct"]
    before = one.counts(ids)
    for verdict in (not was_right, not was_right, bool(was_right), not was_right):
        one.server.post(f"/v1/episodes/{id}/feedback", {"correct": verdict})
        # It was counted, as the majority of its tries had it: what changes is which way.
        step = int(verdict) - int(was_right)
        assert one.counts(ids) == {key: (uses, wins + step) for key, (uses, wins) in before.items()}
    episodes = {page["id"] for page in one.server.get("/v1/episodes", limit=100)["episodes"]}
    (other,) = [each for each in episodes if each.startswith(f"{id}.")]
    one.server.post(f"/v1/episodes/{other}/feedback", {"correct": bool(was_right)})
    assert one.counts(ids) == before
    assert one.server.get("/v1/queue")["accepted_total"] == 0


def _credits(one: Learning) -> Iterator[Any]:
    """The oldest first."""
    store = open_store(one.home / "memory.db")
    try:
        yield from filter(is_credit, reversed(store.audit(limit=10_000)))
    finally:
        store.close()


@pytest.mark.slow
def test_a_kill_in_the_middle_of_an_update_leaves_the_last_good_version(
    serve_learning: Serving, tmp_path: Path
) -> None:
    one = Learning(serve_learning, tmp_path, MIA_LEARN__CANARY="1", MIA_LEARN__CANARY_MARGIN="1")
    # The first question is held out; of two that are asked at once, either may be.
    held_out = one.ask()["question_id"]
    one.ask_until(lambda: any(version_of(told) for told in one.told))
    for _ in range(2):
        one.ask_until(lambda: one.is_updating)
        one.kill()
        assert one.is_updating
        good = one.adapters.current()
        assert good is not None
        one.start()
        # It answers with the last version that was decided on; one that was made and not yet examined is examined
        # before.
        told = one.ask()
        assert version_of(told)
        assert one.adapters.get(version_of(told)).number >= good.number
    one.settle()
    store = one.adapters
    versions = store.versions()
    assert all(version.state is State.PROMOTED for version in versions)
    learnt = [id for version in versions for id in version.rollouts]
    assert len(learnt) == len(set(learnt))
    # What was answered is there once: its score, its memories, and the credit of what it was shown.
    scores = read_lines(one.home / LEARNING / "scores.jsonl")
    assert len({line["episode_id"] for line in scores}) == len(scores)
    assert {told["episode_id"] for told in one.told} <= {line["episode_id"] for line in scores}
    for told in one.told:
        assert one.server.get(f"/v1/episodes/{told['episode_id']}")["waiting"] is False
    counted: dict[str, list[str]] = {}
    for change in _credits(one):
        counted.setdefault(change.reason, []).append(change.action)
    assert counted
    assert all(len(changes) == 1 for changes in counted.values())
    assert set(counted) <= {line["episode_id"] for line in scores}
    kept = open_store(one.home / "memory.db")
    try:
        memories = kept.list_memories(None, states=tuple(MemoryState), limit=10_000)
        shown: dict[str, list[bool]] = {}
        for change in filter(is_credit, kept.audit(limit=10_000)):
            for id in change.after["memory_ids"]:
                shown.setdefault(id, []).append(bool(change.after["correct"]))
        for memory in memories:
            # They begin with one each.
            credited = shown.get(memory.id, [])
            assert (memory.uses, memory.wins) == (1 + len(credited), 1 + sum(credited)), memory.id
        # What versions are examined with is in no memory, and is known after the kills.
        assert held_out not in {line["question_id"] for line in scores if not line["canary"]}
        text = next(task for task in tasks(World.make(WORLD_SEED), 400) if task.question.id == held_out).question.text
        assert text not in {memory.question for memory in memories}
    finally:
        kept.close()
