"""The options of a training, declared once for all commands that train."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from mia.cli import output

WORLD = "In the offline world"
OWN = "Questions of your own"
EXAMS = "Exams"
LEARNING = "Learning"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every training takes. None: not given."""

    out: Annotated[Path, typer.Option("--out", "-o", help="The training's folder; one that holds a part goes on.")]
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="A model's folder.", show_default="the embedded model"),
    ] = None
    exam_every: Annotated[int, typer.Option(min=1, help="Steps between exams.", rich_help_panel=EXAMS)] = 25
    exam_worlds: Annotated[
        int, typer.Option(min=0, help="Validation worlds of an exam; 0 for no exams.", rich_help_panel=EXAMS)
    ] = 24
    exam_questions: Annotated[
        int,
        typer.Option(min=1, help="Questions in each world, or held out of your own.", rich_help_panel=EXAMS),
    ] = 20
    patience: Annotated[
        int,
        typer.Option(min=0, help="End after so many exams that were no better; 0: never.", rich_help_panel=EXAMS),
    ] = 0
    steps: Annotated[int, typer.Option(min=1, help="Steps to take.", rich_help_panel=LEARNING)] = 100
    questions_per_step: Annotated[int, typer.Option(min=1, help="Questions in a step.", rich_help_panel=LEARNING)] = 16
    samples: Annotated[int, typer.Option(min=1, help="Rollouts of each question.", rich_help_panel=LEARNING)] = 8
    weights: Annotated[
        str | None, typer.Option(help="lora or full.", show_default="lora", rich_help_panel=LEARNING)
    ] = None
    rank: Annotated[
        int | None, typer.Option(min=1, help="Of the adapter.", show_default="16", rich_help_panel=LEARNING)
    ] = None
    rate: Annotated[
        float | None,
        typer.Option(help="Learning rate.", show_default="0.001; all weights: 0.0003", rich_help_panel=LEARNING),
    ] = None
    kl: Annotated[
        float | None,
        typer.Option(help="Weight of the divergence from the base.", show_default="0.02", rich_help_panel=LEARNING),
    ] = None
    seed: Annotated[int, typer.Option(help="Of all sampling.", rich_help_panel=LEARNING)] = 1
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 10
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the metrics for TensorBoard too, into OUT/tensorboard.")
    ] = False
    wandb: Annotated[
        bool,
        typer.Option("--wandb", help="Write them for Weights & Biases too, into OUT/wandb; nothing is sent."),
    ] = False
    threads: Annotated[int, typer.Option(min=1, help="Threads on a CPU.")] = 1
    json: output.JsonFlag = False


@dataclass(frozen=True, kw_only=True)
class Options(Training):
    """What a training of the line takes, too."""

    planner: Annotated[
        Path | None, typer.Option(help="An adapter or a whole model that the Planner has, or begins with.")
    ] = None
    executor: Annotated[
        Path | None, typer.Option(help="An adapter or a whole model that the Executor has, or begins with.")
    ] = None
    worlds: Annotated[
        int | None,
        typer.Option(min=1, help="Worlds side by side.", show_default="questions per step", rich_help_panel=WORLD),
    ] = None
    first_seed: Annotated[
        int | None,
        typer.Option(
            help="The first world.", show_default="the first that the warm-up did not use", rich_help_panel=WORLD
        ),
    ] = None
    questions_per_world: Annotated[
        int,
        typer.Option(min=1, help="Questions of a world before the next one takes its place.", rich_help_panel=WORLD),
    ] = 60
    hops: Annotated[
        int,
        typer.Option(min=1, max=4, help="Relations of a question at most; exams ask all kinds.", rich_help_panel=WORLD),
    ] = 4
    shifted: Annotated[
        bool, typer.Option("--shifted", help="Worlds without favourite sources.", rich_help_panel=WORLD)
    ] = False
    questions: Annotated[
        Path | None,
        typer.Option(help='JSON Lines: {"question": …, "answers": […]}; then no worlds.', rich_help_panel=OWN),
    ] = None
    corpus: Annotated[
        list[Path] | None,
        typer.Option("--corpus", "-c", help="Files and folders to answer from. Repeatable.", rich_help_panel=OWN),
    ] = None
    index: Annotated[Path | None, typer.Option(help="An index made by `mia index`.", rich_help_panel=OWN)] = None


def takes_options(kind: type[Training]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command `(context, options, …)` take each option of a kind by its own name, beside those of its own."""

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = inspect.signature(command, eval_str=True).parameters
        own = [one.replace(kind=keyword) for name, one in parameters.items() if name != "options"]
        hints = get_type_hints(kind, include_extras=True)

        def taking(**given: Any) -> None:
            options = kind(**{one.name: given.pop(one.name) for one in fields(kind)})
            command(options=options, **given)

        declared = [
            inspect.Parameter(
                one.name,
                keyword,
                default=inspect.Parameter.empty if one.name == "out" else one.default,
                annotation=hints[one.name],
            )
            for one in fields(kind)
        ]
        taking.__name__ = command.__name__
        taking.__doc__ = command.__doc__
        taking.__module__ = command.__module__
        signature = inspect.Signature([*own, *declared])
        taking.__signature__ = signature  # type: ignore[attr-defined]
        taking.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
        return taking

    return decorated
