"""The service as it is put together: where it listens, what a call goes through, and how it ends."""

from __future__ import annotations

import gc
import os
import re
import socket
import stat
import sys
import time
import xmlrpc.client

import pytest
from conftest import ROOT, START_SECONDS, running, tokens_in
from twisted.internet.address import IPv4Address
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.interfaces import IHostnameResolver, IReactorPluggableNameResolver
from twisted.internet.task import Clock
from twisted.internet.tcp import Port
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from zope.interface import implementer

from vnctoken.config import Config
from vnctoken.errors import ConfigError
from vnctoken.parts import epoch
from vnctoken.sandbox.cloud import demo_cloud
from vnctoken.sandbox.oned import OnedFactory
from vnctoken.service import SHUTDOWN_SECONDS, make_service


@implementer(IHostnameResolver, IReactorPluggableNameResolver)
class Network(MemoryReactorClock):
    """Real listening sockets that nobody serves; connections in memory, with the sandbox's oned at the other end."""

    def __init__(self):
        super().__init__()
        self.nameResolver = self
        self.ports = []

    def resolveHostName(self, receiver, name, portNumber=0, addressTypes=None, transportSemantics="TCP"):
        receiver.addressResolved(IPv4Address("TCP", "192.0.2.7", portNumber))
        receiver.resolutionComplete()

    def listenTCP(self, port, factory, backlog=50, interface=""):
        listening = Port(port, factory, backlog, interface, self)
        listening.startListening()
        self.ports.append(listening)
        return listening

    def close(self):
        # What was told to stop has stopped then.
        self.advance(0)
        for port in self.ports:
            if port.connected:
                port.stopListening()
        self.advance(0)

    def let_oned_answer(self):
        """Carry the latest question to oned and its answer back."""
        factory = self.tcpClients[-1][2]
        asking, asked = factory.buildProtocol(None), OnedFactory(demo_cloud(), Clock()).buildProtocol(None)
        near, far = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.7", 2633)), StringTransport()
        asking.makeConnection(near)
        asked.makeConnection(far)
        asked.dataReceived(near.value())
        asking.dataReceived(far.value())


class Wire(StringTransport):
    """The connection of a client that reads what it is sent."""

    def loseConnection(self):
        if not self.disconnecting:
            self.disconnecting = True
            self.channel.connectionLost(Failure(ConnectionDone()))

    loseWriteConnection = loseConnection

    @property
    def answer(self):
        return xmlrpc.client.loads(self.value().partition(b"\r\n\r\n")[2])[0][0]


@pytest.fixture
def network():
    """Provide a network, and close its listening sockets at the end."""
    network = Network()
    yield network
    network.close()


@pytest.fixture
def started(tmp_path, network):
    """Return what starts a service on any free port of loopback, with some settings."""

    def start(**settings):
        usual = {
            "host": "127.0.0.1",
            "port": 0,
            "monitor_listen": None,
            "var": tmp_path,
            "subscriber_endpoint": None,
        }
        service = make_service(Config(**usual | settings), network)
        service.startService()
        return service

    return start


def call(network, vm_id=0, method="one.vm.vnctoken", session="alice:secret"):
    """Return the connection of a client that has just made a call."""
    body = xmlrpc.client.dumps((session, vm_id), method).encode()
    wire = Wire()
    wire.channel = network.ports[-1].factory.buildProtocol(wire.getPeer())
    wire.channel.makeConnection(wire)
    wire.channel.dataReceived(b"POST /RPC2 HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    return wire


def answer(network, vm_id=0, method="one.vm.vnctoken"):
    """Return the answer to a call that oned is asked for."""
    wire = call(network, vm_id, method)
    network.let_oned_answer()
    return wire.answer


# Where it listens.


def test_it_listens_where_the_configuration_says_and_tells_the_real_port(started, network):
    service = started()
    port = network.ports[0].getHost().port
    assert port > 0
    assert service.url == f"http://127.0.0.1:{port}/RPC2"
    with socket.create_connection(("127.0.0.1", port)):
        pass


def test_an_ipv6_address_has_brackets_in_the_url(started, network):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("there is no IPv6 loopback address here")
    service = started(host="::1")
    assert service.url == f"http://[::1]:{network.ports[0].getHost().port}/RPC2"


def test_nothing_listens_and_nobody_is_asked_before_the_start(tmp_path, network):
    make_service(Config(var=tmp_path), network)
    assert network.ports == []
    assert network.tcpClients == []
    assert network.getDelayedCalls() == []


# Twisted 24.7 leaves a socket that it could not bind to the garbage collector.
SOCKET_IS_LEFT_OPEN = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@SOCKET_IS_LEFT_OPEN
def test_a_port_that_is_taken_is_an_error_at_the_start(started):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListenError, match=str(port)):
            started(port=port)
    gc.collect()


@SOCKET_IS_LEFT_OPEN
def test_an_address_that_this_machine_does_not_have_is_an_error_at_the_start(started):
    with pytest.raises(CannotListenError, match=re.escape("192.0.2.1")):
        started(host="192.0.2.1")
    gc.collect()


# What a call goes through.


def test_a_call_goes_to_oned_and_leaves_a_token_where_the_proxy_reads(started, network, tmp_path):
    started(one_xmlrpc="http://192.0.2.7:2633/RPC2")
    wire = call(network, 1)
    assert [client[:2] for client in network.tcpClients] == [("192.0.2.7", 2633)]
    assert wire.value() == b""
    network.let_oned_answer()
    success, console, code = wire.answer
    assert (success, code) == (True, 0)
    file = tmp_path / "sunstone_vnc_tokens" / "one-1"
    assert tokens_in(file) == {console["Token"]: "dummy-host-1:5901"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert console["Wss"] is False


@pytest.mark.parametrize(
    ("settings", "vm_id", "code"),
    [
        ({}, 0, 0),
        ({"vnc_ports": range(5901, 6000)}, 0, 0x0800),
        ({"vnc_ports": range(22, 6000)}, 10, 0),
        ({"console_states": frozenset({3})}, 25, 0x0800),
        ({"console_states": frozenset({69})}, 25, 0),
    ],
)
def test_the_ports_and_states_of_the_configuration_count(started, network, settings, vm_id, code):
    started(**settings)
    assert answer(network, vm_id)[2] == code


def test_the_token_folder_and_wss_of_the_configuration_count(started, network, tmp_path):
    started(token_folder_name="elsewhere", vnc_proxy_support_wss=True)
    assert answer(network)[1]["Wss"] is True
    assert (tmp_path / "elsewhere" / "one-0").exists()


def test_the_timeout_of_the_configuration_counts(started, network):
    started(one_xmlrpc_timeout=3)
    wire = call(network)
    network.advance(3)
    assert wire.answer == [False, "oned did not answer within 3 seconds", 0x2000]


def test_the_connections_to_oned_of_the_configuration_count(started, network):
    started(one_xmlrpc_connections=2)
    wires = [call(network, vm_id) for vm_id in range(3)]
    assert len(network.tcpClients) == 2
    network.let_oned_answer()
    assert len(network.tcpClients) == 3
    network.let_oned_answer()
    assert [bool(wire.value()) for wire in wires] == [False, True, True]


def test_identical_calls_in_flight_are_one_question_to_oned_and_a_token_each(started, network):
    started()
    wires = [call(network) for _ in range(5)]
    other = call(network, 1)
    assert len(network.tcpClients) == 2
    network.let_oned_answer()
    assert [wire.value() for wire in wires] == [b""] * 5
    assert other.value()
    del network.tcpClients[-1]
    network.let_oned_answer()
    tokens = [wire.answer[1]["Token"] for wire in wires]
    assert len({*tokens}) == 5
    call(network)
    assert len(network.tcpClients) == 2


def test_who_leaves_takes_no_question_away_from_those_who_ask_the_same(started, network):
    started()
    first, second = call(network), call(network)
    first.loseConnection()
    network.let_oned_answer()
    assert second.answer[0] is True


def test_the_limit_of_a_requests_size_of_the_configuration_counts(started, network):
    started(max_request_bytes=100)
    assert call(network).value().startswith(b"HTTP/1.1 413 ")
    assert network.tcpClients == []


def test_the_limit_of_connections_of_the_configuration_counts(started, network):
    started(max_connections=2)
    for vm_id in range(2):
        assert call(network, vm_id).value() == b""
    assert len(network.tcpClients) == 2
    wire = Wire()
    wire.channel = network.ports[-1].factory.buildProtocol(wire.getPeer())
    wire.channel.makeConnection(wire)
    assert wire.value().startswith(b"HTTP/1.1 503 ")


def test_a_token_folder_that_others_can_read_is_warned_of(started, tmp_path):
    (tmp_path / "sunstone_vnc_tokens").mkdir()
    (tmp_path / "sunstone_vnc_tokens").chmod(0o755)
    with capturedLogs() as events:
        started()
    assert "mode 0755" in warnings_in(events)[0]


def test_a_token_folder_that_cannot_be_made_is_an_error_before_it_listens(network, tmp_path):
    with pytest.raises(ConfigError, match=":token_folder_name:"):
        make_service(Config(var=tmp_path / "missing"), network)


# What else runs.

LOGIN = "serveradmin:serveradmin-secret-for-tests"


def warnings_in(events):
    return [event["log_format"].format(**event) for event in events if event["log_level"].name == "warn"]


def with_login(tmp_path, name="sunstone_auth"):
    (tmp_path / ".one").mkdir()
    (tmp_path / ".one" / name).write_text(LOGIN + "\n")


def test_without_a_login_of_its_own_the_service_says_what_is_off(started, tmp_path):
    with capturedLogs() as events:
        started()
    (warning,) = warnings_in(events)
    assert warning == (
        "oned is not asked whether tokens outlive their consoles (:recheck_interval:): there is no vnctoken_auth or"
        f" sunstone_auth in {tmp_path / '.one'}"
    )
    with capturedLogs() as events:
        started(recheck_interval=0)
    assert warnings_in(events) == []


def test_a_login_that_cannot_be_used_turns_off_what_needs_it_and_nothing_else(started, network, tmp_path):
    (tmp_path / ".one").mkdir()
    (tmp_path / ".one" / "vnctoken_auth").write_text("no-colon-hunter2")
    with capturedLogs() as events:
        started()
    (warning,) = warnings_in(events)
    assert "vnctoken_auth" in warning
    assert "hunter2" not in warning
    assert answer(network)[0] is True


@pytest.mark.parametrize("name", ["vnctoken_auth", "sunstone_auth"])
def test_with_a_login_oned_is_asked_about_the_tokens_at_each_interval(started, network, tmp_path, name):
    with_login(tmp_path, name)
    with capturedLogs() as events:
        service = started(recheck_interval=15)
    assert warnings_in(events) == []
    assert answer(network)[0] is True
    asked = len(network.tcpClients)
    network.advance(14.9)
    assert len(network.tcpClients) == asked
    network.advance(0.1)
    assert len(network.tcpClients) == asked + 1
    service.stopService()


def test_what_asks_oned_at_each_connection_needs_a_login(tmp_path, network):
    config = Config(var=tmp_path, verify_on_connect=True, resolver_listen=("127.0.0.1", 0))
    with pytest.raises(ConfigError, match=":verify_on_connect: is yes, which needs a login of the service's own"):
        make_service(config, network)


def test_the_resolver_listens_where_the_configuration_says(started, network):
    started(resolver_listen=("127.0.0.1", 0))
    calls, resolver = network.ports
    assert answer_of(calls, b"GET /token/x HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404 Not Found")
    assert b"XML-RPC is at" in answer_of(calls, b"GET /token/x HTTP/1.1\r\n\r\n")
    assert b"no such token" in answer_of(resolver, b"GET /token/x HTTP/1.1\r\n\r\n")


def answer_of(port, request):
    """Return what a request is answered at a listening port."""
    wire = Wire()
    wire.channel = port.factory.buildProtocol(wire.getPeer())
    wire.channel.makeConnection(wire)
    wire.channel.dataReceived(request)
    return wire.value()


@pytest.mark.parametrize("store", ["redis", "jwt"])
def test_the_store_is_the_one_of_the_configuration(tmp_path, network, store):
    key = tmp_path / "jwt.key"
    key.write_text("A" * 43)
    key.chmod(0o600)
    with capturedLogs() as events:
        service = make_service(
            Config(var=tmp_path, token_store=store, jwt_key_files=(str(key),), subscriber_endpoint=None), network
        )
    assert not (tmp_path / "sunstone_vnc_tokens").exists()
    said = [event["log_format"] for event in events if "until they expire" in event["log_format"]]
    assert bool(said) == (store == "jwt")
    assert service.stopService().called


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "which cannot be read: No such file or directory"),
        (b"\xff", "which cannot be read: it is not UTF-8"),
        (b"", "but a file with one line, the password, is expected"),
        (b"\n", "but a file with one line, the password, is expected"),
        (b"hunter2\nhunter3", "but a file with one line, the password, is expected"),
    ],
)
def test_a_file_without_a_password_for_redis_is_an_error_that_does_not_show_it(tmp_path, network, content, reason):
    file = tmp_path / "redis-password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        make_service(Config(var=tmp_path, token_store="redis", redis_password_file=str(file)), network)
    assert str(caught.value) == f":redis_password_file: is '{file}', {reason}"


def test_a_clock_that_is_set_does_not_make_the_services_time_jump():
    clock = Clock()
    now = epoch(clock)
    began = now()
    assert abs(began - time.time()) < 5
    clock.advance(3600)
    assert now() == began + 3600


# How it ends.


def test_it_ends_by_no_longer_listening_and_at_once_if_nothing_is_in_flight(started, network):
    service = started()
    address = network.ports[0].getHost()
    assert service.running
    stopped = service.stopService()
    network.advance(0)
    assert stopped.called
    assert not service.running
    with socket.socket() as client:
        assert client.connect_ex((address.host, address.port)) != 0
    assert network.getDelayedCalls() == []


def test_a_call_in_flight_is_finished_first(started, network):
    service = started()
    wire = call(network)
    stopped = service.stopService()
    network.advance(SHUTDOWN_SECONDS - 1)
    assert not stopped.called
    network.let_oned_answer()
    assert wire.answer[0] is True
    assert wire.disconnecting
    assert stopped.called


def test_a_call_that_takes_too_long_is_not_waited_for(started, network, tmp_path):
    service = started()
    wire = call(network)
    stopped = service.stopService()
    network.advance(0)
    network.advance(SHUTDOWN_SECONDS)
    assert stopped.called
    assert wire.disconnecting
    assert wire.value() == b""
    assert network.connectors[-1].stoppedConnecting
    assert list((tmp_path / "sunstone_vnc_tokens").iterdir()) == []


# https is an extra.


WITHOUT_PYOPENSSL = "import sys; sys.modules['OpenSSL'] = None; from vnctoken.server import main; sys.exit(main())"


def without_pyopenssl(one_location, oned, ready=None):
    """Run the service as where pyOpenSSL is not installed."""
    (one_location / "etc").mkdir(parents=True)
    (one_location / "var").mkdir()
    settings = f":port: 0\n:monitor_listen: none\n:one_xmlrpc: {oned}\n"
    (one_location / "etc" / "vnctoken-server.conf").write_text(settings)
    environment = {**os.environ, "ONE_LOCATION": str(one_location)}
    return running(sys.executable, "-c", WITHOUT_PYOPENSSL, env=environment, cwd=ROOT, ready=ready)


def test_an_https_oned_without_pyopenssl_says_what_to_install(tmp_path):
    with without_pyopenssl(tmp_path / "one", "https://localhost:2633/RPC2") as process:
        assert process.process.wait(START_SECONDS) == 78
    assert "and TLS needs pyOpenSSL: install vnctoken[tls]" in process.output
    assert "Traceback" not in process.output


def test_an_http_oned_needs_no_pyopenssl(tmp_path, cloud):
    with without_pyopenssl(tmp_path / "one", cloud.url, ready="listens on") as process:
        url = process.wait_for(r"listens on (http://\S+)").group(1)
        with xmlrpc.client.ServerProxy(url) as client:
            assert client.one.vm.vnctokenonly("alice:secret", 0)[0] is True
