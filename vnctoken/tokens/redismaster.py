"""The connection to the Redis that takes writes: found among several servers or with Sentinels, and found again.

Connections are made when somebody asks, never by a timer: Redis may be away for as long as it likes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.error import ConnectionRefusedError as TCPRefusedError
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from vnctoken.tokens.redisconnection import LOCKED, NO_PROTOCOL, REPLICA, RedisConnection, RedisTroubleError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IStreamClientEndpoint
    from twisted.python.failure import Failure

    T = TypeVar("T")
    Address = tuple[str, int]

PAUSE_SECONDS = 0.25
"""How long after a search in vain the next one may begin; who asks meanwhile gets the same answer."""


class RedisMaster:
    """The Redis that takes writes, whichever it is at the time.

    With `sentinel`, the name of a master, the `servers` are Sentinels that know its address; without, the first of them
    that is a master is used. `tls` makes what verifies a host's certificate; without it there is no TLS. Whatever is
    run has `timeout` seconds.
    """

    _log = Logger()

    def __init__(  # noqa: PLR0913 (what it works with, and each setting by its name)
        self,
        reactor: Any,
        *,
        servers: Sequence[Address],
        sentinel: str | None,
        db: int,
        password: str | None,
        tls: Callable[[str], IOpenSSLClientConnectionCreator] | None,
        timeout: float,
    ) -> None:
        self._reactor = reactor
        self._servers = servers
        self._sentinel = sentinel
        self._db = db
        self._password = password
        self._tls = tls
        self._timeout = timeout
        # So that a server that hangs leaves time for the others.
        self._share = timeout / (len(servers) + 1)
        self._connection: RedisConnection | None = None
        self._connections: set[RedisConnection] = set()
        self._searching: Deferred[None] | None = None
        self._waiting: list[Deferred[RedisConnection]] = []
        self._vain: tuple[float, str] | None = None
        self._said: dict[Address, str] = {}
        self._running: set[Deferred[Any]] = set()
        self._closed = False

    async def run(self, work: Coroutine[Deferred[Any], Any, T]) -> T:
        """Return what comes of `work`, which asks as often as it likes, all within the timeout.

        Raises RedisTroubleError if Redis cannot be used now.
        """
        if self._closed:
            work.close()
            raise RedisTroubleError("The service is stopping")
        running = Deferred.fromCoroutine(work)
        self._running.add(running)
        try:
            return await running.addTimeout(self._timeout, self._reactor, _late)
        except CancelledError:
            if not self._closed:
                raise
            raise RedisTroubleError("The service is stopping") from None
        finally:
            self._running.discard(running)

    async def ask(self, *command: str | float) -> Any:
        """Return Redis' answer to a command; cancelled, it drops the connection. Raises RedisTroubleError.

        After a failover, a restart or a lost connection the command is sent once more. It may then have been carried
        out twice.
        """
        connection = await self._connected()
        try:
            return await connection.ask(*command)
        except RedisTroubleError as trouble:
            if not trouble.elsewhere:
                raise
        connection.abort()
        connection = await self._connected()
        try:
            return await connection.ask(*command)
        except RedisTroubleError as trouble:
            if trouble.elsewhere:
                connection.abort()
                self._rest(str(trouble))
            raise

    async def close(self) -> None:
        """End what is running and the connection."""
        self._closed = True
        for running in list(self._running):
            running.cancel()
        if self._searching is not None:
            self._searching.cancel()
        for connection in list(self._connections):
            connection.abort()
            await connection.gone

    async def _connected(self) -> RedisConnection:
        """Return the connection that a search finds; there is one search at a time, however many wait for it."""
        if self._connection is not None and self._connection.open:
            return self._connection
        if self._vain is not None and self._reactor.seconds() < self._vain[0]:
            raise RedisTroubleError(self._vain[1])
        waiting: Deferred[RedisConnection] = Deferred()
        self._waiting.append(waiting)
        if self._searching is None:
            # A caller who cannot wait any longer does not end it for the others, so it has a time of its own.
            search = Deferred.fromCoroutine(self._search()).addTimeout(self._timeout, self._reactor, _late)
            self._searching = search.addBoth(self._tell)
        return await waiting

    def _tell(self, found: RedisConnection | Failure) -> None:
        self._searching = None
        if isinstance(found, RedisConnection):
            self._connection = found
        elif found.check(RedisTroubleError):
            self._rest(str(found.value))
        waiting, self._waiting = self._waiting, []
        for other in waiting:
            if not other.called:
                other.callback(found)

    def _rest(self, trouble: str) -> None:
        self._vain = (self._reactor.seconds() + PAUSE_SECONDS, trouble)

    async def _search(self) -> RedisConnection:
        troubles: dict[str, None] = {}
        tried = set()
        for server in self._servers:
            asked = server
            try:
                if self._sentinel is not None:
                    asked = await self._in_share(self._address_of_master(server, self._sentinel))
                    if asked in tried:
                        continue
                    tried.add(asked)
                connection = await self._in_share(self._open(asked))
            except RedisTroubleError as trouble:
                troubles[str(trouble)] = None
                self._complain(asked, str(trouble))
            else:
                self._said.clear()
                self._log.info("tokens are kept in Redis at {host} port {port}", host=asked[0], port=asked[1])
                return connection
        raise RedisTroubleError(". ".join(troubles))

    def _in_share(self, work: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
        return Deferred.fromCoroutine(work).addTimeout(self._share, self._reactor, _silent)

    def _complain(self, server: Address, trouble: str) -> None:
        """Log what is wrong with a server, once until it changes."""
        if self._said.get(server) != trouble:
            self._said[server] = trouble
            self._log.warn("Redis at {host} port {port}: {trouble}", host=server[0], port=server[1], trouble=trouble)

    async def _address_of_master(self, server: Address, name: str) -> Address:
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
        sentinel = await self._dial(server)
        try:
            try:
                found = await sentinel.ask(*question)
            except RedisTroubleError as trouble:
                # Often only the Redis servers have a password.
                if str(trouble) != LOCKED or self._password is None:
                    raise
                await sentinel.authenticate(self._password)
                found = await sentinel.ask(*question)
        finally:
            sentinel.abort()
        match found:
            case [str(host), str(port)] if port.isdecimal():
                return host, int(port)
            case None:
                raise RedisTroubleError("The Sentinels know no master with the name in :redis_sentinel:")
        raise RedisTroubleError(NO_PROTOCOL)

    async def _open(self, server: Address) -> RedisConnection:
        connection = await self._dial(server)
        try:
            if self._password is not None:
                await connection.authenticate(self._password)
            match await connection.ask("ROLE"):
                case ["master", *_]:
                    pass
                case [str(), *_]:
                    raise RedisTroubleError(REPLICA)
                case _:
                    raise RedisTroubleError(NO_PROTOCOL)
            if self._db:
                await connection.select(self._db)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _dial(self, server: Address) -> RedisConnection:
        host, port = server
        try:
            endpoint: IStreamClientEndpoint = HostnameEndpoint(self._reactor, host, port)
            if self._tls is not None:
                endpoint = wrapClientTLS(self._tls(host), endpoint)
            connection = await _connecting(endpoint)
        except TCPRefusedError:
            raise RedisTroubleError(
                "Redis refuses connections: it is not running, or not where it is looked for"
            ) from None
        except (DNSLookupError, ValueError):
            raise RedisTroubleError("A host of :redis_servers: has no address") from None
        except ConnectError as error:
            raise RedisTroubleError(f"Redis cannot be reached: {type(error).__name__}") from None
        self._connections.add(connection)
        connection.gone.addCallback(lambda _: self._connections.discard(connection))
        return connection


def _connecting(endpoint: IStreamClientEndpoint) -> Deferred[RedisConnection]:
    """Connect. Cancelled, this is a CancelledError, whatever the endpoint makes of it."""
    factory = Factory.forProtocol(RedisConnection)
    factory.noisy = False
    dialling: Deferred[Any] = endpoint.connect(factory)

    def give_up(connected: Deferred[RedisConnection]) -> None:
        connected.errback(CancelledError())
        dialling.cancel()

    def deliver(outcome: Any) -> None:
        if not connected.called:
            connected.callback(outcome)

    connected: Deferred[RedisConnection] = Deferred(give_up)
    dialling.addBoth(deliver)
    return connected


def _late(_outcome: object, timeout: float) -> Any:
    raise RedisTroubleError(f"Redis did not answer within {timeout:g} seconds")


def _silent(_outcome: object, _timeout: float) -> Any:
    raise RedisTroubleError("Redis does not answer")
