"""The words of the house: frozen, typed, versioned records that every floor speaks.

Always true of them: they never change once made (`evolve` gives an altered copy); they survive a round trip through
JSON; they hold no key, no reference answer (only `Task` does, and only the judge is handed a `Task`'s references) and
no open handle. `Episode` and `Memory` leave the process and say their version; a record of an older version loads
for ever (`load_episode`, `load_memory`), one of a newer version is refused with what to do.

Times are seconds since the epoch (`*_at`) or durations (`seconds`); money is in US dollars.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
import uuid
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mia.errors import RecordError

EPISODE_VERSION = 4
MEMORY_VERSION = 2


class Record(BaseModel):
    """A frozen record. Unknown fields are refused, so that a misspelt one is never lost silently."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def evolve(self, **changes: Any) -> Self:
        """An altered copy, validated like a new record."""
        return type(self).model_validate({**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


class Role(StrEnum):
    """Who is speaking to a model. Every role may have a model of its own."""

    PLANNER = "planner"
    EXECUTOR = "executor"
    MANAGER = "manager"
    JUDGE = "judge"
    READER = "reader"


# ── what goes in ──────────────────────────────────────────────────────────────────────────────────────────────────


class Image(Record):
    """One image. Identity is the hash of its bytes; records that are stored carry the hash without the bytes."""

    sha256: str
    media_type: str
    data: str = Field(default="", repr=False)
    """The bytes in base64; empty in stored records."""

    @classmethod
    def from_bytes(cls, content: bytes) -> Image:
        """Raises RecordError for bytes that are not PNG, JPEG, GIF or WebP."""
        signatures = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"))
        media_type = next((kind for start, kind in signatures if content.startswith(start)), "")
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            media_type = "image/webp"
        if not media_type:
            raise RecordError(f"{len(content)} bytes that are no image.", wanted="PNG, JPEG, GIF or WebP")
        encoded = base64.b64encode(content).decode()
        return cls(sha256=hashlib.sha256(content).hexdigest(), media_type=media_type, data=encoded)

    @classmethod
    def from_file(cls, path: Path) -> Image:
        """Raises RecordError if the file cannot be read or is no image."""
        try:
            return cls.from_bytes(path.read_bytes())
        except OSError as error:
            raise RecordError(f"cannot read the image '{path}': {error.strerror}.") from error
        except RecordError as error:
            raise RecordError(f"'{path}' holds {error.got}", wanted=error.wanted) from error

    def data_url(self) -> str:
        """`data:<media type>;base64,<data>`, as endpoints take it."""
        return f"data:{self.media_type};base64,{self.data}"

    def without_data(self) -> Image:
        return self.evolve(data="")


class Question(Record):
    """What an agent sees of a task. The id defaults to a content hash, so the same question has the same id."""

    id: str = Field(min_length=1, max_length=200)
    text: str = Field(min_length=1)
    images: tuple[Image, ...] = ()
    caption: str = ""
    """What the images show, in words; made once by a vision model where it is missing."""

    @classmethod
    def of(cls, text: str, *, id: str = "", images: tuple[Image, ...] = (), caption: str = "") -> Question:
        """Raises RecordError for an empty question."""
        # Bytes that were no text (lone surrogates, say from a terminal) cannot be sent or stored: they become "?".
        text = text.encode("utf-8", "replace").decode().strip()
        if not text:
            raise RecordError("the question is empty.", wanted="some text", hint='mia ask "your question"')
        if not id:
            content = json.dumps([text, [image.sha256 for image in images]], ensure_ascii=False)
            id = "q-" + hashlib.sha256(content.encode()).hexdigest()[:16]
        return cls(id=id, text=text, images=images, caption=caption)


class Task(Record):
    """A question with the reference answers that only a judge may see."""

    question: Question
    references: tuple[str, ...] = ()


# ── talking to models ─────────────────────────────────────────────────────────────────────────────────────────────


class ToolCall(Record):
    """One call as the model meant it. `id` is the endpoint's id of a native call, else empty."""

    name: str
    arguments: dict[str, Any]
    id: str = ""


class Message(Record):
    """One turn of a conversation, whatever the transport."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    images: tuple[Image, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    """Native calls of an assistant turn; the text protocol writes them into `content` instead."""
    tool_call_id: str = ""
    """For role "tool": the native call this answers."""


class Usage(Record):
    """What was spent. `cost` is None where a price is unknown; adding anything to an unknown price stays unknown."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = 0.0
    seconds: float = 0.0
    """Time spent waiting for models, summed over calls (concurrent calls overlap)."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        known = self.cost is not None and other.cost is not None
        return Usage(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cost=(self.cost or 0.0) + (other.cost or 0.0) if known else None,
            seconds=self.seconds + other.seconds,
        )

    def __sub__(self, other: Usage) -> Usage:
        known = self.cost is not None and other.cost is not None
        return Usage(
            calls=self.calls - other.calls,
            prompt_tokens=self.prompt_tokens - other.prompt_tokens,
            completion_tokens=self.completion_tokens - other.completion_tokens,
            cost=(self.cost or 0.0) - (other.cost or 0.0) if known else None,
            seconds=self.seconds - other.seconds,
        )


# ── what happens ──────────────────────────────────────────────────────────────────────────────────────────────────


class Passage(Record):
    """A piece of text that a search or a fetch found. `score` has the unit of the engine that gave it."""

    id: str
    title: str = ""
    text: str
    score: float = 0.0
    source: str = ""
    """Where it comes from: a file path inside the corpus, or a URL."""
    parts: dict[str, float] = {}
    """How the score came about, e.g. {"lexical_rank": 1, "vector_rank": 4}."""


class Observation(Record):
    """What a tool gave back, as the model was shown it (protocol tags defused)."""

    text: str
    ok: bool = True
    error: str = ""
    """The kind of failure when not ok, e.g. "malformed", "unknown_tool", "bad_arguments", "tool_failed"."""
    passages: tuple[Passage, ...] = ()
    """The passages inside `text`, with ids, for citations. Empty for tools that give no passages."""


class Step(Record):
    """One turn of the Executor: what it wrote, the call in it, what came back."""

    index: int
    """Counts from 0 through the whole episode, over both executions."""
    text: str
    """The reply as the model wrote it."""
    thinking: str = ""
    tool_call: ToolCall | None = None
    """The call that was run; None for a malformed one or a final answer."""
    observation: Observation | None = None
    usage: Usage = Usage()
    seconds: float = 0.0
    """Wall clock of the turn: the model, then the tool."""


class StopReason(StrEnum):
    """Why an execution ended."""

    ANSWERED = "answered"
    CALL_LIMIT = "call_limit"
    TIME_LIMIT = "time_limit"
    CONTEXT_LIMIT = "context_limit"
    BUDGET = "budget"
    """The question's own budget."""
    RUN_BUDGET = "run_budget"
    MODEL_FAILED = "model_failed"
    """The model was heard, and gave nothing usable: no reply, or turn after turn none that could be read."""
    UNREACHABLE = "unreachable"
    """The model could not be asked; this says nothing about what it can do."""

    @property
    def unheard(self) -> bool:
        """Whether the question was not really put: it may be asked again, and is not judged without an answer."""
        return self in (StopReason.RUN_BUDGET, StopReason.UNREACHABLE)


class Stop(Record):
    """An enum value for machines and a sentence for people."""

    reason: StopReason
    sentence: str


class Citation(Record):
    """A quote that occurs, letter for letter, in a stored observation (white space folded)."""

    passage_id: str
    title: str = ""
    quote: str
    step: int
    """The index of the step whose observation holds the quote."""
    origin: Literal["model", "found"]
    """"model": it named the passage and quoted it. "found": the harness found a sentence that holds the answer."""


class Answer(Record):
    text: str
    citations: tuple[Citation, ...] = ()


class Plan(Record):
    """A search plan, or a supplementary one."""

    text: str
    steps: tuple[str, ...] = ()
    """The numbered steps in `text`; empty if the model numbered none."""
    thinking: str = ""
    candidates: tuple[str, ...] = ()
    """Best-of-n: all plans in the order they were sampled; empty when only one was asked for."""
    chosen: int = 0
    """Index into `candidates`."""


class Trace(Record):
    """One execution: its steps and why it stopped."""

    steps: tuple[Step, ...] = ()
    stop: Stop


class Reflection(Record):
    """The Planner's look at a trace. `replan` is None when it did not answer exactly yes or no."""

    replan: bool | None
    text: str
    thinking: str = ""


class Review(Record):
    """One peer reviewer's opinion."""

    reviewer: Literal["reasoning", "sourcing", "validity"]
    score: int = Field(ge=1, le=10)
    reason: str


class Outcome(StrEnum):
    CORRECT = "correct"
    INCORRECT = "incorrect"
    NOT_ATTEMPTED = "not_attempted"
    UNJUDGED = "unjudged"


class Support(Record):
    """The trust judge's opinion of how well the observations carry the answer."""

    level: Literal["strong", "weak", "none"]
    reason: str


class Verdict(Record):
    """What a judge says of an answer."""

    outcome: Outcome
    judge: str
    """Which judge, e.g. "reference", "llm", "peer", "trust"."""
    reason: str = ""
    scores: dict[str, float] = {}
    """Measures in [0, 1], e.g. {"em": 1, "f1": 1, "sub_em": 1}."""
    reviews: tuple[Review, ...] = ()
    support: Support | None = None
    fallback: str = ""
    """Why a weaker judge stood in, if one did."""

    @property
    def correct(self) -> bool:
        return self.outcome is Outcome.CORRECT


class Attempt(Record):
    """One execution with the plan before it and the reflection after it."""

    plan: Plan | None = None
    trace: Trace
    answer: Answer | None = None
    reflection: Reflection | None = None
    verdict: Verdict | None = None


class Failure(Record):
    """Something that went wrong and did not stop the line."""

    stage: str
    error: str
    """The class of the error, e.g. "ModelUnavailable"."""
    message: str
    at: float


# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────────


class MemoryKind(StrEnum):
    WORKFLOW = "workflow"
    PLAN_PAIR = "plan_pair"


class MemoryState(StrEnum):
    """Whether a memory can be shown. Only active ones are; every other state can be undone until it is purged."""

    ACTIVE = "active"
    REPLACED = "replaced"
    """A near-duplicate took its place."""
    FORGOTTEN = "forgotten"
    """Put out of sight by a user, a quota or a rollback."""
    QUARANTINED = "quarantined"
    """Kept for a person to look at: it reads like an attempt to give orders, or somebody distrusts it."""


class Provenance(Record):
    """Where a memory comes from."""

    episode_id: str = ""
    leaned_on: tuple[str, ...] = ()
    """Ids of the memories that were shown to the episode; not empty means it was not found out unaided."""
    compressed_by: str = ""
    """The model that wrote the workflow, or "rules"."""
    origin: Literal["episode", "user", "import"] = "episode"


class Memory(Record):
    """One entry of the memory: a workflow that was tried, or a pair of plans of which one worked."""

    version: int = MEMORY_VERSION
    id: str
    scope: str = "default"
    kind: MemoryKind = MemoryKind.WORKFLOW
    question: str
    caption: str = ""
    category: str = "others"
    workflow: str = ""
    """Numbered steps `purpose (input → output)`; for a plan pair, empty."""
    plan: str = ""
    """The plan that was followed; for a plan pair, the correct one."""
    incorrect_plan: str = ""
    """For a plan pair only."""
    judgement: Literal["correct", "incorrect"]
    reviews: tuple[Review, ...] = ()
    uses: int = 1
    wins: int = 1
    """Times it was shown and the answer came out right (for a negative memory too), plus one at birth."""
    provenance: Provenance = Provenance()
    state: MemoryState = MemoryState.ACTIVE
    replaced_by: str = ""
    """The id of the memory that took its place; empty unless the state is "replaced"."""
    expires_at: float | None = None
    """From then on it is not shown any more; None: never."""
    created_at: float
    updated_at: float

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    @property
    def modality(self) -> Literal["text-only", "text-image"]:
        return "text-image" if self.caption else "text-only"


class RecalledMemory(Record):
    """A memory as it was scored for one question, stored so that "why" needs no second computation."""

    memory_id: str
    judgement: Literal["correct", "incorrect"]
    question: str
    rank: int
    """From 1, by score, within its judgement."""
    score: float
    parts: dict[str, float]
    """The score's parts, e.g. {"similarity": 0.81, "value": 0.5, "frequency": 0.7}."""
    passed_over: str = ""
    """Why it was not shown, e.g. "below the similarity floor", "skipped", "rank 3 of 2 shown"; empty if it was."""


class Recall(Record):
    """What the memory gave for a question.

    The two texts are separate, because memory helps the Planner and can hurt the Executor (paper, findings).
    """

    kind: MemoryKind = MemoryKind.WORKFLOW
    for_planner: str = ""
    for_executor: str = ""
    shown: tuple[RecalledMemory, ...] = ()
    passed_over: tuple[RecalledMemory, ...] = ()
    """The best of those that were considered and not shown."""
    considered: int = 0
    form: str = ""
    """Of the score: "mia" or "paper"; empty where another strategy recalled."""
    weights: dict[str, float] = {}
    """How much each part counted, by the part's name."""
    floor: float | None = None
    """The similarity below which nothing was shown; None: there was none."""
    wanted: int = 0
    """How many would have been shown had the bank been full; fewer shown means a cold start."""
    seconds: float = 0.0

    @property
    def cold(self) -> bool:
        return len(self.shown) < self.wanted


# ── the whole life of a question ──────────────────────────────────────────────────────────────────────────────────


class Episode(Record):
    """Everything that happened to one question, from recall to verdict. Holds no reference answer."""

    version: int = EPISODE_VERSION
    id: str
    question: Question
    """Images by hash, without their bytes."""
    run: str = ""
    """The run it belongs to; empty for a single question."""
    started_at: float
    seconds: float = 0.0
    recall: Recall | None = None
    attempts: tuple[Attempt, ...] = ()
    answer: Answer | None = None
    """The reported answer: the last attempt's, or the last one that has any."""
    withheld: bool = False
    """The caller asked that a weakly supported answer be held back; it is still in the attempts."""
    verdict: Verdict | None = None
    stop: Stop | None = None
    usage: dict[Role, Usage] = {}
    models: dict[Role, str] = {}
    """The model that each role was asked through."""
    adapters: dict[Role, str] = {}
    """The version of its weights that answered for a role, where that was not the model as it came."""
    prompts: dict[str, str] = {}
    """Prompt name → version (a hash of its text)."""
    failures: tuple[Failure, ...] = ()
    config: str = ""
    """Digest of the resolved configuration."""

    @property
    def total_usage(self) -> Usage:
        return sum(self.usage.values(), Usage())

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps of all attempts."""
        return tuple(step for attempt in self.attempts for step in attempt.trace.steps)


def new_id(prefix: str) -> str:
    """`<prefix>-<12 hex digits of time in ms><8 random hex digits>`: unique, and sorted by time."""
    return f"{prefix}-{int(time.time() * 1000):012x}{uuid.uuid4().hex[:8]}"


R = TypeVar("R", bound="Record")
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
# Every step so far added fields that have defaults: with version 2 of both, the life cycle of a memory and how a recall
# was scored; with version 3, the versions of weights that answered; with version 4, the role of the reader.
EPISODE_UPGRADES: Mapping[int, Upgrade] = {
    1: lambda content: {**content, "version": 2},
    2: lambda content: {**content, "version": 3},
    3: lambda content: {**content, "version": 4},
}
"""version → a function that turns a record of that version into one of the next."""
MEMORY_UPGRADES: Mapping[int, Upgrade] = {1: lambda content: {**content, "version": 2}}


def _load(kind: type[R], text: str | bytes, current: int, upgrades: Mapping[int, Upgrade]) -> R:
    name = kind.__name__.lower()
    try:
        content = json.loads(text)
        version = content["version"] if isinstance(content, dict) else None
    except (ValueError, KeyError):
        version = None
    if not isinstance(version, int) or version < 1:
        raise RecordError(f"this is no {name}: {_beginning(text)}", wanted="a JSON object with a field 'version'")
    if version > current:
        raise RecordError(
            f"this {name} has version {version}; this MIA knows versions up to {current}.",
            hint="install the newer MIA that wrote it",
        )
    for step in range(version, current):
        content = upgrades[step](content)
    try:
        return kind.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"this {name} of version {version} is broken at '{where}': {first['msg']}.") from error


def _beginning(text: str | bytes) -> str:
    shown = text.decode(errors="replace") if isinstance(text, bytes) else text
    return repr(re.sub(r"\s+", " ", shown)[:60])


def load_episode(text: str | bytes) -> Episode:
    """An episode from its JSON, of any version up to ours. Raises RecordError."""
    return _load(Episode, text, EPISODE_VERSION, EPISODE_UPGRADES)


def load_memory(text: str | bytes) -> Memory:
    """A memory from its JSON, of any version up to ours. Raises RecordError."""
    return _load(Memory, text, MEMORY_VERSION, MEMORY_UPGRADES)
