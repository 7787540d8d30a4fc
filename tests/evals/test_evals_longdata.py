"""Training samples: N documents each, and none that a model answers without them."""

from __future__ import annotations

from pathlib import Path

import pytest
from long_texts import hotpot_file

from mia.errors import ConfigError, ModelReplyError, ModelUnavailable, RecordError
from mia.evals.longdata import Filter, build, read_samples
from mia.evals.ruler.documents import Corpus, read_corpus
from mia.models.base import ChatRequest
from mia.models.scripted import ScriptedModel


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return read_corpus(hotpot_file(tmp_path))


def knows(*numbers: int, on_try: int | None = None) -> ScriptedModel:
    """Right about the births of these films, in every try or in one."""

    def answer(request: ChatRequest) -> str:
        content = request.messages[-1].content
        right = [number for number in numbers if f"film {number} born" in content]
        if right and on_try in (None, request.seed):
            return f"<think>town0ville</think>The answer is the town{right[0]}ville."
        return "The answer is Elsewhere."

    return ScriptedModel(answer, name=f"knows {numbers}")


async def test_samples_hold_so_many_documents(corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "samples.jsonl"
    built = await build(corpus, out, documents=40)
    samples = read_samples(out)
    assert (built.kept, built.known, len(samples)) == (12, 0, 12)
    for sample, asked in zip(samples, corpus.questions, strict=True):
        assert (sample.id, sample.answers) == (asked.id, asked.answers)
        assert sample.text.count("Document ") == 40
        assert all(sample.text.count(f"\n{own.title}\n") == 1 for own in asked.own)
    again = tmp_path / "again.jsonl"
    await build(corpus, again, documents=40)
    assert again.read_bytes() == out.read_bytes()


async def test_any_right_try_of_any_model_leaves_a_question_out(corpus: Corpus, tmp_path: Path) -> None:
    models = [knows(1), knows(1, 4), knows(7, on_try=2)]
    built = await build(corpus, tmp_path / "out.jsonl", documents=20, only=Filter(models, tries=3))
    assert {sample.id for sample in read_samples(tmp_path / "out.jsonl")} == {
        f"q{number}" for number in range(12) if number not in (1, 4, 7)
    }
    assert (built.kept, built.known) == (9, 3)
    # Each model makes all tries for a question that no earlier one knows, and none of the text is shown.
    assert [len(model.requests) for model in models] == [36, 33, 30]
    assert not any("Document" in request.messages[0].content for model in models for request in model.requests)
    assert {request.temperature for request in models[0].requests} == {1.0}


async def test_a_reply_that_cannot_be_used_is_a_wrong_one(corpus: Corpus, tmp_path: Path) -> None:
    torn = ScriptedModel(lambda request: ModelReplyError("empty"))
    assert (await build(corpus, tmp_path / "out.jsonl", documents=20, only=Filter([torn]))).kept == 12


async def test_a_stop_goes_on_where_it_was(corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    calls = 0

    def breaks(request: ChatRequest) -> str | Exception:
        nonlocal calls
        calls += 1
        return ModelUnavailable("down") if calls > 11 else "The answer is Elsewhere."

    only = Filter([ScriptedModel(breaks, name="m")])
    with pytest.raises(ModelUnavailable):
        await build(corpus, out, documents=20, only=only, concurrency=2)
    assert len(read_samples(out)) == 4
    out.write_bytes(out.read_bytes() + b'{"id": "torn')
    model = ScriptedModel(lambda request: "The answer is Elsewhere.", name="m")
    built = await build(corpus, out, documents=20, only=Filter([model]), concurrency=2)
    assert built.kept == 12
    assert len(model.requests) == 16
    whole = tmp_path / "whole.jsonl"
    await build(corpus, whole, documents=20, only=Filter([model]))
    assert whole.read_bytes() == out.read_bytes()


async def test_limits_and_other_settings(corpus: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert (await build(corpus, out, documents=20, limit=3)).kept == 3
    assert (await build(corpus, out, documents=20, limit=5)).kept == 5
    with pytest.raises(ConfigError, match="begun with other"):
        await build(corpus, out, documents=21)
    with pytest.raises(ConfigError, match="different ones"):
        await build(corpus, tmp_path / "many.jsonl", documents=200)
    out.write_text('{"long_data": 1}\n{"id": 3}\n', encoding="utf-8")
    with pytest.raises(RecordError, match="line 2"):
        read_samples(out)
