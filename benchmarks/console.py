#!/usr/bin/env python3
"""How long from the portal's call to the first picture of a console, and what an open console costs.

    benchmarks/console.py                  with 1, 100 and 1000 other live tokens
    benchmarks/console.py --others 1 10000 --rounds 20 --open 50

Everything is real but oned and the VM's screen, which the sandbox plays: vnctoken-server, vnctoken-websockify, and a
viewer that does what noVNC does until it has the whole screen (raw encoding). The three parts of the way:

    issue      XML-RPC call, on a connection of its own, until the token is here
    connect    TCP and websocket handshake; meanwhile websockify looks the token up, and connects to the screen
    picture    the VNC handshake, and one whole picture

Two proxies run side by side: one reads the token folder, every file of it for every connection, the other one asks the
resolver of vnctoken-server. The machine is noisy: the numbers of tokens and the proxies take turns in every round, and
a figure is the median over the rounds.
Memory is the proportional set size (PSS): what processes share is counted once.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import socket
import statistics
import sys
import tempfile
import time
import xmlrpc.client
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vnctoken.sandbox.programs import free_port, sandbox, vnctoken_server, vnctoken_websockify
from vnctoken.tokens import new_token
from vnctoken.tokens.files import TokenFiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vnctoken.sandbox.programs import Program

SESSION, VM_ID = "alice:secret", 0
FIRST_OTHER_VM_ID = 1_000_000
RAW_32_BITS = bytes((0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 0, 8, 16, 0, 0, 0))
"""SetPixelFormat, as noVNC sends it."""


@dataclass(frozen=True)
class Times:
    """How long one console took to open, in milliseconds."""

    issue: float
    connect: float
    picture: float

    @property
    def whole(self) -> float:
        """The time that somebody waits."""
        return self.issue + self.connect + self.picture


class Viewer:
    """A VNC viewer over a websocket, of the parts that a server without a password needs."""

    def __init__(self, websocket: str, token: str) -> None:
        there = urlsplit(websocket)
        self._socket = socket.create_connection((there.hostname, there.port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self._payload = bytearray()
        self._socket.sendall(
            f"GET {there.path}?token={token} HTTP/1.1\r\nHost: {there.netloc}\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: binary\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        status = self._file.readline()
        if b" 101 " not in status:
            sys.exit(f"websockify refused the token: {status!r}")
        while self._file.readline().strip():
            pass

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()

    def picture(self) -> bytes:
        """Go through the handshake and return the pixels of the first picture."""
        self._receive(12)
        self._send(b"RFB 003.008\n")
        self._receive(self._receive(1)[0])
        self._send(b"\x01")
        if int.from_bytes(self._receive(4), "big"):
            sys.exit("the screen refused us")
        self._send(b"\x01")
        width, height = (int.from_bytes(self._receive(2), "big") for _ in range(2))
        self._receive(16)
        self._receive(int.from_bytes(self._receive(4), "big"))
        size = width.to_bytes(2, "big") + height.to_bytes(2, "big")
        self._send(RAW_32_BITS + b"\x02\x00\x00\x01\x00\x00\x00\x00" + b"\x03\x00\x00\x00\x00\x00" + size)
        pixels = bytearray()
        while len(pixels) < width * height * 4:
            for _ in range(int.from_bytes(self._receive(4)[2:], "big")):
                head = self._receive(12)
                pixels += self._receive(int.from_bytes(head[4:6], "big") * int.from_bytes(head[6:8], "big") * 4)
        return bytes(pixels)

    def _send(self, data: bytes) -> None:
        # A mask of zeros leaves the data as it is. Ours are short: one byte of length will do.
        self._socket.sendall(bytes((0x82, 0x80 | len(data))) + bytes(4) + data)

    def _receive(self, size: int) -> bytes:
        while len(self._payload) < size:
            length = self._exactly(2)[1]
            if length in (126, 127):
                length = int.from_bytes(self._exactly(2 if length == 126 else 8), "big")  # noqa: PLR2004 (RFC 6455)
            self._payload += self._exactly(length)
        data = bytes(self._payload[:size])
        del self._payload[:size]
        return data

    def _exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            sys.exit("the connection ended before the first picture")
        return data


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", type=int, nargs="+", default=[1, 100, 1000], help="other live tokens")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--open", type=int, default=20, help="consoles that are open at once, for their memory")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vnctoken-benchmark-")))
        cloud = stack.enter_context(sandbox("--screens"))
        resolver = f"127.0.0.1:{free_port()}"
        server = stack.enter_context(vnctoken_server(folder, cloud.url, f":resolver_listen: {resolver}\n"))
        proxies = {
            "folder": stack.enter_context(vnctoken_websockify(folder)),
            "resolver": stack.enter_context(vnctoken_websockify(folder, resolver)),
        }
        _show_times(server.url, proxies, folder, options.others, options.rounds)
        pids = {
            "vnctoken-server": server.pid,
            "vnctoken-websockify": proxies["folder"].pid,
            "the screen (sandbox)": cloud.pid,
        }
        _show_memory(server.url, proxies["folder"].url, pids, options.open)


def _show_times(server: str, proxies: Mapping[str, Program], folder: Path, others: Sequence[int], rounds: int) -> None:
    tokens = TokenFiles(folder / "var" / "sunstone_vnc_tokens")
    times: dict[tuple[int, str], list[Times]] = {(number, name): [] for number in others for name in proxies}
    for round_ in range(rounds + 1):
        for number in others:
            _set_others(tokens, folder, number)
            for name, proxy in proxies.items():
                measured = _console(server, proxy.url)
                if round_:  # the first one warms up
                    times[number, name].append(measured)
    print(f"From the call to the first picture, in ms: medians of {rounds} rounds\n")
    print(f"{'other tokens':>12}{'by':>10}{'issue':>9}{'connect':>9}{'picture':>9}{'in all':>9}{'ratio':>7}")
    for name in proxies:
        first = statistics.median(its.whole for its in times[others[0], name])
        for number in others:
            its = times[number, name]
            parts = "".join(f"{statistics.median(getattr(it, part.name) for it in its):9.1f}" for part in fields(Times))
            whole = statistics.median(it.whole for it in its)
            print(f"{number:12}{name:>10}{parts}{whole:9.1f}{whole / first:7.2f}")


def _set_others(tokens: TokenFiles, folder: Path, number: int) -> None:
    """Make the folder hold this many tokens of other VMs."""
    there = list((folder / "var" / "sunstone_vnc_tokens").glob(f"one-{FIRST_OTHER_VM_ID // 1000}*"))
    for path in there[number:]:
        path.unlink()
    for vm_id in range(FIRST_OTHER_VM_ID + len(there), FIRST_OTHER_VM_ID + number):
        tokens.replace(vm_id, f"{new_token()}: 127.0.0.1:5900\n".encode())


def _console(server: str, websocket: str) -> Times:
    start = time.perf_counter()
    token = _issued(server)
    issued = time.perf_counter()
    viewer = Viewer(websocket, token)
    connected = time.perf_counter()
    viewer.picture()
    shown = time.perf_counter()
    viewer.close()
    return Times((issued - start) * 1000, (connected - issued) * 1000, (shown - connected) * 1000)


def _issued(server: str) -> str:
    with xmlrpc.client.ServerProxy(server) as portal:
        answer: Any = portal.one.vm.vnctokenonly(SESSION, VM_ID)
    if answer[0] is not True:
        sys.exit(f"no token: {answer}")
    return str(answer[1])


def _show_memory(server: str, websocket: str, pids: dict[str, int], number: int) -> None:
    before = {name: _memory_mb(pid) for name, pid in pids.items()}
    viewers = [Viewer(websocket, _issued(server)) for _ in range(number)]
    for viewer in viewers:
        viewer.picture()
    print(f"\nMemory in MB, with {number} consoles open\n")
    print(f"{'':22}{'before':>9}{'open':>9}{'a console':>11}")
    for name, pid in pids.items():
        now = _memory_mb(pid)
        print(f"{name:22}{before[name]:9.1f}{now:9.1f}{(now - before[name]) / number:11.2f}")
    for viewer in viewers:
        viewer.close()


def _memory_mb(pid: int) -> float:
    """Return the memory of a process and its children."""
    return sum(_pss_kb(each) for each in (pid, *_children(pid))) / 1024


def _children(pid: int) -> Iterable[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="utf-8").split():
            yield int(child)


def _pss_kb(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(match[1]) if match else 0


if __name__ == "__main__":
    main()
