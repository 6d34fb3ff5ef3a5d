"""How much anybody may have: calls in a time, and live tokens."""

import ipaddress
import re
import sys
from dataclasses import fields

import pytest
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import MemoryStore
from outcomes import result_of
from twisted.internet.task import Clock

from vnctoken import breaker
from vnctoken.config import Config, Locations, from_mapping
from vnctoken.configfile import Source
from vnctoken.countdowns import MICROSECOND, REMEMBERED
from vnctoken.decisions import UNAUDITED
from vnctoken.errors import ErrorCode, LimitError, TokenStoreError
from vnctoken.limits import LOOK_SECONDS, LOOK_VMS, LimitRules, Limits
from vnctoken.measures import UNMEASURED
from vnctoken.tokens import Grant
from vnctoken.tokens.register import Register
from vnctoken.tokens.watched import WatchedStore

NOW = 1_795_316_218.5
HERE = "192.0.2.1"
PORTAL = [ipaddress.ip_network("198.51.100.0/24"), ipaddress.ip_network("2001:db8:1::/48")]


class Store(MemoryStore):
    """Counts the VMs that it is asked for; `takes` seconds for each."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.asked = []
        self.takes = 0

    async def live(self, vm_id):
        self.asked.append(vm_id)
        self.clock.advance(self.takes)
        if self.error is not None:
            raise self.error
        return await super().live(vm_id)


class World:
    """Limits over a store in memory."""

    def __init__(self, **rules):
        self.clock = Clock()
        self.store = Store(self.clock)
        self.register = Register()
        watched = WatchedStore(
            self.store,
            self.register,
            self.clock,
            self.now,
            tokens_per_vm=1000,
            measures=UNMEASURED,
            audit=UNAUDITED,
        )
        self.watched = watched
        self.limits = Limits(LimitRules(**rules), self.register, watched, self.clock, self.now)

    def now(self):
        return NOW + self.clock.seconds()

    def call(self, client=HERE, user="alice", vm_id=7):
        """Make a call that oned admits."""
        self.limits.arrived(client)
        self.limits.check(client, user, vm_id)
        self.limits.admitted(client, user, vm_id)

    def calls(self, times, *args):
        """Return how many of some calls are let through."""
        return sum(refused(self.call, *args) is None for _ in range(times))

    def issue(self, client=HERE, user="alice", vm_id=7, ttl=600):
        """Open a console, as far as there is room."""
        result_of(self.limits.room(client, user))
        return result_of(self.watched.issue(Grant(vm_id, "node", 5900, self.now(), ttl, user, caller=client)))


def refused(work, *args):
    """Return the LimitError that is raised, or None."""
    try:
        work(*args)
    except LimitError as error:
        return error
    return None


def seconds_in(error):
    return int(re.search(r"try again in (\d+) seconds?\b", str(error))[1])


# Calls


@pytest.mark.parametrize(
    ("rules", "kind", "message"),
    [
        (
            {"calls_per_user": (2, 60)},
            "user",
            "Too many calls of the user alice (:calls_per_user: 2/min); try again in 30 seconds",
        ),
        (
            {"calls_per_vm": (2, 3600)},
            "vm",
            "Too many calls for VM 7 (:calls_per_vm: 2/hour); try again in 1800 seconds",
        ),
        (
            {"calls_per_client": (2, 60)},
            "client",
            "Too many calls from 192.0.2.1 (:calls_per_client: 2/min); try again in 30 seconds",
        ),
        ({"calls_total": (2, 1)}, "total", "Too many calls in all (:calls_total: 2/sec); try again in 1 second"),
    ],
)
def test_the_call_over_a_limit_is_told_which_one_it_is_and_when_to_try_again(rules, kind, message):
    world = World(**rules)
    assert world.calls(2) == 2
    error = refused(world.call)
    assert str(error) == message
    assert (error.code, error.reason) == (ErrorCode.INTERNAL, f"limit_{kind}")
    world.clock.advance(seconds_in(error))
    world.call()


def test_without_limits_everything_is_let_through():
    assert World().calls(10_000) == 10_000


def test_limits_are_counted_apart_for_each_user_vm_and_address():
    world = World(calls_per_user=(4, 60), calls_per_vm=(2, 60))
    assert world.calls(9, HERE, "alice", 7) == 2
    assert world.calls(9, HERE, "alice", 8) == 2
    assert world.calls(9, "192.0.2.2", "alice", 9) == 0
    assert world.calls(9, "192.0.2.2", "bob", 7) == 0
    assert world.calls(9, "192.0.2.2", "bob", 9) == 2


def test_calls_count_for_their_address_whatever_becomes_of_them():
    world = World(calls_per_user=(2, 60), calls_per_client=(5, 60))
    told = [refused(world.call) for _ in range(6)]
    assert [error and error.reason for error in told] == [None, None, *3 * ["limit_user"], "limit_client"]


def test_a_call_is_let_through_every_so_many_seconds_and_no_more_than_so_many_at_once():
    world = World(calls_per_user=(6, 60))
    assert world.calls(10) == 6
    for _ in range(5):
        world.clock.advance(10)
        assert world.calls(10) == 1
    world.clock.advance(3600)
    assert world.calls(10) == 6


def test_refused_calls_do_not_put_off_the_next_one():
    world = World(calls_per_user=(1, 60))
    world.call()
    for _ in range(59):
        world.clock.advance(1)
        assert refused(world.call) is not None
    world.clock.advance(1)
    world.call()


def test_a_flood_from_one_address_leaves_the_others_their_part_of_the_total():
    world = World(calls_per_client=(5, 60), calls_total=(20, 60))
    assert world.calls(1000, HERE) == 5
    assert world.calls(1000, "192.0.2.2") == 5


def test_a_call_that_the_total_has_no_room_for_costs_its_address_nothing():
    world = World(calls_per_client=(1, 3600), calls_total=(1, 60))
    world.call("192.0.2.2")
    assert refused(world.call).reason == "limit_total"
    world.clock.advance(60)
    world.call()


def test_strangers_use_up_nobodys_calls():
    """They give a user's name and a wrong password, so that oned does not admit them."""
    world = World(calls_per_user=(1, 3600), calls_per_vm=(1, 3600))
    for _ in range(100):
        world.limits.arrived("203.0.113.1")
        world.limits.check("203.0.113.1", "alice", 7)
    world.call()


def test_a_user_whom_oned_refuses_has_made_a_call_and_the_vm_has_not_had_it():
    world = World(calls_per_user=(3, 3600), calls_per_vm=(1, 3600))
    for _ in range(2):
        world.limits.check(HERE, "alice", 7)
        world.limits.refused(HERE, "alice")
    assert world.calls(5, HERE, "alice", 8) == 1
    world.call(HERE, "bob", 7)


def test_of_refused_calls_that_are_asked_at_once_no_more_count_than_there_was_room_for():
    world = World(calls_per_user=(3, 60))
    for _ in range(100):
        world.limits.refused(HERE, "alice")
    assert seconds_in(refused(world.call)) == 20


def test_calls_that_are_asked_at_once_are_no_more_than_those_one_by_one():
    world = World(calls_per_user=(3, 60))
    for _ in range(10):
        world.limits.check(HERE, "alice", 7)
    assert sum(refused(world.limits.admitted, HERE, "alice", 7) is None for _ in range(10)) == 3


def test_a_call_that_is_refused_for_its_vm_costs_its_user_nothing():
    world = World(calls_per_user=(2, 3600), calls_per_vm=(1, 3600))
    assert world.calls(5, HERE, "alice", 7) == 1
    assert world.calls(5, HERE, "alice", 8) == 1


def test_another_spelling_of_a_name_is_no_other_user():
    world = World(calls_per_user=(1, 60))
    world.call()
    for spelt in ("ALICE", "%61lice", " alice"):
        assert refused(world.call, HERE, spelt) is not None


def test_a_name_is_told_as_a_log_line_can_have_it():
    world = World(calls_per_user=(1, 60))
    name = "mallory\n2026-11-22 root " + "x" * 1000
    world.call(HERE, name)
    message = str(refused(world.call, HERE, name))
    assert message.isprintable()
    assert len(message) < 250


rates = st.tuples(st.integers(1, 50), st.sampled_from([1, 60, 3600]))
pauses = st.lists(st.floats(0, 100), min_size=1, max_size=60)


@settings(deadline=None)
@given(rates, pauses)
def test_who_waits_as_long_as_he_is_told_is_let_in_and_nobody_waits_more_than_a_second_too_long(rate, pauses):
    world = World(calls_per_user=rate)
    for pause in pauses:
        error = refused(world.call)
        if error is not None:
            wait = seconds_in(error)
            if wait > 1:
                world.clock.advance(wait - 1)
                assert refused(world.limits.check, HERE, "alice", 7) is not None
                world.clock.advance(1)
            else:
                world.clock.advance(wait)
            world.call()
        world.clock.advance(pause)


@settings(deadline=None)
@given(rates, st.lists(st.sampled_from([0, 0, 0, 0, 0.01, 1, 7, 30]), max_size=200))
def test_in_any_stretch_of_time_no_more_calls_are_let_through_than_the_rate_allows(rate, pauses):
    number, seconds = rate
    world, let_in = World(calls_per_user=rate), []
    for pause in pauses:
        world.clock.advance(pause)
        if refused(world.call) is None:
            let_in.append(world.clock.seconds())
    for first in range(len(let_in)):
        for last in range(first, len(let_in)):
            assert last - first + 1 <= number + (let_in[last] - let_in[first]) * number / seconds + 1e-3


# Who is exempt


@pytest.mark.parametrize("portal", ["198.51.100.7", "::ffff:198.51.100.7", "2001:db8:1:2::3"])
def test_a_portals_calls_count_neither_for_its_address_nor_for_a_user(portal):
    world = World(calls_per_user=(1, 60), calls_per_client=(1, 60), limits_exempt=PORTAL)
    assert world.calls(100, portal) == 100
    assert world.calls(100, HERE) == 1


def test_a_portals_calls_count_for_the_vm_and_in_all():
    world = World(calls_per_vm=(2, 60), calls_total=(3, 60), limits_exempt=PORTAL)
    assert world.calls(9, "198.51.100.7", "alice", 7) == 2
    assert refused(world.call, "198.51.100.7", "alice", 8).reason == "limit_total"


@pytest.mark.parametrize("client", ["198.51.101.7", "2001:db8:2::3", "unix", "::ffff:198.51.101.7"])
def test_nobody_else_is_exempt(client):
    world = World(calls_per_client=(1, 60), limits_exempt=PORTAL)
    assert world.calls(9, client) == 1


def test_all_ipv4_clients_may_be_exempt_and_ipv6_ones_not():
    world = World(calls_per_client=(1, 60), limits_exempt=[ipaddress.ip_network("0.0.0.0/0")])
    assert world.calls(9, "203.0.113.9") == 9
    assert world.calls(9, "2001:db8::1") == 1


# Live tokens


@pytest.mark.parametrize(
    ("rules", "kind", "message"),
    [
        ({"tokens_per_user": 2}, "user", "Too many live tokens of the user alice (:tokens_per_user: 2)"),
        ({"tokens_per_client": 2}, "client", "Too many live tokens from 192.0.2.1 (:tokens_per_client: 2)"),
        ({"tokens_total": 2}, "total", "Too many live tokens in all (:tokens_total: 2)"),
    ],
)
def test_the_token_over_a_limit_is_told_which_one_it_is_and_when_there_is_room(rules, kind, message):
    world = World(**rules)
    world.issue()
    world.clock.advance(100.5)
    world.issue(vm_id=8)
    error = refused(world.issue)
    assert str(error) == f"{message}; try again in 500 seconds; one.vm.vncrevoke takes tokens back"
    assert error.reason == f"limit_{kind}"
    world.clock.advance(500)
    world.issue()


def test_tokens_are_counted_apart_for_each_user_and_address():
    world = World(tokens_per_user=1, tokens_per_client=2)
    world.issue()
    assert refused(world.issue, "192.0.2.2", "alice").reason == "limit_user"
    world.issue(HERE, "bob")
    assert refused(world.issue, HERE, "carol").reason == "limit_client"
    world.issue("192.0.2.2", "carol")


def test_a_token_that_is_taken_back_makes_room_at_once():
    world = World(tokens_per_user=1)
    world.issue()
    assert refused(world.issue) is not None
    result_of(world.watched.revoke(7))
    world.issue()


def test_a_token_that_somebody_else_took_out_of_the_store_refuses_nobody():
    world = World(tokens_per_user=2, tokens_per_client=2, tokens_total=2)
    world.issue(vm_id=7)
    world.issue(vm_id=8)
    del world.store.kept[next(iter(world.store.kept))]
    world.issue(vm_id=9)
    assert refused(world.issue) is not None


def test_where_no_token_ends_by_itself_no_time_is_told():
    world = World(tokens_per_user=1)
    world.issue(ttl=0)
    assert str(refused(world.issue)) == (
        "Too many live tokens of the user alice (:tokens_per_user: 1); none of them ends by itself;"
        " one.vm.vncrevoke takes tokens back"
    )


def test_a_portals_tokens_count_in_all_only():
    world = World(tokens_per_user=1, tokens_per_client=1, tokens_total=3, limits_exempt=PORTAL)
    for vm_id in (1, 2, 3):
        world.issue("198.51.100.7", vm_id=vm_id)
    assert refused(world.issue, "198.51.100.7").reason == "limit_total"


def test_what_a_user_was_given_through_a_portal_takes_nothing_from_what_he_asks_for_himself():
    world = World(tokens_per_user=2, limits_exempt=PORTAL)
    for vm_id in range(5):
        world.issue("198.51.100.7", vm_id=vm_id)
    world.issue(vm_id=5)
    world.issue(vm_id=6, ttl=300)
    assert seconds_in(refused(world.issue)) == 300
    world.limits.rules = LimitRules(tokens_per_user=2)
    assert seconds_in(refused(world.issue)) == 600


def test_after_the_total_was_lowered_the_time_told_is_that_until_there_is_room_again():
    world = World()
    for ttl in (10, 20, 30, 0):
        world.issue(ttl=ttl)
    world.limits.rules = LimitRules(tokens_total=3)
    assert seconds_in(refused(world.issue)) == 20
    world.limits.rules = LimitRules(tokens_total=1)
    assert "none of them ends by itself" in str(refused(world.issue))


def test_the_store_is_asked_only_before_somebody_is_refused_and_not_for_each_of_many_calls():
    world = World(tokens_per_user=2)
    world.issue(vm_id=7)
    world.issue(vm_id=8)
    assert world.store.asked == []
    for _ in range(100):
        assert refused(world.issue) is not None
    assert world.store.asked == [7, 8]
    world.clock.advance(LOOK_SECONDS)
    assert refused(world.issue) is not None
    assert world.store.asked == [7, 8, 7, 8]


def test_the_store_is_asked_for_so_many_vms_at_most():
    world = World(tokens_total=LOOK_VMS + 20)
    for vm_id in range(LOOK_VMS + 20):
        world.issue(vm_id=vm_id)
    assert refused(world.issue) is not None
    assert world.store.asked == [*range(LOOK_VMS)]


def test_a_slow_store_is_not_asked_for_long():
    world = World(tokens_per_user=20)
    for vm_id in range(20):
        world.issue(vm_id=vm_id)
    world.store.takes = LOOK_SECONDS / 2
    assert refused(world.issue) is not None
    assert world.store.asked == [0, 1]


def test_a_store_that_cannot_be_asked_leaves_it_at_what_was_counted():
    world = World(tokens_per_user=1)
    world.issue()
    world.store.error = TokenStoreError("away")
    assert refused(world.issue).reason == "limit_user"


def test_where_tokens_cannot_be_taken_back_they_count_until_they_end():
    world = World(tokens_per_user=1)
    world.watched.revocable = False
    world.issue(ttl=60)
    # Nor is anybody sent to one.vm.vncrevoke.
    assert str(refused(world.issue)) == (
        "Too many live tokens of the user alice (:tokens_per_user: 1); try again in 60 seconds"
    )
    assert world.store.asked == []
    world.clock.advance(60)
    world.issue()


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from([0, 0, 0.3, 7.7, 100]), st.integers(1, 300)), min_size=5, max_size=30),
)
def test_who_waits_as_long_as_he_is_told_gets_his_token(most, steps):
    world = World(tokens_per_user=most)
    for vm_id, (pause, ttl) in enumerate(steps):
        world.clock.advance(pause)
        try:
            world.issue(vm_id=vm_id, ttl=ttl)
        except LimitError as error:
            assert sum(live.grant.expires > world.now() + MICROSECOND for live in world.register) == most
            world.clock.advance(seconds_in(error))
            world.issue(vm_id=vm_id, ttl=ttl)


def test_after_a_limit_was_lowered_the_time_told_is_that_until_there_is_room_again():
    world = World(tokens_per_user=3)
    for ttl in (10, 20, 30):
        world.issue(ttl=ttl)
    world.limits.rules = LimitRules(tokens_per_user=2)
    assert seconds_in(refused(world.issue)) == 20
    world.clock.advance(20)
    world.issue()


# Other rules, and bounds


def test_the_rules_are_those_of_the_configuration():
    assert LimitRules.from_config(Config()) == LimitRules(
        calls_per_user=(600, 60), calls_per_vm=(600, 60), tokens_per_user=1000, tokens_total=10_000
    )
    changed = Config(calls_per_client=(1, 1), calls_total=(2, 60), tokens_per_client=3, limits_exempt=tuple(PORTAL))
    assert LimitRules.from_config(changed) == LimitRules(
        *((600, 60), (600, 60), (1, 1), (2, 60), 1000, 3, 10_000, tuple(PORTAL))
    )


def test_what_was_counted_stays_when_the_rules_change():
    world = World(calls_per_user=(5, 60))
    assert world.calls(5) == 5
    world.limits.rules = LimitRules(calls_per_user=(6, 60))
    assert seconds_in(refused(world.call)) == 10
    world.clock.advance(10)
    assert world.calls(9) == 1


def test_a_limit_that_is_loosened_is_loosened_for_those_who_wait():
    world = World(calls_per_user=(2, 3600))
    assert world.calls(9) == 2
    world.limits.rules = LimitRules(calls_per_user=(60, 60))
    assert seconds_in(refused(world.call)) == 1
    world.clock.advance(30)
    assert world.calls(99) == 30


def test_however_many_clients_there_are_ten_thousand_are_remembered():
    world = World(calls_per_user=(9, 60), calls_per_vm=(9, 60), calls_per_client=(9, 60))

    def strangers(first, last):
        for number in range(first, last):
            world.call(f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1", f"user-{number}", number)

    strangers(0, REMEMBERED)
    blocks = sys.getallocatedblocks()
    strangers(REMEMBERED, 2 * REMEMBERED)
    assert sys.getallocatedblocks() - blocks < REMEMBERED / 10


def test_to_be_forgotten_takes_as_many_other_clients_as_are_remembered():
    world = World(calls_per_client=(1, 3600))
    world.limits.arrived(HERE)
    for number in range(REMEMBERED - 1):
        world.limits.arrived(f"2001:db8:0:{number:x}::1")
    assert refused(world.limits.arrived, HERE) is not None
    world.limits.arrived("2001:db8:1::1")
    world.limits.arrived(HERE)


# What docs/limits.md says

DOCUMENT = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")


def test_the_documented_keys_and_defaults_are_those_of_the_service():
    documented = dict(re.findall(r"^\| `(:\w+:)` \| `([^`]+)` \|", DOCUMENT, re.MULTILINE))
    in_effect = yaml.safe_load(Config().to_yaml())
    assert documented == {f":{field.name}:": str(in_effect[f":{field.name}"]) for field in fields(LimitRules)}


def test_the_documented_messages_are_what_callers_are_told():
    world = World(calls_per_user=(600, 60))
    world.calls(600)
    told = [str(refused(world.call))]
    world = World(calls_per_vm=(600, 60))
    world.calls(600)
    told.append(str(refused(world.call)))
    world = World(tokens_per_user=1000)
    for vm_id in range(1000):
        world.issue(vm_id=vm_id, ttl=42)
    told.append(str(refused(world.issue)))
    (messages,) = re.findall(r"^```\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert messages.splitlines() == told


def test_the_documented_exemptions_are_a_configuration():
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    at = Locations.from_environment({})
    config, warnings = from_mapping(
        Source("ours", {key.strip(":"): value for key, value in yaml.safe_load(text).items()}),
        Source("sunstone", {}),
        at,
    )
    assert warnings == []
    rules = LimitRules.from_config(config)
    assert [rules.exempts(client) for client in ("127.0.0.1", "2001:db8:7::9", "127.0.0.2")] == [True, True, False]


def test_the_documented_bounds_are_those_of_the_service():
    text = " ".join(DOCUMENT.split())
    assert f"the {REMEMBERED:,} that called last are remembered" in text
    assert (
        f"of up to {LOOK_VMS} VMs, for up to {LOOK_SECONDS:g} seconds, and then not again for {LOOK_SECONDS:g}" in text
    )
    assert f"After {breaker.FAILURES} failures in a row" in text
    assert f"the first after {breaker.PAUSE:g} second, then after up to {breaker.LONGEST_PAUSE:g}" in text
