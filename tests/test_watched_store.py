"""The store that is watched: the register is right, and what ends by itself is written down."""

import pytest
from memory import MemoryStore
from outcomes import result_of
from redisservers import eventually, redis_server, redis_store, waited
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from vnctoken.errors import AuditError, ConfigError, LimitError, TokenStoreError
from vnctoken.limits import LimitRules, Limits
from vnctoken.tokens import Grant, digest, fingerprint
from vnctoken.tokens.folder import TokenFolder
from vnctoken.tokens.register import Register
from vnctoken.tokens.watched import OTHER_CLOCK_SECONDS, RECONCILE_SECONDS, WatchedStore

NOW = 1_795_316_218.5
KEPT = 3
HERE = "192.0.2.1"


class Store(MemoryStore):
    """Drops the oldest tokens of a VM as stores do; it can be slow."""

    def __init__(self):
        super().__init__()
        self.running = False
        self.slow = False
        self.waiting = []
        self.asked = []

    def prepare(self):
        return ["a warning"]

    def start(self):
        self.running = True

    async def check(self):
        if self.error is not None:
            raise self.error

    async def issue(self, grant):
        token = await super().issue(grant)
        for one in (await super().live(grant.vm_id))[:-KEPT]:
            del self.kept[one.digest]
        await self.arrival()
        return token

    async def live(self, vm_id):
        self.asked.append(vm_id)
        if self.error is not None:
            raise self.error
        found = await super().live(vm_id)
        await self.arrival()
        return found

    async def targets(self):
        self.asked.append("targets")
        if self.error is not None:
            raise self.error
        found = await super().targets()
        await self.arrival()
        return found

    async def close(self):
        self.running = False

    async def arrival(self):
        """Let the answer, which is made, take its time."""
        if self.slow:
            self.waiting.append(Deferred())
            await self.waiting[-1]


class Notes:
    """Keeps what is recorded and measured; `full` as a disk is."""

    def __init__(self):
        self.decisions = []
        self.times = []
        self.full = False

    def record(self, decision):
        if self.full:
            raise AuditError("No space left on device")
        self.decisions.append(decision)

    def spent(self, stage, seconds):
        self.times.append((stage, seconds))

    @property
    def told(self):
        return [(one.event, one.token, one.reason) for one in self.decisions]


class World:
    """A watched store, and what it tells."""

    def __init__(self, store=None, clock=None):
        self.clock = Clock() if clock is None else clock
        self.inner = Store() if store is None else store(self)
        self.register = Register()
        self.notes = Notes()
        self.store = WatchedStore(
            self.inner,
            self.register,
            self.clock,
            self.now,
            tokens_per_vm=KEPT,
            measures=self.notes,
            audit=self.notes,
        )

    def now(self):
        return NOW + self.clock.seconds()

    def grant(self, vm_id=7, ttl=600, user="alice", caller=HERE):
        return Grant(vm_id, "node", 5900 + vm_id, self.now(), ttl, user, caller=caller)

    def issue(self, *args, **changed):
        return result_of(self.store.issue(self.grant(*args, **changed)))

    def by_another(self, *args, **changed):
        """Have another front-end issue a token."""
        return result_of(self.inner.issue(self.grant(*args, **changed)))

    @property
    def known(self):
        return {live.digest for live in self.register}


def digests(*tokens):
    return {digest(token) for token in tokens}


@pytest.fixture
def world():
    return World()


# What is passed on


def test_what_is_asked_is_what_the_store_answers(world):
    token, other = world.issue(), world.issue(8)
    assert world.store.prepare() == ["a warning"]
    assert [live.digest for live in result_of(world.store.live(7))] == [digest(token)]
    assert result_of(world.store.find(token)).grant == world.register.of_vm(7)[0].grant
    assert result_of(world.store.use(token, 5)).used == 1
    assert result_of(world.store.holders("node", 5908)) == {8}
    assert result_of(world.store.targets()) == {7: {("node", 5907)}, 8: {("node", 5908)}}
    assert result_of(world.store.revoke(8, frozenset(digests(token)))) == 0
    assert result_of(world.store.revoke(8, frozenset(digests(other)))) == 1
    assert result_of(world.store.find(other)) is None


def test_what_goes_wrong_in_the_store_goes_wrong(world):
    world.inner.error = TokenStoreError("away")
    for work in (world.store.issue(world.grant()), world.store.live(7), world.store.targets(), world.store.check()):
        with pytest.raises(TokenStoreError, match="away"):
            result_of(work)
    assert len(world.register) == 0


def test_the_time_that_the_store_takes_is_measured_also_when_it_fails(world):
    world.inner.slow = True
    issuing = Deferred.fromCoroutine(world.store.issue(world.grant()))
    world.clock.advance(0.25)
    world.inner.waiting.pop().callback(None)
    result_of(issuing)
    listing = Deferred.fromCoroutine(world.store.live(7))
    world.clock.advance(2)
    world.inner.waiting.pop().errback(TokenStoreError("late"))
    with pytest.raises(TokenStoreError):
        result_of(listing)
    assert world.notes.times == [("store", 0.25), ("store", 2)]


def test_it_starts_and_ends_with_its_store(world):
    world.store.start()
    assert world.inner.running
    world.issue()
    result_of(world.store.close())
    assert not world.inner.running
    assert world.clock.getDelayedCalls() == []


def test_a_store_that_cannot_start_is_not_watched(world):
    def refuse():
        raise ConfigError("no")

    world.inner.start = refuse
    with pytest.raises(ConfigError):
        world.store.start()
    assert world.clock.getDelayedCalls() == []


# What is known


def test_a_token_is_known_from_its_issue_until_it_is_taken_back(world):
    token, other = world.issue(), world.issue()
    assert world.known == digests(token, other)
    assert world.register.count_of_user("alice") == world.register.count_of_client(HERE) == 2
    result_of(world.store.revoke(7, frozenset(digests(token))))
    assert world.known == digests(other)
    result_of(world.store.revoke(7))
    assert world.known == set()


def test_the_tokens_that_the_store_drops_for_newer_ones_are_revoked(world):
    tokens = [world.issue() for _ in range(KEPT + 2)]
    assert world.known == digests(*tokens[2:])
    assert world.notes.told == [("revoked", fingerprint(token), "tokens_per_vm") for token in tokens[:2]]
    first = world.notes.decisions[0]
    assert (first.user, first.vm_id, first.host, first.port) == ("alice", 7, "node", 5907)


def test_a_vm_with_few_tokens_costs_the_store_no_question(world):
    for vm_id in range(KEPT):
        for _ in range(KEPT):
            world.issue(vm_id)
    assert world.inner.asked == []


def test_tokens_that_another_front_end_took_back_were_not_dropped_for_newer_ones(world):
    for _ in range(KEPT):
        world.issue()
    result_of(world.inner.revoke(7))
    token = world.issue()
    assert world.known == digests(token)
    assert world.notes.told == []


def test_a_token_is_issued_even_if_the_store_does_not_tell_what_it_dropped(world):
    for _ in range(KEPT):
        world.issue()

    async def away(_vm_id):
        raise TokenStoreError("away")

    world.inner.live = away
    world.issue()
    assert len(world.register) == KEPT + 1


def test_who_asks_for_a_vms_tokens_puts_the_register_right(world):
    gone, stays = world.issue(), world.issue()
    del world.inner.kept[digest(gone)]
    theirs = world.by_another()
    assert len(result_of(world.store.live(7))) == 2
    assert world.known == digests(stays, theirs)


@pytest.mark.parametrize("limit", ["tokens_per_user", "tokens_per_client", "tokens_total"])
def test_tokens_that_are_being_issued_take_their_room_and_give_it_back_if_they_are_not(world, limit):
    limits = Limits(LimitRules(**{limit: 2}), world.register, world.store, world.clock, world.now)
    world.inner.slow = True
    first, second = (Deferred.fromCoroutine(world.store.issue(world.grant(ttl=ttl))) for ttl in (60, 90))
    with pytest.raises(LimitError, match="; try again in 60 seconds;"):
        result_of(limits.room(HERE, "ALICE"))
    world.inner.waiting[0].callback(None)
    result_of(first)
    world.inner.slow = False
    with pytest.raises(LimitError, match="; try again in 60 seconds;"):
        result_of(limits.room(HERE, "ALICE"))
    world.inner.waiting[1].errback(TokenStoreError("away"))
    with pytest.raises(TokenStoreError):
        result_of(second)
    result_of(limits.room(HERE, "ALICE"))
    world.issue(ttl=90)
    with pytest.raises(LimitError, match="; try again in 60 seconds;"):
        result_of(limits.room(HERE, "ALICE"))


def test_a_token_that_is_being_issued_takes_nobody_elses_room(world):
    rules = LimitRules(tokens_per_user=1, tokens_per_client=1)
    limits = Limits(rules, world.register, world.store, world.clock, world.now)
    world.inner.slow = True
    for user, caller in (("alice", HERE), ("", "")):
        coming = Deferred.fromCoroutine(world.store.issue(world.grant(user=user, caller=caller)))
        result_of(limits.room("192.0.2.2", "bob"))
        result_of(limits.room("", ""))
        assert (len(world.register), len(world.register.coming)) == (0, 1)
        coming.cancel()
        with pytest.raises(CancelledError):
            result_of(coming)
        assert not world.register.coming


def test_a_token_that_is_issued_while_the_store_answers_stays_known(world):
    world.inner.slow = True
    listing = Deferred.fromCoroutine(world.store.live(7))
    world.inner.slow = False
    token = world.issue()
    world.inner.waiting.pop().callback(None)
    assert result_of(listing) == []
    assert world.known == digests(token)


# What ends


def test_the_end_of_a_token_is_written_down_when_its_time_is_over(world):
    token, other, _ = world.issue(ttl=10), world.issue(8, ttl=20), world.issue(9, ttl=0)
    world.clock.advance(9.9)
    assert world.notes.told == []
    world.clock.advance(0.2)
    assert world.notes.told == [("expired", fingerprint(token), "")]
    world.clock.advance(10)
    assert world.notes.told[1:] == [("expired", fingerprint(other), "")]
    world.clock.advance(1e6)
    assert len(world.notes.told) == 2
    assert len(world.register) == 1


def test_a_token_that_was_taken_back_does_not_expire(world):
    world.issue(ttl=10)
    result_of(world.store.revoke(7))
    world.clock.advance(11)
    assert world.notes.told == []


def test_a_shorter_token_that_came_later_expires_first(world):
    long, short = world.issue(ttl=100), world.issue(ttl=10)
    world.clock.advance(10)
    assert world.known == digests(long)
    assert world.notes.told == [("expired", fingerprint(short), "")]


def test_one_timer_is_enough_for_all_tokens(world):
    for vm_id in range(500):
        world.issue(vm_id, ttl=10 + vm_id)
    assert len(world.clock.getDelayedCalls()) == 1


def test_many_that_end_at_once_leave_calls_their_turn(world):
    told = []
    for vm_id in range(120):
        world.issue(vm_id, ttl=10)
    world.clock.callLater(10, lambda: told.append(len(world.notes.told)))
    world.clock.advance(10)
    assert 0 < told[0] < 120
    assert len(world.notes.told) == 120


def test_a_full_disk_holds_nothing_up(world):
    world.notes.full = True
    for _ in range(KEPT + 1):
        world.issue(ttl=10)
    world.clock.advance(10)
    assert len(world.register) == 0
    world.notes.full = False
    token = world.issue(ttl=10)
    world.clock.advance(10)
    assert world.notes.told == [("expired", fingerprint(token), "")]


def test_a_token_that_ended_by_the_stores_own_clock_a_little_before_expires_all_the_same(world):
    token = world.issue(ttl=100)
    world.clock.advance(100 - OTHER_CLOCK_SECONDS)
    world.inner.kept.clear()
    assert result_of(world.store.live(7)) == []
    world.clock.advance(OTHER_CLOCK_SECONDS)
    assert world.notes.told == [("expired", fingerprint(token), "")]


def test_a_token_that_lives_a_little_longer_by_the_stores_own_clock_expires_once(world):
    world.issue(ttl=10)
    world.clock.advance(10)
    assert len(result_of(world.store.live(7))) == 1
    world.clock.advance(10)
    assert len(world.notes.told) == 1
    assert len(world.register) == 0


# What others do


def test_what_the_store_holds_at_the_start_is_known_and_ends(world):
    tokens = [world.by_another(vm_id, ttl=30, user="bob") for vm_id in range(100)]
    world.store.start()
    world.clock.pump([0] * 10)
    assert world.known == digests(*tokens)
    assert world.register.count_of_user("bob") == 100
    world.clock.pump([30, 0, 0])
    assert {told[1] for told in world.notes.told} == {fingerprint(token) for token in tokens}


def test_learning_leaves_calls_their_turn(world):
    for vm_id in range(100):
        world.by_another(vm_id)
    world.store.start()
    assert 0 < len(world.register) < 50


def test_once_a_minute_tokens_of_vms_that_have_none_in_the_store_are_forgotten(world):
    world.store.start()
    world.issue(7)
    stays = world.issue(8)
    result_of(world.inner.revoke(7))
    theirs = world.by_another(9)
    world.clock.advance(RECONCILE_SECONDS)
    assert world.known == digests(stays, theirs)
    assert world.notes.told == []
    result_of(world.inner.revoke(9))
    world.clock.advance(RECONCILE_SECONDS)
    assert world.known == digests(stays)


def test_a_token_that_is_issued_while_the_store_tells_what_it_holds_stays_known(world):
    world.inner.slow = True
    world.store.start()
    world.inner.slow = False
    token = world.issue()
    world.inner.waiting.pop().callback(None)
    assert world.known == digests(token)


def test_a_store_that_is_away_is_asked_again_a_minute_later(world):
    token = world.by_another()
    world.inner.error = TokenStoreError("away")
    world.store.start()
    world.inner.error = None
    assert world.known == set()
    world.clock.advance(RECONCILE_SECONDS)
    assert world.known == digests(token)


def test_a_store_that_does_not_answer_is_asked_anew_a_minute_later(world):
    token = world.by_another()
    world.inner.slow = True
    world.store.start()
    world.inner.slow = False
    world.clock.advance(RECONCILE_SECONDS)
    assert world.known == digests(token)


def test_a_bug_in_one_round_is_logged_and_is_not_the_last_round(world):
    token = world.by_another()
    targets = world.inner.targets

    async def broken():
        raise ZeroDivisionError

    world.inner.targets = broken
    with capturedLogs() as logs:
        world.store.start()
    assert [log["log_failure"].type for log in logs] == [ZeroDivisionError]
    world.inner.targets = targets
    world.clock.advance(RECONCILE_SECONDS)
    assert world.known == digests(token)


def test_closing_gives_up_a_round_that_is_under_way(world):
    world.by_another()
    world.inner.slow = True
    world.store.start()
    result_of(world.store.close())
    assert world.inner.waiting[0].called
    assert world.clock.getDelayedCalls() == []
    assert world.known == set()


def test_where_tokens_cannot_be_listed_those_issued_here_are_known_until_they_end():
    class Signed(Store):
        revocable = False

    world = World(lambda _: Signed())
    world.store.start()
    tokens = [world.issue(ttl=10) for _ in range(KEPT + 2)]
    assert world.known == digests(*tokens)
    assert world.inner.asked == []
    world.clock.advance(10)
    assert [told[0] for told in world.notes.told] == ["expired"] * len(tokens)
    assert world.clock.getDelayedCalls() == []


# With a real one


def test_a_folder_that_somebody_empties_is_an_empty_register_a_minute_later(tmp_path):
    world = World(lambda world: TokenFolder(tmp_path / "tokens", world.clock, world.now, ttl=600, tokens_per_vm=KEPT))
    world.store.prepare()
    world.store.start()
    tokens = [world.issue() for _ in range(KEPT + 1)]
    assert world.known == digests(*tokens[1:])
    assert world.register.count_of_client(HERE) == KEPT
    for file in (tmp_path / "tokens").iterdir():
        file.unlink()
    world.clock.pump([1] * int(RECONCILE_SECONDS))
    assert world.known == set()
    assert [told[0] for told in world.notes.told] == ["revoked"]
    result_of(world.store.close())
    assert world.clock.getDelayedCalls() == []


def test_a_restarted_service_knows_the_tokens_in_the_folder(tmp_path):
    def folder(world):
        return TokenFolder(tmp_path / "tokens", world.clock, world.now, ttl=600, tokens_per_vm=KEPT)

    before, after = World(folder), World(folder)
    before.store.prepare()
    token = before.issue(ttl=30)
    after.store.start()
    assert after.known == digests(token)
    assert after.register.count_of_user("alice") == 1
    after.clock.advance(30)
    assert after.notes.told == [("expired", fingerprint(token), "")]
    result_of(after.store.close())
    result_of(before.store.close())


def test_front_ends_that_share_a_redis_learn_of_each_others_tokens_and_refuse_nobody_for_what_is_gone():
    with redis_server() as server, redis_store(server) as one, redis_store(server) as other:
        ours, theirs = World(lambda _: one, reactor), World(lambda _: other, reactor)
        grants = [ours.grant(7, ttl=1), ours.grant(8), ours.grant(9)]
        tokens = waited(*(ours.store.issue(grant) for grant in grants))
        waited(theirs.store.reconcile())
        assert ours.known == theirs.known == digests(*tokens)
        assert theirs.register.count_of_user("alice") == 3
        waited(theirs.store.revoke(8))
        limits = Limits(LimitRules(tokens_per_user=2), ours.register, ours.store, reactor, ours.now)
        # Timers run while the reactor waits for an answer.
        eventually(lambda: waited(one.find(tokens[0])) is None and ours.notes.told and theirs.notes.told)
        waited(limits.room(HERE, "alice"))
        for world in (ours, theirs):
            assert digest(tokens[1]) not in world.known
            assert world.notes.told == [("expired", fingerprint(tokens[0]), "")]
            waited(world.store.close())
