"""The text protocol: what a reply of the Executor may look like, read strictly.

`<think>…</think>`, then either one `<tool_call>{"name": …, "arguments": {…}}</tool_call>` with nothing behind it, or
`<answer>…</answer>` (mia.md, section 2). A reply that is neither comes back with the sentence that tells the model what
to write instead. Nothing here guesses what a model may have meant.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from mia.prompt import split_thinking
from mia.types import ToolCall

STOP = ("<tool_response>",)
"""Generation ends here: what follows would be an observation of the model's own making."""

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_EVIDENCE = re.compile(r"<evidence>(.*?)</evidence>", re.DOTALL)
_EVIDENCE_LINE = re.compile(r"^\s*(?:[-*]\s*)?\[([^\[\]\n]+)\]\s*[:-]?\s*(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Reply:
    """A reply as it was read: exactly one of `call`, `answer` and `fault` is set."""

    thinking: str = ""
    call: ToolCall | None = None
    answer: str | None = None
    evidence: tuple[tuple[str, str], ...] = ()
    """(passage id, quote) as the model claims them; nothing is checked here."""
    fault: str = ""
    """What is wrong with the reply, and what to write instead."""


def read_reply(text: str) -> Reply:
    """Read one reply of the text protocol."""
    parts = split_thinking(text)
    if parts is None:
        return Reply(
            thinking=text.replace("<think>", "").strip(),
            fault="Your thinking was not closed. Write <think>…</think>, then one <tool_call> or the <answer>.",
        )
    thinking, rest = parts
    calls, opened = _CALL.findall(rest), rest.count("<tool_call>")
    answers = _ANSWER.findall(rest)
    if opened and answers:
        return Reply(thinking, fault="You wrote a tool call and an answer in one turn. Write one of them alone.")
    if opened:
        return _read_call(thinking, rest, calls, opened)
    if answers:
        return _read_answer(thinking, rest, answers[-1])
    if "<answer>" in rest:
        return Reply(thinking, fault="Your answer was not closed. Write <answer>the answer alone</answer>.")
    return Reply(
        thinking,
        fault="Your turn held neither a tool call nor an answer. After </think>, write one "
        '<tool_call>{"name": …, "arguments": {…}}</tool_call> or the <answer>…</answer>.',
    )


def read_final_reply(text: str) -> Reply:
    """Read the reply to "answer now": the same, but an answer that the reply's end cut off counts as written."""
    reply = read_reply(text)
    if reply.answer is not None:
        return reply
    _, opening, cut_off = text.rpartition("<answer>")
    if opening and cut_off.strip() and "<" not in cut_off:
        return Reply(reply.thinking, answer=cut_off.strip())
    return reply


def _read_call(thinking: str, rest: str, calls: list[str], opened: int) -> Reply:
    if opened > 1:
        return Reply(thinking, fault=f"You wrote {opened} tool calls in one turn. Write one, and wait for its result.")
    if not calls:
        return Reply(thinking, fault="Your tool call was not closed. End it with </tool_call>.")
    if rest.rpartition("</tool_call>")[2].strip():
        return Reply(thinking, fault="You wrote text after the tool call. End your turn with </tool_call>.")
    shape = 'Write <tool_call>{"name": "…", "arguments": {…}}</tool_call>.'
    try:
        content = json.loads(calls[0])
    except (ValueError, RecursionError) as error:
        return Reply(thinking, fault=f"Your tool call is not valid JSON ({error}). {shape}")
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        return Reply(thinking, fault=f'Your tool call has no "name". {shape}')
    if not isinstance(content.get("arguments"), dict):
        return Reply(thinking, fault=f'The "arguments" of your tool call are no JSON object. {shape}')
    if extra := sorted(content.keys() - {"name", "arguments"}):
        return Reply(thinking, fault=f"Your tool call has keys it must not have: {', '.join(extra)}. {shape}")
    return Reply(thinking, call=ToolCall(name=content["name"], arguments=content["arguments"]))


def _read_answer(thinking: str, rest: str, answer: str) -> Reply:
    if not answer.strip():
        return Reply(thinking, fault="Your answer is empty. Write <answer>the answer alone</answer>.")
    evidence = tuple(
        (passage_id.strip(), quote.strip("\"'“”‘’ "))
        for block in _EVIDENCE.findall(rest)
        for passage_id, quote in _EVIDENCE_LINE.findall(block)
    )
    return Reply(thinking, answer=answer.strip(), evidence=evidence)
