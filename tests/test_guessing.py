"""What failures cost: who has guessed too often waits, and nobody else does."""

import contextlib
import re
import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outcomes import result_of
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock

from vnctoken.auth import CredentialError
from vnctoken.auth.guessing import FAMILIAR_SECONDS, Guessing
from vnctoken.countdowns import REMEMBERED
from vnctoken.errors import (
    ActionError,
    ApiError,
    AuthenticationError,
    AuthorizationError,
    NoExistsError,
    OnedError,
    TokenStoreError,
)

WRONG = "oned says no"


class Judge:
    """Asks as a caller does: oned's answer is the error that is given, or that he is let in."""

    def __init__(self, limit=10, seconds=60):
        self.clock = Clock()
        self.guessing = Guessing(self.clock, limit, seconds)
        self.asked = 0

    def tries(self, client, account, error=None):
        """Return "let in", "wrong", or "waits", as the caller is told."""

        async def ask():
            self.asked += 1
            if error is not None:
                raise error
            return "let in"

        try:
            return result_of(self.guessing.judged(client, account, ask))
        except AuthenticationError as refused:
            return told(refused)

    def fails(self, client, account, times=1):
        return [self.tries(client, account, AuthenticationError(WRONG)) for _ in range(times)]

    def wait(self, client, account):
        """Return the seconds that the caller is told to wait."""
        asked = self.asked

        async def ask():
            raise OnedError("not now")

        with pytest.raises((AuthenticationError, OnedError)) as caught:
            result_of(self.guessing.judged(client, account, ask))
        assert self.asked == asked
        found = re.search(r"try again in (\d+) seconds$", str(caught.value))
        return int(found[1]) if found else 0


def told(error):
    if str(error) == WRONG:
        return "wrong"
    assert re.fullmatch(r"Too many failed attempts to log in \(:auth_failures:\); try again in \d+ seconds", str(error))
    return "waits"


@pytest.fixture
def judge():
    return Judge()


# So many are forgiven


@pytest.mark.parametrize(("limit", "seconds"), [(1, 1), (1, 3600), (3, 60), (10, 60), (1000, 3600)])
def test_so_many_failures_are_forgiven_and_one_more_with_every_so_many_seconds(limit, seconds):
    judge = Judge(limit, seconds)
    interval = seconds / limit
    assert judge.fails("192.0.2.1", "alice", limit + 2) == ["wrong"] * limit + ["waits"] * 2
    judge.clock.advance(interval * 0.999)
    assert judge.fails("192.0.2.1", "alice") == ["waits"]
    judge.clock.advance(interval * 0.001)
    assert judge.fails("192.0.2.1", "alice", 2) == ["wrong", "waits"]
    judge.clock.advance(seconds)
    assert judge.fails("192.0.2.1", "alice", limit + 1) == ["wrong"] * limit + ["waits"]
    judge.clock.advance(100 * seconds)
    assert judge.fails("192.0.2.1", "alice", limit + 1) == ["wrong"] * limit + ["waits"]


def test_who_waits_is_told_for_how_long_and_asking_meanwhile_makes_it_no_longer(judge):
    judge.fails("192.0.2.1", "alice", 10)
    assert judge.wait("192.0.2.1", "alice") == 6
    judge.clock.advance(2.5)
    assert judge.fails("192.0.2.1", "alice", 20) == ["waits"] * 20
    assert judge.wait("192.0.2.1", "alice") == 4
    judge.clock.advance(3.5)
    assert judge.wait("192.0.2.1", "alice") == 0


def test_oned_is_not_asked_for_who_waits_not_even_when_he_is_right_now(judge):
    judge.fails("192.0.2.1", "alice", 10)
    assert judge.asked == 10
    assert judge.tries("192.0.2.1", "alice") == "waits"
    assert judge.asked == 10
    judge.clock.advance(6)
    assert judge.tries("192.0.2.1", "alice") == "let in"


@pytest.mark.parametrize("error", [AuthenticationError("no"), CredentialError("the signature is wrong")])
def test_failures_are_told_as_they_are_until_there_are_too_many(judge, error):
    async def ask():
        raise error

    for _ in range(10):
        with pytest.raises(type(error)) as caught:
            result_of(judge.guessing.judged("192.0.2.1", "alice", ask))
        assert caught.value is error
    assert judge.wait("192.0.2.1", "alice") == 6


@pytest.mark.parametrize(
    "error", [OnedError("down"), TokenStoreError("full"), ApiError("what?"), ActionError("off"), ZeroDivisionError()]
)
def test_what_tells_nothing_about_the_credential_counts_neither_way(judge, error):
    judge.fails("192.0.2.1", "alice", 9)
    for _ in range(20):
        with pytest.raises(type(error)):
            judge.tries("192.0.2.1", "alice", error)
    assert judge.fails("192.0.2.1", "alice", 2) == ["wrong", "waits"]


def test_a_caller_who_goes_away_has_neither_failed_nor_passed(judge):
    judge.fails("192.0.2.1", "alice", 9)

    async def ask():
        await Deferred()

    for _ in range(20):
        call = ensureDeferred(judge.guessing.judged("192.0.2.1", "alice", ask))
        call.addErrback(lambda _: None)
        call.cancel()
    assert judge.fails("192.0.2.1", "alice", 2) == ["wrong", "waits"]


# Whose failures they are


def test_failures_count_for_the_address_whatever_the_account(judge):
    for number in range(10):
        assert judge.fails("192.0.2.1", f"user-{number}") == ["wrong"]
    assert judge.tries("192.0.2.1", "somebody-else") == "waits"
    assert judge.tries("192.0.2.1", "") == "waits"
    assert judge.tries("192.0.2.2", "somebody-else") == "let in"


def test_failures_count_for_the_account_whatever_the_address(judge):
    for number in range(10):
        assert judge.fails(f"192.0.2.{number}", "alice") == ["wrong"]
    assert judge.tries("198.51.100.1", "alice") == "waits"
    assert judge.tries("198.51.100.1", "bob") == "let in"


def test_failures_without_an_account_count_for_the_address_alone(judge):
    for number in range(20):
        assert judge.fails(f"192.0.2.{number}", "", 10) == ["wrong"] * 10
    assert judge.fails("192.0.2.1", "") == ["waits"]
    assert judge.tries("198.51.100.1", "") == "let in"


def test_rotating_addresses_and_accounts_gets_nobody_more_than_either_allows(judge):
    """So many for each account and each address in a minute: the smaller number of them times ten."""
    told = [judge.fails(f"192.0.2.{turn % 5}", f"user-{turn % 3}")[0] for turn in range(10_000)]
    assert told.count("wrong") == 30


@pytest.mark.parametrize(
    "other", ["2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", "2001:0DB8:0:0:8000::", "2001:db8::1%eth0"]
)
def test_all_of_an_ipv6_network_is_one_client(judge, other):
    judge.fails("2001:db8::2", "", 10)
    assert judge.fails(other, "") == ["waits"]
    assert judge.fails("2001:db8:0:1::2", "") == ["wrong"]
    assert judge.fails("192.0.2.2", "") == ["wrong"]


def test_programs_at_our_unix_socket_are_one_client(judge):
    judge.fails("unix", "", 10)
    assert judge.fails("unix", "") == ["waits"]


@pytest.mark.parametrize("spelt", ["ALICE", "%61lice", " alice ", "%41LICE", "alice%20"])
def test_another_spelling_that_an_ldap_server_takes_for_the_same_name_is_the_same_account(judge, spelt):
    for number in range(10):
        judge.fails(f"192.0.2.{number}", "alice")
    assert judge.fails("198.51.100.1", spelt) == ["waits"]


@pytest.mark.parametrize(
    "account", ["a" * 1_000_000, "\x00\n\x7f", "\ud800", "Zoë\u202e", "🦆" * 1000, " ", "%", "%ff", "a:b", "'; --"]
)
def test_names_of_any_length_and_characters_are_counted(judge, account):
    for number in range(10):
        assert judge.fails(f"192.0.2.{number}", account) == ["wrong"]
    assert judge.fails("198.51.100.1", account) == ["waits"]
    assert judge.tries("198.51.100.1", "alice") == "let in"


# What a success changes


@pytest.mark.parametrize("error", [None, AuthorizationError("not yours"), NoExistsError("no such VM")])
def test_a_success_takes_back_what_the_user_got_wrong_before(judge, error):
    judge.fails("192.0.2.1", "alice", 9)
    if error is None:
        assert judge.tries("192.0.2.1", "alice") == "let in"
    else:
        with pytest.raises(type(error)):
            judge.tries("192.0.2.1", "alice", error)
    assert judge.fails("192.0.2.1", "alice", 11) == ["wrong"] * 10 + ["waits"]
    assert judge.fails("192.0.2.1", "bob", 11) == ["wrong"] * 10 + ["waits"]
    assert judge.fails("192.0.2.2", "alice", 11) == ["wrong"] * 10 + ["waits"]


def test_nobody_clears_his_address_with_an_account_of_his_own(judge):
    told = []
    for turn in range(200):
        told += judge.fails("192.0.2.1", f"victim-{turn}")
        judge.tries("192.0.2.1", "mallory")
        judge.fails("192.0.2.1", "mallory")
    assert told.count("wrong") == 10


def test_failing_on_purpose_first_buys_nobody_a_guess_at_others(judge):
    """A success takes back what it may once, also in the order in which it is worth the most."""
    told = []
    for _ in range(50):
        judge.fails("192.0.2.1", "mallory", 5)
        told += judge.fails("192.0.2.1", "victim", 5)
        judge.tries("192.0.2.1", "mallory")
        judge.tries("192.0.2.1", "mallory")
    assert told.count("wrong") <= 10


def test_a_busy_user_does_not_clear_his_account_for_those_who_guess_at_it(judge):
    told = []
    for turn in range(100):
        assert judge.tries("192.0.2.1", "alice") == "let in"
        told += judge.fails(f"198.51.100.{turn}", "alice")
    assert told.count("wrong") == 10


def test_an_account_that_is_spelt_alike_takes_nothing_back(judge):
    """For oned ALICE is somebody else, who may have an account of his own."""
    told = []
    for turn in range(100):
        told += judge.fails(f"192.0.2.{turn}", "alice")
        judge.tries(f"192.0.2.{turn}", "ALICE")
    assert told.count("wrong") == 10


# Who was let in lately


def test_who_was_let_in_lately_is_locked_out_by_nobody(judge):
    assert judge.tries("192.0.2.1", "alice") == "let in"
    for number in range(20):
        judge.fails(f"198.51.100.{number}", "alice")
        judge.fails("192.0.2.1", f"user-{number}")
    assert judge.tries("198.51.100.99", "alice") == "waits"
    assert judge.tries("192.0.2.1", "bob") == "waits"
    assert judge.tries("192.0.2.1", "alice") == "let in"


def test_who_was_let_in_lately_may_be_wrong_as_often_as_anybody(judge):
    judge.tries("192.0.2.1", "alice")
    assert judge.fails("192.0.2.1", "alice", 11) == ["wrong"] * 10 + ["waits"]
    assert judge.tries("192.0.2.1", "alice") == "waits"
    judge.clock.advance(6)
    assert judge.tries("192.0.2.1", "alice") == "let in"


def test_one_stale_session_does_not_lock_out_the_others_behind_the_same_portal(judge):
    judge.tries("127.0.0.1", "alice")
    judge.fails("127.0.0.1", "alice", 100)
    assert judge.tries("127.0.0.1", "alice") == "waits"
    assert judge.tries("127.0.0.1", "a-new-user") == "let in"


def test_an_hour_after_the_last_success_an_address_is_like_any_other(judge):
    judge.tries("192.0.2.1", "alice")
    judge.clock.advance(FAMILIAR_SECONDS - 1)
    judge.fails("198.51.100.1", "alice", 10)
    assert judge.tries("192.0.2.1", "alice") == "let in"
    judge.clock.advance(FAMILIAR_SECONDS - 1)
    judge.fails("198.51.100.1", "alice", 10)
    judge.clock.advance(1)
    assert judge.tries("192.0.2.1", "alice") == "waits"


def test_the_hour_begins_with_a_success_only(judge):
    judge.tries("192.0.2.1", "alice")
    judge.clock.advance(FAMILIAR_SECONDS / 2)
    judge.fails("192.0.2.1", "alice")
    judge.clock.advance(FAMILIAR_SECONDS / 2)
    judge.fails("198.51.100.1", "alice", 10)
    assert judge.tries("192.0.2.1", "alice") == "waits"


# All at once


def all_at_once(judge, right=None):
    """Return what each of fifty guesses is told that are asked before the first is answered, and then the next one."""
    waiting, answers = [], []

    async def ask():
        answer = Deferred()
        waiting.append(answer)
        return await answer

    for _ in range(50):
        call = ensureDeferred(judge.guessing.judged("192.0.2.1", "alice", ask))
        call.addErrback(lambda failure: str(failure.value))
        call.addCallback(answers.append)
    assert len(waiting) == 50
    for number, answer in enumerate(waiting):
        # oned takes its time, and who guesses can tell the seconds.
        judge.clock.advance(0.7)
        if number == right:
            answer.callback("let in")
        else:
            answer.errback(AuthenticationError(WRONG))
    return answers, judge.wait("192.0.2.1", "alice")


@pytest.mark.parametrize("known", [False, True])
def test_of_guesses_that_are_all_asked_at_once_no_more_are_answered_than_one_by_one(judge, known):
    if known:
        judge.tries("192.0.2.1", "alice")
    answers, _ = all_at_once(judge)
    assert answers[:10] == [WRONG] * 10
    # In 35 seconds five more were forgiven.
    assert answers.count(WRONG) == 10 + 5
    assert {told(AuthenticationError(answer)) for answer in answers} == {"wrong", "waits"}


@pytest.mark.parametrize("known", [False, True])
def test_the_right_one_among_guesses_that_are_too_many_is_told_what_a_wrong_one_is(known):
    def told_with(right=None):
        judge = Judge()
        if known:
            judge.tries("192.0.2.1", "alice")
        return all_at_once(judge, right)

    expected = told_with()
    too_many = [number for number, answer in enumerate(expected[0]) if answer != WRONG]
    assert len(too_many) == 35
    for right in too_many:
        assert told_with(right) == expected


# Bounds


def test_a_hundred_thousand_strangers_take_no_more_memory_than_ten_thousand(judge):
    async def ask():
        raise AuthenticationError(WRONG)

    def strangers(first, last):
        for number in range(first, last):
            guess = judge.guessing.judged(f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1", f"user-{number}", ask)
            with contextlib.suppress(AuthenticationError):
                guess.send(None)

    tracemalloc.start()
    strangers(0, REMEMBERED)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 10_000_000
    blocks = sys.getallocatedblocks()
    strangers(REMEMBERED, 10 * REMEMBERED)
    assert sys.getallocatedblocks() - blocks < REMEMBERED / 10


def test_with_more_strangers_than_are_remembered_the_one_met_longest_ago_is_forgiven(judge):
    judge.fails("192.0.2.1", "alice", 10)
    for number in range(REMEMBERED - 1):
        judge.fails(f"2001:db8:0:{number:x}::1", f"user-{number}")
    assert judge.wait("192.0.2.1", "") == 6
    assert judge.wait("192.0.2.2", "alice") == 6
    judge.fails("2001:db8:1::1", "one-more")
    assert judge.wait("192.0.2.1", "") == 0
    assert judge.wait("192.0.2.2", "alice") == 0


def test_many_addresses_do_not_make_the_account_forgotten_that_they_guess_at(judge):
    judge.fails("192.0.2.1", "alice", 10)
    for number in range(REMEMBERED + 10):
        judge.fails(f"2001:db8:0:{number:x}::1", "")
    assert judge.wait("192.0.2.2", "alice") == 6


# Against a model


class Model:
    """The same rules, kept as plain lists of what happened."""

    def __init__(self, limit, seconds):
        self.limit, self.interval = limit, seconds / limit
        self.debts = {}
        self.known = {}

    def buckets(self, client, account, now):
        if not account:
            return [client]
        if now < self.known.get((client, account), 0):
            return [(client, account)]
        return [client, account, (client, account)]

    def owed(self, bucket, now):
        """Return the failures that are not forgiven yet: one is with every interval."""
        count, since = self.debts.get(bucket, (0, 0))
        return max(0, count - (now - since) / self.interval)

    def waits(self, client, account, now):
        return any(self.owed(bucket, now) > self.limit - 1 + 1e-9 for bucket in self.buckets(client, account, now))

    def failed(self, client, account, now):
        for bucket in self.buckets(client, account, now):
            self.debts[bucket] = self.owed(bucket, now) + 1, now

    def passed(self, client, account, now):
        own = self.owed((client, account), now)
        for bucket in self.buckets(client, account, now):
            if account:
                self.debts[bucket] = max(0, self.owed(bucket, now) - own), now
        if account:
            self.known[client, account] = now + FAMILIAR_SECONDS


steps = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 1, 5, 10, 100, 3590, 4000]),
        st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
        st.sampled_from(["", "alice", "bob"]),
        st.sampled_from(["right", "wrong", "wrong", "wrong", "unknown"]),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(st.integers(1, 4), st.sampled_from([1, 60, 3600]), steps)
def test_it_is_as_a_simple_model_has_it(limit, seconds, steps):
    judge, model, now = Judge(limit, seconds), Model(limit, seconds), 0
    for pause, client, account, outcome in steps:
        judge.clock.advance(pause)
        now += pause
        if model.waits(client, account, now):
            assert judge.tries(client, account) == "waits"
        elif outcome == "right":
            assert judge.tries(client, account) == "let in"
            model.passed(client, account, now)
        elif outcome == "wrong":
            assert judge.fails(client, account) == ["wrong"]
            model.failed(client, account, now)
        else:
            with pytest.raises(OnedError):
                judge.tries(client, account, OnedError("down"))


@settings(deadline=None)
@given(st.integers(1, 4), steps)
def test_whatever_order_they_come_in_wrong_ones_are_never_more_than_are_forgiven(limit, steps):
    """At addresses and accounts that nobody was let in at: those of a stranger who guesses."""
    judge, now, failures = Judge(limit, 60), 0, {}
    for pause, client, account, outcome in steps:
        judge.clock.advance(pause)
        now += pause
        if outcome == "right":
            judge.tries(client, "mallory")
        elif judge.fails(client, account) == ["wrong"]:
            for bucket in {client, account} - {""}:
                failures.setdefault(bucket, []).append(now)
    for times in failures.values():
        for first in range(len(times)):
            for last in range(first, len(times)):
                assert last - first + 1 <= limit + (times[last] - times[first]) * limit / 60 + 1e-6
