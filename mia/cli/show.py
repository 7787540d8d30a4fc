"""`mia show`: open one episode up, from what was recalled to the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mia.cli import options, output
from mia.cli.stages import one_line, say_call
from mia.errors import RecordError
from mia.transcript import cut_words

if TYPE_CHECKING:
    from mia.store.base import MemoryStore
    from mia.types import Attempt, Episode, RecalledMemory, Step

OBSERVATION_WORDS = 60
QUESTION_WORDS = 200


def show(
    context: typer.Context,
    episode: Annotated[str, typer.Argument(help="An episode's id, the beginning of one, or `last`.")] = "last",
    source: Annotated[
        Path | None, typer.Option("--from", help="An episodes.jsonl to look in.", show_default="the memory store")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Cut nothing.")] = False,
    json: output.JsonFlag = False,
) -> None:
    """Show an episode: memories and why, plans, searches, reflection, verdict, citations, cost."""
    found = find_episode(context, source, episode)
    if json:
        output.result_json(found.model_dump(mode="json"))
    else:
        output.result("\n".join(_story(found, full=full)))


def find_episode(context: typer.Context, source: Path | None, id: str) -> Episode:
    """From a file of episodes, or from the store. Raises RecordError, StoreError."""
    return _from_file(source, id) if source is not None else _from_store(context, id)


def _from_store(context: typer.Context, id: str) -> Episode:
    from mia.store import open_store

    config = options.shared(context).config()
    with open_store(config.store_path, create=False, redact=config.memory.redact) as store:
        return load_in_scope(store, id, config.memory.scope)


def load_in_scope(store: MemoryStore, reference: str, scope: str) -> Episode:
    """An episode of a scope and all below it; by its whole id, one of any scope. Raises RecordError, StoreError."""
    try:
        return store.load_episode(reference, scope=scope)
    except RecordError:
        try:
            named = store.load_episode(reference)
        except RecordError:
            named = None
        if named is None or named.id != reference:
            raise
        return named


def _from_file(path: Path, id: str) -> Episode:
    from mia.evals.log import read_episodes

    last: Episode | None = None
    matches: list[Episode] = []
    for last in read_episodes(path):
        if last.id.startswith(id) or last.question.id == id:
            matches.append(last)
    if id == "last" and last is not None:
        return last
    if len(matches) != 1:
        raise RecordError(
            f"'{path}' holds {len(matches)} episodes whose id begins with '{id}'.",
            wanted="exactly one; the id of its question works too",
        )
    return matches[0]


def _story(episode: Episode, *, full: bool) -> Iterator[str]:
    yield f"# {episode.question.text if full else cut_words(episode.question.text, QUESTION_WORDS)}"
    yield f"episode {episode.id}" + (f", run {episode.run}" if episode.run else "")
    if episode.question.caption:
        yield f"image: {episode.question.caption}"
    yield from _recall(episode)
    for number, attempt in enumerate(episode.attempts, start=1):
        yield from _attempt(attempt, number, full=full)
    yield from _ending(episode)


def _recall(episode: Episode) -> Iterator[str]:
    recall = episode.recall
    if recall is None:
        return
    yield f"\n## Recall: {len(recall.shown)} of {recall.considered} memories"
    for memory in recall.shown:
        yield f"  shown   {_memory(memory)}"
    for memory in recall.passed_over[:5]:
        yield f"  passed  {_memory(memory)}: {memory.passed_over}"


def _memory(memory: RecalledMemory) -> str:
    parts = ", ".join(f"{name} {value:.2f}" for name, value in memory.parts.items())
    return f"{memory.memory_id} ({memory.judgement}) {one_line(memory.question, 60)}  [{parts}]"


def _attempt(attempt: Attempt, number: int, *, full: bool) -> Iterator[str]:
    if attempt.plan is not None:
        chosen = (
            f" (no. {attempt.plan.chosen + 1} of {len(attempt.plan.candidates)})" if attempt.plan.candidates else ""
        )
        yield f"\n## {'Plan' if number == 1 else 'Supplementary plan'}{chosen}"
        if full and attempt.plan.thinking:
            yield _indent(f"({attempt.plan.thinking})")
        yield _indent(attempt.plan.text)
    yield f"\n## Execution {number}"
    for step in attempt.trace.steps:
        yield from _step(step, full=full)
    yield f"  {attempt.trace.stop.reason.value}: {attempt.trace.stop.sentence}"
    if attempt.answer is not None:
        yield f"  answer: {attempt.answer.text}"
    if attempt.reflection is not None:
        word = {True: "yes, replan", False: "no, the answer stands", None: "(neither yes nor no)"}
        yield f"\n## Reflection: {word[attempt.reflection.replan]}"
        if attempt.reflection.thinking:
            yield _indent(attempt.reflection.thinking)


def _step(step: Step, *, full: bool) -> Iterator[str]:
    yield f"  {step.index + 1}. {say_call(step.tool_call) if step.tool_call else '(no call)'}  {step.seconds:.2f} s"
    if step.thinking:
        yield _indent(step.thinking if full else one_line(step.thinking, 200), 5)
    if step.observation is not None:
        text = step.observation.text if full else cut_words(step.observation.text, OBSERVATION_WORDS)
        mark = "→" if step.observation.ok else f"→ error ({step.observation.error})"
        yield _indent(f"{mark} {text}", 5)


def _ending(episode: Episode) -> Iterator[str]:
    verdict = episode.verdict
    yield f"\n## Answer: {episode.answer.text if episode.answer else '(held back)' if episode.withheld else '(none)'}"
    for citation in episode.answer.citations if episode.answer else ():
        yield f"  [{citation.passage_id}] “{citation.quote}” (step {citation.step + 1}, {citation.origin})"
    if verdict is not None:
        scores = ", ".join(f"{name} {value:.2f}" for name, value in verdict.scores.items())
        yield f"\n## Verdict: {verdict.outcome.value} ({verdict.judge}{f'; {scores}' if scores else ''})"
        yield from (f"  {text}" for text in (verdict.reason, verdict.fallback) if text)
        yield from (f"  {review.reviewer} {review.score}/10: {review.reason}" for review in verdict.reviews)
        if verdict.support is not None:
            yield f"  support {verdict.support.level}: {verdict.support.reason}"
    if episode.failures:
        yield "\n## Failures"
        yield from (
            f"  {failure.stage}: {failure.error}: {one_line(failure.message, 200)}" for failure in episode.failures
        )
    yield "\n## Spent"
    for role, usage in episode.usage.items():
        cost = "unknown cost" if usage.cost is None else f"${usage.cost:.4f}"
        model = episode.models.get(role, "")
        yield f"  {role.value:<9}{usage.calls} calls, {usage.tokens} tokens, {cost}, {usage.seconds:.1f} s  {model}"


def _indent(text: str, width: int = 2) -> str:
    return "\n".join(" " * width + line for line in text.splitlines())
