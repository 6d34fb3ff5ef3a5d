"""Calls in, answers out, and what the log says of them; no HTTP, no oned, no folder.

Everything that is logged during any of these tests is searched for secrets when it ends.
"""

import re
import xmlrpc.client
from itertools import count

import pytest
from callers import CLIENT, REQUEST, admission, entrance, http_request, limits
from lxml import etree
from memory import MemoryStore
from outcomes import result_of
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, eventAsText
from twisted.python.failure import Failure

from vnctoken.arguments import Options
from vnctoken.consoles import Console, Consoles, Terms
from vnctoken.errors import (
    ActionError,
    AuthenticationError,
    AuthorizationError,
    NoExistsError,
    OnedError,
    TokenStoreError,
    VnctokenError,
)
from vnctoken.rpc import Rpc
from vnctoken.rules import ConsoleRules
from vnctoken.tokens import Grant, LiveToken, fingerprint
from vnctoken.vm import VirtualMachine

SECRET, VM_PASSWORD, TOKENS = "hunter2", "s3cr3tpw", "c0ffee"
SESSION = f"alice:{SECRET}"
OPENING_METHODS = ["one.vm.vnctoken", "one.vm.vnctokenonly", "one.vm.vnc"]
CONSOLE_METHODS = [*OPENING_METHODS, "one.vm.vncrevoke", "one.vm.vnctokens"]
SYSTEM_METHODS = ["system.listMethods", "system.methodHelp", "system.methodSignature", "system.multicall"]
EXPECTED = '["one.vm.vnctoken", "one.vm.vnctokenonly", "one.vm.vnc", "one.vm.vncrevoke", "one.vm.vnctokens"]'
WRONG_ID = "Argument 2, the VM id, must be an int from 0 to 2147483647 or a string of digits, but is "
WRONG_SESSION = "Argument 1, the session, must be a non-empty string, but is "


def leaks(events):
    """Return the log events in which a secret is, in the text, the traceback or a field."""
    return [
        event
        for event in events
        if any(
            secret in text
            for secret in (SECRET, VM_PASSWORD, TOKENS)
            for text in (eventAsText(event), *map(str, event.values()), *map(repr, event.values()))
        )
    ]


@pytest.fixture(autouse=True)
def log():
    """Capture what is logged, and find no secret in it at the end."""
    with capturedLogs() as events:
        yield events
    assert leaks(events) == []


def lines(events):
    return [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in events]


class MemoryConsoles:
    """Opens any console at once, or as `answer` says: an exception to raise, or what is to be waited for."""

    def __init__(self, answer=None, **more):
        self.answer = answer
        self.more = more
        self.asked = []
        self.options = []
        self.revoked = []
        self.tokens_issued = []
        self._numbers = count()

    async def _asked(self, caller, vm_id):
        self.asked.append((caller.session, vm_id))
        if isinstance(self.answer, BaseException):
            raise self.answer
        if self.answer is not None:
            await self.answer[vm_id]

    async def open(self, caller, vm_id, options):
        await self._asked(caller, vm_id)
        self.options.append(options)
        console = {
            "vm_id": vm_id,
            "host": "dummy-host-1",
            "type": " vnc ",
            "port": 5900,
            "listen": "0.0.0.0",
            "password": VM_PASSWORD,
            "wss": False,
            "token": TOKENS + f"{next(self._numbers):026x}",
            "ttl": 600,
        }
        self.tokens_issued.append(console["token"])
        return Console(**console | self.more)

    async def revoke(self, caller, vm_id, token=None):
        await self._asked(caller, vm_id)
        self.revoked.append(token)
        return 2

    async def tokens(self, caller, vm_id):
        await self._asked(caller, vm_id)
        grant = Grant(vm_id, "dummy-host-1", 5900, 1795316218.7, 600, "alice", single_use=True, client="2001:db8::1")
        forever = Grant(vm_id, "dummy-host-1", 5900, 1795316219.2, 0)
        return [LiveToken("60ae576c" * 8, grant, used=1795316230.9), LiveToken("0123abcd" * 8, forever)]


def answering(body, consoles=None, clock=None):
    """Return the Deferred of an answer."""
    rpc = Rpc(consoles or MemoryConsoles(), entrance(), limits(), clock or Clock())
    return Deferred.fromCoroutine(rpc.answer(http_request(body)))


def dumps(method, *arguments):
    return xmlrpc.client.dumps(arguments, method).encode()


def call(method, *arguments, consoles=None):
    """Return what the standard library's client makes of the answer to a call; a fault is raised."""
    ((value,), _) = xmlrpc.client.loads(result_of(answering(dumps(method, *arguments), consoles)))
    return value


def raw_call(*values, method="one.vm.vnc", consoles=None):
    """Call with arguments written in XML."""
    params = "".join(f"<param>{value}</param>" for value in values)
    body = f"<methodCall><methodName>{method}</methodName><params>{params}</params></methodCall>".encode()
    ((value,), _) = xmlrpc.client.loads(result_of(answering(body, consoles)))
    return value


def fault(method, *arguments):
    with pytest.raises(xmlrpc.client.Fault) as caught:
        call(method, *arguments)
    return caught.value.faultCode, caught.value.faultString


def test_a_secret_in_any_part_of_a_log_event_would_be_found():
    level = {"log_level": LogLevel.info}
    try:
        raise RuntimeError(SESSION)
    except RuntimeError:
        failure = Failure()
    harmless = level | {"log_format": "{line}", "line": "alice"}
    harmful = [
        level | {"log_format": SECRET},
        level | {"log_format": "{line}", "line": VM_PASSWORD},
        level | {"log_format": "nothing", "field": ["x" + TOKENS + "y"]},
        level | {"log_format": "oh", "log_failure": failure},
    ]
    assert leaks([harmless, *harmful]) == harmful


# What the methods answer


@pytest.mark.parametrize("wss", [True, False])
def test_vnctoken_answers_a_struct_for_both_generations_of_clients(wss):
    consoles = MemoryConsoles(wss=wss)
    answer = call("one.vm.vnctoken", SESSION, 7, consoles=consoles)
    values = [7, "dummy-host-1", " vnc ", 5900, "0.0.0.0", VM_PASSWORD, wss, consoles.tokens_issued[0], 600]
    documented = ["VmId", "Host", "Type", "Port", "Listen", "Password", "Wss", "Token", "Ttl"]
    deployed = ["id", "host", "type", "port", "listen", "password", "wss", "token", "ttl"]
    assert answer == [True, dict(zip(documented + deployed, values + values, strict=True)), 0]
    assert [type(item) for item in answer] == [bool, dict, int]
    types = [int, str, str, int, str, str, bool, str, int]
    for names in (documented, deployed):
        assert [type(answer[1][name]) for name in names] == types
    assert consoles.asked == [(SESSION, 7)]


def test_with_a_console_url_the_struct_and_the_xml_carry_the_link():
    link = "https://a/#host=h&path=websockify%3Ftoken%3Dx"
    answered = call("one.vm.vnctoken", SESSION, 7, consoles=MemoryConsoles(url=link))[1]
    assert (answered["Url"], answered["url"]) == (link, link)
    document = call("one.vm.vnc", SESSION, 7, consoles=MemoryConsoles(url=link))[1]
    assert etree.fromstring(document)[-1].tag == "URL"
    assert etree.fromstring(document).findtext("URL") == link


def test_vnctokenonly_answers_the_token():
    consoles = MemoryConsoles()
    assert call("one.vm.vnctokenonly", SESSION, 7, consoles=consoles) == [True, consoles.tokens_issued[0], 0]


@pytest.mark.parametrize(("wss", "text"), [(True, "true"), (False, "false")])
def test_vnc_answers_the_same_as_xml(wss, text):
    consoles = MemoryConsoles(wss=wss)
    success, document, code = call("one.vm.vnc", SESSION, 7, consoles=consoles)
    assert (success, code) == (True, 0)
    assert document == (
        "<VM><ID>7</ID><VMID>7</VMID><HOST>dummy-host-1</HOST><TYPE> vnc </TYPE><PORT>5900</PORT>"
        f"<LISTEN>0.0.0.0</LISTEN><PASSWORD>{VM_PASSWORD}</PASSWORD><WSS>{text}</WSS><TOKEN>{consoles.tokens_issued[0]}</TOKEN>"
        "<TTL>600</TTL></VM>"
    )


@pytest.mark.parametrize("password", ["a<&>b'c", "]]>", '"', "pässwörd-東京", "&amp;", "😀", ""])
def test_any_password_arrives_whole_in_the_struct_and_in_well_formed_xml(password):
    consoles = MemoryConsoles(password=password)
    assert call("one.vm.vnctoken", SESSION, 7, consoles=consoles)[1]["Password"] == password
    root = etree.fromstring(call("one.vm.vnc", SESSION, 7, consoles=consoles)[1])
    assert root.findtext("PASSWORD") == password
    assert [element.tag for element in root] == [
        *["ID", "VMID", "HOST", "TYPE", "PORT", "LISTEN", "PASSWORD", "WSS", "TOKEN", "TTL"]
    ]


def test_every_answer_is_one_param_of_three_elements_as_utf_8():
    body = result_of(answering(dumps("one.vm.vnctoken", SESSION, 7), MemoryConsoles(password="東京")))
    assert "東京" in body.decode("utf-8")
    root = etree.fromstring(body)
    assert root.tag == "methodResponse"
    assert len(root.findall("params/param")) == 1
    assert len(root.findall("params/param/value/array/data/value")) == 3


# Errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AuthenticationError("[one.vm.info] User couldn't be authenticated, aborting call."), 0x0100),
        (AuthorizationError("[one.vm.info] User [2] : Not authorized to perform USE VM [9]."), 0x0200),
        (NoExistsError("[one.vm.info] Error getting virtual machine [4711]."), 0x0400),
        (NoExistsError("Graphics type 'SPICE' but 'VNC' expected"), 0x0400),
        (ActionError("Unsupported VM state! STATE:8 LCM_STATE:0"), 0x0800),
        (OnedError("oned did not answer within 25 seconds"), 0x2000),
        (TokenStoreError("Cannot create VNC proxy token. No space left on device"), 0x4000),
        (VnctokenError("a class without a code of its own"), 0x2000),
    ],
)
@pytest.mark.parametrize("method", CONSOLE_METHODS)
def test_an_error_is_answered_with_its_text_and_opennebulas_code(method, error, code):
    answer = call(method, SESSION, 7, consoles=MemoryConsoles(error))
    assert answer == [False, str(error), code]
    assert [type(item) for item in answer] == [bool, str, int]


@pytest.mark.parametrize("method", CONSOLE_METHODS)
def test_a_bug_of_ours_is_for_the_log_and_not_for_the_client(log, method):
    error = ZeroDivisionError("what only we may know: /var/lib/one")
    assert call(method, SESSION, 7, consoles=MemoryConsoles(error)) == [False, "internal error", 0x2000]
    (event,) = log
    assert event["log_level"] == LogLevel.critical
    assert f"{CLIENT} {method} vm=7 user=alice ms=0.0 request={REQUEST} code=0x2000 internal error" in lines(log)[0]
    assert "what only we may know" in lines(log)[0]
    assert "Traceback" in lines(log)[0]


def test_an_answer_that_cannot_be_written_as_xml_is_a_bug_of_ours_too():
    consoles = MemoryConsoles(host="not\x01in XML")
    assert call("one.vm.vnc", SESSION, 7, consoles=consoles) == [False, "internal error", 0x2000]


# Unknown methods


@pytest.mark.parametrize("method", ["x", "one.vm.info", "one.vm.VNC", "system.shutdown", "one.vm.vnc.", "__init__"])
@pytest.mark.parametrize("arguments", [(), (SESSION, 7), (7,)])
def test_an_unknown_method_is_answered_with_those_we_have_whatever_its_arguments(method, arguments):
    consoles = MemoryConsoles()
    answer = call(method, *arguments, consoles=consoles)
    assert answer == [False, f"Unknown method '{method}'. Expected {EXPECTED}", 0x1000]
    assert consoles.asked == []


def test_an_unknown_name_of_any_length_is_quoted_in_short_and_not_logged(log):
    message = call(f"{SESSION}{'x' * 60_000}", 7)[1]
    assert message == f"Unknown method '{SESSION}{'x' * (100 - len(SESSION))}...'. Expected {EXPECTED}"
    assert lines(log) == [f"{CLIENT} unknown vm=- user=- ms=0.0 request={REQUEST} code=0x1000"]


# Arguments


@pytest.mark.parametrize(
    ("value", "vm_id"),
    [
        ("<value><int>0</int></value>", 0),
        ("<value><i4>7</i4></value>", 7),
        ("<value><i8>7</i8></value>", 7),
        ("<value><int>2147483647</int></value>", 2147483647),
        ("<value>7</value>", 7),
        ("<value><string>7</string></value>", 7),
        ("<value><string>007</string></value>", 7),
        ("<value>0</value>", 0),
        ("<value>000</value>", 0),
        ("<value>2147483647</value>", 2147483647),
        (f"<value>{'0' * 60000}7</value>", 7),
    ],
)
def test_a_vm_id_is_an_int_or_a_string_of_digits(value, vm_id):
    consoles = MemoryConsoles()
    answer = raw_call(f"<value>{SESSION}</value>", value, method="one.vm.vnctoken", consoles=consoles)
    assert answer[0] is True
    assert answer[1]["VmId"] == vm_id
    assert consoles.asked == [(SESSION, vm_id)]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("<value><boolean>1</boolean></value>", "a boolean"),
        ("<value><boolean>0</boolean></value>", "a boolean"),
        ("<value><double>7</double></value>", "of type double"),
        ("<value><nil/></value>", "of type nil"),
        ("<value><base64>Nw==</base64></value>", "of type base64"),
        ("<value><array><data><value><int>7</int></value></data></array></value>", "an array"),
        ("<value><struct><member><name>id</name><value>7</value></member></struct></value>", "a struct"),
        ("<value><int>-1</int></value>", "the int -1"),
        ("<value><int>2147483648</int></value>", "the int 2147483648"),
        ("<value><i8>9223372036854775807</i8></value>", "the int 9223372036854775807"),
        *[
            (f"<value>{text}</value>", "another string")
            for text in (
                *["abc", "-1", "+7", "2147483648", " 7", "7 ", "7\n", "\u0667", "\uff17", "7.0", "0x7", "1_0", SESSION],
                *["9" * 10, "9" * 11, "9" * 4300, "9" * 60_000, "0" * 60_000 + "x"],
            )
        ],
        ("<value/>", "an empty string"),
        (f"<value><{'x' * 200}/></value>", f"of type {'x' * 100}..."),
    ],
)
def test_nothing_else_is_a_vm_id(value, kind):
    consoles = MemoryConsoles()
    answer = raw_call(f"<value>{SESSION}</value>", value, consoles=consoles)
    assert answer == [False, WRONG_ID + kind, 0x1000]
    assert consoles.asked == []


@pytest.mark.parametrize("digits", [20, 4300, 5000, 60_000])
def test_an_int_of_any_length_is_a_wrong_vm_id_like_any_other(digits):
    answer = raw_call(f"<value>{SESSION}</value>", f"<value><int>{'9' * digits}</int></value>")
    assert (answer[0], answer[2]) == (False, 0x1000)
    assert answer[1].startswith(WRONG_ID)


@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\t \n"])
def test_white_space_at_the_end_of_a_session_is_taken_away(end):
    consoles = MemoryConsoles()
    assert call("one.vm.vnc", SESSION + end, 7, consoles=consoles)[0] is True
    assert consoles.asked == [(SESSION, 7)]


@pytest.mark.parametrize("session", [f" {SESSION}", f"a:b:{SECRET}", SECRET, f"a b:{SECRET}", f":{SECRET}", "ü:ß"])
def test_otherwise_a_session_goes_to_oned_as_it_came(session):
    consoles = MemoryConsoles()
    assert call("one.vm.vnc", session, 7, consoles=consoles)[0] is True
    assert consoles.asked == [(session, 7)]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("<value/>", "an empty string"),
        ("<value><string> \n</string></value>", "another string"),
        ("<value><int>7</int></value>", "the int 7"),
        ("<value><boolean>1</boolean></value>", "a boolean"),
        ("<value><nil/></value>", "of type nil"),
        ("<value><double>7</double></value>", "of type double"),
        ("<value><array><data/></array></value>", "an array"),
        ("<value><struct/></value>", "a struct"),
        (f"<value><base64>{SECRET}</base64></value>", "of type base64"),
    ],
)
def test_nothing_but_a_string_with_something_in_it_is_a_session(value, kind):
    consoles = MemoryConsoles()
    answer = raw_call(value, "<value><int>7</int></value>", consoles=consoles)
    assert answer == [False, WRONG_SESSION + kind, 0x1000]
    assert consoles.asked == []


@pytest.mark.parametrize("method", CONSOLE_METHODS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Argument 1 is missing: the session, a non-empty string, is expected"),
        ((SESSION,), "Argument 2 is missing: the VM id, an int, is expected"),
    ],
)
def test_a_missing_argument_is_named(method, arguments, message):
    assert call(method, *arguments) == [False, message, 0x1000]


@pytest.mark.parametrize("method", [*OPENING_METHODS, "one.vm.vnctokens"])
def test_arguments_that_a_method_does_not_know_are_ignored(method):
    consoles = MemoryConsoles()
    ignored = "<value><nil/></value>", "<value><double>1</double></value>", "<value>x</value>"
    answer = raw_call(
        f"<value>{SESSION}</value>", "<value><int>7</int></value>", *ignored, method=method, consoles=consoles
    )
    assert answer[0] is True
    assert consoles.asked == [(SESSION, 7)]


# Options


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, Options()),
        ({"ttl": 60}, Options(ttl=60)),
        ({"ttl": 2**31 - 1, "single_use": True}, Options(ttl=2**31 - 1, single_use=True)),
        ({"single_use": False}, Options()),
        ({"client": "203.0.113.9"}, Options(client="203.0.113.9")),
        ({"client": "2001:DB8:0::1"}, Options(client="2001:db8::1")),
    ],
)
@pytest.mark.parametrize("method", OPENING_METHODS)
def test_a_third_argument_asks_more_of_the_token(method, given, options):
    consoles = MemoryConsoles()
    assert call(method, SESSION, 7, given, "ignored", consoles=consoles)[0] is True
    assert consoles.options == [options]


@pytest.mark.parametrize("third", [60, "ttl=60", [], True])
def test_a_third_argument_that_is_no_struct_is_ignored_as_ever(third):
    consoles = MemoryConsoles()
    assert call("one.vm.vnc", SESSION, 7, third, consoles=consoles)[0] is True
    assert consoles.options == [Options()]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tll": 60}, "there is no option 'tll'. Expected ttl, single_use, client"),
        ({"": 60}, "there is no option ''. Expected ttl, single_use, client"),
        ({"TTL": 60}, "there is no option 'TTL'. Expected ttl, single_use, client"),
        ({"x" * 200: 1}, f"there is no option '{'x' * 100}...'. Expected ttl, single_use, client"),
        ({"ttl": 0}, "the option ttl must be an int of seconds from 1 on, but is the int 0"),
        ({"ttl": -1}, "the option ttl must be an int of seconds from 1 on, but is the int -1"),
        ({"ttl": True}, "the option ttl must be an int of seconds from 1 on, but is a boolean"),
        ({"ttl": "60"}, "the option ttl must be an int of seconds from 1 on, but is another string"),
        ({"ttl": 1.5}, "the option ttl must be an int of seconds from 1 on, but is of type double"),
        ({"single_use": 1}, "the option single_use must be a boolean, but is the int 1"),
        ({"single_use": "true"}, "the option single_use must be a boolean, but is another string"),
        ({"client": 1}, "the option client must be an IP address, but is the int 1"),
        ({"client": ""}, "the option client must be an IP address, but is an empty string"),
        ({"client": "portal.example.org"}, "the option client must be an IP address, but is another string"),
        ({"client": "203.0.113.0/24"}, "the option client must be an IP address, but is another string"),
        ({"client": "fe80::1%eth0"}, "the option client must be an IP address, but is another string"),
        ({"ttl": 60, "client": SECRET}, "the option client must be an IP address, but is another string"),
    ],
)
def test_an_option_that_there_is_not_or_of_a_wrong_type_is_refused_before_oned_is_asked(given, message):
    consoles = MemoryConsoles()
    answer = call("one.vm.vnctoken", SESSION, 7, given, consoles=consoles)
    assert answer == [False, f"Argument 3: {message}", 0x1000]
    assert consoles.asked == []


# Taking back, and listing


@pytest.mark.parametrize(
    ("third", "token"), [((), None), ((TOKENS,), TOKENS), ((TOKENS + "\n",), TOKENS), ((TOKENS, 1), TOKENS)]
)
def test_vncrevoke_answers_how_many_tokens_were_taken_back(log, third, token):
    consoles = MemoryConsoles()
    answer = call("one.vm.vncrevoke", SESSION, 7, *third, consoles=consoles)
    assert answer == [True, 2, 0]
    assert type(answer[1]) is int
    assert consoles.asked == [(SESSION, 7)]
    assert consoles.revoked == [token]
    assert lines(log) == [f"{CLIENT} one.vm.vncrevoke vm=7 user=alice ms=0.0 request={REQUEST} code=0x0000 revoked=2"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("<value/>", "an empty string"),
        ("<value> </value>", "another string"),
        ("<value><nil/></value>", "of type nil"),
        ("<value><int>1</int></value>", "the int 1"),
        ("<value><struct/></value>", "a struct"),
    ],
)
def test_what_is_no_token_takes_no_tokens_back(value, kind):
    consoles = MemoryConsoles()
    arguments = f"<value>{SESSION}</value>", "<value>7</value>", value
    answer = raw_call(*arguments, method="one.vm.vncrevoke", consoles=consoles)
    wrong = "Argument 3, the token or its fingerprint, must be a non-empty string, but is "
    assert answer == [False, wrong + kind, 0x1000]
    assert consoles.revoked == []


def test_vnctokens_answers_the_live_tokens_by_their_fingerprints(log):
    consoles = MemoryConsoles()
    success, listed, code = call("one.vm.vnctokens", SESSION, 7, consoles=consoles)
    assert (success, code) == (True, 0)
    names = ("fingerprint", "user", "issued", "expires", "used", "single_use", "client")
    first = ("60ae576c", "alice", 1795316218, 1795316818, 1795316230, True, "2001:db8::1")
    assert listed == [
        dict(zip(names, first, strict=True)),
        dict(zip(names, ("0123abcd", "", 1795316219, 0, 0, False, ""), strict=True)),
    ]
    assert lines(log) == [f"{CLIENT} one.vm.vnctokens vm=7 user=alice ms=0.0 request={REQUEST} code=0x0000 tokens=2"]


# Introspection


def test_all_methods_are_listed():
    assert call("system.listMethods") == CONSOLE_METHODS + SYSTEM_METHODS
    assert call("system.listMethods", "ignored", 7) == CONSOLE_METHODS + SYSTEM_METHODS


@pytest.mark.parametrize("method", CONSOLE_METHODS + SYSTEM_METHODS)
def test_every_listed_method_has_help_and_a_signature(method):
    assert len(call("system.methodHelp", method)) > 20
    for signature in call("system.methodSignature", method):
        assert set(signature) <= {"array", "string", "int", "struct"}


@pytest.mark.parametrize("method", CONSOLE_METHODS)
def test_the_console_methods_take_a_session_and_a_vm_id_and_some_a_third_argument(method):
    more = {"one.vm.vncrevoke": ["string"], "one.vm.vnctokens": []}.get(method, ["struct"])
    ways = [["array", "string", "int"], ["array", "string", "int", *more]] if more else [["array", "string", "int"]]
    assert call("system.methodSignature", method) == ways
    assert "session" in call("system.methodHelp", method)


def test_the_help_names_what_is_answered():
    text = call("system.methodHelp", "one.vm.vnctoken")
    for name in ("VmId", "Host", "Type", "Port", "Listen", "Password", "Wss", "Token", "Ttl", "id", "token", "ttl"):
        assert re.search(rf"\b{name}\b", text)


@pytest.mark.parametrize("method", ["system.methodHelp", "system.methodSignature"])
@pytest.mark.parametrize("arguments", [(), ("one.vm.info",), ("",), (7,), (["one.vm.vnc"],), (True,)])
def test_help_for_what_we_do_not_have_is_a_fault(method, arguments):
    assert fault(method, *arguments) == (-32602, f"{method}: the name of a method that we have is expected")


# What is no call


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", -32700),
        (b"<methodCall>", -32700),
        (b"<!DOCTYPE x [<!ENTITY a 'b'>]><methodCall><methodName>&a;</methodName></methodCall>", -32700),
        (f"<{SESSION}".encode(), -32700),
        (b"<methodCall/>", -32600),
        (b"<methodResponse/>", -32600),
    ],
)
def test_what_cannot_be_read_as_a_call_is_a_fault_and_one_line_in_the_log(log, body, code):
    with pytest.raises(xmlrpc.client.Fault) as caught:
        xmlrpc.client.loads(result_of(answering(body)))
    assert caught.value.faultCode == code
    assert lines(log) == [f"{CLIENT} fault code={code}"]
    assert log[0]["log_level"] == LogLevel.info


# Multicall


def entry(vm_id, method="one.vm.vnctokenonly", session=SESSION):
    return {"methodName": method, "params": [session, vm_id]}


def test_a_multicall_answers_each_call_in_its_order():
    consoles = MemoryConsoles()
    calls = [entry(7), entry(8, "one.vm.vnctoken"), {"methodName": "system.listMethods", "params": []}]
    first, second, third = call("system.multicall", calls, consoles=consoles)
    assert first == [[True, consoles.tokens_issued[0], 0]]
    assert (second[0][0], second[0][1]["VmId"], second[0][2]) == (True, 8, 0)
    assert third == [CONSOLE_METHODS + SYSTEM_METHODS]


def test_the_standard_librarys_multicall_works():
    class Transport(xmlrpc.client.Transport):
        def request(self, host, handler, request_body, verbose=False):  # noqa: FBT002
            return xmlrpc.client.loads(result_of(answering(request_body)))[0]

    calls = xmlrpc.client.MultiCall(xmlrpc.client.ServerProxy("http://localhost", transport=Transport()))
    for vm_id in (7, 8):
        calls.one.vm.vnctoken(SESSION, vm_id)
    assert [answer[1]["VmId"] for answer in calls()] == [7, 8]


def test_the_calls_of_a_multicall_run_at_the_same_time():
    waiting = {number: Deferred() for number in range(10)}
    consoles = MemoryConsoles(waiting)
    answer = answering(dumps("system.multicall", [entry(number, "one.vm.vnctoken") for number in waiting]), consoles)
    assert [vm_id for _, vm_id in consoles.asked] == list(range(10))
    for number in reversed(waiting):
        assert not answer.called
        waiting[number].callback(None)
    ((results,), _) = xmlrpc.client.loads(result_of(answer))
    assert [result[0][1]["VmId"] for result in results] == list(range(10))


def test_an_empty_multicall_has_an_empty_answer():
    assert call("system.multicall", []) == []


@pytest.mark.parametrize("arguments", [(), ("x",), (7,), (entry(7),)])
def test_a_multicall_of_anything_but_an_array_is_a_fault(arguments):
    assert fault("system.multicall", *arguments) == (-32602, "system.multicall: an array of calls is expected")


@pytest.mark.parametrize(
    "broken",
    [
        "one.vm.vnc",
        7,
        True,
        [],
        ["one.vm.vnc", [SESSION, 7]],
        {},
        {"methodName": "one.vm.vnc"},
        {"params": [SESSION, 7]},
        {"methodName": 7, "params": []},
        {"methodName": "one.vm.vnc", "params": SESSION},
        {"methodName": "one.vm.vnc", "params": {"session": SESSION}},
        {"methodName": "system.multicall", "params": [[entry(8)]]},
    ],
)
def test_a_broken_call_in_a_multicall_is_a_fault_of_its_own(broken):
    consoles = MemoryConsoles()
    first, second, third = call("system.multicall", [entry(7), broken, entry(9)], consoles=consoles)
    assert second == {
        "faultCode": -32602,
        "faultString": "system.multicall: each call is a struct of methodName, other than system.multicall, and params",
    }
    assert [first, third] == [[[True, token, 0]] for token in consoles.tokens_issued]
    assert consoles.asked == [(SESSION, 7), (SESSION, 9)]


def test_a_call_that_fails_does_no_harm_to_the_others_of_its_multicall(log):
    waiting = {number: Deferred() for number in range(7, 12)}
    consoles = MemoryConsoles(waiting)
    calls = [entry(7), entry(8), entry(9), entry(10), {"methodName": "system.methodHelp", "params": ["x"]}, entry(11)]
    answer = answering(dumps("system.multicall", [*calls, entry(-1), entry(7, "x")]), consoles)
    waiting[8].errback(NoExistsError("no such VM"))
    waiting[9].errback(ZeroDivisionError("ours"))
    waiting[10].errback(OnedError("oned is down"))
    waiting[7].callback(None)
    waiting[11].callback(None)
    ((results,), _) = xmlrpc.client.loads(result_of(answer))
    assert results == [
        [[True, consoles.tokens_issued[0], 0]],
        [[False, "no such VM", 0x0400]],
        [[False, "internal error", 0x2000]],
        [[False, "oned is down", 0x2000]],
        {"faultCode": -32602, "faultString": "system.methodHelp: the name of a method that we have is expected"},
        [[True, consoles.tokens_issued[1], 0]],
        [[False, WRONG_ID + "the int -1", 0x1000]],
        [[False, f"Unknown method 'x'. Expected {EXPECTED}", 0x1000]],
    ]
    assert len(log) == 7


# The client goes away


class WaitingOned:
    """Answers when it is told to."""

    def __init__(self):
        self.answers = {}
        self.cancelled = []

    async def vm_info(self, session, vm_id):
        self.answers[vm_id] = Deferred(lambda _: self.cancelled.append(vm_id))
        return await self.answers[vm_id]


RUNNING = VirtualMachine(
    state=3,
    lcm_state=3,
    graphics_type="VNC",
    listen="",
    port="5900",
    password="",
    host="h",
    host_attribute="HISTORY/HOSTNAME",
)


def consoles_of(oned, tokens):
    terms = Terms(ttl=600, ttl_max=3600, resolved=False, wss=False)
    rules = ConsoleRules(states={3}, ports=range(5900, 5901))
    return Consoles(admission(oned), tokens, limits(), rules=rules, terms=terms, now=lambda: 0)


def given_up(body):
    """Return an oned, tokens, and what becomes of a call whose client goes away while oned is asked."""
    oned, tokens = WaitingOned(), MemoryStore()
    clock = Clock()
    answer = answering(body, consoles_of(oned, tokens), clock)
    clock.advance(0.25)
    answer.cancel()
    results = []
    answer.addBoth(results.append)
    return oned, tokens, results


@pytest.mark.parametrize("method", CONSOLE_METHODS)
def test_when_the_client_goes_away_oned_is_not_waited_for_and_no_token_is_written(log, method):
    oned, tokens, (failure,) = given_up(dumps(method, SESSION, 7))
    assert failure.check(CancelledError)
    assert oned.cancelled == [7]
    assert tokens.kept == {}
    assert lines(log) == [
        f"{CLIENT} {method} vm=7 user=alice ms=250.0 request={REQUEST} cancelled: the client went away"
    ]
    assert log[0]["log_level"] == LogLevel.info


def test_when_the_client_of_a_multicall_goes_away_all_its_calls_end(log):
    oned, tokens, (failure,) = given_up(dumps("system.multicall", [entry(7), entry(8), entry(9)]))
    assert oned.cancelled == [7, 8, 9]
    assert tokens.kept == {}
    assert len(log) == 3
    assert {event["log_level"] for event in log} == {LogLevel.info}
    assert failure.check(CancelledError), "anything else is logged as a bug of ours"


def test_when_the_client_of_a_multicall_goes_away_tokens_that_are_written_stay():
    oned, tokens = WaitingOned(), MemoryStore()
    answer = answering(dumps("system.multicall", [entry(7), entry(8)]), consoles_of(oned, tokens))
    oned.answers[8].callback(RUNNING)
    answer.addErrback(lambda _: None)
    answer.cancel()
    assert ([grant.vm_id for grant in tokens.grants], oned.cancelled) == ([8], [7])


# The log


def test_a_call_is_one_line_with_method_vm_user_client_code_time_and_token(log):
    clock, waiting = Clock(), {7: Deferred()}
    consoles = MemoryConsoles(waiting)
    answer = answering(dumps("one.vm.vnctoken", SESSION, 7), consoles, clock)
    clock.advance(0.0125)
    waiting[7].callback(None)
    result_of(answer)
    token = fingerprint(consoles.tokens_issued[0])
    assert lines(log) == [
        f"{CLIENT} one.vm.vnctoken vm=7 user=alice ms=12.5 request={REQUEST} code=0x0000 token={token}"
    ]
    assert log[0]["log_level"] == LogLevel.info


@pytest.mark.parametrize(
    ("error", "level", "end"),
    [
        (AuthenticationError(f"oned says {SESSION}"), LogLevel.info, "code=0x0100"),
        (ActionError("Unsupported VM state!"), LogLevel.info, "code=0x0800"),
        (OnedError("oned is down"), LogLevel.error, "code=0x2000 reason=oned is down"),
        (TokenStoreError("disk full"), LogLevel.error, "code=0x4000 reason=disk full"),
    ],
)
def test_what_an_operator_must_look_at_is_an_error_with_its_reason_and_a_callers_mistake_is_not(log, error, level, end):
    call("one.vm.vnc", SESSION, 7, consoles=MemoryConsoles(error))
    assert lines(log) == [f"{CLIENT} one.vm.vnc vm=7 user=alice ms=0.0 request={REQUEST} {end}"]
    assert log[0]["log_level"] == level


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        ((), "vm=- user=-"),
        ((SESSION,), "vm=- user=alice"),
        ((SESSION, SESSION), "vm=- user=alice"),
        ((7, 7), "vm=- user=-"),
    ],
)
def test_a_call_with_wrong_arguments_is_logged_with_what_is_known(log, arguments, known):
    call("one.vm.vnc", *arguments)
    assert lines(log) == [f"{CLIENT} one.vm.vnc {known} ms=0.0 request={REQUEST} code=0x1000"]


def test_each_call_of_a_multicall_is_a_line(log):
    call("system.multicall", [entry(7), entry(8, session=f"bob:{SECRET}")])
    assert [re.search(r"vm=\d+ user=\w+", line)[0] for line in lines(log)] == ["vm=7 user=alice", "vm=8 user=bob"]


@pytest.mark.parametrize(
    ("session", "user"),
    [
        (f"alice:{SECRET}", "alice"),
        (f"alice:bob:{SECRET}", "alice"),
        (SECRET, "-"),
        (f":{SECRET}", "-"),
        (f"jörg-東京:{SECRET}", "jörg-東京"),
        (f"a b:{SECRET}", "a?b"),
        (f"a\nforged vm=1 user=root:{SECRET}", "a?forged?vm=1?user=root"),
        (f"a\r\tb:{SECRET}", "a??b"),
        (f"a\u2028b\u202ec\u00a0d\u200be\u0085f:{SECRET}", "a?b?c?d?e?f"),
        (f"{{log_level}}{{0}}%s:{SECRET}", "{log_level}{0}%s"),
        (f"{'x' * 60_000}:{SECRET}", "x" * 100 + "..."),
    ],
)
def test_of_a_session_only_the_user_name_is_logged_and_it_cannot_forge_anything(log, session, user):
    # \r as a reference: XML turns a bare one into \n.
    text = session.replace("\r", "&#13;")
    assert raw_call(f"<value>{text}</value>", "<value>7</value>")[0] is True
    (line,) = lines(log)
    assert line.startswith(f"{CLIENT} one.vm.vnc vm=7 user={user} ms=0.0 request={REQUEST} code=0x0000 token=")


def test_a_secret_in_the_wrong_place_is_not_logged(log):
    for body in (
        dumps(SESSION, "one.vm.vnc", 7),
        dumps("one.vm.vnc", 7, SESSION),
        dumps("one.vm.vnc", [SESSION], {SESSION: SESSION}),
        dumps("system.methodHelp", SESSION),
        dumps("system.multicall", SESSION),
        dumps("system.multicall", [SESSION, {"methodName": SESSION, "params": [SESSION]}]),
        (
            f"<methodCall><methodName>one.vm.vnc</methodName><params><param><value><{SECRET}/></value></param>"
            "</params></methodCall>"
        ).encode(),
        f"<{SECRET}>".encode(),
    ):
        result_of(answering(body))
    assert len(log) >= 6
