"""What the commands of `mia eval` share: options, and numbers as people write them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mia.errors import ConfigError

MethodKind = Annotated[str, typer.Option("--method", help="reader (chunk by chunk) or direct (all in one prompt).")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="A folder for results; one that holds a part goes on.", show_default="runs/…"),
]
Concurrency = Annotated[int | None, typer.Option(min=1, help="Items at a time.", show_default="8")]
Temperature = Annotated[float, typer.Option(min=0, help="Of sampling.")]
TopP = Annotated[float, typer.Option(min=0.01, max=1, help="Of sampling.")]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        help="The model's tokenizer.json, or its folder, to count tokens with.",
        show_default="the model's own in this process; else four bytes a token",
    ),
]
RayAddress = Annotated[
    str | None, typer.Option("--ray", help="Share the items out over the machines of this Ray cluster.")
]
Pool = Annotated[
    Path | None, typer.Option(help='More documents to draw others from: JSON Lines of {"title", "text"}; also .gz.')
]
Write = Annotated[Path | None, typer.Option(help="Write the items to this JSON Lines file, and ask nothing.")]
QuestionsFile = Annotated[Path, typer.Argument(help="Questions with documents, as HotpotQA's files; also .gz.")]

_NUMBER = re.compile(r"(\d+)([km]?)", re.IGNORECASE)


def numbers(text: str, option: str) -> list[int]:
    """ "8k,16k" as [8192, 16384]. Raises ConfigError."""
    found = [_NUMBER.fullmatch(part.strip()) for part in text.split(",")]
    values = [int(one[1]) * {"": 1, "k": 1 << 10, "m": 1 << 20}[one[2].lower()] for one in found if one]
    if len(values) < len(found) or not all(values):
        raise ConfigError(f"{option} is '{text}'.", wanted="numbers above 0 with commas between, e.g. 8k,16k,128000")
    return values


def model_flags(
    model: str | None, base_url: str | None, replay: Path | None, record: Path | None, concurrency: int | None
) -> dict[str, Any]:
    """The flags of a model and a run, under their dotted names."""
    return {
        "models.default.model": model,
        "models.default.base_url": base_url,
        "models.default.provider": "replay" if replay else None,
        "models.default.path": str(replay) if replay else None,
        "models.record": str(record) if record else None,
        "run.concurrency": concurrency,
    }


def counter(tokenizer: Path | None) -> Callable[[str], int]:
    """What counts tokens where no model is at hand: the named tokenizer, else the estimate."""
    from mia.evals.ruler.tokens import read_tokenizer
    from mia.reader.chunks import EstimatedTokens

    return (read_tokenizer(tokenizer) if tokenizer else EstimatedTokens()).count
