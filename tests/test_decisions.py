"""What is decided is written down before it is answered, and what is done is counted."""

import xmlrpc.client
from dataclasses import replace

import pytest
from callers import CLIENT, REQUEST, admission, caller, entrance, http_request, limits
from ledgers import MemoryAudit, MemoryMeasures
from memory import MemoryStore
from outcomes import result_of
from test_consoles import CONSOLE_STATES, NOW, RUNNING, MemoryOned
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from vnctoken.auth.guessing import Guessing
from vnctoken.auth.whois import REMEMBERED, SECONDS, Whois
from vnctoken.consoles import Consoles, Terms
from vnctoken.decisions import Decision
from vnctoken.errors import (
    ActionError,
    AuditError,
    AuthenticationError,
    AuthorizationError,
    NoExistsError,
    OnedError,
    TokenStoreError,
)
from vnctoken.recheck import Recheck
from vnctoken.resolver import Resolver
from vnctoken.rpc import Rpc
from vnctoken.rules import ConsoleRules
from vnctoken.tokens import Grant, fingerprint
from vnctoken.user import User

ALICE = User(2, "alice", "core", enabled=True, group="users", groups=frozenset({1}), password="", token_password="")
RULES = ConsoleRules(states=CONSOLE_STATES, ports=range(5900, 65536))
WHOSE = {"user": "alice", "uid": 2, "door": "opennebula", "client": CLIENT, "request": REQUEST}
WHERE = {"vm_id": 7, "host": "dummy-host-1", "port": 5900}


async def whois(_caller):
    return ALICE


class World:
    """A service without HTTP, whose oned answers as it is told."""

    def __init__(self, answer=RUNNING, store=None, **rules):
        self.oned = MemoryOned(answer)
        self.store = store or MemoryStore()
        self.audit, self.measures = MemoryAudit(), MemoryMeasures()
        self.clock = Clock()
        bounds = limits(**rules)
        terms = Terms(ttl=600, ttl_max=3600, resolved=False, wss=False)
        told = {"audit": self.audit, "whois": whois}
        consoles = Consoles(admission(self.oned), self.store, bounds, rules=RULES, terms=terms, now=lambda: NOW, **told)
        self.rpc = Rpc(consoles, entrance(), bounds, self.clock, measures=self.measures, **told)

    def begin(self, method, *arguments):
        body = xmlrpc.client.dumps(arguments, method).encode()
        return Deferred.fromCoroutine(self.rpc.answer(http_request(body)))

    def call(self, method, *arguments):
        return xmlrpc.client.loads(result_of(self.begin(method, *arguments)))[0][0]


# The audit log.


@pytest.mark.parametrize("method", ["one.vm.vnctoken", "one.vm.vnctokenonly", "one.vm.vnc"])
def test_a_token_that_is_issued_is_written_down_with_whose_it_is_and_where_it_leads(method):
    world = World()
    assert world.call(method, "alice:secret", 7)[0] is True
    (live,) = world.store.kept.values()
    assert world.audit.decisions == [
        Decision("issued", method=method, token=live.fingerprint, **WHOSE, **WHERE),
    ]


@pytest.mark.parametrize(
    ("answer", "reason", "uid"),
    [
        (AuthenticationError("who?"), "authentication", None),
        (OnedError("down"), "oned", None),
        (AuthorizationError("not yours"), "authorization", 2),
        (NoExistsError("no such VM"), "no_exists", 2),
        (replace(RUNNING, state=8), "action", 2),
        (replace(RUNNING, graphics_type="SPICE"), "no_exists", 2),
    ],
)
def test_a_refusal_is_written_down_with_its_reason_and_who_it_was_as_far_as_that_is_known(answer, reason, uid):
    world = World(answer)
    refused, _, code = world.call("one.vm.vnctoken", "alice:secret", 7)
    assert refused is False
    (decision,) = world.audit.decisions
    expected = Decision("refused", method="one.vm.vnctoken", vm_id=7, code=code, reason=reason, **WHOSE)
    assert decision == replace(expected, uid=uid)


def test_a_refusal_before_anybody_is_asked_is_written_down_too():
    world = World(calls_per_client=(1, 60))
    world.call("one.vm.vnctokn", "alice:secret", 7)
    world.call("one.vm.vnctoken", "alice:secret", "seven")
    world.call("one.vm.vnctoken", "alice:secret", 7)
    unknown, wrong, limited = world.audit.decisions
    assert unknown == Decision("refused", request=REQUEST, method="unknown", client=CLIENT, code=0x1000, reason="api")
    assert wrong == replace(unknown, method="one.vm.vnctoken", user="alice")
    assert limited == replace(unknown, method="one.vm.vnctoken", code=0x2000, reason="limit_client")


def test_a_store_that_fails_is_a_refusal():
    world = World(store=MemoryStore(error=TokenStoreError("Cannot create VNC proxy token. full")))
    world.call("one.vm.vnctoken", "alice:secret", 7)
    (decision,) = world.audit.decisions
    assert (decision.event, decision.reason, decision.code) == ("refused", "store", 0x4000)


def test_each_token_that_is_revoked_is_a_line():
    world = World()
    tokens = [world.call("one.vm.vnctokenonly", "alice:secret", 7)[1] for _ in range(3)]
    del world.audit.decisions[:]
    assert world.call("one.vm.vncrevoke", "alice:secret", 7, tokens[1])[1] == 1
    assert world.call("one.vm.vncrevoke", "alice:secret", 7)[1] == 2
    assert world.audit.decisions == [
        Decision("revoked", method="one.vm.vncrevoke", token=fingerprint(token), reason="asked for", **WHOSE, **WHERE)
        for token in (tokens[1], tokens[0], tokens[2])
    ]


class OthersAreQuicker(MemoryStore):
    """A store whose tokens somebody else takes back, and writes down, between the look and the attempt."""

    async def revoke(self, vm_id, digests=None):
        await super().revoke(vm_id, digests)
        return 0


def test_tokens_that_somebody_else_has_taken_back_meanwhile_are_no_lines_of_ours():
    world = World(store=OthersAreQuicker())
    world.call("one.vm.vnctoken", "alice:secret", 6)
    world.call("one.vm.vnctoken", "alice:secret", 7)
    assert world.call("one.vm.vncrevoke", "alice:secret", 7) == [True, 0, 0]
    assert [decision.event for decision in world.audit.decisions] == ["issued", "issued"]


def test_a_token_that_cannot_be_written_down_is_not_given_out():
    world = World()
    world.audit.full = True
    assert world.call("one.vm.vnctoken", "alice:secret", 7) == [False, "the audit log is full", 0x2000]
    assert world.store.kept == {}


def test_a_refusal_that_cannot_be_written_down_is_another_refusal():
    world = World(AuthorizationError("not yours"))
    world.audit.full = True
    assert world.call("one.vm.vnctoken", "alice:secret", 7) == [False, "the audit log is full", 0x2000]


def test_what_is_revoked_is_gone_even_if_it_cannot_be_written_down():
    world = World()
    world.call("one.vm.vnctoken", "alice:secret", 7)
    world.audit.full = True
    assert world.call("one.vm.vncrevoke", "alice:secret", 7)[2] == 0x2000
    assert world.store.kept == {}


def test_the_token_of_a_vm_whose_place_another_has_taken_is_a_line():
    world = World()
    world.call("one.vm.vnctoken", "alice:secret", 6)
    (old,) = world.store.kept.values()
    world.call("one.vm.vnctoken", "alice:secret", 7)
    assert world.audit.decisions[1] == Decision(
        "revoked",
        user="alice",
        vm_id=6,
        host="dummy-host-1",
        port=5900,
        token=old.fingerprint,
        reason="VM 7 has its host and port",
    )


# What is counted and timed.


def test_every_call_is_counted_with_its_method_code_and_time():
    world = World()
    world.call("one.vm.vnctoken", "alice:secret", 7)
    world.call("one.vm.vncrevoke", "alice:secret", "seven")
    world.call("no.such.method")
    world.call("system.listMethods")
    assert world.measures.of("called") == [
        ["one.vm.vnctoken", 0, 0],
        ["one.vm.vncrevoke", 0x1000, 0],
        ["unknown", 0x1000, 0],
        ["system.listMethods", 0, 0],
    ]
    assert world.measures.of("refused") == [["api"], ["api"]]
    assert len(world.measures.of("began")) == 4


def test_a_call_that_the_client_gives_up_is_over():
    world = World(Deferred())
    asking = world.begin("one.vm.vnctoken", "alice:secret", 7)
    world.clock.advance(0.25)
    asking.cancel()
    with pytest.raises(CancelledError):
        result_of(asking)
    assert world.measures.told == [("began",), ("given_up",)]
    assert world.audit.decisions == []


def test_a_bug_is_counted_as_one_and_is_a_line():
    world = World(ZeroDivisionError())
    assert world.call("one.vm.vnctoken", "alice:secret", 7)[1] == "internal error"
    assert world.measures.of("refused") == [["bug"]]
    (refused,) = world.audit.decisions
    assert (refused.event, refused.user, refused.vm_id, refused.code, refused.reason) == (
        *("refused", "alice", 7),
        *(0x2000, "bug"),
    )


# The resolver.


def resolver_of(store, **verify):
    audit, measures, clock = MemoryAudit(), MemoryMeasures(), Clock()
    verify = {"verify": None} | verify
    return (
        Resolver(store, clock.seconds, reuse_window=5, measures=measures, audit=audit, **verify),
        audit,
        measures,
        clock,
    )


def issued(store, **more):
    return result_of(store.issue(Grant(**WHERE, issued=NOW, ttl=600, user="alice", **more)))


def test_what_a_token_opened_is_written_down_with_the_client_that_the_web_server_saw():
    store = MemoryStore()
    resolver, audit, measures, clock = resolver_of(store)
    token = issued(store)
    resolved = Decision("resolved", user="alice", door="resolver", token=fingerprint(token), **WHERE)
    result_of(resolver.resolve(token))
    result_of(resolver.admit(token, "203.0.113.9"))
    result_of(resolver.resolve(token))
    clock.advance(6)
    result_of(resolver.resolve(token))
    assert audit.decisions == [resolved, replace(resolved, client="203.0.113.9"), resolved]
    assert measures.of("resolved") == [["opened"], ["admitted"], ["opened"], ["opened"]]


def test_a_token_that_opens_nothing_is_a_refusal():
    store = MemoryStore()
    resolver, audit, measures, _ = resolver_of(store)
    token = issued(store, client="203.0.113.9")
    assert result_of(resolver.resolve("0" * 32)) is None
    assert result_of(resolver.admit(token, "203.0.113.8")) is False
    unknown = "unknown, expired or taken back"
    assert audit.decisions == [
        Decision("refused", door="resolver", token=fingerprint("0" * 32), reason=unknown),
        Decision(
            *("refused", "", "", "", None, "resolver", "203.0.113.8", 7),
            token=fingerprint(token),
            reason="for another client",
        ),
    ]
    assert measures.of("resolved") == [["refused"], ["refused"]]


def test_a_token_whose_console_is_gone_is_revoked_in_the_audit_log_too():
    async def gone(_live):
        return False

    store = MemoryStore()
    resolver, audit, _, _ = resolver_of(store, verify=gone)
    token = issued(store)
    assert result_of(resolver.resolve(token)) is None
    assert [(one.event, one.token) for one in audit.decisions] == [
        ("revoked", fingerprint(token)),
        ("refused", fingerprint(token)),
    ]


def test_a_console_that_cannot_be_written_down_is_not_opened():
    store = MemoryStore()
    resolver, audit, measures, _ = resolver_of(store)
    audit.full = True
    for token in (issued(store), "0" * 32):
        with pytest.raises(AuditError):
            result_of(resolver.resolve(token))
    assert measures.of("resolved") == [["unknown"], ["unknown"]]


# What happens by itself.


@pytest.mark.parametrize("full", [False, True])
def test_tokens_whose_console_is_gone_are_revoked_and_written_down_if_that_is_possible(full):
    store, audit = MemoryStore(), MemoryAudit(full)
    token = issued(store)
    recheck = Recheck(store, MemoryOned(RUNNING), lambda: "", RULES, Clock(), 15, audit)
    result_of(recheck.saw(7, replace(RUNNING, state=8)))
    assert store.kept == {}
    written = [Decision("revoked", user="alice", token=fingerprint(token), **WHERE)]
    assert [replace(one, reason="") for one in audit.decisions] == ([] if full else written)


# Whose the session is.


class Accounts:
    """An oned that knows accounts, or does not."""

    def __init__(self):
        self.asked = []
        self.error = None
        self.slow = None

    async def user(self, session):
        self.asked.append(session)
        if self.slow is not None:
            await self.slow
        if self.error is not None:
            raise self.error
        return ALICE


def test_oned_is_asked_once_a_minute_who_the_owner_of_a_session_is():
    oned, clock = Accounts(), Clock()
    known = Whois(oned, Guessing(clock, 10, 60), clock)
    for _ in range(3):
        assert result_of(known.user(caller("alice:secret"))) is ALICE
    assert oned.asked == ["alice:secret"]
    clock.advance(SECONDS)
    result_of(known.user(caller("alice:secret")))
    assert len(oned.asked) == 2


def test_calls_with_one_session_at_the_same_time_are_one_question():
    oned = Accounts()
    oned.slow = Deferred()
    known = Whois(oned, Guessing(Clock(), 10, 60), Clock())
    waiting = [Deferred.fromCoroutine(known.user(caller("alice:secret"))) for _ in range(20)]
    oned.slow.callback(None)
    assert [result_of(one) for one in waiting] == [ALICE] * 20
    assert oned.asked == ["alice:secret"]


def test_who_is_refused_before_oned_has_judged_him_has_no_more_guesses_than_others():
    oned = Accounts()
    known = Whois(oned, Guessing(Clock(), 10, 60), Clock())
    oned.error = AuthenticationError("no")
    for number in range(20):
        assert result_of(known.user(caller(f"alice:{number}"))) is None
    oned.error = None
    assert result_of(known.user(caller("alice:secret"))) is None
    assert len(oned.asked) == 10


def test_an_account_that_oned_does_not_tell_is_asked_for_again():
    oned = Accounts()
    known = Whois(oned, Guessing(Clock(), 10, 60), Clock())
    for error in (OnedError("down"), ActionError("no")):
        oned.error = error
        assert result_of(known.user(caller("alice:secret"))) is None
    oned.error = None
    assert result_of(known.user(caller("alice:secret"))) is ALICE


def test_so_many_sessions_are_remembered_and_no_more():
    oned = Accounts()
    known = Whois(oned, Guessing(Clock(), 10, 60), Clock())
    for number in range(REMEMBERED + 1):
        result_of(known.user(caller(f"alice:{number}")))
    result_of(known.user(caller("alice:1")))
    assert len(oned.asked) == REMEMBERED + 1
    result_of(known.user(caller("alice:0")))
    assert len(oned.asked) == REMEMBERED + 2
