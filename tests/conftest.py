"""What several tests need: real programs, started on loopback and stopped again, whatever happens."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 30


def program(name):
    """Return the path of a real program, or skip the test and name it; with CI=true that is a failure."""
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if path is None:
        message = f"{name} is not installed; tests/system-programs lists the Debian packages"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


def free_port():
    """Return a port that is free on both loopback addresses.

    It is below those that the kernel hands out by itself, so nobody gets it by chance before it is used.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as ipv4:
            ipv4.bind(("127.0.0.1", port))
            if ipv6_loopback():
                with socket.socket(socket.AF_INET6) as ipv6:
                    ipv6.bind(("::1", port))
            return port


def ipv6_loopback():
    """Return whether this machine has ::1."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@dataclass
class Running:
    """A process that was started for a test, and what it has printed so far."""

    process: subprocess.Popen
    lines: list = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self):
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def output(self):
        return "\n".join(self.lines)

    def wait_for(self, pattern, seconds=START_SECONDS):
        """Return the match of the first printed line that fits; fail with the output if none comes."""

        def found():
            return next(filter(None, (re.search(pattern, line) for line in self.lines)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or not self._reader.is_alive(), timeout=seconds)
            match = found()
        assert match, f"{self.process.args} did not print {pattern!r} but:\n{self.output}"
        return match

    def stop(self, how=signal.SIGTERM, seconds=START_SECONDS):
        """End the process and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._reader.join(seconds)
            self.process.stdout.close()
        return code


@contextlib.contextmanager
def running(*args, ready=None, **popen):
    """Run a program for the time of a block; `ready` is a pattern of the line that says it is up."""
    popen.setdefault("env", dict(os.environ))
    popen["env"].setdefault("PYTHONUNBUFFERED", "1")
    process = subprocess.Popen(
        [str(arg) for arg in args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **popen
    )
    started = Running(process)
    try:
        if ready is not None:
            started.wait_for(ready)
        yield started
    finally:
        started.stop()


def tokens_in(file):
    """Return the tokens in a file of the token folder, and where each leads, as websockify reads them."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return dict(line.split(": ") for line in lines)


@dataclass
class Cloud:
    """A running sandbox oned."""

    url: str
    process: Running


@pytest.fixture(scope="session", autouse=True)
def the_reactors_threads_end():
    """End the threads of the real reactor when all tests are over, or the process would not; they begin once only."""
    yield
    reactor = sys.modules.get("twisted.internet.reactor")
    if reactor is not None and reactor.getThreadPool().started:
        reactor.getThreadPool().stop()


@pytest.fixture(scope="session")
def cloud():
    """Run the sandbox's oned as a process: users alice:secret, bob:secret and oneadmin:opennebula."""
    args = (sys.executable, "-m", "vnctoken.sandbox", "--listen", "127.0.0.1:0")
    with running(*args, ready=r"listens on (\S+)") as process:
        yield Cloud(process.wait_for(r"listens on (http://\S+)").group(1), process)


@dataclass
class Service:
    """A running vnctoken-server and where its things are."""

    url: str
    one_location: Path
    process: Running

    @property
    def port(self):
        return int(re.search(r":(\d+)/", self.url).group(1))

    @property
    def tokens(self):
        return self.one_location / "var" / "sunstone_vnc_tokens"

    @property
    def log(self):
        return self.one_location / "var" / "vnctoken.log"


NO_LIMITS = ":calls_per_user: none\n:calls_per_vm: none\n:tokens_per_user: none\n"
"""Settings for tests that call as fast as they can, about anything but the limits."""


@contextlib.contextmanager
def vnctoken_server(one_location, oned_url, settings="", environment=()):
    """Run the real `vnctoken-server` for the time of a block, self-contained under `one_location`."""
    (one_location / "etc").mkdir(parents=True, exist_ok=True)
    (one_location / "var").mkdir(exist_ok=True)
    # Two services on one machine would want the same ports.
    usual = {":port:": "0", ":one_xmlrpc:": oned_url, ":monitor_listen:": "none"}
    lines = [f"{key} {value}\n" for key, value in usual.items() if key not in settings]
    (one_location / "etc" / "vnctoken-server.conf").write_text(f"{''.join(lines)}{settings}\n", encoding="utf-8")
    env = {**os.environ, "ONE_LOCATION": str(one_location), **dict(environment)}
    env.pop("JOURNAL_STREAM", None)
    with running(sys.executable, "-m", "vnctoken.server", env=env, ready="listens on") as process:
        yield Service(process.wait_for(r"listens on (http://\S+)").group(1), one_location, process)


@pytest.fixture
def service(tmp_path, cloud):
    """Run a `vnctoken-server` process in front of the sandbox's oned."""
    with vnctoken_server(tmp_path / "one", cloud.url) as running_service:
        yield running_service
