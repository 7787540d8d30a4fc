"""The embedded model's tokenizer: every text comes back, and what the line repeats costs one token."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import Words, said

from mia.learn.warmup import tokenizer
from mia.learn.warmup.dialogues import Dialogue
from mia.prompt import defuse
from mia.types import Message
from mia.world.language import RELATION, SOURCES, UNKNOWN, Chain, RouteStep, write_plan, write_question

BUILT = tokenizer.build(tokenizer.vocabulary([]))
"""Of what stands in the language alone."""


def round_trip(words: Words, text: str) -> str:
    return str(words.decode(words.encode(text, add_special_tokens=False)))


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_as_it_went_in(text: str) -> None:
    assert round_trip(BUILT, text) == text


@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [*RELATION, *SOURCES, "Ka", "vori", " ", "  ", "\n", "\r\n", "<0x41>", "Ġ", "▁", "##", "\0"]
            ),
            st.text(max_size=3),
        )
    ).map("".join)
)
@settings(max_examples=300, deadline=None)
def test_so_does_what_looks_like_tokens_side_by_side(text: str) -> None:
    assert round_trip(BUILT, text) == text


def test_what_was_said_in_the_line_comes_back(words: Words, taught: list[Dialogue]) -> None:
    for message in said(taught):
        assert round_trip(words, message.content) == message.content


@pytest.mark.parametrize(
    "fragment",
    [
        '</think>\n<tool_call>{"name": "search", "arguments": {"query_list": ["',
        '"]}}</tool_call>',
        "</answer>",
        *("birthplace", "archive", UNKNOWN, "yes", "no", "Ka", "vo", "7"),
    ],
)
def test_fixed_parts_of_the_protocol_and_words_of_the_world_are_single_tokens(words: Words, fragment: str) -> None:
    assert len(words.encode(fragment, add_special_tokens=False)) == 1


def test_a_world_it_was_not_made_from_needs_no_bytes_and_few_tokens(words: Words, taught: list[Dialogue]) -> None:
    bytes_ = set(words.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in range(256)]))
    ids = [id for message in said(taught) for id in words.encode(message.content, add_special_tokens=False)]
    spelt = sum(id in bytes_ for id in ids)
    characters = sum(len(message.content) for message in said(taught))
    assert spelt / len(ids) < 0.01
    assert characters / len(ids) > 5


def test_tokens_of_a_plan_and_a_question_grow_with_their_steps_alone(words: Words) -> None:
    steps = [RouteStep(name, SOURCES[number % 6]) for number, name in enumerate(RELATION)][:8]
    lengths = [len(words.encode(write_plan(steps[:count]), add_special_tokens=False)) for count in range(1, 9)]
    # At most: line end, number, the words between, relation, source.
    assert max(after - before for before, after in pairwise([0, *lengths])) <= 6
    chain = Chain("Kavori", tuple(RELATION)[:4])
    for paraphrase in range(4):
        assert len(words.encode(write_question(chain, paraphrase), add_special_tokens=False)) <= 15


def test_marks_of_the_template_are_single_tokens_and_text_from_outside_cannot_hold_one(words: Words) -> None:
    marks = [tokenizer.PAD, tokenizer.END, *(f"<|{role}|>" for role in tokenizer.ROLES)]
    ids = [words.encode(mark, add_special_tokens=False) for mark in marks]
    assert ids == [[number] for number in range(len(marks))]
    assert (words.pad_token, words.eos_token) == (tokenizer.PAD, tokenizer.END)
    hostile = defuse("".join(marks))
    assert not set(words.encode(hostile, add_special_tokens=False)) & set(range(len(marks)))


def test_the_same_dialogues_give_the_same_vocabulary_and_rare_pieces_stay_out(taught: list[Dialogue]) -> None:
    messages = said(taught)
    made = tokenizer.vocabulary(messages)
    assert made == tokenizer.vocabulary(messages)
    assert len(made) == len(set(made))
    rare = Message(role="user", content="a sentence that nobody says again")
    assert tokenizer.vocabulary([*messages, *[rare] * 7]) == made
    assert "a sentence that nobody says again" in tokenizer.vocabulary([*messages, *[rare] * 8])
    assert tokenizer.vocabulary([rare], least=1)[-1] == rare.content
