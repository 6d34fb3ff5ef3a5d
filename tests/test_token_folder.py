"""The life of the tokens in the folder, on a real filesystem and in a time of the tests' own.

Run as a program, this file carries out one of its functions: that is how tests get a mount namespace of their own.
"""

import os
import shutil
import sys
import time
import xmlrpc.client
from pathlib import Path

import pytest
from conftest import vnctoken_server
from mounts import elsewhere, mount, nobody_in
from outcomes import result_of
from readers import opens
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from webservers import until

from vnctoken.errors import ConfigError, ErrorCode, TokenStoreError
from vnctoken.tokens import Grant, digest
from vnctoken.tokens.folder import CLEANUP_SECONDS, RETRY_SECONDS, SCAN_SECONDS, TokenFolder

TTL = 600
STEP = 0.25
NOT_YET = STEP
HOUR = 3600


class World:
    """A token folder and the service that keeps it, on a machine whose clock may be set."""

    def __init__(self, path, ttl=TTL, tokens_per_vm=8):
        self.path = path
        self.settings = {"ttl": ttl, "tokens_per_vm": tokens_per_vm}
        self._clock = Clock()
        # Later than the times that the real clock gives to files; as no float has to be rounded, a second is one.
        self._clock_says = int(time.time()) + 60
        self.folder = None
        self.start()

    def start(self):
        """Start the service, again if it has run before."""
        if self.folder is not None:
            result_of(self.folder.close())
            assert self._clock.getDelayedCalls() == []
        began = self.wall() - self._clock.seconds()
        self.folder = TokenFolder(
            self.path, self._clock, lambda: began + self._clock.seconds(), wall=self.wall, **self.settings
        )
        self.now = lambda: began + self._clock.seconds()
        assert self.folder.prepare() == []
        self.folder.start()

    def wall(self):
        return self._clock_says + self._clock.seconds()

    def set_clock(self, seconds):
        self._clock_says += seconds

    def advance(self, seconds):
        self._clock.pump([STEP] * round(seconds / STEP))

    def issue(self, vm_id=7, host="h", port=5900, ttl=TTL, **options):
        return result_of(self.folder.issue(Grant(vm_id, host, port, self.now(), ttl, **options)))

    def sunstone(self, content, vm_id=7):
        """Write a file as Sunstone does: in place."""
        file = self.path / f"one-{vm_id}"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.utime(file, (self.wall(), self.wall()))

    def target(self, token):
        """Return what a token opens for websockify."""
        return opens(self.path, token)

    def live(self, vm_id=7):
        return [one.digest for one in result_of(self.folder.live(vm_id))]

    def find(self, token):
        return result_of(self.folder.find(token))

    def use(self, token, reuse_window=0):
        return result_of(self.folder.use(token, reuse_window))

    def revoke(self, vm_id=7, *tokens):
        return result_of(self.folder.revoke(vm_id, frozenset(map(digest, tokens)) if tokens else None))

    def targets(self):
        return result_of(self.folder.targets())

    def holders(self, host="h", port=5900):
        return result_of(self.folder.holders(host, port))

    def is_forgotten(self, token):
        """Whether a token opens nothing, and nobody knows it; asks in every way there is."""
        return (
            self.target(token) is None
            and self.find(token) is None
            and self.use(token) is None
            and all(digest(token) not in self.live(vm_id) for vm_id in (7, 8))
        )

    def lines(self, vm_id=7):
        """Return a file's lines without comments."""
        text = (self.path / f"one-{vm_id}").read_text()
        assert text == "" or text.endswith("\n")
        return [line for line in text.splitlines() if not line.startswith("#")]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokens"


@pytest.fixture
def world(path):
    return World(path)


# A token is issued.


@pytest.mark.parametrize("host", ["dummy-host-1", "192.0.2.7", "2001:db8::1"])
def test_a_token_opens_its_console_for_every_reader(world, host):
    token = world.issue(host=host, user="alice")
    assert world.target(token) == [host, "5900"]
    assert world.lines() == [f"{token}: {host}:5900"]
    found = world.find(token)
    assert found.digest == digest(token)
    assert found.grant == Grant(7, host, 5900, world.now(), TTL, user="alice")
    assert result_of(world.folder.live(7)) == [found]


def test_several_viewers_of_a_vm_have_tokens_side_by_side(world):
    tokens = [world.issue() for _ in range(8)]
    assert len(set(tokens)) == 8
    assert [world.target(token) for token in tokens] == [["h", "5900"]] * 8
    assert world.live() == [digest(token) for token in tokens]


def test_of_more_tokens_for_a_vm_only_the_newest_are_kept(path):
    world = World(path, tokens_per_vm=3)
    tokens = [world.issue() for _ in range(5)]
    other = world.issue(8)
    assert [world.target(token) is not None for token in tokens] == [False, False, True, True, True]
    assert world.is_forgotten(tokens[1])
    world.start()
    newest = world.issue()
    assert world.live() == [digest(token) for token in (*tokens[3:], newest)]
    assert world.target(other) == ["h", "5900"]


def test_fewer_kept_tokens_after_a_restart_count_from_the_next_token_on(path):
    world = World(path)
    tokens = [world.issue() for _ in range(8)]
    world.settings["tokens_per_vm"] = 1
    world.start()
    assert len(world.live()) == 8
    newest = world.issue()
    assert world.live() == [digest(newest)]
    assert all(map(world.is_forgotten, tokens))


def test_an_expired_token_takes_no_place_from_the_living(path):
    world = World(path, tokens_per_vm=2)
    first = world.issue(ttl=10)
    kept = world.issue()
    world.advance(10)
    world.issue()
    assert world.target(first) is None
    assert world.target(kept) == ["h", "5900"]


# And expires.


def test_a_token_opens_until_the_second_of_its_expiry_and_not_from_it_on(world):
    token = world.issue()
    world.advance(TTL - NOT_YET)
    assert world.target(token) == ["h", "5900"]
    assert world.find(token) is not None
    world.advance(NOT_YET)
    assert world.is_forgotten(token)
    assert world.lines() == []


def test_each_token_has_a_time_of_its_own(world):
    seconds = [10, 5, 20, 5]
    tokens = [world.issue(ttl=ttl) for ttl in seconds]
    for passed in range(1, 21):
        world.advance(1)
        assert [world.target(token) is not None for token in tokens] == [ttl > passed for ttl in seconds]


def test_many_tokens_that_expire_at_once_all_do(world):
    tokens = [world.issue(vm_id) for vm_id in range(130)]
    world.advance(TTL)
    assert not any(map(world.target, tokens))
    assert world.targets() == {}


def test_a_token_without_a_ttl_lives_for_ever(world):
    token = world.issue(ttl=0)
    world.advance(2 * HOUR)
    world.set_clock(10 * 365 * 24 * HOUR)
    world.start()
    world.advance(10)
    assert world.target(token) == ["h", "5900"]
    assert world.find(token).grant.expires == 0


def test_an_expired_token_is_refused_even_before_its_line_is_gone(path):
    """As when its timer is late, for whatever reason."""
    world = World(path)
    token = world.issue()
    result_of(world.folder.close())
    world.advance(TTL)
    assert world.target(token) is not None
    assert world.find(token) is None
    assert world.use(token) is None
    assert world.live() == []
    assert world.target(token) is None


def test_a_restart_changes_nothing_for_a_token(world):
    token = world.issue(user="alice")
    restricted = world.issue(single_use=True, client="203.0.113.9")
    before = [world.find(token), world.find(restricted)]
    for _ in range(4):
        world.advance(TTL / 4 - STEP)
        world.start()
        assert world.target(token) == ["h", "5900"]
        assert [world.find(token), world.find(restricted)] == before
    world.advance(4 * STEP - NOT_YET)
    assert world.target(token) == ["h", "5900"]
    world.advance(NOT_YET)
    assert world.is_forgotten(token)
    assert world.find(restricted) is None


def test_what_expired_while_no_service_ran_is_gone_once_one_does(world):
    tokens = [world.issue(vm_id) for vm_id in (7, 8)]
    long_lived = world.issue(8, ttl=2 * TTL)
    result_of(world.folder.close())
    world.advance(TTL)
    assert all(map(world.target, tokens))
    world.start()
    assert not any(map(world.target, tokens))
    assert world.target(long_lived) == ["h", "5900"]


def test_a_killed_services_tokens_expire_with_the_next(tmp_path, cloud):
    def issue(service, vm_id, ttl):
        with xmlrpc.client.ServerProxy(service.url) as server:
            ok, console, _ = server.one.vm.vnctoken("alice:secret", vm_id, {"ttl": ttl})
        assert ok, console
        assert (console["Ttl"], console["ttl"]) == (ttl, ttl)
        return console["Token"]

    with vnctoken_server(tmp_path, cloud.url) as service:
        short, long, began = issue(service, 0, 2), issue(service, 1, 300), time.time()
        service.process.process.kill()
    assert opens(service.tokens, short) == ["dummy-host-1", "5900"]
    until(lambda: time.time() > began + 2)
    with vnctoken_server(tmp_path, cloud.url) as service:
        assert opens(service.tokens, short) is None
        assert opens(service.tokens, long) == ["dummy-host-1", "5901"]
        began = time.time()
        last = issue(service, 1, 1)
        assert opens(service.tokens, last) == ["dummy-host-1", "5901"]
        until(lambda: opens(service.tokens, last) is None)
        assert time.time() - began >= 1
        assert opens(service.tokens, long) == ["dummy-host-1", "5901"]


# The clock is set.


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_a_clock_that_is_set_changes_nothing_while_the_service_runs(world, seconds):
    before = world.issue()
    world.sunstone("sunstone: h:5908\n", vm_id=8)
    world.advance(SCAN_SECONDS)
    world.set_clock(seconds)
    after = world.issue()
    world.sunstone("later: h:5909\n", vm_id=9)
    world.advance(TTL - SCAN_SECONDS - NOT_YET)
    assert all(map(world.target, (before, "sunstone", after, "later")))
    world.advance(NOT_YET)
    assert world.target(before) is None
    assert world.target("sunstone") is None
    world.advance(SCAN_SECONDS - NOT_YET)
    assert all(map(world.target, (after, "later")))
    world.advance(NOT_YET)
    assert not any(map(world.target, (after, "later")))


@pytest.mark.parametrize("seconds", [HOUR, TTL / 2, -TTL / 2, -HOUR, -365 * 24 * HOUR])
@pytest.mark.parametrize("running", [True, False], ids=["set while it runs", "set while it does not"])
def test_no_token_outlives_a_clock_that_is_set_and_restarts_by_more_than_its_ttl(world, seconds, running):
    token = world.issue()
    restricted = world.issue(single_use=True)
    world.sunstone("sunstone: h:5908\n", vm_id=8)
    if running:
        world.advance(1)
        world.set_clock(seconds)
        world.advance(1)
        world.start()
    else:
        result_of(world.folder.close())
        world.set_clock(seconds)
        world.start()
    for _ in range(2):
        world.advance(TTL / 2)
        world.start()
    world.advance(SCAN_SECONDS)
    assert world.target(token) is None
    assert world.find(restricted) is None
    assert world.target("sunstone") is None


def test_restarts_after_a_clock_was_set_back_do_not_make_a_token_younger_each_time(world):
    token = world.issue()
    world.set_clock(-HOUR)
    world.start()
    for _ in range(10):
        world.advance(TTL / 10)
        world.start()
    assert world.is_forgotten(token)


def test_a_token_for_one_use_that_was_used_stays_used_when_the_clock_is_set_back(world):
    token = world.issue(single_use=True)
    world.advance(10)
    assert world.use(token) is not None
    world.set_clock(-HOUR)
    world.start()
    world.advance(1)
    assert world.use(token) is None


# Lines of Sunstone's.


def test_sunstones_token_opens_beside_ours_and_is_not_trimmed(path):
    world = World(path, tokens_per_vm=2)
    world.sunstone("sunstone: h:5900")
    tokens = [world.issue() for _ in range(4)]
    assert world.target("sunstone") == ["h", "5900"]
    assert [world.target(token) is not None for token in tokens] == [False, False, True, True]
    assert world.lines() == ["sunstone: h:5900", *(f"{token}: h:5900" for token in tokens[2:])]


def test_sunstones_token_expires_after_the_last_change_of_its_file(world):
    world.sunstone("sunstone: h:5900")
    world.advance(SCAN_SECONDS)
    assert world.find("sunstone").grant == Grant(7, "h", 5900, world.now() - SCAN_SECONDS, TTL)
    world.advance(TTL - SCAN_SECONDS - NOT_YET)
    assert world.target("sunstone") == ["h", "5900"]
    world.advance(NOT_YET)
    assert world.is_forgotten("sunstone")


def test_and_neither_our_writing_beside_it_nor_a_restart_makes_it_younger(world):
    world.sunstone("sunstone: h:5900")
    world.advance(TTL / 2)
    world.issue()
    world.start()
    world.advance(TTL / 4)
    world.use("sunstone")
    world.start()
    world.advance(TTL / 4 - NOT_YET)
    assert world.target("sunstone") == ["h", "5900"]
    world.advance(NOT_YET)
    assert world.is_forgotten("sunstone")


def test_a_file_that_is_written_again_with_the_same_token_does_not_make_that_younger(world):
    world.sunstone("sunstone: h:5900")
    world.advance(TTL / 2)
    world.sunstone("sunstone: h:5900")
    world.advance(TTL / 2)
    assert world.is_forgotten("sunstone")


def test_an_old_file_of_sunstones_is_emptied_when_the_service_starts(world):
    world.sunstone("sunstone: h:5900")
    result_of(world.folder.close())
    world.advance(TTL)
    world.start()
    assert world.is_forgotten("sunstone")


def test_sunstones_tokens_live_for_ever_where_ours_do(path):
    world = World(path, ttl=0)
    world.sunstone("sunstone: h:5900")
    world.advance(2 * HOUR)
    world.issue(ttl=10)
    world.start()
    world.advance(2 * HOUR)
    assert world.lines() == ["sunstone: h:5900"]
    assert world.find("sunstone").grant.expires == 0


def test_when_sunstone_overwrites_a_file_our_tokens_in_it_are_gone_and_the_next_call_works(world):
    ours = world.issue()
    world.sunstone("sunstone: h:5901")
    assert world.is_forgotten(ours)
    token = world.issue()
    assert world.lines() == ["sunstone: h:5901", f"{token}: h:5900"]


def test_sunstones_new_token_is_found_at_once_if_nobody_asked_for_a_second(world):
    world.advance(1)
    world.sunstone("sunstone: h:5900")
    assert world.find("sunstone").grant.port == 5900
    world.sunstone("second: h:5900", vm_id=8)
    world.advance(1)
    assert world.use("second").grant.vm_id == 8


def test_what_is_no_token_leaves_the_file_when_it_is_written(world):
    world.sunstone(b"\xff\xfe\n\nbroken\nsunstone: h:5900\n")
    token = world.issue()
    assert world.lines() == ["sunstone: h:5900", f"{token}: h:5900"]
    assert world.target("sunstone") == world.target(token) == ["h", "5900"]


def test_a_token_whose_comment_was_damaged_is_kept_as_somebody_elses_and_expires(path):
    world = World(path, tokens_per_vm=1)
    damaged = world.issue(ttl=10 * TTL)
    file = path / "one-7"
    world.sunstone(file.read_bytes().replace(b'"ttl"', b'"tll"'))
    token = world.issue(ttl=10 * TTL)
    assert world.target(damaged) == world.target(token) == ["h", "5900"]
    world.advance(TTL)
    assert world.target(damaged) is None
    assert world.target(token) == ["h", "5900"]


def test_a_line_that_leads_to_no_port_is_left_to_websockify(world):
    world.sunstone("socket: unix_socket:/run/screen\n")
    world.issue()
    assert world.target("socket") == ["unix_socket", "/run/screen"]
    assert world.find("socket") is None
    assert world.use("socket") is None
    world.advance(TTL)
    assert world.target("socket") is None


# Tokens that only the resolver may find.


@pytest.mark.parametrize("options", [{"single_use": True}, {"client": "203.0.113.9"}])
def test_a_restricted_token_is_found_by_the_resolver_and_no_reader_of_files(world, options):
    beside = world.issue()
    token = world.issue(host="2001:db8::1", **options)
    assert world.target(token) is None
    assert token not in (world.path / "one-7").read_text()
    assert world.target(beside) == ["h", "5900"]
    world.start()
    assert world.find(token).grant == Grant(7, "2001:db8::1", 5900, world.now(), TTL, **options)
    assert world.target(digest(token)) is None
    assert world.revoke(7, token) == 1
    assert world.find(token) is None


def test_a_restricted_token_expires_and_is_trimmed_like_any_other(path):
    world = World(path, tokens_per_vm=2)
    trimmed = world.issue(single_use=True)
    expiring = world.issue(single_use=True, ttl=10)
    world.issue()
    assert world.find(trimmed) is None
    assert world.find(expiring) is not None
    world.advance(10)
    assert world.find(expiring) is None


def test_a_token_for_one_use_can_be_used_again_only_within_the_window(world):
    token = world.issue(single_use=True)
    world.advance(10)
    first = world.use(token, reuse_window=5)
    assert first.used == world.now()
    world.start()
    world.advance(5 - NOT_YET)
    assert world.use(token, reuse_window=5).used == first.used
    world.advance(NOT_YET)
    assert world.use(token, reuse_window=5) is None
    world.start()
    assert world.use(token, reuse_window=5) is None
    assert world.find(token).used == first.used


def test_the_first_use_of_any_token_is_noted(world):
    token, other = world.issue(), world.issue()
    assert world.find(token).used == 0
    world.advance(10)
    used = world.now()
    assert world.use(token).used == used
    world.advance(10)
    assert world.use(token).used == used
    world.start()
    assert [one.used for one in result_of(world.folder.live(7))] == [used, 0]
    assert world.target(token) == world.target(other) == ["h", "5900"]


# Tokens are taken back.


def test_a_token_is_taken_back_and_the_others_stay(world):
    tokens = [world.issue() for _ in range(3)]
    other = world.issue(8)
    assert world.revoke(7, tokens[1], "nobody's", other) == 1
    assert world.is_forgotten(tokens[1])
    assert all(map(world.target, (tokens[0], tokens[2], other)))
    assert world.revoke(7, tokens[1]) == 0


def test_all_of_a_vms_tokens_are_taken_back_sunstones_too(world):
    world.sunstone("sunstone: h:5900")
    tokens = [world.issue(), world.issue(single_use=True)]
    other = world.issue(8)
    assert world.revoke() == 3
    assert all(map(world.is_forgotten, (*tokens, "sunstone")))
    assert world.lines() == []
    assert world.target(other) == ["h", "5900"]
    assert world.revoke() == 0


def test_an_expired_token_cannot_be_taken_back(world):
    world.issue()
    result_of(world.folder.close())
    world.advance(TTL)
    assert world.revoke() == 0


def test_a_vm_that_has_no_file_has_no_tokens(world):
    assert world.live() == []
    assert world.revoke() == 0
    assert list(world.path.iterdir()) == []


# What leads where.


def test_it_is_known_which_vms_lead_to_a_host_and_port(world):
    world.issue(7)
    world.issue(7, port=5907)
    restricted = world.issue(8, single_use=True)
    assert world.holders() == {7, 8}
    assert world.holders(port=5907) == {7}
    assert world.holders(host="i") == frozenset()
    assert world.targets() == {7: {("h", 5900), ("h", 5907)}, 8: {("h", 5900)}}
    world.revoke(8, restricted)
    assert world.holders() == {7}
    assert world.targets().keys() == {7}
    world.advance(TTL)
    assert world.holders() == frozenset()
    assert world.targets() == {}


def test_after_a_restart_it_is_known_as_before(world):
    world.issue(7)
    world.issue(8, host="i", single_use=True)
    before = world.targets()
    world.start()
    assert world.targets() == before == {7: {("h", 5900)}, 8: {("i", 5900)}}
    assert world.holders("i") == {8}


def test_it_follows_what_others_do_in_the_folder_within_a_scan(world):
    world.issue(7)
    world.sunstone("sunstone: i:5901", vm_id=8)
    world.advance(SCAN_SECONDS)
    assert world.targets() == {7: {("h", 5900)}, 8: {("i", 5901)}}
    world.sunstone("sunstone: i:5902", vm_id=8)
    world.advance(SCAN_SECONDS)
    assert world.holders("i", 5901) == frozenset()
    assert world.holders("i", 5902) == {8}
    (world.path / "one-7").rename(world.path / "one-9")
    world.advance(SCAN_SECONDS)
    assert world.holders() == {9}
    for file in world.path.iterdir():
        file.unlink()
    world.advance(SCAN_SECONDS)
    assert world.targets() == {}


def test_a_token_that_was_trimmed_leads_nowhere(path):
    world = World(path, tokens_per_vm=1)
    world.issue(port=5901)
    world.issue(port=5902)
    assert world.targets() == {7: {("h", 5902)}}
    assert world.holders(port=5901) == frozenset()


# The folder is emptied, and kept in order.


def test_when_the_folder_is_emptied_under_us_the_tokens_are_gone_and_the_next_call_works(world):
    tokens = [world.issue(), world.issue(8)]
    for file in world.path.iterdir():
        file.unlink()
    assert all(map(world.is_forgotten, tokens))
    assert world.revoke() == 0
    token = world.issue()
    assert world.target(token) == ["h", "5900"]
    world.advance(2 * TTL)
    assert world.target(token) is None
    assert world.live() == []


def test_files_without_tokens_leave_together_in_a_rare_batch(world):
    for vm_id in (7, 8):
        world.issue(vm_id)
    world.issue(9, ttl=0)
    left = []
    for minute in range(round(2 * CLEANUP_SECONDS / 60) + 2):
        before = {file.name for file in world.path.iterdir()}
        world.advance(60)
        if gone := before - {file.name for file in world.path.iterdir()}:
            left.append((minute, gone))
    ((minute, gone),) = left
    assert gone == {"one-7", "one-8"}
    assert minute * 60 >= CLEANUP_SECONDS


def test_a_file_that_was_emptied_a_moment_ago_waits_for_the_next_batch(world):
    world.issue(ttl=round(CLEANUP_SECONDS) - 1)
    world.advance(CLEANUP_SECONDS + SCAN_SECONDS)
    assert world.lines() == []
    world.issue()
    world.advance(CLEANUP_SECONDS)
    assert world.lines() == []
    world.advance(CLEANUP_SECONDS)
    assert list(world.path.iterdir()) == []


def test_no_file_of_somebody_elses_leaves(world):
    (world.path / "notes").write_text("t: h:5900\n")
    (world.path / "one-7.bak").write_text("t: h:5900\n")
    world.advance(2 * CLEANUP_SECONDS + 2 * SCAN_SECONDS)
    assert {file.name for file in world.path.iterdir()} == {"notes", "one-7.bak"}


# Trouble.


def trouble(world, vm_id=7):
    """Return why no token could be had, and check that the answer is fit for a client."""
    with pytest.raises(TokenStoreError) as caught:
        world.issue(vm_id)
    assert caught.value.code == ErrorCode.ALLOCATE == 0x4000
    message = str(caught.value)
    assert message.startswith("Cannot create VNC proxy token. ")
    assert "/" not in message
    return message.removeprefix("Cannot create VNC proxy token. ")


def errors(logged):
    return [event["log_format"].format(**event) for event in logged if event["log_level"].name in ("error", "critical")]


def full_disk(place):
    mount(place, "-t", "tmpfs", "-o", "size=16k", "none")
    world = World(place / "tokens")
    token, short = world.issue(), world.issue(8, ttl=10)
    # An empty file would need no room.
    world.issue(8)
    with capturedLogs() as logged:
        with pytest.raises(OSError, match="No space left"):
            (place / "filler").write_bytes(bytes(2**20))
        for vm_id in (7, 9):
            assert trouble(world, vm_id) == "No space left on device"
        assert world.target(token) == ["h", "5900"]
        world.advance(60)
        assert world.find(short) is None
        (line,) = errors(logged)
        assert "expired tokens may stay: No space left on device" in line
        (place / "filler").unlink()
        world.advance(RETRY_SECONDS)
        assert world.is_forgotten(short)
        assert world.target(world.issue()) == world.target(token) == ["h", "5900"]
        assert len(errors(logged)) == 1


def test_on_a_full_disk_tokens_stay_and_expired_ones_go_once_there_is_room(tmp_path):
    elsewhere(full_disk, tmp_path)


def read_only(place):
    mount(place, "-t", "tmpfs", "none")
    world = World(place / "tokens")
    token, short, restricted = world.issue(), world.issue(8, ttl=10), world.issue(9, single_use=True)
    mount(place, "-o", "remount,bind,ro")
    with capturedLogs() as logged:
        assert trouble(world) == "Read-only file system"
        with pytest.raises(
            TokenStoreError, match=r"^The tokens cannot be read or changed now\. Read-only file system$"
        ):
            world.revoke()
        with pytest.raises(TokenStoreError, match="Read-only"):
            world.use(restricted)
        assert world.use(token).grant.port == 5900
        world.advance(60)
        assert world.find(short) is None
        assert len(errors(logged)) == 1
        mount(place, "-o", "remount,bind,rw")
        world.advance(RETRY_SECONDS)
        assert world.is_forgotten(short)
        assert world.use(restricted) is not None
        assert world.revoke() == 1
        assert world.is_forgotten(token)


def test_on_a_disk_that_became_read_only_expired_tokens_are_refused_and_go_once_it_is_not(tmp_path):
    elsewhere(read_only, tmp_path)


def test_when_the_user_may_no_longer_write_the_tokens_stay_and_the_client_is_told(tmp_path):
    with nobody_in(tmp_path):
        world = World(Path("tokens"))
        token = world.issue()
        Path("tokens").chmod(0o500)
        try:
            assert [trouble(world, vm_id) for vm_id in (7, 8)] == ["Permission denied"] * 2
            assert world.target(token) == ["h", "5900"]
        finally:
            Path("tokens").chmod(0o700)


def test_when_the_folder_has_vanished_nobody_gets_a_token_until_the_service_makes_it_again(world):
    token = world.issue()
    shutil.rmtree(world.path)
    assert trouble(world) == "No such file or directory"
    world.advance(2 * SCAN_SECONDS)
    assert not world.path.exists()
    world.start()
    assert world.target(token) is None
    assert world.target(world.issue()) == ["h", "5900"]


@pytest.mark.parametrize("planted", ["folder", "link"])
def test_what_was_planted_in_the_place_of_a_file_harms_no_other_vm(world, planted, tmp_path):
    target = tmp_path / "target"
    target.write_text("t: h:5900\n")
    if planted == "folder":
        (world.path / "one-7").mkdir()
    else:
        (world.path / "one-7").symlink_to(target)
    assert trouble(world) == "The VM's entry in the token folder is not a regular file"
    for ask in (world.live, world.revoke):
        with pytest.raises(TokenStoreError, match="is not a regular file"):
            ask()
    token = world.issue(8)
    assert world.find(token).grant.vm_id == 8
    world.advance(TTL)
    assert world.find(token) is None
    assert world.lines(8) == []
    assert target.read_text() == "t: h:5900\n"


def test_a_file_that_may_not_be_read_is_complained_of_once_and_harms_no_other_vm(tmp_path):
    with nobody_in(tmp_path), capturedLogs() as logged:
        world = World(Path("tokens"))
        world.sunstone("sunstone: h:5900")
        (world.path / "one-7").chmod(0)
        token = world.issue(8)
        world.advance(TTL)
        assert world.find(token) is None
        assert world.lines(8) == []
        assert len(errors(logged)) == 1


def test_a_folder_that_cannot_be_used_is_refused_at_the_start(path):
    path.write_text("mine")
    with pytest.raises(ConfigError, match=":token_folder_name: is"):
        World(path)


def test_a_folder_that_others_may_enter_is_a_warning_at_the_start(path, world):
    path.chmod(0o755)
    (warning,) = TokenFolder(path, Clock(), time.time, ttl=TTL, tokens_per_vm=8).prepare()
    assert "chmod 700" in warning


def test_who_only_looks_whether_the_folder_can_be_used_disturbs_no_running_service(path, world):
    half_written = path.with_name("tokens.new") / "one-7.0123456789abcdef"
    half_written.write_text("0123")
    world.sunstone("# a note\nsunstone: h:5900")
    world.advance(2 * TTL)
    expired = world.issue(ttl=1)
    result_of(world.folder.close())
    world.advance(1)
    assert TokenFolder(path, Clock(), world.wall, ttl=TTL, tokens_per_vm=8).prepare() == []
    assert half_written.exists()
    assert world.target(expired) is not None


def test_what_a_killed_service_left_half_written_is_removed_at_the_start(path, world):
    token = world.issue()
    leftover = path.with_name("tokens.new") / "one-7.0123456789abcdef"
    leftover.write_text("0123")
    world.start()
    assert not leftover.exists()
    assert world.target(token) == ["h", "5900"]


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
