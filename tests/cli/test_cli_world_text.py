"""`mia world text`: a long text with a question about it, and the embedded model that reads it with nothing set."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from embedded_team import needs_embedded_model
from program import Program

from mia.cli import embedded
from mia.config import WORLD_SEED
from mia.world import preset
from mia.world.facts import World
from mia.world.longtexts import answer_from, note_facts


def test_the_text_tells_what_the_question_asks_for(program: Program) -> None:
    ended = program("world", "text", "long.txt", "--tokens", "3000", "--facts", "2", "--json")
    page = json.loads(ended.stdout)
    text = Path("long.txt").read_text()
    assert 3000 <= page["tokens"] <= 3050
    assert answer_from(page["question"], note_facts(page["question"], "", text)) == f"\\boxed{{{page['answer']}}}"
    first = page["answer"].split(", ")[0]
    assert abs(text.index(f"is {first}", int(page["depths"][0] * len(text))) / len(text) - page["depths"][0]) < 0.05
    relation = next(name for name in World.make(WORLD_SEED).facts if f" {name} " in page["question"])
    assert f"{relation} of" in text


def test_it_says_how_to_have_it_read_and_overwrites_nothing(program: Program) -> None:
    ended = program("world", "text", "a text.txt", "--number", "3")
    assert ended.stdout.startswith("question    ")
    question = ended.stdout.splitlines()[0].removeprefix("question    ")
    assert ended.stderr.strip() == f"To have it read: mia read 'a text.txt' {shlex.quote(question)}"
    other = program("world", "text", "other.txt", "--number", "4")
    assert other.stdout != ended.stdout
    before = Path("a text.txt").read_bytes()
    again = program("world", "text", "a text.txt")
    assert (again.code, again.stdout) == (2, "")
    assert "a file that is not there yet" in again.stderr
    assert Path("a text.txt").read_bytes() == before


@needs_embedded_model
@pytest.mark.skipif(not preset.READING.is_dir(), reason="no reader comes with this copy")
def test_with_nothing_set_the_embedded_model_reads_it_and_nothing_else(program: Program) -> None:
    made = json.loads(program("world", "text", "long.txt", "--tokens", "1500", "--json").stdout)
    ended = program("read", "long.txt", made["question"])
    # How often it is right is told by tests/learn/test_learn_reading.py.
    assert ended.code == 0
    assert f" is {ended.stdout.strip()}." in Path("long.txt").read_text()
    assert "The embedded model reads, which knows the language of the offline world alone." in ended.stderr
    strange = program("read", "long.txt", "Who wrote this?")
    assert strange.code == 2
    assert "no model is named to read with" in strange.stderr
    three = program("read", "long.txt", "Name the coach of Dadre, the mouth of Badostu and the twin of Kogale.")
    assert three.code == 2
    assert program("read", "long.txt", made["question"], "--quiet").stderr == ""
    both = program("read", "long.txt", "-q", made["question"], "-q", "Who wrote this?")
    assert both.code == 2


def test_without_its_library_a_model_is_asked_for(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_LIBRARIES", ("no_such_library",))
    made = json.loads(program("world", "text", "long.txt", "--tokens", "500", "--json").stdout)
    ended = program("read", "long.txt", made["question"])
    assert ended.code == 2
    assert "no model is named to read with" in ended.stderr
