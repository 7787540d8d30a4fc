"""The text protocol is read strictly: one call, or one answer, or a sentence that says what to write."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mia.agents.protocol import read_final_reply, read_reply
from mia.prompt import split_thinking

CALL = '<tool_call>{"name": "search", "arguments": {"query_list": ["a"]}}</tool_call>'


def test_a_call_and_an_answer_are_read() -> None:
    call = read_reply(f"<think>first</think>\n{CALL}")
    assert call.call is not None
    assert (call.call.name, call.call.arguments, call.thinking) == ("search", {"query_list": ["a"]}, "first")
    text = '<think>t</think><evidence>\n[p-1] "it says so"\n- [p-2]: and so\n</evidence><answer> Paris </answer>'
    answer = read_reply(text)
    assert answer.answer == "Paris"
    assert answer.evidence == (("p-1", "it says so"), ("p-2", "and so"))


def test_an_answer_ends_where_it_is_first_closed() -> None:
    assert read_reply("<think>t</think><answer>unknown</answer></answer> and </answer></answer>").answer == "unknown"
    assert read_reply("<think>t</think><answer>a</answer> no: <answer>b</answer></answer>").answer == "b"


def test_thinking_may_be_opened_by_the_chat_template() -> None:
    assert split_thinking("so I search</think>\nyes") == ("so I search", "yes")
    assert split_thinking("<think>never closed") is None


def test_a_call_inside_the_thinking_is_not_a_call() -> None:
    assert read_reply(f"<think>maybe {CALL}</think><answer>x</answer>").answer == "x"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "neither"),
        ("Paris", "neither"),
        ("<think>on and on", "not closed"),
        (f"<think>t</think>{CALL}{CALL}", "2 tool calls"),
        (f"{CALL} and then I will see", "text after"),
        (f"{CALL}<answer>x</answer>", "a tool call and an answer"),
        ("<tool_call>{'name': 'search'}</tool_call>", "not valid JSON"),
        ("<tool_call>[1]</tool_call>", 'no "name"'),
        ('<tool_call>{"arguments": {}}</tool_call>', 'no "name"'),
        ('<tool_call>{"name": "search", "arguments": "{}"}</tool_call>', "no JSON object"),
        ('<tool_call>{"name": "search", "arguments": {}, "why": 1}</tool_call>', "why"),
        ('<tool_call>{"name": "search"', "not closed"),
        ("<answer>  </answer>", "empty"),
        ("<answer>Paris", "not closed"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "not valid JSON"),
    ],
)
def test_a_malformed_reply_says_what_to_write(text: str, says: str) -> None:
    reply = read_reply(text)
    assert reply.call is None
    assert reply.answer is None
    assert says in reply.fault


def test_the_last_answer_counts() -> None:
    assert read_reply("<answer>a</answer> no: <answer>b</answer>").answer == "b"


def test_only_the_final_reply_may_end_inside_its_answer() -> None:
    assert read_final_reply("<think>t</think><answer>Paris").answer == "Paris"
    assert read_final_reply("Paris").answer is None


@given(st.text(alphabet=st.sampled_from(list('<>/{}":,[]ab ')), max_size=200) | st.text())
def test_any_text_gives_exactly_one_of_call_answer_and_fault(text: str) -> None:
    reply = read_reply(text)
    assert sum((reply.call is not None, reply.answer is not None, bool(reply.fault))) == 1


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>I might write <answer>unknown so far, but", None),
        ("<think>not <answer>this</think><answer>Paris", "Paris"),
        ("<think>not <answer>this</think>", None),
        ("<answer>a</answer> <answer>b", "a"),
    ],
)
def test_a_final_answer_is_never_taken_from_the_thinking(text: str, answer: str | None) -> None:
    assert read_final_reply(text).answer == answer


def test_half_a_character_in_a_call_is_replaced() -> None:
    reply = read_reply(
        '<tool_call>{"name": "search", "arguments": {"query_list": ["\\ud83d", "\\ud83d\\ude00"]}}</tool_call>'
    )
    assert reply.call is not None
    assert reply.call.arguments == {"query_list": ["?", "😀"]}


@pytest.mark.parametrize("piece", ["<", "\n", " ", "<answer>", "<evidence>", "[a] ", "<tool_call>", "</think>", "- \t"])
def test_reading_takes_linear_time(piece: str) -> None:
    text = piece * (400_000 // len(piece))
    begun = time.process_time()
    read_reply(text)
    read_reply(f"<evidence>{text}</evidence><answer>x</answer>")
    read_final_reply(text)
    assert time.process_time() - begun < 3
