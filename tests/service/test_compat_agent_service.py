"""The agent service of test-time learning: plans that are executed, candidates that are evaluated and consolidated."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service_team import RIGHT, make_service, says
from shelf import call
from starlette.testclient import TestClient

from mia.errors import ModelUnavailable
from mia.models.base import ChatRequest
from mia.service.app import create_app
from mia.types import Memory, MemoryKind

QUESTION = "Where was the discoverer of Titan born?"
PLAN = "1. Look up Titan.\n2. Look up its discoverer."
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"0" * 16).decode()


class Served:
    def __init__(self, home: Path, answers: Any = says, **flags: Any) -> None:
        self.asked: list[ChatRequest] = []

        def heard(request: ChatRequest) -> Any:
            self.asked.append(request)
            return answers(request)

        self.service = make_service(home, answers=heard, **{"memory__floor": -1.0, **flags})
        self.client = TestClient(create_app(self.service), raise_server_exceptions=False)

    def post(self, path: str, body: Any, status: int = 200) -> Any:
        reply = self.client.post(path, json=body)
        assert reply.status_code == status, (path, reply.status_code, reply.text)
        return reply.json()

    def memories(self, kind: MemoryKind = MemoryKind.WORKFLOW) -> list[Memory]:
        return [one for one in self.service.store.list_memories(None, limit=100) if one.kind is kind]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    one = Served(tmp_path / "home")
    with one.client:
        yield one


def tried(judgement: str, *, calls: int = 1, plan: str = PLAN, **more: Any) -> dict[str, Any]:
    turns: list[dict[str, str]] = []
    for number in range(calls):
        turns += [
            {"role": "assistant", "content": call(f"word {number}")},
            {"role": "user", "content": "<tool_response>\nnothing found\n</tool_response>"},
        ]
    return {
        "data_id": "q-1",
        "slow_plan": "",
        "plan": plan,
        "question": QUESTION,
        "image_caption": "",
        "used_memory_indices": [],
        "temp_messages": [*turns, {"role": "assistant", "content": "<think>t</think><answer>The Hague</answer>"}],
        "judgement": judgement,
        **more,
    }


# ── execution ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("prefix", ["", "/agent-service"])
def test_a_plan_is_executed(served: Served, prefix: str) -> None:
    answer = served.post(f"{prefix}/plan", {"data_id": 7, "question": QUESTION, "plan": PLAN})
    assert "Call: shelf" in answer["trace"]
    assert "nothing found" in answer["trace"]
    assert answer["trace"].endswith(f"<answer>{RIGHT}</answer>")
    assert answer["trace"].partition("\n\n<answer>")[0] in answer["prompt"]
    assert "yes" in answer["prompt"]
    assert "no" in answer["prompt"]
    assert [one["role"] for one in answer["history_messages"]] == ["assistant", "user", "assistant"]
    executed = [one for one in served.asked if one.purpose == "execute"]
    assert len(executed) == 2
    assert PLAN in executed[0].messages[1].content
    assert QUESTION in executed[0].messages[1].content


def test_a_replan_goes_on_with_the_same_conversation(served: Served) -> None:
    body = {"data_id": "q-1", "question": QUESTION, "plan": PLAN}
    first = served.post("/plan", body)
    opening = next(one for one in served.asked if one.purpose == "execute").messages
    served.asked.clear()
    second = served.post("/replan", {**body, "replan": "1. Ask Huygens.", "messages": first["history_messages"]})
    asked = next(one for one in served.asked if one.purpose == "execute")
    assert asked.messages[: len(opening)] == opening
    told = [one.content for one in asked.messages[len(opening) :]]
    assert told[0] == first["history_messages"][0]["content"]
    assert "<answer>" not in told[2]
    assert "1. Ask Huygens." in told[-1]
    assert second["history_messages"][:2] == first["history_messages"][:2]
    # The trace is what came after the replan.
    assert second["trace"].endswith(f"<answer>{RIGHT}</answer>")
    assert len(second["history_messages"]) > len(first["history_messages"])
    again = served.post("/replan", {**body, "replan": "1. Ask Titan.", "messages": second["history_messages"]})
    assert again["history_messages"][: len(second["history_messages"]) - 1] == second["history_messages"][:-1]


def test_registered_images_go_to_the_executor_and_outlast_the_process(tmp_path: Path) -> None:
    home = tmp_path / "home"
    served = Served(home)
    with served.client:
        entries = [
            {"data_id": "q-1", "images": [PNG]},
            {"data_id": 2, "images": None},
            {"data_id": "q-3", "images": [f"data:image/png;base64,{PNG}"]},
        ]
        answer = served.post("/streaming/register_images", {"entries": entries})
        assert answer == {"status": "ok", "registered": 3, "total_data_ids": 3}
        answer = served.post("/streaming/register_images", {"data_id": "q-4", "images": [{"bytes": PNG}]})
        assert answer == {"status": "ok", "registered": 1, "total_data_ids": 4}
    served = Served(home)
    with served.client:
        assert served.client.get("/streaming/health").json()["total_data_ids"] == 4
        served.post("/plan", {"data_id": "q-1", "question": QUESTION, "plan": PLAN})
        (image,) = served.asked[0].messages[1].images
        assert image.data == PNG
        served.asked.clear()
        served.post("/plan", {"data_id": "q-5", "question": QUESTION, "plan": PLAN})
        assert not served.asked[0].messages[1].images


def test_a_model_that_is_down_is_a_503(tmp_path: Path) -> None:
    served = Served(tmp_path, lambda request: ModelUnavailable("the endpoint is down."))
    with served.client:
        served.post("/plan", {"data_id": "q", "question": QUESTION, "plan": PLAN}, 503)
        served.post("/plan", [{"data_id": "q", "question": QUESTION}], 503)
        # Recall goes on.
        assert served.post("/memory", {"data_id": "q", "question": QUESTION}) == {"prompt": "", "indices": []}


# ── candidates ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_candidates_are_evaluated_and_consolidated(served: Served, tmp_path: Path) -> None:
    served.post("/memory_bank_save", tried("correct", data_id="old", question="Who found Titan?"))
    assert served.post("/consolidate_memories", []) == {
        "status": "success",
        "saved_positives": 1,
        "saved_negatives": 0,
    }
    (old,) = served.memories()
    used = [old.id]
    served.post("/memory_bank_save", tried("correct", calls=3, plan="1. The long way.", used_memory_indices=used))
    served.post("/memory_bank_save", tried("correct", calls=1, plan="1. The short way."))
    served.post("/memory_bank_save", tried("incorrect", calls=2, plan="1. The wrong way, which is long."))
    assert served.memories() == [old]
    evaluated = served.post("/batch_evaluate", [])
    assert (evaluated["status"], evaluated["processed_count"]) == ("success", 1)
    assert "first 1" in evaluated["message"]
    assert "longest 0" in evaluated["message"]
    done = served.post("/consolidate_memories", [])
    assert done == {"status": "success", "saved_positives": 1, "saved_negatives": 1}
    made = {one.plan: one for one in served.memories() if one.id != old.id}
    assert {plan: one.judgement for plan, one in made.items()} == {
        "1. The short way.": "correct",
        "1. The wrong way, which is long.": "incorrect",
    }
    (pair,) = served.memories(MemoryKind.PLAN_PAIR)
    assert (pair.plan, pair.incorrect_plan) == ("1. The short way.", "1. The wrong way, which is long.")
    # Two of three were correct: the memory is credited once, by the majority.
    credited = served.service.store.memory(old.id)
    assert (credited.uses, credited.wins) == (2, 2)
    assert served.post("/consolidate_memories", [])["saved_positives"] == 0
    assert served.post("/batch_evaluate", [])["processed_count"] == 0
    # The empty list saves memory and evaluations.
    assert served.post("/save_memory", []) == {"status": "success"}
    exports = served.service.config.home / "exports"
    (page,) = map(json.loads, (exports / "evaluated.jsonl").read_text().splitlines())
    assert page["chosen"]["shortest"]["judgement"] == "correct"
    assert page["chosen"]["longest"]["judgement"] == "incorrect"
    assert (exports / "memory.jsonl").exists()


def test_a_tie_is_a_failure(served: Served) -> None:
    served.post("/memory_bank_save", tried("correct", data_id="old"))
    served.post("/consolidate_memories", [])
    (old,) = served.memories()
    for judgement in ("correct", "incorrect"):
        item = tried(judgement, question="Another one?", used_memory_indices=[old.id])
        served.post("/memory_bank_save", item)
    served.post("/consolidate_memories", [])
    credited = served.service.store.memory(old.id)
    assert (credited.uses, credited.wins) == (2, 1)


def test_the_unsupervised_form_keeps_reviews_and_no_plan_pair_and_no_truth(served: Served, tmp_path: Path) -> None:
    for correct in (True, False):
        item = tried("", calls=1 + correct, plan=f"1. Try {correct}.")
        del item["judgement"], item["slow_plan"]
        word = "correct" if correct else "incorrect"
        item |= {
            "model_answer": "The Hague",
            "ground_truth": "TOP-SECRET-TRUTH",
            "judgement_nogt": word,
            "judgement_data": {
                "is_correct": word,
                "raw_verdict": "A",
                "evaluator_1_feedback": "- Score: 8\n- Reason: It holds.",
                "evaluator_2_feedback": "Score: 3\nReason: No source.",
                "evaluator_3_feedback": "?",
            },
        }
        served.post("/memory_bank_save", item)
    evaluated = served.post("/batch_evaluate", [])
    assert "accepted 1" in evaluated["message"]
    assert served.post("/consolidate_memories", [])["saved_negatives"] == 1
    assert served.memories(MemoryKind.PLAN_PAIR) == []
    assert all(
        [(one.reviewer, one.score) for one in m.reviews] == [("reasoning", 8), ("sourcing", 3)]
        for m in served.memories()
    )
    served.client.get("/metrics")
    for path in served.service.config.home.rglob("*"):
        assert not path.is_file() or b"TOP-SECRET-TRUTH" not in path.read_bytes(), path
    assert "TOP-SECRET-TRUTH" not in repr(served.asked)


def test_candidates_outlast_the_process(tmp_path: Path) -> None:
    home = tmp_path / "home"
    served = Served(home)
    with served.client:
        served.post("/memory_bank_save", tried("correct"))
    served = Served(home)
    with served.client:
        assert served.client.get("/streaming/health").json()["memory_bank_keys"] == 1
        assert served.post("/consolidate_memories", [])["saved_positives"] == 1
        assert len(served.memories()) == 1


def test_like_tries_count_each(served: Served) -> None:
    served.post("/memory_bank_save", tried("correct", data_id="old"))
    served.post("/consolidate_memories", [])
    (old,) = served.memories()
    for judgement in ("correct", "correct", "incorrect", "incorrect", "incorrect"):
        served.post("/memory_bank_save", tried(judgement, question="Another?", used_memory_indices=[old.id]))
    served.post("/consolidate_memories", [])
    assert (served.service.store.memory(old.id).uses, served.service.store.memory(old.id).wins) == (2, 1)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/plan", {"question": "x", "plan": "y"}),
        ("/plan", {"data_id": "", "question": "x"}),
        ("/plan", {"data_id": "../x", "question": "x"}),
        ("/plan", {"data_id": [], "question": "x"}),
        ("/replan", {"data_id": "q", "question": "x", "plan": "y", "messages": [], "replan": ""}),
        (
            "/replan",
            {"data_id": "q", "question": "x", "replan": "y", "messages": [{"role": "assistant", "content": {}}]},
        ),
        ("/memory_bank_save", {"data_id": "q", "question": "x"}),
        ("/memory_bank_save", tried("correct", data_id="..")),
        ("/memory_bank_save", tried("correct", temp_messages=[{"role": "x", "content": "y"}])),
        ("/batch_evaluate", [1]),
        ("/consolidate_memories", "x"),
        ("/streaming/register_images", {"entries": [{"images": []}]}),
        ("/streaming/register_images", {"data_id": "q", "images": ["http://169.254.169.254/x"]}),
        ("/streaming/register_images", {"data_id": "q", "images": ["/etc/passwd"]}),
        ("/streaming/register_images", {"data_id": "q", "images": [5]}),
        ("/streaming/register_images", {"data_id": "../q", "images": []}),
        ("/streaming/register_images", {}),
    ],
)
def test_what_is_wrong_is_told_and_leaves_nothing(served: Served, path: str, body: Any) -> None:
    assert served.post(path, body, 422)["error"]["message"]
    health = served.client.get("/streaming/health").json()
    assert (health["total_data_ids"], health["memory_bank_keys"]) == (0, 0)
