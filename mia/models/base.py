"""What a model is to the rest of the house: chat messages in, one whole reply out.

`ChatModel` is the only door. A request says who asks (`role`), for which question and on which turn, so that
accounting, recording and replay need no guess. A model that fails raises a `ModelError`; text that an endpoint wrote
*about* a failure never comes back as a reply.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from mia.types import Message, Role, ToolCall, Usage


@dataclass(frozen=True)
class ToolSchema:
    """A tool as a model is told of it; `parameters` is a JSON Schema of an object."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class ChatRequest:
    """One call. Settings left at None are the endpoint's own defaults."""

    messages: tuple[Message, ...]
    role: Role
    question_id: str
    purpose: str
    """What the call is for, e.g. "plan", "execute", "reflect"; with `turn` it names the call in recordings."""
    turn: int = 0
    """How many calls with this role, purpose and question came before in the same episode."""
    tools: tuple[ToolSchema, ...] = ()
    """For native function calling; empty in the text protocol."""
    stop: tuple[str, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    json_schema: dict[str, Any] | None = None
    """Ask for a reply that is JSON of this schema, where the endpoint can promise it; callers still validate."""
    adapter: str = ""
    """The named LoRA adapter to answer with, where a model has several; empty: the one that is current."""
    on_text: Callable[[str], None] | None = field(default=None, compare=False)
    """Stream: called with each piece of text as it arrives; the whole reply is returned all the same."""
    on_retry: Callable[[int, float, str], None] | None = field(default=None, compare=False)
    """Called before a retry with the attempt that failed (from 1), the wait in seconds and the reason."""


FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class ChatReply:
    """One reply. With `finish_reason` "length" the text is cut: the caller decides whether that is usable."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason = "stop"
    usage: Usage = field(default_factory=Usage)
    model: str = ""
    """The model as the endpoint named it."""
    malformed_call: str = ""
    """A native call whose arguments are no JSON object, as it came; the agent answers it with an observation."""
    thinking: str = ""
    """Reasoning that the endpoint returned beside the text, where it does."""


@dataclass(frozen=True)
class TokenReply(ChatReply):
    """A reply with the very tokens that were read and sampled; nothing here was re-tokenised from text."""

    prompt_ids: tuple[int, ...] = ()
    """The whole prompt, as the model read it."""
    ids: tuple[int, ...] = ()
    """The sampled tokens, the one that ended the turn included; `text` may be shorter (stop strings)."""
    logprobs: tuple[float, ...] = ()
    """Natural logarithms of the probabilities that the model gave to `ids`, at temperature 1 and before any cut by
    top-p: one for each."""
    adapter: str = ""
    """The adapter that sampled them; empty: the base model."""


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens."""

    prompt: float
    completion: float

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1_000_000


class ChatModel(Protocol):
    """Anything that answers chat requests. Safe to call concurrently from one event loop."""

    @property
    def name(self) -> str:
        """For records: "model @ endpoint", never a key."""
        ...

    @property
    def context_window(self) -> int:
        """Tokens that prompt and reply may take together."""
        ...

    @property
    def max_tokens(self) -> int:
        """Reply tokens asked for when a request names none: the reply reserve."""
        ...

    @property
    def price(self) -> Price | None:
        """None where the user has not told it."""
        ...

    async def complete(self, request: ChatRequest) -> ChatReply:
        """Raises ModelError (see `mia.errors`); CancelledError passes through."""
        ...

    async def close(self) -> None:
        """Let go of connections; calling it twice is harmless."""
        ...


M = TypeVar("M", bound=ChatModel)


class TokenModel(ChatModel, Protocol):
    """A chat model that tells its tokens: what learning needs."""

    async def complete(self, request: ChatRequest) -> TokenReply: ...


class Around(Generic[M]):
    """What a model around another one takes over from it: all but how it answers."""

    def __init__(self, model: M) -> None:
        self.model = model

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def context_window(self) -> int:
        return self.model.context_window

    @property
    def max_tokens(self) -> int:
        return self.model.max_tokens

    @property
    def price(self) -> Price | None:
        return self.model.price

    async def close(self) -> None:
        await self.model.close()


def estimate_tokens(messages: tuple[Message, ...]) -> int:
    """A cautious guess where no tokenizer is at hand: 4 bytes of UTF-8 a token, 1,000 for an image, 8 for a turn.

    Four bytes a token is about right for English and over-counts few languages by more than a third.
    """
    total = 0
    for message in messages:
        total += 8 + len(message.content.encode("utf-8", "surrogatepass")) // 4 + 1000 * len(message.images)
        for call in message.tool_calls:
            total += len(str(call.arguments)) // 4 + 8
    return total


def estimate_prompt(request: ChatRequest) -> int:
    """The estimate for a whole request: its messages, and the tools it offers natively."""
    tools = sum(len(tool.description) + len(str(tool.parameters)) for tool in request.tools)
    return estimate_tokens(request.messages) + tools // 4


def estimate_usage(request: ChatRequest, text: str, price: Price | None) -> Usage:
    """The usage of one call whose endpoint counted nothing."""
    return measured_usage(estimate_prompt(request), len(text.encode("utf-8", "surrogatepass")) // 4 + 1, price)


def measured_usage(prompt_tokens: int, completion_tokens: int, price: Price | None) -> Usage:
    """The usage of one call with these counts; its cost is unknown without a price."""
    cost = price.cost(prompt_tokens, completion_tokens) if price else None
    return Usage(calls=1, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cost=cost)
