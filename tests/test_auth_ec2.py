"""The door `ec2`: requests signed as for Amazon's EC2. botocore is the client."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
import urllib.parse
import xmlrpc.client
from dataclasses import replace
from datetime import datetime, timezone

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.httpsession import URLLib3Session
from callers import CLIENT
from conftest import program, running, vnctoken_server
from hypothesis import example, given
from hypothesis import strategies as st
from outcomes import result_of
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, eventAsText
from twisted.web.http_headers import Headers

from vnctoken.auth import CredentialError, HttpRequest, Identity, sigv4
from vnctoken.auth.ec2 import Ec2Door
from vnctoken.auth.replays import REMEMBERED, REMEMBERED_PER_USER, REMEMBERED_SECONDS, Replays
from vnctoken.auth.users import Users
from vnctoken.errors import AuthenticationError, OnedError
from vnctoken.user import User

NOW = 1_790_000_000
HOST = "cloud.example.org:2644"
URL = f"http://{HOST}/RPC2/vnctoken"
BODY = xmlrpc.client.dumps(("", 7), "one.vm.vnctoken").encode()
SECRET = hashlib.sha256(b"the password of alice").hexdigest()
ALICE = User(2, "alice", "core", True, "users", frozenset({1}), SECRET, "")
BOB = replace(ALICE, id=3, name="bob", password=hashlib.sha256(b"that of bob").hexdigest())
WRONG = "the signature is wrong, or there is no enabled user of this name with a password"
IN_AS_ALICE = Identity("alice", "serveradmin:alice:login")


def session_of(name):
    return f"serveradmin:{name}:login"


class Entry:
    """The door, an hour after the service began, and both of its clocks."""

    def __init__(self, *users, host=None, began=NOW - 3600, session=session_of, waiting=None, error=None):
        self.clock = Clock()
        self.now = float(began)
        self._users = Users(users or (ALICE, BOB))
        self._waiting = waiting
        self._error = error
        self.door = Ec2Door(users=self._pool, session=session, now=lambda: self.now, clock=self.clock, host=host)
        self.advance(NOW - began)

    def advance(self, seconds):
        self.clock.advance(seconds)
        self.now += seconds

    async def _pool(self):
        if self._waiting:
            await self._waiting
        if self._error:
            raise self._error
        return self._users

    def identity(self, request):
        return result_of(self.door.claim(request).prove())

    def refusal(self, request):
        with pytest.raises(CredentialError) as caught:
            self.identity(request)
        return str(caught.value)


def utc(form, at):
    return datetime.fromtimestamp(at, timezone.utc).strftime(form)


def sent(request, headers=()):
    """Return what arrives of a request of botocore's when it is sent; `headers` are those that its HTTP client adds."""
    prepared = request.prepare()
    parts = urllib.parse.urlsplit(prepared.url)
    arrived = Headers()
    for name, value in [("Host", parts.netloc), ("Accept-Encoding", "identity"), *headers, *prepared.headers.items()]:
        arrived.addRawHeader(name.encode(), value if isinstance(value, bytes) else value.encode())
    uri = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return HttpRequest(prepared.method.encode(), uri.encode(), arrived, prepared.body or b"", CLIENT)


def v4(  # noqa: PLR0913
    url=URL,
    *,
    body=BODY,
    method="POST",
    at=NOW,
    key="alice",
    secret=SECRET,
    service="ec2",
    region="one",
    headers=(("Content-Type", "text/xml"),),
    params=None,
    signer=botocore.auth.SigV4Auth,
    date_header="X-Amz-Date",
    date_form="%Y%m%dT%H%M%SZ",
):
    """Return a request that botocore has signed, at a second of our choice."""
    request = AWSRequest(method, url, dict(headers), body, params)
    auth = signer(Credentials(key, secret), service, region)
    request.context["timestamp"] = utc("%Y%m%dT%H%M%SZ", at)
    request.headers[date_header] = utc(date_form, at)
    if signer is botocore.auth.S3SigV4Auth:
        request.headers["X-Amz-Content-SHA256"] = auth.payload(request)
    signature = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    signed = auth.signed_headers(auth.headers_to_sign(request))
    request.headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={auth.scope(request)}, SignedHeaders={signed}, Signature={signature}"
    )
    return sent(request)


def v2(  # noqa: PLR0913
    url=URL, *, body=BODY, method="POST", at=NOW, key="alice", secret=SECRET, without=(), params=None, **more
):
    """Return a request that botocore has signed with version 2, at a second of our choice."""
    own = {
        "AWSAccessKeyId": key,
        "SignatureVersion": "2",
        "SignatureMethod": "HmacSHA256",
        "Timestamp": utc("%Y-%m-%dT%H:%M:%SZ", at),
        "X-Amz-Content-SHA256": hashlib.sha256(body).hexdigest(),
    }
    params = {name: value for name, value in (own | more | (params or {})).items() if name not in without}
    request = AWSRequest(method, url, {"Content-Type": "text/xml"}, None, params)
    if "Signature" not in params:
        _, params["Signature"] = botocore.auth.SigV2Auth(Credentials(key, secret)).calc_signature(request, params)
    request.data = body
    return sent(request)


def changed(request, *, drop=(), **headers):
    """Return a request with other headers; "_" in a name is "-"."""
    arrived = request.headers.copy()
    for name in drop:
        arrived.removeHeader(name)
    for name, value in headers.items():
        arrived.setRawHeaders(name.replace("_", "-"), value if isinstance(value, list) else [value])
    return replace(request, headers=arrived)


def rewritten(request, old, new, count=-1):
    """Return a request with another text in its Authorization."""
    (authorization,) = request.headers.getRawHeaders("Authorization")
    assert old in authorization
    return changed(request, Authorization=authorization.replace(old, new, count))


def requeried(request, old, new):
    """Return a request with another text in its query."""
    assert old in request.uri
    return replace(request, uri=request.uri.replace(old, new))


def test_a_request_signed_by_botocore_is_let_in_as_its_user():
    entry = Entry()
    claim = entry.door.claim(v4())
    assert claim.account == "alice"
    assert result_of(claim.prove()) == IN_AS_ALICE
    assert entry.identity(v4(key="bob", secret=BOB.password)) == Identity("bob", "serveradmin:bob:login")
    assert (entry.door.name, entry.door.needs_tls) == ("ec2", False)


@pytest.mark.parametrize("signer", [botocore.auth.SigV4Auth, botocore.auth.S3SigV4Auth])
@pytest.mark.parametrize(
    "url",
    [
        URL,
        f"{URL}?",
        f"{URL}?b=2&a=1&a=0&c",
        f"{URL}?name=%C3%A9%20%2B%2F&Z=~&z=-._",
        f"http://{HOST}/RPC2/a%20b%2Fc/%C3%A9~'(x)*",
        f"http://{HOST}//RPC2/./a/../b//",
        f"http://{HOST}/",
    ],
)
def test_whatever_path_and_query_botocore_signs_is_taken(signer, url):
    service = "s3" if signer is botocore.auth.S3SigV4Auth else "ec2"
    assert Entry().identity(v4(url, signer=signer, service=service)) == IN_AS_ALICE


@pytest.mark.parametrize(
    "how",
    [
        {"url": f"http://{HOST}"},
        {"method": "GET"},
        {"body": b""},
        {"body": b"\x00\xff" * 30_000},
        {"service": "a service", "region": ""},
        {"params": {"a": "b c", "z": "+/=&é", "~": ""}},
        {"headers": {"X-Many": "  a   b\tc  ", "x-amz-meta-name": "Zo\u00eb", "X-Empty": ""}},
        {"date_header": "Date", "date_form": "%a, %d %b %Y %H:%M:%S GMT"},
        {"date_header": "Date", "date_form": "%a, %d %b %Y %H:%M:%S -0000"},
        {"date_header": "Date"},
    ],
)
def test_whatever_else_botocore_signs_is_taken(how):
    assert Entry().identity(v4(**how)) == IN_AS_ALICE


def test_signatures_of_the_running_botocore_are_taken():
    credentials = Credentials("alice", SECRET, "a session token")
    for signer in (
        botocore.auth.SigV4Auth(credentials, "ec2", "us-east-1"),
        botocore.auth.S3SigV4Auth(credentials, "s3", "us-east-1"),
        botocore.auth.SigV2Auth(credentials),
    ):
        request = AWSRequest("POST", URL, {"Content-Type": "text/xml"}, BODY)
        if isinstance(signer, botocore.auth.SigV2Auth):
            request = AWSRequest("POST", URL, params={"X-Amz-Content-SHA256": hashlib.sha256(BODY).hexdigest()})
        signer.add_auth(request)
        request.data = BODY
        entry = Entry()
        entry.now = time.time()
        assert entry.identity(sent(request)) == IN_AS_ALICE


def test_a_users_name_may_have_a_slash_and_letters_of_any_language():
    name = "a/b=Zo\u00eb"
    entry = Entry(replace(ALICE, name=name))
    assert entry.identity(v4(key=name)).user == name
    assert entry.identity(v2(key=name)).user == name


# The cases of the test suite that AWS published for version 4, and the example of its guide. They are all for
# AKIDEXAMPLE, at 2015-08-30 12:36:00 UTC in us-east-1.
SUITE_SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
FORM = {"Content-Type": ["application/x-www-form-urlencoded"]}
UNRESERVED = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
VANILLA = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
POST = "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
SUITE = [
    ("GET", "/", {}, b"", VANILLA),
    ("GET", "//", {}, b"", VANILLA),
    ("GET", "/./", {}, b"", VANILLA),
    ("GET", "/example/..", {}, b"", VANILLA),
    ("GET", "/example1/example2/../..", {}, b"", VANILLA),
    ("POST", "/", {}, b"", POST),
    ("POST", "/", FORM, b"Param1=value1", "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"),
    ("GET", "/?Param1=value1", {}, b"", "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb"),
    (
        "GET",
        "/?Param2=value2&Param1=value1",
        {},
        b"",
        "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
    ),
    (
        "GET",
        f"/?{UNRESERVED}={UNRESERVED}",
        {},
        b"",
        "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197",
    ),
    (
        "GET",
        "/",
        {"My-Header1": ["value2", "value2", "value1"]},
        b"",
        "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
    ),
    (
        "GET",
        "/",
        {"My-Header1": ["value4", "value1", "value3", "value2"]},
        b"",
        "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01",
    ),
    (
        "GET",
        "/",
        {"My-Header1": [" value1"], "My-Header2": [' "a   b   c"']},
        b"",
        "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
    ),
]


def suite_request(  # noqa: PLR0913
    method, uri, headers, body, signature, *, host="example.amazonaws.com", service="service"
):
    names = ";".join(sorted(name.lower() for name in ("Host", "X-Amz-Date", *headers)))
    authorization = (
        f"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/{service}/aws4_request, SignedHeaders={names},"
        f" Signature={signature}"
    )
    arrived = Headers({**headers, "Host": [host], "X-Amz-Date": ["20150830T123600Z"], "Authorization": [authorization]})
    return HttpRequest(method.encode(), uri.encode(), arrived, body, CLIENT)


@pytest.mark.parametrize(("method", "uri", "headers", "body", "signature"), SUITE)
def test_the_published_signatures_are_right(method, uri, headers, body, signature):
    signed = sigv4.read(suite_request(method, uri, headers, body, signature), None)
    assert (signed.access_key, signed.made) == ("AKIDEXAMPLE", 1_440_938_160)
    assert signed.is_by(SUITE_SECRET)
    assert not signed.is_by(SECRET)


def test_the_signature_of_the_guides_example_is_right():
    request = suite_request(
        "GET",
        "/?Action=ListUsers&Version=2010-05-08",
        {"Content-Type": ["application/x-www-form-urlencoded; charset=utf-8"]},
        b"",
        "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
        host="iam.amazonaws.com",
        service="iam",
    )
    assert sigv4.read(request, None).is_by(SUITE_SECRET)


@pytest.mark.parametrize("made", [{}, {"method": "GET"}, {"Custom": "a b+c~/é&="}, {"a": "1", "a b": "2", "a-b": "3"}])
def test_a_request_signed_with_version_2_is_let_in_as_its_user(made):
    entry = Entry()
    claim = entry.door.claim(v2(**made))
    assert claim.account == "alice"
    assert result_of(claim.prove()) == IN_AS_ALICE


def v2_by_hand(secret=SECRET, digest="sha1", host=HOST, path="/RPC2/vnctoken", **more):
    """Return a request signed as the tools of old do it, without botocore."""
    params = {
        "AWSAccessKeyId": "alice",
        "SignatureMethod": {"sha1": "HmacSHA1", "sha256": "HmacSHA256"}[digest],
        "SignatureVersion": "2",
        "X-Amz-Content-SHA256": hashlib.sha256(BODY).hexdigest(),
        **more,
    }
    query = "&".join(f"{name}={urllib.parse.quote(params[name], safe='')}" for name in sorted(params))
    signature = hmac.new(secret.encode(), f"POST\n{host}\n{path}\n{query}".encode(), digest).digest()
    query += "&Signature=" + urllib.parse.quote(base64.b64encode(signature))
    return HttpRequest(b"POST", f"{path}?{query}".encode(), Headers({"Host": [HOST]}), BODY, CLIENT)


def test_old_tools_may_sign_with_sha1_and_say_when_it_expires():
    entry = Entry()
    for digest in ("sha1", "sha256"):
        assert entry.identity(v2_by_hand(digest=digest, Timestamp=utc("%Y-%m-%dT%H:%M:%S.000Z", NOW))) == IN_AS_ALICE
        assert entry.identity(v2_by_hand(digest=digest, Expires=utc("%Y-%m-%dT%H:%M:%SZ", NOW + 60))) == IN_AS_ALICE
        assert entry.refusal(v2_by_hand("f" * 64, digest, Timestamp=utc("%Y-%m-%dT%H:%M:%SZ", NOW))) == WRONG


BASIC = Headers({"Authorization": ["Basic YWxpY2U6c2VjcmV0"]})


@pytest.mark.parametrize(
    "request_",
    [
        HttpRequest(b"POST", b"/RPC2", Headers(), BODY, CLIENT),
        HttpRequest(b"POST", b"/RPC2?AWS=1&x=AWSAccessKeyId", BASIC, BODY, CLIENT),
        HttpRequest(b"POST", b"/RPC2", Headers({b"Authorization": [b"\xff", b"Basic x"]}), BODY, CLIENT),
        HttpRequest(b"POST", b"/RPC2?" + b"a&" * 50_000, Headers(), BODY, CLIENT),
    ],
)
def test_a_request_without_a_signature_is_for_other_doors(request_):
    assert Entry().door.claim(request_) is None


NOT_ALICE = [
    {"secret": BOB.password},
    {"secret": ""},
    {"key": "nobody"},
    {"key": "bob"},
    {"key": "Alice"},
    {"key": "alice "},
]


@pytest.mark.parametrize("sign", [v4, v2])
@pytest.mark.parametrize("who", NOT_ALICE)
def test_an_unknown_user_and_a_wrong_secret_are_told_the_same(sign, who):
    assert Entry().refusal(sign(**who)) == WRONG


NO_SECRET = [
    replace(ALICE, enabled=False),
    *(replace(ALICE, driver=driver) for driver in ("x509", "public", "server_cipher", "ldap", "", "Core")),
]


@pytest.mark.parametrize("sign", [v4, v2])
@pytest.mark.parametrize("user", NO_SECRET, ids=lambda user: user.driver)
def test_only_the_stored_password_of_an_enabled_user_who_has_one_is_a_secret(sign, user):
    assert Entry(user).refusal(sign()) == WRONG


@pytest.mark.parametrize("sign", [v4, v2])
@pytest.mark.parametrize("stored", ["", "-", "/CN=alice", SECRET.upper(), SECRET[:40], f"{SECRET}\n", f"{SECRET}|x"])
def test_a_stored_password_that_is_no_hash_opens_nothing(sign, stored):
    assert Entry(replace(ALICE, password=stored)).refusal(sign(secret=stored)) == WRONG


def test_a_user_who_cannot_stand_in_a_session_string_is_refused():
    def session(name):
        raise AuthenticationError("A user name with a space cannot be logged in")

    assert "his name cannot stand in a session string" in Entry(session=session).refusal(v4())


def test_if_oned_cannot_be_asked_the_signature_is_not_used_up():
    request = v4()
    entry = Entry(error=OnedError("oned is down"))
    with pytest.raises(OnedError):
        entry.identity(request)


TAMPERED = {
    "another body": lambda r: replace(r, body=BODY.replace(b"7", b"8")),
    "no body": lambda r: replace(r, body=b""),
    "another method": lambda r: replace(r, method=b"GET"),
    "another path": lambda r: replace(r, uri=r.uri.replace(b"/RPC2/vnctoken", b"/RPC2")),
    "a path that is encoded": lambda r: replace(r, uri=r.uri.replace(b"/RPC2", b"/%52PC2")),
    "one more parameter": lambda r: replace(r, uri=r.uri + (b"&" if b"?" in r.uri else b"?") + b"more=1"),
    "another host": lambda r: changed(r, Host="cloud.example.com:2644"),
    "no host": lambda r: changed(r, drop=["Host"]),
    "an empty host": lambda r: changed(r, Host=" "),
    "a second host": lambda r: changed(r, Host=[HOST, "cloud.example.com"]),
    "a host that is not UTF-8": lambda r: changed(r, Host=b"\xff"),
}
V4_TAMPERED = TAMPERED | {
    "another signed header": lambda r: changed(r, Content_Type="text/plain"),
    "a signed header twice": lambda r: changed(r, Content_Type=["text/xml", "text/xml"]),
    "no signed header": lambda r: changed(r, drop=["Content-Type"]),
    "another date": lambda r: changed(r, X_Amz_Date=utc("%Y%m%dT%H%M%SZ", NOW + 1)),
    "two dates": lambda r: changed(r, X_Amz_Date=[utc("%Y%m%dT%H%M%SZ", NOW)] * 2),
    "a date that is not signed": lambda r: changed(
        rewritten(r, ";x-amz-date", ""), Date="Thu, 01 Jan 1970 00:00:00 GMT"
    ),
    "no date": lambda r: changed(r, drop=["X-Amz-Date"]),
    "another region": lambda r: rewritten(r, "/one/", "/two/"),
    "another service": lambda r: rewritten(r, "/ec2/", "/s3/"),
    "another user": lambda r: rewritten(r, "=alice/", "=bob/"),
    "fewer signed headers": lambda r: rewritten(r, "content-type;", ""),
    "a host that is not signed": lambda r: rewritten(r, "host;", ""),
    "one more signed header": lambda r: rewritten(r, "content-type", "accept-encoding;content-type"),
    "a forged signature": lambda r: rewritten(r, r.headers.getRawHeaders("Authorization")[0][-4:], "0000"),
    "a hash of another body": lambda r: changed(r, X_Amz_Content_SHA256=hashlib.sha256(b"").hexdigest()),
}
V2_TAMPERED = TAMPERED | {
    "another parameter": lambda r: requeried(r, b"SignatureMethod=HmacSHA256", b"SignatureMethod=HmacSHA1"),
    "another date": lambda r: requeried(r, b"Timestamp=2", b"Timestamp=1"),
    "another user": lambda r: requeried(r, b"=alice&", b"=bob&"),
    "another body and its hash": lambda r: replace(
        requeried(r, hashlib.sha256(BODY).hexdigest().encode(), hashlib.sha256(b"").hexdigest().encode()), body=b""
    ),
    "a parameter twice": lambda r: replace(r, uri=r.uri + b"&AWSAccessKeyId=alice"),
    "a forged signature": lambda r: replace(
        r, uri=r.uri.split(b"Signature=")[0] + b"Signature=" + base64.b64encode(b"0" * 32)
    ),
    "a cut signature": lambda r: replace(r, uri=r.uri.split(b"Signature=")[0] + b"Signature=MDAw"),
}


@pytest.mark.parametrize(
    ("sign", "tamper"),
    [
        *(pytest.param(v4, tamper, id=f"v4 {name}") for name, tamper in V4_TAMPERED.items()),
        *(pytest.param(v2, tamper, id=f"v2 {name}") for name, tamper in V2_TAMPERED.items()),
    ],
)
def test_a_request_that_was_tampered_with_is_refused(sign, tamper):
    entry = Entry()
    request = sign()
    tampered = tamper(request)
    assert tampered != request
    problem = entry.refusal(tampered)
    assert SECRET not in problem
    # That has not used up the real one.
    assert entry.identity(request) == IN_AS_ALICE


@pytest.mark.parametrize("sign", [v4, v2])
@pytest.mark.parametrize("late", [-900, -899, 899, 900])
def test_a_signature_counts_15_minutes_before_and_after_its_date(sign, late):
    entry = Entry()
    entry.advance(late)
    assert entry.identity(sign()) == IN_AS_ALICE


@pytest.mark.parametrize("sign", [v4, v2])
def test_outside_of_15_minutes_it_is_refused(sign):
    entry = Entry()
    assert entry.refusal(sign(at=NOW - 901)).startswith("the signature expired 1 seconds ago")
    assert entry.refusal(sign(at=NOW + 901)).startswith("the signature counts only in 1 seconds")
    assert "expired" in entry.refusal(sign(at=0))
    assert "counts only in" in entry.refusal(sign(at=NOW + 10**9))


def test_a_signature_of_version_2_may_expire_within_15_minutes_at_most():
    entry = Entry()
    for ahead, problem in ((-1, "expired 1 seconds ago"), (901, "counts only in 1 seconds")):
        expires = utc("%Y-%m-%dT%H:%M:%SZ", NOW + ahead)
        assert problem in entry.refusal(v2(without=["Timestamp"], Expires=expires))
    for ahead in (0, 900):
        expires = utc("%Y-%m-%dT%H:%M:%SZ", NOW + ahead)
        assert entry.identity(v2(without=["Timestamp"], Expires=expires)) == IN_AS_ALICE


REPEATED = {
    "the same": lambda r: r,
    "with unsigned headers": lambda r: changed(r, User_Agent="another"),
    "with other spaces": lambda r: rewritten(rewritten(r, ", ", "  ,\t"), "SHA256 ", "SHA256   "),
    "in another order": lambda r: changed(
        r,
        Authorization="AWS4-HMAC-SHA256 "
        + ",".join(reversed(r.headers.getRawHeaders("Authorization")[0].partition(" ")[2].split(","))),
    ),
    "with the query in another order": lambda r: requeried(r, b"a=1&b=c+d", b"b=c%20d&a=1"),
    "with another path that means the same": lambda r: replace(r, uri=r.uri.replace(b"/RPC2/", b"//RPC2/./")),
    "with spaces in a signed header": lambda r: changed(r, Content_Type="  text/xml "),
}


@pytest.mark.parametrize("repeat", REPEATED.values(), ids=REPEATED)
def test_a_request_is_good_for_once(repeat):
    entry = Entry()
    request = v4(params={"a": "1", "b": "c d"})
    assert entry.identity(request) == IN_AS_ALICE
    assert "was sent before" in entry.refusal(repeat(request))
    assert Entry().identity(repeat(request)) == IN_AS_ALICE


def test_a_request_of_version_2_is_good_for_once():
    entry = Entry()
    request = v2(Custom="a b~")
    encoded = requeried(request, b"Custom=a+b~", b"Custom=%61%20b%7e")
    padded = replace(request, uri=request.uri.replace(b"%3D", b"="))
    assert entry.identity(request) == IN_AS_ALICE
    for again in (request, encoded, padded, changed(request, Host=HOST.upper())):
        assert "was sent before" in entry.refusal(again)
        assert Entry().identity(again) == IN_AS_ALICE


def test_users_with_one_password_cannot_be_taken_for_each_other():
    # The access key is not signed in version 4.
    entry = Entry(ALICE, replace(BOB, password=SECRET))
    request = v4()
    assert entry.identity(request) == IN_AS_ALICE
    assert "was sent before" in entry.refusal(rewritten(request, "=alice/", "=bob/"))


def test_the_same_call_with_something_else_in_it_is_another():
    entry = Entry()
    for number in range(3):
        assert entry.identity(v4(headers={"X-Request-Id": str(number)})) == IN_AS_ALICE
        assert entry.identity(v2(Nonce=str(number))) == IN_AS_ALICE


def test_a_request_is_remembered_for_as_long_as_it_could_count():
    entry = Entry()
    request = v4(at=NOW + 900)
    entry.identity(request)
    for _ in range(18):
        entry.advance(100)
        assert "was sent before" in entry.refusal(request)
    entry.advance(1)
    assert "expired" in entry.refusal(request)


def test_of_two_that_arrive_at_once_one_is_let_in():
    oned = Deferred()
    entry = Entry(waiting=oned)
    outcomes = []
    for _ in range(2):
        Deferred.fromCoroutine(entry.door.claim(v4()).prove()).addCallbacks(
            outcomes.append, lambda failure: outcomes.append(failure.type)
        )
    assert outcomes == []
    oned.callback(None)
    assert outcomes == [IN_AS_ALICE, CredentialError]


def test_what_was_signed_before_the_service_started_is_refused():
    entry = Entry(began=NOW)
    for sign in (v4, v2):
        assert "before this service started" in entry.refusal(sign(at=NOW - 2))
        assert entry.identity(sign(at=NOW)) == IN_AS_ALICE
    assert entry.identity(v4(at=NOW + 600)) == IN_AS_ALICE
    soon = utc("%Y-%m-%dT%H:%M:%SZ", NOW + 600)
    assert "before this service started" in entry.refusal(v2(without=["Timestamp"], Expires=soon))
    later = utc("%Y-%m-%dT%H:%M:%SZ", NOW + 900)
    assert entry.identity(v2(without=["Timestamp"], Expires=later)) == IN_AS_ALICE


def test_a_clock_that_is_set_back_locks_nobody_out():
    entry = Entry()
    entry.now -= 7200
    assert entry.identity(v4(at=NOW - 7200)) == IN_AS_ALICE
    replays = Replays(clock := Clock())
    clock.rightNow = -7200.0
    replays.use("alice", b"1", 0)


def test_nobody_uses_up_the_memory_of_all():
    clock = Clock()
    replays = Replays(clock)
    for number in range(REMEMBERED_PER_USER):
        replays.use("alice", b"%d" % number, 0)
    with pytest.raises(CredentialError, match="the user has used 10000 signatures"):
        replays.use("alice", b"one more", 0)
    with pytest.raises(CredentialError, match="was sent before"):
        replays.use("bob", b"0", 0)
    replays.use("bob", b"his own", 0)
    clock.advance(REMEMBERED_SECONDS + 1)
    replays.use("alice", b"one more", 0)


def test_when_the_memory_is_full_new_requests_are_refused_and_old_ones_not_forgotten():
    clock = Clock()
    replays = Replays(clock)
    for number in range(REMEMBERED):
        replays.use(f"user {number % 11}", b"%d" % number, 0)
    with capturedLogs() as events:
        for number in range(3):
            with pytest.raises(CredentialError, match="no more signatures can be remembered"):
                replays.use("alice", b"new %d" % number, 0)
    (line,) = map(eventAsText, events)
    assert "100000 signed requests within 1860 seconds" in line
    with pytest.raises(CredentialError, match="was sent before"):
        replays.use("user 0", b"0", 0)
    clock.advance(REMEMBERED_SECONDS)
    with pytest.raises(CredentialError, match="was sent before"):
        replays.use("user 0", b"0", 0)
    clock.advance(1)
    replays.use("alice", b"new 0", 0)


def test_what_is_not_right_is_not_remembered():
    entry = Entry()
    request = v4()
    for _ in range(5):
        assert entry.refusal(rewritten(request, "=alice/", "=bob/")) == WRONG
    assert entry.identity(request) == IN_AS_ALICE


@pytest.mark.parametrize("sign", [v4, v2])
@pytest.mark.parametrize("public", ["Cloud.Example.org", "cloud.example.org:443", "cloud.example.org"])
def test_with_a_public_url_requests_must_be_signed_for_its_host(sign, public):
    entry = Entry(host=public)
    for scheme in ("http", "https"):
        assert entry.identity(sign(f"{scheme}://cloud.example.org/RPC2/{scheme}")) == IN_AS_ALICE
    # A proxy may write its own there.
    proxied = changed(sign("https://cloud.example.org/RPC2/vnctoken"), Host="127.0.0.1:2644")
    assert entry.identity(proxied) == IN_AS_ALICE
    elsewhere = f"{WRONG}; requests must be signed for the host {public}"
    assert entry.refusal(sign("https://another.example.org/RPC2/vnctoken")) == elsewhere
    assert entry.refusal(sign("https://cloud.example.org:444/RPC2/vnctoken")) == elsewhere
    stolen = changed(sign("https://another.example.org/RPC2/vnctoken"), Host="cloud.example.org")
    assert entry.refusal(stolen) == elsewhere


def test_a_host_in_capitals_or_with_the_default_port_is_the_same():
    for host in ("CLOUD.example.org", "cloud.example.org:443", "Cloud.Example.Org:80"):
        signed = v4(headers={"host": host})
        signed = changed(signed, Host=host)
        assert Entry(host="cloud.example.org").identity(signed) == IN_AS_ALICE


def test_version_2_needs_the_hash_of_the_body_and_the_log_says_so():
    entry = Entry()
    assert entry.refusal(v2(without=["X-Amz-Content-SHA256"])) == (
        "version 2 does not sign the body: the query needs the parameter X-Amz-Content-SHA256, the hexadecimal SHA-256"
        " of the body"
    )
    for given_hash in ("", "UNSIGNED-PAYLOAD", hashlib.sha256(BODY).hexdigest().upper()):
        problem = entry.refusal(v2(**{"X-Amz-Content-SHA256": given_hash}))
        assert problem == "X-Amz-Content-SHA256 is not the hexadecimal SHA-256 of the body"


@pytest.mark.parametrize(
    "claimed", ["UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER", ""]
)
def test_a_body_that_is_not_signed_is_refused(claimed):
    request = v4(headers={"X-Amz-Content-SHA256": claimed})
    assert Entry().refusal(request) == "X-Amz-Content-SHA256 is not the hexadecimal SHA-256 of the body"


def test_a_presigned_url_is_refused_in_words():
    for signer in (botocore.auth.SigV4QueryAuth, botocore.auth.S3SigV4QueryAuth):
        request = AWSRequest("POST", URL)
        signer(Credentials("alice", SECRET), "ec2", "one").add_auth(request)
        assert "it is a presigned URL, which vouches for no body" in Entry().refusal(sent(request))


def test_two_signatures_are_refused():
    request = v4()
    both = replace(v2(), headers=request.headers)
    assert "both versions" in Entry().refusal(both)
    twice = request.headers.copy()
    twice.addRawHeader("Authorization", "Basic YWxpY2U6c2VjcmV0")
    assert "several headers Authorization" in Entry().refusal(replace(request, headers=twice))


@pytest.mark.parametrize(
    ("name", "date_header"), [("Host", "X-Amz-Date"), ("X-Amz-Date", "X-Amz-Date"), ("Date", "Date")]
)
def test_host_and_date_must_be_signed(name, date_header):
    class Careless(botocore.auth.SigV4Auth):
        def headers_to_sign(self, request):
            headers = super().headers_to_sign(request)
            del headers[name]
            return headers

    problem = f"the header {name} is not among the signed ones"
    assert Entry().refusal(v4(signer=Careless, date_header=date_header)) == problem


def test_a_date_beside_the_signed_one_does_not_count():
    request = v4(date_header="Date")
    later = changed(request, X_Amz_Date=utc("%Y%m%dT%H%M%SZ", NOW + 600))
    assert Entry().refusal(later) == "the header X-Amz-Date is not among the signed ones"
    assert Entry().identity(changed(v4(), Date="Thu, 01 Jan 1970 00:00:00 GMT")) == IN_AS_ALICE


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("AWS4-HMAC-SHA256 ", "AWS4-ECDSA-P256-SHA256 ", "a signature other than AWS4-HMAC-SHA256"),
        ("AWS4-HMAC-SHA256 ", "AWS ", "a signature other than AWS4-HMAC-SHA256"),
        ("AWS4-HMAC-SHA256 ", "aws4-hmac-sha256 ", "a signature other than AWS4-HMAC-SHA256"),
        ("Signature=", "signature=", "does not consist of Credential, SignedHeaders, Signature"),
        ("Signature=", "Signature=,Signature=", "does not consist of Credential, SignedHeaders, Signature"),
        ("/aws4_request", "/aws4_other", "the Credential is not"),
        ("/one", "", "the Credential is not"),
        ("=alice/", "=/", "the Credential is not"),
        ("/2026", "/2025", "the date in the Credential is another"),
        ("content-type;host", "host;content-type", "SignedHeaders is not a sorted list"),
        ("content-type;", "content-type;content-type;", "SignedHeaders is not a sorted list"),
        ("content-type;", "Content-Type;", "SignedHeaders is not a sorted list"),
        ("content-type;", ";", "SignedHeaders is not a sorted list"),
        ("content-type;", "content type;", "SignedHeaders is not a sorted list"),
        ("content-type;", "a;content-type;", "a signed header is not there"),
        ("content-type;", ";".join(f"a{n:03}" for n in range(101)) + ";", "more than 100 signed headers"),
        ("=alice/", f"={'a' * 4096}/", "longer than 4096 characters"),
        ("Signature=", "Signature=A", "not 64 hexadecimal digits"),
    ],
)
def test_a_header_that_is_no_signature_is_refused_in_words(old, new, problem):
    refused = Entry().refusal(rewritten(v4(), old, new, 1))
    assert problem in refused
    assert "aaaa" not in refused


def test_a_signature_in_capitals_is_refused():
    request = v4()
    (authorization,) = request.headers.getRawHeaders("Authorization")
    head, _, signature = authorization.rpartition("=")
    assert "not 64 hexadecimal digits" in Entry().refusal(changed(request, Authorization=f"{head}={signature.upper()}"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Amz-Date", ""),
        ("X-Amz-Date", "20261301T000000Z"),
        ("X-Amz-Date", "2026-09-21T13:46:40Z"),
        ("X-Amz-Date", "\u0662\u0660260921T134640Z"),
        ("X-Amz-Date", "Mon, 21 Sep 2026 13:46:40 GMT"),
        ("Date", "yesterday"),
        ("Date", "Mon, 99 Sep 2026 13:46:40 GMT"),
        ("Date", "Mon, 01 Jan 0001 00:00:00 +2359"),
        ("Date", f"Mon, 21 Sep {'9' * 5000} 13:46:40 GMT"),
        ("Date", f"Mon, 21 Sep {'9' * 30} 13:46:40 GMT"),
    ],
)
def test_a_date_that_is_none_is_refused(name, value):
    assert "date" in Entry().refusal(changed(v4(date_header=name), **{name.replace("-", "_"): value}))


@pytest.mark.parametrize(
    ("more", "without", "problem"),
    [
        ({"SignatureVersion": "1"}, (), "the SignatureVersion is not 2"),
        ({}, ["SignatureVersion"], "the SignatureVersion is not 2"),
        ({"SignatureMethod": "HmacMD5"}, (), "the SignatureMethod is none of HmacSHA256, HmacSHA1"),
        ({}, ["SignatureMethod"], "the SignatureMethod is none of HmacSHA256, HmacSHA1"),
        ({"key": ""}, (), "there is no AWSAccessKeyId"),
        ({}, ["AWSAccessKeyId"], "there is no AWSAccessKeyId"),
        ({}, ["Timestamp"], "one of the parameters Timestamp and Expires"),
        ({"Expires": "2026-09-21T13:46:40Z"}, (), "one of the parameters Timestamp and Expires"),
        ({"Timestamp": "now"}, (), "no date such as"),
        ({"Timestamp": "2026-02-30T13:46:40Z"}, (), "none that the calendar knows"),
        ({"Signature": ""}, (), "the Signature is not 32 bytes in base64"),
        ({"Signature": "no base64!"}, (), "the Signature is not 32 bytes in base64"),
        ({"Signature": base64.b64encode(b"0" * 33).decode()}, (), "the Signature is not 32 bytes in base64"),
        ({"Signature": "\u00e9" * 44}, (), "the Signature is not 32 bytes in base64"),
    ],
)
def test_a_query_that_is_no_signature_is_refused_in_words(more, without, problem):
    assert problem in Entry().refusal(v2(**more, without=without))


@pytest.mark.parametrize("sign", [v4, v2])
@pytest.mark.parametrize(
    ("addition", "problem"),
    [
        (b"&a" * 100, "more than 100 parameters"),
        (b"&a=" + b"x" * 4096, "longer than 4096 bytes"),
        (b"&a=%ff", "not percent-encoded UTF-8"),
        (b"&a=\xff", "not percent-encoded UTF-8"),
    ],
)
def test_a_query_that_is_too_much_or_no_text_is_refused(sign, addition, problem):
    request = sign(f"{URL}?x=1")
    assert problem in Entry().refusal(replace(request, uri=request.uri + addition))


@pytest.mark.parametrize(
    "authorization", [b"AWS4-HMAC-SHA256 Credential=\xff/20260921/one/ec2/aws4_request", b"AWS4-HMAC-SHA256"]
)
def test_a_credential_that_cannot_be_read_is_refused(authorization):
    assert Entry().refusal(changed(v4(), Authorization=authorization))


@pytest.mark.parametrize("sign", [v4, v2])
def test_neither_signature_nor_secret_is_in_any_representation(sign):
    entry = Entry()
    request = sign()
    claim = entry.door.claim(request)
    signature = (
        request.headers.getRawHeaders("Authorization")[0].rpartition("=")[2]
        if sign is v4
        else urllib.parse.unquote(request.uri.decode().rpartition("=")[2])
    )
    raw = bytes.fromhex(signature) if sign is v4 else base64.b64decode(signature)
    identity = result_of(claim.prove())
    texts = f"{claim!r} {identity!r} {entry.door!r} {entry.refusal(request)} {entry.refusal(sign(secret='0'))}"
    texts += repr(sigv4.read(request, None)) if sign is v4 else ""
    for secret in (SECRET, signature, raw.hex(), repr(raw)[2:-1]):
        assert secret not in texts


def test_a_hostile_request_is_refused_before_there_is_much_to_do():
    names = ";".join(f"x{n}" for n in range(2000))
    headers = Headers({f"x{n}": ["a " * 1000] for n in range(2000)})
    headers.setRawHeaders("Authorization", [f"AWS4-HMAC-SHA256 Credential=a/1/2/3/aws4_request, SignedHeaders={names}"])
    entry = Entry()
    assert "4096 characters" in entry.refusal(HttpRequest(b"POST", b"/RPC2", headers, BODY, CLIENT))
    for uri in (b"/RPC2?SignatureVersion=2" + b"&a=%20" * 100_000, b"/RPC2?AWSAccessKeyId=&" + b"&" * 1_000_000):
        assert "4096 bytes" in entry.refusal(HttpRequest(b"POST", uri, Headers(), BODY, CLIENT))
    assert "4096 bytes" in entry.refusal(replace(v4(), uri=b"/" * 16_000 + b"?" + b"&" * 1_000_000))


def headers_of(text):
    """Return headers as they come out of some lines."""
    headers = Headers()
    for name, value in text:
        headers.addRawHeader(name, value)
    return headers


NAMES = st.sampled_from([b"Authorization", b"Host", b"Date", b"X-Amz-Date", b"X-Amz-Content-SHA256", b"a"])
CREDENTIALS = st.sampled_from(
    ["alice/20260921/one/ec2/aws4_request", "/////", "alice", "\u0661/20260921/a/b/aws4_request"]
)
SIGNED = st.sampled_from(["host;x-amz-date", "date;host", "a;host;x-amz-date", ";", "host;x-amz-date;\u00e9"])
SIGNATURES = st.sampled_from(["0" * 64, "0" * 63, "\u0660" * 64, ""])
AUTHORIZATIONS = st.builds(
    "AWS4-HMAC-SHA256 Credential={},SignedHeaders={},Signature={}".format,
    CREDENTIALS | st.text(),
    SIGNED | st.text(),
    SIGNATURES | st.text(),
).map(str.encode)
DATES = st.sampled_from([b"20260921T134640Z", b"Mon, 21 Sep 2026 13:46:40 GMT", b"99991231T235959Z"])
VALUES = AUTHORIZATIONS | DATES | st.binary() | st.text().map(lambda text: text.encode(errors="replace"))
PARAMETERS = st.tuples(
    st.sampled_from(
        ["AWSAccessKeyId", "Signature", "SignatureVersion", "SignatureMethod", "Timestamp", "Expires", "a"]
    ),
    st.sampled_from(
        ["alice", "2", "HmacSHA256", "HmacSHA1", "2026-09-21T13:46:40Z", "MDAw", base64.b64encode(b"0" * 32).decode()]
    )
    | st.text(),
)
QUERIES = st.lists(PARAMETERS).map(lambda pairs: urllib.parse.urlencode(pairs, errors="replace").encode()) | st.binary()


@given(
    method=st.sampled_from([b"POST", b"GET"]) | st.binary(),
    path=st.sampled_from([b"/RPC2?", b""]) | st.binary(),
    query=QUERIES,
    headers=st.lists(st.tuples(NAMES, VALUES)),
    body=st.binary(),
)
@example(b"POST", b"/RPC2", b"", [(b"Authorization", b"AWS4-HMAC-SHA256 Credential=,SignedHeaders=,Signature=")], b"")
def test_no_request_without_a_valid_signature_is_let_in_and_none_breaks_the_door(method, path, query, headers, body):
    entry = Entry()
    request = HttpRequest(method, path + query, headers_of(headers), body, CLIENT)
    claim, problem = None, ""
    try:
        claim = entry.door.claim(request)
    except CredentialError as error:
        problem = str(error)
    assert problem.isprintable()
    if claim is not None:
        claim.account.encode()
        with pytest.raises(CredentialError):
            result_of(claim.prove())


LETTERS = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Z")), min_size=1, max_size=20)


@given(params=st.dictionaries(LETTERS, st.text(st.characters(blacklist_categories=("Cs",)), max_size=20), max_size=5))
@example({"AWS": "SignatureVersion=2&"})
def test_any_parameters_that_botocore_signs_are_taken(params):
    reserved = {"AWSAccessKeyId", "Signature", "SignatureVersion", "SignatureMethod", "Timestamp", "Expires"}
    params = {
        name: value for name, value in params.items() if name not in reserved and not name.lower().startswith("x-amz-")
    }
    assert Entry().identity(v2(params=params)) == IN_AS_ALICE
    assert Entry().identity(v4(params=params)) == IN_AS_ALICE


# The whole service: botocore's own HTTP client, and curl.
SANDBOX_SECRET = hashlib.sha256(b"secret").hexdigest()
CALL = xmlrpc.client.dumps(("", 0), "one.vm.vnctoken").encode()
NOBODY = [False, 0x0100]


@pytest.fixture(scope="module")
def service(tmp_path_factory, cloud):
    """Run a vnctoken-server with the door ec2 in front of the sandbox's oned."""
    one_location = tmp_path_factory.mktemp("one")
    (one_location / "var" / ".one").mkdir(parents=True)
    (one_location / "var" / ".one" / "sunstone_auth").write_text("serveradmin:serveradmin-secret-for-tests\n")
    settings = ":auth: [opennebula, ec2]\n:auth_failures: 1000/min"
    with vnctoken_server(one_location, cloud.url, settings) as running_service:
        yield running_service


def signed_with(signer, url, body=CALL, **headers):
    """Return a request as botocore signs and sends it."""
    params = {"X-Amz-Content-SHA256": hashlib.sha256(body).hexdigest()}
    is_v2 = isinstance(signer, botocore.auth.SigV2Auth)
    request = AWSRequest("POST", url, headers, None if is_v2 else body, params if is_v2 else None)
    signer.add_auth(request)
    request.data = body
    return request.prepare()


def answer_to(prepared):
    """Send a request with botocore's HTTP client and return the answer: success, and the token or code."""
    response = URLLib3Session().send(prepared)
    assert response.status_code == 200
    ((success, result, code),), _ = xmlrpc.client.loads(response.content)
    return [success, result["Token"] if success else code]


@pytest.mark.parametrize(
    "make",
    [
        lambda who: botocore.auth.SigV4Auth(who, "ec2", "one"),
        lambda who: botocore.auth.S3SigV4Auth(who, "s3", "one"),
        botocore.auth.SigV2Auth,
    ],
    ids=["version 4", "version 4 as for S3", "version 2"],
)
def test_a_console_opens_for_a_request_that_botocore_signs_and_sends_and_once_only(service, make):
    url = f"{service.url}/vnctoken"
    request = signed_with(make(Credentials("alice", SANDBOX_SECRET)), url)
    success, token = answer_to(request)
    assert success
    assert token in (service.tokens / "one-0").read_text()
    assert answer_to(request) == NOBODY
    for who in (Credentials("alice", "0" * 64), Credentials("nobody", SANDBOX_SECRET)):
        assert answer_to(signed_with(make(who), url)) == NOBODY
    # The VM is alice's, as oned says. (Bob has her password: without the header his signature would be hers.)
    of_bob = signed_with(make(Credentials("bob", SANDBOX_SECRET)), url, Nonce="1")
    assert answer_to(of_bob) == [False, 0x0200]
    tampered = signed_with(make(Credentials("alice", SANDBOX_SECRET)), url, Nonce="2")
    tampered.body = CALL.replace(b"<int>0<", b"<int>1<")
    assert answer_to(tampered) == NOBODY
    log = service.log.read_text()
    assert SANDBOX_SECRET not in log
    assert "is not let in by ec2 as alice: the request was sent before" in log


def test_a_console_opens_for_a_request_that_curl_signs(service, tmp_path):
    (tmp_path / "curlrc").write_text(f"user = alice:{SANDBOX_SECRET}\naws-sigv4 = aws:amz:one:ec2\n")
    command = (program("curl"), "-sS", "--config", tmp_path / "curlrc", "-H", "Content-Type: text/xml", "--data-binary")
    with running(*command, CALL.decode(), f"{service.url}/vnctoken?from=curl") as curl:
        assert curl.process.wait(20) == 0
        curl.wait_for("</methodResponse>")
    ((success, result, _),), _ = xmlrpc.client.loads(curl.output)
    assert success
    assert result["Token"] in (service.tokens / "one-0").read_text()
