"""The address guard: what is public, what a URL may say, and that a connection goes where the check looked."""

from __future__ import annotations

import ipaddress
import shutil
import ssl
import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from web_server import WebServer, page

from mia.errors import AddressForbidden, ToolError
from mia.tools.addresses import AddressGuard, GuardedTransport, is_public

PRIVATE = (
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.8.8.8", "168.63.129.16",
    "169.254.169.254", "172.16.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::127.0.0.1",
    "64:ff9b::10.0.0.1", "64:ff9b:1::8.8.8.8", "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1", "2002:7f00:1::", "2002:808:808::", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254",
    "fe80::1", "fec0::1", "ff02::1",
)  # fmt: skip
PUBLIC = ("1.1.1.1", "8.8.8.8", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e", "64:ff9b::8.8.8.8")


def resolver(*answers: Sequence[str]):
    """Gives each answer once, and the last one for ever; `asked` says for what."""
    left = list(answers)

    async def resolve(host: str, port: int) -> Sequence[str]:
        resolve.asked.append(host)
        return left.pop(0) if len(left) > 1 else left[0]

    resolve.asked = []
    return resolve


# ── addresses ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_public_is_refused(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(AddressForbidden):
        AddressGuard().check(f"http://{host}/")


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses())
def test_no_address_that_is_not_global_is_public(address: IPv4Address | IPv6Address) -> None:
    if not address.is_global or address.is_multicast:
        assert not is_public(address)


@pytest.mark.parametrize(
    "network", [ipaddress.ip_network(text) for text in ("10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "fc00::/7")]
)
@given(data=st.data())
def test_nothing_of_a_private_network_is_public(network: ipaddress.IPv4Network, data: st.DataObject) -> None:
    assert not is_public(network[data.draw(st.integers(0, network.num_addresses - 1))])


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_counts_as_itself_or_not_at_all(inner: IPv4Address) -> None:
    number = int(inner)
    assert is_public(IPv6Address((0x64FF9B << 96) | number)) == is_public(inner), "NAT64"
    assert not is_public(IPv6Address((0xFFFF << 32) | number)), "IPv4-mapped"
    assert not is_public(IPv6Address(number)), "IPv4-compatible"
    assert not is_public(IPv6Address((0x2002 << 112) | (number << 80))), "6to4"
    assert not is_public(IPv6Address((0x20010000 << 96) | (number ^ 0xFFFFFFFF))), "Teredo"


# ── URLs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://example.org/", "gopher://example.org/", "data:text/plain,x", "javascript:1",
        "example.org/page", "//example.org/", "", "http://", "http:///page", "http://[::1", "http://exa mple.org/",
        "http://user@example.org/", "http://user:password@example.org/", "http://example.org@127.0.0.1/",
        "http://example.org:22/", "http://example.org:0/", "https://example.org:6379/", "http://example.org:99999/",
        "http://2130706433/", "http://0x7f000001/", "http://0x7f.0.0.1/", "http://0177.0.0.1/", "http://127.1/",
        "http://017700000001/", "http://0/", "http://127.0.0.1./", "http://１２７.０.０.１/", "http://134744072/",
        "http://1.2.3.4.5/", "http://[fe80::1%25eth0]/", "http://[::ffff:127.0.0.1]/", "http://%31%32%37.1/",
        "http://example.org/" + "x" * 2048,
    ],
)  # fmt: skip
async def test_what_a_url_may_not_say(url: str) -> None:
    """Refused as it stands, or for what its host resolves to: most resolvers read odd forms of loopback as loopback."""
    guard = AddressGuard(resolver=resolver(["127.0.0.1"]))
    with pytest.raises(AddressForbidden):
        await guard.addresses(guard.check(url))


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(AddressForbidden) as caught:
        AddressGuard().check("https://reader:sesame@example.org/")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://example.org/", "HTTPS://Example.ORG/a?b#c", "http://example.org:8080/", "https://bücher.example/", "http://3com.com/"],
)  # fmt: skip
def test_what_a_url_may_say(url: str) -> None:
    assert AddressGuard().check(url).scheme in ("http", "https")


# ── resolving ─────────────────────────────────────────────────────────────────────────────────────────────────────

URL = httpx2.URL("http://pages.example/")


async def test_every_address_of_a_host_must_be_public() -> None:
    found = await AddressGuard(resolver=resolver(PUBLIC)).addresses(URL)
    assert found == [ipaddress.ip_address(address) for address in PUBLIC]
    for address in PRIVATE:
        with pytest.raises(AddressForbidden) as caught:
            await AddressGuard(resolver=resolver([*PUBLIC, address])).addresses(URL)
        assert str(caught.value) == "the host 'pages.example' has an address that is not public."


async def test_loopback_can_be_allowed_by_the_program_and_nothing_else_with_it() -> None:
    guard = AddressGuard(resolver=resolver(["127.0.0.1"], ["::1"], ["10.0.0.1"]), allow_loopback=True)
    assert await guard.addresses(URL)
    assert await guard.addresses(URL)
    with pytest.raises(AddressForbidden):
        await guard.addresses(URL)


async def test_a_host_that_does_not_exist() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        raise OSError("no such host")

    with pytest.raises(ToolError, match="cannot be found"):
        await AddressGuard(resolver=resolve).addresses(URL)
    with pytest.raises(ToolError, match="no address"):
        await AddressGuard(resolver=resolver([])).addresses(URL)


async def test_this_machines_resolver_knows_loopback_and_the_guard_refuses_it() -> None:
    with pytest.raises(AddressForbidden):
        await AddressGuard().addresses(httpx2.URL("http://localhost/"))
    with pytest.raises(ToolError, match="cannot be found"):
        await AddressGuard().addresses(httpx2.URL(f"http://{'x' * 70}.example/"))


# ── connecting ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    """A name that no DNS knows is reached, asked for once, and named to the server as before."""
    resolve = resolver(["127.0.0.1"], ["169.254.169.254"])
    guard = AddressGuard(resolver=resolve, ports=None, allow_loopback=True)
    async with WebServer({"/": page("hello")}) as server:
        url = f"http://pages.example:{server.port}/"
        async with httpx2.AsyncClient(transport=GuardedTransport(guard), trust_env=False) as client:
            assert (await client.get(url)).text == "hello"
            assert resolve.asked == ["pages.example"]
            assert server.requests[0].headers["host"] == f"pages.example:{server.port}"
            with pytest.raises(AddressForbidden):
                await client.get(url)
        assert len(server.requests) == 1


async def test_another_address_of_the_host_is_tried_when_one_does_not_answer() -> None:
    guard = AddressGuard(resolver=resolver(["::1", "127.0.0.1"]), ports=None, allow_loopback=True)
    client = httpx2.AsyncClient(transport=GuardedTransport(guard), trust_env=False)
    async with WebServer({"/": page("hello")}) as server, client:
        assert (await client.get(f"http://pages.example:{server.port}/")).text == "hello"


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = AddressGuard(resolver=resolver(["127.0.0.1"]), ports=None, allow_loopback=True)
    async with WebServer({"/": page("proxy")}) as proxy, WebServer({"/": page("hello")}) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        async with httpx2.AsyncClient(transport=GuardedTransport(guard), trust_env=False) as client:
            assert (await client.get(f"http://pages.example:{server.port}/")).text == "hello"
        assert not proxy.requests


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for pages.example, signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the command openssl, to make a certificate")
    folder = tmp_path_factory.mktemp("certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=pages.example", "-addext", "subjectAltName=DNS:pages.example",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


async def test_tls_asks_for_the_host_by_name_and_checks_its_certificate(certificate: tuple[Path, Path]) -> None:
    asked_for: list[str | None] = []
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(*certificate)
    serving.sni_callback = lambda socket, name, context: asked_for.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    guard = AddressGuard(resolver=resolver(["127.0.0.1"]), ports=None, allow_loopback=True)
    async with WebServer({"/": page("hello")}, ssl_context=serving) as server:
        transport = GuardedTransport(guard, ssl_context=trusting)
        async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
            assert (await client.get(f"https://pages.example:{server.port}/")).text == "hello"
            with pytest.raises(httpx2.ConnectError, match=r"mismatch|doesn't match"):
                await client.get(f"https://other.example:{server.port}/")
        async with httpx2.AsyncClient(transport=GuardedTransport(guard), trust_env=False) as client:
            with pytest.raises(httpx2.ConnectError, match=r"(?i)self.signed"):
                await client.get(f"https://pages.example:{server.port}/")
    assert asked_for == ["pages.example", "other.example", "pages.example"]
