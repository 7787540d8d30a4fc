"""The address guard: what a fetch may reach, decided on the address that is connected to.

A page's address comes from a model, and a model reads pages that strangers wrote. So a fetch could be talked into
reaching what only this machine can: a service on loopback, a host of the private network, the metadata service of a
cloud. What always holds:

- Only http and https, without credentials, on the usual ports of the web.
- The host name is resolved here, *every* address it has must be public, and the connection goes to an address that was
  checked: between check and connect there is no second look-up that could answer differently (DNS rebinding).
- No proxy of the environment is used, since a proxy would resolve for itself.
- `GuardedTransport` checks each request it is given, so redirects are guarded however they are followed.

Public means global unicast. Addresses that carry another address inside them are refused (IPv4-mapped and
-compatible, 6to4, Teredo), but for NAT64's own prefix, through which IPv6-only networks reach the whole IPv4 web: there
the address inside is checked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv6Address

import httpx2

from mia.errors import AddressForbidden, ToolError

Address = IPv4Address | IPv6Address
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host name and port to addresses; raises OSError where there are none."""

WEB_PORTS = frozenset((80, 443, 8080, 8443))
"""Where web pages are served. On any port, a fetch would be a port scanner, and could speak to mail and databases."""
MAX_URL_CHARACTERS = 2048
_MAX_ADDRESSES = 4
"""Of one host name are tried."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",  # carrier-grade NAT; Alibaba's metadata service
        "168.63.129.16/32",  # Azure's metadata and DNS service, on an address that looks public
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata service
        "192.88.99.0/24",  # the old 6to4 relays
        "198.18.0.0/15",  # benchmarks
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)", re.IGNORECASE)


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet and of nothing nearer."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
        if address not in _GLOBAL_UNICAST:
            return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address.version == network.version and address in network for network in _NOT_PUBLIC)
    )


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as this machine resolves them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class AddressGuard:
    """Decides which URLs may be fetched, and at which addresses."""

    def __init__(
        self,
        *,
        resolver: Resolver = resolve,
        ports: frozenset[int] | None = WEB_PORTS,
        allow_loopback: bool = False,
    ) -> None:
        """`ports`: None allows any. `allow_loopback`: for tests with a server of their own; it cannot be set from
        outside the program."""
        self._resolver = resolver
        self._ports = ports
        self._allow_loopback = allow_loopback

    def check(self, url: str | httpx2.URL) -> httpx2.URL:
        """The URL, if what it says of itself is allowed. Raises AddressForbidden."""
        if len(str(url)) > MAX_URL_CHARACTERS:
            raise AddressForbidden(f"a URL of {len(str(url))} characters is longer than {MAX_URL_CHARACTERS}.")
        try:
            url = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise AddressForbidden(f"this is no URL: {error}.", wanted="http://… or https://…") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise AddressForbidden(
                f"'{url.scheme or 'no scheme'}' is not fetched." if url.host else "the URL names no host.",
                wanted="http://… or https://…",
            )
        if url.userinfo:
            raise AddressForbidden("a URL with a user name or password is not fetched.")
        if self._ports is not None and _port(url) not in self._ports:
            raise AddressForbidden(
                f"port {_port(url)} is not fetched from.", wanted=", ".join(str(port) for port in sorted(self._ports))
            )
        address = _literal(url)
        if address is not None and not self._allowed(address):
            raise AddressForbidden(f"'{_host(url)}' is not a public address.")
        return url

    async def addresses(self, url: httpx2.URL) -> list[Address]:
        """The addresses to connect to for a URL, every one checked. Raises AddressForbidden, or ToolError for none."""
        url = self.check(url)
        literal = _literal(url)
        if literal is not None:
            return [literal]
        host = _host(url)
        try:
            found = [ipaddress.ip_address(address) for address in await self._resolver(host, _port(url))]
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that DNS cannot hold.
            raise ToolError(f"the host '{host}' cannot be found.") from error
        if not found:
            raise ToolError(f"the host '{host}' has no address.")
        if not all(self._allowed(address) for address in found):
            # Which address it is stays untold: the names and numbers of a private network are its own.
            raise AddressForbidden(f"the host '{host}' has an address that is not public.")
        return found

    def _allowed(self, address: Address) -> bool:
        return is_public(address) or (self._allow_loopback and address.is_loopback)


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Sends each request to an address that the guard has checked. Raises AddressForbidden and ToolError besides
    what any transport raises.

    The request names the host as before (`Host`, and for TLS both the name asked for and the name that the certificate
    must bear). No connection outlives its request, so none that was opened for one host is ever used for another.
    """

    def __init__(self, guard: AddressGuard, *, ssl_context: ssl.SSLContext | None = None) -> None:
        """`ssl_context`: whom to trust; None: the certificate authorities of this machine."""
        self._guard = guard
        self._transport = httpx2.AsyncHTTPTransport(
            verify=ssl_context or True, trust_env=False, limits=httpx2.Limits(max_keepalive_connections=0)
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        failure: httpx2.TransportError | None = None
        for address in (await self._guard.addresses(request.url))[:_MAX_ADDRESSES]:
            pinned = httpx2.Request(
                request.method,
                request.url.copy_with(host=str(address)),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": _host(request.url)},
            )
            try:
                return await self._transport.handle_async_request(pinned)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failure = error
        assert failure is not None  # The guard gives at least one address.
        raise failure

    async def aclose(self) -> None:
        await self._transport.aclose()


def _host(url: httpx2.URL) -> str:
    """The host as DNS is asked for it: in ASCII, without the dot that ends a full name."""
    return url.raw_host.decode("ascii").rstrip(".")


def _port(url: httpx2.URL) -> int:
    return url.port if url.port is not None else {"http": 80, "https": 443}[url.scheme]


def _literal(url: httpx2.URL) -> Address | None:
    """The address that a URL spells out; None for a name. Raises AddressForbidden for an address in disguise."""
    host = _host(url)
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    # Resolvers read 127.1, 0x7f.0.0.1 and 2130706433 as addresses; no name ends in a number.
    if ":" in host or _NUMBER.fullmatch(host.rpartition(".")[2]):
        raise AddressForbidden(f"'{host}' is an address in an unusual form.", wanted="a host name, or four numbers")
    return None
