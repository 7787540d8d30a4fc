"""The past of other agents becomes memory: each run once, with its verdict and without its reference answer."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mia.config import MemorySettings
from mia.embeddings.base import Vectors
from mia.embeddings.hashing import HashingEmbedder
from mia.errors import ConfigError, ModelUnavailable, RecordError
from mia.memory.exchange import Imported, Refusal, detect_format, import_trajectories
from mia.memory.exchange.messages import read_conversation
from mia.memory.exchange.react import read_react
from mia.memory.exchange.runs import episode
from mia.memory.manager import MemoryManager
from mia.store import open_store
from mia.store.sqlite import SqliteStore
from mia.types import MemoryState, Outcome, StopReason

needs_data = pytest.mark.skipif("MIA_DATA" not in os.environ, reason="MIA_DATA does not name the shared data")
GOLD = "Giuseppe Piazzi the reference"
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n a picture").decode()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with open_store(tmp_path / "memory.db") as store:
        yield store


@pytest.fixture
def manager(store: SqliteStore) -> MemoryManager:
    return MemoryManager(store, HashingEmbedder(), MemorySettings())


def react(question: str = "Who found Ceres?", *, correct: bool | None = True, **changes: Any) -> dict[str, Any]:
    """A logged run."""
    run: dict[str, Any] = {
        "id": "run-1",
        "source": "agent/x",
        "question": question,
        "gold": GOLD,
        "correct": correct,
        "outcome": "correct",
        "reflections": [f"it was {GOLD}"],
        "final": "Piazzi",
        "steps": [
            {
                "thought": "I look.",
                "action": "Search[Ceres]",
                "tool": "search",
                "tool_input": "Ceres",
                "observation": "Ceres was found in 1801.",
            },
            {
                "thought": "Known.</think>\n<answer>Piazzi</answer>",
                "action": "Finish[Piazzi]",
                "tool": "finish",
                "tool_input": "Piazzi",
                "observation": f"Answer is CORRECT: {GOLD}",
            },
            {"thought": f"After the end: {GOLD}", "observation": "Episode finished, reward = False"},
        ],
    }
    return {**run, **changes}


def native(*, question: str = "Who found Ceres?", **fields: Any) -> dict[str, Any]:
    """A conversation with native tool calls."""
    call = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"query": "Ceres"}'}}
    return {
        "messages": [
            {"role": "system", "content": "You are SYSTEM."},
            {"role": "user", "content": [{"type": "text", "text": question}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "Ceres was found in 1801."},
            {"role": "assistant", "content": "Piazzi found it."},
        ],
        **fields,
    }


def lines(*values: Any) -> list[bytes]:
    return [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]


# ── ReAct ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_react_run_as_an_episode() -> None:
    one = episode(read_react(react()))
    assert one.question.text == "Who found Ceres?"
    first, last = one.steps
    assert first.tool_call is not None
    assert (first.tool_call.name, first.tool_call.arguments) == ("search", {"query_list": ["Ceres"]})
    assert first.observation is not None
    assert (first.observation.text, first.observation.passages) == ("Ceres was found in 1801.", ())
    assert (first.thinking, last.thinking) == ("I look.", "Known.")
    assert (last.tool_call, last.observation) == (None, None)
    assert one.answer is not None
    assert one.answer.text == "Piazzi"
    assert one.verdict is not None
    assert (one.verdict.outcome, one.verdict.judge) == (Outcome.CORRECT, "import")
    assert GOLD not in one.model_dump_json()


def test_a_run_that_stopped_has_no_answer_and_is_incorrect() -> None:
    stopped = react(final="", correct=False, outcome="halted", steps=react()["steps"][:1])
    one = episode(read_react(stopped))
    assert (one.answer, one.stop and one.stop.reason) == (None, StopReason.CALL_LIMIT)
    assert one.verdict is not None
    assert one.verdict.outcome is Outcome.INCORRECT


def test_other_tools_and_lookups() -> None:
    steps = [{"tool": tool, "tool_input": "x", "observation": "y"} for tool in ("lookup", "click")]
    one, other = episode(read_react(react(steps=steps))).steps
    assert one.tool_call is not None
    assert other.tool_call is not None
    assert (one.tool_call.arguments, other.tool_call.arguments) == ({"term": "x"}, {"input": "x"})


async def test_what_a_log_leaves_behind(manager: MemoryManager, store: SqliteStore) -> None:
    wrong = react(correct=False, final="Gauss", source="agent/y")
    wrong["steps"] = [wrong["steps"][0], {**wrong["steps"][1], "tool_input": "Gauss"}]
    log = lines(react(), wrong, react("Who found Pallas?", correct=None), react("Who found Vesta?"))
    assert await import_trajectories(manager, log, format="react") == Imported(added=3, episodes=4, unjudged=1)
    assert {one.provenance.origin for one in manager.list()} == {"import"}
    assert sorted(one.judgement for one in manager.list()) == ["correct", "correct", "incorrect"]
    before = list(store.export(None))
    assert await import_trajectories(manager, log, format="react") == Imported(known=4)
    assert [one for one, _ in store.export(None)] == [one for one, _ in before]
    assert store.count_episodes() == 4
    # The verdict of the third comes later.
    later = await import_trajectories(manager, log, format="react", judgement="incorrect")
    assert later == Imported(added=1, known=3)


async def test_broken_runs_are_told_by_number(manager: MemoryManager) -> None:
    log = lines(
        react(),
        b"{broken",
        {"question": "x"},
        react(" "),
        react(steps=[]),
        react("Who found Vesta?", correct="perhaps"),
        [1],
        react("Who found Pallas?"),
    )
    done = await import_trajectories(manager, log, format="react")
    assert done.added == 2
    assert [one.line for one in done.refused] == [2, 3, 4, 5, 6, 7]
    assert [one.reason.split(":")[0] for one in done.refused] == [
        "it is no JSON",
        "'steps'",
        "'question'",
        "it has no steps",
        "'correct'",
        "it is no JSON object",
    ]


async def test_runs_of_a_question_are_weighed_together_wherever_they_stand(
    manager: MemoryManager, store: SqliteStore
) -> None:
    longer = react(source="a")
    longer["steps"] = [longer["steps"][0], {**longer["steps"][0], "tool_input": "dwarf planet"}, longer["steps"][1]]
    between = [react(f"Who found asteroid {number}?") for number in range(100)]
    done = await import_trajectories(manager, lines(longer, *between, react()), format="react")
    assert (done.added, done.episodes) == (101, 102)
    (kept,) = [one for one in manager.list(limit=200) if one.question == "Who found Ceres?"]
    assert kept.workflow.count("\n") == 1
    assert store.count_memories(states=(MemoryState.REPLACED,)) == 0


async def test_no_secret_gets_in(manager: MemoryManager, store: SqliteStore, tmp_path: Path) -> None:
    secret = "sk-" + "proj-Abc123" * 6
    run = react()
    run["steps"][0]["tool_input"] = f"Ceres {secret}"
    run["steps"][0]["observation"] = f"the key is {secret}"
    await import_trajectories(manager, lines(run), format="react")
    store.close()
    assert not any(secret.encode() in path.read_bytes() for path in tmp_path.glob("memory.db*") if path.is_file())


async def test_while_the_embedder_is_down_runs_wait(store: SqliteStore) -> None:
    class Down(HashingEmbedder):
        def embed(self, texts: Sequence[str]) -> Vectors:
            raise ModelUnavailable("the embedder is down.")

    manager = MemoryManager(store, Down(), MemorySettings())
    assert await import_trajectories(manager, lines(react()), format="react") == Imported(episodes=1, waiting=1)
    assert len(store.queue()) == 1
    again = MemoryManager(store, HashingEmbedder(), MemorySettings())
    assert await import_trajectories(again, lines(react()), format="react") == Imported(added=1)


async def test_a_frozen_memory_takes_nothing_in(store: SqliteStore) -> None:
    manager = MemoryManager(store, HashingEmbedder(), MemorySettings(frozen=True))
    with pytest.raises(ConfigError, match="frozen"):
        await import_trajectories(manager, lines(react(correct=None)), format="react")
    assert store.count_episodes() == 0


# ── conversations ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_conversation_with_native_calls() -> None:
    one = episode(read_conversation(native(correct=True)))
    assert one.question.text == "Who found Ceres?"
    first, last = one.steps
    assert first.tool_call is not None
    assert first.tool_call.arguments == {"query": "Ceres"}
    assert first.observation is not None
    assert first.observation.text == "Ceres was found in 1801."
    assert (one.answer and one.answer.text, last.text) == ("Piazzi found it.", "Piazzi found it.")
    assert "SYSTEM" not in one.model_dump_json()


def test_a_conversation_with_tags() -> None:
    said = [
        "<think>I look.</think>\n"
        '<tool_call>{"name": "search", "arguments": {"query": ["a", "b"]}}</tool_call>'
        '<tool_call>{"name": "visit", "arguments": {"url": "u"}}</tool_call>',
        "<tool_response>one</tool_response>\n<tool_response>two</tool_response>",
        "<think>Done.</think><answer>Piazzi</answer>",
    ]
    asked = "Use <tools>\n[…]\n</tools> so: <tool_call>…</tool_call> <tool_response>…</tool_response>\n\nUser: Who?"
    roles = ("user", "assistant", "user", "assistant")
    value = [{"role": role, "content": text} for role, text in zip(roles, [asked, *said], strict=True)]
    one = episode(read_conversation(value))
    assert one.question.text == "Who?"
    assert [(step.tool_call and step.tool_call.name, step.thinking) for step in one.steps] == [
        ("search", "I look."),
        ("visit", "I look."),
        (None, "Done."),
    ]
    assert [step.observation and step.observation.text for step in one.steps] == ["one", "two", None]
    assert one.answer is not None
    assert one.answer.text == "Piazzi"
    assert one.verdict is None


def test_parallel_calls_get_their_own_results() -> None:
    calls = [{"id": id, "function": {"name": "search", "arguments": {"q": id}}} for id in ("a", "b")]
    value = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "", "reasoning_content": "both", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "b", "content": "of b"},
        {"role": "tool", "tool_call_id": "a", "content": "of a"},
    ]
    one = episode(read_conversation(value))
    assert [step.observation and step.observation.text for step in one.steps] == ["of a", "of b"]
    assert (one.steps[0].thinking, one.answer, one.stop and one.stop.reason) == ("both", None, StopReason.CALL_LIMIT)


def test_the_question_is_the_last_one_before_the_first_call() -> None:
    value = native()
    value["messages"][1:1] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]
    assert read_conversation(value).question.text == "Who found Ceres?"
    value["messages"] = [one for one in value["messages"] if "tool_calls" not in one and one["role"] != "tool"]
    assert read_conversation(value).question.text == "Hello"
    assert read_conversation({**value, "question": "Which one?"}).question.text == "Which one?"


def test_images_come_by_their_hash() -> None:
    value = native()
    value["messages"][1]["content"] += [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    (image,) = read_conversation(value).question.images
    assert (image.sha256, image.data) == (hashlib.sha256(base64.b64decode(PIXEL)).hexdigest(), "")


@pytest.mark.parametrize("arguments", ["{broken", None, "[1]", 7, [], "null"])
def test_arguments_that_are_no_object_are_kept_as_they_are(arguments: object) -> None:
    value = native()
    value["messages"][2]["tool_calls"][0]["function"]["arguments"] = arguments
    call = read_conversation(value).turns[0].call
    assert call is not None
    assert call.arguments.keys() <= {"input"}


@pytest.mark.parametrize(
    ("fields", "correct"),
    [
        ({"correct": True}, True),
        ({"judgement": "incorrect"}, False),
        ({"score": 0.5}, True),
        ({"score": 0}, False),
        ({"metadata": {"correct": False}}, False),
        ({"answer": GOLD, "gold": GOLD, "reference": GOLD}, None),
    ],
)
def test_verdicts(fields: dict[str, Any], correct: bool | None) -> None:
    run = read_conversation(native(**fields))
    assert run.correct is correct
    assert GOLD not in episode(run).model_dump_json()


async def test_one_verdict_for_a_whole_file(manager: MemoryManager) -> None:
    log = lines(native(), native(question="Who found Vesta?", correct=False))
    done = await import_trajectories(manager, log, format="openai", judgement="correct")
    assert (done.added, done.unjudged) == (2, 0)
    assert {one.question: one.judgement for one in manager.list()} == {
        "Who found Ceres?": "correct",
        "Who found Vesta?": "incorrect",
    }


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("shape", ["items", "bare", "one", "lists"])
async def test_a_file_may_be_laid_out_in_many_ways(
    manager: MemoryManager, tmp_path: Path, shape: str, indent: int | None
) -> None:
    one, other = native(correct=True), native(question="Who found Vesta?")
    value: Any = {"items": [one, other], "bare": one["messages"], "one": one, "lists": [one["messages"]]}[shape]
    path = tmp_path / "log.json"
    path.write_text(json.dumps(value, indent=indent), encoding="utf-8")
    assert detect_format(path) == "openai"
    done = await import_trajectories(manager, path, format="openai", judgement="correct")
    assert done == Imported(added=2 if shape == "items" else 1, episodes=2 if shape == "items" else 1)


async def test_broken_conversations_are_told_by_number(manager: MemoryManager) -> None:
    log = lines(
        {"messages": []},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x"}]},
        {"messages": [{"role": "user", "content": {"a": 1}}]},
        native(judgement="maybe"),
        "text",
        native(correct=True),
    )
    done = await import_trajectories(manager, log, format="openai")
    assert done.added == 1
    assert [one.line for one in done.refused] == [1, 2, 3, 4, 5, 6, 7]
    assert done.refused[2:4] == (
        Refusal(3, "nobody asks anything in it"),
        Refusal(4, "no assistant says anything in it"),
    )
    assert done.refused[5].reason == "its judgement is 'maybe', and not correct or incorrect"


async def test_a_first_line_that_is_broken_costs_that_line_alone(manager: MemoryManager) -> None:
    done = await import_trajectories(manager, lines(b'{"messages": [', native(correct=True)), format="openai")
    assert (done.added, [one.line for one in done.refused]) == (1, [1])


@pytest.mark.parametrize(
    "piece", ["<tool_call>", "<think>", "<tool_response>", "<answer>", "</think>", "user: ", "\n "]
)
def test_hostile_text_is_read_in_linear_time(piece: str) -> None:
    text = f"<tools>{piece * 200_000}"
    begun = time.perf_counter()
    run = read_conversation([{"role": "user", "content": f"Who? {text}"}, {"role": "assistant", "content": f"a{text}"}])
    episode(run)
    assert time.perf_counter() - begun < 5


# ── which format ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_formats_are_told_by_how_they_begin(tmp_path: Path) -> None:
    assert detect_format(b'{"mia": "memory", "version": 1}\n') == "mia"
    assert detect_format(json.dumps(react()).encode()) == "react"
    assert detect_format(json.dumps(react()).encode()[:400]) == "react"
    assert detect_format(json.dumps(native(), indent=1).encode()) == "openai"
    assert detect_format(b"\xef\xbb\xbf---\r\njudgement: correct\r\n---\r\n") == "markdown"
    assert detect_format(gzip.compress(json.dumps([native()["messages"]]).encode())) == "openai"
    assert detect_format(tmp_path) == "markdown"
    # A key inside a text or deeper down tells nothing.
    with pytest.raises(RecordError):
        detect_format(b'{"text": "\\"mia\\": 1", "deep": {"messages": []}}')


@pytest.mark.parametrize("content", [b"", b"hello", b"id,question\n", b"\x00\x01", b"{}", b"[]", b"[1]", b"\x1f\x8bxx"])
def test_what_is_no_format_is_shown(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "what"
    path.write_bytes(content)
    with pytest.raises(RecordError, match="what") as refusal:
        detect_format(path)
    if content[:2] != b"\x1f\x8b":
        assert all(name in refusal.value.wanted for name in ("mia", "react", "openai", "markdown"))
    with pytest.raises(RecordError, match="cannot read"):
        detect_format(tmp_path / "none")


# ── real logs ─────────────────────────────────────────────────────────────────────────────────────────────────────


# The story in tests/stories imports them all by default, too.
@pytest.mark.slow
@needs_data
async def test_all_recorded_trajectories_become_memory(manager: MemoryManager, store: SqliteStore) -> None:
    path = Path(os.environ["MIA_DATA"]) / "trajectories" / "react_search.jsonl.gz"
    assert detect_format(path) == "react"
    begun = time.perf_counter()
    done = await import_trajectories(manager, path, format="react")
    assert time.perf_counter() - begun < 60
    assert done == Imported(added=done.added, episodes=3_724)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        runs = [json.loads(line) for line in file]
    questions = {run["question"] for run in runs}
    assert len(questions) == 1_691
    assert {one.question for one, _ in store.export(None)} == {question.strip() for question in questions}
    assert len(questions) <= done.added <= 2 * len(questions)

    # A reference answer that an unlucky agent never came across is nowhere in what was stored of its run.
    memories: dict[str, list[str]] = {}
    for one, _ in store.export(None):
        memories.setdefault(one.provenance.episode_id, []).append(one.model_dump_json())
    checked = 0
    for run in runs:
        finish = next((index for index, step in enumerate(run["steps"]) if step.get("tool") == "finish"), len(runs))
        own = [run["question"], run["final"] or ""]
        own += [str(value) for step in run["steps"][: finish + 1] for value in step.values()]
        gold = run["gold"].strip()
        if not run["correct"] and len(gold) > 3 and gold.lower() not in " ".join(own).lower():
            one = episode(read_react(run))
            stored = [store.load_episode(one.id).model_dump_json(), *memories.get(one.id, [])]
            assert all(json.dumps(gold)[1:-1].lower() not in text.lower() for text in stored), run["id"]
            checked += 1
    assert checked > 500
    assert await import_trajectories(manager, path, format="react") == Imported(known=3_724)


@needs_data
async def test_long_web_runs_with_tags_are_read(manager: MemoryManager, store: SqliteStore) -> None:
    path = Path(os.environ["MIA_DATA"]) / "trajectories" / "webdancer.jsonl.gz"
    assert detect_format(path) == "openai"
    assert await import_trajectories(manager, path, format="openai") == Imported(episodes=200, unjudged=200)
    episodes = store.list_episodes(limit=200)
    assert all(one.answer is not None and one.steps[0].tool_call is not None for one in episodes)
    assert all("<tools>" not in one.question.text and len(one.question.text) < 1_000 for one in episodes)
    judged = await import_trajectories(manager, path, format="openai", judgement="correct")
    assert (judged.episodes, judged.refused) == (0, ())
    assert 170 <= judged.added <= 173


async def test_two_scopes_learn_from_the_same_log_each_by_itself(store: SqliteStore) -> None:
    for scope in ("acme", "globex"):
        manager = MemoryManager(store, HashingEmbedder(), MemorySettings(scope=scope))
        done = await import_trajectories(manager, lines(react()), format="react")
        assert (done.added, done.known, store.count_memories(scope)) == (1, 0, 1)
        again = await import_trajectories(manager, lines(react()), format="react")
        assert (again.added, again.known, store.count_memories(scope)) == (0, 1, 1)
