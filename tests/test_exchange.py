"""One HTTP POST to oned: what goes out, every way in which an answer can be good or bad, and https."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.server
import ipaddress
import os
import socket
import ssl
import threading
import xmlrpc.client

import OpenSSL
import pytest
from conftest import vnctoken_server
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st
from outcomes import result_of
from service_identity import VerificationError
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import (
    ConnectError,
    ConnectionDone,
    ConnectionLost,
    NoRouteError,
    TCPTimedOutError,
)
from twisted.internet.error import ConnectionRefusedError as TCPRefusedError
from twisted.internet.interfaces import IHostnameResolver, IReactorPluggableNameResolver
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from vnctoken.config import Config
from vnctoken.errors import ConfigError, ErrorCode, OnedError
from vnctoken.exchange import ADDRESS_SECONDS, MAX_BODY_BYTES, MAX_HEADER_BYTES, HttpExchange
from vnctoken.sandbox.calls import Answer
from vnctoken.sandbox.cloud import demo_cloud
from vnctoken.sandbox.rendering import guest_xml
from vnctoken.service import make_service

URL = "http://oned.example:2633/RPC2"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-type: text/xml\r\nContent-length: 5\r\nConnection: close\r\n\r\nhello"
ANSWER_WITHOUT_LENGTH = b"HTTP/1.1 200 OK\r\nContent-type: text/xml\r\n\r\nhello"


@implementer(IHostnameResolver, IReactorPluggableNameResolver)
class Network(MemoryReactorClock):
    """A network in memory, on which every name has the same addresses, and names can be slow to look up."""

    def __init__(self, *addresses):
        super().__init__()
        self.addresses = addresses or ("192.0.2.7",)
        self.lookups = []
        self.slow_lookup = False
        self.nameResolver = self

    def resolveHostName(self, receiver, name, portNumber=0, addressTypes=None, transportSemantics="TCP"):
        self.lookups.append(name)
        self.finish_lookup = lambda: self._tell(receiver, portNumber)
        if not self.slow_lookup:
            self.finish_lookup()

    def _tell(self, receiver, port):
        for host in self.addresses:
            address = IPv6Address if ":" in host else IPv4Address
            receiver.addressResolved(address("TCP", host, port))
        receiver.resolutionComplete()

    @property
    def dialled(self):
        """The host and port of every connection that was begun."""
        return [(host, port) for host, port, *_ in self.tcpClients]

    def accept(self):
        """Let the latest connection succeed, and return the server's end of it."""
        host, port, factory, *_ = self.tcpClients[-1]
        address = (IPv6Address if ":" in host else IPv4Address)("TCP", host, port)
        server = Server(factory.buildProtocol(address), StringTransport(peerAddress=address))
        server.client.makeConnection(server.transport)
        return server

    def refuse(self, error=TCPRefusedError):
        """Let the latest connection fail; there is a moment before the next address of a name would be tried."""
        self.tcpClients[-1][2].clientConnectionFailed(self.connectors[-1], Failure(error()))
        self.advance(0.5)


class Server:
    """The far end of a connection of ours."""

    def __init__(self, client, transport):
        self.client = client
        self.transport = transport

    @property
    def received(self):
        return self.transport.value()

    @property
    def left_alone(self):
        """Whether the client has ended the connection, by a close or a reset."""
        return self.transport.disconnecting

    def send(self, *pieces):
        for piece in pieces:
            if not self.left_alone:
                self.client.dataReceived(piece)

    def close(self, error=ConnectionDone):
        self.client.connectionLost(Failure(error()))


def post(exchange, body=b"<question/>"):
    return Deferred.fromCoroutine(exchange.post(body))


def asked(url=URL):
    """Return the future answer to a question, and the server that has just got it."""
    network = Network()
    answer = post(HttpExchange(network, url))
    return answer, network.accept()


def bytewise(data):
    return [data[at : at + 1] for at in range(len(data))]


def answered(*pieces, end=None):
    """Return the outcome of a question whose answer comes in these pieces, after which `end` may come."""
    answer, server = asked()
    server.send(*pieces)
    if end is not None and not server.left_alone:
        server.close(end)
    return result_of(answer)


# What goes out.


def test_the_request_is_a_post_with_a_content_length_over_a_connection_of_its_own():
    answer, server = asked()
    assert not answer.called
    assert server.received == (
        b"POST /RPC2 HTTP/1.1\r\n"
        b"Host: oned.example:2633\r\n"
        b"Connection: close\r\n"
        b"User-Agent: vnctoken\r\n"
        b"Content-Type: text/xml\r\n"
        b"Content-Length: 11\r\n"
        b"\r\n"
        b"<question/>"
    )


@pytest.mark.parametrize(
    ("url", "path", "host", "dialled"),
    [
        ("http://oned.example", b"/", b"oned.example", ("192.0.2.7", 80)),
        ("http://oned.example/", b"/", b"oned.example", ("192.0.2.7", 80)),
        ("http://oned.example:99/a/b", b"/a/b", b"oned.example:99", ("192.0.2.7", 99)),
        ("http://192.0.2.7:99/RPC2", b"/RPC2", b"192.0.2.7:99", ("192.0.2.7", 99)),
    ],
)
def test_the_url_says_where_the_request_goes(url, path, host, dialled):
    network = Network()
    post(HttpExchange(network, url))
    lines = network.accept().received.split(b"\r\n")
    assert lines[0] == b"POST " + path + b" HTTP/1.1"
    assert b"Host: " + host in lines
    assert network.dialled == [dialled]


def test_an_ipv6_address_in_the_url_is_dialled_and_stays_bracketed_in_the_host_header():
    network = Network("2001:db8::7")
    exchange = HttpExchange(network, "http://[2001:db8::7]:2633/RPC2")
    for _ in range(2):  # by its name, and as the address that is remembered
        answer = post(exchange)
        server = network.accept()
        assert b"\r\nHost: [2001:db8::7]:2633\r\n" in server.received
        server.send(ANSWER)
        assert result_of(answer) == b"hello"
    assert network.dialled == [("2001:db8::7", 2633)] * 2


@pytest.mark.parametrize(("url", "port"), [("https://oned.example/RPC2", 443), ("https://oned.example:2634/", 2634)])
def test_https_is_port_443_unless_the_url_has_one(url, port):
    network = Network()
    answer = post(HttpExchange(network, url, optionsForClientTLS("oned.example")))
    assert network.dialled == [("192.0.2.7", port)]
    answer.cancel()
    with pytest.raises(CancelledError):
        result_of(answer)


# Good answers.


@pytest.mark.parametrize("cut", [lambda data: [data], bytewise, lambda data: [data[:40], data[40:]]])
def test_an_answer_is_complete_after_as_many_bytes_as_it_says_in_whatever_pieces_they_come(cut):
    answer, server = asked()
    *first, last = cut(ANSWER)
    server.send(*first)
    assert not answer.called
    server.send(last)
    assert result_of(answer) == b"hello"
    assert server.left_alone


@pytest.mark.parametrize("cut", [lambda data: [data], bytewise])
def test_an_answer_without_a_length_is_complete_when_the_connection_is_closed(cut):
    answer, server = asked()
    server.send(*cut(ANSWER_WITHOUT_LENGTH))
    assert not answer.called
    server.close()
    assert result_of(answer) == b"hello"


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhello", b"hel"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 500 Oops\r\n\r\n", b"hello"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0000000005\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\n  CONTENT-LENGTH \t:\t 5 \r\n\r\nhello", b"hello"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n:\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n\r\n\r\n!", b"\r\n\r\n!"),
    ],
)
def test_the_body_is_what_the_content_length_spans(answer, body):
    assert answered(answer) == body


def test_what_comes_after_the_body_in_pieces_of_its_own_changes_nothing():
    answer, server = asked()
    server.send(ANSWER)
    server.client.dataReceived(b"HTTP/1.1 500 Oops\r\n\r\n")
    server.close(ConnectionLost)
    assert result_of(answer) == b"hello"


def test_a_body_of_the_greatest_length_is_taken():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MAX_BODY_BYTES
    assert answered(head, bytes(MAX_BODY_BYTES)) == bytes(MAX_BODY_BYTES)


# Bad ones.


@pytest.mark.parametrize("length", [b"x", b"-5", b"", b"+5", b"5 5", b"0x5", b"5,5", b"5.0", b"\xb2"])
def test_a_content_length_that_is_no_number_is_refused(length):
    with pytest.raises(OnedError, match=r"^oned's answer has a Content-Length that is no number$"):
        answered(b"HTTP/1.1 200 OK\r\nContent-Length: %b\r\n\r\nhello" % length)


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER[:-1],
        ANSWER[:60],
        b"H",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nhello",
    ],
)
@pytest.mark.parametrize("end", [ConnectionDone, ConnectionLost])
def test_an_answer_that_ends_too_early_is_no_answer(answer, end):
    with pytest.raises(OnedError, match=r"^oned's answer is incomplete: the connection was closed in the middle"):
        answered(answer, end=end)


def test_without_a_length_only_a_proper_close_ends_an_answer():
    with pytest.raises(OnedError, match="incomplete"):
        answered(ANSWER_WITHOUT_LENGTH, end=ConnectionLost)


def test_a_connection_closed_without_a_byte_is_told_from_a_broken_one():
    with pytest.raises(OnedError, match=r"^oned closed the connection without an answer$"):
        answered(end=ConnectionDone)
    with pytest.raises(OnedError, match=r"^the connection to oned failed: ConnectionLost$"):
        answered(end=ConnectionLost)


@pytest.mark.parametrize(
    "greeting", [b"<html>", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTQ", b"HTTP/2", b"\x15\x03\x01", b"\0"]
)
@pytest.mark.parametrize("cut", [lambda data: [data], bytewise])
def test_what_does_not_speak_http_is_found_out_at_once(greeting, cut):
    answer, server = asked()
    server.send(*cut(greeting))
    with pytest.raises(OnedError, match=r"^what answers at :one_xmlrpc: does not speak HTTP$"):
        result_of(answer)
    assert server.transport.disconnected


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (b"404 Not Found", "404 Not Found"),
        (b"500 hunter2", "500 Internal Server Error"),
        (b"502 Bad Gateway", "502 Bad Gateway"),
        (b"302 Found\r\nLocation: http://192.0.2.66/hunter2", "302 Found"),
        (b"204", "204 No Content"),
        (b"100 Continue", "100 Continue"),
        (b"999 hunter2", "unknown"),
        (b"hunter2", "unknown"),
        (b"", "unknown"),
        (b" 200 OK", "unknown"),
        (b"9" * 5000, "unknown"),
        (b"-1", "unknown"),
        (b"\xff\xfe", "unknown"),
    ],
)
def test_another_status_than_200_is_named_in_our_own_words(status, told):
    with pytest.raises(OnedError) as raised:
        answered(b"HTTP/1.1 %b\r\nContent-Length: 7\r\n\r\nhunter2" % status)
    assert str(raised.value) == f"oned answered with HTTP status {told} instead of 200 OK"


def test_a_status_line_that_ends_after_the_version_has_no_status():
    with pytest.raises(OnedError, match="status unknown"):
        answered(b"HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize("coding", [b"chunked", b"identity", b"gzip, chunked", b""])
def test_a_transfer_encoding_is_refused_as_oned_never_uses_one(coding):
    with pytest.raises(OnedError, match="Transfer-Encoding"):
        answered(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: %b\r\n\r\n5\r\nhello\r\n0\r\n\r\n" % coding)


def test_a_header_without_an_end_is_not_collected_for_ever():
    answer, server = asked()
    server.send(b"HTTP/1.1 200 OK\r\nX: ".ljust(MAX_HEADER_BYTES, b"x"))
    assert not answer.called
    server.send(b"x")
    with pytest.raises(OnedError, match="does not speak HTTP"):
        result_of(answer)
    assert server.transport.disconnected


@pytest.mark.parametrize("field", [b"", b"Content-Length: 99999999\r\n"])
def test_a_body_that_is_too_long_is_not_collected(field):
    answer, server = asked()
    server.send(b"HTTP/1.1 200 OK\r\n%b\r\n" % field, bytes(MAX_BODY_BYTES))
    assert not answer.called
    server.send(b"x")
    with pytest.raises(OnedError, match=rf"^oned's answer is longer than {MAX_BODY_BYTES} bytes$"):
        result_of(answer)
    assert server.transport.disconnected


def test_after_a_bad_answer_nothing_more_is_made_of_what_comes():
    answer, server = asked()
    server.send(b"HTTP/1.1 500 Oops\r\n\r\n")
    server.client.dataReceived(ANSWER)
    server.close(ConnectionLost)
    with pytest.raises(OnedError, match="500"):
        result_of(answer)


PIECES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 ",
            b"HTTP/",
            b"200",
            b"500 hunter2",
            b" ",
            b":",
            b"\r\n",
            b"\r\n\r\n",
            b"Content-Length: ",
            b"Content-Length: 7\r\n\r\n",
            b"Content-Length: hunter2\r\n\r\n",
            b"Transfer-Encoding: hunter2\r\n",
            b"7",
            b"hunter2",
            b"-",
        ]
    ),
)


@given(pieces=st.lists(PIECES, max_size=12), end=st.sampled_from([ConnectionDone, ConnectionLost]))
@example(pieces=[b"HTTP/1.1 200 OK\r\n\r\n", b"hunter2"], end=ConnectionDone)
@example(pieces=[b"HTTP/1.1 200 OK\r\n", b"Content-Length: 7\r\n\r\n", b"hunter2"], end=ConnectionLost)
@settings(max_examples=400, deadline=None)
def test_whatever_bytes_come_the_outcome_is_a_body_or_an_oned_error_without_them(pieces, end):
    try:
        outcome = answered(*pieces, end=end)
    except OnedError as error:
        outcome = error
    if isinstance(outcome, OnedError):
        assert "hunter2" not in repr(outcome)
        assert outcome.__cause__ is None
    else:
        assert outcome in b"".join(pieces)


# Connecting.


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TCPRefusedError, "oned refuses connections: it is not running, or not at :one_xmlrpc:"),
        (NoRouteError, "oned cannot be reached: NoRouteError"),
        (TCPTimedOutError, "oned cannot be reached: TCPTimedOutError"),
        (ConnectError, "oned cannot be reached: ConnectError"),
    ],
)
def test_a_connection_that_fails_says_why_and_the_next_question_is_answered(error, told):
    network = Network()
    exchange = HttpExchange(network, URL)
    answer = post(exchange)
    network.refuse(error)
    with pytest.raises(OnedError) as raised:
        result_of(answer)
    assert str(raised.value) == told
    assert raised.value.code == ErrorCode.INTERNAL

    answer = post(exchange)
    network.accept().send(ANSWER)
    assert result_of(answer) == b"hello"


def test_a_name_without_an_address_says_so():
    network = Network()
    network.addresses = ()
    with pytest.raises(OnedError, match=r"^the host of :one_xmlrpc: has no address$"):
        result_of(post(HttpExchange(network, URL)))


@pytest.mark.parametrize("name", ["one_front", "a..b", "front-", "x" * 64])
def test_a_host_name_that_is_none_for_dns_is_a_clear_error_or_is_looked_up(name):
    network = Network()
    answer = post(HttpExchange(network, f"http://{name}:2633/RPC2"))
    if network.dialled:
        network.accept().send(ANSWER)
        assert result_of(answer) == b"hello"
    else:
        with pytest.raises(OnedError, match="one_xmlrpc"):
            result_of(answer)


def exchanged(network, exchange):
    answer = post(exchange)
    network.accept().send(ANSWER)
    return result_of(answer)


def test_an_address_is_remembered_for_a_while_and_then_looked_up_again():
    network = Network("192.0.2.7")
    exchange = HttpExchange(network, URL)
    assert exchanged(network, exchange) == b"hello"
    network.addresses = ("192.0.2.8",)
    network.advance(ADDRESS_SECONDS - 1)
    assert exchanged(network, exchange) == b"hello"
    assert network.lookups == ["oned.example"]
    network.advance(1)
    assert exchanged(network, exchange) == b"hello"
    assert network.lookups == ["oned.example"] * 2
    assert network.dialled == [("192.0.2.7", 2633), ("192.0.2.7", 2633), ("192.0.2.8", 2633)]


def test_a_remembered_address_that_fails_is_forgotten_and_the_same_question_goes_to_the_new_one():
    network = Network("192.0.2.7")
    exchange = HttpExchange(network, URL)
    exchanged(network, exchange)
    network.addresses = ("192.0.2.8",)
    answer = post(exchange)
    network.refuse()
    network.accept().send(ANSWER)
    assert result_of(answer) == b"hello"
    assert network.lookups == ["oned.example"] * 2
    assert exchanged(network, exchange) == b"hello"
    assert network.dialled == [("192.0.2.7", 2633)] * 2 + [("192.0.2.8", 2633)] * 2


def test_an_address_that_refuses_is_not_remembered():
    network = Network()
    exchange = HttpExchange(network, URL)
    for _ in range(2):
        answer = post(exchange)
        network.refuse()
        with pytest.raises(OnedError, match="refuses"):
            result_of(answer)
    assert network.lookups == ["oned.example"] * 2


# Cancelling.


def test_cancelling_while_the_name_is_looked_up_dials_nobody():
    network = Network()
    network.slow_lookup = True
    answer = post(HttpExchange(network, URL))
    answer.cancel()
    network.finish_lookup()
    assert network.dialled == []
    with pytest.raises(CancelledError):
        result_of(answer)


@pytest.mark.parametrize("remembered", [False, True])
def test_cancelling_while_connecting_stops_that(remembered):
    network = Network()
    exchange = HttpExchange(network, URL)
    if remembered:
        exchanged(network, exchange)
    answer = post(exchange)
    assert not network.connectors[-1].stoppedConnecting
    answer.cancel()
    assert network.connectors[-1].stoppedConnecting
    with pytest.raises(CancelledError):
        result_of(answer)
    assert len(network.lookups) == 1
    assert exchanged(network, exchange) == b"hello"


@pytest.mark.parametrize("so_far", [b"", b"HTTP/1.1 200", ANSWER[:-1], ANSWER_WITHOUT_LENGTH])
def test_cancelling_while_waiting_and_in_the_middle_of_the_answer_closes_the_connection(so_far):
    answer, server = asked()
    server.send(so_far)
    assert not server.left_alone
    answer.cancel()
    assert server.transport.disconnected
    with pytest.raises(CancelledError):
        result_of(answer)
    server.close()  # of which nothing more comes


# https, over real sockets.


def certificate(name, key, *, issuer=None, names=(), days=(-1, 1)):
    """Return a certificate: a CA's own, or one issued by `issuer` (name, key) for these host names."""
    now = dt.datetime.now(dt.timezone.utc)
    issuer_name, issuer_key = issuer or (name, key)
    alternatives = [
        x509.IPAddress(ipaddress.ip_address(other)) if other[0].isdigit() else x509.DNSName(other) for other in names
    ]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer_name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=days[0]))
        .not_valid_after(now + dt.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    """Make the PEM files of two CAs, and of servers whose certificates the first of them has issued."""
    folder = tmp_path_factory.mktemp("pems")
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "other-ca", "server")}
    for name in ("ca", "other-ca"):
        (folder / f"{name}.pem").write_bytes(certificate(f"{name} of the tests", keys[name]))
    private = keys["server"].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    issuer = ("ca of the tests", keys["ca"])
    for name, more in {
        "good": {"names": ("localhost", "127.0.0.1")},
        "misnamed": {"names": ("oned.example",)},
        "expired": {"names": ("localhost",), "days": (-9, -2)},
    }.items():
        (folder / f"{name}.pem").write_bytes(certificate(name, keys["server"], issuer=issuer, **more) + private)
    return folder


class OnedOfHttps(http.server.BaseHTTPRequestHandler):
    """Answers every question with VM 0."""

    def do_POST(self):
        self.server.questions.append(self.rfile.read(int(self.headers["Content-Length"])))
        body = Answer(success=True, text=guest_xml(demo_cloud().guest(0))).body
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class HttpsServer(http.server.ThreadingHTTPServer):
    """Serves https with the certificate in a file, or plain http without one."""

    def __init__(self, chain):
        super().__init__(("127.0.0.1", 0), OnedOfHttps)
        self.questions = []
        self._context = None
        if chain is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(chain)

    def finish_request(self, request, client_address):
        if self._context is None:
            super().finish_request(request, client_address)
            return
        # The handshake is in the connection's own thread; a client that does not like our certificate ends it.
        with contextlib.suppress(OSError), self._context.wrap_socket(request, server_side=True) as connection:
            super().finish_request(connection, client_address)

    def shutdown_request(self, request):
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_WR)
        request.close()


@contextlib.contextmanager
def https_oned(chain):
    """Run an oned with this certificate, or one that speaks plain http without one."""
    with HttpsServer(chain) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def console_through(tmp_path, url, settings="", environment=()):
    """Return the answer of a service that asks the oned at this URL, and what it has logged."""
    with vnctoken_server(tmp_path / "one", url, settings, environment) as service:
        with xmlrpc.client.ServerProxy(service.url) as client:
            answer = client.one.vm.vnctoken("alice:secret", 0)
        return answer, service.log.read_text()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_an_https_oned_is_asked_if_the_configured_ca_vouches_for_it(tmp_path, pems, host):
    with https_oned(pems / "good.pem") as oned:
        answer, _ = console_through(
            tmp_path,
            f"https://{host}:{oned.server_port}/RPC2",
            f":one_xmlrpc_ca: {pems}/ca.pem",
            {"SSL_CERT_FILE": os.devnull},
        )
    assert answer[0] is True, answer
    assert answer[1]["Port"] == 5900


def test_an_https_oned_is_asked_if_a_ca_of_the_system_vouches_for_it_and_none_is_configured(tmp_path, pems):
    with https_oned(pems / "good.pem") as oned:
        answer, _ = console_through(
            tmp_path, f"https://localhost:{oned.server_port}/RPC2", "", {"SSL_CERT_FILE": pems / "ca.pem"}
        )
    assert answer[0] is True, answer


@pytest.mark.parametrize(
    ("chain", "configured_ca", "system_ca"),
    [
        pytest.param("good", "other-ca", "ca", id="the configured CA alone counts"),
        pytest.param("good", None, "other-ca", id="no CA of the system knows it"),
        pytest.param("misnamed", "ca", "ca", id="wrong host name"),
        pytest.param("expired", "ca", "ca", id="expired"),
        pytest.param(None, "ca", "ca", id="plain http"),
    ],
)
def test_an_https_oned_that_is_not_who_it_should_be_gets_no_question(tmp_path, pems, chain, configured_ca, system_ca):
    settings = f":one_xmlrpc_ca: {pems}/{configured_ca}.pem" if configured_ca else ""
    with https_oned(chain and pems / f"{chain}.pem") as oned:
        answer, log = console_through(
            tmp_path,
            f"https://localhost:{oned.server_port}/RPC2",
            settings,
            {"SSL_CERT_FILE": pems / f"{system_ca}.pem"},
        )
        assert oned.questions == []
    assert (answer[0], answer[2]) == (False, 0x2000), answer
    assert answer[1].startswith("the connection to oned failed: ")
    calls = [line for line in log.splitlines() if "one.vm.vnctoken" in line]
    assert len(calls) == 1
    assert answer[1] in calls[0]
    assert "Traceback" not in log


@pytest.mark.parametrize("reason", ["certificate verify failed", "wrong version number"])
def test_a_handshake_that_fails_is_told_in_openssls_words(reason):
    with pytest.raises(OnedError, match=f"TLS: {reason}"):
        answered(end=lambda: OpenSSL.SSL.Error([("SSL routines", "", reason)]))


def test_a_certificate_for_another_host_is_told_as_that():
    with pytest.raises(OnedError, match="certificate is for another host"):
        answered(end=lambda: VerificationError(errors=[]))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "which cannot be read: .*No such file"),
        (b"", "but a file with CA certificates in PEM is expected"),
        (b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n", "but a file with CA certificates in PEM"),
        (b"-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n", "which cannot be read"),
        (b"-----BEGIN CERTIFICATE-----\nMIIB", "but a file with CA certificates in PEM"),
    ],
)
def test_a_ca_file_that_is_none_is_found_out_at_the_start(tmp_path, content, told):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    config = Config(one_xmlrpc="https://localhost/RPC2", one_xmlrpc_ca=str(file), var=tmp_path)
    with pytest.raises(ConfigError, match=rf"^:one_xmlrpc_ca: is '{file}', {told}"):
        make_service(config, Network())


def test_a_ca_file_may_hold_several_certificates_and_text_between_them(tmp_path, pems):
    file = tmp_path / "cas.pem"
    file.write_bytes(b"# Ours\n" + (pems / "other-ca.pem").read_bytes() + b"# and\n" + (pems / "ca.pem").read_bytes())
    with https_oned(pems / "good.pem") as oned:
        answer, _ = console_through(tmp_path, f"https://localhost:{oned.server_port}/RPC2", f":one_xmlrpc_ca: {file}")
    assert answer[0] is True, answer
