"""The stand-in embedder: the same everywhere, and near for texts that share words."""

import subprocess
import sys

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mia.embeddings.hashing import HashingEmbedder

TEXTS = ["Who directed the film Ed Wood?", "the film Ed Wood was directed by Tim Burton", "gross domestic product"]


def test_rows_have_unit_length_and_the_promised_shape() -> None:
    embedder = HashingEmbedder()
    vectors = embedder.embed(TEXTS)
    assert vectors.shape == (3, embedder.dimension)
    assert vectors.dtype == numpy.float32
    assert numpy.linalg.norm(vectors, axis=1) == pytest.approx(1.0)


def test_shared_words_bring_texts_near() -> None:
    near, far = (HashingEmbedder().embed(TEXTS) @ HashingEmbedder().embed(TEXTS).T)[0, 1:]
    assert near > 0.4 > 0.2 > far


def test_inflected_words_are_nearer_than_others() -> None:
    vectors = HashingEmbedder().embed(["directors", "directed", "pineapple"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1


def test_a_text_without_words_is_a_zero_row() -> None:
    assert not HashingEmbedder().embed(["", " ?! "]).any()
    assert HashingEmbedder().embed([]).shape == (0, 384)


def test_another_process_gives_the_same_vectors() -> None:
    code = (
        "import sys; from mia.embeddings.hashing import HashingEmbedder;"
        f"sys.stdout.buffer.write(HashingEmbedder().embed({TEXTS!r}).tobytes())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert other.stdout == HashingEmbedder().embed(TEXTS).tobytes()


@given(st.lists(st.text(st.characters(codec=None)), max_size=4))
def test_any_text_can_be_embedded(texts: list[str]) -> None:
    lengths = numpy.linalg.norm(HashingEmbedder().embed(texts), axis=1)
    assert all(length == pytest.approx(1.0, abs=1e-4) or length == 0 for length in lengths)
