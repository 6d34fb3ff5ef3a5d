"""How oned reads the login of a server that has a certificate: the auth driver ``server_x509``.

After OpenNebula's src/authm_mad/remotes/server_x509/server_x509_auth.rb and x509/x509_auth.rb.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt

_FROM = dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc)
_UNTIL = dt.datetime(2100, 1, 1, tzinfo=dt.timezone.utc)
_KEY_BITS = 2048


def plaintext(token: str, certificate: bytes) -> str:
    """Return what a token says, ``user:target:expires``; "" if the certificate's (PEM) private key did not sign it.

    The text is padded as PKCS #1 pads a signature, but is not hashed, so that whoever has the public key can read it.
    A token is the base64 of the base64 of the result. Whether the certificate has expired is not asked.
    """
    # An extra: not everybody who wants an oned has it.
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey  # noqa: PLC0415
    from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415

    key = load_pem_x509_certificate(certificate).public_key()
    if not isinstance(key, RSAPublicKey):
        return ""
    try:
        signed = base64.b64decode(base64.b64decode(token, validate=True), validate=True)
        return key.recover_data_from_signature(signed, PKCS1v15(), None).decode()
    except (binascii.Error, InvalidSignature, ValueError):
        return ""


def subject(certificate: bytes) -> str:
    """Return the subject of a certificate (PEM) as a server user's PASSWORD has it: a space is a backslash and 20."""
    from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415 (an extra)

    attributes = load_pem_x509_certificate(certificate).subject
    text = "".join(f"/{attribute.rfc4514_attribute_name}={attribute.value!s}" for attribute in attributes)
    return text.replace(" ", "\\20")


def new_certificate(common_name: str = "serverx509") -> tuple[bytes, bytes]:
    """Make a pair of keys, and return the certificate, ``/C=XX/O=onelab/CN=...``, and the private key, both in PEM."""
    from cryptography import x509  # noqa: PLC0415 (an extra)
    from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: PLC0415
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        Encoding,
        NoEncryption,
        PrivateFormat,
    )
    from cryptography.x509.oid import NameOID  # noqa: PLC0415

    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
    whose = {NameOID.COUNTRY_NAME: "XX", NameOID.ORGANIZATION_NAME: "onelab", NameOID.COMMON_NAME: common_name}
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in whose.items()])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), _FROM, _UNTIL)
    certificate = builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
    return certificate, key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
