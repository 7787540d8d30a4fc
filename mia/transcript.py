"""A trace as text that a model can read, round by round: reasoning, tool call, what came back (cut).

One rendering serves reflection, compression and judges, so that all of them speak of the same thing. It shows only what
the trace holds; every `<tag>` of our protocol inside it is defused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from mia.prompt import defuse
from mia.types import Attempt, Step, ToolCall

TRACE_WORDS = 1024
"""Words of an observation that a reflection sees (mia.md, section 2)."""
WORKFLOW_WORDS = 512
"""Words of an observation that a compression sees (mia.md, section 3)."""

# Scripts written without spaces: a character counts as a word there (Thai, Lao, Khmer, kana, Han, fullwidth forms).
_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
_UNSPACED_LETTER = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def cut_words(text: str, limit: int) -> str:
    """The first `limit` words of a text and, where something was cut, a mark that says how much.

    In scripts without spaces every character counts as a word; a run of over 50 characters without a space counts as
    one word for each 50, so that no text passes uncut for want of spaces.
    """
    if text.isascii() or not _UNSPACED_LETTER.search(text):
        # By far the most frequent case, and a recall asks for it a dozen times.
        words = text.split()
        if len(words) <= limit and len(max(words, key=len, default="")) <= 50:
            return text
    count = 0
    for match in _WORD.finditer(text):
        weight = -(-(match.end() - match.start()) // 50)
        if count + weight > limit:
            end = match.start() + (limit - count) * 50
            left = sum(1 for _ in _WORD.finditer(text, end))
            return f"{text[:end].rstrip()} … [{left} words cut]"
        count += weight
    return text


def describe_call(call: ToolCall) -> str:
    """A tool call in words, for people: `searches: Titan; moons of Saturn`, `fetch: https://…`."""
    arguments = call.arguments
    # However a tool names its argument: where there is one, it says all.
    (only,) = arguments.values() if len(arguments) == 1 else (None,)
    texts = [only] if isinstance(only, str) else only
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        told = ", ".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())
        return f"{call.name}: {told}" if told else call.name
    name = "searches" if call.name == "search" else call.name
    return f"{name}: {'; '.join(texts)}"


def render_steps(steps: Sequence[Step], *, words: int = TRACE_WORDS) -> str:
    """The rounds of a trace; observations cut to `words`."""
    rounds = []
    for number, step in enumerate(steps, start=1):
        lines = [f"Round {number}"]
        if step.thinking:
            lines.append(f"Reasoning: {step.thinking.strip()}")
        if step.tool_call is not None:
            arguments = json.dumps(step.tool_call.arguments, ensure_ascii=False)
            lines.append(f"Call: {step.tool_call.name} {arguments}")
        elif step.observation is None and not step.thinking:
            lines.append(f"Wrote: {step.text.strip()}")
        if step.observation is not None:
            label = "Result" if step.observation.ok else f"Error ({step.observation.error})"
            lines.append(f"{label}: {cut_words(step.observation.text.strip(), words)}")
        rounds.append("\n".join(lines))
    return defuse("\n\n".join(rounds))


def render_attempts(attempts: Sequence[Attempt], *, words: int = TRACE_WORDS) -> str:
    """All executions of an episode, each with its plan, its rounds and its answer."""
    parts = []
    for number, attempt in enumerate(attempts, start=1):
        name = "Plan" if number == 1 else "Supplementary plan"
        if attempt.plan is not None:
            parts.append(f"{name}:\n{defuse(attempt.plan.text.strip())}")
        parts.append(render_steps(attempt.trace.steps, words=words))
        parts.append(f"Answer: {defuse(attempt.answer.text) if attempt.answer else '(none)'}")
    return "\n\n".join(part for part in parts if part)
