"""oned's events, over real sockets: what is heard, what is ignored, and that tokens die at once."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import sys
import threading
import time
import xmlrpc.client
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from conftest import ROOT, free_port, running
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import capturedLogs

from vnctoken.auth.server_cipher import server_session
from vnctoken.config import Config
from vnctoken.errors import ConfigError, OnedError
from vnctoken.events import MAX_FRAME_BYTES, Events, read_event
from vnctoken.exchange import HttpExchange
from vnctoken.oned import Oned
from vnctoken.recheck import Recheck
from vnctoken.rules import ConsoleRules
from vnctoken.sandbox.cloud import SERVERADMIN, demo_cloud
from vnctoken.sandbox.lifecycle import acted_on
from vnctoken.sandbox.publishing import Publisher, event
from vnctoken.tokens import Grant
from vnctoken.tokens.folder import TokenFolder

SECONDS = 30
RULES = ConsoleRules(states=Config().console_states, ports=Config().vnc_ports)


def run(scenario):
    """Run an async function in a reactor of its own, which it is given, and return what it returns."""
    reactor = EPollReactor()
    outcomes = []

    async def main():
        await Deferred.fromCoroutine(scenario(reactor)).addTimeout(SECONDS, reactor)

    def begin():
        Deferred.fromCoroutine(main()).addBoth(outcomes.append).addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(begin)
    reactor.run(installSignalHandlers=False)
    if outcomes[0] is not None:
        outcomes[0].raiseException()


async def until(reactor, condition, again=lambda: None):
    """Wait until something is true; `again` is done before each look."""
    while True:
        again()
        if condition():
            return
        await deferLater(reactor, 0.01)


class Ear:
    """Takes events, and keeps what VM was in which state."""

    def __init__(self, *, failing=False):
        self.heard = []
        self._failing = failing

    async def hear(self, vm_id, vm):
        self.heard.append((vm_id, vm.state, vm.lcm_state))
        if self._failing:
            raise ZeroDivisionError


def frames_of(vm_id=0, lcm_state=3, **changes):
    guest = demo_cloud().guest(vm_id)
    key, message = event(guest, replace(guest, lcm_state=lcm_state, **changes))
    return [key.encode(), base64.b64encode(message.encode())]


@contextlib.contextmanager
def publishing(address="tcp://127.0.0.1:*"):
    """Publish by hand, as oned or as nobody should."""
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.linger = 0
        socket.bind(address)
        yield socket


def endpoint(socket):
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


@contextlib.contextmanager
def listening(reactor, where, ear, **options):
    events = Events(where, ear.hear, reactor, **options)
    events.start()
    try:
        yield events
    finally:
        stopped = []
        Deferred.fromCoroutine(events.stop()).addBoth(stopped.append)
        assert stopped == [None]
        assert [reader for reader in reactor.getReaders() if reader is events] == []


async def connected(reactor, socket, ear):
    """Wait until what is published is heard."""
    await until(reactor, lambda: ear.heard, lambda: socket.send_multipart(frames_of(1)))
    # Those that were published in the meantime are on their way.
    socket.send_multipart(frames_of(2))
    await until(reactor, lambda: (2, 3, 3) in ear.heard)
    ear.heard.clear()


def test_every_change_of_a_vms_state_is_heard_in_its_order():
    async def scenario(reactor):
        ear = Ear()
        publisher = Publisher("127.0.0.1", 0)
        cloud = demo_cloud()
        cloud.watch(publisher.publish)

        def act(*actions):
            for action in actions:
                for step in acted_on(cloud.guest(0), action, SERVERADMIN):
                    cloud.change(step)

        with listening(reactor, publisher.endpoint, ear):
            await until(reactor, lambda: ear.heard, lambda: act("poweroff", "resume"))
            act("suspend")
            await until(reactor, lambda: ear.heard[-1] == (0, 5, 0))
        assert ear.heard[-2:] == [(0, 3, 6), (0, 5, 0)]
        publisher.close()

    run(scenario)


def test_only_changes_of_vms_are_asked_for():
    async def scenario(reactor):
        ear = Ear()
        with publishing() as socket, listening(reactor, endpoint(socket), ear), capturedLogs() as logs:
            await connected(reactor, socket, ear)
            socket.send_multipart([b"EVENT STATE HOST/MONITORED/0 ", b"!"])
            socket.send_multipart([b"EVENT API one.vm.info ", b"!"])
            socket.send_multipart(frames_of(4))
            await until(reactor, lambda: ear.heard)
        assert ear.heard == [(4, 3, 3)]
        assert logs == []

    run(scenario)


VM_HEAD = b"EVENT STATE VM/ACTIVE/RUNNING/0 "


def encoded(text):
    return [VM_HEAD, base64.b64encode(text.encode())]


GARBAGE = {
    "one part": [VM_HEAD],
    "three parts": [*frames_of(), b""],
    "no base64": [VM_HEAD, b"=" * 5],
    "bytes": [VM_HEAD, b"\xff\x00\xfe"],
    "nothing": [VM_HEAD, b""],
    "no XML": encoded("hello"),
    "half a message": encoded(event(demo_cloud().guest(0), demo_cloud().guest(0))[1][:900]),
    "a DTD": encoded('<!DOCTYPE a [<!ENTITY b "c">]><HOOK_MESSAGE><VM><ID>&b;</ID></VM></HOOK_MESSAGE>'),
    "no VM": encoded("<HOOK_MESSAGE><HOST><ID>1</ID></HOST></HOOK_MESSAGE>"),
    "no id": encoded("<HOOK_MESSAGE><VM><STATE>3</STATE><LCM_STATE>3</LCM_STATE></VM></HOOK_MESSAGE>"),
    "a wrong id": encoded(
        "<HOOK_MESSAGE><VM><ID>../1</ID><STATE>3</STATE><LCM_STATE>3</LCM_STATE></VM></HOOK_MESSAGE>"
    ),
    "a long id": encoded(f"<M><VM><ID>{'1' * 5000}</ID><STATE>3</STATE><LCM_STATE>3</LCM_STATE></VM></M>"),
    "no state": encoded("<HOOK_MESSAGE><VM><ID>1</ID></VM></HOOK_MESSAGE>"),
}


@pytest.mark.parametrize("frames", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_no_event(frames):
    with pytest.raises((ValueError, OnedError)):
        read_event(frames)


@given(st.lists(st.binary(), max_size=3))
def test_whatever_comes_is_an_event_or_none(frames):
    with contextlib.suppress(ValueError, OnedError):
        read_event(frames)


def test_garbage_is_ignored_and_said_once_and_what_comes_after_it_is_heard():
    async def scenario(reactor):
        ear = Ear()
        with publishing() as socket, listening(reactor, endpoint(socket), ear), capturedLogs() as logs:
            await connected(reactor, socket, ear)
            for frames in GARBAGE.values():
                socket.send_multipart(frames)
            socket.send_multipart(frames_of(4))
            await until(reactor, lambda: ear.heard)
        assert ear.heard == [(4, 3, 3)]
        assert [log["log_format"].partition(";")[0] for log in logs] == [
            "{endpoint} publishes what is no event of oned's"
        ]

    run(scenario)


def test_a_part_that_is_too_long_is_not_taken_and_what_comes_later_is_heard():
    async def scenario(reactor):
        ear = Ear()
        name = "x" * MAX_FRAME_BYTES
        with publishing() as socket, listening(reactor, endpoint(socket), ear, renewal=0.3), capturedLogs() as logs:
            await connected(reactor, socket, ear)
            socket.send_multipart(frames_of(4, name=name))
            await until(reactor, lambda: ear.heard, lambda: socket.send_multipart(frames_of(5)))
        assert {vm_id for vm_id, _, _ in ear.heard} == {5}
        assert logs == []

    run(scenario)


def test_oned_is_heard_after_somebody_else_was_at_its_port():
    async def scenario(reactor):
        ear = Ear()
        port = free_port()
        met = []

        class Somebody(Protocol):
            def connectionMade(self):
                met.append(self)
                self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
                self.transport.loseConnection()

        there = reactor.listenTCP(port, Factory.forProtocol(Somebody), interface="127.0.0.1")
        with listening(reactor, f"tcp://127.0.0.1:{port}", ear, renewal=0.3):
            await until(reactor, lambda: met)
            await there.stopListening()
            with publishing(f"tcp://127.0.0.1:{port}") as socket:
                await connected(reactor, socket, ear)

    run(scenario)


def test_a_fault_in_handling_one_event_does_not_stop_the_next():
    async def scenario(reactor):
        ear = Ear(failing=True)
        with publishing() as socket, listening(reactor, endpoint(socket), ear), capturedLogs() as logs:
            await connected(reactor, socket, ear)
        assert {log["log_failure"].type for log in logs} == {ZeroDivisionError}

    run(scenario)


def test_events_are_handled_one_after_the_other():
    async def scenario(reactor):
        class Slow(Ear):
            async def hear(self, vm_id, vm):
                self.heard.append(f"{vm_id} begins")
                await gate
                self.heard.append(f"{vm_id} ends")

        gate = Deferred()
        ear = Ear()
        with publishing() as socket:
            with listening(reactor, endpoint(socket), ear):
                await connected(reactor, socket, ear)
            slow = Slow()
            with listening(reactor, endpoint(socket), slow):
                await until(reactor, lambda: slow.heard, lambda: socket.send_multipart(frames_of(1)))
                socket.send_multipart(frames_of(2))
                await deferLater(reactor, 0.05)
                assert slow.heard == ["1 begins"]
                gate.callback(None)
                await until(reactor, lambda: "2 ends" in slow.heard)
        assert slow.heard == [f"{line[0]} {word}" for line in slow.heard[::2] for word in ("begins", "ends")]

    run(scenario)


def test_however_much_is_published_everybody_else_has_his_turn():
    async def scenario(reactor):
        ear = Ear()
        with publishing() as socket, listening(reactor, endpoint(socket), ear):
            await connected(reactor, socket, ear)
            over = threading.Event()

            def flood():
                frames = frames_of(1)
                deadline = time.monotonic() + 5
                while not over.is_set() and time.monotonic() < deadline:
                    socket.send_multipart(frames)

            flooding = threading.Thread(target=flood)
            flooding.start()
            try:
                worst = 0
                for _ in range(50):
                    begin = time.monotonic()
                    await deferLater(reactor, 0.01)
                    worst = max(worst, time.monotonic() - begin)
            finally:
                over.set()
                flooding.join()
        assert ear.heard
        # A reader that takes all there is never comes back: new ones come faster than they are read.
        assert worst < 1

    run(scenario)


def test_nobody_need_publish_and_who_begins_later_is_heard():
    async def scenario(reactor):
        ear = Ear()
        where = f"tcp://127.0.0.1:{free_port()}"
        with listening(reactor, where, ear), capturedLogs() as logs:
            await deferLater(reactor, 0.2)
            for _ in ("begun", "begun again"):
                with publishing(where) as socket:
                    await connected(reactor, socket, ear)
        assert logs == []

    run(scenario)


def threads():
    """Return how many threads this process has, ZeroMQ's included."""
    return len(list(Path("/proc/self/task").iterdir()))


def test_it_can_be_stopped_and_started_again_and_stopped_twice():
    async def scenario(reactor):
        ear = Ear()
        with publishing() as socket:
            events = Events(endpoint(socket), ear.hear, reactor)
            await events.stop()
            for _ in range(2):
                events.start()
                await connected(reactor, socket, ear)
                await events.stop()
                await events.stop()
                assert events not in reactor.getReaders()

    before = threads()
    run(scenario)
    assert threads() <= before


@pytest.mark.parametrize(
    "where", ["localhost:2101", "tcp://localhost", "http://localhost:2101", "tcp://localhost:port"]
)
def test_an_endpoint_that_is_none_is_named(where):
    events = Events(where, Ear().hear, EPollReactor())
    with pytest.raises(ConfigError, match=r"^:subscriber_endpoint: is '.*, but one such as 'tcp://localhost:2101'"):
        events.start()


def test_without_pyzmq_it_is_said_what_to_install(tmp_path):
    (tmp_path / "zmq.py").write_text("raise ModuleNotFoundError('No module named zmq')\n", encoding="utf-8")
    script = (
        "from vnctoken.errors import ConfigError\n"
        "from vnctoken.events import Events\n"
        "try:\n    Events('tcp://localhost:2101', None, None)\n"
        "except ConfigError as error:\n    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.strip() == (
        ":subscriber_endpoint: is 'tcp://localhost:2101', and oned's events need pyzmq: install vnctoken[events]"
    )


# Tokens, with the sandbox as a process.


class Front:
    """What vnctoken has of a cloud: a store, and oned's word by events and by rechecks."""

    def __init__(self, reactor, folder, url, where, interval):
        oned = Oned(HttpExchange(reactor, url, None), reactor, timeout=5, connections=8)
        self.store = TokenFolder(folder, reactor, time.time, ttl=600, tokens_per_vm=8)
        self.store.prepare()
        self.store.start()
        self.recheck = Recheck(self.store, oned, self._session, RULES, reactor, interval)
        self.events = Events(where, self.recheck.saw, reactor)
        self._oned = oned
        self._reactor = reactor
        self._url = url

    @staticmethod
    def _session():
        return server_session("serveradmin", SERVERADMIN.password, "serveradmin", int(time.time()) + 1800)

    async def issue(self, vm_id):
        vm = await self._oned.vm_info("alice:secret", vm_id)
        return await self.store.issue(Grant(vm_id, *RULES.target(vm), time.time(), 600, "alice"))

    def ask(self, method, *arguments, session="alice:secret"):
        """Make a call as the user, in a thread."""

        def call():
            with xmlrpc.client.ServerProxy(self._url) as proxy:
                return proxy.__getattr__(method)(session, *arguments)

        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), call)

    async def gone(self, token):
        """Wait until a token opens nothing."""
        while await self.store.find(token):
            await deferLater(self._reactor, 0.01)

    async def hearing(self):
        """Wait until events are heard: VM 7 is switched on and off until one of its tokens dies."""
        while True:
            await self.ask("one.vm.action", "resume", 7)
            token = await self.issue(7)
            await self.ask("one.vm.action", "poweroff", 7)
            await deferLater(self._reactor, 0.05)
            if not await self.store.find(token):
                return

    async def stop(self):
        await self.events.stop()
        await self.recheck.stop()
        await self.store.close()


@contextlib.contextmanager
def cloud(*options, listen="127.0.0.1:0", events="127.0.0.1:0"):
    args = (sys.executable, "-m", "vnctoken.sandbox", "--listen", listen, "--events", events, *options)
    with running(*args, ready=r"publishes events at") as process:
        url = process.wait_for(r"listens on (\S+)").group(1)
        yield url, process.wait_for(r"publishes events at (\S+)").group(1), process


LONG, SHORT = 3600, 0.2


def test_a_token_dies_at_once_with_its_console_by_oneds_events(tmp_path):
    """Far within the interval of the rechecks, and the VM that goes on keeps its tokens."""

    async def scenario(reactor):
        with cloud() as (url, where, _):
            front = Front(reactor, tmp_path / "tokens", url, where, LONG)
            front.events.start()
            front.recheck.start()
            try:
                await front.hearing()
                others = [await front.issue(1), await front.issue(19)]
                for vm_id, method, *arguments in (
                    (0, "one.vm.action", "poweroff", 0),
                    (2, "one.vm.action", "terminate", 2),
                    (5, "one.vm.action", "suspend", 5),
                    (13, "one.vm.migrate", 13, 1, True),
                ):
                    token = await front.issue(vm_id)
                    assert (await front.ask(method, *arguments, session="oneadmin:opennebula"))[0] is True
                    await front.gone(token)
                assert None not in [await front.store.find(token) for token in others]
            finally:
                await front.stop()

    run(scenario)


def test_without_events_a_token_dies_within_the_interval_and_with_them_again_when_oned_is_back(tmp_path):
    port, publishing_port = free_port(), free_port()
    addresses = {"listen": f"127.0.0.1:{port}", "events": f"127.0.0.1:{publishing_port}"}

    async def scenario(reactor):
        front = Front(
            reactor, tmp_path / "tokens", f"http://127.0.0.1:{port}/RPC2", f"tcp://127.0.0.1:{free_port()}", SHORT
        )
        try:
            with cloud("--without", "one.vmpool.infoset", **addresses):
                front.recheck.start()
                token, other = await front.issue(0), await front.issue(1)
                await front.ask("one.vm.action", "poweroff", 0)
                await front.gone(token)
                assert await front.store.find(other)
            with capturedLogs() as logs:
                await until(reactor, lambda: logs)
                await deferLater(reactor, 3 * SHORT)
                assert await front.store.find(other)
                with cloud(**addresses):
                    await front.ask("one.vm.action", "poweroff", 1)
                    await front.gone(other)
            troubles = [log for log in logs if "checked" in log["log_format"]]
            assert [log["log_level"].name for log in troubles] == ["warn", "info"]
        finally:
            await front.stop()

    run(scenario)


def test_events_are_heard_again_when_oned_was_restarted(tmp_path):
    port, publishing_port = free_port(), free_port()
    addresses = {"listen": f"127.0.0.1:{port}", "events": f"127.0.0.1:{publishing_port}"}

    async def scenario(reactor):
        where = f"tcp://127.0.0.1:{publishing_port}"
        front = Front(reactor, tmp_path / "tokens", f"http://127.0.0.1:{port}/RPC2", where, LONG)
        front.events.start()
        try:
            for _ in range(2):
                with cloud(**addresses):
                    await front.hearing()
        finally:
            await front.stop()

    run(scenario)
