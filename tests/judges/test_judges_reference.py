"""The reference judge: published measures, worked by hand, and laws that hold for any text."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mia.errors import ConfigError, JudgeError
from mia.judges import ReferenceJudge
from mia.judges.reference import exact_match, f1, normalize_answer, score, sub_em
from mia.models.ledger import Ledger
from mia.types import Outcome


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Huygens\tprobe.", "huygens probe"),
        ("An A the", ""),
        ("Theatre and anatomy", "theatre and anatomy"),
        ("U.S.A.", "usa"),
        ("well-known", "wellknown"),
        ("São Tomé", "são tomé"),
        ("Rubik’s", "rubik’s"),  # a curly quote is no ASCII punctuation
        ("１２", "１２"),
        ("", ""),
    ],
)
def test_normalizing_follows_squad(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("answer", "reference", "em", "contained", "overlap"),
    [
        ("Christiaan Huygens", "christiaan huygens.", 1, 1, 1.0),
        ("the astronomer Christiaan Huygens", "Christiaan Huygens", 0, 1, 0.8),
        ("Huygens", "Christiaan Huygens", 0, 0, 2 / 3),
        ("Huygens Christiaan", "Christiaan Huygens", 0, 0, 1.0),
        # Shared words count with their repetitions: 2 of 3 and 2 of 2.
        ("moon moon moon", "moon moon", 0, 1, 0.8),
        ("moon", "moon moon", 0, 0, 2 / 3),
        ("Galileo Galilei", "Giovanni Cassini", 0, 0, 0.0),
        # HotpotQA: yes, no and noanswer share nothing with any other answer.
        ("yes it is", "yes", 0, 1, 0.0),
        ("no", "yes", 0, 0, 0.0),
        ("Yes.", "yes", 1, 1, 1.0),
        ("noanswer given", "noanswer", 0, 1, 0.0),
        # Whole words in scripts that have them, characters in the others.
        ("in 1947", "4", 0, 0, 0.0),
        ("4 moons", "4", 0, 1, 2 / 3),
        ("café noir", "caf", 0, 0, 0.0),
        ("слон", "он", 0, 0, 0.0),
        ("在北京市", "北京", 0, 1, 0.0),
        # What normalising wipes out is compared as written, and is contained in nothing else.
        ("A", "a", 1, 1, 1.0),
        ("A", "The", 0, 0, 0.0),
        ("+", "-", 0, 0, 0.0),
        ("anything", "the", 0, 0, 0.0),
    ],
)
def test_measures_by_hand(answer: str, reference: str, em: int, contained: int, overlap: float) -> None:
    assert (exact_match(answer, reference), sub_em(answer, reference)) == (bool(em), bool(contained))
    assert f1(answer, reference) == pytest.approx(overlap)


WORDS = st.lists(
    st.sampled_from(["the", "a", "moon", "Moon", "Io", "yes", "no", "4", "1.5", "é", "月", "-"]), max_size=6
)
TEXTS = WORDS.map(" ".join) | st.text(max_size=30)


@given(TEXTS)
def test_normalizing_twice_changes_nothing(text: str) -> None:
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


@given(TEXTS, TEXTS)
def test_the_measures_agree_with_one_another(answer: str, reference: str) -> None:
    assert exact_match(answer, reference) == exact_match(reference, answer)
    assert f1(answer, reference) == pytest.approx(f1(reference, answer))
    assert 0 <= f1(answer, reference) <= 1
    if exact_match(answer, reference):
        assert sub_em(answer, reference)
        assert f1(answer, reference) == 1


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3), TEXTS)
def test_another_reference_never_hurts(answer: str, references: list[str], another: str) -> None:
    fewer, more = score(answer, references), score(answer, [*references, another])
    assert all(more[measure] >= fewer[measure] for measure in fewer)


@given(TEXTS)
def test_an_answer_matches_itself(text: str) -> None:
    assert score(text, [text]) == {"em": 1, "sub_em": 1, "f1": 1}


async def test_only_an_exact_match_is_correct_by_default(attempt, task) -> None:
    judge, question = ReferenceJudge(), task("Christiaan Huygens", "Huygens")
    right = await judge.judge(question, attempt("huygens"), Ledger("q"))
    assert right.correct
    assert right.scores == {"em": 1, "sub_em": 1, "f1": 1}
    wrong = await judge.judge(question, attempt("Huygens, in 1655"), Ledger("q"))
    assert wrong.outcome is Outcome.INCORRECT
    assert wrong.scores == {"em": 0, "sub_em": 1, "f1": 0.5}
    assert judge.prompts == {}


async def test_measure_and_threshold_can_be_chosen(attempt, task) -> None:
    given_answer, question = attempt("Huygens, in 1655"), task("Huygens")
    assert (await ReferenceJudge("sub_em").judge(question, given_answer, Ledger("q"))).correct
    assert (await ReferenceJudge("f1", 0.5).judge(question, given_answer, Ledger("q"))).correct
    assert not (await ReferenceJudge("f1", 0.51).judge(question, given_answer, Ledger("q"))).correct


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01])
def test_a_threshold_that_decides_nothing_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        ReferenceJudge("f1", threshold)


@pytest.mark.parametrize("answer", [None, "", "  \n"])
async def test_no_answer_is_not_attempted(attempt, task, answer: str | None) -> None:
    verdict = await ReferenceJudge().judge(task("Huygens"), attempt(answer), Ledger("q"))
    assert verdict.outcome is Outcome.NOT_ATTEMPTED
    assert verdict.scores == {"em": 0, "sub_em": 0, "f1": 0}


@pytest.mark.parametrize("references", [(), ("",), (" ", "\t")])
async def test_without_references_there_is_no_verdict(attempt, task, references: tuple[str, ...]) -> None:
    with pytest.raises(JudgeError, match="no reference"):
        await ReferenceJudge().judge(task(*references), attempt("Huygens"), Ledger("q"))


async def test_the_verdict_does_not_hold_the_reference(attempt, task) -> None:
    for answer in ("Cassini", None):
        verdict = await ReferenceJudge().judge(task("planted-secret-7"), attempt(answer), Ledger("q"))
        assert "planted-secret-7" not in verdict.model_dump_json()


def test_exact_match_agrees_with_recorded_outcomes() -> None:
    if "MIA_DATA" not in os.environ:
        pytest.skip("MIA_DATA is not set: no recorded outcomes to compare with")
    log = Path(os.environ["MIA_DATA"]) / "trajectories" / "react_search.jsonl.gz"
    with gzip.open(log, "rt", encoding="utf-8") as lines:
        runs = [json.loads(line) for line in lines]
    # These two were judged by exact match; a third source in the file was judged by a model.
    judged = [run for run in runs if run["source"].startswith(("reflexion", "fireact")) and run["final"]]
    assert len(judged) > 1500
    assert [run["id"] for run in judged if exact_match(run["final"], run["gold"]) != run["correct"]] == []
