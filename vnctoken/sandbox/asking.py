"""A cloud, asked by XML-RPC in the name of one of its users, as any portal asks it."""

from __future__ import annotations

import xmlrpc.client
from typing import TYPE_CHECKING, Any

import pyone
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.error import ConnectError, ConnectionLost
from twisted.web.error import Error as HttpError
from twisted.web.xmlrpc import Proxy

from vnctoken.safexml import DocumentError, parse
from vnctoken.vm import ACTIVE, LCM_STATES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lxml import etree

ANSWER_SECONDS = 30
"""How long the cloud may take to answer; vnctoken-server itself waits 25 s for oned."""

_OF_THE_USER, _ALL, _NOT_DONE = -2, -1, -1
_STATE_NAMES = {int(state): state.name for state in pyone.VM_STATE}
_LCM_STATE_NAMES = {number: name for name, number in LCM_STATES.items()}


class ProblemError(Exception):
    """Raised if there is no answer but this text, which is for the user."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Cloud:
    """The cloud's two services, asked in the name of a user."""

    def __init__(self, oned: str, vnctoken: str, reactor: Any) -> None:
        self._reactor = reactor
        self._oned = Proxy(oned.encode(), reactor=reactor)
        self._vnctoken = Proxy(vnctoken.encode(), reactor=reactor)

    async def vms(self, session: str) -> list[dict[str, Any]]:
        """Return the VMs that the user may use; raise ProblemError if oned refuses."""
        answer = await self._asked("oned", self._oned, "one.vmpool.info", session, _OF_THE_USER, _ALL, _ALL, _NOT_DONE)
        if answer[0] is not True:
            raise ProblemError(403, str(answer[1]))
        try:
            vms = [_described(vm) for vm in parse(answer[1].encode()).iterchildren("VM")]
        except (DocumentError, ValueError) as error:
            raise ProblemError(502, "oned answers with something that is no list of VMs.") from error
        return sorted(vms, key=lambda vm: int(vm["id"]))

    async def console(self, session: str, vm_id: int) -> Mapping[str, Any]:
        """Return what `one.vm.vnctoken` answers; raise ProblemError with its message if it refuses."""
        answer = await self._asked("vnctoken-server", self._vnctoken, "one.vm.vnctoken", session, vm_id)
        if answer[0] is not True:
            raise ProblemError(409, f"{answer[1]} ({answer[2]:#06x})")
        return answer[1]  # type: ignore[no-any-return]

    async def _asked(self, who: str, proxy: Proxy, method: str, *arguments: object) -> Any:
        try:
            return await proxy.callRemote(method, *arguments).addTimeout(ANSWER_SECONDS, self._reactor)
        except (ConnectError, ConnectionLost, HttpError, DeferredTimeoutError, xmlrpc.client.Error, OSError) as error:
            raise ProblemError(502, f"{who} does not answer. Is it running?") from error


def _described(vm: etree._Element) -> dict[str, Any]:
    state, lcm_state = int(vm.findtext("STATE", "")), int(vm.findtext("LCM_STATE", ""))
    name = _LCM_STATE_NAMES.get(lcm_state) if state == ACTIVE else _STATE_NAMES.get(state)
    return {
        "id": int(vm.findtext("ID", "")),
        "name": vm.findtext("NAME", ""),
        "owner": vm.findtext("UNAME", ""),
        "state": (name or f"{state}/{lcm_state}").lower().replace("_", " "),
    }
