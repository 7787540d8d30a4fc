"""What templates print: visible, escaped, and short."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mia.service.dashboard.rendering import (
    beginning,
    duration,
    moment,
    money,
    plural,
    segment,
    version_label,
    visible,
    web_address,
)


@given(st.text(st.characters(categories=("Cc", "Cf", "Cs", "L", "P", "Z"))))
def test_nothing_that_acts_unseen_is_left_of_a_text(text: str) -> None:
    shown = visible(text)
    shown.encode()
    assert not {letter for letter in shown if letter < " " or "\x7f" <= letter <= "\x9f"} - {"\n", "\t"}
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\ufeff")


def test_a_turned_text_is_shown_as_what_it_is() -> None:
    assert visible("ab\u202egnp.exe\x00\ud800") == "ab⟨U+202E⟩gnp.exe␀\ufffd"
    assert visible("two\r\nlines\tand עברית 👩‍🚀") == "two\nlines\tand עברית 👩‍🚀"


@pytest.mark.parametrize(
    "source",
    [
        "javascript:alert(1)",
        " JaVaScript:alert(1)",
        "data:text/html,x",
        "//evil",
        "http:",
        "file:///etc/passwd",
        "x",
        "http://[",
    ],
)
def test_only_addresses_of_the_web_become_links(source: str) -> None:
    assert web_address(source) == ""
    assert web_address("https://example.org/a?b=c") == "https://example.org/a?b=c"


def test_an_id_is_one_part_of_a_path() -> None:
    assert segment("../a b?c#d\ud800") == "..%2Fa%20b%3Fc%23d%3F"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "–"),
        (0.04, "40 ms"),
        (0.9999, "1.0 s"),
        (9.96, "10 s"),
        (80, "80 s"),
        (150, "2.5 min"),
        (7200, "2.0 h"),
        (3e5, "3 d"),
    ],
)
def test_durations_are_told_in_the_unit_that_fits(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_small_things() -> None:
    assert [money(cost) for cost in (None, 0.0, 0.01234, 12.5)] == ["unknown", "$0", "$0.0123", "$12.50"]
    assert (plural(1, "memory"), plural(2, "memory")) == ("1 memory", "2 memories")
    assert plural(1200, "question") == "1,200 questions"
    assert (version_label("planner-3f9ac2-v000007"), version_label("")) == ("v7", "base")
    assert beginning("a  b\nc" * 100, 5) == "a b …"
    assert moment(float("nan")) == moment(1e300) == "–"
