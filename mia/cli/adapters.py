"""`mia adapters …`: the versions of trained weights, which of them answers, and what became of what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mia.cli import options, output
from mia.cli.memory import access
from mia.cli.stages import one_line
from mia.errors import ConfigError

if TYPE_CHECKING:
    from mia.config import Config
    from mia.learn.adapters import AdapterStore, Version
    from mia.learn.lineage import Answered, Lineage
    from mia.types import Memory

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look into the versions of trained weights, go back to one, and trace what became of what.",
)

_QUESTION = 60
"""Characters of a question."""
_MOST = 20
"""Links of one kind that a lineage shows; --json has all."""

RoleOption = Annotated[
    Literal["planner", "executor"] | None, typer.Option("--role", help="Whose versions.", show_default="both")
]


@app.command("list", epilog="Example: mia adapters list --role planner")
def list_(context: typer.Context, role: RoleOption = None, json: output.JsonFlag = False) -> None:
    """List all versions, the oldest first.

    The one that answers is marked with *. Pruned ones are listed too: what made them stays known.
    """
    stores = _stores(options.shared(context).config(), role)
    rows = [(store, version) for store in stores for version in store.versions()]
    if json:
        output.result_json([_page(store, version) for store, version in rows])
    elif rows:
        output.result("\n".join(_line(store, version) for store, version in rows))
    else:
        output.note("No versions yet. `mia run --learn` makes them.")


@app.command(epilog="Example: mia adapters show v7")
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A version's name, its number, or `current`.")] = "current",
    role: RoleOption = None,
    json: output.JsonFlag = False,
) -> None:
    """Show one version: what made it, how its canary went, and where its weights are."""
    store, version = _find(options.shared(context).config(), role, name)
    if json:
        rows = [row.model_dump(mode="json") for row in store.rollouts(version.name)]
        output.result_json({**_page(store, version), "rows": rows})
    else:
        output.result("\n".join(_story(store, version)))


@app.command(
    epilog="Examples: mia adapters rollback; mia adapters rollback v5 --quarantine; mia adapters rollback base"
)
def rollback(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="The version that shall answer again, or `base`: the model as it came.",
            show_default="the last good one before",
        ),
    ] = "",
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Also put aside the memories of what they answered.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why; kept with the versions.")] = "",
    role: RoleOption = None,
    json: output.JsonFlag = False,
) -> None:
    """Let an earlier version answer again.

    Nothing is removed: `mia adapters rollback NAME` of the later version undoes it, and `mia memory restore` brings
    memories back.
    """
    from mia.learn import lineage as chains

    config = options.shared(context).config()
    store = _find(config, role, name)[0] if name not in ("", "base") else _only(config, role)
    put_aside: tuple[str, ...] = ()
    with ExitStack() as stack:
        # Opened first: a memory that cannot be changed is known before anything was.
        wanted = quarantine and config.store_path.exists()
        memory = stack.enter_context(access.changing(config)) if wanted else None
        done = store.rollback(name, reason=reason)
        if memory is not None and done.rolled_back:
            put_aside = chains.quarantine(done.rolled_back, _stores(config, None), memory, reason=reason)
    if json:
        output.result_json({**asdict(done), "role": store.role, "quarantined": put_aside})
        return
    output.result(f"{done.now or 'the base model'} answers for the {store.role}")
    if not done.rolled_back and done.was == done.now:
        output.note("It did so already.")
    for one in done.rolled_back:
        output.note(f"{one} was rolled back.")
    if quarantine:
        output.note(f"{output.plural(len(put_aside), 'memory')} put aside.")
    if done.was and done.was != done.now:
        output.note(f"To undo this: {options.shared(context).command('adapters', 'rollback', done.was)}")


@app.command(epilog="Examples: mia adapters lineage v7; mia adapters lineage last; mia adapters lineage mem-019a")
def lineage(
    context: typer.Context,
    id: Annotated[str, typer.Argument(help="Of a version, rollout, episode or memory; `last`: the last episode.")],
    role: RoleOption = None,
    scope: access.Scope = None,
    all_scopes: access.AllScopes = False,
    json: output.JsonFlag = False,
) -> None:
    """Trace what became of what: memory → episode → reward → version → the episodes that it answered."""
    from mia.learn import lineage as chains

    config = access.configure(context, scope)
    chosen = access.choose(config, scope, all_scopes)
    stores = _stores(config, role)
    with ExitStack() as stack:
        memory = stack.enter_context(access.reading(config)) if config.store_path.exists() else None
        found = chains.lineage(id, stores, memory, scope=chosen)
        ids = (*found.memories, *(one for episode in found.answered for one in episode.made))
        memories = memory.memories(ids) if memory is not None else {}
    if json:
        output.result_json(_chain(found))
    else:
        output.result("\n".join(_told(found, memories)))


@app.command(epilog="Example: mia adapters prune --keep 4 --dry-run")
def prune(
    context: typer.Context,
    keep: Annotated[
        int | None, typer.Option(min=1, help="Versions of each role whose weights stay.", show_default="learn.keep")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which would go.")] = False,
    yes: access.Yes = False,
    role: RoleOption = None,
    json: output.JsonFlag = False,
) -> None:
    """Remove the weights of old versions for good.

    The current one and those that a rollback leads to stay first, then the newest; also what is in use. What made a
    version stays known.
    """
    config = options.shared(context).config()
    most = keep if keep is not None else config.learn.keep
    stores = _stores(config, role)
    would = [name for store in stores for name in store.prune(most, dry_run=True)]
    if would and not dry_run:
        access.confirm(f"Remove the weights of {output.plural(len(would), 'version')} for good?", yes=yes)
        gone = [name for store in stores for name in store.prune(most)]
    else:
        gone = would
    if json:
        output.result_json({"dry_run": dry_run, "pruned": gone})
        return
    if gone:
        output.result("\n".join(gone))
    output.note(f"{output.plural(len(gone), 'version')} {'would be pruned' if dry_run else 'pruned'}.")


# ── which ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _stores(config: Config, role: str | None) -> tuple[AdapterStore, ...]:
    """The stores that there are."""
    from mia.learn.adapters import open_stores

    return tuple(store for store in open_stores(config.home / "adapters") if role in (None, store.role.value))


def _only(config: Config, role: str | None) -> AdapterStore:
    """The one store that can be meant. Raises ConfigError."""
    stores = _stores(config, role)
    if not stores:
        raise ConfigError(f"no versions at '{config.home / 'adapters'}'.", hint="mia run --learn makes some")
    if len(stores) > 1:
        raise ConfigError("planner and executor both have versions.", hint="--role planner, or --role executor")
    return stores[0]


def _find(config: Config, role: str | None, name: str) -> tuple[AdapterStore, Version]:
    from mia.learn.lineage import find_version

    stores = _stores(config, role)
    if len(stores) == 1:
        # It says which versions there are.
        return stores[0], stores[0].get(name)
    return find_version(name, stores)


# ── how it looks ──────────────────────────────────────────────────────────────────────────────────────────────────


def _page(store: AdapterStore, version: Version) -> dict[str, Any]:
    there = store.is_there(version)
    page = version.model_dump(mode="json")
    return {
        **page,
        "current": _is_current(store, version),
        "weights": str(store.weights(version.name)) if there else "",
    }


def _is_current(store: AdapterStore, version: Version) -> bool:
    current = store.current()
    return current is not None and current.name == version.name


def _line(store: AdapterStore, version: Version) -> str:
    mark = "*" if _is_current(store, version) else " "
    parts = [f"{mark} {version.name}", f"{version.state.replace('_', ' '):11}", access.say_time(version.created_at)]
    if version.reward is not None:
        parts.append(f"reward {version.reward:.3f} of {output.plural(len(version.rollouts), 'rollout')}")
    if version.canary is not None and version.canary.judged:
        parts.append(f"canary {_score(version)}")
    if not store.is_there(version):
        parts.append("pruned" if version.pruned_at is not None else "weights gone")
    return "  ".join(parts)


def _score(version: Version) -> str:
    assert version.canary is not None
    judged = [pair for pair in version.canary.pairs if pair.judged]
    right, before = (sum(bool(heard.correct) for heard in column) for column in _columns(judged))
    return f"{right} of {len(judged)} right, {before} before"


def _columns(pairs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    return [pair.candidate for pair in pairs], [pair.current for pair in pairs]


def _story(store: AdapterStore, version: Version) -> Iterator[str]:
    yield f"# {version.name}"
    now = ", answers now" if _is_current(store, version) else ""
    why = f": {version.reason}" if version.reason else ""
    yield f"{version.state.replace('_', ' ')} {access.say_time(version.changed_at)}{now}{why}"
    kind = "LoRA adapter" if version.kind == "lora" else "whole weights"
    yield f"{kind} of the {version.role}, made {access.say_time(version.created_at)}"
    yield f"trained on from {version.parent or 'the base model'}; base {version.base}"
    if version.state.value in ("promoted", "rolled_back"):
        yield f"before it answered {version.before or 'the base model'}"
    if store.is_there(version):
        yield f"weights: {store.weights(version.name)}"
    elif version.pruned_at is not None:
        yield f"weights: pruned {access.say_time(version.pruned_at)}"
    else:
        yield "weights: gone from the disk"
    rows = store.rollouts(version.name)
    if rows:
        groups = len({row.group for row in rows})
        samplers = sorted({row.adapter_version or "the base model" for row in rows})
        yield f"\n## Made of {output.plural(len(rows), 'rollout')} of {output.plural(groups, 'question')}"
        yield f"mean reward {version.reward:.3f}; sampled by {', '.join(samplers)}"
    if version.canary is not None:
        yield "\n## Canary"
        yield f"{version.canary.decision.value}: {version.canary.reason}"
        if (difference := version.canary.difference) is not None:
            yield (
                f"difference {100 * difference.estimate:+.1f} % [{100 * difference.low:+.1f}, "
                f"{100 * difference.high:+.1f}], margin {100 * version.canary.margin:.1f} %"
            )
    if version.metrics:
        yield "\n## Metrics"
        for name, value in version.metrics.items():
            yield f"{name:<24}{'no finite number' if value is None else f'{value:.6g}'}"


def _chain(found: Lineage) -> dict[str, Any]:
    """As JSON."""

    def episode(one: Answered) -> dict[str, Any]:
        return {**asdict(one), "adapters": {role.value: name for role, name in one.adapters.items()}}

    return {
        "subject": found.subject,
        "kind": found.kind,
        "memories": found.memories,
        "origin": found.origin,
        "episodes": [episode(one) for one in found.episodes],
        "rewards": [{**one.row.model_dump(mode="json"), "version": one.version} for one in found.rewards],
        "versions": [version.model_dump(mode="json") for version in found.versions],
        "parents": found.parents,
        "answered": [episode(one) for one in found.answered],
    }


def _told(found: Lineage, memories: dict[str, Memory]) -> Iterator[str]:
    yield f"# {found.kind} {found.subject}"
    if found.origin:
        yield f"made of {found.origin}"
    if found.parents:
        yield f"trained on from {' ← '.join(found.parents)}"
    yield from _section("Memories shown", [_memory(id, memories) for id in found.memories])
    yield from _section("Episodes", [_episode(one) for one in found.episodes])
    rewards = [f"{one.row.id}  {one.row.reward:.3f}  → {one.version}" for one in found.rewards]
    yield from _section("Rewards", rewards)
    versions = [f"{version.name}  {version.state.replace('_', ' ')}" for version in found.versions]
    yield from _section("Versions made of them", versions)
    yield from _section("Episodes that these answered", [_episode(one) for one in found.answered])
    made = dict.fromkeys(id for one in found.answered for id in one.made)
    yield from _section("Memories made of those", [_memory(id, memories) for id in made])


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    yield f"\n## {title}: {len(lines)}"
    yield from lines[:_MOST]
    if len(lines) > _MOST:
        yield f"… and {len(lines) - _MOST:,} more: --json"


def _memory(id: str, memories: dict[str, Memory]) -> str:
    memory = memories.get(id)
    if memory is None:
        return f"{id}  (gone)"
    state = "" if memory.state.value == "active" else f"{memory.state.value}  "
    return f"{id}  {memory.judgement}  {state}{one_line(memory.question, _QUESTION)}"


def _episode(one: Answered) -> str:
    if not one.known:
        return f"{one.id}  (not in this scope of the memory)"
    by = f"  by {', '.join(one.adapters.values())}" if one.adapters else ""
    return f"{one.id}  {one.outcome or 'no verdict'}{by}  {one_line(one.question, _QUESTION)}"
