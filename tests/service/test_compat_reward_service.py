"""The reward service: numbers worked by hand, and ground truths that reach the judge alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from service_team import make_service, says
from starlette.testclient import TestClient

from mia.errors import ModelUnavailable
from mia.service.app import create_app

TRUTH = "The Hague"
RIGHT = "Round 1\nReasoning: t\n\n<answer>The Hague</answer>"
WRONG = "### Round 1:\n<think>t</think><answer>Leiden</answer>"


def register(client: TestClient) -> None:
    body = {"entries": [{"data_id": "q-1", "ground_truth": TRUTH}, {"data_id": 2, "ground_truth": ["Delft", "X"]}]}
    assert client.post("/register_gts", json=body).json() == {"status": "ok", "registered": 2, "total": 2}


def reward(client: TestClient, messages: list[str], **more: Any) -> Any:
    extra = {"data_id": "q-1", "question": "Where?", "messages": messages, "data_source": "x"}
    reply = client.post("/compute_gt_reward", json={"data_source": "hotpot", "extra_info": {**extra, **more}})
    assert reply.status_code == 200, reply.text
    return reply.json()


THINK = "<think>t</think>"
CASES = [
    # messages, score, format, decision, first, final
    ([f"{THINK}plan", RIGHT, f"{THINK}no<|im_end|>"], 0.7 + 0.2 + 0.05 + 0.05, 1, 1, True, True),
    ([f"{THINK}plan", WRONG, f"{THINK}no"], 0.05, 1, 0, False, False),
    ([f"{THINK}plan", WRONG, f"{THINK}yes", "again?", f"{THINK}more", RIGHT], 0.7 + 0.05 + 0.05, 1, 1, False, True),
    ([f"{THINK}plan", RIGHT, f"{THINK}Yes", "again?", f"{THINK}more", WRONG], 0.2 + 0.05, 1, 0, True, False),
    ([f"{THINK}plan", WRONG, f"{THINK}yes", "again?", "<think>more", RIGHT], 0.7 + 0.05, 0, 1, False, True),
    # Anything but the one word is no decision.
    ([f"{THINK}plan", RIGHT, f"{THINK}no, it is fine"], 0.7 + 0.2, 0, 0, True, True),
    # Whoever says yes and does not replan has not finished.
    ([f"{THINK}plan", WRONG, f"{THINK}yes"], 0.0, 1, 1, False, False),
    (["plan", "the Hague", "no"], 1.0, 1, 1, True, True),
]


@pytest.mark.parametrize(("messages", "score", "form", "decision", "first", "final"), CASES)
def test_the_reward_is_the_planners(
    client: TestClient, messages: list[str], score: float, form: float, decision: float, first: bool, final: bool
) -> None:
    register(client)
    answer = reward(client, messages)
    assert answer["score"] == pytest.approx(score)
    assert (answer["format_score"], answer["decision_score"]) == (form, decision)
    assert (answer["is_answer1_correct"], answer["is_answer2_correct"]) == (first, final)
    assert answer["judgement"] == ("correct" if final else "incorrect")
    assert (answer["data_source"], answer["data_id"]) == ("hotpot", "q-1")


def test_the_first_of_a_list_counts(client: TestClient) -> None:
    register(client)
    trace = "<answer>Delft</answer>"
    assert reward(client, ["plan", trace, "no"], data_id=2)["score"] == pytest.approx(1.0)
    assert reward(client, ["plan", "<answer>X</answer>", "no"], data_id=2)["judgement"] == "incorrect"


def test_what_cannot_be_rewarded_says_why(client: TestClient) -> None:
    register(client)
    assert reward(client, ["plan", RIGHT])["error"] == "bad_message_len"
    assert reward(client, ["plan", RIGHT, "no"], data_id="q-9")["error"] == "unknown_data_id_or_empty_gt"
    body = {"extra_info": {"messages": ["plan", RIGHT, "no"]}}
    answer = client.post("/compute_gt_reward", json=body).json()
    assert (answer["error"], answer["score"], answer["judgement"]) == ("missing_data_id", 0.0, "incorrect")
    # Beside the extra info it counts too.
    body = {"data_id": "q-1", "messages": ["plan", RIGHT, "no"], "question": "Where?"}  # type: ignore[dict-item]
    assert client.post("/compute_gt_reward", json=body).json()["score"] == pytest.approx(1.0)


def test_registrations_outlast_the_process_and_stay_in_their_scope(tmp_path: Path) -> None:
    with TestClient(create_app(make_service(tmp_path))) as client:
        register(client)
        one = client.post("/reward-service/register_gts", json={"data_id": "q-3", "ground_truth": 5})
        assert one.json() == {"status": "ok", "registered": 1, "total": 3}
    assert (tmp_path / "compat.db").stat().st_mode & 0o077 == 0
    with TestClient(create_app(make_service(tmp_path))) as client:
        assert client.get("/health").json()["registered_gts"] == 3
        assert client.get("/reward-service/health").json()["registered_gts"] == 3
        assert reward(client, ["plan", RIGHT, "no"])["judgement"] == "correct"
        client.headers["X-MIA-Scope"] = "other"
        assert client.get("/health").json()["registered_gts"] == 0
        assert reward(client, ["plan", RIGHT, "no"])["error"] == "unknown_data_id_or_empty_gt"


def test_a_judge_that_is_asked_and_one_that_is_down(tmp_path: Path) -> None:
    asked: list[str] = []
    down = False

    def answers(request: Any) -> Any:
        if request.purpose != "judge":
            return says(request)
        asked.append(request.messages[-1].content)
        return ModelUnavailable("the endpoint is down.") if down else "CORRECT"

    with TestClient(create_app(make_service(tmp_path, answers=answers, judge__kind="llm"))) as client:
        register(client)
        assert reward(client, ["plan", "<answer>'s-Gravenhage</answer>", "no"])["score"] == pytest.approx(1.0)
        assert TRUTH in asked[0]
        down = True
        # The outage is no zero, and says nothing of the truth.
        body = {"data_id": "q-1", "messages": ["plan", "<answer>'s-Gravenhage</answer>", "no"], "question": "?"}
        reply = client.post("/compute_gt_reward", json=body)
        assert reply.status_code == 502
        assert TRUTH not in reply.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/register_gts", []),
        ("/register_gts", {}),
        ("/register_gts", {"entries": {}}),
        ("/register_gts", {"entries": [{"ground_truth": "SECRET"}]}),
        ("/register_gts", {"data_id": "../../q", "ground_truth": "SECRET"}),
        ("/register_gts", {"data_id": "q", "ground_truth": {"SECRET": 1}}),
        ("/compute_gt_reward", []),
        ("/compute_gt_reward", {"data_id": "q", "extra_info": {"messages": "SECRET"}}),
        ("/compute_gt_reward", {"data_id": "q", "extra_info": {"messages": [1, 2, 3]}}),
    ],
)
def test_what_is_wrong_is_told_without_saying_it(client: TestClient, path: str, body: Any) -> None:
    reply = client.post(path, json=body)
    assert reply.status_code == 422
    assert "SECRET" not in reply.text
    assert client.get("/health").json()["registered_gts"] == 0
