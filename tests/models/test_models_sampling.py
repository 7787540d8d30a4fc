"""Many conversations in one batch: each is answered as if it were alone, and none can harm another."""

from __future__ import annotations

import contextlib
import math
import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import write_adapter, write_model

from mia.errors import ModelError, ModelUnavailable
from mia.models.sampling import Job, Sampled, Sampler, choose
from mia.models.weights import Weights

ARCHITECTURES = {
    "llama": {},
    "qwen2": {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("llama"), tie_word_embeddings=False)


@pytest.fixture
def sampler(llama: str) -> Iterator[Sampler]:
    sampler = Sampler(Weights.load(llama))
    yield sampler
    sampler.close()


def job(prompt: tuple[int, ...], max_tokens: int = 8, **options: Any) -> tuple[Job, Future[Sampled]]:
    future: Future[Sampled] = Future()

    def done(result: Sampled | BaseException) -> None:
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)

    return Job(prompt_ids=prompt, max_tokens=max_tokens, done=done, **options), future


def ask(sampler: Sampler, prompt: tuple[int, ...], max_tokens: int = 8, **options: Any) -> Future[Sampled]:
    asked, future = job(prompt, max_tokens, **options)
    sampler.submit(asked)
    return future


@contextlib.contextmanager
def together(sampler: Sampler) -> Iterator[None]:
    """What is asked inside joins the batch at the same time."""
    held, ready = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        ready.wait(30)

    sampler.call(hold)
    assert held.wait(30)
    yield
    ready.set()


def prompt(seed: int, length: int = 20) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(400) for _ in range(length))


def plain(weights: Weights, ids: tuple[int, ...]) -> Any:
    """Logits for the next token, by the network alone: no slots, no masks, no batch of ours."""
    with torch.inference_mode():
        return weights.network(torch.tensor([ids])).logits[0, -1].float()


# ── every architecture, against the network alone ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_batch_samples_what_the_network_alone_would(kind: str, tmp_path: Path) -> None:
    """Greedy replies of a batch that rows join and leave, each token held against a plain pass over all before it."""
    weights = Weights.load(write_model(tmp_path / "model", kind, **ARCHITECTURES[kind]))
    sampler = Sampler(weights, batch=4)
    try:
        prompts = [prompt(seed, 3 + 5 * seed) for seed in range(10)]
        replies = [ask(sampler, ids, 4 + seed % 5) for seed, ids in enumerate(prompts)]
        for ids, reply in zip(prompts, replies, strict=True):
            sampled = reply.result(30)
            assert sampled.ended == ("stop" if sampled.ids[-1] in weights.end_ids else "length")
            for number, (token, logprob) in enumerate(zip(sampled.ids, sampled.logprobs, strict=True)):
                logits = plain(weights, (*ids, *sampled.ids[:number]))
                assert token == int(logits.argmax())
                assert logprob == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-4)
    finally:
        sampler.close()


def test_whatever_the_batch_the_tokens_are_the_same(sampler: Sampler) -> None:
    """200 requests one by one, then thrice at once in random orders: the same ids, and logprobs to 1e-4."""
    rng = random.Random(5)
    asked = [
        (
            prompt(rng.randrange(60), rng.randint(2, 90)),
            rng.randint(1, 12),
            {"temperature": rng.choice([0.0, 0.0, 0.7, 1.0]), "top_p": rng.choice([1.0, 0.8]), "seed": number},
        )
        for number in range(200)
    ]
    alone = [ask(sampler, ids, tokens, **options).result(30) for ids, tokens, options in asked]
    weighed = sampler.weighed
    for shuffle in range(3):
        order = list(range(len(asked)))
        random.Random(shuffle).shuffle(order)
        replies = {number: ask(sampler, asked[number][0], asked[number][1], **asked[number][2]) for number in order}
        for number, reply in replies.items():
            sampled = reply.result(60)
            assert sampled.ids == alone[number].ids
            assert sampled.logprobs == pytest.approx(alone[number].logprobs, abs=1e-4)
    assert weighed > 0, "some choices were close; else this test proves little"


def test_close_choices_are_made_alone(tmp_path: Path) -> None:
    """Two tokens with the very same weights are as likely as each other: rounding must not choose between them."""
    folder = write_model(tmp_path / "model", tie_word_embeddings=False)
    weights = Weights.load(folder)
    with torch.no_grad():
        head = weights.network.get_output_embeddings().weight
        head[200:400] = head[:200]
    sampler = Sampler(weights)
    try:
        replies = [ask(sampler, prompt(seed), 6) for seed in range(20)]
        for reply in replies:
            assert not any(200 <= token < 400 for token in reply.result(30).ids), "of equal logits the lowest id"
        assert sampler.weighed > 0
    finally:
        sampler.close()


# ── choosing ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Drawn:
    """As much of a row as choosing looks at."""

    def __init__(self, temperature: float, top_p: float = 1.0, draw: float = 0.0) -> None:
        self.job = Job((1,), 1, done=lambda _: None, temperature=temperature, top_p=top_p)
        self.draw = draw


def pick(logits: list[float], **options: float) -> int:
    ((token, _, _),) = choose([Drawn(**options)], torch.tensor([logits]))  # type: ignore[list-item]
    return int(token)


@given(
    st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=8),
    st.floats(0.1, 5),
    st.floats(0.01, 1),
    st.floats(0, 1, exclude_max=True),
)
def test_a_draw_falls_where_the_definition_says(
    logits: list[float], temperature: float, top_p: float, draw: float
) -> None:
    """Against the definition in plain Python; draws near an edge may fall on either side of it."""
    weights = [math.exp((logit - max(logits)) / temperature) for logit in logits]
    shares = [weight / sum(weights) for weight in weights]
    token = pick(logits, temperature=temperature, top_p=top_p, draw=draw)
    nucleus: list[int] = []
    for candidate in sorted(range(len(shares)), key=lambda number: -shares[number]):
        if sum(shares[kept] for kept in nucleus) < top_p + 1e-5 or shares[candidate] > shares[nucleus[-1]] - 1e-5:
            nucleus.append(candidate)
    assert token in nucleus
    ((_, logprob, close),) = choose(
        [Drawn(temperature, top_p, draw)],  # type: ignore[list-item]
        torch.tensor([logits]),
    )
    assert logprob == pytest.approx(
        logits[token] - max(logits) - math.log(sum(math.exp(logit - max(logits)) for logit in logits)), abs=1e-4
    ), "at temperature 1, of the whole distribution"
    if not close and top_p == 1:
        below = sum(shares[:token])
        assert below <= draw < below + shares[token]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=6))
def test_greedy_takes_the_lowest_of_the_greatest(logits: list[int]) -> None:
    assert pick([float(logit) for logit in logits], temperature=0.0) == logits.index(max(logits))


@settings(max_examples=20)
@given(st.sampled_from([1e-300, 1e-9, 1e-3]), st.floats(0, 1, exclude_max=True))
def test_a_temperature_near_zero_is_greedy(temperature: float, draw: float) -> None:
    assert pick([1.0, 3.0, 2.0], temperature=temperature, draw=draw) == 1


def test_shares_come_out_right_over_many_draws() -> None:
    logits = torch.tensor([[0.0, math.log(2.0), math.log(5.0)]]).expand(4000, 3)
    rng = random.Random(0)
    rows = [Drawn(1.0, draw=rng.random()) for _ in range(4000)]
    tokens = [int(token) for token, _, _ in choose(rows, logits)]  # type: ignore[arg-type]
    assert tokens.count(0) / 4000 == pytest.approx(1 / 8, abs=0.02)
    assert tokens.count(1) / 4000 == pytest.approx(2 / 8, abs=0.02)
    nucleus = [replace_top_p(row, 0.8) for row in rows]
    assert {int(token) for token, _, _ in choose(nucleus, logits)} == {1, 2}  # type: ignore[arg-type]


def replace_top_p(row: Drawn, top_p: float) -> Drawn:
    return Drawn(1.0, top_p, row.draw)


# ── the batch ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_requests_share_steps(sampler: Sampler) -> None:
    replies = [ask(sampler, prompt(seed), 20) for seed in range(32)]
    tokens = sum(len(reply.result(30).ids) for reply in replies)
    assert sampler.steps < tokens / 8


def test_the_next_turn_reads_only_what_is_new(sampler: Sampler) -> None:
    first = prompt(1, 100)
    reply = ask(sampler, first, 10).result(30)
    assert sampler.read_tokens == 100
    longer = (*first, *reply.ids, *prompt(2, 30))
    again = ask(sampler, longer, 10).result(30)
    # The last token of the reply was sampled and not read.
    assert sampler.read_tokens == 100 + 30 + 1
    fresh = Sampler(sampler.weights, reuse_bytes=0)
    assert ask(fresh, longer, 10).result(30).ids == again.ids
    assert fresh.read_tokens == len(longer)
    fresh.close()


def test_the_same_prompt_at_once_is_read_once(sampler: Sampler) -> None:
    with together(sampler):
        replies = [ask(sampler, prompt(3, 50), 6, temperature=1.0, seed=seed) for seed in range(8)]
    answers = [reply.result(30) for reply in replies]
    assert sampler.read_tokens == 50
    assert len({answer.ids for answer in answers}) > 1
    assert ask(sampler, prompt(3, 50), 6, temperature=1.0, seed=5).result(30).ids == answers[5].ids


def test_a_long_prompt_is_read_in_pieces_with_the_same_result(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Weights.load(llama)
    whole, pieces = Sampler(weights), Sampler(weights)
    expected = [ask(whole, prompt(seed, 300 + 7 * seed), 5).result(30).ids for seed in range(3)]
    whole.close()
    monkeypatch.setattr("mia.models.sampling._PREFILL_TOKENS", 64)
    replies = [ask(pieces, prompt(seed, 300 + 7 * seed), 5) for seed in range(3)]
    assert [reply.result(30).ids for reply in replies] == expected
    pieces.close()


def test_padding_may_stand_beyond_the_last_position(tmp_path: Path) -> None:
    """A row that goes on near the end of the window, read beside one whose new part is longer."""
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "max_position_embeddings": 64}
    sampler = Sampler(Weights.load(write_model(tmp_path / "gpt2", "gpt2", **shape)))
    first = ask(sampler, prompt(1, 50), 4).result(30)
    later, other = (*prompt(1, 50), *first.ids, *prompt(2, 4)), prompt(3, 14)
    with together(sampler):
        replies = [ask(sampler, ids, 3) for ids in (later, other)]
    read = [reply.result(30).ids for reply in replies]
    fresh = Sampler(sampler.weights, reuse_bytes=0)
    assert read == [ask(fresh, ids, 3).result(30).ids for ids in (later, other)]
    sampler.close()
    fresh.close()


def test_a_cancelled_row_leaves_and_the_others_go_on(sampler: Sampler) -> None:
    alone = ask(sampler, prompt(7), 60).result(30)
    started = threading.Event()

    def take(token: int) -> bool:
        started.set()
        return False

    cancelled, never = job(prompt(8), 400, take=take)
    sampler.submit(cancelled)
    other = ask(sampler, prompt(7), 60)
    assert started.wait(10)
    sampler.cancel(cancelled)
    assert other.result(30) == replace(alone, logprobs=other.result().logprobs)
    steps = sampler.steps
    ask(sampler, prompt(9), 2).result(30)
    assert sampler.steps <= steps + 2, "nobody samples for the one that left"
    assert not never.done()


def test_a_failure_of_one_request_is_its_own(sampler: Sampler) -> None:
    def fail(token: int) -> bool:
        raise RuntimeError("a bug in a callback")

    bad = ask(sampler, prompt(1), 20, take=fail)
    good = ask(sampler, prompt(2), 20)
    with pytest.raises(ModelError, match="a bug in a callback"):
        bad.result(30)
    assert len(good.result(30).ids) > 1
    with pytest.raises(ModelError, match="index out of range"):
        ask(sampler, (10**6,), 5).result(30)
    assert ask(sampler, prompt(2), 20).result(30).ids == good.result().ids, "the thread goes on"


def test_room_that_there_is_not_is_wanted_once_and_not_for_good(sampler: Sampler) -> None:
    slots = sampler._slots
    reserve = slots.reserve
    slots.reserve = lambda rows, columns: reserve(rows, 1 << 52)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="failed while sampling"):
        ask(sampler, prompt(1)).result(30)
    slots.reserve = reserve  # type: ignore[method-assign]
    assert ask(sampler, prompt(1)).result(30).ids


def test_numbers_that_are_none_fail_the_row_and_do_not_spread(llama: str) -> None:
    weights = Weights.load(llama)
    with torch.no_grad():
        weights.network.get_input_embeddings().weight[399] = float("nan")
    sampler = Sampler(weights, batch=2, reuse_bytes=0)
    healthy = tuple(token % 300 for token in prompt(1))
    expected = {ids: ask(sampler, ids, 6).result(30).ids for ids in (healthy, healthy[:3])}
    for _ in range(2):
        with together(sampler):
            sick, well = ask(sampler, (399, *healthy), 6), ask(sampler, healthy, 6)
        with pytest.raises(ModelError, match="NaN"):
            sick.result(30)
        assert well.result(30).ids == expected[healthy]
    with pytest.raises(ModelError, match="NaN"):
        ask(sampler, (399, *healthy), 6).result(30)
    # The slot that held such numbers is used again, by a row so short that its neighbour reads beyond its end.
    with together(sampler):
        replies = {ids: ask(sampler, ids, 6) for ids in expected}
    assert {ids: reply.result(30).ids for ids, reply in replies.items()} == expected
    sampler.close()


def test_a_call_that_nobody_waits_for_any_more_is_not_made(sampler: Sampler) -> None:
    made: list[int] = []
    with together(sampler):
        dropped, kept = (sampler.call(lambda number=number: made.append(number)) for number in (1, 2))
        assert dropped.cancel()
    kept.result(30)
    assert made == [2]
    assert ask(sampler, prompt(1)).result(30).ids, "the thread goes on"


def test_a_call_that_fails_fails_for_who_asked(sampler: Sampler) -> None:
    """Whatever it raises: those of libraries in Rust are no `Exception`."""
    for failure in (ValueError, SystemExit):
        with pytest.raises(failure):
            sampler.call(partial(_fail, failure)).result(30)
    assert ask(sampler, prompt(1)).result(30).ids, "the thread goes on"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_tells_everybody_what_of(sampler: Sampler) -> None:
    with together(sampler):
        dying = ask(sampler, prompt(1), max_tokens=400, take=lambda _: _fail(SystemExit))
        waiting = ask(sampler, prompt(2), max_tokens=400)
    for future in (dying, waiting):
        with pytest.raises(ModelUnavailable, match=r"ended \(SystemExit"):
            future.result(30)
    with pytest.raises(ModelUnavailable, match="closed"):
        ask(sampler, prompt(1))


def _fail(failure: type[BaseException]) -> Any:
    raise failure("on purpose")


def test_closing_passes_over_a_call_that_nobody_waits_for(sampler: Sampler) -> None:
    with together(sampler):
        dropped, kept = sampler.call(lambda: 1, after="busy"), sampler.call(lambda: 2, after="busy")
        working = ask(sampler, prompt(1), max_tokens=400, adapter="busy")
        assert dropped.cancel()
        sampler.close(timeout=0)
    for waiting in (kept, working):
        with pytest.raises(ModelUnavailable):
            waiting.result(30)


def test_closing_fails_what_is_under_way_and_refuses_what_comes(sampler: Sampler) -> None:
    begun = threading.Event()

    def take(token: int) -> bool:
        begun.set()
        return False

    running = ask(sampler, prompt(1), 100_000, take=take)
    assert begun.wait(10)
    waiting = [ask(sampler, prompt(seed), 100_000) for seed in range(40)]
    sampler.close()
    sampler.close()
    for reply in (running, *waiting):
        with pytest.raises(ModelUnavailable, match="closed"):
            reply.result(1)
    with pytest.raises(ModelUnavailable, match="closed"):
        ask(sampler, prompt(1))
    with pytest.raises(ModelUnavailable, match="closed"):
        sampler.call(int)


def test_rows_with_different_adapters_share_a_batch(llama: str, tmp_path: Path) -> None:
    weights = Weights.load(llama)
    sampler = Sampler(weights)
    for name, seed in (("v1.0", 1), ("v1.1", 2)):
        sampler.call(lambda n=name, s=seed: weights.load_adapter(n, write_adapter(llama, tmp_path / n, seed=s))).result(
            30
        )
    names = ("", "v1.0", "v1.1")
    alone = {name: ask(sampler, prompt(4), 12, adapter=name).result(30) for name in names}
    assert len({alone[name].ids for name in names}) == 3
    replies = [(name, ask(sampler, prompt(4), 12, adapter=name)) for name in names * 5]
    for name, reply in replies:
        assert reply.result(30).ids == alone[name].ids
        assert reply.result().logprobs == pytest.approx(alone[name].logprobs, abs=1e-4)
    sampler.close()
