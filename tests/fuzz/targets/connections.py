"""HTTP: whatever comes on a connection, there and at the resolver's."""

from __future__ import annotations

import json
import re

from memory import MemoryStore
from outcomes import result_of
from test_web import LIMIT, Wire, World, request
from twisted.internet.task import Clock

from fuzz.target import Target, quiet_log
from fuzz.targets.documents import CALLS
from vnctoken.httpconnection import REQUEST_SECONDS
from vnctoken.resolver import Resolver
from vnctoken.tokens import Grant
from vnctoken.web import ResolverSite

_ANSWER = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")
_LENGTH = re.compile(rb"(?im)^Content-Length: *([0-9]+)\r\n")
_DATE = re.compile(rb"(?im)^Date: [^\r\n]*\r\n")

_LATE = re.compile(rb"HTTP/1.1 408 [^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n.*\Z", re.DOTALL)


def _answers(received):
    """Return the answers' status and body. Raises AssertionError for what is no row of answers."""
    found = []
    while received:
        head = _ANSWER.match(received)
        assert head, f"this is no HTTP: {received[:200]!r}"
        length = _LENGTH.search(head[2])
        received = received[head.end() :]
        size = int(length[1]) if length and not received.startswith(b"HTTP/1.") else 0
        found.append((int(head[1]), received[:size]))
        assert len(received) >= size or not received
        received = received[size:]
    return found


def _said(site, clock, pieces):
    """Return what a client is answered, on a connection that has ended in time."""
    wire = Wire()
    wire.channel = site.buildProtocol(None)
    wire.channel.makeConnection(wire)
    with quiet_log():
        for piece in pieces:
            if wire.disconnecting:
                break
            wire.channel.dataReceived(piece)
        for _ in range(4):
            clock.advance(REQUEST_SECONDS)
        assert wire.disconnecting, "the connection stays open"
        wire.end()
    return _DATE.sub(b"", wire.value())


def _http(data):
    at_once, bit_by_bit = World(), World()
    said = _said(at_once.site, at_once.clock, [data])
    assert b"internal error" not in said
    _answers(said)
    size = 1 if len(data) <= LIMIT else 997
    again = _said(bit_by_bit.site, bit_by_bit.clock, [data[at : at + size] for at in range(0, len(data), size)])
    # A line that was begun behind the last request, and not ended, may cost a word when it has waited too long.
    assert _LATE.sub(b"", again) == _LATE.sub(b"", said), f"in pieces of {size}: {again!r} and not {said!r}"


def _resolver(data):
    clock, store = Clock(), MemoryStore()
    token = result_of(store.issue(Grant(7, "h", 5900, 0, 600, "alice")))
    bound = result_of(store.issue(Grant(7, "h", 5900, 0, 600, "alice", client="192.0.2.7")))
    site = ResolverSite(Resolver(store, clock.seconds, reuse_window=5, verify=None), clock, max_connections=9)
    sent = data.replace(b"@TOKEN", token.encode()).replace(b"@BOUND", bound.encode())
    for status, body in _answers(_said(site, clock, [sent])):
        assert status in (100, 200, 400, 403, 404, 405, 408, 411, 413, 417, 501)
        if status == 200 and body:
            assert json.loads(body) in ({}, {"host": "h", "port": 5900})


def _asked(path, **fields):
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        *(f"{name.replace('_', '-')}: {text}" for name, text in fields.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


WORDS = (
    *(
        b"\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\n",
        b"Expect: 100-continue\r\n",
        b"HTTP/1.0",
    ),
    *(
        b"Connection: close\r\n",
        b"Connection: upgrade\r\n",
        b"0\r\n\r\n",
        b"5;x=y\r\nhello\r\n",
        b"ffffffff\r\n",
        b"HTTP/2",
    ),
    *(b"HEAD", b"OPTIONS", b"CONNECT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"http://h:80/RPC2", b"/RPC2"),
)
REQUESTS = (
    request(CALLS[0]),
    request(b"hello") + request(b"again"),
    request(None, verb=b"GET"),
    request(None, fields=[b"Transfer-Encoding: chunked"]) + b"5\r\nhello\r\n0\r\n\r\n",
    request(b"hello", fields=[b"Expect: 100-continue", b"Connection: close"], version=b"1.0"),
    request(b"x" * (LIMIT + 1)),
)

TARGETS = (
    Target("http", _http, REQUESTS, WORDS),
    Target(
        "resolver",
        _resolver,
        (_asked("/token/@TOKEN"), _asked("/token/@BOUND", X_Real_IP="192.0.2.7") + _asked("/token/@BOUND")),
        (*WORDS, b"/token/", b"X-Real-IP: 192.0.2.7\r\n", b"%2e%2e/"),
    ),
)
