"""The image search: what the cache holds, once per run, and nothing outside the cache."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mia.errors import ToolError
from mia.tools.base import BadArguments, ToolContext
from mia.tools.images import ImageSearchTool
from mia.types import Image, Observation, Question, Step, ToolCall

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
ASKED = {"img_idx": "0"}


def context(question_id: str = "q-1", *steps: Step) -> ToolContext:
    return ToolContext(Question.of("What is this?", id=question_id, images=(Image.from_bytes(PIXEL),)), steps)


def put(folder: Path, meta: object = None, *pictures: str) -> Path:
    """A cache folder for one question."""
    folder.mkdir(parents=True)
    if meta is not None:
        (folder / "meta.json").write_text(meta if isinstance(meta, str) else json.dumps(meta), encoding="utf-8")
    for name in pictures:
        (folder / name).write_bytes(PIXEL)
    return folder


@pytest.mark.parametrize(
    "meta",
    [
        {"search_results": [{"title": " Brindle  Point "}, {"link": "x"}, {"title": ""}, {"title": "Lighthouses"}]},
        {"title_list": ["Brindle Point", None, "Lighthouses"]},
        {"search_results": [], "title_list": ["Brindle Point", "Lighthouses"]},
    ],
)  # fmt: skip
async def test_titles_are_shown_as_passages(tmp_path: Path, meta: object) -> None:
    put(tmp_path / "q-1", meta, "img_000.jpg", "img_001.webp")
    observation = await ImageSearchTool(tmp_path).call(ASKED, context())
    assert observation.text == (
        "Titles of pages with similar images (2 similar images in the cache):\n"
        "[image:q-1#0] Brindle Point\n[image:q-1#1] Lighthouses"
    )
    assert [passage.text for passage in observation.passages] == ["Brindle Point", "Lighthouses"]


async def test_at_most_three(tmp_path: Path) -> None:
    put(tmp_path / "q-1", {"title_list": list("abcdef")}, *(f"img_00{number}.png" for number in range(6)))
    observation = await ImageSearchTool(tmp_path).call(ASKED, context())
    assert len(observation.passages) == 3
    assert "(3 similar images" in observation.text


async def test_no_titles_and_no_pictures(tmp_path: Path) -> None:
    put(tmp_path / "pictures", {"id": "pictures"}, "img_000.png")
    put(tmp_path / "bare")
    put(tmp_path / "broken").joinpath("img_000.jpg").write_bytes(b"no picture")
    tool = ImageSearchTool(tmp_path)
    assert "1 similar image, and no page titles" in (await tool.call(ASKED, context("pictures"))).text
    for name in ("bare", "broken"):
        assert (await tool.call(ASKED, context(name))).text == "The image search found nothing."


async def test_once_per_run_and_a_failure_does_not_count(tmp_path: Path) -> None:
    put(tmp_path / "q-1", {"title_list": ["Brindle Point"]})

    def step(*, ok: bool) -> Step:
        call = ToolCall(name="web_image_to_image_search", arguments=dict(ASKED))
        return Step(index=0, text="", tool_call=call, observation=Observation(text="…", ok=ok))

    tool = ImageSearchTool(tmp_path)
    assert (await tool.call(ASKED, context("q-1", step(ok=False)))).passages
    with pytest.raises(BadArguments, match="once already"):
        await tool.call(ASKED, context("q-1", step(ok=True), Step(index=1, text="")))


async def test_only_with_an_image(tmp_path: Path) -> None:
    put(tmp_path / "q-1", {"title_list": ["Brindle Point"]})
    with pytest.raises(BadArguments, match="no image"):
        await ImageSearchTool(tmp_path).call(ASKED, ToolContext(Question.of("What?", id="q-1")))


@pytest.mark.parametrize(
    "arguments", [{}, {"img_idx": 0}, {"img_idx": "1"}, {"img_idx": "0", "k": 1}, {"img_idx": ["0"]}]
)
async def test_wrong_arguments(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(BadArguments, match='"img_idx"'):
        await ImageSearchTool(tmp_path).call(arguments, context())


@pytest.mark.parametrize(
    "question_id",
    ["..", ".", "../outside", "a/b", "/etc", "a\\b", "nul\0byte", "link", "x" * 200, "missing", "half \ud800"],
)
async def test_no_id_leads_out_of_the_cache(tmp_path: Path, question_id: str) -> None:
    cache = tmp_path / "cache"
    put(cache / "inside", {"title_list": ["Brindle Point"]})
    put(tmp_path / "outside", {"title_list": ["SECRET"]})
    put(tmp_path / "meta", {"title_list": ["SECRET"]})
    (cache / "link").symlink_to(tmp_path / "outside")
    question = Question.model_construct(id=question_id, text="What?", images=(Image.from_bytes(PIXEL),), caption="")
    with pytest.raises(ToolError) as caught:
        await ImageSearchTool(cache).call(ASKED, ToolContext(question))
    assert str(tmp_path) not in str(caught.value)


async def test_no_file_in_a_folder_leads_out_of_the_cache(tmp_path: Path) -> None:
    outside = put(tmp_path / "outside", {"title_list": ["SECRET"]}, "img_000.png")
    folder = put(tmp_path / "cache" / "q-1")
    (folder / "meta.json").symlink_to(outside / "meta.json")
    with pytest.raises(ToolError, match="out of the cache"):
        await ImageSearchTool(tmp_path / "cache").call(ASKED, context())
    (folder / "meta.json").unlink()
    (folder / "img_000.png").symlink_to(outside / "img_000.png")
    with pytest.raises(ToolError, match="out of the cache"):
        await ImageSearchTool(tmp_path / "cache").call(ASKED, context())


async def test_a_link_that_stays_in_the_cache_is_followed(tmp_path: Path) -> None:
    put(tmp_path / "cache" / "q-1", {"title_list": ["Brindle Point"]})
    (tmp_path / "cache" / "q-2").symlink_to("q-1")
    (tmp_path / "elsewhere").symlink_to("cache")
    assert (await ImageSearchTool(tmp_path / "elsewhere").call(ASKED, context("q-2"))).passages


@pytest.mark.parametrize("meta", ["{", "[]", "\x00", "[" * 100_000, '"' + "x" * (1 << 20) + '"'])
async def test_a_record_that_cannot_be_read(tmp_path: Path, meta: str) -> None:
    put(tmp_path / "q-1", meta)
    with pytest.raises(ToolError, match="record of this image"):
        await ImageSearchTool(tmp_path).call(ASKED, context())


@pytest.mark.parametrize(
    "meta", [{"search_results": "x", "title_list": 3}, {"search_results": [1, None, []]}, {"title_list": [{}]}]
)
async def test_a_record_of_another_form_has_no_titles(tmp_path: Path, meta: object) -> None:
    put(tmp_path / "q-1", meta)
    assert (await ImageSearchTool(tmp_path).call(ASKED, context())).text == "The image search found nothing."


async def test_half_surrogates_in_a_title_do_not_survive(tmp_path: Path) -> None:
    put(tmp_path / "q-1", '{"title_list": ["Brindle \\ud800 Point"]}')
    observation = await ImageSearchTool(tmp_path).call(ASKED, context())
    assert observation.passages[0].text == "Brindle ? Point"


async def test_real_folders() -> None:
    """Folders of real questions: a picture each, and records without titles."""
    if not os.environ.get("MIA_DATA"):
        pytest.skip("needs MIA_DATA, the folder of shared data")
    cache = Path(os.environ["MIA_DATA"]) / "images"
    folders = [folder for folder in cache.iterdir() if folder.is_dir()]
    assert folders
    for folder in folders:
        observation = await ImageSearchTool(cache).call(ASKED, context(folder.name))
        assert observation.text.startswith("The image search found 1 similar image, and no page titles"), folder.name
