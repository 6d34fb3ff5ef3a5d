"""What readers of the token folder see: websockify as it is today, and one with the rules of OpenNebula's copy."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import xmlrpc.client
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from conftest import START_SECONDS, free_port, running, vnctoken_server
from webservers import until
from wsclient import GREETING, HandshakeRefusedError, WebSocket, screen

READER = """
import json, logging, os, sys, threading

def older(folder):
    # OpenNebula's copy: every name is opened, every line is split, nothing is checked.
    def lookup(token):
        targets = {}
        for name in os.listdir(folder):
            with open(os.path.join(folder, name)) as file:
                for line in (line.strip() for line in file.readlines()):
                    if not line.startswith("#"):
                        known, target = line.split(": ")
                        targets[known] = target.rsplit(":", 1)
        return targets.get(token)
    return lookup

def newer(folder):
    from websockify.token_plugins import TokenFile

    class Fail(logging.Handler):
        def emit(self, record):
            raise ValueError(record.getMessage())

    logging.getLogger("websockify").addHandler(Fail(logging.WARNING))
    # One plugin per connection, as it keeps what it has read, and websockify forks for each connection.
    return lambda token: TokenFile(folder).lookup(token)

lookup = {"older": older, "newer": newer}[sys.argv[1]](sys.argv[2])
seen = {"reads": 0, "failures": []}

def read_on_and_on():
    while True:
        try:
            lookup("")
        except Exception as error:
            seen["failures"].append(repr(error))
        seen["reads"] += 1

threading.Thread(target=read_on_and_on, daemon=True).start()
print(json.dumps("reads"), flush=True)
for token in sys.stdin:
    try:
        print(json.dumps(lookup(token.strip())), flush=True)
    except Exception as error:
        print(json.dumps(repr(error)), flush=True)
print(json.dumps(seen), flush=True)
"""


class Reader:
    """A process that reads the token folder without a pause, and answers lookups meanwhile."""

    def __init__(self, process):
        self._process = process
        self._turn = threading.Lock()

    def _answer(self):
        line = self._process.stdout.readline()
        assert line, "the reader has ended"
        return json.loads(line)

    def start(self):
        assert self._answer() == "reads"

    def lookup(self, token):
        with self._turn:
            self._process.stdin.write(f"{token}\n")
            self._process.stdin.flush()
            return self._answer()

    def finish(self):
        """Return how often the folder was read in all, and what went wrong."""
        self._process.stdin.close()
        seen = self._answer()
        return seen["reads"], seen["failures"]


@contextlib.contextmanager
def reading(kind, folder):
    with subprocess.Popen(
        [sys.executable, "-c", READER, kind, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            reader = Reader(process)
            reader.start()
            yield reader
        finally:
            process.kill()


@contextlib.contextmanager
def both_readers(folder):
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with reading("older", folder) as older, reading("newer", folder) as newer:
        yield older, newer


TARGETS = {
    0: ["dummy-host-1", "5900"],
    1: ["dummy-host-1", "5901"],
    13: ["2001:db8::1", "5913"],
    20: ["dummy-host-2.example.org", "5920"],
}


def folder_of(one_location):
    return one_location / "var" / "sunstone_vnc_tokens"


def test_every_token_is_found_by_both_readers_while_200_are_issued(tmp_path, cloud):
    folder = folder_of(tmp_path)

    def issue(vm_id, times):
        with xmlrpc.client.ServerProxy(service.url) as server:
            for _ in range(times):
                ok, token, _ = server.one.vm.vnctokenonly("alice:secret", vm_id)
                assert ok, token
                assert [reader.lookup(token) for reader in readers] == [TARGETS[vm_id]] * 2

    with both_readers(folder) as readers, vnctoken_server(tmp_path, cloud.url) as service:
        with ThreadPoolExecutor(len(TARGETS)) as pool:
            for issued in [pool.submit(issue, vm_id, 50) for vm_id in TARGETS]:
                issued.result()
        for reader in readers:
            reads, failures = reader.finish()
            assert failures == []
            assert reads > 200
    assert {path.name for path in folder.iterdir()} == {f"one-{vm_id}" for vm_id in TARGETS}


def test_a_token_that_was_replaced_is_found_no_more(tmp_path, cloud):
    with both_readers(folder_of(tmp_path)) as readers, vnctoken_server(tmp_path, cloud.url) as service:
        with xmlrpc.client.ServerProxy(service.url) as server:
            _, first, _ = server.one.vm.vnctokenonly("alice:secret", 0)
            _, second, _ = server.one.vm.vnctokenonly("alice:secret", 0)
        for reader in readers:
            assert reader.lookup(first) is None
            assert reader.lookup(second) == TARGETS[0]


def test_kill_9_amid_writes_shows_no_reader_a_bad_file(tmp_path, cloud):
    folder = folder_of(tmp_path)

    def issue_until_killed(url, issued):
        with contextlib.suppress(OSError, xmlrpc.client.Error), xmlrpc.client.ServerProxy(url) as server:
            for number in count():
                vm_id = list(TARGETS)[number % len(TARGETS)]
                assert server.one.vm.vnctokenonly("alice:secret", vm_id)[0]
                issued.append(vm_id)

    with both_readers(folder) as readers:
        for _ in range(5):
            issued = []
            with vnctoken_server(tmp_path, cloud.url) as service, ThreadPoolExecutor(4) as pool:
                callers = [pool.submit(issue_until_killed, service.url, issued) for _ in range(4)]
                until(lambda issued=issued: len(issued) >= 40)
                service.process.process.kill()
                for caller in callers:
                    caller.result()
            for path in folder.iterdir():
                assert re.fullmatch(r"one-\d+", path.name)
                assert re.fullmatch(r"[0-9A-Za-z]{22,}: \S+:59\d\d\n", path.read_text(encoding="utf-8"))
        for reader in readers:
            reads, failures = reader.finish()
            assert failures == []
            assert reads > 200
    with vnctoken_server(tmp_path, cloud.url):
        assert list(folder.with_name(folder.name + ".new").iterdir()) == [], "half-written tokens are cleared away"


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


@pytest.mark.parametrize("command", ["websockify", "vnctoken.proxy"])
def test_a_token_opens_the_console_through_websockify_and_nothing_else_does(tmp_path, command):
    with contextlib.ExitStack() as stack:
        vnc_port = stack.enter_context(screen())
        oned = stack.enter_context(running(sys.executable, "-c", HOME, vnc_port, ready="listens on"))
        oned_url = oned.wait_for(r"listens on (http://\S+)").group(1)
        service = stack.enter_context(vnctoken_server(tmp_path, oned_url))
        port = free_port()
        options = ("--token-plugin", "TokenFile", "--token-source", service.tokens, f"127.0.0.1:{port}")
        proxy = stack.enter_context(running(sys.executable, "-m", command, *options, ready="proxying from"))

        def viewer(token):
            connection = socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS)
            return WebSocket.connect(connection, f"/websockify?token={token}")

        with xmlrpc.client.ServerProxy(service.url) as server:
            ok, console, _ = server.one.vm.vnctoken("alice:secret", 7)
        assert ok, console
        assert (console["Host"], console["Port"]) == ("127.0.0.1", vnc_port)

        with contextlib.closing(viewer(console["Token"])) as opened:
            assert opened.receive_exactly(len(GREETING)) == GREETING
            opened.send(b"a key pressed")
            assert opened.receive_exactly(13) == b"a key pressed"

        for wrong in ("", "0" * len(console["Token"]), console["Token"][:-1]):
            with pytest.raises(HandshakeRefusedError):
                viewer(wrong)

        if command == "vnctoken.proxy":
            # From its issue to its use: the same name in both logs, and the token in none.
            (named,) = re.findall(
                r" one\.vm\.vnctoken vm=7 .* (token=[0-9a-f]{8})$", service.log.read_text(), re.MULTILINE
            )
            proxy.wait_for(rf"Path: '/websockify\?{named}'$")
            assert console["Token"] not in proxy.output + service.log.read_text()
