"""TLS as a client: certificates are verified, always."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vnctoken.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IOpenSSLClientConnectionCreator


def client_tls(ca_file: str | None, key: str, wanted: str) -> Callable[[str], IOpenSSLClientConnectionCreator]:
    """Return a function that makes the TLS for connections to a host, which verifies that it is this host.

    It trusts the CAs in a PEM file, or the system's without one. `key` is the setting that names the file, `wanted` the
    one that asks for TLS, as a message quotes it. Raises ConfigError if the file cannot be used, or pyOpenSSL is
    missing.
    """
    try:
        from twisted.internet import ssl  # noqa: PLC0415 (OpenSSL is an extra, and 10 MB that plain TCP does not need)
    except ImportError:
        raise ConfigError(f"{wanted}, and TLS needs pyOpenSSL: install vnctoken[tls]") from None
    if ca_file is None:
        roots = ssl.platformTrust()
    else:
        roots = ssl.trustRootFromCertificates(_certificates(Path(ca_file), key, ssl.Certificate))
    return lambda host: ssl.optionsForClientTLS(host, trustRoot=roots)


def _certificates(path: Path, key: str, certificate: Any) -> list[Any]:
    try:
        blocks = re.findall(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", path.read_bytes(), re.DOTALL)
        found = [certificate.loadPEM(block) for block in blocks]
    except Exception as error:  # noqa: BLE001 (OpenSSL.crypto.Error, whose module is an extra, or OSError)
        raise ConfigError(f"{key} is {str(path)!r}, which cannot be read: {error}") from None
    if not found:
        raise ConfigError(f"{key} is {str(path)!r}, but a file with CA certificates in PEM is expected")
    return found
