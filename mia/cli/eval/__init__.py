"""`mia eval …`: how well long texts are read, and data to train their reader with."""

from __future__ import annotations

import typer

from mia.cli.eval.hotpotqa import ruler_hotpotqa
from mia.cli.eval.long_data import long_data
from mia.cli.eval.ruler import ruler

app = typer.Typer(
    no_args_is_help=True, help="Measure how well long texts are read, and make data to train their reader with."
)

app.command(epilog="Example: mia eval ruler --lengths 8k,32k,128k --base-url URL --model NAME --out runs/ruler")(ruler)
app.command(
    epilog="Example: mia eval ruler-hotpotqa hotpot_dev.json --documents 50,200,800 --base-url URL --model NAME"
)(ruler_hotpotqa)
app.command(epilog="Example: mia eval long-data hotpot_train.json samples.jsonl --documents 200")(long_data)
