"""How long a text is, in tokens: the model's own where it or its tokenizer is at hand, else the estimate that the
reader documents (four bytes of UTF-8 a token)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mia.errors import ConfigError, require
from mia.reader.chunks import ModelTokens

CountTokens = Callable[[str], int]


def read_tokenizer(path: Path) -> ModelTokens:
    """A tokenizer on disk: a `tokenizer.json`, or a folder that holds one.

    Raises ConfigError for anything else, MissingExtra without the library.
    """
    library = require("tokenizers", extra="local", purpose="counting tokens by a model's own tokenizer")
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = library.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # The library raises bare ones for what it cannot read.
        raise ConfigError(f"cannot read the tokenizer '{file}': {error}.", wanted="a tokenizer.json") from error
    # A file may carry the cut of its model's window, which would make every long text equally long.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return ModelTokens(tokenizer, f"tokens of {file}")
