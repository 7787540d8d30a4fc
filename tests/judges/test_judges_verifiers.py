"""Cases worked by hand, and the published definitions written out a second time."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mia.judges.verifiers import (
    boxed,
    concluded,
    contained,
    lenient,
    lenient_stated,
    share_contained,
    stated,
    strict,
    without_thinking,
)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (r"So it is \boxed{Paris}.", "Paris"),
        (r"\boxed{London} … no, \boxed{ Paris }", "Paris"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{never closed", None),
        ("Paris", None),
        (r"<think>\boxed{London}</think>I do not know.", None),
        (r"\boxed{London}</think>\boxed{Paris}", "Paris"),
        (r"<think>still thinking \boxed{Paris}", None),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_box_outside_of_thinking(reply: str, answer: str | None) -> None:
    assert boxed(reply) == answer


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("Therefore, the answer is Paris.", "Paris"),
        ("The answer is: **Paris**.", "Paris"),
        ("THE ANSWER IS\n\nParis\nBecause it is the capital.", "Paris"),
        ("The answer is London. Wait: the answer is Paris", "Paris"),
        ("The answer is St. Mary's.", "St. Mary's"),
        ("The answer isn't known.", None),
        ("Paris", None),
        ("The answer is", ""),
        ("<think>the answer is London</think>Paris", None),
    ],
)
def test_the_line_behind_the_last_statement(reply: str, answer: str | None) -> None:
    assert stated(reply) == answer


def test_what_a_reply_comes_to() -> None:
    assert concluded(r"The answer is \boxed{Paris}.") == "Paris"
    assert concluded("The answer is Paris.") == "Paris"
    assert concluded("<think>hm</think> Paris ") == "Paris"
    assert without_thinking("<think>never ends") == ""


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        (r"\boxed{Chief of Protocol}", 1.0),
        (r"\boxed{ Chief of Protocol }", 1.0),
        (r"\boxed{chief of protocol}", 0.0),
        (r"\boxed{the Chief of Protocol}", 0.0),
        ("Chief of Protocol", 0.0),
        ("The answer is Chief of Protocol", 0.0),
        (r"\boxed{}", 0.0),
    ],
)
def test_strict(reply: str, score: float) -> None:
    assert strict(reply, ["Chief of Protocol", ""]) == score


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("The answer is the chief of protocol!", 1.0),
        (r"\boxed{Chief-of-Protocol}", 0.0),  # Punctuation goes, and leaves no blank behind.
        ("The answer is Chief of Protocol of the United States.", 1.0),
        ("The answer is Protocol.", 1.0),  # Contained in the reference.
        ("The answer is Ambassador.", 0.0),
        ("The answer is", 0.0),
        ("The answer is the", 0.0),
        ("", 0.0),
        ("<think>Chief of Protocol", 0.0),
        ("Chief of Protocol", 1.0),
    ],
)
def test_lenient(reply: str, score: float) -> None:
    assert lenient(reply, ["Chief of Protocol"]) == score


def test_lenient_looks_for_letters_as_published() -> None:
    assert lenient("The answer is 4", ["1947"]) == 1.0
    assert lenient("The answer is The.", ["The"]) == 1.0  # Normalising leaves nothing: the same text is right.
    assert lenient("The answer is A.", ["The"]) == 0.0


def test_without_the_words_a_hotpotqa_answer_counts_nothing() -> None:
    assert lenient_stated("The answer is Paris.", ["Paris"]) == 1.0
    assert lenient_stated("Paris", ["Paris"]) == 0.0
    assert lenient_stated(r"\boxed{Paris}", ["Paris"]) == 0.0


def test_the_share_of_references_contained() -> None:
    assert contained("1234567 and 7654321", ["1234567", "1111111"]) == (True, False)
    assert share_contained("They are ABC, def.", ["abc", "DEF", "ghi", "jkl"]) == 0.5
    assert share_contained("<think>abc</think>none", ["abc"]) == 0.0
    with pytest.raises(ValueError, match="no reference"):
        share_contained("abc", [])


WORDS = st.text(alphabet="abT he.,'-1é", max_size=12)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=4))
@example("the", ["the"])
def test_as_published(answer: str, references: list[str]) -> None:
    # RULER, `string_match_all`: lower case, share of references in the prediction.
    share = sum(1.0 if one.lower() in answer.strip().lower() else 0.0 for one in references) / len(references)
    assert share_contained(answer, references) == pytest.approx(share)

    # SQuAD's normalising, then containment in either direction.
    def normal(text: str) -> str:
        kept = "".join(one for one in text.lower() if one not in string.punctuation)
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())

    left = normal(answer)
    if left and all(normal(one) for one in references):
        either = any(normal(one) in left or left in normal(one) for one in references)
        assert lenient(f"The answer is {answer}".replace("\n", " "), references) == float(either) or "." in answer[-1:]
