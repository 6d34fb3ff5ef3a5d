"""Files that operators write: the configuration, and those with the service's own login and keys."""

from __future__ import annotations

import atexit
import base64
import re
import shutil
import tempfile
from pathlib import Path

from conftest import ROOT
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jwcrypto import jwk

from fuzz.target import SECRET, Target, discreet
from vnctoken.auth.server_cipher import ServerCipher
from vnctoken.auth.server_x509 import ServerX509
from vnctoken.config import Config, load
from vnctoken.errors import AuthenticationError, ConfigError
from vnctoken.tokens.keyfile import KeyFile

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


def written(data, name="file"):
    """Return the path of a file that holds data."""
    path = FOLDER / name
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def _nested(data):
    """Whether PyYAML would take very long: the square of the depth. Files are the operator's own, who has no reason."""
    return data.count(b"{") + data.count(b"[") > 100


def _config(data):
    if _nested(data):
        return
    environment = {"ONE_LOCATION": str(FOLDER)}
    try:
        config, warnings = load(environment, str(written(data)))
    except ConfigError as error:
        message = str(error)
        assert message.isprintable()
        # Elsewhere it is what it is; here it may be a password.
        if ":redis_password_file:" in message or re.search(
            rf"//[^\s'\"]*{SECRET}[^\s'\"]*@", data.decode(errors="ignore")
        ):
            assert SECRET not in message
        return
    assert all(warning.isprintable() for warning in warnings)
    again, _ = load(environment, str(written(config.to_yaml().encode())))
    assert again == config


def _cipher(data):
    try:
        login = ServerCipher(written(data))
    except ConfigError as error:
        discreet(error)
        return
    user, _, target = login.session("alice", 1_900_000_000).partition(":")
    assert target.startswith("alice:")
    assert user.isprintable()
    assert SECRET not in repr(login) or SECRET in user


def _x509(data):
    if _nested(data):
        return
    try:
        login = ServerX509(written(data), lambda: 1_790_000_000.0)
    except ConfigError as error:
        discreet(error)
        return
    try:
        login.session("alice", 1_900_000_000)
    except AuthenticationError as error:
        discreet(error)


def _key(data):
    try:
        KeyFile(str(written(data)), jwk.JWK).key()
    except ConfigError as error:
        discreet(error)


_RSA = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
_X509 = f":srv_user: serverx509\n:one_cert: {written(_RSA, 'cert.pem')}\n:one_key: {written(_RSA, 'key.pem')}\n"

SHIPPED = (ROOT / "etc" / "one" / "vnctoken-server.conf").read_bytes()
TARGETS = (
    Target(
        "config",
        _config,
        (
            Config().to_yaml().encode(),
            re.sub(rb"(?m)^#(?=:)", b"", SHIPPED),
            f":redis_password_file: {SECRET}\n:one_xmlrpc: http://alice:{SECRET}@localhost/\n".encode(),
            b":log: {:level: 2, :system: file}\n:debug_level: 3\n:wrong: [x, {y: z}]\n",
            b":host: ::1\n:port: '7'\n:trusted_proxies: [10.0.0.0/8, unix:/run/x]\n:auth: [:ec2, basic]\n",
            b":monitor_listen: unix:/run/m\n:redis_servers: ['[::1]:6379', h:1]\n:calls_total: 3/hour\n",
        ),
        (
            b"yes",
            b"2024-99-99",
            b"!!python/object:os.system",
            b"&a",
            b"*a",
            b"<<",
            b"|",
            b">",
            b"0x7",
            b".inf",
            b"1:2:3",
        ),
    ),
    Target("login-cipher", _cipher, (f"serveradmin:{SECRET}\n".encode(),)),
    Target("login-x509", _x509, (_X509.encode(), _X509.replace("srv_user: ", f"srv_user: {SECRET} ").encode())),
    Target("key", _key, (base64.urlsafe_b64encode(bytes(32)), SECRET.encode())),
)
