"""A model compares the answer with the references: CORRECT, INCORRECT or NOT_ATTEMPTED, and only CORRECT counts.

The reply is the verdict and nothing else; anything more is asked again once. If the model cannot be reached or stays
unreadable, an answer that contains a reference is correct all the same; any other may be right in other words, and is
unjudged. The verdict says so in `fallback`. It carries no words of the model, so no reference can get into an episode
through it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mia.errors import BudgetExceeded, JudgeError, ModelError
from mia.judges.asking import StrictAsker, bare_words, show_question
from mia.judges.reference import require_references, score
from mia.models.base import ChatModel
from mia.models.ledger import Ledger
from mia.prompt import Prompt, PromptSet, PromptStyle, defuse
from mia.types import Attempt, Outcome, Task, Verdict


@dataclass(frozen=True)
class _Prompts(PromptSet):
    llm: Prompt
    llm_reminder: Prompt


_PROMPTS = _Prompts.beside(__file__)

_WORDS = {
    "a": ("correct", Outcome.CORRECT),
    "b": ("incorrect", Outcome.INCORRECT),
    "c": ("not attempted", Outcome.NOT_ATTEMPTED),
}
_READINGS = {
    prefix + form: outcome
    for letter, (word, outcome) in _WORDS.items()
    for form in (letter, word, f"{letter} {word}")
    for prefix in ("", "verdict ")
}


def read_verdict(text: str) -> Outcome | None:
    """The verdict that a reply (without its thinking) *is*; None where it is anything more, less or other.

    Accepted: the letter, the word, or both where they agree, in any case, dressed in Markdown, quotes or brackets, and
    behind "Verdict:".
    """
    return _READINGS.get(bare_words(text))


class LlmJudge:
    """Three-way judgement against the references, by a model."""

    def __init__(self, model: ChatModel, *, style: PromptStyle = "full") -> None:
        self._asker = StrictAsker(model)
        self._prompts = _PROMPTS.styled(style)

    @property
    def prompts(self) -> dict[str, str]:
        """Prompt name → version."""
        return {prompt.name: prompt.version for prompt in (self._prompts.llm, self._prompts.llm_reminder)}

    async def judge(self, task: Task, attempt: Attempt, ledger: Ledger) -> Verdict:
        """Raises JudgeError if there is no reference, or no budget to ask."""
        answer = attempt.answer.text.strip() if attempt.answer else ""
        references = require_references(task)
        scores = score(answer, references)
        if not answer:
            reason = "there is no answer"
            return Verdict(outcome=Outcome.NOT_ATTEMPTED, judge="llm", reason=reason, scores=scores)
        request = self._prompts.llm.fill(
            question=show_question(task.question),
            references="\n".join(f"- {defuse(' '.join(reference.split()))}" for reference in references),
            answer=defuse(answer),
        )
        try:
            outcome = await self._asker.ask(
                request, purpose="judge", read=read_verdict, reminder=self._prompts.llm_reminder, ledger=ledger
            )
        except BudgetExceeded as error:
            raise JudgeError(f"no budget is left to judge: {error.got}", hint=error.hint) from error
        except ModelError as error:
            # The kind of failure alone: an endpoint's message may echo the request, references and all.
            return _without_model(scores, type(error).__name__)
        return Verdict(outcome=outcome, judge="llm", scores=scores)


def _without_model(scores: dict[str, float], failure: str) -> Verdict:
    if scores["sub_em"]:
        fallback = f"{failure}: judged by whether the answer contains a reference"
        return Verdict(outcome=Outcome.CORRECT, judge="llm", scores=scores, fallback=fallback)
    fallback = f"{failure}: the answer contains no reference, and whether it means the same was not judged"
    reason = "The judge could not be heard."
    return Verdict(outcome=Outcome.UNJUDGED, judge="llm", reason=reason, scores=scores, fallback=fallback)
