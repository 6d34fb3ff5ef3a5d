"""`python -m vnctoken.sandbox`, as a process."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
import xmlrpc.client
from urllib.parse import urlsplit

import pytest
from conftest import running

COMMAND = (sys.executable, "-m", "vnctoken.sandbox")
READY = r"^oned sandbox listens on (http://\S+:\d+/RPC2)$"
VM_INFO = xmlrpc.client.dumps(("alice:secret", 0), "one.vm.info").encode()
REQUEST = b"POST /RPC2 HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(VM_INFO) + VM_INFO


@contextlib.contextmanager
def sandbox(*options, listen="127.0.0.1:0"):
    with running(*COMMAND, "--listen", listen, *options, ready=READY) as process:
        yield process.wait_for(READY).group(1), process


def connect(url):
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def everything(connection):
    return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("options", [(), ("--max-connections", "2")])
def test_it_says_where_it_listens_in_one_line_and_ends_with_0_when_told_to(how, options):
    with sandbox(*options) as (url, process), connect(url):
        assert process.stop(how) == 0
        assert process.lines == [f"oned sandbox listens on {url}"]


@pytest.mark.parametrize("options", [(), ("--max-connections", "2")])
def test_it_listens_on_ipv6(options):
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with sandbox(*options, listen="[::1]:0") as (url, _):
        assert url.startswith("http://[::1]:")
        with xmlrpc.client.ServerProxy(url) as server:
            assert server.one.system.version("alice:secret") == [True, "6.10.0", 0]


def test_every_answer_can_be_delayed():
    with sandbox("--delay", "0.3") as (url, _), xmlrpc.client.ServerProxy(url) as server:
        start = time.monotonic()
        assert server.one.vm.info("alice:secret", 0)[0] is True
        assert time.monotonic() - start >= 0.3


def test_connections_over_the_limit_wait_until_another_one_ends():
    with sandbox("--max-connections", "2") as (url, _), contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(url)) for _ in range(2)]
        waiting = [stack.enter_context(connect(url)) for _ in range(3)]
        for connection in waiting:
            connection.sendall(REQUEST)
            connection.settimeout(0.3)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.settimeout(30)
        idle[0].close()
        assert all(b"vnc-plain" in everything(connection) for connection in waiting)


def test_an_ugly_vm_resets_the_connection():
    with sandbox() as (url, _), xmlrpc.client.ServerProxy(url) as server, pytest.raises(ConnectionResetError):
        server.one.vm.info("alice:secret", 902)


@pytest.mark.parametrize("options", [(), ("--max-connections", "2")])
def test_a_port_that_is_taken_is_named_and_the_exit_code_is_1(options):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run(
            [*COMMAND, "--listen", f"127.0.0.1:{port}", *options],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("The sandbox cannot listen: ")
    assert str(port) in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("address", ["2633", "localhost", "localhost:", ":2633", "localhost:http"])
def test_an_address_must_be_host_and_port(address):
    result = subprocess.run([*COMMAND, "--listen", address], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert f"{address!r} is not HOST:PORT" in result.stderr
