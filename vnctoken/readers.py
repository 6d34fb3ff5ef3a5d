"""Whether those who read tokens read ours: a probe token is shown to the running proxy, and to the resolver."""

from __future__ import annotations

import json
import secrets
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool

from vnctoken import proxy
from vnctoken.addresses import write_address
from vnctoken.checks import FAIL, OK, SKIP, Check
from vnctoken.probes import Console, NoAnswerError, ask, in_words, open_console, target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from vnctoken.config import Config

    Probe = Callable[[str, int], AbstractAsyncContextManager[str]]

ANSWER_SECONDS = 4
"""How long a single answer may take."""

LOOKUP_SECONDS = 2.5
"""How long it is tried to have a token found: a running service sees what others write within a second or so."""

_RETRY_SECONDS = 0.5
_TROUBLE_SECONDS = 3

_LOOPBACK = "127.0.0.1"
# Discard: nobody listens there.
_NOBODYS_PORT = 9

_T = TypeVar("_T")


async def check_proxy(config: Config, reactor: Any, probe: Probe) -> Check:
    """Open a console through the websocket proxy at `:proxy_address:` that leads to a listener of ours.

    `probe` has a token in the store, for a block's time, that leads to a host and port. Raises NoAnswerError if nobody
    answers there.
    """
    address = config.proxy_address
    marker = secrets.token_hex(16).encode()
    async with target(reactor, _LOOPBACK, marker) as port:

        def opened(token: str) -> Awaitable[Console]:
            return open_console(reactor, address, token, marker, ANSWER_SECONDS)

        async with probe(_LOOPBACK, port) as token:
            outcome = await opened(token)
            if outcome not in (Console.OPENED, Console.TARGET_UNREACHABLE):
                pool = reactor.getThreadPool()
                problem = await deferToThreadPool(reactor, pool, proxy.trouble, *address, _TROUBLE_SECONDS)
                if problem is not None:
                    who = f"journalctl -u vnctoken-websockify; ss -ltnp 'sport = :{address[1]}'"
                    return Check("proxy", FAIL, f"{write_address(address)}: {problem}", who)
            if outcome is Console.NOT_FOUND:
                outcome = await _tried(reactor, partial(opened, token), lambda it: it is not Console.NOT_FOUND)
    return _judged(config, outcome)


def _judged(config: Config, outcome: Console) -> Check:
    host = config.proxy_address[0]
    where = write_address(config.proxy_address)
    remedy = (
        f"TOKENS in /etc/one/vnctoken-websockify.env should be {token_options(config)};"
        " then systemctl restart vnctoken-websockify"
    )
    match outcome:
        case Console.OPENED:
            return Check("proxy", OK, f"{where}: a probe token opened a console through it")
        case Console.TARGET_UNREACHABLE if not _is_loopback(host):
            return Check(
                "proxy", OK, f"{where} found a probe token; it cannot reach this machine's loopback from there"
            )
        case Console.TARGET_UNREACHABLE:
            problem = f"{where} found a probe token, but cannot connect to a port of {_LOOPBACK}"
            remedy = "systemctl show -p IPAddressDeny,IPAddressAllow vnctoken-websockify; nft list ruleset"
        case Console.NOT_FOUND:
            problem = f"{where} runs, but does not find a probe token: it reads others, or cannot read these"
        case Console.ELSEWHERE:
            problem = f"{where} took a probe token, but led elsewhere: it has other tokens, or looks none up"
        case _:
            problem = f"{where} refuses the websocket handshake"
    return Check("proxy", FAIL, problem, remedy)


def token_options(config: Config) -> str:
    """Return the options with which websockify reads the tokens; PASSWORD stands for Redis'."""
    match config.token_store:
        case "redis":
            if config.redis_sentinel is not None or config.redis_tls:
                return _resolver_options(config) or "those of the resolver (TokenRedis knows no Sentinel and no TLS)"
            host, port = config.redis_servers[0]
            password = "PASSWORD" if config.redis_password_file else ""
            source = f"{host}:{port}:{config.redis_db}:{password}:{config.redis_namespace}"
            # Before 0.13 it knows no namespaces.
            options = f"--token-plugin=TokenRedis --token-source={source} of websockify 0.13 or newer"
        case "jwt":
            # jwcrypto's default, as of CVE-2022-3102, has the stock websockify refuse every encrypted token.
            options = f"--token-plugin=JWTTokenApi --token-source={config.jwt_key_files[0]} of vnctoken-websockify"
        case _:
            options = f"--token-plugin=TokenFile --token-source={config.token_folder}"
    resolver = _resolver_options(config)
    return f"{options} (or {resolver})" if resolver else options


def _resolver_options(config: Config) -> str:
    """Return the options with which websockify asks the resolver; "" if there is none that it could ask."""
    if not isinstance(config.resolver_listen, tuple):
        return ""
    return f"--token-plugin=JSONTokenApi --token-source=http://{write_address(config.resolver_listen)}/token/%s"


async def check_resolver(config: Config, reactor: Any, probe: Probe) -> Check:
    """Ask the resolver where a token leads, as websockify does. Raises NoAnswerError if it does not answer."""
    socket: Path | None = None
    match config.resolver_listen:
        case None:
            return Check("resolver", SKIP, "there is none: :resolver_listen: is not set")
        case (_, 0):
            return Check("resolver", SKIP, ":resolver_listen: takes any free port, so it is not known where it is")
        case Path() as socket:
            url = "http://localhost/token/"
        case address:
            url = f"http://{write_address(address)}/token/"
    async with probe(_LOOPBACK, _NOBODYS_PORT) as token:
        asked = partial(ask, reactor, url + token, ANSWER_SECONDS, socket=socket)
        answer = await _tried(reactor, asked, lambda answer: answer.status != HTTPStatus.NOT_FOUND)
    where = resolver_in_words(config)
    if answer.status == HTTPStatus.NOT_FOUND:
        problem = f"{where} does not find a probe token: the service runs with another configuration than this"
        return Check("resolver", FAIL, problem, "systemctl restart vnctoken")
    if answer.status != HTTPStatus.OK:
        raise NoAnswerError(in_words(answer.status))
    if _json(answer.body) != {"host": _LOOPBACK, "port": _NOBODYS_PORT}:
        raise NoAnswerError("another program answers, not the resolver")
    return Check("resolver", OK, f"{where} resolved a probe token")


def resolver_in_words(config: Config) -> str:
    """Return where the resolver listens, as `:resolver_listen:` has it."""
    match config.resolver_listen:
        case None:
            return "no resolver"
        case Path() as path:
            return f"unix:{path}"
        case address:
            return write_address(address)


async def _tried(reactor: Any, attempt: Callable[[], Awaitable[_T]], good: Callable[[_T], bool]) -> _T:
    """Try until what comes of it is good, or for LOOKUP_SECONDS."""
    give_up = reactor.seconds() + LOOKUP_SECONDS
    while not good(outcome := await attempt()) and reactor.seconds() < give_up:
        await deferLater(reactor, _RETRY_SECONDS)
    return outcome


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None
