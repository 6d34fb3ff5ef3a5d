"""Tokens in Redis, for several front-ends; Redis itself lets them expire.

What websockify's TokenRedis reads is a string, `NAMESPACE:TOKEN` with `host:port` in it. All else is under
`NAMESPACE.`, and is never a string: what no key of TokenRedis' can name it could not read either.

======================  ==========  =================================================================
`NS:TOKEN`              string      `host:port`; not for tokens that only the resolver may answer
`NS.token/SHA-256`      hash        the grant, `used`, and the token if there is the key above
`NS.vm/ID`              sorted set  a VM's tokens by their expiry
`NS.target/HOST:PORT`   sorted set  the tokens that lead there by their expiry
`NS.vms`                sorted set  the VMs that have tokens by their last expiry
======================  ==========  =================================================================

To take a token back one has to know its key, so unlike its other records Redis' hold the token itself.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from vnctoken.errors import ActionError, TokenStoreError
from vnctoken.tokens import Grant, LiveToken, digest, new_token
from vnctoken.tokens.redisconnection import RedisTroubleError
from vnctoken.tokens.redismaster import RedisMaster
from vnctoken.tokens.redisscripts import CHECK, HOLDERS, ISSUE, LIVE, REVOKE, TARGETS, USE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IOpenSSLClientConnectionCreator

    T = TypeVar("T")

VMS_AT_ONCE = 500
"""For how many VMs Redis is asked in one go, as everybody else waits meanwhile."""

_FIELDS = ("vm", "host", "port", "issued", "ttl", "user", "single_use", "client", "used")


class RedisStore:
    """Keeps tokens where websockify's TokenRedis plugin finds them (a TokenStore).

    `servers`, `sentinel`, `db`, `password`, `tls` and `timeout` (seconds, for an operation as a whole) say how to get
    at Redis: see `RedisMaster`. A Redis cluster is none: what belongs together would lie on several servers.
    """

    revocable = True

    def __init__(  # noqa: PLR0913 (what it works with, and each setting by its name)
        self,
        reactor: Any,
        *,
        servers: Sequence[tuple[str, int]],
        sentinel: str | None,
        db: int,
        namespace: str,
        password: str | None,
        tls: Callable[[str], IOpenSSLClientConnectionCreator] | None,
        timeout: float,
        tokens_per_vm: int,
    ) -> None:
        self._redis = RedisMaster(
            reactor, servers=servers, sentinel=sentinel, db=db, password=password, tls=tls, timeout=timeout
        )
        self._namespace = namespace
        self._tokens_per_vm = tokens_per_vm

    def prepare(self) -> list[str]:
        """Warn of nothing: a Redis that is away may come back."""
        return []

    def start(self) -> None:
        """Do nothing: Redis watches over the tokens."""

    async def check(self) -> None:
        """Have the master write something and delete it again: what refuses a token refuses that."""
        await self._run(self._evaluate(CHECK), "No token can be written now.")

    async def issue(self, grant: Grant) -> str:
        """Put a new token for a grant into Redis.

        Raises ActionError for an IPv6 address that TokenRedis would have to read: it splits targets at each colon.
        """
        if ":" in grant.host and not grant.restricted:
            raise ActionError(
                f"The VM's host is '{grant.host}', but an IPv6 address cannot be told to websockify through Redis (its"
                " TokenRedis plugin). Call the host by a name in OpenNebula, or use another :token_store:"
            )
        token = new_token()
        values: tuple[str | float, ...] = (
            *(grant.vm_id, grant.host, grant.port, repr(grant.issued), grant.ttl),
            *(grant.user, int(grant.single_use), grant.client, 0),
        )
        record = chain.from_iterable(zip(_FIELDS, values, strict=True))
        readable = "" if grant.restricted else token
        work = self._evaluate(ISSUE, digest(token), readable, grant.ttl, self._tokens_per_vm, *record)
        await self._run(work, "Cannot create VNC proxy token.")
        return token

    async def live(self, vm_id: int) -> list[LiveToken]:
        """Return a VM's tokens, the oldest first."""
        found = await self._run(self._evaluate(LIVE, vm_id, *_FIELDS))
        return [_live_token(sha, values) for sha, *values in _rows(found, 1 + len(_FIELDS))]

    async def revoke(self, vm_id: int, digests: frozenset[str] | None = None) -> int:
        """Take tokens out of Redis."""
        which = ("all",) if digests is None else ("some", *digests)
        return int(await self._run(self._evaluate(REVOKE, vm_id, *which)))

    async def find(self, token: str) -> LiveToken | None:
        """Look a token up by its digest."""
        sha = digest(token)
        values = await self._run(self._redis.ask("HMGET", f"{self._namespace}.token/{sha}", *_FIELDS))
        return None if values[0] is None else _live_token(sha, values)

    async def use(self, token: str, reuse_window: float) -> LiveToken | None:
        """Look a token up by its digest and note its first use, at Redis' time."""
        sha = digest(token)
        values = await self._run(self._evaluate(USE, sha, reuse_window, *_FIELDS))
        return None if values is None else _live_token(sha, values)

    async def holders(self, host: str, port: int) -> frozenset[int]:
        """Return the VMs in the index of a host and port."""
        return frozenset(map(int, await self._run(self._evaluate(HOLDERS, host, port))))

    async def targets(self) -> dict[int, frozenset[tuple[str, int]]]:
        """Return where the tokens of all VMs lead."""
        found: dict[int, set[tuple[str, int]]] = {}
        for vm_id, host, port in _rows(await self._run(self._all_targets()), 3):
            found.setdefault(int(vm_id), set()).add((host, int(port)))
        return {vm_id: frozenset(targets) for vm_id, targets in found.items()}

    async def close(self) -> None:
        """End the connection, and what is under way."""
        await self._redis.close()

    async def _all_targets(self) -> list[str]:
        vm_ids = await self._redis.ask("ZRANGE", f"{self._namespace}.vms", 0, -1)
        found = []
        for first in range(0, len(vm_ids), VMS_AT_ONCE):
            found += await self._evaluate(TARGETS, *vm_ids[first : first + VMS_AT_ONCE])
        return found

    async def _evaluate(self, script: str, *arguments: str | float) -> Any:
        return await self._redis.ask("EVAL", script, 0, self._namespace, *arguments)

    async def _run(
        self, work: Coroutine[Deferred[Any], Any, T], begin: str = "The tokens cannot be read or changed now."
    ) -> T:
        try:
            return await self._redis.run(work)
        except RedisTroubleError as trouble:
            raise TokenStoreError(f"{begin} {trouble}") from None


def _rows(flat: Sequence[str], width: int) -> Iterator[Sequence[str]]:
    return (flat[at : at + width] for at in range(0, len(flat), width))


def _live_token(sha: str, values: Sequence[str]) -> LiveToken:
    vm_id, host, port, issued, ttl, user, single_use, client, used = values
    grant = Grant(int(vm_id), host, int(port), float(issued), int(ttl), user, single_use == "1", client)
    return LiveToken(sha, grant, float(used))
