"""The embedded model at the door with something wrong: a folder that cannot be used, settings that mean nothing,
conversations that have no room. Each ends as a sentence; no question is asked with a broken model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from embedded_team import live_all, needs_embedded_model, settings
from nursery import Nursery
from program import Ended

import mia
from mia.models.local import EMBEDDED
from mia.types import Episode, Passage, StopReason, Task
from mia.world import preset
from mia.world.facts import World
from mia.world.questions import tasks

pytestmark = needs_embedded_model

(TASK,) = tasks(World.make(900_001), 1)


def ask(nursery: Nursery, home: Path, question: str = TASK.question.text, **model: object) -> Ended:
    """`mia ask` with the embedded model by settings of the environment; `model`: those that differ."""
    variables = {"MIA_SEARCH__ENGINE": "world", "MIA_SEARCH__K": str(preset.PASSAGES)}
    for name, value in {**preset.MODEL, **model}.items():
        variables[f"MIA_MODELS__DEFAULT__{name.upper()}"] = str(value)
    return nursery.mia("--home", home, "ask", question, **variables)


# ── folders ───────────────────────────────────────────────────────────────────────────────────────────────────────


def truncate(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def from_the_future(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mia_format": config["mia_format"] + 1}))


def larger(folder: Path) -> None:
    """The settings of another model than that of the weights."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 512}))


def with_more_words(folder: Path) -> None:
    """The tokenizer of another model, which has more tokens than this one knows."""
    page = json.loads((folder / "tokenizer.json").read_text())
    last = page["added_tokens"][-1]
    page["added_tokens"] += [{**last, "id": last["id"] + number, "content": f"word{number}"} for number in (1, 2, 3)]
    (folder / "tokenizer.json").write_text(json.dumps(page))


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def speechless(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


SPOILT: dict[Callable[[Path], None], str] = {
    truncate: "model.safetensors",
    empty: "model.safetensors",
    from_the_future: "has the format",
    larger: "do not fit config.json",
    with_more_words: "token ids up to",
    without_tokenizer: "cannot read the tokenizer",
    speechless: "has no chat template",
    without_config: "there is no config.json in it",
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_checkpoint_is_refused_by_name(
    spoil: Callable[[Path], None], torch_nursery: Nursery, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(EMBEDDED, folder)
    spoil(folder)
    assert_refused(ask(torch_nursery, tmp_path / "home", path=folder), tmp_path / "home", str(folder), SPOILT[spoil])


def test_a_copy_with_nothing_wrong_answers(torch_nursery: Nursery, tmp_path: Path) -> None:
    """Else the refusals above prove nothing."""
    shutil.copytree(EMBEDDED, tmp_path / "copy")
    ended = ask(torch_nursery, tmp_path / "home", path=tmp_path / "copy")
    assert ended.code == 0, ended.stderr
    assert ended.stdout.strip()


def assert_refused(ended: Ended, home: Path, *said: str) -> None:
    assert (ended.code, ended.stdout) == (2, ""), ended.stderr
    assert ended.stderr.startswith("Error: ")
    assert "Traceback" not in ended.stderr
    for part in said:
        assert part in ended.stderr
    assert not (home / "memory.db").exists()


# ── settings ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "inf"),
        ("temperature", "nan"),
        ("temperature", "-1"),
        ("temperature", "warm"),
        ("top_p", "0"),
        ("top_p", "nan"),
        ("top_p", "1.5"),
        ("max_tokens", "0"),
        ("max_tokens", "1536"),
        ("batch", "0"),
        ("device", "abacus"),
        ("protocol", "native"),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(
    name: str, value: str, torch_nursery: Nursery, tmp_path: Path
) -> None:
    assert_refused(ask(torch_nursery, tmp_path, **{name: value}), tmp_path, name)


# ── no room ───────────────────────────────────────────────────────────────────────────────────────────────────────


class LongWinded:
    """A search engine whose every passage is longer than the model's window."""

    name = "long-winded"

    async def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        text = "mayor of Melotu is Kavori\n" * 400
        return [[Passage(id="long", title="Melotu", text=text, source="long")] for _ in queries]

    async def close(self) -> None:
        pass


async def lived(home: Path, task: Task = TASK, **flags: object) -> Episode:
    team = mia.build_team(settings(home, **flags))
    (episode,) = await live_all([task], team, at_once=1)
    await team.close()
    return episode


async def test_a_document_longer_than_the_window_leads_to_an_answer_now(tmp_path: Path) -> None:
    team = mia.build_team(settings(tmp_path), engine=LongWinded())
    (episode,) = await live_all([TASK], team, at_once=1)
    await team.close()
    assert not [failure for failure in episode.failures if failure.stage == "execute"]
    first = episode.attempts[0].trace
    assert first.stop.reason is StopReason.CONTEXT_LIMIT
    assert first.steps[0].observation is not None
    assert episode.verdict is not None
    assert not episode.verdict.correct


@pytest.mark.parametrize("window", [256, 320, 400])
async def test_a_window_that_is_too_small_ends_as_a_stop_and_no_traceback(window: int, tmp_path: Path) -> None:
    """Wherever in the line the room gives out."""
    stream = tasks(World.make(900_001), 4)
    flags = {"models__default__context_window": window, "models__default__max_tokens": 64}
    team = mia.build_team(settings(tmp_path, **flags))
    episodes = await live_all(stream, team, at_once=4)
    await team.close()
    for episode in episodes:
        assert episode.stop is not None
        assert {failure.error for failure in episode.failures} <= {"ContextOverflow", "JudgeError"}
        if episode.stop.reason is not StopReason.ANSWERED:
            assert episode.stop.reason is StopReason.CONTEXT_LIMIT, episode.stop


def test_a_question_longer_than_the_window_is_said_to_be(torch_nursery: Nursery, tmp_path: Path) -> None:
    """It is one of the world, with four hundred hops, so that it comes through the door."""
    question = f"Starting from {World.make(900_001).entities['city'][0]}, find the twin{', then the twin' * 400}."
    ended = ask(torch_nursery, tmp_path, question)
    assert (ended.code, ended.stdout) == (1, "")
    assert "Traceback" not in ended.stderr
    assert "too many for the window" in ended.stderr
    assert "No answer:" in ended.stderr
