"""Prompts are text files beside the class that uses them, filled in one pass over known names.

`{name}` is a blank; every other brace is literal, so JSON can stand in a prompt as it is. One pass means that text
which is filled in (a question, a tool's output) is never expanded again. A blank nobody fills, or a name the text
does not have, is a bug and raises `KeyError` at once.

A small model is spoken to in a small language: beside `<stem>.txt` there may be a variant `<stem>.compact.txt`. It
takes what the full prompt takes, and may show less of it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, Self

PromptStyle = Literal["full", "compact"]
"""How a model is spoken to: in whole sentences, or in the small language that a small model was trained on."""

FENCES = (
    "answer",
    "chunk",
    "evidence",
    "memories",
    "memory",
    "plan",
    "question",
    "review",
    "think",
    "tool_call",
    "tool_response",
    "trajectory",
    "verdict",
)
"""The tags that mean something in our protocol and prompts."""

# Possessive, for a long run of blanks behind a "<" must not be walked again and again.
_FENCE = re.compile(rf"<(?=\s*+/?+\s*+(?:{'|'.join(FENCES)})\b)", re.IGNORECASE)
# The marks of common chat templates; some servers take them for turns wherever they stand.
_TEMPLATE_MARK = re.compile(
    r"<(?=[|｜]|/?(?:s|bos|eos|start_of_turn|end_of_turn)>)|\[(?=/?(?:INST|SYS)\])", re.IGNORECASE
)
_BLANK = re.compile(r"\{([a-z][a-z0-9_]*)\}")


@dataclass(frozen=True)
class Prompt:
    """One prompt text. `name` is "folder/stem"; `version` is the first 12 hex digits of its SHA-256."""

    name: str
    text: str
    compact: Prompt | None = None
    """Its variant in the compact style, named "folder/stem.compact"; None where it has none of its own."""
    left_out: frozenset[str] = frozenset()
    """Names that `fill` takes although the text does not show them: a variant's, from its full prompt."""

    @classmethod
    def beside(cls, module_file: str, stem: str) -> Prompt:
        """Load `<stem>.txt`, with its variant if there is one, from the folder of `module_file` (pass `__file__`)."""
        full = cls._load(Path(module_file).with_name(f"{stem}.txt"))
        path = Path(module_file).with_name(f"{stem}.compact.txt")
        if not path.exists():
            return full
        compact = cls._load(path)
        return replace(full, compact=replace(compact, left_out=full.blanks - compact.blanks))

    @classmethod
    def _load(cls, path: Path) -> Prompt:
        return cls(name=f"{path.parent.name}/{path.stem}", text=path.read_text(encoding="utf-8").strip())

    def styled(self, style: PromptStyle) -> Prompt:
        """The prompt in a style; itself where it has no variant of that style."""
        return self.compact if style == "compact" and self.compact is not None else self

    @property
    def version(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    @property
    def blanks(self) -> frozenset[str]:
        """The names this text shows."""
        return frozenset(_BLANK.findall(self.text))

    @property
    def names(self) -> frozenset[str]:
        """The names that `fill` takes: the same in every style."""
        return self.blanks | self.left_out

    def fill(self, **values: str) -> str:
        """The text with every blank filled, in one pass. Raises KeyError if `values` and `names` differ."""
        if values.keys() != self.names:
            raise KeyError(f"prompt {self.name} wants {sorted(self.names)}, got {sorted(values)}")
        return _BLANK.sub(lambda match: values[match.group(1)], self.text)


@dataclass(frozen=True)
class PromptSet:
    """Base of the frozen dataclasses that hold the prompts of one class; every field is a `Prompt`."""

    @classmethod
    def beside(cls, module_file: str, prefix: str = "") -> Self:
        """Load `<prefix><field>.txt` for every field, with its variants (pass `__file__`)."""
        return cls(**{field.name: Prompt.beside(module_file, prefix + field.name) for field in fields(cls)})

    def styled(self, style: PromptStyle) -> Self:
        """The same prompts in a style."""
        return replace(self, **{field.name: getattr(self, field.name).styled(style) for field in fields(self)})


def defuse(text: str) -> str:
    """Text from outside made harmless: data cannot pose as structure.

    The `<` of our tags and of the marks of chat templates becomes `‹` (a `[` becomes `⟦`), and lone surrogates, which
    can be neither sent nor stored, become `?`.
    """
    text = text if text.isascii() else text.encode("utf-8", "replace").decode()
    if "<" not in text and "[" not in text:
        return text
    text = _FENCE.sub("‹", text)
    return _TEMPLATE_MARK.sub(lambda mark: "‹" if mark.group() == "<" else "⟦", text)


def split_thinking(text: str) -> tuple[str, str] | None:
    """(the thinking, what follows it) of a model's reply; None if thinking was begun and never ended.

    Some chat templates open the thinking themselves, so a reply may hold only the closing tag.
    """
    before, _, after = text.rpartition("</think>")
    if "<think>" in after:
        return None
    return before.replace("<think>", "").replace("</think>", "").strip(), after.strip()
