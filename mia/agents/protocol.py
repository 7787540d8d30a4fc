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

_EVIDENCE_LINE = re.compile(r"^[ \t]*+(?:[-*][ \t]*+)?\[([^\[\]\n]++)\][ \t]*+[:-]?+[ \t]*+(\S.*)$", re.MULTILINE)


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
    opened, answer = rest.count("<tool_call>"), _last_inside(rest, "answer")
    if opened and answer is not None:
        return Reply(thinking, fault="You wrote a tool call and an answer in one turn. Write one of them alone.")
    if opened:
        return _read_call(thinking, rest, opened)
    if answer is not None:
        return _read_answer(thinking, rest, answer)
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
    parts = split_thinking(text)
    if reply.answer is not None or parts is None:
        return reply
    _, opening, cut_off = parts[1].rpartition("<answer>")
    if opening and cut_off.strip() and "<" not in cut_off:
        return Reply(reply.thinking, answer=cut_off.strip())
    return reply


def _last_inside(text: str, tag: str) -> str | None:
    """What the last pair of these tags holds; None if there is no pair."""
    before, closing, _ = text.rpartition(f"</{tag}>")
    _, opening, inside = before.rpartition(f"<{tag}>")
    # A model that stutters closes it more than once.
    return inside.partition(f"</{tag}>")[0] if closing and opening else None


def _read_call(thinking: str, rest: str, opened: int) -> Reply:
    if opened > 1:
        return Reply(thinking, fault=f"You wrote {opened} tool calls in one turn. Write one, and wait for its result.")
    call = _last_inside(rest, "tool_call")
    if call is None:
        return Reply(thinking, fault="Your tool call was not closed. End it with </tool_call>.")
    if rest.rpartition("</tool_call>")[2].strip():
        return Reply(thinking, fault="You wrote text after the tool call. End your turn with </tool_call>.")
    shape = 'Write <tool_call>{"name": "…", "arguments": {…}}</tool_call>.'
    try:
        # Once more, for an escape may stand for half a character, which can be neither sent nor stored.
        content = json.loads(json.dumps(json.loads(call), ensure_ascii=False).encode("utf-8", "replace"))
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
        (passage_id.strip(), quote.strip("\"'“”‘’ \t"))
        for block in rest.split("<evidence>")[1:]
        for passage_id, quote in _EVIDENCE_LINE.findall(block.partition("</evidence>")[0])
    )
    return Reply(thinking, answer=answer.strip(), evidence=evidence)
