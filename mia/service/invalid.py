"""What is wrong with a request, in plain words: where, what came, what is wanted. The one place where pydantic's errors
are told, for every door.

No value is repeated: it may be a secret, or no text at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST = 20
"""Faults of one request that are told."""

_WANTED = {
    "string_type": "a text",
    "string_unicode": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number that is finite",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "mapping_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dataclass_type": "an object",
}
"""What a value should be, where it is of the wrong kind."""
_BOUNDS = {
    "greater_than_equal": ("ge", "too small", "{} or more"),
    "greater_than": ("gt", "too small", "more than {}"),
    "less_than_equal": ("le", "too large", "{} or less"),
    "less_than": ("lt", "too large", "less than {}"),
    "string_too_long": ("max_length", "too long", "{} characters at most"),
    "too_long": ("max_length", "too long", "{} entries at most"),
    "string_too_short": ("min_length", "too short", "{} characters at least"),
    "too_short": ("min_length", "too short", "at least {} in the list"),
}
"""Type → where its bound stands in the context, what a value beyond it is, and what is wanted."""
_PLACES = {"query": "the query parameter ", "header": "the header ", "path": "the part of the path ", "body": ""}


@dataclass(frozen=True)
class Wrong:
    """One fault."""

    where: tuple[str | int, ...]
    """From "body", "query", "header" or "path" on, as far as the place is known."""
    kind: str
    """As pydantic names it."""
    got: str
    """A sentence."""
    wanted: str
    """Empty: it follows from the sentence."""

    @property
    def place(self) -> str:
        """Inside the body or the arguments, such as `questions[0].id`; empty: the whole."""
        return _path(self.where[1:])


def faults(errors: Sequence[Mapping[str, Any]]) -> list[Wrong]:
    """What pydantic found, at most `MOST`; where a value may be of several kinds, they are told as one fault."""
    found: dict[tuple[str | int, ...], Wrong] = {}
    for error in errors:
        one = _read(error)
        known = found.get(one.where)
        if known is None:
            if len(found) < MOST:
                found[one.where] = one
        elif one.kind in _BOUNDS and known.kind not in _BOUNDS:
            # Of the right kind, and only too much or too little: the other kinds are beside the point.
            found[one.where] = one
        elif known.kind in _BOUNDS and one.kind not in _BOUNDS:
            continue
        elif one.wanted and one.wanted not in known.wanted.split(" or "):
            wanted = f"{known.wanted} or {one.wanted}" if known.wanted else one.wanted
            found[one.where] = Wrong(one.where, known.kind, known.got, wanted)
    return list(found.values())


def summary(wrong: Sequence[Wrong]) -> str:
    """The first fault, and how many more there are."""
    more = len(wrong) - 1
    return wrong[0].got + (f" {more} more {'is' if more == 1 else 'are'} in `details`." if more else "")


def _read(error: Mapping[str, Any]) -> Wrong:
    kind, context = str(error["type"]), error.get("ctx") or {}
    where = _where(error)
    name = _name(where)
    if kind == "missing":
        return Wrong(where, kind, f"{name} is missing.", "")
    if kind == "extra_forbidden":
        return Wrong(where, kind, f"{name} is not known here.", "no other fields than those of the schema")
    if kind == "json_invalid":
        return Wrong(where[:1], kind, f"the body is no JSON ({_plain(context.get('error', ''))}).", "JSON")
    if kind in ("literal_error", "enum"):
        return Wrong(where, kind, f"{name} is none of its possible values.", _plain(context["expected"]))
    if kind in _BOUNDS and not _is_finite(error.get("input")):
        return Wrong(where, kind, f"{name} is no finite number.", _WANTED["finite_number"])
    if kind in _BOUNDS:
        bound, beyond, wanted = _BOUNDS[kind]
        if kind == "string_too_short" and context[bound] == 1:
            return Wrong(where, kind, f"{name} is empty.", "some text")
        most = context[bound]
        return Wrong(where, kind, f"{name} is {beyond}.", wanted.format(f"{most:,}" if most == int(most) else most))
    if kind in _WANTED:
        wanted = _WANTED[kind]
        # What stands in an address is always a text, and so is a number in quotes.
        got = f"cannot be read as {wanted}" if kind.endswith("_parsing") else f"is {_kind_of(error.get('input'))}"
        return Wrong(where, kind, f"{name} {got}.", wanted)
    said = _plain(error["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        # A sentence of our own.
        return Wrong(where, kind, f"{said[:1].lower()}{said[1:]}.", "")
    return Wrong(where, kind, f"{name} is wrong.", said.removeprefix("Input should be "))


def _is_finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _where(error: Mapping[str, Any]) -> tuple[str | int, ...]:
    """The place, without the names that pydantic gives to what a value may be."""
    *way, last = error["loc"] or ("",)
    if way and way[0] not in ("body", "arguments"):
        return (*way, _plain(last))
    parts = [part for part in way if isinstance(part, int) or not _is_branch(part)]
    # A field that is not known has whatever name a client likes.
    if isinstance(last, int) or error["type"] == "extra_forbidden" or not way or not _is_branch(last):
        parts.append(last)
    return tuple(part if isinstance(part, int) else _plain(part) for part in parts)


def _is_branch(part: str) -> bool:
    """Such as `list[Part]`, `constrained-str`, `AgentMemoryBody`, `str`: our fields have other names."""
    return part[:1].isupper() or not part.isidentifier() or part in ("str", "int", "float", "bool")


def _name(where: tuple[str | int, ...]) -> str:
    place, *rest = where
    if not rest:
        return f"the {place}" if place in _PLACES else f"'{place}'" if place else "what was sent"
    return f"{_PLACES[str(place)]}'{_path(rest)}'" if place in _PLACES else f"'{_path(where)}'"


def _path(parts: Sequence[str | int]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return path.removeprefix(".")


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str() | bytes():
            return "a text"
        case list() | tuple():
            return "a list"
        case _:
            return "an object"


def _plain(part: object) -> str:
    return str(part).encode("utf-8", "replace").decode()[:200]
