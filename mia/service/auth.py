"""Who asks, and whose memories he may see.

A token is `mia_` and 43 random letters; it is shown once, when it is made, and kept as its SHA-256. A token belongs to
a scope, and sees that scope and what is below it; one without a scope sees everything and may administer. With no token
at all the server listens on loopback alone, and whoever is on this machine may do everything.

A door that was closed once stays closed: when the last token is taken back, or the file of tokens is gone or broken,
nobody comes in until there is a token again or the server is started anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import math
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, FiniteFloat, StringConstraints, TypeAdapter

from mia.config import Config
from mia.errors import ConfigError, MiaError, RecordError
from mia.scope import check_scope, covers

PREFIX = "mia_"
SHORTEST = 16
"""Letters of a token that is set by hand, in the environment: a shorter one can be guessed."""
_LONGEST_NAME = 100
_NAME = re.compile(rf"(?=.{{1,{_LONGEST_NAME}}}$)[^\W_](?:[\w.@+/-]*\w)?")
"""Of a token: what a shell takes as one word and a line of a log as one name."""
_NO_NAME = re.compile(r"[^\w.@+/-]+")


class Unauthorized(MiaError):
    """No token, or one that is not known or has run out."""


class Forbidden(MiaError):
    """A token that may not do this."""


class GateStuck(MiaError):
    """The file of tokens cannot be read, so nobody is let in."""


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
    """As it is kept. A field that is not known is refused: a misspelt `scope` would be none, and see everything."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    name: str
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    scope: str | None = None
    created_at: FiniteFloat = 0.0
    expires_at: FiniteFloat | None = None


_TOKENS = TypeAdapter(tuple[Token, ...])


def tokens_path(config: Config) -> Path:
    return Path(config.serve.tokens) if config.serve.tokens else config.home / "tokens.json"


def read_tokens(path: Path) -> tuple[Token, ...]:
    """None where there is no file. Raises ConfigError for a file that cannot be read as tokens."""
    try:
        tokens = _TOKENS.validate_json(path.read_bytes())
        for one in tokens:
            if one.scope is not None:
                check_scope(one.scope)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        # Without what it holds.
        why = error.strerror if isinstance(error, OSError) else "its content is something else"
        raise ConfigError(
            f"'{path}' cannot be read as a file of tokens: {why}.",
            wanted="the file as `mia token add` writes it",
            hint="put it right, or move it away and make new tokens: mia token add",
        ) from None
    return tokens


def add_token(path: Path, name: str, *, scope: str | None, days: float | None) -> str:
    """Make a token and keep its hash; returns the token, which is kept nowhere. Raises ConfigError, RecordError."""
    name = name.strip()
    if not _NAME.fullmatch(name):
        fit = _NO_NAME.sub("-", name).strip("-._@+/")[:_LONGEST_NAME]
        raise RecordError(
            f"a token cannot be called '{name[:_LONGEST_NAME]}'." if name else "a token needs a name.",
            wanted=f"up to {_LONGEST_NAME} letters, digits and any of - . _ @ + / between them, without spaces",
            hint=f"mia token add {fit or 'ann'}",
        )
    if days is not None and not (math.isfinite(days) and days > 0):
        raise RecordError(f"no number of days: {days}.", wanted="how long it is valid, above 0")
    if scope is not None:
        check_scope(scope)
    with _changing(path):
        known = read_tokens(path)
        if any(one.name == name for one in known):
            raise RecordError(f"there is a token called '{name}'.", wanted="another name", hint="mia token list")
        token = PREFIX + secrets.token_urlsafe(32)
        now = time.time()
        expires = now + days * 86_400 if days is not None else None
        _write(path, (*known, Token(name, _digest(token), scope, now, expires)))
    return token


def remove_token(path: Path, name: str) -> None:
    """Raises ConfigError, and RecordError where there is none of this name."""
    with _changing(path):
        known = read_tokens(path)
        left = tuple(one for one in known if one.name != name)
        if len(left) == len(known):
            raise RecordError(f"no token is called '{name}'.", hint="mia token list")
        _write(path, left)


class Gate:
    """Lets in who may come in. What changes in the file of tokens counts from the next request on."""

    def __init__(self, config: Config) -> None:
        """Raises ConfigError for tokens that cannot be read, or one in the environment that is too short."""
        self._path = tokens_path(config)
        variable = config.serve.token_env
        own = os.environ.get(variable, "").strip() if variable else ""
        if own and len(own) < SHORTEST:
            raise ConfigError(
                f"the token in {variable} has {len(own)} letters.",
                wanted=f"at least {SHORTEST}, drawn at random",
                hint=f"{variable}=$(openssl rand -hex 24)",
            )
        self._own = _digest(own) if own else ""
        self._version = _version(self._path)
        self._tokens = read_tokens(self._path)
        self._closed = bool(self._own or self._tokens or not is_loopback(config.serve.host))

    @property
    def knows_tokens(self) -> bool:
        """Whether anybody could come in with one."""
        return bool(self._own or self._tokens)

    @property
    def closed(self) -> bool:
        """Whether a token is needed. Raises GateStuck."""
        if not self._closed and _version(self._path) != self._version:
            self._read()
        return self._closed

    def principal(self, token: str) -> Principal:
        """Raises Unauthorized, GateStuck."""
        if not self.closed:
            return LOCAL
        if not token:
            raise Unauthorized(
                "this server asks for a token.", wanted="the header 'Authorization: Bearer mia_…'", hint="mia token add"
            )
        digest = _digest(token)
        if self._own and hmac.compare_digest(self._own, digest):
            return Principal("environment", None)
        self._read()
        found = None
        # All are looked at, so that the time tells nothing.
        for one in self._tokens:
            if hmac.compare_digest(one.sha256, digest):
                found = one
        if found is None:
            raise Unauthorized("this token is not known.", hint="mia token list")
        if found.expires_at is not None and found.expires_at <= time.time():
            raise Unauthorized(f"the token '{found.name}' has expired.", hint="mia token add")
        return Principal(found.name, found.scope)

    def _read(self) -> None:
        """Raises GateStuck."""
        version = _version(self._path)
        if version == self._version:
            return
        # Whatever is in it: somebody wanted tokens.
        self._closed = self._closed or version is not None
        try:
            self._tokens = read_tokens(self._path)
        except ConfigError as error:
            raise GateStuck(
                "the tokens of this server cannot be read; nobody is let in.",
                hint="whoever runs it: mia token list",
            ) from error
        self._version = version


def check_address(config: Config) -> None:
    """Raises ConfigError for an address beyond this machine where no token was made."""
    host = config.serve.host
    if is_loopback(host) or Gate(config).knows_tokens:
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


def _version(path: Path) -> tuple[int, int, int, int] | None:
    """Tells one state of a file from another; None: it is not there, or not for us to see."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    """One process at a time. Raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot write the tokens to '{path}': {error.strerror}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _write(path: Path, tokens: tuple[Token, ...]) -> None:
    text = json.dumps([asdict(one) for one in tokens], indent=1) + "\n"
    try:
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        raise ConfigError(f"cannot write the tokens to '{path}': {error.strerror}.") from error
