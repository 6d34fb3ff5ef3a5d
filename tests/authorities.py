"""Authorities that make client certificates, as a cloud's own CA does."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path

XENIA = (("C", "XX"), ("O", "onelab"), ("CN", "xenia"))
"""The subject by which the sandbox's oned knows its user xenia."""

DAY = dt.timedelta(days=1)
_TYPES = {"C": NameOID.COUNTRY_NAME, "O": NameOID.ORGANIZATION_NAME, "CN": NameOID.COMMON_NAME}


@dataclass(frozen=True)
class ClientCertificate:
    """A certificate, and the file that has it and its key."""

    file: Path
    der: bytes


class Authority:
    """A CA, whose certificate is in `file`."""

    def __init__(self, folder, name="clients"):
        self._folder = folder
        self._subject = _name((("O", "onelab"), ("CN", name)))
        self._key = ec.generate_private_key(ec.SECP256R1())
        basic = x509.BasicConstraints(ca=True, path_length=0)
        made = _builder(self._subject, self._subject, self._key, DAY).add_extension(basic, critical=True)
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def issue(self, subject=XENIA, *, expires=DAY, key=None, names=()):
        """Make a certificate; `names` are of hosts, which only make it longer."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        made = _builder(_name(subject), self._subject, key, expires)
        if names:
            made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
        certificate = made.sign(self._key, hashes.SHA256())
        file = self._folder / f"{certificate.serial_number}.pem"
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        file.write_bytes(pem + certificate.public_bytes(Encoding.PEM))
        return ClientCertificate(file, certificate.public_bytes(Encoding.DER))


def _name(parts):
    return x509.Name([x509.NameAttribute(_TYPES[kind], value) for kind, value in parts])


def _builder(subject, issuer, key, expires):
    now = dt.datetime.now(dt.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * DAY)
        .not_valid_after(now + expires)
    )
