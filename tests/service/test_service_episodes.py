"""`/v1/episodes`: listed, shown whole, explained, and removed for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from service_team import RIGHT, WRONG, make_service
from starlette.testclient import TestClient

from mia.service.app import create_app

QUESTION = "Where was the discoverer of Titan born?"


def ask(client: TestClient, question: str) -> str:
    reply = client.post("/v1/ask", json={"question": question, "references": [RIGHT]})
    assert reply.status_code == 200, reply.text
    id: str = reply.json()["episode_id"]
    settle(client)
    return id


def settle(client: TestClient) -> None:
    """Until all is absorbed."""
    while client.get("/v1/queue").json()["accepted_total"]:
        pass


def ids(page: dict[str, Any]) -> list[str]:
    return [row["id"] for row in page["episodes"]]


def test_episodes_are_listed_in_pages_and_filtered(client: TestClient) -> None:
    asked = [ask(client, f"{QUESTION} {'wrong' if number == 1 else ''} {number}") for number in range(4)]
    first = client.get("/v1/episodes", params={"limit": 3}).json()
    second = client.get("/v1/episodes", params={"limit": 3, "before": first["next"]}).json()
    assert ids(first) + ids(second) == asked[::-1]
    assert second["next"] is None
    assert ids(client.get("/v1/episodes", params={"outcome": "incorrect"}).json()) == [asked[1]]
    assert ids(client.get("/v1/episodes", params={"text": WRONG.upper()}).json()) == [asked[1]]
    found = client.get("/v1/episodes", params={"text": "titan", "limit": 1}).json()
    assert ids(found) == [asked[3]]
    assert ids(client.get("/v1/episodes", params={"text": "titan", "before": found["next"]}).json()) == asked[2::-1]


def test_an_episode_is_shown_whole_and_says_why_it_was_shown_what(client: TestClient) -> None:
    ask(client, QUESTION)
    (memory,) = client.get("/v1/memories").json()["memories"]
    id = ask(client, f"{QUESTION} Tell me.")
    page = client.get(f"/v1/episodes/{id}").json()
    assert page["waiting"] is False
    assert page["episode"]["answer"]["text"] == RIGHT
    assert page["episode"]["attempts"][0]["trace"]["steps"]
    why = client.get(f"/v1/episodes/{id}/why").json()
    (shown,) = why["recall"]["shown"]
    assert shown["memory_id"] == memory["id"]
    assert {"similarity", "value"} <= shown["parts"].keys()
    assert why["recall"]["weights"]
    assert client.get(f"/v1/episodes/{id}/why/{memory['id']}").json()["memory"] == shown
    assert client.get(f"/v1/episodes/{id}/why/mem-no").json()["memory"] is None


def test_an_erased_episode_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    secret = "Zanzibarbarossa"
    with TestClient(create_app(make_service(tmp_path / "home"))) as client:
        kept = ask(client, QUESTION)
        id = ask(client, f"Where was {secret} born?")
        job = client.post("/v1/jobs", json={"questions": [{"question": f"Who was {secret}?"}]}).json()["id"]
        while client.get(f"/v1/jobs/{job}").json()["finished_at"] is None:
            pass
        settle(client)
        (item,) = client.get(f"/v1/jobs/{job}/results").json()["results"]
        for one in (id, item["episode_id"]):
            erased = client.delete(f"/v1/episodes/{one}")
            assert erased.status_code == 200, erased.text
            assert erased.json()["episodes"] == [one]
            assert erased.json()["unreached"] == []
            assert client.get(f"/v1/episodes/{one}").status_code == 404
            assert client.delete(f"/v1/episodes/{one}").status_code == 404
        (item,) = client.get(f"/v1/jobs/{job}/results").json()["results"]
        assert secret not in str(item)
        assert item["state"] == "answered"
        assert client.get(f"/v1/jobs/{job}").json()["total"] == 1
        assert ids(client.get("/v1/episodes").json()) == [kept]
        assert all(secret not in str(one) for one in client.app.state.service.live.asks())  # type: ignore[attr-defined]
        # While it runs, and after.
        assert not holding(tmp_path, secret)
    assert not holding(tmp_path, secret)


def holding(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.mark.parametrize("path", ["", "/why", "/why/mem-1"])
def test_an_unknown_episode_is_not_found(client: TestClient, path: str) -> None:
    for id in ("ep-no", "last", "ep", "..%2f..", "%00", "%ff"):
        assert client.get(f"/v1/episodes/{id}{path}").status_code == 404


def test_the_memory_may_be_off_or_frozen_and_episodes_are_kept(tmp_path: Path) -> None:
    for name, flags in (("off", {"memory__enabled": False}), ("frozen", {"memory__frozen": True})):
        with TestClient(create_app(make_service(tmp_path / name, **flags))) as client:
            id = ask(client, QUESTION)
            assert ids(client.get("/v1/episodes").json()) == [id]
            assert client.get("/v1/memories").json()["memories"] == []
            told = client.post(f"/v1/episodes/{id}/feedback", json={"correct": False})
            if name == "frozen":
                assert told.status_code == 400
                assert "frozen" in told.json()["error"]["message"]
                assert client.delete(f"/v1/episodes/{id}").status_code == 400
            else:
                assert told.json()["credited"] == 0
                assert client.get(f"/v1/episodes/{id}").json()["episode"]["verdict"]["outcome"] == "incorrect"
                assert client.get("/v1/memories", params={"state": "all"}).json()["memories"] == []
