"""What every task promises: its length, its needles once and at even depths, the same text for the same seed."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from long_texts import ESSAY, hotpot_file, sources, squad_file

from mia.errors import ConfigError, RecordError
from mia.evals.ruler import needles, suite, vocabulary, words
from mia.evals.ruler.documents import read_corpus
from mia.evals.ruler.haystacks import NOISE, Haystack, depth, fit, hide, read_essays, world_essays
from mia.evals.ruler.items import Item, Work
from mia.evals.ruler.tokens import read_tokenizer

LEAST = {"cwe": 700, "niah_multivalue": 400, "niah_multiquery": 400, "niah_multikey_1": 400}
"""Tokens from which on a task is asked here; 300 for the others."""


def make(task: str, length: int, number: int = 0, **others: object) -> Item:
    return suite.make(Work(task, length, number), sources(**others))  # type: ignore[arg-type]


@pytest.mark.parametrize("task", suite.RULER)
@settings(max_examples=25, deadline=None)
@given(
    more=st.integers(0, 20_000),
    number=st.integers(0, 1000),
    seed=st.integers(),
    count=st.sampled_from(["estimate", "words"]),
)
def test_length_and_needles(task: str, more: int, number: int, seed: int, count: str) -> None:
    length = LEAST.get(task, 300) + more
    found = make(task, length, number, seed=seed, count=count)
    assert found.tokens == sources(count).count(found.text)
    assert abs(found.tokens - length) <= 0.02 * length
    assert found == make(task, length, number, seed=seed, count=count)
    assert len(set(found.references)) == len(found.references) > 0
    assert all(0 <= place <= 1 for place in found.depths)
    if task.startswith("niah"):
        assert len(found.depths) == len(found.references)
        for place, value in zip(found.depths, found.references, strict=True):
            [needle] = re.findall(rf"One of the special magic \w+ for \S+ is: {value}\.", found.text)
            assert depth(found.text, needle) == place
            key = needle.split()[6]
            assert key in found.question
            assert found.text.count(value) == 1


def test_another_seed_or_number_is_another_text() -> None:
    for task in suite.RULER:
        assert len({make(task, 900).text, make(task, 900, 1).text, make(task, 900, seed=1).text}) == 3


@pytest.mark.parametrize(
    ("task", "asked", "hidden", "value"),
    [
        ("niah_single_1", 1, 1, r"\d{7}"),
        ("niah_single_2", 1, 1, r"\d{7}"),
        ("niah_single_3", 1, 1, r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"),
        ("niah_multikey_1", 1, 4, r"\d{7}"),
        ("niah_multikey_2", 1, None, r"\d{7}"),
        ("niah_multikey_3", 1, None, r"[0-9a-f-]{36}"),
        ("niah_multivalue", 4, 4, r"\d{7}"),
        ("niah_multiquery", 4, 4, r"\d{7}"),
    ],
)
def test_variants(task: str, asked: int, hidden: int | None, value: str) -> None:
    found = make(task, 4000)
    held = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", found.text)
    keys = Counter(key for key, _ in held)
    assert len(found.references) == asked
    assert all(re.fullmatch(value, reference) for reference in found.references)
    if hidden is None:
        assert len(held) > 50
        assert max(keys.values()) == 1
    else:
        assert len(held) == hidden
        assert max(keys.values()) == (4 if task == "niah_multivalue" else 1)
    # What is asked for follows from the text alone, and from nothing but its needle.
    assert {value for key, value in held if key in found.question} == set(found.references)
    plain = re.sub(r"One of the special magic \w+ for \S+ is: \S+\.", "", found.text)
    straw = {"essays": ESSAY, "noise": NOISE, "needles": ""}[needles.VARIANTS[task].haystack]
    assert set(straw.split()) == set(plain.split()) or not straw


def test_depths_are_even() -> None:
    """The largest distance of 800 depths from an even spread; chance makes it larger than 0.0577 once in a hundred
    times (Kolmogorov)."""
    depths = sorted(make("niah_single_1", 2000, number).depths[0] for number in range(800))
    assert max(abs(place - (rank + 0.5) / 800) for rank, place in enumerate(depths)) < 0.0577
    each = [place for number in range(200) for place in make("niah_multivalue", 8000, number).depths]
    bands = Counter(int(min(place, 0.999) * 10) for place in each)
    # Of 800, each tenth has 80 ± 8.5; five of these deviations are allowed.
    assert all(40 < bands[band] < 125 for band in range(10))


def test_variable_tracking() -> None:
    found = make("vt", 3000)
    value = re.search(r"value (\d+)", found.question)[1]  # type: ignore[index]
    given_to = dict(re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", found.text))
    held = {name for name in given_to if follow(given_to, name) == value}
    assert held == set(found.references)
    assert len(held) == 5
    assert list(found.depths) == sorted(found.depths)
    # Each is assigned before it is passed on.
    places = [found.text.index(f"VAR {name} =") for name in found.references]
    assert places == sorted(places)


def follow(given_to: dict[str, str], name: str) -> str:
    while name in given_to:
        name = given_to[name]
    return name


@pytest.mark.parametrize(("length", "often", "seldom"), [(800, 6, 1), (12_000, 30, 3)])
def test_common_words(length: int, often: int, seldom: int) -> None:
    found = make("cwe", length)
    entries = re.findall(r"(\d+)\. (\S+)", found.text)
    assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
    counts = Counter(word for _, word in entries)
    assert {word for word, _ in counts.most_common(10)} == set(found.references)
    assert {counts[word] for word in found.references} == {often}
    assert {count for word, count in counts.items() if word not in found.references} == {seldom}


@pytest.mark.parametrize("length", [300, 3000, 40_000])
def test_frequent_words(length: int) -> None:
    found = make("fwe", length)
    counts = Counter(found.text.split()).most_common()
    assert counts[0][0] == words.DOTS
    assert tuple(word for word, _ in counts[1:4]) == found.references
    frequencies = [count for _, count in counts[:5]]
    assert len(set(frequencies)) == 5
    # Zipf with α = 2: rank 2 has a fourth of rank 1.
    assert frequencies[1] == pytest.approx(frequencies[0] / 4, abs=1)


def test_too_short_a_length_says_the_least() -> None:
    for task in suite.RULER:
        with pytest.raises(ConfigError, match=r"the least it needs is \d+"):
            make(task, 10)


def test_words_do_not_stand_inside_each_other() -> None:
    adjectives, nouns = vocabulary._listed("adjectives"), vocabulary._listed("nouns")
    assert not any(one != other and other.endswith(one) for one, other in itertools.product(adjectives, repeat=2))
    assert not any(one != other and other.startswith(one) for one, other in itertools.product(nouns, repeat=2))
    drawn = list(itertools.islice(vocabulary.compounds(random.Random(1)), len(adjectives) * len(nouns) + 1000))
    assert len(set(drawn)) == len(drawn)
    assert drawn[-1].count("-") == 2


def test_essays_that_hold_our_words_are_drawn_again_or_refused() -> None:
    every = " ".join(f"{a}-{n}" for a in vocabulary._listed("adjectives") for n in vocabulary._listed("nouns"))
    full = replace(sources(), essays=Haystack("full", tuple(every.split())))
    with pytest.raises(ConfigError, match="hold the words"):
        suite.make(Work("niah_single_2", 480_000, 0), full)
    half = replace(sources(), essays=Haystack("half", tuple(every.split()[:20_000])))
    found = suite.make(Work("niah_single_2", 70_000, 0), half)
    assert found.text.count(found.references[0]) == 1


def test_essays_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "essays.txt"
    path.write_text("One two.\n\nThree\tfour.", encoding="utf-8")
    assert read_essays(path).words == ("One", "two.", "Three", "four.")
    for content in (b"", b"\xff\xfe\x00", b" \n "):
        path.write_bytes(content)
        with pytest.raises(RecordError):
            read_essays(path)
    with pytest.raises(RecordError, match="cannot read"):
        read_essays(tmp_path)


def test_essays_of_the_offline_world() -> None:
    assert len(world_essays().words) > 400_000
    assert world_essays().words[0] == "The"


@given(st.lists(st.floats(0, 1), max_size=6), st.integers(0, 200))
def test_hiding_keeps_every_word_and_needle(depths: list[float], count: int) -> None:
    straw = Haystack("essay", tuple(ESSAY.split())).take(count)
    hidden = [f"<{number}>" for number in range(len(depths))]
    text = hide(straw, hidden, depths).split()
    assert [word for word in text if not word.startswith("<")] == straw
    assert sorted(word for word in text if word.startswith("<")) == sorted(hidden)
    # Deeper needles stand later.
    order = [depths[int(word[1:-1])] for word in text if word.startswith("<")]
    assert order == sorted(order)


@given(st.integers(50, 5000), st.integers(1, 30), st.floats(0.3, 3))
def test_fitting_counts_few_whole_texts(length: int, unit: int, tokens_a_word: float) -> None:
    asked: list[int] = []

    def count(text: str) -> int:
        asked.append(len(text))
        return int(len(text.split()) * tokens_a_word)

    fitted = fit(lambda size: "word " * (size * unit), count, length, what="this")
    assert abs(fitted.tokens - length) <= max(0.004 * length, unit * tokens_a_word / 2 + 1)
    assert len(asked) <= 12


def test_a_tokenizer_on_disk(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    tokenizer = library.Tokenizer(library.models.WordLevel({"[UNK]": 0, "the": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = library.pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    counter = read_tokenizer(tmp_path)
    assert counter.count("the sea " * 500) == 1000
    found = suite.make(Work("niah_single_2", 3000, 0), replace(sources(), count=counter.count))
    assert abs(found.tokens - 3000) <= 60
    for wrong in (tmp_path / "missing.json", Path(__file__)):
        with pytest.raises(ConfigError, match="cannot read the tokenizer"):
            read_tokenizer(wrong)


# ── questions of a file ───────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=25, deadline=None)
@given(length=st.integers(400, 30_000), number=st.integers(0, 60), hotpot=st.booleans())
def test_questions_among_documents(
    tmp_path_factory: pytest.TempPathFactory, length: int, number: int, hotpot: bool
) -> None:
    folder = tmp_path_factory.mktemp("files")
    corpus = read_corpus(hotpot_file(folder) if hotpot else squad_file(folder))
    made = sources(corpus=corpus)
    work = Work("qa", length, number)
    found = suite.make(work, made)
    assert found == suite.make(work, made)
    assert abs(found.tokens - length) <= 0.02 * length
    [asked] = [one for one in corpus.questions if one.question == found.question]
    assert found.references == asked.answers
    for own in asked.own:
        assert found.text.count(f"{own.title}\n{own.text}") == 1
    assert len(found.depths) == len(asked.supporting)
    numbered = re.findall(r"^Document (\d+):$", found.text, re.MULTILINE)
    assert [int(one) for one in numbered] == list(range(1, len(numbered) + 1))
    # The same number is the same question at every length.
    assert suite.make(Work("qa", 2000, number), made).question == found.question


def test_qa_without_a_file_or_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="asks the questions of a file"):
        make("qa", 1000)
    one = read_corpus(squad_file(tmp_path, paragraphs=1))
    with pytest.raises(ConfigError, match="no document beside"):
        suite.make(Work("qa", 1000, 0), sources(corpus=one))
    with pytest.raises(ConfigError, match="the least it needs"):
        suite.make(Work("qa", 20, 0), sources(corpus=read_corpus(squad_file(tmp_path))))


def test_works_name_their_tasks() -> None:
    assert [work.id for work in suite.works(["vt", "cwe", "vt"], [2000, 1000], 1)] == [
        "vt-1000-0",
        "cwe-1000-0",
        "vt-2000-0",
        "cwe-2000-0",
    ]
    with pytest.raises(ConfigError, match="no task 'niah'"):
        suite.works(["niah"], [1000], 1)
