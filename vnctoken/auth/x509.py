"""The door `x509`: client certificates that the TLS proxy has verified, matched to users of the driver `x509`."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from cryptography import x509

from vnctoken.auth import Claim, CredentialError, Identity, acting_for
from vnctoken.auth.dn import DistinguishedName, elements, names, oid_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vnctoken.auth import HttpRequest
    from vnctoken.auth.users import Users
    from vnctoken.user import User

_MAX_CHARACTERS = 16_384
# With spaces or tabs for its line ends, as Apache and older nginx send it, or only its base64, as HAProxy and Caddy do.
_PEM = re.compile(
    r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----|([A-Za-z0-9+/=]+)", re.ASCII
)
_PROXY_CERT_INFO = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")
_INHERIT_ALL = "1.3.6.1.5.5.7.21.1"
_LEGACY_PROXY = b"proxy"


@dataclass(frozen=True, slots=True)
class _Certificate:
    """What counts of a certificate. Names are as OpenNebula may have stored them; times are seconds of the epoch."""

    subject: tuple[str, str]
    principal: tuple[str, str] | None
    not_before: float
    not_after: float


class X509Door:
    """Takes users by the names in their certificates, or in the certificate that a proxy certificate was made with.

    `session` returns a session string for a user's name, `now` the seconds of the epoch by the clock.
    """

    name = "x509"
    needs_tls = True

    def __init__(
        self, *, users: Callable[[], Awaitable[Users]], session: Callable[[str], str], now: Callable[[], float]
    ) -> None:
        self._users = users
        self._session = session
        self._now = now

    def claim(self, request: HttpRequest) -> Claim | None:
        """Return the certificate that a trusted proxy passes on, None if it passes on none.

        Raises CredentialError if it cannot be read. The account is the name in it.
        """
        text = request.asserted("X-SSL-Client-Cert", "SSL_CLIENT_CERT")
        if text is None:
            return None
        try:
            certificate = _parsed(_der(text))
        except (ValueError, KeyError, x509.InvalidVersion, x509.DuplicateExtension):
            # The library's own texts may repeat what they are about.
            raise CredentialError("the certificate cannot be read") from None
        return Claim(account=certificate.subject[0], prove=partial(self._prove, certificate))

    async def _prove(self, certificate: _Certificate) -> Identity:
        now = self._now()
        if now < certificate.not_before:
            raise CredentialError("the certificate is not valid yet")
        if now > certificate.not_after:
            raise CredentialError("the certificate has expired")
        users = await self._users()
        user = _named(users, certificate.subject)
        if user is None and certificate.principal is not None:
            user = _named(users, certificate.principal)
        if user is None:
            raise CredentialError("no user of the driver x509 has the name in the certificate")
        return acting_for(user.name, self._session)


def _named(users: Users, stored: tuple[str, str]) -> User | None:
    exact, without_spaces = stored
    return users.by_dn(exact) or users.by_dn(without_spaces)


def _der(text: str) -> bytes:
    if len(text) > _MAX_CHARACTERS:
        raise CredentialError(f"the certificate is longer than {_MAX_CHARACTERS} characters")
    if "%" in text:
        text = unquote_to_bytes(text).decode("ascii")
    if (found := _PEM.fullmatch(text.strip())) is None:
        raise CredentialError("what should be one certificate is none, or several")
    return base64.b64decode("".join((found[1] or found[2]).split()), validate=True)


def _parsed(der: bytes) -> _Certificate:
    certificate = x509.load_der_x509_certificate(der)
    subject, issuer = names(certificate.tbs_certificate_bytes)
    return _Certificate(
        subject=subject.stored(),
        principal=issuer.stored() if _is_proxy(certificate, subject, issuer) else None,
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
    )


def _is_proxy(certificate: x509.Certificate, subject: DistinguishedName, issuer: DistinguishedName) -> bool:
    """Whether a user made this certificate to stand for himself (RFC 3820), rather than a CA, for anybody.

    It then is named after him, and passes on all of his rights. Older Globus ones just have the name "proxy".
    """
    common_name = subject.common_name_below(issuer)
    if common_name is None:
        return False
    for extension in certificate.extensions:
        if extension.oid == _PROXY_CERT_INFO:
            return extension.critical and _policy_language(extension.value.public_bytes()) == _INHERIT_ALL
    return common_name == _LEGACY_PROXY


def _policy_language(proxy_cert_info: bytes) -> str:
    ((_, content),) = elements(proxy_cert_info)
    *_, (_, policy) = elements(content)
    (_, language), *_ = elements(policy)
    return oid_text(language)
