"""`mia learn executor` and `mia learn planner`: one stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from mia.cli import options, output
from mia.cli.learn.options import Options, takes_options

if TYPE_CHECKING:
    from mia.learn.stages import StageResult


@takes_options(Options)
def executor(context: typer.Context, options: Options) -> None:
    """Train the Executor beside a frozen Planner: to follow plans, to call tools rightly, to answer.

    Reward: 0.7 right answer, 0.2 tool calls, 0.1 form; a wrong answer gets one replan. The folder then holds adapter/
    or model/ (what did best in the exams), report.md, curves.png and metrics.jsonl. Ctrl-C ends the step under way and
    saves; the same command goes on from there.
    """
    _train("executor", context, options)


@takes_options(Options)
def planner(context: typer.Context, options: Options) -> None:
    """Train the Planner beside a frozen Executor: to plan with memories, to see what is missing, to replan.

    Reward: 0.7 right answer, 0.2 right first answer, 0.05 form, 0.05 right decision to replan. The folder then holds
    adapter/ or model/ (what did best in the exams), report.md, curves.png and metrics.jsonl. Ctrl-C ends the step
    under way and saves; the same command goes on from there.
    """
    _train("planner", context, options)


def _train(name: str, context: typer.Context, wanted: Options) -> None:
    from mia.cli.learn.training import train, until_stopped
    from mia.learn.stages import STAGES

    shared = options.shared(context)
    result = until_stopped(lambda watch: train(STAGES[name], wanted, shared, wanted.out, {}, watch))
    if wanted.json:
        output.result_json(page(result))
    else:
        tell(result)


def page(result: StageResult) -> dict[str, object]:
    return {**result.as_dict(), "weights": str(result.weights), "report": str(result.weights.parent / "report.md")}


def tell(result: StageResult) -> None:
    from mia.learn.report import in_short

    output.result(in_short(result))
    output.note(f"weights: {result.weights} · report: {result.weights.parent / 'report.md'}")
