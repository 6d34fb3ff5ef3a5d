"""Guests that ask for their own console: docs/guests.md, carried out in network namespaces as OpenNebula makes them.

The guest's network has nothing in it but the guest and OpenNebula's 169.254.16.9, where a TCP proxy listens. That one
is in a namespace of its own, and reaches another one beside the service through a Unix socket.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import xmlrpc.client
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import ROOT, program, running, tokens_in, vnctoken_server
from lxml import etree
from test_auth_onegate import ALICE, BOB, VM_7, claimed, refusal
from test_docs import snippets

from vnctoken.auth import CredentialError
from vnctoken.config import load
from vnctoken.errors import NoExistsError

GUESTS = (ROOT / "docs" / "guests.md").read_text(encoding="utf-8")
(CALL,) = (text for text in snippets(GUESTS, "sh") if "curl" in text)
ADDRESS, PORT = re.search(r"http://([\d.]+):(\d+)/RPC2", CALL).groups()
(ROUTE,) = re.findall(r'START_SCRIPT = "(.*)"', GUESTS)
TPROXY = ROOT / "etc" / "one" / "tproxy-vnctoken.yaml"
SECURITY_GROUP = ROOT / "etc" / "one" / "secgroup-vnctoken.tmpl"
(SETTINGS,) = snippets(GUESTS, "yaml")

# What the context package leaves, in a /run of the guest's own.
CONTEXT = """
mount -t tmpfs none /run && mkdir /run/one-context
umask 0377
cat >/run/one-context/one_env <<END
export TOKENTXT="$1"
export VMID="$2"
export ONEGATE_ENDPOINT="http://169.254.16.9:5030"
END
exec sh -ec "$3"
"""


@dataclass
class Network:
    """The namespaces of a guest and of the transparent proxy of its network."""

    guest: str
    tproxy: str

    def ask(self, call=CALL, *, token, vm_id=0):
        """Run commands in the guest and return what came of them."""
        inside = (program("ip"), "netns", "exec", self.guest, program("unshare"), "--mount", "sh", "-ec", CONTEXT)
        clean = {"PATH": os.environ["PATH"]}
        return subprocess.run(
            [*inside, "sh", token, str(vm_id), call], env=clean, capture_output=True, text=True, timeout=60, check=False
        )

    def answer(self, call=CALL, **context):
        """Return the array that a call in the guest is answered with."""
        asked = self.ask(call, **context)
        assert asked.returncode == 0, asked.stderr
        ((array,), _) = xmlrpc.client.loads(asked.stdout)
        return array

    @contextlib.contextmanager
    def proxied(self, folder, port):
        """Lead the guest to a port of ours, as OpenNebula's two kinds of proxy process do."""
        socket = folder / "one_tproxy.sock"
        out = (program("socat"), "-d", "-d", f"UNIX-LISTEN:{socket},fork", f"TCP4:127.0.0.1:{port}")
        inner = (program("ip"), "netns", "exec", self.tproxy, program("socat"), "-d", "-d")
        listen = f"TCP4-LISTEN:{PORT},bind={ADDRESS},fork,reuseaddr"
        with (
            running(*out, ready="listening on"),
            running(*inner, listen, f"UNIX-CONNECT:{socket}", ready="listening on"),
        ):
            yield


@pytest.fixture(scope="module")
def network():
    """Make the namespaces, and take them away whatever happens."""
    ip = program("ip")
    names = [f"vnctoken-{what}-{os.getpid()}" for what in ("guest", "tproxy")]
    guest, tproxy = (f"{ip} netns exec {name}" for name in names)
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.callback(subprocess.run, (ip, "netns", "delete", name), capture_output=True, check=False)
            made = subprocess.run((ip, "netns", "add", name), capture_output=True, text=True, check=False)
            if made.returncode:
                pytest.skip(f"no network namespace to be had here: {made.stderr.strip()}")
        # The guest's end as its context package sets it up, the other as OpenNebula's driver does (lib/tproxy.rb).
        for command in (
            f"{ip} link add eth0 netns {names[0]} type veth peer name br0a netns {names[1]}",
            f"{guest} ip link set lo up",
            f"{guest} ip address add 192.168.150.100/24 dev eth0",
            f"{guest} ip link set eth0 up",
            f"{guest} {ROUTE}",
            f"{tproxy} ip address replace {ADDRESS}/32 dev br0a",
            f"{tproxy} ip link set dev br0a up",
            f"{tproxy} ip route replace default dev br0a",
        ):
            subprocess.run(command.split(), check=True, timeout=60)
        yield Network(*names)


@contextlib.contextmanager
def service_for_guests(folder, cloud, more=""):
    login = folder / "one" / "var" / ".one" / "sunstone_auth"
    login.parent.mkdir(parents=True)
    login.write_text("serveradmin:serveradmin-secret-for-tests\n", encoding="utf-8")
    settings = SETTINGS.replace("0.0.0.0", "127.0.0.1") + more
    with vnctoken_server(folder / "one", cloud.url, settings) as service:
        yield service


@pytest.fixture(scope="module")
def documented_service(tmp_path_factory, cloud, network):
    """Run the service with the documented settings."""
    with service_for_guests(tmp_path_factory.mktemp("guests"), cloud) as service:
        yield service


@pytest.fixture
def service(tmp_path, documented_service, network):
    """Run the proxy between the service with the documented settings and the guest."""
    with network.proxied(tmp_path, documented_service.port):
        yield documented_service


@pytest.fixture(scope="module")
def token_of(cloud):
    """Return what makes the token in a VM's context: OpenSSL, of what oned says of the VM and its creator."""
    with xmlrpc.client.ServerProxy(cloud.url) as oned:
        users = etree.fromstring(oned.one.userpool.info("oneadmin:opennebula")[1].encode())

    def token_of(vm_id):
        with xmlrpc.client.ServerProxy(cloud.url) as oned:
            vm = etree.fromstring(oned.one.vm.info("oneadmin:opennebula", vm_id)[1].encode())
        (password,) = users.xpath(f"USER[ID={vm.findtext('TEMPLATE/CREATED_BY')}]/TEMPLATE/TOKEN_PASSWORD/text()")
        key = password[:32].encode().hex()
        command = (program("openssl"), "enc", "-aes-256-cbc", "-K", key, "-iv", "0" * 32, "-a", "-A")
        context = f"{vm_id}:{vm.findtext('STIME')}"
        return subprocess.run(command, input=context, capture_output=True, text=True, check=True, timeout=60).stdout

    return token_of


def documented(code, text):
    """Return whether the document says that guests get this refusal."""
    shown = re.findall(r"(?m)^\| `(0x\d{4})` `(.*?)(?: \.\.\.)?` \|", GUESTS)
    return any(f"{code:#06x}" == number and text.startswith(words) for number, words in shown)


def test_a_guest_that_asks_as_documented_gets_its_own_console(network, service, token_of):
    asked = network.ask(token=token_of(0))
    assert asked.stderr == ""
    (token,) = tokens_in(service.tokens / "one-0")
    (shown,) = snippets(GUESTS, "xml")
    assert re.sub("[0-9a-f]{32}", token, shown) == asked.stdout
    assert re.search(r"127\.0\.0\.1 one\.vm\.vnctokenonly vm=0 user=alice .*code=0x0000", service.log.read_text())


def test_it_is_its_vms_owner_for_oned_whoever_has_created_the_vm(network, service, token_of):
    assert network.answer(token=token_of(32), vm_id=32)[::2] == [True, 0]
    assert re.search("vm=32 user=bob .*code=0x0000", service.log.read_text())


def test_the_guest_reaches_nothing_but_its_proxy(network, service, token_of):
    for url in (service.url, "http://192.0.2.10:2644/RPC2", f"http://{ADDRESS}:5030/RPC2"):
        asked = network.ask(CALL.replace(f"http://{ADDRESS}:{PORT}/RPC2", url), token=token_of(0))
        assert (asked.returncode, asked.stdout) == (7, ""), url
        assert "curl: (7)" in asked.stderr


def test_a_guest_gets_no_other_vms_console(network, service, token_of):
    ok, text, code = network.answer(CALL.replace("<int>$VMID</int>", "<int>9</int>"), token=token_of(0))
    assert (ok, text, code) == (False, "VM 0 may have its own console only, and not that of VM 9", 0x0200)
    assert documented(code, text)
    # Its owner's other VM is another VM, too.
    assert network.answer(CALL.replace("<int>$VMID</int>", "<int>1</int>"), token=token_of(0))[2] == 0x0200


def test_a_guest_with_another_vms_token_or_none_gets_nothing(network, service, token_of):
    refused = [
        network.answer(token=token_of(9), vm_id=0),
        network.answer(token=token_of(0), vm_id=9),
        network.answer(token="A" * 22 + "==", vm_id=0),
        network.answer(token=token_of(0), vm_id=4711),
        network.answer(token="", vm_id=0),
    ]
    ((ok, text, code),) = {tuple(one) for one in refused}
    assert (ok, code) == (False, 0x0100)
    assert documented(code, text)
    log = service.log.read_text()
    for reason in ("the token is not that of this VM", "there is no such VM", "there is only one of the headers"):
        assert reason in log
    assert token_of(9) not in log


def test_a_guest_cannot_say_that_it_calls_from_elsewhere(network, service, token_of):
    call = CALL.replace("X-ONEGATE-VMID", "X-Forwarded-For: 192.0.2.1\nX-ONEGATE-VMID")
    assert network.answer(call, token=token_of(0))[::2] == [False, 0x0100]
    assert "sent X-Forwarded-For" in service.log.read_text()


def test_guests_of_one_host_share_what_failures_cost(network, cloud, token_of, tmp_path):
    with (
        service_for_guests(tmp_path, cloud, ":auth_failures: 3/hour\n") as service,
        network.proxied(tmp_path, service.port),
    ):
        answers = [network.answer(token=token_of(0), vm_id=9) for _ in range(4)]
        assert [text.startswith("Too many failed") for _, text, _ in answers] == [False, False, False, True]
        ok, text, code = network.answer(token=token_of(0), vm_id=0)
    assert (ok, code) == (False, 0x0100)
    assert documented(code, text)


def test_a_proxy_that_does_not_reach_the_service_closes(network, token_of, tmp_path):
    with network.proxied(tmp_path, 1):
        asked = network.ask(token=token_of(0))
    assert asked.returncode in (52, 56), asked.stderr
    assert f"`curl: ({asked.returncode})`" in GUESTS or f"`({asked.returncode})`" in GUESTS


def test_a_guest_is_told_when_there_is_no_door_for_it(tmp_path, cloud):
    with (
        vnctoken_server(tmp_path / "one", cloud.url) as plain,
        xmlrpc.client.ServerProxy(plain.url) as portal,
    ):
        ok, text, code = portal.one.vm.vnctokenonly("", 0)
    assert (ok, code) == (False, 0x1000)
    assert documented(code, text)


def test_the_documented_reasons_are_those_in_the_log():
    reasons = {
        refusal(vm_id="8"),
        refusal(NoExistsError("no such VM")),
        refusal(replace(VM_7, state=6)),
        refusal(VM_7, BOB),
        refusal(VM_7, replace(ALICE, token_password=""), BOB),
        refusal(VM_7, ALICE),
    }
    for headers in ({"VMID": "7"}, {"VMID": "7", "TOKEN": "$TOKENTXT"}):
        with pytest.raises(CredentialError) as caught:
            claimed(**headers)
        reasons.add(str(caught.value))
    table = GUESTS.split("It says why a guest is not let in:")[1].split("\n## ")[0]
    assert set(re.findall("`(the[^`]*)`", table)) == reasons


def test_the_documented_settings_are_taken(tmp_path):
    file = tmp_path / "vnctoken-server.conf"
    file.write_text(SETTINGS, encoding="utf-8")
    config, warnings = load({}, str(file), os.devnull)
    assert (config.auth, warnings) == (("opennebula", "onegate"), [])


AS_THE_DRIVER = """
require 'json'
require 'resolv'
require 'yaml'
entries = YAML.safe_load(File.read(ARGV[0]), permitted_classes: [Symbol])[:tproxy]
entries.each do |one|
  raise "no address: #{one}" unless one[:remote_addr] =~ Resolv::IPv4::Regex
  raise "no port: #{one}" unless [:service_port, :remote_port].all? { |key| Integer(one[key]) == one[key] }
end
puts JSON.dump(entries)
"""


def test_the_shipped_proxys_entry_is_one_that_opennebulas_driver_takes():
    command = (program("ruby"), "-e", AS_THE_DRIVER, TPROXY)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f'[{{"service_port":{PORT},"remote_addr":"192.0.2.10","remote_port":2644,"networks":["private"]}}]\n'
    )


def test_the_shipped_security_group_lets_out_what_the_documented_call_needs_and_no_more():
    text = SECURITY_GROUP.read_text(encoding="utf-8")
    template = re.sub(r"(?m)^[ \t]*#.*\n|\s+", "", text)
    name, rule = re.fullmatch(r'NAME="(\w+)"RULE=\[(.*)\]', template).groups()
    assert name == "vnctoken"
    assert dict(pair.split("=") for pair in rule.replace('"', "").split(",")) == {
        "PROTOCOL": "TCP",
        "RULE_TYPE": "outbound",
        "IP": ADDRESS,
        "SIZE": "1",
        "RANGE": PORT,
    }


def test_the_documented_files_are_where_they_are_installed():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for file in (TPROXY, SECURITY_GROUP):
        assert f"/usr/share/vnctoken/one/{file.name}" in GUESTS
        assert str(Path("etc") / "one" / file.name) in makefile
