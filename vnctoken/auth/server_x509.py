"""OpenNebula's `server_x509`: the private key to a certificate that oned knows proves a login.

Which key, and whose, is in `server_x509_auth.conf`, a file of OpenNebula's that its own servers read too.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import Certificate, load_pem_x509_certificate

from vnctoken.auth.raw_rsa import private_encrypt, room
from vnctoken.auth.server_driver import content, is_name, session_string
from vnctoken.errors import AuthenticationError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_REMEMBERED = 1024
"""How many session strings are remembered, of about half a kB each."""

_SETTINGS = (
    "the lines ':srv_user: NAME', ':one_cert: /PATH' and ':one_key: /PATH' are expected, in YAML that the service's"
    " user can read"
)
_CERTIFICATE = "a certificate in PEM is expected (:one_cert:) that is valid now, and that the service's user can read"
_KEY = (
    "the RSA key to the certificate is expected (:one_key:), in PEM, without a passphrase, and such that the service's"
    " user can read it"
)


@dataclass(frozen=True, slots=True)
class _Settings:
    user: str
    certificate: Path
    key: Path


class ServerX509:
    """The server user and the key that a file names; oned knows the user by the DN of the certificate.

    `now` returns the second of the epoch. Raises ConfigError if a file cannot be read or used; it names the file.
    """

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        self._path = path
        # Three small files are read for each session string. What they say is worked out only when they have changed,
        # be it good or bad: an RSA key alone takes tens of milliseconds.
        self._settings_in = lru_cache(maxsize=1)(partial(_settings, path))
        self._sessions_or_problem = lru_cache(maxsize=1)(partial(_sessions_or_problem, now))
        self.refresh()

    def __repr__(self) -> str:
        return f"<ServerX509 of {self._user!r} in {self._path}>"

    def refresh(self) -> None:
        """Read the files again. Raises ConfigError, and goes on with the user and key read last."""
        settings = self._settings_in(content(self._path, _SETTINGS))
        certificate, key = content(settings.certificate, _CERTIFICATE), content(settings.key, _KEY)
        outcome = self._sessions_or_problem(settings, certificate, key)
        if isinstance(outcome, str):
            raise ConfigError(outcome)
        self._session, self._user = outcome, settings.user

    def session(self, target: str | None, expires: int) -> str:
        """Return the session string with which the server user acts as `target` until a second of the epoch.

        None is the server user himself. Raises AuthenticationError for a name that cannot stand in a session string, or
        is too long for the key.
        """
        return self._session(self._user if target is None else target, expires)


def _settings(path: Path, written: bytes) -> _Settings:
    try:
        values = yaml.safe_load(written)
    except Exception:  # noqa: BLE001 (PyYAML's constructors let anything out)
        raise ConfigError(f"{path}: is not YAML; {_SETTINGS}") from None
    # OpenNebula ships the file with comments only.
    if not isinstance(values, dict | None):
        raise ConfigError(f"{path}: holds no settings; {_SETTINGS}")
    named = {str(key).removeprefix(":"): value for key, value in (values or {}).items()}
    user = _setting(path, named, "srv_user")
    if not is_name(user):
        raise ConfigError(
            f"{path}: :srv_user: is no user name, in which no space, colon or control character can be; {_SETTINGS}"
        )
    return _Settings(user, _file(path, named, "one_cert"), _file(path, named, "one_key"))


def _setting(path: Path, values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str):
        raise ConfigError(f"{path}: :{key}: is {'missing' if value is None else 'no text'}; {_SETTINGS}")
    return value


def _file(path: Path, values: Mapping[str, Any], key: str) -> Path:
    named = _setting(path, values, key)
    # What is no path may be the key itself, and is not repeated.
    if not named.startswith("/") or not named.isprintable():
        raise ConfigError(f"{path}: :{key}: is not the absolute path of a file; {_SETTINGS}")
    return Path(named)


def _sessions_or_problem(
    now: Callable[[], float], settings: _Settings, certificate: bytes, key: bytes
) -> Callable[[str, int], str] | str:
    try:
        return _sessions(now, settings, certificate, key)
    except ConfigError as error:
        return str(error)


def _sessions(
    now: Callable[[], float], settings: _Settings, certificate: bytes, key: bytes
) -> Callable[[str, int], str]:
    """Return what makes session strings, and remembers them: for half an hour, all that are made have the same end."""
    loaded = _certificate(settings.certificate, certificate)
    if loaded.not_valid_after_utc.timestamp() < now():
        raise ConfigError(f"{settings.certificate}: has expired; {_CERTIFICATE}")
    private = _private_key(settings.key, key)
    if loaded.public_key() != private.public_key():
        raise ConfigError(f"{settings.key}: does not fit the certificate {settings.certificate}; {_KEY}")
    return lru_cache(maxsize=_REMEMBERED)(partial(_session, settings.user, private))


def _certificate(path: Path, written: bytes) -> Certificate:
    try:
        return load_pem_x509_certificate(written)
    except ValueError:
        raise ConfigError(f"{path}: holds no certificate in PEM; {_CERTIFICATE}") from None


def _private_key(path: Path, written: bytes) -> RSAPrivateKey:
    try:
        key = load_pem_private_key(written, password=None)
    except TypeError:
        problem = "is encrypted"
    except (ValueError, UnsupportedAlgorithm):
        problem = "holds no private key in PEM"
    else:
        if isinstance(key, RSAPrivateKey):
            return key
        problem = "holds a key that is not RSA"
    raise ConfigError(f"{path}: {problem}; {_KEY}")


def _session(user: str, key: RSAPrivateKey, target: str, expires: int) -> str:
    def encrypt(text: bytes) -> bytes:
        if len(text) > room(key):
            raise AuthenticationError("The user's name is too long to be logged in with the server's key")
        # oned's driver wants base64 twice.
        return base64.b64encode(private_encrypt(key, text))

    return session_string(user, target, expires, encrypt)
