"""Questions files: JSON Lines (also .gz), an object a line.

    {"question": "…", "answers": ["…"], "id": "…", "images": ["a.jpg"], "caption": "…"}

Only `question` is needed. `answers` may be one string or a list, and may be called `answer`; other keys are left alone,
so common benchmark files work as they are. Image paths count from the folder of the file. Either the whole file is good
or nothing is done with any of it: every broken line is named.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mia.errors import RecordError
from mia.store.base import storable
from mia.types import Image, Question, Task

MAX_NAMED = 5
"""Broken lines that an error names; it counts the rest."""
MAX_ID = 200
"""Characters of an id."""


def read_tasks(path: Path) -> list[Task]:
    """All tasks of a questions file. Raises RecordError that names the broken lines."""
    tasks: list[Task] = []
    faults: list[str] = []
    line_of: dict[str, int] = {}
    for number, line in _lines(path):
        try:
            task = _read_task(line, path.parent)
        except RecordError as error:
            faults.append(f"line {number}: {error.got}")
            continue
        first = line_of.setdefault(task.question.id, number)
        if first != number:
            faults.append(f"line {number}: its id '{task.question.id}' is that of line {first}.")
        tasks.append(task)
    if faults:
        more = f"\n  … and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
        raise RecordError(
            f"'{path}' has {len(faults)} broken lines; nothing was run.\n  " + "\n  ".join(faults[:MAX_NAMED]) + more,
            wanted='a JSON object a line: {"question": "…", "answers": ["…"], "id": "…"}',
        )
    if not tasks:
        raise RecordError(f"'{path}' holds no question.", wanted='a JSON object a line: {"question": "…"}')
    return tasks


def make_task(
    text: str, *, id: str = "", images: tuple[Image, ...] = (), caption: str = "", references: Sequence[str] = ()
) -> Task:
    """A task from outside texts. Raises RecordError for what cannot be one.

    Lone surrogates, which can neither be sent nor stored, are replaced in texts, and refused in an id.
    """
    if len(id) > MAX_ID or storable(id) != id:
        raise RecordError(f"its id {id[:20]!r} is no text of at most {MAX_ID} characters.")
    question = Question.of(text, id=id, images=images, caption=storable(caption))
    return Task(question=question, references=tuple(storable(reference) for reference in references))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecordError(f"cannot read the questions file '{path}': {reason}.") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"'{path}' is no UTF-8 text ({error.reason} at byte {error.start}).") from error


def _read_task(line: str, folder: Path) -> Task:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"no JSON ({error}).") from error
    if not isinstance(content, dict):
        raise RecordError("no JSON object.")
    text, id = content.get("question"), content.get("id", "")
    if not isinstance(text, str):
        raise RecordError("no 'question', or one that is no text.")
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    if not isinstance(id, str):
        raise RecordError("its 'id' is neither a text nor a whole number.")
    caption = content.get("caption") or ""
    if not isinstance(caption, str):
        raise RecordError("its 'caption' is no text.")
    references = _texts(content.get("answers", content.get("answer", [])), "answers")
    images = tuple(_image(folder, name) for name in _texts(content.get("images", []), "images"))
    return make_task(text, id=id, images=images, caption=caption, references=references)


def _image(folder: Path, name: str) -> Image:
    if "\0" in name or storable(name) != name:
        raise RecordError(f"its image {name!r} is no path of a file.")
    return Image.from_file(folder / name)


def _texts(value: Any, name: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if name == "answers":
        # Years and counts stand as numbers in some files.
        values = [str(item) if type(item) in (int, float) else item for item in values]
    if not all(isinstance(item, str) for item in values):
        raise RecordError(f"its '{name}' are neither a text nor a list of texts.")
    return tuple(values)
