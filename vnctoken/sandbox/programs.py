"""Our programs, run for the time of a block, and where noVNC is: for the demo and the benchmarks."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

START_SECONDS = 20
STOP_SECONDS = 10


class StartError(Exception):
    """Raised if a program does not start; its text holds what it said."""


@dataclass(frozen=True)
class Program:
    """A running program: the URL that it says it listens on, and its process."""

    url: str
    pid: int


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str] | None = None, log: IO[str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a command; its output goes to a file if one is given, else what it prints can be read."""
    without_journal = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
    with subprocess.Popen(  # noqa: S603 (of our own making)
        command, env={**without_journal, **(environment or {})}, stdout=log or subprocess.PIPE, stderr=log, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            process.kill()


@contextlib.contextmanager
def program(command: Sequence[str], **environment: str) -> Iterator[Program]:
    """Run a command that prints a line with "listens on URL"; raise StartError if it prints another."""
    with running(command, environment) as process:
        line = process.stdout.readline() if process.stdout else ""
        listening = re.search(r"listens on (\S+)", line)
        if listening is None:
            raise StartError(f"{' '.join(command)} did not start: {line.strip() or 'see above'}")
        yield Program(listening[1], process.pid)


@contextlib.contextmanager
def sandbox(*options: str) -> Iterator[Program]:
    """Run the sandbox on a free port."""
    with program([sys.executable, "-m", "vnctoken.sandbox", "--listen", "127.0.0.1:0", *options]) as started:
        yield started


@contextlib.contextmanager
def vnctoken_server(folder: Path, oned: str, settings: str = "") -> Iterator[Program]:
    """Run vnctoken-server on a free port, self-contained in a folder; `settings` are further lines of its file."""
    for name in ("etc", "var"):
        (folder / name).mkdir()
    usual = f":port: 0\n:monitor_listen: none\n:one_xmlrpc: {oned}\n"
    (folder / "etc" / "vnctoken-server.conf").write_text(usual + settings, encoding="utf-8")
    with program([sys.executable, "-m", "vnctoken.server"], ONE_LOCATION=str(folder)) as started:
        yield started


@contextlib.contextmanager
def vnctoken_websockify(folder: Path, resolver: str | None = None) -> Iterator[Program]:
    """Run vnctoken-websockify on a free port, with the tokens of the server in the same folder.

    It reads the token folder, or asks the resolver at HOST:PORT.
    """
    port = free_port()
    plugin, source = "TokenFile", str(folder / "var" / "sunstone_vnc_tokens")
    if resolver is not None:
        plugin, source = "JSONTokenApi", f"http://{resolver}/token/%s"
    options = ("--token-plugin", plugin, "--token-source", source)
    command = [sys.executable, "-m", "vnctoken.proxy", *options, f"127.0.0.1:{port}"]
    with (folder / f"websockify-{port}.log").open("w+", encoding="utf-8") as log, running(command, log=log) as process:
        wait_for(port, process, log)
        yield Program(f"ws://127.0.0.1:{port}/websockify", process.pid)


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago, for programs that do not take 0."""
    with socket.create_server(("127.0.0.1", 0)) as there:
        return int(there.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[str], log: IO[str] | None = None) -> None:
    """Wait until a program that does not say so listens; raise StartError if it ends or START_SECONDS pass."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS).close()
            return
        if process.poll() is not None or time.monotonic() > deadline:
            said = ""
            if log is not None:
                log.seek(0)
                said = log.read().strip()
            raise StartError(f"nobody listens on 127.0.0.1:{port}: {said or 'see above'}")
        time.sleep(0.05)


def find_novnc() -> Path | None:
    """Return where noVNC is: what npm has put beside this Python's packages, else Debian's; None without either."""
    places = Path(sys.prefix) / "node_modules" / "@novnc" / "novnc", Path("/usr/share/novnc")
    return next((place for place in places if (place / "core" / "rfb.js").exists()), None)
