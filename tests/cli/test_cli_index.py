"""`mia index` and `mia search`: documents in, hits out, results apart from notes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from mia.cli.index import index
from mia.cli.options import Shared
from mia.cli.search import search
from mia.errors import CorpusError

app = typer.Typer()
app.command()(index)
app.command()(search)


class Program:
    """Runs `mia index` and `mia search` with a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *arguments: str) -> Result:
        result = CliRunner().invoke(app, arguments, obj=Shared(config_file=None, home=self.home))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result


@pytest.fixture
def mia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("MIA_SEARCH__VECTORS", "off")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/tides.md").write_text("# Tides\n\nThe tide turns at six.\n\n# Moon\n\nThe moon \x1b[31mpulls.")
    (tmp_path / "docs/photo.png").write_bytes(b"\x89PNG")
    return Program(tmp_path / "home")


def test_index_prints_its_folder_and_notes_the_rest_on_stderr(mia: Program) -> None:
    result = mia("index", "docs")
    folder = Path(result.stdout.strip())
    assert folder.parent == mia.home / "indexes"
    assert "2 from 1 files (2 added, 0 removed)" in result.stderr
    assert "docs/photo.png: '.png' is not a kind of file that is read" in result.stderr
    assert "no change" in mia("index", "docs").stderr


def test_index_as_json_with_a_folder_of_my_own(mia: Program, tmp_path: Path) -> None:
    page = json.loads(mia("index", "docs", "--out", "mine", "--json").stdout)
    assert (page["index"], page["passages"], page["files"], page["vectors"]) == ("mine", 2, 1, None)
    assert [skipped["key"] for skipped in page["skipped"]] == ["docs/photo.png"]
    hits = json.loads(mia("search", "tide", "--index", "mine", "--json").stdout)["hits"]
    assert [hit["id"] for hit in hits] == ["docs/tides.md#0"]
    assert hits[0]["parts"]["lexical_rank"] == 1


def test_search_indexes_a_corpus_on_first_use_and_then_finds_the_only_index(mia: Program) -> None:
    for arguments in (("--corpus", "docs"), ()):
        result = mia("search", "When does the tide turn?", "-k", "1", *arguments)
        assert result.stdout.startswith("1. Tides\n   docs/tides.md#0 · docs/tides.md · score 0.1667: words 1 (")
        assert "The tide turns at six." in result.stdout


def test_text_from_documents_cannot_drive_the_terminal(mia: Program) -> None:
    assert "\x1b" not in mia("search", "moon", "--corpus", "docs").stdout


def test_nothing_found_is_an_empty_result(mia: Program) -> None:
    result = mia("search", "zeppelin", "--corpus", "docs")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "Nothing found" in result.stderr


def test_a_wrong_corpus_is_an_error(mia: Program) -> None:
    with pytest.raises(CorpusError, match="nothing to index"):
        mia("index", "missing")
    with pytest.raises(CorpusError, match="--corpus"):
        mia("search", "tide")


def test_vectors_are_made_where_they_are_asked_for(
    mia: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mia.embeddings import static

    model2vec = pytest.importorskip("model2vec", reason="needs the extra 'local'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _save_small_model(model2vec, static.cache_folder() / "static-minilm-l6-v2-256")
    result = mia("index", "docs", "--vectors", "static")
    assert "2 made, 2 of 2 there" in result.stderr
    monkeypatch.delenv("MIA_SEARCH__VECTORS")
    hits = json.loads(mia("search", "tide", "--json").stdout)["hits"]
    assert hits[0]["parts"]["vector_rank"] == 1


def _save_small_model(model2vec: object, folder: Path) -> None:
    """In the place of the distilled one, which takes half a minute to make."""
    import numpy
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "tide": 1, "moon": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    vectors = numpy.array([[0, 0], [1, 0], [0, 1]], dtype=numpy.float32)
    folder.mkdir(parents=True)
    model2vec.StaticModel(vectors, tokenizer, normalize=True).save_pretrained(str(folder))  # type: ignore[attr-defined]
