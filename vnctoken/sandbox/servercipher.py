"""How oned judges a server's login, such as Sunstone's: the auth driver ``server_cipher``."""

from __future__ import annotations

import base64
import binascii
import hashlib


def is_good(token: str, *, server_user: str, password: str, now: float) -> bool:
    """Return whether a token is of this server user and not expired; `now` is in seconds since the epoch.

    A token is the base64 of ``user:target:expires``, encrypted by AES-256-CBC. Key and initialization vector are the
    first 32 and 16 digits of the password's SHA-256. Like oned, this does not look at the target.
    """
    # An extra: not everybody who wants an oned has it.
    from cryptography.hazmat.primitives import padding  # noqa: PLC0415
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: PLC0415

    secret = hashlib.sha256(password.encode()).hexdigest().encode()
    decryptor = Cipher(algorithms.AES(secret[:32]), modes.CBC(secret[:16])).decryptor()
    unpadder = padding.PKCS7(algorithms.AES.block_size).unpadder()
    try:
        padded = decryptor.update(base64.b64decode(token, validate=True)) + decryptor.finalize()
        text = (unpadder.update(padded) + unpadder.finalize()).decode()
    except (binascii.Error, ValueError):
        return False
    user, _, target_and_expiry = text.partition(":")
    expires = target_and_expiry.rpartition(":")[2]
    return user == server_user and expires.isascii() and expires.isdigit() and now < int(expires)
