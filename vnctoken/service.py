"""The composition root: the one place that makes collaborators and hands them to each other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from vnctoken.auth import OPENNEBULA
from vnctoken.auth.admission import Admission, GroupRules
from vnctoken.auth.basic import BasicDoor
from vnctoken.auth.ec2 import Ec2Door
from vnctoken.auth.entrance import Entrance
from vnctoken.auth.guessing import Guessing
from vnctoken.auth.proxies import TrustedProxies
from vnctoken.auth.remote import RemoteDoor
from vnctoken.auth.users import UserPool
from vnctoken.consoles import Consoles, Terms
from vnctoken.errors import ConfigError, OnedError
from vnctoken.events import Events
from vnctoken.exchange import HttpExchange
from vnctoken.listener import ListenerService
from vnctoken.login import ServerLogin
from vnctoken.oned import Oned
from vnctoken.presence import Presence
from vnctoken.recheck import Recheck
from vnctoken.resolver import Resolver
from vnctoken.rpc import Rpc
from vnctoken.rules import ConsoleRules
from vnctoken.tls import client_tls
from vnctoken.tokens import PROBE_VM_ID
from vnctoken.tokens.folder import TokenFolder
from vnctoken.tokens.jwt import JwtStore
from vnctoken.web import ResolverSite, RpcSite

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vnctoken.auth import Door
    from vnctoken.config import Config
    from vnctoken.tokens import LiveToken, TokenStore

SHUTDOWN_SECONDS = 5
"""How long calls in flight may take to finish once the service was told to stop."""

_log = Logger()


class ConsoleService(MultiService):
    """All that runs, for `vnctoken-server` and for `twist`: the listeners, and what watches over the tokens."""

    def __init__(self, calls: ListenerService, store: TokenStore, watchers: list[Recheck | Events]) -> None:
        super().__init__()
        self._calls = calls
        self._store = store
        self._watchers = watchers
        calls.setServiceParent(self)

    @property
    def url(self) -> str:
        """Where calls are taken, with the real port if 0 was asked for."""
        return f"http://{self._calls.address}/RPC2"

    def startService(self) -> None:
        """Listen and watch. Raises CannotListenError if a port is taken, and ConfigError."""
        super().startService()
        # Only who has the port may tidy up: it may be that another one runs.
        self._store.start()
        for watcher in self._watchers:
            watcher.start()

    def stopService(self) -> Deferred[None]:
        """Stop accepting, and finish what is in flight, for at most SHUTDOWN_SECONDS."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await super().stopService()
        for watcher in self._watchers:
            await watcher.stop()
        await self._store.close()


def make_service(config: Config, reactor: Any) -> ConsoleService:
    """Build the service, and look whether its token store can be used.

    Raises ConfigError if what the configuration points at cannot be used.
    """
    now = epoch(reactor)
    store = make_store(config, reactor)
    for warning in store.prepare():
        _log.warn("{warning}", warning=warning)
    oned = make_oned(config, reactor)
    rules = ConsoleRules(states=config.console_states, ports=config.vnc_ports)
    login = _server_login(config)
    guessing = Guessing(reactor, *config.auth_failures)
    entrance = Entrance(
        _doors(config, reactor, oned, login),
        guessing,
        sessions=OPENNEBULA in config.auth,
        strict=bool(config.trusted_proxies),
    )
    groups = GroupRules(oned, restricted=config.restricted_groups, allowed=config.allowed_groups)
    presence = None if login is None else Presence(oned, login.session, rules)
    terms = Terms(
        ttl=config.token_ttl,
        ttl_max=config.token_ttl_max,
        resolved=config.resolver_listen is not None and store.revocable,
        wss=config.vnc_proxy_support_wss,
        link=config.console_url,
    )
    admission = Admission(oned, guessing, groups)
    consoles = Consoles(admission, store, rules=rules, terms=terms, now=now, presence=presence)
    site = RpcSite(
        Rpc(consoles, entrance, reactor, config.permissions),
        reactor,
        TrustedProxies([proxy for proxy in config.trusted_proxies if not isinstance(proxy, Path)]),
        max_connections=config.max_connections,
        max_request_bytes=config.max_request_bytes,
    )
    calls = ListenerService(
        site, reactor, (config.host, config.port), setting=":host: and :port:", drain_seconds=SHUTDOWN_SECONDS
    )
    watchers = _watchers(config, reactor, store=store, oned=oned, login=login, rules=rules)
    service = ConsoleService(calls, store, watchers)
    for proxy in config.trusted_proxies:
        if isinstance(proxy, Path):
            ListenerService(
                site, reactor, proxy, setting=":trusted_proxies:", drain_seconds=SHUTDOWN_SECONDS
            ).setServiceParent(service)
    if config.resolver_listen is not None:
        # Without a login `_server_login` has not let a service begin that promises to verify.
        verify = _verify(presence) if config.verify_on_connect and presence else None
        resolver = Resolver(store, reactor.seconds, reuse_window=config.reuse_window, verify=verify)
        ListenerService(
            ResolverSite(resolver, reactor, max_connections=config.max_connections),
            reactor,
            config.resolver_listen,
            setting=":resolver_listen:",
            drain_seconds=SHUTDOWN_SECONDS,
        ).setServiceParent(service)
    return service


def make_oned(config: Config, reactor: Any) -> Oned:
    """Build what asks oned. Raises ConfigError if its TLS cannot be set up."""
    url = urlsplit(config.one_xmlrpc)
    tls = None
    if url.scheme == "https":
        tls = client_tls(config.one_xmlrpc_ca, ":one_xmlrpc_ca:", f":one_xmlrpc: is {config.one_xmlrpc!r}")
    return Oned(
        HttpExchange(reactor, config.one_xmlrpc, tls and tls(str(url.hostname))),
        reactor,
        timeout=config.one_xmlrpc_timeout,
        connections=config.one_xmlrpc_connections,
        aside=lambda work: deferToThreadPool(reactor, reactor.getThreadPool(), work),
    )


def _doors(config: Config, reactor: Any, oned: Oned, login: ServerLogin | None) -> list[Door]:
    """Build the doors of `:auth:`."""
    if login is None:
        # `_server_login` has let nothing else be there then.
        return [BasicDoor(oned)] if "basic" in config.auth else []
    doors: list[Door] = []
    session, users = login.session, UserPool(oned, login.session, reactor).users
    for name in config.auth:
        match name:
            case "basic":
                doors.append(BasicDoor(oned))
            case "x509":
                from vnctoken.auth.x509 import X509Door  # noqa: PLC0415 (cryptography is an extra)

                doors.append(X509Door(users=users, session=session, now=time.time))
            case "remote":
                doors.append(RemoteDoor(users=users, session=session))
            case "ec2":
                host = config.public_url and urlsplit(config.public_url).netloc
                doors.append(Ec2Door(users=users, session=session, now=time.time, clock=reactor, host=host))
            case "onegate":
                from vnctoken.auth.onegate import OneGateDoor  # noqa: PLC0415 (cryptography is an extra)

                doors.append(OneGateDoor(oned=oned, users=users, own_session=session, session=session))
    return doors


def make_store(config: Config, reactor: Any) -> TokenStore:
    """Build the token store. Raises ConfigError if it cannot be."""
    match config.token_store:
        case "redis":
            return _redis_store(config, reactor)
        case "jwt":
            # The machine that judges these tokens goes by its own clock.
            return JwtStore(config.jwt_key_files, time.time)
    return TokenFolder(
        config.token_folder, reactor, epoch(reactor), ttl=config.token_ttl, tokens_per_vm=config.tokens_per_vm
    )


def make_login(config: Config) -> ServerLogin | None:
    """Build the service's own login at oned, None if there is none. Raises ConfigError if it cannot be used."""
    return ServerLogin.load(
        config.core_auth,
        folder=config.var / ".one",
        etc=config.etc,
        now=time.time,
        expire_delta=config.expire_delta,
        expire_margin=config.expire_margin,
    )


def epoch(reactor: Any) -> Callable[[], float]:
    """Return what tells the second of the epoch, counted on by the reactor's clock (see `keep_steady_time`)."""
    began = time.time() - reactor.seconds()
    return lambda: began + reactor.seconds()


def _redis_store(config: Config, reactor: Any) -> TokenStore:
    try:
        from vnctoken.tokens.redis import RedisStore  # noqa: PLC0415 (its client is an extra)
    except ImportError:
        raise ConfigError(":token_store: is redis, which needs txredisapi: install vnctoken[redis]") from None
    return RedisStore(
        reactor,
        servers=config.redis_servers,
        sentinel=config.redis_sentinel,
        db=config.redis_db,
        namespace=config.redis_namespace,
        password=config.redis_password_file and _password(Path(config.redis_password_file)),
        tls=client_tls(config.redis_ca, ":redis_ca:", ":redis_tls: is yes") if config.redis_tls else None,
        timeout=config.redis_timeout,
        tokens_per_vm=config.tokens_per_vm,
    )


def _password(path: Path) -> str:
    try:
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f":redis_password_file: is '{path}', which cannot be read: {reason}") from None
    if not password or "\n" in password:
        raise ConfigError(f":redis_password_file: is '{path}', but a file with one line, the password, is expected")
    return password


def _server_login(config: Config) -> ServerLogin | None:
    """Return the service's own login at oned; where there is none, say what is off without it."""
    try:
        login = make_login(config)
        problem = f"there is no {config.server_login}"
    except ConfigError as error:
        login, problem = None, str(error)
    if login is None and (needed := config.needs_login):
        raise ConfigError(f"{' and '.join(needed)}, which needs a login of the service's own at oned: {problem}")
    if login is None and config.recheck_interval:
        _log.warn("oned is not asked whether tokens outlive their consoles (:recheck_interval:): {why}", why=problem)
    return login


def _watchers(  # noqa: PLR0913 (what they work with)
    config: Config, reactor: Any, *, store: TokenStore, oned: Oned, login: ServerLogin | None, rules: ConsoleRules
) -> list[Recheck | Events]:
    """Build what takes tokens back when their console is gone."""
    if not store.revocable:
        _log.info("tokens live until they expire: this :token_store: cannot take them back")
        return []
    recheck = Recheck(store, oned, login.session if login else _no_session, rules, reactor, config.recheck_interval)
    watchers: list[Recheck | Events] = [recheck] if login and config.recheck_interval else []
    if config.subscriber_endpoint is not None:
        try:
            watchers.append(Events(config.subscriber_endpoint, recheck.saw, reactor))
        except ConfigError as error:
            _log.info("oned's events are not listened to: {why}", why=str(error))
    return watchers


def _no_session() -> str:
    raise OnedError("the service has no login of its own at oned")


def _verify(presence: Presence) -> Callable[[LiveToken], Awaitable[bool]]:
    async def verify(live: LiveToken) -> bool:
        return live.grant.vm_id == PROBE_VM_ID or await presence.still_there(live.grant)

    return verify
