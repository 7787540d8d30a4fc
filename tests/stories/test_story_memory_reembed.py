"""Another embedder than the store was made with: refused, with what to do; then all is embedded anew while the store is
in use, by a command that is killed again and again; and in the end the store is what it would have been."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
from memory_work import OldEmbedder, about, fill, manager
from nursery import Nursery

from mia.embeddings.base import Vectors
from mia.embeddings.hashing import HashingEmbedder
from mia.errors import StoreError
from mia.memory import cache
from mia.store import open_store

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")

SIZE = 4_000


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("old") / "memory.db"
    fill(path, SIZE, OldEmbedder())
    return path


def test_the_vectors_of_two_embedders_never_meet(nursery: Nursery, old: Path, tmp_path: Path) -> None:
    shutil.copy(old, tmp_path)
    before = (tmp_path / "memory.db").read_bytes()
    home = ("--home", tmp_path)
    add = ("memory", "add", "--question", "Who was it?", "--workflow", "1. look (it → her)", "--judgement", "correct")
    for command in (("memory", "search", "the diary"), add):
        refused = nursery.mia(*home, *command, MIA_MEMORY__EMBEDDER="hashing")
        assert refused.code == 1
        assert "old/1/400" in refused.stderr
        assert "hashing/1/384" in refused.stderr
        assert "mia memory reembed" in refused.stderr
        assert "Traceback" not in refused.stderr
    # What compares nothing does not mind.
    assert nursery.mia(*home, "memory", "list", MIA_MEMORY__EMBEDDER="hashing").code == 0
    assert (tmp_path / "memory.db").read_bytes() == before


def test_it_is_killed_many_times_and_comes_to_the_end_while_the_store_is_in_use(
    nursery: Nursery, old: Path, tmp_path: Path
) -> None:
    path = tmp_path / "memory.db"
    shutil.copy(old, path)
    user = nursery.start("use_with_old_embedder", path=str(path))
    moments = random.Random(11)
    before = 0
    for _ in range(6):
        worker = nursery.start("reembed", path=str(path))
        done, _, kept = map(int, worker.hear().split())
        # It goes on where the killed one was.
        assert kept == done >= before
        before = int(worker.hear().split()[0])
        time.sleep(moments.uniform(0, 0.03))
        worker.kill()
        assert worker.wait() == -9
    with open_store(path) as store:
        assert store.space() == "old/1/400"
        assert store.check().sound
    reembed = ["--home", str(tmp_path), "memory", "reembed", "--embedder", "hashing", "--json"]
    ended = nursery.mia(*reembed)
    assert ended.code == 0, ended.stderr
    done_by = json.loads(ended.stdout)
    assert done_by["kept"] >= before
    assert done_by["before"] == "old/1/400"
    said = user.finish()
    remembered = [line.split(" ")[1] for line in said if line.startswith("remembered")]
    assert len(remembered) > 10
    assert said[-1].startswith("refused")
    assert "hashing/1/384" in said[-1]
    assert "mia memory reembed" in said[-1]
    assert_as_if_made_with_hashing(nursery, path, tmp_path / "anew" / "memory.db")
    with open_store(path) as store:
        ids = {memory.id for memory in store.list_memories(None, limit=10_000)}
        assert len(ids) == SIZE + len(remembered)
        assert set(remembered) <= ids
        assert store.check().sound
        assert cache.verify(store, "default") == []
    assert json.loads(nursery.mia(*reembed).stdout)["done"] == 0


def test_a_question_that_is_just_being_embedded_is_not_compared_with_the_new_vectors(
    nursery: Nursery, old: Path, tmp_path: Path
) -> None:
    """Another process changes the embedder between our look at it and our look at the vectors."""
    path = tmp_path / "memory.db"
    shutil.copy(old, path)

    class Overtaken(OldEmbedder):
        """While it works, somebody else does too."""

        overtaken = False

        def embed(self, texts: Sequence[str]) -> Vectors:
            if self.overtaken:
                nursery.do("reembed", path=str(path))
            return super().embed(texts)

    embedder = Overtaken()
    memory = manager(path, embedder)
    question = about("the elder", 7)
    assert asyncio.run(memory.recall(question)).considered == SIZE
    embedder.overtaken = True
    with pytest.raises(StoreError, match="hashing/1/384"):
        asyncio.run(memory.recall(question))
    embedder.overtaken = False
    with pytest.raises(StoreError, match="mia memory reembed"):
        memory.search(question.text)
    memory.close_now()


def assert_as_if_made_with_hashing(nursery: Nursery, path: Path, anew: Path) -> None:
    """Every vector is that of the new embedder, and a store that takes the texts in from the start recalls the same."""
    embedder = HashingEmbedder()
    with open_store(path) as store:
        assert store.space() == embedder.space
        pairs = list(store.export(None))
    rows = embedder.embed([memory.question for memory, _ in pairs])
    numpy.testing.assert_allclose(numpy.stack([vectors.question for _, vectors in pairs]), rows, atol=1e-6)
    out = path.with_name("texts.jsonl")
    exported = nursery.mia("--home", path.parent, "memory", "export", out, "--no-vectors")
    assert exported.code == 0, exported.stderr
    taken = nursery.mia("--home", anew.parent, "memory", "import", out)
    assert taken.code == 0, taken.stderr
    questions = [about("the elder", number).text for number in (0, 999, 3_999)]
    assert nursery.do("warm", path=str(path), questions=questions) == nursery.do(
        "warm", path=str(anew), questions=questions
    )
