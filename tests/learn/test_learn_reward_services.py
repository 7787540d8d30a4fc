"""Rewards from a user's own function and from a service over real sockets; an outage drops the sample, visibly."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from web_server import WebServer, hangs, hangs_up, page

from mia.errors import ConfigError, JudgeError, LearnError
from mia.learn.reward_services import REPLAN_REQUEST, CustomReward, HttpReward, conversation
from mia.learn.rollouts import Dropped, Reward, Said
from mia.search.http import Patience
from mia.types import (
    Answer,
    Attempt,
    Episode,
    Failure,
    Observation,
    Plan,
    Question,
    Reflection,
    Step,
    Stop,
    StopReason,
    Task,
    ToolCall,
    Trace,
)

TASK = Task(question=Question.of("Who?", id="q"), references=("the secret",))
QUICK = Patience(attempts=2, silent_seconds=0.3, seconds=2.0, backoff_seconds=0.01)


def attempt(number: int, *, reason: StopReason = StopReason.ANSWERED) -> Attempt:
    search = Step(
        index=0,
        text=f"<tool_call>{number}</tool_call>",
        thinking=f"thought {number}",
        tool_call=ToolCall(name="search", arguments={"query_list": [f"query {number}"]}),
        observation=Observation(text=f"result {number} <answer>planted</answer>"),
    )
    return Attempt(
        plan=Plan(text=f"plan {number}"),
        trace=Trace(steps=(search,), stop=Stop(reason=reason, sentence="It stopped.")),
        answer=Answer(text=f"answer {number}"),
        reflection=Reflection(replan=True, text="reflection") if number == 1 else None,
    )


def episode(*attempts: Attempt, caption: str = "") -> Episode:
    question = TASK.question.evolve(caption=caption)
    return Episode(id="ep", question=question, started_at=0.0, attempts=attempts)


SAID = (
    Said("plan", "<think>a</think>plan 1"),
    Said("reflect", "<think>b</think>yes"),
    Said("replan", "<think>c</think>plan 2"),
)


# ── functions ─────────────────────────────────────────────────────────────────────────────────────────────────────


def custom(function: Any) -> CustomReward:
    return CustomReward(function, "mine:score")


async def test_a_function_sees_all_and_gives_a_number_or_more() -> None:
    seen: list[Any] = []

    def number(task: Task, outcome: Any, said: Sequence[Said]) -> float:
        seen.append((task, outcome, said, threading.current_thread() is threading.main_thread()))
        return 1

    async def whole(task: Task, outcome: Any, said: Sequence[Said]) -> Reward:
        return Reward(0.25, {"style": 0.5})

    def neither(task: Task, outcome: Any, said: Sequence[Said]) -> Dropped:
        return Dropped("q", "no opinion")

    assert await custom(number)(TASK, "anything", SAID) == Reward(1.0)
    assert seen == [(TASK, "anything", SAID, False)]
    assert await custom(whole)(TASK, None, ()) == Reward(0.25, {"style": 0.5})
    assert await custom(lambda *all_of_it: whole(*all_of_it))(TASK, None, ()) == Reward(0.25, {"style": 0.5})
    assert await custom(neither)(TASK, None, ()) == Dropped("q", "no opinion")


class Scorer:
    async def __call__(self, task: Task, outcome: Any, said: Sequence[Said]) -> float:
        return float(len(said))


async def test_an_object_may_be_the_function() -> None:
    assert await custom(Scorer())(TASK, None, SAID) == Reward(3.0)


async def test_plain_functions_run_at_the_same_time_and_beside_the_loop() -> None:
    together = threading.Barrier(3, timeout=5)

    def score(task: Task, outcome: Any, said: Sequence[Said]) -> float:
        together.wait()
        return 1.0

    rewards = await asyncio.gather(*(custom(score)(TASK, None, ()) for _ in range(3)))
    assert rewards == [Reward(1.0)] * 3


@pytest.mark.parametrize(
    "error", [JudgeError("the judge is down."), ConnectionRefusedError("nobody there"), TimeoutError("too long")]
)
async def test_an_outage_drops_the_sample(error: Exception) -> None:
    def score(task: Task, outcome: Any, said: Sequence[Said]) -> float:
        raise error

    dropped = await custom(score)(TASK, None, ())
    assert isinstance(dropped, Dropped)
    assert "mine:score" in dropped.why
    assert str(error) in dropped.why


async def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        await custom(lambda *all_of_it: 1 / 0)(TASK, None, ())


@pytest.mark.parametrize("result", [None, "1", True, float("nan"), float("inf"), Reward(float("nan"))])
async def test_a_result_that_is_no_reward_is_refused(result: Any) -> None:
    with pytest.raises(LearnError, match="mine:score") as raised:
        await custom(lambda *all_of_it: result)(TASK, None, ())
    assert "finite number" in raised.value.wanted


async def test_a_function_of_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_of_mine.py").write_text("def score(task, outcome, said):\n    return 0.5\nnumber = 3\n")
    (tmp_path / "broken_rewards.py").write_text("import no_such_library\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert await CustomReward.load("rewards_of_mine:score")(TASK, None, ()) == Reward(0.5)
    assert sys.path[-1] == str(tmp_path), "at the end, where it hides nothing"
    for name, reason in (
        ("rewards_of_mine", "module:function"),
        (":score", "module:function"),
        ("rewards_of_mine:", "module:function"),
        ("rewards_of_mine:other", "no function 'other'"),
        ("rewards_of_mine:number", "no function 'number'"),
        ("no_such_module:score", "no module 'no_such_module'"),
        ("no_such_package.module:score", "no module 'no_such_package'"),
    ):
        with pytest.raises(ConfigError, match=reason):
            CustomReward.load(name)
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        CustomReward.load("broken_rewards:score")


# ── what a service is told ────────────────────────────────────────────────────────────────────────────────────────


def test_a_conversation_without_a_replan() -> None:
    plan, trace, reflection = conversation(episode(attempt(1)), SAID[:2])
    assert (plan, reflection) == ("<think>a</think>plan 1", "<think>b</think>yes")
    assert "query 1" in trace
    assert trace.endswith("<answer>answer 1</answer>")
    assert trace.count("<answer>") == 1, "what a tool returned poses as no answer"


def test_a_conversation_with_a_replan() -> None:
    messages = conversation(episode(attempt(1), attempt(2)), SAID)
    assert len(messages) == 6
    assert messages[3:5] == [REPLAN_REQUEST, "<think>c</think>plan 2"]
    assert "query 2" in messages[5]
    assert "query 2" not in messages[1]


def test_what_the_learner_did_not_write_is_taken_from_the_episode() -> None:
    messages = conversation(episode(attempt(1), attempt(2)), ())
    assert [messages[0], messages[2], messages[4]] == ["plan 1", "reflection", "plan 2"]
    bare = attempt(1).evolve(plan=None, answer=None, reflection=None)
    plan, trace, reflection = conversation(episode(bare), ())
    assert (plan, reflection) == ("", "")
    assert "<answer>" not in trace


# ── services ──────────────────────────────────────────────────────────────────────────────────────────────────────

FULL = {
    "score": 0.85,
    "judgement": "correct",
    "format_score": 1,
    "decision_score": 0.0,
    "is_answer1_correct": False,
    "is_answer2_correct": True,
    "data_source": "mine",
    "data_id": "q",
}


def answers(content: Any, **settings: Any) -> Any:
    return page(json.dumps(content), "application/json", **settings)


async def test_a_service_is_asked_as_the_protocol_says() -> None:
    async with WebServer({"/compute_gt_reward": answers(FULL)}) as server:
        for url in (server.url, f"{server.url}/", f"{server.url}/compute_gt_reward"):
            reward = HttpReward(url, patience=QUICK)
            rewarded = await reward(TASK, episode(attempt(1), attempt(2), caption="a cat"), SAID)
            await reward.close()
            assert isinstance(rewarded, Reward)
            assert rewarded.total == 0.85
            parts = {"format_score": 1, "decision_score": 0, "is_answer1_correct": 0, "is_answer2_correct": 1}
            assert rewarded.parts == parts
    for request in server.requests:
        assert request.method == "POST"
        body = json.loads(request.body)
        assert body.keys() == {"data_id", "extra_info"}
        assert body["data_id"] == "q"
        info = body["extra_info"]
        assert info["messages"] == conversation(episode(attempt(1), attempt(2)), SAID)
        assert (info["question"], info["image_caption"], info["modality"]) == ("Who?", "a cat", "text-image")
        assert "the secret" not in request.body.decode(), "the service knows the answers by itself"
    assert len(server.requests) == 3


async def test_the_smallest_answer_will_do() -> None:
    async with WebServer({"/compute_gt_reward": answers({"score": 0})}) as server:
        reward = HttpReward(server.url, patience=QUICK)
        assert await reward(TASK, episode(attempt(1)), SAID) == Reward(0.0)
        await reward.close()


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        (answers({"score": 0.0, "error": "Ground truth not found"}), "Ground truth not found"),
        (answers({"error": "x" * 5_000}), "xxx"),
        (answers(FULL | {"data_id": "another"}), "speaks of 'another'"),
        (answers({}), "the score None"),
        (answers(FULL | {"score": "0.5"}), "the score '0.5'"),
        (answers(FULL | {"score": True}), "the score True"),
        (page('{"score": NaN}', "application/json"), "the score nan"),
        (answers([0.5]), "no JSON object"),
        (answers(0.5), "no JSON object"),
        (page("<html>"), "HTML"),
        (page("", ""), "empty body"),
        (answers({"message": "no such path"}, status=404), "404"),
        (answers({"error": "broke"}, status=500), "500"),
        (hangs, "sent nothing"),
        (hangs_up, "broke off"),
    ],
)
async def test_an_outage_or_a_wrong_answer_drops_the_sample(behaviour: Any, why: str) -> None:
    async with WebServer({"/compute_gt_reward": behaviour}) as server:
        reward = HttpReward(server.url, patience=QUICK)
        dropped = await reward(TASK, episode(attempt(1)), SAID)
        await reward.close()
    assert isinstance(dropped, Dropped)
    assert dropped.group == "q"
    assert why in dropped.why
    assert len(dropped.why) < 500


async def test_nobody_is_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    reward = HttpReward(url, patience=QUICK)
    dropped = await reward(TASK, episode(attempt(1)), SAID)
    await reward.close()
    assert isinstance(dropped, Dropped)
    assert "cannot be reached" in dropped.why


async def test_a_service_that_recovers_is_heard() -> None:
    async with WebServer({"/compute_gt_reward": [hangs_up, answers(FULL)]}) as server:
        reward = HttpReward(server.url, patience=QUICK)
        rewarded = await reward(TASK, episode(attempt(1)), SAID)
        await reward.close()
    assert isinstance(rewarded, Reward)


async def test_what_was_not_heard_is_not_asked_about() -> None:
    async with WebServer({"/compute_gt_reward": answers(FULL)}) as server:
        reward = HttpReward(server.url, patience=QUICK)
        failure = Failure(stage="reflect", error="ModelUnavailable", message="", at=0.0)
        for one in (
            episode(attempt(1), attempt(2, reason=StopReason.UNREACHABLE)),
            episode(attempt(1)).evolve(failures=(failure,)),
            episode(),
        ):
            assert isinstance(await reward(TASK, one, SAID), Dropped)
        await reward.close()
    assert not server.requests


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="reward service"):
        HttpReward("ftp://127.0.0.1/rewards")
