"""The service's login by a private key: the session strings that OpenNebula's server_x509 driver accepts."""

from __future__ import annotations

import datetime as dt
import os
import secrets
import subprocess
from dataclasses import dataclass

import pytest
from conftest import program
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from vnctoken.auth.raw_rsa import private_encrypt, private_encrypt_without_openssl, room
from vnctoken.errors import AuthenticationError, ConfigError
from vnctoken.login import ServerLogin

AT = 1_799_998_200
END = AT + 1800


@dataclass(frozen=True)
class Pair:
    key: object
    certificate: x509.Certificate

    def key_pem(self, passphrase=None, style=PrivateFormat.PKCS8):
        encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
        return self.key.private_bytes(Encoding.PEM, style, encryption)

    def certificate_pem(self):
        return self.certificate.public_bytes(Encoding.PEM)


def pair(key, *, until=AT + 86_400):
    """Return a key and a certificate to it, signed by itself."""
    name = x509.Name.from_rfc4514_string("CN=serverx509,O=lab,C=XX")
    end = dt.datetime.fromtimestamp(until, tz=dt.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(end - dt.timedelta(days=365)).not_valid_after(end)
    return Pair(key, builder.sign(key, hashes.SHA256()))


@pytest.fixture(scope="module")
def ours():
    return pair(rsa.generate_private_key(65537, 2048))


@pytest.fixture(scope="module")
def others():
    return pair(rsa.generate_private_key(65537, 1024))


@pytest.fixture
def clock():
    clock = Clock()
    clock.advance(AT)
    return clock


CONF = "# who\n:srv_user: serverx509\n:one_cert: {folder}/cert.pem\n:one_key: {folder}/key.pem\n"


@pytest.fixture
def etc(tmp_path, ours):
    """Return OpenNebula's configuration folder with a login in it."""
    auth = tmp_path / "auth"
    auth.mkdir()
    (auth / "cert.pem").write_bytes(ours.certificate_pem())
    (auth / "key.pem").write_bytes(ours.key_pem())
    (auth / "server_x509_auth.conf").write_text(CONF.format(folder=auth), encoding="utf-8")
    return tmp_path


def load(etc, clock):
    return ServerLogin.load(
        "x509", folder=etc / "var", etc=etc, now=clock.seconds, expire_delta=1800, expire_margin=300
    )


# What oned's driver does with the secret that it is given, and what Ruby makes of the same text with the key.
IN_RUBY = """
require "openssl"
certificate = OpenSSL::X509::Certificate.new(File.read(ARGV[0]))
key = OpenSSL::PKey::RSA.new(File.read(ARGV[1]))
STDIN.each_line(chomp: true) do |session|
  user, target, secret = session.split(":")
  text = certificate.public_key.public_decrypt(secret.unpack1("m").unpack1("m"))
  made = [[key.private_encrypt(text)].pack("m0")].pack("m0")
  puts [text, "#{user}:#{target}:#{made}" == session].join(" ")
end
"""


def in_ruby(etc, *sessions):
    """Return what Ruby's OpenSSL finds in session strings, and whether it makes the same."""
    command = (program("ruby"), "-e", IN_RUBY, etc / "auth" / "cert.pem", etc / "auth" / "key.pem")
    done = subprocess.run(command, input="\n".join(sessions), capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def test_session_strings_are_those_that_ruby_makes_and_reads(etc, clock):
    login = load(etc, clock)
    targets = ("alice", "user@example.org", "Zoë", "x" * 200)
    sessions = [login.session(), *map(login.session, targets)]
    assert in_ruby(etc, *sessions) == [f"serverx509:{name}:{END} true" for name in ("serverx509", *targets)]


def test_ruby_reads_what_is_made_by_a_small_or_odd_key_too(etc, clock):
    odd = pair(rsa.generate_private_key(3, 1031))
    (etc / "auth" / "cert.pem").write_bytes(odd.certificate_pem())
    (etc / "auth" / "key.pem").write_bytes(odd.key_pem(style=PrivateFormat.TraditionalOpenSSL))
    assert in_ruby(etc, load(etc, clock).session("alice")) == [f"serverx509:alice:{END} true"]


def test_a_session_string_is_one_line_of_three_parts_and_the_same_until_it_is_renewed(etc, clock):
    login = load(etc, clock)
    session = login.session("alice")
    assert session.split(":")[:2] == ["serverx509", "alice"]
    assert len(session.split(":")) == 3
    assert session.isprintable()
    assert " " not in session
    clock.advance(1500)
    assert login.session("alice") == session
    clock.advance(1)
    assert login.session("alice") != session


def test_without_the_file_there_is_no_login_and_ciphers_files_do_not_stand_in(tmp_path, clock):
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "sunstone_auth").write_text("serveradmin:password", encoding="utf-8")
    assert load(tmp_path, clock) is None


@pytest.mark.parametrize("colon", [":", ""])
def test_keys_may_have_their_colon_or_not(etc, clock, colon):
    auth = etc / "auth"
    lines = [f"{colon}srv_user: vncadmin", f"{colon}one_cert: '{auth}/cert.pem'", f"{colon}one_key: {auth}/key.pem"]
    (auth / "server_x509_auth.conf").write_text("\n".join(lines), encoding="utf-8")
    assert load(etc, clock).session().startswith("vncadmin:vncadmin:")


def test_a_certificate_may_be_the_first_of_a_chain(etc, clock, ours, others):
    (etc / "auth" / "cert.pem").write_bytes(b"chain\n" + ours.certificate_pem() + others.certificate_pem())
    assert in_ruby(etc, load(etc, clock).session()) == [f"serverx509:serverx509:{END} true"]


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\nb", "a\x00b", "a\u2028b", "\ud800"])
def test_a_name_that_would_not_stay_one_never_gets_into_a_session_string(etc, clock, name):
    with pytest.raises(AuthenticationError):
        load(etc, clock).session(name)


def test_a_name_that_is_too_long_for_the_key_is_refused_and_the_longest_is_not(etc, clock):
    login = load(etc, clock)
    longest = "x" * (2048 // 8 - 11 - len(f"serverx509::{END}"))
    assert in_ruby(etc, login.session(longest)) == [f"serverx509:{longest}:{END} true"]
    with pytest.raises(AuthenticationError, match="too long"):
        login.session(longest + "x")


def test_changed_files_count_at_once(etc, clock, others):
    login = load(etc, clock)
    before = login.session("alice")
    conf = etc / "auth" / "server_x509_auth.conf"
    conf.write_text(conf.read_text(encoding="utf-8").replace("serverx509", "vncadmin"), encoding="utf-8")
    assert in_ruby(etc, login.session("alice")) == [f"vncadmin:alice:{END} true"]
    conf.write_text(conf.read_text(encoding="utf-8").replace("vncadmin", "serverx509"), encoding="utf-8")
    assert login.session("alice") == before
    (etc / "auth" / "cert.pem").write_bytes(others.certificate_pem())
    (etc / "auth" / "key.pem").write_bytes(others.key_pem())
    assert in_ruby(etc, login.session("alice")) == [f"serverx509:alice:{END} true"]


def test_half_of_a_change_is_logged_once_and_the_last_login_is_used_on(etc, clock, others):
    login = load(etc, clock)
    before = login.session("alice")
    (etc / "auth" / "key.pem").write_bytes(others.key_pem())
    with capturedLogs() as events:
        assert {login.session("alice") for _ in range(3)} == {before}
    assert len(events) == 1
    assert "key.pem: does not fit the certificate" in events[0]["reason"]
    (etc / "auth" / "cert.pem").write_bytes(others.certificate_pem())
    with capturedLogs() as events:
        assert login.session("alice") != before
    assert events == []


def test_a_login_that_becomes_too_old_while_the_service_runs_is_oneds_to_judge(etc, clock):
    login = load(etc, clock)
    clock.advance(2 * 86_400)
    assert in_ruby(etc, login.session("alice")) == [f"serverx509:alice:{AT + 2 * 86_400 + 1800} true"]


SECRET = "s3cret-in-a-file"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", ":srv_user: is missing"),
        ("# :srv_user: x509_server\n#:one_cert: /etc/one/auth/cert.pem\n", ":srv_user: is missing"),
        (f"- {SECRET}", "holds no settings"),
        (f"{SECRET}", "holds no settings"),
        (f":srv_user: {{{SECRET}", "is not YAML"),
        (f":srv_user: !!python/object:{SECRET} x", "is not YAML"),
        (b":srv_user: \xff", "is not YAML"),
        (":srv_user: 2024-99-99", "is not YAML"),
        (":srv_user: ''", ":srv_user: is no user name"),
        (f":srv_user: a {SECRET}", ":srv_user: is no user name"),
        (f":srv_user: 'a:{SECRET}'", ":srv_user: is no user name"),
        (':srv_user: "a\\nb"', ":srv_user: is no user name"),
        (":srv_user: 7", ":srv_user: is no text"),
        (":srv_user: a\n", ":one_cert: is missing"),
        (":srv_user: a\n:one_cert: /c\n", ":one_key: is missing"),
        (":srv_user: a\n:one_cert: /c\n:one_key: [/k]\n", ":one_key: is no text"),
        (":srv_user: a\n:one_cert: cert.pem\n:one_key: /k\n", ":one_cert: is not the absolute path of a file"),
        (f":srv_user: a\n:one_cert: /c\n:one_key: {SECRET}\n", ":one_key: is not the absolute path of a file"),
        (f':srv_user: a\n:one_cert: /c\n:one_key: "/\\0{SECRET}"\n', ":one_key: is not the absolute path of a file"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_in_words(etc, clock, content, problem):
    path = etc / "auth" / "server_x509_auth.conf"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as refused:
        load(etc, clock)
    assert str(refused.value).startswith(f"{path}: {problem}")
    assert "the lines ':srv_user: NAME', ':one_cert: /PATH' and ':one_key: /PATH' are expected" in str(refused.value)
    assert SECRET not in str(refused.value)


def refusal(etc, clock):
    with pytest.raises(ConfigError) as refused:
        load(etc, clock)
    return str(refused.value)


def test_keys_that_cannot_be_used_are_refused_in_words(etc, clock, ours, others):
    path = etc / "auth" / "key.pem"
    curve, edwards = (
        Pair(ec.generate_private_key(ec.SECP256R1()), None),
        Pair(ed25519.Ed25519PrivateKey.generate(), None),
    )
    legacy = ours.key_pem(SECRET.encode(), PrivateFormat.TraditionalOpenSSL)
    for content, problem in [
        (others.key_pem(), f"does not fit the certificate {etc}/auth/cert.pem"),
        (ours.key_pem(SECRET.encode()), "is encrypted"),
        (legacy, "is encrypted"),
        (curve.key_pem(), "holds a key that is not RSA"),
        (edwards.key_pem(), "holds a key that is not RSA"),
        (ours.certificate_pem(), "holds no private key in PEM"),
        (ours.key_pem()[:-400], "holds no private key in PEM"),
        (b"", "holds no private key in PEM"),
        (b"\xff\x00" * 100, "holds no private key in PEM"),
        (b"x" * 70_000, "is longer than 65536 bytes"),
    ]:
        path.write_bytes(content)
        text = refusal(etc, clock)
        assert text.startswith(f"{path}: {problem}; the RSA key to the certificate is expected (:one_key:)")
        assert SECRET not in text


def test_certificates_that_cannot_be_used_are_refused_in_words(etc, clock, ours):
    path = etc / "auth" / "cert.pem"
    for content, problem in [
        (pair(ours.key, until=AT - 1).certificate_pem(), "has expired"),
        (ours.key_pem(), "holds no certificate in PEM"),
        (ours.certificate_pem()[:-100], "holds no certificate in PEM"),
        (b"", "holds no certificate in PEM"),
        (b"\xff\x00" * 100, "holds no certificate in PEM"),
    ]:
        path.write_bytes(content)
        assert refusal(etc, clock).startswith(f"{path}: {problem}; a certificate in PEM is expected (:one_cert:)")
    path.write_bytes(pair(ec.generate_private_key(ec.SECP256R1())).certificate_pem())
    assert refusal(etc, clock).startswith(f"{etc}/auth/key.pem: does not fit the certificate {path}; ")


@pytest.mark.parametrize("name", ["cert.pem", "key.pem", "server_x509_auth.conf"])
def test_what_is_no_readable_file_is_refused_and_named(etc, clock, name):
    path = etc / "auth" / name
    path.unlink()
    path.mkdir()
    assert refusal(etc, clock).startswith(f"{path}: is not a regular file; ")
    path.rmdir()
    os.mkfifo(path)
    assert refusal(etc, clock).startswith(f"{path}: is not a regular file; ")
    path.unlink()
    path.symlink_to(etc / "gone")
    assert refusal(etc, clock).startswith(f"{path}: cannot be read (No such file or directory); ")


def test_the_key_is_in_no_representation(etc, clock):
    login = load(etc, clock)
    assert repr(login) == f"<ServerLogin by <ServerX509 of 'serverx509' in {etc}/auth/server_x509_auth.conf>>"


@pytest.fixture(scope="module", params=[1024, 1031, 2048])
def key(request):
    return rsa.generate_private_key(65537, request.param)


@pytest.mark.parametrize("way", ["as cryptography is", "without OpenSSL"])
def test_a_text_is_a_block_of_type_1_with_either_version_of_cryptography(key, way):
    numbers = key.public_key().public_numbers()
    size = (key.key_size + 7) // 8
    for length in (0, 1, 37, room(key)):
        text = secrets.token_bytes(length)
        if way == "without OpenSSL":
            made = private_encrypt_without_openssl(key.private_numbers(), text)
        else:
            made = private_encrypt(key, text)
        assert len(made) == size
        block = pow(int.from_bytes(made, "big"), numbers.e, numbers.n).to_bytes(size, "big")
        assert block == b"\x00\x01" + b"\xff" * (size - 3 - length) + b"\x00" + text


def test_of_a_key_that_does_not_fit_itself_nothing_is_made(key):
    numbers = key.private_numbers()
    broken = rsa.RSAPrivateNumbers(
        p=numbers.p,
        q=numbers.q,
        d=numbers.d,
        dmp1=numbers.dmp1 ^ 2,
        dmq1=numbers.dmq1,
        iqmp=numbers.iqmp,
        public_numbers=numbers.public_numbers,
    )
    with pytest.raises(ArithmeticError):
        private_encrypt_without_openssl(broken, b"serverx509:alice:1800000000")
