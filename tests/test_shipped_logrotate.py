"""The shipped logrotate files, in a real logrotate, on the logs of a running service and a running proxy."""

from __future__ import annotations

import contextlib
import getpass
import grp
import gzip
import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
import xmlrpc.client

import pytest
from conftest import ROOT, START_SECONDS, free_port, program, running, vnctoken_server
from webservers import replaced, until
from wsclient import GREETING, HandshakeRefusedError, WebSocket, screen

LINE = re.compile(r"\d{4}-\d\d-\d\dT\S+ [A-Z]+ +\S.*")
CALL = re.compile(r".* one\.vm\.vnctoken vm=(\d+) .*code=0x0400.*")


@pytest.fixture
def rotating(tmp_path):
    """Return a function that makes one which runs logrotate with a shipped file on the logs of a folder."""

    def on(shipped, folder):
        configuration = tmp_path / shipped
        me = f"{getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name}"
        text = replaced(
            (ROOT / "logrotate" / shipped).read_text(encoding="utf-8"),
            [("/var/log/one/", f"{folder}/"), ("su oneadmin oneadmin", f"su {me}")],
        )
        configuration.write_text(text, encoding="utf-8")
        configuration.chmod(0o644)
        folder.chmod(0o755)

        def rotate(*options):
            # Names carry the second: another rotation in the same one would be refused. logrotate's clock, time(2), is
            # up to a tick behind ours.
            next_second = int(time.time()) + 1.05
            until(lambda: time.time() > next_second)
            run = subprocess.run(
                [program("logrotate"), *options, "--state", tmp_path / "state", configuration],
                capture_output=True,
                text=True,
                check=False,
            )
            assert run.returncode == 0, run.stderr
            assert "error" not in run.stderr.replace("vnctoken.error", "").lower()
            return run.stderr

        return rotate

    return on


@pytest.fixture
def logs(tmp_path, cloud, rotating):
    """Yield a running service and a function that runs logrotate on its logs."""
    with vnctoken_server(tmp_path / "one", cloud.url, ":recheck_interval: 0") as service:
        yield service, rotating("vnctoken", service.log.parent)


def ask(server, number):
    """Make a call whose log line can be told from all others: by the id of a VM that is not there."""
    assert server.one.vm.vnctoken("alice:secret", number)[2] == 0x0400


def numbers(text):
    """Return the numbers of the calls in a log, every line of which must be whole."""
    assert "\0" not in text
    assert text == "" or text.endswith("\n")
    lines = text.splitlines()
    assert all(LINE.fullmatch(line) for line in lines)
    return [int(CALL.fullmatch(line).group(1)) for line in lines if " vm=" in line]


def rotated(service):
    """Return the logs put away, oldest first."""
    paths = sorted(service.log.parent.glob("vnctoken.log-*"), key=lambda path: path.name.split("-")[2].split(".")[0])
    return [gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text() for path in paths]


def test_logrotate_understands_the_file(logs):
    service, rotate = logs
    said = rotate("--debug")
    for path in (service.log, service.log.with_suffix(".error")):
        assert f"considering log {path}" in said
    assert "weekly" in said
    assert "(52 rotations)" in said
    assert "old logs are removed" in said


def test_lines_before_and_after_a_rotation_are_each_in_their_file_once(logs):
    service, rotate = logs
    with xmlrpc.client.ServerProxy(service.url) as server:
        for first in (100_000, 200_000, 300_000):
            for number in range(first, first + 20):
                ask(server, number)
            until(lambda first=first: numbers(service.log.read_text()) == list(range(first, first + 20)))
            rotate("--force")
            assert service.log.read_text() == ""
        ask(server, 400_000)
    until(lambda: numbers(service.log.read_text()) == [400_000])
    assert [numbers(text) for text in rotated(service)] == [
        list(range(first, first + 20)) for first in (100_000, 200_000, 300_000)
    ]
    assert len(list(service.log.parent.glob("vnctoken.log-*.gz"))) == 2


def test_rotation_amid_calls_tears_no_line_and_doubles_none(logs):
    service, rotate = logs
    done, stop = [], threading.Event()

    def twenty_more():
        enough = len(done) + 20
        until(lambda: len(done) > enough)

    def call():
        with xmlrpc.client.ServerProxy(service.url) as server:
            number = 100_000
            while not stop.is_set():
                ask(server, number)
                done.append(number)
                number += 1

    caller = threading.Thread(target=call)
    caller.start()
    windows = []
    try:
        for _ in range(3):
            twenty_more()
            # What is written while logrotate has copied and not yet truncated is lost: that is copytruncate.
            began = done[-1]
            rotate("--force")
            windows.append(range(began, done[-1] + 2))
        twenty_more()
    finally:
        stop.set()
        caller.join()
    kept = [number for text in [*rotated(service), service.log.read_text()] for number in numbers(text)]
    assert kept == sorted(set(kept))
    missing = set(done) - set(kept)
    assert all(any(number in window for window in windows) for number in missing)


def test_an_empty_log_is_left_alone(logs):
    service, rotate = logs
    assert service.log.with_suffix(".error").read_text() == ""
    rotate("--force")
    assert not list(service.log.parent.glob("vnctoken.error-*"))


# The proxy's


def fingerprint(token):
    return hashlib.sha256(token.encode()).hexdigest()[:8]


def test_the_proxys_lines_are_each_in_their_file_also_those_of_a_console_that_stays_open(tmp_path, rotating):
    folder, tokens = tmp_path / "logs", tmp_path / "tokens"
    folder.mkdir()
    tokens.mkdir()
    log = folder / "vnctoken-websockify.log"
    port = free_port()
    options = ("--token-plugin", "TokenFile", "--token-source", tokens, "--verbose", "--log-file", log)
    command = (sys.executable, "-m", "vnctoken.proxy", *options, f"127.0.0.1:{port}")

    def connect(token):
        connection = socket.create_connection(("127.0.0.1", port), timeout=START_SECONDS)
        return WebSocket.connect(connection, f"/websockify?token={token}")

    with screen() as target, running(*command, ready="proxying from"):
        (tokens / "one-7").write_text(f"stays: 127.0.0.1:{target}\n", encoding="utf-8")
        rotate = rotating("vnctoken-websockify", folder)
        with contextlib.closing(connect("stays")) as console:
            assert console.receive_exactly(len(GREETING)) == GREETING
            until(lambda: f"Path: '/websockify?token={fingerprint('stays')}'" in log.read_text())
            for name in ("first", "second"):
                with pytest.raises(HandshakeRefusedError):
                    connect(name)
                until(lambda name=name: f"'{fingerprint(name)}' not found" in log.read_text())
                rotate("--force")
                assert log.read_text() == ""
        until(lambda: f"127.0.0.1:{target}: Closed target" in log.read_text())
        assert "\0" not in log.read_text()
    first, second = sorted(folder.glob("vnctoken-websockify.log-*"), key=lambda path: path.name.split(".")[1])
    assert f"'{fingerprint('first')}' not found" in gzip.decompress(first.read_bytes()).decode()
    assert second.read_text().count("not found") == second.read_text().count(fingerprint("second")) == 1


def test_without_a_log_file_of_the_proxys_there_is_nothing_to_rotate(tmp_path, rotating):
    (tmp_path / "logs").mkdir()
    rotating("vnctoken-websockify", tmp_path / "logs")("--force")
    assert list((tmp_path / "logs").iterdir()) == []
