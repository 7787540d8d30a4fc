"""Secrets and personal data are blacked out before anything is stored: `[redacted: api key]` stands where they stood.

Always true: redacting twice is redacting once; time is linear in the text, whatever is in it; a text in which nothing
is found comes back as the very same object; the strings of a JSON text stay strings, for a piece never holds a bare
quote or half an escape (bare numbers of JSON are read like those of prose: "personal" is for `record` and `model`).
What identifies a record (ids, hashes, names of models) is never touched by `model`.

A secret is known by one of three things: its own shape (`ghp_…`, a PEM block), the name it is assigned to
(`password=…`, `"api_key": "…"`), or its place (`Authorization: Bearer …`, `https://user:password@host`). The weaker the
name, the more the value must look drawn at random: prose about passwords and tokens is to stay as it is. What is known
by nothing but being a word, such as "my password is swordfish", is not found; this is a net, not a wall.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from mia.types import Record

Level = Literal["secrets", "personal", "off"]
"""What is blacked out: keys, tokens and passwords; these and personal data; nothing."""

R = TypeVar("R", bound=Record)

_IDENTITY = frozenset(
    (
        *("version", "id", "run", "config", "scope", "judge", "models", "prompts", "compressed_by"),
        *("sha256", "media_type", "data"),
        *("memory_id", "episode_id", "passage_id", "tool_call_id", "leaned_on", "replaced_by"),
    )
)
"""Fields of our records that identify something; other records point at them by these very letters."""


class Redactor:
    """Blacks out, at one level. Stateless, so one may serve many threads."""

    def __init__(self, level: Level = "secrets") -> None:
        self.level = level
        self._rules: tuple[Rule, ...] = {"off": (), "secrets": (_secrets,), "personal": (_secrets, _personal)}[level]

    def __call__(self, text: str) -> str:
        """The text without what must not be stored; the same object if there is nothing of it."""
        for rule in self._rules:
            text = rule(text)
        return text

    def record(self, value: Any) -> Any:
        """A JSON-like value with every string in it redacted, keys too; the same object if nothing changed.

        A string under a key such as "password" is read as what that key says. Keys that become equal are numbered.
        Values that are no str, dict, list or tuple are left alone.
        """
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return self._dictionary(value)
        if isinstance(value, list | tuple):
            items = [self.record(item) for item in value]
            return value if all(map(_same, items, value)) else type(value)(items)
        return value

    def model(self, record: R) -> R:
        """A record of ours with its texts redacted; the same object if nothing changed. Identity stays."""
        changes = {}
        for name in type(record).model_fields:
            if name not in _IDENTITY:
                before = getattr(record, name)
                after = self._field(before)
                if after is not before:
                    changes[name] = after
        return record.model_copy(update=changes) if changes else record

    def _field(self, value: Any) -> Any:
        if isinstance(value, Record):
            return self.model(value)
        if isinstance(value, tuple):
            items = tuple(self._field(item) for item in value)
            return value if all(map(_same, items, value)) else items
        return self.record(value)

    def _dictionary(self, value: dict[Any, Any]) -> dict[Any, Any]:
        redacted: dict[Any, Any] = {}
        for key, item in value.items():
            new_key = free = self.record(key) if isinstance(key, str) else key
            number = 2
            while free in redacted or (free is not key and free in value):
                free, number = f"{new_key} {number}", number + 1
            new_item = self.record(item)
            if self._rules and isinstance(key, str) and isinstance(item, str):
                new_item = _under_key(key, new_item)
            redacted[free] = new_item
        unchanged = all(map(_same, redacted, value)) and all(map(_same, redacted.values(), value.values()))
        return value if unchanged else redacted


Rule = Callable[[str], str]


def _same(one: object, other: object) -> bool:
    return one is other


@dataclass(frozen=True)
class _Piece:
    """What to black out: `text[start:end]`, and what it is."""

    start: int
    end: int
    kind: str


def _blacked_out(text: str, pieces: Iterable[_Piece]) -> str:
    """Pieces in the order of the text, none overlapping."""
    parts: list[str] = []
    at = 0
    for piece in pieces:
        parts += (text[at : piece.start], f"[redacted: {piece.kind}]")
        at = piece.end
    return "".join([*parts, text[at:]]) if parts else text


def _folded(text: str) -> str:
    """Lower case, letter for letter: U+0130 is the only character whose lower case has two."""
    return text.replace("\u0130", "i").lower()


# ── secrets by their own shape ────────────────────────────────────────────────────────────────────────────────────

# A shape begins a word, or follows an escape such as the \n of JSON, whose letter is no part of it; and it reaches to
# the end of the word. So a long body is not walked again from within, and nothing new begins where a piece was.
_BEGIN = r"(?:(?<![\w-])|(?<=\\[nrtbf]))"


def _shape(body: str) -> re.Pattern[str]:
    return re.compile(rf"{_BEGIN}{body}[\w-]*+", re.ASCII)


_API_KEY, _TOKEN, _SECRET, _PASSWORD, _PRIVATE_KEY = "api key", "token", "secret", "password", "private key"

_SHAPES: tuple[tuple[str, re.Pattern[str], tuple[str, ...]], ...] = (
    # What it is; how it looks; what the text, in lower case, must hold for the pattern to be worth a try.
    (
        _API_KEY,
        _shape(r"sk-(?:(?:ant|proj|svcacct|admin|or|lf)-[\w-]{16,}|[A-Za-z0-9]{20,})"),
        ("sk-",),
    ),
    (_API_KEY, _shape(r"[sr]k_(?:live|test|prod)_[A-Za-z0-9]{16,}"), ("k_live_", "k_test_", "k_prod_")),
    (_SECRET, _shape(r"whsec_[A-Za-z0-9+/=]{24,}"), ("whsec_",)),
    (_TOKEN, _shape(r"gh[pousr]_[A-Za-z0-9]{30,}"), ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    (_TOKEN, _shape(r"github_pat_\w{22,}"), ("github_pat_",)),
    (
        _TOKEN,
        _shape(r"gl(?:pat|dt|rt|ptt|cbt|soat)-[\w.-]{18,}"),
        ("glpat-", "gldt-", "glrt-", "glptt-", "glcbt-", "glsoat-"),
    ),
    (_TOKEN, _shape(r"(?:xox[a-z](?:\.xox[a-z])?|xapp)-[A-Za-z0-9-]{10,}"), ("xox", "xapp-")),
    (_SECRET, _shape(r"hooks\.slack\.com/(?:services|workflows)/[\w/-]{20,}"), ("hooks.slack.com/",)),
    (_SECRET, _shape(r"(?:discord|discordapp)\.com/api/webhooks/\d{15,}/[\w-]{40,}"), (".com/api/webhooks/",)),
    ("access key", _shape(r"A(?:KI|SI)A[A-Z0-9]{16}(?![\w-])"), ("akia", "asia")),
    (_API_KEY, _shape(r"AIza[\w-]{30,}"), ("aiza",)),
    (_TOKEN, _shape(r"ya29\.[\w-]{20,}"), ("ya29.",)),
    (_SECRET, _shape(r"GOCSPX-[\w-]{20,}"), ("gocspx-",)),
    (_TOKEN, _shape(r"(?:hf_|api_org_)[A-Za-z0-9]{30,}"), ("hf_", "api_org_")),
    # Our own (`mia token add`).
    (_TOKEN, _shape(r"mia_[\w-]{40,}"), ("mia_",)),
    (_TOKEN, _shape(r"npm_[A-Za-z0-9]{30,}"), ("npm_",)),
    (_TOKEN, _shape(r"pypi-AgEI[\w-]{40,}"), ("pypi-agei",)),
    (_TOKEN, _shape(r"rubygems_[0-9a-f]{40,}"), ("rubygems_",)),
    (_TOKEN, _shape(r"dckr_pat_[\w-]{20,}"), ("dckr_pat_",)),
    (_TOKEN, _shape(r"do[opr]_v1_[0-9a-f]{40,}"), ("dop_v1_", "doo_v1_", "dor_v1_")),
    (_TOKEN, _shape(r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32,}"), ("shpat_", "shpca_", "shppa_", "shpss_")),
    (_API_KEY, _shape(r"SG\.[\w-]{16,}\.[\w-]{16,}"), ("sg.",)),
    (_API_KEY, _shape(r"(?:gsk|pcsk|jina|ntn|figd|glsa|sntrys|lin_api)_\w{32,}"), (
        "gsk_", "pcsk_", "jina_", "ntn_", "figd_", "glsa_", "sntrys_", "lin_api_",
    )),
    (_API_KEY, _shape(r"(?:xai|pplx|nvapi|tvly|PMAK|NRAK|csk)-[\w-]{24,}"), (
        "xai-", "pplx-", "nvapi-", "tvly-", "pmak-", "nrak-", "csk-",
    )),
    (_API_KEY, _shape(r"r8_[A-Za-z0-9]{36,}"), ("r8_",)),
    (_API_KEY, _shape(r"lsv2_(?:pt|sk)_[0-9a-f_]{32,}"), ("lsv2_",)),
    (_TOKEN, _shape(r"dapi[0-9a-f]{32,}"), ("dapi",)),
    (_TOKEN, _shape(r"hv[sbr]\.[\w-]{24,}"), ("hvs.", "hvb.", "hvr.")),
    (_TOKEN, _shape(r"ATATT3[\w=-]{50,}"), ("atatt3",)),
    (_PRIVATE_KEY, _shape(r"AGE-SECRET-KEY-1[A-Z0-9]{50,}"), ("age-secret-key-",)),
    (_TOKEN, _shape(r"\d{8,10}:AA[\w-]{32,}"), (":aa",)),
    # A JSON Web Token: two parts at least, the first an object in base64 and so beginning with `{"`.
    (_TOKEN, _shape(r"eyJ[\w-]{8,}+\.[\w-]{8,}+(?:\.[\w-]*+){0,3}"), ("eyj",)),
    (
        _TOKEN,
        re.compile(
            r"[?&](?:key|sig|signature|auth|appid|hmac|x-amz-(?:signature|credential|security-token)|x-goog-signature)="
            r"(?P<secret>[^\s&#\"'<>\\`;,)\]]{16,})",
            re.IGNORECASE | re.ASCII,
        ),
        ("key", "sig=", "signature=", "auth=", "appid=", "hmac=", "credential=", "x-amz-security-"),
    ),
)  # fmt: skip
"""What is known in itself, within a run of `_RUN` printable characters or more."""
# Nearly all words of prose are shorter than every shape; to look at the long ones alone is what makes it fast.
_RUN = 15
_FIRST_RUN = re.compile(rf"[!-~]{{{_RUN},}}+")
_NEXT_RUN = re.compile(rf"[^!-~](?P<run>[!-~]{{{_RUN},}}+)")
_TRIGGERS = re.compile("|".join(re.escape(trigger) for *_, triggers in _SHAPES for trigger in triggers))
"""One look finds them all: where one runs into another, the other is within a word, where no shape begins."""

_PLACES: tuple[tuple[str, re.Pattern[str], str], ...] = (
    (
        _TOKEN,
        re.compile(r"[Bb](?:earer|EARER)(?<![\w-].{6})[ \t]{1,8}(?P<secret>[\w.~+/=-]{16,}+)", re.ASCII),
        "bearer",
    ),
    # The password between ":" and the last "@" before the path.
    (
        _PASSWORD,
        re.compile(r"://[^\s/:@\"'<>\\`]*+:(?P<secret>[^\s/\"'<>\\`$\[{%][^\s/\"'<>\\`]*)@"),
        "://",
    ),
    (
        _PASSWORD,
        re.compile(
            r"[ \t](?:-u|--user)[ =]{1,4}(?:\\?[\"'])?"
            r"[^\s:\"'\\\d][^\s:\"'\\]{0,200}:(?P<secret>[^\s\"'\\$\[{<][^\s\"'\\]{2,})"
        ),
        "curl ",
    ),
    (
        _SECRET,
        re.compile(r"[Cc]ookie:[ \t]{0,8}(?P<secret>[\w.-]{1,100}=[^\s\"'\\][^\n\"'\\]*)"),
        "cookie:",
    ),
)
"""What is known by the words before it; the last is what the text, in lower case, must hold."""


_PEM_HEADER = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
# Lines of base64 and of headers ("DEK-Info: AES-128-CBC,0A"), as they are or with their ends written as escapes; then a
# short last line and the end, unless the text was cut.
_PEM_BODY = re.compile(
    r"(?:(?:\s|\\+[nr])++(?:[A-Za-z][A-Za-z-]{2,20}: (?:[^\n\\\"-]|-(?!----)){1,200}+|(?:[A-Za-z0-9+/=]|\\/){16,}+))++"
    r"(?:(?:\s|\\+[nr])*+(?:[A-Za-z0-9+/=]{1,15}(?:\s|\\+[nr])++)?"
    r"-----END (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----)?"
)
_BASE64_RUN = re.compile(r"[A-Za-z0-9+/=]{24}")


def _by_shape(text: str) -> Iterator[_Piece]:
    """What each long run is or holds; of pieces that overlap, the one that begins first."""
    first = _FIRST_RUN.match(text)
    spans = [first.span()] if first else []
    spans += [match.span("run") for match in _NEXT_RUN.finditer(text)]
    for start, end in spans:
        triggers = set(_TRIGGERS.findall(text[start:end].lower()))
        if not triggers:
            continue
        done = start
        pieces = (
            piece
            for kind, pattern, wanted in _SHAPES
            if not triggers.isdisjoint(wanted)
            for piece in _matches(text, kind, pattern, start, end)
        )
        for piece in sorted(pieces, key=lambda piece: (piece.start, -piece.end)):
            if piece.start >= done:
                yield piece
                done = piece.end


def _matches(text: str, kind: str, pattern: re.Pattern[str], start: int, end: int) -> Iterator[_Piece]:
    group = "secret" if "secret" in pattern.groupindex else 0
    for match in pattern.finditer(text, start, end):
        if kind in (_PASSWORD, _SECRET) or _is_random(match.group(group)):
            yield _Piece(*match.span(group), kind)


def _pem_blocks(text: str) -> Iterator[_Piece]:
    """Private keys, to their end or, where the text was cut, to the end of the base64."""
    for header in _PEM_HEADER.finditer(text):
        body = _PEM_BODY.match(text, header.end())
        if body and _BASE64_RUN.search(body.group()):
            yield _Piece(header.start(), body.end(), _PRIVATE_KEY)


_DIGIT = re.compile(r"\d")
_LETTER = re.compile(r"[^\W\d_]")
_MARK = re.compile(r"[^\w\s.,:]")


def _is_random(value: str) -> bool:
    """Whether a value looks drawn at random: letters with digits, or long and in both cases."""
    if not _LETTER.search(value):
        return False
    return bool(_DIGIT.search(value)) or (len(value) >= 20 and value != value.lower() and value != value.upper())


# ── secrets by the name they are assigned to ──────────────────────────────────────────────────────────────────────

_STEMS = ("pass", "pwd", "secret", "key", "token", "authorization")
_KEYS = ("api", "access", "auth", "account", "private", "signing", "encryption", "master", "subscription", "license")
# Every alternative begins with a letter, outside of groups: so the search runs from one such letter to the next.
_NAME = re.compile(
    r"pass(?:word|wd|phrase|code)|pass(?<![a-z]pass)|pwd|secret(?:[ _-]?access)?(?:[ _-]?key)?|token|authorization|"
    + "|".join(rf"{name}[ _-]?key" for name in _KEYS)
)
_LAST_NAME = re.compile(rf"(?:{_NAME.pattern})\Z")


def _kind(name: str) -> str:
    """What is assigned to a name."""
    if name.startswith(("pass", "pwd")):
        return _PASSWORD
    if name.startswith("secret"):
        return _SECRET
    return _API_KEY if name.endswith("key") else _TOKEN


# What stands between a name and its value, in lower case. Each part is bounded, so that a run of blanks costs little.
_LINK = re.compile(
    r"(?P<quote>\\{0,4}[\"'`]\]?)?(?:"
    r"(?P<equals>[ \t]{0,8}(?::[ \t]{0,4}[a-z_][\w.\[\]|]{0,40}[ \t]{0,8})?(?::=|={1,3}>?)[ \t]{0,8})"
    r"|(?P<colon>\*{0,2}[ \t]{0,8}:\*{0,2}[ \t]{0,8})"
    r"|(?P<tag>>)"
    r"|(?P<says>[ \t]{1,4}(?:is|was)(?:[ \t]{0,2}:)?[ \t]{1,4})"
    r"|(?P<flag>[ \t]{1,4})"
    r")(?:[rbfu]{1,2}(?=[\"']))?(?P<open>\\{0,4}[\"'`])?"
)
_SCHEME = re.compile(r"(?:basic|bearer|token|api-?key|digest|negotiate)[ \t]{1,4}")
# A double quote ends every string: within JSON, what a single quote began does not reach beyond it.
_IN_QUOTES = {mark: re.compile(rf"(?:[^{mark}\"\\\n]|\\.)+") for mark in "\"'`"}
_IN_ESCAPED_QUOTES = re.compile(r"[^\"'`\\\n]+")
_DELIMITERS = r"\s\"'`\\<>,;&(){}\[\]|"
_BARE, _BARE_IN_URL = re.compile(rf"[^{_DELIMITERS}]+"), re.compile(rf"[^{_DELIMITERS}#]+")
# A bare value is judged by its beginning: "token=token=token=" is not to be read to its end from every name in it.
_JUDGED = 128
_FLAG_BEFORE = re.compile(r"--[a-z0-9-]{0,40}\Z")
_LINE_BEFORE = re.compile(r"(?:\A|\n|\\n)[ \t*>#-]{0,20}[\w.-]{0,40}\Z")
_LINE_AFTER = re.compile(r"[ \t]{0,8}(?:[\r\n\"]|\\[nr]|\Z)")
_QUOTED_NAME_BEFORE = re.compile(r"[\"'`][\w.-]{0,40}\Z")

# Placeholders, templates, one character again and again; and what follows a quote that ends a string of JSON.
_NO_VALUE = re.compile(
    r"\[redacted|[$%{<…,:}\]]|(?:none|null|nil|true|false|undefined|str|string|bytes|optional|any|required|redacted)\Z"
    r"|(?:your|my|some|the)[ _-]|(.)\1*\Z",
    re.DOTALL,
)
_BLANK = re.compile(r"\s")
_STOPS = ".:!?"
"""Where a sentence ends with a value, these are no part of it."""
_IDENTIFIER = re.compile(r"[A-Za-z_-]+")
_DOTTED_PATH = re.compile(r"[A-Za-z_]\w{0,40}(?:\.[A-Za-z_]\w{0,40})+")


def _assigned(text: str, folded: str) -> Iterator[_Piece]:
    """Values of names such as `password`, however they are assigned."""
    done = 0
    for name in _NAME.finditer(folded):
        if name.start() < done:
            continue
        link = _LINK.match(folded, name.end())
        piece = link and _value(text, folded, name, link)
        if piece:
            yield piece
            done = piece.end


def _value(text: str, folded: str, name: re.Match[str], link: re.Match[str]) -> _Piece | None:
    """The value behind a name and a link, if it is a secret."""
    before = folded[max(0, name.start() - 64) : name.start()]
    kind = _kind(name.group())
    if link["flag"] is not None and not _FLAG_BEFORE.search(before):
        return None
    scheme = _SCHEME.match(folded, link.end()) if name.group() == "authorization" else None
    start = scheme.end() if scheme else link.end()
    opened = link["open"]
    in_url = before[-1:] in ("?", "&")
    bare = _BARE_IN_URL if in_url else _BARE
    if opened:
        end = _end(_IN_QUOTES[opened] if len(opened) == 1 else _IN_ESCAPED_QUOTES, text, start)
    else:
        end = _end(bare, text, start, start + _JUDGED)
    value = text[start:end]
    in_prose = name.group() == "pass" and not link["equals"]
    if scheme:
        secret = _is_credential(value)
    elif opened and not in_prose:
        # Only what is plainly an assignment may hold blanks; in prose a quotation follows a colon.
        plain = link["equals"] or (link["quote"] and _QUOTED_NAME_BEFORE.search(before))
        secret = bool(plain or not _BLANK.search(value)) and _is_secret_in_quotes(kind, value)
    elif opened:
        secret = _is_secret_in_prose(kind, value)
    elif text[end : end + 1] in ("(", "["):
        return None  # A call or an index: code, and no value.
    elif link["quote"] and link["colon"]:
        return None  # A number, null or a name in JSON and the like: without quotes our mark would break it.
    elif link["tag"] and text[end : end + 2] != "</":
        return None
    elif link["equals"] or link["tag"] or link["flag"] or _is_whole_line(before, text, end):
        secret = _is_secret_in_code(kind, value, in_url=in_url)
    else:
        in_prose = True
        secret = _is_secret_in_prose(kind, value.rstrip(_STOPS))
    if not secret:
        return None
    if not opened:
        end = _end(bare, text, end)
        end -= in_prose and len(text[start:end]) - len(text[start:end].rstrip(_STOPS))
    return _Piece(start, end, kind)


def _is_whole_line(before: str, text: str, end: int) -> bool:
    """Whether a name, what stands before it, and its value up to `end` make a line of their own, as in a list."""
    return bool(_LINE_BEFORE.search(before) and _LINE_AFTER.match(text, end))


def _end(pattern: re.Pattern[str], text: str, start: int, limit: int = sys.maxsize) -> int:
    """Where what the pattern matches at `start` ends; `start` itself if it matches nothing there."""
    found = pattern.match(text, start, limit)
    return found.end() if found else start


def _is_secret_in_quotes(kind: str, value: str) -> bool:
    """Of `"password": "value"`, `password = "value"`."""
    if _NO_VALUE.match(value.strip().lower()):
        return False
    if kind == _PASSWORD:
        return len(value) >= 3 and len(value.split(maxsplit=8)) <= 8
    if len(value) < 8 or _BLANK.search(value):
        return False
    return kind in (_SECRET, _API_KEY) or _is_random(value)


def _is_secret_in_code(kind: str, value: str, *, in_url: bool) -> bool:
    """Of `password=value`, `--token value`, `<secret>value</secret>`, and `password: value` alone on its line."""
    if _NO_VALUE.match(value.lower()) or (_DOTTED_PATH.fullmatch(value) and not in_url):
        return False
    if kind == _PASSWORD:
        return len(value) >= 3 and not (_IDENTIFIER.fullmatch(value) and _NAME.search(value.lower()))
    return len(value) >= 8 and _is_random(value)


def _is_secret_in_prose(kind: str, value: str) -> bool:
    """Of `the password is value`, `token: value` within a sentence, where a value is mostly just the next word."""
    if _NO_VALUE.match(value.lower()) or not _LETTER.search(value):
        return False
    if kind == _PASSWORD:
        return len(value) >= 6 and bool(_DIGIT.search(value) or _MARK.search(value))
    return len(value) >= 12 and bool(_DIGIT.search(value))


def _is_credential(value: str) -> bool:
    """Of `Authorization: Basic value`."""
    return len(value) >= 8 and not _NO_VALUE.match(value.lower()) and not _BLANK.search(value)


def _under_key(key: str, value: str) -> str:
    """The value of a key in a dictionary, or what stands for it."""
    name = _LAST_NAME.search(_folded(key[-64:]))
    if name is None or (_BLANK.search(key) and _BLANK.search(value)):
        return value
    kind = _kind(name.group())
    scheme = _SCHEME.match(_folded(value)) if name.group() == "authorization" else None
    start = scheme.end() if scheme else 0
    if scheme:
        found = _is_credential(value[start:])
    elif name.group() == "pass":
        found = _is_secret_in_prose(kind, value)
    else:
        found = _is_secret_in_quotes(kind, value)
    return f"{value[:start]}[redacted: {kind}]" if found else value


# ── the two levels ────────────────────────────────────────────────────────────────────────────────────────────────


def _secrets(text: str) -> str:
    """Keys, tokens and passwords."""
    folded = _folded(text)
    if "private key" in folded:
        text = _blacked_out(text, _pem_blocks(text))
    text = _blacked_out(text, _by_shape(text))
    for kind, pattern, trigger in _PLACES:
        if trigger in folded:
            text = _blacked_out(text, _matches(text, kind, pattern, 0, len(text)))
    for stem in _STEMS:
        if stem in folded:
            return _blacked_out(text, _assigned(text, _folded(text)))
    return text


def _personal(text: str) -> str:
    """Mail addresses, telephone, card, bank account and social security numbers."""
    if "@" in text:
        text = _blacked_out(text, _mail_addresses(text))
    if _LONG_NUMBER.search(text):
        text = _blacked_out(text, _bank_accounts(text))
        for kind, pattern, check in _NUMBERS:
            pieces = (_Piece(*match.span(), kind) for match in pattern.finditer(text) if check(match.group()))
            text = _blacked_out(text, pieces)
    return text


# ── personal data ─────────────────────────────────────────────────────────────────────────────────────────────────

_LOCAL_PART = 64
_DOMAIN = re.compile(r"@(?P<domain>(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}(?P<top>[^\W\d_]{2,24}))(?![\w-])")
_FILE_ENDINGS = frozenset(("png", "jpg", "jpeg", "gif", "svg", "webp", "js", "mjs", "css", "json", "tgz", "zip", "map"))
"""What follows an "@" in `logo@2x.png` and `package@1.2.min.js`."""


def _mail_addresses(text: str) -> Iterator[_Piece]:
    """Found from the "@" on, backwards and forwards, for a pattern for the part before it would run away."""
    done = 0
    for at in _DOMAIN.finditer(text):
        first = max(done, at.start() - _LOCAL_PART)
        start = at.start()
        while start > first and (text[start - 1].isalnum() or text[start - 1] in "._%+-'"):
            start -= 1
        if start and text[start - 1] == "\\":
            start += 5 if text[start] == "u" else 1  # The letters of an escape.
        while start < at.start() and not text[start].isalnum():
            start += 1
        if start < at.start() and at["top"].lower() not in _FILE_ENDINGS:
            yield _Piece(start, at.end(), "mail address")
            done = at.end()


# Looks back over the first character, so that a search can run for that character: no number begins within a word, a
# number or a path.
_BEGINS = r"(?:(?<![\w.,+/-].)|(?<=\\[nrtbf].))"
_ENDS = r"(?![\w+-]|[.,(]\d)"
_LONG_NUMBER = re.compile(r"\d[\d ./()-]{6}")


def _digits(text: str) -> str:
    return "".join(letter for letter in text if "0" <= letter <= "9")


def _is_telephone_number(text: str) -> bool:
    """8 to 15 digits (E.164)."""
    return 8 <= len(_digits(text)) <= 15


def _is_card_number(text: str) -> bool:
    """Of a known length for its first digits, and with the check digit of Luhn (ISO/IEC 7812-1)."""
    digits = _digits(text)
    lengths = {"3": (15,), "4": (16, 19), "5": (16,), "6": (16, 19), "2": (16,)}.get(digits[0], ())
    if len(digits) not in lengths or len(set(digits)) == 1:
        return False
    doubled = [int(digit) * (1 + index % 2) for index, digit in enumerate(reversed(digits))]
    return sum(number - 9 * (number > 9) for number in doubled) % 10 == 0


_IBAN_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FO GL NL",
    19: "MK SI",
    20: "AT BA EE KZ LT LU XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "PT ST",
    26: "IS TR",
    27: "FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HU LB PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU",
    31: "MT SC",
    32: "LC",
}
"""Length → the countries whose IBANs have it."""
_IBAN_LENGTHS = {country: length for length, countries in _IBAN_COUNTRIES.items() for country in countries.split()}
_IBAN_BEGINS = re.compile(rf"[A-Z]{_BEGINS}[A-Z]\d\d(?= ?[A-Z0-9]{{4}})", re.ASCII)
_IBAN_BODIES = {
    length: re.compile(
        rf"(?: ?[A-Z0-9]{{4}}){{{length // 4 - 1}}}{f' ?[A-Z0-9]{{{length % 4}}}' if length % 4 else ''}{_ENDS}",
        re.ASCII,
    )
    for length in _IBAN_COUNTRIES
}


def _bank_accounts(text: str) -> Iterator[_Piece]:
    """IBANs of their country's length whose remainder by 97 is 1 (ISO 13616), together or in groups of four."""
    for begins in _IBAN_BEGINS.finditer(text):
        length = _IBAN_LENGTHS.get(begins.group()[:2])
        # Read to exactly its length, so that the word behind it is never taken for a part of it.
        body = _IBAN_BODIES[length].match(text, begins.end()) if length else None
        if body:
            account = f"{body.group()}{begins.group()}".replace(" ", "")
            if int("".join(str(int(letter, 36)) for letter in account)) % 97 == 1:
                yield _Piece(begins.start(), body.end(), "bank account")


_INTERNATIONAL = rf"\(?[1-9]\d{{0,3}}\)?(?:[ ./-]{{0,2}}(?:\(\d{{1,5}}\)|\d)){{6,14}}{_ENDS}"
# In this order, so that no number is found only when the one before it is gone.
_NUMBERS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    (
        "card number",
        re.compile(
            rf"[2-6]{_BEGINS}\d{{3}}(?P<mark>[ -]?)"
            rf"(?:\d{{4}}(?P=mark)\d{{4}}(?P=mark)\d{{4}}|\d{{6}}(?P=mark)\d{{5}}|\d{{15}}){_ENDS}",
            re.ASCII,
        ),
        _is_card_number,
    ),
    (
        "social security number",
        re.compile(rf"[0-8]{_BEGINS}\d\d(?<!000|666)-(?!00)\d\d-(?!0000)\d{{4}}{_ENDS}", re.ASCII),
        lambda _: True,
    ),
    (
        "telephone number",
        re.compile(rf"\+(?:(?<![\w+/].)|(?<=\\[nrtbf].)){_INTERNATIONAL}", re.ASCII),
        _is_telephone_number,
    ),
    (
        "telephone number",
        re.compile(rf"[(2-9]{_BEGINS}(?:(?<=\()[2-9]\d\d\) ?|(?<!\()\d\d-)[2-9]\d\d-\d{{4}}{_ENDS}", re.ASCII),
        _is_telephone_number,
    ),
    (
        "telephone number",
        re.compile(rf"0{_BEGINS}(?<!\d .)0(?=[1-9]\d{{0,2}}[ ./-]){_INTERNATIONAL}", re.ASCII),
        _is_telephone_number,
    ),
)
