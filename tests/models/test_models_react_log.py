"""ReAct logs become questions and recordings that hold what the model wrote and nothing else."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mia.errors import ModelReplyError, RecordError
from mia.models.base import ChatRequest
from mia.models.react_log import ReactRecord, read_react_log, write_recording
from mia.models.replay import ReplayModel
from mia.types import Message, Role


def step(tool: str | None, tool_input: str | None, thought: str = "So.", **changes: Any) -> dict[str, Any]:
    action = f"{tool}[{tool_input}]"
    return {
        "thought": thought,
        "action": action,
        "tool": tool,
        "tool_input": tool_input,
        "observation": "SEEN",
        **changes,
    }


def run(*steps: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "id": "run-1",
        "source": "ours/a",
        "trial": 1,
        "question": "Where is the Louvre?",
        "gold": "SECRET",
        "outcome": "correct",
        "correct": True,
        "reflections": ["REFLECTED"],
        "final": "Paris",
        "steps": list(steps),
        **changes,
    }


def read(tmp_path: Path, *runs: Any, prefix: str = "") -> list[ReactRecord]:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in runs))
    return read_react_log(path, prefix)


def texts(tmp_path: Path, *steps: dict[str, Any]) -> list[str]:
    (record,) = read(tmp_path, run(*steps))
    return [entry.text or f"halted: {entry.halted}" for entry in record.entries]


def test_a_run_becomes_a_task_and_replies_in_our_protocol(tmp_path: Path) -> None:
    (record,) = read(tmp_path, run(step("search", "Louvre"), step("lookup", "city"), step("finish", "Paris")))
    assert (record.task.question.id, record.task.references) == ("run-1", ("SECRET",))
    assert [entry.text for entry in record.entries] == [
        '<think>So.</think>\n<tool_call>{"name": "search", "arguments": {"query_list": ["Louvre"]}}</tool_call>',
        '<think>So.</think>\n<tool_call>{"name": "lookup", "arguments": {"term": "city"}}</tool_call>',
        "<think>So.</think>\n<answer>Paris</answer>",
    ]
    assert {(entry.role, entry.purpose) for entry in record.entries} == {(Role.EXECUTOR, "execute")}
    assert [entry.turn for entry in record.entries] == [0, 1, 2]
    assert (record.outcome, record.correct, record.answer, record.steps_left_out) == ("correct", True, "Paris", 0)
    for entry in record.entries:
        for stripped in ("SEEN", "SECRET", "REFLECTED"):
            assert stripped not in entry.model_dump_json()


def test_odd_steps_keep_what_the_model_wrote(tmp_path: Path) -> None:
    assert texts(
        tmp_path,
        step("compare", "a and b"),
        step(None, None, action="search[Louvre] and more"),
        {"thought": "Only thinking."},
        step("search", '"quoted" </tool_call>', thought=""),
        step("finish", "x", thought="Done.</think>\n<answer>x</answer>"),
    ) == [
        '<think>So.</think>\n<tool_call>{"name": "compare", "arguments": {"input": "a and b"}}</tool_call>',
        "<think>So.</think>\nsearch[Louvre] and more",
        "<think>Only thinking.</think>",
        '<think></think>\n<tool_call>{"name": "search", '
        '"arguments": {"query_list": ["\\"quoted\\" ‹/tool_call>"]}}</tool_call>',
        "<think>Done.</think>\n<answer>x</answer>",
    ]


def test_the_first_finish_ends_a_run_and_a_run_without_one_is_halted(tmp_path: Path) -> None:
    both = [
        run(step("finish", "Paris"), step("search", "x"), step("finish", "Rome")),
        run(step("search", "x"), id="run-2"),
    ]
    ended, halted = read(tmp_path, *both)
    assert len(ended.entries) == 1
    assert ended.steps_left_out == 2
    assert [bool(entry.halted) for entry in halted.entries] == [False, True]
    (nothing,) = read(tmp_path, run(final=None))
    assert (len(nothing.entries), nothing.answer) == (1, None)


def test_sources_are_chosen_by_their_beginning(tmp_path: Path) -> None:
    both = (run(source="ours/a"), run(source="theirs/a", id="run-2"))
    assert [record.id for record in read(tmp_path, *both, prefix="theirs/")] == ["run-2"]


@pytest.mark.parametrize(
    "broken",
    ["{", "[]", json.dumps({"id": "x"}), json.dumps(run(question=" ")), json.dumps(run(steps=[{"thought": 7}]))],
)
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, broken: str) -> None:
    with pytest.raises(RecordError, match="line 3: "):
        read(tmp_path, run(), "", broken)


@pytest.fixture(scope="module")
def log() -> Path:
    if "MIA_DATA" not in os.environ:
        pytest.skip("MIA_DATA names no folder with the shared data")
    return Path(os.environ["MIA_DATA"]) / "trajectories" / "react_search.jsonl.gz"


async def test_all_reflexion_runs_convert_and_replay(log: Path, tmp_path: Path) -> None:
    records = read_react_log(log, "reflexion/")
    assert len(records) == 512
    assert sum(record.correct for record in records) == 81
    write_recording(records, tmp_path / "r.jsonl")
    model = ReplayModel(tmp_path / "r.jsonl")
    message = (Message(role="user", content="?"),)
    for record in records:
        last = len(record.entries) - 1
        for turn in range(last + 1):
            asked = ChatRequest(message, Role.EXECUTOR, record.id, "execute", turn)
            if record.outcome == "halted" and turn == last:
                with pytest.raises(ModelReplyError):
                    await model.complete(asked)
                continue
            text = (await model.complete(asked)).text
            assert text.startswith("<think>")
            assert ("<answer>" in text) == (turn == last)
            assert ("<tool_call>" in text) == (turn != last)
        if record.outcome != "halted":
            assert record.entries[-1].text.endswith(f"<answer>{record.answer}</answer>")
    model.assert_exhausted()


def test_no_verdict_and_no_observation_comes_in(log: Path) -> None:
    raw = {one["id"]: one for one in map(json.loads, gzip.decompress(log.read_bytes()).splitlines())}
    for record in read_react_log(log, "reflexion/"):
        written = "\n".join(entry.text for entry in record.entries)
        assert "Answer is" not in written
        run = raw[record.id]
        for reflection in run["reflections"]:
            assert reflection not in written
        for one in run["steps"]:
            if len(one["observation"]) > 60:
                assert one["observation"] not in written


def test_every_run_of_the_log_converts(log: Path) -> None:
    records = read_react_log(log)
    assert len(records) == 3724
    assert all(record.entries for record in records)
    assert len({record.id for record in records}) == len(records)
