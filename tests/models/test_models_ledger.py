"""Hard budgets hold, whatever the concurrency; what was spent is counted by role; nothing reserved is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mia.errors import BudgetExceeded, ModelUnavailable
from mia.events import Retrying, TextArrived
from mia.models.base import ChatReply, ChatRequest, Price, ToolSchema, measured_usage
from mia.models.ledger import Account, Budget, Ledger
from mia.models.scripted import ScriptedModel
from mia.types import Message, Role, Usage

PRICE = Price(1_000.0, 1_000.0)
"""A tenth of a cent a token, so that sums are readable."""


def request(role: Role = Role.EXECUTOR, purpose: str = "execute", **changes: Any) -> ChatRequest:
    return ChatRequest((Message(role="user", content="x" * 8),), role, "", purpose, **changes)


PROMPT = 10
"""The estimate for `request()`: 8 for the turn, 2 for its text."""


def model(answer: Callable[[ChatRequest], Any] | None = None, **changes: Any) -> ScriptedModel:
    """Replies of 15 tokens in all; a reply may take 20."""
    reply = ChatReply("x", usage=measured_usage(PROMPT, 5, changes.get("price")))
    return ScriptedModel(answer or (lambda asked: reply), max_tokens=10, **changes)


async def calls_until_refused(ledger: Ledger, asked: ScriptedModel) -> tuple[int, BudgetExceeded]:
    for made in range(100):
        try:
            await ledger.complete(asked, request())
        except BudgetExceeded as error:
            return made, error
    raise AssertionError("never refused")


@pytest.mark.parametrize(
    ("budget", "calls"),
    [
        (Budget(calls=3), 3),
        # Each call takes 15 and may take 20: a third one fits into 50 tokens exactly, and not into 49.
        (Budget(tokens=50), 3),
        (Budget(tokens=49), 2),
        (Budget(money=0.050001), 3),
        (Budget(money=0.049), 2),
    ],
)
@pytest.mark.parametrize("scope", ["question", "run"])
async def test_a_budget_refuses_the_call_that_could_go_over(budget: Budget, calls: int, scope: str) -> None:
    asked = model(price=PRICE)
    run = Account(budget, "run") if scope == "run" else None
    ledger = Ledger("q", budget=Budget() if run else budget, run=run)
    made, error = await calls_until_refused(ledger, asked)
    assert (made, len(asked.requests)) == (calls, calls)
    (limit,) = [name for name in ("calls", "tokens", "money") if getattr(budget, name) is not None]
    assert (error.limit, error.scope) == (limit, scope)
    assert f"budget.{scope}.{limit}" in error.hint


async def test_a_money_budget_refuses_a_model_without_a_price() -> None:
    asked = model()
    with pytest.raises(BudgetExceeded, match="no price") as raised:
        await Ledger("q", budget=Budget(money=5.0)).complete(asked, request())
    assert raised.value.limit == "money"
    assert asked.requests == []


async def test_offered_tools_count_as_prompt() -> None:
    tool = ToolSchema("search", "x" * 400, {"type": "object"})
    with pytest.raises(BudgetExceeded):
        await Ledger("q", budget=Budget(tokens=100)).complete(model(), request(tools=(tool,)))


async def test_time_that_runs_out_breaks_a_call_off() -> None:
    ledger = Ledger("q", budget=Budget(seconds=0.05))
    with pytest.raises(BudgetExceeded) as raised:
        await ledger.complete(model(delay=5), request())
    assert (raised.value.limit, raised.value.scope) == ("seconds", "question")
    assert ledger.usage[Role.EXECUTOR].calls == 1
    with pytest.raises(BudgetExceeded):
        await ledger.complete(model(), request())


async def test_the_earlier_of_two_clocks_is_the_one_that_is_named() -> None:
    now = 0.0
    run = Account(Budget(seconds=10), "run", lambda: now)
    now = 8.0
    ledger = Ledger("q", budget=Budget(seconds=5), run=run, clock=lambda: now)
    assert ledger.seconds_left == 2.0
    now = 10.0
    with pytest.raises(BudgetExceeded) as raised:
        await ledger.complete(model(), request())
    assert raised.value.scope == "run"


async def test_a_timeout_of_the_model_itself_stays_what_it_is() -> None:
    with pytest.raises(TimeoutError):
        await Ledger("q", budget=Budget(seconds=60)).complete(model(lambda asked: TimeoutError("mine")), request())


async def test_usage_is_counted_by_role_with_the_price_of_the_model() -> None:
    ledger = Ledger("q")
    await ledger.complete(model(price=PRICE), request(Role.PLANNER, "plan"))
    for _ in range(2):
        await ledger.complete(model(name="cheap"), request())
    assert ledger.usage[Role.PLANNER].cost == pytest.approx(0.015)
    executor = ledger.usage[Role.EXECUTOR]
    assert (executor.calls, executor.prompt_tokens, executor.completion_tokens, executor.cost) == (2, 20, 10, None)
    assert ledger.models == {Role.PLANNER: "scripted", Role.EXECUTOR: "cheap"}


async def test_turns_are_numbered_by_role_and_purpose_and_the_question_is_named() -> None:
    asked = model()
    ledger = Ledger("q-7")
    for purpose in ("plan", "reflect", "plan", "plan"):
        await ledger.complete(asked, request(Role.PLANNER, purpose))
    assert [seen.turn for seen in asked.requests] == [0, 0, 1, 2]
    assert {seen.question_id for seen in asked.requests} == {"q-7"}


async def test_pieces_of_text_and_retries_become_events() -> None:
    def answer(asked: ChatRequest) -> str:
        assert asked.on_retry is not None
        asked.on_retry(1, 0.5, "busy")
        return "hello"

    seen: list[Any] = []
    await Ledger("q", on_event=seen.append, stream=True).complete(ScriptedModel(answer), request())
    assert [type(event) for event in seen] == [Retrying, TextArrived]
    assert (seen[0].reason, seen[1].delta, seen[1].role) == ("busy", "hello", Role.EXECUTOR)
    seen.clear()
    judged = await Ledger("q", on_event=seen.append, stream=True).complete(
        ScriptedModel(answer), request(Role.JUDGE, "judge")
    )
    # Its words, and what its endpoint says, may hold the reference.
    assert (judged.text, [type(event) for event in seen]) == ("hello", [Retrying])
    assert "busy" not in seen[0].reason
    quiet: list[Any] = []
    await Ledger("q", on_event=quiet.append).complete(ScriptedModel(lambda asked: "hello"), request())
    assert quiet == []


async def test_a_failed_call_counts_as_a_call_and_gives_its_reservation_back() -> None:
    run = Account(Budget(calls=5, tokens=1000), "run")
    ledger = Ledger("q", run=run)
    with pytest.raises(ModelUnavailable):
        await ledger.complete(model(lambda asked: ModelUnavailable("down")), request())
    assert run.calls_left == 4
    assert run.spent == Usage(calls=1, cost=None, seconds=run.spent.seconds)


async def test_a_cancelled_call_gives_its_reservation_back() -> None:
    run = Account(Budget(calls=2, tokens=45), "run")
    ledger = Ledger("q", run=run)
    hanging = asyncio.create_task(ledger.complete(model(delay=60), request()))
    await asyncio.sleep(0)
    assert run.calls_left == 1
    with pytest.raises(BudgetExceeded):
        await Ledger("other", run=Account(Budget(tokens=19), "run")).complete(model(), request())
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    assert run.spent.calls == 1
    assert (await ledger.complete(model(), request())).text == "x"


async def test_a_call_waits_for_room_while_others_are_under_way() -> None:
    """Each call takes 15 tokens and may take 20: 8 calls fit into 125, though only 6 at once."""
    run = Account(Budget(tokens=125), "run")
    asked = model(delay=0.01)
    calls = (Ledger(f"q{number}", run=run).complete(asked, request()) for number in range(9))
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(end) for end in ended].count(ChatReply) == len(asked.requests) == 8
    (refused,) = [end for end in ended if isinstance(end, BudgetExceeded)]
    assert "120 taken, up to 20 needed" in refused.got
    assert run.spent.tokens == 120


@pytest.mark.parametrize("fate", ["fails", "is cancelled"])
async def test_who_waits_goes_on_when_the_call_in_the_way_does_not_succeed(fate: str) -> None:
    run = Account(Budget(tokens=39), "run")
    first = model(lambda asked: ModelUnavailable("down"), delay=0.01 if fate == "fails" else 60)
    in_the_way = asyncio.create_task(Ledger("a", run=run).complete(first, request()))
    waiting = asyncio.create_task(Ledger("b", run=run).complete(model(), request()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    if fate == "is cancelled":
        in_the_way.cancel()
    with pytest.raises(ModelUnavailable if fate == "fails" else asyncio.CancelledError):
        await in_the_way
    assert (await asyncio.wait_for(waiting, 5)).text == "x"


async def test_a_call_that_is_cancelled_while_it_waits_was_never_made_and_holds_nothing() -> None:
    run = Account(Budget(calls=1), "run")
    asked = model(delay=0.01)
    first = asyncio.create_task(Ledger("a", run=run).complete(asked, request()))
    ledger = Ledger("b", run=run)
    waiting = asyncio.create_task(ledger.complete(asked, request()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await first
    assert (len(asked.requests), run.spent.calls, run.calls_left, ledger.total) == (1, 1, 0, Usage())


async def test_time_that_runs_out_breaks_the_waiting_off() -> None:
    run = Account(Budget(calls=1), "run")
    first = asyncio.create_task(Ledger("a", run=run).complete(model(delay=60), request()))
    await asyncio.sleep(0)
    with pytest.raises(BudgetExceeded) as raised:
        await Ledger("b", budget=Budget(seconds=0.02), run=run).complete(model(), request())
    assert (raised.value.limit, raised.value.scope) == ("seconds", "question")
    first.cancel()


limits = st.none() | st.integers(1, 400)


@settings(max_examples=60, deadline=None)
@given(
    calls=st.none() | st.integers(1, 20),
    tokens=limits,
    cents=limits,
    plan=st.lists(
        st.tuples(st.integers(1, 30), st.integers(0, 30), st.sampled_from(["ok", "fail", "cancel"])), max_size=25
    ),
)
def test_concurrent_calls_never_exceed_the_budget_of_a_run(
    calls: int | None, tokens: int | None, cents: int | None, plan: list[tuple[int, int, str]]
) -> None:
    """Whatever replies cost within what was asked for, and however calls end."""
    money = cents / 1000 if cents is not None else None

    async def story() -> Account:
        run = Account(Budget(calls=calls, tokens=tokens, money=money), "run")
        tasks = []
        for asked_for, written, fate in plan:
            usage = measured_usage(PROMPT, min(asked_for, written), PRICE)
            reply: Any = ModelUnavailable("down") if fate == "fail" else ChatReply("x", usage=usage)
            asked = ScriptedModel(lambda request, reply=reply: reply, delay=0.0001 * written, price=PRICE)
            task = asyncio.create_task(Ledger("q", run=run).complete(asked, request(max_tokens=asked_for)))
            if fate == "cancel":
                asyncio.get_running_loop().call_later(0.0001 * asked_for, task.cancel)
            tasks.append(task)
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(ended, ChatReply | BudgetExceeded | ModelUnavailable | asyncio.CancelledError)
        return run

    run = asyncio.run(story())
    assert calls is None or run.spent.calls <= calls
    assert tokens is None or run.spent.tokens <= tokens
    assert money is None or (run.spent.cost or 0.0) <= money + 1e-9
    assert calls is None or run.calls_left == calls - run.spent.calls, "a reservation was lost"
