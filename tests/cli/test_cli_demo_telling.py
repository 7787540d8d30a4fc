"""The life of a question in rows."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from demo_stage import stream
from rich.console import Console, RenderableType

from mia.cli.demo.telling import count_correct, first_and_final, tell, tell_question
from mia.cli.demo.watching import Played
from mia.types import Answer, Attempt, Episode, Plan, Question, Reflection, Step, Stop, StopReason, Trace, Verdict


def printed(rows: Iterable[RenderableType], width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    for row in rows:
        console.print(row)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> list[Played]:
    """Eight questions of the demonstration's world."""
    import asyncio

    home: Path = tmp_path_factory.mktemp("home")

    async def live() -> list[Played]:
        played: list[Played] = []
        begun = stream(home, questions=8)
        try:
            await begun.live(on_played=lambda number, one: played.append(one))
        finally:
            await begun.close()
        return played

    return asyncio.run(live())


def test_everything_that_happened_is_told(lived: list[Played]) -> None:
    workflows: Mapping[str, str] = {memory.id: memory.workflow for one in lived for memory in one.memories}
    replanned = next(one for one in lived if len(one.episode.attempts) > 1 and one.episode.recall)
    text = printed(tell(replanned, workflows))
    episode = replanned.episode
    assert episode.recall is not None
    for recalled in episode.recall.shown:
        assert f"{recalled.parts['similarity']:.2f} {recalled.judgement}: {recalled.question}" in text
        for line in workflows[recalled.memory_id].splitlines():
            assert line in text
    for attempt in episode.attempts:
        assert attempt.plan is not None
        assert all(line in text for line in attempt.plan.text.splitlines())
        for step in attempt.trace.steps:
            if step.tool_call is not None:
                assert str(step.tool_call.arguments["query_list"][0]) in text
            assert step.observation is None or all(passage.text in text for passage in step.observation.passages)
        assert f"{attempt.answer and attempt.answer.text}   {attempt.trace.steps[-1].thinking}" in text
    order = [text.index(f"    {label} ") for label in ("recall", "plan", "reflect", "replan", "judge", "remember")]
    assert order == sorted(order)
    assert episode.verdict is not None
    assert f"first answer unjudged, final answer {episode.verdict.outcome.value}" in text
    (memory,) = replanned.memories
    assert text.rstrip().endswith(memory.workflow.splitlines()[-1])


def test_without_their_texts_memories_are_counted(lived: list[Played]) -> None:
    one = lived[-1]
    (memory,) = one.memories
    text = printed(tell(one))
    assert f"a workflow of {len(memory.workflow.splitlines())} steps, judged {memory.judgement}" in text
    assert memory.workflow.splitlines()[0] not in text


@pytest.mark.parametrize("width", [40, 80])
def test_no_row_is_wider_than_the_terminal(width: int, lived: list[Played]) -> None:
    text = printed((row for one in lived for row in tell(one, {})), width)
    assert max(map(len, text.splitlines())) <= width


def test_an_episode_in_which_nothing_went_well_is_told_too() -> None:
    stop = Stop(reason=StopReason.MODEL_FAILED, sentence="it failed")
    attempt = Attempt(
        plan=Plan(text="look\x1b[2J around"),
        trace=Trace(steps=(Step(index=0, text="?"),), stop=stop),
        reflection=Reflection(replan=None, text="maybe"),
    )
    episode = Episode(
        id="e", question=Question.of("Who\x1b[31m?"), started_at=0, attempts=(attempt, Attempt(trace=Trace(stop=stop)))
    )
    text = printed((*tell_question(3, episode.question.text), *tell(Played(episode, ()), {})))
    assert "\x1b" not in text
    assert " 3  Who\\x1b[31m?" in text
    assert "the memory is empty" in text
    assert text.count("none") == 2
    assert "first answer unjudged, final answer unjudged" in text


def test_verdicts_are_of_the_first_and_of_the_reported_answer() -> None:
    wrong, right = (Verdict.model_validate({"outcome": each, "judge": "j"}) for each in ("incorrect", "correct"))
    stop = Stop(reason=StopReason.ANSWERED, sentence="")
    attempts = tuple(
        Attempt(trace=Trace(stop=stop), answer=Answer(text="a"), verdict=verdict) for verdict in (wrong, right)
    )
    episode = Episode(id="e", question=Question.of("Who?"), started_at=0, attempts=attempts, verdict=right)
    assert first_and_final(episode) == (wrong, right)
    assert count_correct([wrong, right, None, right]) == 2
