"""ReAct logs (thought, action, observation) turned into questions and recordings: real model output on our line.

Only what the model wrote comes in: its thoughts and its actions, in our text protocol. The recorded observations, the
verdict that the old environment gave ("Answer is CORRECT") and the `reflections` stay outside; so does the reference
answer, which goes into the `Task` and from there to a judge only.

- `search` and `lookup` become calls of our tools; any other tool stays a call of an unknown tool.
- An action that names no tool is kept as it was written: the Executor tells its model what is wrong with it.
- The first `finish` ends the execution, as an answer does here; steps behind it (some logs have them) are left out.
- A run that never finished ends with a `halted` entry.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, Field

from mia.models.replay import RecordedCall, read_records, write_calls
from mia.prompt import defuse
from mia.types import Question, Record, Role, Task

EXECUTE = "execute"
HALTED = "it stopped without an answer."


@dataclass(frozen=True)
class ReactRecord:
    """One logged run: the question with its reference, the calls to replay, and how it ended in the log."""

    id: str
    source: str
    task: Task
    entries: tuple[RecordedCall, ...]
    outcome: str
    """As logged: "correct", "incorrect" or "halted"."""
    correct: bool
    answer: str | None
    """The final answer as logged; None for a run that never finished."""
    steps_left_out: int
    """Steps behind the first `finish`."""


class _Step(Record):
    model_config = ConfigDict(extra="ignore")

    thought: str = ""
    action: str = ""
    tool: str | None = None
    tool_input: str | None = None


class _Run(Record):
    model_config = ConfigDict(extra="ignore")

    id: str = Field(min_length=1, max_length=200)
    source: str
    question: str = Field(pattern=r"\S")
    gold: str
    outcome: str
    correct: bool
    final: str | None = None
    steps: tuple[_Step, ...]


def read_react_log(path: Path, source_prefix: str = "") -> list[ReactRecord]:
    """The runs whose source begins so, from JSON Lines (gzipped or not). Raises RecordError, naming broken lines."""
    return [_converted(run) for run in read_records(path, _Run) if run.source.startswith(source_prefix)]


def write_recording(records: Iterable[ReactRecord], path: Path, *, note: str = "converted from ReAct logs") -> None:
    """The entries of these records as one recording."""
    write_calls((entry for record in records for entry in record.entries), path, note=note)


def _converted(run: _Run) -> ReactRecord:
    question = Question.of(run.question, id=run.id)
    finish = next((index for index, step in enumerate(run.steps) if step.tool == "finish"), None)
    steps = run.steps if finish is None else run.steps[: finish + 1]
    entries = [_entry(question, turn, text=_written(step)) for turn, step in enumerate(steps)]
    if finish is None:
        entries.append(_entry(question, len(steps), halted=HALTED))
    return ReactRecord(
        id=run.id,
        source=run.source,
        task=Task(question=question, references=(run.gold,)),
        entries=tuple(entries),
        outcome=run.outcome,
        correct=run.correct,
        answer=run.final or None,
        steps_left_out=len(run.steps) - len(steps),
    )


def _entry(question: Question, turn: int, **content: str) -> RecordedCall:
    return RecordedCall.model_validate(
        {
            "question_id": question.id,
            "question": question.text if turn == 0 else "",
            "role": Role.EXECUTOR,
            "purpose": EXECUTE,
            "turn": turn,
            **content,
        }
    )


def _written(step: _Step) -> str:
    """A step in our text protocol. Some thoughts run on into the answer, which `tool_input` holds too: they end at
    their `</think>`. Other tags of ours inside are defused: they meant nothing there."""
    thought = f"<think>{defuse(step.thought.partition('</think>')[0].rstrip())}</think>"
    if step.tool is None or step.tool_input is None:
        return f"{thought}\n{defuse(step.action)}".strip()
    if step.tool == "finish":
        return f"{thought}\n<answer>{defuse(step.tool_input)}</answer>"
    arguments = {
        "search": {"query_list": [step.tool_input]},
        "lookup": {"term": step.tool_input},
    }.get(step.tool, {"input": step.tool_input})
    call = json.dumps({"name": step.tool, "arguments": arguments}, ensure_ascii=False)
    return f"{thought}\n<tool_call>{defuse(call)}</tool_call>"
