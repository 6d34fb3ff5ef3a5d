"""What a client asks, what it must be told, and what is wrong with what it was told. No network."""

from __future__ import annotations

import re
import xmlrpc.client
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from vnctoken.errors import ErrorCode
from vnctoken.sandbox.population import ALICE, BOB, CAROL, EVE, GUESTS

HOST = "127.0.0.1"
STRUCT, TOKEN, XML, REVOKE = "one.vm.vnctoken", "one.vm.vnctokenonly", "one.vm.vnc", "one.vm.vncrevoke"
OPENING = (STRUCT, TOKEN, XML)

_TOKEN = re.compile("[A-Za-z0-9]{20,}")
_INSIDE = re.compile(r'Traceback|File "|\.py\b|/var/|/tmp/|/home/|0x[0-9a-f]{8,}')
"""What of the service's inside no answer may show."""

_GUESTS = {guest.id: guest for guest in GUESTS}
HOMES = {
    **dict.fromkeys((0, 1, 2, 5, 20, 21, 25, 27, 28), ALICE),
    9: BOB,
    34: EVE,
    # Everybody's, so carol's too.
    17: CAROL,
}
"""The VMs that have a console, each asked for by one user alone."""

UNSEEN = (
    (BOB, 0, ErrorCode.AUTHORIZATION),
    (ALICE, 9, ErrorCode.AUTHORIZATION),
    (EVE, 5, ErrorCode.AUTHORIZATION),
    (ALICE, 29, ErrorCode.AUTHORIZATION),
    (ALICE, 999, ErrorCode.NO_EXISTS),
    (ALICE, 3, ErrorCode.NO_EXISTS),
    (ALICE, 10, ErrorCode.ACTION),
    (ALICE, 7, ErrorCode.ACTION),
)
"""Who asks for what he may not have, or what there is not, and the refusal."""


def session(user):
    return f"{user.name}:{user.password}"


@dataclass(frozen=True)
class Question:
    """A call, and what it has to come to: a target (host and port) for a success, else a code."""

    method: str
    session: str
    vm_id: int
    more: tuple = ()
    target: tuple[str, int] | None = None
    code: int = 0

    @property
    def body(self):
        return xmlrpc.client.dumps((self.session, self.vm_id, *self.more), self.method).encode()


@dataclass(frozen=True)
class Verdict:
    """What an answer was: `kind` is right, refused (`code` says how) or wrong (`why`)."""

    kind: str
    code: int = 0
    why: str = ""
    token: str | None = None


def wrong(why):
    return Verdict("wrong", why=why)


def judge(question, body):
    """Say what an answer's body is as an answer to a question."""
    try:
        (value,), _ = xmlrpc.client.loads(body)
    except xmlrpc.client.Fault as fault:
        return wrong(f"an XML-RPC fault ({fault.faultCode}) instead of the array")
    except Exception as error:  # noqa: BLE001 (whatever it is, it is no answer)
        return wrong(f"not XML-RPC: {type(error).__name__}")
    match value:
        case [True, result, 0] if type(value[0]) is bool:
            return _judge_success(question, result)
        case [False, str(message), int(code)] if code:
            return _judge_refusal(question, message, code)
    return wrong("not the array of three elements")


def _judge_refusal(question, message, code):
    if inside := _INSIDE.search(message):
        return wrong(f"a message that shows the service's inside: {inside[0]}")
    if question.session.partition(":")[2] in message:
        return wrong("a message with the password in it")
    if message == "internal error":
        return wrong("internal error: a bug of ours")
    if question.code == code:
        return Verdict("right", code)
    return Verdict("refused", code)


def _judge_success(question, result):
    if question.code:
        return wrong(f"a success for {question.method} of VM {question.vm_id} where {question.code:#06x} was expected")
    if question.method == REVOKE:
        # The token may have gone by itself meanwhile.
        return Verdict("right") if result in (0, 1) else wrong(f"{result!r} tokens taken back instead of one")
    try:
        token = _token_in(question, result)
    except (KeyError, TypeError, ValueError, ET.ParseError) as error:
        return wrong(f"{question.method} answers with something else: {type(error).__name__} {error}")
    if not _TOKEN.fullmatch(token):
        return wrong("a token that is none")
    return Verdict("right", token=token)


def _token_in(question, result):
    """Return the token in a console, or raise ValueError if it is another's."""
    if question.method == TOKEN:
        return str(result)
    if question.method == XML:
        root = ET.fromstring(result)
        result = {name: root.findtext(name.upper()) for name in ("id", "host", "port", "password", "token")}
        result |= {"VmId": root.findtext("VMID")}
    else:
        for name in ("Host", "Port", "Password", "Token"):
            if result[name] != result[name.lower()]:
                raise ValueError(f"{name} and {name.lower()} differ")
    password = (_GUESTS[question.vm_id].graphics or {}).get("PASSWD", "")
    expected = (str(question.vm_id), str(question.vm_id), *map(str, question.target or ()), password)
    given = (
        *(str(result["id"]), str(result["VmId"])),
        *(str(result["host"]), str(result["port"]), result["password"] or ""),
    )
    if given != expected:
        raise ValueError(f"VM, host, port or password are not those of VM {question.vm_id}: {given[:4]}")
    return result["token"]


def judge_hostile(status, body):
    """Return what a hostile body was answered, in a few words, and what is wrong with that, None if nothing is."""
    code = status.split(" ")[1] if status.startswith("HTTP/1.") else "none"
    text = body.decode(errors="replace")
    if inside := _INSIDE.search(text):
        return "wrong", f"an answer that shows the service's inside: {inside[0]}"
    if "root:x:" in text or "internal error" in text:
        return "wrong", "a file, or a bug of ours"
    if code in ("413", "503"):
        return f"HTTP {code}", None
    if code != "200":
        return "wrong", f"{status or 'no answer'}"
    try:
        (value,), _ = xmlrpc.client.loads(body)
    except xmlrpc.client.Fault as fault:
        return f"fault {fault.faultCode}", None
    except Exception as error:  # noqa: BLE001
        return "wrong", f"an answer that is no XML-RPC: {type(error).__name__}"
    match value:
        case [False, str(), int(code)]:
            return f"refusal {code:#06x}", None
        case [*answers] if all(isinstance(answer, list | dict) for answer in answers):
            # Of system.multicall, an answer for each call.
            bad = [answer for answer in answers if isinstance(answer, list) and answer[0] is not False]
            return "refusals in one", "a success" if bad else None
    return "wrong", "a success, or something else than three elements"
