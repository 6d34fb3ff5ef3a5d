"""The door `x509`: client certificates that a TLS proxy has verified."""

from __future__ import annotations

import base64
import subprocess
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from urllib.parse import quote

import pytest
from callers import http_request
from conftest import program
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from outcomes import result_of
from twisted.web.http_headers import Headers

from vnctoken.auth import CredentialError, HttpRequest
from vnctoken.auth.dn import DistinguishedName, elements
from vnctoken.auth.users import Users
from vnctoken.auth.x509 import X509Door
from vnctoken.errors import AuthenticationError, OnedError
from vnctoken.user import User

NOW = 1_790_000_000
DAY = 86_400
KEY = ec.generate_private_key(ec.SECP256R1())
UTF8, PRINTABLE, T61, IA5, UNIVERSAL, BMP = 12, 19, 20, 22, 28, 30
C, O, OU, CN, DC, UID, EMAIL = (  # noqa: E741 (as they are called)
    "2.5.4.6", "2.5.4.10", "2.5.4.11", "2.5.4.3", "0.9.2342.19200300.100.1.25", "0.9.2342.19200300.100.1.1",
    "1.2.840.113549.1.9.1",
)  # fmt: skip
INHERIT_ALL, INDEPENDENT = "1.3.6.1.5.5.7.21.1", "1.3.6.1.5.5.7.21.2"


# Certificates, made byte by byte: no library writes all that OpenSSL reads.


def tlv(tag, *contents):
    content = b"".join(contents)
    length = len(content)
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    head = bytes([length]) if length < 0x80 else bytes([0x80 | len(octets)]) + octets
    return bytes([tag]) + head + content


def oid(dotted):
    first, second, *others = map(int, dotted.split("."))
    content = b""
    for number in (first * 40 + second, *others):
        septets = [number & 0x7F]
        while number := number >> 7:
            septets.insert(0, number & 0x7F | 0x80)
        content += bytes(septets)
    return tlv(6, content)


def name(*parts):
    """Return a name in DER; each part is (type, value), (type, string type, value), or a list of such."""
    written = []
    for part in parts:
        attributes = []
        for type_, *string_type, value in part if isinstance(part, list) else [part]:
            content = value if isinstance(value, bytes) else value.encode()
            attributes.append(tlv(0x30, oid(type_), tlv(*(string_type or [UTF8]), content)))
        written.append(tlv(0x31, *sorted(attributes)))
    return tlv(0x30, *written)


def onelab(*common_names, organization="onelab"):
    return name((C, PRINTABLE, "XX"), (O, organization), *((CN, text) for text in common_names))


def instant(seconds):
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return tlv(0x17, moment.strftime("%y%m%d%H%M%SZ").encode())


def extension(number, content, *, critical=True):
    return tlv(0x30, oid(number), tlv(1, b"\xff") if critical else b"", tlv(4, content))


def proxy_cert_info(language=INHERIT_ALL, *, path_length=b"", critical=True):
    content = tlv(0x30, path_length, tlv(0x30, oid(language)))
    return extension("1.3.6.1.5.5.7.1.14", content, critical=critical)


def certificate(subject, issuer=None, *, extensions=(), begin=NOW - DAY, end=NOW + DAY):
    """Return a certificate in DER; nobody but the TLS proxy looks at who has signed it."""
    algorithm = tlv(0x30, oid("1.2.840.10045.4.3.2"))
    tbs = tlv(
        0x30,
        tlv(0xA0, tlv(2, b"\x02")),
        tlv(2, b"\x17"),
        algorithm,
        issuer or onelab("CA"),
        tlv(0x30, instant(begin), instant(end)),
        subject,
        KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        *([tlv(0xA3, tlv(0x30, *extensions))] if extensions else []),
    )
    signature = KEY.sign(tbs, ec.ECDSA(hashes.SHA256()))
    return tlv(0x30, tbs, algorithm, tlv(3, b"\x00", signature))


def pem(der):
    body = base64.b64encode(der).decode()
    lines = [body[start : start + 64] for start in range(0, len(body), 64)]
    return "\n".join(("-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""))


def escaped(der):
    """Write a certificate as nginx's $ssl_client_escaped_cert does."""
    return quote(pem(der), safe="-._~")


# The door, and who has an account.


def user(name, *dns, enabled=True, driver="x509"):
    return User(20, name, driver, enabled, "users", frozenset({1}), "|".join(dns), "")


ALICE_DN, BOB_DN = "/C=XX/O=onelab/CN=alice", "/DC=org/DC=example/CN=bob"
ALICE, BOB = user("alice", "/DC=org/CN=old", ALICE_DN), user("bob", BOB_DN)


def door(*users, now=NOW, session=lambda name: f"serveradmin:{name}:login"):
    async def pool():
        return Users(users or (ALICE, BOB))

    return X509Door(users=pool, session=session, now=lambda: now)


def sent(value, *, trusted=True, header="X-SSL-Client-Cert"):
    return http_request(headers={header: value}, trusted=trusted, secure=True)


def identity(der, *users, **more):
    return result_of(door(*users, **more).claim(sent(escaped(der))).prove())


def refusal(der, *users, **more):
    with pytest.raises(CredentialError) as caught:
        identity(der, *users, **more)
    return str(caught.value)


def unreadable(value):
    with pytest.raises(CredentialError) as caught:
        door().claim(sent(value))
    return str(caught.value)


ALICES = certificate(onelab("alice"))


def test_a_user_gets_in_with_a_certificate_that_has_one_of_his_names():
    claim = door().claim(sent(escaped(ALICES)))
    assert claim.account == ALICE_DN
    found = result_of(claim.prove())
    assert (found.user, found.session, found.vm_id) == ("alice", "serveradmin:alice:login", None)
    assert identity(certificate(name((DC, IA5, "org"), (DC, IA5, "example"), (CN, "bob")))).user == "bob"


@pytest.mark.parametrize(
    "written",
    [
        escaped,
        pem,
        lambda der: pem(der).replace("\n", " "),
        lambda der: pem(der).replace("\n", "\n\t"),
        lambda der: pem(der).replace("\n", "\t"),
        lambda der: pem(der).replace("\n", ""),
        lambda der: pem(der).replace("\n", "\r\n"),
        lambda der: base64.b64encode(der).decode(),
        lambda der: quote(base64.b64encode(der).decode(), safe=""),
        lambda der: quote(pem(der), safe="-/+= "),
    ],
    ids=["nginx", "PEM", "Apache", "old nginx", "tabs", "unbroken", "CRLF", "HAProxy", "Traefik", "partly"],
)
@pytest.mark.parametrize("header", ["X-SSL-Client-Cert", "SSL_CLIENT_CERT"])
def test_every_proxys_way_to_write_a_certificate_is_read(written, header):
    claim = door().claim(sent(written(ALICES), header=header))
    assert result_of(claim.prove()).user == "alice"


@pytest.mark.parametrize("value", [None, "", "(null)"])
def test_without_a_certificate_other_doors_are_left_to_it(value):
    request = http_request(trusted=True) if value is None else sent(value)
    assert door().claim(request) is None


def test_a_certificate_that_no_trusted_proxy_has_verified_says_nothing():
    assert door().claim(sent(escaped(ALICES), trusted=False)) is None


def test_the_door_is_for_tls_only():
    assert (X509Door.name, X509Door.needs_tls) == ("x509", True)


# Who does not get in.


def test_a_certificate_of_nobodys_name_is_refused():
    assert "no user" in refusal(certificate(onelab("mallory")))


def test_a_disabled_user_one_of_another_driver_and_a_name_of_two_users_are_refused_alike():
    disabled, other = user("alice", ALICE_DN, enabled=False), user("alice", ALICE_DN, driver="core")
    reasons = {refusal(ALICES, *users) for users in ([disabled], [other], [ALICE, user("bob", ALICE_DN)])}
    assert reasons == {"no user of the driver x509 has the name in the certificate"}


@pytest.mark.parametrize(
    ("begin", "end", "reason"),
    [(NOW - DAY, NOW - 1, "expired"), (NOW + 1, NOW + DAY, "not valid yet"), (0, 1, "expired")],
)
def test_a_certificate_out_of_its_time_is_refused_whatever_the_proxy_says(begin, end, reason):
    assert reason in refusal(certificate(onelab("alice"), begin=begin, end=end))


def test_a_certificate_is_good_from_its_first_second_to_its_last():
    assert identity(certificate(onelab("alice"), begin=NOW, end=NOW)).user == "alice"


def test_a_claim_that_waits_until_its_certificate_expires_is_refused():
    times = iter((NOW + DAY + 0.5,))

    async def pool():
        return Users([ALICE])

    late = X509Door(users=pool, session=str, now=lambda: next(times))
    with pytest.raises(CredentialError, match="expired"):
        result_of(late.claim(sent(escaped(ALICES))).prove())


def test_a_user_whose_name_cannot_stand_in_a_session_is_refused():
    def session(name):
        raise AuthenticationError("no such session")

    assert "his name cannot stand in a session string" in refusal(ALICES, session=session)


def test_an_oned_that_is_down_is_no_wrong_certificate():
    async def pool():
        raise OnedError("oned is down")

    claim = X509Door(users=pool, session=str, now=lambda: NOW).claim(sent(escaped(ALICES)))
    with pytest.raises(OnedError):
        result_of(claim.prove())


@pytest.mark.parametrize(
    "value",
    [
        pem(ALICES) + pem(ALICES),
        quote(pem(ALICES) + pem(certificate(onelab("bob")))),
        pem(ALICES + ALICES),
        pem(ALICES[:-1]),
        pem(ALICES + b"\x00"),
        pem(b"\x30\x00"),
        pem(KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)),
        pem(ALICES).replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
        pem(ALICES).replace("-----END CERTIFICATE-----", ""),
        "x" + pem(ALICES),
        pem(ALICES) + "x",
        escaped(ALICES).replace("%0A", "%FF"),
        escaped(ALICES).replace("%0A", "%00"),
        escaped(escaped(ALICES).encode()),
        "-----BEGIN CERTIFICATE----- -----END CERTIFICATE-----",
        "%",
        "alice",
        "ä",
        b"\xff\xfe",
    ],
)
def test_what_is_not_one_certificate_is_refused_without_being_repeated(value):
    reason = unreadable(value)
    assert "MII" not in reason
    assert "alice" not in reason


def test_an_oversized_certificate_is_refused():
    assert "longer" in unreadable(pem(certificate(name(*((CN, "alice" * 100) for _ in range(40))))))


def test_two_headers_that_differ_are_refused():
    bobs = escaped(certificate(name((DC, "org"), (DC, "example"), (CN, "bob"))))
    for headers in (
        {"X-SSL-Client-Cert": [escaped(ALICES), bobs]},
        {"X-SSL-Client-Cert": [escaped(ALICES)], "SSL_CLIENT_CERT": [bobs]},
    ):
        with pytest.raises(CredentialError):
            door().claim(HttpRequest(b"POST", b"/RPC2", Headers(headers), b"", "192.0.2.7", trusted=True))


# Names.


def test_spaces_in_a_name_are_left_out_or_escaped_in_the_account():
    der = certificate(onelab("alice smith", organization="one  lab"))
    assert identity(der, user("alice", "/C=XX/O=onelab/CN=alicesmith")).user == "alice"
    assert identity(der, user("alice", r"/C=XX/O=one\20\20lab/CN=alice\20smith")).user == "alice"


@pytest.mark.parametrize(
    "stored",
    [
        r"/C=XX/O=one\20lab/CN=alicesmith",
        "/C=XX/O=one lab/CN=alice smith",
        "/c=xx/o=onelab/cn=alicesmith",
        "/C=XX/O=onelab/CN=alicesmit",
        "/O=onelab/CN=alicesmith",
        "/C=XX/O=onelab/CN=alicesmith/",
        "CN=alicesmith,O=onelab,C=XX",
        "",
    ],
)
def test_a_name_that_is_only_similar_is_another_one(stored):
    assert refusal(certificate(onelab("alice smith", organization="one lab")), user("alice", stored))


def test_of_two_users_the_one_with_the_exact_name_is_meant():
    der = certificate(onelab("alice smith"))
    exact, other = user("exact", r"/C=XX/O=onelab/CN=alice\20smith"), user("other", "/C=XX/O=onelab/CN=alicesmith")
    assert identity(der, other, exact).user == "exact"
    assert identity(certificate(onelab("alicesmith")), other, exact).user == "other"


def test_a_certificate_without_a_name_is_nobodys():
    assert "empty" in unreadable(escaped(certificate(name())))


@pytest.mark.parametrize(
    "forged",
    [
        name((C, "XX"), (O, "onelab/CN=alice")),
        name((C, "XX/O=onelab/CN=alice")),
        name((C, "XX"), [(O, "onelab"), (CN, "alice")]),
        name((C, "XX"), (O, "onelab"), (CN, "alice\0.example.org")),
        name((C, "XX"), (O, "onelab"), (CN, BMP, "alice".encode("utf-16-be"))),
        name((C, "XX"), (O, "onelab"), (OU, "alice")),
        name((C, "XX"), (O, "onelab"), (CN, "alice|/C=XX/O=onelab/CN=alice")),
    ],
)
def test_a_name_that_is_written_to_look_like_anothers_is_not_his(forged):
    assert refusal(certificate(forged))


@pytest.mark.parametrize("value", [r"alice\20smith", r"alice\xC3\xA4", "x\\"])
def test_a_name_with_a_backslash_is_refused_as_it_looks_like_an_escaped_one(value):
    assert "backslash" in unreadable(escaped(certificate(onelab(value))))


def test_what_is_no_text_is_no_name():
    assert unreadable(escaped(certificate(name((CN, 2, b"\x01")))))


# Proxy certificates: a user's own, for a while; the name in them is his and one more CN.


ALICES_PARTS = ((C, PRINTABLE, "XX"), (O, "onelab"), (CN, "alice"))
PROXYS_NAME = onelab("alice", "1234567")


def proxy(*extensions, subject=PROXYS_NAME, issuer=None):
    return certificate(subject, issuer or onelab("alice"), extensions=extensions)


@pytest.mark.parametrize("path_length", [b"", tlv(2, b"\x00"), tlv(2, b"\x05")])
def test_a_proxy_certificate_stands_for_the_user_who_made_it(path_length):
    assert identity(proxy(proxy_cert_info(path_length=path_length))).user == "alice"


def test_a_legacy_proxy_certificate_does_too():
    assert identity(proxy(subject=onelab("alice", "proxy"))).user == "alice"


def test_a_user_with_the_name_in_the_proxy_certificate_is_preferred():
    robot = user("robot", "/C=XX/O=onelab/CN=alice/CN=1234567")
    assert identity(proxy(proxy_cert_info()), ALICE, robot).user == "robot"


def test_a_certificate_of_a_ca_is_not_the_user_who_has_the_cas_name():
    """OpenNebula's own servers would let in anybody with a certificate of this CA."""
    authority = user("authority", "/C=XX/O=onelab/CN=CA")
    assert "no user" in refusal(certificate(onelab("mallory"), onelab("CA")), authority)
    assert "no user" in refusal(certificate(onelab("CA", "mallory"), onelab("CA")), authority)


@pytest.mark.parametrize(
    "der",
    [
        proxy(),
        proxy(subject=onelab("alice", "limited proxy")),
        proxy(proxy_cert_info(INDEPENDENT)),
        proxy(proxy_cert_info("1.3.6.1.4.1.3536.1.1.1.9")),
        proxy(proxy_cert_info(critical=False)),
        proxy(proxy_cert_info(INDEPENDENT), subject=onelab("alice", "proxy")),
        proxy(proxy_cert_info(), subject=onelab("mallory", "1234567")),
        proxy(proxy_cert_info(), subject=onelab("mallory")),
        proxy(proxy_cert_info(), subject=onelab("alice", "1", "2")),
        proxy(proxy_cert_info(), subject=name(*ALICES_PARTS, (OU, "1"))),
        proxy(proxy_cert_info(), subject=name(*ALICES_PARTS, [(CN, "1"), (O, "2")])),
        proxy(proxy_cert_info(), subject=name((CN, "1")), issuer=name()),
    ],
)  # fmt: skip
def test_what_does_not_pass_on_all_rights_of_the_issuer_is_not_taken_for_him(der):
    assert "no user" in refusal(der)


@pytest.mark.parametrize("content", [b"", b"\x30", tlv(0x30), tlv(0x30, tlv(0x30)), tlv(0x30, tlv(2, b"\x00"))])
def test_a_broken_proxy_certificate_is_refused(content):
    assert unreadable(escaped(proxy(extension("1.3.6.1.5.5.7.1.14", content))))


def test_a_certificate_with_the_same_extension_twice_is_refused():
    assert unreadable(escaped(proxy(proxy_cert_info(), proxy_cert_info())))


@pytest.mark.parametrize(
    "der", [b"\x30", b"\x30\x01", b"\x30\x81", b"\x30\x82\x01", b"\x3f\x81\x01\x00", b"\x30\x00\x30"]
)
def test_der_that_ends_too_early_is_none(der):
    with pytest.raises(ValueError, match="no DER"):
        list(elements(der))


# What OpenSSL, and Ruby with it, make of names.


RUBY = r"""
$stdout.sync = true
while (line = gets)
  begin
    name = OpenSSL::X509::Name.new([line.chomp].pack("H*")).to_s
    forms = [name, name.gsub(/\s/) { |space| format("\\%x", space.ord) }, name.delete("\s")]
    puts forms.map { |form| form.unpack1("H*") }.join(" ")
  rescue OpenSSL::X509::NameError
    puts
  end
end
"""


@contextmanager
def _ruby():
    with subprocess.Popen(
        (program("ruby"), "-ropenssl", "-e", RUBY), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def forms_of(der):
            process.stdin.write(der.hex() + "\n")
            process.stdin.flush()
            return [bytes.fromhex(form).decode() for form in process.stdout.readline().split()]

        try:
            yield forms_of
        finally:
            process.stdin.close()


@pytest.fixture(scope="module")
def ruby():
    """Return what writes a name, given in DER, as Ruby does, as OpenNebula stores it, and as it stored it once."""
    with _ruby() as forms_of:
        yield forms_of


def ours(der):
    ((_, content),) = elements(der)
    return DistinguishedName.from_der(content)


NAMES = [
    onelab("alice"),
    onelab("alice smith", organization=" one  lab "),
    name((C, PRINTABLE, "XX"), (O, "Universität Zürich"), (CN, "Zoë 東京 😀")),
    name((DC, IA5, "org"), (DC, IA5, "example"), (UID, "alice"), (EMAIL, IA5, "alice@example.org")),
    name((C, "XX"), [(O, "onelab"), (CN, "alice"), (UID, "a")], (OU, "x")),
    name((CN, "host/www.example.org"), (O, "a+b=c, d;e<f>\"g'#h")),
    name((CN, "a\tb\nc\rd\0e\x1f\x7f")),
    name((CN, T61, b"J\xfcrgen"), (O, T61, b"plain")),
    name((CN, BMP, "Jürgen".encode("utf-16-be")), (O, UNIVERSAL, "Zoë".encode("utf-32-be"))),
    name((CN, 18, "12 34")),
    name(("1.2.3.4.5.6.7", "unknown"), ("2.999.1", "x"), ("1.3.6.1.4.1.99999999999.1", "y")),
    name(("2.5.4.5", PRINTABLE, "17"), ("2.5.4.42", "Alice"), ("2.5.4.4", "Smith"), ("2.5.4.12", "Dr.")),
    name((CN, "")),
    name((CN, "|"), (CN, "~!@$%^&*()`[]{}:?.,")),
]


@pytest.mark.parametrize("der", NAMES, ids=range(len(NAMES)))
def test_a_name_is_written_as_ruby_and_opennebula_write_it(ruby, der):
    assert ruby(der) == [str(ours(der)), *ours(der).stored()]


def test_a_name_with_a_backslash_is_written_so_too(ruby):
    der = name((CN, "a\\b"), (O, "\\"))
    assert ruby(der)[0] == str(ours(der)) == r"/CN=a\b/O=\ ".rstrip()


_STRING = st.one_of(
    st.tuples(st.just(UTF8), st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(str.encode)),
    st.tuples(st.sampled_from((PRINTABLE, IA5, T61, 18)), st.binary(max_size=20)),
    st.tuples(st.just(BMP), st.binary(max_size=20)),
    st.tuples(st.just(UNIVERSAL), st.binary(max_size=20)),
)
_TYPE = st.one_of(
    st.sampled_from((C, O, OU, CN, DC, UID, EMAIL, "2.5.4.5", "2.5.4.97", "1.2.643.3.131.1.1")),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=5).map(lambda numbers: ".".join(map(str, (1, 39, *numbers)))),
)
_ATTRIBUTE = st.tuples(_TYPE, _STRING).map(lambda pair: (pair[0], *pair[1]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(_ATTRIBUTE, st.lists(_ATTRIBUTE, min_size=2, max_size=3)), min_size=1, max_size=5))
def test_any_name_is_written_as_ruby_writes_it(ruby, parts):
    der = name(*parts)
    forms = ruby(der)
    assume(forms)
    assert str(ours(der)) == forms[0]
    try:
        stored = ours(der).stored()
    except CredentialError:
        return
    assert list(stored) == forms[1:]


def test_every_type_of_x520_and_rfc_4524_has_the_name_that_openssl_gives_it(ruby):
    numbers = [f"2.5.4.{number}" for number in range(1, 120) if number not in (35, 36, 37, 38, 39, 40, 45, 47, 52, 53)]
    numbers += [f"0.9.2342.19200300.100.1.{number}" for number in (*range(1, 7), *range(8, 23), 25, *range(37, 47), 48)]
    numbers += [f"1.2.840.113549.1.9.{number}" for number in (1, 2, 8, 20)]
    numbers += ["1.3.6.1.4.1.311.20.2.3", *(f"1.3.6.1.4.1.311.60.2.1.{number}" for number in (1, 2, 3))]
    numbers += ["1.2.643.3.131.1.1", "1.2.643.100.1", "1.2.643.100.3", "1.2.643.100.5"]
    der = name(*((number, "x") for number in numbers))
    assert str(ours(der)).split("/") == ruby(der)[0].split("/")


def openssl(*args, folder, stdin=None):
    command = (program("openssl"), *args)
    done = subprocess.run(command, cwd=folder, input=stdin, capture_output=True, check=True)
    return done.stdout


@pytest.mark.parametrize("der", NAMES[:6], ids=range(6))
def test_a_certificate_gets_the_name_that_openssl_shows(tmp_path, der):
    shown = openssl(
        "x509", "-inform", "DER", "-noout", "-subject", "-nameopt", "compat", folder=tmp_path, stdin=certificate(der)
    )
    account = door().claim(sent(escaped(certificate(der)))).account
    assert shown.decode().rstrip("\n") == f"subject={account}".replace(r"\20", " ")


def test_certificates_and_proxy_certificates_that_openssl_makes_are_taken(tmp_path):
    """OpenSSL itself agrees here that the proxy certificate is one."""
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    subject = "/C=XX/O=one lab/CN=alice"
    openssl("req", "-x509", *new, "-subj", subject, "-keyout", "a.key", "-out", "a.pem", folder=tmp_path)
    openssl("req", *new, "-subj", f"{subject}/CN=7", "-keyout", "p.key", "-out", "p.csr", folder=tmp_path)
    (tmp_path / "ext").write_text("proxyCertInfo=critical,language:id-ppl-inheritAll,pathlen:0\n", encoding="ascii")
    signing = ("-CA", "a.pem", "-CAkey", "a.key", "-set_serial", "7", "-days", "1", "-extfile", "ext")
    openssl("x509", "-req", "-in", "p.csr", *signing, "-out", "p.pem", folder=tmp_path)
    now = datetime.now(timezone.utc).timestamp()
    alice = user("alice", r"/C=XX/O=one\20lab/CN=alice")
    for file in ("a.pem", "p.pem"):
        claim = door(alice, now=now).claim(sent(quote((tmp_path / file).read_text(encoding="ascii"))))
        assert result_of(claim.prove()).user == "alice"


# Whatever is sent.


def _cut(der, at, replacement):
    return der[:at] + replacement + der[at + len(replacement) :]


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(ALICES)), st.binary(min_size=1, max_size=4), st.binary(max_size=100))
@example(0, b"\x30", b"\xff")
def test_any_header_is_read_or_refused(at, replacement, rubbish):
    broken = _cut(proxy(proxy_cert_info()), at, replacement)
    for value in (rubbish, pem(rubbish), escaped(broken), pem(rubbish[:50] + broken), base64.b64encode(broken)):
        with suppress(CredentialError):
            claim = door().claim(sent(value))
            assert claim is None or claim.account.startswith("/")


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=100, deadline=None)
@given(st.lists(_ATTRIBUTE, min_size=1, max_size=4), st.lists(_ATTRIBUTE, max_size=3))
def test_nobody_gets_in_but_who_has_the_name(subject, issuer):
    try:
        found = identity(certificate(name(*subject), name(*issuer)))
    except CredentialError:
        return
    assert str(ours(name(*subject))) in (ALICE_DN, BOB_DN)
    assert found.user in ("alice", "bob")
