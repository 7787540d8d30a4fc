"""How long one question waits for its model."""

from __future__ import annotations

from mia.service.patience import LONG, LONGEST, TRIES, Patience


def test_it_is_put_again_later_and_later() -> None:
    patience = Patience(lambda: 0, clock=lambda: 0.0)
    pauses = [patience.pause() or 0.0 for _ in range(12)]
    for number, pause in enumerate(pauses):
        longest = min(LONGEST, 2.0**number)
        assert longest / 2 <= pause <= longest


def test_while_nobody_is_heard_it_waits_for_a_day() -> None:
    times = iter((0.0, 10.0, 3600.0, LONG - 1, LONG))
    patience = Patience(lambda: 7, clock=lambda: next(times))
    assert [patience.pause() is not None for _ in range(4)] == [True, True, True, False]


def test_where_others_are_heard_it_is_let_go_after_a_few_tries() -> None:
    heard = 3
    patience = Patience(lambda: heard, clock=lambda: 0.0)
    for _ in range(TRIES - 1):
        heard += 1
        assert patience.pause() is not None
        # A try between which and the last one nobody was heard tells nothing.
        assert patience.pause() is not None
    heard += 5
    assert patience.pause() is None


def test_what_is_answered_in_part_each_time_is_not_paid_for_all_day() -> None:
    patience = Patience(lambda: 0, clock=lambda: 0.0)
    pauses = [patience.pause(in_part=True) for _ in range(TRIES)]
    assert all(pauses[:-1])
    assert pauses[-1] is None
