"""A recording serves what was recorded, and says so wherever it and a run differ."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mia.errors import ModelRefused, ModelReplyError, ModelUnavailable, RecordError, ReplayMismatch, StoreError
from mia.models.base import ChatReply, ChatRequest, Price
from mia.models.replay import RecordedCall, Recorder, RecordingWriter, ReplayModel, read_recording, write_calls
from mia.models.scripted import ScriptedModel
from mia.types import Message, Role, ToolCall, Usage

HEADER = '{"format": "mia-recording", "version": 1, "note": "ours"}'


def line(**changes: Any) -> str:
    return json.dumps(
        {"question_id": "q1", "role": "executor", "purpose": "execute", "turn": 0, "text": "Paris", **changes}
    )


def recording(tmp_path: Path, *lines: str, header: str = HEADER) -> Path:
    path = tmp_path / "recording.jsonl"
    path.write_text("\n".join([header, *lines, ""]))
    return path


def request(question_id: str = "q1", turn: int = 0, content: str = "?", **changes: Any) -> ChatRequest:
    role, purpose = changes.pop("role", Role.EXECUTOR), changes.pop("purpose", "execute")
    return ChatRequest((Message(role="user", content=content),), role, question_id, purpose, turn, **changes)


# ── replaying ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_call_is_found_by_its_key_in_any_order(tmp_path: Path) -> None:
    usage = {"calls": 1, "prompt_tokens": 3, "completion_tokens": 4, "cost": None}
    call = {"name": "search", "arguments": {"query_list": ["x"]}}
    path = recording(
        tmp_path,
        line(question_id="q2", text="second", usage=usage, model="big-1", thinking="hm"),
        line(turn=1, text="", tool_calls=[call], finish_reason="tool_calls"),
        line(),
        line(role="planner", purpose="plan", text="a plan"),
    )
    model = ReplayModel(path, price=Price(1.0, 1.0))
    pieces: list[str] = []
    assert (await model.complete(request(on_text=pieces.append))).text == "Paris"
    assert (await model.complete(request(role=Role.PLANNER, purpose="plan"))).text == "a plan"
    assert (await model.complete(request(turn=1))).tool_calls == (ToolCall(**call),)
    second = await model.complete(request("q2"))
    assert (second.text, second.usage.tokens, second.model, second.thinking) == ("second", 7, "big-1", "hm")
    assert pieces == ["Paris"]
    model.assert_exhausted()


async def test_usage_is_estimated_where_none_is_recorded(tmp_path: Path) -> None:
    usage = (await ReplayModel(recording(tmp_path, line())).complete(request(content="x" * 400))).usage
    assert (usage.calls, usage.prompt_tokens, usage.completion_tokens, usage.cost) == (1, 108, 2, None)


async def test_a_call_that_is_not_recorded_fails_and_names_the_nearest(tmp_path: Path) -> None:
    model = ReplayModel(recording(tmp_path, line(), line(turn=1), line(question_id="q7")))
    with pytest.raises(ReplayMismatch, match=r"q1 · executor/execute turn 2") as raised:
        await model.complete(request(turn=2))
    assert "q1 · executor/execute turn 1" in raised.value.wanted
    with pytest.raises(ReplayMismatch) as raised:
        await model.complete(request("q8"))
    assert "q7" in raised.value.wanted
    with pytest.raises(ReplayMismatch, match="2 calls had no entry"):
        model.assert_exhausted(question_ids=())


async def test_entries_that_nobody_asked_for_are_reported(tmp_path: Path) -> None:
    model = ReplayModel(recording(tmp_path, line(), line(turn=1), line(question_id="q2")))
    await model.complete(request())
    assert [str(key) for key in model.left_over()] == ["q1 · executor/execute turn 1", "q2 · executor/execute turn 0"]
    with pytest.raises(ReplayMismatch, match="2 recorded calls"):
        model.assert_exhausted()
    with pytest.raises(ReplayMismatch, match="q1 · executor/execute turn 1"):
        model.assert_exhausted({"q1"})
    await model.complete(request(turn=1))
    model.assert_exhausted({"q1"})


async def test_a_second_run_is_served_the_same(tmp_path: Path) -> None:
    model = ReplayModel(recording(tmp_path, line()))
    replies = [await model.complete(request()) for _ in range(3)]
    assert {reply.text for reply in replies} == {"Paris"}
    assert list(model.asked.values()) == [3]


async def test_a_halted_run_ends_with_its_reason(tmp_path: Path) -> None:
    entry = {"question_id": "q1", "role": "executor", "purpose": "execute", "turn": 0, "halted": "six steps were up."}
    model = ReplayModel(recording(tmp_path, json.dumps(entry)))
    with pytest.raises(ModelReplyError, match="six steps were up"):
        await model.complete(request())
    model.assert_exhausted()


async def test_a_strict_replay_wants_the_recorded_prompt(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    recorder = Recorder(ScriptedModel(lambda asked: "Paris"), RecordingWriter(path))
    await recorder.complete(request(content="Where?"))
    assert (await ReplayModel(path, strict=True).complete(request(content="Where?"))).text == "Paris"
    assert (await ReplayModel(path).complete(request(content="When?"))).text == "Paris"
    with pytest.raises(ReplayMismatch, match="prompt"):
        await ReplayModel(path, strict=True).complete(request(content="When?"))


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[]",
        '"x"',
        line(turn=-1),
        line(turn="first"),
        line(role="boss"),
        line(question_id=""),
        line(halted="and yet it moves"),
        line(colour="red"),
        line(finish_reason="tired"),
        '{"question_id": "q", "role": "executor", "purpose": "execute", "turn": 0}',
        line(),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, broken: str) -> None:
    path = recording(tmp_path, line(), "", broken, line(turn=1))
    with pytest.raises(RecordError, match="line 4: "):
        ReplayModel(path)


def test_every_broken_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"line 2: .*line 4: .*line 7: .*and 1 more"):
        ReplayModel(recording(tmp_path, "{", line(), "[", "x", "y", "z", "?"))


@pytest.mark.parametrize("header", ["", "{}", line(), '{"format": "other", "version": 1}'])
def test_a_file_without_the_header_is_no_recording(tmp_path: Path, header: str) -> None:
    with pytest.raises(RecordError, match="no header"):
        ReplayModel(recording(tmp_path, header=header))


def test_other_files_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="version 2"):
        ReplayModel(recording(tmp_path, header='{"format": "mia-recording", "version": 2}'))
    with pytest.raises(RecordError, match="No such file"):
        ReplayModel(tmp_path / "nowhere.jsonl")
    with pytest.raises(RecordError):
        ReplayModel(tmp_path)
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(b"\x1f\x8b\x08\x00\x00")
    with pytest.raises(RecordError):
        ReplayModel(torn)
    flipped = bytearray(gzip.compress((HEADER + "\n" + "\n".join(line(turn=n) for n in range(300))).encode()))
    flipped[20] ^= 0xFF
    torn.write_bytes(flipped)
    with pytest.raises(RecordError, match="cannot read"):
        ReplayModel(torn)


# ── recording ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_recorded_replays_the_same_over_roles_and_sessions(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "r.jsonl"
    replies = {
        Role.PLANNER: ChatReply(
            "a plan <é>\n", usage=Usage(calls=1, prompt_tokens=5, cost=None), model="m", thinking="t"
        ),
        Role.EXECUTOR: ChatReply("", (ToolCall(name="s", arguments={"a": [1]}, id="i"),), "tool_calls", Usage(calls=1)),
        Role.MANAGER: ChatReply("cut", finish_reason="length", usage=Usage(calls=1)),
        Role.READER: ChatReply("a memory", usage=Usage(calls=1, completion_tokens=2)),
        Role.JUDGE: ChatReply("", malformed_call='{"name": 1}', finish_reason="tool_calls", usage=Usage(calls=1)),
    }
    for take in ("q1", "q2"):
        writer = RecordingWriter(path, note="ours")
        for role in Role:
            recorder = Recorder(ScriptedModel(lambda asked: replies[asked.role], name="big @ host"), writer)
            assert (recorder.name, recorder.context_window, recorder.price) == ("big @ host", 128_000, None)
            await recorder.complete(request(take, role=role))
            await recorder.close()
    model = ReplayModel(path)
    for take in ("q1", "q2"):
        for role, reply in replies.items():
            again = await model.complete(request(take, role=role))
            assert again == ChatReply(**{**reply.__dict__, "model": reply.model or again.model})
    model.assert_exhausted()
    assert path.read_text().splitlines()[0] == HEADER


async def test_concurrent_calls_make_whole_lines(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path / "r.jsonl")
    recorder = Recorder(ScriptedModel(lambda asked: "x" * 20_000, delay=0.001), writer)
    await asyncio.gather(*(recorder.complete(request(f"q{n}")) for n in range(50)))
    assert len(read_recording(writer.path)) == 50


async def test_a_call_that_this_process_recorded_is_refused_before_it_is_made(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    model = ScriptedModel(lambda asked: "x")
    recorder = Recorder(model, RecordingWriter(path))
    await recorder.complete(request())
    with pytest.raises(ModelRefused, match="already holds the call q1"):
        await recorder.complete(request())
    assert len(model.requests) == 1
    assert [call.text for call in read_recording(path).values()] == ["x"]


async def test_asked_again_by_a_later_process_a_question_has_its_new_replies_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    old, new = (ScriptedModel(lambda asked, text=text: f"{text} {asked.turn}") for text in ("old", "new"))
    recorder = Recorder(old, RecordingWriter(path))
    for turn in range(4):  # Then it was killed, or had come to its end.
        await recorder.complete(request(turn=turn))
    await recorder.complete(request("q2"))
    await recorder.complete(request(role=Role.MANAGER, purpose="compress"))
    again = Recorder(new, RecordingWriter(path))
    for turn in (1, 0):  # Plans that are sampled at once may come in any order.
        await again.complete(request(turn=turn))
    calls = {(key.question_id, key.purpose, key.turn): call.text for key, call in read_recording(path).items()}
    assert calls == {
        ("q1", "execute", 0): "new 0",
        ("q1", "execute", 1): "new 1",
        ("q1", "compress", 0): "old 0",
        ("q2", "execute", 0): "old 0",
    }
    # A third take that only goes on with another purpose takes nothing away.
    await Recorder(new, RecordingWriter(path)).complete(request(role=Role.JUDGE, purpose="judge"))
    assert len(read_recording(path)) == 5


async def test_two_writers_at_once_leave_a_recording_that_can_be_read(tmp_path: Path) -> None:
    writers = [RecordingWriter(tmp_path / "r.jsonl") for _ in range(2)]
    for turn in range(3):
        for number, writer in enumerate(writers):
            await Recorder(ScriptedModel(lambda asked, number=number: f"{number}"), writer).complete(request(turn=turn))
    assert [call.text for call in read_recording(tmp_path / "r.jsonl").values()] == ["1", "1", "1"]


async def test_of_two_calls_at_once_with_one_key_the_second_is_refused(tmp_path: Path) -> None:
    recorder = Recorder(ScriptedModel(lambda asked: "x", delay=0.01), RecordingWriter(tmp_path / "r.jsonl"))
    ended = await asyncio.gather(recorder.complete(request()), recorder.complete(request()), return_exceptions=True)
    assert [type(one) for one in ended] == [ChatReply, ModelRefused]


async def test_a_failed_call_is_not_recorded_and_may_be_made_again(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path / "r.jsonl")
    recorder = Recorder(ScriptedModel({"executor": [ModelUnavailable("down"), "x"]}), writer)
    with pytest.raises(ModelUnavailable):
        await recorder.complete(request())
    await recorder.complete(request())
    assert [call.text for call in read_recording(writer.path).values()] == ["x"]


@pytest.mark.parametrize(
    ("tear", "calls"),
    [
        (lambda content: content[:-20], 1),
        (lambda content: content[:-1], 2),
        (lambda content: content + b'{"question', 2),
        (lambda content: content[:10], 0),
    ],
)
async def test_a_torn_last_line_is_cut_off_on_reopening(
    tmp_path: Path, tear: Callable[[bytes], bytes], calls: int
) -> None:
    path = tmp_path / "r.jsonl"
    recorder = Recorder(ScriptedModel(lambda asked: "x"), RecordingWriter(path))
    for turn in range(2):
        await recorder.complete(request(turn=turn))
    path.write_bytes(tear(path.read_bytes()))
    again = Recorder(ScriptedModel(lambda asked: "y"), RecordingWriter(path))
    await again.complete(request("q2"))
    assert len(read_recording(path)) == calls + 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="No space left"):
        RecordingWriter(tmp_path / "r.jsonl")


def test_a_line_that_the_disk_cut_short_is_taken_back(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    writer = RecordingWriter(tmp_path / "r.jsonl")
    before = writer.path.read_bytes()
    call = RecordedCall(question_id="q", role=Role.JUDGE, purpose="judge", turn=0, text="x" * 5000)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
        with pytest.raises(StoreError):
            writer.append(call)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert writer.path.read_bytes() == before
    writer.append(call)
    assert len(read_recording(writer.path)) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
async def test_a_reply_that_the_disk_does_not_take_is_a_failure_of_the_model(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path / "r.jsonl")
    writer.path = Path("/dev/full")
    recorder = Recorder(ScriptedModel(lambda asked: "x"), writer)
    for _ in range(2):  # Refused for the disk each time: the key of a failed call is given back.
        with pytest.raises(ModelUnavailable, match=r"could not be recorded: .*No space left"):
            await recorder.complete(request())


def test_a_file_that_is_no_recording_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n")
    with pytest.raises(RecordError, match="no recording"):
        RecordingWriter(path)
    assert path.read_text() == "my notes\n"
    with pytest.raises((StoreError, RecordError)):
        RecordingWriter(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_the_folder_of_a_recording_must_be_possible(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot open"):
        RecordingWriter(tmp_path / "file" / "r.jsonl")


def test_calls_can_be_written_at_once(tmp_path: Path) -> None:
    call = RecordedCall(question_id="q", role=Role.JUDGE, purpose="judge", turn=0, text="")
    write_calls([call], tmp_path / "r.jsonl", note="empty reply")
    assert list(read_recording(tmp_path / "r.jsonl").values()) == [call]
