"""Who may have which console: oned judges the caller, we judge the VM, and a token comes out, or goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vnctoken.arguments import Options
from vnctoken.errors import ActionError, OnedError, TokenStoreError
from vnctoken.links import console_link
from vnctoken.tokens import FINGERPRINT_DIGITS, Grant, digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from vnctoken.auth import Caller
    from vnctoken.auth.admission import Admission
    from vnctoken.presence import Presence
    from vnctoken.rules import ConsoleRules
    from vnctoken.tokens import LiveToken, TokenStore


@dataclass(frozen=True, slots=True)
class Console:
    """An opened console: what a viewer needs to connect, within `ttl` seconds (0: at any time)."""

    vm_id: int
    host: str
    type: str
    port: int
    listen: str
    password: str = field(repr=False)
    wss: bool
    token: str = field(repr=False)
    ttl: int
    url: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Terms:
    """What consoles are given out on.

    Tokens live for `ttl` seconds (0: for ever), or as long as the caller asks, up to `ttl_max`. `resolved` says whether
    there is a resolver to keep what only it can keep. `wss` is passed on to viewers: whether the websocket proxy speaks
    TLS. `link` is the template of the console's URL, if there is one.
    """

    ttl: int
    ttl_max: int
    resolved: bool
    wss: bool
    link: str | None = None


class Consoles:
    """Opens consoles, and takes their tokens back. `now` tells the second of the epoch.

    With `presence`, two live VMs that claim one host and port are told apart; without it the later one has it.
    """

    def __init__(  # noqa: PLR0913 (what it works with)
        self,
        admission: Admission,
        tokens: TokenStore,
        *,
        rules: ConsoleRules,
        terms: Terms,
        now: Callable[[], float],
        presence: Presence | None = None,
    ) -> None:
        self._admission = admission
        self._tokens = tokens
        self._rules = rules
        self._terms = terms
        self._now = now
        self._presence = presence

    async def open(
        self,
        caller: Caller,
        vm_id: int,
        options: Options = Options(),  # noqa: B008 (it is frozen)
    ) -> Console:
        """Return a console of the VM, with a token that the websocket proxy accepts from now on.

        Raises what `Admission.vm_info`, `ConsoleRules.target` and `TokenStore.issue` raise, and ActionError if another
        live VM is at the same host and port, or if an option cannot be kept here.
        """
        if (options.single_use or options.client) and not self._terms.resolved:
            raise ActionError(
                "The options single_use and client need a resolver, and a store that can keep them (:resolver_listen:,"
                " :token_store:), which this service does not have; ask for a token without them"
            )
        vm = await self._admission.vm_info(caller, vm_id)
        host, port = self._rules.target(vm)
        try:
            await self._make_room(vm_id, host, port)
        except TokenStoreError as error:
            raise TokenStoreError(f"Cannot create VNC proxy token. {error}") from error
        ttl = self._terms.ttl if options.ttl is None else min(options.ttl, self._terms.ttl_max)
        grant = Grant(vm_id, host, port, self._now(), ttl, caller.user, options.single_use, options.client)
        token = await self._tokens.issue(grant)
        terms = self._terms
        url = terms.link and console_link(terms.link, vm_id=vm_id, host=host, port=port, token=token)
        return Console(vm_id, host, vm.graphics_type, port, vm.listen, vm.password, terms.wss, token, ttl, url)

    async def revoke(self, caller: Caller, vm_id: int, token: str | None = None) -> int:
        """Take back the VM's tokens, or the one that is given, itself or by its fingerprint; return how many.

        Whoever may open the console may do so. Raises as `Admission.vm_info` and `TokenStore.revoke` do.
        """
        await self._admission.vm_info(caller, vm_id)
        if token is None:
            return await self._tokens.revoke(vm_id)
        live = await self._tokens.live(vm_id)
        wanted = frozenset(
            one.digest
            for one in live
            if one.digest == digest(token) or (len(token) == FINGERPRINT_DIGITS and one.fingerprint == token.lower())
        )
        return await self._tokens.revoke(vm_id, wanted)

    async def tokens(self, caller: Caller, vm_id: int) -> list[LiveToken]:
        """Return the VM's live tokens. Raises as `Admission.vm_info` and `TokenStore.live` do."""
        await self._admission.vm_info(caller, vm_id)
        return await self._tokens.live(vm_id)

    async def _make_room(self, vm_id: int, host: str, port: int) -> None:
        """Take back what other VMs' tokens lead to this host and port: they would open this VM's console.

        Raises ActionError if one of these VMs is there all the same.
        """
        for other in await self._tokens.holders(host, port) - {vm_id}:
            live = [one for one in await self._tokens.live(other) if (one.grant.host, one.grant.port) == (host, port)]
            if live and await self._is_there(live[0].grant):
                raise ActionError(
                    f"VM {vm_id} and VM {other} both claim port {port} of {host}, so neither console is certain to be"
                    " the right one; the cloud's operator has to give one of them another GRAPHICS/PORT or host"
                )
            await self._tokens.revoke(other, frozenset(one.digest for one in live))

    async def _is_there(self, grant: Grant) -> bool:
        if self._presence is None:
            return False
        try:
            return await self._presence.still_there(grant)
        except OnedError:
            # The caller's VM is there, as oned has just said; of the other one nothing is known.
            return False
