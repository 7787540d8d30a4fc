"""`mia eval …` as a user types it, against an endpoint of its own process that reads what it is sent."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from program import Program

SERVER = """
import json, re, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = str(request["messages"][-1]["content"])
        assert request["temperature"] in (0.7, 1.0), request
        found = re.findall(r"special magic \\w+ for (\\S+) is: (\\S+?)\\.", said)
        text, _, question = said.rpartition("Question:")
        if "<question>" in said:
            question = said.partition("<question>")[2].partition("</question>")[0]
        kept = list(dict.fromkeys((key, value) for key, value in found if key in question))
        if "<chunk>" in said:
            reply = " ".join(f"special magic numbers for {key} is: {value}." for key, value in kept) or "nothing"
        elif "<memory>" in said:
            reply = "\\\\boxed{%s}" % ", ".join(value for _, value in kept)
        elif "film 1 " in question:
            reply = "The answer is Town1ville."
        else:
            reply = f"The answer is {', '.join(value for _, value in kept) or 'unknown'}."
        message = {"role": "assistant", "content": reply}
        page = {"id": "c", "object": "chat.completion", "created": 0, "model": request["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": len(said) // 4, "completion_tokens": 9, "total_tokens": len(said) // 4 + 9}}
        body = json.dumps(page).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def reading() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        process.terminate()


@pytest.fixture
def hotpot(tmp_path: Path) -> Path:
    page = [
        {
            "_id": f"q{number}",
            "question": f"Where was the maker of film {number} born?",
            "answer": f"Town{number}ville",
            "supporting_facts": [[f"T{number}-0", 0], [f"T{number}-1", 0]],
            "context": [[f"T{number}-{place}", ["One.", " Two."]] for place in range(10)],
        }
        for number in range(6)
    ]
    for number, entry in enumerate(page):
        for place, paragraph in enumerate(entry["context"]):  # type: ignore[arg-type]
            paragraph[1] = [f"Paragraph {number}-{place}.", " It has a text."]
    path = tmp_path / "hotpot.json"
    path.write_text(json.dumps(page), encoding="utf-8")
    return path


@pytest.mark.parametrize("method", ["direct", "reader"])
def test_ruler(program: Program, reading: str, tmp_path: Path, method: str) -> None:
    command = ["eval", "ruler", "--task", "niah_multiquery", "--task", "vt", "--samples", "2", "--method", method]
    command += ["--base-url", reading, "--model", "m", "--out", "out"]
    ended = program(*command, "--lengths", "1k", "--json")
    assert ended.code == 0, ended.stderr
    page = json.loads(ended.stdout)
    assert page["settings"]["method"] == method
    tasks = {row["name"]: row["by_length"] for row in page["tasks"]}
    assert tasks["niah_multiquery"]["1024"]["accuracy"] == 1.0
    assert tasks["vt"]["1024"]["accuracy"] == 0.0
    kept = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert kept.count(b"\n") == 5
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    # The same command asks nothing again; a longer one only what is new.
    ended = program(*command, "--lengths", "1k,6k")
    assert ended.code == 0, ended.stderr
    assert (tmp_path / "out" / "results.jsonl").read_bytes().startswith(kept)
    assert "Accuracy by depth" in ended.stdout
    assert re.search(r"niah_multiquery +100\.0 \(34–100\) +100\.0 \(34–100\)", ended.stdout)
    assert "8 of 8 items answered" not in ended.stdout
    assert "8 of 8 items answered" in ended.stderr
    # Other settings are another measurement.
    ended = program(*command, "--lengths", "1k", "--seed", "5")
    assert ended.code == 2
    assert "differ: seed" in ended.stderr


def test_hotpotqa(program: Program, reading: str, hotpot: Path, tmp_path: Path) -> None:
    command = ["eval", "ruler-hotpotqa", hotpot, "--documents", "20,40", "--method", "direct"]
    ended = program(*command, "--base-url", reading, "--model", "m", "--json")
    assert ended.code == 0, ended.stderr
    page = json.loads(ended.stdout)
    assert page["unit"] == "documents"
    [row] = page["tasks"]
    assert {length: cell["items"] for length, cell in row["by_length"].items()} == {"20": 6, "40": 6}
    assert row["by_length"]["20"]["accuracy"] == pytest.approx(1 / 6)
    assert (tmp_path / "runs" / "ruler-hotpotqa" / "report.md").exists()


def test_items_are_written_without_asking(program: Program, hotpot: Path, tmp_path: Path) -> None:
    ended = program(
        "eval", "ruler", "--lengths", "1k", "--samples", "1", "--questions", hotpot, "--write", "items.jsonl"
    )
    assert ended.code == 0, ended.stderr
    rows = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 12
    assert {row["task"] for row in rows} >= {"vt", "qa", "cwe"}
    assert all(abs(row["tokens"] - 1024) <= 20 for row in rows)
    assert all({"text", "question", "references", "depths", "measure"} <= row.keys() for row in rows)
    assert not (tmp_path / "runs").exists()


def test_long_data(program: Program, reading: str, hotpot: Path, tmp_path: Path) -> None:
    command = [
        "eval",
        "long-data",
        hotpot,
        "samples.jsonl",
        "--documents",
        "20",
        "--without",
        "m",
        "--base-url",
        reading,
    ]
    ended = program(*command, "--json")
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout) == {"file": "samples.jsonl", "kept": 5, "answered_without_text": 1}
    assert "5 samples kept, 1 left out" in program(*command).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "8x"], "--lengths is '8x'"),
        (["--lengths", "0"], "--lengths is '0'"),
        (["--task", "nothing"], "there is no task 'nothing'"),
        (["--method", "guess"], "there is no method 'guess'"),
        (["--essays", "missing.txt"], "cannot read the essays"),
        (["--questions", "missing.json"], "cannot read 'missing.json'"),
        (["--task", "qa"], "asks the questions of a file"),
        (["--lengths", "20", "--task", "vt", "--method", "direct"], "the least it needs is"),
        (["--tokenizer", "missing.json"], "cannot read the tokenizer"),
        (["--model", ""], "no model is named"),
    ],
)
def test_misuse_is_told_in_a_sentence(program: Program, arguments: list[str], message: str) -> None:
    before = ["--model", "m", "--base-url", "http://127.0.0.1:9/v1"]
    ended = program("eval", "ruler", *before, *arguments)
    assert (ended.code, message in ended.stderr) == (2, True), ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("group", [(), ("eval",), ("memory",), ("world",)])
def test_help_lists_each_command_with_its_whole_sentence(program: Program, group: tuple[str, ...]) -> None:
    commands = program(*group, "--help").stdout.partition("Commands:")[2]
    assert "..." not in commands
    assert len(re.findall(r"^  [a-z-]+ {2,}[A-Z]", commands, re.MULTILINE)) > 2
    if group == ("eval",):
        assert "leave out questions that need no text" in " ".join(commands.split())
