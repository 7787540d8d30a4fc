"""`POST /v1/episodes/{id}/feedback`: credits what was shown, and what was learnt is learnt again under the verdict."""

from __future__ import annotations

import asyncio
from pathlib import Path

from listening import until
from service.test_service_episodes import QUESTION, ask, settle
from service_team import RIGHT, make_service
from starlette.testclient import TestClient

from mia.service.app import create_app
from mia.service.core import given_verdict
from mia.types import Outcome, Question, Task


def test_feedback_credits_and_a_later_one_takes_the_place_of_an_earlier_one(client: TestClient) -> None:
    ask(client, QUESTION)
    (shown,) = client.get("/v1/memories").json()["memories"]
    id = ask(client, f"{QUESTION} Tell me.")
    (learnt,) = client.get(f"/v1/episodes/{id}").json()["memories"]
    counts = client.get(f"/v1/memories/{shown['id']}").json()
    # The judge found it right.
    assert (counts["uses"], counts["wins"]) == (2, 2)

    reply = client.post(f"/v1/episodes/{id}/feedback", json={"correct": False, "reason": "It was Leiden."})
    assert reply.status_code == 200, reply.text
    assert reply.json()["credited"] == 1
    counts = client.get(f"/v1/memories/{shown['id']}").json()
    assert (counts["uses"], counts["wins"]) == (2, 1)
    # What was learnt is out of sight; what is learnt now says that it was wrong.
    assert client.get(f"/v1/memories/{learnt}").json()["state"] == "forgotten"
    (again,) = reply.json()["memories"]
    assert client.get(f"/v1/memories/{again}").json()["judgement"] == "incorrect"
    verdict = client.get(f"/v1/episodes/{id}").json()["episode"]["verdict"]
    assert (verdict["judge"], verdict["outcome"], verdict["reason"]) == ("user", "incorrect", "It was Leiden.")
    why = client.get(f"/v1/memories/{shown['id']}/why").json()
    assert [(one["episode_id"], one["correct"]) for one in why["shown_to"]] == [(id, False)]

    for _ in range(2):
        client.post(f"/v1/episodes/{id}/feedback", json={"correct": True})
        counts = client.get(f"/v1/memories/{shown['id']}").json()
        assert (counts["uses"], counts["wins"]) == (2, 2)
    assert client.get(f"/v1/episodes/{id}").json()["episode"]["verdict"]["judge"] == "user"


def test_an_unjudged_answer_becomes_a_memory_with_its_verdict(tmp_path: Path) -> None:
    with TestClient(create_app(make_service(tmp_path, judge__kind="none"))) as client:
        id = client.post("/v1/ask", json={"question": QUESTION}).json()["episode_id"]
        settle(client)
        assert client.get("/v1/memories").json()["memories"] == []
        reply = client.post(f"/v1/episodes/{id}/feedback", json={"correct": True})
        assert len(reply.json()["memories"]) == 1
        assert [one["id"] for one in client.get("/v1/memories").json()["memories"]] == reply.json()["memories"]


async def test_a_verdict_that_comes_before_the_absorbing_is_the_one_that_counts(tmp_path: Path) -> None:
    service = make_service(tmp_path)
    try:
        # Nothing works in the background: the service was not started.
        task = Task(question=Question.of(QUESTION), references=(RIGHT,))
        episode = await service.ask(task, "default")
        assert episode.verdict is not None
        assert episode.verdict.correct
        settled = await service.feedback(episode.id, given_verdict(False, "no"))
        assert [memory.judgement for memory in settled.memories] == ["incorrect"]
        await service.start()
        assert await service.absorbed(episode.id)
        await asyncio.sleep(0.1)
        kept = service.store.kept_episode(episode.id)
        assert kept is not None
        assert kept.episode.verdict is not None
        assert kept.episode.verdict.outcome is Outcome.INCORRECT
        assert [memory.judgement for memory in service.store.memories_of([episode.id])] == ["incorrect"]
    finally:
        await service.close()


def test_feedback_for_nothing_is_not_found(client: TestClient) -> None:
    assert client.post("/v1/episodes/ep-no/feedback", json={"correct": True}).status_code == 404
    id = ask(client, QUESTION)
    assert client.post(f"/v1/episodes/{id}/feedback", json={"corect": True}).status_code == 422


def test_the_accuracy_on_the_live_page_counts_what_a_person_says(client: TestClient) -> None:
    ids = [ask(client, f"{QUESTION} ({number})") for number in range(3)]

    def accuracy() -> str:
        page = client.get("/now").text
        return " ".join(page.partition("Accuracy")[2].partition("</div>")[0].split())

    before = accuracy()
    renewal = client.get("/now").text.partition('hx-get="')[2].partition('"')[0]
    assert client.get(renewal).status_code == 204
    assert "100 %" in before
    client.post(f"/v1/episodes/{ids[0]}/feedback", json={"correct": False})
    assert "67 %" in accuracy()
    # A page that is open is told: what it has is no longer so.
    assert client.get(renewal).status_code == 200
    client.post(f"/v1/episodes/{ids[0]}/feedback", json={"correct": True})
    assert accuracy() == before


def test_the_accuracy_of_a_job_counts_what_a_person_says(client: TestClient) -> None:
    asked = [{"question": f"{QUESTION} ({number})", "references": [RIGHT]} for number in range(2)]
    job = client.post("/v1/jobs", json={"questions": asked}).json()["id"]
    until(lambda: client.get(f"/v1/jobs/{job}").json()["state"] == "finished")
    assert client.get(f"/v1/jobs/{job}").json()["accuracy"] == 1.0
    (first, _) = client.get(f"/v1/jobs/{job}/results").json()["results"]
    reply = client.post(f"/v1/episodes/{first['episode_id']}/feedback", json={"correct": False})
    assert reply.status_code == 200, reply.text
    assert client.get(f"/v1/jobs/{job}").json()["accuracy"] == 0.5
    assert client.get(f"/v1/jobs/{job}/results").json()["results"][0]["outcome"] == "incorrect"
