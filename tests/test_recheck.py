"""A token dies with its VM's console: what is revoked when, and what lives on. All in memory."""

from __future__ import annotations

import os
import re
from dataclasses import replace

import pytest
from ledgers import MemoryAudit
from memory import Line
from outcomes import result_of
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, eventAsText

from vnctoken.auth.server_cipher import server_session
from vnctoken.config import Config
from vnctoken.decisions import UNAUDITED
from vnctoken.errors import AuthenticationError, TokenStoreError
from vnctoken.oned import Oned
from vnctoken.recheck import Recheck
from vnctoken.rules import ConsoleRules
from vnctoken.safexml import parse
from vnctoken.sandbox import oned as sandbox
from vnctoken.sandbox.cloud import ALICE, ONEADMIN, SERVERADMIN, Guest, demo_cloud
from vnctoken.sandbox.lifecycle import LIVE_MIGRATE, acted_on, migrated
from vnctoken.sandbox.publishing import event
from vnctoken.tokens import PROBE_VM_ID, Grant, digest, fingerprint
from vnctoken.tokens.folder import TokenFolder
from vnctoken.vm import VirtualMachine

NOW = 1_790_000_000
INTERVAL = 15
RULES = ConsoleRules(states=Config().console_states, ports=Config().vnc_ports)


class World:
    """A cloud, a token folder, and the recheck between them."""

    def __init__(self, path, *, without=(), password=SERVERADMIN.password):
        self.clock = Clock()
        self.clock.advance(NOW)
        self.cloud = demo_cloud()
        self.line = Line(sandbox.Oned(self.cloud, self.clock, without))
        self.store = TokenFolder(
            path, self.clock, self.clock.seconds, ttl=600, tokens_per_vm=8, wall=self.clock.seconds
        )
        self.store.prepare()
        self.store.start()
        self.oned = Oned(self.line, self.clock, timeout=25, connections=8)
        self.password = password
        self.recheck = self.recheck_of(self.store)

    def recheck_of(self, store, audit=UNAUDITED):
        return Recheck(store, self.oned, self.session, RULES, self.clock, INTERVAL, audit)

    def session(self):
        return server_session("serveradmin", self.password, "serveradmin", NOW + 3600)

    def guest(self, vm_id):
        return self.cloud.guest(vm_id)

    def issue(self, vm_id, host=None, port=None, user="alice"):
        """Issue a token that leads to the VM's console, or elsewhere."""
        vm = result_of(self.oned.vm_info("oneadmin:opennebula", vm_id))
        grant = Grant(vm_id, host or vm.host, port or int(vm.port), self.clock.seconds(), 600, user)
        return result_of(self.store.issue(grant))

    def lives(self, token):
        return result_of(self.store.find(token)) is not None

    def act(self, vm_id, action):
        for step in acted_on(self.guest(vm_id), action, ALICE):
            self.cloud.change(step)

    def move(self, vm_id, host=(1, "dummy-host-2.example.org")):
        for step in migrated(self.guest(vm_id), LIVE_MIGRATE, host, ONEADMIN):
            self.cloud.change(step)

    def set_graphics(self, vm_id, **graphics):
        guest = self.guest(vm_id)
        self.cloud.change(replace(guest, graphics={**guest.graphics, **graphics}))

    def check(self):
        result_of(self.recheck.check())

    def see(self, before, after):
        """Have the recheck see the event of a change."""
        vm = parse(event(before, after)[1].encode()).find("VM")
        result_of(self.recheck.saw(after.id, VirtualMachine.from_element(vm)))


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "tokens")
    yield world
    result_of(world.recheck.stop())
    result_of(world.store.close())


CHANGES = {
    "powered off": lambda world: world.act(0, "poweroff"),
    "powered off hard": lambda world: world.act(0, "poweroff-hard"),
    "suspended": lambda world: world.act(0, "suspend"),
    "terminated": lambda world: world.act(0, "terminate"),
    "moved": lambda world: world.move(0),
    "on another port": lambda world: world.set_graphics(0, PORT="5999"),
    "on a port that is not VNC's": lambda world: world.set_graphics(0, PORT="22"),
    "SPICE": lambda world: world.set_graphics(0, TYPE="SPICE"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("without", [(), ("one.vmpool.infoset",)], ids=["6.10", "older"])
def test_within_an_interval_a_token_dies_with_the_console_and_those_of_others_live(tmp_path, without, change):
    world = World(tmp_path / "tokens", without=without)
    token, other = world.issue(0), world.issue(1)
    world.recheck.start()
    world.clock.advance(INTERVAL)
    assert world.lives(token)
    change(world)
    world.clock.advance(INTERVAL)
    assert [world.lives(token), world.lives(other)] == [False, True]
    result_of(world.recheck.stop())
    result_of(world.store.close())


def test_a_token_dies_with_a_vm_that_oned_does_not_know_any_more(world):
    token = result_of(world.store.issue(Grant(4711, "dummy-host-1", 5900, NOW, 600, "alice")))
    world.check()
    assert not world.lives(token)


def test_a_vm_that_is_back_where_it_was_keeps_the_tokens(world):
    token = world.issue(0)
    world.act(0, "poweroff")
    world.act(0, "resume")
    world.check()
    assert world.lives(token)


@pytest.mark.parametrize("vm_id", [0, 1, 2, 5, 13, 19, 20, 21, 23, 25, 27, 28])
def test_every_vm_with_a_console_keeps_its_token(world, vm_id):
    """Number 19 is at a vCenter, whose ESX host is not in what a pool says."""
    token = world.issue(vm_id)
    world.check()
    assert world.lives(token)


def test_a_token_dies_when_its_vm_goes_to_another_esx_host(world):
    token = world.issue(19)
    guest = world.guest(19)
    world.cloud.change(replace(guest, monitoring={"VCENTER_ESX_HOST": "esx8.example.org"}))
    world.check()
    assert not world.lives(token)


def test_of_a_vms_tokens_only_those_die_that_lead_elsewhere(world):
    before = world.issue(0)
    world.move(0)
    after = world.issue(0)
    world.check()
    assert [world.lives(before), world.lives(after)] == [False, True]


def test_sunstones_tokens_for_spice_are_left_alone_and_die_with_the_vm_still(world, tmp_path):
    theirs = tmp_path / "tokens" / "one-3"
    theirs.write_text("sunstones: dummy-host-1:5903\n", encoding="utf-8")
    os.utime(theirs, (NOW, NOW))
    world.clock.advance(10)
    ours = world.issue(3)
    world.check()
    assert [world.lives("sunstones"), world.lives(ours)] == [True, False]
    world.act(3, "poweroff")
    world.check()
    assert not world.lives("sunstones")


def test_all_vms_are_asked_about_at_once_and_nothing_is_asked_without_tokens(world):
    world.check()
    assert world.line.asked == []
    for vm_id in (0, 1, 2):
        world.issue(vm_id)
    world.line.asked.clear()
    world.check()
    assert world.line.asked == ["one.vmpool.infoset"]


def test_a_slow_oned_is_not_asked_again_before_it_has_answered(world):
    world.issue(0)
    world.line.asked.clear()
    world.line.slow = True
    world.recheck.start()
    world.clock.advance(INTERVAL)
    world.clock.pump([1] * 9)
    world.check()
    assert world.line.asked == ["one.vmpool.infoset"]
    world.line.arrive()
    world.clock.advance(INTERVAL)
    assert world.line.asked == ["one.vmpool.infoset"] * 2


def test_a_token_is_not_judged_by_an_answer_that_is_older_than_itself(world):
    old = world.issue(0)
    world.act(0, "poweroff")
    world.line.slow = True
    checking = Deferred.fromCoroutine(world.recheck.check())
    world.line.slow = False
    world.act(0, "resume")
    new = world.issue(0)
    world.line.arrive()
    assert checking.called
    assert [world.lives(old), world.lives(new)] == [True, True]


def test_a_token_issued_between_the_two_questions_about_a_vm_is_left_for_the_next_round(world):
    old = world.issue(0)
    world.act(0, "poweroff")
    world.line.slow = True
    checking = Deferred.fromCoroutine(world.recheck.check())
    first = world.line.waiting.pop()
    first.callback(None)
    world.line.slow = False
    world.act(0, "resume")
    new = world.issue(0)
    world.line.arrive()
    assert checking.called
    assert [world.lives(old), world.lives(new)] == [False, True]


def messages(logs):
    return [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in logs]


def test_while_oned_is_down_tokens_live_and_that_is_said_once_at_each_end(world):
    token = world.issue(0)
    world.act(0, "poweroff")
    world.recheck.start()
    with capturedLogs() as logs:
        world.line.cut = True
        world.clock.pump([INTERVAL] * 3)
    assert messages(logs) == [
        "the consoles of live tokens cannot be checked, so these live until they expire: oned cannot be reached"
    ]
    assert world.lives(token)
    world.line.cut = False
    with capturedLogs() as logs:
        world.clock.pump([INTERVAL] * 2)
    assert messages(logs)[-1] == "the consoles of live tokens can be checked again: oned answers"
    assert not world.lives(token)


def test_with_a_wrong_server_password_tokens_live_and_that_is_said_once(world):
    token = world.issue(0)
    world.act(0, "poweroff")
    world.password = "wrong"
    with capturedLogs() as logs:
        world.check()
        world.check()
    assert len(logs) == 1
    assert "User couldn't be authenticated" in messages(logs)[0]
    assert world.lives(token)
    world.password = SERVERADMIN.password
    world.check()
    assert not world.lives(token)


def test_a_trouble_is_not_over_because_there_is_nothing_to_ask(world):
    world.issue(0)
    world.line.cut = True
    world.check()
    result_of(world.store.revoke(0))
    with capturedLogs() as logs:
        world.check()
    assert logs == []


def test_a_login_that_cannot_be_made_is_a_trouble_like_any_other(world):
    token = world.issue(0)
    world.password = ""

    def session():
        raise AuthenticationError("no such login")

    recheck = Recheck(world.store, world.oned, session, RULES, world.clock, INTERVAL)
    with capturedLogs() as logs:
        result_of(recheck.check())
    assert messages(logs)[0].endswith("no such login")
    assert world.lives(token)


def test_the_log_says_how_many_tokens_of_which_vm_died_and_why_but_no_token(world):
    tokens = [world.issue(0), world.issue(0)]
    world.act(0, "poweroff")
    with capturedLogs() as logs:
        world.check()
    (line,) = messages(logs)
    assert re.fullmatch(
        r"VM 0: 2 token\(s\) revoked \([0-9a-f]{8}, [0-9a-f]{8}\): 'Unsupported VM state! STATE:8 LCM_STATE:0'", line
    )
    assert not any(token in line for token in tokens)


class Stubborn:
    """A store in which one VM's tokens cannot be had; all else is the other store's."""

    def __init__(self, store, vm_id):
        self._store = store
        self._vm_id = vm_id

    async def live(self, vm_id):
        if vm_id == self._vm_id:
            raise TokenStoreError("it is stuck")
        return await self._store.live(vm_id)

    def __getattr__(self, name):
        return getattr(self._store, name)


def written(audit):
    return [(decision.event, decision.token) for decision in audit.decisions]


def test_a_token_that_somebody_took_back_while_oned_was_asked_is_not_written_down_again(world):
    first, second = world.issue(0), world.issue(0)
    world.act(0, "poweroff")
    audit = MemoryAudit()
    world.line.slow = True
    checking = Deferred.fromCoroutine(world.recheck_of(world.store, audit).check())
    world.line.waiting.pop().callback(None)
    result_of(world.store.revoke(0, frozenset({digest(first)})))
    world.line.arrive()
    assert checking.called
    assert written(audit) == [("revoked", fingerprint(second))]
    assert not world.lives(second)


class Slow:
    """A store that takes its time to take tokens back; all else is the other store's."""

    def __init__(self, store):
        self._store = store
        self.waiting = []

    async def revoke(self, vm_id, digests=None):
        self.waiting.append(Deferred())
        await self.waiting[-1]
        return await self._store.revoke(vm_id, digests)

    def __getattr__(self, name):
        return getattr(self._store, name)


def test_a_token_that_two_events_end_at_the_same_moment_is_written_down_once(world):
    vm = replace(result_of(world.oned.vm_info("oneadmin:opennebula", 0)), state=8)
    store, audit = Slow(world.store), MemoryAudit()
    recheck = world.recheck_of(store, audit)
    first = world.issue(0)
    one = Deferred.fromCoroutine(recheck.saw(0, vm))
    second = world.issue(0)
    other = Deferred.fromCoroutine(recheck.saw(0, vm))
    while store.waiting:
        store.waiting.pop(0).callback(None)
    assert [one.called, other.called] == [True, True]
    assert written(audit) == [("revoked", fingerprint(first)), ("revoked", fingerprint(second))]


def test_a_check_that_is_given_up_while_it_takes_tokens_back_does_not_hold_up_events(world):
    vm = replace(result_of(world.oned.vm_info("oneadmin:opennebula", 0)), state=8)
    store = Slow(world.store)
    recheck = world.recheck_of(store)
    token = world.issue(0)
    given_up = Deferred.fromCoroutine(recheck.saw(0, vm))
    given_up.cancel()
    with pytest.raises(CancelledError):
        result_of(given_up)
    store.waiting.clear()
    seen = Deferred.fromCoroutine(recheck.saw(0, vm))
    store.waiting.pop().callback(None)
    assert seen.called
    assert not world.lives(token)


def test_one_vm_whose_tokens_cannot_be_read_does_not_save_those_of_the_others(world):
    stuck, other = world.issue(0), world.issue(1)
    world.act(0, "poweroff")
    world.act(1, "poweroff")
    recheck = world.recheck_of(Stubborn(world.store, 0))
    with capturedLogs() as logs:
        result_of(recheck.check())
        result_of(recheck.check())
    assert [world.lives(stuck), world.lives(other)] == [True, False]
    assert sum("it is stuck" in line for line in messages(logs)) == 1


class Broken:
    """A store with a fault of its own."""

    async def targets(self):
        raise ZeroDivisionError


def test_a_fault_of_our_own_is_logged_and_the_next_check_comes(world):
    recheck = world.recheck_of(Broken())
    recheck.start()
    with capturedLogs() as logs:
        world.clock.pump([INTERVAL] * 2)
    result_of(recheck.stop())
    assert [event["log_failure"].type for event in logs] == [ZeroDivisionError] * 2


def test_stopping_gives_up_the_question_that_is_under_way_and_leaves_no_timer(tmp_path):
    world = World(tmp_path / "tokens")
    token = world.issue(0)
    result_of(world.store.close())
    world.act(0, "poweroff")
    world.line.slow = True
    world.recheck.start()
    world.clock.advance(INTERVAL)
    assert len(world.line.waiting) == 1
    result_of(world.recheck.stop())
    result_of(world.recheck.stop())
    assert world.clock.getDelayedCalls() == []
    assert world.lives(token)


# Events


def changed(world, change):
    """Return the changes of state that something brings about, each as the VM before and after it."""
    changes = []
    world.cloud.watch(lambda before, after: changes.append((before, after)))
    change(world)
    return changes


@pytest.mark.parametrize("name", ["powered off", "powered off hard", "suspended", "terminated", "moved"])
def test_an_event_of_the_end_of_a_console_ends_its_tokens_without_a_question(world, name):
    token, other = world.issue(0), world.issue(1)
    world.line.asked.clear()
    changes = changed(world, CHANGES[name])
    for before, after in changes:
        world.see(before, after)
    assert [world.lives(token), world.lives(other)] == [False, True]
    assert world.line.asked == []


def test_the_first_event_of_a_live_migration_ends_the_tokens_already(world):
    token = world.issue(0)
    world.see(*changed(world, CHANGES["moved"])[0])
    assert not world.lives(token)


def test_tokens_issued_during_a_live_migration_survive_its_end(world):
    first, second = changed(world, CHANGES["moved"])
    world.see(*first)
    token = world.issue(0)
    world.see(*second)
    assert world.lives(token)


def test_a_vm_that_goes_on_keeps_its_tokens_whatever_its_events_say(world):
    token = world.issue(0)
    guest = world.guest(0)
    world.see(guest, replace(guest, lcm_state=17))
    world.see(replace(guest, lcm_state=17), guest)
    assert world.lives(token)


def test_an_event_that_comes_with_another_port_ends_the_tokens(world):
    token = world.issue(0)
    guest = world.guest(0)
    world.see(replace(guest, lcm_state=20), replace(guest, graphics={**guest.graphics, "PORT": "5999"}))
    assert not world.lives(token)


def test_an_event_of_a_vcenter_vm_does_not_tell_its_host_and_ends_its_tokens_only_with_its_console(world):
    token = world.issue(19)
    guest = world.guest(19)
    world.see(guest, replace(guest, lcm_state=17))
    assert world.lives(token)
    for before, after in changed(world, lambda world: world.act(19, "poweroff")):
        world.see(before, after)
    assert not world.lives(token)


def test_an_event_of_a_vm_without_tokens_changes_nothing(world):
    token = world.issue(1)
    with capturedLogs() as logs:
        world.see(Guest(4711, "new", ALICE, None, state=1, lcm_state=0, stays=()), Guest(4711, "new", ALICE, None))
    assert world.lives(token)
    assert logs == []


def test_an_event_while_the_store_is_in_trouble_is_said_once(world):
    recheck = world.recheck_of(Stubborn(world.store, 0))
    vm = result_of(world.oned.vm_info("oneadmin:opennebula", 0))
    with capturedLogs() as logs:
        result_of(recheck.saw(0, vm))
        result_of(recheck.saw(0, vm))
        result_of(recheck.saw(1, vm))
    assert [re.sub(".*: ", "", line) for line in messages(logs)] == ["it is stuck", "the token store answers"]


def test_the_doctors_probe_token_is_left_alone_though_oned_knows_no_such_vm(world):
    token = result_of(world.store.issue(Grant(PROBE_VM_ID, "127.0.0.1", 5900, NOW, 600, "vnctoken-doctor")))
    gone = result_of(world.store.issue(Grant(4711, "127.0.0.1", 5900, NOW, 600, "alice")))
    world.check()
    assert [world.lives(token), world.lives(gone)] == [True, False]
