"""Seconds that run down, and who is counted as one."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from vnctoken.auth.entrance import user_name
from vnctoken.countdowns import REMEMBERED, Countdowns, client_key, user_key


@pytest.fixture
def clock():
    return Clock()


def test_seconds_run_down_to_nothing(clock):
    countdowns = Countdowns(clock)
    countdowns.start(b"a", 10)
    clock.advance(4)
    assert (countdowns.left(b"a"), countdowns.left(b"b")) == (6, 0)
    clock.advance(7)
    assert countdowns.left(b"a") == 0


def test_a_countdown_can_be_started_anew_and_stopped(clock):
    countdowns = Countdowns(clock)
    countdowns.start(b"a", 10)
    countdowns.start(b"a", 3)
    assert countdowns.left(b"a") == 3
    countdowns.start(b"a", 0)
    assert countdowns.left(b"a") == 0


def test_the_one_changed_longest_ago_is_forgotten(clock):
    countdowns = Countdowns(clock)
    keys = [b"%d" % number for number in range(REMEMBERED)]
    for key in keys:
        countdowns.start(key, 60)
    countdowns.start(keys[0], 60)
    countdowns.start(b"one more", 60)
    assert [key for key in keys if not countdowns.left(key)] == [keys[1]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff"),
        ("2001:db8::1", "2001:0DB8:0:0:8000::%eth0"),
        ("192.0.2.1", "::ffff:192.0.2.1"),
        ("192.0.2.1", "::FFFF:c000:201"),
    ],
)
def test_addresses_of_one_client_are_counted_together(one, other):
    assert client_key(one) == client_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("192.0.2.1", "192.0.2.2"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2"),
        ("2001:db8::1", "2001:db8:0:1::1"),
        ("::1", "127.0.0.1"),
        ("unix", "127.0.0.1"),
    ],
)
def test_addresses_of_different_clients_are_counted_apart(one, other):
    assert client_key(one) != client_key(other)


@pytest.mark.parametrize("spelt", ["ALICE", "%61lice", " alice ", "%41LICE", "alice%20"])
def test_spellings_of_one_name_are_counted_together(spelt):
    assert user_key(spelt) == user_key("alice") != user_key("bob")


@pytest.mark.parametrize("session", [" alice:secret", "alice :secret", "Alice\t:secret", "\xa0alice\u3000:secret"])
def test_spellings_of_the_name_in_a_session_string_are_counted_together(session):
    assert user_key(user_name(session)) == user_key("alice") != user_key(user_name("al ice:secret"))


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_name_takes_more_than_a_short_key_and_none_is_taken_for_no_name(one, other):
    assert len(user_key(one)) == (16 if one else 0)
    if " ".join(one.split()) == other:
        assert user_key(one) == user_key(other) or not other


def test_long_names_of_strangers_are_not_kept():
    user_key("x" * 100_000)
    blocks = sys.getallocatedblocks()
    for number in range(1000):
        user_key(f"{number}" + "x" * 1000)
    assert sys.getallocatedblocks() - blocks < 100
