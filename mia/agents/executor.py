"""The Executor: follows a plan in a ReAct loop, one tool call a turn, until it answers (mia.md, section 2).

It is stateless over message lists: `execute` begins a conversation, `resume` goes on with one after a replan, and both
return all that the next call needs. Whatever the model writes wrongly and whatever fails around it becomes an
observation, or the reason why the execution stopped; only bugs raise.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

from mia.agents.citations import cite
from mia.agents.conversation import Messages, append_request
from mia.agents.protocol import STOP, Reply, read_final_reply, read_reply
from mia.config import ExecutorSettings
from mia.errors import (
    BudgetExceeded,
    ContextOverflow,
    MiaError,
    ModelError,
    ModelRefused,
    ModelUnavailable,
    RealCallForbidden,
)
from mia.events import StepFinished
from mia.models.base import ChatModel, ChatReply, ChatRequest, estimate_tokens
from mia.models.ledger import Ledger
from mia.prompt import Prompt, PromptSet, PromptStyle, defuse, split_thinking
from mia.tools.base import BadArguments, Tool, ToolContext
from mia.types import (
    Answer,
    Message,
    Observation,
    Plan,
    Question,
    Role,
    Step,
    Stop,
    StopReason,
    ToolCall,
    Trace,
)


@dataclass(frozen=True)
class _Prompts(PromptSet):
    text: Prompt
    native: Prompt
    task: Prompt
    plan: Prompt
    memories: Prompt
    resume: Prompt
    answer_now: Prompt


_PROMPTS = _Prompts.beside(__file__, "executor_")

_WHY_NOW = {
    StopReason.CALL_LIMIT: "This is your last turn.",
    # Its turns could not be read; what was wrong with each it has been told.
    StopReason.MODEL_FAILED: "This is your last turn.",
    StopReason.TIME_LIMIT: "The time for this question is up.",
    StopReason.CONTEXT_LIMIT: "There is no room for more results.",
}


@dataclass(frozen=True)
class Execution:
    """A conversation of the Executor, and what the latest execution in it brought."""

    question: Question
    messages: Messages
    """The whole conversation; `resume` goes on from here."""
    steps: tuple[Step, ...] = ()
    """The steps of both executions."""
    first_step: int = 0
    """Where the latest execution begins in `steps`."""
    calls: int = 0
    """Model calls made, over both executions."""
    seconds: float = 0.0
    """Wall clock used, over both executions."""
    stop: Stop = field(default_factory=lambda: Stop(reason=StopReason.CALL_LIMIT, sentence="No call was made."))
    answer: Answer | None = None
    failure: MiaError | None = None
    """Why it could not go on, when the stop was not its own doing."""

    @property
    def trace(self) -> Trace:
        """The latest execution alone."""
        return Trace(steps=self.steps[self.first_step :], stop=self.stop)


class Executor:
    """Runs the loop with one model and a set of tools. Safe to use for many questions at once."""

    def __init__(
        self,
        model: ChatModel,
        tools: Sequence[Tool],
        settings: ExecutorSettings,
        *,
        native: bool = False,
        style: PromptStyle = "full",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tools = {tool.schema.name: tool for tool in tools}
        self.model = model
        self._settings = settings
        self._native = native
        self._prompts = _PROMPTS.styled(style)
        self._clock = clock
        self._schemas = tuple(tool.schema for tool in tools)
        system = self._prompts.native.text if native else self._prompts.text.fill(tools=self.describe_tools())
        self._system = Message(role="system", content=system)
        self._window = min(model.context_window - model.max_tokens, settings.max_context_tokens)

    def asking(self, model: ChatModel) -> Executor:
        """The same Executor, asking another model of the same kind, e.g. one that records."""
        other = copy(self)
        other.model = model
        return other

    @property
    def prompts(self) -> dict[str, str]:
        """Prompt name → version."""
        our = self._prompts
        system = our.native if self._native else our.text
        used = (system, our.task, our.plan, our.memories, our.resume, our.answer_now)
        return {prompt.name: prompt.version for prompt in used}

    def describe_tools(self) -> str:
        """The tools, one JSON object a line, as a prompt shows them."""
        return "\n".join(
            json.dumps(
                {"name": schema.name, "description": schema.description, "parameters": schema.parameters},
                ensure_ascii=False,
            )
            for schema in self._schemas
        )

    async def execute(self, question: Question, plan: Plan | None, memories: str, ledger: Ledger) -> Execution:
        """Begin: the question with its plan, or where there is no plan with memories, fenced (both may be missing)."""
        return await self._loop(Execution(question=question, messages=self.open(question, plan, memories)), ledger)

    def open(self, question: Question, plan: Plan | None, memories: str = "") -> Messages:
        """What it reads before its first turn; the arguments are those of `execute`."""
        guidance = ""
        if plan is not None:
            guidance = "\n" + self._prompts.plan.fill(plan=defuse(plan.text))
        elif memories:
            guidance = "\n" + self._prompts.memories.fill(memories=memories)
        task = self._prompts.task.fill(question=defuse(question.text), guidance=guidance).strip()
        return (self._system, Message(role="user", content=task, images=question.images))

    def can_resume(self, execution: Execution, ledger: Ledger) -> bool:
        """Whether calls and time are left for another tool call and an answer."""
        calls_left = self._settings.max_calls - execution.calls
        if ledger.calls_left is not None:
            calls_left = min(calls_left, ledger.calls_left)
        return calls_left >= 2 and execution.seconds < self._settings.max_seconds

    async def resume(self, execution: Execution, plan: Plan, ledger: Ledger) -> Execution:
        """Go on with the conversation under a supplementary plan; the last answer is cut from it."""
        messages = list(execution.messages)
        if messages and messages[-1].role == "assistant" and "<answer>" in messages[-1].content:
            kept = messages[-1].content.partition("<answer>")[0].rstrip()
            messages[-1] = messages[-1].evolve(content=kept or "(the answer was taken back)")
        begun = replace(
            execution,
            messages=append_request(tuple(messages), self._prompts.resume.fill(plan=defuse(plan.text))),
            first_step=len(execution.steps),
            answer=None,
            failure=None,
        )
        return await self._loop(begun, ledger)

    async def _loop(self, execution: Execution, ledger: Ledger) -> Execution:
        faults, overflowed = 0, False
        while True:
            begun = self._clock()
            limit = StopReason.CONTEXT_LIMIT if overflowed else self._limit(execution, faults, ledger)
            asked = self._ask_for_answer(execution, limit) if limit else execution
            left = None if limit else max(0.0, self._settings.max_seconds - execution.seconds)
            try:
                async with asyncio.timeout(left) as deadline:
                    reply = await self._complete(asked.messages, ledger)
            except TimeoutError:
                if not deadline.expired():
                    raise
                # The time is up in the middle of a call: it counts, and the next one asks for the answer.
                spent = max(self._settings.max_seconds, execution.seconds + self._clock() - begun)
                execution = replace(execution, calls=execution.calls + 1, seconds=spent)
                continue
            except ContextOverflow as error:
                # Our estimate was too low: make room, and ask for the answer.
                shorter = self._shorten(execution)
                if shorter is execution:
                    return self._failed(execution, StopReason.CONTEXT_LIMIT, error, begun)
                execution = replace(shorter, seconds=execution.seconds + self._clock() - begun)
                overflowed = True
                continue
            except (ModelError, BudgetExceeded) as error:
                return self._failed(asked, _reason(error), error, begun)
            execution, read = await self._take_turn(asked, reply, ledger, begun, final=limit is not None)
            if read.answer is not None or limit is not None:
                return self._finished(execution, read, limit)
            faults = faults + 1 if read.fault else 0

    def _limit(self, execution: Execution, faults: int, ledger: Ledger) -> StopReason | None:
        """The limit that makes the next call the last one, if any; of unreadable turns, that the model failed."""
        calls_left = self._settings.max_calls - execution.calls
        if ledger.calls_left is not None:
            calls_left = min(calls_left, ledger.calls_left)
        if calls_left <= 1:
            return StopReason.CALL_LIMIT
        if faults > self._settings.protocol_retries:
            return StopReason.MODEL_FAILED
        if execution.seconds >= self._settings.max_seconds:
            return StopReason.TIME_LIMIT
        if estimate_tokens(execution.messages) >= self._window:
            return StopReason.CONTEXT_LIMIT
        return None

    def _ask_for_answer(self, execution: Execution, limit: StopReason) -> Execution:
        request = self._prompts.answer_now.fill(reason=_WHY_NOW[limit])
        while estimate_tokens(append_request(execution.messages, request)) > self._window:
            shorter = self._shorten(execution)
            if shorter is execution:
                break
            execution = shorter
        return replace(execution, messages=append_request(execution.messages, request))

    def _shorten(self, execution: Execution) -> Execution:
        """Drop the text of the largest observation from the conversation (never from the record).

        Returns the very same execution when there is nothing left to drop.
        """
        dropped = "(this result was left out: no room)"
        candidates = [
            (len(message.content), index)
            for index, message in enumerate(execution.messages)
            if (message.role == "tool" or message.content.startswith("<tool_response>"))
            and len(message.content) > len(_fence(dropped))
        ]
        if not candidates:
            return execution
        index = max(candidates)[1]
        messages = list(execution.messages)
        old = messages[index]
        messages[index] = old.evolve(content=dropped if old.role == "tool" else _fence(dropped))
        return replace(execution, messages=tuple(messages))

    async def _complete(self, messages: Messages, ledger: Ledger) -> ChatReply:
        return await ledger.complete(
            self.model,
            ChatRequest(
                messages=messages,
                role=Role.EXECUTOR,
                question_id=ledger.question_id,
                purpose="execute",
                tools=self._schemas if self._native else (),
                stop=() if self._native else STOP,
            ),
        )

    async def _take_turn(
        self, execution: Execution, reply: ChatReply, ledger: Ledger, begun: float, *, final: bool
    ) -> tuple[Execution, Reply]:
        """Record one reply, run the call in it, and append both to the conversation."""
        # Half a character can be neither sent nor stored.
        text = reply.text.encode("utf-8", "replace").decode().partition(STOP[0])[0].rstrip()
        read_text = read_final_reply if final else read_reply
        read = _read_native(text, reply, read_text) if self._native else read_text(text)
        if reply.finish_reason == "length" and read.answer is None:
            read = Reply(read.thinking, fault=f"Your turn was cut off at {self.model.max_tokens} tokens. Be brief.")
        observation: Observation | None = None
        if read.fault:
            observation = Observation(text=read.fault, ok=False, error="malformed")
        elif read.call is not None and not final:
            observation = await self._run_tool(read.call, execution, ledger)
        seconds = self._clock() - begun
        step = Step(
            index=len(execution.steps),
            text=text or reply.malformed_call,
            thinking=reply.thinking or read.thinking,
            tool_call=read.call if not final else None,
            observation=observation if not final else None,
            usage=reply.usage,
            seconds=seconds,
        )
        ledger.on_event(StepFinished(question_id=ledger.question_id, step=step))
        grown = replace(
            execution,
            messages=(*execution.messages, *self._turn_messages(reply, text, read, step.observation)),
            steps=(*execution.steps, step),
            calls=execution.calls + 1,
            seconds=execution.seconds + seconds,
        )
        return grown, read

    def _turn_messages(self, reply: ChatReply, text: str, read: Reply, observation: Observation | None) -> Messages:
        assistant = Message(role="assistant", content=text or reply.malformed_call, tool_calls=reply.tool_calls)
        if observation is None:
            # An answer; or a call made when only an answer was asked for, which no result will follow.
            return (assistant.evolve(tool_calls=(), content=assistant.content or "(nothing)"),)
        if reply.tool_calls:
            return (
                assistant,
                *(Message(role="tool", content=observation.text, tool_call_id=call.id) for call in reply.tool_calls),
            )
        return (assistant, Message(role="user", content=_fence(observation.text)))

    async def _run_tool(self, call: ToolCall, execution: Execution, ledger: Ledger) -> Observation:
        tool = self.tools.get(call.name)
        if tool is None:
            known = ", ".join(self.tools) or "none"
            return Observation(
                text=f"There is no tool '{defuse(call.name)}'. The tools are: {known}.", ok=False, error="unknown_tool"
            )
        context = ToolContext(question=execution.question, steps=execution.steps, ledger=ledger)
        left = max(1.0, self._settings.max_seconds - execution.seconds)
        try:
            async with asyncio.timeout(left) as deadline:
                observation = await tool.call(call.arguments, context)
        except BadArguments as error:
            return Observation(text=defuse(str(error)), ok=False, error="bad_arguments")
        except TimeoutError:
            if not deadline.expired():
                raise
            return Observation(text=f"{call.name} took longer than {left:.0f} seconds.", ok=False, error="tool_failed")
        except MiaError as error:
            return Observation(text=f"{call.name} failed: {defuse(error.got)}", ok=False, error="tool_failed")
        return observation.evolve(
            text=defuse(observation.text),
            passages=tuple(
                passage.evolve(title=defuse(passage.title), text=defuse(passage.text))
                for passage in observation.passages
            ),
        )

    def _finished(self, execution: Execution, read: Reply, limit: StopReason | None) -> Execution:
        answer = None
        if read.answer is not None:
            text = defuse(read.answer)
            citations = cite(execution.question.text, text, read.evidence, execution.steps)
            answer = Answer(text=text, citations=citations)
        if limit is None:
            stop = Stop(reason=StopReason.ANSWERED, sentence="The Executor gave its answer.")
        else:
            what = "it answered from what it had" if answer else "it gave no answer"
            # A model that answered in the end gave something usable.
            reason = StopReason.ANSWERED if answer and limit is StopReason.MODEL_FAILED else limit
            stop = Stop(reason=reason, sentence=f"{self._limit_sentence(limit, execution)}; asked to answer, {what}.")
        return replace(execution, stop=stop, answer=answer)

    def _limit_sentence(self, limit: StopReason, execution: Execution) -> str:
        if limit is StopReason.TIME_LIMIT:
            return f"{execution.seconds:.0f} of {self._settings.max_seconds:.0f} seconds were used"
        if limit is StopReason.CONTEXT_LIMIT:
            return f"the conversation reached the window of {self._window} tokens"
        if limit is StopReason.MODEL_FAILED:
            turns = self._settings.protocol_retries + 1
            return f"{turns} turns in a row could be read neither as a tool call nor as an answer"
        if execution.calls < self._settings.max_calls:
            return f"{execution.calls} calls were made, and no more were allowed"
        return f"{execution.calls} of {self._settings.max_calls} calls were used"

    def _failed(self, execution: Execution, reason: StopReason, error: MiaError, begun: float) -> Execution:
        seconds = execution.seconds + self._clock() - begun
        return replace(execution, stop=Stop(reason=reason, sentence=error.got), failure=error, seconds=seconds)


def _reason(error: MiaError) -> StopReason:
    if isinstance(error, BudgetExceeded):
        return StopReason.BUDGET if error.scope == "question" else StopReason.RUN_BUDGET
    if isinstance(error, ModelUnavailable | ModelRefused | RealCallForbidden):
        return StopReason.UNREACHABLE
    return StopReason.MODEL_FAILED


def _fence(text: str) -> str:
    return f"<tool_response>\n{text}\n</tool_response>"


def _read_native(text: str, reply: ChatReply, read_text: Callable[[str], Reply]) -> Reply:
    """A reply over native function calling, under the same rules as the text protocol."""
    if reply.malformed_call:
        fault = "The arguments of your tool call are no JSON object. Make the call again with a valid one."
        return Reply(thinking=text, fault=fault)
    if len(reply.tool_calls) > 1:
        fault = (
            f"You made {len(reply.tool_calls)} tool calls in one turn; none was run. Make one, and wait for its result."
        )
        return Reply(thinking=text, fault=fault)
    if reply.tool_calls:
        parts = split_thinking(text)
        return Reply(thinking="\n".join(parts).strip() if parts else text, call=reply.tool_calls[0])
    read = read_text(text)
    if read.answer is None:
        fault = "Your turn held neither a tool call nor an answer. Call a tool, or write <answer>…</answer>."
        return Reply(thinking=read.thinking, fault=fault)
    return read
