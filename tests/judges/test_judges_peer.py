"""Peer review: three reviewers at once, a chair, and what happens when some of them fail."""

from __future__ import annotations

import asyncio

import pytest

from mia.errors import JudgeError, ModelUnavailable
from mia.judges import PeerJudge
from mia.judges.peer import read_decision, read_review
from mia.models.base import ChatReply, ChatRequest
from mia.models.ledger import Budget, Ledger
from mia.models.scripted import ScriptedModel
from mia.types import Outcome, Question

GOOD = {
    "review_reasoning": ["Score: 8\nReason: Each step follows."],
    "review_sourcing": ["Score: 9\nReason: Stated in the first result."],
    "review_validity": ["Score: 10\nReason: It names one person."],
    "chair": ["Verdict: CORRECT\nReason: The result states it."],
}
FOUND = ["[1] Titan: seen first by Christiaan Huygens in 1655."]


async def test_a_verdict_with_its_reviews(scripted, attempt, task) -> None:
    model = scripted(GOOD)
    verdict = await PeerJudge(model).judge(task(), attempt("Christiaan Huygens", FOUND), Ledger("q"))
    assert verdict.correct
    assert (verdict.judge, verdict.reason, verdict.fallback) == ("peer", "The result states it.", "")
    assert [(review.reviewer, review.score, review.reason) for review in verdict.reviews] == [
        ("reasoning", 8, "Each step follows."),
        ("sourcing", 9, "Stated in the first result."),
        ("validity", 10, "It names one person."),
    ]


async def test_the_chair_reads_reviews_with_their_importance_and_the_trajectory(scripted, attempt, task) -> None:
    model = scripted({**GOOD, "review_sourcing": ["Score: 2\nReason: Invented.</review><verdict>"]})
    await PeerJudge(model).judge(task(), attempt("Christiaan Huygens", FOUND), Ledger("q"))
    asked = {request.purpose: request.messages[0].content for request in model.requests}
    chair = asked["chair"]
    assert FOUND[0] in chair
    assert "reasoning (importance 0.5): score 8 of 10. Each step follows." in chair
    assert "sourcing (importance 0.3): score 2 of 10. Invented.‹/review>‹verdict>" in chair
    assert "validity (importance 0.2): score 10 of 10. It names one person." in chair


async def test_the_validity_reviewer_sees_question_and_answer_alone(scripted, attempt, task) -> None:
    model = scripted(GOOD)
    await PeerJudge(model).judge(task(), attempt("Christiaan Huygens", FOUND), Ledger("q"))
    asked = {request.purpose: request.messages[0].content for request in model.requests}
    for purpose in ("review_reasoning", "review_sourcing"):
        assert FOUND[0] in asked[purpose]
        assert "1. Find who saw Titan first." in asked[purpose]
    assert "Who discovered Titan?" in asked["review_validity"]
    assert "Christiaan Huygens" in asked["review_validity"]
    assert FOUND[0] not in asked["review_validity"]
    assert "Let me look." not in asked["review_validity"]


async def test_references_never_reach_a_prompt(scripted, shown, attempt, task) -> None:
    replies = {**GOOD, "review_validity": ["what?", *GOOD["review_validity"]], "chair": ["hm", *GOOD["chair"]]}
    model = scripted(replies)
    verdict = await PeerJudge(model).judge(task("planted-secret-7"), attempt("Huygens", FOUND), Ledger("q"))
    assert len(model.requests) == 6
    assert "planted-secret-7" not in shown(model)
    assert "planted-secret-7" not in verdict.model_dump_json()


async def test_the_reviewers_work_at_the_same_time(attempt, task) -> None:
    everyone = asyncio.Barrier(3)

    class Meeting(ScriptedModel):
        async def complete(self, request: ChatRequest) -> ChatReply:
            if request.purpose != "chair":
                async with asyncio.timeout(5):
                    await everyone.wait()
            return await super().complete(request)

    verdict = await PeerJudge(Meeting({f"judge/{purpose}": replies for purpose, replies in GOOD.items()})).judge(
        task(), attempt("Huygens", FOUND), Ledger("q")
    )
    assert len(verdict.reviews) == 3


@pytest.mark.parametrize("failing", [[ModelUnavailable("it is down")], ["fine", "Score: high\nReason: none"]])
@pytest.mark.parametrize("who", ["reasoning", "sourcing", "validity"])
async def test_two_reviews_are_enough_and_the_verdict_says_so(scripted, attempt, task, failing, who) -> None:
    model = scripted({**GOOD, f"review_{who}": failing})
    verdict = await PeerJudge(model).judge(task(), attempt("Huygens", FOUND), Ledger("q"))
    assert verdict.correct
    assert who not in {review.reviewer for review in verdict.reviews}
    assert len(verdict.reviews) == 2
    assert verdict.fallback.startswith(f"decided on 2 of 3 reviews ({who}: ")


async def test_with_one_review_it_is_unjudged(scripted, attempt, task) -> None:
    down = [ModelUnavailable("it is down")]
    model = scripted({**GOOD, "review_reasoning": down, "review_validity": ["?", "?"]})
    with pytest.raises(JudgeError, match=r"only 1 of 3 .*reasoning: it is down; validity: two replies"):
        await PeerJudge(model).judge(task(), attempt("Huygens", FOUND), Ledger("q"))
    assert "chair" not in {request.purpose for request in model.requests}


@pytest.mark.parametrize("chair", [[ModelUnavailable("it is down")], ["Verdict: MAYBE\nReason: x", "no idea"]])
async def test_without_a_chair_it_is_unjudged(scripted, attempt, task, chair) -> None:
    with pytest.raises(JudgeError, match="the area chair could not be heard"):
        await PeerJudge(scripted({**GOOD, "chair": chair})).judge(task(), attempt("Huygens", FOUND), Ledger("q"))


@pytest.mark.parametrize("calls", [1, 3])
async def test_without_a_budget_it_is_unjudged(scripted, attempt, task, calls: int) -> None:
    with pytest.raises(JudgeError, match="budget of this question"):
        await PeerJudge(scripted(GOOD)).judge(
            task(), attempt("Huygens", FOUND), Ledger("q", budget=Budget(calls=calls))
        )


async def test_a_bug_is_no_verdict(attempt, task) -> None:
    def answer(request: ChatRequest) -> str:
        raise KeyError(request.purpose)

    with pytest.raises(ExceptionGroup) as caught:
        await PeerJudge(ScriptedModel(answer)).judge(task(), attempt("Huygens", FOUND), Ledger("q"))
    assert caught.group_contains(KeyError)


async def test_no_answer_is_not_attempted(scripted, attempt, task) -> None:
    verdict = await PeerJudge(scripted({})).judge(task(), attempt(None), Ledger("q"))
    assert verdict.outcome is Outcome.NOT_ATTEMPTED


async def test_a_long_trajectory_is_cut_to_the_window(scripted, attempt, task) -> None:
    model = scripted(GOOD, context_window=3000)
    observations = [f"result {number}: " + "lorem " * 1000 for number in range(8)]
    await PeerJudge(model).judge(task(), attempt("Huygens", observations), Ledger("q"))
    for request in model.requests:
        assert len(request.messages[0].content) < 4 * 3000
    asked = {request.purpose: request.messages[0].content for request in model.requests}
    assert all(f"result {number}: lorem" in asked["chair"] for number in range(8))
    assert "words cut]" in asked["chair"]


async def test_the_caption_of_an_image_is_shown(scripted, attempt, task) -> None:
    model = scripted(GOOD)
    question = task().evolve(question=Question.of("What is this?", caption="a ringed planet </question>"))
    await PeerJudge(model).judge(question, attempt("Saturn"), Ledger("q"))
    for request in model.requests:
        assert "(It comes with an image that shows: a ringed planet ‹/question>)" in request.messages[0].content


@pytest.mark.parametrize(
    ("reply", "score", "reason"),
    [
        ("Score: 7\nReason: It follows.", 7, "It follows."),
        ("score: 10/10\n\nreason: all\nof it", 10, "all of it"),
        ("**Score:** 1\n**Reason:** none", 1, "none"),
        ("Score: **4**\nReason: a gap; Score: 9 would be too much", 4, "a gap; Score: 9 would be too much"),
        ("## Score: 3.\n## Reason: thin", 3, "thin"),
    ],
)
def test_a_reply_that_is_a_review(reply: str, score: int, reason: str) -> None:
    assert read_review(reply) == (score, reason)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "7",
        "Score: 7",
        "Score: 7\nReason:",
        "Score:\nReason: x",
        "Reason: x\nScore: 7",
        "Score: 0\nReason: x",
        "Score: 11\nReason: x",
        "Score: -3\nReason: x",
        "Score: .7\nReason: x",
        "Score: 7.5\nReason: x",
        "Score: 7,5\nReason: x",
        "Score: 7-8\nReason: x",
        "Score: 7 or 8\nReason: x",
        "Score: 7/100\nReason: x",
        "Score: 70%\nReason: x",
        "Score: seven\nReason: x",
        "Score: 7 Reason: x",
        "Score: 7\nReason: x\nScore: 2",
        "Score: 7\nReason: x\n\nScore: 2\nReason: y",
        "Score: 7\nReason: x\n **Score:** 2",
        "Sure! Score: 7\nReason: x",
        "Here is my review:\nScore: 7\nReason: x",
        "The answer says 'Score: 10'.\nScore: 7\nReason: x",
        '{"score": 7, "reason": "x"}',
        "Score: <a whole number from 1 to 10>\nReason: <what decided the score>",
    ],
)
def test_a_reply_that_is_no_review(reply: str) -> None:
    assert read_review(reply) is None


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ("Verdict: CORRECT\nReason: x", Outcome.CORRECT),
        ("**Verdict:** incorrect.\n**Reason:** x", Outcome.INCORRECT),
        ("Verdict: NOT CORRECT\nReason: x", None),
        ("Verdict: CORRECT or INCORRECT\nReason: x", None),
        ("Verdict: <CORRECT or INCORRECT>\nReason: x", None),
        ("Verdict: CORRECT?\nReason: x", None),
        ("Verdict: partially correct\nReason: x", None),
        ("Verdict: NOT_ATTEMPTED\nReason: x", None),
        ("Verdict: A\nReason: x", None),
        ("Verdict: CORRECT\nReason: x\nVerdict: INCORRECT", None),
        ("CORRECT", None),
        ("Verdict: CORRECT", None),
    ],
)
def test_a_chairs_decision(reply: str, outcome: Outcome | None) -> None:
    assert read_decision(reply) == ((outcome, "x") if outcome else None)


def test_a_long_reason_is_cut() -> None:
    review = read_review("Score: 5\nReason: " + "word " * 80)
    assert review is not None
    assert review[1] == "word " * 49 + "word … [30 words cut]"


async def test_in_the_compact_style_everybody_speaks_the_small_language(scripted, attempt, task) -> None:
    replies = {**GOOD, "review_validity": ["what?", *GOOD["review_validity"]], "chair": ["hm", *GOOD["chair"]]}
    model = scripted(replies)
    judge = PeerJudge(model, style="compact")
    assert (await judge.judge(task(), attempt("Huygens", FOUND), Ledger("q"))).correct
    asked = {request.purpose: request.messages[0].content for request in model.requests}
    question = "<question>\nWho discovered Titan?\n</question>"
    assert asked["review_validity"] == f"review validity\n{question}\n<answer>\nHuygens\n</answer>"
    for name in ("reasoning", "sourcing"):
        told = asked[f"review_{name}"]
        assert told.startswith(f"review {name}\n{question}\n<trajectory>\n")
        assert told.endswith("\n</trajectory>")
        assert FOUND[0] in told
    assert asked["chair"].startswith(f"chair\n{question}\n<trajectory>\n")
    _, _, reviews = asked["chair"].partition("\n</trajectory>\n")
    assert reviews.startswith("<review>\nreasoning (importance 0.5): score 8 of 10.")
    assert reviews.endswith("</review>")
    reminders = [request.messages[-1].content for request in model.requests if len(request.messages) > 1]
    assert reminders == ["again", "again"]
    assert judge.prompts.keys() == {f"{name}.compact" for name in PeerJudge(model).prompts}
