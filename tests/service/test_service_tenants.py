"""What a token of one tenant can do to another one's things, with their ids known to it: nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from service_team import RIGHT, WORKFLOW, make_service
from starlette.testclient import TestClient

from mia.service.app import create_app
from mia.service.auth import add_token

QUESTION = "Where was the discoverer of Titan born?"
SCOPES = ("acme/a", "acme/b", "acme", "ACME/b", "acme/a/x", None)


@dataclass(frozen=True)
class Tenant:
    """One token, with what was made under it."""

    client: TestClient
    token: str
    memory: str
    episode: str
    job: str

    def ask(self, method: str, path: str, **more: Any) -> Any:
        headers = {"authorization": f"Bearer {self.token}"} | more.pop("headers", {})
        return self.client.request(method, path, headers=headers, **more)


@pytest.fixture
def tenants(tmp_path: Path) -> Iterator[dict[str | None, Tenant]]:
    tokens = {scope: add_token(tmp_path / "tokens.json", str(scope), scope=scope, days=None) for scope in SCOPES}
    with TestClient(create_app(make_service(tmp_path))) as client:
        made = {}
        for scope, token in tokens.items():
            headers = {"authorization": f"Bearer {token}"}
            own = f"{QUESTION} Of {scope}."
            body = {"question": own, "workflow": f"{WORKFLOW}\n3. Tell {scope} (it → all)"}
            memory = client.post("/v1/memories", json=body, headers=headers).json()["id"]
            asked = {"question": f"{own} Tell me.", "references": [RIGHT]}
            episode = client.post("/v1/ask", json=asked, headers=headers).json()["episode_id"]
            job = client.post("/v1/jobs", json={"questions": [asked]}, headers=headers).json()["id"]
            while client.get(f"/v1/jobs/{job}", headers=headers).json()["finished_at"] is None:
                pass
            made[scope] = Tenant(client, token, memory, episode, job)
        everybody = made[None]
        while everybody.ask("GET", "/v1/queue", params={"all_scopes": True}).json()["accepted_total"]:
            pass
        yield made


@pytest.mark.parametrize("stranger", ["acme/b", "ACME/b", "acme/a/x"])
def test_a_stranger_can_do_nothing_with_what_he_knows_the_id_of(
    tenants: dict[str | None, Tenant], stranger: str
) -> None:
    owner, other = tenants["acme/a"], tenants[stranger]
    memory, episode, job = f"/v1/memories/{owner.memory}", f"/v1/episodes/{owner.episode}", f"/v1/jobs/{owner.job}"
    for method, path, body in (
        ("GET", memory, None),
        ("GET", f"{memory}/why", None),
        ("GET", f"{memory}/audit", None),
        ("PATCH", memory, {"state": "forgotten"}),
        ("POST", f"{memory}/forget", {}),
        ("POST", f"{memory}/quarantine", {}),
        ("POST", f"{memory}/restore", {}),
        ("DELETE", memory, None),
        ("GET", episode, None),
        ("GET", f"{episode}/why", None),
        ("GET", f"{episode}/why/{owner.memory}", None),
        ("POST", f"{episode}/feedback", {"correct": False}),
        ("DELETE", episode, None),
        ("GET", job, None),
        ("GET", f"{job}/results", None),
        ("GET", f"{job}/results?format=jsonl", None),
        ("POST", f"{job}/cancel", None),
        ("POST", f"{job}/retry", None),
        ("DELETE", job, None),
    ):
        reply = other.ask(method, path, json=body)
        assert reply.status_code == 404, (method, path, reply.text)
        assert "Titan" not in reply.text
    for path in (
        "/v1/memories?limit=1000&state=all",
        "/v1/episodes?limit=1000",
        "/v1/jobs?limit=1000",
        "/v1/memories/audit?limit=1000",
        "/v1/memories/export?episodes=true",
        "/v1/queue?limit=1000",
    ):
        reply = other.ask("GET", path)
        assert reply.status_code == 200, reply.text
        # One below is shown what its parent knows, and its own episodes say so.
        beside = not stranger.startswith("acme/a/")
        assert not beside or not {owner.memory, owner.episode, owner.job} & set(_words(reply.text)), path
        assert not beside or "Of acme/a." not in reply.text
        for asked in ({"headers": {"x-mia-scope": "acme/a"}}, {"params": {"all_scopes": True}}):
            assert other.ask("GET", path, **asked).status_code == 403
    # What is the owner's is as it was.
    assert owner.ask("GET", memory).json()["state"] == "active"
    assert owner.ask("GET", episode).json()["episode"]["verdict"]["outcome"] == "correct"


def test_a_stranger_does_not_find_it_nor_is_shown_it(tenants: dict[str | None, Tenant]) -> None:
    owner, other = tenants["acme/a"], tenants["acme/b"]
    found = other.ask("GET", "/v1/memories/search", params={"text": f"{QUESTION} Of acme/a.", "k": 100}).json()["found"]
    assert {one["memory"]["scope"] for one in found} == {"acme/b", "acme"}
    asked = {"question": f"{QUESTION} Of acme/a.", "references": [RIGHT]}
    episode = other.ask("POST", "/v1/ask", json=asked).json()["episode_id"]
    recall = other.ask("GET", f"/v1/episodes/{episode}/why").json()["recall"]
    assert owner.memory not in {one["memory_id"] for one in (*recall["shown"], *recall["passed_over"])}


@pytest.mark.parametrize("parent", ["acme", None])
def test_a_parent_sees_both(tenants: dict[str | None, Tenant], parent: str | None) -> None:
    above = tenants[parent]
    for child in ("acme/a", "acme/b"):
        below = tenants[child]
        assert above.ask("GET", f"/v1/memories/{below.memory}").status_code == 200
        assert above.ask("GET", f"/v1/episodes/{below.episode}").status_code == 200
        everything = {"limit": 1000} | ({"all_scopes": True} if parent is None else {})
        for path, id in (("memories", below.memory), ("episodes", below.episode), ("jobs", below.job)):
            assert id in above.ask("GET", f"/v1/{path}", params=everything).text
        assert above.ask("POST", f"/v1/memories/{below.memory}/forget").json()["changed"]


def test_an_import_goes_into_the_scope_of_the_token_and_brings_no_episodes(tenants: dict[str | None, Tenant]) -> None:
    owner, other, admin = tenants["acme/a"], tenants["acme/b"], tenants[None]
    params = {"episodes": True, "all_scopes": True}
    exported = admin.ask("GET", "/v1/memories/export", params=params).text.splitlines()
    memory = next(json.loads(line) for line in exported if f'"{owner.memory}"' in line and '"memory"' in line)
    memory["memory"] |= {"id": "mem-forged", "question": "Forged?"}
    # An episode that claims the owner's memory as its own lesson: whoever erases or judges it would reach that.
    forged = next(json.loads(line) for line in exported if '"episode":' in line[:12])
    forged["episode"]["id"] = "ep-forged"
    forged["lessons"] = [owner.memory]
    lines = "\n".join(json.dumps(one) for one in (json.loads(exported[0]), memory, forged))
    assert other.ask("POST", "/v1/memories/import", params={"keep_scopes": True}, content=lines).status_code == 403
    reply = other.ask("POST", "/v1/memories/import", content=lines).json()
    assert (reply["added"], reply["episodes"]) == (1, 0)
    assert [one["line"] for one in reply["refused"]] == [3]
    assert other.ask("GET", "/v1/memories/mem-forged").json()["scope"] == "acme/b"
    assert other.ask("GET", "/v1/episodes/ep-forged").status_code == 404


def test_versions_are_an_administrators_affair(tenants: dict[str | None, Tenant]) -> None:
    # The server learns in the scope "default", which these do not see.
    assert tenants["acme"].ask("GET", "/v1/adapters").status_code == 403
    assert tenants["acme"].ask("POST", "/v1/adapters/rollback", json={}).status_code == 403
    assert tenants[None].ask("GET", "/v1/adapters").json()["versions"] == []


def _words(text: str) -> list[str]:
    return text.replace('"', " ").split()
