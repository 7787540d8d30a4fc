"""Rollouts: what an agent did for one task, in the very tokens that it read and wrote (mia.md, section 5).

An agent is an ordinary async function over a chat model. While it runs, its model is wrapped in a `RecordingModel`:
every reply brings the tokens of its prompt and its own, so that nothing is tokenised a second time from text. A call
whose prompt begins with all that an earlier conversation holds goes on with that conversation; any other begins a new
one, since some chat templates rewrite earlier turns. What the learner did not write (questions, memories, tool results)
is in the conversation and masked.

One rollout is one sample: one reward, one advantage, one or many conversations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from mia.errors import LearnError
from mia.models.base import ChatModel, ChatRequest, Price, TokenModel, TokenReply
from mia.types import Message, Role, Task, new_id

T = TypeVar("T")
Agent = Callable[[ChatModel, Task], Awaitable[T]]
"""Does a task with a model; what it returns is what the reward is of."""


@dataclass(frozen=True)
class Conversation:
    """One sequence of tokens. The three are equally long."""

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    """Whether the learner wrote the token."""
    logprobs: tuple[float, ...]
    """Natural logarithm of the probability that the sampling policy gave the token; 0 where it is masked."""

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.mask) == len(self.logprobs):
            raise LearnError(
                f"a conversation of {len(self.ids)} tokens has {len(self.mask)} marks and {len(self.logprobs)} "
                "logprobs.",
                wanted="as many of each",
            )

    @property
    def learned(self) -> int:
        """Tokens that the learner wrote."""
        return sum(self.mask)


@dataclass(frozen=True)
class Rollout:
    """One sample for the learner."""

    group: str
    """What its reward is compared within: one question, asked several times."""
    reward: float
    conversations: tuple[Conversation, ...]
    adapter_version: str = ""
    """The version that sampled it; empty: the base model."""
    id: str = field(default_factory=lambda: new_id("roll"))
    episode_id: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    """What the reward is made of."""

    @property
    def learned(self) -> int:
        return sum(conversation.learned for conversation in self.conversations)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data; `load_rollout` reads it."""
        return {
            "id": self.id,
            "group": self.group,
            "reward": self.reward,
            "parts": dict(self.parts),
            "adapter_version": self.adapter_version,
            "episode_id": self.episode_id,
            "conversations": [
                {"ids": list(one.ids), "mask": [int(mark) for mark in one.mask], "logprobs": list(one.logprobs)}
                for one in self.conversations
            ],
        }


def load_rollout(content: Mapping[str, Any]) -> Rollout:
    """What `as_dict` wrote. Raises LearnError for anything else."""
    try:
        return Rollout(
            id=str(content["id"]),
            group=str(content["group"]),
            reward=float(content["reward"]),
            parts={str(name): float(value) for name, value in content["parts"].items()},
            adapter_version=str(content["adapter_version"]),
            episode_id=str(content["episode_id"]),
            conversations=tuple(
                Conversation(
                    tuple(int(token) for token in one["ids"]),
                    tuple(bool(mark) for mark in one["mask"]),
                    tuple(float(value) for value in one["logprobs"]),
                )
                for one in content["conversations"]
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LearnError(
            f"this is no rollout ({type(error).__name__}: {error}).", wanted="what Rollout.as_dict gives"
        ) from error


@dataclass(frozen=True)
class Said:
    """One reply of the learner, as it wrote it."""

    purpose: str
    """E.g. "plan", "reflect", "replan", "execute"."""
    text: str
    cut: bool = False
    """It ended at the limit of its length."""


@dataclass(frozen=True)
class Reward:
    total: float
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """A sample that nothing is learnt from, e.g. because its judge could not be asked."""

    group: str
    why: str


@dataclass(frozen=True)
class Sampled(Generic[T]):
    """One run of an agent. `outcome` is what the agent returned, also where the sample was dropped."""

    outcome: T
    sample: Rollout | Dropped
    said: tuple[Said, ...]
    splits: int = 0
    """Calls that went on with a conversation in words, and not in tokens: the template or the tokenizer writes earlier
    turns in another way. Learning stays right and costs more."""


RewardFunction = Callable[[Task, T, Sequence[Said]], Awaitable[Reward | Dropped]]
"""Task, what the agent returned, what the learner wrote → a reward, or why there is none. It alone sees references."""


@dataclass
class _Open:
    """A conversation under way."""

    ids: list[int]
    mask: list[bool]
    logprobs: list[float]
    messages: tuple[Message, ...]
    """The prompt of its last call."""

    def extended_by(self, prompt: Sequence[int]) -> bool:
        return len(prompt) >= len(self.ids) and list(prompt[: len(self.ids)]) == self.ids

    def read(self, tokens: Sequence[int]) -> None:
        self.ids += tokens
        self.mask += [False] * len(tokens)
        self.logprobs += [0.0] * len(tokens)

    def write(self, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        self.ids += tokens
        self.mask += [True] * len(tokens)
        self.logprobs += logprobs


class RecordingModel:
    """A `TokenModel` that keeps the tokens of what it was asked, for one rollout.

    Sampling is what learning needs: the whole distribution at `temperature` (at 1 the logprobs are those of the
    sampling policy), unless a request says otherwise. With a `seed` each call is sampled with a seed of its own.
    """

    price: Price | None = None

    def __init__(
        self,
        model: TokenModel,
        *,
        role: Role | None = None,
        temperature: float = 1.0,
        seed: int | None = None,
        adapter: str = "",
    ) -> None:
        """`role`: calls of other roles pass through and are not recorded."""
        self.name = model.name
        self.context_window = model.context_window
        self.max_tokens = model.max_tokens
        self.said: list[Said] = []
        self.splits = 0
        self.adapter_version = ""
        self._model = model
        self._role = role
        self._temperature = temperature
        self._seed = seed
        self._adapter = adapter
        self._open: list[_Open] = []
        self._calls = 0

    @property
    def conversations(self) -> tuple[Conversation, ...]:
        return tuple(Conversation(tuple(one.ids), tuple(one.mask), tuple(one.logprobs)) for one in self._open)

    async def complete(self, request: ChatRequest) -> TokenReply:
        """Raises what the model raises, and LearnError where a reply has no tokens or is of another version than those
        before."""
        if self._role is not None and request.role is not self._role:
            return await self._model.complete(request)
        call, self._calls = self._calls, self._calls + 1
        reply = await self._model.complete(self._sampling(request, call))
        check_tokens(reply, self.name)
        if call and reply.adapter != self.adapter_version:
            raise LearnError(
                f"one rollout was sampled by two versions, '{self.adapter_version}' and '{reply.adapter}'.",
                wanted="one version for the whole of it",
                hint="name the adapter when the RecordingModel is made",
            )
        self.adapter_version = reply.adapter
        going_on = self._find(request.messages, reply.prompt_ids)
        going_on.read(reply.prompt_ids[len(going_on.ids) :])
        going_on.write(reply.ids, reply.logprobs)
        going_on.messages = request.messages
        self.said.append(Said(request.purpose, reply.text, cut=reply.finish_reason == "length"))
        return reply

    async def close(self) -> None:
        """The model is its owner's to close."""

    def _sampling(self, request: ChatRequest, call: int) -> ChatRequest:
        seed = request.seed
        if seed is None and self._seed is not None:
            content = f"{self._seed} {request.purpose} {request.turn} {call}"
            seed = int.from_bytes(hashlib.sha256(content.encode()).digest()[:6])
        return replace(
            request,
            temperature=self._temperature if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=seed,
            adapter=request.adapter or self._adapter,
        )

    def _find(self, messages: tuple[Message, ...], prompt: Sequence[int]) -> _Open:
        """The longest conversation that the prompt goes on with, else a new one."""
        fitting = [one for one in self._open if one.extended_by(prompt)]
        if fitting:
            return max(fitting, key=lambda one: len(one.ids))
        if any(one.messages == messages[: len(one.messages)] for one in self._open):
            self.splits += 1
        fresh = _Open([], [], [], ())
        self._open.append(fresh)
        return fresh


def check_tokens(reply: Any, name: str) -> None:
    """Raises LearnError for a reply that learning can do nothing with."""
    if not isinstance(reply, TokenReply) or not reply.prompt_ids or len(reply.ids) != len(reply.logprobs):
        raise LearnError(
            f"{name} does not tell the tokens that it reads and writes.",
            wanted="a model that runs here, or an endpoint that returns token ids with logprobs",
            hint='models.<role>.provider = "local"',
        )


async def require_tokens(model: ChatModel) -> TokenModel:
    """The model, if it can be learnt with: it is asked for one token. Raises LearnError, and ModelError if it cannot be
    asked."""
    request = ChatRequest(
        messages=(Message(role="user", content="?"),),
        role=Role.PLANNER,
        question_id="probe",
        purpose="probe",
        max_tokens=1,
        temperature=0.0,
    )
    check_tokens(await model.complete(request), model.name)
    return model  # type: ignore[return-value]  # It has just told its tokens.


async def roll_out(
    agent: Agent[T],
    model: TokenModel,
    task: Task,
    reward: RewardFunction[T],
    *,
    role: Role | None = None,
    group: str = "",
    temperature: float = 1.0,
    seed: int | None = None,
    adapter: str = "",
    episode_id: Callable[[T], str] = lambda outcome: getattr(outcome, "id", ""),
) -> Sampled[T]:
    """Run an agent once, with its tokens recorded, and reward it. `group`: the question's id, if left out.

    An agent that wrote nothing gives no sample. Raises what agent and reward raise.
    """
    recording = RecordingModel(model, role=role, temperature=temperature, seed=seed, adapter=adapter)
    outcome = await agent(recording, task)
    said, group = tuple(recording.said), group or task.question.id
    sample: Rollout | Dropped
    if not any(conversation.learned for conversation in recording.conversations):
        sample = Dropped(group, "the learner wrote nothing")
    else:
        rewarded = await reward(task, outcome, said)
        if isinstance(rewarded, Dropped):
            sample = replace(rewarded, group=group)
        else:
            sample = Rollout(
                group=group,
                reward=rewarded.total,
                parts=dict(rewarded.parts),
                conversations=recording.conversations,
                adapter_version=recording.adapter_version,
                episode_id=episode_id(outcome),
            )
    return Sampled(outcome, sample, said, recording.splits)
