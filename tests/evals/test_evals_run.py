"""A run: every question answered once, whatever interrupts it; a resume under other settings is refused by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from shelf import ShelfTool, call

from mia.agents.executor import Executor
from mia.config import ExecutorSettings, MemorySettings, load_config
from mia.embeddings.hashing import HashingEmbedder
from mia.errors import ConfigError, ModelUnavailable, StoreError
from mia.evals.log import read_episodes
from mia.evals.run import Progress, Runner, open_run
from mia.judges.reference import ReferenceJudge
from mia.memory.manager import MemoryManager
from mia.models.base import ChatRequest
from mia.models.ledger import Budget
from mia.models.scripted import ScriptedModel
from mia.store import open_store
from mia.team import Team
from mia.types import Question, Task

TASKS = [Task(question=Question.of(f"q{n}", id=f"q{n}"), references=("even",)) for n in range(20)]


def even_or_odd(request: ChatRequest) -> str:
    number = int(request.question_id[1:])
    return call("titan") if request.turn == 0 else f"<answer>{'even' if number % 2 == 0 else 'odd'}</answer>"


def team(answer: Callable[[ChatRequest], str | Exception] = even_or_odd, delay: float = 0.0) -> Team:
    model = ScriptedModel(answer, delay=delay, keep_requests=False)
    return Team(executor=Executor(model, [ShelfTool()], ExecutorSettings()), judge=ReferenceJudge())


async def answer(folder: Path, who: Team, *, resume: bool = False, **options: object) -> Progress:
    run = open_run(folder, TASKS, load_config(), resume=resume)
    return await Runner(run, TASKS, who, **options).run()  # type: ignore[arg-type]


def answered(folder: Path) -> list[str]:
    return [episode.question.id for episode in read_episodes(folder / "episodes.jsonl")]


async def test_a_run_answers_all_and_counts(tmp_path: Path) -> None:
    progress = await answer(tmp_path / "run", team())
    assert sorted(answered(tmp_path / "run")) == sorted(task.question.id for task in TASKS)
    assert (progress.summary.correct, progress.summary.judged) == (10, 20)
    page = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert page["accuracy"] == 0.5
    assert page["accuracy_95"][0] == pytest.approx(0.2993, abs=1e-4)
    assert page["calls"] == 40
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["run"]["concurrency"] == 8


async def test_stopping_and_resuming_asks_nothing_twice(tmp_path: Path) -> None:
    asked: list[str] = []
    runners: list[Runner] = []

    def counting(request: ChatRequest) -> str:
        if request.turn == 0:
            asked.append(request.question_id)
            if len(asked) == 5:
                runners[0].stop("enough")
        return even_or_odd(request)

    run = open_run(tmp_path / "run", TASKS, load_config(), resume=False)
    runners.append(Runner(run, TASKS, team(counting), concurrency=2))
    progress = await runners[0].run()
    assert progress.stopped == "enough"
    assert len(answered(tmp_path / "run")) == len(asked) < len(TASKS)
    await answer(tmp_path / "run", team(counting), resume=True)
    assert sorted(asked) == sorted(answered(tmp_path / "run")) == sorted(task.question.id for task in TASKS)


async def test_a_cancelled_run_keeps_what_is_finished(tmp_path: Path) -> None:
    task = asyncio.create_task(answer(tmp_path / "run", team(delay=0.05), concurrency=4))
    await asyncio.sleep(0.25)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    kept = answered(tmp_path / "run")
    assert 0 < len(kept) < len(TASKS)
    await answer(tmp_path / "run", team(), resume=True)
    assert sorted(answered(tmp_path / "run")) == sorted(task.question.id for task in TASKS)


async def test_a_model_that_is_down_stops_the_run_and_loses_no_question(tmp_path: Path) -> None:
    progress = await answer(tmp_path / "run", team(lambda _: ModelUnavailable("connection refused")), concurrency=4)
    assert "in a row could not be asked: connection refused" in progress.stopped
    assert answered(tmp_path / "run") == []
    assert 0 < len(progress.unanswered) < len(TASKS)
    progress = await answer(tmp_path / "run", team(), resume=True)
    assert progress.summary.answered == len(TASKS)


async def test_a_run_budget_stops_it_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    progress = await answer(tmp_path / "run", team(), run_budget=Budget(calls=21), concurrency=3)
    assert "budget of this run" in progress.stopped or progress.summary.usage.calls <= 21
    assert progress.summary.usage.calls <= 21
    done = len(answered(tmp_path / "run"))
    assert 0 < done < len(TASKS)
    progress = await answer(tmp_path / "run", team(), resume=True, run_budget=Budget(calls=100))
    assert progress.summary.answered == len(TASKS)


async def test_a_folder_that_is_taken_and_other_settings_are_refused(tmp_path: Path) -> None:
    await answer(tmp_path / "run", team())
    with pytest.raises(ConfigError, match="--resume"):
        open_run(tmp_path / "run", TASKS, load_config(), resume=False)
    other = load_config(flags={"executor.max_calls": 3, "memory.k_positive": 1})
    with pytest.raises(ConfigError, match=r"executor\.max_calls, memory\.k_positive"):
        open_run(tmp_path / "run", TASKS, other, resume=True)
    with pytest.raises(ConfigError, match="other questions"):
        open_run(tmp_path / "run", TASKS[:3], load_config(), resume=True)
    with pytest.raises(ConfigError, match="no run"):
        open_run(tmp_path / "new", TASKS, load_config(), resume=True)
    assert not (tmp_path / "new").exists()


async def test_an_answer_that_cannot_be_kept_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StoreError, match="No space left"):
            await answer(tmp_path / "run", team(), concurrency=2)
    progress = await answer(tmp_path / "run", team(), resume=True)
    assert progress.summary.answered == len(TASKS)
    assert sorted(answered(tmp_path / "run")) == sorted(task.question.id for task in TASKS)


async def test_what_remembering_cost_is_counted_and_survives_a_resume(tmp_path: Path) -> None:
    def reply(request: ChatRequest) -> str:
        return "1. Look (titan → a moon)" if request.purpose == "compress" else even_or_odd(request)

    def who() -> Team:
        model = ScriptedModel(reply, keep_requests=False)
        store = open_store(tmp_path / "memory.db")
        memory = MemoryManager(store, HashingEmbedder(), MemorySettings(), model)
        executor = Executor(model, [ShelfTool()], ExecutorSettings())
        return Team(executor=executor, judge=ReferenceJudge(), memory=memory)

    run = open_run(tmp_path / "run", TASKS, load_config(), resume=False)
    runner = Runner(run, TASKS, who(), concurrency=2)
    runner.stop("not yet")
    await runner.run()
    progress = await answer(tmp_path / "run", who(), resume=True)
    assert progress.summary.remembering.calls == len(TASKS)
    assert progress.summary.usage.calls == 3 * len(TASKS)
    again = open_run(tmp_path / "run", TASKS, load_config(), resume=True)
    assert again.summary.remembering.calls == len(TASKS)
    await again.log.close()
