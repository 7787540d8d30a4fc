"""The life of a question in rows, for people: a label, and what belongs to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mia.cli import output

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from mia.cli.demo.watching import Played
    from mia.types import Attempt, Episode, Memory, Passage, Step, Verdict

_SHORT = 60
"""Characters up to which a passage is shown by its text, and not by its title."""
_COLOURS = {"correct": "bold green", "incorrect": "bold red"}


def tell_question(number: int, text: str) -> Iterator[RenderableType]:
    """What is asked, before anything is done about it."""
    yield ""
    yield _row(f"{number:>2}", text, "bold", number=True)


def tell(played: Played, workflows: Mapping[str, str] | None = None) -> Iterator[RenderableType]:
    """What became of it, from recall to what is remembered.

    `workflows`: of memories, by id. Where given, what a small model says in few words is told too: what each recalled
    memory says, the last thought before an answer, and what is remembered.
    """
    episode, whole = played.episode, workflows is not None
    yield from _tell_recall(episode, workflows or {})
    for count, attempt in enumerate(episode.attempts):
        if attempt.plan is not None:
            name, style = ("replan", "magenta") if count else ("plan", "")
            yield _row(name, attempt.plan.text, style=style)
        for step in attempt.trace.steps:
            yield from _tell_search(step)
        yield _row("answer", _answer(attempt, whole=whole))
        if attempt.reflection is not None:
            again = attempt.reflection.replan
            words = ["replan." if again else "the answer stands.", attempt.reflection.thinking]
            yield _row("reflect", " ".join(filter(None, words)), style="yellow" if again else "dim")
    for citation in episode.answer.citations if episode.answer else ():
        yield _row("source", f"“{citation.quote}” [{citation.passage_id}]", style="dim")
    yield _tell_verdicts(episode)
    for memory in played.memories:
        yield from _tell_memory(memory, whole=whole)


def first_and_final(episode: Episode) -> tuple[Verdict | None, Verdict | None]:
    """The verdicts on the first answer and on the reported one."""
    return episode.attempts[0].verdict, episode.verdict


def verdict_text(verdict: Verdict | None) -> Text:
    """A verdict in its colour."""
    from rich.text import Text

    said = verdict.outcome.value.replace("_", " ") if verdict else "unjudged"
    return Text(said, style=_COLOURS.get(said, ""))


def count_correct(verdicts: Sequence[Verdict | None]) -> int:
    return sum(verdict is not None and verdict.correct for verdict in verdicts)


def _tell_recall(episode: Episode, workflows: Mapping[str, str]) -> Iterator[RenderableType]:
    recall = episode.recall
    if recall is None or not recall.shown:
        yield _row("recall", "nothing fits" if recall and recall.considered else "the memory is empty", style="dim")
        return
    for memory in recall.shown:
        style = "green" if memory.judgement == "correct" else "red"
        similarity = memory.parts["similarity"]
        yield _row("recall", f"{similarity:.2f} {memory.judgement}: {memory.question}", style, one_line=True)
        for line in workflows.get(memory.memory_id, "").splitlines():
            yield _row("", f"     {line}", "dim", one_line=True)


def _tell_search(step: Step) -> Iterator[RenderableType]:
    if step.tool_call is None or step.observation is None:
        return
    yield _row("search", " | ".join(str(query) for query in step.tool_call.arguments.get("query_list", ())))
    found = " · ".join(_passage(passage) for passage in step.observation.passages)
    yield _row("", f"→ {found or step.observation.text}", style="cyan")


def _passage(passage: Passage) -> str:
    return passage.text if len(passage.text) <= _SHORT else passage.title


def _answer(attempt: Attempt, *, whole: bool) -> Text:
    from rich.text import Text

    answer = Text(output.visible(attempt.answer.text) if attempt.answer else "none", style="bold")
    if whole and attempt.trace.steps:
        answer.append(f"   {output.visible(attempt.trace.steps[-1].thinking)}".rstrip(), "not bold dim")
    return answer


def _tell_verdicts(episode: Episode) -> RenderableType:
    from rich.text import Text

    first, final = map(verdict_text, first_and_final(episode))
    replanned = len(episode.attempts) > 1
    return _row("judge", Text.assemble("first answer ", first, ", final answer ", final) if replanned else final)


def _tell_memory(memory: Memory, *, whole: bool) -> Iterator[RenderableType]:
    lines = memory.workflow.splitlines()
    if not whole:
        yield _row("remember", f"a workflow of {len(lines)} steps, judged {memory.judgement}", style="dim")
        return
    for count, line in enumerate([f"{memory.judgement}:", *lines]):
        yield _row("" if count else "remember", f"     {line}" if count else line, style="dim")


def _row(
    label: str, content: str | Text, style: str = "", *, number: bool = False, one_line: bool = False
) -> RenderableType:
    """A label and what belongs to it, which wraps beside the label or is cut at the end of the line."""
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column(width=2 if number else 12, style="bold" if number else "dim", no_wrap=True)
    row.add_column()
    text = Text(output.visible(content), style=style) if isinstance(content, str) else content
    if one_line:
        text.no_wrap, text.overflow = True, "ellipsis"
    row.add_row(label if number else f"    {label}", text)
    return row
