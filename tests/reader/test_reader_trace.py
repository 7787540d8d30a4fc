"""What a trace tells, and how it is shown to people."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mia.errors import ConfigError, RecordError
from mia.reader.trace import ChunkRead, ReadingFinished, Trace, changes, describe, read_trace

CHUNK = ChunkRead(
    question_id="q",
    chunk=2,
    start=2000,
    characters=1000,
    of_characters=9000,
    tokens=250,
    memory="a\nc",
    memory_tokens=1,
    added=("c",),
    removed=("b",),
    seconds=0.5,
)
END = ReadingFinished(
    question_id="q", question="Who?", answer="x", form="boxed", memory="m", chunks=3, tokens=700, left_out=0
)


@given(st.lists(st.sampled_from("abcd")), st.lists(st.sampled_from("abcd")))
def test_changes_are_what_came_and_what_went(before: list[str], after: list[str]) -> None:
    added, removed = changes("\n".join(before), "\n\n".join(f"  {line} " for line in after))
    assert set(before) - set(removed) | set(added) == set(after)
    assert not set(added) & set(before)
    assert not set(removed) & set(after)


def test_a_chunk_for_people() -> None:
    assert describe(CHUNK) == "chunk 3 (characters 2,000 to 3,000)\n- b\n+ c"
    same = CHUNK.evolve(added=(), removed=())
    assert describe(same).endswith("\n  (nothing changed)")
    assert describe(same.evolve(kept="empty")).endswith("no memory was written, the old one stays")
    assert "too long, cut" in describe(CHUNK.evolve(cut=True))


def test_a_trace_is_read_as_it_was_written_and_overwrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with Trace.open(path) as trace:
        trace(CHUNK)
    with pytest.raises(ConfigError, match="already"):
        Trace.open(path)
    with Trace.open(path, resume=True) as trace:
        trace(END)
    assert list(read_trace(path)) == [CHUNK, END]
    path.write_text("nothing\n")
    with pytest.raises(RecordError, match="line 1"):
        list(read_trace(path))
    with pytest.raises(RecordError, match="cannot read"):
        list(read_trace(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="cannot be written"):
        Trace.open(tmp_path / "no" / "folder.jsonl")
