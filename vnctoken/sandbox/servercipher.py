"""How oned reads a server's login, such as Sunstone's: the auth driver ``server_cipher``."""

from __future__ import annotations

import base64
import binascii
import hashlib


def plaintext(token: str, password: str) -> str:
    """Return what a token says, ``user:target:expires``; "" if it was not made with this password.

    A token is the base64 of that text, encrypted by AES-256-CBC. Key and initialization vector are the first 32 and 16
    digits of the password's SHA-256.
    """
    # An extra: not everybody who wants an oned has it.
    from cryptography.hazmat.primitives import padding  # noqa: PLC0415
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: PLC0415

    secret = hashlib.sha256(password.encode()).hexdigest().encode()
    decryptor = Cipher(algorithms.AES(secret[:32]), modes.CBC(secret[:16])).decryptor()
    unpadder = padding.PKCS7(algorithms.AES.block_size).unpadder()
    try:
        padded = decryptor.update(base64.b64decode(token, validate=True)) + decryptor.finalize()
        return (unpadder.update(padded) + unpadder.finalize()).decode()
    except (binascii.Error, ValueError):
        return ""
