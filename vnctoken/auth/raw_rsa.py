"""RSA with the private key over a text instead of a digest: what Ruby's OpenSSL calls `private_encrypt`."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import utils
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPrivateNumbers

_FRAME_BYTES = 11


def room(key: RSAPrivateKey) -> int:
    """Return how many bytes of text a key takes."""
    return _size(key.key_size) - _FRAME_BYTES


def private_encrypt(key: RSAPrivateKey, text: bytes) -> bytes:
    """Return a text of at most `room` bytes in a PKCS #1 block of type 1, encrypted with a private key."""
    # cryptography has it since 47, and does it 30 times as fast.
    if hasattr(utils, "NoDigestInfo"):
        return key.sign(text, PKCS1v15(), utils.NoDigestInfo())
    return private_encrypt_without_openssl(key.private_numbers(), text)


def private_encrypt_without_openssl(key: RSAPrivateNumbers, text: bytes) -> bytes:
    """Return what `private_encrypt` does. Raises ArithmeticError if the parts of the key do not fit each other.

    The exponentiation is of a random number that depends on the text no more (blinding), so how long it takes tells
    nothing; and nothing leaves here that would not be the text again, as from half of a wrong result the key can be
    computed.
    """
    modulus, exponent = key.public_numbers.n, key.public_numbers.e
    size = _size(modulus.bit_length())
    block = int.from_bytes(b"\x00\x01" + b"\xff" * (size - len(text) - 3) + b"\x00" + text, "big")
    blind = secrets.randbelow(modulus - 2) + 2
    blinded = block * pow(blind, exponent, modulus) % modulus
    modulo_p, modulo_q = pow(blinded, key.dmp1, key.p), pow(blinded, key.dmq1, key.q)
    whole = modulo_q + key.q * (key.iqmp * (modulo_p - modulo_q) % key.p)
    result = whole * pow(blind, -1, modulus) % modulus
    if pow(result, exponent, modulus) != block:
        raise ArithmeticError("the parts of an RSA key do not fit each other")
    return result.to_bytes(size, "big")


def _size(bits: int) -> int:
    return (bits + 7) // 8
