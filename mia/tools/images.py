"""`web_image_to_image_search`: what a reverse image search once found for a question's image, from a cache folder.

The folder of a question is `<cache>/<question id>/` with `meta.json` (`search_results[].title`, or `title_list`) and
the pictures that were found, `img_000.jpg`, `img_001.png`, …. Nothing outside the cache is ever read, whatever the id
says and wherever a link points. The tool runs with success at most once per run, and only on a question with an image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mia.errors import RecordError, ToolError
from mia.models.base import ToolSchema
from mia.tools.base import BadArguments, ToolContext
from mia.types import Image, Observation, Passage

MAX_RESULTS = 3
_MAX_META_BYTES = 1024 * 1024
_MAX_IMAGE_BYTES = 20 * 1024 * 1024
_SUFFIXES = (".jpg", ".png", ".webp")


class ImageSearchTool:
    schema = ToolSchema(
        name="web_image_to_image_search",
        description=(
            "Find web pages with images like the image of the question, and see their titles. "
            "Use it at most once, and only if the question has an image."
        ),
        parameters={
            "type": "object",
            "properties": {"img_idx": {"type": "string", "enum": ["0"], "description": "The image: always '0'."}},
            "required": ["img_idx"],
            "additionalProperties": False,
        },
    )

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        """Raises ToolError or BadArguments."""
        if arguments != {"img_idx": "0"}:
            raise BadArguments(
                'web_image_to_image_search takes "img_idx", which is always "0".', hint='{"img_idx": "0"}'
            )
        if not context.question.images:
            raise BadArguments("the question has no image, so there is nothing to search with. Use search.")
        for step in context.steps:
            call, observation = step.tool_call, step.observation
            if call is not None and call.name == self.schema.name and observation is not None and observation.ok:
                raise BadArguments("the image was searched once already, and once is all. Use what it found.")
        folder = self._folder(context.question.id)
        titles = _read_titles(self._inside(folder / "meta.json"))
        pictures = self._count_pictures(folder)
        return _observe(context.question.id, titles, pictures)

    async def close(self) -> None:
        """There is nothing to close."""

    def _folder(self, question_id: str) -> Path:
        if question_id in (".", "..") or any(character in question_id for character in "/\\\0"):
            raise ToolError("the image search cannot serve this question: its id is no plain name.")
        folder = self._inside(self._cache / question_id)
        if folder is None or not folder.is_dir():
            raise ToolError("the image search knows nothing of this question's image.")
        return folder

    def _inside(self, path: Path) -> Path | None:
        """The path with its links followed; None if nothing is there. Raises ToolError if it leads out of the cache."""
        try:
            resolved = path.resolve(strict=True)
            cache = self._cache.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # ValueError: a name that no file system can hold.
            return None
        if not resolved.is_relative_to(cache):
            raise ToolError("the image search cannot serve this question: its folder leads out of the cache.")
        return resolved

    def _count_pictures(self, folder: Path) -> int:
        """How many pictures lie there that can be read, up to the limit."""
        count = 0
        for number in range(MAX_RESULTS):
            found = [self._inside(folder / f"img_{number:03}{suffix}") for suffix in _SUFFIXES]
            count += any(path is not None and _is_picture(path) for path in found)
        return count


def _is_picture(path: Path) -> bool:
    try:
        if not path.is_file() or path.stat().st_size > _MAX_IMAGE_BYTES:
            return False
        Image.from_file(path)
    except (OSError, RecordError):
        return False
    return True


def _read_titles(meta: Path | None) -> list[str]:
    """The first titles that `meta.json` holds; none if it holds none. Raises ToolError if it cannot be read."""
    if meta is None:
        return []
    try:
        if not meta.is_file() or meta.stat().st_size > _MAX_META_BYTES:
            raise ToolError("the image search's record of this image is too large, or no file.")
        page = json.loads(meta.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ToolError(f"the image search's record of this image cannot be read ({type(error).__name__}).") from error
    if not isinstance(page, dict):
        raise ToolError("the image search's record of this image cannot be read (no JSON object).")
    results, listed = page.get("search_results"), page.get("title_list")
    found = [result.get("title") for result in results if isinstance(result, dict)] if isinstance(results, list) else []
    if not found and isinstance(listed, list):
        found = listed
    # JSON can spell half a surrogate pair, which is no text.
    titles = [" ".join(title.encode("utf-8", "replace").decode().split()) for title in found if isinstance(title, str)]
    return [title for title in titles if title][:MAX_RESULTS]


def _observe(question_id: str, titles: list[str], pictures: int) -> Observation:
    found = f"{pictures} similar image{'' if pictures == 1 else 's'}"
    if not titles:
        if not pictures:
            return Observation(text="The image search found nothing.")
        return Observation(text=f"The image search found {found}, and no page titles that would say what they show.")
    passages = tuple(
        Passage(id=f"image:{question_id}#{number}", title="Title of a page with a similar image", text=title)
        for number, title in enumerate(titles)
    )
    lines = [f"[{passage.id}] {passage.text}" for passage in passages]
    return Observation(
        text="\n".join([f"Titles of pages with similar images ({found} in the cache):", *lines]), passages=passages
    )
