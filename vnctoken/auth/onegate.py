"""The door `onegate`: a virtual machine itself, by the token in its context.

oned makes the token when it boots a VM with `TOKEN="YES"` in its CONTEXT: AES-256-CBC of `VM id:STIME`, with the first
32 characters of its creator's TOKEN_PASSWORD as the key and an IV of zeros (src/vm/VirtualMachineContext.cc and
src/common/NebulaUtil.cc). OneGate takes it in the same headers.
"""

from __future__ import annotations

import base64
import hmac
import re
from typing import TYPE_CHECKING

import pyone
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from vnctoken.auth import Claim, CredentialError, Identity, acting_for
from vnctoken.errors import NoExistsError
from vnctoken.oned import as_the_service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vnctoken.auth import HttpRequest
    from vnctoken.auth.users import Users
    from vnctoken.oned import Oned
    from vnctoken.vm import VirtualMachine

TOKEN = "X-ONEGATE-TOKEN"  # noqa: S105 (a header's name)
VM_ID = "X-ONEGATE-VMID"

_LAST_VM_ID = 2**31 - 1
_KEY_CHARACTERS = 32
_NOBODYS_KEY = bytes(_KEY_CHARACTERS)
_IV = bytes(16)
# Two numbers of ten digits and a colon fill two blocks at most.
_TOKEN_BYTES = (16, 32)
_MAX_HEADER_CHARACTERS = 64
_DONE = int(pyone.VM_STATE.DONE)


class OneGateDoor:
    """Lets a VM open its own console, as its owner.

    `own_session` returns a session string of the service's own login, with which oned is asked for the VM; `session`
    one for a user.
    """

    name = "onegate"
    needs_tls = False

    def __init__(
        self,
        *,
        oned: Oned,
        users: Callable[[], Awaitable[Users]],
        own_session: Callable[[], str],
        session: Callable[[str], str],
    ) -> None:
        self._oned = oned
        self._users = users
        self._own_session = own_session
        self._session = session

    def claim(self, request: HttpRequest) -> Claim | None:
        """Return the VM's claim in the headers X-ONEGATE-TOKEN and X-ONEGATE-VMID; None if there is neither.

        Raises CredentialError if one of them is missing or cannot be read.
        """
        token, vm_id = request.header(TOKEN), request.header(VM_ID)
        if token is None and vm_id is None:
            return None
        if token is None or vm_id is None:
            raise CredentialError(f"there is only one of the headers {TOKEN} and {VM_ID}")
        number, encrypted = _number(vm_id), _decoded(token)
        return Claim(f"vm {number}", lambda: self._prove(number, encrypted))

    async def _prove(self, vm_id: int, token: bytes) -> Identity:
        vm = await self._vm(vm_id)
        users = await self._users()
        creator = users.by_id(int(vm.created_by)) if vm and _is_number(vm.created_by) else None
        key = creator.token_password[:_KEY_CHARACTERS].encode() if creator else b""
        known = len(key) == _KEY_CHARACTERS
        # As much work for a VM that there is not. The family decrypts; to encrypt leaves no padding to learn from.
        expected = context_token(key if known else _NOBODYS_KEY, vm_id, vm.started if vm else "")
        right = hmac.compare_digest(expected, token)
        if vm is None:
            raise CredentialError("there is no such VM")
        if vm.state == _DONE:
            raise CredentialError("the VM is DONE")
        if creator is None:
            raise CredentialError("the VM's creator is not among the enabled users")
        if not known:
            raise CredentialError("the VM's creator has no TOKEN_PASSWORD of 32 or more characters")
        if not right or not vm.started:
            raise CredentialError("the token is not that of this VM")
        owner = users.by_name(vm.owner)
        if owner is None:
            raise CredentialError("the VM's owner is not among the enabled users")
        return acting_for(owner.name, self._session, vm_id)

    async def _vm(self, vm_id: int) -> VirtualMachine | None:
        with as_the_service():
            try:
                return await self._oned.vm_info(self._own_session(), vm_id)
            except NoExistsError:
                return None


def context_token(key: bytes, vm_id: int, started: str) -> bytes:
    """Return a VM's context token before base64. `key` has 32 bytes, `started` is the VM's STIME."""
    padder = PKCS7(algorithms.AES.block_size).padder()
    padded = padder.update(f"{vm_id}:{started}".encode()) + padder.finalize()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(_IV)).encryptor()
    return encryptor.update(padded) + encryptor.finalize()


def _is_number(text: str) -> bool:
    return re.fullmatch("[0-9]{1,10}", text) is not None


def _number(text: str) -> int:
    if not _is_number(text) or int(text) > _LAST_VM_ID:
        raise CredentialError(f"the header {VM_ID} is no id of a VM")
    return int(text)


def _decoded(text: str) -> bytes:
    problem = f"the header {TOKEN} is not the base64 of a context token"
    if len(text) > _MAX_HEADER_CHARACTERS:
        raise CredentialError(problem)
    try:
        # Some tools break base64 into lines, and then the header.
        token = base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise CredentialError(problem) from None
    if len(token) not in _TOKEN_BYTES:
        raise CredentialError(problem)
    return token
