"""Real VNC servers whose screens a test can tell apart, and what leads a browser to them."""

from __future__ import annotations

import contextlib
import json
import sys
import xmlrpc.client
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conftest import Running, Service, free_port, program, running, vnctoken_server
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from webservers import wait_for_port

if TYPE_CHECKING:
    from pathlib import Path

SIZE = (640, 480)
"""Width and height of a screen, in pixels."""
RED, BLUE, GREEN = (170, 40, 40), (40, 60, 170), (30, 120, 60)
FAILED = r"WebSocket connection to .* failed|Failed when connecting"
"""What Chromium and noVNC report, beside what the page says, when a connection comes to nothing: for `Tab.tolerate`."""

# The key is the same in every VNC program: the file is not meant to be a secret from who can read it. VNC's DES takes
# the bits of each byte in the opposite order.
PASSWORD_FILE_KEY = bytes(int(f"{byte:08b}"[::-1], 2) for byte in (23, 82, 107, 6, 35, 78, 88, 7))

# Alice's VMs, each with its VNC server on this machine; argument 1 is a JSON object of their GRAPHICS by VM id.
ONED = """
import json, sys
from twisted.internet.task import react
from vnctoken.sandbox.cloud import ALICE, Cloud, Guest, Stay
from vnctoken.sandbox.listening import serve
from vnctoken.sandbox.oned import OnedFactory

guests = [
    Guest(int(vm_id), f"vm-{vm_id}", ALICE, {"TYPE": "VNC", **graphics}, stays=(Stay("127.0.0.1"),))
    for vm_id, graphics in json.loads(sys.argv[1]).items()
]
where = ("127.0.0.1", 0)
react(lambda reactor: serve(reactor, "listens on {url}RPC2", where, OnedFactory(Cloud([ALICE], guests), reactor)))
"""


@dataclass
class VncServer:
    """A running VNC server, and where the lines typed into its screen arrive."""

    port: int
    typed: Path

    def lines(self):
        """Return the lines that were typed so far."""
        return self.typed.read_text(encoding="utf-8").splitlines()


@contextlib.contextmanager
def vnc_server(folder, port, colour, password=None, options=()):
    """Run TigerVNC's server for the time of a block, its screen filled by a terminal of that colour.

    Without a password there is no authentication; `options` are further ones of the server.
    """
    folder.mkdir(exist_ok=True)
    typed = folder / "typed"
    typed.touch()
    security = ("-SecurityTypes", "None")
    if password is not None:
        (folder / "password").write_bytes(_obfuscated(password))
        security = ("-SecurityTypes", "VncAuth", "-PasswordFile", folder / "password")
    server = (
        *(program("Xtigervnc"), "-displayfd", "1", "-ac", "-noreset", "-depth", "24"),
        *("-geometry", "{}x{}".format(*SIZE), "-interface", "127.0.0.1", "-rfbport", port, *security),
        # Every viewer comes from one address here: a few wrong passwords must not shut it out.
        *("-BlacklistThreshold", "1000"),
        *options,
    )
    with running(*server, ready=r"^\d+$") as process:
        display = process.wait_for(r"^\d+$").group()
        background = "#{:02x}{:02x}{:02x}".format(*colour)
        terminal = (
            *(program("xterm"), "-display", f":{display}", "-geometry", "200x80+0+0", "-bw", "0"),
            *("-bg", background, "-fg", "white", "-e", "sh", "-c", 'while read -r line; do echo "$line" >>"$0"; done'),
        )
        with running(*terminal, typed):
            yield VncServer(port, typed)


def _obfuscated(password):
    encryptor = Cipher(TripleDES(PASSWORD_FILE_KEY * 3), modes.ECB()).encryptor()
    return encryptor.update(password.encode().ljust(8, b"\0")[:8]) + encryptor.finalize()


@dataclass
class Consoles:
    """Alice's VMs in a running oned, the vnctoken-server that opens their consoles, and the proxy that leads there."""

    oned_port: int
    service: Service
    proxy_port: int
    proxy: Running

    def open(self, vm_id):
        """Return the answer to one.vm.vnctoken for alice."""
        with xmlrpc.client.ServerProxy(self.service.url) as server:
            ok, console, _ = server.one.vm.vnctoken("alice:secret", vm_id)
        assert ok, console
        return console


@contextlib.contextmanager
def consoles(folder, graphics, settings=""):
    """Run oned, vnctoken-server and the websocket proxy; `graphics` has GRAPHICS, such as PORT, of VMs by their ids."""
    with contextlib.ExitStack() as stack:
        oned = stack.enter_context(running(sys.executable, "-c", ONED, json.dumps(graphics), ready="listens on"))
        oned_url, oned_port = oned.wait_for(r"listens on (\S+:(\d+)/\S*)").groups()
        service = stack.enter_context(vnctoken_server(folder, oned_url, settings))
        port = free_port()
        proxy = stack.enter_context(
            running(
                *(sys.executable, "-m", "vnctoken.proxy", "--token-plugin", "TokenFile"),
                *("--token-source", service.tokens, f"127.0.0.1:{port}"),
            )
        )
        wait_for_port(port, proxy)
        yield Consoles(int(oned_port), service, port, proxy)
