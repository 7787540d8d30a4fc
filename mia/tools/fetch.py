"""`fetch`: one page of the public web, as text with passages that can be cited.

Every request goes through the guard's transport, redirects too, which are followed by hand. Size is capped while the
body is unpacked, piece by piece; time is capped for connecting, for silence and in all. A page that is longer than its
cap is cut, and says so. Whatever goes wrong is a `ToolError` with a plain reason. No cookie is kept, nothing is cached.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, replace
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx2

from mia import __version__
from mia.errors import AddressForbidden, ToolError
from mia.models.base import ToolSchema
from mia.search.documents import split_text
from mia.search.pages import Page, kind_of, read_page
from mia.tools.addresses import AddressGuard, GuardedTransport
from mia.tools.base import BadArguments, ToolContext
from mia.types import Observation, Passage

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_CODINGS = frozenset(("identity", "gzip", "deflate"))


@dataclass(frozen=True)
class FetchLimits:
    """What is too much."""

    bytes: int = 5 * 1024 * 1024
    """Of a body, unpacked. Text is cut there; a PDF of which the end is missing cannot be read."""
    connect_seconds: float = 10.0
    silent_seconds: float = 10.0
    """Between two pieces of an answer."""
    seconds: float = 30.0
    """For everything: redirects, body and reading it."""
    redirects: int = 5
    characters: int = 12_000
    """Of text in the observation: some 2,000 words."""


@dataclass(frozen=True)
class Fetched:
    """A page and where it was found in the end."""

    address: str
    page: Page


class FetchTool:
    schema = ToolSchema(
        name="fetch",
        description="Read a public web page or PDF: give its URL, get its text.",
        parameters={
            "type": "object",
            "properties": {"url": {"type": "string", "minLength": 1, "description": "http://… or https://…"}},
            "required": ["url"],
            "additionalProperties": False,
        },
    )

    def __init__(
        self,
        guard: AddressGuard | None = None,
        limits: FetchLimits = FetchLimits(),
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """`ssl_context`: whom to trust; None: the certificate authorities of this machine."""
        self._guard = guard or AddressGuard()
        self._limits = limits
        self._ssl_context = ssl_context
        self._client: httpx2.AsyncClient | None = None

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        """Raises ToolError or BadArguments."""
        url = arguments.get("url")
        if arguments.keys() != {"url"} or not isinstance(url, str) or not url.strip():
            raise BadArguments('fetch takes "url", a string, and nothing else.', hint='{"url": "https://…"}')
        return self.observe(await self.page(url))

    async def page(self, url: str) -> Fetched:
        """All of a page's text, within the limits of `FetchLimits` but for what an observation may show. Raises
        ToolError."""
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await self._fetch(url.strip())
        except TimeoutError:
            raise ToolError(f"{_shown(url)} took longer than {self._limits.seconds:g} seconds.") from None

    async def close(self) -> None:
        """Let go of connections; a later call opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _fetch(self, url: str) -> Fetched:
        at = self._guard.check(url)
        try:
            for _ in range(self._limits.redirects + 1):
                async with self._connected().stream("GET", at) as response:
                    target = _redirect(response)
                    if target is not None:
                        at = target
                        continue
                    content, whole = await self._read(response)
                    content_type = response.headers.get("content-type", "")
                page = await asyncio.to_thread(read_page, content, content_type)
                return Fetched(str(at.copy_with(fragment=None)), replace(page, whole=whole and page.whole))
        except httpx2.TimeoutException:
            raise ToolError(f"{_shown(at)} does not answer in time.") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ToolError(f"{_shown(at)} cannot be read: {_reason(error)}.") from None
        except AddressForbidden:
            raise
        except ToolError as error:
            raise ToolError(f"{_shown(at)}: {error.got}", wanted=error.wanted) from error
        raise ToolError(f"{_shown(url)} redirects more than {self._limits.redirects} times.")

    async def _read(self, response: httpx2.Response) -> tuple[bytes, bool]:
        """The body up to the cap, and whether that is all of it. Raises ToolError for an answer that is no page."""
        if not response.is_success:
            raise ToolError(f"it answers with status {response.status_code}.")
        kind = kind_of(response.headers.get("content-type", ""))
        codings = [coding.strip().lower() for coding in response.headers.get_list("content-encoding", True)]
        if len(codings) > 1 or not _CODINGS.issuperset(codings):
            # Packed twice, a few bytes could unpack to nothing for ever.
            raise ToolError("it is packed in a way that is not read.")
        content = bytearray()
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > self._limits.bytes:
                if kind == "pdf" or content.startswith(b"%PDF-"):
                    raise ToolError(f"it is a PDF of more than {self._limits.bytes:,} bytes, which is not read.")
                return bytes(content[: self._limits.bytes]), False
        return bytes(content), True

    def fits(self, fetched: Fetched) -> bool:
        """Whether an observation shows all of the page's text."""
        return len(fetched.page.text.strip()) <= self._limits.characters

    def observe(self, fetched: Fetched) -> Observation:
        """A page as the model sees it: from its beginning as much as the limit allows, in passages."""
        address, page = fetched.address, fetched.page
        shown, whole = page.text.strip()[: self._limits.characters], page.whole and self.fits(fetched)
        passages = tuple(
            Passage(id=f"{address}#{number}", title=page.title, text=text, source=address)
            for number, text in enumerate(split_text(shown))
        )
        parts = [f"{page.title}\n{address}".lstrip(), *(f"[{passage.id}]\n{passage.text}" for passage in passages)]
        if not whole:
            parts.append(f"[The page is longer: it was cut after {len(shown):,} characters.]")
        return Observation(text="\n\n".join(parts), passages=passages)

    def _connected(self) -> httpx2.AsyncClient:
        if self._client is None:
            limits = self._limits
            self._client = httpx2.AsyncClient(
                transport=GuardedTransport(self._guard, ssl_context=self._ssl_context),
                timeout=httpx2.Timeout(limits.silent_seconds, connect=limits.connect_seconds, pool=None),
                headers={
                    "User-Agent": f"mia-agent/{__version__}",
                    "Accept": "text/html, application/xhtml+xml, text/*, application/json, application/pdf;q=0.9",
                    "Accept-Encoding": "gzip, deflate",
                },
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
                follow_redirects=False,
                trust_env=False,
            )
        return self._client


def _redirect(response: httpx2.Response) -> httpx2.URL | None:
    """Where an answer points to; None if it is no redirect."""
    location = response.headers.get("location", "")
    if response.status_code not in _REDIRECTS or not location:
        return None
    return response.request.url.join(location)


def _reason(error: Exception) -> str:
    """What an HTTP client's error says, short and on one line; its name where it says nothing."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")


def _shown(url: str | httpx2.URL) -> str:
    text = " ".join(str(url).split())
    return text if len(text) <= 200 else text[:199] + "…"
