"""Callers, and how they get in, for tests without HTTP."""

from memory import MemoryStore
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers

from vnctoken.auth import OPENNEBULA, Caller, HttpRequest
from vnctoken.auth.admission import Admission, GroupRules
from vnctoken.auth.entrance import Entrance, user_name
from vnctoken.auth.guessing import Guessing
from vnctoken.limits import LimitRules, Limits
from vnctoken.tokens.register import Register

CLIENT = "192.0.2.7"
REQUEST = "5eedbead0123"


def caller(session, client=CLIENT):
    """Return whoever has given a session string."""
    return Caller(OPENNEBULA, user_name(session), session, client)


def limits(**rules):
    """Return limits, none but those that are given."""
    return Limits(LimitRules(**rules), Register(), MemoryStore(), Clock(), lambda: 0)


def admission(oned, within=None, **groups):
    """Return what asks an oned as callers, 10 of whom may be wrong in a minute, `within` limits if there are any."""
    rules = GroupRules(oned, **{"restricted": (), "allowed": ()} | groups)
    return Admission(oned, Guessing(Clock(), 10, 60), rules, within or limits())


def entrance(*doors, **more):
    """Return what asks some doors."""
    return Entrance(doors, Guessing(Clock(), 10, 60), **more)


def http_request(body=b"", headers=None, client=CLIENT, method=b"POST", uri=b"/RPC2", **more):
    """Return a request; `headers` are names and values in text."""
    named = Headers()
    for name, value in (headers or {}).items():
        named.addRawHeader(name.encode(), value if isinstance(value, bytes) else value.encode())
    return HttpRequest(method, uri, named, body, client, **{"id": REQUEST} | more)
