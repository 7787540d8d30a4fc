"""The one place that chooses implementations: what is wrong is found before any question is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shelf import ShelfTool

import mia
from mia.config import load_config
from mia.embeddings.hashing import HashingEmbedder
from mia.episode import live
from mia.errors import ConfigError, CorpusError, StoreError
from mia.memory.manager import MemoryManager
from mia.models import Models
from mia.models.base import ChatRequest
from mia.models.ledger import Ledger
from mia.models.scripted import ScriptedModel
from mia.store import open_store
from mia.team import build_team
from mia.types import Question, Task

DOCS = Path(__file__).parents[1] / "examples" / "solar_system" / "docs"
TASK = Task(question=Question.of("Who found Titan?"), references=("Christiaan Huygens",))
REPLIES = {"plan": "1. Search.", "reflect": "no", "compress": "1. Look (Titan → Huygens)"}


def speak(request: ChatRequest) -> str:
    return REPLIES.get(request.purpose, "<answer>Christiaan Huygens</answer>")


def config(home: Path, **flags: Any) -> mia.Config:
    fixed = {"home": home, "memory.embedder": "hashing", "search.vectors": "off"}
    return load_config(flags=fixed | {name.replace("__", "."): value for name, value in flags.items()})


def models() -> Models:
    model = ScriptedModel(speak)
    return Models(model, model, model, model)


def test_what_is_missing_is_said_before_any_question(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model is named"):
        build_team(config(tmp_path))
    with pytest.raises(CorpusError, match="no documents are named"):
        build_team(config(tmp_path), models=models())
    with pytest.raises(CorpusError):
        build_team(config(tmp_path, search__corpus=(str(tmp_path / "gone"),)), models=models())


@pytest.mark.parametrize("engine", ["corpus", "ddgs"])
def test_the_embedded_model_is_not_let_loose_on_other_texts(tmp_path: Path, engine: str) -> None:
    local = {"models.default.provider": "local", "search.engine": engine, "search.corpus": (str(DOCS),)}
    with pytest.raises(ConfigError, match="the embedded one, which knows the offline world alone") as raised:
        build_team(config(tmp_path, **local))
    assert "models.default.path" in raised.value.hint
    assert not any(tmp_path.iterdir())
    # Another model in this process may read them; here it is only not there.
    with pytest.raises(ConfigError, match="no folder"):
        build_team(config(tmp_path, **local, models__default__path=str(tmp_path / "none")))


async def test_parts_can_be_handed_in(tmp_path: Path) -> None:
    team = build_team(config(tmp_path), models=models(), tools=[ShelfTool()])
    episode = await live(TASK, team, Ledger("q"))
    assert episode.verdict is not None
    assert episode.verdict.correct
    assert episode.config == config(tmp_path).digest
    await team.close()
    with open_store(tmp_path / "memory.db") as store:
        assert store.count_memories() == 1


async def test_each_role_is_spoken_to_in_the_style_of_its_model(tmp_path: Path) -> None:
    folders = {"planner": "agents/planner_", "executor": "agents/executor_", "manager": "memory/", "judge": "judges/"}
    everything = build_team(config(tmp_path), models=models(), tools=[ShelfTool()])
    await everything.close()
    assert not any(name.endswith(".compact") for name in everything.prompts)
    for role, folder in folders.items():
        settings = config(tmp_path, **{f"models__{role}__prompts": "compact"})
        team = build_team(settings, models=models(), tools=[ShelfTool()])
        await team.close()
        compact = {name for name in team.prompts if name.endswith(".compact")}
        assert compact
        assert compact == {name for name in team.prompts if name.startswith(folder)} - {"agents/executor_task"}


async def test_a_cold_start_is_spoken_to_in_its_own_style(tmp_path: Path) -> None:
    weak, strong = ScriptedModel(speak), ScriptedModel(speak)
    settings = config(tmp_path, models__default__prompts="compact", models__cold_start__prompts="full")
    team = build_team(settings, models=Models(weak, weak, weak, weak, cold_start=strong), tools=[ShelfTool()])
    await live(TASK, team, Ledger("q"))
    await team.close()
    assert [request.purpose for request in strong.requests] == ["plan"]
    assert strong.requests[0].messages[0].content.startswith("You are the planner")
    assert {"planner", "executor"} <= {request.messages[0].content for request in weak.requests}


@pytest.mark.parametrize("flags", [{"memory__enabled": False}, {"memory__frozen": True}])
async def test_an_episode_is_kept_where_no_memory_may_be(tmp_path: Path, flags: dict[str, Any]) -> None:
    team = build_team(config(tmp_path, **flags), models=models(), tools=[ShelfTool()])
    episode = await live(TASK, team, Ledger("q"))
    await team.close()
    with open_store(tmp_path / "memory.db") as store:
        assert store.count_memories() == 0
        assert store.load_episode("last") == episode


async def test_a_memory_of_another_embedder_is_refused_before_any_call(tmp_path: Path) -> None:
    settings = config(tmp_path)
    memory = MemoryManager(open_store(settings.store_path), HashingEmbedder(), settings.memory)
    memory.add("Who found Titan?", "1. Look (Titan → Huygens)", "correct")
    await memory.close()
    with pytest.raises(StoreError, match="made with the embedder 'hashing'"):
        build_team(config(tmp_path, memory__embedder="minilm"), models=models(), tools=[ShelfTool()])
    team = build_team(config(tmp_path, memory__embedder="auto"), models=models(), tools=[ShelfTool()])
    await team.close()


def test_ask_needs_no_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = tmp_path / "recording.jsonl"
    question = Question.of("Who found Titan?")
    entry = {"question_id": question.id, "role": "executor", "purpose": "execute", "turn": 0}
    lines = [{"format": "mia-recording", "version": 1}, entry | {"text": "<answer>Christiaan Huygens</answer>"}]
    recording.write_text("\n".join(json.dumps(line) for line in lines))
    settings = config(
        tmp_path,
        models__default__provider="replay",
        models__default__path=str(recording),
        line__plan=False,
        judge__kind="reference",
        search__corpus=(str(DOCS),),
    )
    episode = mia.ask(question.text, settings, references=["Christiaan Huygens"])
    assert episode.answer is not None
    assert episode.answer.text == "Christiaan Huygens"
    assert episode.verdict is not None
    assert episode.verdict.correct
