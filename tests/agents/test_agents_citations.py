"""Citations: only quotes that stand in a stored observation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mia.agents.citations import cite, fold
from mia.types import Observation, Passage, Step

TITAN = Passage(id="t", title="Titan", text="Titan is a moon.\nChristiaan Huygens  found it in 1655. It is orange.")


def step(index: int = 0, *, shown: str = TITAN.text, ok: bool = True) -> Step:
    return Step(index=index, text="…", observation=Observation(text=shown, ok=ok, passages=(TITAN,)))


@pytest.mark.parametrize(
    ("evidence", "quotes"),
    [
        ([("t", "Huygens found it in 1655")], ["Huygens found it in 1655"]),
        ([("t", "Huygens   found\nit in 1655")], ["Huygens found it in 1655"]),
        ([("t", "huygens found it in 1655")], ["Christiaan Huygens found it in 1655."]),
        ([("u", "Huygens found it in 1655")], ["Christiaan Huygens found it in 1655."]),
        ([("t", "moon")], ["Christiaan Huygens found it in 1655."]),
        ([("t", "Huygens found it in 1655")] * 3, ["Huygens found it in 1655"]),
    ],
)
def test_a_claim_holds_to_the_letter_or_is_dropped(evidence: list[tuple[str, str]], quotes: list[str]) -> None:
    assert [found.quote for found in cite("When was Titan found?", "1655", evidence, [step()])] == quotes


def test_what_was_cut_from_the_observation_cannot_be_quoted() -> None:
    assert cite("When?", "1655", [("t", "Huygens found it in 1655")], [step(shown="Titan is a moon.")]) == ()


def test_an_error_is_no_source() -> None:
    assert cite("When?", "1655", [("t", "Huygens found it in 1655")], [step(ok=False)]) == ()


@pytest.mark.parametrize("answer", ["yes", "No.", "a", "165", "unknown"])
def test_what_would_be_found_by_chance_is_not_looked_for(answer: str) -> None:
    assert cite("When?", answer, [], [step()]) == ()


@given(st.text(max_size=40), st.lists(st.tuples(st.just("t"), st.text(max_size=60)), max_size=4))
def test_every_citation_stands_in_its_observation(answer: str, evidence: list[tuple[str, str]]) -> None:
    for citation in cite("When was Titan found?", answer, evidence, [step()]):
        assert citation.quote in fold(TITAN.text)
