"""A text to chunks of so many tokens, streamed; and one pass over it for several readers.

Always true of chunks: joined, they are the text, character for character; each has at most the tokens that were asked
for, counted as it will be shown (`defuse`); and where a chunk ends depends on nothing but the text from its beginning
on, so a reading can begin again at the start of any chunk and finds the same ones. Within its last tenth, a chunk ends
behind a paragraph, else a line, a sentence or a word; a small one within its last 60 characters, about a sentence.

Tokens are those of the model's own tokenizer where it runs in this process. An endpoint tells us none, and so four
bytes of UTF-8 count as one: about right for English, while languages written in other letters and most source code
come to more real tokens than that (leave room in the window, or ask for smaller chunks).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from mia.models.base import Around, ChatModel
from mia.prompt import defuse

_BYTES_PER_TOKEN = 4
_CHARACTERS_PER_TOKEN = 5
"""What is first looked at for a chunk; more where its tokens turn out longer."""
_LONGEST_TOKEN = 64
"""Runs of blanks may be one token; a chunk has at most so many characters a token all the same."""
_BACK = 10
"""A chunk may end earlier by this part of it, behind a paragraph, a sentence or a word."""
_BACK_CHARACTERS = 60
"""… or by so many characters, but no more than half of it: a tenth of a small chunk may hold no end of a sentence."""
_PAUSES = (("\n\n",), ("\n",), (". ", "? ", "! ", "。", "！", "？"), (" ",))
_AHEAD = 32
"""Chunks that a fast reader may be before a slow one."""


class TokenCounter(Protocol):
    """Counts tokens, and finds places in a text by them."""

    @property
    def name(self) -> str:
        """What tells this way of counting from others."""
        ...

    def count(self, text: str) -> int: ...

    def head(self, text: str, tokens: int) -> int:
        """The length in characters of the longest beginning that has at most so many tokens (or a little less)."""
        ...

    def tail(self, text: str, tokens: int) -> int:
        """Where the longest end begins that has at most so many tokens (or a little less)."""
        ...


class EstimatedTokens:
    """Four bytes of UTF-8 a token, as `mia.models.base.estimate_tokens` counts."""

    name = f"{_BYTES_PER_TOKEN} bytes a token"

    def count(self, text: str) -> int:
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        return -(-size // _BYTES_PER_TOKEN)

    def head(self, text: str, tokens: int) -> int:
        if text.isascii():
            return min(len(text), _BYTES_PER_TOKEN * tokens)
        beginning = text.encode("utf-8", "replace")[: _BYTES_PER_TOKEN * tokens]
        return len(beginning.decode("utf-8", "ignore"))

    def tail(self, text: str, tokens: int) -> int:
        if text.isascii():
            return max(0, len(text) - _BYTES_PER_TOKEN * tokens)
        content = text.encode("utf-8", "replace")
        return len(text) - len(content[max(0, len(content) - _BYTES_PER_TOKEN * tokens) :].decode("utf-8", "ignore"))


class ModelTokens:
    """The tokens of a fast tokenizer of transformers."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        """`tokenizer`: its backend, which can be asked from any thread and tells where tokens stand."""
        self.name = name
        self._tokenizer = tokenizer

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def head(self, text: str, tokens: int) -> int:
        places = self._tokenizer.encode(text, add_special_tokens=False).offsets
        if len(places) <= tokens:
            return len(text)
        kept = tokens
        # Cut off, the last word may fall into more tokens than it had in its place.
        while kept > 0 and self.count(text[: places[kept][0]]) > tokens:
            kept -= 1
        return int(places[kept][0])

    def tail(self, text: str, tokens: int) -> int:
        places = self._tokenizer.encode(text, add_special_tokens=False).offsets
        if len(places) <= tokens:
            return 0
        kept = tokens
        while kept > 0 and self.count(text[places[-kept][0] :]) > tokens:
            kept -= 1
        return int(places[-kept][0]) if kept else len(text)


def token_counter(model: ChatModel) -> TokenCounter:
    """The model's own tokens where it tells them, through whatever is around it; else the estimate."""
    inner: Any = model
    while isinstance(inner, Around):
        inner = inner.model
    backend = getattr(getattr(inner, "tokenizer", None), "backend_tokenizer", None)
    return EstimatedTokens() if backend is None else ModelTokens(backend, f"tokens of {inner.name}")


@dataclass(frozen=True)
class Chunk:
    number: int
    """From 0."""
    start: int
    """Of its first character in the text."""
    text: str
    tokens: int
    """As it is shown."""

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def split_chunks(
    pieces: Iterable[str], counter: TokenCounter, tokens: int, *, number: int = 0, start: int = 0
) -> Iterator[Chunk]:
    """The chunks of a text that comes in pieces; `number` and `start`: begin at this chunk, which starts there."""
    rest = _Rest(_skipped(pieces, start))
    while True:
        window, end = rest.head(counter, tokens)
        if not window:
            return
        if end < len(window):
            end = _pause(window, max(1, end))
        text = window[:end]
        counted = counter.count(defuse(text))
        while counted > tokens and len(text) > 1:  # Made harmless, a text may be a little longer.
            text = text[: max(1, min(len(text) - 1, len(text) * tokens // counted))]
            counted = counter.count(defuse(text))
        rest.drop(len(text))
        yield Chunk(number, start, text, counted)
        number, start = number + 1, start + len(text)


class _Rest:
    """What of a text is still to come, of which a beginning can be looked at."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._held = ""

    def look(self, characters: int) -> str:
        """So many characters, or all that are left."""
        missing = characters - len(self._held)
        if missing > 0:
            found = [self._held]
            for piece in self._pieces:
                found.append(piece)
                missing -= len(piece)
                if missing <= 0:
                    break
            self._held = "".join(found)
        return self._held[:characters]

    def head(self, counter: TokenCounter, tokens: int) -> tuple[str, int]:
        """A beginning of what is to come, and how much of it has at most so many tokens: less than all of it, or else
        it is all there is (or has tokens that are longer than any should be)."""
        window = self.look(_CHARACTERS_PER_TOKEN * tokens)
        end = counter.head(window, tokens)
        while end == len(window) < _LONGEST_TOKEN * tokens:
            longer = self.look(min(2 * len(window), _LONGEST_TOKEN * tokens))
            if len(longer) == len(window):
                break
            window = longer
            end = counter.head(window, tokens)
        return window, end

    def drop(self, characters: int) -> None:
        self._held = self._held[characters:]

    def all(self) -> Iterator[str]:
        """The pieces of it, which then are gone."""
        held, self._held = self._held, ""
        yield held
        yield from self._pieces


def _skipped(pieces: Iterable[str], characters: int) -> Iterator[str]:
    """The pieces without so many characters of their beginning."""
    for piece in pieces:
        if characters >= len(piece):
            characters -= len(piece)
        else:
            yield piece[characters:]
            characters = 0


def _pause(text: str, end: int) -> int:
    """The last good place to stop a little before `end`, or `end`."""
    first = end - max(end // _BACK, min(_BACK_CHARACTERS, end // 2))
    for marks in _PAUSES:
        places = [place + len(mark) for mark in marks if (place := text.rfind(mark, first, end)) >= 0]
        if places:
            return max(places)
    return end


class Cap:
    """Keeps the two ends of a text that has more tokens than are wanted, with a line between them that says so."""

    def __init__(self, counter: TokenCounter, tokens: int) -> None:
        self.left_out = 0
        """Characters of the middle that were left out, once the text has come to its end."""
        self._counter = counter
        self._tokens = tokens

    def apply(self, pieces: Iterable[str]) -> Iterator[str]:
        """The pieces, as they are where the text is short enough. Holds no more of the text than the cap lets through
        (and what a tokenizer must look at to find that out)."""
        rest = _Rest(iter(pieces))
        window, end = rest.head(self._counter, self._tokens)
        if end < len(window):
            half = self._counter.head(window, self._tokens // 2)
            yield window[:half]
            rest.drop(half)
            yield from self._end(rest.all())
        else:
            yield from rest.all()

    def _end(self, pieces: Iterable[str]) -> Iterator[str]:
        tokens = self._tokens - self._tokens // 2
        most = 2 * _CHARACTERS_PER_TOKEN * tokens
        end, passed = "", 0
        for piece in pieces:
            end += piece
            if len(end) > 2 * most:
                passed += len(end) - most
                end = end[-most:]
        first = self._counter.tail(end, tokens)
        self.left_out = passed + first
        yield f"\n\n[… {self.left_out:,} characters of the text were left out here …]\n\n"
        yield end[first:]


class SharedChunks:
    """One pass over the chunks of a text for several readers, each at its own pace.

    A chunk is kept until every reader has gone past it, and a reader that is too far before the slowest one waits: so
    few chunks are in memory, however long the text. Chunks are made in another thread, one ahead of what is wanted.
    """

    def __init__(self, chunks: Iterator[Chunk], readers: Mapping[str, int], *, ahead: int = _AHEAD) -> None:
        """`readers`: the number of the chunk that each of them wants first; `chunks` begin at the smallest of them."""
        self._chunks = chunks
        self._wanted = dict(readers)
        self._ahead = ahead
        self._kept: deque[Chunk] = deque()
        self._first = min(readers.values(), default=0)
        self._ended = False
        self._making: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()

    async def get(self, reader: str, number: int) -> Chunk | None:
        """A reader's next chunk, None behind the last one; those before it are not asked for again. Raises what the
        text raises, for every reader that comes to the place."""
        self._wanted[reader] = number
        self._forget()
        while number >= self._first + len(self._kept) and not self._ended:
            if number - min(self._wanted.values()) >= self._ahead:
                await self._moved.wait()
            else:
                # Shielded: what one reader gives up waiting for, the others want.
                await asyncio.shield(self._make())
        if not self._ended and self._making is None and len(self._kept) < self._ahead:
            self._make()
        index = number - self._first
        return self._kept[index] if index < len(self._kept) else None

    def leave(self, reader: str) -> None:
        """This reader wants no more."""
        self._wanted.pop(reader, None)
        self._forget()

    async def close(self) -> None:
        """Wait for the thread, so that nobody reads on in a text that is closed."""
        if self._making is not None:
            with suppress(Exception):  # Whoever wanted the chunk was told.
                await self._making

    def _make(self) -> asyncio.Task[None]:
        # A task that failed stays, so that nobody takes the text for ended.
        if self._making is None:
            self._making = asyncio.get_running_loop().create_task(self._next())
        return self._making

    async def _next(self) -> None:
        chunk = await asyncio.to_thread(next, self._chunks, None)
        if chunk is None:
            self._ended = True
        else:
            self._kept.append(chunk)
        self._making = None

    def _forget(self) -> None:
        """Let go of what everybody has gone past."""
        if self._wanted:
            slowest = min(self._wanted.values())
            while self._kept and self._first < slowest:
                self._kept.popleft()
                self._first += 1
        self._moved.set()
        self._moved = asyncio.Event()
