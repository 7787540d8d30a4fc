"""Static vectors: a small model of our own for the embedder, the real distillation among the slow tests."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest

from mia.embeddings.static import StaticEmbedder
from mia.errors import ConfigError, ModelRefused

model2vec = pytest.importorskip("model2vec", reason="needs the extra 'local'")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model that knows three words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "red": 1, "crimson": 2, "seven": 3}, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    vectors = numpy.array([[0, 0, 0], [1, 0.1, 0], [0.9, 0.2, 0], [0, 0, 2]], dtype=numpy.float32)
    model2vec.StaticModel(vectors, tokenizer, normalize=True).save_pretrained(str(tmp_path / "three-words"))
    return tmp_path / "three-words"


def test_texts_are_averaged_to_unit_length(folder: Path) -> None:
    embedder = StaticEmbedder(folder)
    vectors = embedder.embed(["red", "Crimson red", "seven", "", "half a pair \ud800"])
    assert vectors.shape == (5, embedder.dimension)
    assert vectors.dtype == numpy.float32
    assert numpy.linalg.norm(vectors[:3], axis=1) == pytest.approx(1.0)
    assert vectors[0] @ vectors[1] > 0.99
    assert abs(vectors[0] @ vectors[2]) < 0.01
    assert not vectors[3].any()
    assert embedder.embed([]).shape == (0, 3)


def test_the_space_follows_the_content_of_the_model(folder: Path) -> None:
    before = StaticEmbedder(folder).space
    assert StaticEmbedder(folder).space == before
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert StaticEmbedder(folder).space != before


def test_a_broken_model_is_refused_with_the_cure(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelRefused, match="remove the folder"):
        StaticEmbedder(folder).embed(["red"])


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    embedder = StaticEmbedder()
    assert not embedder.ready
    with pytest.raises(ConfigError, match="XDG_CACHE_HOME"):
        embedder.embed(["red"])


@pytest.mark.slow
def test_distilling_needs_no_network_and_is_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("distilling must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts = ["How tall is the tower?", "What is the height of the building?", "I like green apples."]
    vectors = StaticEmbedder().embed(texts)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    assert capfd.readouterr() == ("", "")
    code = (
        "import sys; from mia.embeddings.static import StaticEmbedder; embedder = StaticEmbedder();"
        f"sys.stdout.buffer.write(embedder.embed({texts!r}).tobytes()); assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
    assert again.stdout == vectors.tobytes()
    assert [path.name for path in (tmp_path / "mia").iterdir()] == ["static-minilm-l6-v2-256"]


def test_threads_can_share_it(folder: Path) -> None:
    embedder = StaticEmbedder(folder)
    alone = embedder.embed(["red crimson seven " * 200])
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda _: embedder.embed(["red crimson seven " * 200]), range(400)))
    assert all(numpy.array_equal(vectors, alone) for vectors in together)


def test_a_cache_folder_that_cannot_be_written_is_found_before_it_is_needed(folder: Path, tmp_path: Path) -> None:
    assert StaticEmbedder(folder).possible
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    assert not StaticEmbedder(tmp_path / "locked" / "model").possible
