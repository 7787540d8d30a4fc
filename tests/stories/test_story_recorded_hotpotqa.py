"""The main job on real input: what a real model wrote about real questions, replayed through the line.

The recordings are the ReAct runs that the Reflexion authors published for 100 HotpotQA questions. They hold no plan
and no reflection, so the line runs with both off; their searches go to our index of the HotpotQA passages; their
verdicts and reflections are stripped on import. Every run must come through, and our judge must agree with each
recorded outcome.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mia.config import Config, load_config
from mia.errors import ReplayMismatch
from mia.evals.log import read_episodes
from mia.evals.run import Runner, open_run
from mia.models.react_log import ReactRecord, read_react_log, write_recording
from mia.models.replay import ReplayModel
from mia.search.corpus import CorpusIndex
from mia.search.indexing import update_index
from mia.team import build_team
from mia.types import Episode, Outcome, StopReason

DATA = os.environ.get("MIA_DATA", "")
pytestmark = pytest.mark.skipif(not DATA, reason="MIA_DATA does not name the shared data")


@pytest.fixture(scope="module")
def records() -> list[ReactRecord]:
    return read_react_log(Path(DATA) / "trajectories" / "react_search.jsonl.gz", source_prefix="reflexion/")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hotpotqa")
    update_index(folder, [Path(DATA) / "hotpotqa" / "corpus.jsonl.gz"])
    return folder


def configuration(home: Path, recording: Path) -> Config:
    return load_config(
        flags={
            "home": home,
            "models.default.provider": "replay",
            "models.default.path": str(recording),
            "line.plan": False,
            "line.replan": "never",
            "executor.tools": ("search", "lookup"),
            "judge.kind": "reference",
            "memory.embedder": "hashing",
        }
    )


async def replay(
    records: list[ReactRecord], index: Path, home: Path, **flags: object
) -> tuple[list[Episode], ReplayModel]:
    """Run the records through the line; returns the episodes of the log and the model, to be looked at."""
    recording = home / "recording.jsonl"
    write_recording(records, recording)
    config = configuration(home, recording)
    team = build_team(config, engine=CorpusIndex.open(index))
    model = team.executor.model
    assert isinstance(model, ReplayModel)
    tasks = [record.task for record in records]
    run = open_run(home / "run", tasks, config, resume=False)
    await Runner(run, tasks, team, concurrency=16, **flags).run()  # type: ignore[arg-type]
    await team.close()
    return list(read_episodes(home / "run" / "episodes.jsonl")), model


async def test_every_recorded_run_comes_through_as_recorded(
    records: list[ReactRecord], index: Path, tmp_path: Path
) -> None:
    assert len(records) == 512
    episodes, model = await replay(records, index, tmp_path, learn=False)
    model.assert_exhausted()
    by_id = {episode.question.id: episode for episode in episodes}
    assert by_id.keys() == {record.id for record in records}
    differences = []
    for record in records:
        episode = by_id[record.id]
        assert episode.verdict is not None
        if episode.verdict.correct != record.correct:
            differences.append((record.id, record.outcome, episode.verdict.outcome.value))
        if record.outcome == "halted":
            assert episode.verdict.outcome is Outcome.NOT_ATTEMPTED
            assert episode.stop is not None
            assert episode.stop.reason is StopReason.MODEL_FAILED
    assert differences == []
    outcomes = Counter(episode.verdict.outcome.value for episode in episodes if episode.verdict)
    assert outcomes == {"correct": 81, "incorrect": 333, "not_attempted": 98}


async def test_the_searches_went_to_our_index_and_the_quotes_hold(
    records: list[ReactRecord], index: Path, tmp_path: Path
) -> None:
    episodes, _ = await replay(records[:100], index, tmp_path, learn=False)
    searches = [step for episode in episodes for step in episode.steps if step.tool_call and step.observation]
    assert sum(step.observation.ok for step in searches if step.observation) > 0.99 * len(searches)
    assert all(
        passage.id.startswith("hp-")
        for step in searches
        if step.tool_call and step.tool_call.name == "search" and step.observation
        for passage in step.observation.passages
    )
    quoted = 0
    for episode in episodes:
        observations = {
            step.index: " ".join(step.observation.text.split()) for step in episode.steps if step.observation
        }
        for citation in episode.answer.citations if episode.answer else ():
            assert citation.quote in observations[citation.step]
            quoted += 1
    assert quoted > 20


async def test_no_verdict_reflection_or_reference_reaches_a_prompt_or_a_row(
    records: list[ReactRecord], index: Path, tmp_path: Path
) -> None:
    chosen = records[:60]
    secret = "planted-reference-7461"
    tasks = [record.task.evolve(references=(secret, *record.task.references)) for record in chosen]
    recording = tmp_path / "recording.jsonl"
    write_recording(chosen, recording)
    config = configuration(tmp_path, recording)
    # Compressions are not recorded, and what a run without them keeps is to be looked at: so nothing checks the replay.
    team = replace(build_team(config, engine=CorpusIndex.open(index)), replays=())
    seen: list[str] = []
    complete = team.executor.model.complete

    async def listening(request: object) -> object:
        seen.append(str(request))
        return await complete(request)  # type: ignore[arg-type]

    team.executor.model.complete = listening  # type: ignore[method-assign, assignment]
    run = open_run(tmp_path / "run", tasks, config, resume=False)
    await Runner(run, tasks, team, concurrency=4).run()
    await team.close()
    assert len(seen) > 100
    assert not any(secret in request or "Answer is CORRECT" in request for request in seen)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert secret.encode() not in content, path
            assert b"Answer is CORRECT" not in content, path


@pytest.mark.parametrize("broken", ["an entry is missing", "an entry is left over", "the answer is another"])
async def test_a_broken_recording_is_noticed(
    records: list[ReactRecord], index: Path, tmp_path: Path, broken: str
) -> None:
    record = next(record for record in records if record.correct and len(record.entries) >= 3)
    entries = list(record.entries)
    if broken == "an entry is missing":
        del entries[1]
    elif broken == "an entry is left over":
        entries.append(entries[-1].evolve(turn=len(entries)))
    else:
        entries[-1] = entries[-1].evolve(text="<answer>something else</answer>")
    replayed = replay([replace(record, entries=tuple(entries))], index, tmp_path, learn=False)
    if broken == "an entry is missing":
        with pytest.raises(ReplayMismatch, match="execute"):
            await replayed
        return
    episodes, model = await replayed
    assert episodes[0].verdict is not None
    if broken == "the answer is another":
        assert episodes[0].verdict.outcome is Outcome.INCORRECT
        return
    with pytest.raises(ReplayMismatch, match="execute"):
        model.assert_exhausted()
