"""Ask oned, as the service itself, whether a VM's console is still where a token leads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vnctoken.errors import NoExistsError
from vnctoken.oned import as_the_service

if TYPE_CHECKING:
    from collections.abc import Callable

    from vnctoken.oned import Oned
    from vnctoken.rules import ConsoleRules
    from vnctoken.tokens import Grant


class Presence:
    """Knows where consoles are; `session` makes a session string of the service's own login."""

    def __init__(self, oned: Oned, session: Callable[[], str], rules: ConsoleRules) -> None:
        self._oned = oned
        self._session = session
        self._rules = rules

    async def still_there(self, grant: Grant) -> bool:
        """Whether the VM of a grant has its console where the grant leads.

        Raises OnedError if oned could not be asked, or refuses the service's own login.
        """
        with as_the_service():
            try:
                vm = await self._oned.vm_info(self._session(), grant.vm_id)
            except NoExistsError:
                return False
        return not self._rules.problem_of(vm, grant)
