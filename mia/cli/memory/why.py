"""`mia memory why`: why a memory was shown for a question, and why others were not.

Everything printed was stored when the question was asked; nothing is computed anew but the products of stored weights
and stored parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mia.cli import output
from mia.cli.memory import access
from mia.cli.show import find_episode
from mia.cli.stages import one_line
from mia.errors import RecordError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from mia.types import Episode, Recall, RecalledMemory

_SCALED = {
    "_z": "in deviations from the mean of those that reach the floor",
    "_min_max": "stretched from 0 (the least of all) to 1 (the most)",
}
"""How a part was scaled before it was weighed, by the end of its name; the raw one stands under the name without it."""
_BESIDE = {
    "coverage": "coverage, the share of the question's words that it adds to those of its judgement shown before it",
}
"""What is added to the score of a form, and what it is."""
_COLOURS = {"correct": "green", "incorrect": "red"}
_QUESTION = 300
"""Characters of a question; on a terminal its width cuts earlier."""


def why(
    context: typer.Context,
    episode: Annotated[str, typer.Argument(help="An episode's id, the beginning of one, or `last`.")] = "last",
    memory: Annotated[
        str | None, typer.Option("--memory", help="Only this memory: its id, or the beginning of one.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="An episodes.jsonl to look in.", show_default="the memory store")
    ] = None,
    json: output.JsonFlag = False,
) -> None:
    """Say why memories were shown, or were not.

    A table of the best that were considered: score, what each part adds to it and what was measured, and the reason of
    each that was not shown.
    """
    found = find_episode(context, source, episode)
    recall = found.recall
    if memory is not None:
        recalled = _of_memory(found, memory)
        if json:
            output.result_json({"episode": found.id, "memory": recalled.model_dump(mode="json") if recalled else None})
            return
        if recalled is None:
            output.result(_not_listed(found, memory))
            return
        assert recall is not None
        shown, passed_over = ([], [recalled]) if recalled.passed_over else ([recalled], [])
        recall = recall.model_copy(update={"shown": tuple(shown), "passed_over": tuple(passed_over)})
    elif json:
        page = recall.model_dump(mode="json") if recall else None
        output.result_json({"episode": found.id, "question": found.question.text, "recall": page})
        return
    console = output.result_console()
    for row in _head(found):
        console.print(row, soft_wrap=True)
    for part in _account(recall):
        console.print(part)


def picture(episode: Episode) -> Iterator[RenderableType]:
    """What `mia memory why` prints of an episode, row by row."""
    yield from _head(episode)
    yield from _account(episode.recall)


def _account(recall: Recall | None) -> Iterator[RenderableType]:
    if recall is not None and (recall.shown or recall.passed_over):
        yield ""
        yield _table(recall)
        yield ""
        yield _legend(recall)


# ── which ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _of_memory(episode: Episode, reference: str) -> RecalledMemory | None:
    """Its line among those that were listed. Raises RecordError if several begin so."""
    listed = (*episode.recall.shown, *episode.recall.passed_over) if episode.recall else ()
    matches = {one.memory_id: one for one in listed if one.memory_id.startswith(reference)}
    exact = matches.get(reference)
    if exact is None and len(matches) > 1:
        raise RecordError(f"several memory ids begin with '{reference}'.", wanted="more of the id")
    return exact or next(iter(matches.values()), None)


def _not_listed(episode: Episode, reference: str) -> str:
    recall = episode.recall
    if recall is None:
        return f"{episode.id} did not look into the memory."
    listed = len(recall.shown) + len(recall.passed_over)
    return (
        f"{reference} is not among the {listed} best that {episode.id} listed, of {recall.considered:,} considered. "
        "Only those are kept; why it was not among them (too little alike, another kind, not there yet) is not stored."
    )


# ── how it looks ──────────────────────────────────────────────────────────────────────────────────────────────────


def _head(episode: Episode) -> list[Text]:
    from rich.text import Text

    recall = episode.recall
    rows = [Text(one_line(output.visible(episode.question.text), _QUESTION), style="bold")]
    if episode.question.caption:
        rows.append(Text(f"image: {one_line(output.visible(episode.question.caption), _QUESTION)}"))
    rows.append(Text(output.visible(f"{episode.id}, {access.say_time(episode.started_at)}"), style="dim"))
    rows.append(Text(_say_recall(recall) if recall is not None else _say_no_recall(episode)))
    return rows


def _say_no_recall(episode: Episode) -> str:
    failed = next((failure for failure in episode.failures if failure.stage.startswith("recall")), None)
    if failed is not None:
        return output.visible(f"The recall failed: {failed.message}")
    return "This question did not look into the memory."


def _say_recall(recall: Recall) -> str:
    if not recall.considered and not recall.shown:
        return "The memory held nothing to consider."
    kind = "plan pair" if recall.kind.value == "plan_pair" else "memory"
    unlisted = recall.considered - len(recall.shown) - len(recall.passed_over)
    rest = f"; further down, {unlisted:,} more" if unlisted > 0 else ""
    return (
        f"{output.plural(recall.considered, kind)} considered, {len(recall.shown)} shown, "
        f"{len(recall.passed_over)} passed over{rest}."
    )


def _table(recall: Recall) -> Table:
    from rich.table import Table
    from rich.text import Text

    columns = _columns(recall)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", expand=False)
    table.add_column("", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    for name, weight in columns:
        sub = f"\n× {weight:g}" if weight is not None else ""
        table.add_column(f"{_plain(name)}{sub}", justify="right", no_wrap=True)
    table.add_column("memory", ratio=1)
    for title, group in (("shown", recall.shown), ("passed over", recall.passed_over)):
        if group:
            table.add_row(Text(title, style="bold"))
        # The correct ones first; within each judgement as they were ranked.
        for one in sorted(group, key=lambda one: (one.judgement != "correct", one.rank)):
            table.add_row(*_row(one, columns), style="dim" if one.passed_over else "")
    return table


def _row(one: RecalledMemory, columns: Sequence[tuple[str, float | None]]) -> list[RenderableType]:
    from rich.text import Text

    rank = Text(f"{one.rank} {one.judgement}", style=_COLOURS[one.judgement])
    return [rank, Text(f"{one.score:.2f}"), *(_cell(one, name, weight) for name, weight in columns), _subject(one)]


def _cell(one: RecalledMemory, name: str, weight: float | None) -> Text:
    """What the part adds to the score, and under it what was measured."""
    from rich.text import Text

    value = one.parts.get(name)
    if value is None:
        return Text("")
    if weight is None:
        return Text(f"{value:.2f}")
    raw = one.parts.get(_raw(name), value)
    return Text.assemble(f"{weight * value:+.2f}", "\n", (f"{raw:.2f}", "dim"))


def _subject(one: RecalledMemory) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    question = Text(one_line(output.visible(one.question), _QUESTION), no_wrap=True, overflow="ellipsis")
    lines = [question]
    if one.passed_over:
        lines.append(Text(one_line(output.visible(one.passed_over), _QUESTION), style="yellow"))
    lines.append(Text(output.visible(one.memory_id), style="dim"))
    return Group(*lines)


def _columns(recall: Recall) -> list[tuple[str, float | None]]:
    """The parts that made up the score, with their weights; where none are stored, all parts as they are."""
    if recall.weights:
        return list(recall.weights.items())
    return [
        (name, None)
        for name in dict.fromkeys(name for one in (*recall.shown, *recall.passed_over) for name in one.parts)
    ]


def _raw(name: str) -> str:
    return next((name.removesuffix(end) for end in _SCALED if name.endswith(end)), name)


def _plain(name: str) -> str:
    return output.visible(_raw(name).replace("_", " "))


def _legend(recall: Recall) -> Text:
    from rich.text import Text

    floor = "" if recall.floor is None else f" Below a similarity of {recall.floor:g} nothing is shown."
    if not recall.weights:
        return Text(f"The parts of each score as they were stored.{floor}", style="dim")
    formed = {name: weight for name, weight in recall.weights.items() if name not in _BESIDE}
    sum_of_parts = " + ".join(f"{weight:g} × {_plain(name)}" for name, weight in formed.items())
    scaled = {_how(name) for name in formed} - {""}
    how = f", {', '.join(sorted(scaled))}" if scaled else ""
    how += "".join(f", + {recall.weights[name]:g} × {what}" for name, what in _BESIDE.items() if name in recall.weights)
    return Text(
        f"score = {sum_of_parts}{how}. In each column: what the part adds to the score, and below it what was measured."
        f"{floor}",
        style="dim",
    )


def _how(name: str) -> str:
    ending = next((end for end in _SCALED if name.endswith(end)), "")
    return f"{_plain(name)} {_SCALED[ending]}" if ending == "_min_max" else _SCALED.get(ending, "")
