"""An index through its life: made, searched, changed, killed, fed with vectors, and never asked in vain."""

import asyncio
import contextlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mia.config import Config, SearchSettings
from mia.embeddings.base import Vectors
from mia.embeddings.hashing import HashingEmbedder
from mia.errors import CorpusError, ModelUnavailable, ToolError
from mia.search.corpus import CorpusIndex, index_folder, open_configured, open_corpus
from mia.search.indexing import Progress, make_vectors, update_index, vector_cache
from mia.types import Passage

ROWS = [
    ("harbour", "Old Harbour", "The tide at the harbour turns twice a day. Ships wait for it beyond the lighthouse."),
    ("light", "Lighthouse", "The lighthouse was built in 1862 by the engineer Ada Brook. It stands on a rock."),
    ("bridge", "Iron Bridge", "The bridge crosses the river near the mill. It opened for carts in 1871."),
    ("who", "The Who", "They were a rock band. It was what they were."),
    ("tokyo", "東京", "東京は日本の首都です。皇居は千代田区にあります。"),
    ("bangkok", "กรุงเทพมหานคร", "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย ตั้งอยู่ริมแม่น้ำเจ้าพระยา"),
    ("zoe", "Café", "Zoë’s café in Malmö serves crème brûlée."),
]


class CountingEmbedder(HashingEmbedder):
    """Remembers which texts it embedded."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.texts += texts
        return super().embed(texts)


class OtherEmbedder(HashingEmbedder):
    """Another space."""

    @property
    def space(self) -> str:
        return "other/1"


def write_rows(path: Path, rows: Sequence[tuple[str, str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"id": id, "title": title, "text": text}) + "\n" for id, title, text in rows)
    path.write_text(text)
    return path


def many(count: int) -> list[tuple[str, str, str]]:
    return [(f"row-{number}", "", f"plain words of row number {number}") for number in range(count)]


def find(index: CorpusIndex, query: str, k: int = 5) -> list[Passage]:
    (found,) = asyncio.run(index.search([query], k))
    return found


def ids(index: CorpusIndex, query: str, k: int = 5) -> list[str]:
    return [passage.id for passage in find(index, query, k)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


# ── searching ──


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("Who engineered the lighthouse?", "light"),
        ("BRIDGES crossing rivers", "bridge"),
        ("the who", "who"),
        ("cafe creme brulee malmo", "zoe"),
        ("日本の首都", "tokyo"),
        ("皇居", "tokyo"),
        ("เมืองหลวงของไทย", "bangkok"),
        ('title:(harbour^ AND [ "', "harbour"),
    ],
)
def test_words_find_their_passage(corpus: Path, folder: Path, query: str, expected: str) -> None:
    update_index(folder, [corpus])
    assert ids(CorpusIndex.open(folder), query)[0] == expected


def test_a_word_in_the_title_weighs_more(tmp_path: Path, folder: Path) -> None:
    rows = [("body", "Something", "About anvil and other things"), ("title", "Anvil", "About iron and other things")]
    update_index(folder, [write_rows(tmp_path / "rows.jsonl", rows)])
    assert ids(CorpusIndex.open(folder), "anvil") == ["title", "body"]


def test_hits_carry_their_text_source_and_the_parts_of_their_score(corpus: Path, folder: Path) -> None:
    update_index(folder, [corpus])
    make_vectors(folder, HashingEmbedder())
    index = CorpusIndex.open(folder, HashingEmbedder())
    assert (index.passages, index.with_vectors, index.notice) == (len(ROWS), len(ROWS), "")
    first = find(index, "when was the lighthouse built")[0]
    assert (first.id, first.title, first.source) == ("light", "Lighthouse", "rows.jsonl")
    assert first.text == ROWS[1][2]
    assert set(first.parts) == {"lexical_rank", "lexical_score", "vector_rank", "vector_score"}
    assert first.parts["lexical_rank"] == first.parts["vector_rank"] == 1
    assert first.score == pytest.approx(1 / 6 + 0.1 / 6)


def test_queries_are_answered_in_order_and_only_k_each(corpus: Path, folder: Path) -> None:
    update_index(folder, [corpus])
    index = CorpusIndex.open(folder)
    found = asyncio.run(index.search(["bridge", "nothing-of-the-kind", "rock", ""], 1))
    assert [[passage.id for passage in one] for one in found] == [["bridge"], [], ["who"], []]
    assert asyncio.run(index.search([], 3)) == []
    assert asyncio.run(index.search(["rock"], 0)) == [[]]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> CorpusIndex:
    home = tmp_path_factory.mktemp("fuzz")
    return open_corpus([write_rows(home / "rows.jsonl", ROWS)], home, embedder=HashingEmbedder())


@settings(max_examples=300, deadline=None)
@given(query=st.text(st.characters(codec=None), max_size=60) | st.text('+-&|!(){}[]^"~*?:\\/ ANDORT0<>', max_size=40))
def test_no_text_is_a_wrong_query(opened: CorpusIndex, query: str) -> None:
    assert len(find(opened, query, 3)) <= 3


def test_a_very_long_query_is_answered(opened: CorpusIndex) -> None:
    long = "lighthouse " + " ".join(f"word{number}" for number in range(50_000))
    assert ids(opened, long)[0] == "light"


def test_many_searches_at_once(opened: CorpusIndex) -> None:
    async def all_at_once() -> list[list[list[Passage]]]:
        return await asyncio.gather(*(opened.search([row[2]], 1) for row in ROWS * 10))

    found = asyncio.run(all_at_once())
    assert [one[0][0].id for one in found] == [row[0] for row in ROWS * 10]


# ── keeping up with the documents ──


def test_only_what_changed_is_touched(tmp_path: Path, folder: Path) -> None:
    rows, notes, gone = tmp_path / "docs/rows.jsonl", tmp_path / "docs/notes.md", tmp_path / "docs/gone.txt"
    write_rows(rows, many(50))
    notes.write_text("# Sea\n\nSalt.\n\n# Land\n\nClay.")
    gone.write_text("Ephemeral.")
    report = update_index(folder, [tmp_path / "docs"])
    assert (report.files, report.passages, report.added, report.removed) == (3, 53, 53, 0)
    report = update_index(folder, [tmp_path / "docs"])
    assert (report.passages, report.added, report.removed) == (53, 0, 0)

    changed = many(51)
    changed[7] = ("row-7", "", "something else entirely")
    write_rows(rows, changed[1:])
    notes.write_text("# Sea\n\nSalt.\n\n# Land\n\nSand.")
    gone.unlink()
    report = update_index(folder, [tmp_path / "docs"])
    assert (report.files, report.passages, report.added, report.removed) == (2, 52, 3, 4)
    index = CorpusIndex.open(folder)
    assert ids(index, "entirely") == ["row-7"]
    assert ids(index, "sand") == ["docs/notes.md#1"]
    assert ids(index, "clay") == ids(index, "ephemeral") == []
    assert "row-0" not in ids(index, "row number 0", 60)


def test_a_row_may_move_from_one_file_to_another(tmp_path: Path, folder: Path) -> None:
    for first, second in ((ROWS[:3], ROWS[3:]), (ROWS[:4], ROWS[4:]), (ROWS[:2], ROWS[2:])):
        write_rows(tmp_path / "docs/a.jsonl", first)
        write_rows(tmp_path / "docs/b.jsonl", second)
        assert update_index(folder, [tmp_path / "docs"]).passages == len(ROWS)
        index = CorpusIndex.open(folder)
        assert find(index, "bridge")[0].source == ("docs/a.jsonl" if len(first) > 2 else "docs/b.jsonl")
        assert len(ids(index, "the rock 東京 กรุงเทพ café bridge harbour", 50)) == len(ROWS)


def test_an_opened_index_shows_its_state_while_it_changes(corpus: Path, folder: Path) -> None:
    update_index(folder, [corpus])
    before = CorpusIndex.open(folder)
    write_rows(corpus, ROWS[1:])
    update_index(folder, [corpus])
    assert ids(before, "harbour")[0] == "harbour"
    assert ids(CorpusIndex.open(folder), "harbour") == []


def test_skipped_files_are_reported_every_time(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.txt").write_text("words")
    (tmp_path / "docs/b.txt").write_bytes(b"\x00\x01")
    (tmp_path / "docs/c.png").write_bytes(b"\x89PNG")
    for _ in range(2):
        report = update_index(folder, [tmp_path / "docs"])
        assert [(each.key, each.reason.split()[0]) for each in report.skipped] == [
            ("docs/c.png", "'.png'"),
            ("docs/b.txt", "binary"),
        ]
        assert (report.files, report.passages) == (1, 1)


# ── what cannot be indexed ──


def test_broken_lines_leave_the_index_as_it_was(corpus: Path, folder: Path) -> None:
    update_index(folder, [corpus])
    good = corpus.read_text()
    corpus.write_text('{"id": "new", "text": "brandnew"}\n' + good + '{"id": "x"\n{"id": "y"}\n')
    with pytest.raises(CorpusError) as caught:
        update_index(folder, [corpus])
    assert "rows.jsonl, line 9: not JSON" in str(caught.value)
    assert 'rows.jsonl, line 10: no "text"' in str(caught.value)
    index = CorpusIndex.open(folder)
    assert ids(index, "brandnew") == []
    assert ids(index, "lighthouse")[0] == "light"
    corpus.write_text('{"id": "new", "text": "brandnew"}\n' + good)
    assert update_index(folder, [corpus]).added == 1


def test_an_id_that_comes_twice_is_refused_with_both_places(tmp_path: Path, folder: Path) -> None:
    first = write_rows(tmp_path / "docs/a.jsonl", ROWS[:3])
    write_rows(tmp_path / "docs/b.jsonl", [ROWS[3], ROWS[1]])
    with pytest.raises(CorpusError, match=r"b\.jsonl, line 2: the id 'light' is also in docs/a\.jsonl, line 2"):
        update_index(folder, [first.parent])
    write_rows(tmp_path / "docs/b.jsonl", ROWS[3:])
    update_index(folder, [first.parent])
    # The other file is unchanged now, and not read again.
    write_rows(tmp_path / "docs/b.jsonl", [*ROWS[3:], ROWS[0]])
    with pytest.raises(CorpusError, match="the id 'harbour' is also in"):
        update_index(folder, [first.parent])
    write_rows(tmp_path / "docs/b.jsonl", ROWS[3:])
    write_rows(first, [*ROWS[:3], ROWS[4]])
    with pytest.raises(CorpusError, match="the id 'tokyo' is also in"):
        update_index(folder, [first.parent])


def test_nothing_to_index_says_what_is_accepted(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="Markdown"):
        update_index(folder, [tmp_path / "empty"])
    assert not folder.exists()
    (tmp_path / "empty/a.txt").write_bytes(b"\x00")
    with pytest.raises(CorpusError, match=r"empty/a\.txt: binary"):
        update_index(folder, [tmp_path / "empty"])
    with pytest.raises(CorpusError, match="never finished"):
        CorpusIndex.open(folder)


def test_a_folder_that_is_no_index_is_neither_opened_nor_overwritten(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(CorpusError, match="no index"):
        CorpusIndex.open(tmp_path / "missing")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    with pytest.raises(CorpusError, match="not empty"):
        update_index(mine, [corpus])
    assert [path.name for path in mine.iterdir()] == ["letter.txt"]


def test_an_index_of_a_later_version_or_a_broken_one_says_what_to_do(corpus: Path, folder: Path) -> None:
    update_index(folder, [corpus])
    mark = folder / "mia-index.json"
    mark.write_text('{"format": "mia-index", "version": 99}')
    for open_it in (lambda: CorpusIndex.open(folder), lambda: update_index(folder, [corpus])):
        with pytest.raises(CorpusError, match="version 99"):
            open_it()
    mark.write_text("{")
    with pytest.raises(CorpusError, match="remove"):
        CorpusIndex.open(folder)
    mark.write_text('{"format": "mia-index", "version": 1}')
    (folder / "lexical/meta.json").write_text("{}")
    with pytest.raises(CorpusError, match="broken"):
        CorpusIndex.open(folder)
    with pytest.raises(CorpusError, match="broken"):
        update_index(folder, [corpus])


# ── killed, locked, offline ──

_KILLED = """
import json, sys, time
from pathlib import Path
from mia.search.indexing import update_index

def on_progress(progress):
    if progress.done >= 3000:
        print("under way", flush=True)
        time.sleep(60)

update_index(Path(sys.argv[1]), [sys.argv[2]], on_progress=on_progress)
"""


@contextlib.contextmanager
def under_way(code: str, *arguments: str) -> Iterator[None]:
    """Another process that has come to its "under way"; killed at the end."""
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"under way\n"
            yield
        finally:
            process.kill()


def test_kill_in_the_middle_leaves_the_old_index(tmp_path: Path, corpus: Path, folder: Path) -> None:
    update_index(folder, [corpus])
    write_rows(corpus, many(6000))
    with under_way(_KILLED, str(folder), str(corpus)), pytest.raises(CorpusError, match="another process"):
        update_index(folder, [corpus])
    assert ids(CorpusIndex.open(folder), "lighthouse")[0] == "light"
    report = update_index(folder, [corpus])
    assert (report.passages, report.added, report.removed) == (6000, 6000, len(ROWS))
    assert ids(CorpusIndex.open(folder), "number 5999", 1) == ["row-5999"]


def _open(arguments: tuple[str, str]) -> list[str]:
    path, home = arguments
    return ids(open_corpus([path], Path(home), embedder=HashingEmbedder()), "number 77", 1)


def test_processes_that_open_one_corpus_at_once_all_get_it(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", many(2000))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.map(_open, [(str(path), str(tmp_path / "home"))] * 3)
    assert found == [["row-77"]] * 3


def test_everything_works_without_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("searching documents must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    docs = tmp_path / "docs"
    write_rows(docs / "rows.jsonl", ROWS)
    (docs / "page.html").write_text(
        "<html><body><p>The weir <img src='http://192.0.2.1/a.png'> leaks.</p></body></html>"
    )
    index = open_corpus([docs], tmp_path / "home", embedder=HashingEmbedder())
    assert ids(index, "weir")[0] == "docs/page.html#0"


_FULL_DISK = """
import resource, sys
from pathlib import Path
from mia.embeddings.hashing import HashingEmbedder
from mia.errors import CorpusError
from mia.search.indexing import make_vectors, update_index

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    if sys.argv[1] == "passages":
        update_index(Path(sys.argv[2]), [sys.argv[3]])
    else:
        make_vectors(Path(sys.argv[2]), HashingEmbedder())
except CorpusError as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["passages", "vectors"])
def test_a_full_disk_is_said_and_harms_nothing(tmp_path: Path, corpus: Path, folder: Path, what: str) -> None:
    update_index(folder, [corpus])
    write_rows(corpus, [*ROWS, *many(20_000)])
    if what == "vectors":
        update_index(folder, [corpus])
    command = [sys.executable, "-c", _FULL_DISK, what, str(folder), str(corpus)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "cannot be written" in said
    assert "make room on the disk" in said
    assert ids(CorpusIndex.open(folder), "lighthouse")[0] == "light"
    assert update_index(folder, [corpus]).passages == 20_007
    assert make_vectors(folder, HashingEmbedder()).present == 20_007


# ── vectors ──


def test_vectors_are_made_once_for_each_text(corpus: Path, folder: Path) -> None:
    update_index(folder, [corpus])
    embedder = CountingEmbedder()
    seen: list[Progress] = []
    report = make_vectors(folder, embedder, on_progress=seen.append)
    assert (report.made, report.present, report.total) == (7, 7, 7)
    assert sorted(embedder.texts) == sorted(f"{title}. {text}" for _, title, text in ROWS)
    assert seen[-1] == Progress("vectors", 7, 7)

    write_rows(corpus, [*ROWS[1:], ("new", "Weir", "It leaks."), ("copy", *ROWS[1][1:])])
    update_index(folder, [corpus])
    embedder.texts.clear()
    assert make_vectors(folder, embedder).made == 1
    assert embedder.texts == ["Weir. It leaks."]
    index = CorpusIndex.open(folder, embedder)
    assert index.with_vectors == index.passages == 8
    assert set(ids(index, "lighthouse built by engineer Ada Brook", 2)) == {"light", "copy"}


def test_making_vectors_can_be_stopped_and_taken_up(tmp_path: Path, folder: Path) -> None:
    update_index(folder, [write_rows(tmp_path / "rows.jsonl", many(1000))])

    class Stopping(CountingEmbedder):
        def embed(self, texts: Sequence[str]) -> Vectors:
            if len(self.texts) > 300:
                raise KeyboardInterrupt
            return super().embed(texts)

    stopped = Stopping()
    with pytest.raises(KeyboardInterrupt):
        make_vectors(folder, stopped)
    done = len(stopped.texts)
    assert 300 < done < 1000
    index = CorpusIndex.open(folder, HashingEmbedder())
    assert index.with_vectors == done
    assert f"{done} of 1,000 passages" in index.notice
    # Both are found: one by both sides, one by its words alone.
    assert "vector_rank" in find(index, "row number 3", 1)[0].parts
    last = find(index, "row number 999", 1)[0]
    assert last.id == "row-999"
    assert "vector_rank" not in last.parts
    rest = CountingEmbedder()
    assert make_vectors(folder, rest).made == len(rest.texts) == 1000 - done


def test_kill_while_vectors_are_made_keeps_those_made(tmp_path: Path, folder: Path) -> None:
    update_index(folder, [write_rows(tmp_path / "rows.jsonl", many(3000))])
    code = (
        "import sys, time; from pathlib import Path; from mia.search.indexing import make_vectors;"
        "from mia.embeddings.hashing import HashingEmbedder\n"
        "def slow(progress):\n"
        "    if progress.done >= 400: print('under way', flush=True); time.sleep(60)\n"
        "make_vectors(Path(sys.argv[1]), HashingEmbedder(), on_progress=slow)"
    )
    with under_way(code, str(folder)):
        # Searching works meanwhile, also for what has no vector yet.
        assert ids(CorpusIndex.open(folder, HashingEmbedder()), "number 2999", 1) == ["row-2999"]
        with pytest.raises(CorpusError, match="another process"):
            make_vectors(folder, HashingEmbedder())
    report = make_vectors(folder, HashingEmbedder())
    assert report.present == 3000
    assert report.made <= 2600


def test_a_time_limit_leaves_the_rest_for_later(tmp_path: Path) -> None:
    class Slow(CountingEmbedder):
        def embed(self, texts: Sequence[str]) -> Vectors:
            time.sleep(0.02)
            return super().embed(texts)

    path = write_rows(tmp_path / "rows.jsonl", many(500))
    index = open_corpus([path], tmp_path, embedder=Slow(), vector_seconds=0.01)
    assert 0 < index.with_vectors < 500
    assert open_corpus([path], tmp_path, embedder=Slow(), vector_seconds=None).with_vectors == 500


def test_vectors_of_another_space_are_never_compared(corpus: Path, folder: Path) -> None:
    update_index(folder, [corpus])
    assert "no vectors yet" in CorpusIndex.open(folder, HashingEmbedder()).notice
    make_vectors(folder, HashingEmbedder())
    index = CorpusIndex.open(folder, OtherEmbedder())
    assert index.with_vectors == 0
    assert "'hashing/1/384'" in index.notice
    assert "'other/1'" in index.notice
    assert all("vector_rank" not in passage.parts for passage in find(index, "lighthouse"))
    make_vectors(folder, OtherEmbedder())
    for embedder in (HashingEmbedder(), OtherEmbedder()):
        assert CorpusIndex.open(folder, embedder).with_vectors == len(ROWS)


def test_vectors_of_passages_that_are_gone_do_no_harm(corpus: Path, folder: Path) -> None:
    update_index(folder, [corpus])
    make_vectors(folder, HashingEmbedder())
    write_rows(corpus, many(20))
    update_index(folder, [corpus])
    index = CorpusIndex.open(folder, HashingEmbedder())
    assert "0 of 20 passages" in index.notice
    assert ids(index, "row number 7", 1) == ["row-7"]
    make_vectors(folder, HashingEmbedder())
    # Those that are gone are kept for a while, and forgotten when they outnumber the others.
    assert vector_cache(folder).counts() == {"hashing/1/384": 27}
    write_rows(corpus, ROWS[:3])
    update_index(folder, [corpus])
    assert make_vectors(folder, HashingEmbedder()).made == 0
    write_rows(corpus, [*ROWS[:3], ("new", "", "text")])
    update_index(folder, [corpus])
    make_vectors(folder, HashingEmbedder())
    assert vector_cache(folder).counts() == {"hashing/1/384": 4}


def test_vectors_find_what_words_do_not(corpus: Path, folder: Path) -> None:
    update_index(folder, [corpus])
    make_vectors(folder, HashingEmbedder())
    assert ids(CorpusIndex.open(folder), "lighthousekeeping") == []
    (first, *_) = find(CorpusIndex.open(folder, HashingEmbedder()), "lighthousekeeping")
    assert first.id == "light"
    assert "lexical_rank" not in first.parts


def test_an_embedder_that_fails_is_a_failed_search(corpus: Path, folder: Path) -> None:
    update_index(folder, [corpus])
    make_vectors(folder, HashingEmbedder())

    class Down(HashingEmbedder):
        def embed(self, texts: Sequence[str]) -> Vectors:
            raise ModelUnavailable("the endpoint is down.")

    with pytest.raises(ToolError, match="the endpoint is down"):
        find(CorpusIndex.open(folder, Down()), "lighthouse")


def test_broken_vectors_are_said_to_be_replaceable(corpus: Path, folder: Path) -> None:
    update_index(folder, [corpus])
    (folder / "vectors.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(CorpusError, match=r"remove vectors\.db"):
        CorpusIndex.open(folder, HashingEmbedder())
    assert ids(CorpusIndex.open(folder), "lighthouse")[0] == "light"


# ── opening by path and by settings ──


def test_opening_again_reads_nothing_and_follows_changes(tmp_path: Path) -> None:
    docs = write_rows(tmp_path / "docs/rows.jsonl", many(3000)).parent
    os.utime(docs / "rows.jsonl", (1, 1))
    open_corpus([docs], tmp_path)
    # Unreadable now, so that reading it would be seen.
    content = (docs / "rows.jsonl").read_bytes()
    (docs / "rows.jsonl").write_bytes(b"x" * len(content))
    os.utime(docs / "rows.jsonl", (1, 1))
    assert open_corpus([docs], tmp_path).passages == 3000
    write_rows(docs / "rows.jsonl", ROWS)
    assert ids(open_corpus([docs], tmp_path), "lighthouse")[0] == "light"


def test_a_change_within_the_grain_of_the_clock_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for word in ("one", "two", "six"):
        path.write_text(word)
        now = time.time()
        os.utime(path, (now, now))
        assert ids(open_corpus([path], tmp_path), word) == ["a.txt#0"]


def test_the_settings_name_an_index_a_corpus_or_the_only_one_there_is(tmp_path: Path, corpus: Path) -> None:
    def config(**search: object) -> Config:
        return Config(home=tmp_path / "home", search=SearchSettings.model_validate({"vectors": "off", **search}))

    with pytest.raises(CorpusError, match="--corpus"):
        open_configured(config())
    assert open_configured(config(corpus=(str(corpus),))).passages == len(ROWS)
    assert open_configured(config()).folder == index_folder([corpus], tmp_path / "home")
    update_index(tmp_path / "mine", [write_rows(tmp_path / "other.jsonl", ROWS[:2])])
    assert open_configured(config(index=str(tmp_path / "mine"))).passages == 2
    open_configured(config(corpus=(str(tmp_path / "other.jsonl"),)))
    with pytest.raises(CorpusError, match="2 indexes"):
        open_configured(config())


def test_without_its_embedder_an_index_is_still_searched_by_words(tmp_path: Path, corpus: Path) -> None:
    update_index(tmp_path / "mine", [corpus])
    make_vectors(tmp_path / "mine", HashingEmbedder())
    opened = open_configured(Config(search=SearchSettings(index=str(tmp_path / "mine"))))
    assert opened.with_vectors == len(ROWS), "the embedder that made the vectors is found by their space"


def test_half_precision_on_disk_loses_no_order_that_matters(tmp_path: Path, folder: Path) -> None:
    update_index(folder, [write_rows(tmp_path / "rows.jsonl", many(300))])
    make_vectors(folder, HashingEmbedder())
    exact = HashingEmbedder().embed([text for _, _, text in many(300)])
    query = "row number 123"
    scores = exact @ HashingEmbedder().embed([query])[0]
    hits = [hit for hit in find(CorpusIndex.open(folder, HashingEmbedder()), query, 50) if "vector_score" in hit.parts]
    assert len(hits) > 20
    for hit in hits:
        assert hit.parts["vector_score"] == pytest.approx(scores[int(hit.id.removeprefix("row-"))], abs=2e-3)
    assert numpy.argmax(scores) == 123
