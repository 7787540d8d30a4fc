"""`mia memory forget | restore | audit | rollback`: out of sight and back, and what the audit says of it."""

from __future__ import annotations

import json
import time
from datetime import datetime

import pytest
from program import Program


def add(program: Program, question: str) -> str:
    workflow = f"1. look ({question} → found)"
    return program(
        "memory", "add", "--question", question, "--workflow", workflow, "--judgement", "correct"
    ).stdout.strip()


@pytest.fixture
def ids(program: Program) -> tuple[str, str]:
    return add(program, "Who found Titan?"), add(program, "When did Halley come?")


def listed(program: Program, *arguments: str) -> list[str]:
    return [page["id"] for page in json.loads(program("memory", "list", "--json", *arguments).stdout)]


def test_forgotten_and_restored(program: Program, ids: tuple[str, str]) -> None:
    titan, halley = ids
    done = program("memory", "forget", titan, "--reason", "the site is gone, password=hunter2Trustno1")
    assert (done.code, done.stdout, done.stderr) == (0, f"{titan}\n", "")
    assert listed(program) == [halley]
    assert "out of sight: forgotten" in program("memory", "show", titan).stdout
    again = program("memory", "forget", titan)
    assert (again.code, again.stdout) == (0, "")
    assert "was so already" in again.stderr
    page = json.loads(program("memory", "restore", titan, halley, "--json").stdout)
    assert [(one["changed"], one["memory"]["state"]) for one in page] == [(True, "active"), (False, "active")]
    audit = program("memory", "audit", titan).stdout
    assert "state: active → forgotten" in audit
    assert "the site is gone" in audit
    assert "hunter2" not in audit


def test_expiry_in_days_on_a_date_or_never(program: Program, ids: tuple[str, str]) -> None:
    titan, _ = ids
    program("memory", "forget", titan, "--expire", "30")
    expires = json.loads(program("memory", "show", titan, "--json").stdout)["expires_at"]
    assert expires == pytest.approx(time.time() + 30 * 86_400, abs=60)
    assert "in sight, until" in program("memory", "show", titan).stdout
    program("memory", "forget", titan, "--expire", "2001-02-03T04:05")
    assert "expired 2001-02-03 04:05:00" in program("memory", "show", titan).stdout
    assert "→ 2001-02-03 04:05:00" in program("memory", "audit", "-k", "1").stdout
    program("memory", "restore", titan)
    assert json.loads(program("memory", "show", titan, "--json").stdout)["expires_at"] is None
    program("memory", "forget", titan, "--expire", "30")
    program("memory", "forget", titan, "--expire", "never")
    assert json.loads(program("memory", "show", titan, "--json").stdout)["expires_at"] is None


def test_a_quarantined_one_is_purged_by_its_name_only(program: Program, ids: tuple[str, str]) -> None:
    titan, _ = ids
    program("memory", "forget", titan, "--quarantine")
    assert listed(program, "--state", "quarantined") == [titan]
    assert "Nothing of that is out of sight" in program("memory", "purge", "--yes").stderr
    assert program("memory", "purge", titan, "--yes").stdout == "1 memory removed for good\n"


@pytest.mark.parametrize(
    "arguments",
    [("forget",), ("forget", "mem-9"), ("forget", "mem-"), ("forget", "ID", "--expire", "soon"),
     ("forget", "ID", "--quarantine", "--expire", "3"), ("restore",), ("rollback",), ("rollback", "--to", "yesterday"),
     ("forget", "ID", "--expire", "20261231"), ("forget", "ID", "--expire", "9" * 400),
     ("forget", "ID", "--expire", "4000000"), ("rollback", "--to", "20261231", "--yes"),
     ("rollback", "--to", "3", "--yes"), ("rollback", "--to", "9" * 30, "--yes"),
     ("rollback", "--to", "9" * 5000, "--yes"), ("list", "-k", "9" * 20), ("search", "x", "-k", "9" * 20),
     ("audit", "-k", "9" * 20), ("audit", "--before", "9" * 20)],
    ids=lambda words: " ".join(words)[:40],
)  # fmt: skip
def test_misuse_exits_with_2_and_changes_nothing(
    program: Program, ids: tuple[str, str], arguments: tuple[str, ...]
) -> None:
    ended = program("memory", *(ids[0] if word == "ID" else word for word in arguments))
    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr
    assert len(listed(program)) == 2


def test_a_rollback_says_what_it_would_do_asks_and_can_be_rolled_back(program: Program, ids: tuple[str, str]) -> None:
    titan, halley = ids
    number = json.loads(program("memory", "audit", "-k", "1", "--json").stdout)[0]["sequence"]
    program("memory", "forget", titan)
    rhea = add(program, "Who found Rhea?")

    told = program("memory", "rollback", "--to", str(number), "--dry-run")
    assert (len(told.stdout.splitlines()), told.code) == (2, 0)
    assert "2 changes would be undone: 1 add, 1 forget." in told.stderr
    refused = program("memory", "rollback", "--to", str(number))
    assert (refused.code, refused.stdout) == (2, "")
    assert "--yes" in refused.stderr
    assert listed(program) == [rhea, halley]

    done = program("memory", "rollback", "--to", str(number), "--yes")
    assert done.stdout == f"2 changes undone; as it was after change {number}\n"
    assert listed(program) == [halley, titan]
    back = done.stderr.split("--to ")[1].strip()
    json_page = json.loads(program("memory", "rollback", "--to", back, "--yes", "--json").stdout)
    assert len(json_page["changes"]) == 2
    assert listed(program) == [rhea, halley]


def test_a_rollback_to_a_time_and_one_that_has_nothing_to_do(program: Program, ids: tuple[str, str]) -> None:
    titan, halley = ids
    time.sleep(0.01)
    moment = datetime.now().isoformat()
    time.sleep(0.01)
    program("memory", "forget", titan, halley)
    assert "Nothing has changed since" in program("memory", "rollback", "--to", datetime.now().isoformat()).stderr
    assert program("memory", "rollback", "--to", moment, "--yes").code == 0
    assert listed(program) == [halley, titan]
    program("memory", "forget", titan)
    program("memory", "purge", "--yes")
    lost = program("memory", "rollback", "--to", moment, "--yes")
    assert f"{titan} was removed for good since, and cannot come back" in lost.stderr
    assert f"{titan}" in program("memory", "audit", titan, "-k", "1").stdout


def test_the_audit_pages_backwards(program: Program, ids: tuple[str, str]) -> None:
    first = program("memory", "audit", "-k", "1")
    assert ids[1] in first.stdout
    before = first.stderr.split("--before ")[1].split()[0]
    second = program("memory", "audit", "-k", "1", "--before", before)
    assert ids[0] in second.stdout
    assert second.stderr == ""
    assert program("memory", "audit", "mem-9").code == 2


def test_eight_digits_that_are_a_date_say_how_to_write_one(program: Program, ids: tuple[str, str]) -> None:
    for command in (("forget", ids[0], "--expire"), ("rollback", "--yes", "--to")):
        assert "write 2026-12-31" in program("memory", *command, "20261231").stderr
    assert program("memory", "forget", ids[0], "--expire", "2026-12-31").code == 0
