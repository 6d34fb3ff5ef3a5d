"""A connection to one Redis or Sentinel, and what is wrong with it in our own words.

txredisapi speaks the protocol. Connections are made elsewhere, as its own would be made again and again by themselves.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import txredisapi  # type: ignore[import-untyped]
from twisted.internet.defer import CancelledError, Deferred

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.python.failure import Failure

LOCKED = "Redis wants a password (:redis_password_file:)"
NO_PROTOCOL = "What answers at :redis_servers: does not speak Redis' protocol"
LOST = "Redis closed the connection"
REPLICA = "Redis is a read-only replica"
CLUSTER = "Redis is a cluster, which cannot be used as a token store"

_REFUSALS = {
    "NOAUTH": LOCKED,
    "WRONGPASS": "Redis does not accept the password of :redis_password_file:",
    "NOPERM": "Redis does not permit its user what a token store needs",
    "READONLY": REPLICA,
    "MASTERDOWN": REPLICA,
    "NOREPLICAS": "Redis has too few replicas to take writes",
    "LOADING": "Redis is still loading its data",
    "BUSY": "Redis is busy with a script",
    "OOM": "Redis is out of memory (its maxmemory)",
    "MISCONF": "Redis takes no writes as it cannot save its data to disk",
    "CLUSTERDOWN": CLUSTER,
    "CROSSSLOT": CLUSTER,
    "MOVED": CLUSTER,
}
# With these, another server may be the master by now.
_ELSEWHERE = frozenset({"READONLY", "MASTERDOWN", "NOREPLICAS", "LOADING"})
# Before Redis 7, the code of an error in a script is somewhere in a text that begins with ERR.
_CODE = re.compile(r"\b(" + "|".join(_REFUSALS) + r")\b")


class RedisTroubleError(Exception):
    """Raised if Redis cannot be used now. The text is our own: it names no host and no key.

    `elsewhere` says whether to look for the master again.
    """

    def __init__(self, text: str, *, elsewhere: bool = False) -> None:
        super().__init__(text)
        self.elsewhere = elsewhere


class RedisConnection(txredisapi.RedisProtocol):  # type: ignore[misc]  # txredisapi has no types
    """A connection to one Redis or Sentinel. `gone` fires when it has ended."""

    def __init__(self) -> None:
        # A user whose name is a number keeps it as a text.
        super().__init__(convertNumbers=False)
        self.open = False
        self.gone: Deferred[None] = Deferred()
        self._ended_by = ""

    def connectionMade(self) -> Any:
        """Be ready: there is no greeting."""
        self.open = True
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        return super().connectionMade()

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:  # noqa: FBT001, FBT002 (txredisapi's)
        """Take a piece of an answer."""
        try:
            super().dataReceived(data, unpause)
        except (ValueError, txredisapi.RedisError):
            self._ended_by = NO_PROTOCOL
            self.abort()

    def connectionLost(self, why: Failure) -> None:
        """Fail whoever waits for an answer."""
        self.open = False
        self._ended_by = self._ended_by or _explained(why.value)
        super().connectionLost(why)
        self.gone.callback(None)

    def abort(self) -> None:
        """End the connection at once: nothing that is still in it is wanted."""
        self.open = False
        if self.connected:
            self.transport.abortConnection()

    async def authenticate(self, password: str) -> None:
        """Say who we are. Raises RedisTroubleError."""
        await self._ask("AUTH", password, refusal=_password_refusal)

    async def select(self, db: int) -> None:
        """Use a database from now on. Raises RedisTroubleError."""
        await self._ask("SELECT", db, refusal=_db_refusal)

    async def ask(self, *command: str | float) -> Any:
        """Return the answer to a command; cancelled, it ends the connection. Raises RedisTroubleError."""
        return await self._ask(*command, refusal=_refusal)

    async def _ask(self, *command: str | float, refusal: Callable[[str], RedisTroubleError]) -> Any:
        try:
            return await self.execute_command(*command)
        except CancelledError:
            # The answer may still come, or never: nothing can be asked here any more.
            self.abort()
            raise
        except txredisapi.ResponseError as error:
            raise refusal(str(error)) from None
        except (txredisapi.InvalidResponse, txredisapi.InvalidData):
            self.abort()
            raise RedisTroubleError(NO_PROTOCOL, elsewhere=True) from None
        except txredisapi.RedisError:
            raise RedisTroubleError(self._ended_by or LOST, elsewhere=True) from None


def _explained(error: BaseException | None) -> str:
    """Say why a connection ended; OpenSSL's errors are lists of (library, function, reason)."""
    match type(error).__name__, getattr(error, "args", ()):
        case "Error", [[[_, _, "certificate verify failed"], *_]]:
            return "Redis' certificate is from no CA that is trusted (:redis_ca:), or not valid now"
        case "Error", [[[_, _, str(reason)], *_]]:
            return f"TLS with Redis failed: {reason}"
        case "VerificationError", _:
            return "Redis' certificate is for another host"
    return LOST


def _refusal(text: str) -> RedisTroubleError:
    code = _CODE.search(text)
    if code is None:
        return RedisTroubleError("Redis answered with an error that we do not know")
    return RedisTroubleError(_REFUSALS[code[1]], elsewhere=code[1] in _ELSEWHERE)


def _password_refusal(text: str) -> RedisTroubleError:
    # "no password is set" (Redis 5), "without any password configured" (6 and newer).
    if re.search("no password is set|without any password", text):
        return RedisTroubleError("Redis has no password, but :redis_password_file: is set")
    return RedisTroubleError(_REFUSALS["WRONGPASS"])


def _db_refusal(text: str) -> RedisTroubleError:
    if _CODE.search(text):
        return _refusal(text)
    return RedisTroubleError("Redis has no database with the number in :redis_db:")
