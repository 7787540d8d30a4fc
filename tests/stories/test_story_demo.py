"""The whole line on our own documents: plan, search, reflect, replan, judge, remember, and the next question is helped.

Real here: the index, the search tool, the memory and its store, the citations, the judge. Only the models are recorded.
The second half breaks one thing at a time, and sees the story fail.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mia.agents.protocol import read_reply
from mia.cli.demo.recorded import check, demo_data, play, prepare
from mia.errors import MiaError
from mia.evals.tasks import read_tasks
from mia.models import build_models
from mia.models.replay import ReplayModel, read_recording
from mia.store import open_store
from mia.types import Episode, Step

if TYPE_CHECKING:
    from mia.cli.demo.watching import Played

DATA = demo_data()

# Question → its answers, one per attempt, and whether each was judged correct.
EXPECTED = {
    "solar-01": [("unknown", False), ("Miranda", True)],
    "solar-02": [("Nereid", True)],
    "solar-03": [("Perinaldo", False), ("The Hague", True)],
    "solar-04": [("Perinaldo", True)],
    "solar-05": [("1986", True)],
    "solar-06": [("1986", False), ("1989", True)],
    "solar-07": [("eleven", True)],
    "solar-08": [("Streator", True)],
    "solar-09": [("Dactyl", False)],
    "solar-10": [("Enceladus", True)],
}

# The second question of a pair → the first, whose workflow it is shown, and how that one was judged.
PARTNERS = {
    "solar-02": ("solar-01", "correct"),
    "solar-04": ("solar-03", "correct"),
    "solar-06": ("solar-05", "correct"),
    "solar-10": ("solar-09", "incorrect"),
}

Settings = dict[str, dict[str, Any]]


async def live_through(data: Path, home: Path, settings: Settings | None = None) -> tuple[list[Played], ReplayModel]:
    """The ten questions over the documents and the recording in `data`; `settings` changes sections of the page."""
    config = prepare(home, data)
    for section, changes in (settings or {}).items():
        config = config.model_copy(update={section: getattr(config, section).model_copy(update=changes)})
    models = build_models(config.models)
    assert isinstance(models.executor, ReplayModel)
    tasks = read_tasks(data / "questions.jsonl")
    played = await play(config, tasks, models, lambda number, played: None)
    return played, models.executor


def assert_story(played: list[Played], replay: ReplayModel, home: Path) -> None:
    """All that the demonstration promises. Raises AssertionError or ReplayMismatch."""
    check(replay, played)
    assert set(replay.asked.values()) == {1}
    episodes = {episode.question.id: episode for episode, _ in played}
    for id, attempts in EXPECTED.items():
        assert_answers(episodes[id], attempts)
    assert_recalls(episodes)
    assert_memory(played, home)


def assert_answers(episode: Episode, expected: list[tuple[str, bool]]) -> None:
    given = [(attempt.answer, attempt.verdict) for attempt in episode.attempts]
    assert [(answer and answer.text, verdict and verdict.correct) for answer, verdict in given] == expected
    assert episode.verdict == episode.attempts[-1].verdict
    assert episode.verdict.judge == "reference"
    # Whoever replans reflected before, and was told to; whoever does not was told that the answer stands.
    first = episode.attempts[0]
    assert first.plan is not None
    assert first.plan.steps
    assert first.reflection is not None
    assert first.reflection.replan is (len(expected) > 1)
    assert episode.answer is not None
    assert len(episode.answer.citations) >= 2
    assert {citation.origin for citation in episode.answer.citations} == {"model"}


def assert_recalls(episodes: dict[str, Episode]) -> None:
    names = {episode.question.text: id for id, episode in episodes.items()}
    shown = {
        id: {names[memory.question]: memory.judgement for memory in episode.recall.shown} if episode.recall else {}
        for id, episode in episodes.items()
    }
    assert shown["solar-01"] == {}
    for id, (partner, judgement) in PARTNERS.items():
        assert shown[id].get(partner) == judgement, id
    # The one failure helps the one question after it, as a warning.
    assert [id for id, memories in shown.items() if "incorrect" in memories.values()] == ["solar-10"]
    # 07 asks for something else, and is not near enough to be shown to 08.
    recall = episodes["solar-08"].recall
    assert recall is not None
    passed_over = {names[memory.question]: memory.passed_over for memory in recall.passed_over}
    assert passed_over["solar-07"] == "below the similarity floor"


def assert_memory(played: list[Played], home: Path) -> None:
    """The store holds one workflow a question, as the Manager wrote it, credited for what it was shown to."""
    uses: Counter[str] = Counter()
    wins: Counter[str] = Counter()
    for episode, _ in played:
        assert episode.recall is not None
        for memory in episode.recall.shown:
            uses[memory.memory_id] += 1
            wins[memory.memory_id] += episode.verdict is not None and episode.verdict.correct
    with open_store(home / "memory.db", create=False) as store:
        kept = {memory.provenance.episode_id: memory for memory in store.list_memories("default", limit=100)}
    assert len(kept) == len(EXPECTED)
    calls = read_recording(DATA / "recording.jsonl")
    workflows = {key.question_id: call.text for key, call in calls.items() if key.purpose == "compress"}
    for episode, _ in played:
        memory = kept[episode.id]
        assert memory.question == episode.question.text
        assert memory.workflow == workflows[episode.question.id]
        assert memory.provenance.compressed_by == "recorded @ recording.jsonl"
        assert episode.recall is not None
        assert set(memory.provenance.leaned_on) == {shown.memory_id for shown in episode.recall.shown}
        assert memory.judgement == ("correct" if EXPECTED[episode.question.id][-1][1] else "incorrect")
        assert (memory.uses, memory.wins) == (1 + uses[memory.id], 1 + wins[memory.id])
    # What was shown to the question that went wrong is worth less than before.
    assert any(memory.wins < memory.uses for memory in kept.values())


# ── the story ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_ten_questions_are_answered_judged_and_remembered(tmp_path: Path) -> None:
    played, replay = await live_through(DATA, tmp_path)
    assert_story(played, replay, tmp_path)


async def test_a_replan_repeats_no_query_and_keeps_what_was_found(tmp_path: Path) -> None:
    played, _ = await live_through(DATA, tmp_path)
    replanned = [episode for episode, _ in played if len(episode.attempts) > 1]
    assert len(replanned) == 3
    for episode in replanned:
        first, second = ([queries(step) for step in attempt.trace.steps] for attempt in episode.attempts)
        assert second[0]
        assert not {query for turn in first for query in turn} & {query for turn in second for query in turn}
    # The year is read from a page that the first execution found.
    (flyby,) = (episode for episode in replanned if episode.question.id == "solar-06")
    assert flyby.answer is not None
    assert min(citation.step for citation in flyby.answer.citations) < len(flyby.attempts[0].trace.steps)


async def test_the_recorded_models_know_only_what_they_were_shown(tmp_path: Path) -> None:
    """Every name that the Executor uses stands in the question or in something it had found by then; plans, which are
    to hold no facts, use the names of the question alone."""
    played, _ = await live_through(DATA, tmp_path)
    for episode, _ in played:
        known = episode.question.text
        for attempt in episode.attempts:
            assert attempt.plan is not None
            assert_known(attempt.plan.text, episode.question.text)
            for step in attempt.trace.steps:
                reply = read_reply(step.text)
                assert_known(" ".join([reply.thinking, *queries(step), reply.answer or ""]), known)
                known += step.observation.text if step.observation else ""


async def test_a_plan_speaks_of_earlier_workflows_only_where_some_were_shown(tmp_path: Path) -> None:
    played, _ = await live_through(DATA, tmp_path)
    speaking = [
        episode
        for episode, _ in played
        if episode.attempts[0].plan is not None
        and re.search(r"earlier workflows? (did|answered)", episode.attempts[0].plan.text)
    ]
    assert len(speaking) >= 4
    assert all(episode.recall is not None and episode.recall.shown for episode in speaking)


def test_another_process_finds_what_was_learned(tmp_path: Path) -> None:
    home = tmp_path / "demo"
    mia("demo", "--recorded", "--fast", "--home", str(home))
    settings = str(home / "mia.toml")
    found = json.loads(mia("--config", settings, "memory", "search", "Where was the astronomer born?", "--json"))
    best = found[0]["memory"]
    assert "born" in best["question"]
    assert best["judgement"] == "correct"
    episode = json.loads(mia("--config", settings, "show", "last", "--json"))
    assert episode["question"]["id"] == "solar-10"
    assert episode["verdict"]["outcome"] == "correct"


def mia(*arguments: str) -> str:
    call = [sys.executable, "-c", "from mia.cli.main import main; main()", *arguments]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def queries(step: Step) -> list[str]:
    return list(step.tool_call.arguments["query_list"]) if step.tool_call is not None else []


def assert_known(text: str, known: str) -> None:
    """Every capitalised word that begins no sentence occurs in `known`."""
    names = re.findall(r"(?<![.?:]\s)(?<!^)\b[A-Z]\w+", text, re.MULTILINE)
    assert [name for name in names if name not in known and name != "Step"] == []


# ── each stage broken ─────────────────────────────────────────────────────────────────────────────────────────────


def without(key: str) -> Callable[[Path], None]:
    """Takes one call out of the recording."""
    return lambda data: rewrite(data, lambda call: None if name_of(call) == key else call)


def altered(key: str, old: str, new: str) -> Callable[[Path], None]:
    """Changes the words of one call."""

    def alter(call: dict[str, Any]) -> dict[str, Any]:
        if name_of(call) != key:
            return call
        assert old in call["text"]
        return {**call, "text": call["text"].replace(old, new)}

    return lambda data: rewrite(data, alter)


def asked_once_more(data: Path) -> None:
    """Adds a call that nobody asks for."""
    recording = data / "recording.jsonl"
    extra = {"question_id": "solar-01", "role": "planner", "purpose": "plan", "turn": 1, "text": "1. Search."}
    recording.write_text(recording.read_text(encoding="utf-8") + json.dumps(extra) + "\n", encoding="utf-8")


def without_page(name: str) -> Callable[[Path], None]:
    return lambda data: (data / "docs" / name).unlink()


def rewrite(data: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    recording = data / "recording.jsonl"
    header, *lines = recording.read_text(encoding="utf-8").splitlines()
    changed = [change(json.loads(line)) for line in lines]
    kept = [json.dumps(call, ensure_ascii=False) for call in changed if call is not None]
    assert [header, *kept] != [header, *lines], "nothing was broken"
    recording.write_text("\n".join([header, *kept]) + "\n", encoding="utf-8")


def name_of(call: dict[str, Any]) -> str:
    return f"{call['question_id']} {call['role']}/{call['purpose']} {call['turn']}"


BROKEN_RECORDINGS = {
    "no plan": without("solar-04 planner/plan 0"),
    "no search": without("solar-05 executor/execute 0"),
    "another query": altered("solar-02 executor/execute 1", "Kuiper discovered a moon of Neptune", "Io volcano"),
    "a call that is no JSON": altered("solar-05 executor/execute 0", '{"name"', '{name"'),
    "another quote": altered("solar-08 executor/execute 3", "born in 1906", "born in 1907"),
    "another answer": altered("solar-05 executor/execute 2", "<answer>1986", "<answer>1985"),
    "no answer": without("solar-10 executor/execute 2"),
    "no reflection": without("solar-03 planner/reflect 0"),
    "a reflection that is content": altered("solar-01 planner/reflect 0", "</think>\nyes", "</think>\nno"),
    "a reflection in doubt": altered("solar-02 planner/reflect 0", "</think>\nno", "</think>\nyes"),
    "a reflection that rambles": altered("solar-06 planner/reflect 0", "</think>\nyes", "</think>\nyes, I think"),
    "no supplementary plan": without("solar-06 planner/replan 0"),
    "no workflow": without("solar-07 manager/compress 0"),
    "a call that nobody asks for": asked_once_more,
    "a page missing": without_page("miranda.md"),
}

BROKEN_STAGES: dict[str, Settings] = {
    "no memory": {"memory": {"enabled": False}},
    "frozen memory": {"memory": {"frozen": True}},
    "nothing is near enough": {"memory": {"floor": 0.9}},
    "no failures shown": {"memory": {"k_negative": 0}},
    "no judge": {"judge": {"kind": "none"}},
    "only the last answer judged": {"line": {"judge": "final"}},
    "no plan": {"line": {"plan": False}},
    "no replan": {"line": {"replan": "never"}},
    "one passage a query": {"search": {"k": 1}},
    "too few calls": {"executor": {"max_calls": 2}},
}


@pytest.mark.parametrize("break_it", BROKEN_RECORDINGS.values(), ids=BROKEN_RECORDINGS)
async def test_a_broken_recording_breaks_the_story(break_it: Callable[[Path], None], tmp_path: Path) -> None:
    data = shutil.copytree(DATA, tmp_path / "data")
    break_it(data)
    with pytest.raises((AssertionError, MiaError)):
        assert_story(*await live_through(data, tmp_path / "home"), tmp_path / "home")


@pytest.mark.parametrize("settings", BROKEN_STAGES.values(), ids=BROKEN_STAGES)
async def test_a_broken_stage_breaks_the_story(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, MiaError)):
        assert_story(*await live_through(DATA, tmp_path, settings), tmp_path)
