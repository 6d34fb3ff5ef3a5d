"""Who oned's users are, asked at most once a minute: the accounts that doors look callers up in."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from twisted.internet.defer import Deferred

from vnctoken.errors import OnedError
from vnctoken.oned import as_the_service
from vnctoken.sharing import Waiters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

    from vnctoken.oned import Oned
    from vnctoken.user import User

CACHE_SECONDS = 60
"""For how long an answer counts, from when oned was asked; `EXPIRE_USER_CACHE` of OpenNebula's servers."""

# To anybody but an administrator oned tells only of himself; everybody else sees user 0, who is always there.
_ONEADMIN = 0

_Key = TypeVar("_Key", str, int)


class Users:
    """The accounts that are enabled. Each look-up returns None where there is no such user, or more than one."""

    def __init__(self, users: Iterable[User]) -> None:
        enabled = [user for user in users if user.enabled]
        self._by_id = _index((user.id, user) for user in enabled)
        self._by_name = _index((user.name, user) for user in enabled)
        self._by_dn = _index((dn, user) for user in enabled if user.driver == "x509" for dn in user.password.split("|"))
        self._by_remote_name = _index((user.password, user) for user in enabled if user.driver == "public")

    def by_id(self, user_id: int) -> User | None:
        """Return the user with an id."""
        return self._by_id.get(user_id)

    def by_name(self, name: str) -> User | None:
        """Return the user with a name."""
        return self._by_name.get(name)

    def by_dn(self, dn: str) -> User | None:
        """Return the user of the auth driver `x509` who has a DN among those of his certificates, as it is stored."""
        return self._by_dn.get(dn) if dn else None

    def by_remote_name(self, name: str) -> User | None:
        """Return the user of the auth driver `public` whom a web server in front knows by a name."""
        return self._by_remote_name.get(name) if name else None


def _index(pairs: Iterable[tuple[_Key, User]]) -> dict[_Key, User | None]:
    found: dict[_Key, User | None] = {}
    for key, user in pairs:
        found[key] = user if found.get(key, user) is user else None
    return found


class UserPool:
    """oned's users, remembered for CACHE_SECONDS.

    `session` makes a session string of the service's own login, who must be an administrator: to anybody else oned
    tells only of himself.
    """

    def __init__(self, oned: Oned, session: Callable[[], str], clock: IReactorTime) -> None:
        self._oned = oned
        self._session = session
        self._clock = clock
        self._users = Users(())
        self._good_until = clock.seconds()
        self._asking = False
        self._waiters: Waiters[Users] = Waiters()

    async def users(self) -> Users:
        """Return the users as they were at some time in the last CACHE_SECONDS; oned is asked once for all who wait.

        Raises OnedError if oned could not be asked, or refuses the service's own login.
        """
        if self._clock.seconds() < self._good_until:
            return self._users
        waiter = self._waiters.join()
        if not self._asking:
            self._asking = True
            # Nobody's own question: who goes away does not take it with him.
            Deferred.fromCoroutine(self._ask()).addBoth(self._tell)
        return await waiter

    async def _ask(self) -> Users:
        asked = self._clock.seconds()
        with as_the_service():
            accounts = await self._oned.users(self._session())
        if not any(account.id == _ONEADMIN for account in accounts):
            raise OnedError("oned tells the service of its own user alone: that has to be in the group oneadmin")
        if self._clock.seconds() >= asked + CACHE_SECONDS:
            raise OnedError(f"oned took longer than {CACHE_SECONDS} seconds to tell who its users are")
        self._users, self._good_until = Users(accounts), asked + CACHE_SECONDS
        return self._users

    def _tell(self, outcome: Users | Failure) -> None:
        self._asking = False
        self._waiters.tell(outcome)
