"""What the model learns from is what the line asks, and what the teacher says to it."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import Any

from mia.agents.executor import Executor
from mia.agents.protocol import read_reply
from mia.config import ExecutorSettings
from mia.learn.warmup.dialogues import PASSAGES, STYLE, Dialogue, dialogues
from mia.models.base import ChatReply, ChatRequest, estimate_usage
from mia.models.ledger import Ledger
from mia.prompt import Prompt
from mia.tools.search import SearchTool
from mia.types import Message, Plan, Question, Role
from mia.world.engine import WorldEngine
from mia.world.facts import World
from mia.world.language import SOURCES, read_plan, read_workflow
from mia.world.teacher import Teacher

WORLD = World.make(3)


class Guesses(random.Random):
    """Chance that picks what it was told."""

    def __init__(self, picks: Sequence[str], *, methodical: bool) -> None:
        super().__init__()
        self.picks = list(picks)
        self._methodical = methodical

    def random(self) -> float:
        return 0.0 if self._methodical else 1.0

    def choice(self, options: Sequence[Any]) -> Any:
        if not self.picks:
            # A guess that is not said: the Executor looks for its next step even when it is told to answer.
            return options[0]
        pick = self.picks.pop(0)
        if pick not in options:
            raise LookupError
        return pick


def purpose(role: Role, text: str) -> str:
    """What a prompt asks for, by its words."""
    if role is Role.PLANNER:
        return "reflect" if text.endswith("replan ?") else "replan" if text == "replan" else "plan"
    if role is Role.JUDGE:
        first = text.partition("\n")[0]
        return first.replace(" ", "_")
    return "compress" if role is Role.MANAGER else "execute"


def possible(role: Role, messages: tuple[Message, ...], said: str) -> bool:
    """Whether the teacher may have said this: for some of the sources in it as guesses, it says exactly this."""
    request = ChatRequest(messages=messages, role=role, purpose=purpose(role, messages[-1].content), question_id="")
    sources = re.findall("|".join(SOURCES), said) if role in (Role.PLANNER, Role.EXECUTOR) else []
    for count in range(len(sources) + 1):
        for picks, methodical in product(combinations(sources, count), (True, False)):
            chance = Guesses(picks, methodical=methodical)
            try:
                if Teacher(chance).reply(request) == said and not chance.picks:
                    return True
            except LookupError:
                continue
    return False


def turns(taught: list[Dialogue]) -> Iterator[tuple[Role, tuple[Message, ...], str]]:
    """Each learned turn with what stood before it."""
    for dialogue in taught:
        for number, turn in enumerate(dialogue.turns):
            if turn.learned:
                yield dialogue.role, tuple(one.message for one in dialogue.turns[:number]), turn.message.content


def test_every_learned_turn_is_the_teachers_reply_to_what_stands_before_it(taught: list[Dialogue]) -> None:
    counted: Counter[Role] = Counter()
    for role, messages, said in turns(taught):
        assert possible(role, messages, said), (role, messages[-1].content, said)
        counted[role] += 1
    assert counted.keys() == {Role.PLANNER, Role.EXECUTOR, Role.MANAGER, Role.JUDGE}
    assert min(counted.values()) >= 4


def test_the_proof_can_tell_a_reply_that_is_not_the_teachers(taught: list[Dialogue]) -> None:
    role, messages, said = next(turn for turn in turns(taught) if turn[0] is Role.EXECUTOR and "<tool_call>" in turn[2])
    assert possible(role, messages, said)
    entity = re.search(r" of (\w+) in ", said)
    assert entity is not None
    assert not possible(role, messages, said.replace(entity[1], "Nobodi"))


def test_learned_are_the_assistants_turns_and_the_last_one_is_learned(taught: list[Dialogue]) -> None:
    for dialogue in taught:
        assert dialogue.turns[-1].learned
        for turn in dialogue.turns:
            assert turn.learned <= (turn.message.role == "assistant")


def test_turns_can_be_read_by_those_who_will_read_the_models(taught: list[Dialogue]) -> None:
    reflections = set()
    for role, messages, said in turns(taught):
        kind = purpose(role, messages[-1].content)
        if role is Role.EXECUTOR:
            reply = read_reply(said)
            assert reply.fault == ""
            assert (reply.call is None) != (reply.answer is None)
        elif role is Role.MANAGER:
            assert len(read_workflow(said)) == len(said.splitlines()) + said.count(": ")
        elif kind == "reflect":
            reflections.add(said)
        elif role is Role.PLANNER:
            assert len(read_plan(said)) == len(said.splitlines()) + said.count(": ")
    assert reflections == {"yes", "no"}


async def test_the_executor_asks_the_same_again_when_a_model_answers_the_same(taught: list[Dialogue]) -> None:
    """The messages are those of the real Executor: with the same replies it sends them anew, to the last character."""
    planned = [one for one in taught if one.role is Role.EXECUTOR and said_plans(one) == 1]
    assert len(planned) > 5
    for dialogue in planned:
        task = dialogue.turns[1].message.content
        question, plan = (re.search(rf"<{tag}>\n(.*?)\n</{tag}>", task, re.DOTALL) for tag in ("question", "plan"))
        assert question is not None
        assert plan is not None
        model = Again([turn.message.content for turn in dialogue.turns if turn.learned])
        tool = SearchTool(WorldEngine(WORLD), PASSAGES)
        executor = Executor(model, [tool], ExecutorSettings(max_calls=40), style=STYLE)
        await executor.execute(Question(id="again", text=question[1]), Plan(text=plan[1]), "", Ledger("again"))
        assert model.asked[-1] == tuple(turn.message for turn in dialogue.turns[:-1])


def said_plans(dialogue: Dialogue) -> int:
    return sum(turn.message.content.count("<plan>") for turn in dialogue.turns)


class Again:
    """Says what was said, and keeps what it was asked."""

    name = "again"
    context_window = 100_000
    max_tokens = 1_000
    price = None

    def __init__(self, replies: list[str]) -> None:
        self.replies = replies
        self.asked: list[tuple[Message, ...]] = []

    async def complete(self, request: ChatRequest) -> ChatReply:
        self.asked.append(tuple(request.messages))
        text = self.replies[len(self.asked) - 1]
        return ChatReply(text, usage=estimate_usage(request, text, None), model=self.name)

    async def close(self) -> None:
        """Nothing to let go of."""


def test_prompts_are_the_compact_ones(taught: list[Dialogue]) -> None:
    import mia.agents.executor
    import mia.agents.planner

    for module, stem, role in (
        (mia.agents.planner, "planner_system", Role.PLANNER),
        (mia.agents.executor, "executor_text", Role.EXECUTOR),
    ):
        compact = Prompt.beside(module.__file__, stem).styled("compact").text
        systems = {one.turns[0].message.content for one in taught if one.role is role}
        assert systems == {compact}


def test_the_same_arguments_give_the_same_dialogues_and_others_others(taught: list[Dialogue]) -> None:
    assert dialogues(WORLD, 1) == taught
    assert dialogues(WORLD, 2) != taught
    assert dialogues(World.make(3, shifted=True), 1) != taught


def test_answers_come_from_the_documents_of_the_world(taught: list[Dialogue]) -> None:
    """What an Executor answers, a document said: nothing is made up for it."""
    for role, messages, said in turns(taught):
        answer = read_reply(said).answer if role is Role.EXECUTOR else None
        if answer is not None and answer != "unknown":
            results = "".join(message.content for message in messages if message.role == "user")
            assert re.search(rf"(is|has \w+(?: via \w+)?) {answer}$", results, re.MULTILINE)
