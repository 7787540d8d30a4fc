"""From a trajectory to a workflow: numbered steps `purpose (input → output)`, the key queries kept.

A workflow says which path was tried and what it found, whether the answer was judged right or wrong; it never says
what the right answer would have been, for nobody here is told. The Manager's model writes it where there is one, under
validation: what it writes is stored only if it is a workflow. Otherwise the rules write it, which need no model and
give the same text for the same trajectory; so a finished question always leaves something to remember.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mia.errors import BudgetExceeded, ContextOverflow, ModelError
from mia.memory import guard
from mia.models.base import ChatModel, ChatReply, ChatRequest, estimate_tokens
from mia.models.ledger import Ledger
from mia.prompt import Prompt, PromptSet, PromptStyle, defuse, split_thinking
from mia.transcript import WORKFLOW_WORDS, cut_words, render_attempts
from mia.types import Attempt, Episode, Message, Observation, Question, Role, ToolCall


@dataclass(frozen=True)
class _Prompts(PromptSet):
    compress: Prompt
    compress_again: Prompt
    categorise: Prompt


_PROMPTS = _Prompts.beside(__file__)

CATEGORIES = (
    "location",
    "human",
    "time",
    "career",
    "process",
    "definition",
    "event",
    "function",
    "property",
    "others",
)
"""What a question may ask for."""
OTHERS = "others"
"""The category that stands for unknown too."""
WORDS = 300
"""Asked for."""
MOST_WORDS = 400
"""Accepted."""
RULES = "rules"
"""The name of the compressor that needs no model, in `Provenance.compressed_by`."""

_STEP = re.compile(r"^[ \t]*[*_]{0,2}\d+[.)][*_]{0,2}[ \t]+\S", re.MULTILINE)


@dataclass(frozen=True)
class Compressed:
    """A workflow and who wrote it: a model's name, or "rules"."""

    workflow: str
    by: str
    error: str = ""
    """Why rules wrote it although there is a model."""
    hopeless: bool = False
    """That model can never write it: the episode is too long for its window."""


@dataclass(frozen=True)
class Category:
    """One of `CATEGORIES`."""

    name: str
    error: str = ""
    """Why it is "others" although there is a model that was to name it."""
    hopeless: bool = False
    """That model can never name it: the question is too long for its window."""


class Compressor:
    """Writes workflows and names categories, by a model where there is one; a model that fails never stops it."""

    def __init__(
        self, model: ChatModel | None = None, *, categories: bool = False, style: PromptStyle = "full"
    ) -> None:
        self._model = model
        self._categories = categories
        self._prompts = _PROMPTS.styled(style)

    @property
    def has_model(self) -> bool:
        return self._model is not None

    @property
    def prompts(self) -> dict[str, str]:
        """Prompt name → version."""
        if self._model is None:
            return {}
        our = self._prompts
        used = [our.compress, our.compress_again]
        if self._categories:
            used.append(our.categorise)
        return {prompt.name: prompt.version for prompt in used}

    async def compress(self, episode: Episode, ledger: Ledger) -> Compressed:
        """The workflow of an episode's attempts."""
        if self._model is not None:
            hopeless = False
            try:
                workflow, error = await self._ask_for_workflow(self._model, episode, ledger)
            except (ModelError, BudgetExceeded) as failure:
                workflow, error, hopeless = "", failure.got, isinstance(failure, ContextOverflow)
            if workflow:
                return Compressed(workflow, self._model.name)
            return Compressed(compress_by_rules(episode), RULES, error, hopeless)
        return Compressed(compress_by_rules(episode), RULES)

    async def categorise(self, question: Question, ledger: Ledger) -> Category:
        """One of `CATEGORIES`: "others" where categories are off, no model is there, or it says nothing usable."""
        if self._model is None or not self._categories:
            return Category(OTHERS)
        request = self._prompts.categorise.fill(
            question=_question(question), caption=_caption(question), categories=", ".join(CATEGORIES)
        )
        schema = {
            "type": "object",
            "properties": {"category": {"type": "string", "enum": list(CATEGORIES)}},
            "required": ["category"],
            "additionalProperties": False,
        }
        messages = (Message(role="user", content=request),)
        try:
            reply = await self._ask(self._model, messages, "categorise", ledger, json_schema=schema)
            category = json.loads(_said(reply.text))["category"]
        except (ModelError, BudgetExceeded) as failure:
            return Category(OTHERS, failure.got, isinstance(failure, ContextOverflow))
        except (ValueError, TypeError, KeyError):
            category = None
        return Category(category) if category in CATEGORIES else Category(OTHERS, "the model named no category")

    async def _ask_for_workflow(self, model: ChatModel, episode: Episode, ledger: Ledger) -> tuple[str, str]:
        """A workflow that holds, or nothing after two tries, and why. Raises ModelError, BudgetExceeded."""
        request, problem = _fitting_request(self._prompts.compress, model, episode), ""
        messages: tuple[Message, ...] = (Message(role="user", content=request),)
        for _ in range(2):
            reply = await self._ask(model, messages, "compress", ledger)
            workflow = read_workflow(reply.text)
            problem = "it was cut off" if reply.finish_reason == "length" else problem_with(workflow)
            if not problem:
                return workflow, ""
            again = self._prompts.compress_again.fill(problem=problem, words=str(WORDS))
            messages = (
                *messages,
                Message(role="assistant", content=reply.text),
                Message(role="user", content=again),
            )
        return "", f"what the model wrote is no workflow: {problem}"

    async def _ask(
        self,
        model: ChatModel,
        messages: tuple[Message, ...],
        purpose: str,
        ledger: Ledger,
        json_schema: dict[str, object] | None = None,
    ) -> ChatReply:
        request = ChatRequest(
            messages=messages,
            role=Role.MANAGER,
            question_id=ledger.question_id,
            purpose=purpose,
            json_schema=json_schema,
        )
        return await ledger.complete(model, request)


def read_workflow(text: str) -> str:
    """The numbered steps in a reply: thinking, introduction and code fence left out; empty if there are none."""
    text = _said(text)
    first = _STEP.search(text)
    return text[first.start() :].strip().removesuffix("```").strip() if first else ""


def _said(text: str) -> str:
    """What follows the thinking; nothing if the thinking never ended."""
    parts = split_thinking(text)
    return parts[1] if parts else ""


def problem_with(workflow: str) -> str:
    """Why a text is no workflow, as the end of a sentence; empty if it is one."""
    if not workflow:
        return "it holds no numbered steps"
    if cut_words(workflow, MOST_WORDS) != workflow:
        return f"it has more than {MOST_WORDS} words"
    if guard.trouble(workflow):
        return "it holds an error message or an apology"
    if guard.copies(workflow, _PROMPTS.compress.text):
        return "it repeats the request"
    return ""


def compress_by_rules(episode: Episode) -> str:
    """The workflow that needs no model: what was called with what, and the titles of what came back."""
    lines: list[str] = []
    for number, attempt in enumerate(episode.attempts):
        if number and attempt.plan is not None:
            lines.append(f"revise the plan (what was missing → {_brief(attempt.plan.text, 30)})")
        lines += _calls(attempt)
        if attempt.answer is not None:
            lines.append(f'answer (what was found → "{_brief(attempt.answer.text, 30)}")')
    if not lines or not lines[-1].startswith("answer ("):
        lines.append("give up (what was found → no answer)")
    return "\n".join(f"{number}. {line}" for number, line in enumerate(_within_limit(lines), start=1))


def _calls(attempt: Attempt) -> Iterator[str]:
    """A line for each call of an attempt; the same call twice is told once."""
    told: set[str] = set()
    for step in attempt.trace.steps:
        if step.tool_call is None:
            continue
        line = f"{_purpose(step.tool_call)} → {_outcome(step.observation)})"
        if line not in told:
            told.add(line)
            yield line


def _purpose(call: ToolCall) -> str:
    """`purpose (input`, with every query."""
    given = [value for value in call.arguments.values() if value not in ("", None, [])]
    flat = [str(item) for value in given for item in (value if isinstance(value, list) else [value])]
    wanted = "; ".join(f'"{_brief(item, 30)}"' for item in flat)
    return f"{'search' if call.name == 'search' else f'use {_brief(call.name, 5)}'} ({wanted}"


def _outcome(observation: Observation | None) -> str:
    if observation is None:
        return "nothing came back"
    if not observation.ok:
        # The kind alone: what a tool or an endpoint wrote about its failure is nothing to remember.
        return f"failed: {observation.error or 'error'}"
    names = dict.fromkeys(_brief(found.title or found.text, 12) for found in observation.passages)
    if names:
        return ", ".join(f'"{name}"' for name in list(names)[:4])
    return _brief(observation.text, 25) or "nothing found"


def _within_limit(lines: list[str]) -> list[str]:
    """The lines that fit in the word limit: the first ones and the last, which holds the answer."""
    *path, last = lines
    while path and cut_words(" ".join([*path, last]), WORDS - len(lines)) != " ".join([*path, last]):
        path.pop()
    return [*path, last]


def _fitting_request(prompt: Prompt, model: ChatModel, episode: Episode) -> str:
    """The request; observations are cut harder until it fits the model's window."""
    room = model.context_window - model.max_tokens
    words = WORKFLOW_WORDS
    while True:
        request = prompt.fill(
            words=str(WORDS),
            question=_question(episode.question),
            caption=_caption(episode.question),
            trajectory=render_attempts(episode.attempts, words=words),
        )
        if words <= 16 or estimate_tokens((Message(role="user", content=request),)) <= room:
            return request
        words //= 2


def _question(question: Question) -> str:
    return defuse(cut_words(question.text, 1000))


def _caption(question: Question) -> str:
    return f"The question comes with an image: {defuse(question.caption)}\n" if question.caption else ""


def _brief(text: str, words: int) -> str:
    """A text on one line, cut."""
    folded = " ".join(text.split())
    cut = cut_words(folded, words)
    return cut if cut == folded else f"{cut.rpartition(' … [')[0]} …"
