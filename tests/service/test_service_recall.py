"""`POST /v1/recall`: by text or vector, many at a time, each scope its own."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
from service_team import WORKFLOW, make_service
from starlette.testclient import TestClient

from mia.embeddings.base import Vectors
from mia.embeddings.hashing import HashingEmbedder
from mia.errors import ModelRefused, ModelUnavailable
from mia.service.app import create_app
from mia.service.core import Service
from mia.service.recalls import Recalls, Wanted
from mia.service.together import Together

QUESTION = "Where was the discoverer of Titan born?"


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return make_service(tmp_path / "home")


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service)) as client:
        yield client


def add(service: Service, question: str = QUESTION, *, scope: str = "default", **more: Any) -> str:
    return service.memory(scope).add(question, WORKFLOW, more.pop("judgement", "correct"), **more).id


def shown(reply: Any) -> list[str]:
    assert reply.status_code == 200, reply.text
    return [one["memory_id"] for one in reply.json()["shown"]]


def vector(text: str) -> list[float]:
    return [float(x) for x in HashingEmbedder().embed([text])[0]]


def test_a_text_finds_what_is_alike_with_scores_and_what_the_planner_reads(
    client: TestClient, service: Service
) -> None:
    id = add(service)
    add(service, "What does a loaf of rye bread cost in Oslo?")
    page = client.post("/v1/recall", json={"question": f"{QUESTION} "}).json()
    (one,) = page["shown"]
    assert one["memory_id"] == id
    assert math.isclose(one["parts"]["similarity"], 1.0, abs_tol=1e-6)
    assert WORKFLOW.splitlines()[0] in page["for_planner"]
    assert page["considered"] == 2
    assert page["seconds"] > 0


@pytest.mark.parametrize("form", ["mia", "paper"])
def test_a_floor_leaves_out_what_is_less_alike(tmp_path: Path, form: str) -> None:
    service = make_service(tmp_path, memory__score=form)
    near = add(service, "Where was the discoverer of Rhea born?")
    far = add(service, "What does a loaf of rye bread cost in Oslo?")
    with TestClient(create_app(service)) as client:

        def found(**more: Any) -> set[str]:
            reply = client.post("/v1/recall", json={"question": QUESTION, **more})
            assert reply.json()["floor"] == more.get("floor", reply.json()["floor"])
            return set(shown(reply))

        assert found(floor=-1) == {near, far}
        assert found(floor=0.5) == {near}
        assert found(floor=0.99) == set()
        assert client.post("/v1/recall", json={"question": QUESTION, "floor": 2}).status_code == 422


@pytest.mark.parametrize(("setting", "held"), [(-1.0, 0.5), (0.2, 0.2), (0.7, 0.7)])
def test_a_line_that_shows_everything_shows_other_agents_what_is_related(
    tmp_path: Path, setting: float, held: float
) -> None:
    """The offline world has no floor, and other agents ask about anything."""
    service = make_service(tmp_path, memory__floor=setting)
    id = add(service, "Where was the discoverer of Rhea born?")
    with TestClient(create_app(service)) as client:
        page = client.post("/v1/recall", json={"question": "How do I bake rye bread?"}).json()
        assert (page["shown"], page["floor"], page["considered"]) == ([], held, 1)
        assert shown(client.post("/v1/recall", json={"question": QUESTION})) == [id]
        # The line itself goes by its setting.
        assert len(service.memory("default").recall_now("How do I bake rye bread?").shown) == (setting < 0)


def test_a_search_says_which_are_related_and_leaves_them_out_where_it_is_told_to(
    client: TestClient, service: Service
) -> None:
    near = add(service, "Where was the discoverer of Rhea born?")
    far = add(service, "What does a loaf of rye bread cost in Oslo?")

    def found(**more: Any) -> list[tuple[str, bool]]:
        page = client.get("/v1/memories/search", params={"text": QUESTION, **more}).json()
        return [(one["memory"]["id"], one["related"]) for one in page["found"]]

    assert found() == [(near, True), (far, False)]
    assert found(floor=0.5) == [(near, True)]


def test_a_vector_finds_what_its_text_finds_whatever_its_length(client: TestClient, service: Service) -> None:
    add(service)
    add(service, "Where was the discoverer of Uranus born?", judgement="incorrect")
    by_text = client.post("/v1/recall", json={"question": QUESTION}).json()
    longer = [300.0 * x for x in vector(QUESTION)]
    by_vector = client.post("/v1/recall", json={"question_vector": longer, "space": service.store.space()}).json()
    assert [one["memory_id"] for one in by_vector["shown"]] == [one["memory_id"] for one in by_text["shown"]]
    for one, other in zip(by_vector["shown"], by_text["shown"], strict=True):
        assert math.isclose(one["score"], other["score"], abs_tol=1e-6)
    assert by_vector["for_planner"] == by_text["for_planner"]


def test_captions_are_compared_with_captions(client: TestClient, service: Service) -> None:
    id = add(service, caption="a red bridge")
    both = {"question_vector": vector(QUESTION), "caption_vector": vector("a red bridge")}
    assert shown(client.post("/v1/recall", json=both)) == [id]
    assert shown(client.post("/v1/recall", json={"question": QUESTION, "caption": "a red bridge"})) == [id]
    assert shown(client.post("/v1/recall", json={"question": QUESTION})) == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "neither a question nor a question_vector"),
        ({"question": "   "}, "neither a question nor a question_vector"),
        ({"question": "q", "caption_vector": [1.0]}, "comes with a question_vector"),
        ({"question_vector": [1.0] * 384, "caption": "c"}, "needs its caption_vector"),
        ({"question_vector": [1.0] * 383}, "383 dimensions"),
        ({"question_vector": [1.0] * 384, "caption_vector": [1.0]}, "caption_vector has 1 dimensions"),
        ({"question_vector": [1.0] * 384, "space": "other/1/384"}, "another embedding space"),
        ({"question_vector": []}, "question_vector"),
        ({"question_vector": [0.1] * 9_000}, "question_vector"),
        ({"question_vector": ["one"] * 384}, "question_vector"),
        ({"question": "q", "kind": "poem"}, "kind"),
        ({"question": "q", "k_positive": -1}, "k_positive"),
        ({"question": "q", "k": 3}, "k"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_says_why(
    client: TestClient, service: Service, body: dict[str, Any], says: str
) -> None:
    add(service)
    reply = client.post("/v1/recall", json=body)
    assert reply.status_code == 422
    assert says in reply.json()["error"]["message"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_refused(client: TestClient, service: Service, number: str) -> None:
    add(service)
    body = f'{{"question_vector": [{", ".join([number] * 384)}]}}'
    reply = client.post("/v1/recall", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 422
    json.loads(reply.text, parse_constant=lambda name: pytest.fail(f"{name} in an answer"))


def test_vectors_of_huge_tiny_and_no_length_are_taken(client: TestClient, service: Service) -> None:
    id = add(service)
    direction = vector(QUESTION)
    for scale, found in ((1e300, [id]), (1e-300, [id]), (0.0, [])):
        scaled = {"question_vector": [scale * x for x in direction]}
        assert shown(client.post("/v1/recall", json=scaled)) == found


def test_numbers_wanted_and_memories_skipped_are_minded(client: TestClient, service: Service) -> None:
    ids = {add(service, f"Where was the discoverer of the moon number {number} born?") for number in range(6)}
    body = {"question": "Where was the discoverer of the moon number 9 born?"}
    assert len(shown(client.post("/v1/recall", json=body))) == service.config.memory.k_positive
    five = shown(client.post("/v1/recall", json=body | {"k_positive": 5}))
    assert len(five) == 5
    assert shown(client.post("/v1/recall", json=body | {"k_positive": 6, "skip": five})) == [*(ids - set(five))]
    nothing = client.post("/v1/recall", json=body | {"k_positive": 0, "k_negative": 0}).json()
    assert (nothing["shown"], nothing["wanted"], nothing["for_planner"]) == ([], 0, "")


def test_a_scope_sees_itself_and_above_and_nothing_else(client: TestClient, service: Service) -> None:
    shared, own = add(service, scope="acme"), add(service, f"{QUESTION[:-1]} and when?", scope="acme/ann")
    add(service, scope="other")
    body = {"question": QUESTION, "k_positive": 9}
    seen = shown(client.post("/v1/recall", json=body, headers={"X-MIA-Scope": "acme/ann"}))
    assert set(seen) == {shared, own}
    assert shown(client.post("/v1/recall", json=body, headers={"X-MIA-Scope": "acme"})) == [shared]
    assert shown(client.post("/v1/recall", json=body)) == []


class Recording(HashingEmbedder):
    """Takes its time, and notes what it was asked for together."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[list[str]] = []
        self.seconds = seconds

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.batches.append(list(texts))
        time.sleep(self.seconds)
        if any("down" in text for text in texts):
            raise ModelUnavailable("the embedder is down.")
        if any("refused" in text for text in texts):
            raise ModelRefused("this text is too long.")
        return super().embed(texts)


def with_embedder(service: Service, embedder: Recording) -> Service:
    service.embedder = embedder
    return service


def test_an_empty_memory_leaves_the_embedder_alone(service: Service) -> None:
    embedder = Recording()
    with TestClient(create_app(with_embedder(service, embedder))) as client:
        assert shown(client.post("/v1/recall", json={"question": QUESTION})) == []
        assert shown(client.post("/v1/recall", json={"question_vector": [1.0, 2.0]})) == []
    assert embedder.batches == []


def test_the_model_down_stops_no_recall_and_the_embedder_down_says_so(tmp_path: Path) -> None:
    service = make_service(tmp_path, answers=lambda _: ModelUnavailable("down."))
    id = add(service)
    with TestClient(create_app(with_embedder(service, Recording()))) as client:
        assert shown(client.post("/v1/recall", json={"question": QUESTION})) == [id]
        reply = client.post("/v1/recall", json={"question": "down"})
        assert (reply.status_code, reply.json()["error"]["type"]) == (503, "ModelUnavailable")
        assert shown(client.post("/v1/recall", json={"question_vector": vector(QUESTION)})) == [id]


async def test_texts_that_come_together_are_embedded_together_and_known_ones_not_again(service: Service) -> None:
    add(service)
    embedder = Recording(0.05)
    recalls = Recalls(with_embedder(service, embedder))
    texts = [f"{QUESTION} {number}" for number in range(40)]
    pages = await asyncio.gather(*(recalls.recall("default", Wanted(text)) for text in texts))
    # The first comes alone or with those of its turn; all others wait for it, and go together.
    assert len(embedder.batches) <= 3
    assert sorted(text for batch in embedder.batches for text in batch) == sorted(texts)
    alone = Recalls(with_embedder(service, Recording()))
    for text, page in zip(texts[::13], pages[::13], strict=True):
        again = json.loads(await alone.recall("default", Wanted(text)))
        assert [one["score"] for one in json.loads(page)["shown"]] == [one["score"] for one in again["shown"]]
    embedder.batches.clear()
    await asyncio.gather(*(recalls.recall("default", Wanted(text)) for text in texts))
    assert embedder.batches == []
    await service.close()


async def test_one_text_that_is_refused_takes_no_other_with_it(service: Service) -> None:
    add(service)
    recalls = Recalls(with_embedder(service, Recording(0.02)))
    texts = [f"{QUESTION} {number}" for number in range(5)] + ["refused"]
    results = await asyncio.gather(*(recalls.recall("default", Wanted(text)) for text in texts), return_exceptions=True)
    assert [type(one) for one in results] == [bytes] * 5 + [ModelRefused]
    await service.close()


async def test_a_wrong_vector_takes_no_other_with_it(service: Service) -> None:
    add(service)
    recalls = Recalls(service)
    right, wrong = numpy.array(vector(QUESTION)), numpy.ones(3)
    wanted = [Wanted(question_vector=one) for one in (right, wrong, right)]
    results = await asyncio.gather(*(recalls.recall("default", one) for one in wanted), return_exceptions=True)
    assert [isinstance(one, bytes) for one in results] == [True, False, True]
    await service.close()


async def test_together_gives_each_its_own_and_forgets_who_has_gone() -> None:
    batches: list[list[int]] = []

    def work(items: Sequence[int]) -> list[int | Exception]:
        batches.append(list(items))
        time.sleep(0.03)
        return [ValueError(str(one)) if one % 5 == 0 else one * one for one in items]

    together = Together(work, most=4)
    tasks = [asyncio.create_task(together(number)) for number in range(1, 13)]
    await asyncio.sleep(0.01)
    tasks[10].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for number, result in enumerate(results, start=1):
        if number == 11:
            assert isinstance(result, asyncio.CancelledError)
        elif number % 5 == 0:
            assert isinstance(result, ValueError)
        else:
            assert result == number * number
    assert max(map(len, batches)) == 4
    assert 11 not in [one for batch in batches for one in batch]
    assert together.idle


async def test_a_failure_of_the_work_reaches_everyone_and_the_next_are_served() -> None:
    broken = [True]

    def work(items: Sequence[str]) -> list[str | Exception]:
        if broken.pop() if broken else False:
            raise OSError("no")
        return [one.upper() for one in items]

    together = Together(work, most=9)
    results = await asyncio.gather(together("a"), together("b"), return_exceptions=True)
    assert [type(one) for one in results] == [OSError, OSError]
    assert await together("c") == "C"
