"""Keys and values by position: what is kept is found by its ids and its adapter alone, and never outgrows its room."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import write_model

from mia.models.slots import MIN_SHARED, Finished, Slots
from mia.models.weights import Weights

LAYERS, HEADS, WIDTH = 2, 3, 4
BYTES_PER_TOKEN = LAYERS * 2 * HEADS * WIDTH * 4


def filled(*conversations: list[int]) -> Slots:
    """Slots whose numbers are the token ids themselves, so that one sees whose they are."""
    slots = Slots(LAYERS)
    longest = max(map(len, conversations))
    slots.reserve(len(conversations), longest)
    slots.prefill(0, [0] * len(conversations), longest)
    padded = torch.tensor([[*ids, *([0] * (longest - len(ids)))] for ids in conversations], dtype=torch.float32)
    states = padded[:, None, :, None].expand(-1, HEADS, -1, WIDTH)
    for layer in range(LAYERS):
        slots.cache.update(states, -states, layer)
    return slots


def ids_in(slots: Slots, slot: int, length: int) -> list[int]:
    kept = slots.take(slot, length)
    assert len(kept) == LAYERS
    for keys, values in kept:
        assert keys.shape == values.shape == (HEADS, length, WIDTH)
        assert torch.equal(keys, -values)
    return [int(number) for number in kept[0][0][0, :, 0]]


def array(ids: list[int]) -> numpy.ndarray:
    return numpy.array(ids, dtype=numpy.int64)


def test_rows_of_different_lengths_are_written_each_at_its_own_column() -> None:
    slots = filled([1, 2, 3], [4, 5, 6, 7, 8])
    slots.reserve(2, 300)
    slots.step(torch.arange(2), torch.tensor([3, 5]), 6)
    new = torch.tensor([9.0, 10.0])[:, None, None, None].expand(2, HEADS, 1, WIDTH)
    for layer in range(LAYERS):
        keys, values = slots.cache.update(new, -new, layer)
        assert keys.shape == values.shape == (2, HEADS, 6, WIDTH)
    assert ids_in(slots, 0, 4) == [1, 2, 3, 9]
    assert ids_in(slots, 1, 6) == [4, 5, 6, 7, 8, 10]
    slots.move(1, 0, 6)
    assert ids_in(slots, 0, 6) == [4, 5, 6, 7, 8, 10]


def test_more_room_keeps_what_is_there_and_wiping_forgets_it() -> None:
    slots = filled([1, 2, 3], [4, 5, 6])
    before = slots.bytes
    slots.reserve(4, 500)
    assert slots.bytes > before
    assert ids_in(slots, 1, 3) == [4, 5, 6]
    slots.wipe(1)
    assert ids_in(slots, 1, 3) == [0, 0, 0]
    assert ids_in(slots, 0, 3) == [1, 2, 3]
    slots.release()
    assert slots.bytes == 0


def test_room_that_could_not_be_made_is_not_counted() -> None:
    slots = filled([1, 2, 3])
    before = slots.bytes
    with pytest.raises(RuntimeError, match=r"memory|overflow|size"):
        slots.reserve(2, 1 << 52)
    assert ids_in(slots, 0, 3) == [1, 2, 3]
    slots.reserve(2, 300)
    assert slots.bytes > before
    slots.move(0, 1, 3)
    assert ids_in(slots, 1, 3) == [1, 2, 3]


def test_room_given_back_is_not_made_again_until_it_is_needed() -> None:
    slots = filled([1, 2, 3])
    small = slots.bytes
    slots.reserve(8, 4_000)
    slots.release()
    slots.reserve(1, 3)
    slots.prefill(0, [0], 1)
    states = torch.ones(1, HEADS, 1, WIDTH)
    for layer in range(LAYERS):
        slots.cache.update(states, states, layer)
    assert slots.bytes == small


def test_a_conversation_is_begun_from_the_longest_shared_beginning() -> None:
    first = list(range(1, 31))
    second = [*range(1, 26), 99, 98, 97]
    slots = filled(first, second)
    finished = Finished(1 << 20)
    finished.keep(array(first), "", slots, 0)
    finished.keep(array(second), "", slots, 1)
    found = finished.find(array([*first, 50, 51]), "")
    assert found is not None
    kept, length = found
    assert length == 30
    fresh = Slots(LAYERS)
    fresh.reserve(1, 40)
    fresh.put(0, kept, length)
    assert ids_in(fresh, 0, 30) == first
    branch = finished.find(array([*range(1, 26), 77, 76]), "")
    assert branch is not None
    assert branch[1] == 25
    same = finished.find(array(first), "")
    assert same is not None
    assert same[1] == 29, "the last token is read again, to go on from it"


def test_nothing_is_found_for_another_adapter_other_ids_or_too_few() -> None:
    ids = list(range(1, 31))
    finished = Finished(1 << 20)
    finished.keep(array(ids), "v1", filled(ids), 0)
    assert finished.find(array([*ids, 5]), "") is None
    assert finished.find(array([7, *ids]), "v1") is None
    assert finished.find(array(ids[: MIN_SHARED - 1]), "v1") is None
    assert finished.find(array([*ids, 5]), "v1") is not None
    finished.forget("v1")
    assert finished.find(array([*ids, 5]), "v1") is None
    assert finished.bytes == 0


def test_a_longer_turn_replaces_the_shorter_one_it_extends() -> None:
    short, long = list(range(20)), list(range(40))
    slots = filled(short, long)
    finished = Finished(1 << 20)
    finished.keep(array(short), "", slots, 0)
    finished.keep(array(long), "", slots, 1)
    assert finished.bytes == 40 * BYTES_PER_TOKEN
    finished.keep(array(short), "", slots, 0)
    assert finished.bytes == 40 * BYTES_PER_TOKEN, "what is inside another piece is not kept twice"


@given(st.lists(st.integers(10, 60), min_size=1, max_size=12), st.integers(0, 100))
def test_the_room_is_never_exceeded_and_the_oldest_goes_first(lengths: list[int], tokens: int) -> None:
    finished = Finished(tokens * BYTES_PER_TOKEN)
    expected: list[list[int]] = []
    for number, length in enumerate(lengths):
        ids = [1000 * (number + 1) + position for position in range(length)]
        finished.keep(array(ids), "", filled(ids), 0)
        assert finished.bytes <= tokens * BYTES_PER_TOKEN
        if MIN_SHARED <= length <= tokens:
            expected.append(ids)
            while sum(map(len, expected)) > tokens:
                expected.pop(0)
    assert finished.bytes == sum(map(len, expected)) * BYTES_PER_TOKEN
    for ids in expected:
        assert finished.find(array([*ids, 7]), "") is not None


def test_slots_give_what_the_network_alone_gives(tmp_path: Path) -> None:
    """Two rows of which one begins from a kept beginning, read in two pieces, against one plain pass."""
    weights = Weights.load(write_model(tmp_path / "model"))
    long, short = [*range(1, 40)], [*range(1, 12)]
    with torch.inference_mode():
        expected = [weights.network(torch.tensor([ids])).logits[0, -1] for ids in (long, short)]
        slots = Slots(2)
        slots.reserve(2, 64)
        slots.prefill(1, [0], 20)
        weights.forward(torch.tensor([long[:20]]), torch.arange(20)[None], cache=slots.cache, length=20)
        slots.put(0, slots.take(1, 20), 20)
        slots.prefill(0, [20, 0], 39)
        ids = torch.tensor([long[20:], [*short, *([0] * 8)]])
        positions = torch.tensor([[20], [0]]) + torch.arange(19)
        keep = torch.tensor([10, 18])
        logits = weights.forward(ids, positions, cache=slots.cache, length=39, keep=keep)
    torch.testing.assert_close(logits[0, 1], expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[1, 0], expected[1], rtol=1e-4, atol=1e-4)
