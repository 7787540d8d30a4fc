"""The reader as the Executor's tool, through a whole execution; and long pages behind `fetch`."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from web_server import WebServer, page

from mia.agents.executor import Executor
from mia.config import Config, ExecutorSettings, ReaderSettings, load_config
from mia.errors import ConfigError, ModelUnavailable, ToolError
from mia.learn.rollouts import RecordingModel
from mia.models.base import ChatReply, ChatRequest, TokenReply
from mia.models.ledger import Budget, Ledger
from mia.models.scripted import Answer, ScriptedModel
from mia.reader.read import Reader
from mia.reader.tool import ReadingFetchTool, ReadTool, build_reading_tools
from mia.tools import build_tools
from mia.tools.addresses import AddressGuard
from mia.tools.base import BadArguments, ToolContext
from mia.tools.fetch import FetchLimits, FetchTool
from mia.types import Question, Role

QUESTION = Question.of("Who lit the lamp?")
LONG = "".join(f"<p>Nothing happened in the year {year}, and nobody minded.</p>" for year in range(1000, 1400))
PAGE = (
    f"<html><head><title>Annals</title></head><body>{LONG}<p>In 1871 Ada Brindle lit the lamp.</p>{LONG}</body></html>"
)
SETTINGS = ReaderSettings(chunk_tokens=1000, memory_tokens=60)


def read_well(request: ChatRequest) -> Answer:
    prompt = request.messages[-1].content
    if request.purpose == "answer":
        return "\\boxed{Ada Brindle}" if "lit the lamp" in prompt.partition("<memory>")[2] else "\\boxed{unknown}"
    memory = prompt.partition("<memory>\n")[2].partition("\n</memory>")[0]
    return "In 1871 Ada Brindle lit the lamp." if "Ada Brindle" in prompt else memory


def guard() -> AddressGuard:
    async def resolve(host: str, port: int) -> Sequence[str]:
        raise AssertionError(host)

    return AddressGuard(resolver=resolve, ports=None, allow_loopback=True)


def context(ledger: Ledger | None = None) -> ToolContext:
    return ToolContext(QUESTION, ledger=ledger)


async def test_a_page_is_read_whole_and_its_notes_can_be_cited() -> None:
    ledger = Ledger("q")
    async with WebServer({"/annals": page(PAGE)}) as server:
        tool = ReadTool(Reader(ScriptedModel(read_well), SETTINGS), FetchTool(guard()))
        source = f"{server.url}/annals"
        observation = await tool.call({"source": source, "question": "Who lit the lamp?"}, context(ledger))
        await tool.close()
    (passage,) = observation.passages
    assert (passage.id, passage.title, passage.source) == (f"{source}#read", "Annals", source)
    assert passage.text == "In 1871 Ada Brindle lit the lamp."
    assert passage.text in observation.text
    assert "The reader's answer: Ada Brindle" in observation.text
    assert "not the text itself" in observation.text
    assert ledger.usage[Role.READER].calls > 5
    assert Role.EXECUTOR not in ledger.usage


async def test_a_document_of_the_corpus_is_found_by_its_id_and_by_that_of_a_passage(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "annals#1.txt").write_text("In 1871 Ada Brindle lit the lamp.\n" + "Nothing happened. " * 2000)
    (tmp_path / "secret.txt").write_text("In 1871 Ada Brindle lit the lamp.")
    tool = ReadTool(Reader(ScriptedModel(read_well), SETTINGS), FetchTool(guard()), [folder])
    for source in ("docs/annals#1.txt", "docs/annals#1.txt#3"):
        observation = await tool.call({"source": source, "question": "Who?"}, context())
        assert "The reader's answer: Ada Brindle" in observation.text
    for outside in ("secret.txt", "../secret.txt", str(tmp_path / "secret.txt"), "docs/../../secret.txt"):
        with pytest.raises(ToolError, match="there is no document"):
            await tool.call({"source": outside, "question": "Who?"}, context())
    for wrong in ({}, {"source": "x"}, {"source": "x", "question": " "}, {"source": "x", "question": "y", "z": 1}):
        with pytest.raises(BadArguments):
            await tool.call(wrong, context())


async def test_a_row_of_jsonl_is_found_by_its_id_and_by_that_of_a_passage(tmp_path: Path) -> None:
    rows = [
        {"id": "annals/2", "title": "Annals", "text": "Nobody lit a lamp. " * 40},
        {"id": "annals", "title": "Annals", "text": "Nothing happened. " * 1200 + "In 1871 Ada Brindle lit the lamp."},
        {"id": "tides#7", "text": "In 1871 Ada Brindle lit the lamp."},
    ]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join([lines[0], "no row", lines[1]]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines[2].encode()))
    tool = ReadTool(Reader(ScriptedModel(read_well), SETTINGS), FetchTool(guard()), [tmp_path])
    for source, title in (("annals", "Annals"), ("annals#2", "Annals"), ("tides#7", "tides#7")):
        observation = await tool.call({"source": source, "question": "Who?"}, context())
        assert "The reader's answer: Ada Brindle" in observation.text, source
        assert observation.passages[0].title == title
    other = await tool.call({"source": "annals/2", "question": "Who?"}, context())
    assert "The reader's answer: unknown" in other.text
    for absent in ("anna", "annals#x#0", "tides"):
        with pytest.raises(ToolError, match="there is no document"):
            await tool.call({"source": absent, "question": "Who?"}, context())


async def test_what_is_not_read_of_a_long_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("Nothing happened. " * 5000)
    reader = Reader(ScriptedModel(read_well), SETTINGS.model_copy(update={"max_tokens": 2000}))
    observation = await ReadTool(reader, FetchTool(guard()), [tmp_path]).call(
        {"source": f"{tmp_path.name}/long.txt", "question": "Who?"}, context()
    )
    assert "characters of its middle was not read" in observation.text


async def test_a_long_page_is_read_for_the_question_and_a_short_one_is_shown() -> None:
    short = "<html><body><p>The lighthouse of Brindle Point was lit in 1871.</p></body></html>"
    model = ScriptedModel(read_well)
    async with WebServer({"/long": page(PAGE), "/short": page(short)}) as server:
        plain = FetchTool(guard())
        tool = ReadingFetchTool(plain, Reader(model, SETTINGS))
        assert tool.schema == FetchTool.schema
        read = await tool.call({"url": f"{server.url}/long"}, context())
        calls = len(model.requests)
        shown = await tool.call({"url": f"{server.url}/short"}, context())
        assert shown == await plain.call({"url": f"{server.url}/short"}, context())
        with pytest.raises(BadArguments):
            await tool.call({"address": "x"}, context())
        await tool.close()
    assert "Ada Brindle lit the lamp" in read.text
    assert len(read.text) < 1000
    assert calls == len(model.requests) > 5
    assert QUESTION.text in model.requests[0].messages[0].content


async def test_where_the_reading_fails_the_page_is_cut_as_before() -> None:
    gone = ScriptedModel(lambda request: ModelUnavailable("the endpoint is gone."))
    async with WebServer({"/long": page(PAGE)}) as server:
        plain = FetchTool(guard(), FetchLimits(characters=500))
        cut = await plain.call({"url": f"{server.url}/long"}, context())
        said = await ReadingFetchTool(plain, Reader(gone, SETTINGS)).call({"url": f"{server.url}/long"}, context())
        await plain.close()
    assert said.text.startswith(cut.text)
    assert said.text.endswith("[It could not be read whole: the endpoint is gone.]")
    assert said.passages == cut.passages


# ── in the line ───────────────────────────────────────────────────────────────────────────────────────────────────


def config(home: Path, *tools: str, **flags: object) -> Config:
    named = {"home": home, "executor.tools": tools} | {name.replace("__", "."): value for name, value in flags.items()}
    return load_config(flags=named)


def test_the_tools_are_built_where_the_window_allows_it(tmp_path: Path) -> None:
    wide, narrow = ScriptedModel(read_well), ScriptedModel(read_well, context_window=1000)
    both = config(tmp_path, "read", "fetch")
    assert [type(tool) for tool in build_tools(both, None, build_reading_tools(both, wide))] == [
        ReadTool,
        ReadingFetchTool,
    ]
    with pytest.raises(ConfigError, match="too small to read with"):
        build_reading_tools(both, narrow)
    fetch = config(tmp_path, "fetch")
    assert build_reading_tools(fetch, narrow) == {}
    assert build_reading_tools(config(tmp_path, "fetch", reader__pages=False), wide) == {}
    assert [type(tool) for tool in build_tools(fetch, None, {})] == [FetchTool]
    with pytest.raises(ConfigError, match="needs a model"):
        build_tools(both, None)


class Tokens(ScriptedModel):
    """A scripted model that tells tokens, as one in this process does."""

    async def complete(self, request: ChatRequest) -> TokenReply:
        reply: ChatReply = await super().complete(request)
        words = tuple(range(len(reply.text.split()) or 1))
        said = " ".join(message.content for message in request.messages)
        return TokenReply(
            text=reply.text,
            usage=reply.usage,
            prompt_ids=tuple(hash(word) % 1000 for word in said.split()),
            ids=words,
            logprobs=(-1.0,) * len(words),
        )


async def test_an_executor_reads_and_its_rollout_holds_only_its_own_calls(tmp_path: Path) -> None:
    (tmp_path / "annals.txt").write_text("Nothing. " * 3000 + "In 1871 Ada Brindle lit the lamp. " + "Nothing. " * 3000)
    key = f"{tmp_path.name}/annals.txt"
    call = f'<tool_call>{{"name": "read", "arguments": {{"source": "{key}", "question": "Who?"}}}}</tool_call>'
    turns = iter([f"<think>I read it.</think>\n{call}", "<think>Found.</think>\n<answer>Ada Brindle</answer>"])
    model = Tokens(lambda request: next(turns) if request.role is Role.EXECUTOR else read_well(request))
    recording = RecordingModel(model, role=Role.EXECUTOR)
    tool = ReadTool(Reader(recording, SETTINGS), FetchTool(guard()), [tmp_path])
    ledger = Ledger(QUESTION.id, budget=Budget(calls=60))
    done = await Executor(recording, [tool], ExecutorSettings()).execute(QUESTION, None, "", ledger)
    assert done.answer is not None
    assert done.answer.text == "Ada Brindle"
    assert [citation.passage_id for citation in done.answer.citations] == [f"{key}#read"]
    assert ledger.usage[Role.READER].calls > 10
    assert ledger.usage[Role.EXECUTOR].calls == len(recording.said) == 2


async def test_the_budget_of_the_question_bounds_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "annals.txt").write_text("Nothing. " * 9000)
    key = f"{tmp_path.name}/annals.txt"
    call = f'<tool_call>{{"name": "read", "arguments": {{"source": "{key}", "question": "Who?"}}}}</tool_call>'
    model = ScriptedModel(lambda request: call if request.role is Role.EXECUTOR else read_well(request))
    tool = ReadTool(Reader(model, SETTINGS), FetchTool(guard()), [tmp_path])
    ledger = Ledger(QUESTION.id, budget=Budget(calls=6))
    done = await Executor(model, [tool], ExecutorSettings()).execute(QUESTION, None, "", ledger)
    assert ledger.total.calls == 6
    observation = done.steps[0].observation
    assert observation is not None
    assert "read failed: the budget" in observation.text
