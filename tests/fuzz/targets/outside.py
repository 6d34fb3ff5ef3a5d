"""What is around the service: its audit log, systemd, and the client that reads its answers."""

from __future__ import annotations

import contextlib
import gzip
import os

from twisted.internet.task import Clock

from fuzz.target import SECRET, Target, discreet
from fuzz.targets.documents import ANSWERS, TYPES
from fuzz.targets.files import written
from vnctoken.arguments import Options
from vnctoken.audit import AuditLog
from vnctoken.auditchain import verify_files
from vnctoken.auditlines import Head, decision_line, notice_line, read_line
from vnctoken.client import calls, tables
from vnctoken.client.endpoints import endpoint
from vnctoken.client.errors import ClientError
from vnctoken.decisions import Decision
from vnctoken.errors import ConfigError, VnctokenError
from vnctoken.measures import UNMEASURED
from vnctoken.safexml import DocumentError
from vnctoken.systemd import Notifier, inherited_socket
from vnctoken.wire import write_answer

NOW = 1_795_316_218.0
SESSION = f"alice:{SECRET}"


def _audit(data):
    path = written(data, "audit.log")
    good, told = verify_files([path])
    assert all(line.isprintable() for line in told)
    if data.startswith(b"\x1f\x8b"):
        return
    log = AuditLog(path, lambda: NOW, required=True, measures=UNMEASURED)
    try:
        log.open()
    except ConfigError as error:
        discreet(error)
        return
    log.record(Decision("issued", user="alice", vm_id=7))
    log.close()
    # What was wrong may be right now: what it finds damaged at the end, it writes down.
    assert verify_files([path])[0] or not good, told


def _line(data):
    text = data.decode(errors="surrogateescape")
    decision = Decision("refused", text, text, text, 7, text, text, 7, text, 5900, text, 0x0100, text)
    line = decision_line(decision, NOW, Head())
    assert b"\n" not in line
    assert line.decode().isprintable()
    entry = read_line(line)
    assert (entry.seq, entry.event, entry.prev) == (1, "refused", Head().sha256)


def _client(data):
    questions = (
        (calls.console(SESSION, 7, Options()), lambda console: tables.console_table(console, styled=False)),
        (calls.tokens(SESSION, 7), _listed),
        (calls.xml(SESSION, 7, Options()), lambda document: tables.console_xml([document], pooled=True)),
        (calls.token(SESSION, 7, Options()), str),
        (calls.revoke(SESSION, 7), str),
        *((question, str) for question in calls.tokens_by_vm(SESSION, [7])),
    )
    for question, shown in questions:
        # A refusal is in the service's words.
        with contextlib.suppress(VnctokenError, DocumentError), _complaining():
            text = shown(question.read(data))
            assert shown is str or text.replace("\n", "").isprintable()


@contextlib.contextmanager
def _complaining():
    try:
        yield
    except ClientError as error:
        discreet(error)
        raise


def _listed(tokens):
    rows = [(7, "vm", token) for token in tokens]
    tables.token_xml(rows)
    return tables.token_table(rows, [*tables.COLUMNS], styled=False)


def _endpoint(data):
    with contextlib.suppress(ValueError):
        found = endpoint(data.decode("latin-1"))
        assert 0 < found.port < 65536
        assert found.target.startswith("/")


def _systemd(data):
    pairs = (line.partition(b"=") for line in data.split(b"\n"))
    environment = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    environment.pop("NOTIFY_SOCKET", None)
    if environment.get("LISTEN_PID") == "us":
        environment["LISTEN_PID"] = str(os.getpid())
    Notifier.from_environment(environment, Clock())
    with contextlib.suppress(ConfigError):
        # Descriptor 3 is what it is here.
        assert inherited_socket(environment) in (None, 3)
    assert not {"WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & environment.keys()


def _logged(*lines):
    """Return lines of an audit log; each is made by a function of the head."""
    head, log = Head(), b""
    for line in lines:
        text = line(head)
        head, log = head.then(text), log + text + b"\n"
    return log


LOG = _logged(
    lambda head: notice_line("opened", NOW, head, missing=0, damaged=0),
    lambda head: decision_line(Decision("issued", "ab12", user="alice", vm_id=7, host="h", port=5900), NOW, head),
    lambda head: decision_line(Decision("refused", "cd34", client="192.0.2.7", code=0x0100), NOW, head),
)
CONSOLE = {
    "VmId": 7,
    "Host": "h",
    "Type": "VNC",
    "Port": 5900,
    "Listen": "",
    "Password": "x",
    "Wss": False,
    "Token": "t",
}
LIVE = {
    "fingerprint": "0123abcd",
    "user": "alice",
    "issued": 7,
    "expires": 607,
    "used": 0,
    "single_use": False,
    "client": "",
}

TARGETS = (
    Target("audit", _audit, (LOG, LOG[:-9], gzip.compress(LOG, mtime=0)), (b'"seq":', b'"prev":', b'"damaged":1')),
    Target("audit-line", _line, (b"alice", "\x1b[2J\u202e".encode())),
    Target(
        "client",
        _client,
        (
            write_answer([True, {**CONSOLE, "Ttl": 600, "Url": "https://h/#t"}, 0]),
            write_answer([True, [LIVE], 0]),
            write_answer([[[True, [LIVE], 0]]]),
            write_answer([True, "<VM><ID>7</ID></VM>", 0]),
            *ANSWERS[2:],
        ),
        TYPES,
    ),
    Target("endpoint", _endpoint, (b"http://localhost:2644/RPC2", b"https://[::1]/x?y")),
    Target(
        "systemd",
        _systemd,
        (b"WATCHDOG_USEC=3000000\nWATCHDOG_PID=1\nLISTEN_PID=us\nLISTEN_FDS=1\nLISTEN_FDNAMES=vnctoken.socket",),
    ),
)
