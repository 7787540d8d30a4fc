"""The model card: what a model of the warm-up is, what made it, and what it was measured to do.

Everything in it is read from the folder of the training or told by who measured; nothing is typed in by hand.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mia.errors import LearnError, require
from mia.learn.warmup.measure import ABILITIES, Share
from mia.learn.warmup.steps import read_metrics

_ABOUT = """\
A small language model that plays every role of MIA (Planner, Executor, Manager, Judge) in MIA's offline world: a
seeded world of people, companies, cities, films, rivers and teams, whose documents lie in six sources. It exists so
that the whole line can be run, watched, tested and trained on a machine without network, key or GPU."""

_CAN = """\
## What it can do

- Follow a search plan turn by turn, in the line's own protocol (JSON tool calls), and say "unknown" when a source has
  nothing.
- Plan along the routes that memories of correct answers show; reflect; replan in a source that was not tried.
- Write the memory of a trajectory, with the failed tries; review an answer by how it was come by.

## What it cannot do

- Anything outside the world's small language: it knows no English beyond its prompts, and no facts of our world. Over
  documents of your own it would babble; MIA does not let it.
- Know where a world it has not seen keeps what: of the 20 relations its teacher knew the favourite source of 6 and
  guessed the others. This is on purpose: it leaves room for memory and for reinforcement.
- Tell a source that is wrong half the time from one that is right, where the trajectory shows no difference.
- Read more than 2,048 tokens; it was trained on dialogues of up to 1,200.

## Licence

Apache-2.0. Weights, tokenizer and training data are made by this repository's code from seeds; no text of others is in
them.
"""


def write_card(folder: Path, command: str, shares: Mapping[str, Share], worlds: str) -> Path:
    """`folder`/MODEL_CARD.md for the finished training in a folder.

    `command`: what to type to make it again. `shares`: its figures, none if it was not measured, on `worlds` ("50
    validation worlds from seed 500000"). Raises LearnError where there is no finished training.
    """
    try:
        page = "\n".join(_lines(folder, command, shares, worlds))
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise LearnError(
            f"'{folder}' holds no finished training to write a card of ({error}).",
            hint=f"mia world train --out {folder}",
        ) from error
    path = folder / "MODEL_CARD.md"
    path.write_text(page, encoding="utf-8")
    return path


def _lines(folder: Path, command: str, shares: Mapping[str, Share], worlds: str) -> Iterator[str]:
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    weights = folder / "model" / "model.safetensors"
    last = read_metrics(folder)[-1]
    yield f"# The embedded model (format {config['mia_format']})\n"
    yield f"{_ABOUT}\n"
    yield "## What it is\n"
    yield from _table(
        {
            "architecture": f"{config['architectures'][0]}: {config['num_hidden_layers']} layers, width "
            f"{config['hidden_size']}, {config['num_attention_heads']} heads, MLP {config['intermediate_size']}, "
            "tied embeddings, structured start (previous-token and induction heads)",
            "parameters": f"{_parameters(weights):,}",
            "vocabulary": f"{config['vocab_size']:,} tokens; any text, by bytes",
            "window": f"{config['max_position_embeddings']:,} tokens",
            "weights": f"{weights.stat().st_size:,} bytes, float32, safetensors",
            "SHA-256 of model.safetensors": f"`{_sha256(weights)}`",
        }
    )
    yield "\n## What made it\n"
    yield f"```\n{command}\n```\n"
    first_free = recipe["shards"] * recipe["worlds_per_shard"]
    yield from _table(
        {
            "recipe": ", ".join(f"{name} {value}" for name, value in sorted(recipe.items())),
            "worlds": f"0 to {first_free - 1:,}, every tenth of them without favourite sources",
            "teacher": "the symbolic one of `mia.world.teacher`, through the agents of the line",
            "steps": f"{last['step']:,}",
            "tokens": f"{last['tokens']:,}",
            "seconds": f"{last['seconds']:,.0f} for the steps, without the dialogues",
            "last loss": f"{last['loss']:.4f} nats a learned token",
            "machine": _machine(),
        }
    )
    yield "\n## Figures\n"
    if shares:
        yield f"`mia world measure`, {worlds}, temperature 0; 95 % Wilson intervals.\n"
        yield "| ability | right when | share | 95 % | cases |\n|---|---|---|---|---|"
        for name, share in shares.items():
            interval = share.interval
            spread = f"{interval.low:.1%} to {interval.high:.1%}" if interval else "–"
            value = f"{share.value:.1%}" if share.of else "–"
            yield f"| {name} | {ABILITIES[name]} | {value} | {spread} | {share.of:,} |"
    else:
        yield "Not measured."
    yield f"\n{_CAN}"


def _table(rows: Mapping[str, str]) -> Iterator[str]:
    yield "| | |\n|---|---|"
    for name, value in rows.items():
        yield f"| {name} | {value} |"


def _parameters(weights: Path) -> int:
    """Counted in the file, where tied weights are stored once."""
    safetensors: Any = require("safetensors", extra="local", purpose="reading a model's weights")
    with safetensors.safe_open(weights, framework="numpy") as content:
        shapes = [content.get_slice(key).get_shape() for key in content.keys()]  # noqa: SIM118
    return sum(math.prod(shape) for shape in shapes)


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _machine() -> str:
    """Where this card was written; training goes on where it is called, which is the same as a rule."""
    torch: Any = require("torch", extra="local", purpose="training")
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )
