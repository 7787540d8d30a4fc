"""`mia memory list | show | search | add`: the memories themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mia.cli import output
from mia.cli.memory import access
from mia.cli.stages import one_line

if TYPE_CHECKING:
    from mia.store.base import Change
    from mia.store.sqlite import SqliteStore
    from mia.types import Episode, Memory, MemoryState

_QUESTION = 80
"""Characters of a question in a list."""
_LEAST = 20
"""At a terminal that is too narrow, so many are shown all the same."""
_LATEST = 5
"""Of the questions that a memory was shown for, so many are named."""


def list_(
    context: typer.Context,
    k: Annotated[int, typer.Option("-k", min=1, max=access.MOST, help="How many, newest first.")] = 20,
    state: Annotated[
        Literal["active", "replaced", "forgotten", "quarantined", "all"],
        typer.Option(help="In sight, or why they are not."),
    ] = "active",
    judgement: Annotated[
        Literal["correct", "incorrect"] | None, typer.Option(help="Only those.", show_default="both")
    ] = None,
    scope: access.Scope = None,
    all_scopes: access.AllScopes = False,
    json: output.JsonFlag = False,
) -> None:
    """List the newest memories."""
    config = access.configure(context, scope)
    chosen = access.choose(config, scope, all_scopes)
    states = _states(state)
    with access.reading(config) as store:
        # One more than is shown says whether there are more: counting would not know the judgement.
        memories = store.list_memories(chosen, limit=k + 1, states=states, judgement=judgement)
        hidden = store.count_memories(chosen, states=_states("all")) if not memories else 0
    if json:
        output.result_json([memory.model_dump(mode="json") for memory in memories[:k]])
    elif memories:
        output.result("\n".join(line(memory) for memory in memories[:k]))
        if len(memories) > k:
            output.note("There are more: -k shows them.")
    elif hidden:
        output.note(f"None such among {output.plural(hidden, 'memory')}; --state all shows all of them.")
    else:
        _say_nothing(chosen)


def show(
    context: typer.Context,
    id: Annotated[str, typer.Argument(help="A memory's id, or the beginning of one.")],
    json: output.JsonFlag = False,
) -> None:
    """Show one memory, and where it comes from.

    Its workflow or plans, how it fared, whether it is in sight, and for which questions it was shown.
    """
    with access.reading(access.configure(context)) as store:
        memory = store.memory(id)
        credited = _credited(memory.id, store.audit(memory_id=memory.id, limit=access.MOST))
        origin = _find_episode(store, memory.provenance.episode_id)
        leaned_on = store.memories(memory.provenance.leaned_on)
    if json:
        shown_to = [{"episode": change.reason, "correct": bool(change.after["correct"])} for change in credited]
        output.result_json({**memory.model_dump(mode="json"), "shown_to": shown_to})
    else:
        output.result("\n".join(_page(memory, origin, leaned_on, credited)))


def search(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="A question, or words of one.")],
    k: Annotated[int, typer.Option("-k", min=1, max=access.MOST, help="How many, most similar first.")] = 10,
    scope: access.Scope = None,
    json: output.JsonFlag = False,
) -> None:
    """Find the memories most similar to a text.

    Compared are the questions of the scope and of the levels above it, as in a recall, but with no floor.
    """
    config = access.configure(context, scope)
    with access.reading(config) as store:
        manager = access.manager(config, store)
        found = manager.search(text, k=k)
        # Keeps the caches, so that a large memory opens faster next time.
        manager.close_now()
    if json:
        page = [{"similarity": one.similarity, "memory": one.memory.model_dump(mode="json")} for one in found]
        output.result_json(page)
    elif found:
        output.result("\n".join(f"{one.similarity:5.2f}  {line(one.memory, indent=7)}" for one in found))
    else:
        _say_nothing(config.memory.scope)


def add(
    context: typer.Context,
    question: Annotated[str, typer.Option(help="The question that was to be answered.")],
    workflow: Annotated[str, typer.Option(help="What was tried and found: numbered steps `purpose (input → output)`.")],
    judgement: Annotated[Literal["correct", "incorrect"], typer.Option(help="Whether it led to the right answer.")],
    caption: Annotated[str, typer.Option(help="What the question's image shows.")] = "",
    category: Annotated[str, typer.Option(help="With memory.categories on, recalls look within one.")] = "others",
    plan: Annotated[str, typer.Option(help="The plan that was followed.")] = "",
    scope: access.Scope = None,
    json: output.JsonFlag = False,
) -> None:
    """Add a memory by hand."""
    from mia.memory import guard

    config = access.configure(context, scope)
    with access.changing(config, create=True) as store:
        known = store.count_memories(config.memory.scope, states=_states("all"))
        memory = access.manager(config, store).add(
            question, workflow, judgement, caption=caption, category=category, plan=plan
        )
        kept = store.count_memories(config.memory.scope, states=_states("all")) == known
    if memory.state.value == "quarantined":
        why = guard.suspicion_of(memory)
        output.warn(f"kept out of sight: {why}; `mia memory restore {memory.id}` once you have looked at it")
    elif kept:
        output.warn(
            "Kept the memory that was there: a correct one gives way only to a correct one with a shorter workflow."
        )
    if json:
        output.result_json(memory.model_dump(mode="json"))
    else:
        output.result(memory.id)


def line(memory: Memory, indent: int = 0) -> str:
    """A memory on one line: at a terminal, of its width; `indent`: what stands before it there."""
    kind = "plan pair" if memory.kind.value == "plan_pair" else memory.judgement
    state = "" if memory.state.value == "active" else f"{memory.state.value}  "
    if not state and memory.expired(time.time()):
        state = "expired  "
    begin = f"{memory.id}  {kind:9}  won {memory.wins} of {memory.uses}  {state}"
    console = output.result_console()
    room = max(console.width - indent - len(begin), _LEAST) if console.is_terminal else _QUESTION
    return begin + one_line(output.visible(memory.question), room)


def _states(name: str) -> tuple[MemoryState, ...]:
    from mia.types import MemoryState

    return tuple(MemoryState) if name == "all" else (MemoryState(name),)


def _say_nothing(scope: str | None) -> None:
    where = f" in the scope '{scope}'" if scope is not None else ""
    output.note(f"Nothing remembered yet{where}. `mia ask` and `mia run` fill it; so does `mia memory add`.")


def _credited(id: str, changes: Sequence[Change]) -> list[Change]:
    """The verdict that stands for each group that the memory was shown to. `changes`: the newest first."""
    from mia.store.audit import is_credit

    latest: dict[tuple[str, str], Change] = {}
    for change in filter(is_credit, changes):
        # A group that was erased has no name any more; each of its entries stands alone.
        latest.setdefault((change.scope, change.reason or str(change.sequence)), change)
    return [change for change in latest.values() if id in change.after.get("memory_ids", ())]


def _find_episode(store: SqliteStore, id: str) -> Episode | None:
    from mia.errors import RecordError

    try:
        return store.load_episode(id) if id else None
    except RecordError:
        return None


def _page(
    memory: Memory, origin: Episode | None, leaned_on: dict[str, Memory], credited: list[Change]
) -> Iterator[str]:
    pair = memory.kind.value == "plan_pair"
    yield f"# {memory.question}"
    if memory.caption:
        yield f"image: {memory.caption}"
    kind = "plan pair" if pair else memory.judgement
    yield f"{memory.id}: {kind}, {memory.category}; won {memory.wins} of {memory.uses}; scope {memory.scope}"
    yield _standing(memory)
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
    yield "\n## Where it comes from"
    yield from _lineage(memory, origin, leaned_on)
    if credited:
        yield f"\n## Shown to {len(credited)}"
        for change in credited[:_LATEST]:
            outcome = "answered right" if change.after["correct"] else "answered wrong"
            yield f"{access.say_time(change.at)}  {change.reason}  {outcome}"
        if len(credited) > _LATEST:
            yield f"… and earlier ones: mia memory audit {memory.id}"


def _standing(memory: Memory) -> str:
    expiry = ""
    if memory.expires_at is not None:
        word = "expired" if memory.expired(time.time()) else "until"
        expiry = f", {word} {access.say_time(memory.expires_at)}"
    if memory.state.value == "active":
        return f"in sight{expiry}"
    by = f" by {memory.replaced_by}" if memory.replaced_by else ""
    return f"out of sight: {memory.state.value}{by}{expiry}"


def _lineage(memory: Memory, origin: Episode | None, leaned_on: dict[str, Memory]) -> Iterator[str]:
    source = memory.provenance
    made = f"made {access.say_time(memory.created_at)}"
    if source.origin == "user":
        yield f"{made} by hand"
    else:
        by = f", written by {source.compressed_by}" if source.compressed_by else ""
        yield f"{made} from {source.episode_id or 'an import'}{by}"
    if origin is not None and origin.question.text != memory.question:
        yield f"its question: {one_line(origin.question.text, _QUESTION)}"
    if source.episode_id and origin is None:
        yield "that episode is not in the store"
    for id in source.leaned_on:
        known = leaned_on.get(id)
        yield f"leaned on {id}" + (f": {one_line(known.question, _QUESTION)}" if known else ", which is gone")
