"""`/v1/memories` and `/v1/queue`: added, found, changed, traced, taken out and in."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from service.test_service_episodes import QUESTION, ask, settle
from service_team import RIGHT, WORKFLOW, make_service, says, settings
from shelf import ShelfTool
from starlette.testclient import TestClient

from mia.errors import StoreError
from mia.models import Models
from mia.models.base import ChatReply, ChatRequest
from mia.models.scripted import ScriptedModel
from mia.service.app import create_app
from mia.service.core import Service


def add(client: TestClient, question: str = QUESTION, **more: Any) -> dict[str, Any]:
    reply = client.post("/v1/memories", json={"question": question, "workflow": WORKFLOW, **more})
    assert reply.status_code == 201, reply.text
    page: dict[str, Any] = reply.json()
    return page


def all_of(client: TestClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/v1/memories", params={"state": "all"}).json()["memories"]
    return found


def test_a_memory_is_added_listed_found_and_recalled(client: TestClient) -> None:
    memory = add(client)
    assert memory["provenance"]["origin"] == "user"
    assert client.get(f"/v1/memories/{memory['id']}").json() == memory
    assert client.get("/v1/memories").json() == {"memories": [memory], "next": None}
    assert client.get("/v1/memories", params={"judgement": "incorrect"}).json()["memories"] == []
    (found,) = client.get("/v1/memories/search", params={"text": QUESTION}).json()["found"]
    assert found["memory"]["id"] == memory["id"]
    assert found["similarity"] == pytest.approx(1.0, abs=1e-5)
    id = ask(client, f"{QUESTION} Tell me.")
    assert client.get(f"/v1/episodes/{id}/why").json()["recall"]["shown"][0]["memory_id"] == memory["id"]


def test_one_that_is_not_waited_for_has_a_receipt_and_is_there_soon(client: TestClient) -> None:
    body = {"question": QUESTION, "workflow": WORKFLOW}
    receipts = {client.post("/v1/memories", params={"wait": False}, json=body).json()["receipt"] for _ in range(3)}
    assert len(receipts) == 3
    settle(client)
    # Said three times, known once.
    assert len(all_of(client)) == 1
    refused = client.post("/v1/memories", params={"wait": False}, json={**body, "category": "no such"})
    assert refused.status_code == 422


def test_its_state_and_expiry_change_and_its_texts_never(client: TestClient) -> None:
    id = add(client)["id"]
    path = f"/v1/memories/{id}"
    for verb, state in (("forget", "forgotten"), ("restore", "active"), ("quarantine", "quarantined")):
        reply = client.post(f"{path}/{verb}", json={"reason": f"I {verb} it"}).json()
        assert (reply["changed"], reply["memory"]["state"]) == (True, state)
        assert client.post(f"{path}/{verb}").json()["changed"] is False
    assert client.patch(path, json={"state": "active", "reason": "back"}).json()["memory"]["state"] == "active"
    soon = time.time() + 0.2
    assert client.patch(path, json={"expires_at": soon}).json()["memory"]["expires_at"] == soon
    time.sleep(0.25)
    id_of_ask = ask(client, f"{QUESTION} Tell me.")
    assert client.get(f"/v1/episodes/{id_of_ask}/why").json()["recall"]["shown"] == []
    assert client.patch(path, json={"expires_at": None}).json()["memory"]["expires_at"] is None
    for wrong in ({}, {"workflow": "another"}, {"state": "replaced"}, {"expires_at": 1e300}):
        assert client.patch(path, json=wrong).status_code == 422
    actions = [change["action"] for change in client.get(f"{path}/audit").json()["changes"]]
    assert actions == ["expire", "expire", "restore", "quarantine", "restore", "forget", "add"]
    page = client.get(f"{path}/audit", params={"limit": 2}).json()
    rest = client.get(f"{path}/audit", params={"before": page["next"]}).json()
    assert [change["action"] for change in page["changes"] + rest["changes"]] == actions
    assert [one["reason"] for one in rest["changes"]][:2] == ["back", "I quarantine it"]
    assert len(client.get("/v1/memories/audit").json()["changes"]) >= len(actions)


def test_a_memory_that_is_erased_is_gone_and_the_audit_says_so(tmp_path: Path) -> None:
    with TestClient(create_app(make_service(tmp_path))) as client:
        id = add(client, "Where is Xanadumbria?")["id"]
        assert client.delete(f"/v1/memories/{id}").json()["memories"] == [id]
        assert client.get(f"/v1/memories/{id}").status_code == 404
        assert client.delete(f"/v1/memories/{id}").status_code == 404
        assert client.get(f"/v1/memories/{id}/audit").json()["changes"][0]["action"] == "erase"
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert not [path for path in files if b"Xanadumbria" in path.read_bytes()]


def test_where_a_memory_comes_from(client: TestClient) -> None:
    first = add(client)
    id = ask(client, f"{QUESTION} Tell me.")
    (made,) = client.get(f"/v1/episodes/{id}").json()["memories"]
    why = client.get(f"/v1/memories/{made}/why").json()
    assert why["made_of"] == {"id": id, "question": f"{QUESTION} Tell me."}
    assert why["leaned_on"] == [{"id": first["id"], "question": QUESTION}]
    assert client.get(f"/v1/memories/{first['id']}/why").json()["made_of"] is None


def test_an_export_is_an_import_elsewhere(client: TestClient, tmp_path: Path) -> None:
    for number in range(300):
        add(client, f"Where is the town number {number}?")
    id = ask(client, QUESTION)
    exported = client.get("/v1/memories/export", params={"episodes": True})
    lines = [json.loads(line) for line in exported.content.splitlines()]
    assert [sorted(line)[0] for line in lines].count("dimension") == 1
    assert sum("memory" in line for line in lines) == 301
    assert sum("episode" in line for line in lines) == 1
    with TestClient(create_app(make_service(tmp_path / "other"))) as other:
        reply = other.post("/v1/memories/import", content=exported.content).json()
        assert (reply["added"], reply["episodes"], reply["refused"]) == (301, 1, [])
        again = other.post("/v1/memories/import", content=exported.content).json()
        assert (again["added"], again["known"]) == (0, 302)
        assert other.get(f"/v1/episodes/{id}").status_code == 200
        back = other.get("/v1/memories/export", params={"episodes": True}).content
        assert back.split(b"\n")[1:] == exported.content.split(b"\n")[1:]
        broken = b"no json\n\xff\n[]\n" + b"[" * 100_000 + b"\nnor this"
        mixed = other.post("/v1/memories/import", content=broken + b"\n" + exported.content)
        assert (mixed.status_code, mixed.json()["known"], mixed.json()["refused_total"]) == (200, 302, 5)
        assert [one["line"] for one in mixed.json()["refused"]] == [1, 2, 3, 4, 5]
        assert mixed.json()["reasons"]["it is no JSON"] == 2
        assert sum(mixed.json()["reasons"].values()) == 5
        nothing = other.post("/v1/memories/import", content=broken)
        assert nothing.status_code == 422
        error = nothing.json()["error"]
        assert error["message"].startswith("nothing was taken of 5 lines; line 1: it is no JSON")
        assert error["reasons"] == mixed.json()["reasons"]
        assert [one["line"] for one in error["refused"]] == [1, 2, 3, 4, 5]
        # An export of nothing is nothing that could be refused.
        assert other.post("/v1/memories/import", content=exported.content.splitlines()[0]).status_code == 200
    bare = client.get("/v1/memories/export", params={"vectors": False}).content
    assert b"vectors" not in bare


def test_an_export_of_nothing_is_a_header(client: TestClient) -> None:
    (line,) = client.get("/v1/memories/export").text.splitlines()
    assert json.loads(line)["mia"] == "memory"


def test_statistics(client: TestClient) -> None:
    add(client)
    ask(client, "Where was the discoverer of Titan born, wrong?")
    page = client.get("/v1/memories/statistics").json()
    assert page["judgements"] == {"correct": 1, "incorrect": 1}
    assert page["origins"] == {"user": 1, "episode": 1}
    assert (page["episodes"], page["accepted"]) == (1, 0)


class Held(ScriptedModel):
    """Writes no workflow until it may."""

    def __init__(self) -> None:
        super().__init__(says, keep_requests=False)
        self.asked, self.may = threading.Event(), threading.Event()

    async def complete(self, request: ChatRequest) -> ChatReply:
        if request.purpose == "compress":
            self.asked.set()
            while not self.may.is_set():  # noqa: ASYNC110  # Of another thread.
                await asyncio.sleep(0.01)
        return await super().complete(request)


def test_an_answer_waits_once_while_it_is_brought_in_and_after_a_death_in_the_middle(tmp_path: Path) -> None:
    """The memory has kept it by then, in a queue of its own; the service has not noted that yet."""
    id = ""
    for _ in range(2):
        model = Held()
        service = Service(settings(tmp_path), models=Models(model, model, model, model), tools=[ShelfTool()])
        with TestClient(create_app(service)) as client:
            if not id:
                id = client.post("/v1/ask", json={"question": QUESTION, "references": [RIGHT]}).json()["episode_id"]
            assert model.asked.wait(10)
            assert [(one.task, one.subject) for one in service.store.queue()] == [("remember", id)]
            page = client.get("/v1/queue").json()
            assert ([one["id"] for one in page["accepted"]], page["accepted_total"]) == ([id], 1)
            assert (page["waiting"], page["waiting_total"]) == ([], 0)
            assert client.get("/queue").text.count(f"/episodes/{id}") == 1
    with TestClient(create_app(make_service(tmp_path))) as client:
        settle(client)
        assert client.get("/v1/queue").json()["waiting_total"] == 0
        assert [one["provenance"]["episode_id"] for one in all_of(client)] == [id]


def test_what_waits_is_seen_tried_again_and_given_up(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    manager = service.memory("default")

    def full(*_: object, **__: object) -> None:
        raise StoreError("the disk is full.")

    monkeypatch.setattr(manager, "add", full)
    body = {"question": QUESTION, "workflow": WORKFLOW}
    receipts = [
        client.post("/v1/memories", params={"wait": False}, json={**body, "question": f"{QUESTION} {number}"}).json()
        for number in range(2)
    ]
    while not all(one["error"] for one in client.get("/v1/queue").json()["accepted"]):
        pass
    page = client.get("/v1/queue").json()
    assert [one["id"] for one in page["accepted"]] == [one["receipt"] for one in receipts]
    assert page["accepted"][0]["error"] == "the disk is full."
    assert page["accepted"][0]["question"] == f"{QUESTION} 0"
    assert client.delete(f"/v1/queue/{receipts[0]['receipt']}").json() == {"dropped": True}
    assert client.delete(f"/v1/queue/{receipts[0]['receipt']}").status_code == 404
    monkeypatch.undo()
    assert client.post("/v1/queue/retry").json()["accepted"] == 1
    settle(client)
    assert [memory["question"] for memory in all_of(client)] == [f"{QUESTION} 1"]


@pytest.mark.parametrize("path", ["/v1/memories/no", "/v1/memories/no/why", "/v1/memories/no/audit"])
def test_an_unknown_memory_is_not_found(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404
    assert client.post("/v1/memories/no/forget").status_code == 404
    assert client.patch("/v1/memories/no", json={"state": "active"}).status_code == 404
