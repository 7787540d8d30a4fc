"""`mia learn reader`: a warm-up and a stage from one command; texts of the world, or of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from embedded_team import needs_embedded_model
from program import Program

from mia.evals.ladder import digest
from mia.evals.longdata import Sample
from mia.learn.stages import read_exams, read_metrics
from mia.learn.warmup import steps
from mia.models import build_model
from mia.types import Role
from mia.world import preset

SMALL = (
    *("--questions-per-step", "2", "--samples", "2", "--rank", "2", "--chunks", "1", "--save-every", "1"),
    *("--exam-worlds", "2", "--exam-questions", "1"),
)

pytestmark = needs_embedded_model


def page(folder: str) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((Path(folder) / "stage.json").read_text(encoding="utf-8"))
    return found


def test_a_warm_up_and_a_stage_leave_weights_a_report_and_curves(program: Program) -> None:
    command = ("learn", "reader", "--out", "made", "--warm-up", "2", "--steps", "1", "--exam-every", "1", *SMALL)
    ended = program(*command, "--json")
    assert ended.code == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert (told["stage"], told["steps"], told["weights"]) == ("reader", 1, "made/adapter")
    assert "reader: warm-up: 2 of 2" in ended.stderr
    assert "reader: exam: 2 of 2" in ended.stderr
    assert [row["step"] for row in steps.read_metrics(Path("made/warm-up"))] == [2]
    assert [held.step for held in read_exams(Path("made"))] == [0, 1]
    assert read_metrics(Path("made"))[0]["chunks"] >= 1
    report = Path("made/report.md").read_text(encoding="utf-8")
    assert report.startswith("# Training of the Reader")
    assert "chunks read" in report
    assert "replanned" not in report
    assert Path("made/curves.png").read_bytes().startswith(b"\x89PNG")
    build_model(preset.model_settings(adapter=told["weights"]))
    # What MemAgent does, and where the adapter begins.
    assert page("made")["begins"] == {"reader": digest(Path("made/warm-up/adapter"))}
    learn = page("made")["learn"]
    assert (learn["deviation"], learn["aggregate"], learn["clip_high"], learn["kl"]) == (False, "token-mean", 0.2, 0.0)
    assert page("made")["reader"]["chunk_tokens"] == preset.READER["chunk_tokens"]
    # Once more: nothing is left to do.
    again = program(*command)
    assert again.code == 0
    assert again.stdout.startswith(("reader: ", "1 steps of reader brought nothing"))


def test_texts_of_ones_own_are_learnt_from_and_some_are_held_out(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [
        Sample(
            id=f"q{number}", question="Name the mayor of Melotu.", answers=("Bado",), text="mayor of Melotu is Bado. "
        )
        for number in range(6)
    ]
    known = Sample(id="known", question="Name the mayor of Dato.", answers=("Rina",), text="", known_by="some model")
    lines = [json.dumps({"long_data": 1, "settings": "x"}), *(one.model_dump_json() for one in [*samples, known])]
    Path("own.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, value in {**preset.MODEL, "max_tokens": 32}.items():
        monkeypatch.setenv(f"MIA_MODELS__{Role.READER.upper()}__{name.upper()}", str(value))
    for name, value in preset.READER.items():
        monkeypatch.setenv(f"MIA_READER__{name.upper()}", str(value))
    ended = program("learn", "reader", "--out", "made", "--texts", "own.jsonl", "--steps", "1", *SMALL[:-1], "2")
    assert ended.code == 0, ended.stderr
    source, exam = page("made")["source"], page("made")["exam"]
    assert sorted([*source["ids"], *exam["ids"]]) == [one.id for one in samples]  # type: ignore[misc]
    assert len(exam["ids"]) == 2  # type: ignore[arg-type]
    assert page("made")["learn"]["kl"] == 0.001


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--warm-up", "2", "--reader", "somewhere"), "--reader does not go with it"),
        (("--warm-up", "2", "--texts", "own.jsonl"), "--texts does not go with it"),
        (("--warm-up", "2", "--weights", "full"), "--weights full does not go with it"),
        (("--reader", "nowhere"), "neither an adapter nor a model"),
        (("--warm-up", "0", "--exam-worlds", "1"), "no exam"),
        (("--warm-up", "0", "--first-seed", "500000"), "not for training"),
    ],
)
def test_what_does_not_go_together_is_refused(
    program: Program, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], said: str
) -> None:
    for name, value in preset.MODEL.items():
        monkeypatch.setenv(f"MIA_MODELS__READER__{name.upper()}", str(value))
    ended = program("learn", "reader", "--out", "made", *options)
    assert ended.code == 2
    assert said in ended.stderr.replace("\n", " ")


def test_a_reader_behind_an_endpoint_cannot_learn(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIA_MODELS__READER__MODEL", "large")
    ended = program("learn", "reader", "--out", "made", "--texts", "own.jsonl")
    assert ended.code == 2
    assert "over an endpoint" in ended.stderr


def test_a_window_that_is_too_small_is_told_before_anything_is_trained(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIA_READER__CHUNK_TOKENS", "5000")
    ended = program("learn", "reader", "--out", "made", "--warm-up", "0")
    assert ended.code == 2
    assert "window" in ended.stderr
    assert not Path("made/stage.json").exists()
