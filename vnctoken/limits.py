"""How much anybody may have of the service: calls in a time, and live tokens.

Calls are counted in token buckets: so many at once, and one more with every so many seconds. A call counts for its
address and in all when it arrives; for its user and its VM once oned has judged it, or anybody could use up the
calls of a user whose name he knows.
"""

from __future__ import annotations

import ipaddress
import math
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import islice
from math import inf
from typing import TYPE_CHECKING

from vnctoken.accessvalues import write_rate
from vnctoken.auth.entrance import shown
from vnctoken.countdowns import MICROSECOND, REMEMBERED, Countdowns, client_key, name_digest, user_key
from vnctoken.errors import LimitError, TokenStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from twisted.internet.interfaces import IReactorTime

    from vnctoken.accessvalues import Network
    from vnctoken.config import Config
    from vnctoken.tokens import Grant, LiveToken, TokenStore
    from vnctoken.tokens.register import Register

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address
    Rate = tuple[int, int]
    """A number, and the seconds in which it may be reached."""

LOOK_SECONDS = 2.0
"""For how long the store is asked whether counted tokens still live; for so long it is not asked again for the same."""

LOOK_VMS = 100
"""Of how many VMs it is asked then."""


@dataclass(frozen=True, slots=True)
class LimitRules:
    """The limits, as the keys of the configuration of the same names have them; None is no limit.

    Of `limits_exempt` neither the address nor the user is counted: a portal may use one account for everybody.
    """

    calls_per_user: Rate | None = None
    calls_per_vm: Rate | None = None
    calls_per_client: Rate | None = None
    calls_total: Rate | None = None
    tokens_per_user: int | None = None
    tokens_per_client: int | None = None
    tokens_total: int | None = None
    limits_exempt: Collection[Network] = ()

    @classmethod
    def from_config(cls, config: Config) -> LimitRules:
        """Return the limits of a configuration."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

    def exempts(self, client: str) -> bool:
        """Whether an address is exempt; what is no address, as behind a Unix socket, is not."""
        if not self.limits_exempt:
            return False
        address = _address(client)
        return address is not None and any(address in network for network in self.limits_exempt)


class Limits:
    """Counts calls, and asks the register for tokens. `now` tells the second of the epoch.

    `rules` may be replaced; what was counted stays. The store is asked what lives before anybody is refused for his
    tokens, and its `live` has to put the register right, as WatchedStore's does.
    """

    def __init__(
        self, rules: LimitRules, register: Register, store: TokenStore, clock: IReactorTime, now: Callable[[], float]
    ) -> None:
        self.rules = rules
        self._register = register
        self._store = store
        self._clock = clock
        self._now = now
        self._clients = _Buckets("client", "calls_per_client", client_key, clock)
        self._total = _Buckets("total", "calls_total", str.encode, clock)
        self._users = _Buckets("user", "calls_per_user", user_key, clock)
        self._vms = _Buckets("vm", "calls_per_vm", str.encode, clock)
        self._looked = Countdowns(clock)

    def arrived(self, client: str) -> None:
        """Count a call, as it arrives, for its address and in all. Raises LimitError if either has no room."""
        rate = None if self.rules.exempts(client) else self.rules.calls_per_client
        # The address first: a flood from one is refused before it takes what there is for all.
        self._clients.check(client, rate)
        self._total.check("", self.rules.calls_total)
        self._clients.take(client, rate)
        self._total.take("", self.rules.calls_total)

    def check(self, client: str, user: str, vm_id: int) -> None:
        """Raise LimitError if the user or the VM has had its calls; count nothing."""
        self._users.check(user, self._rate_of_user(client))
        self._vms.check(str(vm_id), self.rules.calls_per_vm)

    def admitted(self, client: str, user: str, vm_id: int) -> None:
        """Count a call that oned has admitted, for its user and VM. Raises LimitError if either has no room by now."""
        self.check(client, user, vm_id)
        self._users.take(user, self._rate_of_user(client))
        self._vms.take(str(vm_id), self.rules.calls_per_vm)

    def refused(self, client: str, user: str) -> None:
        """Count a call that oned has refused a user whom it knows: for him alone, as the VM may not be his."""
        rate = self._rate_of_user(client)
        # Of calls that were all asked at once, no more count than there was room for.
        with suppress(LimitError):
            self._users.check(user, rate)
            self._users.take(user, rate)

    async def room(self, client: str, user: str) -> None:
        """Raise LimitError if the user, the address or all together have as many live tokens as they may.

        A token takes its room as soon as the store is asked for it; calls that are not so far yet find the same room.
        """
        rules = self.rules
        if not rules.exempts(client):
            await self._room("user", user, rules.tokens_per_user)
            await self._room("client", client, rules.tokens_per_client)
        await self._room("total", "", rules.tokens_total)

    def _rate_of_user(self, client: str) -> Rate | None:
        return None if self.rules.exempts(client) else self.rules.calls_per_user

    async def _room(self, kind: str, name: str, most: int | None) -> None:
        if most is None or self._has_room(kind, name, most) <= self._now():
            return
        await self._look_again(kind, name, most)
        end = self._has_room(kind, name, most)
        if end > self._now() + MICROSECOND:
            setting = "tokens_total" if kind == "total" else f"tokens_per_{kind}"
            when = "none of them ends by itself" if end == inf else f"try again in {_seconds(end - self._now())}"
            way_out = "; one.vm.vncrevoke takes tokens back" if self._store.revocable else ""
            raise LimitError(
                f"Too many live tokens {_whose(kind, name)} (:{setting}: {most}); {when}{way_out}",
                kind,
            )

    def _has_room(self, kind: str, name: str, most: int) -> float:
        """Return the second of the epoch from which on one more token has room; 0 if it has, infinite for never."""
        coming = self._coming(kind, name)
        count = self._count(kind, name) + len(coming)
        if count < most:
            return 0.0
        if kind == "total":
            too_many = count - most + 1
            ends = self._register.next_expiries(too_many) + [grant.expires or inf for grant in coming]
            return sorted(ends)[too_many - 1]
        grants = [live.grant for live in self._tokens(kind, name)] + coming
        ends = sorted(grant.expires or inf for grant in grants if not self.rules.exempts(grant.caller))
        return ends[len(ends) - most] if len(ends) >= most else 0.0

    def _coming(self, kind: str, name: str) -> list[Grant]:
        match kind:
            case "user":
                key = user_key(name)
                return [grant for grant in self._register.coming if grant.user and user_key(grant.user) == key]
            case "client":
                key = client_key(name)
                return [grant for grant in self._register.coming if grant.caller and client_key(grant.caller) == key]
            case _:
                return [*self._register.coming]

    def _count(self, kind: str, name: str) -> int:
        match kind:
            case "user":
                return self._register.count_of_user(name)
            case "client":
                return self._register.count_of_client(name)
            case _:
                return len(self._register)

    def _tokens(self, kind: str, name: str) -> Iterable[LiveToken]:
        match kind:
            case "user":
                return self._register.of_user(name)
            case "client":
                return self._register.of_client(name)
            case _:
                return self._register

    async def _look_again(self, kind: str, name: str, most: int) -> None:
        """Ask the store whether what is counted still lives, until there is room: others may have taken tokens back."""
        key = name_digest(f"{kind} {name}")
        if not self._store.revocable or self._looked.left(key):
            return
        self._looked.start(key, LOOK_SECONDS)
        until = self._clock.seconds() + LOOK_SECONDS
        known = len(self._register)
        for vm_id in islice(dict.fromkeys(live.grant.vm_id for live in self._tokens(kind, name)), LOOK_VMS):
            try:
                await self._store.live(vm_id)
            except TokenStoreError:
                return
            if self._clock.seconds() >= until:
                return
            if len(self._register) < known and self._has_room(kind, name, most) <= self._now():
                return


class _Buckets:
    """Token buckets of one kind, by the names of those whose they are. Without a rate they are never empty."""

    def __init__(self, kind: str, setting: str, key: Callable[[str], bytes], clock: IReactorTime) -> None:
        self._kind = kind
        self._setting = setting
        self._key = key
        # The seconds until a bucket is full.
        self._filling = Countdowns(clock)

    def check(self, name: str, rate: Rate | None) -> None:
        """Raise LimitError if a bucket is empty."""
        if rate is None:
            return
        number, seconds = rate
        wait = self._left(self._key(name), seconds) - seconds * (number - 1) / number
        if wait > MICROSECOND:
            raise LimitError(
                f"Too many calls {_whose(self._kind, name)} (:{self._setting}: {write_rate(rate)});"
                f" try again in {_seconds(wait)}",
                self._kind,
            )

    def take(self, name: str, rate: Rate | None) -> None:
        """Take one call out of a bucket."""
        if rate is not None:
            number, seconds = rate
            key = self._key(name)
            self._filling.start(key, self._left(key, seconds) + seconds / number)

    def _left(self, key: bytes, seconds: int) -> float:
        left = self._filling.left(key)
        if left > seconds:
            # Counted at a slower rate, which was changed.
            self._filling.start(key, left := float(seconds))
        return left


def _whose(kind: str, name: str) -> str:
    match kind:
        case "user":
            return f"of the user {shown(name)}"
        case "vm":
            return f"for VM {name}"
        case "client":
            return f"from {name}"
        case _:
            return "in all"


@lru_cache(REMEMBERED)
def _address(client: str) -> Address | None:
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _seconds(wait: float) -> str:
    seconds = math.ceil(wait - MICROSECOND)
    return "1 second" if seconds == 1 else f"{seconds} seconds"
