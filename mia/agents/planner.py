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
from copy import copy
from dataclasses import dataclass

from mia.agents.conversation import Messages, append_request
from mia.errors import MiaError, ModelReplyError
from mia.models.base import ChatModel, ChatReply, ChatRequest, estimate_tokens
from mia.models.ledger import Ledger
from mia.prompt import Prompt, PromptSet, PromptStyle, defuse, split_thinking
from mia.transcript import TRACE_WORDS, cut_words, render_steps
from mia.types import Answer, Message, Plan, Question, Recall, Reflection, Role, Step

PLAN_WORDS = 400
PLAN_WORDS_WITH_IMAGE = 300
REPLAN_WORDS = 200

_NUMBERED = re.compile(r"^[ \t]*+(?:step[ \t]++)?\d++[.):][ \t]++(\S.*)$", re.MULTILINE | re.IGNORECASE)
_YES_NO = re.compile(r"[\s*_\"'`.!]*(yes|no)[\s*_\"'`.!]*", re.IGNORECASE)
_PLAN_TAG = re.compile(r"</?plan>", re.IGNORECASE)


@dataclass(frozen=True)
class _Prompts(PromptSet):
    system: Prompt
    plan: Prompt
    memories: Prompt
    no_memories: Prompt
    trajectory: Prompt
    reflect: Prompt
    replan: Prompt
    fresh_memories: Prompt
    choose: Prompt
    plan_pairs: Prompt


_PROMPTS = _Prompts.beside(__file__, "planner_")


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
    """Plans with one model; `cold_start`, if given, writes the plan while the memory cannot fill what was wanted.

    Each of the two is asked in its own style. The conversation that a plan ends is in the style of the one model that
    goes on with it, whoever wrote the plan.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        cold_start: ChatModel | None = None,
        best_of: int = 1,
        style: PromptStyle = "full",
        cold_start_style: PromptStyle = "full",
    ) -> None:
        self._model = model
        self._cold_start = cold_start
        self._best_of = best_of
        self._prompts = _PROMPTS.styled(style)
        self._cold_start_prompts = _PROMPTS.styled(cold_start_style)
        # Stands for the request that follows a trajectory, when room is measured.
        self._request_room = Message(role="user", content=self._prompts.reflect.text)

    def asking(self, model: ChatModel) -> Planner:
        """The same Planner, asking another model of the same kind, e.g. one that records."""
        other = copy(self)
        other._model = model
        return other

    def sampling(self, plans: int) -> Planner:
        """The same Planner, which samples at least so many plans and chooses among them."""
        other = copy(self)
        other._best_of = max(plans, self._best_of)
        return other

    @property
    def wants_plan_pairs(self) -> bool:
        """Whether it chooses among plans, for which it likes to see plan pairs."""
        return self._best_of > 1

    @property
    def prompts(self) -> dict[str, str]:
        """Prompt name → version."""
        our = self._prompts
        used = [*_opening_prompts(our), our.trajectory, our.reflect, our.replan, our.fresh_memories]
        if self._best_of > 1:
            used += [our.choose, our.plan_pairs]
        if self._cold_start is not None:
            used += _opening_prompts(self._cold_start_prompts)
        return {prompt.name: prompt.version for prompt in used}

    async def plan(
        self, question: Question, recall: Recall, tools: str, ledger: Ledger, *, pairs: Recall | None = None
    ) -> Planned:
        """Write the plan, or sample several and choose. `tools`: their description.

        Raises ModelError, BudgetExceeded.
        """
        words = _plan_words(question)
        opening = self.open(question, recall, tools)
        model, asked = self._model, opening
        if self._cold_start is not None and recall.cold:
            model, asked = self._cold_start, _open(self._cold_start_prompts, question, recall, tools, words)
        if self._best_of == 1:
            reply = await self._ask(model, asked, "plan", ledger)
            text, plan = reply.text, _read_plan(reply.text, words)
        else:
            text, plan = await self._best_plan(question, model, asked, words, pairs, ledger)
        return Planned(plan, (*opening, Message(role="assistant", content=text)))

    def open(self, question: Question, recall: Recall, tools: str) -> Messages:
        """The conversation up to the request for a plan, as it is gone on with; the arguments are those of `plan`."""
        return _open(self._prompts, question, recall, tools, _plan_words(question))

    def show(self, messages: Messages, steps: Sequence[Step], answer: Answer | None) -> Messages:
        """The conversation with what the Executor did; observations are cut until it fits the model's window."""
        outcome = f"answered: {defuse(answer.text)}" if answer else "gave no answer"
        room = self._model.context_window - self._model.max_tokens - estimate_tokens((*messages, self._request_room))
        words = TRACE_WORDS
        while True:
            report = self._prompts.trajectory.fill(trajectory=render_steps(steps, words=words), outcome=outcome)
            shown = Message(role="user", content=report)
            if words <= 16 or estimate_tokens((shown,)) <= room:
                return (*messages, shown)
            words //= 2

    def reflection_request(self, steps: Sequence[Step], answer: Answer | None) -> str:
        """What `show` and `reflect` ask of it, as one text: for who asks a Planner of his own."""
        (shown,) = self.show((), steps, answer)
        return f"{shown.content}\n\n{self._prompts.reflect.text}"

    async def reflect(self, messages: Messages, ledger: Ledger) -> Reflected:
        """Say whether to replan, after `show`; exactly one word is read. Raises ModelError, BudgetExceeded."""
        asked = append_request(messages, self._prompts.reflect.text)
        reply = await self._ask(self._model, asked, "reflect", ledger)
        parts = split_thinking(reply.text)
        thinking, word = parts if parts else (reply.text, "")
        match = _YES_NO.fullmatch(word)
        replan = match.group(1).lower() == "yes" if match else None
        reflection = Reflection(replan=replan, text=reply.text, thinking=thinking)
        return Reflected(reflection, (*asked, Message(role="assistant", content=reply.text)))

    async def replan(self, messages: Messages, ledger: Ledger, *, fresh: Recall | None = None) -> Planned:
        """Write the supplementary plan, after `reflect` or straight after `show`. Raises ModelError, BudgetExceeded."""
        memories = ""
        if fresh and fresh.for_planner:
            memories = "\n\n" + self._prompts.fresh_memories.fill(memories=fresh.for_planner)
        request = self._prompts.replan.fill(memories=memories, words=str(REPLAN_WORDS))
        asked = append_request(messages, request)
        reply = await self._ask(self._model, asked, "replan", ledger)
        return Planned(_read_plan(reply.text, REPLAN_WORDS), (*asked, Message(role="assistant", content=reply.text)))

    async def choose(self, question: Question, plans: Sequence[Plan], pairs: Recall | None, ledger: Ledger) -> int:
        """The index of the plan that the model thinks best, shown plan pairs of similar questions; 0 on any failure."""
        request = self._prompts.choose.fill(
            question=defuse(question.text),
            caption=_caption(question),
            pairs=self._prompts.plan_pairs.fill(pairs=pairs.for_planner) if pairs and pairs.for_planner else "",
            plans="\n\n".join(
                f"Plan {index}:\n<plan>\n{defuse(plan.text)}\n</plan>" for index, plan in enumerate(plans)
            ),
        )
        messages = (Message(role="system", content=self._prompts.system.text), Message(role="user", content=request))
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

    async def _best_plan(
        self, question: Question, model: ChatModel, messages: Messages, words: int, pairs: Recall | None, ledger: Ledger
    ) -> tuple[str, Plan]:
        """Sample plans at temperature 1 and let the model choose; on any failure of the choice, the first is taken.

        Returns the reply that was chosen, and the plan in it.
        """
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
        chosen = await self.choose(question, [plan for _, plan in written], pairs, ledger) if len(written) > 1 else 0
        text, plan = written[chosen]
        return text, plan.evolve(candidates=tuple(plan.text for _, plan in written), chosen=chosen)

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


def _opening_prompts(prompts: _Prompts) -> list[Prompt]:
    """Those that `_open` writes with."""
    return [prompts.system, prompts.plan, prompts.memories, prompts.no_memories]


def _open(prompts: _Prompts, question: Question, recall: Recall, tools: str, words: int) -> Messages:
    """The conversation up to the request for a plan."""
    known = prompts.memories.fill(memories=recall.for_planner) if recall.for_planner else prompts.no_memories.text
    request = prompts.plan.fill(
        question=defuse(question.text), caption=_caption(question), tools=tools, memories=known, words=str(words)
    )
    return (Message(role="system", content=prompts.system.text), Message(role="user", content=request))


def _plan_words(question: Question) -> int:
    return PLAN_WORDS_WITH_IMAGE if question.images else PLAN_WORDS


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
