"""What goes over the wire of the chat endpoint, with OpenAI's names; and how a chat is read as a question.

A client of OpenAI sends many fields that mean nothing here. What would only tune a model is taken and not used
(docs/chat.md lists it); what would change the kind of answer (several choices, tools, a schema, sound) is refused, so
that nobody waits for what does not come.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from mia.service.chat_problems import NoModel, Unsupported
from mia.service.rewriting import Turn
from mia.service.schemas import Reply
from mia.types import Citation, Image, Stop, Usage, Verdict

MODEL = "mia"
"""The one model there is."""
MESSAGES = 1_000
PARTS = 100
IMAGES = 8
"""Most of each in one request."""

_DATA_URL = re.compile(r"data:[\w.+/;=-]*;base64,", re.IGNORECASE)

Written = Annotated[str, StringConstraints(max_length=100_000)]


class Lenient(BaseModel):
    """What a client of OpenAI sends: fields that are not named are taken, and not used."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)


class ImageUrl(Lenient):
    url: str
    """A data URL; no other is followed."""


class Part(Lenient):
    type: str
    """text or image_url."""
    text: Written | None = None
    image_url: ImageUrl | None = None


class ChatMessage(Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Written | Annotated[list[Part], Field(max_length=PARTS)] | None = None


class StreamOptions(Lenient):
    include_usage: bool | None = None
    """Send what was spent, in a last piece without choices."""


class ResponseFormat(Lenient):
    type: str = "text"


class ChatBody(Lenient):
    model: Annotated[str, Field(max_length=300)] = MODEL
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MESSAGES)]
    """The last one of the user is the question; what user and assistant said before tells what it refers to."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    """No more than 1."""
    tools: list[Any] | None = None
    """None: MIA uses its own."""
    functions: list[Any] | None = None
    response_format: ResponseFormat | None = None
    """Text."""
    logprobs: bool | None = None
    modalities: list[str] | None = None
    audio: Any = None


@dataclass(frozen=True)
class Asked:
    """A chat as a question."""

    before: tuple[Turn, ...]
    last: str
    images: tuple[Image, ...]


class Findings(Reply):
    """What MIA adds to a reply of OpenAI's form."""

    episode_id: str
    """For feedback, and the whole story: GET /v1/episodes/{id}."""
    question: str
    """As it was researched."""
    memories: tuple[str, ...]
    """Ids of the memories that were shown."""
    verdict: Verdict | None
    citations: tuple[Citation, ...]
    withheld: bool
    stop: Stop | None
    """Why the research ended."""
    version: str
    """The version of the Planner's weights that answered; empty: the model as it came."""


class Said(Reply):
    role: Literal["assistant"] = "assistant"
    content: str
    """The answer, with its sources as footnotes."""
    reasoning_content: str
    """What happened on the way, a line for each stage and each use of a tool."""
    refusal: None = None


class Choice(Reply):
    index: int = 0
    message: Said
    finish_reason: Literal["stop", "length"]
    """length: a limit ended the research before there was an answer."""
    logprobs: None = None


class Spent(Reply):
    """Over all calls of all models."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> Spent:
        return cls(
            prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens, total_tokens=usage.tokens
        )


class Completion(Reply):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str = MODEL
    choices: tuple[Choice, ...]
    usage: Spent
    mia: Findings


class ModelCard(Reply):
    id: str = MODEL
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mia"
    mia: dict[str, str]
    """Role → the model that plays it."""


class ModelList(Reply):
    object: Literal["list"] = "list"
    data: tuple[ModelCard, ...]


def check_model(name: str) -> None:
    """Raises NoModel for another one than ours."""
    if name != MODEL:
        raise NoModel(f"no model '{name[:100]}'.", wanted=f"'{MODEL}'", hint="GET /v1/models")


def read_chat(body: ChatBody) -> Asked:
    """The question that a chat ends with. Raises NoModel, Unsupported, RecordError (no image)."""
    check_model(body.model)
    _check_wishes(body)
    turns = [one for one in body.messages if one.role in ("user", "assistant")]
    if not turns or turns[-1].role != "user" or body.messages[-1].role in ("tool", "function"):
        raise Unsupported(
            "the chat does not end with a question of the user.",
            param="messages",
            wanted='a last message of role "user"',
        )
    text, images = _read_last(turns[-1])
    if not text.strip():
        raise Unsupported("the last message has no text.", param="messages", wanted="a question")
    before = tuple(Turn("user" if one.role == "user" else "assistant", _words_of(one)) for one in turns[:-1])
    return Asked(before, text.strip(), tuple(images))


def _check_wishes(body: ChatBody) -> None:
    if body.n is not None and body.n != 1:
        raise Unsupported(
            f"{body.n} answers to one question: MIA researches a question once, and gives one.",
            param="n",
            wanted="n = 1",
        )
    if body.tools or body.functions:
        raise Unsupported(
            "the request brings tools of its own, and MIA calls none but those of its configuration.",
            param="tools" if body.tools else "functions",
            wanted="no tools; MIA searches by itself",
            hint="name MCP servers in the configuration of MIA (docs/mcp.md)",
        )
    if body.response_format is not None and body.response_format.type != "text":
        raise Unsupported(
            "an answer in a form of its own: MIA answers in text.",
            param="response_format",
            wanted='response_format {"type": "text"}',
            hint="POST /v1/ask gives answer, citations and verdict as JSON",
        )
    if body.logprobs:
        raise Unsupported(
            "the probabilities of tokens: an answer of MIA comes of many calls, and has none.",
            param="logprobs",
            wanted="logprobs = false",
        )
    if body.audio or set(body.modalities or ()) - {"text"}:
        raise Unsupported(
            "an answer in sound: MIA answers in text.",
            param="audio" if body.audio else "modalities",
            wanted='modalities ["text"]',
        )


def _read_last(message: ChatMessage) -> tuple[str, Sequence[Image]]:
    if not isinstance(message.content, list):
        return message.content or "", ()
    texts, images = [], []
    for part in message.content:
        if part.type == "text":
            texts.append(part.text or "")
        elif part.type == "image_url" and part.image_url is not None:
            images.append(_read_image(part.image_url.url))
        else:
            raise Unsupported(
                f"a message has a part of type '{part.type[:40]}'.",
                param="messages",
                wanted="parts of type text or image_url",
            )
    if len(images) > IMAGES:
        raise Unsupported(f"{len(images)} images in one question.", param="messages", wanted=f"{IMAGES} at most")
    return "\n".join(texts), images


def _read_image(url: str) -> Image:
    """Raises Unsupported for a URL that would have to be fetched, RecordError for what is no image."""
    head = _DATA_URL.match(url)
    if head is None:
        raise Unsupported(
            "an image is given by a URL that would have to be fetched.",
            param="messages",
            wanted="the image itself: data:image/png;base64,…",
        )
    try:
        content = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unsupported(
            "an image is no base64.", param="messages", wanted="PNG, JPEG, GIF or WebP in base64"
        ) from error
    return Image.from_bytes(content)


def _words_of(message: ChatMessage) -> str:
    """The text of an earlier turn; what else was in it is named."""
    if not isinstance(message.content, list):
        return message.content or ""
    return "\n".join(part.text or "" if part.type == "text" else f"[{part.type[:40]}]" for part in message.content)
