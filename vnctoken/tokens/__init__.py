"""What a console token is. Where tokens are kept is the matter of the modules in this package."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Protocol

FINGERPRINT_DIGITS = 8

PROBE_VM_ID = 2**31 - 1
"""The VM of the doctor's probe tokens: the largest id that there can be. oned, which does not know it, is not asked."""


def new_token() -> str:
    """Return a fresh token: 128 random bits as 32 hexadecimal digits, which need no encoding in a URL."""
    return secrets.token_hex(16)


def digest(token: str) -> str:
    """Return the SHA-256 of a token in hexadecimal: what a token is looked up by, and opens nothing."""
    return hashlib.sha256(token.encode()).hexdigest()


def fingerprint(token: str) -> str:
    """Return what a token is called in logs: the first 8 hexadecimal digits of its SHA-256."""
    return digest(token)[:FINGERPRINT_DIGITS]


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token is good for: the console it opens, for whom, and for how long.

    `issued` is in seconds of the epoch, `ttl` in seconds (0: for ever). `user` is "" for a token that somebody else
    wrote, such as Sunstone. A `single_use` token opens one console; `client` is the one address it is for, "" for any.
    `caller` is the address that asked for it, if that is known: no store keeps it.
    """

    vm_id: int
    host: str
    port: int
    issued: float
    ttl: int
    user: str = ""
    single_use: bool = False
    client: str = ""
    caller: str = field(default="", compare=False)

    @property
    def expires(self) -> float:
        """The second of the epoch from which on the token opens nothing; 0 for never."""
        return self.issued + self.ttl if self.ttl else 0

    @property
    def restricted(self) -> bool:
        """Whether only the resolver can keep the promise; what reads a store by itself must not find the token."""
        return self.single_use or bool(self.client)


@dataclass(frozen=True, slots=True)
class LiveToken:
    """A token that opens a console now, without the token itself.

    `used` is the second of the epoch of its first use that the resolver saw, 0 for none.
    """

    digest: str
    grant: Grant
    used: float = 0

    @property
    def fingerprint(self) -> str:
        """What the token is called in logs."""
        return self.digest[:FINGERPRINT_DIGITS]


class TokenStore(Protocol):
    """Where tokens are kept, for the websocket proxy and for us.

    Everything raises TokenStoreError if the store cannot be used now; nothing waits for it without a deadline.
    """

    revocable: bool
    """Whether tokens can be listed, counted and taken back. Where not, they live until they expire: `revoke` and `live`
    raise ActionError, a `restricted` grant is refused with it, and `holders` and `targets` know nothing."""

    def prepare(self) -> list[str]:
        """Look whether the store can be used, and make what it needs; return warnings. Raises ConfigError."""

    def start(self) -> None:
        """Watch over the tokens from now on, until `close`. Raises ConfigError."""

    async def check(self) -> None:
        """Look whether a token could be written now, and leave no trace. Raises TokenStoreError."""

    async def issue(self, grant: Grant) -> str:
        """Return a new token for a grant, which the proxy accepts from now on; the VM's other tokens live on.

        Of those that we issued for the VM only the newest `tokens_per_vm` are kept. Raises ActionError if a proxy
        cannot read such a target from this store.
        """

    async def live(self, vm_id: int) -> list[LiveToken]:
        """Return a VM's tokens that open its console now, the oldest first."""

    async def revoke(self, vm_id: int, digests: frozenset[str] | None = None) -> int:
        """Take back a VM's tokens, all or those with a digest; return how many."""

    async def find(self, token: str) -> LiveToken | None:
        """Return what a token opens, None if it opens nothing (or no longer)."""

    async def use(self, token: str, reuse_window: float) -> LiveToken | None:
        """Return what a token opens, and take note that it was used.

        None if it opens nothing, or is for a single use and was first used `reuse_window` or more seconds ago. Of two
        at the same time, one is the first.
        """

    async def holders(self, host: str, port: int) -> frozenset[int]:
        """Return the VMs with tokens that lead to a host and port."""

    async def targets(self) -> dict[int, frozenset[tuple[str, int]]]:
        """Return every VM with live tokens, and the hosts and ports that these lead to."""

    async def close(self) -> None:
        """Let go of connections and timers. The tokens stay."""
