"""Ask oned, as the service itself, whether a VM's console is still where a token leads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vnctoken.errors import ActionError, AuthenticationError, AuthorizationError, NoExistsError, OnedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vnctoken.oned import Oned
    from vnctoken.rules import ConsoleRules


class Presence:
    """Knows where consoles are; `session` makes a session string of the service's own login."""

    def __init__(self, oned: Oned, session: Callable[[], str], rules: ConsoleRules) -> None:
        self._oned = oned
        self._session = session
        self._rules = rules

    async def leads_to(self, vm_id: int, host: str, port: int) -> bool:
        """Whether a VM has a console, and it is at this host and port.

        Raises OnedError if oned could not be asked, or refuses the service's own login.
        """
        try:
            vm = await self._oned.vm_info(self._session(), vm_id)
        except NoExistsError:
            return False
        except (AuthenticationError, AuthorizationError):
            raise OnedError("oned refuses the service's own login") from None
        try:
            return self._rules.target(vm) == (host, port)
        except (NoExistsError, ActionError):
            return False
