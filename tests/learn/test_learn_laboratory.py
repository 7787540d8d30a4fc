"""Arms of test-time learning, over streams of the offline world."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mia.config import LearnSettings
from mia.errors import LearnError
from mia.learn.laboratory import ARMS, Outcome, Trial, read_outcomes, run_trials
from mia.world import preset
from mia.world.seeds import VALIDATION

SETTINGS = LearnSettings(**preset.LEARN).model_copy(update={"samples": 2, "batch": 2})
TRIAL = Trial("frozen", VALIDATION.start, 1, 2, SETTINGS)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    path = tmp_path_factory.mktemp("arms") / "outcomes.jsonl"
    found = run_trials([replace(TRIAL, arm=arm) for arm in ARMS], path)
    assert {one.key for one in read_outcomes(path)} == {one.key for one in found}
    return {one.arm: one for one in found}


def test_all_arms_answer_the_same_questions_and_only_two_make_versions(outcomes: dict[str, Outcome]) -> None:
    assert {len(one.correct) for one in outcomes.values()} == {2}
    assert outcomes["frozen"].versions == outcomes["memory"].versions == 0
    # Before anything was learnt the arms are one and the same: the first question comes out alike in all of them.
    assert len({(one.correct[0], one.tries[0]) for one in outcomes.values()}) == 1
    assert outcomes["frozen"].learning_seconds == 0.0
    assert outcomes["both"].learning_seconds > 0.0


def test_what_is_there_is_not_run_again_and_other_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "outcomes.jsonl"
    done = Outcome("frozen", TRIAL.world, 1, (True,), (1.0,), 0, 1.0, 0.0)
    told: list[tuple[int, int]] = []
    (tmp_path / "outcomes.settings.json").unlink(missing_ok=True)
    with pytest.raises(LearnError, match="differ in more than arm, world and seed"):
        run_trials([TRIAL, replace(TRIAL, questions=7)], path)
    path.write_text(json.dumps(done.__dict__) + "\n", encoding="utf-8")
    assert run_trials([TRIAL], path, on_outcome=lambda *counts: told.append(counts)) == [done]
    assert told == [(1, 1)]
    with pytest.raises(LearnError, match="other settings"):
        run_trials([replace(TRIAL, shifted=True)], path)
    path.write_text('{"arm": "frozen"}\n', encoding="utf-8")
    with pytest.raises(LearnError, match="no outcome of a trial"):
        read_outcomes(path)
