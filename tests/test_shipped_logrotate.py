"""The shipped logrotate file, in a real logrotate, on the log of a running service."""

from __future__ import annotations

import getpass
import grp
import gzip
import os
import re
import subprocess
import threading
import time
import xmlrpc.client

import pytest
from conftest import ROOT, program, vnctoken_server
from test_shipped_nginx import replaced, until

LINE = re.compile(r"\d{4}-\d\d-\d\dT\S+ [A-Z]+ +\S.*")
CALL = re.compile(r".* one\.vm\.vnctoken vm=(\d+) .*code=0x0400.*")


@pytest.fixture
def logs(tmp_path, cloud):
    """Yield a running service and a function that runs logrotate on its logs."""
    configuration = tmp_path / "logrotate"
    me = f"{getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name}"
    with vnctoken_server(tmp_path / "one", cloud.url) as service:
        text = replaced(
            (ROOT / "logrotate" / "vnctoken").read_text(encoding="utf-8"),
            [("/var/log/one/", f"{service.log.parent}/"), ("su oneadmin oneadmin", f"su {me}")],
        )
        configuration.write_text(text, encoding="utf-8")
        configuration.chmod(0o644)
        service.log.parent.chmod(0o755)

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

        yield service, rotate


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
