"""`mia adapters …`: what it lists, how it goes back, and what it traces."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import typer
from learn.test_learn_adapters import BASE, examined, rollout, writes
from memory.past import episode
from program import Program

from mia.cli import adapters, main
from mia.config import MemorySettings
from mia.embeddings.hashing import HashingEmbedder
from mia.learn.adapters import AdapterStore
from mia.learn.canary import CanaryResult, Heard, Pair, decide
from mia.memory.manager import MemoryManager
from mia.models.ledger import Ledger
from mia.store import open_store
from mia.types import Question, Role


@pytest.fixture(autouse=True)
def _with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program, with this command alone."""
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    app.callback()(main._options)
    app.add_typer(adapters.app, name="adapters")
    monkeypatch.setattr(main, "app", app)


@pytest.fixture
def store(program: Program) -> AdapterStore:
    return AdapterStore(Path(".mia/adapters/planner"), BASE, Role.PLANNER)


def canary(current: str, candidate: str, right: int, before: int) -> CanaryResult:
    pairs = [
        Pair(question_id=str(number), current=Heard(correct=number < before), candidate=Heard(correct=number < right))
        for number in range(16)
    ]
    return decide(pairs, current, candidate, margin=0.05)


@pytest.fixture
def three(store: AdapterStore) -> list[str]:
    """Two that were promoted one after the other, and one that was rejected."""
    one = store.create("", writes(), [rollout(0.5, group="a"), rollout(0.25, group="b")], {"loss": 0.125}).name
    store.promote(one, canary("", one, 9, 8))
    two = store.create(one, writes(), [rollout(1.0, version=one)], {"norm": float("inf")}).name
    store.promote(two, examined(one, two))
    bad = store.create(two, writes(), [rollout(0.0, version=two)]).name
    store.reject(bad, canary(two, bad, 3, 9))
    return [one, two, bad]


def test_nothing_yet(program: Program) -> None:
    listed = program("adapters", "list")
    assert (listed.code, listed.stdout) == (0, "")
    assert "No versions yet" in listed.stderr
    assert program("adapters", "list", "--json").stdout == "[]\n"
    for command in (("rollback",), ("show",), ("show", "v1"), ("lineage", "v1")):
        failed = program("adapters", *command)
        assert failed.code == 2, command
        assert failed.stderr.startswith("Error: ")
    assert program("adapters", "prune", "--keep", "1").code == 0
    assert not Path(".mia").exists(), "looking makes nothing"


def test_list_and_show(program: Program, store: AdapterStore, three: list[str]) -> None:
    one, two, bad = three
    lines = program("adapters", "list").stdout.splitlines()
    assert [line.split()[0 if line.startswith(" ") else 1] for line in lines] == three
    assert [line[0] for line in lines] == [" ", "*", " "]
    assert "promoted" in lines[0]
    assert "reward 0.375 of 2 rollouts" in lines[0]
    assert "canary 9 of 16 right, 8 before" in lines[0]
    assert "rejected" in lines[2]
    pages = json.loads(program("adapters", "list", "--json").stdout)
    assert [(page["name"], page["current"]) for page in pages] == [(one, False), (two, True), (bad, False)]
    assert pages[1]["weights"] == str(store.weights(two))
    assert pages[1]["metrics"] == {"norm": None}

    shown = program("adapters", "show", bad).stdout
    assert f"# {bad}\nrejected " in shown
    assert "3 of 16 canary questions right, against 9 of the current version" in shown
    assert "difference -37.5 %" in shown
    assert f"trained on from {two}; base {BASE}" in shown
    assert f"mean reward 0.000; sampled by {two}" in shown
    assert "answers now" in program("adapters", "show").stdout
    first = program("adapters", "show", "v1").stdout
    assert "## Made of 2 rollouts of 2 questions" in first
    assert "loss                    0.125" in first
    page = json.loads(program("adapters", "show", "1", "--json").stdout)
    assert [row["reward"] for row in page["rows"]] == [0.5, 0.25]
    unknown = program("adapters", "show", "v9")
    assert unknown.code == 1
    assert f"e.g. {bad}" in unknown.stderr


def test_rollback_and_back_again(program: Program, store: AdapterStore, three: list[str]) -> None:
    one, two, bad = three
    done = program("adapters", "rollback", "--reason", "it guesses")
    assert (done.code, done.stdout) == (0, f"{one} answers for the planner\n")
    assert f"{two} was rolled back." in done.stderr
    assert f"To undo this: mia adapters rollback {two}" in done.stderr
    assert "it guesses" in program("adapters", "show", two).stdout
    page = json.loads(program("adapters", "rollback", two, "--json").stdout)
    assert page == {"was": one, "now": two, "rolled_back": [], "role": "planner", "quarantined": []}
    again = program("adapters", "rollback", "v2")
    assert (again.code, again.stdout) == (0, f"{two} answers for the planner\n")
    assert "did so already" in again.stderr
    assert program("adapters", "rollback", "base").stdout == "the base model answers for the planner\n"
    refused = program("adapters", "rollback", bad)
    assert refused.code == 1
    assert "has never answered" in refused.stderr
    nothing = program("adapters", "rollback")
    assert (nothing.code, nothing.stdout) == (1, "")
    assert "nothing to roll back" in nothing.stderr


def test_a_current_version_that_is_gone_is_said(program: Program, store: AdapterStore, three: list[str]) -> None:
    one, two, _ = three
    shutil.rmtree(store.get(two).folder.parent)
    assert "weights gone" in program("adapters", "list").stdout.splitlines()[1]
    assert "gone from the disk" in program("adapters", "show").stdout
    assert program("adapters", "rollback").stdout == f"{one} answers for the planner\n"


def test_two_roles_are_told_apart(program: Program, store: AdapterStore, three: list[str]) -> None:
    executor = AdapterStore(Path(".mia/adapters/executor"), BASE, Role.EXECUTOR)
    other = executor.promote(executor.create("", writes(), []).name).name
    assert len(program("adapters", "list").stdout.splitlines()) == 4
    assert program("adapters", "list", "--role", "executor").stdout.split()[1] == other
    ambiguous = program("adapters", "show", "v1")
    assert ambiguous.code == 2
    assert other in ambiguous.stderr
    which = program("adapters", "rollback")
    assert which.code == 2
    assert "--role planner, or --role executor" in which.stderr
    assert program("adapters", "rollback", other).stdout == f"{other} answers for the executor\n"
    done = program("adapters", "rollback", "--role", "executor")
    assert done.stdout == "the base model answers for the executor\n"
    assert program("adapters", "show", "v1", "--role", "executor").stdout.startswith(f"# {other}")


def test_prune_asks_first(program: Program, store: AdapterStore, three: list[str]) -> None:
    one, _, bad = three
    dry = program("adapters", "prune", "--keep", "1", "--dry-run")
    assert (dry.code, dry.stdout.split()) == (0, [one, bad])
    asked = program("adapters", "prune", "--keep", "1")
    assert asked.code == 2
    assert "add --yes" in asked.stderr
    assert all(store.is_there(version) for version in store.versions())
    done = program("adapters", "prune", "--keep", "1", "--yes", "--json")
    assert json.loads(done.stdout) == {"dry_run": False, "pruned": [one, bad]}
    assert "pruned" in program("adapters", "list").stdout.splitlines()[0]
    assert "weights: pruned" in program("adapters", "show", "v1").stdout
    # The setting counts where nothing is said.
    assert program("adapters", "prune", "--yes").stderr.strip() == "0 versions pruned."


def test_lineage_and_the_memories_of_what_is_rolled_back(
    program: Program, store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = MemoryManager(open_store(Path(".mia/memory.db")), HashingEmbedder(), MemorySettings())

    def answered(text: str) -> tuple[str, str]:
        current = store.current()
        done = episode(question=Question.of(f"Who wrote {text}?")).evolve(
            adapters={Role.PLANNER: current.name} if current else {}
        )
        manager.store.save_episode(done)
        (memory,) = asyncio.run(manager.remember([done], Ledger("q")))
        return done.id, memory.id

    first, _ = answered("the diary")
    version = store.promote(store.create("", writes(), [rollout(0.5, episode=first)]).name).name
    second, lesson = answered("the letters")
    manager.close_now()

    told = program("adapters", "lineage", version).stdout
    assert told.startswith(f"# version {version}\n")
    assert f"{first}  correct  Who wrote the diary?" in told
    assert f"0.500  → {version}" in told
    assert f"{second}  correct  by {version}  Who wrote the letters?" in told
    assert f"{lesson}  correct  Who wrote the letters?" in told
    page = json.loads(program("adapters", "lineage", first, "--json").stdout)
    assert page["kind"] == "episode"
    assert [one["id"] for one in page["answered"]] == [second]
    assert page["answered"][0]["adapters"] == {"planner": version}
    assert json.loads(program("adapters", "lineage", "last", "--json").stdout)["subject"] == second
    elsewhere = program("adapters", "lineage", "v1", "--scope", "acme").stdout
    assert f"{first}  (not in this scope of the memory)" in elsewhere
    assert second not in elsewhere
    assert program("adapters", "lineage", "nobody").code == 2

    # A memory that must not change is said before anything is rolled back.
    with monkeypatch.context() as frozen:
        frozen.setenv("MIA_MEMORY__FROZEN", "true")
        refused = program("adapters", "rollback", "--quarantine")
    assert refused.code == 2
    assert "frozen" in refused.stderr
    assert store.get("v1") == store.current()
    done = program("adapters", "rollback", "--quarantine")
    assert done.stdout == "the base model answers for the planner\n"
    assert "1 memory put aside." in done.stderr
    assert f"{lesson}  correct  quarantined  Who" in program("adapters", "lineage", "v1").stdout
