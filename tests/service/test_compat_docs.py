"""The bodies in docs/compatibility.md, sent and answered as the page shows them, in its order.

In a request, `<FIELD of PATH>` stands for a field of the last answer of that path. In an answer, `…` stands for any
value, or a part of a text, and at the end of a list or an object for more of the kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from embedded_team import needs_embedded_model
from service_team import make_service, models, settings
from starlette.testclient import TestClient
from test_compat_trainer import learning_service
from test_compat_web_tools import Engine, Page

from mia.service.app import create_app
from mia.service.core import Service
from mia.tools.search import SearchTool
from mia.world.facts import World
from mia.world.questions import tasks

PAGE = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text(encoding="utf-8")
BODIES = PAGE[PAGE.index("## Bodies") :]


@dataclass(frozen=True)
class Example:
    method: str
    path: str
    request: Any
    answer: Any


def examples(part: str) -> Iterator[Example]:
    """Those below a heading of the section."""
    text = re.split(r"^### ", BODIES, flags=re.MULTILINE)
    (found,) = [one for one in text if one.startswith(f"{part}\n")]
    for method, path, blocks in re.findall(
        r"^`(GET|POST) (\S+)`[^\n]*\n\n((?:```\w+\n.*?```\n\n?)+)", found, re.M | re.S
    ):
        *request, answer = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", blocks, re.DOTALL)] or [
            None
        ]
        yield Example(method, path, request[0] if request else None, answer)


def filled(value: Any, answers: dict[str, Any]) -> Any:
    """A request, with what stands for fields of earlier answers."""
    if isinstance(value, dict):
        return {name: filled(one, answers) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one, answers) for one in value]
    if isinstance(value, str) and (named := re.fullmatch(r"<(\w+) of (\S+)>", value)):
        answer = answers[named[2]]
        return (answer[0] if isinstance(answer, list) else answer)[named[1]]
    return value


def fits(shown: Any, given: Any, where: str) -> None:
    """Raises AssertionError where an answer is not what is shown of it."""
    if isinstance(shown, dict):
        assert isinstance(given, dict), where
        told = shown.keys() - {"…"}
        assert told <= given.keys(), where
        assert told == given.keys() or "…" in shown, where
        for name in told:
            fits(shown[name], given[name], f"{where}.{name}")
    elif isinstance(shown, list):
        assert isinstance(given, list), where
        if shown and shown[-1] == "…":
            shown, given = shown[:-1], given[: len(shown) - 1]
        assert len(shown) == len(given), where
        for number, (one, other) in enumerate(zip(shown, given, strict=True)):
            fits(one, other, f"{where}[{number}]")
    elif shown == "…":
        assert given not in ("", None), where
    elif isinstance(shown, str) and "…" in shown:
        pattern = ".*".join(map(re.escape, shown.split("…")))
        assert isinstance(given, str), where
        assert re.fullmatch(pattern, given, re.DOTALL), f"{where}: {given!r}"
    elif isinstance(shown, float):
        assert given == pytest.approx(shown, abs=1e-3), where
    else:
        assert given == shown, f"{where}: {given!r}"


def run(client: TestClient, part: str, answers: dict[str, Any] | None = None) -> list[str]:
    """The paths of a part, each asked and answered."""
    answers = {} if answers is None else answers
    asked = []
    for one in examples(part):
        body = None if one.request is None else filled(one.request, answers)
        reply = client.request(one.method, one.path, json=body)
        assert reply.status_code == 200, (one.path, reply.text)
        if one.answer is None:
            assert reply.text
        else:
            answers[one.path] = reply.json()
            fits(one.answer, reply.json(), f"{one.method} {one.path}")
        asked.append(f"{one.method} {one.path.partition('?')[0]}")
    return asked


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(make_service(tmp_path / "home"))) as client:
        yield client


def test_memory_and_planner_service(client: TestClient) -> None:
    assert len(run(client, "Memory and Planner service")) == 10


def test_agent_service(client: TestClient) -> None:
    assert len(run(client, "Agent service")) == 11


def test_reward_service(client: TestClient) -> None:
    assert len(run(client, "Reward service")) == 3


def test_search_and_web_tools(tmp_path: Path) -> None:
    config = settings(tmp_path / "web", search__engine="ddgs", search__images=str(tmp_path / "images"))
    (tmp_path / "images" / "q-1").mkdir(parents=True)
    tools = [SearchTool(Engine()), Page()]
    with TestClient(create_app(Service(config, models=models(), tools=tools))) as client:
        assert len(run(client, "Search and web tools")) == 5


@needs_embedded_model
@pytest.mark.slow
def test_streaming_trainer(tmp_path: Path) -> None:
    """A learner asks questions of its world: the page's stand for them. Not every batch teaches, so that several are
    sent; nothing but the columns differs."""
    with TestClient(create_app(learning_service(tmp_path))) as client:
        service: Service = client.app.state.service  # type: ignore[attr-defined]
        known = tasks(World.make(service.config.search.world), 16)
        entries = [{"data_id": one.question.id, "ground_truth": list(one.references)} for one in known]
        assert client.post("/register_gts", json={"entries": entries}).status_code == 200
        shown = {one.path: one for one in examples("Streaming trainer")}
        assert set(shown) == {"/submit_sample", "/submit_batch", "/save_checkpoint", "/health"}

        def sent(path: str, number: int) -> Any:
            text = json.dumps(shown[path].request)
            question = {"question": known[number].question.text, "data_id": known[number].question.id}
            body = json.loads(re.sub(r'\{"question": [^}]*\}', lambda _: json.dumps(question), text))
            reply = client.post(path, json=body)
            assert reply.status_code == 200, reply.text
            return reply.json()

        fits(shown["/submit_sample"].answer, sent("/submit_sample", 0), "/submit_sample")
        for number in range(1, 16):
            answer = sent("/submit_batch", number)
            if answer["status"] == "step":
                break
        fits(shown["/submit_batch"].answer, answer, "/submit_batch")
        fits(shown["/save_checkpoint"].answer, client.post("/save_checkpoint").json(), "/save_checkpoint")
        fits(shown["/health"].answer, client.get("/health").json(), "/health")


def test_every_path_of_the_tables_has_its_bodies() -> None:
    tables = PAGE[: PAGE.index("## Bodies")]
    named = {
        (method, path.partition("?")[0])
        for line in re.findall(r"^\| (`(?:GET|POST) [^|]*) \|", tables, re.MULTILINE)
        for method, path in re.findall(r"(GET|POST) ([^\s`,]+)", line)
    }
    named.add(("GET", "/hallo"))
    shown = {(method, path.partition("?")[0]) for method, path in re.findall(r"^`(GET|POST) (\S+)`", BODIES, re.M)}
    assert named == shown
