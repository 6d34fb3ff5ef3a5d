"""What we expect of an oned, asked of one or two.

- The sandbox's, always.
- A real one, when ONE_XMLRPC (its URL) and ONE_AUTH (a session such as user:password, or a file that holds
  one) are set. ONE_VM_ID is a VM that this user may use (default 0), and ONE_FORBIDDEN_VM_ID one that he may
  not.
"""

import json
import os
import re
import socket
import subprocess
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pyone
import pytest
from conftest import program
from lxml import etree

NO_SUCH_VM = 999999


def raw_exchange(url, request):
    """Send bytes, and return all bytes that come until the connection ends."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=30) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def request_of(body, verb="POST"):
    head = f"{verb} /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/xml\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def xml_of(message):
    return message.partition(b"\r\n\r\n")[2]


@dataclass
class Server:
    """An oned that can be reached, and what we may ask it for."""

    url: str
    session: str
    vm_id: int = 0
    forbidden_vm_id: int | None = None

    @property
    def wrong_session(self):
        return self.session.partition(":")[0] + ":wrong"

    def exchange(self, request):
        return raw_exchange(self.url, request)


def real_server():
    auth = Path(os.environ["ONE_AUTH"]).expanduser()
    session = auth.read_text(encoding="utf-8").strip() if auth.is_file() else os.environ["ONE_AUTH"]
    forbidden = os.environ.get("ONE_FORBIDDEN_VM_ID")
    vm_id = int(os.environ.get("ONE_VM_ID", "0"))
    return Server(os.environ["ONE_XMLRPC"], session, vm_id, forbidden and int(forbidden))


REAL = ["real"] if os.environ.get("ONE_XMLRPC") and os.environ.get("ONE_AUTH") else []


@pytest.fixture(params=["sandbox", *REAL])
def oned(request):
    """Return an oned that may be asked anything."""
    if request.param == "real":
        return real_server()
    return Server(request.getfixturevalue("cloud").url, "alice:secret", 0, 9)


def ask(oned, method, *arguments):
    """Return the array of the answer; a fault is raised."""
    request = request_of(xmlrpc.client.dumps(arguments, method).encode())
    message = oned.exchange(request)
    assert message.startswith(b"HTTP/1.1 200 OK\r\n")
    return xmlrpc.client.loads(xml_of(message))[0][0]


def fault(oned, method, *arguments):
    with pytest.raises(xmlrpc.client.Fault) as caught:
        ask(oned, method, *arguments)
    return caught.value.faultCode, caught.value.faultString


def test_a_vm_comes_as_true_its_xml_and_zero(oned):
    success, xml, code = ask(oned, "one.vm.info", oned.session, oned.vm_id, False)
    assert (success, code) == (True, 0)
    vm = etree.fromstring(xml)
    assert vm.tag == "VM"
    assert int(vm.findtext("ID")) == oned.vm_id
    assert vm.findtext("STATE").isdigit()
    assert vm.findtext("LCM_STATE").isdigit()
    assert vm.find("TEMPLATE") is not None
    assert vm.find("HISTORY_RECORDS") is not None


def test_a_wrong_password_is_code_0x100(oned):
    assert ask(oned, "one.vm.info", oned.wrong_session, oned.vm_id, False) == [
        False,
        "[one.vm.info] User couldn't be authenticated, aborting call.",
        0x100,
        -1,
        -1,
    ]


def test_the_session_is_judged_before_the_other_arguments_are_read(oned):
    assert ask(oned, "one.vm.info", oned.wrong_session)[2] == 0x100


def test_a_vm_that_is_not_there_is_code_0x400_and_names_its_id(oned):
    assert ask(oned, "one.vm.info", oned.session, NO_SUCH_VM, False) == [
        False,
        f"[one.vm.info] Error getting virtual machine [{NO_SUCH_VM}].",
        0x400,
        NO_SUCH_VM,
        -1,
    ]


def test_somebody_elses_vm_is_code_0x200(oned):
    vm_id = oned.forbidden_vm_id
    if vm_id is None:
        pytest.skip("ONE_FORBIDDEN_VM_ID is not set")
    success, text, *numbers = ask(oned, "one.vm.info", oned.session, vm_id, False)
    assert success is False
    assert re.fullmatch(rf"\[one\.vm\.info\] User \[\d+\] : Not authorized to perform USE VM \[{vm_id}\]\.", text)
    assert numbers == [0x200, -1, -1]


def test_an_id_that_is_a_string_is_a_fault(oned):
    assert fault(oned, "one.vm.info", oned.session, "0", False) == (
        -501,
        "Parameter that is supposed to be integer is not",
    )


def test_an_id_that_is_an_i8_is_a_fault(oned):
    body = xmlrpc.client.dumps((oned.session, 0), "one.vm.info").replace("int>", "i8>").encode()
    with pytest.raises(xmlrpc.client.Fault, match="supposed to be integer"):
        xmlrpc.client.loads(xml_of(oned.exchange(request_of(body))))


def test_missing_arguments_are_a_fault(oned):
    assert fault(oned, "one.vm.info") == (-501, "Not enough parameters")


def test_arguments_beyond_the_known_ones_do_not_matter(oned):
    assert ask(oned, "one.vm.info", oned.session, oned.vm_id, False, "more", 1)[0] is True


def test_an_unknown_method_is_a_fault(oned):
    assert fault(oned, "one.vm.foo", oned.session, 0) == (
        -506,
        "Method 'one.vm.foo' not defined",
    )


def test_xml_that_ends_too_early_is_a_fault(oned):
    body = b'<?xml version="1.0"?><methodCall><methodName>one.vm.info</methodName>'
    with pytest.raises(xmlrpc.client.Fault, match="not a proper XML-RPC call") as caught:
        xmlrpc.client.loads(xml_of(oned.exchange(request_of(body))))
    assert caught.value.faultCode == -503


def test_an_empty_body_is_a_bad_request(oned):
    message = oned.exchange(request_of(b""))
    assert message.startswith(b"HTTP/1.1 400 Bad Request\r\nContent-type: text/html\r\n")
    assert b"your request is empty (zero length)" in xml_of(message)


def test_get_is_not_allowed(oned):
    message = oned.exchange(b"GET /RPC2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert message.startswith(b"HTTP/1.1 405 Method Not Allowed\r\nContent-type: text/html\r\n")


def test_another_path_is_not_found(oned):
    assert oned.exchange(b"GET /elsewhere HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 404 ")


def test_a_body_without_a_length_is_refused(oned):
    request = b"POST /RPC2 HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/xml\r\n\r\n"
    assert oned.exchange(request).startswith(b"HTTP/1.1 411 ")


def test_the_version_is_a_string_of_numbers(oned):
    success, version, code = ask(oned, "one.system.version", oned.session)
    assert (success, code) == (True, 0)
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)


def test_the_version_is_told_to_users_only(oned):
    assert ask(oned, "one.system.version", oned.wrong_session) == [
        False,
        "[one.system.version] User couldn't be authenticated, aborting call.",
        0x100,
        -1,
        -1,
    ]


def test_user_info_minus_one_is_whoever_asks(oned):
    success, xml, code = ask(oned, "one.user.info", oned.session, -1, False)
    assert (success, code) == (True, 0)
    user = etree.fromstring(xml)
    assert (user.tag, user.findtext("NAME")) == ("USER", oned.session.partition(":")[0])
    assert user.findtext("ENABLED") == "1"


@pytest.mark.parametrize("kind", ["USER", "GROUP"])
def test_a_pool_of_accounts_has_them_newest_first_with_their_quotas_beside_them(oned, kind):
    success, xml, code = ask(oned, f"one.{kind.lower()}pool.info", oned.session)
    assert (success, code) == (True, 0)
    pool = etree.fromstring(xml)
    assert pool.tag == f"{kind}_POOL"
    *pairs, defaults = pool
    assert defaults.tag == f"DEFAULT_{kind}_QUOTAS"
    accounts, quotas = pairs[::2], pairs[1::2]
    assert {account.tag for account in accounts} == {kind}
    assert {quota.tag for quota in quotas} == {"QUOTAS"}
    ids = [int(account.findtext("ID")) for account in accounts]
    assert ids == [int(quota.findtext("ID")) for quota in quotas] == sorted(ids, reverse=True)


def test_a_pool_of_users_has_the_one_who_asks_as_user_info_tells_him(oned):
    him = etree.fromstring(ask(oned, "one.user.info", oned.session, -1, False)[1])
    pool = etree.fromstring(ask(oned, "one.userpool.info", oned.session)[1])
    (listed,) = [user for user in pool.findall("USER") if user.findtext("ID") == him.findtext("ID")]
    assert [element.tag for element in listed if element.tag != "LOGIN_TOKEN"] == [
        "ID",
        "GID",
        "GROUPS",
        "GNAME",
        "NAME",
        "PASSWORD",
        "AUTH_DRIVER",
        "ENABLED",
        "TEMPLATE",
    ]
    assert [etree.tostring(element) for element in him][: len(listed)] == [
        etree.tostring(element) for element in listed
    ]


def test_a_pool_of_groups_names_those_of_the_one_who_asks(oned):
    him = etree.fromstring(ask(oned, "one.user.info", oned.session, -1, False)[1])
    pool = etree.fromstring(ask(oned, "one.grouppool.info", oned.session)[1])
    names = {group.findtext("ID"): group.findtext("NAME") for group in pool.findall("GROUP")}
    assert {number.text for number in him.find("GROUPS")} <= names.keys()
    assert names[him.findtext("GID")] == him.findtext("GNAME")
    own = next(group for group in pool.findall("GROUP") if group.findtext("ID") == him.findtext("GID"))
    assert him.findtext("ID") in {number.text for number in own.find("USERS")}


@pytest.mark.parametrize("method", ["one.userpool.info", "one.grouppool.info"])
def test_pools_of_accounts_are_told_to_users_only(oned, method):
    assert ask(oned, method, oned.wrong_session)[2] == 0x100
    assert fault(oned, method) == (-501, "Not enough parameters")


def test_a_user_who_is_not_there_cannot_be_enabled(oned):
    assert ask(oned, "one.user.enable", oned.session, NO_SUCH_VM, True) == [
        False,
        f"[one.user.enable] Error getting user [{NO_SUCH_VM}].",
        0x400,
        NO_SUCH_VM,
        -1,
    ]


def test_a_pool_has_the_vms_that_the_user_may_see_in_short(oned):
    success, xml, code = ask(oned, "one.vmpool.info", oned.session, -2, -1, -1, -1)
    assert (success, code) == (True, 0)
    pool = etree.fromstring(xml)
    assert pool.tag == "VM_POOL"
    ids = [int(vm.findtext("ID")) for vm in pool.findall("VM")]
    assert ids == sorted(ids, reverse=True)
    assert oned.vm_id in ids
    assert oned.forbidden_vm_id not in ids
    vm = next(vm for vm in pool if int(vm.findtext("ID")) == oned.vm_id)
    assert vm.findtext("STATE").isdigit()
    assert vm.findtext("UNAME")
    assert vm.find("PERMISSIONS") is None


def test_a_pool_is_narrowed_by_ids_and_state(oned):
    def ids(*which):
        return {
            int(vm.findtext("ID")) for vm in etree.fromstring(ask(oned, "one.vmpool.info", oned.session, *which)[1])
        }

    assert ids(-2, oned.vm_id, oned.vm_id, -2) == {oned.vm_id}
    active = ids(-2, -1, -1, 3)
    assert active <= ids(-2, -1, -1, -1) <= ids(-2, -1, -1, -2)
    assert ids(-3, -1, -1, -1) <= ids(-1, -1, -1, -1) <= ids(-2, -1, -1, -1)


def test_a_pool_wants_all_its_arguments(oned):
    assert fault(oned, "one.vmpool.info", oned.session, -2) == (-501, "Not enough parameters")


@pytest.mark.parametrize("extended", [False, True])
def test_a_set_of_vms_has_those_that_are_there_and_the_user_may_see(oned, extended):
    wanted = [oned.vm_id, NO_SUCH_VM, *([] if oned.forbidden_vm_id is None else [oned.forbidden_vm_id])]
    success, xml, code = ask(oned, "one.vmpool.infoset", oned.session, ",".join(map(str, wanted)), extended)
    assert (success, code) == (True, 0)
    pool = etree.fromstring(xml)
    assert pool.tag == "VM_POOL"
    (vm,) = pool.findall("VM")
    assert int(vm.findtext("ID")) == oned.vm_id
    assert vm.findtext("STATE").isdigit()
    assert vm.findtext("LCM_STATE").isdigit()
    assert len(vm.find("MONITORING")) == 0
    assert (vm.find("PERMISSIONS") is not None) is extended


def test_a_set_of_no_vms_is_an_empty_pool(oned):
    assert ask(oned, "one.vmpool.infoset", oned.session, "", False) == [True, "<VM_POOL></VM_POOL>", 0]
    assert ask(oned, "one.vmpool.infoset", oned.session, str(NO_SUCH_VM), False)[1] == "<VM_POOL></VM_POOL>"


def test_a_set_of_vms_wants_to_be_told_how_much_of_them(oned):
    assert fault(oned, "one.vmpool.infoset", oned.session, "0") == (-501, "Not enough parameters")


def test_a_set_of_vms_is_told_to_users_only(oned):
    assert ask(oned, "one.vmpool.infoset", oned.wrong_session, "0", False)[2] == 0x100


def test_a_vm_that_is_not_there_cannot_be_changed(oned):
    assert ask(oned, "one.vm.action", oned.session, "resume", NO_SUCH_VM) == [
        False,
        f"[one.vm.action] Error getting virtual machine [{NO_SUCH_VM}].",
        0x400,
        NO_SUCH_VM,
        -1,
    ]


def test_the_connection_ends_after_each_answer(oned):
    body = xmlrpc.client.dumps((oned.session,), "one.system.version").encode()
    head, _, answer = oned.exchange(request_of(body)).partition(b"\r\n\r\n")
    assert b"\r\nConnection: close\r\n" in head
    assert b"\r\nContent-length: %d\r\n" % len(answer) in head
    assert answer.count(b"\n") == answer.count(b"\r\n")


# The real clients.


def test_pyone_binds_the_answers(oned):
    one = pyone.OneServer(oned.url, session=oned.session)
    vm = one.vm.info(oned.vm_id)
    assert int(vm.ID) == oned.vm_id
    assert {"CPU", "MEMORY"} <= vm.TEMPLATE.keys()
    assert oned.vm_id in {int(vm.ID) for vm in one.vmpool.info(-2, -1, -1, -1).VM}
    user = one.user.info(-1)
    assert str(user.NAME) == oned.session.partition(":")[0]
    assert str(user.NAME) in {str(listed.NAME) for listed in one.userpool.info().USER}
    assert str(user.GNAME) in {str(group.NAME) for group in one.grouppool.info().GROUP}
    assert re.fullmatch(r"\d+\.\d+\.\d+", one.system.version())


def test_pyone_raises_its_own_exceptions(oned):
    one = pyone.OneServer(oned.url, session=oned.session)
    with pytest.raises(pyone.OneNoExistsException, match=rf"virtual machine \[{NO_SUCH_VM}\]"):
        one.vm.info(NO_SUCH_VM)
    with pytest.raises(pyone.OneAuthenticationException, match="couldn't be authenticated"):
        pyone.OneServer(oned.url, session=oned.wrong_session).vm.info(oned.vm_id)
    if oned.forbidden_vm_id is not None:
        with pytest.raises(pyone.OneAuthorizationException, match="Not authorized to perform USE VM"):
            one.vm.info(oned.forbidden_vm_id)


def test_the_standard_librarys_client_reads_answers_and_faults(oned):
    with xmlrpc.client.ServerProxy(oned.url) as proxy:
        assert proxy.one.vm.info(oned.session, oned.vm_id)[0] is True
        assert proxy.one.vm.info(oned.session, NO_SUCH_VM)[2:] == [0x400, NO_SUCH_VM, -1]
        with pytest.raises(xmlrpc.client.Fault, match="not defined"):
            proxy.one.vm.foo(oned.session)


RUBY = """
require "json"
require "xmlrpc/client"
url, session, vm_id = ARGV
client = XMLRPC::Client.new2(url)
vm = client.call("one.vm.info", session, vm_id.to_i)
missing = client.call_async("one.vm.info", session, 999999)
begin
  client.call("one.vm.foo", session)
rescue XMLRPC::FaultException => fault
  fault_code = fault.faultCode
end
puts JSON.generate([vm, missing, fault_code])
"""


def test_rubys_client_reads_answers_errors_and_faults(oned):
    ruby = program("ruby")
    command = [ruby, "-e", RUBY, oned.url, oned.session, str(oned.vm_id)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "cannot load such file -- xmlrpc/client" in result.stderr and os.environ.get("CI") != "true":
        pytest.skip("ruby-xmlrpc is not installed; tests/system-programs lists the Debian packages")
    assert result.returncode == 0, result.stderr
    (success, xml, code), missing, fault_code = json.loads(result.stdout)
    assert (success, code) == (True, 0)
    assert int(etree.fromstring(xml).findtext("ID")) == oned.vm_id
    assert missing[2:] == [0x400, NO_SUCH_VM, -1]
    assert fault_code == -506


def test_curl_sees_a_whole_answer(oned):
    body = xmlrpc.client.dumps((oned.session, oned.vm_id), "one.vm.info").encode()
    command = [program("curl"), "--silent", "--show-error", "--fail", "--header", "Content-Type: text/xml"]
    result = subprocess.run(
        [*command, "--data-binary", "@-", oned.url],
        input=body,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert xmlrpc.client.loads(result.stdout)[0][0][0] is True
