"""A console through the real websockify, as it is from PyPI and Debian, and as our own command runs it."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import time
import xmlrpc.client

import pytest
from conftest import START_SECONDS, free_port, program, running, vnctoken_server
from webservers import until
from wsclient import GREETING, HandshakeRefusedError, WebSocket, screen

# An oned whose one VM is here: what its console says, we can answer.
HOME = """
import sys
from twisted.internet import reactor
from vnctoken.sandbox.behaviour import Behaviour
from vnctoken.sandbox.cloud import ALICE, Cloud, Guest, Stay
from vnctoken.sandbox.oned import OnedFactory

guest = Guest(7, "at-home", ALICE, {"TYPE": "VNC", "PORT": sys.argv[1]}, stays=(Stay("127.0.0.1"),))
oned = OnedFactory(Cloud([ALICE], [guest]), reactor, Behaviour(), {})
port = reactor.listenTCP(0, oned, interface="127.0.0.1")
print(f"oned listens on http://127.0.0.1:{port.getHost().port}/RPC2", flush=True)
reactor.run()
"""


class Consoles:
    """A service in front of the VM, and a proxy that reads its tokens."""

    def __init__(self, service, proxy, proxy_port, vnc_port):
        self.service = service
        self.proxy = proxy
        self.vnc_port = vnc_port
        self._proxy_port = proxy_port

    def call(self, method, *arguments):
        with xmlrpc.client.ServerProxy(self.service.url) as server:
            ok, result, _ = getattr(server.one.vm, method)("alice:secret", 7, *arguments)
        assert ok, result
        return result

    def viewer(self, token):
        """Return a console that was opened with a token; raises HandshakeRefusedError."""
        connection = socket.create_connection(("127.0.0.1", self._proxy_port), timeout=START_SECONDS)
        viewer = WebSocket.connect(connection, f"/websockify?token={token}")
        assert viewer.receive_exactly(len(GREETING)) == GREETING
        return contextlib.closing(viewer)

    def refuses(self, token):
        """Whether nobody gets a console for a token."""
        try:
            with self.viewer(token):
                return False
        except HandshakeRefusedError:
            return True


def goes_on(viewer):
    """Whether a console is still a console."""
    viewer.send(b"a key pressed")
    return viewer.receive_exactly(13) == b"a key pressed"


@pytest.fixture(scope="module", params=["websockify from PyPI", "websockify from Debian", "vnctoken-websockify"])
def consoles(request, tmp_path_factory):
    command = {
        "websockify from PyPI": (sys.executable, "-m", "websockify"),
        "websockify from Debian": ("/usr/bin/websockify",),
        "vnctoken-websockify": (sys.executable, "-m", "vnctoken.proxy"),
    }[request.param]
    program(command[0])
    with contextlib.ExitStack() as stack:
        vnc_port = stack.enter_context(screen())
        oned = stack.enter_context(running(sys.executable, "-c", HOME, vnc_port, ready="listens on"))
        oned_url = oned.wait_for(r"listens on (http://\S+)").group(1)
        service = stack.enter_context(vnctoken_server(tmp_path_factory.mktemp("one"), oned_url))
        port = free_port()
        options = ("--token-plugin", "TokenFile", "--token-source", service.tokens, f"127.0.0.1:{port}")
        proxy = stack.enter_context(running(*command, *options, ready="proxying from"))
        yield Consoles(service, proxy, port, vnc_port)


def test_a_token_opens_the_console_and_nothing_else_does(consoles, request):
    console = consoles.call("vnctoken")
    assert (console["Host"], console["Port"]) == ("127.0.0.1", consoles.vnc_port)
    token = console["Token"]
    with consoles.viewer(token) as opened:
        assert goes_on(opened)
    for wrong in ("", "0" * len(token), token[:-1]):
        assert consoles.refuses(wrong)
    if "vnctoken-websockify" in request.node.callspec.id:
        # From its issue to its use: the same name in both logs, and the token in none.
        log = consoles.service.log.read_text()
        (named,) = re.findall(r" one\.vm\.vnctoken vm=7 .* (token=[0-9a-f]{8})$", log, re.MULTILINE)
        consoles.proxy.wait_for(rf"Path: '/websockify\?{named}'$")
        assert token not in consoles.proxy.output + log


def test_several_viewers_have_consoles_and_an_expired_or_revoked_token_opens_no_more_of_them(consoles):
    long, revoked = consoles.call("vnctokenonly"), consoles.call("vnctokenonly")
    expiring = consoles.call("vnctokenonly", {"ttl": 2})
    issued = time.monotonic()
    with consoles.viewer(long) as first, consoles.viewer(revoked) as second, consoles.viewer(expiring) as third:
        assert consoles.call("vncrevoke", revoked) == 1
        assert consoles.refuses(revoked)
        until(lambda: consoles.refuses(expiring))
        assert time.monotonic() - issued > 1.9
        assert all(map(goes_on, (first, second, third)))
    with consoles.viewer(long) as again:
        assert goes_on(again)
