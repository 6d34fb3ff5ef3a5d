"""XML: method calls, oned's answers, and what is in them."""

from __future__ import annotations

import base64
import contextlib
import xmlrpc.client

from outcomes import result_of
from twisted.internet.task import Clock

from fuzz.target import SECRET, Target, discreet
from vnctoken.auth.users import Users
from vnctoken.config import Config
from vnctoken.errors import ActionError, NoExistsError, OnedError, VnctokenError
from vnctoken.events import read_event
from vnctoken.oned import Oned
from vnctoken.rules import ConsoleRules
from vnctoken.safexml import DocumentError
from vnctoken.sandbox.accountrendering import group_pool_xml, user_pool_xml, user_xml
from vnctoken.sandbox.cloud import ALICE, demo_cloud
from vnctoken.sandbox.population import USERS, USERS_GROUP, XENIA
from vnctoken.sandbox.publishing import event
from vnctoken.sandbox.rendering import guest_xml, pool_xml
from vnctoken.user import User, group_names, users
from vnctoken.vm import VirtualMachine, vms_by_id
from vnctoken.wire import Fault, FaultCode, Unsupported, read_answer, read_call, write_answer, write_call

INT_MAX = 2**31 - 1
CLOUD = demo_cloud()
GUESTS = [CLOUD.guest(number) for number in (0, 1, 5, 13)]
TYPES = tuple(f"<{name}>".encode() for name in ("int", "i8", "double", "nil/", "base64", "boolean", "struct", "array"))

MULTICALL = [{"methodName": "one.vm.vnctoken", "params": [f"alice:{SECRET}", 7]}, {"methodName": "x", "params": []}]
CALLS = tuple(
    xmlrpc.client.dumps(arguments, method).encode()
    for method, arguments in (
        ("one.vm.vnctoken", (f"alice:{SECRET}", 0)),
        ("one.vm.vnctokenonly", ("alice:secret", "7", {"ttl": 60, "single_use": True, "client": "192.0.2.7"})),
        ("one.vm.vnc", ("alice:secret", 5)),
        ("one.vm.vncrevoke", ("alice:secret", 0, "0123abcd")),
        ("one.vm.vnctokens", ("alice:secret", 0, [1, 2.5, True, "x"])),
        ("system.multicall", (MULTICALL,)),
        ("system.methodHelp", ("one.vm.vnc",)),
    )
)


def _call(data):
    try:
        call = read_call(data)
    except Fault as fault:
        if fault.faultCode in (FaultCode.NOT_WELL_FORMED, FaultCode.INVALID_REQUEST):
            return
        raise
    plain = [value for value in call.arguments if isinstance(value, str) or _is_small(value)]
    assert read_call(write_call("m", *plain)).arguments == plain


def _is_small(value):
    return isinstance(value, int) and abs(value) <= INT_MAX


def _answer(data):
    # A comment behind it changes nothing, but that the way for answers that look like oned's is not taken.
    told = _told(data)
    assert told == _told(data + b"<!---->")
    match told:
        case ["value", value] if _is_ours(value):
            assert read_answer(write_answer(value)) == value
        case ["fault", int(code), str(text)]:
            assert _told(write_answer(Fault(code, text))) == told


def _told(data):
    try:
        return ["value", read_answer(data)]
    except Fault as fault:
        return ["fault", fault.faultCode, fault.faultString]
    except DocumentError:
        return ["none"]


def _is_ours(value):
    """Whether we write such a value: the names in our structs are words."""
    match value:
        case Unsupported():
            return False
        case list():
            return all(map(_is_ours, value))
        case dict():
            return all(name.isidentifier() and _is_ours(item) for name, item in value.items())
    return True


class _Transport:
    def __init__(self, answer):
        self._answer = answer

    async def post(self, _body):
        return self._answer


def _oned(data):
    oned = Oned(_Transport(data), Clock(), timeout=25, connections=8)
    session = f"alice:{SECRET}"
    questions = (
        lambda: oned.vm_info(session, 7),
        lambda: oned.vms(session, [0, 7]),
        lambda: oned.user(session),
        lambda: oned.users(session),
        lambda: oned.groups(session),
        lambda: oned.version(session),
    )
    for question in questions:
        # A refusal is in oned's words; they may be anything.
        with contextlib.suppress(VnctokenError), _talking_nonsense():
            result_of(question())


def _vm(data):
    with _talking_nonsense():
        vm = VirtualMachine.from_xml(data.decode(errors="ignore"))
        rules = ConsoleRules(states=Config().console_states, ports=Config().vnc_ports)
        with contextlib.suppress(NoExistsError, ActionError):
            host, port = rules.target(vm)
            assert port in Config().vnc_ports
            line = f"token: {host}:{port}"
            assert line.isascii()
            assert line.isprintable()
            assert line.count(" ") == 1
            assert line.split(": ")[1].rsplit(":", 1) == [host, str(port)]


def _vms(data):
    with _talking_nonsense():
        assert all(vm_id >= 0 for vm_id in vms_by_id(data.decode(errors="ignore")))


def _users(data):
    document = data.decode(errors="ignore")
    with _talking_nonsense():
        group_names(document)
    with _talking_nonsense():
        Users([User.from_xml(document)])
    with _talking_nonsense():
        accounts = users(document)
        known = Users(accounts)
        for account in accounts:
            assert (known.by_id(account.id) or account).id == account.id


@contextlib.contextmanager
def _talking_nonsense():
    try:
        yield
    except OnedError as error:
        discreet(error)


def _event(data):
    with contextlib.suppress(ValueError, OnedError):
        read_event([b"EVENT STATE VM/ACTIVE/RUNNING/7 ", base64.b64encode(data)])


ANSWERS = tuple(
    write_answer(answer)
    for answer in (
        [True, guest_xml(GUESTS[0]), 0],
        [True, user_xml(ALICE, []), 0],
        [True, 7, 0],
        [False, f"[one.vm.info] User couldn't be authenticated, aborting. {SECRET}", 0x0100, -1, -1],
        Fault(-506, "Method 'x' not defined"),
    )
)
# As oned lays it out.
ONED = ANSWERS[0].replace(b"><", b">\r\n<").replace(b"UTF-8", b"UTF-8")
VMS = tuple(guest_xml(guest).replace("s3cr3tpw", SECRET).encode() for guest in GUESTS)

TARGETS = (
    Target("call", _call, CALLS, TYPES),
    Target("answer", _answer, (*ANSWERS, ONED), TYPES),
    Target("oned", _oned, (*ANSWERS, ONED)),
    Target("vm", _vm, VMS, (b"3", b"VNC", b"5900", b"unix_socket", b"2001:db8::1")),
    Target("vms", _vms, (pool_xml(GUESTS).encode(), pool_xml(GUESTS, extended=True).encode())),
    Target(
        "users",
        _users,
        tuple(
            document.encode()
            for document in (
                user_xml(XENIA, []).replace("/C=XX", SECRET),
                user_pool_xml((user, []) for user in USERS[:4]),
                group_pool_xml([(USERS_GROUP, [ALICE], [])]),
            )
        ),
    ),
    Target("event", _event, (event(GUESTS[0], GUESTS[0])[1].encode(),)),
)
