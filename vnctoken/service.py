"""The composition root: the one place that makes collaborators and hands them to each other.

What a reload can replace is made in works.py, what the doctor examines as well in parts.py.
"""

from __future__ import annotations

import time
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from vnctoken.audit import AuditLog
from vnctoken.decisions import UNAUDITED
from vnctoken.errors import ConfigError
from vnctoken.health import Health, oned_answers
from vnctoken.limits import LimitRules, Limits
from vnctoken.listener import ListenerService
from vnctoken.measures import UNMEASURED, Vitals
from vnctoken.monitor import MonitorSite
from vnctoken.parts import epoch, make_store
from vnctoken.resolver import Resolver
from vnctoken.tokens.register import Register
from vnctoken.tokens.watched import WatchedStore
from vnctoken.web import ResolverSite, RpcSite
from vnctoken.works import Lasting, Works, make_works

if TYPE_CHECKING:
    from twisted.python.failure import Failure

    from vnctoken.config import Config
    from vnctoken.health import Check
    from vnctoken.httpserver import BoundedSite
    from vnctoken.metrics import Metrics
    from vnctoken.values import Listener

SHUTDOWN_SECONDS = 5
"""How long calls in flight may take to finish once the service was told to stop."""

AT_START = frozenset(
    {
        *("host", "port", "monitor_listen", "resolver_listen", "max_connections", "max_request_bytes"),
        *("token_store", "token_folder_name", "tokens_per_vm", "jwt_key_files"),
        *("redis_servers", "redis_sentinel", "redis_db", "redis_namespace", "redis_password_file"),
        *("redis_tls", "redis_ca", "redis_timeout"),
        *("audit_log", "audit_required", "log_system"),
    }
)
"""The keys whose change takes a restart: what is opened at the start stays as it is."""

_MONITORS = 64

_log = Logger()


class ConsoleService(MultiService):
    """All that runs, for `vnctoken-server` and for `twist`: the listeners, and what watches over the tokens."""

    def __init__(  # noqa: PLR0913 (what runs)
        self,
        works: Works,
        lasting: Lasting,
        register: Register,
        *,
        site: RpcSite,
        calls: ListenerService,
        resolver: Resolver | None,
        audit: AuditLog | None,
    ) -> None:
        super().__init__()
        self._works = works
        self._lasting = lasting
        self._register = register
        self._site = site
        self._calls = calls
        self._resolver = resolver
        self._audit = audit
        calls.setServiceParent(self)

    @property
    def works(self) -> Works:
        """What answers calls now."""
        return self._works

    @property
    def url(self) -> str:
        """Where calls are taken, with the real port if 0 was asked for."""
        return f"http://{self._calls.address}/RPC2"

    @property
    def status(self) -> str:
        """How things are, in one line."""
        oned = "oned does not answer" if self._works.oned.shut else "oned answers"
        return f"Listens on {self.url}; live tokens: {len(self._register)}; {oned}"

    def startService(self) -> None:
        """Listen and watch. Raises CannotListenError if a port is taken, and ConfigError."""
        super().startService()
        # Only who has the port may tidy up, and write the audit log: it may be that another one runs.
        if self._audit is not None:
            self._audit.open()
        self._lasting.store.start()
        for watcher in self._works.watchers:
            watcher.start()

    def stopService(self) -> Deferred[None]:
        """Stop accepting, and finish what is in flight, for at most SHUTDOWN_SECONDS."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await super().stopService()
        await _stop_all(self._works)
        await self._lasting.store.close()
        if self._audit is not None:
            self._audit.close()

    def reload(self, config: Config) -> list[str]:
        """Work by another configuration from now on; return the keys whose change takes a restart, and has none now.

        Calls in flight end as they began. Raises ConfigError, and then nothing is changed.
        """
        config, waiting = _reloadable(config, self._works.config)
        # A login that has come since is looked for; one that there is reads its files by itself.
        if config == self._works.config and self._works.login is not None:
            return waiting
        before = self._works
        works = make_works(config, self._lasting, before)
        started = []
        try:
            for watcher in works.watchers:
                watcher.start()
                started.append(watcher)
        except ConfigError:
            Deferred.fromCoroutine(_stop_all(replace(works, watchers=started))).addErrback(_stray)
            raise
        self._lasting.limits.rules = LimitRules.from_config(config)
        self._site.serve(works.rpc, works.proxies)
        if self._resolver is not None:
            self._resolver.reuse_window, self._resolver.verify = config.reuse_window, works.verify
        self._works = works
        Deferred.fromCoroutine(_stop_all(before)).addErrback(_stray)
        return waiting

    def reopen(self) -> None:
        """Open the audit log anew: logrotate has put it aside."""
        if self._audit is not None:
            self._audit.reopen()


def make_service(config: Config, reactor: Any, inherited: int | None = None) -> ConsoleService:
    """Build the service, and look whether its token store can be used.

    With `inherited`, the file descriptor of a socket that listens, calls are taken there, and not at `:host:` and
    `:port:`. Raises ConfigError if what the configuration points at cannot be used.
    """
    now = epoch(reactor)
    register = Register()
    vitals = Vitals(
        live_tokens=lambda: len(register),
        oldest_token=lambda: None if (issued := register.oldest()) is None else max(now() - issued, 0.0),
        connections=lambda: site.connections,
        oned_connections=lambda: service.works.oned.connections,
        oned_waiting=lambda: service.works.oned.waiting,
        oned_shut=lambda: service.works.oned.shut,
    )
    metrics = _metrics(config, vitals)
    measures = metrics or UNMEASURED
    audit = None
    if config.audit_log is not None:
        audit = AuditLog(Path(config.audit_log), time.time, required=config.audit_required, measures=measures)
    store = WatchedStore(
        make_store(config, reactor),
        register,
        reactor,
        now,
        tokens_per_vm=config.tokens_per_vm,
        measures=measures,
        audit=audit or UNAUDITED,
    )
    for warning in store.prepare():
        _log.warn("{warning}", warning=warning)
    limits = Limits(LimitRules.from_config(config), register, store, reactor, now)
    lasting = Lasting(reactor, now, store, limits, measures, audit or UNAUDITED)
    works = make_works(config, lasting)
    site = RpcSite(
        works.rpc,
        reactor,
        works.proxies,
        max_connections=config.max_connections,
        max_request_bytes=config.max_request_bytes,
    )

    def listener(site: BoundedSite, at: Listener, setting: str, inherited: int | None = None) -> ListenerService:
        return ListenerService(site, reactor, at, setting=setting, drain_seconds=SHUTDOWN_SECONDS, inherited=inherited)

    resolver = None
    if config.resolver_listen is not None:
        resolver = Resolver(
            store,
            reactor.seconds,
            reuse_window=config.reuse_window,
            verify=works.verify,
            measures=measures,
            audit=audit or UNAUDITED,
        )
    service = ConsoleService(
        works,
        lasting,
        register,
        site=site,
        calls=listener(site, (config.host, config.port), ":host: and :port:", inherited),
        resolver=resolver,
        audit=audit,
    )
    for proxy in config.trusted_proxies:
        if isinstance(proxy, Path):
            listener(site, proxy, ":trusted_proxies:").setServiceParent(service)
    if resolver is not None and config.resolver_listen is not None:
        questions = ResolverSite(resolver, reactor, max_connections=config.max_connections)
        listener(questions, config.resolver_listen, ":resolver_listen:").setServiceParent(service)
    if config.monitor_listen is not None:
        health = Health(_checks(config, service, lasting, audit), reactor)
        monitor = MonitorSite(health, None if metrics is None else metrics.render, reactor, max_connections=_MONITORS)
        listener(monitor, config.monitor_listen, ":monitor_listen:").setServiceParent(service)
    return service


def _metrics(config: Config, vitals: Vitals) -> Metrics | None:
    """Build the metrics, if anybody can ask for them."""
    if config.monitor_listen is None:
        return None
    try:
        from vnctoken.metrics import Metrics  # noqa: PLC0415 (Prometheus' client is an extra)
    except ImportError:
        _log.info("there are no metrics at :monitor_listen:, as prometheus_client is not installed: vnctoken[metrics]")
        return None
    return Metrics(vitals)


def _checks(config: Config, service: ConsoleService, lasting: Lasting, audit: AuditLog | None) -> dict[str, Check]:
    """Return what /readyz looks at."""

    def session() -> str:
        login = service.works.login
        return "" if login is None else login.session()

    checks: dict[str, Check] = {
        "oned": lambda: oned_answers(service.works.oned, session),
        "store": lasting.store.check,
    }
    if audit is not None and config.audit_required:
        checks["audit"] = audit.check
    return checks


def _reloadable(config: Config, current: Config) -> tuple[Config, list[str]]:
    """Return a configuration as far as it can come true now, and the keys of what cannot."""
    kept = {key: getattr(current, key) for key in AT_START}
    waiting = [key for key in kept if getattr(config, key) != kept[key]]
    sockets = tuple(proxy for proxy in current.trusted_proxies if isinstance(proxy, Path))
    networks = tuple(proxy for proxy in config.trusted_proxies if not isinstance(proxy, Path))
    if {*sockets} != {*config.trusted_proxies} - {*networks}:
        waiting.append("trusted_proxies")
    changed = replace(config, **kept, trusted_proxies=networks + sockets)
    written = [
        ":log:" if field.name == "log_system" else f":{field.name}:"
        for field in fields(config)
        if field.name in waiting
    ]
    return changed, written


async def _stop_all(works: Works) -> None:
    for watcher in works.watchers:
        await watcher.stop()


def _stray(failure: Failure) -> None:
    _log.failure("what watched over the tokens could not be stopped", failure)
