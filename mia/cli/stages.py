"""What a person sees while a question is answered: one dim line a stage, on stderr."""

from __future__ import annotations

from mia.cli import output
from mia.events import Retrying, StageFinished, StageStarted, StepFinished, TextArrived
from mia.types import ToolCall

MAX_LINE = 110


class StageLines:
    """Prints events as they come; `steps` also shows every tool call, `stream` the models' text."""

    def __init__(self, *, steps: bool = True, stream: bool = False) -> None:
        self._steps = steps
        self._stream = stream
        self._in_text = False

    def __call__(self, event: StageStarted | StageFinished | StepFinished | TextArrived | Retrying) -> None:
        if isinstance(event, TextArrived):
            if self._stream:
                self._in_text = True
                output.console().print(output.visible(event.delta), end="", style="dim", markup=False)
            return
        if self._in_text:
            self._in_text = False
            output.console().print()
        if isinstance(event, StageFinished):
            line = f"{event.stage:<8}{one_line(event.summary, MAX_LINE)}  {event.seconds:.2f} s"
            if event.ok:
                output.note(line)
            else:
                output.warn(line)
        elif isinstance(event, StepFinished) and self._steps and event.step.tool_call is not None:
            output.note(f"        · {say_call(event.step.tool_call)}")
        elif isinstance(event, Retrying):
            output.warn(
                f"        the {event.role.value} model failed ({one_line(event.reason, 60)}); "
                f"try {event.attempt + 1} {event.when}"
            )


def say_call(call: ToolCall) -> str:
    """A tool call in one line."""
    queries = call.arguments.get("query_list")
    if call.name == "search" and isinstance(queries, list):
        return one_line("search " + " | ".join(str(query) for query in queries), MAX_LINE)
    return one_line(f"{call.name} " + ", ".join(f"{key}={value}" for key, value in call.arguments.items()), MAX_LINE)


def one_line(text: str, limit: int) -> str:
    """The text on one line, cut with an ellipsis."""
    folded = " ".join(text.split())
    return folded if len(folded) <= limit else folded[: limit - 1] + "…"
