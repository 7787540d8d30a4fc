"""Documents to passages: every kind that is read, everything that can be wrong with a file or a folder."""

import gzip
import io
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mia.errors import CorpusError
from mia.search.documents import (
    BrokenLines,
    Limits,
    SourceFile,
    UnusableFile,
    find_files,
    read_rows,
    split_text,
)
from mia.search.pages import Bounds
from mia.types import Passage


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def only_file(path: Path) -> SourceFile:
    files, _ = find_files([path])
    assert len(files) == 1
    return files[0]


def passages(path: Path, limits: Limits = Limits()) -> list[Passage]:
    return [row.passage for row in read_rows(only_file(path), limits)]


def pdf(*pages: str, title: str = "") -> bytes:
    canvas = pytest.importorskip("reportlab.pdfgen.canvas")
    content = io.BytesIO()
    drawing = canvas.Canvas(content)
    if title:
        drawing.setTitle(title)
    for page in pages:
        drawing.drawString(72, 700, page)
        drawing.showPage()
    drawing.save()
    return content.getvalue()


# ── which files ──


def test_files_are_named_by_their_path_from_the_folder_given(tmp_path: Path) -> None:
    write(tmp_path / "docs/guide.md", "x")
    write(tmp_path / "docs/deep/er/notes.txt", "x")
    write(tmp_path / "docs/README", "x")
    write(tmp_path / "docs/.git/config.txt", "x")
    files, skipped = find_files([tmp_path / "docs"])
    assert [file.key for file in files] == ["docs/README", "docs/deep/er/notes.txt", "docs/guide.md"]
    assert not skipped


def test_folders_of_one_name_are_told_apart_and_nothing_comes_twice(tmp_path: Path) -> None:
    write(tmp_path / "a/docs/x.txt", "x")
    write(tmp_path / "b/docs/x.txt", "x")
    files, _ = find_files([tmp_path / "a/docs", tmp_path / "b/docs", tmp_path / "a/docs/x.txt"])
    assert [file.key for file in files] == ["a/docs/x.txt", "b/docs/x.txt"]


def test_links_are_not_followed_so_loops_and_ways_out_do_no_harm(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret/key.txt", "x")
    docs = write(tmp_path / "docs/a.txt", "x").parent
    (docs / "loop").symlink_to(docs)
    (docs / "up").symlink_to(tmp_path)
    (docs / "key.txt").symlink_to(secret)
    (docs / "self").symlink_to(docs / "self")
    files, skipped = find_files([docs])
    assert [file.key for file in files] == ["docs/a.txt"]
    assert {each.key for each in skipped} == {"docs/loop", "docs/up", "docs/key.txt", "docs/self"}
    assert all("link" in each.reason for each in skipped)


def test_a_path_that_is_itself_a_link_is_read_and_a_loop_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "docs/a.txt", "x")
    (tmp_path / "link").symlink_to(tmp_path / "docs")
    assert [file.key for file in find_files([tmp_path / "link"])[0]] == ["docs/a.txt"]
    (tmp_path / "self").symlink_to(tmp_path / "self")
    with pytest.raises(CorpusError, match="nothing to index"):
        find_files([tmp_path / "self"])
    with pytest.raises(CorpusError, match="No such file"):
        find_files([tmp_path / "missing"])


def test_other_kinds_pipes_and_locked_folders_are_skipped_with_a_reason(tmp_path: Path) -> None:
    write(tmp_path / "docs/picture.png", b"\x89PNG")
    write(tmp_path / "docs/locked/a.txt", "x")
    os.mkfifo(tmp_path / "docs/pipe")
    (tmp_path / "docs/locked").chmod(0)
    files, skipped = find_files([tmp_path / "docs"])
    (tmp_path / "docs/locked").chmod(0o700)
    reasons = {each.key: each.reason for each in skipped}
    assert "'.png'" in reasons["docs/picture.png"]
    assert reasons["docs/pipe"] == "not a regular file"
    if os.geteuid() != 0:  # Nothing is locked to root.
        assert "Permission denied" in reasons["docs/locked"]
        assert not files


def test_a_file_of_unknown_kind_is_text_when_it_is_named(tmp_path: Path) -> None:
    assert passages(write(tmp_path / "notes.org", "words of mine"))[0].text == "words of mine"


def test_names_that_are_no_text_still_name_their_files(tmp_path: Path) -> None:
    for name in (b"a\xff.txt", b"a\xfe.txt"):
        try:
            with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
                file.write(b"words")
        except OSError:
            pytest.skip("this file system wants names to be text")
    files, _ = find_files([tmp_path])
    assert len({file.key for file in files}) == 2
    assert all(file.key.encode() for file in files)


def test_an_index_among_the_documents_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "docs/a.txt", "x")
    write(tmp_path / "docs/index/mia-index.json", "{}")
    write(tmp_path / "docs/index/b.txt", "x")
    assert [file.key for file in find_files([tmp_path / "docs"])[0]] == ["docs/a.txt"]


# ── JSONL ──


def test_rows_keep_their_ids_and_are_one_passage_each(tmp_path: Path) -> None:
    rows = [{"id": "a", "title": "T", "text": "word " * 400, "more": 1}, {"id": 7, "text": "half \ud800"}]
    text = "\n\n".join(json.dumps(row) for row in rows)
    for path in (
        write(tmp_path / "rows.jsonl", "\ufeff" + text),
        write(tmp_path / "rows.jsonl.gz", gzip.compress(text.encode())),
    ):
        first, second = passages(path)
        assert (first.id, first.title, first.source) == ("a", "T", path.name)
        assert len(first.text.split()) == 400
        assert (second.id, second.text) == ("7", "half ?")


def test_a_row_that_is_too_long_for_a_passage_is_split_and_numbered(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(1001)]
    rows = [{"id": "a", "title": "T" * 9000, "text": " ".join(words)}, {"id": "b", "text": "short"}]
    *pieces, last = passages(write(tmp_path / "rows.jsonl", "\n".join(json.dumps(row) for row in rows)))
    assert [piece.id for piece in pieces] == [f"a#{number}" for number in range(len(pieces))]
    assert " ".join(piece.text for piece in pieces).split() == words
    assert max(len(piece.text.split()) for piece in pieces) <= 200
    assert {(piece.title, piece.source) for piece in pieces} == {("T" * 500, "rows.jsonl")}
    assert (last.id, last.text) == ("b", "short")


def test_an_id_of_any_length_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", json.dumps({"id": "a" * 2049, "text": "short"}))
    with pytest.raises(BrokenLines) as caught:
        passages(path)
    assert caught.value.lines == ('line 1: "id" is longer than 2048 characters',)


def test_broken_lines_are_named_by_number_and_the_others_still_read(tmp_path: Path) -> None:
    lines = [
        b'{"id": "1", "text": "fine"}',
        b'{"id": "2", "text": ',
        b"[1, 2]",
        b'{"id": "4"}',
        b'{"text": "no id"}',
        b'{"id": "6", "text": ["a list"]}',
        b'{"id": "7", "text": "\xff\xfe"}',
        b'{"id": true, "text": "x"}',
        b"[" * 100_000,
        b'{"id": "10", "text": "fine"}',
    ]
    rows = read_rows(only_file(write(tmp_path / "rows.jsonl", b"\n".join(lines))))
    read = [next(rows), next(rows)]
    assert [(row.line, row.passage.id) for row in read] == [(1, "1"), (10, "10")]
    with pytest.raises(BrokenLines) as caught:
        next(rows)
    assert [line.partition(":")[0] for line in caught.value.lines] == [f"line {n}" for n in range(2, 10)]


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"id": "1", "text": "x"}\n' + "x" * 5000)
    with pytest.raises(BrokenLines) as caught:
        passages(path, Limits(line_bytes=1000))
    assert caught.value.lines == ("line 2: longer than 1000 bytes",)


def test_compressed_data_that_is_cut_off_or_none_is_broken(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"id": "1", "text": "x"}\n' * 100)
    for content in (whole[:-20], b"no gzip at all", whole[:30] + b"\x00" * 30):
        with pytest.raises(BrokenLines, match="rows"):
            passages(write(tmp_path / "rows.jsonl.gz", content))


# ── text in all encodings, and what is no text ──


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "shift_jis", "cp874", "koi8-r"]
)
def test_text_is_read_in_many_encodings(tmp_path: Path, encoding: str) -> None:
    texts = {
        "shift_jis": "東京は日本の首都です。人口は約一千四百万人で、世界最大の都市圏の中心です。",
        "cp874": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย และเป็นศูนย์กลางการปกครอง",
        "koi8-r": "Москва является столицей России и крупнейшим городом страны по населению. Город расположен на реке "
        "Москве в центре равнины. Здесь находятся многие университеты, музеи и театры.",
    }
    western = (
        "Zoë's café serves crème brûlée; the naïve façade of a small café in Malmö is très élégante. Le garçon "
        "apporte une bière à côté de la fenêtre, où l'élève âgé révise ses leçons. Die Straße führt über die Brücke."
    )
    text = texts.get(encoding, western)
    path = write(tmp_path / "a.txt", (text + "\r\n").encode(encoding))
    assert passages(path)[0].text == text


def test_binary_and_oversized_and_empty_files_are_unusable(tmp_path: Path) -> None:
    big = tmp_path / "big.txt"
    with big.open("wb") as file:
        file.truncate(50 * 1024 * 1024)
    for path, reason in (
        (write(tmp_path / "a.txt", b"MZ\x00\x01\x02" + bytes(range(256))), "binary"),
        (write(tmp_path / "b.html", b"\x00\x00\x00"), "binary"),
        (write(tmp_path / "c.md", "  \n\n "), "holds no text"),
        (big, "50 MiB is more than 32 MiB"),
    ):
        with pytest.raises(UnusableFile, match=reason):
            passages(path)


def test_bytes_that_are_text_in_no_encoding_are_unusable(tmp_path: Path) -> None:
    noise = bytes(random.Random(1).choices(range(1, 256), k=4000))
    with pytest.raises(UnusableFile, match="binary data"):
        passages(write(tmp_path / "noise.txt", noise))


def test_a_large_jsonl_file_is_no_problem(tmp_path: Path) -> None:
    row = '{"id": "%d", "text": "x"}\n'
    path = write(tmp_path / "rows.jsonl", "".join(row % number for number in range(1000)))
    assert len(passages(path, Limits(file_bytes=100))) == 1000


# ── Markdown, HTML, PDF ──


def test_markdown_headings_give_titles(tmp_path: Path) -> None:
    text = (
        "---\ntitle: The Manual\n---\nBefore any heading.\n\n# Install\n\nFirst words.\n\n## Windows\n\nRun it.\n\n"
        "```sh\n# not a heading\n```\n\nUse\n===\n\nCall it.\n\n### Deep\n\nDown here."
    )
    found = passages(write(tmp_path / "manual.md", text))
    assert [(passage.id, passage.title) for passage in found] == [
        ("manual.md#0", "The Manual"),
        ("manual.md#1", "Install"),
        ("manual.md#2", "Install › Windows"),
        ("manual.md#3", "Use"),
        ("manual.md#4", "Use › Deep"),
    ]
    assert "# not a heading" in found[2].text


def test_html_gives_its_text_and_title_without_scripts(tmp_path: Path) -> None:
    page = (
        "<html><head><title>Tide tables</title><script>var secret = 1</script></head><body><nav>Home | About</nav>"
        "<article><h1>Tides</h1><p>The tide at the old harbour turns at six in the morning, and again at noon.</p>"
        "<h2>Moon</h2><p>Spring tides follow the new moon by about two days in most waters.</p></article></body>"
    )
    found = passages(write(tmp_path / "tides.html", page))
    text = " ".join(passage.text for passage in found)
    assert "turns at six" in text
    assert "Spring tides" in text
    assert "secret" not in text
    assert any("Tide" in passage.title for passage in found)


@pytest.mark.parametrize("page", ["", "<", "<html></html>", "<p>" * 5000, "&#xD800;" * 10])
def test_odd_html_is_text_or_unusable(tmp_path: Path, page: str) -> None:
    try:
        found = passages(write(tmp_path / "odd.html", page))
    except UnusableFile:
        return
    assert all(passage.text.strip() for passage in found)


def test_pdf_pages_are_passages_that_say_their_page(tmp_path: Path) -> None:
    path = write(tmp_path / "report.pdf", pdf("The reservoir holds water.", "It froze twice.", title="Yearly Report"))
    found = passages(path)
    assert [(passage.id, passage.source) for passage in found] == [
        ("report.pdf#0", "report.pdf#page=1"),
        ("report.pdf#1", "report.pdf#page=2"),
    ]
    assert found[1].text == "It froze twice."
    assert found[0].title == "Yearly Report"


@pytest.mark.filterwarnings("default")
def test_broken_pdfs_are_unusable(tmp_path: Path) -> None:
    whole = pdf("Some words.")
    for content in (b"%PDF-1.7\nnothing", whole[:200], b"", bytes(reversed(whole)), pdf("")):
        with pytest.raises(UnusableFile, match=r"PDF|no text"):
            passages(write(tmp_path / "broken.pdf", content))


def test_html_and_pdf_beyond_their_bounds_are_left_out_and_not_cut(tmp_path: Path) -> None:
    three = write(tmp_path / "three.pdf", pdf("One.", "Two.", "Three."))
    html = write(tmp_path / "long.html", "<p>" + "words of a page " * 100)
    for path, bounds, reason in (
        (three, Bounds(pdf_pages=2), "a PDF of more than 2 pages"),
        (three, Bounds(pdf_seconds=0.0), "a PDF of more than 50 pages, or 0 s"),
        (html, Bounds(html_characters=1000), "more than 1,000 characters of HTML"),
    ):
        with pytest.raises(UnusableFile, match=reason):
            passages(path, Limits(page=bounds))
    assert len(passages(three, Limits(page=Bounds(pdf_pages=3)))) == 3


def test_html_says_its_own_encoding(tmp_path: Path) -> None:
    page = '<html><head><meta charset="koi8-r"><title>Луна</title></head><body><p>Луна вращается вокруг Земли.</p>'
    (passage,) = passages(write(tmp_path / "moon.html", page.encode("koi8-r")))
    assert (passage.title, passage.text) == ("Луна", "Луна вращается вокруг Земли.")


# ── splitting ──


def test_whole_paragraphs_are_put_together_up_to_two_hundred_words() -> None:
    paragraphs = [f"{number} " + "word " * 59 for number in range(10)]
    found = list(split_text("\n\n".join(paragraphs)))
    assert [text.split()[0] for text in found] == ["0", "3", "6", "9"]
    assert "\n\n" in found[0]


@pytest.mark.parametrize(
    ("line", "title"),
    [("# Tides", "Tides"), ("## Tides ##", "Tides"), ("# C#", "C#"), ("#  #", "notes"), ("#", "notes")],
)
def test_what_is_a_heading(tmp_path: Path, line: str, title: str) -> None:
    (passage,) = [one for one in passages(write(tmp_path / "notes.md", f"{line}\n\nText.")) if "Text." in one.text]
    assert passage.title == title


def test_a_long_paragraph_is_split_between_sentences() -> None:
    sentences = [f"Sentence {number} has exactly seven words here." for number in range(100)]
    found = list(split_text(" ".join(sentences)))
    assert all(text.endswith("here.") and len(text.split()) <= 200 for text in found)
    assert " ".join(found) == " ".join(sentences)


def test_languages_without_spaces_are_split_too() -> None:
    for text in ("東京は日本の首都です。" * 500, "กรุงเทพมหานครเป็นเมืองหลวง" * 300):
        found = list(split_text(text))
        assert all(len(piece) < 1410 for piece in found)
        assert "".join("".join(found).split()) == text


@given(st.text(st.sampled_from("ab .\n東ก!?"), max_size=6000))
def test_no_word_is_lost_or_made_up_by_splitting(text: str) -> None:
    found = list(split_text(text))
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(len(piece.split()) <= 200 and len(piece) < 1410 for piece in found)
