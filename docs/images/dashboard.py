"""Makes the screenshots of the dashboard (docs/dashboard.md): `python docs/images/dashboard.py [--home FOLDER]`.

The embedded model answers questions of the offline world, learns from them (memory and weights), and then a browser
looks at the pages. Nothing in the pictures is written by hand. It takes some minutes; a home that is kept is gone on
with. Wants the extras `service` and `local`, and playwright with a Chromium (`CHROMIUM` names it, or PATH has it).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

import uvicorn
from playwright.async_api import Browser, Page, async_playwright

from mia.config import Config, load_config
from mia.service.app import create_app
from mia.service.core import Service
from mia.types import Task
from mia.world import preset
from mia.world.facts import World
from mia.world.questions import tasks

HERE = Path(__file__).parent
LEARNT, SEEN_WHILE, BATCH = 70, 240, 8
"""Questions that are asked before the pictures are taken, and while they are."""
WIDE, NARROW = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


def settings(home: Path) -> Config:
    """The embedded model in the world of the demonstration, learning from what it is asked."""
    flags: dict[str, Any] = {"home": home, "search.engine": "world", "search.k": preset.PASSAGES}
    flags |= {f"models.default.{name}": value for name, value in preset.MODEL.items()}
    flags |= {f"memory.{name}": value for name, value in preset.MEMORY.items()}
    flags |= {f"learn.{name}": value for name, value in preset.LEARN.items()}
    flags |= {"learn.enabled": True, "learn.batch": BATCH, "learn.canary": 6, "judge.kind": "reference"}
    return load_config(flags=flags)


async def fill(service: Service, questions: list[Task]) -> None:
    """Ask what was not asked before, a batch at a time, so that each is answered with what came of the one before."""
    learner = service.learner
    assert learner is not None
    known = {score.question_id for score in learner.scores}
    left = [task for task in questions if task.question.id not in known]
    for start in range(0, len(left), BATCH):
        batch = left[start : start + BATCH]
        await asyncio.gather(*(service.ask(task, service.config.memory.scope) for task in batch))
        await learner.flush()


class Server:
    """The service on a free port of loopback."""

    def __init__(self, service: Service) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None, access_log=False))
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Server:
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listening]))
        while not self._server.started:  # noqa: ASYNC110 (uvicorn has no event for it)
            await asyncio.sleep(0.05)
        return self

    async def __aexit__(self, *why: object) -> None:
        self._server.should_exit = True
        assert self._task is not None
        await self._task


async def opened(browser: Browser, address: str, *, dark: bool, size: dict[str, int]) -> Page:
    """A page in a window of its own."""
    context = await browser.new_context(
        viewport=size,  # type: ignore[arg-type]
        color_scheme="dark" if dark else "light",
        locale="en-GB",
    )
    page = await context.new_page()
    page.set_default_timeout(180_000)
    await page.goto(address)
    await page.wait_for_load_state("load")
    await page.wait_for_timeout(300)  # Scripts have told the times.
    return page


async def look(browser: Browser, address: str, out: Path, name: str, *, dark: bool, size: dict[str, int]) -> None:
    """One page, as a file of its own."""
    page = await opened(browser, address, dark=dark, size=size)
    await page.screenshot(path=str(out / name))
    await page.context.close()


async def shoot(service: Service, address: str, questions: list[Task], out: Path, *, every: bool) -> None:
    """`every`: each page, light and dark, wide and narrow, for a look at all of them."""
    assert service.learner is not None
    story = await best_story(service)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium"), args=["--no-sandbox"]
        )
        pages = {
            "episode": f"/episodes/{story}",
            "memories": "/memories",
            "learning": "/learning",
        }
        for name, path in pages.items():
            await look(browser, address + path, out, f"dashboard-{name}.png", dark=name == "learning", size=WIDE)
        if every:
            memory = service.store.list_memories(None, limit=1)[0].id
            more = {
                "live": "/",
                "memory": f"/memories/{memory}",
                "queue": "/queue",
                "status": "/status",
                "docs": "/docs",
            }
            for name, path in (pages | more).items():
                for dark in (False, True):
                    for size in (WIDE, NARROW):
                        said = f"all-{name}-{'dark' if dark else 'light'}-{'wide' if size is WIDE else 'narrow'}.png"
                        await look(browser, address + path, out, said, dark=dark, size=size)
        page = await opened(browser, f"{address}/", dark=False, size=WIDE)
        job = await service.submit(questions, service.config.memory.scope)
        while (await asyncio.to_thread(service.durable.job, job.id)).counts.get("answered", 0) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        await page.wait_for_selector("a.job .badge >> text=running")
        # Not by a function in the page: the content security policy lets none be made of text.
        while int((await page.locator("a.job .head strong").inner_text()).split()[0]) < 3:
            await page.wait_for_timeout(200)
        await page.screenshot(path=str(out / "dashboard-live.png"))
        await service.cancel(job.id)
        await browser.close()


async def best_story(service: Service) -> str:
    """Of the last right answers, the one with memories, a second plan and the most to tell."""
    episodes = await asyncio.to_thread(service.store.list_episodes, scope=None, limit=100)

    def worth(one: Any) -> tuple[bool, int, int]:
        right = one.verdict is not None and one.verdict.correct
        shown = len(one.recall.shown) if one.recall is not None else 0
        return right and shown > 0, len(one.attempts), len(one.steps)

    return max(episodes, key=worth).id


async def main(home: Path, out: Path, *, every: bool) -> None:
    config = settings(home)
    service = Service(config)
    questions = tasks(World.make(config.search.world), LEARNT + SEEN_WHILE)
    async with Server(service) as server:
        await fill(service, questions[:LEARNT])
        assert service.learner is not None
        await service.learner.flush()
        await shoot(service, server.address, questions[LEARNT:], out, every=every)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="keep what was learnt here, and go on with it")
    parser.add_argument("--out", type=Path, default=HERE, help="where the pictures go")
    parser.add_argument("--every", action="store_true", help="every page, light and dark, wide and narrow")
    chosen = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = chosen.home or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        asyncio.run(main(folder, chosen.out, every=chosen.every))
