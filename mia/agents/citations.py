"""Citations that are checked: a quote counts only if it stands, letter for letter, in a stored observation.

White space is folded on both sides, nothing else is. What the model claims and the observations do not hold is dropped.
Where the model claims nothing that holds, the sentences that contain the answer are looked for ("found").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mia.types import Citation, Passage, Step

MIN_QUOTE = 8
"""Characters of the shortest quote that a model may claim; less would occur by chance."""
MAX_QUOTE = 400
MAX_FOUND = 2

_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n+")
_WORD = re.compile(r"\w+")


def fold(text: str) -> str:
    """The text with every run of white space as one blank."""
    return " ".join(text.split())


def cite(
    question: str, answer: str, evidence: Sequence[tuple[str, str]], steps: Sequence[Step]
) -> tuple[Citation, ...]:
    """The citations of an answer: the model's own where they hold, else sentences that contain the answer."""
    claimed = tuple(
        citation
        for passage_id, quote in dict.fromkeys(evidence)
        if (citation := _check(passage_id, quote, steps)) is not None
    )
    return claimed or tuple(_find(question, answer, steps))


def _check(passage_id: str, quote: str, steps: Sequence[Step]) -> Citation | None:
    quote = fold(quote)
    if not MIN_QUOTE <= len(quote) <= MAX_QUOTE:
        return None
    for step, passage in _passages(steps):
        if passage.id == passage_id and quote in fold(passage.text):
            return Citation(passage_id=passage.id, title=passage.title, quote=quote, step=step.index, origin="model")
    return None


def _find(question: str, answer: str, steps: Sequence[Step]) -> Iterator[Citation]:
    """Sentences that hold the answer as whole words, those that share most words with the question first."""
    if len(answer) < 3 or answer.casefold().strip(".") in ("yes", "no", "unknown"):
        return
    holds_answer = re.compile(rf"(?<!\w){re.escape(fold(answer))}(?!\w)", re.IGNORECASE)
    asked = {word.casefold() for word in _WORD.findall(question)}
    found: dict[tuple[str, str], tuple[int, Citation]] = {}
    for step, passage in _passages(steps):
        for sentence in _SENTENCE.split(passage.text):
            quote = fold(sentence)
            if (passage.id, quote) in found or len(quote) > MAX_QUOTE or not holds_answer.search(quote):
                continue
            shared = len(asked & {word.casefold() for word in _WORD.findall(f"{passage.title} {quote}")})
            citation = Citation(
                passage_id=passage.id, title=passage.title, quote=quote, step=step.index, origin="found"
            )
            found[passage.id, quote] = (shared, citation)
    best = sorted(found.values(), key=lambda pair: -pair[0])[:MAX_FOUND]
    yield from (citation for _, citation in best)


def _passages(steps: Sequence[Step]) -> Iterator[tuple[Step, Passage]]:
    """Passages whose text really stands in the stored observation (it may have been cut to fit the window)."""
    for step in steps:
        observation = step.observation
        if observation is not None and observation.ok:
            shown = fold(observation.text)
            for passage in observation.passages:
                if fold(passage.text) in shown:
                    yield step, passage
