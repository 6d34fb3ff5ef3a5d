"""All doors at once, from the HTTP request to the token, before the sandbox's oned: who is let in, and who is not."""

import base64
import hashlib
import time
import xmlrpc.client
from dataclasses import dataclass, replace
from urllib.parse import quote

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest
from authorities import Authority
from callers import http_request, limits
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import assume, example, given
from hypothesis import strategies as st
from memory import Line, MemoryStore
from outcomes import result_of
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, eventAsText

from vnctoken.auth import ASSERTIONS
from vnctoken.auth.admission import Admission, GroupRules
from vnctoken.auth.basic import BasicDoor
from vnctoken.auth.ec2 import Ec2Door
from vnctoken.auth.entrance import Entrance
from vnctoken.auth.guessing import Guessing
from vnctoken.auth.onegate import OneGateDoor
from vnctoken.auth.remote import RemoteDoor
from vnctoken.auth.server_cipher import server_session
from vnctoken.auth.users import UserPool
from vnctoken.auth.x509 import X509Door
from vnctoken.config import Config
from vnctoken.consoles import Consoles, Terms
from vnctoken.oned import Oned
from vnctoken.rpc import Rpc
from vnctoken.rules import ConsoleRules
from vnctoken.sandbox import oned as sandbox
from vnctoken.sandbox.cloud import ALICE, SERVERADMIN, demo_cloud
from vnctoken.sandbox.contexts import context_token
from vnctoken.sandbox.population import USERS

HOST = "cloud.example.org"
TLS = {"trusted": True, "secure": True}


class World:
    """A service with all doors, its cloud, and what oned was asked."""

    def __init__(self, failures=1_000_000):
        self.clock = Clock()
        # botocore signs by the machine's clock.
        self.clock.advance(int(time.time()) - 5)
        self.cloud = demo_cloud()
        self.line = Line(sandbox.Oned(self.cloud, self.clock))
        self.oned = Oned(self.line, self.clock, timeout=25, connections=8)
        self.store = MemoryStore()
        self.acted_as = []
        guessing = Guessing(self.clock, failures, 60)
        users = UserPool(self.oned, self.session, self.clock).users
        now = self.clock.seconds
        doors = [
            BasicDoor(self.oned),
            X509Door(users=users, session=self.session, now=now),
            RemoteDoor(users=users, session=self.session),
            Ec2Door(users=users, session=self.session, now=now, clock=self.clock, host=HOST),
            OneGateDoor(oned=self.oned, users=users, own_session=self.session, session=self.session),
        ]
        consoles = Consoles(
            Admission(self.oned, guessing, GroupRules(self.oned, restricted=(), allowed=()), limits()),
            self.store,
            limits(),
            rules=ConsoleRules(states=Config().console_states, ports=Config().vnc_ports),
            terms=Terms(ttl=600, ttl_max=600, resolved=False, wss=False),
            now=now,
        )
        self.rpc = Rpc(consoles, Entrance(doors, guessing, strict=True), limits(), self.clock)
        # So that signatures count that were made a moment before.
        self.clock.advance(5)

    def session(self, target=SERVERADMIN.name):
        self.acted_as.append(target)
        return server_session(SERVERADMIN.name, SERVERADMIN.password, target, int(self.clock.seconds()) + 1800)

    def call(self, headers, session="", vm_id=0, body=None, **more):
        body = body or xmlrpc.client.dumps((session, vm_id), "one.vm.vnctokenonly").encode()
        answer = result_of(self.rpc.answer(http_request(body, headers, **more)))
        return xmlrpc.client.loads(answer)[0][0]


@dataclass(frozen=True)
class Key:
    """What somebody opens a door with, how the request has to arrive, and the VM he may have."""

    headers: dict
    vm_id: int = 0
    arrival: dict = None
    session: str = ""


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """One right credential for each door; that of ec2 signs a call for VM 0."""
    certificate = Authority(tmp_path_factory.mktemp("ca")).issue()
    pem = x509.load_der_x509_certificate(certificate.der).public_bytes(Encoding.PEM)
    return {
        "opennebula": Key({}, session="alice:secret"),
        "basic": Key({"Authorization": "Basic " + base64.b64encode(b"alice:secret").decode()}, arrival=TLS),
        "x509": Key({"X-SSL-Client-Cert": quote(pem)}, vm_id=35, arrival=TLS),
        "remote": Key({"X-Auth-Username": "remy@EXAMPLE.ORG"}, vm_id=36, arrival=TLS),
        "ec2": Key({}, arrival={"method": b"POST", "uri": b"/RPC2"}),
        "onegate": Key({"X-ONEGATE-TOKEN": context_token(demo_cloud().guest(0)), "X-ONEGATE-VMID": "0"}),
    }


STORED = hashlib.sha256(ALICE.password.encode()).hexdigest()
"""alice's password as oned stores it."""


def signed(body):
    """Return the headers with which botocore signs a call."""
    request = botocore.awsrequest.AWSRequest("POST", f"https://{HOST}/RPC2", data=body)
    credentials = botocore.credentials.Credentials("alice", STORED)
    botocore.auth.SigV4Auth(credentials, "ec2", "one").add_auth(request)
    return {**dict(request.headers.items()), "Host": HOST}


def presented(world, key, **changed):
    key = replace(key, **changed)
    body = xmlrpc.client.dumps((key.session, key.vm_id), "one.vm.vnctokenonly").encode()
    headers = key.headers or (signed(body) if not key.session else {})
    return world.call(headers, body=body, **key.arrival or {})


DOORS = ["opennebula", "basic", "x509", "remote", "ec2", "onegate"]


@pytest.mark.parametrize("door", DOORS)
def test_a_right_credential_opens_its_door(keys, door):
    world = World()
    success, token, code = presented(world, keys[door])
    assert (success, code) == (True, 0)
    (grant,) = world.store.grants
    assert (grant.vm_id, grant.user) == (keys[door].vm_id, {"x509": "xenia", "remote": "remy"}.get(door, "alice"))
    assert token


@pytest.mark.parametrize("door", DOORS)
def test_nobody_gets_a_console_of_somebody_else(keys, door):
    success, _, code = presented(World(), keys[door], vm_id=9)
    assert (success, code) == (False, 0x0200)


@pytest.mark.parametrize("door", ["x509", "remote", "ec2", "onegate"])
@pytest.mark.parametrize("how", ["disabled", "removed"])
def test_who_is_disabled_or_removed_is_out_within_a_minute(keys, door, how):
    world = World()
    assert presented(world, keys[door])[0] is True
    user = next(user for user in USERS if user.name == world.store.grants[0].user)
    if how == "disabled":
        world.cloud.change_user(replace(user, enabled=False))
    else:
        world.cloud.remove_user(user)
    world.clock.advance(60)
    assert presented(world, keys[door])[::2] == [False, 0x0100]


@pytest.mark.parametrize("arrival", [{}, {"trusted": True}])
@pytest.mark.parametrize("door", ["basic", "x509", "remote"])
def test_no_credential_counts_that_did_not_come_over_tls_through_a_trusted_proxy(keys, door, arrival):
    world = World()
    assert presented(world, keys[door], arrival=arrival)[::2] == [False, 0x0100]
    assert (world.line.asked, world.acted_as) == ([], [])


def test_without_any_credential_nothing_reaches_oned():
    world = World()
    assert world.call({}) == [
        False,
        "The session is empty, and nobody is identified by basic, x509, remote, ec2, onegate",
        0x0100,
    ]
    assert (world.line.asked, world.acted_as) == ([], [])


HEADERS = [*ASSERTIONS, "Authorization", "X-ONEGATE-TOKEN", "X-ONEGATE-VMID", "X-Amz-Date", "Host"]
NOBODYS = st.sampled_from(
    [
        *["", "alice", "alice:", ":secret", "alice:secret", "oneadmin", "serveradmin", "0", "7", "(null)", "https"],
        "Basic " + base64.b64encode(b"alice:Secret").decode(),
        "Basic " + base64.b64encode(b"oneadmin:").decode(),
        "Basic " + base64.b64encode(b"serveradmin:alice:").decode(),
        "AWS4-HMAC-SHA256 Credential=alice/20261122/one/ec2/aws4_request, SignedHeaders=host;x-amz-date, Signature="
        + "0" * 64,
        base64.b64encode(bytes(16)).decode(),
        "-----BEGIN%20CERTIFICATE-----%0A-----END%20CERTIFICATE-----",
        "20261122T000000Z",
        "remy",
        "remy@EXAMPLE.COM",
        "/C=XX/O=onelab/CN=xenia",
    ]
)


@given(
    headers=st.dictionaries(
        st.sampled_from(HEADERS),
        NOBODYS
        | st.text(max_size=40)
        | st.binary(max_size=40).filter(lambda raw: b"\n" not in raw and b"\r" not in raw),
        max_size=5,
    ),
    session=st.sampled_from(["", "alice:", "alice:Secret", ":", "serveradmin:alice:", "oneadmin"]) | st.just(""),
    arrival=st.fixed_dictionaries({"trusted": st.booleans(), "secure": st.booleans()}),
    query=st.sampled_from([b"", b"?AWSAccessKeyId=alice&SignatureVersion=2&Signature=x", b"?x=y"]),
)
@example(headers={}, session="", arrival=TLS, query=b"")
@example(headers={"REMOTE_USER": "oneadmin"}, session="", arrival=TLS, query=b"")
def test_no_request_without_a_valid_identity_gets_a_console(headers, session, arrival, query):
    headers = {name: value if isinstance(value, bytes) else value.encode() for name, value in headers.items()}
    assume(all(b"\n" not in value and b"\r" not in value for value in headers.values()))
    world = World()
    success, _, code = world.call(headers, session, uri=b"/RPC2" + query, **arrival)
    assert success is False
    assert code in (0x0100, 0x1000)
    assert world.store.grants == []
    assert [name for name in world.acted_as if name != SERVERADMIN.name] == []


@given(st.data())
def test_no_change_to_a_right_credential_leaves_it_right(keys, data):
    door = data.draw(st.sampled_from(["opennebula", "basic", "onegate"]))
    key = keys[door]
    if door == "opennebula":
        text = data.draw(changed(key.session))
        assume(text.rstrip() != key.session and text)
        key = replace(key, session=text)
    else:
        name = next(iter(key.headers))
        prefix = "Basic " if door == "basic" else ""
        before = base64.b64decode(key.headers[name].removeprefix(prefix))
        after = data.draw(st.integers(0, len(before) * 8 - 1).map(lambda bit: flipped(before, bit)))
        key = replace(key, headers={**key.headers, name: prefix + base64.b64encode(after).decode()})
    world = World()
    success, _, code = presented(world, key)
    assert (success, code) == (False, 0x0100)
    assert world.store.grants == []


@pytest.mark.parametrize("vm_id", [1, 2, 9])
def test_a_signature_is_for_one_call_and_not_for_another(vm_id):
    one, other = (xmlrpc.client.dumps(("", number), "one.vm.vnctokenonly").encode() for number in (0, vm_id))
    world = World()
    assert world.call(signed(one), body=other)[::2] == [False, 0x0100]
    assert world.call(signed(one), body=one)[0] is True


def test_a_signed_request_opens_one_console_and_not_a_second_one():
    body = xmlrpc.client.dumps(("", 0), "one.vm.vnctokenonly").encode()
    headers = signed(body)
    world = World()
    assert [world.call(headers, body=body)[2] for _ in range(3)] == [0, 0x0100, 0x0100]


def test_a_multicall_is_signed_once_for_all_its_calls():
    calls = [{"methodName": "one.vm.vnctokenonly", "params": ["", vm_id]} for vm_id in (0, 1, 9)]
    body = xmlrpc.client.dumps((calls,), "system.multicall").encode()
    answers = World().call(signed(body), body=body)
    assert [answer[0][2] for answer in answers] == [0, 0, 0x0200]


def test_guesses_at_any_door_end_in_the_same_waiting():
    world = World(failures=3)
    wrong = [
        ({"Authorization": "Basic " + base64.b64encode(b"alice:wrong").decode()}, TLS),
        ({"X-ONEGATE-TOKEN": base64.b64encode(bytes(16)).decode(), "X-ONEGATE-VMID": "0"}, {}),
        ({"X-Auth-Username": "nobody@EXAMPLE.ORG"}, TLS),
    ]
    said = {world.call(headers, **arrival)[1] for headers, arrival in wrong}
    assert said == {"The session is empty, and nobody is identified by basic, x509, remote, ec2, onegate"}
    asked = len(world.line.asked)
    success, text, code = world.call({}, "bob:secret", vm_id=9)
    assert (success, code) == (False, 0x0100)
    assert "Too many failed attempts" in text
    assert len(world.line.asked) == asked


def test_no_credential_of_any_door_is_ever_logged(keys):
    with capturedLogs() as events:
        world = World()
        for key in keys.values():
            for changed_key in (key, replace(key, vm_id=9), replace(key, arrival={})):
                presented(world, changed_key)
        text = "\n".join(eventAsText(event) + repr(event) for event in events)
    assert "door=x509" in text
    secrets = [STORED, "alice:secret", "BEGIN", ALICE.token_password]
    secrets += [value for key in keys.values() for name, value in key.headers.items() if name != "X-ONEGATE-VMID"]
    assert [secret for secret in secrets if secret in text and "@" not in secret] == []


def changed(text):
    """Return a strategy of texts that differ in one character."""
    return st.tuples(st.integers(0, len(text) - 1), st.characters(min_codepoint=33, max_codepoint=126)).map(
        lambda at: text[: at[0]] + at[1] + text[at[0] + 1 :]
    )


def flipped(raw, bit):
    """Return bytes that differ in one bit."""
    return bytes([*raw[: bit // 8], raw[bit // 8] ^ 1 << bit % 8, *raw[bit // 8 + 1 :]])
