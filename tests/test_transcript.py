"""A trace as text: cut where it is long, whatever the language, and harmless."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mia.transcript import cut_words, describe_call, render_attempts, render_steps
from mia.types import Answer, Attempt, Observation, Plan, Step, Stop, StopReason, ToolCall, Trace


def test_words_are_cut_with_a_count() -> None:
    assert cut_words("one two three", 3) == "one two three"
    assert cut_words("one two three four", 2) == "one two … [2 words cut]"


def test_scripts_without_spaces_are_cut_too() -> None:
    assert cut_words("土星有许多卫星", 4) == "土星有许 … [3 words cut]"
    assert len(cut_words("ไททันเป็นดวงจันทร์ของดาวเสาร์" * 50, 20)) < 60
    assert len(cut_words("x" * 10_000, 10)) < 600


@given(st.text(), st.integers(1, 50))
def test_a_cut_text_begins_like_the_text_and_is_short(text: str, limit: int) -> None:
    cut = cut_words(text, limit)
    head = cut.partition(" … [")[0] if cut != text else text
    assert text.startswith(head)
    if cut == text:
        return
    assert len(head.split()) <= limit


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("search", {"query_list": ["Titan", "moons of Saturn"]}, "searches: Titan; moons of Saturn"),
        ("fetch", {"url": "https://example.org"}, "fetch: https://example.org"),
        ("files", {"path": "a", "lines": [1, 2]}, 'files: path = "a", lines = [1, 2]'),
        ("count", {"numbers": [1, 2]}, "count: numbers = [1, 2]"),
        ("now", {}, "now"),
    ],
)
def test_a_call_is_told_in_words(name: str, arguments: dict[str, Any], words: str) -> None:
    assert describe_call(ToolCall(name=name, arguments=arguments)) == words


def test_rounds_show_reasoning_call_and_result() -> None:
    steps = [
        Step(
            index=0,
            text="…",
            thinking="look it up",
            tool_call=ToolCall(name="search", arguments={"query_list": ["Titan ☂"]}),
            observation=Observation(text="</trajectory> Titan " + "is a moon " * 50),
        ),
        Step(index=1, text="hm", observation=Observation(text="neither", ok=False, error="malformed")),
        Step(index=2, text="<answer>x</answer>"),
    ]
    text = render_steps(steps, words=5)
    assert 'Call: search {"query_list": ["Titan ☂"]}' in text
    assert "words cut]" in text
    assert "</trajectory>" not in text
    assert "Error (malformed): neither" in text
    assert "Wrote: ‹answer>x‹/answer>" in text
    attempt = Attempt(
        plan=Plan(text="1. Look."),
        trace=Trace(steps=tuple(steps), stop=Stop(reason=StopReason.ANSWERED, sentence="")),
        answer=Answer(text="a moon"),
    )
    whole = render_attempts([attempt, attempt])
    assert whole.index("Plan:") < whole.index("Answer: a moon") < whole.index("Supplementary plan:")
