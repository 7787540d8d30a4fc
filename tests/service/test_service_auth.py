"""Tokens: made once, kept as hashes, believed to the letter, and never the reason why a door stands open."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from service_team import settings

from mia.errors import ConfigError, RecordError
from mia.service.auth import (
    LOCAL,
    Gate,
    GateStuck,
    Principal,
    Unauthorized,
    add_token,
    check_address,
    is_loopback,
    read_tokens,
    remove_token,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "tokens.json"


def gate(tmp_path: Path, **flags: object) -> Gate:
    return Gate(settings(tmp_path / "home", **flags))


def test_a_token_is_kept_as_a_hash_that_only_its_owner_can_read(path: Path) -> None:
    token = add_token(path, "ann", scope="acme/research", days=None)
    assert token.startswith("mia_")
    assert len(token) == 4 + 43
    assert token not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token != add_token(path, "ben", scope=None, days=None)


def test_whose_a_token_is(tmp_path: Path, path: Path) -> None:
    ann, root = add_token(path, "ann", scope="acme/research", days=1), add_token(path, "root", scope=None, days=None)
    door = gate(tmp_path)
    assert door.principal(ann) == Principal("ann", "acme/research")
    assert door.principal(root).is_admin
    for wrong in ("", "mia_", ann[:-1], ann + "a", ann.upper(), "ä" * 47, "\ud800", "x" * 100_000):
        with pytest.raises(Unauthorized):
            door.principal(wrong)


def test_a_scope_sees_itself_and_below_only() -> None:
    ann = Principal("ann", "acme/research")
    assert ann.may_see("acme/research")
    assert ann.may_see("acme/research/ann")
    for other in ("acme", "acme/researchers", "acme/sales", "", "other"):
        assert not ann.may_see(other)
    assert not Principal("nobody", "").may_see("default")


def test_an_expired_token_is_told_apart_from_a_wrong_one(tmp_path: Path, path: Path) -> None:
    token = add_token(path, "ann", scope=None, days=0.3 / 86_400)
    door = gate(tmp_path)
    assert door.principal(token).name == "ann"
    time.sleep(0.35)
    with pytest.raises(Unauthorized, match="expired"):
        door.principal(token)


def test_what_changes_counts_from_the_next_request_on(tmp_path: Path, path: Path) -> None:
    door = gate(tmp_path)
    assert door.principal("") == LOCAL
    ann = add_token(path, "ann", scope=None, days=None)
    with pytest.raises(Unauthorized):
        door.principal("")
    ben = add_token(path, "ben", scope="b", days=None)
    assert door.principal(ben).name == "ben"
    remove_token(path, "ann")
    with pytest.raises(Unauthorized):
        door.principal(ann)


@pytest.mark.parametrize("how", ["the last one is taken back", "the file is removed", "the file is emptied"])
def test_a_door_that_was_closed_does_not_open_by_itself(tmp_path: Path, path: Path, how: str) -> None:
    token = add_token(path, "ann", scope=None, days=None)
    door = gate(tmp_path)
    if how == "the last one is taken back":
        remove_token(path, "ann")
    elif how == "the file is removed":
        path.unlink()
    else:
        path.write_text("[]")
    for one in ("", token):
        with pytest.raises(Unauthorized):
            door.principal(one)
    assert door.closed


def test_beyond_loopback_a_door_is_closed_even_without_tokens(tmp_path: Path) -> None:
    door = gate(tmp_path, serve__host="0.0.0.0")
    with pytest.raises(Unauthorized):
        door.principal("")


BROKEN = [
    b"",
    b"{",
    b"{}",
    b"null",
    b'"mia_x"',
    b"\xff\xfe",
    b"[1]",
    b'[{"name": "a"}]',
    b'[{"name": "a", "sha256": 5}]',
    b'[{"name": "a", "sha256": "short"}]',
    json.dumps([{"name": "a", "sha256": "ä" * 64}]).encode(),
    json.dumps([{"name": "a", "sha256": "0" * 64, "scpoe": "acme"}]).encode(),
    json.dumps([{"name": "a", "sha256": "0" * 64, "scope": ""}]).encode(),
    json.dumps([{"name": "a", "sha256": "0" * 64, "scope": "a/../b"}]).encode(),
    json.dumps([{"name": "a", "sha256": "0" * 64, "scope": 5}]).encode(),
    json.dumps([{"name": "a", "sha256": "0" * 64, "expires_at": "tomorrow"}]).encode(),
    json.dumps([{"name": "a", "sha256": "0" * 64, "expires_at": float("nan")}]).encode(),
    b"[" * 100_000,
]


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_of_tokens_is_refused_at_the_start_and_lets_nobody_in_later(
    tmp_path: Path, path: Path, content: bytes
) -> None:
    token = add_token(path, "ann", scope=None, days=None)
    door = gate(tmp_path)
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        read_tokens(path)
    assert str(path) in refused.value.got
    assert "sha256" not in str(refused.value)
    with pytest.raises(ConfigError):
        gate(tmp_path)
    with pytest.raises(GateStuck):
        door.principal(token)
    assert door.closed


def test_a_file_that_breaks_an_open_door_closes_it(tmp_path: Path, path: Path) -> None:
    door = gate(tmp_path)
    path.parent.mkdir(exist_ok=True)
    path.write_text("{")
    with pytest.raises(GateStuck):
        door.principal("")
    with pytest.raises(Unauthorized):
        door.principal("")


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path, path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot be read"):
        gate(tmp_path)
    with pytest.raises(ConfigError):
        add_token(path, "ann", scope=None, days=None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, path: Path) -> None:
    add_token(path, "ann", scope=None, days=None)
    path.chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        gate(tmp_path)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x1b[31m", "a" * 101])
def test_a_token_needs_a_name_that_can_be_shown(path: Path, name: str) -> None:
    with pytest.raises(RecordError):
        add_token(path, name, scope=None, days=None)
    assert not path.exists()


@pytest.mark.parametrize("days", [0, -1, float("nan"), float("inf")])
def test_a_token_needs_a_time_that_ends(path: Path, days: float) -> None:
    with pytest.raises(RecordError):
        add_token(path, "ann", scope=None, days=days)


def test_names_are_unique_and_those_unknown_cannot_be_removed(path: Path) -> None:
    add_token(path, "ann", scope=None, days=None)
    with pytest.raises(RecordError, match="ann"):
        add_token(path, " ann ", scope=None, days=None)
    with pytest.raises(RecordError, match="ben"):
        remove_token(path, "ben")
    with pytest.raises(ConfigError):
        add_token(path, "ben", scope="../x", days=None)


def test_tokens_that_are_made_at_the_same_time_are_all_kept(path: Path) -> None:
    threads = [
        threading.Thread(target=add_token, args=(path, f"t{number}"), kwargs={"scope": None, "days": None})
        for number in range(12)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(read_tokens(path)) == 12


def test_a_token_of_the_environment_is_for_everything_and_must_be_long(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIA_SERVE_TOKEN", "a-token-of-24-letters-ok\n")
    door = gate(tmp_path)
    assert door.principal("a-token-of-24-letters-ok").is_admin
    # It does not depend on a file that somebody broke.
    path.parent.mkdir(exist_ok=True)
    path.write_text("{")
    assert door.principal("a-token-of-24-letters-ok").is_admin
    monkeypatch.setenv("MIA_SERVE_TOKEN", "secret")
    with pytest.raises(ConfigError) as refused:
        gate(tmp_path / "other")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_addresses_of_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "192.168.0.1", "127.1", "localhost.evil.org", "example.org"])
def test_addresses_that_others_can_reach_need_a_token(tmp_path: Path, path: Path, host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="no token"):
        check_address(settings(tmp_path / "home", serve__host=host))
    add_token(path, "ann", scope=None, days=None)
    check_address(settings(tmp_path / "home", serve__host=host))
