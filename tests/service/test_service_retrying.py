"""What a model could not do is tried again by the clock, with no question coming; and `/v1/queue` tells when."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from listening import until
from service.test_service_episodes import QUESTION, ask
from service_team import WORKFLOW, make_service, says
from starlette.testclient import TestClient

from mia.errors import ContextOverflow, ModelUnavailable
from mia.models.base import ChatRequest
from mia.service.app import create_app


def test_a_server_that_nobody_asks_works_its_queue_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model comes back; the next try does what it could not do, no sooner than it is due."""
    monkeypatch.setattr("mia.memory.waiting.FIRST_DELAY", 0.4)
    monkeypatch.setattr("mia.service.retrying.BREATH", 0.02)
    monkeypatch.setattr("mia.service.retrying.LOOK", 0.05)
    tries: list[float] = []

    def answers(request: ChatRequest) -> Any:
        if request.purpose != "compress":
            return says(request)
        tries.append(time.time())
        return ModelUnavailable("nobody is there") if len(tries) < 3 else WORKFLOW

    with TestClient(create_app(make_service(tmp_path, answers=answers))) as client:
        ask(client, QUESTION)
        (waiting,) = client.get("/v1/queue").json()["waiting"]
        assert (waiting["task"], waiting["error"]) == ("compress", "nobody is there")
        assert waiting["attempts"] >= 1
        assert waiting["retry_at"] > waiting["since"]
        until(lambda: client.get("/v1/queue").json()["waiting_total"] == 0)
        (memory,) = client.get("/v1/memories").json()["memories"]
        assert memory["workflow"] == WORKFLOW
    first, second, third = tries
    assert second - first >= 0.4
    assert third - second >= 0.8


def test_what_can_never_succeed_is_seen_to_be_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mia.memory.waiting.FIRST_DELAY", 0.01)
    monkeypatch.setattr("mia.service.retrying.BREATH", 0.01)
    asked: list[str] = []

    def answers(request: ChatRequest) -> Any:
        if request.purpose != "compress":
            return says(request)
        asked.append(request.purpose)
        return ContextOverflow("the prompt has 9000 tokens, and the window 4096") if len(asked) < 3 else WORKFLOW

    with TestClient(create_app(make_service(tmp_path, answers=answers))) as client:
        ask(client, QUESTION)
        time.sleep(0.3)
        (waiting,) = client.get("/v1/queue").json()["waiting"]
        assert (waiting["retry_at"], waiting["attempts"], len(asked)) == (None, 1, 1)
        assert waiting["error"].startswith("the prompt has 9000 tokens")
        # The rules have written it, so that it is recalled all the same.
        (memory,) = client.get("/v1/memories").json()["memories"]
        assert memory["provenance"]["compressed_by"] == "rules"
        assert client.post("/v1/queue/retry").json() == {"accepted": 0, "done": 0, "failed": 1, "dropped": 0}
        assert client.post("/v1/queue/retry").json() == {"accepted": 0, "done": 1, "failed": 0, "dropped": 0}
        assert client.get("/v1/queue").json()["waiting_total"] == 0
