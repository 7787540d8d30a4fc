"""`mia memory export | import`: there and back, and what is refused."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from program import Program

from mia.store import open_store
from mia.types import Episode, Question


def add(program: Program, question: str, *arguments: str) -> str:
    workflow = f"1. look ({question} → found)"
    return program(
        "memory", "add", "--question", question, "--workflow", workflow, "--judgement", "correct", *arguments
    ).stdout.strip()


@pytest.fixture
def ids(program: Program) -> set[str]:
    return {add(program, "Who found Titan?"), add(program, "When did Halley come?", "--scope", "default/ann")}


def listed(program: Program, home: str) -> dict[str, str]:
    pages = json.loads(program("--home", home, "memory", "list", "--all-scopes", "--json").stdout)
    return {page["id"]: page["scope"] for page in pages}


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "notes"])
def test_there_and_back(program: Program, ids: set[str], name: str) -> None:
    out = program("memory", "export", name)
    assert (out.code, out.stdout) == (0, f"{name}\n")
    assert "2 memories" in out.stderr
    done = program("--home", "other", "memory", "import", name)
    assert (done.code, done.stdout) == (0, "2 memories added, 0 known already\n")
    assert listed(program, "other") == listed(program, ".mia")
    assert program("--home", "other", "memory", "import", name).stdout == "0 memories added, 2 known already\n"
    program("--home", "third", "memory", "import", name, "--scope", "acme")
    assert set(listed(program, "third").values()) == {"acme"}
    if name != "notes":
        taken = program("memory", "export", name)
        assert (taken.code, taken.stdout) == (2, "")
        assert program("memory", "export", name, "--force").code == 0


def test_a_scope_alone_or_all(program: Program, ids: set[str]) -> None:
    assert (
        json.loads(program("memory", "export", "a.jsonl", "--scope", "default/ann", "--json").stdout)["memories"] == 1
    )
    add(program, "Who found Io?", "--scope", "acme")
    assert json.loads(program("memory", "export", "b.jsonl", "--json").stdout)["memories"] == 2
    assert json.loads(program("memory", "export", "c.jsonl", "--all-scopes", "--json").stdout)["memories"] == 3


def test_through_a_pipe(program: Program, ids: set[str]) -> None:
    mia = [sys.executable, "-m", "mia.cli.main"]
    out = subprocess.run([*mia, "memory", "export", "-"], capture_output=True, check=True)
    assert json.loads(out.stdout.splitlines()[0])["mia"] == "memory"
    back = subprocess.run([*mia, "--home", "other", "memory", "import", "-"], input=out.stdout, capture_output=True)
    assert (back.returncode, back.stdout) == (0, b"2 memories added, 0 known already\n")
    assert set(listed(program, "other")) == ids


def test_a_log_of_another_agent_with_and_without_a_judgement(program: Program) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "search", "arguments": '{"query": "Titan discovery"}'}}
    messages = [
        {"role": "user", "content": "Who found Titan?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Titan was found by Christiaan Huygens in 1655."},
        {"role": "assistant", "content": "Christiaan Huygens"},
    ]
    with gzip.open("log.jsonl.gz", "wt") as file:
        file.write(json.dumps({"messages": messages}) + "\n")
    unjudged = program("memory", "import", "log.jsonl.gz")
    assert (unjudged.code, unjudged.stdout) == (0, "0 memories added, 0 known already\n")
    assert "carry no verdict" in unjudged.stderr
    page = json.loads(
        program("--home", "b", "memory", "import", "log.jsonl.gz", "--judgement", "correct", "--json").stdout
    )
    assert (page["format"], page["added"]) == ("openai", 1)


def test_what_is_refused_is_named_and_the_rest_is_taken(program: Program, ids: set[str]) -> None:
    program("memory", "export", "out.jsonl")
    header, *lines = Path("out.jsonl").read_text().splitlines()
    broken = ["{broken \x1b[31m", '{"memory": 1}'] * 4
    Path("out.jsonl").write_text("\n".join([header, *broken, *lines]) + "\n")
    done = program("--home", "other", "memory", "import", "out.jsonl")
    assert (done.code, done.stdout) == (1, "2 memories added, 0 known already\n")
    assert "refused  line 2: " in done.stderr
    assert "refused  3 more (--json lists them)" in done.stderr
    assert "\x1b" not in done.stderr
    page = json.loads(program("--home", "third", "memory", "import", "out.jsonl", "--json").stdout)
    assert [refusal["line"] for refusal in page["refused"]] == list(range(2, 10))


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "out.txt"),
        ("export", "notes", "--episodes"),
        ("export", "notes", "--no-vectors"),
        ("export", "-", "--json"),
        ("import", "gone.jsonl"),
        ("import", "strange.bin"),
        ("import", "out.jsonl", "--judgement", "correct"),
        ("import", "out.jsonl", "--format", "pickle"),
    ],
    ids=" ".join,
)
def test_misuse_exits_with_2(program: Program, ids: set[str], arguments: tuple[str, ...]) -> None:
    Path("strange.bin").write_bytes(bytes(range(256)))
    program("memory", "export", "out.jsonl")
    ended = program("memory", *arguments)
    assert (ended.code, ended.stdout) == (2, "")
    assert not Path("out.txt").exists()
    assert not Path("notes").exists()


def test_episodes_travel_too_where_asked_for(program: Program, ids: set[str]) -> None:
    with open_store(Path(".mia/memory.db")) as store:
        store.save_episode(Episode(id="ep-1", question=Question.of("Who found Io?"), started_at=1.0))
    page = json.loads(program("memory", "export", "out.jsonl", "--episodes", "--json").stdout)
    assert (page["memories"], page["episodes"]) == (2, 1)
    done = program("--home", "other", "memory", "import", "out.jsonl")
    assert "1 episode kept" in done.stderr
    assert "Who found Io?" in program("--home", "other", "show", "ep-1").stdout
