"""Trainers over a tiny model: versions that follow each other, and workers that are killed in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from models.tiny_model import write_model
from safetensors.numpy import load_file

from mia.config import LearnSettings
from mia.errors import LearnError
from mia.learn.adapters import AdapterStore, State
from mia.learn.rollouts import Conversation, Rollout
from mia.learn.spool import Group, Spool, read_rollouts
from mia.learn.trainers import DEATHS, Beginning, InlineTrainer, ProcessTrainer, made_of, version_age
from mia.models.weights import Weights
from mia.types import Episode, Question, Role

SETTINGS = LearnSettings(rank=2, alpha=4.0, rate=1e-2, max_staleness=1)
PATIENCE = 120.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def digest(model: str) -> str:
    return Weights.load(model).digest()


@pytest.fixture
def store(tmp_path: Path, digest: str) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters", digest, Role.PLANNER)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with contextlib.closing(Spool(tmp_path / "spool")) as opened:
        yield opened


def put(spool: Spool, *names: str, rewards: Sequence[float] = (0.0, 1.0, 0.2), version: str = "") -> list[Path]:
    """A file for each question, with as many rollouts as rewards."""
    files = []
    for name in names:
        rng = random.Random(name)
        rollouts = tuple(
            Rollout(
                group=name,
                reward=reward,
                conversations=(
                    Conversation(
                        tuple(rng.randrange(200) for _ in range(30)),
                        (False,) * 10 + (True,) * 20,
                        (0.0,) * 10 + (-5.0,) * 20,
                    ),
                ),
                id=f"roll-{name}-{number}",
                adapter_version=version,
            )
            for number, reward in enumerate(rewards)
        )
        episode = Episode(id=f"ep-{name}", question=Question(id=name, text="Where?"), started_at=0.0)
        group = Group(name, 0, 0, (episode,), rollouts)
        before = set(spool.ready())
        spool.put(group)
        spool.make_ready(group)
        files += [path for path in spool.ready() if path not in before]
    return files


def weights(store: AdapterStore, name: str) -> dict[str, bytes]:
    arrays: dict[str, Any] = load_file(store.weights(name) / "adapter_model.safetensors")
    return {key: value.tobytes() for key, value in arrays.items()}


def moved(one: dict[str, bytes], other: dict[str, bytes]) -> bool:
    assert one.keys() == other.keys()
    return any(one[key] != other[key] for key in one)


async def test_versions_follow_each_other(model: str, store: AdapterStore, spool: Spool) -> None:
    trainer = InlineTrainer(Beginning(model), SETTINGS, store)
    first = await trainer.update(put(spool, "a", "b"), "")
    assert first.rollouts == 6
    assert first.metrics["steps"] == 1
    second = await trainer.update(put(spool, "c"), first.version)
    one, two = store.get(first.version), store.get(second.version)
    assert (one.parent, two.parent) == ("", one.name)
    assert (one.state, two.state) == (State.CANDIDATE, State.CANDIDATE)
    assert one.rollouts == tuple(f"roll-{name}-{number}" for name in "ab" for number in range(3))
    assert moved(weights(store, one.name), weights(store, two.name))
    # Another trainer that goes on from the first comes to the very same second: the optimizer was kept too.
    again = InlineTrainer(
        Beginning(model), SETTINGS, AdapterStore(store.folder.parent / "other", store.base, store.role)
    )
    base = await again.update(put(spool, "a", "b"), "")
    assert not moved(weights(store, one.name), weights(again._bench._store, base.version))
    restored = InlineTrainer(Beginning(model), SETTINGS, again._bench._store)
    other = await restored.update(put(spool, "c"), base.version)
    assert not moved(weights(store, two.name), weights(again._bench._store, other.version))


async def test_what_was_rejected_leaves_no_trace_in_what_follows(model: str, store: AdapterStore, spool: Spool) -> None:
    trainer = InlineTrainer(Beginning(model), SETTINGS, store)
    rejected = await trainer.update(put(spool, "a"), "")
    store.reject(rejected.version, reason="the canary")
    second = await trainer.update(put(spool, "b"), "")
    fresh = AdapterStore(store.folder.parent / "fresh", store.base, store.role)
    alone = await InlineTrainer(Beginning(model), SETTINGS, fresh).update(put(spool, "b"), "")
    assert not moved(weights(store, second.version), weights(fresh, alone.version))
    assert moved(weights(store, second.version), weights(store, rejected.version))


async def test_nothing_is_learnt_twice(model: str, store: AdapterStore, spool: Spool) -> None:
    files = put(spool, "a", "b")
    first = await InlineTrainer(Beginning(model), SETTINGS, store).update(files, "")
    again = await InlineTrainer(Beginning(model), SETTINGS, store).update(files, "")
    part = await InlineTrainer(Beginning(model), SETTINGS, store).update(files[1:], first.version)
    assert again.version == part.version == first.version
    assert len(store.versions()) == 1
    assert made_of(store, read_rollouts(put(spool, "c"))) == ""
    assert made_of(store, ()) == ""


async def test_rollouts_without_a_difference_make_no_version(model: str, store: AdapterStore, spool: Spool) -> None:
    trainer = InlineTrainer(Beginning(model), SETTINGS, store)
    equal = await trainer.update(put(spool, "a", rewards=(0.5, 0.5, 0.5)), "")
    assert (equal.version, dict(equal.dropped)) == ("", {"all rewards equal": 3})
    alone = await trainer.update(put(spool, "b", rewards=(0.5,)), "")
    assert (alone.version, dict(alone.dropped)) == ("", {"group of one": 1})
    assert store.versions() == ()
    # And the next one is as if they had never been.
    after = await trainer.update(put(spool, "c"), "")
    fresh = AdapterStore(store.folder.parent / "fresh", store.base, store.role)
    alone = await InlineTrainer(Beginning(model), SETTINGS, fresh).update(put(spool, "c"), "")
    assert not moved(weights(store, after.version), weights(fresh, alone.version))


async def test_successes_and_what_was_learnt_before_are_learnt_again(
    model: str, store: AdapterStore, spool: Spool
) -> None:
    settings = SETTINGS.model_copy(update={"advantage": "success", "replay": 8})
    trainer = InlineTrainer(Beginning(model), settings, store)
    equal = put(spool, "a", rewards=(1.0, 1.0))
    first = await trainer.update(equal, "")
    assert first.version, "rewards that are all high teach too"
    failed = put(spool, "b", rewards=(0.0, 0.1))
    nothing = await trainer.update(failed, first.version)
    assert not nothing.version
    assert nothing.dropped == {"no success": 2}
    # Along with what went well before, there is something to learn; how old its version is does not matter.
    second = await trainer.update(failed, first.version, equal)
    assert second.metrics["rollouts_replayed"] == 2
    assert store.get(second.version).rollouts == ("roll-b-0", "roll-b-1")
    assert moved(weights(store, first.version), weights(store, second.version))


async def test_what_is_too_old_is_left_out_and_told(model: str, store: AdapterStore, spool: Spool) -> None:
    trainer = InlineTrainer(Beginning(model), SETTINGS, store)
    names = [""]
    for number in range(3):
        names.append((await trainer.update(put(spool, f"a{number}", version=names[-1]), names[-1])).version)
        store.promote(names[-1])
    age = version_age(store, names[3])
    assert [age(name) for name in names] == [3, 2, 1, 0]
    # The weights to begin with may have a name of their own.
    assert age("adapter-1234") == 3
    rejected = (await trainer.update(put(spool, "b", version=names[3]), names[3])).version
    assert version_age(store, names[3])(rejected) > 3
    files = [*put(spool, "old", version=names[1]), *put(spool, "new", version=names[2])]
    learnt = await trainer.update(files, names[3])
    assert learnt.dropped["more than 1 versions old"] == 3
    assert learnt.metrics["rollouts_learnt"] == 3


@pytest.mark.parametrize("names", ["ab", pytest.param("abc", marks=pytest.mark.slow)])
async def test_a_worker_learns_what_a_thread_does_however_often_it_is_killed(
    model: str, store: AdapterStore, spool: Spool, tmp_path: Path, names: str
) -> None:
    """Killed at its work, and before the third update when it has nothing to do."""
    fresh = AdapterStore(tmp_path / "fresh", store.base, store.role)
    # All are sampled by the model as it came, and none is too old here.
    patient = SETTINGS.model_copy(update={"max_staleness": 9})
    inline = InlineTrainer(Beginning(model), patient, fresh)
    worker = ProcessTrainer(Beginning(model), patient, store, log=tmp_path / "worker.log")
    assert worker.pid is None
    parents = ["", ""]
    for name in names:
        files = put(spool, name)
        updating = asyncio.create_task(worker.update(files, parents[0]))
        if name == "a":
            pid = await _wait_for(lambda: worker.pid)
            os.kill(pid, signal.SIGKILL)
        one, other = await updating, await inline.update(files, parents[1])
        assert not moved(weights(store, one.version), weights(fresh, other.version))
        assert one.metrics["reward"] == other.metrics["reward"]
        parents = [one.version, other.version]
        if name == "a":
            assert worker.pid not in (None, pid)
            pid = worker.pid
            # A failure is told, and the worker goes on.
            with pytest.raises(LearnError, match="gone"):
                await worker.update([tmp_path / "gone.json.gz"], parents[0])
            with pytest.raises(LearnError, match="v999"):
                await worker.update(put(spool, "d"), "v999")
            assert worker.pid == pid
        if name == "b":
            assert worker.pid == pid
            assert psutil.Process(pid).nice() > psutil.Process().nice()
            if names[-1] != name:
                os.kill(pid, signal.SIGKILL)
    pid = worker.pid
    assert len(store.versions()) == len(fresh.versions()) == len(names)
    await worker.close()
    await worker.close()
    assert worker.pid is None
    assert not psutil.pid_exists(pid or 0)


async def test_a_worker_that_cannot_begin_says_why(store: AdapterStore, spool: Spool, tmp_path: Path) -> None:
    worker = ProcessTrainer(Beginning(str(tmp_path / "nothing")), SETTINGS, store)
    with pytest.raises(LearnError, match="nothing"):
        await worker.update(put(spool, "a"), "")
    await worker.close()


async def test_an_update_that_kills_every_worker_is_given_up(model: str, store: AdapterStore, spool: Spool) -> None:
    worker = ProcessTrainer(Beginning(model), SETTINGS, store)
    files = put(spool, "a")
    updating = asyncio.create_task(worker.update(files, ""))
    killed: set[int] = set()
    while not updating.done():
        pid = worker.pid
        if pid is not None and pid not in killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        await asyncio.sleep(0.005)
    with pytest.raises(LearnError, match="died 3 times"):
        await updating
    assert len(killed) == DEATHS
    assert store.versions() == ()
    assert all(path.exists() for path in files)
    await worker.close()


async def test_an_update_that_is_cancelled_ends_its_worker(model: str, store: AdapterStore, spool: Spool) -> None:
    worker = ProcessTrainer(Beginning(model), SETTINGS, store)
    files = put(spool, "a")
    updating = asyncio.create_task(worker.update(files, ""))
    pid = await _wait_for(lambda: worker.pid)
    updating.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await updating
    await _wait_for(lambda: worker.pid is None)
    await worker.close()
    assert not psutil.pid_exists(pid)
    assert store.versions() == ()


def test_a_worker_ends_with_whoever_began_it(model: str, digest: str, spool: Spool, tmp_path: Path) -> None:
    (file,) = put(spool, "a")
    program = f"""
    import asyncio
    from pathlib import Path
    from mia.config import LearnSettings
    from mia.learn.adapters import AdapterStore
    from mia.learn.trainers import Beginning, ProcessTrainer
    from mia.types import Role

    async def main():
        store = AdapterStore(Path({str(tmp_path / "adapters")!r}), {digest!r}, Role.PLANNER)
        worker = ProcessTrainer(Beginning({model!r}), LearnSettings(), store)
        updating = asyncio.create_task(worker.update([Path({str(file)!r})], ""))
        while worker.pid is None:
            await asyncio.sleep(0.001)
        print(worker.pid, flush=True)
        await updating

    asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    worker.wait(PATIENCE)
    assert AdapterStore.open(tmp_path / "adapters").versions() == ()


async def _wait_for(look: Callable[[], Any]) -> Any:
    until = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < until
        await asyncio.sleep(0.001)
    return found
