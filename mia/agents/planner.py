"""The Planner: writes the search plan, looks at what came of it, and writes the supplementary plan (mia.md, section 2).

One question is one conversation: question + memories → plan | trajectory → yes/no | (if yes) request → supplementary
plan. The methods are stateless over message lists: each takes the conversation so far and returns it grown, so that the
line, a service and a rollout thread it alike.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mia.agents.conversation import Messages, append_request
from mia.errors import MiaError, ModelReplyError
from mia.models.base import ChatModel, ChatReply, ChatRequest, estimate_tokens
from mia.models.ledger import Ledger
from mia.prompt import Prompt, defuse, split_thinking
from mia.transcript import TRACE_WORDS, cut_words, render_steps
from mia.types import Answer, Message, Plan, Question, Recall, Reflection, Role, Step

_SYSTEM = Prompt.beside(__file__, "planner_system")
_PLAN = Prompt.beside(__file__, "planner_plan")
_MEMORIES = Prompt.beside(__file__, "planner_memories")
_NO_MEMORIES = Prompt.beside(__file__, "planner_no_memories")
_REFLECT = Prompt.beside(__file__, "planner_reflect")
_TRAJECTORY = Prompt.beside(__file__, "planner_trajectory")
_REPLAN = Prompt.beside(__file__, "planner_replan")
_FRESH = Prompt.beside(__file__, "planner_fresh_memories")
_CHOOSE = Prompt.beside(__file__, "planner_choose")
_PAIRS = Prompt.beside(__file__, "planner_plan_pairs")

PLAN_WORDS = 400
PLAN_WORDS_WITH_IMAGE = 300
REPLAN_WORDS = 200

_NUMBERED = re.compile(r"^[ \t]*+(?:step[ \t]++)?\d++[.):][ \t]++(\S.*)$", re.MULTILINE | re.IGNORECASE)
_YES_NO = re.compile(r"[\s*_\"'`.!]*(yes|no)[\s*_\"'`.!]*", re.IGNORECASE)
_PLAN_TAG = re.compile(r"</?plan>", re.IGNORECASE)

_REQUEST_ROOM = Message(role="user", content=_REFLECT.text)
"""Stands for the request that follows a trajectory, when room is measured."""


@dataclass(frozen=True)
class Planned:
    """A plan and the conversation that it ends."""

    plan: Plan
    messages: Messages


@dataclass(frozen=True)
class Reflected:
    """A reflection and the conversation that it ends."""

    reflection: Reflection
    messages: Messages


class Planner:
    """Plans with one model; `cold_start`, if given, writes the plan while the memory cannot fill what was wanted."""

    def __init__(
        self,
        model: ChatModel,
        *,
        cold_start: ChatModel | None = None,
        best_of: int = 1,
    ) -> None:
        self._model = model
        self._cold_start = cold_start
        self._best_of = best_of

    @property
    def wants_plan_pairs(self) -> bool:
        """Whether it chooses among plans, for which it likes to see plan pairs."""
        return self._best_of > 1

    @property
    def prompts(self) -> dict[str, str]:
        """Prompt name → version."""
        used = [_SYSTEM, _PLAN, _MEMORIES, _NO_MEMORIES, _TRAJECTORY, _REFLECT, _REPLAN, _FRESH]
        if self._best_of > 1:
            used += [_CHOOSE, _PAIRS]
        return {prompt.name: prompt.version for prompt in used}

    async def plan(
        self, question: Question, recall: Recall, tools: str, ledger: Ledger, *, pairs: Recall | None = None
    ) -> Planned:
        """Write the plan, or sample several and choose. `tools`: their description.

        Raises ModelError, BudgetExceeded.
        """
        memories = _MEMORIES.fill(memories=recall.for_planner) if recall.for_planner else _NO_MEMORIES.text
        words = PLAN_WORDS_WITH_IMAGE if question.images else PLAN_WORDS
        request = _PLAN.fill(
            question=defuse(question.text),
            caption=_caption(question),
            tools=tools,
            memories=memories,
            words=str(words),
        )
        messages = (Message(role="system", content=_SYSTEM.text), Message(role="user", content=request))
        model = self._cold_start if self._cold_start is not None and recall.cold else self._model
        if self._best_of == 1:
            reply = await self._ask(model, messages, "plan", ledger)
            return Planned(_read_plan(reply.text, words), (*messages, Message(role="assistant", content=reply.text)))
        return await self._best_plan(question, model, messages, words, pairs, ledger)

    def show(self, messages: Messages, steps: Sequence[Step], answer: Answer | None) -> Messages:
        """The conversation with what the Executor did; observations are cut until it fits the model's window."""
        outcome = f"answered: {defuse(answer.text)}" if answer else "gave no answer"
        room = self._model.context_window - self._model.max_tokens - estimate_tokens((*messages, _REQUEST_ROOM))
        words = TRACE_WORDS
        while True:
            report = _TRAJECTORY.fill(trajectory=render_steps(steps, words=words), outcome=outcome)
            shown = Message(role="user", content=report)
            if words <= 16 or estimate_tokens((shown,)) <= room:
                return (*messages, shown)
            words //= 2

    async def reflect(self, messages: Messages, ledger: Ledger) -> Reflected:
        """Say whether to replan, after `show`; exactly one word is read. Raises ModelError, BudgetExceeded."""
        asked = append_request(messages, _REFLECT.text)
        reply = await self._ask(self._model, asked, "reflect", ledger)
        parts = split_thinking(reply.text)
        thinking, word = parts if parts else (reply.text, "")
        match = _YES_NO.fullmatch(word)
        replan = match.group(1).lower() == "yes" if match else None
        reflection = Reflection(replan=replan, text=reply.text, thinking=thinking)
        return Reflected(reflection, (*asked, Message(role="assistant", content=reply.text)))

    async def replan(self, messages: Messages, ledger: Ledger, *, fresh: Recall | None = None) -> Planned:
        """Write the supplementary plan, after `reflect` or straight after `show`. Raises ModelError, BudgetExceeded."""
        memories = "\n\n" + _FRESH.fill(memories=fresh.for_planner) if fresh and fresh.for_planner else ""
        request = _REPLAN.fill(memories=memories, words=str(REPLAN_WORDS))
        asked = append_request(messages, request)
        reply = await self._ask(self._model, asked, "replan", ledger)
        return Planned(_read_plan(reply.text, REPLAN_WORDS), (*asked, Message(role="assistant", content=reply.text)))

    async def _best_plan(
        self, question: Question, model: ChatModel, messages: Messages, words: int, pairs: Recall | None, ledger: Ledger
    ) -> Planned:
        """Sample plans at temperature 1 and let the model choose; on any failure of the choice, the first is taken."""
        asked = [self._ask(model, messages, "plan", ledger, temperature=1.0) for _ in range(self._best_of)]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        written: list[tuple[str, Plan]] = []
        for reply in replies:
            if isinstance(reply, ChatReply):
                try:
                    written.append((reply.text, _read_plan(reply.text, words)))
                except ModelReplyError:
                    continue
            elif not isinstance(reply, MiaError):
                raise reply
        if not written:
            raise next(
                (reply for reply in replies if isinstance(reply, MiaError)), ModelReplyError("no sample held a plan.")
            )
        chosen = await self._choose(question, [plan for _, plan in written], pairs, ledger) if len(written) > 1 else 0
        text, plan = written[chosen]
        plan = plan.evolve(candidates=tuple(plan.text for _, plan in written), chosen=chosen)
        return Planned(plan, (*messages, Message(role="assistant", content=text)))

    async def _choose(self, question: Question, plans: Sequence[Plan], pairs: Recall | None, ledger: Ledger) -> int:
        request = _CHOOSE.fill(
            question=defuse(question.text),
            caption=_caption(question),
            pairs=_PAIRS.fill(pairs=pairs.for_planner) if pairs and pairs.for_planner else "",
            plans="\n\n".join(
                f"Plan {index}:\n<plan>\n{defuse(plan.text)}\n</plan>" for index, plan in enumerate(plans)
            ),
        )
        messages = (Message(role="system", content=_SYSTEM.text), Message(role="user", content=request))
        schema = {
            "type": "object",
            "properties": {"index": {"type": "integer", "minimum": 0, "maximum": len(plans) - 1}},
            "required": ["index"],
            "additionalProperties": False,
        }
        try:
            reply = await self._ask(self._model, messages, "choose", ledger, json_schema=schema)
        except MiaError:
            return 0
        parts = split_thinking(reply.text)
        try:
            index = json.loads(parts[1] if parts else "")["index"]
        except (ValueError, TypeError, KeyError):
            return 0
        return index if type(index) is int and 0 <= index < len(plans) else 0

    async def _ask(
        self,
        model: ChatModel,
        messages: Messages,
        purpose: str,
        ledger: Ledger,
        *,
        temperature: float | None = None,
        json_schema: dict[str, object] | None = None,
    ) -> ChatReply:
        request = ChatRequest(
            messages=messages,
            role=Role.PLANNER,
            question_id=ledger.question_id,
            purpose=purpose,
            temperature=temperature,
            json_schema=json_schema,
        )
        return await ledger.complete(model, request)


def _caption(question: Question) -> str:
    return f"\n(It comes with an image that shows: {defuse(question.caption)})" if question.caption else ""


def _read_plan(text: str, words: int) -> Plan:
    """The plan in a reply, without its thinking. Raises ModelReplyError if nothing is left."""
    parts = split_thinking(text)
    if parts is None:
        raise ModelReplyError(
            "the Planner's thinking was cut off before a plan.", hint="raise models.planner.max_tokens"
        )
    thinking, rest = parts
    plan = cut_words(_PLAN_TAG.sub("", rest).strip(), words)
    if not plan:
        raise ModelReplyError("the Planner wrote no plan.")
    return Plan(text=plan, steps=tuple(step.strip() for step in _NUMBERED.findall(plan)), thinking=thinking)
