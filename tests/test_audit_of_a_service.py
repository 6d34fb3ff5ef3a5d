"""The audit log of a real vnctoken-server: what is in it, and that it is whole whatever happens."""

import concurrent.futures
import contextlib
import hashlib
import json
import resource
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import xmlrpc.client
from http.client import HTTPException

import pytest
from conftest import NO_LIMITS, free_port, vnctoken_server

from vnctoken.auditchain import verify_files

ALICE, VM_ID = "alice:secret", 20
TO_STDERR = ":log:\n  :system: syslog\n"
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vnctoken-audit.log"


@contextlib.contextmanager
def audited(path, cloud, settings=""):
    """Run a service that writes an audit log."""
    more = f":audit_log: {path}\n{NO_LIMITS}{settings}"
    with vnctoken_server(path.parent / "one", cloud.url, more) as service:
        yield service


def ask(service, method, *arguments, session=ALICE):
    """Return what a call is answered: success, result, code."""
    with xmlrpc.client.ServerProxy(service.url) as server:
        return getattr(server, f"one.vm.{method}")(session, *arguments)


def token_from(service, **options):
    success, token, _ = ask(service, "vnctokenonly", VM_ID, *([options] if options else []))
    assert success, token
    return token


def fingerprint(token):
    return hashlib.sha256(token.encode()).hexdigest()[:8]


def decisions(*paths):
    return [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]


def last(path, **expected):
    """Return the last line, which has to have these values."""
    line = decisions(path)[-1]
    assert {key: line.get(key) for key in expected} == expected
    return line


def eventually(condition, seconds=20):
    """Return what a condition comes to when it is true at last."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def verified(*paths):
    good, told = verify_files(paths)
    assert good, told
    return told


@contextlib.contextmanager
def load(service):
    """Have calls made all the time, and collect the tokens that were answered."""
    tokens, over = [], threading.Event()

    def work():
        while not over.is_set():
            # It may be killed.
            with contextlib.suppress(OSError, HTTPException):
                tokens.append(token_from(service))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work) for _ in range(4)]
        try:
            yield tokens
        finally:
            over.set()
    for worker in workers:
        worker.result()


def issued_in(*paths):
    return [line["token"] for line in decisions(*paths) if line["event"] == "issued"]


def missing_in(path):
    return sum(line["missing"] for line in decisions(path) if line["event"] == "gap")


def test_every_decision_is_there_when_the_answer_is_and_no_secret_is(path, cloud):
    port = free_port()
    with audited(path, cloud, f":resolver_listen: 127.0.0.1:{port}\n") as service:
        token = token_from(service)
        issued = last(path, event="issued", user="alice", vm=VM_ID, token=fingerprint(token), client="127.0.0.1")
        assert (issued["method"], issued["door"]) == ("one.vm.vnctokenonly", "opennebula")
        eventually(lambda: issued["request"] in service.log.read_text())

        with urllib.request.urlopen(f"http://127.0.0.1:{port}/token/{token}", timeout=10) as answer:
            target = json.load(answer)
        assert (target["host"], int(target["port"])) == (issued["host"], issued["port"])
        last(path, event="resolved", user="alice", vm=VM_ID, token=fingerprint(token), host=issued["host"])

        assert ask(service, "vnctoken", VM_ID, session="alice:wrong-password")[2] == 0x0100
        last(path, event="refused", user="alice", vm=VM_ID, code=0x0100, reason="authentication")

        assert ask(service, "vncrevoke", VM_ID)[:2] == [True, 1]
        last(path, event="revoked", user="alice", vm=VM_ID, token=fingerprint(token), method="one.vm.vncrevoke")

        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/token/{token}", timeout=10)
        last(path, event="refused", token=fingerprint(token), door="resolver")

        short = token_from(service, ttl=1)
        eventually(lambda: decisions(path)[-1]["event"] == "expired")
        last(path, user="alice", vm=VM_ID, token=fingerprint(short))
    verified(path)
    text = path.read_text()
    assert [secret for secret in ("secret", "wrong-password", token, short) if secret in text] == []


def test_the_command_verifies_and_finds_what_was_changed(path, cloud):
    def verify():
        command = (sys.executable, "-m", "vnctoken.server", "--verify-audit", path)
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with audited(path, cloud) as service:
        for _ in range(3):
            token_from(service)
        head = decisions(path)[-1]["seq"]
    good = verify()
    assert (good.returncode, good.stderr) == (0, "")
    assert f"head seq={head} sha256=" in good.stdout
    assert good.stdout.rpartition("head ")[2].strip() in service.log.read_text()
    path.write_bytes(path.read_bytes().replace(b'"user":"alice"', b'"user":"carol"', 1))
    bad = verify()
    assert bad.returncode == 1
    assert "line 2: changed" in bad.stdout


def test_rotation_under_load_loses_no_line_and_keeps_the_chain(path, cloud):
    rotated = [path.with_name(f"{path.name}-{number}") for number in range(3)]
    with audited(path, cloud) as service, load(service) as tokens:
        for target in rotated:
            before = len(tokens)
            eventually(lambda before=before: len(tokens) > before + 10)
            path.rename(target)
            service.process.process.send_signal(signal.SIGHUP)
            eventually(path.exists)
        eventually(lambda: "issued" in {line["event"] for line in decisions(path)})
    verified(*rotated, path)
    assert sorted(issued_in(*rotated, path)) == sorted(map(fingerprint, tokens))
    assert all(issued_in(file) for file in (*rotated, path))


def test_kill_9_under_load_takes_no_line_of_an_answer_and_the_next_start_goes_on(path, cloud):
    tokens = []
    for _ in range(3):
        with audited(path, cloud) as service, load(service) as answered:
            eventually(lambda answered=answered: len(answered) > 20)
            service.process.process.kill()
            service.process.process.wait()
        tokens += answered
        verified(path)
    assert {fingerprint(token) for token in tokens} <= set(issued_in(path))
    assert [line["event"] for line in decisions(path)].count("resumed") == 2


@contextlib.contextmanager
def no_room_beyond(service, path, size=100):
    """Let the service's files grow by little more than they have: a line is begun, and does not fit."""
    pid = service.process.process.pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (path.stat().st_size + size, resource.RLIM_INFINITY))
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, UNLIMITED)


def test_a_full_disk_refuses_every_call_and_leaves_no_token_if_the_log_is_required(path, cloud):
    with audited(path, cloud, f"{TO_STDERR}:audit_required: yes\n") as service:
        for _ in range(10):
            token_from(service)
        ask(service, "vncrevoke", VM_ID)
        with no_room_beyond(service, path):
            for session in (ALICE, "alice:wrong-password"):
                success, message, code = ask(service, "vnctoken", VM_ID, session=session)
                assert (success, code) == (False, 0x2000)
                assert message.startswith("The audit log cannot be written, and without it nothing is decided here")
            assert ask(service, "vnctokens", VM_ID)[:2] == [True, []]
        token = token_from(service)
        last(path, event="issued", token=fingerprint(token))
        assert missing_in(path) >= 2
        service.process.wait_for("<4>the audit log cannot be written .*until it can be, calls are refused")
        service.process.wait_for("<6>the audit log can be written again; lines missing in it: ")
    verified(path)


def test_a_full_disk_is_warned_of_once_and_the_calls_are_answered_if_it_is_not(path, cloud):
    with audited(path, cloud, TO_STDERR) as service:
        for _ in range(10):
            token_from(service)
        with no_room_beyond(service, path):
            for _ in range(3):
                token_from(service)
        token_from(service)
        assert missing_in(path) >= 3
    verified(path)
    assert sum("the audit log cannot be written" in line for line in service.process.lines) == 1
