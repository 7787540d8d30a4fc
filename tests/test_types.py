"""Records: frozen, closed, versioned, and readable for ever."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mia import types
from mia.errors import RecordError
from mia.types import (
    Answer,
    Attempt,
    Citation,
    Episode,
    Failure,
    Image,
    Memory,
    Observation,
    Outcome,
    Passage,
    Plan,
    Question,
    Recall,
    RecalledMemory,
    Reflection,
    Review,
    Role,
    Step,
    Stop,
    StopReason,
    Support,
    Task,
    ToolCall,
    Trace,
    Usage,
    Verdict,
    load_episode,
    load_memory,
)

DATA = Path(__file__).parent / "data"
SCHEMAS = Path(__file__).parents[1] / "docs" / "schemas"


def full_episode() -> Episode:
    """An episode with every field in use."""
    passage = Passage(id="p", title="T", text="Titan is a moon.", score=1.5, source="a.md", parts={"lexical_rank": 1})
    step = Step(
        index=0,
        text="<think>t</think>…",
        thinking="t",
        tool_call=ToolCall(name="search", arguments={"query_list": ["Titan", "☂"]}, id="c1"),
        observation=Observation(text="[p] T\nTitan is a moon.", passages=(passage,)),
        usage=Usage(calls=1, prompt_tokens=10, completion_tokens=5, cost=None, seconds=0.5),
        seconds=0.6,
    )
    verdict = Verdict(
        outcome=Outcome.CORRECT,
        judge="trust",
        reason="r",
        scores={"em": 1.0},
        reviews=(Review(reviewer="sourcing", score=7, reason="fine"),),
        support=Support(level="strong", reason="quoted"),
        fallback="none",
    )
    shown = RecalledMemory(
        memory_id="m", judgement="correct", question="q", rank=1, score=0.9, parts={"similarity": 0.8}
    )
    answer = Answer(
        text="a moon",
        citations=(Citation(passage_id="p", title="T", quote="Titan is a moon.", step=0, origin="model"),),
    )
    attempt = Attempt(
        plan=Plan(text="1. Look.", steps=("Look.",), thinking="t", candidates=("1. Look.", "1. Ask."), chosen=0),
        trace=Trace(steps=(step,), stop=Stop(reason=StopReason.ANSWERED, sentence="done")),
        answer=answer,
        reflection=Reflection(replan=None, text="maybe", thinking="t"),
        verdict=verdict,
    )
    return Episode(
        id="ep-1",
        question=Question(id="q-1", text="What is Titan?", images=(Image(sha256="0" * 64, media_type="image/png"),)),
        run="run-1",
        started_at=1.0,
        seconds=2.0,
        recall=Recall(for_planner="p", for_executor="e", shown=(shown,), passed_over=(shown,), considered=2, wanted=4),
        attempts=(attempt,),
        answer=answer,
        verdict=verdict,
        stop=attempt.trace.stop,
        usage={Role.EXECUTOR: step.usage},
        models={Role.EXECUTOR: "m @ host"},
        adapters={Role.PLANNER: "v000001"},
        prompts={"agents/executor_text": "abc"},
        failures=(Failure(stage="plan", error="ModelUnavailable", message="down", at=1.0),),
        config="abc",
    )


def full_memory() -> Memory:
    return Memory(id="m", question="q", judgement="correct", workflow="1. x (a → b)", created_at=1.0, updated_at=2.0)


def test_records_are_frozen_and_closed() -> None:
    question = Question.of("Who?")
    with pytest.raises(ValidationError):
        question.text = "Whom?"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Usage(call=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        full_memory().evolve(judgement="perhaps")


def test_an_episode_survives_json() -> None:
    episode = full_episode()
    assert load_episode(episode.model_dump_json()) == episode
    assert load_memory(full_memory().model_dump_json()) == full_memory()


@pytest.mark.parametrize(("name", "kind"), [("episode", Episode), ("memory", Memory)])
def test_the_published_schema_is_the_records_own(name: str, kind: type[types.Record]) -> None:
    version = {"episode": types.EPISODE_VERSION, "memory": types.MEMORY_VERSION}[name]
    published = json.loads((SCHEMAS / f"{name}.v{version}.json").read_text())
    assert published == kind.model_json_schema(), "a changed record needs a new version, an upgrade and a schema"
    record = full_episode() if kind is Episode else full_memory()
    jsonschema.validate(json.loads(record.model_dump_json()), published)


def test_records_of_version_1_load_for_ever() -> None:
    episode = load_episode((DATA / "episode.v1.json").read_bytes())
    assert episode.attempts[0].trace.steps[0].tool_call is not None
    assert episode.verdict is not None
    assert episode.verdict.support is not None
    assert load_memory((DATA / "memory.v1.json").read_bytes()).judgement == "correct"


def test_an_older_version_is_upgraded_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(types, "MEMORY_VERSION", 3)
    upgrades = {
        1: lambda page: {**page, "version": 2, "workflow": page["workflow"] + " (1→2)"},
        2: lambda page: {**page, "version": 3, "workflow": page["workflow"] + " (2→3)"},
    }
    monkeypatch.setattr(types, "MEMORY_UPGRADES", upgrades)
    oldest = json.dumps({**json.loads(full_memory().model_dump_json()), "version": 1})
    assert load_memory(oldest).workflow.endswith("(1→2) (2→3)")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "this is no episode"),
        ("[]", "this is no episode"),
        ('{"id": "x"}', "this is no episode"),
        ('{"version": "1"}', "this is no episode"),
        ('{"version": 99}', "knows versions up to"),
        ('{"version": 1, "id": "x"}', "broken at 'question'"),
        (b"\xff\xfe", "this is no episode"),
    ],
)
def test_what_is_no_episode_is_refused(text: str | bytes, says: str) -> None:
    with pytest.raises(RecordError, match=says):
        load_episode(text)


def test_the_same_question_has_the_same_id() -> None:
    assert Question.of(" Who? ").id == Question.of("Who?").id != Question.of("Who").id
    with pytest.raises(RecordError):
        Question.of("  ")


@given(st.text(min_size=1).filter(str.strip))
def test_any_text_makes_a_question_with_an_id(text: str) -> None:
    assert Question.of(text).id.startswith("q-")


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert Question.of("caf\udce9?").text == "caf??"


def test_an_unknown_cost_stays_unknown() -> None:
    assert (Usage(cost=1.0) + Usage(cost=2.0)).cost == 3.0
    assert (Usage(cost=1.0) + Usage(cost=None)).cost is None


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b"\x89PNG\r\n\x1a\n....", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
    ],
)
def test_images_are_known_by_their_bytes(content: bytes, media_type: str) -> None:
    image = Image.from_bytes(content)
    assert image.media_type == media_type
    assert image.data_url().startswith(f"data:{media_type};base64,")
    assert image.without_data().data == ""
    assert image.data not in repr(image)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("<html>")
    with pytest.raises(RecordError, match=r"a\.png"):
        Image.from_file(tmp_path / "a.png")
    with pytest.raises(RecordError, match="No such file"):
        Image.from_file(tmp_path / "b.png")


def test_a_task_keeps_its_references_out_of_the_question() -> None:
    task = Task(question=Question.of("Who?"), references=("SECRET",))
    assert "SECRET" not in task.question.model_dump_json()
