"""The token that a guest finds in its context, with which it proves to OneGate which VM it is."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vnctoken.sandbox.guests import Guest


def context_token(guest: Guest) -> str:
    """Return what a guest sends as X-ONEGATE-TOKEN, beside its id as X-ONEGATE-VMID.

    It is the base64 of ``id:STIME``, encrypted by AES-256-CBC, after OpenNebula's src/vm/VirtualMachineContext.cc. The
    key is the first 32 characters of the TOKEN_PASSWORD of who created the VM, or of its owner where nobody is noted,
    and the initialization vector is 16 zeros.
    """
    # An extra: not everybody who wants an oned has it.
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: PLC0415
    from cryptography.hazmat.primitives.padding import PKCS7  # noqa: PLC0415

    key = (guest.created_by or guest.owner).token_password.encode()[:32]
    padder = PKCS7(algorithms.AES.block_size).padder()
    padded = padder.update(f"{guest.id}:{guest.started}".encode()) + padder.finalize()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(bytes(16))).encryptor()
    return base64.b64encode(encryptor.update(padded) + encryptor.finalize()).decode()
