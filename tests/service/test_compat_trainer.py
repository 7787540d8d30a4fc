"""The streaming trainer: columns as its client collates them, and a learner that answers and learns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from embedded_team import needs_embedded_model
from embedded_team import settings as embedded_settings
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from mia.errors import RecordError
from mia.service.app import create_app
from mia.service.compat.columns import read_columns
from mia.service.core import Service
from mia.world.facts import World
from mia.world.questions import tasks


def tensor(data: list[Any], dtype: str = "int64") -> dict[str, Any]:
    return {"__tensor__": True, "dtype": dtype, "data": data}


def array(data: list[Any], dtype: str = "int64") -> dict[str, Any]:
    return {"__ndarray_numpy__": True, "dtype": dtype, "data": data}


def objects(data: list[Any]) -> dict[str, Any]:
    return {"__ndarray_object__": True, "data": data}


def collated(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """As the reference's client sends samples: token columns, and what they say of themselves."""
    count = len(samples)
    return {
        "input_ids": tensor([[0, 0, 5, 6]] * count),
        "attention_mask": tensor([[0, 0, 1, 1]] * count),
        "position_ids": tensor([[0, 0, 0, 1]] * count),
        "raw_prompt_ids": objects([[5, 6]] * count),
        "raw_prompt": [[{"role": "user", "content": "…"}]] * count,
        "index": array(list(range(count))),
        "data_source": objects(["hotpot"] * count),
        "reward_model": objects([{"ground_truth": "", "style": "rule"}] * count),
        "extra_info": objects(samples),
    }


# ── columns ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_three_encodings_and_lists_are_read() -> None:
    columns = read_columns(collated([{"question": "a"}, {"question": "b"}]))
    assert columns["extra_info"] == [{"question": "a"}, {"question": "b"}]
    assert columns["input_ids"] == [[0, 0, 5, 6]] * 2
    assert columns["index"] == [0, 1]
    assert {len(column) for column in columns.values()} == {2}


@pytest.mark.parametrize(
    "column",
    [
        "text",
        5,
        None,
        {},
        {"data": [1, 2]},
        {"__tensor__": True, "data": [1, 2]},
        {"__tensor__": "yes", "dtype": "int64", "data": [1, 2]},
        tensor([1, 2], "complex"),
        tensor([1, 2], "object"),
        tensor([[1], [2, 3]]),
        tensor([1.5, 2]),
        tensor(["1", "2"]),
        tensor([None, None], "float32"),
        tensor([2**70, 1]),
        tensor([2**31, 1], "int32"),
        tensor([-1, 1], "uint8"),
        tensor([1, 0], "bool"),
        tensor([{}, {}]),
        array([True, "x"], "bool"),
        tensor([1, 2, 3]),
        tensor([]),
    ],
)
def test_data_that_do_not_match_are_refused(column: Any) -> None:
    with pytest.raises(RecordError):
        read_columns({"extra_info": [{"question": "a"}, {"question": "b"}], "odd": column})


def test_a_deep_column_is_refused() -> None:
    deep: list[Any] = [1]
    for _ in range(500):
        deep = [deep]
    with pytest.raises(RecordError, match="odd"):
        read_columns({"odd": tensor(deep)})


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.builds(tensor, st.lists(inner, max_size=3), st.sampled_from(["int64", "float32", "bool", "?"]))
            ),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_any_batch_is_read_or_refused(batch: dict[str, Any]) -> None:
    try:
        columns = read_columns(batch)
    except RecordError:
        return
    assert len({len(column) for column in columns.values()}) == 1


# ── without a learner ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_server_that_does_not_learn_says_so(client: TestClient) -> None:
    sample = {"rollout": collated([{"question": "x", "data_id": "q"}]), "epoch": 0}
    for path, body in (
        ("/submit_sample", sample),
        ("/trainer/submit_sample", sample),
        ("/submit_batch", {"batch": sample["rollout"]}),
        ("/save_checkpoint", None),
    ):
        reply = client.post(path, json=body)
        assert reply.status_code == 409, reply.text
        assert "mia serve --learn" in reply.json()["error"]["hint"]
    health = client.get("/health").json()
    assert health == {
        "status": "ok",
        "registered_gts": 0,
        "global_steps": 1,
        "total_training_steps": None,
        "train_batch_size": 32,
        "rollout_n": 4,
        "rollout_buffer_samples": 0,
        "rollout_buffer_len": 0,
    }
    assert client.get("/trainer/health").json() == health


# ── with one ──────────────────────────────────────────────────────────────────────────────────────────────────────


def learning_service(home: Path, **flags: Any) -> Service:
    return Service(
        embedded_settings(
            home,
            **{
                "learn__enabled": True,
                "learn__batch": 2,
                "learn__samples": 2,
                "learn__canary": 0,
                "learn__report": "first",
                "learn__temperature": 1.5,
                "judge__kind": "reference",
                **flags,
            },
        )
    )


@pytest.fixture
def learning(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(learning_service(tmp_path, learn__into="memory"))) as client:
        yield client


def asked(client: TestClient, count: int, *, first: int = 0) -> list[dict[str, Any]]:
    """Samples, whose answers are registered."""
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    world = World.make(service.config.search.world)
    chosen = tasks(world, first + count)[first:]
    entries = [{"data_id": one.question.id, "ground_truth": list(one.references)} for one in chosen]
    assert client.post("/register_gts", json={"entries": entries}).status_code == 200
    return [{"question": one.question.text, "data_id": one.question.id, "modality": "text-only"} for one in chosen]


@needs_embedded_model
def test_samples_are_answered_and_remembered(learning: TestClient) -> None:
    samples = asked(learning, 2)
    body = {"rollout": collated(samples[:1]), "epoch": 3, "finish": False, "flush_partial": False}
    answer = learning.post("/submit_sample", json=body).json()
    assert answer == {"status": "rollout", "global_steps": 1, "rollout_buffer_len": 0, "epoch": 3}
    service: Service = learning.app.state.service  # type: ignore[attr-defined]
    (score,) = service.learner.scores  # type: ignore[union-attr]
    assert score.question_id == samples[0]["data_id"]
    assert len(score.tries) == 2
    assert None not in score.tries
    assert service.store.count_memories() >= 1
    # No ground truth is in what was written, beside the registry.
    checkpoint = learning.post("/save_checkpoint")
    assert checkpoint.status_code == 400
    assert checkpoint.json()["ok"] is False

    for broken, status in (
        (collated([{"question": "Unregistered?", "data_id": "nobody"}]), 422),
        (collated([{"data_id": "q"}]), 422),
        (collated(["text"]), 422),  # type: ignore[list-item]
        ({"input_ids": tensor([[1]])}, 422),
        ({**collated(samples[1:]), "input_ids": tensor([[1], [2]])}, 422),
        (collated([{**samples[1], "data_id": "../../x"}]), 422),
        ({}, 422),
    ):
        reply = learning.post("/submit_sample", json={"rollout": broken})
        assert reply.status_code == status, reply.text
    for body in ({}, {"rollout": []}, {"rollout": {}, "epoch": "many"}, []):  # type: ignore[assignment]
        assert learning.post("/submit_sample", json=body).status_code == 422
    assert len(service.learner.scores) == 1  # type: ignore[union-attr]
    learning.headers["X-MIA-Scope"] = "other"
    assert learning.post("/submit_sample", json={"rollout": collated(samples[1:])}).status_code == 409


@needs_embedded_model
@pytest.mark.slow
def test_a_full_batch_moves_the_version(tmp_path: Path) -> None:
    """With the real training of the embedded model, in its own process."""
    with TestClient(create_app(learning_service(tmp_path))) as client:
        client.headers["X-Request-ID"] = "r-1"
        steps = 1
        for first in range(0, 12, 2):
            samples = asked(client, 2, first=first)
            one = client.post("/submit_sample", json={"rollout": collated(samples[:1]), "epoch": 0}).json()
            two = client.post(
                "/submit_sample", json={"rollout": collated(samples[1:]), "epoch": 0, "flush_partial": True}
            )
            assert one["status"] in ("rollout", "step"), one
            assert two.status_code == 200, two.text
            answer = two.json()
            if answer["status"] == "step":
                steps = answer["global_steps"]
                break
        assert steps == 2, "no group of tries differed in reward"
        assert answer["done"] is False
        assert answer["metrics"]["updates"] >= 1
        assert all(isinstance(value, float) for value in answer["metrics"].values())
        service: Service = client.app.state.service  # type: ignore[attr-defined]
        assert service.learner is not None
        assert service.adapters is not None
        version = service.learner.version
        assert version
        assert service.adapters.current().name == version
        checkpoint = client.post("/save_checkpoint")
        assert checkpoint.json() == {
            "ok": True,
            "checkpoint_global_step": 1,
            "global_steps": 2,
            "version": version,
        }
        assert client.get("/health").json()["global_steps"] == 2
        truths = [one.references[0] for one in tasks(World.make(service.config.search.world), 2)]
    lines = [json.loads(line) for line in (tmp_path / "learning" / "scores.jsonl").read_text().splitlines()]
    assert truths
    assert not any("references" in line for line in lines)
    with TestClient(create_app(learning_service(tmp_path))) as client:
        assert client.get("/health").json()["global_steps"] == 2
        assert client.post("/save_checkpoint").json()["version"] == version
