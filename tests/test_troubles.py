"""Everything that can go wrong around the running service, and what must never happen in it."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import http.client
import re
import select
import signal
import socket
import sys
import time
import xmlrpc.client
from pathlib import Path

import pytest
from conftest import NO_LIMITS, START_SECONDS, free_port, running, tokens_in, vnctoken_server

from vnctoken.sandbox.behaviour import UGLY_GUESTS
from vnctoken.tokens import fingerprint

SESSION = "alice:secret"
LIMIT = 65_536


def call(method="one.vm.vnctoken", *arguments):
    """Return the body of a call."""
    return xmlrpc.client.dumps(arguments, method).encode()


def send(service, body, *, verb="POST", path="/RPC2", headers=()):
    """Return the status and the body of the answer to a request over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=START_SECONDS)
    with contextlib.closing(connection):
        connection.request(verb, path, body, {"Connection": "close", **dict(headers)})
        response = connection.getresponse()
        return response.status, response.read()


def read(answer):
    """Return the value that an XML-RPC answer holds; a fault is raised."""
    return xmlrpc.client.loads(answer)[0][0]


def ask(service, vm_id=0, session=SESSION, method="one.vm.vnctoken"):
    status, answer = send(service, call(method, session, vm_id))
    assert status == 200
    return read(answer)


def assert_works(service):
    answer = ask(service)
    assert (answer[0], answer[2]) == (True, 0), answer


def until(condition, seconds=START_SECONDS):
    """Wait until the condition is true; fail if that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def log_lines(service):
    return service.log.read_text(encoding="utf-8").splitlines()


def port_of(url):
    return int(re.search(r":(\d+)/", url).group(1))


def connections_at(port):
    """Return how many connections a server on this port of 127.0.0.1 has, as the kernel sees it."""
    server, established = f"0100007F:{port:04X}", "01"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1] == server and row[3] == established for row in rows)


@pytest.fixture(scope="module")
def hasty(tmp_path_factory, cloud):
    """Run a service that gives oned one second."""
    with vnctoken_server(tmp_path_factory.mktemp("hasty"), cloud.url, ":one_xmlrpc_timeout: 1") as service:
        assert_works(service)
        yield service


@pytest.fixture(scope="module")
def patient(tmp_path_factory, cloud):
    """Run a service with the default settings, that logs everything."""
    with vnctoken_server(tmp_path_factory.mktemp("patient"), cloud.url, ":debug_level: 3") as service:
        assert_works(service)
        yield service


# The ugly sides of oned.

LATE = "oned did not answer within 1 seconds"
NOT_XML_RPC = "oned's answer is not XML-RPC"
NO_XML = "oned answered with a VM that is not XML"
ONEDS_OWN_ERROR = 914
TROUBLES = {
    900: LATE,
    901: LATE,
    902: "the connection to oned failed: ConnectionLost",
    903: "oned closed the connection without an answer",
    904: "what answers at :one_xmlrpc: does not speak HTTP",
    905: NOT_XML_RPC,
    906: "oned answered with HTTP status 502 Bad Gateway instead of 200 OK",
    907: "oned answered with HTTP status 302 Found instead of 200 OK",
    908: "oned's answer is incomplete: the connection was closed in the middle of it",
    909: LATE,
    910: LATE,
    911: "oned's answer is longer than 16777216 bytes",
    912: "oned did not accept our question: XML-RPC fault -500",
    913: "oned refused with a code we do not know: 0x8000",
    914: "[one.vm.info] The sandbox was asked for an error.",
    915: "oned's answer is not the array that it should be",
    916: NO_XML,
    917: NO_XML,
    918: NOT_XML_RPC,
    919: NO_XML,
    920: NOT_XML_RPC,
    921: None,  # numbers in 64 bits are none
}


def test_every_ugly_side_that_the_sandbox_has_is_in_the_table():
    assert TROUBLES.keys() == UGLY_GUESTS.keys()


@pytest.mark.parametrize(("vm_id", "trouble"), TROUBLES.items())
def test_a_trouble_with_oned_is_a_clear_answer_and_one_line_in_the_log_and_the_next_call_works(hasty, vm_id, trouble):
    before = log_lines(hasty)
    answer = ask(hasty, vm_id)
    lines = log_lines(hasty)[len(before) :]
    code = 0 if trouble is None else 0x2000
    assert [answer[0], answer[2]] == [trouble is None, code], answer
    assert len(lines) == 1, lines
    assert f" one.vm.vnctoken vm={vm_id} user=alice ms=" in lines[0]
    assert f" code={code:#06x} " in lines[0]
    assert (hasty.tokens / f"one-{vm_id}").exists() == (trouble is None)
    if trouble is not None:
        assert answer[1] == trouble
        # oned's own words may repeat what it was asked: they are for the client, and not for the log.
        told = "oned had an error of its own; its log says which" if vm_id == ONEDS_OWN_ERROR else trouble
        assert lines[0].endswith(f" reason={told}")
        assert lines[0] in (hasty.log.parent / "vnctoken.error").read_text()
    assert_works(hasty)


def sandbox_at(port, *options):
    return running(
        sys.executable, "-m", "vnctoken.sandbox", "--listen", f"127.0.0.1:{port}", *options, ready="listens on"
    )


def test_an_oned_that_comes_and_goes_is_asked_again_once_it_is_there(tmp_path):
    port = free_port()
    refused = [False, "oned refuses connections: it is not running, or not at :one_xmlrpc:", 0x2000]
    with (
        vnctoken_server(tmp_path / "one", f"http://127.0.0.1:{port}/RPC2") as service,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        assert ask(service) == refused
        for _ in range(2):
            with sandbox_at(port) as oned:
                assert_works(service)
                hanging = pool.submit(ask, service, 901)
                until(lambda: connections_at(port))
                oned.stop(signal.SIGKILL)
                success, text, code = hanging.result(START_SECONDS)
                assert (success, code) == (False, 0x2000)
                assert re.match("oned closed the connection|the connection to oned failed", text)
            assert ask(service) == refused
        log = service.log.read_text()
        assert log.count("one.vm.vnctoken") == 7
        assert "Traceback" not in log


def test_an_oned_that_takes_few_connections_answers_everybody_in_the_end(tmp_path):
    with (
        sandbox_at(0, "--max-connections", "3") as oned,
        vnctoken_server(tmp_path / "one", oned.wait_for(r"(http://\S+)").group(1)) as service,
        concurrent.futures.ThreadPoolExecutor(40) as pool,
    ):
        answers = list(pool.map(lambda _: ask(service), range(80)))
        assert [answer[0] for answer in answers] == [True] * 80
        with xmlrpc.client.ServerProxy(service.url) as client:
            multicall = xmlrpc.client.MultiCall(client)
            for _ in range(40):
                multicall.one.vm.vnctokenonly(SESSION, 0)
            assert [answer[0] for answer in multicall()] == [True] * 40


def test_a_call_in_flight_is_answered_before_the_service_ends(tmp_path, cloud):
    with (
        vnctoken_server(tmp_path / "one", cloud.url) as service,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        until(lambda: not connections_at(port_of(cloud.url)))
        slow = pool.submit(ask, service, 900)
        until(lambda: connections_at(port_of(cloud.url)))
        assert service.process.stop() == 0
        answer = slow.result(START_SECONDS)
    assert (answer[0], answer[2]) == (True, 0)
    assert answer[1]["Token"] in tokens_in(service.tokens / "one-900")


def test_a_client_that_leaves_while_oned_is_asked_gets_no_token(patient, cloud):
    oned = port_of(cloud.url)
    until(lambda: not connections_at(oned))
    before = len(log_lines(patient))
    body = call("one.vm.vnctoken", SESSION, 901)
    with socket.create_connection(("127.0.0.1", patient.port)) as client:
        client.sendall(b"POST /RPC2 HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        until(lambda: connections_at(oned))
    until(lambda: not connections_at(oned))
    until(lambda: len(log_lines(patient)) > before)
    assert_works(patient)
    cancelled, worked = log_lines(patient)[before:]
    assert cancelled.endswith(" cancelled: the client went away")
    assert " vm=0 " in worked
    assert not (patient.tokens / "one-901").exists()


# Hostile bodies.


def with_vm_id(value, session=b"<string>alice:secret</string>"):
    """Return a call whose VM id is this piece of XML."""
    return (
        b"<methodCall><methodName>one.vm.vnctoken</methodName><params><param><value>%b</value></param>"
        b"<param><value>%b</value></param></params></methodCall>" % (session, value)
    )


def nested(levels):
    return b"<array><data><value>" * levels + b"</value></data></array>" * levels


def with_dtd(declarations, reference=b"&e;"):
    return b"<!DOCTYPE methodCall [" + declarations + b"]>" + with_vm_id(reference)


LAUGHS = b'<!ENTITY l0 "lol">' + b"".join(
    b'<!ENTITY l%d "%b">' % (step, b"&l%d;" % (step - 1) * 10) for step in range(1, 10)
)
CALL = with_vm_id(b"<int>0</int>").decode()
UMLAUT = with_vm_id(b"<int>0</int>", "<string>alice:ä</string>".encode()).decode()


def declared(encoding, text=CALL):
    return f'<?xml version="1.0" encoding="{encoding}"?>{text}'


NOT_WELL_FORMED, INVALID = "fault -32700", "fault -32600"
HOSTILE = {
    "billion laughs": (with_dtd(LAUGHS, b"&l9;"), NOT_WELL_FORMED),
    "quadratic blowup": (with_dtd(b'<!ENTITY e "' + b"x" * 30_000 + b'">', b"&e;" * 8_000), NOT_WELL_FORMED),
    "a file of ours": (with_dtd(b'<!ENTITY e SYSTEM "file:///etc/passwd">'), NOT_WELL_FORMED),
    "a DTD elsewhere": (b'<!DOCTYPE methodCall SYSTEM "http://127.0.0.1:9/">' + CALL.encode(), NOT_WELL_FORMED),
    "a harmless DTD": (b"<!DOCTYPE methodCall>" + CALL.encode(), NOT_WELL_FORMED),
    "parameter entities": (with_dtd(b"<!ENTITY % p \"<!ENTITY e 'x'>\"> %p;"), NOT_WELL_FORMED),
    "an unknown entity": (with_vm_id(b"&e;"), NOT_WELL_FORMED),
    "60 nested arrays": (with_vm_id(nested(60)), 0x1000),
    "1,400 nested arrays": (with_vm_id(nested(1_400)), NOT_WELL_FORMED),
    "3,000 nested arrays": (with_vm_id(b"<array><data><value>" * 3_000), NOT_WELL_FORMED),
    "100,000 nested arrays": (with_vm_id(nested(100_000)), 413),
    "20,000 open elements": (b"<a>" * 20_000, NOT_WELL_FORMED),
    "an int of 4,300 digits": (with_vm_id(b"<int>" + b"9" * 4_300 + b"</int>"), 0x1000),
    "an int of 60,000 digits": (with_vm_id(b"<int>" + b"9" * 60_000 + b"</int>"), 0x1000),
    "60,000 digits": (with_vm_id(b"9" * 60_000), 0x1000),
    "60,000 zeros and a 0": (with_vm_id(b"0" * 60_001), 0),
    "nil": (with_vm_id(b"<nil/>"), 0x1000),
    "a double": (with_vm_id(b"<double>0</double>"), 0x1000),
    "a boolean": (with_vm_id(b"<boolean>0</boolean>"), 0x1000),
    "base64": (with_vm_id(b"<base64>" + b"A" * 60_000 + b"</base64>"), 0x1000),
    "an unknown type": (with_vm_id(b"<" + b"t" * 40_000 + b"/>"), 0x1000),
    "6,000 attributes": (b"<a" + b"".join(b" a%d=''" % n for n in range(6_000)) + b"/>", INVALID),
    "7,000 parameters": (CALL.encode().replace(b"</params>", b"<param/>" * 7_000 + b"</params>"), 0),
    "a long method name": (call("x" * 60_000, SESSION, 0), 0x1000),
    "a long session": (call("one.vm.vnctoken", "alice:" + "x" * 60_000, 0), 0x0100),
    "a session of spaces": (call("one.vm.vnctoken", " " * 60_000, 0), 0x1000),
    "no body": (b"", NOT_WELL_FORMED),
    "64 KiB of nothing": (b" " * LIMIT, NOT_WELL_FORMED),
    "64 KiB of NUL": (b"\0" * LIMIT, NOT_WELL_FORMED),
    "one byte too many": (b" " * (LIMIT + 1), 413),
    "JSON": (b'{"jsonrpc": "2.0", "method": "one.vm.vnctoken", "id": 1}', NOT_WELL_FORMED),
    "HTML": (b"<html><body>hello</body></html>", INVALID),
    "a methodCall without a name": (b"<methodCall><params/></methodCall>", INVALID),
    "a methodResponse": (CALL.replace("methodCall", "methodResponse").encode(), INVALID),
    "bad UTF-8": (CALL.replace("alice", "\udcff", 1).encode("utf-8", "surrogateescape"), NOT_WELL_FORMED),
    "a NUL in the name": (CALL.replace("one.vm", "one\0vm").encode(), NOT_WELL_FORMED),
    "a NUL as a reference": (with_vm_id(b"&#0;"), NOT_WELL_FORMED),
    "something after the end": (CALL.encode() + CALL.encode(), NOT_WELL_FORMED),
    "UTF-8 with a BOM": (b"\xef\xbb\xbf" + CALL.encode(), 0),
    "UTF-16": (declared("UTF-16", UMLAUT).encode("utf-16"), 0x0100),
    "UTF-16 without saying so": (CALL.encode("utf-16-le"), NOT_WELL_FORMED),
    "said to be UTF-16": (declared("UTF-16").encode(), NOT_WELL_FORMED),
    "latin-1": (declared("ISO-8859-1", UMLAUT).encode("latin-1"), 0x0100),
    "latin-1 without saying so": (UMLAUT.encode("latin-1"), NOT_WELL_FORMED),
    "an unknown encoding": (declared("hunter2").encode(), NOT_WELL_FORMED),
    "a very long encoding": (declared("x" * 60_000).encode(), NOT_WELL_FORMED),
    "a multicall of 2,000 calls": (
        b"<methodCall><methodName>system.multicall</methodName><params><param><value><array><data>"
        + b"<value><struct/></value>" * 2_000
        + b"</data></array></value></param></params></methodCall>",
        "2000 faults -32602",
    ),
}


def verdict(status, answer):
    """Return what came of a body: another HTTP status than 200, a fault, or the code of the answer."""
    if status != 200:
        return status
    try:
        value = read(answer)
    except xmlrpc.client.Fault as fault:
        return f"fault {fault.faultCode}"
    if isinstance(value[0], dict):
        assert all(entry["faultCode"] == -32602 for entry in value)
        return f"{len(value)} faults -32602"
    assert len(value) == 3
    assert value[0] is (value[2] == 0)
    return value[2]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_gets_a_clear_answer_and_the_next_call_works(patient, name):
    body, expected = HOSTILE[name]
    before = len(log_lines(patient))
    status, answer = send(patient, body)
    assert verdict(status, answer) == expected
    assert "Traceback" not in "\n".join(log_lines(patient)[before:])
    assert_works(patient)


@pytest.mark.parametrize("name", [name for name, (body, _) in HOSTILE.items() if b"<!" in body])
def test_a_dtd_is_refused_and_nothing_of_it_is_expanded(patient, name):
    _, answer = send(patient, HOSTILE[name][0])
    assert verdict(200, answer) == NOT_WELL_FORMED
    assert len(answer) < 1_000
    assert b"lollol" not in answer
    assert b"root:" not in answer


def resident_kib(process):
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text()).group(1))


def test_hostile_bodies_do_not_make_the_service_grow(tmp_path, cloud):
    # A multicall's answer alone weighs half a megabyte; 100,000 arrays end the connection.
    bodies = [body for body, outcome in HOSTILE.values() if outcome != 413 and not str(outcome).startswith("2000")]
    with vnctoken_server(tmp_path / "one", cloud.url, NO_LIMITS) as service:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=START_SECONDS)
        with contextlib.closing(connection):

            def hit(times):
                for number in range(times):
                    connection.request("POST", "/RPC2", bodies[number % len(bodies)])
                    assert connection.getresponse().read()

            hit(200)
            before = resident_kib(service.process.process)
            hit(2_000)
            assert resident_kib(service.process.process) - before < 30 * 1024
        assert_works(service)


# Many connections.


def test_600_idle_connections_leave_room_for_512_of_which_each_is_served(tmp_path, cloud):
    with vnctoken_server(tmp_path / "one", cloud.url, ":max_connections: 512") as service:
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=START_SECONDS))
                for _ in range(600)
            ]
            poll = select.poll()
            for client in clients:
                poll.register(client, select.POLLIN)
            until(lambda: len(poll.poll(0)) >= 88)
            answered = {descriptor for descriptor, _ in poll.poll(0)}
            refused = [client for client in clients if client.fileno() in answered]
            assert len(refused) == 88
            assert all(client.recv(1000).startswith(b"HTTP/1.1 503 ") for client in refused)

            body = call("one.vm.vnctokenonly", SESSION, 0)
            served = [client for client in clients if client not in refused][::100]
            for client in served:
                client.sendall(b"POST /RPC2 HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            assert all(client.recv(1000).startswith(b"HTTP/1.1 200 ") for client in served)

        def works():
            with contextlib.suppress(AssertionError, ConnectionError):
                assert_works(service)
                return True
            return False

        until(works)
        log = service.log.read_text()
    assert "512 connections are open (:max_connections:)" in log
    assert "Traceback" not in log


# What never happens.

SECRETS = [
    "secret",
    "hunter2",
    "with:colons:in:it",
    "s3cr3tpw",
    base64.b64encode(b"alice:secret").decode(),
]


def mixed_run(service):
    """Call everything in every right and wrong way; return the tokens that were handed out."""
    tokens = []
    for method in ("one.vm.vnctoken", "one.vm.vnctokenonly", "one.vm.vnc"):
        for session in (SESSION, SESSION + "\n", "oneadmin:opennebula", "eve:with:colons:in:it", "bob:hunter2"):
            for vm_id in (0, 1, 5, 9, 17, "1", 7, 10, 12, 15, 30, 77, -1, "hunter2", True, 902, 912, 913, 914, 918):
                answer = ask(service, vm_id, session, method)
                if answer[0]:
                    tokens += re.findall(r"\b[0-9a-f]{32}\b", str(answer[1]))
    wrong = [
        call("one.vm.vnctoken"),
        call("one.vm.vnctoken", "hunter2"),
        call("one.vm.vnctoken", "hunter2", 0),
        call("one.vm.vnctoken", 0, SESSION),
        call("one.vm.vnctoken", ["hunter2"], 0),
        call("one.vm.vnctoken", {"session": "hunter2"}, 0),
        call("one.vm.vnctoken", SESSION, {"hunter2": "hunter2"}),
        call("one.vm.vnctoken", SESSION, 0, "hunter2"),
        call(SESSION, "one.vm.vnctoken", 0),
        call("hunter2", SESSION, 0),
        call("system.listMethods", "hunter2"),
        call("system.methodHelp", "hunter2"),
        call("system.methodSignature", SESSION),
        call("system.multicall", "hunter2"),
        call("system.multicall", [{"methodName": "hunter2", "params": ["hunter2"]}, "hunter2", {"hunter2": SESSION}]),
        call("system.multicall", [{"methodName": "one.vm.vnctoken", "params": [SESSION, 0]}]),
        with_dtd(b'<!ENTITY e "hunter2">'),
        with_vm_id(b"<hunter2/>"),
        call("one.vm.vnctoken", SESSION, 0)[:-10],
        b"<hunter2>alice:secret</hunter2>",
        b"alice:secret hunter2",
        declared("hunter2").encode(),
    ]
    for body in wrong:
        _, answer = send(service, body)
        tokens += re.findall(r"\b[0-9a-f]{32}\b", answer.decode())
    headers = {"Authorization": "Basic " + SECRETS[-1], "Cookie": "session=hunter2", "Content-Type": "hunter2/hunter2"}
    for path in ("/RPC2?session=alice:secret", "/hunter2", "/RPC2/hunter2", "/?hunter2"):
        for verb in ("POST", "GET", "HEAD", "PUT", "DELETE", "HUNTER2"):
            send(service, call("one.vm.vnctoken", "bob:hunter2", 0), verb=verb, path=path, headers=headers)
    for raw in (b"POST hunter2\r\n\r\n", b"POST /RPC2 HTTP/1.1\r\nhunter2\r\n\r\n", b"alice:secret\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", service.port), timeout=START_SECONDS) as client:
            client.sendall(raw)
            assert client.recv(1000).startswith(b"HTTP/1.1 400 ")
    return tokens


def test_no_session_password_or_token_is_ever_logged(tmp_path, cloud):
    with vnctoken_server(tmp_path / "one", cloud.url, ":debug_level: 3") as service:
        tokens = mixed_run(service)
        command = Path(f"/proc/{service.process.process.pid}/cmdline").read_text()
    log = service.log.read_text()
    written = log + (service.log.parent / "vnctoken.error").read_text() + service.process.output + command
    assert len(tokens) > 50
    assert log.count(" one.vm.vnc") > 300
    assert log.count(" unknown ") >= 2
    assert log.count(" fault code=-32") >= 8
    assert all(f"token={fingerprint(token)}" in log for token in tokens)
    assert [token for token in tokens if token in written] == []
    assert [line for line in written.splitlines() if any(secret in line for secret in SECRETS)] == []
    assert "Traceback" not in written
