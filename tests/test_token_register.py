"""The register of live tokens: whose they are, and when they end."""

import tracemalloc
from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vnctoken.tokens import Grant, LiveToken, digest
from vnctoken.tokens.register import Register

NOW = 1_795_316_218.5
GRANT = {"vm_id": 7, "host": "node", "port": 5900, "issued": NOW, "ttl": 600, "user": "alice"}
VMS = [7, 8]
USERS = ["alice", "bob", "ALICE", ""]
CLIENTS = ["192.0.2.1", "2001:db8::1", "2001:db8::2", ""]


def live_token(number, **changed):
    return LiveToken(digest(str(number)), Grant(**{**GRANT, **changed}))


def test_a_token_is_found_by_its_vm_its_user_and_the_address_it_was_asked_for_from():
    register = Register()
    one = live_token(1, caller="192.0.2.1")
    register.add(one)
    assert (len(register), [*register], register.vm_ids) == (1, [one], {7})
    assert register.of_vm(7) == register.of_user("alice") == register.of_client("192.0.2.1") == [one]
    assert (register.count_of_vm(7), register.count_of_user("alice"), register.count_of_client("192.0.2.1")) == (
        1,
        1,
        1,
    )
    assert register.of_vm(8) == register.of_user("bob") == register.of_client("192.0.2.2") == []
    assert (register.count_of_vm(8), register.count_of_user("bob"), register.count_of_client("192.0.2.2")) == (0, 0, 0)


def test_what_nobody_here_has_issued_is_nobodys():
    register = Register()
    register.add(live_token(1, user=""))
    assert len(register) == 1
    assert register.of_user("") == register.of_client("") == []


def test_all_of_an_ipv6_network_and_all_spellings_of_a_name_are_one():
    register = Register()
    tokens = [live_token(1, caller="2001:db8::1"), live_token(2, user="ALICE", caller="2001:db8::2", issued=NOW + 1)]
    for token in tokens:
        register.add(token)
    assert register.of_client("2001:db8::3") == register.of_user("%61lice") == tokens


def test_tokens_are_told_the_oldest_first_in_whatever_order_they_became_known():
    register = Register()
    for age in (5, 30, 10):
        register.add(live_token(age, issued=NOW - age))
    assert [token.grant.issued for token in register.of_vm(7)] == [NOW - 30, NOW - 10, NOW - 5]
    assert register.oldest() == NOW - 30


def test_an_empty_register_has_no_oldest_token_and_none_that_ends():
    register = Register()
    assert (register.oldest(), register.next_expiry, register.expired(NOW), len(register)) == (None, inf, [], 0)


def test_a_token_that_is_known_stays_as_it_is():
    register = Register()
    register.add(live_token(1, caller="192.0.2.1"))
    register.add(live_token(1))
    assert (len(register), register.count_of_vm(7), register.count_of_client("192.0.2.1")) == (1, 1, 1)


def test_tokens_end_at_their_time_and_some_never():
    register = Register()
    for number, ttl in enumerate([20, 0, 10, 10]):
        register.add(live_token(number, ttl=ttl))
    assert register.next_expiry == NOW + 10
    assert register.expired(NOW + 9.9) == []
    assert {token.digest for token in register.expired(NOW + 10)} == {digest("2"), digest("3")}
    assert [token.digest for token in register.expired(NOW + 1e9)] == [digest("0")]
    assert (len(register), register.next_expiry) == (1, inf)


def test_the_next_ends_are_told_and_infinity_for_what_never_ends():
    register = Register()
    for number, ttl in enumerate([20, 0, 10, 5]):
        register.add(live_token(number, ttl=ttl))
    register.remove(7, frozenset({digest("3")}))
    assert register.next_expiries(1) == [NOW + 10]
    assert register.next_expiries(3) == [NOW + 10, NOW + 20, inf]


def test_a_token_that_comes_back_ends_when_it_then_does():
    register = Register()
    register.add(live_token(0, ttl=5))
    register.add(live_token(1, ttl=10))
    register.remove(7, frozenset({digest("1")}))
    register.add(live_token(1, ttl=30, issued=NOW + 1))
    assert register.next_expiries(3) == [NOW + 5, NOW + 31, inf]
    assert [token.digest for token in register.expired(NOW + 20)] == [digest("0")]
    assert (register.oldest(), register.next_expiry) == (NOW + 1, NOW + 31)


def test_many_that_end_at_once_can_be_taken_out_some_at_a_time():
    register = Register()
    for number in range(5):
        register.add(live_token(number, ttl=10))
    assert [len(register.expired(NOW + 10, 2)) for _ in range(4)] == [2, 2, 1, 0]


def test_tokens_that_come_and_go_leave_nothing_behind():
    register = Register()

    def busy(first, last):
        for number in range(first, last):
            register.add(live_token(number, ttl=86400, caller="192.0.2.1"))
            register.remove(7)

    busy(0, 1000)
    tracemalloc.start()
    busy(1000, 3000)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(register) == 0
    assert kept < 50_000


class AgainstAModel(RuleBasedStateMachine):
    """The same, kept as a plain dictionary that is searched."""

    def __init__(self):
        super().__init__()
        self.register = Register()
        self.model = {}
        self.now = NOW

    @rule(
        number=st.integers(0, 20),
        age=st.integers(-5, 50),
        grant=st.fixed_dictionaries(
            {
                "vm_id": st.sampled_from(VMS),
                "ttl": st.sampled_from([0, 1, 10, 100]),
                "user": st.sampled_from(USERS),
                "caller": st.sampled_from(CLIENTS),
            }
        ),
    )
    def add(self, number, age, grant):
        # No two of the same age: their order is anybody's guess.
        live = live_token(number, issued=self.now - age - number / 1000, **grant)
        self.register.add(live)
        self.model.setdefault(live.digest, live)

    @rule(vm_id=st.sampled_from(VMS), numbers=st.none() | st.frozensets(st.integers(0, 20)))
    def remove(self, vm_id, numbers):
        digests = None if numbers is None else frozenset(digest(str(number)) for number in numbers)
        expected = [
            live for live in self.by_age() if live.grant.vm_id == vm_id and (digests is None or live.digest in digests)
        ]
        assert self.register.remove(vm_id, digests) == expected
        for live in expected:
            del self.model[live.digest]

    @rule(seconds=st.sampled_from([0, 0.5, 5, 50]))
    def pass_time(self, seconds):
        self.now += seconds
        gone = self.register.expired(self.now)
        assert [live.grant.expires for live in gone] == sorted(live.grant.expires for live in gone)
        expected = {live.digest for live in self.model.values() if live.grant.ttl and live.grant.expires <= self.now}
        assert {live.digest for live in gone} == expected
        for one in expected:
            del self.model[one]

    def by_age(self):
        return sorted(self.model.values(), key=lambda live: live.grant.issued)

    @invariant()
    def it_knows_what_the_model_knows(self):
        tokens = self.by_age()
        assert len(self.register) == len(tokens)
        assert self.register.oldest() == (tokens[0].grant.issued if tokens else None)
        assert self.register.next_expiry == min((one.grant.expires for one in tokens if one.grant.ttl), default=inf)
        assert self.register.vm_ids == {live.grant.vm_id for live in tokens}
        for vm_id in VMS:
            found = [live for live in tokens if live.grant.vm_id == vm_id]
            assert (self.register.of_vm(vm_id), self.register.count_of_vm(vm_id)) == (found, len(found))
        for user in USERS:
            found = [live for live in tokens if user and live.grant.user.lower() == user.lower()]
            assert (self.register.of_user(user), self.register.count_of_user(user)) == (found, len(found))
        for client in CLIENTS:
            found = [live for live in tokens if client and live.grant.caller[:9] == client[:9]]
            assert (self.register.of_client(client), self.register.count_of_client(client)) == (found, len(found))


AgainstAModel.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestAgainstAModel = AgainstAModel.TestCase
