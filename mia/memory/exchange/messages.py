"""Conversations as OpenAI's chat completions have them, as episodes.

The question is the last user message before the first tool call (without one, the first user message); the answer is
the last assistant message without a call, if no call comes after it. Tool calls may be native (`tool_calls`, the older
`function_call`) or tags in the text (`<think>`, `<tool_call>`, `<tool_response>`, `<answer>`). System prompts are not
remembered, nor is any field but those that `read_conversation` names: a reference answer stays outside.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mia.errors import RecordError
from mia.memory.exchange.runs import Run, Turn
from mia.prompt import defuse, split_thinking
from mia.types import Image, Question, ToolCall

PASSING_SCORE = 0.5
"""A score from here on says that the answer was right."""

_DATA_URL = re.compile(r"data:[\w/+.-]{1,100};base64,")
# Some agents put their instructions and the question into one message.
_INSTRUCTIONS = re.compile(r"<(?:tools|tool_call|search|answer)>")
_QUESTION_LINE = re.compile(r"^[ \t]*(?:user|question):[ \t]*", re.IGNORECASE | re.MULTILINE)


class _Message(BaseModel):
    """One message, as far as it is read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None
    function_call: dict[str, Any] | None = None
    tool_call_id: str | None = None


@dataclass(frozen=True)
class _Said:
    """A message in our words."""

    role: Literal["user", "assistant", "result"]
    text: str
    """Of an assistant: without thinking, calls and the tags of an answer."""
    thinking: str = ""
    calls: tuple[ToolCall, ...] = ()
    images: tuple[Image, ...] = ()
    call_id: str = ""
    whole: str = ""
    """As it was written."""


def is_conversation(value: Any) -> bool:
    """Whether a JSON value is one conversation, not a list of them."""
    if isinstance(value, dict):
        return "messages" in value
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "role" in one for one in value)


def read_conversation(value: Any) -> Run:
    """`{"messages": […]}` with optional `question`, `judgement`, `correct`, `score` (also within `metadata`), or a bare
    list of messages. Raises RecordError or ValidationError, saying what is wrong with it."""
    item = value if isinstance(value, dict) else {"messages": value}
    messages = item.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RecordError("it holds no messages")
    said = [one for message in messages for one in _said(_Message.model_validate(message))]
    begin = _question_place(said)
    given = item.get("question")
    if begin is None and not isinstance(given, str):
        raise RecordError("nobody asks anything in it")
    asked = said[begin] if begin is not None else None
    text = given if isinstance(given, str) and given.strip() else _question(asked.text if asked else "")
    turns, answer = _turns(said[0 if begin is None else begin + 1 :])
    if not turns:
        raise RecordError("no assistant says anything in it")
    return Run(
        question=Question.of(text, images=asked.images if asked else ()),
        turns=turns,
        answer=answer,
        finished=bool(answer),
        correct=_judgement(item),
    )


def _judgement(item: dict[str, Any]) -> bool | None:
    """What the item says of its answer; None if it does not. Raises RecordError for what says neither."""
    metadata = item.get("metadata")
    for place in (item, metadata if isinstance(metadata, dict) else {}):
        for name in ("judgement", "correct", "score"):
            value = place.get(name)
            if value is None:
                continue
            if name == "judgement" and value in ("correct", "incorrect"):
                return bool(value == "correct")
            if name == "correct" and isinstance(value, bool):
                return value
            if name == "score" and isinstance(value, int | float):
                return value >= PASSING_SCORE
            wanted = {"judgement": "correct or incorrect", "correct": "true or false", "score": "a number"}[name]
            raise RecordError(f"its {name} is {str(value)[:40]!r}, and not {wanted}")
    return None


def _said(message: _Message) -> Iterator[_Said]:
    """What a message says to us: nothing, or one thing, or several tool results."""
    text, images = _content(message.content)
    if message.role == "assistant":
        yield _assistant(message, text)
    elif message.role in ("tool", "function"):
        yield _Said("result", text, call_id=message.tool_call_id or "")
    elif message.role == "user":
        # Instructions may show the tags, too; what a tool said begins with one.
        if text.lstrip().startswith("<tool_response>"):
            yield from (_Said("result", result.strip()) for result in _tagged(text, "tool_response")[0])
        else:
            yield _Said("user", text, images=images)


def _assistant(message: _Message, text: str) -> _Said:
    thinking = (message.reasoning_content or message.reasoning or "").strip()
    parts = split_thinking(text)
    if parts is None:
        # Thinking that was never closed.
        before, _, open_end = text.rpartition("<think>")
        parts = open_end.strip(), before.strip()
    thinking = "\n".join(filter(None, (thinking, parts[0])))
    tagged, rest = _tagged(parts[1], "tool_call")
    answers, _ = _tagged(rest, "answer")
    calls = (*_native_calls(message), *map(_tagged_call, tagged))
    return _Said("assistant", answers[-1].strip() if answers else rest.strip(), thinking, calls, whole=text)


def _tagged(text: str, tag: str) -> tuple[list[str], str]:
    """What stands between pairs of a tag, and the rest. In linear time, however many are never closed."""
    first, *pieces = text.split(f"<{tag}>")
    inside, rest = [], [first]
    for piece in pieces:
        before, closing, after = piece.partition(f"</{tag}>")
        if closing:
            inside.append(before)
        rest.append(after if closing else piece)
    return inside, "".join(rest)


def _native_calls(message: _Message) -> Iterator[ToolCall]:
    for call in message.tool_calls or ():
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise RecordError("a tool call in it has no function")
        yield _call(function, str(call.get("id") or ""))
    if message.function_call is not None:
        yield _call(message.function_call, "")


def _tagged_call(inside: str) -> ToolCall:
    try:
        function = json.loads(inside)
    except (ValueError, RecursionError):
        function = None
    return _call(function, "") if isinstance(function, dict) else ToolCall(name="", arguments={"input": inside.strip()})


def _call(function: dict[str, Any], id: str) -> ToolCall:
    """Arguments are a JSON string or an object; what is neither is kept as it was written."""
    name, arguments = function.get("name"), function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = {"input": arguments}
    if not isinstance(arguments, dict):
        arguments = {} if arguments is None else {"input": arguments}
    return ToolCall(name=name if isinstance(name, str) else "", arguments=arguments, id=id)


def _content(content: str | list[Any] | None) -> tuple[str, tuple[Image, ...]]:
    """The text, and the images by their hash."""
    if not isinstance(content, list):
        return content or "", ()
    texts: list[str] = []
    images: list[Image] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, dict) and "image_url" in part:
            address = part["image_url"]
            address = address.get("url") if isinstance(address, dict) else address
            if isinstance(address, str) and (image := _image(address)):
                images.append(image)
    return "\n".join(texts), tuple(images)


def _image(address: str) -> Image | None:
    """By the hash of its bytes; None where only an address is given, or the bytes are no image."""
    head = _DATA_URL.match(address)
    if head is None:
        return None
    try:
        return Image.from_bytes(base64.b64decode(address[head.end() :])).without_data()
    except ValueError:
        return None


def _question_place(said: Sequence[_Said]) -> int | None:
    """Where the question is; None if no user says anything."""
    first_call = next((index for index, one in enumerate(said) if one.calls), None)
    asked = [index for index, one in enumerate(said) if one.role == "user" and one.text.strip()]
    if first_call is None:
        return asked[0] if asked else None
    return next((index for index in reversed(asked) if index < first_call), None)


def _question(text: str) -> str:
    """The question itself, where the message begins with instructions for the agent."""
    lines = list(_QUESTION_LINE.finditer(text)) if _INSTRUCTIONS.search(text) else []
    behind = text[lines[-1].end() :].strip() if lines else ""
    return behind or text


def _turns(said: Sequence[_Said]) -> tuple[tuple[Turn, ...], str]:
    """The turns after the question, one for each call, and the answer."""
    turns: list[Turn] = []
    waiting: dict[str, int] = {}
    """Call id (or "#" and its place) → the turn that waits for its result, in order."""
    answer = ""
    for one in said:
        if one.role == "result":
            key = one.call_id if one.call_id in waiting else next(iter(waiting), None)
            if key is not None:
                place = waiting.pop(key)
                turns[place] = replace(turns[place], observation=defuse(one.text))
        elif one.role == "assistant":
            text, thinking = defuse(one.whole), defuse(one.thinking)
            waiting = {}
            for call in one.calls:
                waiting[call.id if call.id and call.id not in waiting else f"#{len(turns)}"] = len(turns)
                # A call without a name could not be read: what was written stays in the text.
                turns.append(Turn(text, thinking, call if call.name else None))
            if not one.calls and (text or thinking):
                turns.append(Turn(text, thinking))
            answer = "" if one.calls else one.text
    return tuple(turns), answer
