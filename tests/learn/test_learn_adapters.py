"""Versions of weights: whole or not at all, named once, held by who uses them, and always one that answers."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from mia.errors import LearnError
from mia.learn.adapters import AdapterStore, State, Version, open_stores
from mia.learn.canary import CanaryResult, Decision
from mia.learn.rollouts import Conversation, Rollout
from mia.types import Role

BASE = "0123456789abcdef"
PATHS = os.pathsep.join(map(str, [Path(__file__).parents[2], Path(__file__).parent]))


def rollout(reward: float = 1.0, *, group: str = "q", episode: str = "", version: str = "") -> Rollout:
    conversation = Conversation((1, 2, 3), (False, True, True), (0.0, -0.5, -0.25))
    return Rollout(group, reward, (conversation,), adapter_version=version, episode_id=episode, parts={"format": 0.1})


def writes(mark: float = 1.0, *, base: str = BASE, size: int = 8) -> Callable[[Path], None]:
    """As a learner saves an adapter, with its own state beside it."""

    def write(folder: Path) -> None:
        tensors = {"base_model.model.q.lora_A.weight": numpy.full((size, 2), mark, numpy.float32)}
        safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors", {"mia_base": base})
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        (folder / "optimizer.bin").write_bytes(bytes(64))

    return write


def mark_of(store: AdapterStore, name: str) -> float:
    """What `writes` wrote: the weights are there, and whole."""
    tensors = safetensors.numpy.load_file(store.weights(name) / "adapter_model.safetensors")
    (value,) = set(tensors["base_model.model.q.lora_A.weight"].ravel().tolist())
    return float(value)


def examined(current: str, candidate: str) -> CanaryResult:
    return CanaryResult(decision=Decision.KEPT, reason="as good", current=current, candidate=candidate, margin=0.05)


def rubbish(store: AdapterStore) -> set[str]:
    """What lies in the store and belongs to no version."""
    return {path.name for path in (store.folder / "versions").iterdir()} - {one.name for one in store.versions()}


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters" / "planner", BASE, Role.PLANNER)


def grow(store: AdapterStore, count: int = 1) -> list[str]:
    """Versions, each trained on from the one before, and promoted."""
    names = []
    for _ in range(count):
        current = store.current()
        version = store.create(current.name if current else "", writes(), [rollout()])
        names.append(store.promote(version.name).name)
    return names


# ── what a version is ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_version_is_written_listed_and_promoted(store: AdapterStore) -> None:
    assert (store.versions(), store.current(), store.latest_candidate()) == ((), None, None)
    samples = [rollout(1.0, group="a", episode="ep-1"), rollout(0.0, group="a", episode="ep-2")]
    made = store.create("", writes(3.5), samples, {"loss": 0.25, "norm": float("nan")}, tokens=True)
    assert (made.number, made.state, made.parent, made.kind) == (1, State.CANDIDATE, "", "lora")
    assert made.name.startswith("planner-")
    assert made.name.endswith("-v000001")
    assert made.reward == 0.5
    assert made.metrics == {"loss": 0.25, "norm": None}
    assert made.rollouts == tuple(one.id for one in samples)
    # Another process sees the same, and finds it by whatever one types.
    other = AdapterStore.open(store.folder)
    assert other.versions() == (made,)
    assert {other.get(reference).name for reference in (made.name, "v000001", "v1", "1")} == {made.name}
    assert other.latest_candidate() == made
    assert mark_of(other, "v1") == 3.5
    assert (made.folder / "optimizer.bin").stat().st_size == 64
    assert [(row.id, row.reward, row.episode_id, row.tokens) for row in other.rollouts("v1")] == [
        (one.id, one.reward, one.episode_id, 2) for one in samples
    ]
    assert list(other.samples("v1")) == samples
    alone = json.loads((made.folder.parent / "version.json").read_text())
    assert Version.model_validate(alone).name == made.name
    promoted = other.promote("v1", examined("", made.name))
    assert (promoted.state, promoted.before, promoted.reason) == (State.PROMOTED, "", "as good")
    assert store.current() == promoted
    assert other.promote("v1") == promoted, "twice is harmless"
    assert store.latest_candidate() is None
    assert open_stores(store.folder.parent)[0].role is Role.PLANNER


def test_without_tokens_only_ids_and_rewards_are_kept(store: AdapterStore) -> None:
    store.create("", writes(), [rollout()])
    assert store.samples("1") == ()
    assert len(store.rollouts("1")) == 1


def test_two_stores_never_give_the_same_name(tmp_path: Path) -> None:
    stores = [AdapterStore(tmp_path / str(number), BASE, Role.PLANNER) for number in range(8)]
    assert len({one.create("", writes(), []).name for one in stores}) == 8


def test_whole_weights_in_a_folder_of_their_own(store: AdapterStore) -> None:
    def write(folder: Path) -> None:
        inner = folder / "model"
        inner.mkdir()
        safetensors.numpy.save_file({"w": numpy.zeros(3, numpy.float32)}, inner / "model.safetensors")
        (inner / "config.json").write_text(json.dumps({"mia_base": BASE}))
        (folder / "optimizer.bin").write_bytes(b"state")

    made = store.create("", write, [rollout()])
    assert made.kind == "full"
    assert store.weights("1") == made.folder / "model"


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────


def _nothing(folder: Path) -> None:
    (folder / "notes.txt").write_text("no weights")


def _torn(folder: Path) -> None:
    writes()(folder)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def _garbage(folder: Path) -> None:
    writes()(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"torn")


def _other_model(folder: Path) -> None:
    safetensors.numpy.save_file({"w": numpy.zeros(3, numpy.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"mia_base": "f" * 16}))


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (_nothing, "there are no weights"),
        (_torn, "no whole safetensors file"),
        (_garbage, "no whole safetensors file"),
        (writes(base="f" * 16), "another base model"),
        (_other_model, "another base model"),
    ],
)
def test_unusable_weights_leave_nothing_behind(store: AdapterStore, write: Callable[[Path], None], said: str) -> None:
    with pytest.raises(LearnError, match=said):
        store.create("", write, [rollout()])
    assert store.versions() == ()
    assert rubbish(store) == set()
    assert store.create("", writes(), []).number == 2, "the name was used up"


def test_a_learner_that_fails_leaves_nothing_behind(store: AdapterStore) -> None:
    def write(folder: Path) -> None:
        writes()(folder)
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        store.create("", write, [])
    assert (store.versions(), rubbish(store)) == ((), set())
    with pytest.raises(LearnError, match="no finite number"):
        store.create("", writes(), [rollout(float("nan"))])
    with pytest.raises(LearnError, match="no version 'v9'"):
        store.create("v9", writes(), [])


def test_an_interrupt_in_the_middle_leaves_a_version_whole_or_not_at_all(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ctrl-C before each renaming, and after it."""
    rename, replace = Path.rename, Path.replace

    def interrupted(move: Callable[[Path, Path], Path], *, before: bool) -> Callable[[Path, Path], Path]:
        def moved(self: Path, target: Path) -> Path:
            if target.name == "store.json" and self.parent.joinpath("versions").exists():
                # The first is for the number, the second lists the version.
                turns.append(1)
                if len(turns) < 2:
                    return move(self, target)
            if before:
                raise KeyboardInterrupt
            move(self, target)
            raise KeyboardInterrupt

        return moved

    for number, (name, move, before) in enumerate(
        (("rename", rename, True), ("rename", rename, False), ("replace", replace, True), ("replace", replace, False))
    ):
        turns: list[int] = []
        with monkeypatch.context() as patched:
            patched.setattr(Path, name, interrupted(move, before=before))
            with pytest.raises(KeyboardInterrupt):
                store.create("", writes(), [rollout()])
        assert rubbish(store) == set()
        listed = [version.number for version in AdapterStore.open(store.folder).versions()]
        assert listed == ([4] if number == 3 else [])
    assert mark_of(store, "v4") == 1.0


def test_a_store_of_another_base_or_role_is_refused(store: AdapterStore, tmp_path: Path) -> None:
    with pytest.raises(LearnError, match="another base model") as raised:
        AdapterStore(store.folder, "f" * 16, Role.PLANNER)
    assert BASE in raised.value.wanted
    with pytest.raises(LearnError, match="of the planner, not of the executor"):
        AdapterStore(store.folder, BASE, Role.EXECUTOR)
    with pytest.raises(LearnError, match="no adapters at"):
        AdapterStore.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LearnError, match="cannot hold adapters"):
        AdapterStore(tmp_path / "file", BASE, Role.PLANNER)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda page: page[: len(page) // 2], "damaged"),
        (lambda page: "[]", "damaged"),
        (
            lambda page: page.replace('"current":""', '"current":"planner-x-v000009"').replace(
                '"current": ""', '"current": "planner-x-v000009"'
            ),
            "is not among its versions",
        ),
        (
            lambda page: page.replace('"format": 1', '"format": 2').replace('"format":1', '"format":2'),
            "install the newer MIA",
        ),
    ],
)
def test_a_damaged_page_is_said(store: AdapterStore, damage: Callable[[str], str], said: str) -> None:
    store.create("", writes(), [])
    path = store.folder / "store.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(LearnError) as raised:
        store.current()
    assert said in str(raised.value)


# ── which one answers ─────────────────────────────────────────────────────────────────────────────────────────────


def test_rolled_back_to_the_last_good_one_and_forth(store: AdapterStore) -> None:
    one, two, three = grow(store, 3)
    done = store.rollback(reason="worse")
    assert (done.was, done.now, done.rolled_back) == (three, two, (three,))
    assert store.get(three).state is State.ROLLED_BACK
    assert store.get(three).reason == "worse"
    assert [version.name for version in store.served()] == [two, one]
    # Both steps at once, and back again.
    assert store.rollback("base").rolled_back == (two, one)
    assert store.current() is None
    with pytest.raises(LearnError, match="nothing to roll back"):
        store.rollback()
    done = store.rollback(three)
    assert (done.was, done.now, done.rolled_back) == ("", three, ())
    assert store.get("current").state is State.PROMOTED
    # The two before it are not good any more.
    assert store.rollback().now == ""


def test_a_rollback_goes_past_what_is_gone(store: AdapterStore) -> None:
    one, two, three = grow(store, 3)
    shutil.rmtree(store.get(two).folder)
    done = store.rollback()
    assert (done.now, done.rolled_back) == (one, (three, two))
    with pytest.raises(LearnError, match="not on the disk any more"):
        store.rollback(two)
    assert store.current() == store.get(one)


def test_a_current_version_that_is_missing_is_said_and_rolled_back(store: AdapterStore) -> None:
    one, two = grow(store, 2)
    shutil.rmtree(store.get(two).folder.parent)
    current = store.current()
    assert current is not None
    assert not store.is_there(current)
    for use in (
        lambda: store.weights("current"),
        lambda: store.hold(two).__enter__(),
        lambda: store.hold_current().__enter__(),
    ):
        with pytest.raises(LearnError, match="not on the disk any more") as raised:
            use()
        assert raised.value.hint == "mia adapters rollback"
    assert store.rollback().now == one
    assert mark_of(store, "current") == 1.0
    assert store.rollouts(two) == ()


def test_who_may_be_promoted(store: AdapterStore) -> None:
    (one,) = grow(store)
    first, second = (store.create(one, writes(), []).name for _ in range(2))
    # Both were compared with the same version: only the first that comes is.
    assert store.promote(first, examined(one, first)).before == one
    with pytest.raises(LearnError, match="was compared with"):
        store.promote(second, examined(one, second))
    store.promote(second, examined(first, second))
    child = store.create(second, writes(), []).name
    store.rollback()
    with pytest.raises(LearnError, match=r"trained on from .* rolled back"):
        store.promote(child)
    assert store.reject(child, reason="of bad parents").state is State.REJECTED
    for again in (store.promote, store.reject, store.rollback):
        with pytest.raises(LearnError, match="is rejected"):
            again(child)
    current = store.current()
    assert current is not None
    assert current.name == first


# ── prune and hold ────────────────────────────────────────────────────────────────────────────────────────────────


def there(store: AdapterStore) -> list[int]:
    return [version.number for version in store.versions() if store.is_there(version)]


def test_prune_keeps_the_current_one_and_where_rollbacks_lead(store: AdapterStore) -> None:
    grow(store, 4)
    store.reject(store.create("", writes(), [rollout()]).name)
    store.create("current", writes(), [rollout()])  # 6, a candidate
    assert store.prune(3, dry_run=True) == tuple(store.get(str(number)).name for number in (1, 5))
    assert there(store) == [1, 2, 3, 4, 5, 6]
    assert store.prune(3) == tuple(store.get(str(number)).name for number in (1, 5))
    assert there(store) == [2, 3, 4, 6]
    assert len(store.rollouts("1")) == 1, "lineage stays"
    assert store.get("1").pruned_at is not None
    with pytest.raises(LearnError, match="were pruned"):
        store.weights("1")
    store.rollback("v2")
    assert store.prune(1) == tuple(store.get(str(number)).name for number in (3, 4))
    assert there(store) == [2, 6]
    assert store.create("", writes(), []).number == 7
    with pytest.raises(LearnError, match="keeps 0"):
        store.prune(0)


def python(program: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PATHS},
        **options,
    )


HOLDER = """
import sys
from pathlib import Path
from mia.learn.adapters import AdapterStore
with AdapterStore.open(Path(sys.argv[1])).hold("v1") as version:
    print(version.name, flush=True)
    sys.stdin.read()
"""


def test_what_another_process_holds_is_not_pruned_until_it_dies(store: AdapterStore) -> None:
    names = grow(store, 3)
    with python(HOLDER, store.folder) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == names[0]
        with store.hold("v2"):
            assert store.prune(1) == ()
        assert store.prune(1) == (names[1],)
        assert there(store) == [1, 3]
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert store.prune(1) == (names[0],)
    with pytest.raises(LearnError, match="were pruned"), store.hold("v1"):
        pass


def test_the_current_one_is_held_whichever_it_is(store: AdapterStore) -> None:
    with store.hold_current() as nobody:
        assert nobody is None
    (one,) = grow(store)
    with store.hold_current() as held:
        assert held is not None
        assert held.name == one
        grow(store, 3)
        assert one not in store.prune(1)
        assert mark_of(store, one) == 1.0
    assert store.prune(1) == (one,)


CROWD = """
import sys
from pathlib import Path
from mia.errors import LearnError
from mia.learn.adapters import AdapterStore, State
from mia.types import Role
from test_learn_adapters import BASE, examined, mark_of, rollout, writes
store = AdapterStore(Path(sys.argv[1]), BASE, Role.PLANNER)
for turn in range(int(sys.argv[2])):
    with store.hold_current() as current:
        name = current.name if current else ""
        version = store.create(name, writes(float(turn)), [rollout()])
        assert version.state is State.CANDIDATE
        print(version.name, flush=True)
        if current is not None:
            mark_of(store, name)
    try:
        store.promote(version.name, examined(name, version.name))
    except LearnError as error:
        assert "was compared with" in error.got or "were pruned" in error.got or "rolled back" in error.got, error
    if turn % 3 == 2:
        store.prune(2)
    if turn % 5 == 4:
        try:
            store.rollback()
        except LearnError as error:
            assert "nothing to roll back" in error.got, error
"""


def test_many_processes_at_once(store: AdapterStore) -> None:
    crowd = [python(CROWD, store.folder, 6) for _ in range(3)]
    said = [process.communicate()[0].split() for process in crowd]
    assert [process.returncode for process in crowd] == [0] * 3
    names = [name for one in said for name in one]
    assert len(set(names)) == 18, "no name twice"
    assert {version.name for version in store.versions()} == set(names)
    assert sorted(version.number for version in store.versions()) == list(range(1, 19))
    for version in store.versions():
        if store.is_there(version):
            mark_of(store, version.name)
    current = store.current()
    assert current is None or store.is_there(current)
    assert rubbish(store) == set()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("cccppprbnx"), st.integers(0, 5)), max_size=14))
def test_whatever_is_done_the_current_version_is_there(steps: list[tuple[str, int]]) -> None:
    """c: create, p: promote, r: reject, b: roll back, n: to any, x: prune."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        store = AdapterStore(Path(folder), BASE, Role.EXECUTOR)
        created = 0
        for what, number in steps:
            some = store.versions()[number % created].name if created else "v1"
            try:
                if what == "c":
                    store.create(some if number and created else "", writes(), [])
                    created += 1
                elif what == "p":
                    assert store.promote(some) == store.current()
                elif what == "r":
                    assert store.reject(some).state is State.REJECTED
                elif what == "x":
                    before = set(there(store))
                    gone = {store.get(name).number for name in store.prune(number % 3 + 1)}
                    assert before - gone == set(there(store))
                    assert len(there(store)) <= number % 3 + 2
                else:
                    done = store.rollback(some if what == "n" else "")
                    now = store.current()
                    assert done.now == (now.name if now else "")
                    assert all(store.get(name).state is State.ROLLED_BACK for name in done.rolled_back)
            except LearnError:
                pass
            current = store.current()
            if current is not None:
                assert current.state is State.PROMOTED
                assert mark_of(store, current.name) == 1.0
                assert store.served()[0] == current
            assert [version.number for version in store.versions()] == list(range(1, created + 1))
            assert rubbish(store) == set()


# ── a full disk ───────────────────────────────────────────────────────────────────────────────────────────────────


def fail_on_a_full_disk(folder: Path) -> None:
    """In a process of its own, on a small disk: says what happened, as JSON."""
    store = AdapterStore(folder / "planner", BASE, Role.PLANNER)
    (one,) = grow(store)
    ballast = folder / "ballast"

    def leave(room: int) -> None:
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(65_536)):
                    pass
            except OSError:
                pass
        os.truncate(ballast, max(0, ballast.stat().st_size - room))

    def late(path: Path) -> None:
        writes()(path)
        leave(4_096)  # The weights fit; what comes after them does not.

    told = []
    for write in (writes(size=500_000), late):
        leave(1_000_000)
        try:
            store.create(one, write, [rollout(group=os.urandom(64).hex()) for _ in range(2_000)])
        except LearnError as error:
            told.append([error.got, error.hint])
        assert rubbish(store) == set()
        assert [version.name for version in AdapterStore.open(store.folder).versions()] == [one]
        assert mark_of(store, "current") == 1.0
    leave(0)
    try:
        store.rollback()
    except LearnError as error:
        told.append([error.got, error.hint])
        assert store.get("current").name == one
    ballast.unlink()
    two = store.promote(store.create(one, writes(size=20_000), []).name)
    assert two.before == one
    three = store.promote(store.create(two.name, writes(), []).name)
    # Pruning makes room by itself.
    leave(0)
    assert store.prune(2) == (one,)
    assert store.prune(1) == (two.name,)
    assert store.current() == three
    store.rollback("base")
    print(json.dumps(told))


def test_a_disk_that_is_full_in_the_middle_of_publishing(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=3m none "$0" && exec "$@"'
    for allowed in (["unshare", "-m"], ["unshare", "-r", "-m"]):
        command = [*allowed, "sh", "-c", mount, str(tmp_path)]
        if (
            shutil.which("unshare")
            and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
        ):
            break
    else:
        pytest.skip("no disk may be mounted here")
    done = subprocess.run(
        [*command, sys.executable, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": PATHS},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told) == 3, told
    assert all("the disk is full" in got and "free some space" in hint for got, hint in told), told


@pytest.fixture
def small_files() -> Iterator[None]:
    """A quota: no file may become larger than 100 kB."""
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, kept[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, kept)


def test_a_quota_in_the_middle_of_publishing(store: AdapterStore, small_files: None) -> None:
    (one,) = grow(store)

    def write(folder: Path) -> None:
        (folder / "adapter_model.safetensors").write_bytes(bytes(200_000))

    with pytest.raises(LearnError, match="could not be written"):
        store.create(one, write, [])
    assert rubbish(store) == set()
    assert mark_of(store, "current") == 1.0


if __name__ == "__main__":
    fail_on_a_full_disk(Path(sys.argv[1]))
