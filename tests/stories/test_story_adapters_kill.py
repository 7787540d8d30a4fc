"""Whoever makes, promotes, prunes and rolls back versions is killed at any instant, again and again: the version that
answers always loads, nothing half-written is ever listed, and nothing that was acknowledged is lost.

Two processes work on one store; each says what it has done in a file, by one call of the system after it was done. This
one kills both with SIGKILL at drawn instants, and looks at what is left.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from itertools import count
from pathlib import Path

import numpy
import pytest
import safetensors.numpy
from learn.test_learn_adapters import BASE, rollout

from mia.errors import LearnError
from mia.learn.adapters import AdapterStore, State, Version
from mia.types import Role

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")

LONGEST = 0.5
"""Seconds after its first word at which a pair of workers is killed at the latest."""
TENSORS = 4
KEEP = 3
LINE = 64
"""Bytes of what a worker says at once."""


def write(mark: float) -> object:
    """Weights of several files of some size, so that kills fall into their writing. All hold the same number."""

    def written(folder: Path) -> None:
        for number in range(TENSORS):
            tensors = {f"layer.{number}.lora_A.weight": numpy.full((64, 256), mark, numpy.float32)}
            safetensors.numpy.save_file(tensors, folder / f"part{number}.safetensors", {"mia_base": BASE})
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        (folder / "optimizer.bin").write_bytes(bytes(100_000))

    return written


def load(store: AdapterStore, version: Version) -> None:
    """Everything of a version is there, and of one writing."""
    folder = store.weights(version.name)
    marks = set()
    for number in range(TENSORS):
        (tensor,) = safetensors.numpy.load_file(folder / f"part{number}.safetensors").values()
        marks |= set(tensor.ravel().tolist())
    assert marks == {float(version.metrics["mark"] or 0)}
    assert (version.folder / "optimizer.bin").stat().st_size == 100_000


def work(folder: str, said: str, seed: int) -> None:
    """Until somebody kills it."""
    diary = os.open(said, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    chance = random.Random(seed)
    store = AdapterStore(Path(folder), BASE, Role.PLANNER)

    def say(what: str, name: str = "") -> None:
        # All lines are as long as a fraction of a page: a kill can break a write off between two pages of the file.
        os.write(diary, f"{what} {name}".ljust(LINE - 1).encode() + b"\n")

    say("begun")
    for number in count():
        mark = float(number + 1)
        with store.hold_current() as current:
            if current is not None:
                load(store, current)
            made = store.create(current.name if current else "", write(mark), [rollout()], {"mark": mark})  # type: ignore[arg-type]
            say("created", made.name)
        try:
            if chance.random() < 0.7:
                say("promoted", store.promote(made.name).name)
            else:
                say("rejected", store.reject(made.name).name)
            if chance.random() < 0.3:
                say("back", store.rollback().now or "base")
            if chance.random() < 0.5:
                for name in store.prune(KEEP):
                    say("pruned", name)
        except LearnError as error:
            # The other one was quicker.
            if not any(why in error.got for why in ("rolled back", "nothing to roll back", "pruned")):
                raise


def live_through(folder: Path, kills: int, seed: int) -> Counter[str]:
    moments = random.Random(seed)
    # A server that has imported everything already forks the workers.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pytest", "hypothesis", "safetensors.numpy", "mia.learn.adapters"])
    place, said = folder / "planner", folder / "said"
    store = AdapterStore(place, BASE, Role.PLANNER)
    said.touch()
    tally: Counter[str] = Counter()
    for life in range(kills):
        before = said.stat().st_size
        pair = [processes.Process(target=work, args=(str(place), str(said), 2 * life + one)) for one in (0, 1)]
        for worker in pair:
            worker.start()
        while said.read_bytes()[before:].count(b"begun") < 2:
            assert all(worker.is_alive() for worker in pair)
            time.sleep(0.001)
        time.sleep(moments.uniform(0, LONGEST))
        for worker in pair:
            worker.kill()
        for worker in pair:
            worker.join()
            assert worker.exitcode == -signal.SIGKILL, "it ended by itself, with an error"
        tally["kills"] += 2
        tally["half-written"] += sum(path.name.startswith(".") for path in (place / "versions").iterdir())
        look(store, said.read_text().splitlines())
    finish(store)
    tally.update(line.split()[0] for line in said.read_text().splitlines())
    return tally


def look(store: AdapterStore, said: list[str]) -> None:
    """Through a store that was open all the time, and one that is opened now."""
    fresh = AdapterStore.open(store.folder)
    versions = {version.name: version for version in fresh.versions()}
    assert tuple(versions.values()) == store.versions()
    current = fresh.current()
    if current is not None:
        assert current.state is State.PROMOTED
        load(fresh, current)
    for version in versions.values():
        if fresh.is_there(version):
            load(fresh, version)
        assert [row.id for row in fresh.rollouts(version.name)] == list(version.rollouts)
    told = [line.split() for line in said]
    created = [words[1] for words in told if words[0] == "created"]
    assert len(set(created)) == len(created), "a name was used twice"
    assert set(created) <= versions.keys()
    for what, name in (words for words in told if len(words) == 2 and words[1] != "base"):
        version = versions[name]
        if what == "promoted":
            assert version.state in (State.PROMOTED, State.ROLLED_BACK)
        elif what == "rejected":
            assert version.state is State.REJECTED
        elif what == "pruned":
            assert version.pruned_at is not None
            assert not fresh.is_there(version)
    # What answers can always be taken back, step by step, to versions that load.
    for target in fresh.served():
        if fresh.is_there(target):
            load(fresh, target)


def finish(store: AdapterStore) -> None:
    """Whoever comes next clears away what the dead have left."""
    store.prune(KEEP)
    names = {version.name for version in store.versions()}
    assert {path.name for path in (store.folder / "versions").iterdir()} == names
    left = {version.name for version in store.versions() if store.is_there(version)}
    assert left == {version.name for version in store.versions() if version.pruned_at is None}
    assert not list(store.folder.rglob("*.pruned"))
    assert len(left) <= KEEP + 1
    highest = max((version.number for version in store.versions()), default=0)
    assert store.create("", write(1.0), [], {"mark": 1.0}).number > highest  # type: ignore[arg-type]


def test_the_current_version_always_loads_after_20_kills(tmp_path: Path) -> None:
    tally = live_through(tmp_path, kills=10, seed=20260701)
    assert tally["created"] >= 3, tally
    assert tally["half-written"] > 0, tally


@pytest.mark.slow
def test_the_current_version_always_loads_after_400_kills(tmp_path: Path) -> None:
    begun = time.monotonic()
    tally = live_through(tmp_path, kills=200, seed=20260702)
    print(f"\n{tally}, {time.monotonic() - begun:.0f} s")
    assert tally["created"] > 100, tally
    assert tally["half-written"] > 40, tally
