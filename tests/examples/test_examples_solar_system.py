"""The example documents answer their questions, each from several pages and none from one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mia.judges.reference import sub_em

FOLDER = Path(__file__).parents[2] / "examples" / "solar_system"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (FOLDER / "docs").glob("*.md")}
QUESTIONS = {
    question["id"]: question for question in map(json.loads, (FOLDER / "questions.jsonl").read_text().splitlines())
}

# The facts that lead from question to answer: page → the words that state it there.
FACTS = {
    "solar-01": {
        "titan.md": "Gerard Kuiper found the signature of methane",
        "miranda.md": "Gerard Kuiper discovered it",
    },
    "solar-02": {"miranda.md": "Gerard Kuiper discovered it", "neptune.md": "Nereid, was found by Gerard Kuiper"},
    "solar-03": {"titan.md": "a probe named Huygens", "christiaan-huygens.md": "born in The Hague"},
    "solar-04": {"iapetus.md": "it is called Cassini Regio", "giovanni-cassini.md": "was born in 1625 in Perinaldo"},
    "solar-05": {"william-herschel.md": "in the garden of his house in Bath", "voyager-2.md": "Uranus in January 1986"},
    "solar-06": {
        "william-lassell.md": "was a brewer",
        "triton.md": "by far the largest moon of Neptune",
        "voyager-2.md": "Neptune in August 1989",
    },
    "solar-07": {
        "new-horizons.md": "Venetia Burney Student Dust Counter",
        "pluto.md": "Venetia Burney, a girl of eleven",
    },
    "solar-08": {
        "new-horizons.md": "ashes of the discoverer of Pluto",
        "pluto.md": "discovered in February 1930 by Clyde Tombaugh",
        "clyde-tombaugh.md": "born in 1906 in Streator",
    },
    "solar-09": {"io.md": "Galileo Galilei discovered it", "galileo-spacecraft.md": "At the next one, Ida,"},
    "solar-10": {"iapetus.md": "by Giovanni Domenico Cassini", "enceladus.md": "found that plumes of water vapour"},
}

# Words without which a page cannot tell the whole route: no page holds all those of a question and its answer.
CLUES = {
    "solar-01": ("Titan", "Kuiper", "Uranus"),
    "solar-02": ("Miranda", "Kuiper", "Neptune"),
    "solar-03": ("Titan", "probe", "born"),
    "solar-04": ("Iapetus", "dark", "born"),
    "solar-05": ("Bath", "Uranus"),
    "solar-06": ("brewer", "Neptune"),
    "solar-07": ("Dust Counter", "Burney"),
    "solar-08": ("ashes", "born"),
    "solar-09": ("Io", "Galileo", "asteroid"),
    "solar-10": ("Iapetus", "Cassini", "plumes"),
}


def test_pages_are_short_and_titled() -> None:
    assert len(PAGES) == 24
    for name, text in PAGES.items():
        assert text.startswith("# "), name
        assert 120 <= len(text.split()) <= 220, name


def test_there_are_ten_questions_with_ids_of_their_own() -> None:
    assert list(QUESTIONS) == [f"solar-{number:02}" for number in range(1, 11)]


@pytest.mark.parametrize("id", sorted(FACTS))
def test_each_supporting_page_states_its_fact(id: str) -> None:
    assert QUESTIONS[id]["supporting_files"] == list(FACTS[id])
    for name, words in FACTS[id].items():
        assert " ".join(words.split()) in " ".join(PAGES[name].split()), name


@pytest.mark.parametrize("id", sorted(FACTS))
def test_the_answer_is_found_and_not_in_the_question(id: str) -> None:
    question = QUESTIONS[id]
    *_, last = question["supporting_files"]
    assert any(sub_em(PAGES[last], answer) for answer in question["answers"])
    assert not any(sub_em(question["question"], answer) for answer in question["answers"])


@pytest.mark.parametrize("id", sorted(CLUES))
def test_no_page_alone_holds_the_whole_route(id: str) -> None:
    answers = QUESTIONS[id]["answers"]
    whole = [
        name
        for name, text in PAGES.items()
        if all(sub_em(text, clue) for clue in CLUES[id]) and any(sub_em(text, answer) for answer in answers)
    ]
    assert whole == []
