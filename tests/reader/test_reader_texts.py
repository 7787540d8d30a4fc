"""Files, folders and standard input as one text; and what is refused before a model is asked."""

from __future__ import annotations

import gzip
import io
import json
import os
import threading
from pathlib import Path

import pytest

from mia.errors import RecordError
from mia.reader.texts import TextSource
from mia.search.documents import Limits
from mia.search.pages import Bounds


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def text_of(*paths: Path | str, **options: object) -> str:
    with TextSource.open(paths, **options) as source:  # type: ignore[arg-type]
        text = "".join(source.pieces())
        assert len(text) == source.characters
        assert "".join(source.pieces()) == text, "a source can be read again"
        return text


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", "One\r\ntwo\rthree", "One\ntwo\nthree"),
        ("a.md", "# Title\n\n*words*", "# Title\n\n*words*"),
        ("a.weird", "named, so it is text", "named, so it is text"),
        ("a.txt.gz", gzip.compress(b"packed words", mtime=0), "packed words"),
        ("packed", gzip.compress(b"packed words", mtime=0), "packed words"),
        ("a.txt", "naïve".encode(), "naïve"),
        ("a.txt", "\ufeffmark".encode(), "mark"),
        ("a.txt", "语言 words".encode("utf-16"), "语言 words"),
        ("a.txt", ("plain words. " * 9000 + "Das Mädchen fährt über die Brücke. " * 30).encode("cp1252"), None),
        ("a.txt", b"torn at its end \xe8\xaf", None),
    ],
)
def test_what_is_read_as_text(tmp_path: Path, name: str, content: bytes | str, text: str | None) -> None:
    read = text_of(write(tmp_path / name, content))
    if text is not None:
        assert read == text
    elif "torn" in read:
        assert read == "torn at its end \ufffd"
    else:
        assert read.endswith("Das Mädchen fährt über die Brücke. ")


def test_html_and_pdf_are_read_as_pages_are(tmp_path: Path) -> None:
    page = "<html><head><title>Tides</title></head><body><p>The tide <b>turns</b> twice a day here.</p></body></html>"
    read = text_of(write(tmp_path / "a.html", page))
    assert " ".join(read.split()) == "Tides The tide **turns** twice a day here."
    assert "turns" in text_of(write(tmp_path / "b.html.gz", gzip.compress(page.encode())))
    canvas = pytest.importorskip("reportlab.pdfgen.canvas")
    drawn = io.BytesIO()
    drawing = canvas.Canvas(drawn)
    for words in ("The first page.", "The second page."):
        drawing.drawString(72, 700, words)
        drawing.showPage()
    drawing.save()
    for name in ("a.pdf", "no-suffix"):
        read = text_of(write(tmp_path / name, drawn.getvalue()))
        assert read.index("The first page.") < read.index("The second page.")


def test_rows_of_jsonl_come_with_their_titles(tmp_path: Path) -> None:
    rows = [{"id": "1", "title": "Tides", "text": "They turn."}, {"id": 2, "text": "No title."}]
    path = write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert text_of(path) == "Tides\nThey turn.\n\nNo title."
    write(path, '{"id": "1", "text": "x"}\nnothing\n')
    with pytest.raises(RecordError, match="line 2"):
        text_of(path)


def test_several_files_are_named_in_the_order_in_which_they_were_given(tmp_path: Path) -> None:
    write(tmp_path / "book/2.txt", "two")
    write(tmp_path / "book/1.md", "one")
    write(tmp_path / "book/.hidden.txt", "hidden")
    write(tmp_path / "book/picture.png", b"\x89PNG\r\n\x1a\n\x00")
    write(tmp_path / "book/empty.txt", "")
    write(tmp_path / "book/data.txt", b"\x00\x01\x02")
    last = write(tmp_path / "a.txt", "last")
    with TextSource.open([tmp_path / "book", last, last]) as source:
        text = "".join(source.pieces())
        assert text == "[Document 1: book/1.md]\none\n\n[Document 2: book/2.txt]\ntwo\n\n[Document 3: a.txt]\nlast"
        assert {one.key: one.reason for one in source.skipped} == {
            "book/picture.png": "'.png' is not a kind of file that is read",
            "book/empty.txt": "it is empty",
            "book/data.txt": "it is binary data",
        }


def test_standard_input_and_pipes_are_kept_aside_until_the_end(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with TextSource.open(["-"], stdin=io.BytesIO(gzip.compress(b"piped", mtime=0)), folder=kept) as source:
        assert "".join(source.pieces()) + "".join(source.pieces()) == "pipedpiped"
        assert len(list(kept.iterdir())) == 1
    assert not list(kept.iterdir())
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writing = threading.Thread(target=pipe.write_bytes, args=(b"through a pipe",))
    writing.start()
    assert text_of(pipe) == "through a pipe"
    writing.join()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "it is empty"),
        ("a.txt", b" \n\t\n", "holds no text"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "it is empty"),
        ("a.txt", b"\x7fELF\x02\x01\x01\x00\x00", "binary"),
        ("a.txt", bytes(range(1, 256)) * 300, "binary"),
        ("a.txt.gz", gzip.compress(os.urandom(90_000)), "binary"),
        ("a.txt.gz", gzip.compress(b"words " * 50_000, mtime=0)[:-20], "compressed data is broken"),
        ("a.pdf", b"%PDF-1.7\nnothing", "PDF"),
        ("a.html", b"<html></html>", "no text"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_name(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    with pytest.raises(RecordError, match=says) as refused:
        text_of(write(tmp_path / name, content))
    assert name in refused.value.got


def test_other_things_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="there is no file"):
        text_of(tmp_path / "gone.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecordError, match="nothing to read"):
        text_of(tmp_path / "folder")
    page = write(tmp_path / "long.html", "<p>" + "words of a page " * 500)
    with pytest.raises(RecordError, match="too long to be parsed"):
        text_of(page, limits=Limits(page=Bounds(html_characters=1000)))
    with pytest.raises(RecordError, match=r"MiB of HTML"):
        text_of(page, limits=Limits(file_bytes=1000))
    with pytest.raises(RecordError, match="no text"):
        TextSource.of(" \n")


def test_a_file_that_changes_is_not_read_on_as_if_it_had_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "before")
    with TextSource.open([path]) as source:
        write(path, "after it changed")
        with pytest.raises(RecordError, match="has changed"):
            list(source.pieces())


def test_the_digest_is_that_of_the_text_and_not_of_its_packing(tmp_path: Path) -> None:
    plain, packed = write(tmp_path / "a.txt", "words"), write(tmp_path / "b.txt.gz", gzip.compress(b"words", mtime=0))
    with TextSource.open([plain]) as one, TextSource.open([packed]) as other, TextSource.of("Words") as third:
        assert one.digest == other.digest != third.digest


def test_a_line_without_end_comes_in_pieces(tmp_path: Path) -> None:
    path = write(tmp_path / "line.txt", b"x" * 5_000_000)
    with TextSource.open([path]) as source:
        assert max(map(len, source.pieces())) <= 1 << 16
