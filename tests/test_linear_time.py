"""Text from strangers is read in linear time: no pattern runs away on long runs of blanks, marks or digits."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mia.errors import ToolError
from mia.memory.compress import problem_with, read_workflow
from mia.search.documents import find_files, read_rows
from mia.search.pages import read_page
from mia.tools.base import ToolContext
from mia.tools.lookup import LookupTool
from mia.types import Observation, Passage, Question, Step, ToolCall

SECONDS = 2
INPUTS = {
    "bracket and blanks": "<" + " " * 50_000,
    "newlines": "\n" * 20_000,
    "letters apart": "a " * 20_000,
    "blanks": " " * 50_000,
    "numbers": "1. " * 20_000,
    "digits": "1" * 50_000,
    "heading with blanks inside": "# a" + " " * 50_000 + "b",
    "heading of marks": "# " + "#" * 50_000 + "b",
    "front matter with blanks inside": "---\ntitle: a" + " " * 50_000 + "b\n---\n",
    "front matter of titles": "---\n" + "title:  \n" * 20_000 + "---\n",
    "underline": "=" * 50_000 + "b",
    "braces": "{ " * 30_000,
    "a word without end": "x" * 3_000_000,
    "words without a full stop": "a " * 1_500_000,
}


@contextmanager
def limited() -> Iterator[None]:
    """A pattern that runs away is stopped; the engine lets signals through. What others do meanwhile does not count."""

    def stop(*_: object) -> None:
        pytest.fail(f"more than {SECONDS} seconds of work")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.fixture(params=INPUTS)
def text(request: pytest.FixtureRequest) -> str:
    # Words at the end, so that stripping does not take the run away.
    return f"{INPUTS[request.param]}\nlast words"


@pytest.mark.parametrize("name", ["a.md", "a.txt"])
def test_documents_are_split(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / name).write_text(text)
    (file,), _ = find_files([tmp_path / name])
    with limited():
        rows = list(read_rows(file))
    assert "last words" in rows[-1].passage.text


@pytest.mark.parametrize("read", [read_workflow, problem_with])
def test_workflows_are_read_and_examined(text: str, read: Callable[[str], str]) -> None:
    with limited():
        read(text)


@pytest.mark.parametrize("content_type", ["text/html", "text/plain"])
def test_pages_are_read(text: str, content_type: str) -> None:
    with limited():
        try:
            page = read_page(text[-100_000:].encode(), content_type)
        except ToolError:
            return
    assert "last words" in page.text


async def test_a_term_is_looked_up(text: str) -> None:
    call = ToolCall(name="search", arguments={})
    observation = Observation(text="", passages=(Passage(id="p", text=text),))
    context = ToolContext(Question.of("q"), (Step(index=0, text="", tool_call=call, observation=observation),))
    with limited():
        observation = await LookupTool().call({"term": "last"}, context)
    assert "last words" in observation.text
