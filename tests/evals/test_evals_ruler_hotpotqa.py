"""RULER-HotpotQA: how many documents, which ones, in which order; and the file formats."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from long_texts import hotpot_file, sources, squad_file

from mia.errors import ConfigError, RecordError
from mia.evals.ruler import suite
from mia.evals.ruler.documents import Asked, Corpus, Document, read_corpus
from mia.evals.ruler.hotpotqa import mix
from mia.evals.ruler.items import Work

POOL = tuple(Document(f"t{number}", f"text {number}") for number in range(40))
ASKED = Asked("q", "?", ("yes",), POOL[:10], frozenset({"t2", "t5"}))


@settings(max_examples=200)
@given(st.integers(2, 40), st.integers())
def test_mixing(documents: int, seed: int) -> None:
    mixed = mix(ASKED, POOL, documents, random.Random(seed))
    assert len(mixed) == len(set(mixed)) == documents
    assert {POOL[2], POOL[5]} <= set(mixed)
    # Its own come before others.
    assert len(set(mixed) & set(ASKED.own)) == min(documents, 10)
    assert mixed == mix(ASKED, POOL, documents, random.Random(seed))


def test_the_order_is_shuffled_evenly() -> None:
    places = [mix(ASKED, POOL, 20, random.Random(seed)).index(POOL[2]) for seed in range(2000)]
    # 100 in each place, ± 10: five of these deviations are allowed.
    assert all(50 < places.count(place) < 150 for place in range(20))


@pytest.mark.parametrize(("documents", "message"), [(1, "needs 2 documents"), (41, "40 different ones")])
def test_too_few_or_too_many(documents: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mix(ASKED, POOL, documents, random.Random(0))


def test_the_text_is_as_published(tmp_path: Path) -> None:
    corpus = read_corpus(hotpot_file(tmp_path))
    found = suite.make(Work("hotpotqa", 50, 3), sources(corpus=corpus, seed=4))
    parts = found.text.split("\n\n")
    assert len(parts) == 50
    for number, part in enumerate(parts, start=1):
        head, title, text = part.split("\n")
        assert head == f"Document {number}:"
        assert text == f"{title} is a thing. It lies near place {title}."
    assert found.measure == "lenient_stated"
    own = next(asked for asked in corpus.questions if asked.question == found.question)
    assert all(found.text.count(f"\n{document.title}\n") == 1 for document in own.own)
    assert len(found.depths) == 2
    assert found == suite.make(Work("hotpotqa", 50, 3), sources(corpus=corpus, seed=4))
    assert found.text != suite.make(Work("hotpotqa", 50, 3), sources(corpus=corpus, seed=5)).text


def test_every_question_comes_once(tmp_path: Path) -> None:
    made = sources(corpus=read_corpus(hotpot_file(tmp_path)), seed=4)
    assert len({suite.make(Work("hotpotqa", 20, number), made).question for number in range(12)}) == 12


def test_formats_tell_the_same(tmp_path: Path) -> None:
    path = hotpot_file(tmp_path)
    original = read_corpus(path)
    rows = [
        {
            "id": entry["_id"],
            "question": entry["question"],
            "answers": [entry["answer"]],
            "supporting_facts": {"title": [fact[0] for fact in entry["supporting_facts"]], "sent_id": [0, 1]},
            "context": {
                "title": [title for title, _ in entry["context"]],
                "sentences": [sentences for _, sentences in entry["context"]],
            },
        }
        for entry in json.loads(path.read_text(encoding="utf-8"))
    ]
    lines = tmp_path / "rows.jsonl.gz"
    lines.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))
    again = read_corpus(lines)
    assert (again.questions, again.pool) == (original.questions, original.pool)
    assert original.questions[0].supporting == {"Title 0-3", "Title 0-7"}
    assert len(original.pool) == 120


def test_squad_leaves_out_what_has_no_answer(tmp_path: Path) -> None:
    corpus = read_corpus(squad_file(tmp_path, paragraphs=3))
    assert [asked.id for asked in corpus.questions] == ["s0", "s1", "s2"]
    assert len(corpus.pool) == 3
    flat = tmp_path / "flat.jsonl"
    flat.write_text(json.dumps({"question": "Who?", "answers": {"text": ["Ada", "Ada"]}, "context": "It was Ada."}))
    [asked] = read_corpus(flat).questions
    assert (asked.answers, asked.own) == (("Ada",), (Document("", "It was Ada."),))


def test_a_pool_of_more_documents(tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text("\n".join(json.dumps({"title": f"x{n}", "text": f"text {n}"}) for n in range(30)))
    corpus = read_corpus(hotpot_file(tmp_path, questions=1), more)
    assert len(corpus.pool) == 40
    assert suite.make(Work("hotpotqa", 40, 0), sources(corpus=corpus)).text.count("Document ") == 40


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no question"),
        ("[]", "holds no question"),
        ("{", "line 1, is no JSON"),
        ('{"question": "a", "answer": "b"}', "entry 1, is no question with documents"),
        ('{"question": 1, "answer": "b", "context": "c"}', "entry 1, is no question"),
        ('{"question": "a", "answer": "b", "context": [["t"]]}', "entry 1"),
        ('[{"question": "a", "answer": "b", "context": "c"}, 7]', "entry 2, is no JSON object"),
        ('{"question": "a", "answer": "b", "context": "c"}\n{"quest', "line 2, is no JSON"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RecordError, match=re.escape(message)):
        read_corpus(path)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    for content in (b"\xff\xfe\xfd", b"\x1f\x8b\x08 torn"):
        path.write_bytes(content)
        with pytest.raises(RecordError):
            read_corpus(path)
    with pytest.raises(RecordError, match="cannot read"):
        read_corpus(tmp_path)


@pytest.mark.skipif("MIA_DATA" not in os.environ, reason="MIA_DATA is not set")
def test_the_real_questions(tmp_path: Path) -> None:
    """The questions of HotpotQA with their supporting paragraphs, and the whole corpus as the pool."""
    folder = Path(os.environ["MIA_DATA"]) / "hotpotqa"

    def lines(name: str) -> list[dict[str, object]]:
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    documents = {document["id"]: document for document in lines("corpus")}
    path = tmp_path / "hotpot.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for row in lines("questions"):
            own = [documents[id] for id in row["supporting_ids"]]  # type: ignore[attr-defined]
            context = [[document["title"], [document["text"]]] for document in own]
            facts = [[document["title"], 0] for document in own]
            file.write(json.dumps({**row, "context": context, "supporting_facts": facts}) + "\n")
    corpus: Corpus = read_corpus(path, folder / "corpus.jsonl.gz")
    assert len(corpus.questions) > 400
    made = sources(corpus=corpus, seed=4)
    small, large = (suite.make(Work("hotpotqa", documents, 7), made) for documents in (50, 6400))
    assert small.question == large.question
    # MemAgent gives 50 documents as about 7K tokens, and 6,400 as 896K.
    assert 4_000 < small.tokens < 10_000
    assert 600_000 < large.tokens < 1_100_000
    assert len(large.depths) == 2
