"""An endpoint that misbehaves, through the whole line: never its words as an answer, never as a memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_endpoint import Behaviour, FakeEndpoint, Flood, breaks_off, drips, fails, hangs, hangs_up, says, sends

from mia.config import load_config
from mia.episode import live
from mia.models.ledger import Ledger
from mia.store import open_store
from mia.team import build_team
from mia.types import Episode, Outcome, Question, StopReason, Task

DOCS = Path(__file__).parents[2] / "examples" / "solar_system" / "docs"
PAGE = "<html><body><h1>502 Bad Gateway</h1> upstream-error-8812</body></html>"
TASK = Task(question=Question.of("Who found Titan?"), references=("Christiaan Huygens",))

BAD: dict[str, tuple[Behaviour, StopReason]] = {
    "hangs": (hangs, StopReason.UNREACHABLE),
    "hangs up": (hangs_up, StopReason.UNREACHABLE),
    "drips": (drips(0.05), StopReason.UNREACHABLE),
    "401": (fails(401, "upstream-error-8812: bad key"), StopReason.UNREACHABLE),
    "404": (fails(404, "upstream-error-8812: no such model"), StopReason.UNREACHABLE),
    "429": (fails(429, "upstream-error-8812: slow down"), StopReason.UNREACHABLE),
    "500": (fails(500, "upstream-error-8812"), StopReason.UNREACHABLE),
    "an error page": (sends(PAGE, content_type="text/html"), StopReason.UNREACHABLE),
    "an error page, called JSON": (sends(PAGE), StopReason.UNREACHABLE),
    "nothing": (sends(b""), StopReason.UNREACHABLE),
    "an empty text": (says(""), StopReason.MODEL_FAILED),
    "half a body": (breaks_off('{"id": "c", "choices": [{"mess'), StopReason.UNREACHABLE),
    "a flood": (Flood(), StopReason.MODEL_FAILED),
}


async def live_with(endpoint: FakeEndpoint, home: Path) -> Episode:
    config = load_config(
        flags={
            "home": home,
            "models.default.base_url": endpoint.base_url,
            "models.default.model": "fake",
            "models.default.timeout_seconds": 0.15,
            "models.default.max_attempts": 2,
            "models.default.max_retry_seconds": 3.0,
            "search.corpus": (str(DOCS),),
            "search.vectors": "off",
            "memory.embedder": "hashing",
        }
    )
    team = build_team(config)
    try:
        return await live(TASK, team, Ledger(TASK.question.id))
    finally:
        await team.close()


@pytest.mark.parametrize("name", BAD)
async def test_no_answer_no_memory_and_a_reason(tmp_path: Path, name: str) -> None:
    behaviour, reason = BAD[name]
    async with FakeEndpoint(behaviour) as endpoint:
        episode = await live_with(endpoint, tmp_path)
    assert episode.answer is None
    assert episode.stop is not None
    assert episode.stop.reason is reason, episode.stop
    assert episode.verdict is not None
    assert episode.verdict.outcome is not Outcome.CORRECT
    assert {failure.stage for failure in episode.failures} == {"plan", "execute"}
    with open_store(tmp_path / "memory.db") as store:
        assert store.count_memories() == 0
        assert store.load_episode("last").id == episode.id


async def test_a_dead_endpoint(tmp_path: Path) -> None:
    async with FakeEndpoint(says("x")) as endpoint:
        pass
    episode = await live_with(endpoint, tmp_path)
    assert episode.answer is None
    assert episode.stop is not None
    assert episode.stop.reason is StopReason.UNREACHABLE


async def test_a_reply_that_was_cut_off_is_no_answer_and_the_model_is_told(tmp_path: Path) -> None:
    cut = says("<think>I think and think", finish="length")
    done = says("<think>t</think><answer>Christiaan Huygens</answer>")
    async with FakeEndpoint(says("1. Search."), cut, done, says("no"), says("1. Look (Titan → Huygens)")) as endpoint:
        episode = await live_with(endpoint, tmp_path)
    first = episode.steps[0].observation
    assert first is not None
    assert "cut off" in first.text
    assert episode.verdict is not None
    assert episode.verdict.correct
