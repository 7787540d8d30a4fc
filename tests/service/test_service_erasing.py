"""Delete my data, where a server was: after it, no file in the home holds a word of it, and what is another's stays."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest

pytest.importorskip("fastapi", reason="the extra `service` is not installed")

from embedded_team import needs_embedded_model
from embedded_team import settings as embedded_settings
from memory.past import episode
from service_team import make_service, settings
from starlette.testclient import TestClient

from mia.config import Config
from mia.embeddings.hashing import HashingEmbedder
from mia.erasure import LEARNING, SPOOL, Erasure, Selection, erase_everywhere
from mia.learn.adapters import AdapterStore
from mia.learn.rollouts import Conversation, Rollout
from mia.learn.spool import Fate, Group, Spool, append_line, group_id, read_group
from mia.memory.manager import MemoryManager
from mia.models.ledger import Ledger
from mia.service.app import create_app
from mia.service.compat import context, exports
from mia.service.compat.registry import Registry
from mia.service.core import Service
from mia.service.durable import ERASED, Durable, ItemState
from mia.service.erasing import CANARY, DURABLE, EXPORTS, REGISTRY, note_scope, places
from mia.store import open_store
from mia.types import Episode, Image, Question, Role, Task
from mia.world.facts import World
from mia.world.questions import tasks

ANN, BOB = "acme/ann", "acme/bob"
PARROT, FERRY = "zanzibarparrot", "lisbonferry"
"""Ann's word and Bob's."""
PICTURE = Image.from_bytes(b"\x89PNG\r\n\x1a\n" + b"parrot")


def about(word: str, id: str = "", *, shown: Sequence[str] = ()) -> Episode:
    question = Question.of(f"Where is the {word}?", id=f"q-{word}")
    made = episode(question=question, answer=word, plan=f"1. Find {word}.", id=id, shown=shown)
    if made.recall is None or not shown:
        return made
    first = made.recall.shown[0].evolve(question=f"Where is the {PARROT}?")
    return made.evolve(recall=made.recall.evolve(shown=(first,), for_planner=f"See {PARROT}.", for_executor=PARROT))


def tries(word: str, *episodes: Episode) -> Group:
    conversation = Conversation((len(word), 7, 7, 7), (False, True, True, True), (0.0, -0.1, -0.1, -0.1))
    samples = tuple(Rollout(f"stream-1/q-{word}/0", 1.0, (conversation,), episode_id=one.id) for one in episodes)
    return Group(f"q-{word}", 0, 0, episodes, samples)


class Home:
    """What a server kept of two people who asked one question each; a stream, of Ann's alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: Config = settings(folder, memory__scope=ANN)
        self.ids = {ANN: f"ep-{PARROT}", BOB: f"ep-{FERRY}"}
        self.memory = ""

    async def fill(self) -> None:
        with open_store(self.config.store_path) as store:
            for scope, word in ((ANN, PARROT), (BOB, FERRY)):
                memory = self.config.memory.model_copy(update={"scope": scope})
                manager = MemoryManager(store, HashingEmbedder(), memory)
                one = about(word, f"ep-{word}")
                (made,) = await manager.remember([one], Ledger(one.question.id))
                self.memory = self.memory or made.id
                exports.save(self.config, manager, "memory.jsonl.gz" if scope == BOB else "memory.jsonl")
        self._fill_durable()
        self._fill_registry()
        self._fill_stream()

    def _fill_durable(self) -> None:
        durable = Durable(self.folder / DURABLE)
        for scope, word in ((ANN, PARROT), (BOB, FERRY)):
            durable.accept(about(word, f"ep-{word}-waits"), scope)
            durable.accept_memory(
                {"question": f"Where is the {word}?", "workflow": word, "judgement": "correct"}, scope
            )
            task = Task(question=about(word).question, references=(word,))
            other = Task(question=Question.of(f"Another of {scope}?"))
            job = durable.submit([task, other, task], scope)
            durable.begin_job(job.id)
            durable.finish_item(job.id, 0, about(word, f"ep-{word}"))
        # Bob was shown what Ann knows, as a recall of the level above could have.
        durable.accept(about("tram", "ep-shown", shown=[self.memory]), BOB)
        durable.close()

    def _fill_registry(self) -> None:
        registry = Registry(self.folder / REGISTRY)
        for scope, word in ((ANN, PARROT), (BOB, FERRY)):
            registry.register_truths(scope, {f"q-{word}": f"In {word}."})
            registry.register_images(scope, {f"q-{word}": [PICTURE]})
            registry.keep_candidate(scope, f"q-{word}", about(word, f"ep-{word}"))
            chosen = {"first": {"episode_id": f"ep-{word}", "judgement": "correct", "answer": word}}
            page = {"data_id": f"q-{word}", "question": about(word).question.text, "tries": 1, "chosen": chosen}
            registry.keep_evaluation(scope, f"q-{word}/1", page)
            exports.save_pages(self.config, scope, exports.EVALUATIONS, registry.evaluations(scope))
        registry.keep_found("search", "tram", {"text": "found"})
        registry.close()

    def _fill_stream(self) -> None:
        folder = self.folder / LEARNING
        folder.mkdir()
        note_scope(folder, ANN)
        spool = Spool(folder / SPOOL)
        for part, word in (("answered", PARROT), ("ready", f"{PARROT}-r"), ("learnt", f"{PARROT}-l")):
            group = tries(word, about(word, f"ep-{PARROT}" if part == "answered" else f"ep-{word}"))
            spool.put(group)
            if part != "answered":
                spool.make_ready(group)
            if part == "learnt":
                spool.retire(spool.ready()[-1:], keep=4)
        spool.close()
        task = Task(question=about(PARROT).question, references=(PARROT,))
        append_line(folder / CANARY, task.model_dump(mode="json"))
        adapters = AdapterStore(self.folder / "adapters" / Role.PLANNER, "base", Role.PLANNER)
        samples = [one.rollouts[0] for one in (tries(word, about(word, f"ep-{word}")) for word in (PARROT, FERRY))]
        adapters.create("", _write_weights, samples, tokens=True)

    def erase(self, **what: Any) -> Erasure:
        with open_store(self.config.store_path, create=False) as store:
            return erase_everywhere(store, self.folder, places=places(self.folder), **what)

    def holding(self, text: str) -> set[str]:
        return holding(self.folder, text)

    def sampled(self) -> list[str]:
        adapters = AdapterStore.open(self.folder / "adapters" / Role.PLANNER)
        return [one.episode_id for one in adapters.samples("v1")]


def holding(folder: Path, text: str) -> set[str]:
    """The files that hold it, looked for in what is packed too."""
    found = set()
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            content += gzip.decompress(content) if path.suffix == ".gz" else b""
            if text.encode() in content:
                found.add(str(path.relative_to(folder)))
    return found


def _write_weights(folder: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy", reason="the extra `local` is not installed")
    (folder / "adapter_config.json").write_text("{}")
    safetensors.save_file({"a": numpy.zeros(1, numpy.float32)}, folder / "adapter_model.safetensors")


@pytest.fixture
async def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    await made.fill()
    return made


def test_the_names_of_the_files_are_those_of_their_owners() -> None:
    assert (REGISTRY, EXPORTS) == (context.FILE, exports.FOLDER)


async def test_after_a_scope_is_erased_no_file_of_the_home_holds_a_word_of_it(home: Home) -> None:
    places_before = home.holding(PARROT)
    # It was everywhere: else the search below would prove nothing.
    assert {
        DURABLE,
        REGISTRY,
        f"{LEARNING}/{CANARY}",
        "exports/memory.jsonl",
        "exports/evaluated.jsonl",
    } <= places_before
    assert {Path(one).parent.name for one in places_before} >= {"answered", "ready", "learnt"}
    assert home.sampled() == [home.ids[ANN], home.ids[BOB]]
    ferry = home.holding(FERRY)

    erasure = home.erase(scope=ANN)

    # The rows of a version hold ids and rewards, and neither text nor tokens.
    rows = {one for one in places_before if one.endswith(("rollouts.jsonl.gz", "store.json", "version.json"))}
    assert home.holding(PARROT) - rows == set(), erasure
    assert home.sampled() == [home.ids[BOB]]
    assert erasure.unreached == ()
    assert {path.name for path in erasure.cleaned} >= {DURABLE, REGISTRY, CANARY, "memory.jsonl", "evaluated.jsonl"}
    assert home.holding(FERRY) == ferry
    registry, durable = Registry(home.folder / REGISTRY), Durable(home.folder / DURABLE)
    assert registry.truth(BOB, f"q-{FERRY}") == f"In {FERRY}."
    assert (registry.count_images(BOB), registry.count_candidates(BOB), len(registry.evaluations(BOB))) == (1, 1, 1)
    assert registry.found("search", "tram", not_before=0) == {"text": "found"}
    assert (durable.pending_count(ANN), durable.jobs(scope=ANN)) == (0, ())
    assert {one.id for one in durable.pending(scope=BOB)} > {f"ep-{FERRY}-waits", "ep-shown"}
    (job,) = durable.jobs(scope=BOB)
    assert dict(job.counts) == {"answered": 1, "queued": 2}
    registry.close()
    durable.close()


async def test_a_question_goes_by_its_words_and_the_rest_of_its_scope_stays(home: Home) -> None:
    erasure = home.erase(questions=[f"where is the {PARROT}"])
    assert (erasure.unreached, erasure.unknown) == ((), ())
    durable, registry = Durable(home.folder / DURABLE), Registry(home.folder / REGISTRY)
    assert durable.pending_count(ANN) == 0
    (job,) = durable.jobs(scope=ANN)
    first, other, last = durable.items(job.id)
    assert (first.question, first.answer, first.state) == (ERASED, None, ItemState.ANSWERED)
    assert (last.question, last.state) == (ERASED, ItemState.CANCELLED)
    assert [due.task.question.text for due in durable.open_items(job.id)] == [f"Another of {ANN}?"] == [other.question]
    assert registry.truth(ANN, f"q-{PARROT}") == ""
    assert (registry.count_images(ANN), registry.count_candidates(ANN), registry.evaluations(ANN)) == (0, 0, ())
    durable.close()
    registry.close()
    spool = Spool(home.folder / LEARNING / SPOOL)
    assert (spool.answered(), len(spool.ready()), len(spool.learnt())) == ([], 1, 1)
    spool.close()
    assert (home.folder / LEARNING / CANARY).read_bytes() == b""
    assert home.sampled() == [home.ids[BOB]]
    assert not {one for one in home.holding(f"the {PARROT}?") if SPOOL not in one}


async def test_an_episode_goes_and_the_truth_that_was_registered_for_its_question_stays(home: Home) -> None:
    erasure = home.erase(episode_ids=[home.ids[ANN]])
    assert erasure.unreached == ()
    registry, durable = Registry(home.folder / REGISTRY), Durable(home.folder / DURABLE)
    assert registry.truth(ANN, f"q-{PARROT}")
    assert (registry.count_candidates(ANN), registry.evaluations(ANN)) == (0, ())
    assert f"ep-{PARROT}-waits" in {one.id for one in durable.pending(scope=ANN)}
    (job,) = durable.jobs(scope=ANN)
    assert [one.question == ERASED for one in durable.items(job.id)] == [True, False, False]
    registry.close()
    durable.close()
    assert home.sampled() == [home.ids[BOB]]
    # What has an id nowhere is told, and what only the server had is not.
    assert home.erase(episode_ids=[f"ep-{PARROT}-waits"]).unknown == ()
    assert home.erase(episode_ids=["ep-none"]).unknown == ("ep-none",)


async def test_what_others_were_shown_of_a_memory_is_blotted_out_and_not_learnt(home: Home) -> None:
    spool = Spool(home.folder / LEARNING / SPOOL)
    waits = tries("tram", about("tram", "ep-a", shown=[home.memory]))
    due = tries("ship", about("ship", "ep-b", shown=[home.memory]))
    spool.put(waits)
    spool.put(due)
    spool.make_ready(due)
    before = len(spool.ready())
    spool.close()
    erasure = home.erase(memory_ids=[home.memory])
    assert erasure.unreached == ()
    durable = Durable(home.folder / DURABLE)
    found = durable.pending_episode("ep-shown")
    assert found is not None
    assert found[0].recall is not None
    assert {found[0].recall.for_planner, found[0].recall.shown[0].question} == {ERASED}
    durable.close()
    spool = Spool(home.folder / LEARNING / SPOOL)
    (left,) = [one for one in spool.answered() if one.id == group_id("q-tram", 0)]
    assert left.rollouts == ()
    assert left.episode.recall is not None
    assert left.episode.recall.for_executor == ERASED
    assert len(spool.ready()) == before - 1
    assert "q-ship" not in {read_group(path).question_id for path in spool.ready()}
    spool.close()


async def test_what_a_server_and_a_learner_hold_is_said_and_reached_when_they_are_gone(home: Home) -> None:
    durable, spool = Durable(home.folder / DURABLE), Spool(home.folder / LEARNING / SPOOL)
    erasure = home.erase(scope=ANN)
    told = {one.place.name: one.reason for one in erasure.unreached}
    assert set(told) == {DURABLE, SPOOL}
    assert "another server works in" in told[DURABLE]
    assert "another process is learning in" in told[SPOOL]
    assert all("stop it first" in reason for reason in told.values())
    durable.close()
    spool.close()
    assert home.erase(scope=ANN).unreached == ()
    assert not {one for one in home.holding(PARROT) if "adapters" not in one}


async def test_lines_and_files_that_cannot_be_read_are_left_and_said(home: Home) -> None:
    export = home.folder / EXPORTS / "memory.jsonl"
    export.write_bytes(b"not ours\n" + export.read_bytes())
    torn = home.folder / LEARNING / SPOOL / "ready" / "00000099-torn.json.gz"
    torn.write_bytes(b"torn")
    (home.folder / LEARNING / "scopes.json").unlink()
    told = {one.place.name: one.reason for one in home.erase(scope=ANN).unreached}
    assert set(told) == {"memory.jsonl", torn.name, LEARNING}
    assert "does not say whose it is" in told[LEARNING]
    lines = export.read_bytes().splitlines()
    assert lines[0] == b"not ours"
    assert PARROT.encode() not in export.read_bytes()
    assert json.loads(lines[1])["mia"] == "memory"


def test_over_the_wire_an_episode_goes_from_all_that_the_server_keeps(tmp_path: Path) -> None:
    service = make_service(tmp_path)
    with TestClient(create_app(service)) as client:
        id = ask(client, f"Where is the {PARROT}?")
        registry, kept = Registry(tmp_path / REGISTRY), service.store.kept_episode(id)
        assert kept is not None
        registry.keep_candidate("default", kept.episode.question.id, kept.episode)
        assert client.post("/batch_evaluate", json={}).status_code == 200
        assert client.post("/save_memory").status_code == 200
        _make_ready(tmp_path / LEARNING / SPOOL, kept.episode)
        assert {f"{EXPORTS}/memory.jsonl", f"{EXPORTS}/evaluated.jsonl"} <= holding(tmp_path, PARROT)
        reply = client.delete(f"/v1/episodes/{id}")
        assert reply.status_code == 200, reply.text
        assert reply.json()["unreached"] == []
        assert registry.count_candidates("default") == 0
        registry.close()
        # While it runs, and after.
        assert holding(tmp_path, PARROT) == set()
    assert holding(tmp_path, PARROT) == set()


@needs_embedded_model
def test_a_server_that_learns_erases_in_its_own_stream(tmp_path: Path) -> None:
    service = Service(
        embedded_settings(
            tmp_path,
            learn__enabled=True,
            learn__into="memory",
            learn__samples=2,
            learn__canary=1,
            judge__kind="reference",
        )
    )
    with TestClient(create_app(service)) as client:
        chosen = tasks(World.make(service.config.search.world), 2)
        held_out, learnt = (ask(client, task.question.text, task.references) for task in chosen)
        kept = service.store.kept_episode(learnt)
        assert kept is not None
        _make_ready(tmp_path / "other", kept.episode)
        (group,) = (tmp_path / "other" / "ready").iterdir()
        place = tmp_path / LEARNING / SPOOL / "ready" / group.name
        group.replace(place)
        assert service.learner is not None
        assert service.learner.waiting == 1
        # Another process cannot reach it, and says so.
        told = places(tmp_path)[-1].erase(Selection(episode_ids={learnt})).unreached
        assert ["another process is learning in" in one.reason for one in told] == [True]
        assert place.exists()
        assert client.delete(f"/v1/episodes/{learnt}").json()["unreached"] == []
        assert not place.exists()
        canary = tmp_path / LEARNING / CANARY
        assert chosen[0].question.text in canary.read_text()
        assert client.delete(f"/v1/episodes/{held_out}").json()["unreached"] == []
        assert canary.read_bytes() == b""


def test_what_is_in_use_stays_in_a_spool_and_is_told(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for word in ("a", "b"):
        spool.put(tries(word, about(word)))
    spool.make_ready(tries("b", about("b")))
    busy = spool.erase(lambda group: "goes", in_use=("answered", "ready", "learnt"))
    assert ([path.parent.name for path in busy.left], busy.changed) == (["answered", "ready"], [])
    # What is on its way into the memory is changed where it stands.
    blotted = spool.erase(_without_rollouts, in_use=("answered", "ready", "learnt"))
    assert [path.parent.name for path in (*blotted.changed, *blotted.left)] == ["answered", "ready"]
    assert ([one.rollouts for one in spool.answered()], len(spool.ready())) == ([()], 1)
    some = spool.erase(lambda group: "goes", in_use=("answered",))
    assert [path.parent.name for path in (*some.left, *some.changed)] == ["answered", "ready"]
    assert (len(spool.answered()), spool.ready()) == (1, [])
    spool.close()


def _without_rollouts(group: dict[str, Any]) -> Fate:
    group["rollouts"] = []
    return "changed"


def ask(client: TestClient, question: str, references: Sequence[str] = ("The Hague",)) -> str:
    reply = client.post("/v1/ask", json={"question": question, "references": list(references)})
    assert reply.status_code == 200, reply.text
    while client.get("/v1/queue").json()["accepted_total"]:
        pass
    id: str = reply.json()["episode_id"]
    return id


def _make_ready(folder: Path, episode: Episode) -> None:
    """What the weights are still to learn."""
    group = Group(episode.question.id, 0, 0, (episode,))
    spool = Spool(folder)
    spool.put(group)
    spool.make_ready(group)
    spool.close()
