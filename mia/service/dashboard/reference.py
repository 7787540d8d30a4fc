"""`/docs`: the HTTP API as a page, made of the schema that the app itself has. It loads nothing from elsewhere."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from mia.service.dashboard.rendering import PageRoute, page

router = APIRouter(prefix="/docs", include_in_schema=False, route_class=PageRoute)

_LINE_END = re.compile(r"(?<!\n)\n(?!\n)")
_METHODS = ("get", "post", "put", "patch", "delete")
_DEPTH = 4
"""Levels of a schema that are shown."""
_PROBLEM = "Problem"
"""The schema of every error, which is told once."""


@dataclass(frozen=True)
class Field:
    """A parameter, or a field of a body."""

    name: str
    kind: str
    required: bool
    about: str
    where: str = ""
    """Of a parameter: path, query, header."""
    depth: int = 0


@dataclass(frozen=True)
class Reply:
    status: str
    about: str
    kinds: str
    """Its media types."""
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    summary: str
    about: str
    parameters: tuple[Field, ...]
    body_kind: str
    body: tuple[Field, ...]
    replies: tuple[Reply, ...]
    problems: tuple[str, ...]
    """The statuses of its errors."""
    curl: str

    @property
    def anchor(self) -> str:
        letters = "".join(letter if letter.isalnum() else "-" for letter in self.path)
        return f"{self.method}{letters}".lower().strip("-")


@router.get("")
async def show(request: Request) -> Response:
    # The app makes its schema once; what is made of it here is kept beside it.
    kept = getattr(request.app.state, "reference", None)
    if kept is None:
        schema = request.app.openapi()
        kept = request.app.state.reference = (schema["info"], by_tag(schema))
    info, groups = kept
    base = f"{request.url.scheme}://{request.url.netloc}"
    return page(request, "docs.html", info=info, groups=groups, base=base)


def by_tag(schema: Mapping[str, Any]) -> list[tuple[str, list[Operation]]]:
    """Tags and what belongs to them, in the order of the schema."""
    groups: dict[str, list[Operation]] = {}
    for path, methods in schema.get("paths", {}).items():
        for method in _METHODS:
            if method in methods:
                tag = next(iter(methods[method].get("tags", [])), "other")
                groups.setdefault(tag, []).append(_operation(schema, path, method, methods[method]))
    return list(groups.items())


def _operation(schema: Mapping[str, Any], path: str, method: str, page: Mapping[str, Any]) -> Operation:
    parameters = [_resolved(schema, one) for one in page.get("parameters", [])]
    content = _resolved(schema, page.get("requestBody", {})).get("content", {})
    body_kind, body = next(((kind, one.get("schema", {})) for kind, one in content.items()), ("", {}))
    replies, problems = [], []
    for status, reply in page.get("responses", {}).items():
        reply = _resolved(schema, reply)
        kinds = reply.get("content", {})
        shapes = [one.get("schema", {}) for one in kinds.values()]
        if any(shape.get("$ref", "").endswith(f"/{_PROBLEM}") for shape in shapes) or status == "422":
            problems.append(status)
            continue
        fields = tuple(_fields(schema, shapes[0])) if shapes else ()
        replies.append(Reply(status, reply.get("description", ""), ", ".join(kinds), fields))
    return Operation(
        method=method.upper(),
        path=path,
        summary=page.get("summary", ""),
        about=_LINE_END.sub(" ", page.get("description", "")),
        parameters=tuple(
            Field(
                one["name"],
                _kind(schema, one.get("schema", {})),
                bool(one.get("required")),
                one.get("description", "") or one.get("schema", {}).get("description", ""),
                one["in"],
            )
            for one in parameters
        ),
        body_kind=body_kind,
        body=tuple(_fields(schema, body)),
        replies=tuple(replies),
        problems=tuple(problems),
        curl=_curl(schema, path, method, parameters, body_kind, body),
    )


def _resolved(schema: Mapping[str, Any], shape: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference refers to."""
    for _ in range(_DEPTH):
        reference = shape.get("$ref", "")
        if not reference:
            break
        target: Any = schema
        for part in reference.removeprefix("#/").split("/"):
            target = target.get(part, {})
        shape = target
    return shape


def _alternatives(shape: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Its kinds, without null."""
    kinds = shape.get("anyOf") or shape.get("oneOf") or shape.get("allOf") or [shape]
    return [one for one in kinds if one.get("type") != "null"] or [shape]


def _kind(schema: Mapping[str, Any], shape: Mapping[str, Any], depth: int = 0) -> str:
    """In words: "string", "list of integer", "one of a, b"."""
    if depth > _DEPTH:
        return "…"
    several = _alternatives(shape)
    if len(several) > 1:
        return " or ".join(dict.fromkeys(_kind(schema, one, depth + 1) for one in several))
    name = several[0].get("$ref", "").rpartition("/")[2]
    shape = _resolved(schema, several[0])
    if "enum" in shape:
        return f"one of {', '.join(json.dumps(one) for one in shape['enum'])}"
    if "const" in shape:
        return json.dumps(shape["const"])
    kind = shape.get("type", "any")
    if kind == "array":
        return f"list of {_kind(schema, shape.get('items', {}), depth + 1)}"
    return name if name and kind == "object" else str(kind)


def _fields(schema: Mapping[str, Any], shape: Mapping[str, Any], depth: int = 0) -> Iterator[Field]:
    """The fields of an object, those of its parts below it."""
    if depth >= _DEPTH:
        return
    for one in _alternatives(_resolved(schema, shape)):
        one = _resolved(schema, one)
        if one.get("type") == "array":
            yield from _fields(schema, one.get("items", {}), depth)
            continue
        needed = one.get("required", [])
        for name, part in one.get("properties", {}).items():
            about = part.get("description", "")
            yield Field(name, _kind(schema, part), name in needed, about, depth=depth)
            yield from _fields(schema, part, depth + 1)


# ── an example ────────────────────────────────────────────────────────────────────────────────────────────────────


def _curl(
    schema: Mapping[str, Any],
    path: str,
    method: str,
    parameters: list[Mapping[str, Any]],
    body_kind: str,
    body: Mapping[str, Any],
) -> str:
    """What to type; {base} stands for the server's address."""
    query = "&".join(
        f"{one['name']}={_example(schema, one.get('schema', {}), one['name'])}"
        for one in parameters
        if one["in"] == "query" and one.get("required")
    )
    words = ["curl"] + ([] if method == "get" else ["-X", method.upper()])
    words.append(shlex.quote(f"BASE{path}{f'?{query}' if query else ''}"))
    words += ["-H", '"Authorization: Bearer $MIA_TOKEN"']
    if body_kind:
        words += ["-H", shlex.quote(f"content-type: {body_kind}")]
        content = json.dumps(_example(schema, body, ""), ensure_ascii=False) if "json" in body_kind else "@file"
        words += ["--data-binary", shlex.quote(content)]
    return " ".join(words)


_EXAMPLES: Mapping[str, Any] = {"string": "…", "integer": 1, "number": 0.5, "boolean": True, "null": None}
_KNOWN: Mapping[str, Any] = {
    "question": "Where was the discoverer of Titan born?",
    "query": "Where was the discoverer of Titan born?",
    "text": "Titan",
}


def _example(schema: Mapping[str, Any], shape: Mapping[str, Any], name: str, depth: int = 0) -> Any:
    """A value of this kind; of an object, what it needs."""
    if "default" in shape and depth == 0:
        return shape["default"]
    if shape.get("examples"):
        return shape["examples"][0]
    shape = _resolved(schema, _alternatives(_resolved(schema, shape))[0])
    if "enum" in shape:
        return shape["enum"][0]
    if "const" in shape:
        return shape["const"]
    kind = shape.get("type", "any")
    if kind == "array":
        return [] if depth > _DEPTH else [_example(schema, shape.get("items", {}), name, depth + 1)]
    if kind == "object" or "properties" in shape:
        if depth > _DEPTH:
            return {}
        properties = shape.get("properties", {})
        wanted = shape.get("required") or list(properties)[:1]
        return {key: _example(schema, properties.get(key, {}), key, depth + 1) for key in wanted}
    return _KNOWN.get(name, _EXAMPLES.get(kind, "…")) if kind == "string" else _EXAMPLES.get(kind, "…")
