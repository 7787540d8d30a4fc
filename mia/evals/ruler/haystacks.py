"""Text to hide things in, cut to length: noise that repeats, essays (a user's own, else the offline world's), and the
search for the size that a wanted number of tokens takes.

Length is in tokens, text is made of words. `fit` asks for the whole text at few sizes only: tokens grow nearly evenly
with words, so two or three counts find the size, and a text of n tokens costs a small multiple of n.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from mia.errors import ConfigError, RecordError
from mia.evals.ruler.tokens import CountTokens
from mia.world.facts import World
from mia.world.seeds import TEST

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""What repeats in the plainest haystack (Mohtashami and Jaggi, 2023, as RULER takes it)."""
CLOSE = 0.004
"""A size is taken where its tokens differ from the wanted number by at most this share."""
_PROBE = 64
"""Units of the first try, from which the tokens of a unit are known."""
_WORLDS = 120
"""As many as fill some 400,000 tokens before they repeat."""
_TO_SENTENCE = 60
"""A needle moves by at most so many words to stand between sentences."""


@dataclass(frozen=True)
class Haystack:
    """Words that go on for ever: from the last one back to the first."""

    name: str
    words: tuple[str, ...]
    digest: str = field(default="")
    """Of a user's text."""

    def take(self, count: int) -> list[str]:
        """The first so many words."""
        rounds, rest = divmod(count, len(self.words))
        return [*self.words * rounds, *self.words[:rest]]


def noise() -> Haystack:
    """One line, repeated."""
    return Haystack("noise", tuple(NOISE.split()))


def read_essays(path: Path) -> Haystack:
    """A user's text file. Raises RecordError if it is none, or holds no word."""
    try:
        content = path.read_bytes()
        words = tuple(content.decode("utf-8-sig").split())
    except OSError as error:
        raise RecordError(f"cannot read the essays '{path}': {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"'{path}' is no UTF-8 text ({error.reason} at byte {error.start}).") from error
    if not words:
        raise RecordError(f"'{path}' holds no word.", wanted="a text file of essays")
    return Haystack(path.name, words, hashlib.sha256(content).hexdigest()[:12])


@cache
def world_essays() -> Haystack:
    """What is written down in test worlds of the offline laboratory: facts about people and places that do not
    exist."""
    words: list[str] = []
    for seed in range(TEST.start, TEST.start + _WORLDS):
        for document in World.make(seed).documents:
            words += f"The {document.source} says of {document.title}: {document.text}".split()
    return Haystack("world", tuple(words))


@dataclass(frozen=True)
class Fitted:
    """A text of nearly the wanted length."""

    text: str
    tokens: int
    size: int
    """Units that it was built from."""


def fit(build: Callable[[int], str], count: CountTokens, length: int, *, what: str, pad: bool = False) -> Fitted:
    """The text of the size whose tokens come nearest to `length`.

    `build(size)` must grow with `size`; `build(0)` is the least that the task needs. `what` names the task in errors.
    `pad`: where units are coarse, take the largest size that is not too long, and fill up with words of noise. Raises
    ConfigError where the least is too long already.
    """
    fitted = _search(build, count, length, what, from_below=pad)
    if not pad or abs(fitted.tokens - length) <= CLOSE * length:
        return fitted
    filler = noise()
    padded = _search(
        lambda size: " ".join([fitted.text, *filler.take(size)]) if size else fitted.text, count, length, what
    )
    return Fitted(padded.text, padded.tokens, fitted.size)


def _search(
    build: Callable[[int], str], count: CountTokens, length: int, what: str, *, from_below: bool = False
) -> Fitted:
    """Regula falsi, with a halving now and then so that a kink cannot hold it up."""

    def at(size: int) -> Fitted:
        text = build(size)
        return Fitted(text, count(text), size)

    low = at(0)
    least = low.tokens
    if least > length * (1 + CLOSE):
        raise ConfigError(
            f"{what} cannot be had at {length:,} tokens: the least it needs is {least:,}.",
            hint=f"ask for {-(-least // 100) * 100 + 100:,} tokens or more",
        )
    high: Fitted | None = None
    size = _PROBE
    turn = 0
    while not _is_close(low, length) and not (high and (_is_close(high, length) or high.size - low.size <= 1)):
        tried = at(size)
        if tried.tokens > length:
            high = tried
        else:
            low = tried
        turn += 1
        if high is None:
            rate = (low.tokens - least) / low.size
            size = low.size + max(1, round((length - low.tokens) / rate)) if rate > 0 else 2 * low.size
        else:
            share = (length - low.tokens) / (high.tokens - low.tokens) if turn % 4 else 0.5
            size = min(max(low.size + round(share * (high.size - low.size)), low.size + 1), high.size - 1)
    if high is None or (from_below and not _is_close(high, length)):
        return low
    return min(low, high, key=lambda fitted: abs(fitted.tokens - length))


def _is_close(fitted: Fitted, length: int) -> bool:
    return abs(fitted.tokens - length) <= CLOSE * length


def hide(words: Sequence[str], needles: Sequence[str], depths: Sequence[float]) -> str:
    """The words with needles between them, as near to the wanted depths as sentences allow; needles of one place stand
    in the order of their depths."""
    pieces: list[str] = []
    begin = 0
    for depth, needle in sorted(zip(depths, needles, strict=True)):
        place = max(begin, _between_sentences(words, round(depth * len(words))))
        pieces += [" ".join(words[begin:place]), needle] if place > begin else [needle]
        begin = place
    return " ".join([*pieces, " ".join(words[begin:])] if begin < len(words) else pieces)


def depth(text: str, needle: str) -> float | None:
    """Where the needle stands: 0 at the beginning of the text, 1 at its end; None unless it stands there once."""
    place = text.find(needle)
    if place < 0 or text.find(needle, place + 1) >= 0:
        return None
    return place / max(1, len(text) - len(needle))


def _between_sentences(words: Sequence[str], place: int) -> int:
    """The nearest place behind the end of a sentence; the place itself where none is near."""
    for step in range(_TO_SENTENCE):
        for near in (place - step, place + step):
            if near in (0, len(words)) or (0 < near < len(words) and words[near - 1].endswith((".", "!", "?"))):
                return near
    return place
