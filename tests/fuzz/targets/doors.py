"""The front doors: what a request carries, and what a trusted proxy says."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import time
from urllib.parse import quote

from outcomes import result_of
from test_auth_x509 import ALICES, certificate, onelab, proxy_cert_info
from test_front_doors import World, signed
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers

from fuzz.target import SECRET, Target, discreet, quiet_log
from fuzz.targets.documents import CALLS
from vnctoken.auth import CredentialError, HttpRequest
from vnctoken.auth.basic import BasicDoor
from vnctoken.auth.dn import elements, names, oid_text
from vnctoken.auth.ec2 import Ec2Door
from vnctoken.auth.onegate import OneGateDoor
from vnctoken.auth.proxies import UNIX_CLIENT, TrustedProxies
from vnctoken.auth.remote import RemoteDoor
from vnctoken.auth.users import Users
from vnctoken.auth.x509 import X509Door
from vnctoken.errors import NoExistsError
from vnctoken.sandbox.cloud import demo_cloud
from vnctoken.sandbox.contexts import context_token
from vnctoken.user import User
from vnctoken.wire import Fault, read_answer

HOST = "cloud.example.org"
CLIENT = "192.0.2.7"
ALICE = User(2, "alice", "core", True, "users", frozenset({1}), "0" * 64, "k" * 64)


def request_of(data):
    """Return the request that a text is: "METHOD URI", perhaps "trusted" and "secure", then headers, and a body."""
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    method, uri, *flags = [*first.split(b" "), b""][:4] if b" " in first else (first, b"/")
    headers = Headers()
    for line in lines:
        name, _, value = line.partition(b":")
        try:
            headers.addRawHeader(name, value.strip(b" \t"))
        except ValueError:
            continue  # nothing that Twisted's server takes for a header
    return HttpRequest(method, uri, headers, body, CLIENT, trusted=b"trusted" in flags, secure=b"secure" in flags)


async def _users():
    return Users([ALICE])


def _session(name="serveradmin"):
    return f"serveradmin:{name}:login"


class _Oned:
    async def vm_info(self, session, vm_id):
        raise NoExistsError("there is none")

    async def user(self, session):
        return ALICE


def _doors():
    now = time.time
    return (
        BasicDoor(_Oned()),
        X509Door(users=_users, session=_session, now=now),
        RemoteDoor(users=_users, session=_session),
        Ec2Door(users=_users, session=_session, now=now, clock=Clock(), host=HOST),
        Ec2Door(users=_users, session=_session, now=now, clock=Clock(), host=None),
        OneGateDoor(oned=_Oned(), users=_users, own_session=_session, session=_session),
    )


def _claim(data):
    request = request_of(data)
    for door in _doors():
        with _refusing():
            claim = door.claim(request)
            if claim is not None:
                assert SECRET not in repr(claim) or SECRET in claim.account
                identity = result_of(claim.prove())
                assert (identity.user, door.name) == ("alice", "basic"), "somebody is let in by what proves nothing"


@contextlib.contextmanager
def _refusing():
    try:
        yield
    except CredentialError as error:
        discreet(error)


def _basic(data):
    _claim(b"POST /RPC2 trusted secure\nAuthorization: Basic " + base64.b64encode(data) + b"\n\n")


def _certificate(data):
    _claim(b"POST /RPC2 trusted secure\nX-SSL-Client-Cert: " + base64.b64encode(data) + b"\n\n")


def _names(data):
    with contextlib.suppress(ValueError, CredentialError):
        for name in names(data):
            exact, spaceless = name.stored()
            assert exact.isascii()
            assert exact.isprintable()
            assert " " not in exact + spaceless
    with contextlib.suppress(ValueError):
        for _, content in elements(data):
            oid_text(content)


def _origin(data):
    request = request_of(data)
    trusting = TrustedProxies([ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::1")])
    for sender in (None, "10.0.0.1", "::1", CLIENT):
        origin = trusting.origin(sender, request.headers)
        if origin.client != UNIX_CLIENT:
            assert str(ipaddress.ip_address(origin.client)) == origin.client
        assert origin.trusted == (sender != CLIENT)
        assert origin.trusted or (origin.client == CLIENT and not origin.secure)


def _service(data):
    world = World()
    request = request_of(data)
    # A name is logged, so that what is in front of the colon counts as none.
    with quiet_log(secret=data.count(SECRET.encode()) == data.count(f":{SECRET}".encode()) and not request.trusted):
        answer = result_of(world.rpc.answer(request))
    try:
        value = read_answer(answer)
    except Fault:
        return
    match value:
        case [True, _, 0] | [False, str(), int()]:
            assert value[-1] != 0x2000 or value[1] != "internal error", value
        case [str(), *_] | str() | [[str(), *_], *_] | []:
            pass  # introspection
        case [[[bool(), _, int()]] | [_] | {"faultCode": int(), "faultString": str()}, *_]:
            pass  # system.multicall
        case _:
            raise AssertionError(f"this is no answer: {value!r}")
    for grant in world.store.grants:
        assert world.cloud.guest(grant.vm_id).owner.name == grant.user


_PEM = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(ALICES) + b"-----END CERTIFICATE-----\n"
_BASIC = base64.b64encode(f"alice:{SECRET}".encode())
_V2 = (
    b"AWSAccessKeyId=alice&SignatureVersion=2&SignatureMethod=HmacSHA256&Timestamp=2026-01-31T23:59:59Z"
    b"&X-Amz-Content-SHA256=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855&Signature="
)
_EMPTY = CALLS[0].replace(f"alice:{SECRET}".encode(), b"")


def _head(headers, line=b"POST /RPC2 trusted secure", body=b""):
    lines = [name.encode() + b": " + (value if isinstance(value, bytes) else value.encode()) for name, value in headers]
    return b"\n".join([line, *lines]) + b"\n\n" + body


REQUESTS = (
    _head([("Authorization", b"Basic " + _BASIC)]),
    _head([("X-SSL-Client-Cert", quote(_PEM))]),
    _head([("SSL_CLIENT_CERT", _PEM.replace(b"\n", b" "))]),
    _head([("REMOTE_USER", "remy@EXAMPLE.ORG"), ("X-Auth-Username", "(null)")]),
    _head(signed(_EMPTY).items(), b"POST /RPC2", _EMPTY),
    _head([("Host", HOST)], b"GET /RPC2/../x%20y?" + _V2 + base64.b64encode(bytes(32))),
    _head([("X-ONEGATE-TOKEN", context_token(demo_cloud().guest(0))), ("X-ONEGATE-VMID", "0")]),
)
PROXIED = (
    _head(
        [("X-Forwarded-For", "192.0.2.1, 10.0.0.2"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-For", "[::1]:80")]
    ),
    _head([("X-Forwarded-For", "::ffff:10.0.0.1,,fe80::1%eth0 ,unix")]),
)
CERTIFICATES = (
    ALICES,
    certificate(onelab("alice", "proxy"), onelab("alice"), extensions=[proxy_cert_info()]),
)
WORDS = (
    b"AWS4-HMAC-SHA256 ",
    b"Basic ",
    b"X-Amz-Date",
    b"Date",
    b"host;x-amz-date",
    b"trusted",
    b"secure",
    b"Origin: null\n",
)

TARGETS = (
    Target("doors", _claim, REQUESTS, WORDS),
    Target("basic", _basic, (f"alice:{SECRET}".encode(),)),
    Target(
        "certificate", _certificate, CERTIFICATES, (b"\x30\x84\xff\xff\xff\xff", b"\x06\x03\x55\x04\x03", b"\x30\x80")
    ),
    Target(
        "names", _names, tuple(der[4:] for der in CERTIFICATES), (b"\x30\x84\xff\xff\xff\xff", b"\x06\x03\x55\x04\x03")
    ),
    Target("origin", _origin, PROXIED, (b"10.0.0.1", b"X-Forwarded-For: ")),
    Target("service", _service, (*(_head([], b"POST /RPC2", call) for call in CALLS), *REQUESTS), WORDS),
)
