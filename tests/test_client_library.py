"""The library for portals in Python: one set of calls and two clients, with the real service and with worse ones."""

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
from conftest import free_port, program, vnctoken_server
from hypothesis import given
from hypothesis import strategies as st
from redisservers import leftovers, waited
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from vnctoken.arguments import Options
from vnctoken.client import Client, Console, LiveToken, calls
from vnctoken.client.calls import BATCH
from vnctoken.client.endpoints import MAX_ANSWER_BYTES
from vnctoken.client.errors import (
    ActionError,
    ApiError,
    AuthenticationError,
    AuthorizationError,
    ClientError,
    ErrorCode,
    InternalError,
    NoExistsError,
    TokenStoreError,
    VnctokenError,
)
from vnctoken.client.twisted import AsyncClient
from vnctoken.tokens import fingerprint
from vnctoken.wire import Fault, write_answer

SESSION = "alice:secret"
SOON = 0.3
"""Seconds that clients give to those who will not answer."""


class Plain:
    """A Client, asked as it is."""

    def __init__(self, url, session=SESSION, timeout=30):
        self.client = Client(url, session, timeout=timeout)

    def __call__(self, method, *args, **options):
        return getattr(self.client, method)(*args, **options)


class UnderTwisted:
    """An AsyncClient, whose answers are waited for on the real reactor."""

    def __init__(self, url, session=SESSION, timeout=30):
        self.client = AsyncClient(reactor, url, session, timeout=timeout)

    def __call__(self, method, *args, **options):
        return waited(getattr(self.client, method)(*args, **options))


@pytest.fixture(params=[Plain, UnderTwisted])
def ask(request):
    """Give both kinds of client, one after the other, and see that nothing of theirs is left in the reactor."""
    yield request.param
    waited(connections_end())
    assert leftovers() == []


async def connections_end():
    """Let the reactor close what it was told to close."""
    deadline = time.monotonic() + 5
    while leftovers() and time.monotonic() < deadline:
        await deferLater(reactor, 0.005)


@pytest.fixture(scope="module")
def service(tmp_path_factory, cloud):
    """Run a service that can keep all options, and knows a page that shows consoles."""
    settings = f"""
:resolver_listen: 127.0.0.1:{free_port()}
:console_url: https://cloud.example.org/console.html#path={{path}}
:tokens_per_vm: 100
"""
    with vnctoken_server(tmp_path_factory.mktemp("service"), cloud.url, settings) as running_service:
        yield running_service


@contextlib.contextmanager
def answering(behave, tls=None):
    """Run a server that does `behave(connection)` with each connection; give its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ended = threading.Event()

        def serve():
            while not ended.is_set():
                connection, _ = listening.accept()
                connection.settimeout(10)
                with contextlib.suppress(OSError), connection:
                    if ended.is_set():
                        return
                    with connection if tls is None else tls.wrap_socket(connection, server_side=True) as accepted:
                        behave(accepted, ended)

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield listening.getsockname()[1]
        finally:
            ended.set()
            socket.create_connection(listening.getsockname(), 1).close()
            serving.join(30)
            assert not serving.is_alive()


def says(answer):
    """Return what reads a request and answers with bytes."""

    def behave(connection, _ended):
        request = b""
        while b"</methodCall>" not in request and (more := connection.recv(65536)):
            request += more
        connection.sendall(answer)

    return behave


def http(body, head=b""):
    return (
        b"HTTP/1.1 200 OK\r\n" + (head or b"Content-Length: %d\r\n" % len(body)) + b"Connection: close\r\n\r\n" + body
    )


def url_at(port, scheme="http", host="127.0.0.1"):
    return f"{scheme}://{host}:{port}/RPC2"


# With the service


def test_a_console_has_what_a_viewer_needs(ask, service):
    console = ask(service.url)("console", 1, ttl=60)
    assert console == Console(
        1,
        "dummy-host-1",
        "VNC",
        5901,
        "0.0.0.0",
        "s3cr3tpw",
        False,
        console.token,
        60,
        f"https://cloud.example.org/console.html#path=websockify%3Ftoken%3D{console.token}",
    )
    assert len(console.token) == 32


def test_no_password_and_no_token_is_in_what_is_printed_of_a_console_or_a_client(ask, service):
    client = ask(service.url)
    console = client("console", 1)
    for shown in (repr(console), str(console), repr(client.client), repr(calls.tokens(SESSION, 1))):
        assert console.token not in shown
        assert "s3cr3tpw" not in shown
        assert "secret" not in shown


def test_tokens_are_listed_with_their_terms_and_taken_back_one_by_one_and_all(ask, service):
    client = ask(service.url)
    client("revoke", 2)
    tokens = [client("token", 2), client("token", 2, single_use=True, client="192.0.2.7", ttl=77)]
    first, second = client("tokens", 2)
    assert [first.fingerprint, second.fingerprint] == [fingerprint(token) for token in tokens]
    assert second == LiveToken(second.fingerprint, "alice", second.issued, second.issued + 77, 0, True, "192.0.2.7")
    assert (first.single_use, first.client) == (False, "")
    assert client("revoke", 2, second.fingerprint) == 1
    assert client("revoke", 2, tokens[0]) == 1
    client("token", 2)
    assert client("revoke", 2) == 1
    assert client("tokens", 2) == []


def test_the_xml_of_a_console_is_there_too(ask, service):
    assert "<HOST>dummy-host-2.example.org</HOST>" in ask(service.url)("xml", 20)


def test_the_tokens_of_many_vms_come_at_once_with_what_was_refused(ask, service):
    client = ask(service.url)
    token = client("token", 27)
    found = client("tokens_by_vm", [27, 9, *range(5000, 5000 + BATCH)])
    assert list(found) == [27, 9, *range(5000, 5000 + BATCH)]
    assert fingerprint(token) in [live.fingerprint for live in found[27]]
    assert isinstance(found[9], AuthorizationError)
    assert {type(found[vm_id]) for vm_id in range(5000, 5000 + BATCH)} == {NoExistsError}


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (NoExistsError, "Graphics type 'SPICE' but 'VNC' expected", (3, SESSION)),
        (ActionError, "Unsupported VM state! STATE:8 LCM_STATE:0", (7, SESSION)),
        (AuthorizationError, "Not authorized to perform USE VM", (9, SESSION)),
        (AuthenticationError, "couldn't be authenticated", (20, "alice:wr0ng-one")),
        (ApiError, "Argument 2, the VM id", ("x", SESSION)),
    ],
)
def test_each_refusal_is_an_error_of_its_own_with_the_services_text(ask, service, error, text, call):
    vm_id, session = call
    with pytest.raises(error) as caught:
        ask(service.url, session)("console", vm_id)
    assert type(caught.value) is error
    assert text in str(caught.value)
    assert "wr0ng" not in repr(caught.value)


@pytest.mark.parametrize("wrong", [{"vm_id": 2**31}, {"vm_id": 20, "ttl": 2**31}, {"vm_id": 20, "ttl": 0}])
def test_a_number_that_is_none_of_ours_is_refused_and_not_passed_over(ask, service, wrong):
    with pytest.raises(ApiError):
        ask(service.url)("token", **wrong)


# With worse ones


def test_nobody_listens(ask):
    with pytest.raises(ClientError, match="refused: nobody listens there"):
        ask(url_at(free_port()))("token", 20)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (http(b"<html>"), "not XML-RPC"),
        (http(b"<!DOCTYPE x><methodResponse/>"), "not XML-RPC"),
        (http(write_answer([True, 7, 0])), "not the one that vnctoken-server gives"),
        (http(write_answer(Fault(-32700, "you said alice:secret"))), "XML-RPC fault -32700"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404 Not Found; is this the address"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "302 Found"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "does not speak HTTP"),
        (b"", "closed without a"),
        (http(b"<?xml", b"Content-Length: 900\r\n"), "closed in the middle of it"),
        (http(b"5\r\n<?xml", b"Transfer-Encoding: chunked\r\n"), "closed in the middle of it"),
        (http(b" " * (MAX_ANSWER_BYTES + 1)), "longer than 16777216 bytes"),
    ],
)
def test_whoever_else_answers_is_told_from_the_service(ask, answer, text):
    with answering(says(answer)) as port, pytest.raises(ClientError, match=text) as caught:
        ask(url_at(port))("token", 20)
    assert caught.value.code == ErrorCode.INTERNAL
    assert "secret" not in str(caught.value)


def test_an_answer_in_chunks_is_read(ask):
    body = write_answer([True, "a-token", 0])
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    with answering(says(http(chunked, b"Transfer-Encoding: chunked\r\n"))) as port:
        assert ask(url_at(port))("token", 20) == "a-token"


def drips(head):
    """Return what says the head of an answer and then a byte every now and then, for ever."""

    def behave(connection, ended):
        connection.sendall(head)
        while not ended.wait(SOON / 5):
            connection.sendall(b"x")

    return behave


@pytest.mark.parametrize(
    "behave", [drips(b"HTTP/1.1 200 OK\r\nX: "), drips(http(b"", b"Content-Length: 99999\r\n")), drips(b"")]
)
def test_the_timeout_is_for_the_whole_answer_however_it_trickles_in(ask, behave):
    began = time.monotonic()
    with answering(behave) as port, pytest.raises(ClientError, match=r"no answer within 0\.3 seconds|speak HTTP"):
        ask(url_at(port), timeout=SOON)("token", 20)
    assert time.monotonic() - began < 10 * SOON


@contextlib.contextmanager
def deaf():
    """Listen with a full queue: whoever wants to connect goes on waiting. Give the port."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    "server",
    [
        deaf,
        lambda: answering(lambda _, ended: ended.wait(30)),
        lambda: answering(drips(b"HTTP/1.1 200 OK\r\nX: ")),
        lambda: answering(drips(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n")),
    ],
)
def test_who_cancels_a_call_is_told_that_it_was_cancelled(server):
    async def cancelled():
        calling = Deferred.fromCoroutine(AsyncClient(reactor, url_at(port), SESSION).token(20))
        # Time to come as far as the server lets it.
        await deferLater(reactor, SOON)
        calling.cancel()
        await calling

    with server() as port, pytest.raises(CancelledError):
        waited(cancelled())
    waited(connections_end())
    assert leftovers() == []


def test_a_host_that_twisted_takes_for_no_name_has_no_address():
    with pytest.raises(ClientError, match="has no address"):
        waited(AsyncClient(reactor, url_at(9, host="no_name.invalid"), SESSION).token(20))


def test_the_timeout_is_for_the_handshake_of_tls_too(ask):
    with answering(drips(b"")) as port, pytest.raises(ClientError, match=r"no answer within 0\.3 seconds|TLS: "):
        ask(url_at(port, "https"), timeout=SOON)("token", 20)
    with answering(lambda _, ended: ended.wait(30)) as port, pytest.raises(ClientError, match="no answer within"):
        ask(url_at(port, "https"), timeout=SOON)("token", 20)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Make a certificate for localhost that vouches for itself, and give the file with it and its key."""
    file = tmp_path_factory.mktemp("certificate") / "localhost.pem"
    key = file.with_suffix(".key")
    what = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    subprocess.run(
        [
            program("openssl"),
            "req",
            *what.split(),
            "-addext",
            "subjectAltName=DNS:localhost",
            "-out",
            file,
            "-keyout",
            key,
        ],
        capture_output=True,
        timeout=60,
        check=True,
    )
    file.write_bytes(file.read_bytes() + key.read_bytes())
    return file


@pytest.fixture
def tls_server(certificate):
    """Run an https server at localhost with the certificate, and give its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with answering(says(http(write_answer([True, "a-token", 0]))), context) as port:
        yield port


def test_a_certificate_that_nobody_vouches_for_is_not_accepted(ask, tls_server):
    with pytest.raises(ClientError, match="the certificate is not accepted"):
        ask(url_at(tls_server, "https", "localhost"))("token", 20)


def test_a_certificate_for_another_host_is_not_accepted(ask, tls_server, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with pytest.raises(ClientError, match="the certificate is not accepted"):
        ask(url_at(tls_server, "https"))("token", 20)


def test_a_certificate_of_an_authority_in_the_environment_is_accepted(ask, tls_server, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert ask(url_at(tls_server, "https", "localhost"))("token", 20) == "a-token"


def test_a_certificate_of_an_authority_of_the_programs_own_is_accepted(tls_server, certificate):
    tls = ssl.create_default_context(cafile=str(certificate))
    assert Client(url_at(tls_server, "https", "localhost"), SESSION, tls=tls).token(20) == "a-token"


def test_the_next_address_of_a_host_is_tried():
    with answering(says(http(write_answer([True, "a-token", 0])))) as port:
        assert Client(url_at(port, host="localhost"), SESSION).token(20) == "a-token"


# What is wrong before anything is sent


@pytest.mark.parametrize("kind", [Client, lambda url: AsyncClient(reactor, url)])
@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:2644",
        "ftp://x/",
        "http://",
        "http://x:99999/",
        "http://a b/",
        "http://a:secret@x/",
        "http://ü/",
        "http://a..b/",
        f"http://{'a' * 70}.example/",
    ],
)
def test_what_is_no_endpoint_is_said_so_without_the_password_in_it(kind, url):
    with pytest.raises(ValueError, match="expected") as caught:
        kind(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["\udcff", "\0", "\x1b[D", "\uffff"])
def test_a_session_that_is_not_unicode_is_refused_without_being_told(ask, text):
    with pytest.raises(ValueError, match="must be Unicode") as caught:
        ask(url_at(1), f"alice:secret{text}")("token", 20)
    assert "secret" not in repr(caught.value)
    assert caught.value.__context__ is None


# Reading alone


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationError,
        AuthorizationError,
        NoExistsError,
        ActionError,
        ApiError,
        InternalError,
        TokenStoreError,
    ],
)
def test_each_code_has_its_error(error):
    with pytest.raises(error) as caught:
        calls.token(SESSION, 1, Options()).read(write_answer([False, "why", int(error.code)]))
    assert type(caught.value) is error
    assert str(caught.value) == "why"


def test_every_code_of_the_protocol_is_known_and_another_is_the_services_trouble():
    for code in set(ErrorCode) - {ErrorCode.SUCCESS}:
        with pytest.raises(VnctokenError) as caught:
            calls.revoke(SESSION, 1).read(write_answer([False, "why", int(code)]))
        assert caught.value.code == code
    with pytest.raises(InternalError):
        calls.revoke(SESSION, 1).read(write_answer([False, "why", 0x8000]))


_VALUES = st.recursive(
    st.booleans() | st.integers(-(2**40), 2**40) | st.text(st.characters(codec="ascii", min_codepoint=32)),
    lambda values: (
        st.lists(values, max_size=4) | st.dictionaries(st.sampled_from(["VmId", "Token", "faultCode"]), values)
    ),
    max_leaves=12,
)


@given(st.binary() | _VALUES.map(write_answer) | _VALUES.map(lambda value: write_answer([True, value, 0])))
def test_whatever_is_answered_it_is_a_result_or_an_error_of_the_tree(answer):
    for question in (
        calls.console(SESSION, 1, Options()),
        calls.token(SESSION, 1, Options()),
        calls.revoke(SESSION, 1),
        calls.tokens(SESSION, 1),
        next(calls.tokens_by_vm(SESSION, [1])),
    ):
        with contextlib.suppress(VnctokenError):
            question.read(answer)


def test_the_plain_library_loads_neither_twisted_nor_anything_else_that_is_slow():
    code = "import sys, vnctoken.client, vnctoken.client.command; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"twisted", "zope", "pyone", "yaml", "OpenSSL", "cryptography"} & set(done.stdout.split())
