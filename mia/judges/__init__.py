"""Judges: they mark an answer, and are the only ones who ever see a reference."""

from __future__ import annotations

from mia.config import JudgeSettings
from mia.errors import ConfigError
from mia.judges.auto import AutoJudge
from mia.judges.base import Judge
from mia.judges.llm import LlmJudge
from mia.judges.peer import PeerJudge
from mia.judges.reference import ReferenceJudge
from mia.judges.trust import TrustJudge
from mia.models.base import ChatModel
from mia.prompt import PromptStyle

__all__ = ["AutoJudge", "Judge", "LlmJudge", "PeerJudge", "ReferenceJudge", "TrustJudge", "build_judge"]


def build_judge(settings: JudgeSettings, model: ChatModel | None, *, style: PromptStyle = "full") -> Judge | None:
    """The judge that the settings name; None for "none". `style`: how its model is spoken to.

    Raises ConfigError for a judge that needs a model where there is none, and for `withhold` with a judge that looks at
    no support. "auto" without a model is the reference judge alone: a question without references is unjudged.
    """
    kind = "trust" if settings.kind == "auto" and settings.withhold else settings.kind
    if settings.withhold and kind != "trust":
        raise ConfigError(
            f"judge.withhold is set, and judge.kind '{kind}' does not look at an answer's support.",
            hint="set judge.kind = 'trust'",
        )
    if kind == "none":
        return None
    if kind == "reference" or (kind == "auto" and model is None):
        return ReferenceJudge()
    if model is None:
        raise ConfigError(
            f"judge.kind is '{kind}', and there is no model to ask.",
            wanted="a model for the judge",
            hint="set models.judge or models.default, or judge.kind = 'reference'",
        )
    if kind == "llm":
        return LlmJudge(model, style=style)
    peer = PeerJudge(model, style=style)
    if kind == "peer":
        return peer
    auto = AutoJudge(ReferenceJudge(), peer)
    if kind == "auto":
        return auto
    return TrustJudge(auto, model, style=style)
