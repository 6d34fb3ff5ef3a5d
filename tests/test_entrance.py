"""Who is let in: session strings, doors in their order, headers that only a proxy may send."""

import pytest
from callers import CLIENT, REQUEST, entrance, http_request
from hypothesis import given
from hypothesis import strategies as st
from outcomes import result_of
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, eventAsText

from vnctoken.auth import ASSERTIONS, OPENNEBULA, Caller, Claim, CredentialError, Identity
from vnctoken.auth.entrance import Entrance, Visit, user_name
from vnctoken.auth.guessing import Guessing
from vnctoken.errors import ApiError, AuthenticationError, OnedError

SECRET = "hunter2"
SESSION = f"alice:{SECRET}"
NOBODY = "The session is empty, and nobody is identified by "


@pytest.fixture(autouse=True)
def log():
    """Capture what is logged, and find no secret in it at the end."""
    with capturedLogs() as events:
        yield events
    assert not [event for event in events if SECRET in eventAsText(event) or SECRET in repr(event)]


def lines(events):
    return [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in events]


class MemoryDoor:
    """A door for the header X-<its name>: the user's name and a password, which is right or not."""

    def __init__(self, name, *, needs_tls=False, vm_id=None, waiting=None):
        self.name = name
        self.needs_tls = needs_tls
        self.vm_id = vm_id
        self.waiting = waiting
        self.proved = []

    def claim(self, request):
        value = request.header(f"X-{self.name}")
        if value is None:
            return None
        user, colon, password = value.partition(":")
        if not colon:
            raise CredentialError("it has no colon")
        return Claim(user, lambda: self.prove(user, password))

    async def prove(self, user, password):
        self.proved.append(user)
        if self.waiting is not None:
            await self.waiting
        if password == "oned is down":
            raise OnedError(password)
        if password != SECRET:
            raise CredentialError("the password is wrong")
        return Identity(user, f"serveradmin:{user}:{SECRET}", self.vm_id)


def admitted(doors, headers, session="", more=None, **settings):
    return result_of(entrance(*doors, **settings).admit(session, http_request(headers=headers, **more or {})))


def refusal(*args, **settings):
    with pytest.raises(AuthenticationError) as caught:
        admitted(*args, **settings)
    return str(caught.value)


# Session strings


def test_a_session_string_is_handed_on_as_it_is_and_no_door_is_asked():
    door = MemoryDoor("basic")
    caller = admitted([door], {"X-basic": f"bob:{SECRET}"}, SESSION)
    assert caller == Caller(OPENNEBULA, "alice", SESSION, CLIENT, request=REQUEST)
    assert SECRET not in repr(caller)
    assert door.proved == []


def test_without_doors_an_empty_session_is_an_argument_that_is_wrong():
    with pytest.raises(ApiError, match="Argument 1, the session, must be a non-empty string, but is an empty string"):
        admitted([], {})


def test_where_session_strings_are_not_taken_they_are_refused_and_the_doors_named():
    doors = [MemoryDoor("basic"), MemoryDoor("x509")]
    assert refusal(doors, {}, SESSION, sessions=False) == (
        "Session strings are not taken here (:auth:); leave the session empty, and identify yourself by basic, x509"
    )
    assert admitted(doors, {"X-x509": f"bob:{SECRET}"}, sessions=False).user == "bob"


# Doors


def test_the_doors_are_asked_in_their_order_and_the_first_that_knows_the_caller_says_who_it_is():
    doors = [MemoryDoor("a"), MemoryDoor("b"), MemoryDoor("c")]
    caller = admitted(doors, {"X-b": f"bob:{SECRET}", "X-c": f"carol:{SECRET}"})
    assert caller == Caller("b", "bob", f"serveradmin:bob:{SECRET}", CLIENT, request=REQUEST)
    assert [door.proved for door in doors] == [[], ["bob"], []]


def test_a_door_that_refuses_leaves_it_to_the_next_one(log):
    doors = [MemoryDoor("a"), MemoryDoor("b"), MemoryDoor("c")]
    assert admitted(doors, {"X-a": f"{SECRET}", "X-b": "bob:wrong", "X-c": f"carol:{SECRET}"}).user == "carol"
    assert lines(log) == [
        f"{CLIENT} is not let in by a as -: it has no colon",
        f"{CLIENT} is not let in by b as bob: the password is wrong",
    ]


@pytest.mark.parametrize("headers", [{}, {"X-a": "no"}, {"X-a": "alice:wrong"}, {"X-a": "nobody:wrong"}])
def test_whoever_is_not_identified_is_told_the_same_whatever_was_wrong(headers):
    assert refusal([MemoryDoor("a"), MemoryDoor("b")], headers) == NOBODY + "a, b"


def test_a_door_that_cannot_ask_oned_does_not_say_that_the_caller_is_wrong():
    with pytest.raises(OnedError):
        admitted([MemoryDoor("a")], {"X-a": "alice:oned is down"})


def test_a_vms_own_door_says_which_vm_it_is():
    assert admitted([MemoryDoor("onegate", vm_id=7)], {"X-onegate": f"alice:{SECRET}"}).vm_id == 7


def test_a_name_that_somebody_claims_cannot_forge_a_line_of_the_log(log):
    refusal([MemoryDoor("a")], {"X-a": f"x\u2028192.0.2.1 forged {'y' * 200}:wrong"})
    (line,) = lines(log)
    assert line.startswith(f"{CLIENT} is not let in by a as x?192.0.2.1?forged?yyy")
    assert len(line) < 200


# TLS, and headers of proxies


def test_a_door_that_needs_tls_refuses_what_came_without_and_proves_nothing():
    door = MemoryDoor("basic", needs_tls=True)
    headers = {"X-basic": f"alice:{SECRET}"}
    assert refusal([door], headers) == (
        "The door basic is for requests over TLS that come through a proxy in :trusted_proxies:; this one did not: call"
        " the https address"
    )
    assert refusal([door], headers, more={"trusted": True}).startswith("The door basic is for requests over TLS")
    assert door.proved == []
    assert admitted([door], headers, more={"trusted": True, "secure": True}).user == "alice"
    assert refusal([door], {}) == NOBODY + "basic"


@pytest.mark.parametrize("name", ASSERTIONS)
@pytest.mark.parametrize(("session", "strict"), [("", True), ("", False), (SESSION, True)])
def test_a_header_that_only_a_proxy_may_send_is_refused_from_anybody_else_and_logged(log, name, session, strict):
    door = MemoryDoor("a")
    told = refusal([door], {"X-a": f"alice:{SECRET}"}, session, {"presumed": (name,)}, strict=strict)
    assert told == (
        f"This request has the header {name}, which counts only from a proxy in :trusted_proxies:, and did not come"
        " from one"
    )
    assert door.proved == []
    assert lines(log) == [f"{CLIENT} sent {name}, which only one of :trusted_proxies: may"]


def test_where_no_proxy_is_trusted_such_a_header_changes_nothing_about_a_session_string(log):
    assert admitted([], {}, SESSION, {"presumed": ("X-Forwarded-For",)}).session == SESSION
    assert log == []


# Browsers


@pytest.mark.parametrize("origin", ["https://evil.example.org", "null", "https://cloud.example.org.evil.example", ""])
def test_a_page_of_another_site_cannot_call_with_what_the_browser_adds_by_itself(origin):
    door = MemoryDoor("basic")
    headers = {"X-basic": f"alice:{SECRET}", "Host": "cloud.example.org", "Origin": origin}
    assert refusal([door], headers).startswith("A page of another site sent this request")
    assert door.proved == []
    # What a page has to know by itself is its own affair.
    assert admitted([door], headers, SESSION).door == OPENNEBULA


@pytest.mark.parametrize("origin", ["https://cloud.example.org", "HTTPS://Cloud.example.org"])
def test_a_page_of_this_site_and_a_program_can(origin):
    headers = {"X-basic": f"alice:{SECRET}", "Host": "cloud.example.org"}
    for more in ({}, {"Origin": origin}):
        assert admitted([MemoryDoor("basic")], headers | more).user == "alice"


# Guessing


def test_guesses_at_a_door_are_counted_for_the_address_and_for_the_account_and_then_nobody_is_asked():
    door, clock = MemoryDoor("a"), Clock()
    doors = Entrance([door], Guessing(clock, 3, 60))

    def asked(header, client):
        return result_of(doors.admit("", http_request(headers={"X-a": header}, client=client)))

    for number in range(3):
        with pytest.raises(AuthenticationError, match=NOBODY):
            asked(f"alice:{number}", "192.0.2.1")
    for header, client in ((f"bob:{SECRET}", "192.0.2.1"), (f"alice:{SECRET}", "192.0.2.2")):
        with pytest.raises(AuthenticationError, match=r"Too many failed attempts .* try again in 20 seconds"):
            asked(header, client)
    assert door.proved == ["alice"] * 3
    assert asked(f"bob:{SECRET}", "192.0.2.2").user == "bob"
    clock.advance(20)
    assert asked(f"alice:{SECRET}", "192.0.2.1").user == "alice"


# One request with many calls


def test_the_caller_of_a_request_is_identified_once_however_many_calls_it_holds():
    door = MemoryDoor("a", waiting=Deferred())
    visit = Visit(entrance(door), http_request(headers={"X-a": f"alice:{SECRET}"}))
    asked = [Deferred.fromCoroutine(visit.caller("")) for _ in range(5)]
    assert [one.called for one in asked] == [False] * 5
    door.waiting.callback(None)
    assert [result_of(one).user for one in asked] == ["alice"] * 5
    assert door.proved == ["alice"]


def test_a_request_that_is_refused_costs_one_failure_however_many_calls_it_holds(log):
    visit = Visit(entrance(MemoryDoor("a")), http_request(headers={"X-a": "alice:wrong"}))
    for _ in range(50):
        with pytest.raises(AuthenticationError, match=NOBODY):
            result_of(visit.caller(""))
    assert len(log) == 1


def test_each_session_string_of_a_request_is_its_own():
    visit = Visit(entrance(), http_request())
    assert [result_of(visit.caller(f"{name}:x")).user for name in ("alice", "bob")] == ["alice", "bob"]


def test_a_call_that_is_given_up_while_its_caller_is_identified_leaves_the_others_to_it():
    door = MemoryDoor("a", waiting=Deferred())
    visit = Visit(entrance(door), http_request(headers={"X-a": f"alice:{SECRET}"}))
    first, second = (Deferred.fromCoroutine(visit.caller("")) for _ in range(2))
    first.addErrback(lambda failure: failure.trap(CancelledError))
    door.waiting, before = None, door.waiting
    before.addErrback(lambda failure: failure.raiseException())
    first.cancel()
    assert result_of(second).user == "alice"


# What doors see of a request


def test_of_several_headers_of_one_name_nobody_knows_the_right_one():
    request = http_request()
    for value in (b"a", b"b"):
        request.headers.addRawHeader(b"X-Auth-Username", value)
    with pytest.raises(CredentialError, match="there are several headers X-Auth-Username"):
        request.header("X-Auth-Username")


def test_a_header_that_is_not_utf_8_is_refused():
    with pytest.raises(CredentialError, match="the header X-A is not UTF-8"):
        http_request(headers={"X-A": b"\xff"}).header("X-A")


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, None),
        ({"REMOTE_USER": ""}, None),
        ({"REMOTE_USER": "(null)"}, None),
        ({"REMOTE_USER": "remy"}, "remy"),
        ({"REMOTE_USER": "remy", "X-Auth-Username": ""}, "remy"),
        ({"REMOTE_USER": "remy", "X-Auth-Username": "remy"}, "remy"),
    ],
)
def test_what_a_trusted_proxy_says_counts_and_what_anybody_else_says_does_not(headers, said):
    assert http_request(headers=headers, trusted=True).asserted("REMOTE_USER", "X-Auth-Username") == said
    assert http_request(headers=headers).asserted("REMOTE_USER", "X-Auth-Username") is None


def test_two_headers_that_contradict_each_other_are_refused():
    request = http_request(headers={"REMOTE_USER": "remy", "X-Auth-Username": "root"}, trusted=True)
    with pytest.raises(CredentialError, match="the headers REMOTE_USER and X-Auth-Username differ"):
        request.asserted("REMOTE_USER", "X-Auth-Username")


def test_nothing_that_could_be_a_credential_is_in_the_repr_of_a_request():
    request = http_request(SECRET.encode(), {"Authorization": SECRET}, uri=b"/RPC2?Signature=" + SECRET.encode())
    assert SECRET not in repr(request)


@given(st.text())
def test_of_a_session_string_without_a_colon_nothing_is_shown(session):
    assert user_name(session.replace(":", "")) == ""
