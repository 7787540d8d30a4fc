"""No test reaches beyond this machine: a connection to anything but loopback is refused, and says so."""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any

import pytest


def _is_local(address: Any) -> bool:
    if not isinstance(address, tuple):
        return True  # A Unix socket.
    host = address[0]
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def _fresh_consoles() -> None:
    """A console is made once in a process, and takes its width from the environment then."""
    output = sys.modules.get("mia.cli.output")
    if output is not None:
        output.console.cache_clear()
        output.result_console.cache_clear()


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("connect", "connect_ex", "sendto"):
        original = getattr(socket.socket, name)

        def guarded(self: socket.socket, *arguments: Any, original: Any = original) -> Any:
            assert _is_local(arguments[-1]), f"a test tried to reach {arguments[-1]}"
            return original(self, *arguments)

        monkeypatch.setattr(socket.socket, name, guarded)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "SERPER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
