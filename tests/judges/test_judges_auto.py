"""Which judge a question gets, and which judge the settings build."""

from __future__ import annotations

import pytest

from mia.config import JudgeSettings
from mia.errors import ConfigError, JudgeError
from mia.judges import AutoJudge, LlmJudge, PeerJudge, ReferenceJudge, TrustJudge, build_judge
from mia.models.ledger import Ledger
from mia.types import Outcome

PEER = {
    "review_reasoning": ["Score: 2\nReason: A guess."],
    "review_sourcing": ["Score: 1\nReason: Nothing found."],
    "review_validity": ["Score: 9\nReason: One name."],
    "chair": ["Verdict: INCORRECT\nReason: Nothing carries it."],
}


async def test_references_decide_which_judge(scripted, attempt, task) -> None:
    model = scripted(PEER)
    judge = build_judge(JudgeSettings(), model)
    assert isinstance(judge, AutoJudge)
    by_reference = await judge.judge(task("Huygens"), attempt("Huygens"), Ledger("q"))
    assert (by_reference.judge, by_reference.outcome) == ("reference", Outcome.CORRECT)
    assert model.requests == []
    by_peers = await judge.judge(task(" "), attempt("Huygens"), Ledger("q"))
    assert (by_peers.judge, by_peers.outcome) == ("peer", Outcome.INCORRECT)
    assert "judges/peer_chair" in judge.prompts


async def test_without_a_model_only_references_can_judge(attempt, task) -> None:
    judge = build_judge(JudgeSettings(), None)
    assert judge is not None
    assert (await judge.judge(task("Huygens"), attempt("Huygens"), Ledger("q"))).correct
    with pytest.raises(JudgeError, match="no reference"):
        await judge.judge(task(), attempt("Huygens"), Ledger("q"))


@pytest.mark.parametrize(
    ("kind", "built"), [("reference", ReferenceJudge), ("llm", LlmJudge), ("peer", PeerJudge), ("trust", TrustJudge)]
)
def test_each_kind_builds_its_judge(scripted, kind, built: type) -> None:
    assert type(build_judge(JudgeSettings(kind=kind), scripted({}))) is built
    if kind != "reference":
        with pytest.raises(ConfigError, match=f"'{kind}', and there is no model"):
            build_judge(JudgeSettings(kind=kind), None)


@pytest.mark.parametrize("kind", ["llm", "peer", "auto", "trust"])
def test_every_prompt_of_a_judge_comes_in_the_style_of_its_model(scripted, kind) -> None:
    full = build_judge(JudgeSettings(kind=kind), scripted({}))
    compact = build_judge(JudgeSettings(kind=kind), scripted({}), style="compact")
    assert full is not None
    assert compact is not None
    assert compact.prompts.keys() == {f"{name}.compact" for name in full.prompts}
    assert not any(name.endswith(".compact") for name in full.prompts)


def test_none_builds_none(scripted) -> None:
    assert build_judge(JudgeSettings(kind="none"), scripted({})) is None


def test_withholding_needs_the_trust_judge(scripted) -> None:
    assert type(build_judge(JudgeSettings(withhold=True), scripted({}))) is TrustJudge
    assert type(build_judge(JudgeSettings(kind="trust", withhold=True), scripted({}))) is TrustJudge
    for kind in ("reference", "llm", "peer", "none"):
        with pytest.raises(ConfigError, match=r"withhold"):
            build_judge(JudgeSettings(kind=kind, withhold=True), scripted({}))
    with pytest.raises(ConfigError, match="no model"):
        build_judge(JudgeSettings(withhold=True), None)
