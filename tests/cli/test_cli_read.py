"""`mia read`: files and questions in any order that is natural, results to stdout, stopping and going on."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path

import pytest
from program import Program

from mia.errors import ModelUnavailable
from mia.models.base import ChatRequest
from mia.models.scripted import Answer, ScriptedModel

TEXT = "Nothing happened. " * 300 + "Ada Brindle lit the lamp. " + "Nothing happened. " * 300


def read_well(request: ChatRequest) -> Answer:
    prompt = request.messages[0].content
    if request.purpose == "answer":
        return "\\boxed{Ada Brindle}" if "lit" in prompt.partition("<memory>")[2] else "\\boxed{unknown}"
    return "Ada Brindle lit the lamp." if "Ada Brindle" in prompt else "Nothing."


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ScriptedModel:
    """What `mia read` reads with, in place of an endpoint."""
    scripted = ScriptedModel(read_well)
    monkeypatch.setattr("mia.models.build_model", lambda settings, *, section: scripted)
    (tmp_path / "mia.toml").write_text(
        '[models.default]\nmodel = "scripted"\n[reader]\nchunk_tokens = 200\nmemory_tokens = 50\n'
    )
    (tmp_path / "a.txt").write_text(TEXT)
    return scripted


def test_the_answer_alone_goes_to_stdout(program: Program, model: ScriptedModel) -> None:
    ended = program("read", "a.txt", "Who lit the lamp?")
    assert (ended.code, ended.stdout) == (0, "Ada Brindle\n")
    assert "model calls" in ended.stderr
    quiet = program("read", "--quiet", "-q", "Who lit the lamp?", "a.txt")
    assert (quiet.code, quiet.stdout, quiet.stderr) == (0, "Ada Brindle\n", "")
    assert not list(Path(".mia/reader").iterdir())


def test_one_of_a_kind_is_told_as_one(program: Program, model: ScriptedModel) -> None:
    Path("short.txt").write_text("Ada Brindle lit the lamp.")
    assert "1 chunk · 7 tokens · 2 model calls" in program("read", "short.txt", "Who lit the lamp?").stderr


def test_several_questions_and_files_as_json(program: Program, model: ScriptedModel) -> None:
    Path("more").mkdir()
    Path("more/b.md").write_text("# More\nNothing.")
    Path("more/c.bin").write_bytes(b"\x00")
    ended = program("read", "a.txt", "more", "-q", "Who lit the lamp?", "-q", "When?", "-q", "When?", "--json")
    page = json.loads(ended.stdout)
    assert [one["question"] for one in page["readings"]] == ["Who lit the lamp?", "When?"]
    assert {one["answer"] for one in page["readings"]} == {"Ada Brindle"}
    assert page["text"]["documents"] == 2
    assert [one["document"] for one in page["text"]["left_out"]] == ["more/c.bin"]
    assert "left out: more/c.bin" in ended.stderr
    text = program("read", "a.txt", "-q", "Who?", "-q", "When?").stdout
    assert text == "Who?\n  Ada Brindle\nWhen?\n  Ada Brindle\n"


def test_standard_input_and_packed_files(
    program: Program, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert program("read", "-", "Who lit the lamp?").stdout == "Ada Brindle\n"
    Path("a.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert program("read", "a.gz", "Who lit the lamp?").stdout == "Ada Brindle\n"


def test_the_trace_and_the_changes_tell_what_each_chunk_did(program: Program, model: ScriptedModel) -> None:
    ended = program("read", "a.txt", "Who lit the lamp?", "--trace", "trace.jsonl", "--changes")
    lines = [json.loads(line) for line in Path("trace.jsonl").read_text().splitlines()]
    changed = [line for line in lines if line["kind"] == "chunk_read" and line["added"]]
    assert ["Ada Brindle lit the lamp."] in [line["added"] for line in changed]
    assert lines[-1]["answer"] == "Ada Brindle"
    assert "+ Ada Brindle lit the lamp." in ended.stderr
    again = program("read", "a.txt", "Who lit the lamp?", "--trace", "trace.jsonl")
    assert (again.code, again.stdout) == (2, "")
    assert "already" in again.stderr


def test_a_reading_that_failed_goes_on_only_when_it_is_told_to(
    program: Program, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = program_with_calls(program, monkeypatch, 4)
    assert stopped.code == 1
    assert stopped.stdout == ""
    assert "4 chunks are kept" in stopped.stderr
    calls = len(model.requests)
    refused = program("read", "a.txt", "Who lit the lamp?")
    assert (refused.code, "--resume" in refused.stderr, len(model.requests)) == (2, True, calls)
    resumed = program("read", "a.txt", "Who lit the lamp?", "--resume")
    assert (resumed.code, resumed.stdout) == (0, "Ada Brindle\n")
    first_prompt = model.requests[calls].messages[0].content
    whole = len(model.requests) - calls + 4
    program("read", "a.txt", "Who lit the lamp?")
    assert len(model.requests) - calls - (whole - 4) == whole
    assert first_prompt == model.requests[calls + whole - 4 + 4].messages[0].content


def program_with_calls(program: Program, monkeypatch: pytest.MonkeyPatch, calls: int):  # type: ignore[no-untyped-def]
    with monkeypatch.context() as limited:
        limited.setenv("MIA_BUDGET__QUESTION__CALLS", str(calls))
        return program("read", "a.txt", "Who lit the lamp?")


def test_anew_begins_again(program: Program, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    program_with_calls(program, monkeypatch, 4)
    calls = len(model.requests)
    assert program("read", "a.txt", "Who lit the lamp?", "--anew").stdout == "Ada Brindle\n"
    anew = len(model.requests) - calls
    program("read", "a.txt", "Who lit the lamp?")
    assert len(model.requests) - calls == 2 * anew


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("a.txt",), "no question is asked"),
        (("Who?",), "nothing to read"),
        (("-",), "no question is asked"),
        (("gone.txt", "Who?"), "there is no file 'gone.txt'"),
        (("binary", "Who?"), "binary"),
        (("empty.txt", "Who?"), "empty"),
        (("a.txt", "Who?", "--chunk-tokens", "200000"), "200000 + reply 50 ="),
    ],
)
def test_what_is_refused_costs_no_call(
    program: Program, model: ScriptedModel, words: tuple[str, ...], says: str
) -> None:
    Path("binary").write_bytes(b"\x7fELF\x00\x00")
    Path("empty.txt").touch()
    ended = program("read", *words)
    assert (ended.code, ended.stdout) == (2, "")
    assert says in ended.stderr
    assert not model.requests


def test_a_missing_file_is_told_before_a_missing_model(program: Program) -> None:
    ended = program("read", "gone.txt", "Who?")
    assert ended.code == 2
    assert "there is no file 'gone.txt'" in ended.stderr
    assert "model" not in ended.stderr


def test_no_resume_is_promised_where_nothing_was_kept(
    program: Program, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(request: ChatRequest) -> Answer:
        raise ModelUnavailable("m cannot be reached.")

    monkeypatch.setattr("mia.models.build_model", lambda settings, *, section: ScriptedModel(down))
    ended = program("read", "a.txt", "Who lit the lamp?")
    assert ended.code == 1
    assert "nothing is kept; the same command begins anew" in ended.stderr
    assert "--resume" not in ended.stderr


def test_without_a_model_it_says_what_is_lacking(program: Program) -> None:
    Path("a.txt").write_text(TEXT)
    ended = program("read", "a.txt", "Who?")
    assert ended.code == 2
    assert "no model is named to read with" in ended.stderr


def test_both_ends_of_a_capped_text_are_read_and_it_is_said(program: Program, model: ScriptedModel) -> None:
    ended = program("read", "a.txt", "Who?", "--max-tokens", "400")
    assert ended.stdout == "unknown\n"
    assert "characters of the middle were not read" in ended.stderr


def test_a_real_endpoint_reads_and_its_recording_answers_again(program: Program, endpoint: str) -> None:
    Path("a.txt").write_text(TEXT)
    said = ("--base-url", endpoint, "--model", "m", "--chunk-tokens", "500", "--quiet")
    first = program("read", "a.txt", "Which moon?", *said, "--record", "calls.jsonl")
    assert first.code == 0, first.stderr
    again = program("read", "a.txt", "Which moon?", "--replay", "calls.jsonl", "--chunk-tokens", "500", "--quiet")
    assert (again.code, again.stdout) == (0, first.stdout)
