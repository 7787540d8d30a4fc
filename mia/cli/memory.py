"""`mia memory`: look into the memory, search it, and teach it something by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mia.cli import options, output
from mia.cli.stages import one_line

if TYPE_CHECKING:
    from mia.config import Config
    from mia.memory.manager import Found, MemoryManager
    from mia.store.base import MemoryStore
    from mia.types import Memory

app = typer.Typer(no_args_is_help=True, help="List, show, search and add what was learned from earlier questions.")

Scope = Annotated[str | None, typer.Option(help="The part of the memory to use.", show_default="default")]


@app.command("list")
def list_(
    context: typer.Context,
    k: Annotated[int, typer.Option("-k", min=1, help="How many, newest first.")] = 20,
    scope: Scope = None,
    json: output.JsonFlag = False,
) -> None:
    """List the newest memories."""
    from mia.store import open_store

    config = _config(context, scope)
    memories: tuple[Memory, ...] = ()
    if config.store_path.exists():
        with open_store(config.store_path) as store:
            memories = store.list_memories(config.memory.scope, limit=k)
            total = store.count_memories(config.memory.scope)
    if json:
        output.result_json([memory.model_dump(mode="json") for memory in memories])
    elif memories:
        output.result("\n".join(_line(memory) for memory in memories))
        if len(memories) < total:
            output.note(f"{len(memories)} of {total}; -k shows more.")
    else:
        _say_nothing(config.store_path)


@app.command()
def show(
    context: typer.Context,
    id: Annotated[str, typer.Argument(help="A memory's id, or the beginning of one.")],
    json: output.JsonFlag = False,
) -> None:
    """Show one memory: its workflow or plans, how it fared, and where it comes from."""
    from mia.store import open_store

    config = options.shared(context).config()
    with open_store(config.store_path, create=False) as store:
        memory = store.memory(id)
        replaced_by = store.replaced_by(memory.id)
    if json:
        output.result_json({**memory.model_dump(mode="json"), "replaced_by": replaced_by or None})
    else:
        output.result("\n".join(_page(memory, replaced_by)))


@app.command()
def search(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="A question, or words of one.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many, most similar first.")] = 10,
    scope: Scope = None,
    json: output.JsonFlag = False,
) -> None:
    """Find the memories whose questions are most similar to a text."""
    from mia.store import open_store

    config = _config(context, scope)
    found: tuple[Found, ...] = ()
    if config.store_path.exists():
        with open_store(config.store_path) as store:
            found = _manager(config, store).search(text, k=k)
    if json:
        page = [{"similarity": one.similarity, "memory": one.memory.model_dump(mode="json")} for one in found]
        output.result_json(page)
    elif found:
        output.result("\n".join(f"{one.similarity:5.2f}  {_line(one.memory)}" for one in found))
    else:
        _say_nothing(config.store_path)


@app.command()
def add(
    context: typer.Context,
    question: Annotated[str, typer.Option(help="The question that was to be answered.")],
    workflow: Annotated[str, typer.Option(help="What was tried and found: numbered steps `purpose (input → output)`.")],
    judgement: Annotated[Literal["correct", "incorrect"], typer.Option(help="Whether it led to the right answer.")],
    caption: Annotated[str, typer.Option(help="What the question's image shows.")] = "",
    plan: Annotated[str, typer.Option(help="The plan that was followed.")] = "",
    scope: Scope = None,
    json: output.JsonFlag = False,
) -> None:
    """Add a memory by hand."""
    from mia.store import open_store

    config = _config(context, scope)
    with open_store(config.store_path) as store:
        memory = _manager(config, store).add(question, workflow, judgement, caption=caption, plan=plan)
    if memory.workflow != workflow.strip():
        output.warn(
            "Kept the memory that was there: a correct one gives way only to a correct one with a shorter workflow."
        )
    if json:
        output.result_json(memory.model_dump(mode="json"))
    else:
        output.result(memory.id)


def _config(context: typer.Context, scope: str | None) -> Config:
    return options.shared(context).config({"memory.scope": scope})


def _manager(config: Config, store: MemoryStore) -> MemoryManager:
    from mia.embeddings import memory_embedder
    from mia.memory.manager import MemoryManager

    return MemoryManager(store, memory_embedder(config, store.space()), config.memory)


def _say_nothing(path: Path) -> None:
    output.note(f"Nothing remembered yet in '{path}'. `mia ask` and `mia run` fill it; so does `mia memory add`.")


def _line(memory: Memory) -> str:
    kind = "plan pair" if memory.kind.value == "plan_pair" else memory.judgement
    return f"{memory.id}  {kind:9}  won {memory.wins} of {memory.uses}  {one_line(memory.question, 80)}"


def _page(memory: Memory, replaced_by: str) -> Iterator[str]:
    pair = memory.kind.value == "plan_pair"
    yield f"# {memory.question}"
    if memory.caption:
        yield f"image: {memory.caption}"
    kind = "plan pair" if pair else memory.judgement
    yield f"{kind}, {memory.category}; shown and won {memory.wins} of {memory.uses}; scope {memory.scope}"
    yield f"made {_time(memory.created_at)}{_origin(memory)}"
    if replaced_by:
        yield f"no longer shown: replaced by {replaced_by}"
    if memory.workflow:
        yield f"\n## Workflow\n{memory.workflow}"
    if memory.plan:
        yield f"\n## {'Plan that led to a correct answer' if pair else 'Plan'}\n{memory.plan}"
    if memory.incorrect_plan:
        yield f"\n## Plan that led to an incorrect answer\n{memory.incorrect_plan}"
    if memory.reviews:
        yield "\n## Reviews"
        for review in memory.reviews:
            yield f"{review.reviewer}: {review.score} of 10. {review.reason}"


def _origin(memory: Memory) -> str:
    where = memory.provenance
    parts = [" by hand" if where.origin == "user" else f" from {where.episode_id or where.origin}"]
    if where.compressed_by:
        parts.append(f"written by {where.compressed_by}")
    if where.leaned_on:
        parts.append(f"leaning on {', '.join(where.leaned_on)}")
    return ", ".join(parts)


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
