"""Scores of an answer about a long text, by arithmetic alone: strict in training, lenient in evaluation (MemAgent,
arXiv 2507.02259), and the share of references contained (RULER, arXiv 2404.06654).

All take a model's whole reply. Thinking is no part of an answer: it is cut off first, and thinking that never ended
leaves no answer at all. Every score lies in [0, 1]; an empty answer scores 0, whatever it is held against.

These are the published measures. They look for letters, not for words: "4" is contained in "1947" (the judge of
`mia.judges.reference` looks for whole words).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mia.judges.reference import exact_match, normalize_answer
from mia.prompt import split_thinking

BOXED = "\\boxed{"
_STATED = re.compile(r"\bthe\s+answer\s+is\b", re.IGNORECASE)
_DECORATION = " \t:*_`\"'"


def without_thinking(reply: str) -> str:
    """What follows the thinking; empty where the thinking never ended."""
    parts = split_thinking(reply)
    return parts[1] if parts else ""


def boxed(reply: str) -> str | None:
    r"""The text in the last `\boxed{…}`, inner braces balanced; None without one, or where it is not closed."""
    reply = without_thinking(reply)
    begin = reply.rfind(BOXED)
    if begin < 0:
        return None
    begin += len(BOXED)
    depth = 1
    for place in range(begin, len(reply)):
        depth += {"{": 1, "}": -1}.get(reply[place], 0)
        if depth == 0:
            return reply[begin:place].strip()
    return None


def stated(reply: str) -> str | None:
    """The line that follows the last "the answer is", without marks around it; None where the words are missing."""
    found = list(_STATED.finditer(without_thinking(reply)))
    if not found:
        return None
    lines = found[-1].string[found[-1].end() :].strip(_DECORATION + "\n\r").splitlines()
    return lines[0].strip(_DECORATION).removesuffix(".").strip(_DECORATION) if lines else ""


def concluded(reply: str) -> str:
    """The answer that a reply comes to: what is boxed, else what is stated, else the whole reply."""
    for answer in (boxed(reply), stated(reply)):
        if answer is not None:
            return answer
    return without_thinking(reply)


def strict(reply: str, references: Sequence[str]) -> float:
    """1 where the boxed text is a reference, letter for letter; 0 without a box."""
    answer = boxed(reply)
    return float(bool(answer) and any(answer == reference.strip() for reference in references))


def lenient(reply: str, references: Sequence[str]) -> float:
    """1 where what the reply comes to contains a reference or is contained in one; case, punctuation and articles do
    not count."""
    return float(any(_either_contains(concluded(reply), reference) for reference in references))


def lenient_stated(reply: str, references: Sequence[str]) -> float:
    """As `lenient`, of what follows "the answer is"; 0 without these words (RULER-HotpotQA)."""
    return lenient(reply, references) if stated(reply) is not None else 0.0


def contained(reply: str, references: Sequence[str]) -> tuple[bool, ...]:
    """For each reference whether it stands in the reply; case does not count."""
    reply = without_thinking(reply).lower()
    return tuple(reference.lower() in reply for reference in references)


def share_contained(reply: str, references: Sequence[str]) -> float:
    """The share of references that stand in the reply (RULER's `string_match_all`). Raises ValueError for none."""
    if not references:
        raise ValueError("got no reference")
    return sum(contained(reply, references)) / len(references)


def _either_contains(answer: str, reference: str) -> bool:
    left, right = normalize_answer(answer), normalize_answer(reference)
    if not left or not right:
        # Normalising wipes out "The" or "+": such an answer must be the reference.
        return bool(answer.strip()) and exact_match(answer, reference)
    return left in right or right in left
