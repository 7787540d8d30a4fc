"""A run: every question answered once, whatever interrupts it; a resume under other settings is refused by name."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from shelf import ShelfTool, call

from mia.agents.executor import Executor
from mia.config import ExecutorSettings, MemorySettings, load_config
from mia.embeddings.base import Vectors
from mia.embeddings.hashing import HashingEmbedder
from mia.errors import ConfigError, ModelUnavailable, RecordError, ReplayMismatch, StoreError
from mia.evals.log import read_episodes
from mia.evals.run import Progress, Runner, open_run
from mia.judges.reference import ReferenceJudge
from mia.memory.manager import MemoryManager
from mia.models.base import ChatRequest
from mia.models.ledger import Budget
from mia.models.replay import RecordedCall, ReplayModel, write_calls
from mia.models.scripted import ScriptedModel
from mia.store import open_store
from mia.team import Team
from mia.types import Question, Role, Task

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


async def test_a_run_budget_is_used_up_and_remembered(tmp_path: Path) -> None:
    progress = await answer(tmp_path / "run", team(delay=0.001), run_budget=Budget(calls=21), concurrency=3)
    assert "budget of this run" in progress.stopped
    assert progress.summary.usage.calls == 21
    # A question takes two calls, and of the three under way each may have made one in vain.
    done = len(answered(tmp_path / "run"))
    assert done in (9, 10)
    assert progress.summary.unfinished.calls == 21 - 2 * done
    asked: list[str] = []

    def counting(request: ChatRequest) -> str:
        asked.append(request.question_id)
        return even_or_odd(request)

    progress = await answer(tmp_path / "run", team(counting), resume=True, run_budget=Budget(calls=21))
    assert "budget of this run" in progress.stopped
    assert (asked, progress.summary.usage.calls) == ([], 21)
    progress = await answer(tmp_path / "run", team(), resume=True, run_budget=Budget(calls=100))
    assert progress.summary.answered == len(TASKS)
    assert progress.summary.usage.calls == 2 * len(TASKS) + 21 - 2 * done


async def test_a_token_budget_is_not_ended_by_what_calls_under_way_might_need(tmp_path: Path) -> None:
    # Sixteen calls at once may need 39,000 tokens; all twenty questions take 19,000.
    progress = await answer(tmp_path / "run", team(delay=0.001), run_budget=Budget(tokens=22_000), concurrency=16)
    assert (progress.stopped, progress.summary.answered) == ("", len(TASKS))
    assert 16_000 < progress.summary.usage.tokens < 22_000


async def test_what_a_silent_model_and_a_cancelled_question_cost_is_remembered(tmp_path: Path) -> None:
    def falls_silent(request: ChatRequest) -> str | Exception:
        return call("titan") if request.turn == 0 else ModelUnavailable("down")

    progress = await answer(tmp_path / "run", team(falls_silent), run_budget=Budget(calls=7), concurrency=1)
    assert progress.summary.unfinished.calls == progress.summary.usage.calls == 6  # Three in a row, and it stops.
    progress = await answer(tmp_path / "run", team(falls_silent), resume=True, run_budget=Budget(calls=7))
    assert progress.summary.usage.calls == 7
    slow = asyncio.create_task(answer(tmp_path / "run", team(delay=60), resume=True, concurrency=1))
    await asyncio.sleep(0.05)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    again = open_run(tmp_path / "run", TASKS, load_config(), resume=True)
    again.log.release()
    assert again.summary.usage.calls == 8


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


async def test_a_folder_in_which_nothing_was_answered_is_begun_anew(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", TASKS, load_config(), resume=False)
    run.log.release()
    (tmp_path / "run" / "episodes.jsonl").write_text('{"version": 1, "id": "ep')
    other = load_config(flags={"executor.max_calls": 3})
    anew = open_run(tmp_path / "run", TASKS[:3], other, resume=False)
    anew.log.release()
    assert (anew.id != run.id, anew.done) == (True, set())
    page = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (page["id"], page["config"]["executor"]["max_calls"]) == (anew.id, 3)


async def test_a_run_that_is_refused_lets_go_of_its_lock(tmp_path: Path) -> None:
    await answer(tmp_path / "run", team())
    path = tmp_path / "run" / "episodes.jsonl"
    whole = path.read_text()
    # The errors are kept: with them live what was on the stack, an open file too.
    with pytest.raises(ConfigError, match="other questions") as _settings:
        open_run(tmp_path / "run", TASKS[:3], load_config(), resume=True)
    path.write_text("{}\n" + whole)
    with pytest.raises(RecordError, match="line 1") as _broken:
        open_run(tmp_path / "run", TASKS, load_config(), resume=True)
    path.write_text(whole)
    progress = await answer(tmp_path / "run", team(), resume=True)
    assert progress.summary.answered == len(TASKS)


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may grow beyond this."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


async def test_an_answer_that_cannot_be_kept_stops_the_run(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", TASKS, load_config(), resume=False)
    with small_disk(100), pytest.raises(StoreError, match=r"cannot write .*episodes\.jsonl"):
        await Runner(run, TASKS, team(), concurrency=2).run()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", "episodes.jsonl"}
    progress = await answer(tmp_path / "run", team(), resume=True)
    assert progress.summary.answered == len(TASKS)
    assert sorted(answered(tmp_path / "run")) == sorted(task.question.id for task in TASKS)


async def test_a_summary_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    await answer(tmp_path / "run", team())
    run = open_run(tmp_path / "run", TASKS, load_config(), resume=True)
    before = (tmp_path / "run" / "summary.json").read_text()
    with small_disk(100), pytest.raises(StoreError, match=r"cannot write .*summary\.json"):
        await Runner(run, TASKS, team()).run()
    assert (tmp_path / "run" / "summary.json").read_text() == before


async def test_half_a_character_from_a_model_does_not_end_the_run(tmp_path: Path) -> None:
    def halves(request: ChatRequest) -> str:
        return call(r"\ud83d") if request.turn == 0 else "<answer>even \ud83d</answer>"

    progress = await answer(tmp_path / "run", team(halves))
    assert len(answered(tmp_path / "run")) == progress.summary.answered == len(TASKS)


class BrokenEmbedder(HashingEmbedder):
    """An embedder whose endpoint is down."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        raise ModelUnavailable("embeddings are down")


async def test_while_the_embedder_is_down_a_run_goes_on_and_a_resume_remembers(tmp_path: Path) -> None:
    store = open_store(tmp_path / "memory.db")

    def who(embedder: HashingEmbedder) -> Team:
        executor = Executor(ScriptedModel(even_or_odd), [ShelfTool()], ExecutorSettings())
        memory = MemoryManager(store, embedder, MemorySettings())
        return Team(executor=executor, judge=ReferenceJudge(), memory=memory)

    progress = await answer(tmp_path / "run", who(BrokenEmbedder()))
    assert (progress.stopped, progress.summary.answered) == ("", len(TASKS))
    ids = [episode.id for episode in read_episodes(tmp_path / "run" / "episodes.jsonl")]
    assert (store.count_episodes(), store.count_memories(), store.absorbed(ids)) == (len(TASKS), 0, frozenset())
    await answer(tmp_path / "run", who(HashingEmbedder()), resume=True)
    assert store.absorbed(ids) == set(ids)
    assert store.count_memories() > 0
    store.close()


def recorded(path: Path, *keys: tuple[str, str, int, str]) -> Team:
    """A team whose Executor answers from a recording of these calls: question, purpose, turn, text."""
    calls = [
        RecordedCall(question_id=id, role=Role.EXECUTOR, purpose=purpose, turn=turn, text=text)
        for id, purpose, turn, text in keys
    ]
    write_calls(calls, path)
    model = ReplayModel(path)
    executor = Executor(model, [ShelfTool()], ExecutorSettings())
    return Team(executor=executor, judge=ReferenceJudge(), replays=(model,))


async def test_a_call_that_is_not_recorded_stops_a_replay_and_its_question_stays_open(tmp_path: Path) -> None:
    keys = [("q0", "execute", 0, "<answer>even</answer>"), ("q1", "execute", 0, call("titan"))]
    with pytest.raises(ReplayMismatch, match=r"q1 · executor/execute turn 1"):
        await answer(tmp_path / "run", recorded(tmp_path / "rec.jsonl", *keys), concurrency=1)
    assert answered(tmp_path / "run") == ["q0"]


async def test_recorded_calls_that_nobody_asked_for_are_found_for_the_questions_that_were_asked(tmp_path: Path) -> None:
    keys = [(task.question.id, "execute", 0, "<answer>even</answer>") for task in TASKS]
    more = [("q3", "execute", 1, "never asked for"), ("another", "execute", 0, "of no question here")]
    who = recorded(tmp_path / "rec.jsonl", *keys, *more)
    progress = await answer(tmp_path / "run", who)
    who.check_replays(progress.answered - {"q3"})
    with pytest.raises(ReplayMismatch, match=r"1 recorded .*q3 · executor/execute turn 1"):
        who.check_replays(progress.answered)


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


async def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds other files \(notes\.md\)"):
        open_run(tmp_path, TASKS, load_config(), resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]


async def test_what_cannot_change_an_answer_may_change_on_a_resume(tmp_path: Path) -> None:
    await answer(tmp_path / "run", team())
    other = load_config(flags={"run.concurrency": 2, "models.default.timeout_seconds": 7, "budget.run.calls": 9})
    await open_run(tmp_path / "run", TASKS, other, resume=True).log.close()
