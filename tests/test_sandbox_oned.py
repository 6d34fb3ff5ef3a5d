"""The sandbox's oned over raw bytes: its HTTP, its methods, and its ugly sides."""

import re
import xmlrpc.client

import pytest
from lxml import etree
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from vnctoken.sandbox.behaviour import HUGE_LENGTH, UGLY_GUESTS, UNKNOWN_CODE, Behaviour, Kind
from vnctoken.sandbox.cloud import demo_cloud
from vnctoken.sandbox.oned import OnedFactory

NOW = 1_795_316_606.5


def connected(clock, **behaviour):
    factory = OnedFactory(demo_cloud(), clock, **behaviour)
    protocol, transport = factory.buildProtocol(None), StringTransport()
    protocol.makeConnection(transport)
    return protocol, transport


def clock_at(now=NOW):
    clock = Clock()
    clock.advance(now)
    return clock


def post(body, *, path="/RPC2"):
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/xml\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def call(method, *arguments):
    return post(xmlrpc.client.dumps(arguments, method).encode())


VM_INFO = call("one.vm.info", "alice:secret", 0)


def ask(request, **behaviour):
    protocol, transport = connected(clock_at(), **behaviour)
    protocol.dataReceived(request)
    return transport


def answer(request, **behaviour):
    """Return what the array in an answer holds; a fault is raised."""
    _, _, body = ask(request, **behaviour).value().partition(b"\r\n\r\n")
    return xmlrpc.client.loads(body)[0][0]


def test_an_answer_has_the_headers_of_abyss_and_then_the_connection_ends():
    transport = ask(call("one.system.version", "alice:secret"))
    assert transport.disconnecting
    assert transport.value() == (
        b"HTTP/1.1 200 OK\r\n"
        b"Content-type: text/xml; charset=utf-8\r\n"
        b"Content-length: 264\r\n"
        b"Connection: close\r\n"
        b"Date: Sun, 22 Nov 2026 03:03:26 UTC\r\n"
        b"Server: Xmlrpc-c_Abyss/1.33.14\r\n"
        b"\r\n"
        b'<?xml version="1.0" encoding="UTF-8"?>\r\n'
        b"<methodResponse>\r\n"
        b"<params>\r\n"
        b"<param><value><array><data>\r\n"
        b"<value><boolean>1</boolean></value>\r\n"
        b"<value><string>6.10.0</string></value>\r\n"
        b"<value><i4>0</i4></value>\r\n"
        b"</data></array></value></param>\r\n"
        b"</params>\r\n"
        b"</methodResponse>\r\n"
    )


def test_a_request_may_come_byte_by_byte():
    protocol, transport = connected(clock_at())
    for position in range(len(VM_INFO)):
        assert not transport.value()
        protocol.dataReceived(VM_INFO[position : position + 1])
    assert transport.value() == ask(VM_INFO).value()


def test_a_second_request_on_the_connection_is_not_answered():
    protocol, transport = connected(clock_at())
    protocol.dataReceived(VM_INFO + VM_INFO)
    protocol.dataReceived(VM_INFO)
    assert transport.value().count(b"HTTP/1.1") == 1


HEAD = b"POST /RPC2 HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /RPC2 HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"GET /RPC2 HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "405 Method Not Allowed"),
        (b"PUT /RPC2 HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "405 Method Not Allowed"),
        (post(b"<a/>", path="/"), "404 Not Found"),
        (post(b"<a/>", path="/RPC2/"), "404 Not Found"),
        (post(b"<a/>", path="/rpc2"), "404 Not Found"),
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (HEAD + b"\r\n", "411 Length Required"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\n<a/>\r\n0\r\n\r\n", "411 Length Required"),
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n<a/>", "411 Length Required"),
        (HEAD + b"Content-Length: 0\r\n\r\n", "400 Bad Request"),
        (HEAD + b"Content-Length: four\r\n\r\n<a/>", "400 Bad Request"),
        (HEAD + b"Content-Length: -4\r\n\r\n<a/>", "400 Bad Request"),
        (b"hello\r\n\r\n", "400 Bad Request"),
    ],
)
def test_what_is_no_post_of_a_call_gets_a_page_of_html(request_bytes, status):
    transport = ask(request_bytes)
    head, _, page = transport.value().decode().partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status}\r\nContent-type: text/html\r\nConnection: close\r\n")
    assert f"<TITLE>Error {status[:3]}</TITLE>" in page
    assert transport.disconnecting


def test_the_query_of_the_url_does_not_matter():
    assert b"200 OK" in ask(post(b"<a/>", path="/RPC2?x=1")).value()


def test_a_users_own_vm_is_answered_as_xml_in_a_string():
    success, xml, code = answer(VM_INFO)
    assert (success, code) == (True, 0)
    vm = etree.fromstring(xml)
    assert (vm.tag, vm.findtext("NAME"), vm.findtext("UNAME")) == ("VM", "vnc-plain", "alice")


@pytest.mark.parametrize(
    ("arguments", "text", "code", "object_id"),
    [
        (
            ("one.vm.info", "alice:wrong", 0),
            "[one.vm.info] User couldn't be authenticated, aborting call.",
            0x100,
            -1,
        ),
        # The session is judged before the other arguments are read.
        (
            ("one.vm.info", "alice:wrong"),
            "[one.vm.info] User couldn't be authenticated, aborting call.",
            0x100,
            -1,
        ),
        (
            ("one.vm.info", "alice:secret", 9),
            "[one.vm.info] User [2] : Not authorized to perform USE VM [9].",
            0x200,
            -1,
        ),
        (
            ("one.vm.info", "eve:with:colons:in:it", 16),
            "[one.vm.info] User [7] : Not authorized to perform USE VM [16].",
            0x200,
            -1,
        ),
        (
            ("one.vm.info", "alice:secret", 999999),
            "[one.vm.info] Error getting virtual machine [999999].",
            0x400,
            999999,
        ),
        (
            ("one.vm.info", "alice:secret", -1),
            "[one.vm.info] Error getting virtual machine [-1].",
            0x400,
            -1,
        ),
        (
            ("one.user.info", "alice:secret", 3),
            "[one.user.info] User [2] : Not authorized to perform USE USER [3].",
            0x200,
            -1,
        ),
        (("one.user.info", "alice:secret", 99), "[one.user.info] Error getting user [99].", 0x400, 99),
        (
            ("one.userpool.info", "alice:wrong"),
            "[one.userpool.info] User couldn't be authenticated, aborting call.",
            0x100,
            -1,
        ),
        (("one.user.enable", "oneadmin:opennebula", 99, True), "[one.user.enable] Error getting user [99].", 0x400, 99),
        (
            ("one.user.enable", "alice:secret", 2, False),
            "[one.user.enable] User [2] : Not authorized to perform ADMIN USER [2].",
            0x200,
            -1,
        ),
        (
            ("one.user.enable", "oneadmin:opennebula", 0, False),
            "[one.user.enable] Cannot enable/disable oneadmin user",
            0x800,
            -1,
        ),
    ],
)
def test_an_error_says_which_method_what_and_about_which_object(arguments, text, code, object_id):
    assert answer(call(*arguments)) == [False, text, code, object_id, -1]


@pytest.mark.parametrize(
    ("session", "guest_id"),
    [("oneadmin:opennebula", 9), ("alice:secret", 16), ("eve:with:colons:in:it", 17)],
)
def test_others_vms_are_shown_to_whom_they_are_open(session, guest_id):
    assert answer(call("one.vm.info", session, guest_id))[0] is True


@pytest.mark.parametrize(("asked", "name"), [(-1, "oneadmin"), (0, "oneadmin"), (2, "alice")])
def test_user_info_minus_one_is_oneself(asked, name):
    success, xml, _ = answer(call("one.user.info", "oneadmin:opennebula", asked))
    assert success is True
    assert etree.fromstring(xml).findtext("NAME") == name


class Server:
    """An oned that is asked more than once, and whose VMs are not always what they were."""

    def __init__(self, **behaviour):
        self._factory = OnedFactory(demo_cloud(), clock_at(), **behaviour)

    def ask(self, method, *arguments, session="alice:secret"):
        protocol, transport = self._factory.buildProtocol(None), StringTransport()
        protocol.makeConnection(transport)
        protocol.dataReceived(call(method, session, *arguments))
        return xmlrpc.client.loads(transport.value().partition(b"\r\n\r\n")[2])[0][0]

    def vm(self, guest_id):
        return etree.fromstring(self.ask("one.vm.info", guest_id, session=ADMIN)[1])


ADMIN = "oneadmin:opennebula"


def test_an_action_is_answered_with_the_id_and_the_vm_is_then_in_its_new_state():
    server = Server()
    assert server.vm(0).findtext("STATE") == "3"
    assert server.ask("one.vm.action", "poweroff", 0) == [True, 0, 0]
    assert [server.vm(0).findtext(name) for name in ("STATE", "LCM_STATE", "PREV_STATE")] == ["8", "0", "8"]
    assert server.ask("one.vm.action", "resume", 0) == [True, 0, 0]
    assert server.vm(0).findtext("STATE") == "3"
    assert server.ask("one.vm.action", "terminate", 0) == [True, 0, 0]
    assert server.vm(0).findtext("STATE") == "6"


@pytest.mark.parametrize("live", [True, False])
def test_a_migration_is_answered_with_the_id_and_the_vm_is_then_on_the_other_host(live):
    server = Server()
    # Whether to overcommit, on which datastore, and how: of no effect here.
    assert server.ask("one.vm.migrate", 0, 1, live, False, -1, 0, session=ADMIN) == [True, 0, 0]
    vm = server.vm(0)
    assert [vm.findtext("STATE"), vm.findtext("LCM_STATE")] == ["3", "3"]
    hosts = [stay.findtext("HOSTNAME") for stay in vm.find("HISTORY_RECORDS")]
    assert hosts == ["dummy-host-1", "dummy-host-2.example.org"]


@pytest.mark.parametrize(
    ("question", "text", "code", "object_id"),
    [
        (
            ("one.vm.action", "alice:secret", "suspend", 7),
            'Error performing action "suspend": This action is not available for state POWEROFF',
            0x800,
            -1,
        ),
        (("one.vm.action", "alice:secret", "dance", 0), 'Action "dance" is not supported', 0x800, -1),
        (
            ("one.vm.action", "alice:secret", "poweroff", 4711),
            "Error getting virtual machine [4711].",
            0x400,
            4711,
        ),
        (
            ("one.vm.action", "alice:secret", "poweroff", 9),
            "User [2] : Not authorized to perform MANAGE VM [9].",
            0x200,
            -1,
        ),
        (
            ("one.vm.migrate", "alice:secret", 0, 1, True),
            "User [2] : Not authorized to perform ADMIN VM [0].",
            0x200,
            -1,
        ),
        (("one.vm.migrate", ADMIN, 0, 9, True), "Error getting host [9].", 0x400, 9),
        (("one.vm.migrate", ADMIN, 0, 0, True), "VM is already running on host [0]", 0x800, -1),
        (("one.vm.migrate", ADMIN, 18, 1, False), "Migrate action is not available for state DONE", 0x800, -1),
    ],
)
def test_a_change_that_is_refused_says_why_and_changes_nothing(question, text, code, object_id):
    server = Server()
    before = [etree.tostring(server.vm(guest_id)) for guest_id in (0, 7, 9, 18)]
    method, session, *arguments = question
    assert server.ask(method, *arguments, session=session) == [False, f"[{method}] {text}", code, object_id, -1]
    assert [etree.tostring(server.vm(guest_id)) for guest_id in (0, 7, 9, 18)] == before


def ids(document):
    return [int(vm.findtext("ID")) for vm in etree.fromstring(document)]


@pytest.mark.parametrize("extended", [False, True])
def test_a_set_of_vms_has_those_that_the_user_may_see_newest_first_and_the_done_ones_too(extended):
    server = Server()
    success, document, code = server.ask("one.vmpool.infoset", "0,18,9,4711,0,20,x,-1,", extended)
    assert (success, code) == (True, 0)
    assert ids(document) == [20, 18, 0]
    assert (etree.fromstring(document)[0].find("PERMISSIONS") is not None) is extended
    assert ids(server.ask("one.vmpool.infoset", "0,18,9", extended, session=ADMIN)[1]) == [18, 9, 0]
    assert server.ask("one.vmpool.infoset", "", extended) == [True, "<VM_POOL></VM_POOL>", 0]


def names(document, tag):
    return [element.findtext("NAME") for element in etree.fromstring(document).findall(tag)]


def test_a_pool_of_users_has_everybody_for_an_administrator_and_for_others_themselves():
    server = Server()
    success, document, code = server.ask("one.userpool.info", session=ADMIN)
    assert (success, code) == (True, 0)
    everybody = [
        "gina",
        "remy",
        "xenia",
        "eve",
        "dave",
        "carol",
        "serverx509",
        "bob",
        "alice",
        "serveradmin",
        "oneadmin",
    ]
    assert names(document, "USER") == everybody
    assert names(server.ask("one.userpool.info")[1], "USER") == ["alice"]


def test_a_pool_of_groups_has_all_for_an_administrator_and_for_others_their_own():
    server = Server()
    assert names(server.ask("one.grouppool.info", session=ADMIN)[1], "GROUP") == ["guests", "users", "oneadmin"]
    assert names(server.ask("one.grouppool.info")[1], "GROUP") == ["users"]
    assert names(server.ask("one.grouppool.info", session="gina:secret")[1], "GROUP") == ["guests", "users"]


def test_a_user_who_is_disabled_is_told_nothing_until_he_is_enabled_again():
    server = Server()
    assert server.ask("one.user.enable", 2, False, session=ADMIN) == [True, 2, 0]
    assert server.ask("one.user.info", -1)[2] == 0x100
    account = etree.fromstring(server.ask("one.user.info", 2, session=ADMIN)[1])
    assert account.findtext("ENABLED") == "0"
    assert server.ask("one.user.enable", 2, True, session=ADMIN) == [True, 2, 0]
    assert server.ask("one.user.info", -1)[0] is True


def test_a_method_that_it_is_told_to_be_without_is_unknown_as_in_an_older_oned():
    server = Server(without=["one.vmpool.infoset"])
    with pytest.raises(xmlrpc.client.Fault, match=r"Method 'one\.vmpool\.infoset' not defined") as caught:
        server.ask("one.vmpool.infoset", "0", False)
    assert caught.value.faultCode == -506
    assert server.ask("one.vmpool.info", -2, -1, -1, -1)[0] is True


def test_a_servers_login_is_for_the_user_that_it_names_until_it_expires():
    login = "serveradmin:alice:3wGIzKFbnxM2QjDRIEI92w3wlt2r4lZyBHZwEZSQmVo="
    assert answer(call("one.vm.info", login, 0))[0] is True
    assert answer(call("one.vm.info", login, 9))[2] == 0x200
    protocol, transport = connected(clock_at(1_800_000_000))
    protocol.dataReceived(call("one.vm.info", login, 0))
    late = xmlrpc.client.loads(transport.value().partition(b"\r\n\r\n")[2])[0][0]
    assert late == answer(call("one.vm.info", "alice:wrong", 0))


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("one.vm.foo", "alice:wrong"), -506, "Method 'one.vm.foo' not defined"),
        (("one.vm.info",), -501, "Not enough parameters"),
        (("one.vm.info", 7, 0), -501, "Parameter that is supposed to be string is not"),
        (("one.vm.info", "alice:secret"), -501, "Not enough parameters"),
        (("one.vm.info", "alice:secret", "0"), -501, "Parameter that is supposed to be integer is not"),
        (("one.vm.info", "alice:secret", True), -501, "Parameter that is supposed to be integer is not"),
        (("one.vm.info", "alice:secret", 0, 1), -501, "Parameter that is supposed to be boolean is not"),
        (("one.system.version",), -501, "Not enough parameters"),
        (("one.vmpool.infoset", "alice:secret", "0"), -501, "Not enough parameters"),
        (("one.vmpool.infoset", "alice:secret", 0, False), -501, "Parameter that is supposed to be string is not"),
        (("one.vm.action", "alice:secret", 0, "poweroff"), -501, "Parameter that is supposed to be string is not"),
        (("one.vm.migrate", "alice:secret", 0, 1), -501, "Not enough parameters"),
        (("one.userpool.info",), -501, "Not enough parameters"),
        (("one.user.enable", "oneadmin:opennebula", 2), -501, "Not enough parameters"),
    ],
)
def test_a_call_with_the_wrong_method_or_arguments_is_a_fault(arguments, code, text):
    with pytest.raises(xmlrpc.client.Fault) as caught:
        answer(call(*arguments))
    assert (caught.value.faultCode, caught.value.faultString) == (code, text)


def test_an_i8_is_no_vm_id():
    with pytest.raises(xmlrpc.client.Fault, match="supposed to be integer"):
        answer(post(xmlrpc.client.dumps(("alice:secret", 0), "one.vm.info").replace("int>", "i8>").encode()))


def test_arguments_beyond_the_known_ones_do_not_matter():
    assert answer(call("one.vm.info", "alice:secret", 0, False, "x", [1]))[0] is True
    assert answer(call("one.system.version", "alice:secret", 1, 2)) == [True, "6.10.0", 0]


def test_a_delayed_answer_comes_after_the_delay_and_not_before():
    clock = clock_at()
    protocol, transport = connected(clock, behaviour=Behaviour(delay=2))
    protocol.dataReceived(VM_INFO)
    clock.advance(1.9)
    assert not transport.value()
    clock.advance(0.2)
    assert b"vnc-plain" in transport.value()
    assert transport.disconnecting


@pytest.mark.parametrize("behaviour", [Behaviour(delay=2), Behaviour(Kind.DRIP)])
def test_nothing_is_left_to_do_for_a_client_that_has_gone(behaviour):
    clock = clock_at()
    protocol, _ = connected(clock, behaviour=behaviour)
    protocol.dataReceived(VM_INFO)
    protocol.connectionLost(Failure(ConnectionDone()))
    assert clock.getDelayedCalls() == []


def test_nothing_happens_when_a_client_goes_after_its_answer():
    clock = clock_at()
    protocol, transport = connected(clock, behaviour=Behaviour(delay=1))
    protocol.dataReceived(VM_INFO)
    clock.advance(1)
    before = transport.value()
    protocol.connectionLost(Failure(ConnectionDone()))
    assert transport.value() == before


def ugly(kind):
    """Ask for the VM of the standard cloud that shows this kind."""
    guest_id = next(number for number, behaviour in UGLY_GUESTS.items() if behaviour.kind is kind)
    return ask(call("one.vm.info", "alice:secret", guest_id), ugly_guests=UGLY_GUESTS)


def ugly_answer(kind):
    return xmlrpc.client.loads(ugly(kind).value().partition(b"\r\n\r\n")[2])[0][0]


def test_only_the_ugly_vms_are_ugly():
    assert answer(VM_INFO, ugly_guests=UGLY_GUESTS)[0] is True
    version = call("one.system.version", "alice:secret", 901)
    assert answer(version, ugly_guests=UGLY_GUESTS)[0] is True


def test_the_whole_server_can_be_ugly():
    for request in (VM_INFO, call("one.system.version", "alice:secret"), post(b"<a/>")):
        assert ask(request, behaviour=Behaviour(Kind.CLOSE)).disconnecting
        assert not ask(request, behaviour=Behaviour(Kind.CLOSE)).value()


def test_hang_accepts_and_never_answers():
    transport = ugly(Kind.HANG)
    assert not transport.value()
    assert not transport.disconnecting


def test_reset_aborts_the_connection():
    transport = ugly(Kind.RESET)
    assert transport.disconnected
    assert not transport.value()


def test_close_sends_nothing():
    transport = ugly(Kind.CLOSE)
    assert transport.disconnecting
    assert not transport.value()


def test_garbage_is_no_http():
    transport = ugly(Kind.GARBAGE)
    assert transport.disconnecting
    assert not transport.value().startswith(b"HTTP")


@pytest.mark.parametrize(("kind", "status"), [(Kind.HTML, b"200"), (Kind.BAD_GATEWAY, b"502"), (Kind.REDIRECT, b"302")])
def test_a_proxy_in_between_answers_with_a_whole_page(kind, status):
    head, _, page = ugly(kind).value().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert page.startswith(b"<html>")
    assert re.search(rb"Content-Length: (\d+)", head).group(1) == b"%d" % len(page)
    assert (b"\r\nLocation: http://127.0.0.1" in head) is (kind is Kind.REDIRECT)


def test_truncated_promises_more_than_it_sends():
    transport = ugly(Kind.TRUNCATED)
    head, _, body = transport.value().partition(b"\r\n\r\n")
    assert 0 < len(body) < int(re.search(rb"Content-length: (\d+)", head).group(1))
    assert transport.disconnecting


def test_half_sends_half_and_leaves_the_connection_open():
    transport = ugly(Kind.HALF)
    assert transport.value().startswith(b"HTTP/1.1 200 OK")
    assert b"</methodResponse>" not in transport.value()
    assert not transport.disconnecting


def test_drip_sends_a_byte_at_a_time_and_then_all_was_sent():
    clock = clock_at()
    protocol, transport = connected(clock, behaviour=Behaviour(Kind.DRIP, pause=5))
    protocol.dataReceived(VM_INFO)
    assert transport.value() == b"H"
    clock.advance(5)
    assert transport.value() == b"HT"
    clock.pump([5] * 5000)
    assert transport.disconnecting
    assert len(transport.value()) == len(ask(VM_INFO).value())


def test_huge_is_longer_than_any_vm():
    assert len(ugly(Kind.HUGE).value()) > HUGE_LENGTH


def test_fault_is_a_fault():
    with pytest.raises(xmlrpc.client.Fault):
        ugly_answer(Kind.FAULT)


def test_unknown_code_is_an_error_that_opennebula_has_not():
    assert ugly_answer(Kind.UNKNOWN_CODE)[::2] == [False, UNKNOWN_CODE, -1]


def test_three_elements_is_an_error_as_older_versions_sent_it():
    success, _, code = ugly_answer(Kind.THREE_ELEMENTS)
    assert (success, code) == (False, 0x2000)


def test_bare_string_is_no_array():
    assert ugly_answer(Kind.BARE_STRING).startswith("<VM>")


def test_empty_is_a_success_of_nothing():
    assert ugly_answer(Kind.EMPTY) == [True, "", 0]


@pytest.mark.parametrize(("kind", "problem"), [(Kind.NOT_XML, "Start tag expected"), (Kind.NOT_UTF8, None)])
def test_a_success_need_not_be_readable(kind, problem):
    if problem is None:
        with pytest.raises(UnicodeDecodeError):
            ugly(kind).value().decode()
    else:
        with pytest.raises(etree.XMLSyntaxError, match=problem):
            etree.fromstring(ugly_answer(kind)[1])


def test_dtd_is_a_vm_with_a_document_type():
    assert ugly_answer(Kind.DTD)[1].startswith("<!DOCTYPE VM ")


def test_bomb_is_a_small_answer_that_grows():
    body = ugly(Kind.BOMB).value().partition(b"\r\n\r\n")[2]
    assert len(body) < 1500
    # expat's own guard against this begins at 8 MiB.
    assert len(xmlrpc.client.loads(body)[0][0][1]) == 3 * 10**6


def test_i8_writes_every_number_as_i8():
    value = ugly(Kind.I8).value()
    assert b"<i8>0</i8>" in value
    assert b"<i4>" not in value
    wrong = ask(call("one.vm.info", "alice:wrong", 0), behaviour=Behaviour(Kind.I8)).value()
    assert [b"<i8>256</i8>" in wrong, wrong.count(b"<i8>-1</i8>"), b"<i4>" in wrong] == [True, 2, False]
