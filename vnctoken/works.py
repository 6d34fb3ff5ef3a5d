"""What a configuration makes that another can replace while the service runs: all but listeners and what is counted."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

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
from vnctoken.auth.whois import Whois, nobody
from vnctoken.consoles import Consoles, Terms
from vnctoken.errors import ConfigError, OnedError
from vnctoken.events import Events
from vnctoken.parts import make_login, make_oned
from vnctoken.presence import Presence
from vnctoken.recheck import Recheck
from vnctoken.rpc import Rpc
from vnctoken.rules import ConsoleRules
from vnctoken.tokens import PROBE_VM_ID

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from vnctoken.auth import Door
    from vnctoken.config import Config
    from vnctoken.decisions import Audit
    from vnctoken.limits import Limits
    from vnctoken.login import ServerLogin
    from vnctoken.measures import Measures
    from vnctoken.oned import Oned
    from vnctoken.tokens import LiveToken
    from vnctoken.tokens.watched import WatchedStore

_log = Logger()

_ONED_KEYS = ("one_xmlrpc", "one_xmlrpc_timeout", "one_xmlrpc_connections", "one_xmlrpc_ca")
_DOOR_KEYS = (*_ONED_KEYS, "auth", "core_auth", "expire_delta", "expire_margin", "public_url")


@dataclass(frozen=True)
class Lasting:
    """What outlives a change of the configuration: the tokens, and what is counted and written down."""

    reactor: Any
    now: Callable[[], float]
    store: WatchedStore
    limits: Limits
    measures: Measures
    audit: Audit


@dataclass(frozen=True)
class Works:
    """What answers calls and watches over tokens, by one configuration."""

    config: Config
    oned: Oned
    login: ServerLogin | None
    guessing: Guessing
    doors: Sequence[Door]
    rpc: Rpc
    proxies: TrustedProxies
    verify: Callable[[LiveToken], Awaitable[bool]] | None
    watchers: Sequence[Recheck | Events]


def make_works(config: Config, lasting: Lasting, before: Works | None = None) -> Works:
    """Build the works; of those `before`, parts of which nothing changes go on as they are.

    Raises ConfigError if what the configuration points at cannot be used.
    """
    reactor = lasting.reactor
    rules = ConsoleRules(states=config.console_states, ports=config.vnc_ports)
    login = _server_login(config)
    if before is not None and _alike(config, before.config, _ONED_KEYS):
        oned = before.oned
    else:
        oned = make_oned(config, reactor, lasting.measures)
    if before is not None and _alike(config, before.config, ("auth_failures",)):
        guessing = before.guessing
    else:
        guessing = Guessing(reactor, *config.auth_failures)
    if before is not None and _alike(config, before.config, _DOOR_KEYS):
        doors = before.doors
    else:
        doors = _doors(config, reactor, oned, login)
    entrance = Entrance(doors, guessing, sessions=OPENNEBULA in config.auth, strict=bool(config.trusted_proxies))
    groups = GroupRules(oned, restricted=config.restricted_groups, allowed=config.allowed_groups)
    presence = None if login is None else Presence(oned, login.session, rules)
    whois = nobody if config.audit_log is None else Whois(oned, guessing, reactor).user
    consoles = Consoles(
        Admission(oned, guessing, groups, lasting.limits),
        lasting.store,
        lasting.limits,
        rules=rules,
        terms=Terms(
            ttl=config.token_ttl,
            ttl_max=config.token_ttl_max,
            resolved=config.resolver_listen is not None and lasting.store.revocable,
            wss=config.vnc_proxy_support_wss,
            link=config.console_url,
        ),
        now=lasting.now,
        presence=presence,
        audit=lasting.audit,
        whois=whois,
    )
    rpc = Rpc(
        consoles,
        entrance,
        lasting.limits,
        reactor,
        switched_off=config.permissions,
        measures=lasting.measures,
        audit=lasting.audit,
        whois=whois,
    )
    return Works(
        config=config,
        oned=oned,
        login=login,
        guessing=guessing,
        doors=doors,
        rpc=rpc,
        proxies=TrustedProxies([proxy for proxy in config.trusted_proxies if not isinstance(proxy, Path)]),
        # Without a login `_server_login` has not let a service begin that promises to verify.
        verify=_verify(presence) if config.verify_on_connect and presence else None,
        watchers=_watchers(config, lasting, oned, login, rules),
    )


def _alike(one: Config, other: Config, keys: Sequence[str]) -> bool:
    return all(getattr(one, key) == getattr(other, key) for key in keys)


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


def _watchers(
    config: Config, lasting: Lasting, oned: Oned, login: ServerLogin | None, rules: ConsoleRules
) -> list[Recheck | Events]:
    """Build what takes tokens back when their console is gone."""
    if not lasting.store.revocable:
        _log.info("tokens live until they expire: this :token_store: cannot take them back")
        return []
    reactor = lasting.reactor
    session = login.session if login else _no_session
    recheck = Recheck(lasting.store, oned, session, rules, reactor, config.recheck_interval, lasting.audit)
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
