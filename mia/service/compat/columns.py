"""Batches as the streaming trainer's clients send them: a dict of columns, each a list, a tensor or an array.

    [ … ]                                                   one item a sample
    {"__tensor__": true, "dtype": "int64", "data": [ … ]}   of torch
    {"__ndarray_object__": true, "data": [ … ]}             of numpy, any items
    {"__ndarray_numpy__": true, "dtype": "int64", "data": [ … ]}

What is in a tensor is not used here: our learner has tokens of its own. It is looked at all the same, so that a client
that sends nonsense is told so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy

from mia.errors import RecordError

MOST_SAMPLES = 1_024
MOST_COLUMNS = 200

_FLOATS = frozenset(("float16", "float32", "float64", "bfloat16"))
_INTEGERS = frozenset(("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"))


def read_columns(batch: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The columns as lists, all of the same length. Raises RecordError for what is none, naming the column."""
    if len(batch) > MOST_COLUMNS:
        raise RecordError(f"{len(batch)} columns are too many.", wanted=f"up to {MOST_COLUMNS}")
    columns = {name: _read(name[:100], column) for name, column in batch.items()}
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1:
        raise RecordError(f"the columns have {sorted(lengths)[:5]} items.", wanted="all as many as there are samples")
    (length,) = lengths
    if not 0 < length <= MOST_SAMPLES:
        raise RecordError(f"{length} samples.", wanted=f"1 to {MOST_SAMPLES}")
    return columns


def _read(name: str, column: Any) -> list[Any]:
    if isinstance(column, list):
        return column
    kinds = ("__tensor__", "__ndarray_object__", "__ndarray_numpy__")
    kind = next((one for one in kinds if isinstance(column, dict) and column.get(one) is True), "")
    data = column.get("data") if kind else None
    if not isinstance(data, list):
        raise RecordError(
            f"the column '{name}' is none.", wanted=f"a list, or an object with {', '.join(kinds)} and data"
        )
    if kind != "__ndarray_object__":
        _check(name, column.get("dtype"), data)
    return data


def _check(name: str, dtype: Any, data: list[Any]) -> None:
    """Raises RecordError for data that are not of their type, or not of one shape."""
    if not isinstance(dtype, str) or (dtype not in _FLOATS | _INTEGERS | {"bool"} and dtype[:2] not in ("<U", ">U")):
        raise RecordError(f"the column '{name}' has no type that is known.", wanted="e.g. int64, float32 or bool")
    try:
        values = numpy.asarray(data)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise RecordError(f"the data of the column '{name}' have no shape.", wanted="rows of equal length") from None
    if not values.size:
        return
    kinds = {"bool": "b"}.get(dtype, "iuf" if dtype in _FLOATS else "iu" if dtype in _INTEGERS else "U")
    fits = values.dtype.kind in kinds
    if fits and dtype in _INTEGERS:
        limits = numpy.iinfo(dtype)
        fits = limits.min <= int(values.min()) and int(values.max()) <= limits.max
    if not fits:
        raise RecordError(f"the data of the column '{name}' are not of its type {dtype}.")
