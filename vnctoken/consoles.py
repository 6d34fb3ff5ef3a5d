"""Who may have which console: oned judges the caller, we judge the VM, and a token comes out, or goes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vnctoken.arguments import Options
from vnctoken.auth.whois import nobody
from vnctoken.decisions import UNAUDITED, Decision, about, note
from vnctoken.errors import ActionError, AuditError, OnedError, TokenStoreError, VnctokenError
from vnctoken.links import console_link
from vnctoken.tokens import FINGERPRINT_DIGITS, Grant, digest, fingerprint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vnctoken.auth import Caller
    from vnctoken.auth.admission import Admission
    from vnctoken.decisions import Audit
    from vnctoken.limits import Limits
    from vnctoken.presence import Presence
    from vnctoken.rules import ConsoleRules
    from vnctoken.tokens import LiveToken, TokenStore
    from vnctoken.user import User


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

    With `presence`, two live VMs that claim one host and port are told apart; without it the later one has it. `whois`
    tells the `audit` log a caller's account.
    """

    def __init__(  # noqa: PLR0913 (what it works with)
        self,
        admission: Admission,
        tokens: TokenStore,
        limits: Limits,
        *,
        rules: ConsoleRules,
        terms: Terms,
        now: Callable[[], float],
        presence: Presence | None = None,
        audit: Audit = UNAUDITED,
        whois: Callable[[Caller], Awaitable[User | None]] = nobody,
    ) -> None:
        self._admission = admission
        self._tokens = tokens
        self._limits = limits
        self._audit = audit
        self._whois = whois
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

        Raises what `Admission.vm_info`, `ConsoleRules.target`, `Limits.room` and `TokenStore.issue` raise, AuditError,
        and ActionError if another live VM is at the same host and port, or if an option cannot be kept here.
        """
        if (options.single_use or options.client) and not self._terms.resolved:
            raise ActionError(
                "The options single_use and client need a resolver, and a store that can keep them (:resolver_listen:,"
                " :token_store:), which this service does not have; ask for a token without them"
            )
        vm = await self._admission.vm_info(caller, vm_id)
        host, port = self._rules.target(vm)
        user = await self._whois(caller)
        try:
            await self._make_room(vm_id, host, port)
        except TokenStoreError as error:
            raise TokenStoreError(f"Cannot create VNC proxy token. {error}") from error
        # Nothing waits from here to the issue: calls that come at once find the room that others have left.
        await self._limits.room(caller.client, caller.user)
        ttl = self._terms.ttl if options.ttl is None else min(options.ttl, self._terms.ttl_max)
        grant = Grant(
            vm_id, host, port, self._now(), ttl, caller.user, options.single_use, options.client, caller.client
        )
        token = await self._tokens.issue(grant)
        issued = Decision("issued", vm_id=vm_id, host=host, port=port, token=fingerprint(token))
        try:
            self._audit.record(_made_by(caller, user, issued))
        except AuditError:
            # Nobody has seen the token; where it cannot be taken back, nobody will.
            with contextlib.suppress(VnctokenError):
                await self._tokens.revoke(vm_id, frozenset({digest(token)}))
            raise
        terms = self._terms
        url = terms.link and console_link(terms.link, vm_id=vm_id, host=host, port=port, token=token)
        return Console(vm_id, host, vm.graphics_type, port, vm.listen, vm.password, terms.wss, token, ttl, url)

    async def revoke(self, caller: Caller, vm_id: int, token: str | None = None) -> int:
        """Take back the VM's tokens, or the one that is given, itself or by its fingerprint; return how many.

        Whoever may open the console may do so. Raises as `Admission.vm_info` and `TokenStore.revoke` do, and
        AuditError; the tokens are gone even then.
        """
        await self._admission.vm_info(caller, vm_id)
        user = await self._whois(caller)
        live = await self._tokens.live(vm_id)
        if token is None:
            count = await self._tokens.revoke(vm_id)
        else:
            live = [
                one
                for one in live
                if one.digest == digest(token)
                or (len(token) == FINGERPRINT_DIGITS and one.fingerprint == token.lower())
            ]
            count = await self._tokens.revoke(vm_id, frozenset(one.digest for one in live))
        unwritten: AuditError | None = None
        # Whoever took them back in the meantime has written so.
        for one in live if count else []:
            try:
                self._audit.record(_made_by(caller, user, about(one, "revoked", "asked for")))
            except AuditError as error:  # noqa: PERF203 (each line counts)
                unwritten = error
        if unwritten is not None:
            raise unwritten
        return count

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
            # Another call may have taken them back while oned was asked.
            if await self._tokens.revoke(other, frozenset(one.digest for one in live)):
                for one in live:
                    note(self._audit, about(one, "revoked", f"VM {vm_id} has its host and port"))

    async def _is_there(self, grant: Grant) -> bool:
        if self._presence is None:
            return False
        try:
            return await self._presence.still_there(grant)
        except OnedError:
            # The caller's VM is there, as oned has just said; of the other one nothing is known.
            return False


def _made_by(caller: Caller, user: User | None, decision: Decision) -> Decision:
    """Return a decision with who has called for it: as oned names him, if it does, and else as he does himself."""
    return replace(
        decision,
        request=caller.request,
        method=caller.method,
        user=user.name if user else caller.user,
        uid=user.id if user else None,
        door=caller.door,
        client=caller.client,
    )
