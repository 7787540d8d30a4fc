"""Chunks are the text, neither more nor less, whatever counts the tokens; and several readers share one pass."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import mia
from mia.errors import RecordError
from mia.models.base import Around, ChatReply, ChatRequest
from mia.models.scripted import ScriptedModel
from mia.prompt import defuse
from mia.reader.chunks import (
    Cap,
    Chunk,
    EstimatedTokens,
    ModelTokens,
    SharedChunks,
    TokenCounter,
    split_chunks,
    token_counter,
)

TOKENIZER = Tokenizer.from_file(str(Path(mia.__file__).parent / "models/embedded/tokenizer.json"))
COUNTERS: list[TokenCounter] = [EstimatedTokens(), ModelTokens(TOKENIZER, "embedded")]
WORDS = st.sampled_from(
    [
        "word",
        " ",
        ". ",
        "\n",
        "\n\n",
        "é",
        "語",
        "🙂",
        "<think>",
        "</memory>",
        "[INST]",
        "<|im_end|>",
        "x" * 90,
        " " * 70,
    ]
)
TEXTS = st.lists(WORDS, max_size=120).map("".join) | st.text(max_size=300)


@pytest.mark.parametrize("counter", COUNTERS, ids=["estimate", "tokenizer"])
@given(text=TEXTS, tokens=st.integers(16, 40), cut=st.integers(1, 50))
def test_joined_chunks_are_the_text_and_none_is_too_long(
    counter: TokenCounter, text: str, tokens: int, cut: int
) -> None:
    pieces = [text[start : start + cut] for start in range(0, len(text), cut)]
    chunks = list(split_chunks(pieces, counter, tokens))
    assert "".join(chunk.text for chunk in chunks) == text
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert all(chunk.tokens == counter.count(defuse(chunk.text)) <= tokens for chunk in chunks)
    # The same whatever the pieces were, and from the start of any chunk on.
    assert list(split_chunks([text], counter, tokens)) == chunks
    for chunk in chunks[::3]:
        assert text[chunk.start : chunk.end] == chunk.text
        again = split_chunks(iter(pieces), counter, tokens, number=chunk.number, start=chunk.start)
        assert list(again) == chunks[chunk.number :]


@pytest.mark.parametrize("counter", COUNTERS, ids=["estimate", "tokenizer"])
@given(text=TEXTS, tokens=st.integers(1, 60))
def test_both_ends_have_at_most_the_tokens(counter: TokenCounter, text: str, tokens: int) -> None:
    head, tail = counter.head(text, tokens), counter.tail(text, tokens)
    assert counter.count(text[:head]) <= tokens >= counter.count(text[tail:])
    if counter.count(text) <= tokens:
        assert (head, tail) == (len(text), 0)


def test_chunks_are_nearly_full_and_end_where_a_sentence_does() -> None:
    text = "The tide turns about every six hours. " * 500
    chunks = list(split_chunks([text], EstimatedTokens(), 100))
    assert all(chunk.text.endswith(". ") for chunk in chunks)
    assert all(chunk.tokens >= 90 for chunk in chunks[:-1])
    paragraphs = list(split_chunks(["a b " * 97 + "\n\n" + "c d. " * 200], EstimatedTokens(), 100))
    assert paragraphs[0].text.endswith("\n\n")


class Wrapped(Around[ScriptedModel]):
    async def complete(self, request: ChatRequest) -> ChatReply:
        return await self.model.complete(request)


def test_a_small_chunk_ends_behind_a_sentence_too() -> None:
    sentences = "mayor of Melotu is Badoru. headquarters of Skasko is Brabro. "
    chunks = list(split_chunks([sentences * 40], EstimatedTokens(), 40))
    # A tenth of 160 characters is half a sentence.
    assert all(chunk.text.endswith(". ") for chunk in chunks)
    assert sum(chunk.tokens for chunk in chunks[:-1]) > 0.8 * 40 * (len(chunks) - 1)
    # Never more than half of it is given up.
    assert all(chunk.tokens >= 8 for chunk in list(split_chunks(["word. " + "x" * 900], EstimatedTokens(), 16))[1:-1])


def test_four_bytes_are_a_token_and_the_models_own_tokenizer_goes_first() -> None:
    counter = EstimatedTokens()
    assert [counter.count(text) for text in ("", "a", "abcd", "abcde", "語語")] == [0, 1, 1, 2, 2]
    plain = ScriptedModel(lambda request: "")
    assert isinstance(token_counter(Wrapped(plain)), EstimatedTokens)
    plain.tokenizer = type("Fast", (), {"backend_tokenizer": TOKENIZER})  # type: ignore[attr-defined]
    own = token_counter(Wrapped(plain))
    assert own.count("the tide turns") == len(TOKENIZER.encode("the tide turns", add_special_tokens=False).ids)


@given(st.integers(20, 400), st.integers(1, 64), st.sampled_from(["Tides turn. ", "語", "a"]))
def test_a_cap_keeps_both_ends_and_says_what_it_left_out(tokens: int, times: int, word: str) -> None:
    text = "".join(f"{number} {word}" for number in range(times * 8))
    cap = Cap(EstimatedTokens(), tokens)
    read = "".join(cap.apply([text[start : start + 37] for start in range(0, len(text), 37)]))
    if EstimatedTokens().count(text) <= tokens:
        assert (read, cap.left_out) == (text, 0)
        return
    before, _, rest = read.partition("\n\n[… ")
    said, _, after = rest.partition(" …]\n\n")
    assert text.startswith(before)
    assert text.endswith(after)
    assert len(before) + cap.left_out + len(after) == len(text)
    assert f"{cap.left_out:,} characters" in said
    assert EstimatedTokens().count(before + after) <= tokens + 1


# ── sharing ───────────────────────────────────────────────────────────────────────────────────────────────────────


def numbered(count: int, made: list[int]) -> Iterator[Chunk]:
    for number in range(count):
        made.append(number)
        yield Chunk(number, number, "x", 1)


async def read_all(shared: SharedChunks, reader: str, pause: float, first: int = 0) -> list[int]:
    seen: list[int] = []
    while (chunk := await shared.get(reader, first + len(seen))) is not None:
        seen.append(chunk.number)
        await asyncio.sleep(pause)
    shared.leave(reader)
    return seen


async def test_readers_of_any_pace_see_every_chunk_and_few_are_held() -> None:
    made: list[int] = []
    shared = SharedChunks(numbered(60, made), {"slow": 0, "fast": 0, "late": 40}, ahead=4)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, len(shared._kept))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    slow, fast, late = await asyncio.gather(
        read_all(shared, "slow", 0.001), read_all(shared, "fast", 0), read_all(shared, "late", 0, 40)
    )
    watching.cancel()
    assert slow == fast == made == list(range(60))
    assert late == list(range(40, 60))
    assert 1 <= most <= 5


async def test_a_reader_that_leaves_holds_nobody_up() -> None:
    shared = SharedChunks(numbered(30, []), {"stays": 0, "leaves": 0}, ahead=2)
    assert await shared.get("leaves", 0) is not None
    reading = asyncio.create_task(read_all(shared, "stays", 0))
    await asyncio.sleep(0.05)
    assert not reading.done()
    shared.leave("leaves")
    assert await asyncio.wait_for(reading, 5) == list(range(30))


async def test_a_text_that_breaks_breaks_for_every_reader_and_is_never_taken_for_ended() -> None:
    def broken() -> Iterator[Chunk]:
        yield Chunk(0, 0, "x", 1)
        raise RecordError("the disk is gone.")

    shared = SharedChunks(broken(), {"first": 0, "second": 0})
    for reader in ("first", "second"):
        assert await shared.get(reader, 0) is not None
    for reader in ("first", "second", "first"):
        with pytest.raises(RecordError, match="the disk is gone"):
            await shared.get(reader, 1)
    await shared.close()
