"""`POST /v1/ask`: one reply, or every stage as it happens; on the disk before it is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from service_team import RIGHT, make_service
from starlette.testclient import TestClient

from mia.errors import ModelUnavailable
from mia.service.app import create_app

QUESTION = "Where was the discoverer of Titan born?"


def events(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def test_a_question_is_answered_cited_and_judged(client: TestClient) -> None:
    reply = client.post("/v1/ask", json={"question": QUESTION, "references": [RIGHT]})
    assert reply.status_code == 200, reply.text
    page = reply.json()
    assert page["answer"] == RIGHT
    assert page["verdict"]["outcome"] == "correct"
    assert page["usage"]["calls"] >= 4
    assert reply.headers["x-request-id"]


def test_a_stream_tells_every_stage_and_ends_with_the_answer(client: TestClient) -> None:
    reply = client.post("/v1/ask", json={"question": QUESTION, "references": [RIGHT], "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    told = events(reply.text)
    stages = [data["stage"] for kind, data in told if kind == "stage_started"]
    assert stages == ["recall", "plan", "execute", "reflect", "judge"]
    assert any(kind == "text_arrived" for kind, _ in told)
    assert [kind for kind, _ in told][-1] == "answer"
    assert told[-1][1]["answer"] == RIGHT
    assert told[0] == ("begun", {"episode_id": told[-1][1]["episode_id"], "question_id": told[-1][1]["question_id"]})


def test_a_model_that_is_down_is_a_503_that_says_what_to_do(tmp_path: Path) -> None:
    def down(request: object) -> Exception:
        return ModelUnavailable("the endpoint is down.")

    with TestClient(create_app(make_service(tmp_path, answers=down))) as client:
        reply = client.post("/v1/ask", json={"question": QUESTION})
        assert reply.status_code == 503
        assert reply.headers["retry-after"]
        assert reply.json()["error"]["type"] == "ModelUnavailable"
        assert "recall" in reply.json()["error"]["hint"]
        told = events(client.post("/v1/ask", json={"question": QUESTION, "stream": True}).text)
        assert told[-1][0] == "error"
        assert told[-1][1]["error"]["code"] == 503
