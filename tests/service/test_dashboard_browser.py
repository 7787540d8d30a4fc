"""The dashboard in a real browser: what a reader does, and what a text from outside cannot do.

A browser that logs an error to its console, or asks anything of another machine, fails the test.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from listening import listening
from playwright import sync_api
from service_team import RIGHT, make_service, models, says, settings
from shelf import ShelfTool

from mia.models.base import ChatRequest
from mia.service.auth import add_token, tokens_path
from mia.service.core import Service
from mia.tools.base import ToolContext
from mia.types import Observation, Passage

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (CHROMIUM, or chromium in PATH)")
QUESTION = "Where was the discoverer of Titan born?"
PATIENCE = 60_000
"""Milliseconds, for a machine that has much to do."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # Names are not looked up: whatever is not loopback fails at once.
        rules = "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", f"--host-resolver-rules={rules}"], timeout=PATIENCE
        )
        yield started
        started.close()


class Reader:
    """A page of a browser of its own, and what went wrong in it."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(base_url=address, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        sync_api.expect.set_options(timeout=PATIENCE)
        self.wrong: list[str] = []
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.wrong.append(said.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda asked: asked.url.startswith(address) or self.wrong.append(f"asked {asked.url}"))

    def close(self) -> None:
        self.context.close()
        assert self.wrong == []


@pytest.fixture
def reader(browser: Any, tmp_path: Path) -> Iterator[Reader]:
    with listening(make_service(tmp_path / "home", delay=0.02)) as address:
        one = Reader(browser, address)
        yield one
        one.close()


def ask(page: Any, question: str = QUESTION, known: str = RIGHT) -> None:
    """And watch it to its end."""
    page.goto("/")
    page.fill("#question", question)
    page.click("text=Options")
    page.fill("#known", known)
    page.click("button.primary")
    page.wait_for_selector("#asked .answer")


def test_a_question_is_asked_watched_read_and_judged(reader: Reader) -> None:
    page = reader.page
    ask(page)
    expect = sync_api.expect
    expect(page.locator("#asked .answer .text")).to_have_text(RIGHT)
    names = page.locator("#asked .stages .name").all_inner_texts()
    assert [name.strip() for name in names] == ["recall", "plan", "execute", "reflect", "judge"]
    assert page.input_value("#question") == ""
    expect(page.locator("#now .item .q").first).to_have_text(QUESTION)
    page.click("text=Read the whole story")
    page.wait_for_url("**/episodes/*")
    expect(page.locator("h1")).to_have_text(QUESTION)
    expect(page.locator(".step").first).to_contain_text("Titan")
    thinking = page.locator(".step details", has_text="Thinking").first
    assert thinking.get_attribute("open") is None
    page.click("#wrong")
    expect(page.locator("#outcome .notice")).to_contain_text("Noted.")
    expect(page.locator("#outcome .badge").first).to_have_text("✗ incorrect")
    page.reload()
    expect(page.locator(".facts .badge")).to_have_text("✗ incorrect")


@pytest.mark.slow
def test_a_memory_is_found_forgotten_and_restored(reader: Reader) -> None:
    page, expect = reader.page, sync_api.expect
    ask(page)
    page.goto("/memories")
    page.fill("#q", "discoverer of Titan")
    expect(page.locator("#found .count")).to_contain_text("most alike")
    row = page.locator("li.memory")
    expect(row).to_have_count(1)
    row.get_by_role("button", name="Forget").click()
    expect(row.get_by_role("button", name="Restore")).to_be_visible()
    expect(row.locator(".badge")).to_have_text("forgotten")
    row.get_by_role("button", name="Restore").click()
    expect(row.get_by_role("button", name="Forget")).to_be_visible()
    row.locator("a").click()
    page.click("#quarantine")  # A form without htmx: its origin must come with it.
    expect(page.locator("#restore")).to_be_visible()
    expect(page.locator(".timeline li").first).to_contain_text("quarantine")


@pytest.mark.slow
def test_all_of_it_works_without_scripts(browser: Any, tmp_path: Path) -> None:
    with listening(make_service(tmp_path / "home")) as address:
        reader = Reader(browser, address, java_script_enabled=False)
        page, expect = reader.page, sync_api.expect
        page.goto("/")
        page.fill("#question", QUESTION)
        page.click("button.primary")
        page.wait_for_url("**/asks/*")
        expect(page.locator(".answer .text")).to_have_text(RIGHT)  # It reloads itself.
        page.click("text=Read the whole story")
        page.click("#right")
        expect(page.locator(".facts .badge")).to_have_text("✓ correct")
        reader.close()


@pytest.mark.slow
def test_the_keyboard_is_enough(reader: Reader) -> None:
    page, expect = reader.page, sync_api.expect
    ask(page)
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    assert page.locator(".skip").bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    page.keyboard.press("/")
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("Who found it?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#asked .answer")
    expect(page.locator("#now .item .q").first).to_have_text("Who found it?")
    expect(page.locator("#now .stage")).to_have_count(0)
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(page.locator("#now a.item").first).to_be_focused()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("j")
    expect(page.locator("#now a.item").nth(1)).to_be_focused()
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    page.wait_for_url("**/episodes/*")
    for path in ("/memories", "/learning", "/queue", "/status", "/docs"):
        page.goto(path)
        reached = set()
        for _ in range(12):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.outerHTML.slice(0, 80)"))
        assert len(reached) >= 10, path


@pytest.mark.slow
def test_a_token_lets_in_and_log_out_ends_it(browser: Any, tmp_path: Path) -> None:
    service = make_service(tmp_path / "home")
    token = add_token(tokens_path(service.config), "ann", scope="acme/ann", days=1)
    with listening(service) as address:
        reader = Reader(browser, address)
        page, expect = reader.page, sync_api.expect
        page.goto("/episodes")
        page.wait_for_url("**/login")
        page.fill("#token", token)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{address}/")
        expect(page.locator("footer")).to_contain_text("scope acme/ann")
        assert page.evaluate("document.cookie") == ""
        ask(page)
        page.click("text=Log out")
        page.wait_for_url("**/login")
        page.goto("/memories")
        page.wait_for_url("**/login")
        reader.close()


@pytest.mark.slow
def test_light_dark_and_narrow(browser: Any, tmp_path: Path) -> None:
    with listening(make_service(tmp_path / "home")) as address:
        for scheme in ("light", "dark"):
            reader = Reader(browser, address, color_scheme=scheme, viewport={"width": 375, "height": 812})
            page = reader.page
            ask(page)
            paths = (
                ("/", "/episodes", "/memories", "/learning", "/queue", "/status", "/docs")
                if scheme == "light"
                else ("/",)
            )
            for path in paths:
                page.goto(path)
                assert page.evaluate("document.documentElement.scrollWidth") <= 375, path
                menu = [one.bounding_box() for one in page.locator(".top nav a").all()]
                assert all(box["x"] >= 0 and box["x"] + box["width"] <= 375 for box in menu), path
            assert (_brightness(page) < 60) is (scheme == "dark")
            page.click("#theme")
            assert (_brightness(page) < 60) is (scheme == "light")
            page.reload()
            assert (_brightness(page) < 60) is (scheme == "light")
            reader.close()


def _brightness(page: Any) -> float:
    """Of the paper, 0 to 255."""
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    numbers = [float(one) for one in re.findall(r"[\d.]+", color)[:3]]
    return sum(numbers) / 3


# ── texts from outside ────────────────────────────────────────────────────────────────────────────────────────────

EVIL = (
    "</p></title></textarea></script><script>window.hit=1;alert(1)</script><img src=x onerror='window.hit=2'>"
    "<svg onload=window.hit=3><a href='javascript:window.hit=4'>x</a><style>*{display:none}</style>"
    '" autofocus onfocus="window.hit=5" x=\'{{ 7*7 }}\' \u202egnp.exe\u2066 \x01\x1b[31m \x85 '
    "<meta http-equiv=refresh content=0><div hx-get='http://evil.example/' hx-trigger=load></div>"
    "<iframe src='javascript:parent.hit=6'>"
)


class EvilTool(ShelfTool):
    """Finds what wants to be run."""

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        text = f"{EVIL} Titan was found by Huygens."
        found = Passage(id=f"p{EVIL}", title=EVIL, text=text, source="javascript:window.hit=7")
        return Observation(text=f"[{found.id}] {found.text}", passages=(found,))


def evil(request: ChatRequest) -> str:
    """A model that repeats what it should not."""
    if request.purpose in ("plan", "replan"):
        return f"<think>{EVIL}</think>1. Look up {EVIL}."
    if request.purpose == "reflect":
        return f"<think>{EVIL}</think>no"
    if request.purpose == "execute" and "<tool_response>" in request.messages[-1].content:
        return f"<think>{EVIL}</think><answer>Huygens {EVIL}</answer>"
    if request.purpose == "compress":
        return f"1. Look it up ({EVIL} → {EVIL})"
    if request.json_schema is not None:
        return json.dumps({"score": 9, "reason": EVIL, "correct": True, "verdict": "correct", "index": 0})
    return says(request)


@pytest.mark.slow
def test_no_text_from_outside_becomes_anything_but_text(browser: Any, tmp_path: Path) -> None:
    service = Service(settings(tmp_path / "home"), models=models(evil), tools=[EvilTool()])
    with listening(service) as address:
        reader = Reader(browser, address)
        page = reader.page
        ask(page, f"Who found Titan? {EVIL}", known="Huygens")
        story = page.locator("#asked .answer a").get_attribute("href")
        page.goto(story)
        page.fill("#reason", EVIL)
        page.click("#wrong")
        page.wait_for_selector("#outcome .notice")
        page.goto("/memories?state=all")  # The guard of the memory may have put it aside.
        memory = page.locator("li.memory a").first.get_attribute("href")
        query = quote(EVIL[:400])
        addresses = [
            "/",
            story,
            "/episodes",
            memory,
            "/queue",
            f"/memories?q={query}",
            "/memories?state=all",
            f"/episodes?run={query}",
        ]
        for path in addresses:
            page.goto(path)
            for details in page.locator("main details").all():
                details.evaluate("one => { one.open = true }")
            page.wait_for_timeout(150)
            assert page.evaluate("window.hit") is None, path
            acting = ("script", "style", "iframe", "img", "meta", "[onerror]", "[onload]", "[onfocus]")
            assert page.locator(", ".join(f"main {one}" for one in acting)).count() == 0
            assert page.locator("[href^='javascript'], [hx-get^='http']").count() == 0
            text = page.locator("body").inner_text()
            assert not set(text) & set("\u202e\u2066\x01\x1b\x85"), path
            assert page.locator("main").is_visible()
        page.goto(story)
        assert "<script>window.hit=1" in page.locator("h1").inner_text()
        assert "⟨U+202E⟩gnp.exe" in page.locator("h1").inner_text()
        assert "{{ 7*7 }}" in page.locator("h1").inner_text()
        reader.close()
