"""`python -m vnctoken.sandbox`, as a process."""

import base64
import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import xmlrpc.client
from urllib.parse import urlsplit

import pytest
import zmq
from conftest import program, running
from lxml import etree
from PIL import Image
from twisted.internet.task import Clock

from vnctoken.sandbox.cloud import demo_cloud
from vnctoken.sandbox.rfb import authentication_response
from vnctoken.sandbox.screen import Screen
from vnctoken.sandbox.screens import start_screens
from vnctoken.sandbox.serverx509 import new_certificate

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


def test_the_server_whose_certificate_it_is_told_logs_in_with_the_private_key(tmp_path):
    certificate, key = (tmp_path / name for name in ("cert.pem", "key.pem"))
    for file, content in zip((certificate, key), new_certificate(), strict=True):
        file.write_bytes(content)
    sign = [program("openssl"), "pkeyutl", "-sign", "-inkey", key]
    text = f"serverx509:alice:{int(time.time()) + 1800}".encode()
    signed = subprocess.run(sign, input=text, capture_output=True, timeout=60, check=True).stdout
    session = "serverx509:alice:" + base64.b64encode(base64.b64encode(signed)).decode()
    with (
        sandbox("--server-certificate", str(certificate)) as (url, _),
        xmlrpc.client.ServerProxy(url) as server,
    ):
        assert server.one.vm.info(session, 0)[0] is True
        assert server.one.vm.info(session.replace(":alice:", ":bob:"), 0)[2] == 0x200
        assert server.one.vm.info(session + "AAAA", 0)[2] == 0x100


def test_a_server_certificate_that_cannot_be_read_ends_it_with_the_reason(tmp_path):
    command = [*COMMAND, "--server-certificate", str(tmp_path / "none")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert "none cannot be read: No such file or directory" in result.stderr


def test_it_says_where_it_publishes_events_and_publishes_them_there():
    with sandbox("--events", "127.0.0.1:0") as (url, process), xmlrpc.client.ServerProxy(url) as server:
        endpoint = process.wait_for(r"^oned sandbox publishes events at (tcp://127\.0\.0\.1:[1-9]\d+)$").group(1)
        with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
            subscriber.subscribe(b"EVENT STATE VM/")
            subscriber.connect(endpoint)
            deadline = time.monotonic() + 30
            # What is published before the subscription has arrived is nobody's.
            while not subscriber.poll(20):
                assert time.monotonic() < deadline
                for action in ("poweroff", "resume"):
                    assert server.one.vm.action("alice:secret", action, 0) == [True, 0, 0]
            head, message = subscriber.recv_multipart()
        assert re.fullmatch(rb"EVENT STATE VM/[A-Z]+/[A-Z_]+/0 ", head)
        assert etree.fromstring(base64.b64decode(message)).findtext("VM/ID") == "0"
        assert process.stop() == 0
        assert len(process.lines) == 2


def test_an_events_port_that_is_taken_is_named_and_the_exit_code_is_1():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run(
            [*COMMAND, "--listen", "127.0.0.1:0", "--events", f"127.0.0.1:{port}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Cannot publish on 127.0.0.1 port {port}: ")
    assert "Traceback" not in result.stderr


def test_it_can_be_without_a_method():
    with sandbox("--without", "one.vmpool.infoset") as (url, _), xmlrpc.client.ServerProxy(url) as server:
        with pytest.raises(xmlrpc.client.Fault, match="not defined"):
            server.one.vmpool.infoset("alice:secret", "0", False)
        assert server.one.vmpool.info("alice:secret", -2, -1, -1, -1)[0] is True


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
    assert result.stderr.startswith(f"Cannot listen on 127.0.0.1 port {port}: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("address", ["2633", "localhost", "localhost:", ":2633", "localhost:http"])
def test_an_address_must_be_host_and_port(address):
    result = subprocess.run([*COMMAND, "--listen", address], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert f"{address!r} is not HOST:PORT" in result.stderr


# Screens

WITH_A_SCREEN = {0, 1, 2, 5, 9, 13, 16, 17, 19, 20, 21, 22, 23, 24, 25, 27, 28, 29, 32, 33, 34, 35, 36, 37}
PASSWORDS = {1: "s3cr3tpw", 5: "a<&>b'c", 27: "pässwörd-東京", 28: "x]]>y"}


def vm_info(server, vm_id):
    """Return the XML of a VM as the administrator sees it."""
    ok, document, _ = server.one.vm.info("oneadmin:opennebula", vm_id)
    assert ok, document
    return etree.fromstring(document)


def host_element(vm):
    """Return where oned says at which host a VM is."""
    at_vcenter = vm.find("MONITORING/VCENTER_ESX_HOST")
    return vm.find("HISTORY_RECORDS/HISTORY[last()]/HOSTNAME") if at_vcenter is None else at_vcenter


def target(vm):
    """Return the host and port that a console of the VM is opened at."""
    return host_element(vm).text, int(vm.findtext("TEMPLATE/GRAPHICS/PORT"))


def address(url, vm_id):
    with xmlrpc.client.ServerProxy(url) as server:
        return target(vm_info(server, vm_id))


def exactly(connection, length):
    data = b""
    while len(data) < length:
        received = connection.recv(length - len(data))
        assert received, f"closed after {data!r}"
        data += received
    return data


def log_in(connection, password=None):
    """Shake hands as a viewer; return the title of the screen, or the reason why it is not shown."""
    assert exactly(connection, 12) == b"RFB 003.008\n"
    connection.sendall(b"RFB 003.008\n")
    security = 1 if password is None else 2
    assert exactly(connection, 2) == bytes([1, security])
    connection.sendall(bytes([security]))
    if password is not None:
        connection.sendall(authentication_response(password, exactly(connection, 16)))
    if exactly(connection, 4) != b"\0\0\0\0":
        reason = everything(connection)
        return reason[4:].decode()
    connection.sendall(b"\x01")
    return exactly(connection, struct.unpack(">20xI", exactly(connection, 24))[0]).decode()


def full_picture(connection):
    """Return the screen as it is shown to a viewer that is logged in."""
    connection.sendall(struct.pack(">BB4H", 3, 0, 0, 0, *Screen.size))
    picture = Image.new("RGB", Screen.size)
    for _ in range(struct.unpack(">xxH", exactly(connection, 4))[0]):
        x, y, width, height, _ = struct.unpack(">4Hi", exactly(connection, 12))
        pixels = exactly(connection, 4 * width * height)
        picture.paste(Image.frombytes("RGB", (width, height), pixels, "raw", "BGRX"), (x, y))
    return picture


def test_every_vm_that_can_have_a_screen_has_its_own_behind_its_own_password():
    cloud = demo_cloud()
    with sandbox("--screens") as (url, process):
        with xmlrpc.client.ServerProxy(url) as server:
            targets = {vm_id: target(vm_info(server, vm_id)) for vm_id in WITH_A_SCREEN}
        assert len(set(targets.values())) == len(WITH_A_SCREEN)
        for vm_id, (host, port) in targets.items():
            assert host == "127.0.0.1"
            assert port >= 5900
            guest = cloud.guest(vm_id)
            with socket.create_connection((host, port), timeout=30) as viewer:
                assert log_in(viewer, PASSWORDS.get(vm_id)) == f"VM {vm_id}: {guest.name}"
                expected = Screen(guest.name, vm_id, owner=guest.owner.name, clock=Clock()).image
                shown = full_picture(viewer)
                assert shown.crop(Screen.identity).tobytes() == expected.crop(Screen.identity).tobytes()
        assert process.lines == [f"oned sandbox listens on {url}"]


def test_a_wrong_password_opens_no_screen():
    with sandbox("--screens") as (url, _):
        with socket.create_connection(address(url, 1), timeout=30) as viewer:
            assert log_in(viewer, "wrong") == "Authentication failed: this is not the password of the screen."
        with socket.create_connection(address(url, 1), timeout=30) as viewer:
            assert log_in(viewer, PASSWORDS[1]) == "VM 1: vnc-passwd"


def test_all_else_of_the_vms_is_as_without_screens():
    """But that there are no ugly ones, whose ids are of VMs that are not there."""
    documents = []
    for options in ((), ("--screens",)):
        with sandbox(*options) as (url, _), xmlrpc.client.ServerProxy(url) as server:
            vms = {vm_id: vm_info(server, vm_id) for vm_id in range(38)}
            absent = server.one.vm.info("alice:secret", 921)
        for vm_id in WITH_A_SCREEN:
            # The drivers' name for the VM begins with the host.
            for element in (
                host_element(vms[vm_id]),
                vms[vm_id].find("TEMPLATE/GRAPHICS/PORT"),
                vms[vm_id].find("DEPLOY_ID"),
            ):
                element.clear()
        documents.append({vm_id: etree.tostring(vm) for vm_id, vm in vms.items()})
    assert documents[0] == documents[1]
    assert absent[:2] == [False, "[one.vm.info] Error getting virtual machine [921]."]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_viewers_connected(how):
    with sandbox("--screens") as (url, process), contextlib.ExitStack() as stack:
        viewers = [stack.enter_context(socket.create_connection(address(url, 0), timeout=30)) for _ in range(3)]
        log_in(viewers[0])
        full_picture(viewers[0])
        viewers[0].sendall(struct.pack(">BB4H", 3, 1, 0, 0, *Screen.size))
        # The second waits in the handshake, and the third does not read what it has asked for.
        log_in(viewers[2])
        viewers[2].sendall(struct.pack(">BB4H", 3, 0, 0, 0, *Screen.size) * 50)
        assert process.stop(how) == 0
        assert process.lines == [f"oned sandbox listens on {url}"]


def test_garbage_ends_one_connection_and_leaves_no_trace():
    with sandbox("--screens") as (url, process):
        with socket.create_connection(address(url, 0), timeout=30) as viewer:
            title = log_in(viewer)
            for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"RFB 003.008\n\x01\x01" + b"\xff" * 100):
                with socket.create_connection(address(url, 0), timeout=30) as other:
                    other.sendall(garbage)
                    with contextlib.suppress(ConnectionResetError):
                        everything(other)
            assert full_picture(viewer).size == Screen.size
        assert title == "VM 0: vnc-plain"
        assert process.stop() == 0
        assert process.lines == [f"oned sandbox listens on {url}"]


def test_one_vm_can_be_pointed_at_a_vnc_server_that_is_there():
    with socket.create_server(("127.0.0.1", 0)) as real:
        port = real.getsockname()[1]
        with sandbox("--vnc", f"127.0.0.1:{port}") as (url, _):
            assert address(url, 0) == ("127.0.0.1", port)
            with socket.create_connection(address(url, 2), timeout=30) as viewer:
                assert log_in(viewer) == "VM 2: vnc-lower-case"


def test_without_pillow_there_is_an_oned_but_screens_say_what_is_missing(tmp_path):
    (tmp_path / "PIL.py").write_text("raise ModuleNotFoundError(\"No module named 'PIL'\")\n", encoding="utf-8")
    without = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with running(*COMMAND, "--listen", "127.0.0.1:0", env=dict(without), ready=READY) as process:
        assert process.stop() == 0
    result = subprocess.run(
        [*COMMAND, "--listen", "127.0.0.1:0", "--screens"],
        capture_output=True,
        env=without,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert "No module named 'PIL'" in result.stderr
    assert "pip install 'vnctoken[demo]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_pyzmq_events_say_what_is_missing(tmp_path):
    (tmp_path / "zmq.py").write_text("raise ModuleNotFoundError(\"No module named 'zmq'\")\n", encoding="utf-8")
    result = subprocess.run(
        [*COMMAND, "--listen", "127.0.0.1:0", "--events", "127.0.0.1:0"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert "No module named 'zmq'" in result.stderr
    assert "pip install 'vnctoken[events]'" in result.stderr


class LowPorts(Clock):
    """A reactor whose kernel hands out ports from 5890 on."""

    def __init__(self):
        super().__init__()
        self.listening = set()
        self._next = 5890

    def listenTCP(self, port, factory, interface):
        assert (port, interface) == (0, "127.0.0.1")
        port, self._next = self._next, self._next + 1
        self.listening.add(port)
        return LowPort(self, port)


class LowPort:
    def __init__(self, reactor, port):
        self._reactor = reactor
        self.port = port

    def getHost(self):
        return self

    def stopListening(self):
        self._reactor.listening.remove(self.port)


def test_a_port_that_is_none_of_vncs_is_not_used():
    reactor = LowPorts()
    cloud = start_screens(reactor, {})
    assert cloud.guest(0).graphics["PORT"] == "5900"
    assert reactor.listening == set(range(5900, 5900 + len(WITH_A_SCREEN)))
