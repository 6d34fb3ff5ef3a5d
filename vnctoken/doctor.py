"""Look at an installation from end to end, and say in words what works, what does not, and what to do about it.

The heart of it is a probe: a token in the real store that leads to a listener of the doctor's own, opened through the
running proxy. It is for a VM that cannot exist, lives for PROBE_TTL seconds, and is taken back where that is possible.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from twisted.internet.defer import CancelledError, Deferred

from vnctoken.addresses import write_address
from vnctoken.auth.users import UserPool
from vnctoken.checks import FAIL, OK, SKIP, WARN, Check, check_config, check_extras, check_folder, check_privacy
from vnctoken.config import DOORS_AS_SERVER
from vnctoken.errors import OnedError, TokenStoreError, VnctokenError
from vnctoken.login import LoginUnavailableError
from vnctoken.probes import NoAnswerError, ask, in_words
from vnctoken.readers import check_proxy, check_resolver, resolver_in_words
from vnctoken.safexml import DocumentError
from vnctoken.tokens import PROBE_VM_ID, Grant, digest
from vnctoken.wire import Fault, read_answer, write_call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from vnctoken.config import Config
    from vnctoken.oned import Oned
    from vnctoken.tokens import TokenStore

PROBE_TTL = 30

CHECK_SECONDS = 5
PROXY_SECONDS = 12
RESOLVER_SECONDS = 8

NAMES = ("config", "extras", "oned", "login", "store", "proxy", "resolver", "server", "public_url")
"""The checks, in their order."""

# oned refuses what has no colon before it asks anybody: no driver, no directory, no account to lock.
_NOBODY = "nobody"


class Login(Protocol):
    """The service's own login to oned."""

    def session(self) -> str:
        """Return a session string."""


@dataclass(frozen=True)
class Collaborators:
    """What the service works with, made when its check begins; each raises ConfigError where that cannot be.

    `now` is in seconds of the epoch, `user` the number of the user that we are.
    """

    oned: Callable[[], Oned]
    store: Callable[[], TokenStore]
    login: Callable[[], Login | None]
    now: Callable[[], float]
    user: int


@dataclass(frozen=True)
class _Step:
    """A check to come: what it is about, and what to do if that cannot be used."""

    look: Callable[[], Awaitable[Check]]
    about: str
    advice: str
    seconds: float = CHECK_SECONDS


def not_examined(problem: str) -> list[Check]:
    """Report a configuration that cannot be used, and so nothing else."""
    wrong = Check("config", FAIL, problem, "correct it until vnctoken-server --check says nothing more")
    return [wrong, *(Check(name, SKIP, "not looked at, as the configuration is wrong") for name in NAMES[1:])]


class Doctor:
    """Examines what a configuration describes, one check after the other."""

    def __init__(self, config: Config, reactor: Any, collaborators: Collaborators) -> None:
        self._config = config
        self._reactor = reactor
        self._with = collaborators
        self._store: TokenStore | None = None
        self._login: Login | None = None
        self._login_problem: VnctokenError | None = None
        self._oned_answers = False
        self._refused = False
        self._interrupted = False
        self._examining: Deferred[None] | None = None

    def examine(self, warnings: Sequence[str], report: Callable[[Check], None]) -> Deferred[None]:
        """Make all checks, and report each when it is done. Interrupted, this fails with CancelledError."""
        self._examining = Deferred.fromCoroutine(self._examine(warnings, report))
        return self._examining

    def interrupt(self) -> None:
        """Make no further checks; `examine` ends when the probe token is taken back."""
        # What is under way may take its cancellation for a failure of its own.
        self._interrupted = True
        if self._examining is not None:
            self._examining.cancel()

    async def _examine(self, warnings: Sequence[str], report: Callable[[Check], None]) -> None:
        report(check_config(warnings))
        report(check_extras(self._config))
        try:
            for name, step in self._steps().items():
                found = await self._made(name, step)
                if self._interrupted:
                    raise CancelledError
                report(found)
        finally:
            if self._store is not None:
                await self._closed(self._store)

    async def _made(self, name: str, step: _Step) -> Check:
        """Make a check; what does not come in time, and any failure, is a finding too."""

        def failed(problem: str) -> Check:
            return Check(name, FAIL, f"{step.about}: {problem}", step.advice)

        async def looked() -> Check:
            try:
                return await step.look()
            except (VnctokenError, NoAnswerError) as error:
                return failed(str(error))
            except CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 (its text may hold anything, and the other checks are worth making)
                return failed(f"the check broke off ({type(error).__name__})")

        looking = Deferred.fromCoroutine(looked())
        return await looking.addTimeout(
            step.seconds, self._reactor, lambda _outcome, seconds: failed(f"no answer within {seconds:g} seconds")
        )

    def _steps(self) -> dict[str, _Step]:
        config = self._config
        proxy = write_address(config.proxy_address)
        proxy_unit = f"systemctl status vnctoken-websockify; :proxy_address: is {proxy}"
        unit = "systemctl status vnctoken; journalctl -u vnctoken"
        web_server = "look at the web server there: its certificate, and its proxy_pass or the like for this path"
        store, look_at_store = self._store_in_words()
        return {
            "oned": _Step(self._oned, config.one_xmlrpc, "systemctl status opennebula; compare :one_xmlrpc:"),
            "login": _Step(self._server_login, config.server_login, "look who may read that file, and what is in it"),
            "store": _Step(self._token_store, store, look_at_store),
            "proxy": _Step(self._proxy, proxy, proxy_unit, PROXY_SECONDS),
            "resolver": _Step(self._resolver, resolver_in_words(config), unit, RESOLVER_SECONDS),
            "server": _Step(self._server, self._own_url, unit),
            "public_url": _Step(self._public_url, str(config.public_url), web_server),
        }

    # oned

    async def _oned(self) -> Check:
        try:
            self._login = self._with.login()
        except VnctokenError as error:
            self._login_problem = error
        oned = self._with.oned()
        version = ""
        try:
            version = await oned.version(_NOBODY if self._login is None else self._login.session())
        except OnedError:
            raise
        except VnctokenError:
            self._refused = True
        self._oned_answers = True
        told = f"it is OpenNebula {version}" if version else "its version is told to those alone that it lets log in"
        return Check("oned", OK, f"{self._config.one_xmlrpc} answers; {told}")

    async def _server_login(self) -> Check:
        vital = bool(self._config.needs_login)
        rechecked = self._config.recheck_interval and self._config.token_store != "jwt"  # noqa: S105 (a kind of store)
        if not (rechecked or vital):
            return Check("login", SKIP, "none is needed: nothing is rechecked, and no door in :auth: takes one")
        if isinstance(self._login_problem, LoginUnavailableError) and not vital:
            return Check("login", WARN, f"{self._login_problem}; until then, tokens outlive their VM's console")
        if self._login_problem is not None:
            raise self._login_problem
        if self._login is None:
            missed = " and ".join(self._config.needs_login) or "tokens outlive their VM's console"
            return Check(
                "login",
                FAIL if vital else WARN,
                f"there is no {self._config.server_login}, but {missed}",
                "write serveradmin:PASSWORD into vnctoken_auth there, readable for its owner alone",
            )
        if not self._oned_answers:
            return Check("login", SKIP, "not tried, as oned does not answer")
        if self._refused:
            return Check(
                "login",
                FAIL,
                f"oned refuses the server login in {self._config.server_login}",
                "compare oneuser show serveradmin: its driver has to be server_cipher; oneuser passwd --sha256"
                " serveradmin PASSWORD, with the password in the file, makes them agree",
            )
        if any(door in DOORS_AS_SERVER for door in self._config.auth):
            # What the doors look callers up in; it says so if the login may not see it.
            await UserPool(self._with.oned(), self._login.session, self._reactor).users()
        return Check("login", OK, f"oned accepts the server login in {self._config.server_login}")

    # The store, and those who read it

    def _store_in_words(self) -> tuple[str, str]:
        """Return what the token store is, and how to look at it."""
        config = self._config
        match config.token_store:
            case "redis":
                host, port = config.redis_servers[0]
                by = "" if config.redis_sentinel is None else ", by its Sentinels,"
                tell = f"redis-cli -h {host} -p {port} ping; compare :redis_password_file:, :redis_tls: and :redis_db:"
                return f"Redis{by} at {', '.join(map(write_address, config.redis_servers))}", tell
            case "jwt":
                files = " ".join(config.jwt_key_files)
                return f"JWT with the keys in {files}", f"ls -l {files}"
        folder = config.token_folder
        return str(folder), f"ls -ld {folder} {folder}.new; df {folder}"

    async def _token_store(self) -> Check:
        config = self._config
        in_folder = config.token_store == "folder"  # noqa: S105 (a kind of store)
        if in_folder and (trouble := check_folder(config.token_folder, self._with.user)):
            return trouble
        store = self._with.store()
        try:
            async with self._probe_in(store, "127.0.0.1", 9) as token:
                if await store.find(token) is None:
                    raise TokenStoreError("a token that was just written is not found")
        except BaseException:
            await self._closed(store)
            raise
        self._store = store
        private = [(config.token_folder, "chmod 700")] if in_folder else []
        private += [(Path(name), "chmod o=") for name in config.jwt_key_files if config.token_store == "jwt"]  # noqa: S105
        for path, remedy in private:
            if warning := check_privacy(path, remedy):
                return warning
        about, _ = self._store_in_words()
        return Check("store", OK, f"{about}: a token was {'written and taken back' if store.revocable else 'made'}")

    @asynccontextmanager
    async def _probe_in(self, store: TokenStore, host: str, port: int) -> AsyncIterator[str]:
        """Have a token in a store, for a block's time, that leads to a host and port."""
        token = await store.issue(Grant(PROBE_VM_ID, host, port, self._with.now(), PROBE_TTL, user="vnctoken-doctor"))
        try:
            yield token
        finally:
            if store.revocable:
                taken_back = Deferred.fromCoroutine(store.revoke(PROBE_VM_ID, frozenset({digest(token)})))
                await taken_back.addTimeout(CHECK_SECONDS, self._reactor)

    async def _closed(self, store: TokenStore) -> None:
        closing = Deferred.fromCoroutine(store.close())
        await closing.addTimeout(CHECK_SECONDS, self._reactor, lambda _outcome, _seconds: None)

    async def _proxy(self) -> Check:
        if (store := self._store) is None:
            return Check("proxy", SKIP, "not tried, as there can be no probe token")
        return await check_proxy(self._config, self._reactor, lambda host, port: self._probe_in(store, host, port))

    async def _resolver(self) -> Check:
        if (store := self._store) is None:
            return Check("resolver", SKIP, "not tried, as there can be no probe token")
        return await check_resolver(self._config, self._reactor, lambda host, port: self._probe_in(store, host, port))

    # The service itself

    @property
    def _own_url(self) -> str:
        # What listens at every address does so at this one.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._config.host, self._config.host)  # noqa: S104
        return f"http://{write_address((host, self._config.port))}/RPC2"

    async def _server(self) -> Check:
        if not self._config.port:
            return Check("server", SKIP, ":port: is 0, so it is not known which one the service took")
        await self._list_methods(self._own_url)
        return Check("server", OK, f"vnctoken-server answers at {self._own_url}")

    async def _public_url(self) -> Check:
        url = self._config.public_url
        if url is None:
            return Check("public_url", SKIP, "there is none: :public_url: is not set")
        await self._list_methods(url)
        if urlsplit(url).scheme == "http":
            return Check("public_url", WARN, f"{url} leads to vnctoken-server, but in the clear", "use https there")
        return Check("public_url", OK, f"{url} leads to vnctoken-server, with a good certificate")

    async def _list_methods(self, url: str) -> None:
        """Raise NoAnswerError unless vnctoken-server answers at a URL."""
        answer = await ask(self._reactor, url, CHECK_SECONDS, body=write_call("system.listMethods"))
        if answer.status != HTTPStatus.OK:
            raise NoAnswerError(in_words(answer.status))
        try:
            methods = read_answer(answer.body)
        except (DocumentError, Fault):
            methods = []
        if not isinstance(methods, list) or "one.vm.vnctoken" not in methods:
            raise NoAnswerError("another program answers, not vnctoken-server")
