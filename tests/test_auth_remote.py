"""The door `remote`: users whom a proxy has logged in, by Kerberos or SAML."""

from __future__ import annotations

from contextlib import suppress

import pytest
from callers import http_request
from hypothesis import example, given
from hypothesis import strategies as st
from outcomes import result_of
from twisted.web.http_headers import Headers

from vnctoken.auth import CredentialError, HttpRequest
from vnctoken.auth.remote import RemoteDoor
from vnctoken.auth.users import Users
from vnctoken.errors import AuthenticationError, OnedError
from vnctoken.user import User


def user(name, remote_name, driver="public", *, enabled=True):
    return User(20, name, driver, enabled, "users", frozenset({1}), remote_name, "")


REMY, ZOE = user("remy", "remy@EXAMPLE.ORG"), user("zoe", "zoë@example.org")


def door(*users, session=lambda name: f"serveradmin:{name}:login"):
    async def pool():
        return Users(users or (REMY, ZOE))

    return RemoteDoor(users=pool, session=session)


def sent(*values, trusted=True, header="REMOTE_USER"):
    named = Headers({header: values} if values else {})
    return HttpRequest(b"POST", b"/RPC2", named, b"", "192.0.2.7", trusted=trusted, secure=True)


def identity(value, *users, **more):
    return result_of(door(*users, **more).claim(sent(value)).prove())


def refusal(value, *users, **more):
    with pytest.raises(CredentialError) as caught:
        identity(value, *users, **more)
    return str(caught.value)


@pytest.mark.parametrize("header", ["REMOTE_USER", "X-Auth-Username", "x-auth-username"])
def test_a_user_gets_in_under_the_name_that_the_proxy_gives_him(header):
    claim = door().claim(sent("remy@EXAMPLE.ORG", header=header))
    assert claim.account == "remy@EXAMPLE.ORG"
    found = result_of(claim.prove())
    assert (found.user, found.session, found.vm_id) == ("remy", "serveradmin:remy:login", None)


@pytest.mark.parametrize(
    "name", ["zoë@example.org", "HTTP/www.example.org@EXAMPLE.ORG", "EXAMPLE\\remy", "a b", "x!y!z"]
)
def test_names_of_all_kinds_are_taken_as_they_are(name):
    assert identity(name.encode(), user("somebody", name)).user == "somebody"


@pytest.mark.parametrize("values", [(), ("",), ("(null)",)])
def test_without_a_name_other_doors_are_left_to_it(values):
    assert door().claim(sent(*values)) is None


def test_a_name_that_no_trusted_proxy_gives_says_nothing():
    for header in ("REMOTE_USER", "X-Auth-Username"):
        assert door().claim(sent("remy@EXAMPLE.ORG", header=header, trusted=False)) is None


def test_the_door_is_for_tls_only():
    assert (RemoteDoor.name, RemoteDoor.needs_tls) == ("remote", True)


@pytest.mark.parametrize("name", ["nobody", "remy", "remy@example.org", "remy@EXAMPLE.ORG/x", "emy@EXAMPLE.ORG"])
def test_a_name_that_is_nobodys_or_only_similar_is_refused(name):
    assert refusal(name) == "no user of the driver public has this name"


def test_a_disabled_user_one_of_another_driver_and_a_name_of_two_users_are_refused_alike():
    name = "remy@EXAMPLE.ORG"
    others = [user("remy", name, enabled=False)], [user("remy", name, "core")], [REMY, user("other", name)]
    assert {refusal(name, *users) for users in others} == {"no user of the driver public has this name"}


def test_a_user_whose_name_cannot_stand_in_a_session_is_refused():
    def session(name):
        raise AuthenticationError("no such session")

    assert "his name cannot stand in a session string" in refusal("remy@EXAMPLE.ORG", session=session)


def test_an_oned_that_is_down_is_no_wrong_name():
    async def pool():
        raise OnedError("oned is down")

    claim = RemoteDoor(users=pool, session=str).claim(sent("remy@EXAMPLE.ORG"))
    with pytest.raises(OnedError):
        result_of(claim.prove())


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"r" * 1025, "longer"),
        (b"remy\xff@EXAMPLE.ORG", "UTF-8"),
        (b"remy\x00@EXAMPLE.ORG", "control"),
        (b"remy\t@EXAMPLE.ORG", "control"),
        ("remy\u202e@EXAMPLE.ORG".encode(), "control"),
        ("remy\x85@EXAMPLE.ORG".encode(), "control"),
    ],
)
def test_oversized_and_unreadable_names_are_refused_without_being_repeated(value, reason):
    with pytest.raises(CredentialError, match=reason) as caught:
        door().claim(sent(value))
    assert "EXAMPLE" not in str(caught.value)


def test_headers_that_say_two_things_are_refused():
    with pytest.raises(CredentialError):
        door().claim(sent("remy@EXAMPLE.ORG", "zoë@example.org"))
    both = {"REMOTE_USER": "remy@EXAMPLE.ORG", "X-Auth-Username": "zoë@example.org"}
    with pytest.raises(CredentialError):
        door().claim(http_request(headers=both, trusted=True))


@given(st.one_of(st.binary(max_size=50), st.text(max_size=50).map(str.encode)))
@example(b"\xff")
@example(b"(null)")
def test_nobody_gets_in_but_who_has_the_name(value):
    with suppress(CredentialError):
        claim = door().claim(sent(value))
        if claim is not None:
            assert (claim.account, result_of(claim.prove()).user) == ("remy@EXAMPLE.ORG", "remy")
