"""The words of the reference's wire, in ours: ids, captions, messages, traces, and what a finished run becomes.

Fields that are not known are passed over, as the reference does: its clients send more than its services read. So a
`ground_truth` beside a run is never even looked at.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from mia.errors import RecordError
from mia.judges.peer import REVIEWERS, read_review
from mia.memory.exchange.messages import read_conversation
from mia.memory.exchange.runs import episode as episode_of_run
from mia.scope import lineage
from mia.store.base import MemoryStore
from mia.transcript import render_steps
from mia.types import (
    Answer,
    Attempt,
    Episode,
    Image,
    Message,
    Observation,
    Outcome,
    Plan,
    Question,
    Recall,
    RecalledMemory,
    Review,
    Step,
    Stop,
    StopReason,
    ToolCall,
    Trace,
    Verdict,
)

MOST_ITEMS = 256
"""Of one request."""
MOST_MESSAGES = 1_000

_HEADING = re.compile(
    r"^#{1,6}[ \t]*+(?:(?P<round>Round \d++)|(?P<agent>Agent Reasoning[^\n:]*+)|(?P<plan>Revised? Plan)"
    r"|(?P<tool>[^\n:]{0,200}?Tool Call Return[^\n:]*+)|(?P<question>Question))[ \t]*+:?",
    re.MULTILINE,
)
_RESULT = "<tool_response>"


def _name(value: str) -> str:
    if value in (".", "..") or any(letter in "/\\" or not letter.isprintable() for letter in value):
        raise ValueError("an id is a plain name, without slashes or control characters")
    return value


def _text_of_number(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _first_of_list(value: object) -> object:
    if value is None or (isinstance(value, list) and not value):
        return ""
    return value[0] if isinstance(value, list) else value


def _empty_for_null(value: object) -> object:
    return "" if value is None else value


DataId = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=200),
    AfterValidator(_name),
    BeforeValidator(_text_of_number),
]
"""A question's id: a name or a number."""
GivenId = Annotated[DataId, Field(min_length=1)]
Text = Annotated[str, StringConstraints(max_length=1_000_000), BeforeValidator(_empty_for_null)]
Asked = Annotated[str, StringConstraints(min_length=1, max_length=100_000, strip_whitespace=True)]
Caption = Annotated[str, StringConstraints(max_length=20_000, strip_whitespace=True), BeforeValidator(_first_of_list)]
"""A text, or a list of which the first counts."""
Indices = Annotated[list[Annotated[str, StringConstraints(max_length=200)]], Field(max_length=1_000)]
"""Ids of memories, as they came from this server."""


class Sent(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)


class Given(BaseModel):
    """What a client gets."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Done(Given):
    status: Literal["success"] = "success"


class Cleared(Done):
    message: str


class WireMessage(Sent):
    """A turn, as OpenAI's chat completions have it."""

    role: Annotated[str, StringConstraints(max_length=40)]
    content: str | list[Any] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


WireMessages = Annotated[list[WireMessage], Field(max_length=MOST_MESSAGES)]

_ROLES: Mapping[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    # As one of the reference's services writes it.
    "assitant": "assistant",
    "tool": "tool",
    "function": "tool",
}


# ── messages ──────────────────────────────────────────────────────────────────────────────────────────────────────


def ours(messages: Sequence[WireMessage]) -> tuple[Message, ...]:
    """Raises RecordError for what is no conversation."""
    return tuple(_our_message(one) for one in messages)


def theirs(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """As OpenAI-style dicts."""
    return [_their_message(one) for one in messages]


def decoded_image(value: object) -> Image:
    """From base64, a data URL, or `{"bytes": base64}`. No address is followed and no path is read. Raises
    RecordError."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("url") or value.get("data")
    if not isinstance(value, str):
        raise RecordError("an image is no text.", wanted="PNG, JPEG, GIF or WebP in base64")
    head, comma, rest = value.partition(",")
    encoded = rest if comma and head.startswith("data:") else value
    try:
        content = base64.b64decode("".join(encoded.split()), validate=True)
    except ValueError as error:
        raise RecordError("an image is no base64.", wanted="PNG, JPEG, GIF or WebP in base64") from error
    return Image.from_bytes(content)


def _our_message(message: WireMessage) -> Message:
    role = _ROLES.get(message.role)
    if role is None:
        raise RecordError("a message has a role that is not known.", wanted="system, user, assistant or tool")
    text, images = _parts(message.content)
    return Message(
        role=role,
        content=text,
        images=images,
        tool_calls=tuple(_tool_call(call) for call in message.tool_calls or ()),
        tool_call_id=message.tool_call_id or "",
    )


def _parts(content: str | list[Any] | None) -> tuple[str, tuple[Image, ...]]:
    if not isinstance(content, list):
        return content or "", ()
    texts, images = [], []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, dict) and "image_url" in part:
            images.append(decoded_image(part["image_url"]))
        else:
            raise RecordError("a message has a part that is neither text nor image.")
    return "\n".join(texts), tuple(images)


def _tool_call(call: Mapping[str, Any]) -> ToolCall:
    function = call.get("function")
    try:
        arguments = function["arguments"]  # type: ignore[index]  # A call without a function is refused below.
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        return ToolCall(name=function["name"], arguments=arguments, id=str(call.get("id") or ""))  # type: ignore[index]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise RecordError("a tool call in a message cannot be read.", wanted="a function with its arguments") from None


def _their_message(message: Message) -> dict[str, Any]:
    content: Any = message.content
    if message.images:
        pictures = [{"type": "image_url", "image_url": {"url": image.data_url()}} for image in message.images]
        content = [{"type": "text", "text": message.content}, *pictures]
    page: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls:
        page["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        page["tool_call_id"] = message.tool_call_id
    return page


# ── traces ────────────────────────────────────────────────────────────────────────────────────────────────────────


def written_trace(steps: Sequence[Step], answer: Answer | None) -> str:
    """Round by round, with the answer between its tags. Nothing else in it can pose as these tags."""
    rounds = render_steps(steps)
    return f"{rounds}\n\n<answer>{answer.text}</answer>" if answer is not None else rounds


def read_trace(workflow: str) -> tuple[tuple[Step, ...], Answer | None]:
    """The rounds of a trace that a client wrote down, under the reference's headings. Any other text is one round."""
    marks = list(_HEADING.finditer(workflow))
    messages: list[dict[str, Any]] = []
    ends = [mark.start() for mark in marks[1:]] + [len(workflow)]
    # Without any heading there is one end more than there are beginnings.
    for mark, end in zip(marks, ends, strict=False):
        text = workflow[mark.end() : end].strip()
        if mark["agent"]:
            messages.append({"role": "assistant", "content": text})
        elif mark["tool"]:
            messages.append({"role": "user", "content": f"{_RESULT}{_bare_result(text)}</tool_response>"})
    if not messages:
        text, answer = workflow.strip(), _last_answer(workflow)
        seen = Step(index=0, text="", observation=Observation(text=text))
        return ((seen,) if text else ()), Answer(text=answer) if answer else None
    read = _read("trace", [{"role": "user", "content": "trace"}, *messages])
    return read.attempts[0].trace.steps, read.answer


def answer_in(trace: str) -> str:
    """What a trace answers: between the last pair of tags behind all thinking; a trace of a single line is the answer.
    Empty where there is none."""
    behind = trace.rpartition("</think>")[2].strip()
    answer = _last_answer(behind)
    return answer if answer or "\n" in behind or "<" in behind else behind


def steps_of(messages: Sequence[Message]) -> tuple[Step, ...]:
    """The turns of an Executor's conversation, whatever was before its first one."""
    start = next((index for index, one in enumerate(messages) if one.role == "assistant"), len(messages))
    rest = messages[start:]
    if not rest:
        return ()
    return _read("?", [{"role": "user", "content": "?"}, *theirs(rest)]).attempts[0].trace.steps


def _last_answer(text: str) -> str:
    before, closing, _ = text.rpartition("</answer>")
    _, opening, inside = before.rpartition("<answer>")
    return inside.strip() if closing and opening else ""


def _bare_result(text: str) -> str:
    """Without the tags around it; the reference closes with the tag that opens."""
    text = text.strip().removeprefix(_RESULT).lstrip("\\")
    return text.strip().removesuffix("</tool_response>").removesuffix(_RESULT).strip()


def _read(question: str, messages: Sequence[Mapping[str, Any]]) -> Episode:
    """A conversation as an episode without verdict. Raises RecordError."""
    try:
        return episode_of_run(read_conversation({"question": question, "messages": list(messages)}))
    except ValidationError as error:
        raise RecordError("the messages are no conversation.", wanted="turns of user, assistant and tool") from error


# ── what a finished run becomes ───────────────────────────────────────────────────────────────────────────────────


def finished(
    *,
    data_id: str,
    question: str,
    caption: str,
    plan: str,
    messages: Sequence[WireMessage],
    used: Sequence[str],
    verdict: Verdict,
    scope: str,
    store: MemoryStore,
) -> Episode:
    """A run that a client did, as an episode: known by its content, so that the same run sent again is the same one.
    `used`: the memories that it was shown; those that the scope does not see are left out. Raises RecordError,
    StoreError."""
    asked = Question.of(question, id=data_id, caption=caption)
    turns = [_normal(one) for one in messages]
    if any(turn["role"] == "assistant" for turn in turns):
        first = next(index for index, turn in enumerate(turns) if turn["role"] == "assistant")
        read = _read(asked.text, [{"role": "user", "content": asked.text}, *turns[first:]])
    else:
        stop = Stop(reason=StopReason.CALL_LIMIT, sentence="The client sent no turns of its run.")
        read = Episode(
            id="", question=asked, started_at=time.time(), attempts=(Attempt(trace=Trace(stop=stop)),), stop=stop
        )
    attempt = read.attempts[0].evolve(plan=Plan(text=plan.strip()) if plan.strip() else None, verdict=verdict)
    shown = _shown(used, scope, store)
    return read.evolve(
        id=_id_of(scope, data_id, asked.text, plan, [turn for turn in turns if turn["role"] != "system"]),
        question=asked,
        attempts=(attempt,),
        recall=Recall(shown=shown) if shown else None,
        verdict=verdict,
    )


def judged(correct: bool, feedback: Sequence[str | None] = ()) -> Verdict:
    """What a client says of a run. `feedback`: of the three reviewers, as they wrote it; what cannot be read as a score
    and a reason is left out."""
    reviews = []
    for reviewer, text in zip(REVIEWERS, feedback, strict=False):
        review = read_review(re.sub(r"^[ \t]*-[ \t]*", "", (text or "").strip(), flags=re.MULTILINE))
        if review is not None:
            reviews.append(Review(reviewer=reviewer.name, score=review[0], reason=review[1]))
    return Verdict(
        outcome=Outcome.CORRECT if correct else Outcome.INCORRECT,
        judge="peer" if feedback else "client",
        reviews=tuple(reviews),
    )


def _normal(message: WireMessage) -> dict[str, Any]:
    """A turn as the reader of logs takes it."""
    role = _ROLES.get(message.role)
    if role is None:
        raise RecordError("a message has a role that is not known.", wanted="system, user, assistant or tool")
    content: Any = message.content
    texts = [content] if isinstance(content, str) else content or []
    text = "\n".join(
        part if isinstance(part, str) else part.get("text") or ""
        for part in texts
        if isinstance(part, str) or (isinstance(part, dict) and isinstance(part.get("text") or "", str))
    )
    if role == "user" and text.lstrip().startswith(_RESULT):
        text = f"{_RESULT}{_bare_result(text)}</tool_response>"
    turn: dict[str, Any] = {"role": role, "content": text}
    if message.tool_calls:
        turn["tool_calls"] = message.tool_calls
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _shown(used: Sequence[str], scope: str, store: MemoryStore) -> tuple[RecalledMemory, ...]:
    seen = frozenset(lineage(scope))
    known = store.memories(list(dict.fromkeys(used))) if used else {}
    visible = [known[id] for id in dict.fromkeys(used) if id in known and known[id].scope in seen]
    return tuple(
        RecalledMemory(memory_id=one.id, judgement=one.judgement, question=one.question, rank=rank, score=0.0, parts={})
        for rank, one in enumerate(visible, start=1)
    )


def _id_of(*content: object) -> str:
    return "ep-" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]
