"""Marks an answer against the reference answers by arithmetic alone: no model, the same result every time.

The measures are the published ones. Normalising (SQuAD): lower-case, ASCII punctuation out, the articles a, an, the
out, white space folded; so accents, curly quotes and full-width forms stay and must match. F1 (SQuAD) counts shared
words with their repetitions; HotpotQA adds that yes, no and noanswer share nothing with any other answer. Of several
references the best counts.

Two departures, both where the published rule has no sense: what normalising wipes out ("The", "A", "+") is compared as
it was written; and sub-EM looks for whole words, so that "4" is not found in "1947".
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from mia.errors import ConfigError, JudgeError
from mia.models.ledger import Ledger
from mia.types import Attempt, Outcome, Task, Verdict

Measure = Literal["em", "sub_em", "f1"]

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CLOSED = ("yes", "no", "noanswer")
# Digits and the letters of Latin, Greek and Cyrillic: the scripts that set words apart by spaces.
_LETTER = "0-9a-z\u00c0-\u052f"


def normalize_answer(text: str) -> str:
    """The text as SQuAD compares it."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> bool:
    """Whether both are the same once normalised."""
    left, right = normalize_answer(answer), normalize_answer(reference)
    if not left and not right:
        return answer.strip().lower() == reference.strip().lower()
    return left == right


def sub_em(answer: str, reference: str) -> bool:
    """Whether the normalised reference stands, in whole words, in the normalised answer."""
    if exact_match(answer, reference):
        return True
    wanted = normalize_answer(reference)
    pattern = rf"(?<![{_LETTER}]){re.escape(wanted)}(?![{_LETTER}])"
    return bool(wanted) and re.search(pattern, normalize_answer(answer)) is not None


def f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall over normalised words."""
    if exact_match(answer, reference):
        return 1.0
    left, right = normalize_answer(answer), normalize_answer(reference)
    if left in _CLOSED or right in _CLOSED:
        return 0.0
    left_words, right_words = left.split(), right.split()
    shared = (Counter(left_words) & Counter(right_words)).total()
    return 2 * shared / (len(left_words) + len(right_words)) if shared else 0.0


def score(answer: str, references: Sequence[str]) -> dict[str, float]:
    """All three measures, each the best over the references (at least one)."""
    return {
        "em": max(float(exact_match(answer, reference)) for reference in references),
        "sub_em": max(float(sub_em(answer, reference)) for reference in references),
        "f1": max(f1(answer, reference) for reference in references),
    }


class ReferenceJudge:
    """CORRECT where the chosen measure reaches the threshold; by default only an exact match does."""

    def __init__(self, measure: Measure = "em", threshold: float = 1.0) -> None:
        if not 0 < threshold <= 1:
            raise ConfigError(f"the threshold of the reference judge is {threshold:g}.", wanted="above 0, up to 1")
        self._measure = measure
        self._threshold = threshold

    @property
    def prompts(self) -> dict[str, str]:
        """None: it asks no model."""
        return {}

    async def judge(self, task: Task, attempt: Attempt, ledger: Ledger) -> Verdict:
        """Raises JudgeError for a question without references."""
        answer = attempt.answer.text.strip() if attempt.answer else ""
        scores = score(answer, require_references(task))
        if not answer:
            reason = "there is no answer"
            return Verdict(outcome=Outcome.NOT_ATTEMPTED, judge="reference", reason=reason, scores=scores)
        correct = scores[self._measure] >= self._threshold
        # The reason names the measure and never the reference: a verdict is stored, and memory is made of it.
        return Verdict(
            outcome=Outcome.CORRECT if correct else Outcome.INCORRECT,
            judge="reference",
            reason=f"{self._measure} {scores[self._measure]:.2f}, wanted {self._threshold:.2f}",
            scores=scores,
        )


def require_references(task: Task) -> tuple[str, ...]:
    """The references of a task that are not blank. Raises JudgeError if there is none."""
    references = tuple(reference for reference in task.references if reference.strip())
    if not references:
        raise JudgeError(
            f"the question '{task.question.id}' has no reference answer to judge by.",
            wanted="at least one reference answer",
            hint="set judge.kind to peer, or give the question an 'answers' list",
        )
    return references
