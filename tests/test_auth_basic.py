"""The door `basic`: a user and a password in HTTP, judged by oned."""

from __future__ import annotations

import base64
import subprocess
from contextlib import suppress

import pytest
from callers import http_request
from conftest import program
from hypothesis import example, given
from hypothesis import strategies as st
from outcomes import result_of
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers

from vnctoken.auth import CredentialError, HttpRequest
from vnctoken.auth.basic import BasicDoor
from vnctoken.auth.server_cipher import server_session
from vnctoken.errors import OnedError
from vnctoken.oned import Oned
from vnctoken.sandbox.accounts import Group, User
from vnctoken.sandbox.calls import decode_call
from vnctoken.sandbox.cloud import Cloud, demo_cloud
from vnctoken.sandbox.oned import Oned as SandboxOned

NOW = 1_700_000_000
SERVER_PASSWORD = "serveradmin-secret-for-tests"


class Cable:
    """A transport to an oned of the sandbox, that writes down the sessions it is asked with."""

    def __init__(self, cloud):
        clock = Clock()
        clock.advance(NOW)
        self._oned = SandboxOned(cloud, clock)
        self.sessions = []

    async def post(self, body):
        call = decode_call(body)
        self.sessions.append(call.string(0))
        return self._oned.answer(call).body


class Broken:
    """A transport to an oned that is down."""

    async def post(self, body):
        raise OnedError("oned is down")


class Entry:
    """The door in front of an oned of the sandbox."""

    def __init__(self, *users, transport=None):
        self.cable = transport or Cable(Cloud(users, ()) if users else demo_cloud())
        self._door = BasicDoor(Oned(self.cable, Clock(), timeout=1, connections=1))

    def claim(self, authorization):
        return self._door.claim(http_request(headers={"Authorization": authorization}))

    def identity(self, user, password):
        return result_of(self.claim(basic(user, password)).prove())

    def refusal(self, user, password):
        with pytest.raises(CredentialError) as caught:
            self.identity(user, password)
        return str(caught.value)


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def account(name, password):
    return User(20, name, password, Group(1, "users"))


def unreadable(authorization):
    """Return what is wrong with a header; nobody has been asked then."""
    entry = Entry()
    with pytest.raises(CredentialError) as caught:
        entry.claim(authorization)
    assert not entry.cable.sessions
    return str(caught.value)


def test_a_user_gets_in_with_his_password_and_is_known_to_oned_by_it():
    entry = Entry()
    claim = entry.claim(basic("alice", "secret"))
    assert claim.account == "alice"
    assert not entry.cable.sessions
    identity = result_of(claim.prove())
    assert (identity.user, identity.session, identity.vm_id) == ("alice", "alice:secret", None)
    assert entry.cable.sessions == ["alice:secret"]


def test_a_password_may_hold_colons():
    assert Entry().identity("eve", "with:colons:in:it").session == "eve:with:colons:in:it"


def test_a_login_token_stands_for_the_password_until_it_expires():
    good = "9c1d7be6a2f05c8e3b40d7a916f2c5e88ab3d4f1e0697c2b5d8a3f6e4b1c0d97"
    expired = "1f1b0cd5a4a4fcd1d6a0b8f7d0d1a4b0c5a3e6ef2ca0a2c1b1a7d4b8c9e0f132"
    assert Entry().identity("carol", good).user == "carol"
    assert Entry().refusal("carol", expired)


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC", "bAsIc"])
def test_the_scheme_is_written_in_any_case(scheme):
    authorization = basic("alice", "secret").replace("Basic", scheme)
    assert result_of(Entry().claim(authorization).prove()).user == "alice"


def test_more_than_one_space_may_follow_the_scheme():
    authorization = basic("alice", "secret").replace(" ", "   ")
    assert result_of(Entry().claim(authorization).prove()).user == "alice"


@pytest.mark.parametrize(
    "authorization",
    ["", "AWS4-HMAC-SHA256 Credential=alice/20261118/eu/x", "Bearer YWxpY2U6c2VjcmV0", "Basically YWxpY2U6c2VjcmV0"],
)
def test_what_is_meant_for_another_door_is_left_to_it(authorization):
    assert Entry().claim(authorization) is None


def test_a_request_without_the_header_is_left_to_other_doors():
    assert BasicDoor(Oned(Broken(), Clock(), timeout=1, connections=1)).claim(http_request()) is None


def test_the_door_is_for_tls_only():
    assert (BasicDoor.name, BasicDoor.needs_tls) == ("basic", True)


# Who does not get in.


def test_a_wrong_password_an_unknown_user_and_a_disabled_one_are_told_and_asked_about_alike():
    entry = Entry()
    texts = {
        entry.refusal("alice", "wrong"),
        entry.refusal("nobody", "wrong"),
        entry.refusal("dave", "secret"),
        entry.refusal("xenia", "secret"),
    }
    assert texts == {"oned knows no such user and password"}
    assert entry.cable.sessions == ["alice:wrong", "nobody:wrong", "dave:secret", "xenia:secret"]


@pytest.mark.parametrize(("user", "password"), [("", "secret"), ("alice", ""), ("", "")])
def test_without_a_user_or_a_password_oned_is_not_asked(user, password):
    assert "missing" in unreadable(basic(user, password))


@pytest.mark.parametrize("character", "\x00\t\n\r\x1f\x7f\x85\ufffe\uffff")
def test_control_characters_never_get_to_oned(character):
    assert "control" in unreadable(basic(f"ali{character}ce", "secret"))
    assert "control" in unreadable(basic("alice", f"sec{character}ret"))


@pytest.mark.parametrize(
    "credentials",
    [
        "",
        "YWxpY2U6c2VjcmV",
        "YWxp Y2U6c2VjcmV0",
        "!!!!",
        "alice:secret",
        "YWxpY2U6ä",
        base64.b64encode(b"alice").decode(),
        base64.b64encode(b"al\xefce:secret").decode(),
        base64.b64encode("alice:secret".encode("utf-16")).decode(),
    ],
)
def test_what_is_no_user_and_password_is_refused_without_being_repeated(credentials):
    reason = unreadable(f"Basic {credentials}")
    assert "alice" not in reason
    assert "YWxp" not in reason


def test_oversized_credentials_are_refused():
    assert "longer" in unreadable(basic("alice", "s" * 4000))


def test_two_such_headers_are_refused_even_if_one_is_right():
    headers = Headers({"Authorization": [basic("alice", "secret"), basic("bob", "secret")]})
    with pytest.raises(CredentialError, match="several"):
        BasicDoor(Oned(Broken(), Clock(), timeout=1, connections=1)).claim(
            HttpRequest(b"POST", b"/RPC2", headers, b"", "192.0.2.7")
        )


def test_an_oned_that_is_down_is_no_wrong_password():
    with pytest.raises(OnedError):
        Entry(transport=Broken()).identity("alice", "secret")


def test_the_password_is_in_no_representation():
    claim = Entry().claim(basic("alice", "secret"))
    assert "secret" not in repr(claim) + repr(result_of(claim.prove()))


# A server's login is as good as everybody's password.


@pytest.mark.parametrize("target", ["alice", "oneadmin", "serveradmin"])
def test_a_servers_login_is_not_taken_though_oned_would(target):
    session = server_session("serveradmin", SERVER_PASSWORD, target, NOW + 1800)
    entry = Entry()
    assert "server" in entry.refusal(*session.split(":", 1))
    assert entry.cable.sessions == [session]


def test_a_server_does_not_get_in_with_its_password_either():
    assert Entry().refusal("serveradmin", SERVER_PASSWORD)


def test_a_password_may_begin_as_a_servers_login_does():
    assert Entry(account("alice", "alice:x")).identity("alice", "alice:x").user == "alice"


# Percent-encoded, as OpenNebula's own servers try it: users of LDAP have names and passwords that oned rejects.


@pytest.mark.parametrize(
    ("user", "password", "encoded"),
    [
        ("jürgen", "geheim", "j%C3%BCrgen:geheim"),
        ("alice", "a|b<c>d^e`f{g}h\\i", "alice:a%7Cb%3Cc%3Ed%5Ee%60f%7Bg%7Dh%5Ci"),
        ("alice", "100%", "alice:100%25"),
        ("DOM\\alice", "東京", "DOM%5Calice:%E6%9D%B1%E4%BA%AC"),
    ],
)
def test_a_user_whom_oned_knows_percent_encoded_gets_in_at_the_second_attempt(user, password, encoded):
    entry = Entry(account(*encoded.split(":")))
    identity = entry.identity(user, password)
    assert (identity.user, identity.session) == (encoded.partition(":")[0], encoded)
    assert entry.cable.sessions == [f"{user}:{password}", encoded]


@pytest.mark.parametrize(
    ("user", "password", "encoded"),
    [("alice smith", "secret", "alice%20smith:secret"), ("alice", "my secret", "alice:my%20secret")],
)
def test_what_holds_a_space_is_asked_for_encoded_only_since_oned_rejects_it(user, password, encoded):
    entry = Entry(account(*encoded.split(":")))
    assert entry.identity(user, password).session == encoded
    assert entry.cable.sessions == [encoded]


def test_the_second_attempt_is_made_only_where_it_says_something_else():
    entry = Entry()
    entry.refusal("alice@EXAMPLE.ORG", "!$&'()*+,-./:;=?@[]_~")
    assert len(entry.cable.sessions) == 1
    entry.refusal("alice", "ä")
    assert entry.cable.sessions[1:] == ["alice:ä", "alice:%C3%A4"]


ESCAPE = "STDIN.set_encoding('UTF-8'); print URI::DEFAULT_PARSER.escape(STDIN.read)"


def test_the_encoding_is_rubys():
    """It is what `oneuser encode` and OpenNebula's servers call."""
    printable = [chr(code) for code in (*range(0x21, 0x7F), *range(0xA1, 0x180), 0x20AC, 0x6771, 0x1F600)]
    password = "".join(printable)
    ruby = subprocess.run(
        (program("ruby"), "-ruri", "-e", ESCAPE), input=password.encode(), stdout=subprocess.PIPE, check=True
    )
    entry = Entry()
    entry.refusal("alice", password)
    assert entry.cable.sessions == [f"alice:{password}", f"alice:{ruby.stdout.decode()}"]


# Whatever is sent.


@given(st.binary(max_size=200))
@example(b"Basic \xff")
@example(b"basic ====")
@example(b"Basic " + base64.b64encode(b"a:\xed\xa0\x80"))
def test_any_header_is_read_or_refused(value):
    for header in (value, b"Basic " + value, b"Basic " + base64.b64encode(value)):
        with suppress(CredentialError):
            claim = Entry().claim(header)
            assert claim is None or (claim.account and ":" not in claim.account)


@given(st.text(), st.text())
def test_nobody_gets_in_but_who_oned_knows(user, password):
    entry = Entry(account("alice", "right"))
    try:
        identity = entry.identity(user, password)
    except CredentialError:
        return
    assert (identity.user, identity.session) == (user, f"{user}:{password}") == ("alice", "alice:right")
