"""Items put to a method: both methods alike, many at a time, each kept at once, and nothing asked twice."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from long_texts import finder, hotpot_file, sources

from mia.config import ReaderSettings
from mia.errors import (
    ConfigError,
    ContextOverflow,
    MissingExtra,
    ModelRefused,
    ModelReplyError,
    ModelUnavailable,
    RecordError,
    StoreError,
)
from mia.evals.ruler import suite
from mia.evals.ruler.documents import read_corpus
from mia.evals.ruler.items import Work
from mia.evals.ruler.methods import Direct, Reading, Sampled
from mia.evals.ruler.ray import Cluster
from mia.evals.ruler.results import RESULTS, ResultLog
from mia.evals.ruler.runner import Evaluator, Runner, score
from mia.models.base import ChatRequest
from mia.models.ledger import Budget
from mia.models.scripted import ScriptedModel

WORKS = suite.works(["niah_single_1", "niah_multivalue"], [600, 1200], 4)


def runner(
    folder: Path, model: ScriptedModel, works: list[Work] = WORKS, *, concurrency: int = 4, budget: Budget = Budget()
) -> Runner:
    log = ResultLog.open(folder, {"model": "scripted"})
    return Runner(log, works, Evaluator(sources(), Direct(model), run_budget=budget), concurrency=concurrency)


async def run(folder: Path, model: ScriptedModel, works: list[Work] = WORKS, **others: object) -> Runner:
    one = runner(folder, model, works, **others)  # type: ignore[arg-type]
    try:
        await one.run()
    finally:
        one._log.close()
    return one


async def test_direct_answers_are_scored_and_kept(tmp_path: Path) -> None:
    one = await run(tmp_path, ScriptedModel(finder))
    assert (one.progress.answered, one.progress.total, one.progress.unanswered) == (16, 16, {})
    lines = (tmp_path / RESULTS).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 17
    results = one._log.results
    assert {result.score for result in results.values()} == {1.0}
    some = results[Work("niah_multivalue", 1200, 0)]
    item = suite.make(some.work, sources())
    assert (some.depths, some.hits, some.tokens) == (item.depths, (1.0,) * 4, item.tokens)
    assert some.usage.calls == 1
    assert some.usage.prompt_tokens > 1200


async def test_the_text_is_shown_whole_and_its_marks_are_harmless() -> None:
    model = ScriptedModel(lambda request: "The answer is 1.")
    await Evaluator(sources(), Direct(model))(Work("niah_single_2", 900, 0))
    [request] = model.requests
    item = suite.make(Work("niah_single_2", 900, 0), sources())
    assert item.text in request.messages[0].content
    assert item.question in request.messages[0].content


async def test_sampling_is_the_papers_unless_a_request_says_otherwise() -> None:
    model = ScriptedModel(lambda request: "x")
    await Evaluator(sources(), Direct(Sampled(model)))(WORKS[0])
    assert (model.requests[0].temperature, model.requests[0].top_p) == (0.7, 0.95)


async def test_reader_and_direct_are_two_methods_of_one_interface() -> None:
    """A text of four windows: the reader carries what it finds; the direct way does not fit."""

    def reads(request: ChatRequest) -> str:
        content = request.messages[-1].content
        question = content.partition("<question>")[2].partition("</question>")[0]
        found = re.findall(r"special magic \w+ for (\S+) is: (\S+?)\.", content)
        kept = [f"special magic numbers for {key} is: {value}." for key, value in found if key in question]
        if "<chunk>" in content:
            return " ".join(dict.fromkeys(kept)) or "nothing"
        return rf"\boxed{{{', '.join(dict.fromkeys(value for key, value in found if key in question))}}}"

    work = Work("niah_multivalue", 4000, 0)
    small = ScriptedModel(reads, context_window=2000, max_tokens=200)
    method = Reading(small, ReaderSettings(chunk_tokens=1000, memory_tokens=200))
    result = await Evaluator(sources(), method)(work)
    assert result.score == 1.0
    assert result.usage.calls >= 5
    assert result.answer.endswith(f"The answer is {', '.join(dict.fromkeys(re.findall('[0-9]{7}', result.answer)))}")
    with pytest.raises(ConfigError, match="window"):
        Reading(ScriptedModel(reads, context_window=500), ReaderSettings())


async def test_a_boxed_answer_of_the_reader_counts_as_stated(tmp_path: Path) -> None:
    corpus = read_corpus(hotpot_file(tmp_path))
    answers = {asked.question: asked.answers[0] for asked in corpus.questions}

    def knows(request: ChatRequest) -> str:
        content = request.messages[-1].content
        if "<chunk>" in content:
            return "noted"
        [answer] = [answer for question, answer in answers.items() if question in content]
        return rf"It is \boxed{{{answer}}}."

    made = sources(corpus=corpus, seed=4)
    work = Work("hotpotqa", 20, 0)
    assert (await Evaluator(made, Reading(ScriptedModel(knows)))(work)).score == 1.0
    direct = Evaluator(made, Direct(ScriptedModel(lambda request: knows_plain(request, answers))))
    assert (await direct(work)).score == 0.0


def knows_plain(request: ChatRequest, answers: dict[str, str]) -> str:
    return next(answer for question, answer in answers.items() if question in request.messages[-1].content)


async def test_so_many_at_a_time(tmp_path: Path) -> None:
    under_way = most = 0

    class Counting(ScriptedModel):
        async def complete(self, request: ChatRequest):  # type: ignore[no-untyped-def]
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                return await super().complete(request)
            finally:
                under_way -= 1

    await run(tmp_path, Counting(finder, delay=0.05), concurrency=5)
    assert most == 5


async def test_a_stop_finishes_what_is_under_way_and_the_next_call_goes_on(tmp_path: Path) -> None:
    first = ScriptedModel(finder, delay=0.01)
    one = runner(tmp_path, first, concurrency=3)
    one._on_progress = lambda progress: one.stop("enough") if progress.answered == 5 else None
    await one.run()
    one._log.close()
    assert one.progress.stopped == "enough"
    assert 5 <= one.progress.answered <= 8
    assert len(first.requests) == one.progress.answered
    second = ScriptedModel(finder)
    other = await run(tmp_path, second)
    assert other.progress.answered == 16
    assert len(first.requests) + len(second.requests) == 16
    assert {request.question_id for request in first.requests}.isdisjoint(r.question_id for r in second.requests)
    # And more of the same: only what is new is asked.
    third = ScriptedModel(finder)
    await run(tmp_path, third, suite.works(["niah_single_1", "niah_multivalue"], [600, 1200], 5))
    assert len(third.requests) == 4


KILLED = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from long_texts import finder, sources
from mia.evals.ruler import suite
from mia.evals.ruler.methods import Direct
from mia.evals.ruler.results import ResultLog
from mia.evals.ruler.runner import Evaluator, Runner
from mia.models.scripted import ScriptedModel
works = suite.works(["niah_single_1", "niah_multivalue"], [600, 1200], 4)
log = ResultLog.open(Path(sys.argv[1]), {"model": "scripted"})
model = ScriptedModel(finder, delay=0.1)
asyncio.run(Runner(log, works, Evaluator(sources(), Direct(model)), concurrency=2).run())
"""


def killed_in_the_middle(folder: Path) -> None:
    """Another process, which is killed once it has kept some answers."""
    path = folder / RESULTS
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(Path(__file__).parent)])
    try:
        while not (path.exists() and path.read_bytes().count(b"\n") >= 6):
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


async def test_killed_in_the_middle_nothing_is_lost(tmp_path: Path) -> None:
    await asyncio.to_thread(killed_in_the_middle, tmp_path)
    path = tmp_path / RESULTS
    kept = path.read_bytes()
    # What a crash within a write leaves behind.
    path.write_bytes(kept + b'{"task": "niah_sin')
    model = ScriptedModel(finder)
    one = await run(tmp_path, model)
    assert one.progress.answered == 16
    assert len(model.requests) == 16 - (kept.count(b"\n") - 1)
    assert path.read_bytes().startswith(kept)
    assert {json.loads(line)["score"] for line in path.read_bytes().splitlines()[1:]} == {1.0}


@pytest.mark.parametrize("error", [ContextOverflow("too long"), ModelReplyError("empty")])
async def test_what_the_model_cannot_do_scores_nothing(tmp_path: Path, error: Exception) -> None:
    one = await run(tmp_path, ScriptedModel(lambda request: error), WORKS[:2])
    assert [(result.score, result.failure) for result in one._log.results.values()] == [(0.0, type(error).__name__)] * 2


async def test_what_was_not_asked_stays_open(tmp_path: Path) -> None:
    down = ScriptedModel(lambda request: ModelUnavailable("nobody there"))
    one = await run(tmp_path, down, concurrency=3)
    assert "3 items in a row" in one.progress.stopped
    assert one.progress.answered == 0
    assert len(down.requests) < 16
    one = await run(tmp_path, ScriptedModel(finder), budget=Budget(calls=6))
    assert one.progress.answered == 6
    assert "6 calls" in one.progress.stopped
    assert (await run(tmp_path, ScriptedModel(finder))).progress.answered == 16


async def test_an_endpoint_that_refuses_ends_it(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused):
        await run(tmp_path, ScriptedModel(lambda request: ModelRefused("no such model")))
    with pytest.raises(ConfigError, match="the least it needs"):
        await run(tmp_path, ScriptedModel(finder), [Work("niah_single_1", 5, 0)])


def test_other_settings_are_refused_and_writers_are_alone(tmp_path: Path) -> None:
    log = ResultLog.open(tmp_path, {"seed": 0})
    with pytest.raises(StoreError, match="another process"):
        ResultLog.open(tmp_path, {"seed": 0})
    log.close()
    with pytest.raises(ConfigError, match="differ: seed"):
        ResultLog.open(tmp_path, {"seed": 1})
    path = tmp_path / RESULTS
    path.write_bytes(path.read_bytes() + b'{"task": 1}\n')
    with pytest.raises(RecordError, match="line 2"):
        ResultLog.open(tmp_path, {"seed": 0})


async def test_a_full_disk_is_told_and_leaves_no_half_line(tmp_path: Path) -> None:
    log = ResultLog.open(tmp_path, {})
    whole = (tmp_path / RESULTS).read_bytes()
    result = await Evaluator(sources(), Direct(ScriptedModel(finder)))(WORKS[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 50, hard))
    try:
        with pytest.raises(StoreError, match="cannot write"):
            await log.append(result)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / RESULTS).read_bytes() == whole
    await log.append(result)
    log.close()
    assert (tmp_path / RESULTS).read_bytes().count(b"\n") == 2


async def test_lone_surrogates_in_an_answer_are_kept_readable(tmp_path: Path) -> None:
    one = await run(tmp_path, ScriptedModel(lambda request: "\ud800 1"), WORKS[:1])
    assert one.progress.answered == 1
    assert (await run(tmp_path, ScriptedModel(finder), WORKS[:1])).progress.answered == 1


def test_hits_by_depth() -> None:
    item = suite.make(Work("niah_multivalue", 2000, 0), sources())
    half = score(item, f"{item.references[0]} and {item.references[2]}")
    assert (half.score, half.hits) == (0.5, (1.0, 0.0, 1.0, 0.0))
    everywhere = suite.make(Work("fwe", 500, 0), sources())
    assert score(everywhere, everywhere.references[0].upper()).score == pytest.approx(1 / 3)
    assert score(everywhere, "").hits == ()


def test_ray_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match="'ray' is needed"):
        Cluster("auto", sources(), None)  # type: ignore[arg-type]


def test_long_texts_are_made_in_seconds() -> None:
    """No step is quadratic: 16 times the text takes at most some 16 times the time."""

    def seconds(length: int) -> float:
        begun = time.process_time()
        for task in suite.RULER:
            suite.make(Work(task, length, 0), made)
        return time.process_time() - begun

    made = sources()
    short = min(seconds(32_768) for _ in range(2))
    assert seconds(524_288) < 40 * max(short, 0.05)
