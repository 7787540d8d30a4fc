"""`mia world show`: what a world is like, and some questions that can be asked in it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mia.cli import options, output
from mia.errors import ConfigError

if TYPE_CHECKING:
    from mia.types import Task
    from mia.world.facts import World
    from mia.world.statistics import WorldStatistics


def show(
    context: typer.Context,
    seed: Annotated[
        int | None, typer.Option(help="The seed that makes it.", show_default="search.world: where `mia ask` asks")
    ] = None,
    questions: Annotated[int, typer.Option(min=0, help="How many questions of its stream.")] = 10,
    shifted: Annotated[bool, typer.Option("--shifted", help="A world without favourite sources.")] = False,
    tasks_file: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the questions with their answers into this new file, for `mia run`."),
    ] = None,
    json: output.JsonFlag = False,
) -> None:
    """Show a world: its sources, what is kept where, and questions with their answers."""
    from mia.world.facts import World
    from mia.world.questions import tasks
    from mia.world.seeds import split_of
    from mia.world.statistics import count

    asked = options.shared(context).config().search.world
    seed = asked if seed is None else seed
    split = split_of(seed)
    world = World.make(seed, shifted=shifted)
    counts, stream = count(world, questions), tasks(world, questions)
    if tasks_file is not None:
        _write(stream, tasks_file)
    if json:
        output.result_json(
            {
                "seed": seed,
                "split": split,
                "shifted": shifted,
                **asdict(counts),
                "keeping": {relation: asdict(kept) for relation, kept in world.keeping.items()},
                "stream": [{"question": task.question.text, "answer": task.references[0]} for task in stream],
            }
        )
        return
    output.result("\n".join(_lines(world, split, counts, stream)))
    if stream and not shifted:
        chosen = "" if seed == asked else f"MIA_SEARCH__WORLD={seed} "
        if tasks_file is not None:
            output.note(f"To answer them: {chosen}mia run {shlex.quote(str(tasks_file))}")
        else:
            output.note(f'To ask: {chosen}mia ask "{stream[0].question.text}"')


def _write(stream: list[Task], path: Path) -> None:
    """As `mia run` reads them. Raises ConfigError."""
    import json

    rows = (
        {"id": task.question.id, "question": task.question.text, "answers": list(task.references)} for task in stream
    )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    except OSError as error:
        raise ConfigError(
            f"the questions cannot be written to '{path}' ({error.strerror}).",
            wanted="a file that is not there yet, in a folder that can be written to",
        ) from error


def _lines(world: World, split: str, counts: WorldStatistics, stream: list[Task]) -> Iterator[str]:
    from mia.world.facts import FAVOURITE

    kind = "a shifted world" if world.shifted else "a world"
    for name, value in (
        ("world", f"{world.seed}, {kind} of the split '{split}'"),
        ("entities", f"{sum(counts.entities.values())}: {_counts(counts.entities)}"),
        ("documents", f"{sum(counts.documents.values())}: {_counts(counts.documents)}"),
        (
            "relations",
            f"{counts.relations}: {counts.at_favourite} where they are in most worlds (*), "
            f"{counts.via} kept under another entity",
        ),
        ("patchy", f"{counts.wrong_rumours} of {counts.rumours} documents of patchy sources are wrong"),
    ):
        yield f"{name:<12}{value}"
    yield f"\n{'relation':<15}{'leads to':<20}{'true source':<13}{'patchy':<11}kept under"
    for relation, kept in sorted(world.keeping.items()):
        source = kept.source + "*" * (kept.source == FAVOURITE[relation])
        yield f"{relation:<15}{_ends(relation):<20}{source:<13}{kept.patchy:<11}{kept.via}".rstrip()
    if not stream:
        return
    hops = ", ".join(f"{share} of {number}" for number, share in counts.hops.items() if share)
    yield f"\n{'questions':<12}{counts.questions}; hops: {hops}; {counts.questions_via} over another entity"
    for number, task in enumerate(stream, start=1):
        yield f"{number:>3}  {task.question.text}  {task.references[0]}"


def _ends(relation: str) -> str:
    from mia.world.language import RELATION

    return f"{RELATION[relation].subject} → {RELATION[relation].object}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
