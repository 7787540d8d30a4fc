"""`mia ask` with documents and without a model: passages as what they are, and what to type for an answer."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from program import Program
from rich.console import Console

from mia.cli import endpoints, output
from mia.config import load_config

DOCS = Path(__file__).parents[2] / "examples" / "solar_system" / "docs"
QUESTION = "Who found the signature of methane on Titan's air?"
FACT = (
    "The first firm proof of an atmosphere came in 1944, when Gerard Kuiper found the signature of methane in the "
    "moon's spectrum."
)
NOT_AN_ANSWER = "No model is configured: these are passages, and not an answer."


class Handler(BaseHTTPRequestHandler):
    """Lists one model, and finds one page, as an endpoint and as a SearXNG server."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        page: object = {"data": [{"id": "qwen3:8b"}]}
        if self.path.startswith("/search"):
            page = {"results": [{"url": "http://a.example/", "title": "Air", "content": "Titan has air. It rains."}]}
        body = json.dumps(page).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """The address of a server on loopback, and what it is asked."""
    asked: list[str] = []
    handler = type("Asked", (Handler,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        threading.Thread(target=listening.serve_forever).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}", asked
        listening.shutdown()


@pytest.fixture(autouse=True)
def _nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "LOCAL_ENDPOINTS", {"Ollama": "http://127.0.0.1:9/v1"})


def test_passages_go_to_stdout_with_their_best_sentences_and_the_rest_to_stderr(program: Program) -> None:
    ended = program("ask", QUESTION, "--corpus", DOCS)
    lines = ended.stdout.splitlines()
    assert lines[:2] == ["1. Titan", "   docs/titan.md#0 · docs/titan.md"]
    assert f"   > {FACT}" in lines
    assert [line for line in lines if line[:2] in ("2.", "3.")] != []
    assert ended.stderr.startswith(NOT_AN_ANSWER)
    assert shlex.split(ended.stderr.splitlines()[-1]) == [
        *("mia", "ask", QUESTION, "--corpus", str(DOCS), "--base-url", "URL", "--model", "NAME")
    ]


def test_every_shown_piece_stands_in_the_passage(program: Program) -> None:
    ended = program("ask", QUESTION, "--corpus", DOCS)
    passages = json.loads(program("ask", QUESTION, "--corpus", DOCS, "--json").stdout)["passages"]
    text = " ".join(" ".join(passage["text"] for passage in passages).split())
    pieces = [line[5:].strip("… ") for line in ended.stdout.splitlines() if line.startswith(("   > ", "     "))]
    assert len(pieces) > 5
    assert all(piece in text for piece in pieces)


def test_without_an_answer_the_status_is_1_and_nothing_is_remembered(program: Program) -> None:
    assert program("ask", QUESTION, "--corpus", DOCS).code == 1
    assert not load_config().store_path.exists()


def test_the_servers_of_this_machine_come_first(
    program: Program, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = server
    monkeypatch.setattr(endpoints, "LOCAL_ENDPOINTS", {"Ollama": f"{url}/v1"})
    ended = program("--home", "my home", "ask", QUESTION, "--corpus", DOCS, "--no-memory")
    assert "For an answer, Ollama on this machine serves 'qwen3:8b':\n  mia --home 'my home' ask " in ended.stderr
    typed = shlex.split(ended.stderr.splitlines()[-1])
    assert typed == [
        *("mia", "--home", "my home", "ask", QUESTION, "--corpus", str(DOCS), "--no-memory"),
        *("--base-url", f"{url}/v1", "--model", "qwen3:8b"),
    ]
    # No model was asked for anything but its name.
    assert asked == ["/v1/models"]


def test_json_is_a_page_of_passages_and_has_no_answer(program: Program) -> None:
    ended = program("ask", QUESTION, "--corpus", DOCS, "--json")
    page = json.loads(ended.stdout)
    assert (ended.code, ended.stderr) == (1, "")
    assert (page["kind"], page["answer"], page["question"], page["says"]) == ("passages", None, QUESTION, NOT_AN_ANSWER)
    first = page["passages"][0]
    assert (first["id"], first["title"], first["source"]) == ("docs/titan.md#0", "Titan", "docs/titan.md")
    assert FACT in [sentence["text"] for sentence in first["best_sentences"]]
    assert all(1 <= len(passage["best_sentences"]) <= 2 for passage in page["passages"])
    assert page["for_an_answer"]["command"].endswith("--json --base-url URL --model NAME")


def test_quiet_still_says_that_it_is_no_answer(program: Program) -> None:
    ended = program("ask", QUESTION, "--corpus", DOCS, "--quiet")
    assert ended.stdout.startswith("1. Titan\n")
    assert ended.stderr == f"{NOT_AN_ANSWER}\n"


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_where_nothing_is_found_it_is_said(program: Program, json_flag: tuple[str, ...]) -> None:
    ended = program("ask", "zeppelin?", "--corpus", DOCS, *json_flag)
    assert ended.code == 1
    if json_flag:
        page = json.loads(ended.stdout)
        assert (page["passages"], page["says"]) == ([], "No model is configured, and the search found no passage.")
    else:
        assert ended.stdout == ""
        assert ended.stderr.startswith("No model is configured, and the search found no passage.\n")
        assert "--model NAME" in ended.stderr


def test_an_index_and_the_only_index_of_the_home_are_searched_too(program: Program) -> None:
    assert program("index", DOCS, "--out", "mine").code == 0
    assert program("ask", QUESTION, "--index", "mine").stdout.startswith("1. Titan\n")
    assert program("index", DOCS).code == 0
    assert program("ask", QUESTION).stdout.startswith("1. Titan\n")


def test_another_engine_is_asked(
    program: Program, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = server
    monkeypatch.setenv("MIA_SEARCH__ENGINE", "searxng")
    monkeypatch.setenv("MIA_SEARCH__URL", url)
    ended = program("ask", "Has Titan  air?")
    assert (ended.code, ended.stdout) == (1, "1. Air\n   http://a.example/\n   > Titan has air.\n     It rains.\n")
    assert asked == ["/search?q=Has+Titan+air%3F&format=json"]


def test_text_of_documents_cannot_drive_the_terminal(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("docs").mkdir()
    Path("docs/tides.md").write_text("# Ti\x1b[2Jdes\n\nThe tide \x1b[31mturns at [bold]six[/bold]. It rains.")
    ended = program("ask", "When does the tide turn?", "--corpus", "docs")
    assert "   > The tide \\x1b[31mturns at [bold]six[/bold].\n" in ended.stdout
    monkeypatch.setattr(output, "result_console", lambda: Console(force_terminal=True, width=60, highlight=False))
    shown = program("ask", "When does the tide turn?", "--corpus", "docs")
    assert "\x1b[1mThe tide \\x1b[31mturns at [bold]six[/bold]." in shown.stdout
    assert "\x1b[31m" not in shown.stdout + shown.stderr
    assert "\x1b[2J" not in shown.stdout + shown.stderr


def test_long_texts_are_cut_around_their_best_sentences_and_whole_in_json(program: Program) -> None:
    before, after = "It rains in the morning. " * 40, "It rains at night. " * 40
    Path("docs.jsonl").write_text(json.dumps({"id": "w", "text": f"{before}Zeppelins fly. {after}"}))
    ended = program("ask", "Zeppelins?", "--corpus", "docs.jsonl")
    shown = ended.stdout.splitlines()[2:]
    assert shown[1] == "   > Zeppelins fly."
    assert shown[0].startswith("     … ")
    assert shown[0].endswith("It rains in the morning.")
    assert shown[2].startswith("     It rains at night.")
    assert shown[2].endswith(" …")
    assert max(map(len, shown)) < 260
    page = json.loads(program("ask", "Zeppelins?", "--corpus", "docs.jsonl", "--json").stdout)
    assert page["passages"][0]["text"].startswith("It rains in the morning. It rains")


def test_a_wrong_corpus_and_several_indexes_are_errors(program: Program) -> None:
    gone = program("ask", QUESTION, "--corpus", "gone")
    assert (gone.code, gone.stdout) == (1, "")
    assert "there is nothing to index at 'gone'" in gone.stderr
    assert program("index", DOCS).code == 0
    assert program("index", DOCS / "titan.md").code == 0
    assert "there are 2 indexes" in program("ask", QUESTION).stderr


def test_with_a_model_a_recording_or_a_role_model_no_passages_are_shown(program: Program) -> None:
    nothing_there = ("--base-url", "http://127.0.0.1:9/v1", "--model", "gone")
    Path("mia.toml").write_text("[models.default]\nmax_attempts = 1\n")
    assert "No answer:" in program("ask", QUESTION, "--corpus", DOCS, *nothing_there).stderr
    assert "gone.jsonl" in program("ask", QUESTION, "--corpus", DOCS, "--replay", "gone.jsonl").stderr
    Path("mia.toml").write_text('[models.planner]\nmodel = "large"\nbase_url = "http://127.0.0.1:9/v1"\n')
    partly = program("ask", QUESTION, "--corpus", DOCS)
    assert (partly.code, partly.stdout) == (2, "")
    assert "no model is named for the executor" in partly.stderr
