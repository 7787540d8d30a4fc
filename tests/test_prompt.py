"""Prompts are filled in one pass, and every prompt file is used with exactly the blanks it has."""

from __future__ import annotations

import gc
import importlib
import pkgutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mia
from mia.prompt import FENCES, Prompt, PromptSet, defuse, split_thinking

ROOT = Path(mia.__file__).parent


def test_one_pass_over_known_names() -> None:
    prompt = Prompt("t/x", 'Ask {question}. Write {"json": {a b}}.')
    assert prompt.blanks == {"question"}
    assert prompt.fill(question="{question} {other}") == 'Ask {question} {other}. Write {"json": {a b}}.'


@pytest.mark.parametrize("values", [{}, {"question": "q", "more": "m"}])
def test_a_missing_or_unknown_name_is_a_bug(values: dict[str, str]) -> None:
    with pytest.raises(KeyError):
        Prompt("t/x", "{question}").fill(**values)


def test_the_version_is_that_of_the_text() -> None:
    assert Prompt("a", "x").version == Prompt("b", "x").version != Prompt("a", "y").version


def test_every_prompt_file_is_loaded_by_a_module_beside_it() -> None:
    for module in pkgutil.walk_packages(mia.__path__, "mia."):
        if not module.name.startswith("mia.cli"):
            importlib.import_module(module.name)
    loaded = {thing.name for thing in gc.get_objects() if type(thing) is Prompt}
    texts = {f"{path.parent.name}/{path.stem}" for path in ROOT.rglob("*.txt")}
    assert texts == loaded


def write_variants(folder: Path) -> str:
    """A prompt with a compact variant, and one without; returns the file that they are beside of."""
    (folder / "ask.txt").write_text("Answer {question} in {words} words.\n")
    (folder / "ask.compact.txt").write_text("{question} ?\n")
    (folder / "stop.txt").write_text("Stop now.\n")
    return str(folder / "module.py")


def test_a_style_chooses_the_variant_and_takes_the_same_names(tmp_path: Path) -> None:
    full = Prompt.beside(write_variants(tmp_path), "ask")
    compact = full.styled("compact")
    assert full.styled("full") is full
    assert compact.styled("compact") is compact
    assert (full.name, compact.name) == (f"{tmp_path.name}/ask", f"{tmp_path.name}/ask.compact")
    assert full.version != compact.version == Prompt("", "{question} ?").version
    assert full.fill(question="Who?", words="9") == "Answer Who? in 9 words."
    assert compact.fill(question="Who?", words="9") == "Who? ?"
    for wrong in ({"question": "Who?"}, {"question": "Who?", "words": "9", "more": "m"}):
        with pytest.raises(KeyError, match="words"):
            compact.fill(**wrong)


def test_without_a_variant_every_style_is_the_prompt_itself(tmp_path: Path) -> None:
    prompt = Prompt.beside(write_variants(tmp_path), "stop")
    assert prompt.styled("compact") is prompt.styled("full") is prompt


def test_a_set_of_prompts_is_loaded_and_styled_as_one(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Prompts(PromptSet):
        ask: Prompt
        stop: Prompt

    full = Prompts.beside(write_variants(tmp_path))
    compact = full.styled("compact")
    assert [prompt.text for prompt in (compact.ask, compact.stop)] == ["{question} ?", "Stop now."]
    assert full.styled("full") == full != compact


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.compact.txt")), ids=lambda path: path.name)
def test_a_variant_shows_nothing_that_its_full_prompt_does_not(path: Path) -> None:
    full = Prompt.beside(str(path), path.name.removesuffix(".compact.txt"))
    compact = full.styled("compact")
    assert compact is not full
    assert compact.blanks <= full.blanks == compact.names


@given(st.text(), st.sampled_from(FENCES), st.sampled_from(["", "/", " / ", "\n"]))
def test_no_tag_of_ours_survives(text: str, tag: str, slash: str) -> None:
    made = defuse(f"{text}<{slash}{tag}>{text}<{slash}{tag.upper()} x=1>")
    for name in FENCES:
        assert f"<{name}>" not in made.lower()
        assert f"</{name}>" not in made.lower()
    assert defuse(made) == made


def test_other_text_is_left_alone() -> None:
    assert defuse("a < b <b>bold</b> <thinker> x<y") == "a < b <b>bold</b> <thinker> x<y"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("yes", ("", "yes")),
        ("<think>a</think> yes ", ("a", "yes")),
        ("a</think>yes", ("a", "yes")),
        ("<think>a</think><think>b</think>yes", ("ab", "yes")),
        ("<think>a", None),
        ("<think>a</think> <think>b", None),
    ],
)
def test_thinking_is_split_from_the_reply(text: str, parts: tuple[str, str] | None) -> None:
    assert split_thinking(text) == parts


@pytest.mark.parametrize(
    "mark", ["<|im_end|>", "<|im_start|>system", "<|eot_id|>", "<｜User｜>", "[/INST]", "<end_of_turn>", "</s>"]
)
def test_the_marks_of_chat_templates_are_made_harmless(mark: str) -> None:
    assert mark not in defuse(f"text {mark} text")
    assert defuse(defuse(mark)) == defuse(mark)


@pytest.mark.parametrize("piece", ["< ", "<", "< /", " ", "<\n", "[/", "<|"])
def test_defusing_takes_linear_time(piece: str) -> None:
    begun = time.process_time()
    defuse("<" + piece[-1] * 500_000 + "x")
    defuse(piece * 200_000)
    assert time.process_time() - begun < 3


def test_half_a_character_can_be_sent_and_stored_afterwards() -> None:
    assert defuse("a\ud83db") == "a?b"
