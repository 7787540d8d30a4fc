"""Questions files: good ones are read whole, bad ones are refused whole, with their lines named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mia.errors import RecordError
from mia.evals.tasks import read_tasks

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000"
    "000049454e44ae426082"
)


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_common_shapes_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PIXEL)
    path = write(
        tmp_path / "q.jsonl",
        {"question": " Who? ", "answers": ["A", "B"], "level": "hard"},
        "",
        {"id": 7, "question": "When?", "answer": "1655", "images": "a.png", "caption": "a dot"},
        {"question": "Where?"},
    )
    first, second, third = read_tasks(path)
    assert (first.question.text, first.references) == ("Who?", ("A", "B"))
    assert (second.question.id, second.references, second.question.caption) == ("7", ("1655",), "a dot")
    assert second.question.images[0].media_type == "image/png"
    assert third.references == ()
    assert third.question.id == read_tasks(path)[2].question.id


def test_gzip_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"question": "Who?"}\n'))
    assert len(read_tasks(path)) == 1


def test_every_broken_line_is_named_and_nothing_is_returned(tmp_path: Path) -> None:
    path = write(
        tmp_path / "q.jsonl",
        {"question": "fine", "id": "a"},
        "{broken",
        "[1, 2]",
        {"answers": ["no question"]},
        {"question": "  "},
        {"question": "again", "id": "a"},
        {"question": "x", "answers": {"a": 3}},
        {"question": "y", "images": ["gone.png"]},
    )
    with pytest.raises(RecordError) as caught:
        read_tasks(path)
    message = str(caught.value)
    assert "7 broken lines" in message
    for part in (
        "line 2: no JSON",
        "line 3: no JSON object",
        "line 4: no 'question'",
        "line 5",
        "that of line 1",
        "2 more",
    ):
        assert part in message


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe{}", b"\x1f\x8b broken"])
def test_a_file_without_questions_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / ("q.jsonl.gz" if content.startswith(b"\x1f") else "q.jsonl")
    path.write_bytes(content)
    with pytest.raises(RecordError):
        read_tasks(path)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot read .*No such file"):
        read_tasks(tmp_path / "gone.jsonl")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (r'{"question": "a", "id": "\ud800"}', "line 1: its id"),
        (r'{"question": "a", "id": true}', "line 1: its 'id' is neither"),
        (r'{"question": "a", "id": 1.5}', "line 1: its 'id' is neither"),
        ('{"question": "a", "id": "' + "x" * 201 + '"}', "line 1: its id"),
        (r'{"question": "a", "images": ["\u0000.png"]}', "line 1: its image"),
        (r'{"question": "a", "images": ["\ud800.png"]}', "line 1: its image"),
    ],
)
def test_what_cannot_be_an_id_or_a_path_is_a_broken_line(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(RecordError, match=said):
        read_tasks(write(tmp_path / "q.jsonl", line))


def test_half_a_character_in_a_text_is_replaced(tmp_path: Path) -> None:
    line = r'{"question": "a \ud800?", "caption": "b \ud800", "answers": ["c \ud800"]}'
    (task,) = read_tasks(write(tmp_path / "q.jsonl", line))
    assert (task.question.text, task.question.caption, task.references) == ("a ??", "b \ufffd", ("c \ufffd",))


def test_numbers_are_taken_as_answers(tmp_path: Path) -> None:
    path = write(
        tmp_path / "q.jsonl", {"question": "When?", "answer": 1986}, {"question": "How many?", "answers": [2, "two"]}
    )
    assert [task.references for task in read_tasks(path)] == [("1986",), ("2", "two")]
