"""A planted reference answer: the judge marks by it, and nothing else ever sees it.

The whole line runs (recall, plan, search, reflect, replan, an LLM judge with the reference, compression, memory) over
our own documents; then every prompt, every event, every row and every file is searched for the secret. The judge's
model thinks the reference aloud, and its endpoint sends it back in an error.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from embedded_team import Watched, embedded_model, everybody, needs_embedded_model, settings
from fake_endpoint import FakeEndpoint, Received, says, sends

from mia.config import load_config
from mia.episode import live
from mia.models import Models
from mia.models.base import ChatRequest
from mia.models.ledger import Ledger
from mia.models.openai import Endpoint, OpenAIModel
from mia.models.scripted import ScriptedModel
from mia.team import build_team
from mia.types import Outcome, Question, Role, Task
from mia.world.facts import World
from mia.world.questions import tasks

DOCS = Path(__file__).parents[2] / "examples" / "solar_system" / "docs"
SECRET = "planted-reference-5127"

REPLIES = {
    "plan": "<think>t</think>1. Search for Titan.",
    "reflect": "<think>doubt</think>yes",
    "replan": "1. Search for Huygens.",
    "compress": "1. Find the moon (Titan → who found it)\n2. Find the person (Huygens → his life)",
    "judge": f"<think>The reference is {SECRET}.</think>A",
    "chair": "Verdict: CORRECT\nReason: it holds together.",
    "support": "Support: strong\nReason: it is quoted.",
}


def speak(request: ChatRequest) -> str:
    if request.purpose.startswith("review"):
        return "Score: 7\nReason: sound."
    if request.purpose != "execute":
        return REPLIES[request.purpose]
    if request.turn % 2 == 0:
        return '<think>s</think><tool_call>{"name": "search", "arguments": {"query_list": ["Titan moon"]}}</tool_call>'
    return "<think>a</think><answer>Christiaan Huygens</answer>"


@pytest.mark.parametrize("judge", ["reference", "llm", "peer", "trust", "auto"])
async def test_a_planted_reference_reaches_the_judge_alone(tmp_path: Path, judge: str) -> None:
    config = load_config(
        flags={
            "home": tmp_path,
            "search.corpus": (str(DOCS),),
            "search.vectors": "off",
            "memory.embedder": "hashing",
            "judge.kind": judge,
            "line.judge": "each",
        }
    )
    model = ScriptedModel(speak)
    events: list[object] = []
    team = build_team(config, models=Models(model, model, model, model))
    for number in range(3):
        question = Question.of(f"Who found Titan, the moon of Saturn? (version {number})")
        ledger = Ledger(question.id, on_event=events.append, stream=True)
        episode = await live(Task(question=question, references=(SECRET,)), team, ledger)
        assert len(episode.attempts) == 2
        assert episode.verdict is not None
        assert SECRET not in episode.model_dump_json()
        assert not episode.failures
    await team.close()

    assert {event.kind for event in events} >= {"stage_finished", "step_finished", "text_arrived"}  # type: ignore[attr-defined]
    assert SECRET not in str(events)
    told = [request for request in model.requests if SECRET in str(request)]
    assert all(request.role is Role.JUDGE and request.purpose == "judge" for request in told)
    assert bool(told) == (judge == "llm")
    purposes = {request.purpose for request in model.requests}
    assert purposes >= {"plan", "execute", "reflect", "replan", "compress"}
    # The memories of the first questions were shown to the later ones: the secret had its chance to travel.
    assert any("who found it" in str(request) for request in model.requests if request.purpose == "plan")
    searched = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "memory.db" for path in searched)
    for path in searched:
        assert SECRET.encode() not in path.read_bytes(), path


@needs_embedded_model
@pytest.mark.parametrize("judge", ["reference", "llm", "auto"])
async def test_no_role_of_the_embedded_model_sees_it_but_the_judge(tmp_path: Path, judge: str) -> None:
    """Nothing is scripted here: what travels, travels by itself."""
    config = settings(tmp_path, judge__kind=judge, line__judge="each")
    model, judging = (Watched(embedded_model()) for _ in range(2))
    team = build_team(config, models=everybody(model, judge=judging))
    events: list[object] = []
    for task in tasks(World.make(config.search.world), 6):
        ledger = Ledger(task.question.id, on_event=events.append, stream=True)
        episode = await live(Task(question=task.question, references=(SECRET, *task.references)), team, ledger)
        assert SECRET not in episode.model_dump_json()
        assert not episode.failures
    await team.close()
    await model.close()
    await judging.close()
    assert SECRET not in str(events)
    assert SECRET not in str(model.requests)
    assert (SECRET in str(judging.requests)) is (judge == "llm")
    assert {request.purpose for request in model.requests} >= {"plan", "execute", "reflect", "replan", "compress"}
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("heals", [True, False])
async def test_an_endpoint_that_echoes_the_reference_tells_it_to_nobody(tmp_path: Path, heals: bool) -> None:
    async def echo(received: Received, writer: asyncio.StreamWriter) -> None:
        body = json.dumps({"error": {"message": f"cannot process {received.body['messages']}"}})
        await sends(body, status=500)(received, writer)

    config = load_config(
        flags={
            "home": tmp_path,
            "search.corpus": (str(DOCS),),
            "search.vectors": "off",
            "memory.embedder": "hashing",
            "judge.kind": "llm",
        }
    )
    events: list[object] = []
    replies = (echo, says(f"<think>It should be {SECRET}.</think>A")) if heals else (echo,)
    async with FakeEndpoint(*replies) as endpoint:
        model = ScriptedModel(speak)
        judge = OpenAIModel(Endpoint(endpoint.base_url), "m", max_attempts=2, backoff_seconds=0.01)
        team = build_team(config, models=Models(model, model, model, judge))
        question = Question.of("Who found Titan, the moon of Saturn?")
        ledger = Ledger(question.id, on_event=events.append, stream=True)
        episode = await live(Task(question=question, references=(SECRET,)), team, ledger)
        await team.close()
        await judge.close()
        assert SECRET in str(endpoint.requests[0].body)
    assert episode.verdict is not None
    assert episode.verdict.outcome is (Outcome.CORRECT if heals else Outcome.UNJUDGED)
    assert sum(event.kind == "retrying" for event in events) == 1  # type: ignore[attr-defined]
    assert SECRET not in str(events)
    assert SECRET not in episode.model_dump_json()
