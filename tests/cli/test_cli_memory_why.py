"""`mia memory why`: what was stored at recall time, so that the score can be added up; and nothing that drives the
terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from program import Program

from mia.store import open_store
from mia.types import Episode, Failure, MemoryKind, Question, Recall, RecalledMemory

HOSTILE = "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J \u202eright to left\u202c العربية " + "long " * 2_000


def recalled(number: int, question: str = "", *, correct: bool = True, passed_over: str = "") -> RecalledMemory:
    similarity_z, value_z = 2.0 - number, 0.5
    return RecalledMemory(
        memory_id=f"mem-{number:020d}",
        judgement="correct" if correct else "incorrect",
        question=question
        or f"Question number {number}, which is of a length that does not fit beside all the figures?",
        rank=number,
        score=0.7 * similarity_z + 0.3 * value_z,
        parts={"similarity": 0.8 - number / 10, "value": 2 / 3, "similarity_z": similarity_z, "value_z": value_z},
        passed_over=passed_over,
    )


MIA = Recall(
    shown=(recalled(1), recalled(2, correct=False)),
    passed_over=(recalled(3, passed_over="rank 3 of 2 shown"), recalled(4, passed_over="below the similarity floor")),
    considered=1_234,
    form="mia",
    weights={"similarity_z": 0.7, "value_z": 0.3},
    floor=0.3,
    wanted=4,
)


def save(
    recall: Recall | None, *, text: str = "Who found Titan?", id: str = "ep-1", failures: tuple[Failure, ...] = ()
) -> None:
    with open_store(Path(".mia/memory.db")) as store:
        store.save_episode(Episode(id=id, question=Question.of(text), started_at=1e9, recall=recall, failures=failures))


def test_shown_and_passed_over_with_parts_that_add_up_to_the_score(program: Program) -> None:
    save(MIA)
    ended = program("memory", "why")
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.stdout.startswith("Who found Titan?\nep-1, 2001-09-09")
    assert "1,234 memories considered, 2 shown, 2 passed over; further down, 1,230 more." in ended.stdout
    lines = ended.stdout.splitlines()
    rows = [line for line in lines if re.match(r"\d (in)?correct", line)]
    assert [row.split()[:2] for row in rows] == [
        ["1", "correct"],
        ["2", "incorrect"],
        ["3", "correct"],
        ["4", "correct"],
    ]
    for row in rows:
        score, *parts = map(float, row.split()[2:5])
        assert sum(parts) == pytest.approx(score, abs=0.011)
    # Under each, what was measured and which memory it is.
    below = lines[lines.index(rows[0]) + 1]
    assert below.split() == ["0.70", "0.67", "mem-00000000000000000001"]
    assert lines[lines.index(rows[2]) + 1].split(maxsplit=2)[2].strip() == "rank 3 of 2 shown"
    assert "below the similarity floor" in ended.stdout
    assert [line.strip() for line in lines if line.strip() in ("shown", "passed over")] == ["shown", "passed over"]
    legend = " ".join(ended.stdout.split())
    assert "score = 0.7 × similarity + 0.3 × value, in deviations from the mean" in legend
    assert "Below a similarity of 0.3 nothing is shown." in legend


@pytest.mark.parametrize("width", [80, 100, 120])
def test_no_line_of_the_table_is_wider_than_the_terminal_and_no_id_is_cut(
    program: Program, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    save(MIA)
    printed = program("memory", "why").stdout
    assert max(map(len, printed.splitlines())) <= width
    assert len(set(re.findall(r"mem-\d{20}", printed))) == 4
    assert "\x1b" not in printed


def test_of_the_paper_and_of_plan_pairs_and_of_a_recall_without_weights(program: Program) -> None:
    parts = {"similarity": 0.6, "similarity_min_max": 1.0, "win_rate": 0.5}
    one = recalled(1).evolve(parts=parts, score=0.85)
    save(Recall(shown=(one,), considered=1, form="paper", weights={"similarity_min_max": 0.7, "win_rate": 0.3}))
    paper = program("memory", "why").stdout
    assert re.search(r"1 correct +0\.85 +\+0\.70 +\+0\.15 ", paper)
    assert re.search(r"^ +0\.60 +0\.50 +mem-", paper, re.MULTILINE)
    assert "0.7 × similarity + 0.3 × win rate, similarity stretched from 0" in " ".join(paper.split())
    assert "nothing is shown" not in paper

    pair = one.evolve(parts={"similarity": 0.6}, score=0.6)
    save(
        Recall(kind=MemoryKind.PLAN_PAIR, shown=(pair,), considered=1, form="similarity", weights={"similarity": 1.0}),
        id="ep-2",
    )
    assert "1 plan pair considered" in program("memory", "why").stdout

    save(Recall(shown=(one,), considered=1), id="ep-3")
    plain = program("memory", "why", "ep-3").stdout
    assert re.search(r"similarity +similarity +win rate", plain)
    assert "as they were stored" in plain


def test_the_coverage_of_a_recall_is_a_part_of_the_score_and_explained(program: Program) -> None:
    one = recalled(1)
    covering = one.evolve(parts=one.parts | {"coverage": 0.4}, score=one.score + 2 * 0.4)
    save(MIA.evolve(shown=(covering,), passed_over=(), weights=MIA.weights | {"coverage": 2.0}))
    printed = program("memory", "why").stdout
    assert re.search(r"^1 correct +1\.65 +\+0\.70 +\+0\.15 +\+0\.80 ", printed, re.MULTILINE)
    assert re.search(r"^ +0\.70 +0\.67 +0\.40 +mem-", printed, re.MULTILINE)
    assert (
        "score = 0.7 × similarity + 0.3 × value, in deviations from the mean of those that reach the floor, "
        "+ 2 × coverage, the share of the question's words that it adds" in " ".join(printed.split())
    )


def test_of_one_memory_or_the_honest_word_that_it_was_not_listed(program: Program) -> None:
    save(MIA)
    printed = program("memory", "why", "last", "--memory", "mem-00000000000000000003").stdout
    assert "rank 3 of 2 shown" in printed
    assert "mem-00000000000000000001" not in printed
    page = json.loads(program("memory", "why", "--memory", "mem-00000000000000000002", "--json").stdout)
    assert (page["episode"], page["memory"]["rank"]) == ("ep-1", 2)
    gone = program("memory", "why", "--memory", "mem-9")
    assert gone.code == 0
    assert "is not among the 4 best that ep-1 listed, of 1,234 considered" in gone.stdout
    assert json.loads(program("memory", "why", "--memory", "mem-9", "--json").stdout)["memory"] is None
    several = program("memory", "why", "--memory", "mem-")
    assert (several.code, several.stdout) == (2, "")


def test_where_nothing_was_recalled_it_says_why(program: Program) -> None:
    save(None)
    assert "did not look into the memory" in program("memory", "why").stdout
    assert "did not look into the memory" in program("memory", "why", "--memory", "mem-1").stdout
    save(Recall(wanted=4), id="ep-2")
    assert "The memory held nothing to consider." in program("memory", "why").stdout
    failure = Failure(stage="recall", error="StoreError", message="the disk\x1b[2J is gone", at=0)
    save(None, id="ep-3", failures=(failure,))
    assert "The recall failed: the disk\\x1b[2J is gone" in program("memory", "why").stdout
    assert program("memory", "why", "ep-9").code == 2
    assert program("memory", "why", "ep-").code == 2


def test_the_json_is_what_was_stored_and_a_file_of_episodes_does_as_well(program: Program) -> None:
    save(MIA)
    page = json.loads(program("memory", "why", "--json").stdout)
    assert Recall.model_validate(page["recall"]) == MIA
    with open_store(Path(".mia/memory.db")) as store:
        Path("log.jsonl").write_text(store.load_episode("last").model_dump_json() + "\n")
    assert program("memory", "why", "--from", "log.jsonl").stdout == program("memory", "why").stdout


def test_what_is_stored_cannot_drive_the_terminal(program: Program) -> None:
    nasty = recalled(1, HOSTILE, passed_over="too like \x1b[2J")
    save(MIA.evolve(shown=(recalled(1, HOSTILE),), passed_over=(nasty,)), text=HOSTILE)
    for arguments in ((), ("--memory", nasty.memory_id)):
        printed = program("memory", "why", *arguments).stdout
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", printed)
        assert "\\x1b[31mred" in printed
        assert len(printed) < 4_000


def test_the_last_episode_is_the_last_of_the_scope(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(Path(".mia/memory.db")) as store:
        for id, scope in (("ep-own", "acme"), ("ep-below", "acme/web"), ("ep-other", "globex/bob")):
            store.save_episode(Episode(id=id, question=Question.of(f"Asked in {id}?"), started_at=1e9), scope=scope)
    for scope, last in (("acme", "ep-below"), ("globex/bob", "ep-other")):
        monkeypatch.setenv("MIA_MEMORY__SCOPE", scope)
        for command in (("show",), ("memory", "why")):
            assert f"Asked in {last}?" in program(*command).stdout
            # By its whole id any episode, by the beginning of one only what is in the scope.
            assert "Asked in ep-own?" in program(*command, "ep-own").stdout
    for command in (("show",), ("memory", "why")):
        assert program(*command, "ep-ow").code == 2
    monkeypatch.setenv("MIA_MEMORY__SCOPE", "nobody")
    assert program("show").code == 2
