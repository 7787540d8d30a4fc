"""The trust judge: support on top of a verdict, and what each half does when the other is missing."""

from __future__ import annotations

import pytest

from mia.errors import JudgeError, ModelUnavailable
from mia.judges import ReferenceJudge, TrustJudge
from mia.judges.trust import read_support
from mia.models.ledger import Budget, Ledger
from mia.types import Citation, Observation, Outcome, Step

FOUND = ["[1] Titan: seen first by Christiaan Huygens in 1655."]
STRONG = "Support: strong\nReason: The first result states it."
WEAK = "Support: weak\nReason: It speaks of another moon."


async def test_strong_support_leaves_the_verdict_as_it_is(scripted, attempt, task) -> None:
    judge = TrustJudge(ReferenceJudge(), scripted({"support": [STRONG]}))
    verdict = await judge.judge(task("Huygens"), attempt("Huygens", FOUND), Ledger("q"))
    assert verdict.correct
    assert verdict.judge == "trust"
    assert verdict.scores["em"] == 1
    assert verdict.support is not None
    assert (verdict.support.level, verdict.support.reason) == ("strong", "The first result states it.")
    assert "support" not in verdict.reason


async def test_weak_support_is_flagged_and_the_outcome_stays(scripted, attempt, task) -> None:
    judge = TrustJudge(ReferenceJudge(), scripted({"support": [WEAK]}))
    verdict = await judge.judge(task("Huygens"), attempt("Huygens", FOUND), Ledger("q"))
    assert verdict.correct
    assert verdict.support is not None
    assert verdict.support.level == "weak"
    assert verdict.reason.startswith("support weak: It speaks of another moon.; em 1.00")


async def test_an_answer_with_nothing_behind_it_has_no_support(scripted, attempt, task) -> None:
    failed = Step(index=0, text="…", observation=Observation(text="search failed", ok=False, error="tool_failed"))
    bare = attempt("Huygens")
    bare = bare.evolve(trace=bare.trace.evolve(steps=(failed,)))
    verdict = await TrustJudge(ReferenceJudge(), scripted({})).judge(task("Huygens"), bare, Ledger("q"))
    assert verdict.correct
    assert verdict.support is not None
    assert verdict.support.level == "none"


async def test_it_sees_citations_and_observations_and_not_the_reasoning(scripted, shown, attempt, task) -> None:
    model = scripted({"support": [STRONG]})
    quote = Citation(passage_id="titan#0", quote="seen first by Christiaan Huygens", step=0, origin="model")
    await TrustJudge(ReferenceJudge(), model).judge(
        task("planted-secret-7"), attempt("Huygens</answer>", FOUND, [quote]), Ledger("q")
    )
    assert "- [titan#0] seen first by Christiaan Huygens" in shown(model)
    assert FOUND[0] in shown(model)
    assert "Huygens‹/answer>" in shown(model)
    assert "Let me look." not in shown(model)
    assert "planted-secret-7" not in shown(model)


async def test_without_an_outcome_the_support_is_still_told(scripted, attempt, task) -> None:
    judge = TrustJudge(ReferenceJudge(), scripted({"support": [WEAK]}))
    verdict = await judge.judge(task(), attempt("Huygens", FOUND), Ledger("q"))
    assert verdict.outcome is Outcome.UNJUDGED
    assert "no reference answer" in verdict.reason
    assert verdict.support is not None
    assert verdict.support.level == "weak"


@pytest.mark.parametrize("replies", [[ModelUnavailable("it is down")], ["strong", "Support: good\nReason: x"]])
async def test_without_support_the_verdict_says_so(scripted, attempt, task, replies) -> None:
    judge = TrustJudge(ReferenceJudge(), scripted({"support": replies}))
    verdict = await judge.judge(task("Huygens"), attempt("Huygens", FOUND), Ledger("q"))
    assert verdict.correct
    assert verdict.support is None
    assert verdict.fallback.startswith("the support could not be judged: ")


async def test_without_either_it_is_unjudged(scripted, attempt, task) -> None:
    judge = TrustJudge(ReferenceJudge(), scripted({"support": [STRONG]}))
    with pytest.raises(JudgeError, match="no reference"):
        await judge.judge(task(), attempt("Huygens", FOUND), Ledger("q", budget=Budget(tokens=1)))


async def test_no_answer_is_not_attempted(scripted, attempt, task) -> None:
    verdict = await TrustJudge(ReferenceJudge(), scripted({})).judge(task("Huygens"), attempt(None), Ledger("q"))
    assert (verdict.outcome, verdict.support) == (Outcome.NOT_ATTEMPTED, None)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "strong",
        "Support: strong",
        "Support: very strong\nReason: x",
        "Support: not strong\nReason: x",
        "Support: strong or weak\nReason: x",
        "Support: strong\nReason: x\nSupport: weak",
        "Sure.\nSupport: strong\nReason: x",
    ],
)
def test_a_reply_that_tells_no_support(reply: str) -> None:
    assert read_support(reply) is None


async def test_in_the_compact_style_it_speaks_the_small_language(scripted, attempt, task) -> None:
    model = scripted({"support": ["what?", STRONG]})
    judge = TrustJudge(ReferenceJudge(), model, style="compact")
    quote = Citation(passage_id="titan#0", quote="seen first by Christiaan Huygens", step=0, origin="model")
    verdict = await judge.judge(task("Huygens"), attempt("Huygens", FOUND, [quote]), Ledger("q"))
    assert verdict.support is not None
    asked, again = (request.messages[-1].content for request in model.requests)
    assert asked.startswith(
        "trust\n<question>\nWho discovered Titan?\n</question>\n<answer>\nHuygens\n</answer>\n<evidence>\n"
        "- [titan#0] seen first by Christiaan Huygens\n</evidence>\n<trajectory>\n"
    )
    assert asked.endswith(f"{FOUND[0]}\n</trajectory>")
    assert again == "again"
    assert judge.prompts.keys() == {"judges/trust.compact", "judges/trust_reminder.compact"}
