"""`/v1/jobs`: submitted, worked off, cancelled, gone on with, and read in pages."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from listening import until
from service_team import RIGHT, make_service, says
from starlette.testclient import TestClient

from mia import statistics
from mia.errors import ContextOverflow, ModelUnavailable
from mia.models.base import ChatRequest
from mia.service import patience
from mia.service.app import create_app


def questions(count: int, *, wrong: int = 0) -> list[dict[str, Any]]:
    """`wrong` of them are answered wrongly."""
    return [
        {"question": f"Where was the discoverer of Titan born? {'wrong' if number < wrong else ''} {number}",
         "references": [RIGHT]}
        for number in range(count)
    ]  # fmt: skip


def finished(client: TestClient, id: str, seconds: float = 30.0) -> dict[str, Any]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        page: dict[str, Any] = client.get(f"/v1/jobs/{id}").json()
        if page["finished_at"] is not None:
            return page
        time.sleep(0.02)
    raise AssertionError(page)


def test_a_job_is_answered_counted_and_read_in_pages(client: TestClient) -> None:
    submitted = client.post("/v1/jobs", json={"questions": questions(7, wrong=2)})
    assert submitted.status_code == 202, submitted.text
    id = submitted.json()["id"]
    job = finished(client, id)
    assert job["state"] == "finished"
    assert job["counts"] == {"answered": 7}
    assert (job["correct"], job["judged"], job["total"]) == (5, 7, 7)
    interval = statistics.wilson(5, 7)
    assert interval is not None
    assert job["accuracy_95"] == pytest.approx([interval.low, interval.high])
    assert job["prompt_tokens"] > 0

    first = client.get(f"/v1/jobs/{id}/results", params={"limit": 5}).json()
    second = client.get(f"/v1/jobs/{id}/results", params={"limit": 5, "offset": first["next"]}).json()
    items = first["results"] + second["results"]
    assert second["next"] is None
    assert [item["number"] for item in items] == list(range(7))
    lines = client.get(f"/v1/jobs/{id}/results", params={"format": "jsonl"})
    assert [json.loads(line) for line in lines.text.splitlines()] == items
    # Each answer is an episode like any other.
    assert client.get(f"/v1/episodes/{items[0]['episode_id']}").json()["episode"]["run"] == id
    # No reference answer is told.
    assert all("references" not in item for item in items)


def test_lines_are_taken_as_json_is(client: TestClient) -> None:
    text = "\n".join(json.dumps(one) for one in questions(2)) + "\n\n"
    reply = client.post("/v1/jobs", content=text.encode(), headers={"content-type": "application/jsonl"})
    assert reply.status_code == 202, reply.text
    assert finished(client, reply.json()["id"])["total"] == 2


def test_a_file_of_the_command_line_is_a_job(client: TestClient) -> None:
    """`mia run` reads right answers as `answers`."""
    text = json.dumps({"id": "w-1", "question": "Who found Titan?", "answers": ["Huygens"]})
    reply = client.post("/v1/jobs", content=text.encode(), headers={"content-type": "application/jsonl"})
    assert reply.status_code == 202, reply.text
    # It was judged, so the judge had them.
    assert finished(client, reply.json()["id"])["judged"] == 1


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("application/json", b'{"questions": []}'),
        ("application/json", b'{"questions": [{"question": "  "}]}'),
        ("application/json", b'{"questions": [{"question": "a", "stream": true}]}'),
        ("application/json", b"[" * 100_000),
        ("application/json", b"\xff"),
        ("application/json", b'{"questions": [{"question": "a", "images": ["no image"]}]}'),
        ("application/jsonl", b'{"question": "a"}\n{"question": 1}'),
        ("application/jsonl", b"\n"),
        ("application/jsonl", b"\xff\xfe"),
    ],
)
def test_what_is_no_job_is_refused_whole(client: TestClient, kind: str, content: bytes) -> None:
    reply = client.post("/v1/jobs", content=content, headers={"content-type": kind})
    assert reply.status_code == 422, reply.text
    assert client.get("/v1/jobs").json() == {"jobs": [], "next": None}


def test_jobs_are_listed_in_pages_the_newest_first(client: TestClient) -> None:
    ids = [client.post("/v1/jobs", json={"questions": questions(1)}).json()["id"] for _ in range(3)]
    first = client.get("/v1/jobs", params={"limit": 2}).json()
    second = client.get("/v1/jobs", params={"limit": 2, "before": first["next"]}).json()
    assert [job["id"] for job in first["jobs"] + second["jobs"]] == ids[::-1]
    assert second["next"] is None


def test_a_cancelled_job_ends_at_once_and_keeps_what_was_answered(tmp_path: Path) -> None:
    with TestClient(create_app(make_service(tmp_path, delay=0.05, run__concurrency=1))) as client:
        id = client.post("/v1/jobs", json={"questions": questions(50)}).json()["id"]
        while not client.get(f"/v1/jobs/{id}").json()["counts"].get("answered"):
            time.sleep(0.01)
        job = client.post(f"/v1/jobs/{id}/cancel").json()
        assert job["state"] == "cancelled"
        assert 0 < job["counts"]["answered"] < 50
        assert job["counts"]["answered"] + job["counts"]["cancelled"] == 50
        time.sleep(0.3)
        assert client.get(f"/v1/jobs/{id}").json()["counts"] == job["counts"]
        assert client.app.state.service.live.under_way == 0  # type: ignore[attr-defined]
        # Once more is harmless, and those after it are asked.
        assert client.post(f"/v1/jobs/{id}/cancel").json()["state"] == "cancelled"
        other = client.post("/v1/jobs", json={"questions": questions(1)}).json()["id"]
        assert finished(client, other)["counts"] == {"answered": 1}


def test_what_failed_says_why_and_is_asked_again_with_its_references(tmp_path: Path) -> None:
    down = True

    def answers(request: ChatRequest) -> Any:
        return ContextOverflow("the prompt is too long.") if down else says(request)

    with TestClient(create_app(make_service(tmp_path, answers=answers))) as client:
        id = client.post("/v1/jobs", json={"questions": questions(3)}).json()["id"]
        assert finished(client, id)["counts"] == {"failed": 3}
        results = client.get(f"/v1/jobs/{id}/results").json()["results"]
        assert all("too long" in item["error"] for item in results)
        down = False
        client.post(f"/v1/jobs/{id}/retry")
        job = finished(client, id)
        assert job["counts"] == {"answered": 3}
        assert job["correct"] == 3


def test_a_job_waits_for_an_endpoint_that_is_down_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST", 0.05)
    down = True

    def answers(request: ChatRequest) -> Any:
        return ModelUnavailable("the endpoint is down.") if down else says(request)

    service = make_service(tmp_path, answers=answers)
    with TestClient(create_app(service)) as client:
        id = client.post("/v1/jobs", json={"questions": questions(12)}).json()["id"]
        until(lambda: "down" in client.get(f"/v1/jobs/{id}").json()["waits"])
        job = client.get(f"/v1/jobs/{id}").json()
        assert (job["state"], job["counts"]) == ("running", {"queued": 12})
        assert "the endpoint is down" in client.get(f"/queue/jobs/{id}").text
        assert "the endpoint is down" in client.get("/queue").text
        first = client.get(f"/v1/jobs/{id}/results").json()["results"][0]
        assert (first["state"], first["episode_id"], "down" in first["error"]) == ("queued", "", True)
        down = False
        job = finished(client, id)
        assert (job["counts"], job["correct"], job["waits"]) == ({"answered": 12}, 12, "")
        # Each is answered once, and nothing of the tries before is left.
        assert len(client.get("/v1/episodes", params={"limit": 100}).json()["episodes"]) == 12
        results = client.get(f"/v1/jobs/{id}/results").json()["results"]
        assert not any(item["error"] for item in results)


def test_a_job_that_waits_can_be_cancelled_and_goes_on_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(request: ChatRequest) -> Any:
        return ModelUnavailable("the endpoint is down.")

    with TestClient(create_app(make_service(tmp_path, answers=down))) as client:
        ids = [client.post("/v1/jobs", json={"questions": questions(2)}).json()["id"] for _ in range(2)]
        until(lambda: all(client.get(f"/v1/jobs/{id}").json()["waits"] for id in ids))
        assert client.post(f"/v1/jobs/{ids[0]}/cancel").json()["counts"] == {"cancelled": 2}
    with TestClient(create_app(make_service(tmp_path))) as client:
        assert finished(client, ids[1])["counts"] == {"answered": 2}
        assert client.get(f"/v1/jobs/{ids[0]}").json()["counts"] == {"cancelled": 2}


def test_a_question_that_alone_cannot_be_put_keeps_no_job_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "LONGEST", 0.01)

    def answers(request: ChatRequest) -> Any:
        if any("cursed" in message.content for message in request.messages):
            return ModelUnavailable("this one never.")
        return says(request)

    with TestClient(create_app(make_service(tmp_path, answers=answers, run__concurrency=2))) as client:
        asked = [{"question": "a cursed question?"}, *questions(40)]
        id = client.post("/v1/jobs", json={"questions": asked}).json()["id"]
        assert finished(client, id)["counts"] == {"answered": 40, "failed": 1}
        assert client.get(f"/v1/jobs/{id}/results").json()["results"][0]["error"] == "this one never."


def test_a_fault_of_one_question_leaves_the_others_alone(tmp_path: Path) -> None:
    def answers(request: ChatRequest) -> Any:
        if any("cursed" in message.content for message in request.messages):
            raise RuntimeError("a bug")
        return says(request)

    with TestClient(create_app(make_service(tmp_path, answers=answers))) as client:
        asked = [*questions(2), {"question": "cursed"}]
        job = finished(client, client.post("/v1/jobs", json={"questions": asked}).json()["id"])
        assert job["counts"] == {"answered": 2, "failed": 1}
        assert client.app.state.service.is_working  # type: ignore[attr-defined]


def test_a_deleted_job_is_gone_and_its_episodes_stay(client: TestClient) -> None:
    id = client.post("/v1/jobs", json={"questions": questions(1)}).json()["id"]
    finished(client, id)
    episode = client.get(f"/v1/jobs/{id}/results").json()["results"][0]["episode_id"]
    assert client.delete(f"/v1/jobs/{id}").status_code == 200
    assert client.get(f"/v1/jobs/{id}").status_code == 404
    assert client.get(f"/v1/episodes/{episode}").status_code == 200


@pytest.mark.parametrize("path", ["/v1/jobs/no", "/v1/jobs/no/results", "/v1/jobs/..%2f..%2fetc"])
def test_an_unknown_job_is_not_found(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def numbered(count: int, name: str) -> list[dict[str, Any]]:
    return [{"question": f"{name} {number}?", "references": [RIGHT]} for number in range(count)]


def test_a_short_job_does_not_wait_for_a_long_one_of_another_tenant(tmp_path: Path) -> None:
    planned: list[str] = []

    def answers(request: ChatRequest) -> Any:
        if request.purpose == "plan":
            planned.append(next(word for word in ("long", "second", "short") if word in request.messages[-1].content))
        return says(request)

    with TestClient(create_app(make_service(tmp_path, answers=answers, delay=0.01, run__concurrency=2))) as client:
        long = client.post("/v1/jobs", json={"questions": numbered(1_000, "long")}).json()["id"]
        second = client.post("/v1/jobs", json={"questions": numbered(6, "second")}).json()["id"]
        while len(planned) < 8:
            time.sleep(0.01)
        begun = len(planned)
        other = {"X-MIA-Scope": "tenant"}
        short = client.post("/v1/jobs", json={"questions": numbered(3, "short")}, headers=other).json()["id"]
        assert finished(client, short)["counts"] == {"answered": 3}
        # What was under way when it came, and then one of each tenant in turn.
        after = planned[begun:]
        assert after.index("short") <= 4
        assert len(after[: len(after) - after[::-1].index("short")]) <= 10
        assert finished(client, second)["counts"] == {"answered": 6}
        # In a scope, its jobs take turns.
        both = [word for word in planned if word != "short"]
        assert both.index("second") <= 4
        until_done = both[both.index("second") : len(both) - both[::-1].index("second")]
        assert abs(until_done.count("second") - until_done.count("long")) <= 2
        items = client.get(f"/v1/jobs/{long}/results", params={"limit": 1000}).json()["results"]
        states = [item["state"] for item in items]
        # In their order: what is not answered yet comes after what is, but for what is under way.
        assert "queued" not in states[: states.count("answered") - 2]
        assert client.post(f"/v1/jobs/{long}/cancel").json()["state"] == "cancelled"


def test_what_failed_is_asked_again_while_the_rest_of_the_job_is_under_way(tmp_path: Path) -> None:
    asked: list[str] = []

    def answers(request: ChatRequest) -> Any:
        if request.purpose == "plan":
            asked.append(request.messages[-1].content)
            if "mend 0" in asked[-1] and sum("mend 0" in one for one in asked) == 1:
                return ContextOverflow("the endpoint is down.")
        if request.purpose == "execute" and "mend 0" in request.messages[1].content and len(asked) < 2:
            return ContextOverflow("the endpoint is down.")
        return says(request)

    with TestClient(create_app(make_service(tmp_path, answers=answers, delay=0.02, run__concurrency=1))) as client:
        id = client.post("/v1/jobs", json={"questions": numbered(12, "mend")}).json()["id"]
        while not client.get(f"/v1/jobs/{id}").json()["counts"].get("failed"):
            time.sleep(0.01)
        assert client.post(f"/v1/jobs/{id}/retry").json()["state"] == "queued"
        assert finished(client, id)["counts"] == {"answered": 12}
        results = client.get(f"/v1/jobs/{id}/results").json()["results"]
        assert len({item["episode_id"] for item in results}) == 12
        # None but the one that failed was asked twice.
        assert len(asked) == 13
