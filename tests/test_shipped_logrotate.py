"""The shipped logrotate files, in a real logrotate, on the logs of a running service and a running proxy."""

from __future__ import annotations

import contextlib
import getpass
import grp
import gzip
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import xmlrpc.client

import pytest
from conftest import NO_LIMITS, ROOT, START_SECONDS, free_port, program, running, vnctoken_server
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
        # No systemd runs the service here, and of all its processes on this machine only ours are to be told.
        ours = [
            ("if systemctl --quiet is-active vnctoken.service 2>/dev/null;", "if false;"),
            ("pkill -HUP -u oneadmin", f"{program('pkill')} -HUP --parent {os.getpid()} -u {getpass.getuser()}"),
        ]
        text = replaced(
            (ROOT / "logrotate" / shipped).read_text(encoding="utf-8"),
            [
                ("/var/log/one/", f"{folder}/"),
                ("su oneadmin oneadmin", f"su {me}"),
                *ours[: 2 * (shipped == "vnctoken")],
            ],
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
    audit = tmp_path / "one" / "var" / "vnctoken-audit.log"
    settings = f"{NO_LIMITS}:recheck_interval: 0\n:audit_log: {audit}"
    with vnctoken_server(tmp_path / "one", cloud.url, settings) as service:
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
            until(lambda: service.log.exists() and "was reloaded" in service.log.read_text())
        ask(server, 400_000)
    until(lambda: numbers(service.log.read_text()) == [400_000])
    assert [numbers(text) for text in rotated(service)] == [
        list(range(first, first + 20)) for first in (100_000, 200_000, 300_000)
    ]
    assert len(list(service.log.parent.glob("vnctoken.log-*.gz"))) == 2


def test_rotation_amid_calls_loses_no_line_tears_none_and_doubles_none(logs):
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
    try:
        for _ in range(3):
            twenty_more()
            rotate("--force")
        twenty_more()
    finally:
        stop.set()
        caller.join()
    kept = [number for text in [*rotated(service), service.log.read_text()] for number in numbers(text)]
    assert kept == done


def audit_logs(service):
    """Return the files of the audit log, oldest first."""
    folder = service.log.parent
    return [*sorted(folder.glob("vnctoken-audit.log-*")), folder / "vnctoken-audit.log"]


def test_the_audit_log_stays_one_chain_over_rotations_and_compression(logs):
    service, rotate = logs
    with xmlrpc.client.ServerProxy(service.url) as server:
        for number in range(3):
            ask(server, 100_000 + number)
            rotate("--force")
            until(lambda number=number: len(audit_logs(service)) == number + 2 and audit_logs(service)[-1].exists())
        ask(server, 100_003)
    service.process.stop()
    verify = (sys.executable, "-m", "vnctoken.server", "--verify-audit")
    files = audit_logs(service)
    assert [path.suffix == ".gz" for path in files] == [True, True, False, False]
    whole = subprocess.run([*verify, *files], capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stdout
    gap = subprocess.run([*verify, files[0], *files[2:]], capture_output=True, text=True, check=False)
    assert gap.returncode == 1


def test_a_doctor_at_work_is_not_disturbed_by_a_rotation(logs):
    """He would be ended by the signal."""
    service, rotate = logs
    waiting = "import sys, time; print('ready', flush=True); time.sleep(60)"
    look_alike = service.log.parent / "vnctoken-server"
    look_alike.write_text(waiting)
    with (
        running(sys.executable, look_alike, "--doctor", ready="ready") as doctor,
        running(sys.executable, look_alike, "--config", "/etc/one/x.conf", ready="ready") as another,
        xmlrpc.client.ServerProxy(service.url) as server,
    ):
        ask(server, 100_000)
        rotate("--force")
        assert another.process.wait(START_SECONDS) == -signal.SIGHUP
        assert doctor.process.poll() is None


def test_nothing_is_wrong_where_no_service_runs(logs):
    service, rotate = logs
    with xmlrpc.client.ServerProxy(service.url) as server:
        ask(server, 100_000)
    service.process.stop()
    rotate("--force")
    assert [len(numbers(text)) for text in rotated(service)] == [1]


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
