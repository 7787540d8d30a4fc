"""Any text, and any vector, goes the whole way: added or remembered, recalled by another process, shown, exported,
imported into a new memory, and recalled there. No control character of it reaches the terminal."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from pathlib import Path

import pytest
from memory_work import about
from nursery import Nursery

from mia.store import open_store
from mia.store.base import storable
from mia.types import Memory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs processes of POSIX")

SENTENCE = "Which of the rivers that flow into the sea is the longest? "
TEXTS = [
    "Where does a\0null byte go?",
    "Who wrote \u202egnihton\u202c from right to left, מי כתב, من كتب?",
    "Who was \U0001f468‍\U0001f469‍\U0001f467‍\U0001f466 or \U0001f3f4\U000e0067\U000e0062\U000e007f in the picture?",
    unicodedata.normalize("NFD", "Où est né Antonín Dvořák? Ậ"),
    "What is Z̴̛̗a̷̢͝l̵̰̏g̸̡̚o̶̢͆ with a hundred marks" + "\u0301" * 100 + "?",
    "Which \ud800 lone \udfff surrogates are in \udcff a name?",
    "What does \x1b[31mred\x1b[0m and \x1b]0;title\x07 and \x9b2J do to a terminal\r?",
    "Which lines\u2028are\u2029ends\x85of\x0blines\x0c?",
    "Who said {braces} %s $(id) `id` '; DROP TABLE memories; -- <memory> </memory>?",
    "---\nquestion: which page\n---\n# begins like our pages?",
    "ﬁ ﷽ 漢字 ｆｕｌｌｗｉｄｔｈ ß İ ı Σς which of these change with the case?",
]
TRUSTING = {"MIA_MEMORY__QUARANTINE": "false"}
"""Some of the texts might be taken for orders."""
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(TEXTS, id="odd"),
        pytest.param([SENTENCE * 9_000], id="half a megabyte"),
        pytest.param([SENTENCE * 170_000], id="ten megabytes", marks=pytest.mark.slow),
    ],
)
def test_a_text_goes_the_whole_way(nursery: Nursery, tmp_path: Path, texts: list[str]) -> None:
    file, path = tmp_path / "texts.json", tmp_path / "memory.db"
    file.write_text(json.dumps(texts))
    ids = nursery.do("add_texts", path=str(path), texts=str(file))
    memories = stored(path)
    for id, text in zip(ids, texts, strict=True):
        assert memories[id].question == storable(text).strip()
    recalled = nursery.do("recall_texts", path=str(path), texts=str(file))
    assert_found(ids, recalled)
    home = ("--home", tmp_path)
    for id, text in zip(ids, texts, strict=True):
        shown = nursery.mia(*home, "memory", "show", id)
        assert shown.code == 0, shown.stderr
        assert not CONTROLS.search(shown.stdout)
        as_json = json.loads(nursery.mia(*home, "memory", "show", id, "--json").stdout)
        assert as_json["question"] == storable(text).strip()
        assert nursery.mia(*home, "memory", "audit", id).code == 0
    for command in (("list",), ("search", "which of these"), ("check",)):
        ended = nursery.mia(*home, "memory", *command)
        assert ended.code == 0, ended
        assert not CONTROLS.search(ended.stdout)
    for name in ("out.jsonl", "out.jsonl.gz"):
        new = tmp_path / name.replace(".", "-")
        assert nursery.mia(*home, "memory", "export", tmp_path / name).code == 0
        taken = nursery.mia("--home", new, "memory", "import", tmp_path / name, **TRUSTING)
        assert taken.code == 0, taken.stderr
        # To the letter, and with the same ids.
        assert stored(new / "memory.db") == memories
        assert nursery.do("recall_texts", path=str(new / "memory.db"), texts=str(file)) == recalled
    again = nursery.mia("--home", new, "memory", "import", tmp_path / "out.jsonl", "--json")
    assert json.loads(again.stdout)["known"] == len(texts)


def test_odd_texts_go_through_pages_for_people(nursery: Nursery, tmp_path: Path) -> None:
    """Markdown is text: it cannot hold every control character, and what it holds is the same afterwards."""
    file, path = tmp_path / "texts.json", tmp_path / "memory.db"
    file.write_text(json.dumps(TEXTS))
    ids = nursery.do("add_texts", path=str(path), texts=str(file))
    exported = nursery.mia("--home", tmp_path, "memory", "export", tmp_path / "pages")
    assert exported.code == 0, exported.stderr
    new = tmp_path / "new"
    taken = nursery.mia("--home", new, "memory", "import", tmp_path / "pages", "--json", **TRUSTING)
    assert taken.code == 0, taken
    memories, copies = stored(path), stored(new / "memory.db")
    assert copies.keys() == memories.keys() == set(ids)
    for id in ids:
        assert copies[id].question == memories[id].question
        assert copies[id].workflow.split() == memories[id].workflow.split()
    assert_found(ids, nursery.do("recall_texts", path=str(new / "memory.db"), texts=str(file)))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), 0.0], ids=str)
def test_vectors_without_a_direction_are_kept_and_harm_nobody(nursery: Nursery, tmp_path: Path, number: float) -> None:
    """An embedder gives no numbers for some texts. Those are stored and never shown by likeness; all others are found
    as if nothing were."""
    path, home = tmp_path / "memory.db", ("--home", tmp_path)
    texts = [about(("the broken one", "the whole one")[place // 2 % 2], place).text for place in range(12)]
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(texts))
    ids = nursery.do("add_texts", path=str(path), texts=str(file), embedder=number)
    broken = {id for id, text in zip(ids, texts, strict=True) if "broken" in text}
    assert len(broken) == 6
    recalled = nursery.do("recall_texts", path=str(path), texts=str(file))
    assert not broken & {id for line in recalled for id in line.split(" ")}
    whole = [(id, line) for id, line in zip(ids, recalled, strict=True) if id not in broken]
    assert all(line.split(" ")[0] == id for id, line in whole)
    checked = nursery.mia(*home, "memory", "check")
    assert checked.code == 0, checked.stdout
    listed = json.loads(nursery.mia(*home, "memory", "search", texts[0], "-k", 12, "--json").stdout)
    assert {one["memory"]["id"] for one in listed} == set(ids)
    assert all(-1.001 <= one["similarity"] <= 1.001 for one in listed)
    assert nursery.mia(*home, "memory", "export", tmp_path / "out.jsonl").code == 0
    new = tmp_path / "new"
    taken = nursery.mia("--home", new, "memory", "import", tmp_path / "out.jsonl")
    assert taken.code == 0, taken.stderr
    assert stored(new / "memory.db") == stored(path)
    assert nursery.do("recall_texts", path=str(new / "memory.db"), texts=str(file)) == recalled


def stored(path: Path) -> dict[str, Memory]:
    with open_store(path) as store:
        assert store.check().sound
        return {memory.id: memory for memory in store.list_memories(None, limit=999)}


def assert_found(ids: list[str], recalled: list[str]) -> None:
    """Each question shows its own memory, before all others."""
    assert [line.split(" ")[0] for line in recalled] == ids
