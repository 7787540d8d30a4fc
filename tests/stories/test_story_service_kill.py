"""`mia serve`, killed by kill -9: what was acknowledged is there, once, and jobs go on."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import httpx2
import pytest
from serving import RIGHT, Endpoint, Serving, hold, variables_of

from mia.store import open_store
from mia.store.audit import is_credit
from mia.types import MemoryState

pytest.importorskip("fastapi", reason="the extra `service` is not installed")

WORKFLOW = "1. open the diary (page → a line)"


def about(text: str) -> bool:
    """A call that writes a workflow."""
    return "workflow" in text and "Write the plan" not in text


def test_an_answer_that_was_sent_is_absorbed_once_after_a_kill(
    serve: Serving, tmp_path: Path, endpoint: Endpoint
) -> None:
    endpoint.behave, met, go_on = hold(about)
    server = serve(tmp_path, endpoint)
    told = server.ask("Who found the moon of Saturn?")
    assert told["answer"] == RIGHT
    assert met.wait(30)
    # Sent, and while it is being absorbed the process dies.
    assert server.get("/v1/queue")["accepted_total"] == 1
    server.kill()
    go_on.set()

    server = serve(tmp_path, endpoint)
    server.absorb_all()
    page = server.get(f"/v1/episodes/{told['episode_id']}")
    assert not page["waiting"]
    (memory,) = server.get("/v1/memories", state="all")["memories"]
    assert page["memories"] == [memory["id"]]
    server.kill()
    server = serve(tmp_path, endpoint)
    server.absorb_all()
    assert [one["id"] for one in server.get("/v1/memories", state="all")["memories"]] == [memory["id"]]


def test_all_that_was_acknowledged_under_load_is_there_after_a_kill(
    serve: Serving, tmp_path: Path, endpoint: Endpoint
) -> None:
    added: set[str] = set()
    accepted: set[str] = set()
    answered: dict[str, str] = {}
    for round in range(2):
        server = serve(tmp_path, endpoint, MIA_RUN__CONCURRENCY="2")
        job = server.post("/v1/jobs", {"questions": [{"question": f"job {round} {n}?"} for n in range(300)]})["id"]
        enough = threading.Barrier(4)

        def work(kind: str, number: int = round, url: str = server.url, enough: threading.Barrier = enough) -> None:
            with httpx2.Client(base_url=url, timeout=30) as client:
                for count in range(10_000):
                    question = f"What did {kind} {number} write on page {count}?"
                    try:
                        if kind == "ask":
                            body = {"question": question, "references": [RIGHT]}
                            reply = client.post("/v1/ask", json=body)
                        else:
                            body = {"question": question, "workflow": f"{WORKFLOW} {count}"}
                            wait = "true" if kind == "add" else "false"
                            reply = client.post(f"/v1/memories?wait={wait}", json=body)
                    except httpx2.TransportError:
                        return
                    assert reply.status_code < 300, reply.text
                    if kind == "ask":
                        answered[reply.json()["episode_id"]] = question
                    else:
                        (added if kind == "add" else accepted).add(question)
                    if count == 12:
                        enough.wait(60)

        threads = [threading.Thread(target=work, args=(kind,)) for kind in ("add", "accept", "ask")]
        for thread in threads:
            thread.start()
        enough.wait(60)
        done = server.get(f"/v1/jobs/{job}")["counts"].get("answered", 0)
        server.kill()
        for thread in threads:
            thread.join()
        if round == 0:
            first, before = job, done

    server = serve(tmp_path, endpoint)
    # A job goes on where it was; none of its questions is asked twice.
    server.wait_for(lambda: server.get(f"/v1/jobs/{first}")["counts"].get("answered", 0) > before)
    server.post(f"/v1/jobs/{first}/cancel")
    server.post(f"/v1/jobs/{job}/cancel")
    server.absorb_all()
    lines = server.client.get(f"/v1/jobs/{first}/results", params={"format": "jsonl"}).text.splitlines()
    items = [json.loads(line) for line in lines]
    assert [item["number"] for item in items] == list(range(300))
    asked = [item["episode_id"] for item in items if item["state"] == "answered"]
    assert len(asked) == len(set(asked)) >= before
    server.kill()

    with open_store(tmp_path / "memory.db") as store:
        every = store.list_memories(None, limit=100_000, states=tuple(MemoryState))
        held = Counter(memory.question for memory in every)
        assert min(len(added), len(accepted), len(answered)) > 20
        for question in added | accepted:
            assert held[question] == 1, question
        for id, question in answered.items():
            kept = store.kept_episode(id)
            assert kept is not None
            assert kept.absorbed
            assert len(kept.lessons) == 1
            assert held[question] == 1
        for id in asked:
            assert store.kept_episode(id) is not None
        # Each answer counts once for what it was shown.
        credits = Counter(change.reason for change in store.audit(limit=1_000_000) if is_credit(change))
        assert set(credits.values()) <= {1}


def test_a_second_server_on_one_home_is_refused_and_on_another_home_shares_the_memory(
    serve: Serving, tmp_path: Path, endpoint: Endpoint
) -> None:
    one = serve(tmp_path / "one", endpoint)
    refused = serve.nursery.mia("--home", tmp_path / "one", "serve", "--port", "0", **variables_of(endpoint))
    assert refused.code != 0
    assert "another server works in" in refused.stderr
    assert f"process {one.worker.pid}, at {one.url}" in refused.stderr
    assert "Traceback" not in refused.stderr

    shared = str(tmp_path / "one" / "memory.db")
    two = serve(tmp_path / "two", endpoint, MIA_MEMORY__PATH=shared)
    question = "Who found the moon of Saturn?"
    servers = (one, two)
    for teller, listener in (servers, servers[::-1]):
        told = f"{question} Told by {teller.url}."
        memory = teller.post("/v1/memories", {"question": told, "workflow": WORKFLOW})
        assert listener.get(f"/v1/memories/{memory['id']}")["question"] == told
        (found, *_) = listener.get("/v1/memories/search", text=told)["found"]
        assert found["memory"]["id"] == memory["id"]
        id = listener.ask(told)["episode_id"]
        shown = listener.get(f"/v1/episodes/{id}/why")["recall"]["shown"]
        assert memory["id"] in [one["memory_id"] for one in shown]
        listener.absorb_all()
        # An answer of one is judged at the other.
        assert teller.post(f"/v1/episodes/{id}/feedback", {"correct": False})["credited"] >= 1
    one.kill()
    # The lock goes with its process.
    serve(tmp_path / "one", endpoint)
