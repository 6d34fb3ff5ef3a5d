"""The composition root: the one place that makes collaborators and hands them to each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger

from vnctoken.consoles import Consoles
from vnctoken.errors import ConfigError
from vnctoken.exchange import HttpExchange
from vnctoken.oned import Oned
from vnctoken.rpc import Rpc
from vnctoken.tokens.folder import TokenFolder
from vnctoken.web import RpcSite

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort, IOpenSSLClientConnectionCreator

    from vnctoken.config import Config

SHUTDOWN_SECONDS = 5
"""How long calls in flight may take to finish once the service was told to stop."""

BACKLOG = 511


class ConsoleService(Service):
    """The listening service, for `vnctoken-server` and for `twist`."""

    _port: IListeningPort

    def __init__(self, site: RpcSite, reactor: Any, host: str, port: int) -> None:
        self._site = site
        self._reactor = reactor
        self._interface = host
        self._wanted_port = port

    @property
    def url(self) -> str:
        """Where the service listens, with the real port if 0 was asked for."""
        address: Any = self._port.getHost()
        host = f"[{address.host}]" if ":" in address.host else address.host
        return f"http://{host}:{address.port}/RPC2"

    def startService(self) -> None:
        """Listen. Raises CannotListenError if the port is taken."""
        self._port = self._reactor.listenTCP(self._wanted_port, self._site, BACKLOG, self._interface)
        super().startService()

    def stopService(self) -> Deferred[None]:
        """Stop accepting, and finish what is in flight, for at most SHUTDOWN_SECONDS."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await maybeDeferred(self._port.stopListening)
        await self._site.drain(SHUTDOWN_SECONDS)


def make_service(config: Config, reactor: Any) -> ConsoleService:
    """Build the service, and make its token folder ready.

    Raises ConfigError if what the configuration points at cannot be used.
    """
    tokens = TokenFolder(config.token_folder)
    for warning in tokens.prepare():
        Logger(namespace=__name__).warn("{warning}", warning=warning)
    oned = Oned(
        HttpExchange(reactor, config.one_xmlrpc, _tls(config)),
        reactor,
        timeout=config.one_xmlrpc_timeout,
        connections=config.one_xmlrpc_connections,
    )
    consoles = Consoles(
        oned,
        tokens,
        states=config.console_states,
        ports=config.vnc_ports,
        wss=config.vnc_proxy_support_wss,
        link=config.console_url,
    )
    site = RpcSite(
        Rpc(consoles, reactor),
        reactor,
        max_connections=config.max_connections,
        max_request_bytes=config.max_request_bytes,
    )
    return ConsoleService(site, reactor, config.host, config.port)


def _tls(config: Config) -> IOpenSSLClientConnectionCreator | None:
    """Return how to verify an https oned: by the system's CAs, or by those of `:one_xmlrpc_ca:` alone."""
    url = urlsplit(config.one_xmlrpc)
    if url.scheme != "https":
        return None
    try:
        from twisted.internet import ssl  # noqa: PLC0415 (OpenSSL is an extra, and 10 MB that http does not need)
    except ImportError:
        raise ConfigError(
            f":one_xmlrpc: is {config.one_xmlrpc!r}, and https needs pyOpenSSL: install vnctoken[tls]"
        ) from None
    if config.one_xmlrpc_ca is None:
        roots = ssl.platformTrust()
    else:
        roots = ssl.trustRootFromCertificates(_certificates(Path(config.one_xmlrpc_ca), ssl.Certificate))
    return ssl.optionsForClientTLS(str(url.hostname), trustRoot=roots)


def _certificates(path: Path, certificate: Any) -> list[Any]:
    try:
        blocks = re.findall(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", path.read_bytes(), re.DOTALL)
        found = [certificate.loadPEM(block) for block in blocks]
    except Exception as error:  # noqa: BLE001 (OpenSSL.crypto.Error, whose module is an extra, or OSError)
        raise ConfigError(f":one_xmlrpc_ca: is {str(path)!r}, which cannot be read: {error}") from None
    if not found:
        raise ConfigError(f":one_xmlrpc_ca: is {str(path)!r}, but a file with CA certificates in PEM is expected")
    return found
