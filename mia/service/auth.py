"""Who asks, and whose memories he may see.

A token is `mia_` and 43 random letters; it is shown once, when it is made, and kept as its SHA-256. A token belongs to
a scope, and sees that scope and what is below it; one without a scope sees everything and may administer. With no token
at all the server listens on loopback alone, and whoever is on this machine may do everything.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path

from mia.config import Config
from mia.errors import ConfigError, MiaError
from mia.scope import check_scope, covers

PREFIX = "mia_"


class Unauthorized(MiaError):
    """No token, or one that is not known or has run out."""


class Forbidden(MiaError):
    """A token that may not do this."""


@dataclass(frozen=True)
class Principal:
    """Who asks."""

    name: str
    scope: str | None
    """What he sees: this scope and all below it; None: everything."""

    @property
    def is_admin(self) -> bool:
        """May roll versions back, wipe what is everybody's, and see all scopes."""
        return self.scope is None

    def may_see(self, scope: str) -> bool:
        return self.scope is None or covers(self.scope, scope)

    def choose(self, wanted: str | None, default: str) -> str:
        """The scope of a request: the one it names, or its own. Raises Forbidden, ConfigError."""
        if not wanted:
            return self.scope if self.scope is not None else default
        scope = check_scope(wanted)
        if not self.may_see(scope):
            raise Forbidden(
                f"this token does not see the scope '{scope}'.", wanted=f"'{self.scope}' or a scope below it"
            )
        return scope

    def require_admin(self, what: str) -> None:
        """Raises Forbidden."""
        if not self.is_admin:
            raise Forbidden(f"this token may not {what}.", wanted="a token without a scope", hint="mia token add")


LOCAL = Principal("local", None)
"""Whoever is on this machine, where no token was made."""


@dataclass(frozen=True)
class Token:
    """As it is kept."""

    name: str
    sha256: str
    scope: str | None = None
    created_at: float = 0.0
    expires_at: float | None = None


def tokens_path(config: Config) -> Path:
    return Path(config.serve.tokens) if config.serve.tokens else config.home / "tokens.json"


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Raises ConfigError for a file that is none."""
    if not path.exists():
        return ()
    try:
        return tuple(Token(**entry) for entry in json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        # Without what it holds.
        raise ConfigError(f"'{path}' is no file of tokens ({type(error).__name__}).", hint="mia token add") from None


def add_token(path: Path, name: str, *, scope: str | None, days: float | None) -> str:
    """Make a token and keep its hash; returns the token, which is kept nowhere. Raises ConfigError."""
    known = read_tokens(path)
    if not name.strip() or any(one.name == name for one in known):
        raise ConfigError(f"a token needs a name of its own, and got '{name}'.", hint="mia token list")
    if scope is not None:
        check_scope(scope)
    token = PREFIX + secrets.token_urlsafe(32)
    now = time.time()
    expires = now + days * 86_400 if days is not None else None
    _write(path, (*known, Token(name, _digest(token), scope, now, expires)))
    return token


def remove_token(path: Path, name: str) -> None:
    """Raises ConfigError where there is none of this name."""
    known = read_tokens(path)
    left = tuple(one for one in known if one.name != name)
    if len(left) == len(known):
        raise ConfigError(f"no token is called '{name}'.", hint="mia token list")
    _write(path, left)


class Gate:
    """Lets in who may come in. What changes in the file of tokens counts from the next request on."""

    def __init__(self, config: Config) -> None:
        self._path = tokens_path(config)
        self._own = os.environ.get(config.serve.token_env, "") if config.serve.token_env else ""
        self._read_at: tuple[int, int] | None = None
        self._tokens: tuple[Token, ...] = ()
        self._read()

    @property
    def closed(self) -> bool:
        """Whether a token is needed."""
        self._read()
        return bool(self._own or self._tokens)

    def principal(self, token: str) -> Principal:
        """Raises Unauthorized."""
        if not self.closed:
            return LOCAL
        if not token:
            raise Unauthorized(
                "this server asks for a token.", wanted="the header 'Authorization: Bearer mia_…'", hint="mia token add"
            )
        digest = _digest(token)
        found = None
        # All are looked at, so that the time tells nothing.
        for one in self._tokens:
            if hmac.compare_digest(one.sha256, digest):
                found = one
        if self._own and hmac.compare_digest(_digest(self._own), digest):
            return Principal("environment", None)
        if found is None:
            raise Unauthorized("this token is not known.", hint="mia token list")
        if found.expires_at is not None and found.expires_at <= time.time():
            raise Unauthorized(f"the token '{found.name}' has expired.", hint="mia token add")
        return Principal(found.name, found.scope)

    def _read(self) -> None:
        try:
            status = self._path.stat()
            now = (status.st_mtime_ns, status.st_size)
        except OSError:
            now = None
        if now != self._read_at:
            self._tokens, self._read_at = read_tokens(self._path), now


def check_address(config: Config) -> None:
    """Raises ConfigError for an address beyond this machine where no token was made."""
    host = config.serve.host
    if is_loopback(host) or Gate(config).closed:
        return
    raise ConfigError(
        f"'{host}' can be reached from other machines, and no token was made.",
        wanted="a token, or an address of this machine alone",
        hint="mia token add NAME; or serve.host = 127.0.0.1",
    )


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _write(path: Path, tokens: tuple[Token, ...]) -> None:
    text = json.dumps([asdict(one) for one in tokens], indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        raise ConfigError(f"cannot write the tokens to '{path}': {error.strerror}.") from error
