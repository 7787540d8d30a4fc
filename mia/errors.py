"""Every error MIA raises on purpose, and how it speaks.

A sentence of ours has three parts: what we got, what we wanted, what to type next.
`MiaError` keeps them apart, so that a terminal can lay them out and an episode can store them.
Each error also *is* the standard-library error it refines, so a caller can catch one thing or everything::

    MiaError
    ├── ConfigError       (ValueError)       a setting that is wrong or missing
    ├── RecordError       (ValueError)       a file or record from outside that cannot be read as what it should be
    ├── BudgetExceeded                       a hard limit of calls, tokens, money or seconds is reached
    ├── ModelError        (RuntimeError)     a model could not be asked, or gave nothing usable
    │   ├── ModelUnavailable (ConnectionError)  down, hanging, rate-limited or failing after every retry
    │   ├── ModelRefused  (PermissionError)  the endpoint will not serve us: key, model name, malformed request
    │   ├── ModelReplyError  (ValueError)    an answer came, and it is empty, torn or not what was asked for
    │   ├── ContextOverflow  (ValueError)    the prompt is longer than the model's window
    │   ├── ReplayMismatch   (LookupError)   a recording has no entry for this call, or entries nobody asked for
    │   └── RealCallForbidden                real calls are switched off (tests, air-gapped machines)
    ├── ToolError         (RuntimeError)     a tool failed; the model is told so as an observation
    │   └── AddressForbidden (PermissionError)  an address that the guard does not let a fetch reach
    ├── CorpusError       (ValueError)       documents or an index that cannot be used
    ├── StoreError        (RuntimeError)     the memory store cannot be opened, read or written
    │   └── HomeTaken                        another server works in this home
    ├── JudgeError        (RuntimeError)     a judge could not give a verdict: never the model's zero
    ├── LearnError        (RuntimeError)     learning cannot start or go on
    └── MissingExtra      (ImportError)      an optional library is not installed

Failures of the world (model, tool, disk, network) end as these, or as data in an `Episode`. Bugs raise what they raise.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class MiaError(Exception):
    """The root. `got` is the sentence; `wanted` and `hint` are the optional second and third part."""

    def __init__(self, got: str, *, wanted: str = "", hint: str = "") -> None:
        super().__init__(got)
        self.got = got
        self.wanted = wanted
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.got]
        if self.wanted:
            lines.append(f"  Wanted: {self.wanted}")
        if self.hint:
            lines.append(f"  Try: {self.hint}")
        return "\n".join(lines)


class ConfigError(MiaError, ValueError):
    """A setting is wrong or missing."""


class RecordError(MiaError, ValueError):
    """A file or record from outside cannot be read as what it should be; nothing was done with any of it."""


class BudgetExceeded(MiaError):
    """A hard limit is reached.

    `limit` names it: "calls", "tokens", "money" or "seconds"; `scope` says whose: "question" or "run".
    """

    def __init__(self, got: str, *, limit: str, scope: str, wanted: str = "", hint: str = "") -> None:
        super().__init__(got, wanted=wanted, hint=hint)
        self.limit = limit
        self.scope = scope


class ModelError(MiaError, RuntimeError):
    """A model could not be asked, or gave nothing usable."""


class ModelUnavailable(ModelError, ConnectionError):
    """The endpoint is down, hangs, limits our rate or fails, after every retry."""


class ModelRefused(ModelError, PermissionError):
    """The endpoint answers, and will not serve this request: key, model name, malformed request. Not retried."""


class ModelReplyError(ModelError, ValueError):
    """An answer came, and it is empty, torn or not what was asked for."""


class ContextOverflow(ModelError, ValueError):
    """The prompt is longer than the model's window."""


class ReplayMismatch(ModelError, LookupError):
    """A recording has no entry for this call, or holds entries that nobody asked for."""


class RealCallForbidden(ModelError):
    """Real calls are switched off for this process (see `mia.models.forbid_real_calls`)."""


class ToolError(MiaError, RuntimeError):
    """A tool failed. The agent turns it into an error observation."""


class AddressForbidden(ToolError, PermissionError):
    """The address guard does not let a fetch reach this address."""


class CorpusError(MiaError, ValueError):
    """Documents or an index that cannot be used."""


class StoreError(MiaError, RuntimeError):
    """The memory store cannot be opened, read or written."""


class HomeTaken(StoreError):
    """Another server works in this home, and a home has one at a time.

    `pid`: its process, `address`: where it listens, as far as they are known; it may listen nowhere (`mia mcp`).
    """

    def __init__(
        self, got: str, *, pid: int | None = None, address: str = "", wanted: str = "", hint: str = ""
    ) -> None:
        super().__init__(got, wanted=wanted, hint=hint)
        self.pid = pid
        self.address = address


class JudgeError(MiaError, RuntimeError):
    """A judge could not give a verdict. The line records `unjudged`; it is never the model's zero."""


class LearnError(MiaError, RuntimeError):
    """Learning cannot start or go on."""


class MissingExtra(MiaError, ImportError):
    """An optional library is not installed; the message names the extra that brings it."""


def install_hint(extra: str) -> str:
    """What to type for an extra. MIA is installed from its own files and not by name: an index may give that name to
    another project."""
    return f'pip install -c constraints.txt ".[{extra}]" in the folder that MIA was installed from'


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional library where it is used, or raise `MissingExtra` with the cure.

    `purpose` completes the sentence "… is needed for …".
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"the Python package '{module.partition('.')[0]}' is needed for {purpose} and is not installed ({error}).",
            hint=install_hint(extra),
        ) from error
