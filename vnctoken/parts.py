"""The parts of the service that the doctor examines too: made of a configuration, each by itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from twisted.internet.threads import deferToThreadPool

from vnctoken.errors import ConfigError
from vnctoken.exchange import HttpExchange
from vnctoken.login import ServerLogin
from vnctoken.measures import UNMEASURED
from vnctoken.oned import Oned
from vnctoken.tls import client_tls
from vnctoken.tokens.folder import TokenFolder
from vnctoken.tokens.jwt import JwtStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from vnctoken.config import Config
    from vnctoken.measures import Measures
    from vnctoken.tokens import TokenStore


def make_oned(config: Config, reactor: Any, measures: Measures = UNMEASURED) -> Oned:
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
        measures=measures,
    )


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
