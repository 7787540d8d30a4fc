"""Keys and values of the conversations that are sampled side by side, and of some that have ended.

`Slots` holds one conversation a slot: the key of the token at position p stands in column p, whatever the others do.
So joining touches one slot, leaving moves one, and nobody is ever padded anew when the lengths differ; what lies behind
a conversation's end is hidden by the masks. Buffers are made once and written in place: growing tensors by a token, as
transformers' DynamicCache does, copies everything at every step.

`Finished` keeps what ended conversations left, up to a number of bytes, the least recently used going first: the next
turn of a conversation then reads only what is new. A piece is found by its token ids and its adapter, exactly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
from transformers.cache_utils import Cache, CacheLayerMixin

_COLUMNS = 128
"""Columns are first made in multiples of this."""
MIN_SHARED = 16
"""Fewer tokens than this are read again rather than looked up and copied."""

KeysAndValues = list[tuple[Any, Any]]
"""For each layer the keys and the values of one conversation, [heads, tokens, width]."""


@dataclass
class _Target:
    """Where the next call of the network writes, and what it reads."""

    first: int = 0
    """The first slot of the call's rows, which stand in a row."""
    count: int = 0
    starts: Sequence[int] = ()
    """For each row the column of its first new token."""
    columns: Any = None
    """For a single new token a row: the columns as a tensor, with `rows`."""
    rows: Any = None
    length: int = 0
    """The columns that are read."""


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, [slots, heads, columns, width]."""

    is_sliding = False

    def __init__(self, target: _Target, slots: int, columns: int) -> None:
        super().__init__()
        self._target = target
        self._size = (slots, columns)

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        slots, columns = self._size
        # Zeros, not garbage: a hidden column weighs nothing, but nothing times NaN is NaN.
        self.keys = key_states.new_zeros((slots, key_states.shape[1], columns, key_states.shape[3]))
        self.values = value_states.new_zeros((slots, value_states.shape[1], columns, value_states.shape[3]))
        self.is_initialized = True

    def update(self, key_states: Any, value_states: Any, cache_kwargs: Any = None) -> tuple[Any, Any]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        target = self._target
        last = target.first + target.count
        if target.columns is not None:
            self.keys[target.rows, :, target.columns] = key_states[:, :, 0]
            self.values[target.rows, :, target.columns] = value_states[:, :, 0]
        elif len(set(target.starts)) == 1:
            columns = slice(target.starts[0], target.starts[0] + key_states.shape[2])
            self.keys[target.first : last, :, columns] = key_states
            self.values[target.first : last, :, columns] = value_states
        else:
            for row, start in enumerate(target.starts):
                columns = slice(start, start + key_states.shape[2])
                self.keys[target.first + row, :, columns] = key_states[row]
                self.values[target.first + row, :, columns] = value_states[row]
        return self.keys[target.first : last, :, : target.length], self.values[target.first : last, :, : target.length]

    def resize(self, slots: int, columns: int) -> None:
        """Grow to at least so much; a layer that has it already is left alone."""
        size = max(slots, self._size[0]), max(columns, self._size[1])
        if self.is_initialized and size != self._size:
            self.keys, self.values = (_grown(old, *size) for old in (self.keys, self.values))
        self._size = size

    def release(self) -> None:
        self.keys = self.values = None
        self.is_initialized = False
        self._size = (0, 0)

    def get_seq_length(self) -> int:
        return self._target.length

    def get_max_cache_shape(self) -> int:
        return -1

    def get_mask_sizes(self, cache_position: Any) -> tuple[int, int]:
        return self._target.length, 0


class Slots:
    """The buffers of a running batch. Slots and columns are added when they are needed."""

    def __init__(self, layers: int) -> None:
        self._slots = 0
        self._columns = 0
        self._target = _Target()
        self._layers = [_Layer(self._target, 0, 0) for _ in range(layers)]
        self.cache = Cache(layers=self._layers)
        """What the network is handed."""

    @property
    def bytes(self) -> int:
        """What the buffers take."""
        tensors = [tensor for layer in self._layers if layer.is_initialized for tensor in (layer.keys, layer.values)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def reserve(self, slots: int, columns: int) -> None:
        """Make room for so many conversations of so many tokens."""
        if slots <= self._slots and columns <= self._columns:
            return
        slots = max(slots, self._slots)
        if columns > self._columns:
            # Half as much again as before: growing copies everything.
            columns = max(-(-columns // _COLUMNS) * _COLUMNS, self._columns + self._columns // 2)
        else:
            columns = self._columns
        for layer in self._layers:
            layer.resize(slots, columns)
        # Only now: where memory ran out half-way, the next call tries again.
        self._slots, self._columns = slots, columns

    def prefill(self, first: int, starts: Sequence[int], length: int) -> None:
        """Aim the next call of the network: rows from slot `first` on, each writing from its start; the longest then
        has `length` tokens, padding included."""
        target = self._target
        target.first, target.count, target.starts, target.length = first, len(starts), starts, length
        target.columns = None

    def step(self, rows: Any, columns: Any, length: int) -> None:
        """Aim the next call of the network: one new token for each of the first slots (`rows`: 0 … n-1), in these
        columns."""
        target = self._target
        target.first, target.count, target.length = 0, len(rows), length
        target.rows, target.columns = rows, columns

    def move(self, source: int, to: int, length: int) -> None:
        """Copy the first tokens of one slot to another."""
        for layer in self._layers:
            layer.keys[to, :, :length] = layer.keys[source, :, :length]
            layer.values[to, :, :length] = layer.values[source, :, :length]

    def take(self, slot: int, length: int) -> KeysAndValues:
        """A copy of the first tokens of a slot."""
        return [
            (layer.keys[slot, :, :length].clone(), layer.values[slot, :, :length].clone()) for layer in self._layers
        ]

    def put(self, slot: int, kept: KeysAndValues, length: int) -> None:
        """Begin a slot with the first tokens of what was kept."""
        for layer, (keys, values) in zip(self._layers, kept, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys[None], values[None])
            layer.keys[slot, :, :length] = keys[:, :length]
            layer.values[slot, :, :length] = values[:, :length]

    def wipe(self, slot: int) -> None:
        """Zero a slot whose numbers went wrong, so that the next conversation there does not inherit them."""
        for layer in self._layers:
            if layer.is_initialized and slot < len(layer.keys):
                layer.keys[slot].zero_()
                layer.values[slot].zero_()

    def release(self) -> None:
        """Let go of the buffers; nothing is running."""
        self._slots = self._columns = 0
        for layer in self._layers:
            layer.release()


@dataclass(eq=False)
class _Piece:
    ids: Any
    adapter: str
    kept: KeysAndValues
    size: int
    key: tuple[Any, ...] = field(default=())


class Finished:
    """What ended conversations left, to be begun from again."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._pieces: OrderedDict[int, _Piece] = OrderedDict()
        self._by_beginning: dict[tuple[Any, ...], list[_Piece]] = {}

    def find(self, ids: Any, adapter: str) -> tuple[KeysAndValues, int] | None:
        """The piece that shares the longest beginning with these ids (an int64 array), and its length; at least
        MIN_SHARED tokens, and never all of `ids`: the last one must be read to go on from it."""
        best, shared = None, MIN_SHARED - 1
        for piece in self._by_beginning.get(_beginning(ids, adapter), ()):
            length = min(_common(ids, piece.ids), len(ids) - 1)
            if length > shared:
                best, shared = piece, length
        if best is None:
            return None
        self._pieces.move_to_end(id(best))
        return best.kept, shared

    def keep(self, ids: Any, adapter: str, slots: Slots, slot: int) -> None:
        """Keep a conversation that ends; pieces that it extends give way to it."""
        if len(ids) < MIN_SHARED or not self._max_bytes:
            return
        key = _beginning(ids, adapter)
        for piece in list(self._by_beginning.get(key, ())):
            shared = _common(ids, piece.ids)
            if shared == len(ids):
                return  # It is there already.
            if shared == len(piece.ids):
                self._drop(piece)
        kept = slots.take(slot, len(ids))
        size = sum(part.numel() * part.element_size() for pair in kept for part in pair)
        if size > self._max_bytes:
            return
        piece = _Piece(ids, adapter, kept, size, key)
        self._pieces[id(piece)] = piece
        self._by_beginning.setdefault(key, []).append(piece)
        self.bytes += size
        while self.bytes > self._max_bytes:
            self._drop(next(iter(self._pieces.values())))

    def forget(self, adapter: str) -> None:
        """Drop what was read through an adapter."""
        for piece in [piece for piece in self._pieces.values() if piece.adapter == adapter]:
            self._drop(piece)

    def clear(self) -> None:
        self._pieces.clear()
        self._by_beginning.clear()
        self.bytes = 0

    def _drop(self, piece: _Piece) -> None:
        del self._pieces[id(piece)]
        same = self._by_beginning[piece.key]
        same.remove(piece)
        if not same:
            del self._by_beginning[piece.key]
        self.bytes -= piece.size


def _beginning(ids: Any, adapter: str) -> tuple[Any, ...]:
    return (adapter, *ids[:MIN_SHARED].tolist())


def _common(left: Any, right: Any) -> int:
    """How many ids two sequences share at their beginning."""
    length = min(len(left), len(right))
    differs = left[:length] != right[:length]
    first = int(numpy.argmax(differs))
    return first if differs[first] else length


def _grown(old: Any, slots: int, columns: int) -> Any:
    new = old.new_zeros((slots, old.shape[1], columns, old.shape[3]))
    new[: old.shape[0], :, : old.shape[2]] = old
    return new
