"""`mia ask`: the answer alone on stdout, the rest on stderr; and a recording that must fit."""

from __future__ import annotations

import json
import re
from pathlib import Path

from program import Program

from mia.cli.options import Shared

DOCS = Path(__file__).parents[2] / "examples" / "solar_system" / "docs"
QUESTION = ("ask", "Who found Titan?", "--corpus", DOCS, "--reference", "Huygens")


def test_the_answer_alone_goes_to_stdout_and_what_remembering_cost_is_in_the_total(
    program: Program, endpoint: str
) -> None:
    ended = program(*QUESTION, "--base-url", endpoint, "--model", "slow")
    assert (ended.code, ended.stdout) == (0, "Huygens\n")
    for stage in ("recall", "plan", "execute", "judge", "remember correct workflow"):
        assert stage in ended.stderr
    # Plan, search, answer, reflect; then the compression. 120 tokens each.
    assert "total   5 model calls (1 for remembering), 600 tokens" in ended.stderr


def test_quiet_says_only_the_answer(program: Program, endpoint: str) -> None:
    ended = program(*QUESTION, "--base-url", endpoint, "--model", "slow", "--quiet")
    assert (ended.code, ended.stdout, ended.stderr) == (0, "Huygens\n", "")


def test_json_is_the_episode_and_nothing_else(program: Program, endpoint: str) -> None:
    ended = program(*QUESTION, "--base-url", endpoint, "--model", "slow", "--json", "--id", "q-titan")
    page = json.loads(ended.stdout)
    assert (ended.code, page["question"]["id"], page["answer"]["text"]) == (0, "q-titan", "Huygens")
    assert page["verdict"]["outcome"] == "correct"


def test_misuse_exits_with_2_and_says_what_to_type(program: Program, endpoint: str) -> None:
    for wrong in (["--id", "\udc80"], ["--id", "x" * 201], ["--image", "gone.png"], ["--judge", "nobody"]):
        ended = program(*QUESTION, "--base-url", endpoint, "--model", "slow", *wrong)
        assert (ended.code, ended.stdout) == (2, ""), wrong
        assert ended.stderr.startswith("Error: "), wrong


def test_no_answer_exits_with_1(program: Program) -> None:
    refused = ("--base-url", "http://127.0.0.1:9/v1", "--model", "gone")
    ended = program("--config", _impatient(), *QUESTION, *refused)
    assert (ended.code, ended.stdout) == (1, "")
    assert "No answer:" in ended.stderr


def _impatient() -> Path:
    path = Path("mia.toml")
    path.write_text("[models.default]\nmax_attempts = 1\n")
    return path


# ── recordings ────────────────────────────────────────────────────────────────────────────────────────────────────


def recorded(program: Program, endpoint: str) -> list[dict[str, object]]:
    """Record one question; returns the lines of the recording."""
    ended = program("--home", "first", *QUESTION, "--base-url", endpoint, "--model", "slow", "--record", "rec.jsonl")
    assert ended.code == 0
    return [json.loads(line) for line in Path("rec.jsonl").read_text().splitlines()]


def write(lines: list[dict[str, object]]) -> None:
    Path("rec.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_recording_that_fits_is_replayed_and_streamed(program: Program, endpoint: str) -> None:
    recorded(program, endpoint)
    ended = program("--home", "second", *QUESTION, "--replay", "rec.jsonl", "--stream")
    assert (ended.code, ended.stdout) == (0, "Huygens\n")
    assert "1. Search for the moon." in ended.stderr
    assert "<answer>Huygens</answer>" in ended.stderr
    quiet = program("--home", "third", *QUESTION, "--replay", "rec.jsonl")
    assert "1. Search for the moon." not in quiet.stderr


def test_a_call_that_is_not_recorded_ends_a_replay_before_anything_is_answered_or_kept(
    program: Program, endpoint: str
) -> None:
    lines = recorded(program, endpoint)
    for purpose in ("plan", "execute", "reflect"):
        write([line for line in lines if line.get("purpose") != purpose])
        ended = program("--home", purpose, *QUESTION, "--replay", "rec.jsonl")
        assert (ended.code, ended.stdout) == (1, ""), purpose
        assert re.search(rf"had no entry, the first: the recording has no call .*/{purpose} turn 0", ended.stderr)
        assert program("--home", purpose, "show", "last").code == 2


def test_a_recorded_call_that_nobody_asked_for_is_told_of(program: Program, endpoint: str) -> None:
    lines = recorded(program, endpoint)
    write([*lines, {**lines[-1], "turn": 7}, {**lines[-1], "question_id": "q-another"}])
    ended = program("--home", "second", *QUESTION, "--replay", "rec.jsonl")
    assert (ended.code, ended.stdout) == (1, "Huygens\n")
    assert "1 recorded calls were not asked for" in ended.stderr
    assert "turn 7" in ended.stderr


def test_the_same_question_is_recorded_twice(program: Program, endpoint: str) -> None:
    once = len(recorded(program, endpoint))
    assert len(recorded(program, endpoint)) > once
    ended = program("--home", "second", *QUESTION, "--replay", "rec.jsonl")
    assert (ended.code, ended.stdout) == (0, "Huygens\n")


# ── held back ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_whose_support_could_not_be_judged_is_held_back_with_the_reason(
    program: Program, endpoint: str
) -> None:
    # The endpoint does not know how to speak as a judge.
    trusted = ("--base-url", endpoint, "--model", "slow", "--judge", "trust", "--withhold")
    ended = program(*QUESTION, *trusted)
    assert (ended.code, ended.stdout) == (1, "")
    assert "The answer is held back: the support could not be judged: " in ended.stderr
    assert "Huygens" not in ended.stderr


def test_the_command_that_opens_the_answer_again_has_the_options_that_came_before(tmp_path: Path) -> None:
    assert Shared(config_file=None, home=None).command("show") == "mia show"
    here = Shared(config_file=tmp_path / "my settings.toml", home=Path("elsewhere"))
    assert here.command("show", "last") == f"mia --config '{tmp_path}/my settings.toml' --home elsewhere show last"
