"""`mia memory …`: look into what was learned, change it, take it out and in, and keep it sound."""

from __future__ import annotations

import typer

from mia.cli.memory.entries import add, list_, search, show
from mia.cli.memory.exchange import export, import_
from mia.cli.memory.history import audit, rollback
from mia.cli.memory.removal import purge
from mia.cli.memory.soundness import check
from mia.cli.memory.states import forget, restore
from mia.cli.memory.upkeep import queue, reembed, stats
from mia.cli.memory.why import why

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look into what was learned from earlier questions, change it, and keep it.",
)

# In the order in which `mia memory --help` lists them.
app.command("list", epilog="Example: mia memory list --state forgotten -k 50")(list_)
app.command(epilog="Example: mia memory show mem-019a")(show)
app.command(epilog='Example: mia memory search "moons of Saturn"')(search)
app.command(epilog="Example: mia memory why last")(why)
app.command(epilog="Example: mia memory stats --all-scopes")(stats)
app.command(
    epilog='Example: mia memory add --question "Who found Titan?" --workflow "1. look (Titan → Huygens)" '
    "--judgement correct"
)(add)
app.command(epilog='Example: mia memory forget mem-019a --reason "the site is gone"')(forget)
app.command(epilog="Example: mia memory restore mem-019a")(restore)
app.command(
    epilog="Examples: mia memory purge --older-than 30 --dry-run; mia memory purge --everything --scope acme/ann"
)(purge)
app.command(epilog="Example: mia memory audit mem-019a")(audit)
app.command(epilog="Example: mia memory rollback --to 2026-03-01T09:30 --dry-run")(rollback)
app.command(epilog="Examples: mia memory export memories.jsonl.gz; mia memory export notes/")(export)
app.command("import", epilog="Example: mia memory import agent-log.jsonl --judgement correct")(import_)
app.command(epilog="Example: mia memory queue --run")(queue)
app.command(epilog="Examples: mia memory check --repair; mia memory check --salvage rescued.jsonl")(check)
app.command(epilog="Example: mia memory reembed --embedder minilm")(reembed)
