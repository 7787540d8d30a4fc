"""Static vectors: one vector per word piece, distilled from MiniLM with model2vec, averaged over a text.

Far cheaper than MiniLM (thousands of passages a second on one thread) and far cruder: word order is gone. Distilling
takes about half a minute, happens on first use, and is kept in the user's cache folder; from then on neither torch nor
transformers is loaded. Nothing is downloaded.

The space carries the digest of the distilled file, because two machines may round differently.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from mia.embeddings.base import Vectors, unit_rows
from mia.embeddings.minilm import checked_minilm_folder, use_one_thread
from mia.errors import ConfigError, ModelRefused, require
from mia.models.weights import silenced

_DIMENSION = 256
_FOLDER = "static-minilm-l6-v2-256"


class StaticEmbedder:
    """Averaged word-piece vectors. Safe to use from several threads."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: a saved model2vec model; None: the one distilled from MiniLM, made now if there is none."""
        self._folder = folder or cache_folder() / _FOLDER
        self._distils = folder is None
        self._lock = threading.Lock()
        self._loaded: tuple[Any, str] | None = None

    @property
    def ready(self) -> bool:
        """False where the first use will distil."""
        return self._loaded is not None or not self._distils or (self._folder / "model.safetensors").is_file()

    @property
    def possible(self) -> bool:
        """False where it would have to distil and its cache folder cannot be written."""
        existing = next(path for path in (self._folder, *self._folder.absolute().parents) if path.exists())
        return self.ready or os.access(existing, os.W_OK)

    @property
    def space(self) -> str:
        model, digest = self._load()
        return f"static/{self._folder.name}/{digest[:12]}/{model.dim}"

    @property
    def dimension(self) -> int:
        return int(self._load()[0].dim)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Raises MissingExtra, ConfigError for a cache folder that cannot be written, ModelRefused for a broken one."""
        model, _ = self._load()
        if not texts:
            return numpy.zeros((0, model.dim), dtype=numpy.float32)
        cleaned = [text.encode("utf-8", "replace").decode() for text in texts]
        with self._lock:  # Its tokenizer cannot be used by two threads at once.
            vectors: Vectors = model.encode(cleaned, use_multiprocessing=False).astype(numpy.float32)
        return unit_rows(vectors)

    def _load(self) -> tuple[Any, str]:
        with self._lock:
            if self._loaded is None:
                if not self.ready:
                    distil(self._folder)
                self._loaded = _read(self._folder)
            return self._loaded


def cache_folder() -> Path:
    """Where what can be made again is kept, for all projects of a user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mia"


def distil(folder: Path) -> None:
    """Make static vectors from MiniLM and save them as `folder`, whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-", ignore_cleanup_errors=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write the cache folder '{folder.parent}': {error.strerror}.",
            wanted="a folder for the static vectors",
            hint="export XDG_CACHE_HOME=… (a folder that can be written), or MIA_SEARCH__VECTORS=off",
        ) from error
    with scratch as parent:
        unfinished = Path(parent) / "model"
        distilled = _distilled()
        try:
            distilled.save_pretrained(str(unfinished))
            unfinished.rename(folder)
        except OSError as error:
            if not folder.exists():  # Otherwise another process was faster.
                raise ConfigError(f"cannot write '{folder}': {error.strerror}.") from error


def _distilled() -> Any:
    inference: Any = require("model2vec.distill.inference", extra="local", purpose="static vectors")
    distillation = require("model2vec.distill", extra="local", purpose="static vectors")
    transformers = require("transformers", extra="local", purpose="static vectors")
    folder = checked_minilm_folder()
    use_one_thread(require("torch", extra="local", purpose="static vectors"))
    with silenced(transformers):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    bar = inference.tqdm
    try:
        # model2vec offers no other way to keep its own progress bar off our stderr.
        inference.tqdm = functools.partial(bar, disable=True)
        return distillation.distill_from_model(model, tokenizer, device="cpu", pca_dims=_DIMENSION)
    finally:
        inference.tqdm = bar


def _read(folder: Path) -> tuple[Any, str]:
    model2vec = require("model2vec", extra="local", purpose="static vectors")
    safetensors = require("safetensors", extra="local", purpose="static vectors")
    try:
        with (folder / "model.safetensors").open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        return model2vec.StaticModel.from_pretrained(str(folder)), digest
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise ModelRefused(
            f"the static vectors in '{folder}' cannot be read ({error}).",
            wanted="a model that model2vec saved",
            hint=f"remove the folder {folder}; it is made anew on first use",
        ) from error
