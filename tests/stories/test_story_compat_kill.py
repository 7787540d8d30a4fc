"""Clients of the reference write, the server dies by kill -9 in the middle of it: every sample that was acknowledged is
there after the restart, and is learnt from once."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from embedded_team import needs_embedded_model
from serving import Endpoint, Server, Serving
from shelf import call

pytest.importorskip("fastapi", reason="the extra `service` is not installed")

from service.test_compat_trainer import collated

from mia.config import WORLD_SEED
from mia.learn.spool import read_lines
from mia.service.core import LEARNING
from mia.store import open_store
from mia.types import MemoryState
from mia.world.facts import World
from mia.world.questions import tasks

ENOUGH = 6
"""Of each kind, acknowledged before the kill."""


def question(kind: str, number: int) -> str:
    return f"What did {kind} write on page p{number} of the diary?"


def run_of(kind: str, number: int) -> dict[str, Any]:
    """A finished run, as a client sends it to be learnt from."""
    turns = [
        {"role": "assistant", "content": call(f"page {number}")},
        {"role": "user", "content": "<tool_response>\na line\n</tool_response>"},
        {"role": "assistant", "content": f"<think>t</think><answer>{number}</answer>"},
    ]
    return {"data_id": f"{kind}-{number}", "question": question(kind, number), "plan": f"1. Open page {number}.",
            "judgement": "correct", "messages": turns, "temp_messages": turns}  # fmt: skip


WRITES: dict[str, Callable[[httpx2.Client, int], httpx2.Response]] = {
    "bank": lambda client, number: client.post("/memory_bank_save", json=run_of("bank", number)),
    "batch": lambda client, number: client.post("/batch_memory_save", json=[run_of("batch", number)]),
    "truth": lambda client, number: client.post(
        "/register_gts", json={"data_id": f"truth-{number}", "ground_truth": f"line {number}"}
    ),
    "export": lambda client, number: client.post("/save_memory", json={"save_path": f"export-{number}.jsonl"}),
}


class Writer:
    """Writes one kind after the other, until nobody answers any more."""

    def __init__(self, url: str, write: Callable[[httpx2.Client, int], httpx2.Response], first: int) -> None:
        self._url = url
        self._write = write
        self.next = first
        self.acknowledged: list[int] = []
        self.refused: list[str] = []
        self.thread = threading.Thread(target=self._do)
        self.thread.start()

    def _do(self) -> None:
        with httpx2.Client(base_url=self._url, timeout=120) as client:
            while not self.refused:
                number, self.next = self.next, self.next + 1
                try:
                    reply = self._write(client, number)
                except httpx2.TransportError:
                    return
                if reply.status_code == 200:
                    self.acknowledged.append(number)
                else:
                    self.refused.append(reply.text)


def kill_while_writing(server: Server, writers: list[Writer], enough: int) -> None:
    server.wait_for(lambda: all(len(one.acknowledged) >= enough or one.refused for one in writers), 300)
    server.kill()
    for one in writers:
        one.thread.join(120)
        assert one.refused == []


def test_samples_of_the_agent_and_memory_service_are_there_once(
    serve: Serving, tmp_path: Path, endpoint: Endpoint
) -> None:
    done: dict[str, list[int]] = {kind: [] for kind in WRITES}
    first = dict.fromkeys(WRITES, 0)
    for _ in range(2):
        server = serve(tmp_path, endpoint)
        writers = {kind: Writer(server.url, write, first[kind]) for kind, write in WRITES.items()}
        kill_while_writing(server, list(writers.values()), ENOUGH)
        for kind, one in writers.items():
            done[kind] += one.acknowledged
            # A client that was not answered sends the last one again.
            first[kind] = one.next - 1 if kind == "batch" else one.next

    exported = {path.name: path.read_text().splitlines() for path in (tmp_path / "exports").glob("export-*.jsonl")}
    assert {f"export-{number}.jsonl" for number in done["export"]} <= exported.keys()
    for lines in exported.values():
        assert all(isinstance(json.loads(line), dict) for line in lines)

    server = serve(tmp_path, endpoint)
    assert server.get("/reward-service/health")["registered_gts"] >= len(done["truth"])
    for number in done["truth"]:
        turns = ["1. Look.", f"<think>t</think><answer>line {number}</answer>", "<think>t</think>no"]
        reward = server.post("/compute_gt_reward", {"data_id": f"truth-{number}", "messages": turns})
        assert reward.get("error") is None, reward

    tried = server.post("/batch_evaluate", [])["processed_count"]
    server.post("/save_memory", [])
    pages = [json.loads(line) for line in (tmp_path / "exports" / "evaluated.jsonl").read_text().splitlines()]
    tries = {page["data_id"]: page["tries"] for page in pages}
    assert len(tries) == tried
    # At most the two that were not answered are there beside them.
    assert {f"bank-{number}" for number in done["bank"]} <= tries.keys()
    assert tried <= len(done["bank"]) + 2
    assert set(tries.values()) == {1}
    assert server.post("/consolidate_memories", [])["saved_positives"] == tried
    assert server.post("/consolidate_memories", [])["saved_positives"] == 0
    server.absorb_all()
    server.kill()
    with open_store(tmp_path / "memory.db") as store:
        held = Counter(one.question for one in store.list_memories(None, limit=10_000, states=tuple(MemoryState)))
        for kind in ("bank", "batch"):
            for number in done[kind]:
                assert held[question(kind, number)] == 1
        assert set(held.values()) == {1}


@needs_embedded_model
def test_samples_of_the_streaming_trainer_are_there_once(serve_learning: Serving, tmp_path: Path) -> None:
    settings = {"MIA_LEARN__INTO": "memory", "MIA_LEARN__SAMPLES": "2", "MIA_LEARN__CANARY": "0"}
    settings |= {"MIA_LEARN__REPORT": "first", "MIA_LEARN__BATCH": "2"}
    asked = tasks(World.make(WORLD_SEED), 100)

    def submit(client: httpx2.Client, number: int) -> httpx2.Response:
        one = asked[number].question
        sample = {"question": one.text, "data_id": one.id, "modality": "text-only"}
        return client.post("/submit_sample", json={"rollout": collated([sample]), "epoch": 0})

    server = serve_learning(tmp_path, None, "--learn", **settings)
    truths = [{"data_id": one.question.id, "ground_truth": list(one.references)} for one in asked]
    assert server.post("/register_gts", {"entries": truths})["total"] == len(asked)
    writers = [Writer(server.url, submit, first) for first in (0, 50)]
    kill_while_writing(server, writers, 2)
    done = {asked[number].question.id for one in writers for number in one.acknowledged}

    server = serve_learning(tmp_path, None, "--learn", **settings)
    assert server.get("/health")["registered_gts"] == len(asked)
    scores = read_lines(tmp_path / "world" / LEARNING / "scores.jsonl")
    scored = Counter(score["question_id"] for score in scores)
    assert done <= scored.keys()
    assert set(scored.values()) == {1}
    for score in scores:
        assert server.get(f"/v1/episodes/{score['episode_id']}")["waiting"] is False
    server.kill()
    with open_store(tmp_path / "world" / "memory.db") as store:
        episodes = [kept.episode for kept in store.export_episodes(None)]
        # Both tries of each, once.
        assert Counter(one.question.id for one in episodes) == dict.fromkeys(scored, 2)
        assert len({one.id for one in episodes}) == len(episodes)
