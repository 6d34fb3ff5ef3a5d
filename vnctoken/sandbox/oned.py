"""A stand-in for OpenNebula's core daemon: a few of its methods, for clients that must not notice.

It answers as oned 6.10.0 does, down to spelling, line ends and the order in which things are checked.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from twisted.internet.protocol import Factory

from vnctoken.errors import ErrorCode
from vnctoken.sandbox.abyss import Abyss
from vnctoken.sandbox.accountmethods import AccountMethods
from vnctoken.sandbox.behaviour import Behaviour, spoil_answer
from vnctoken.sandbox.calls import NO_SUCH_METHOD_ERROR, Answer, FaultError, decode_call
from vnctoken.sandbox.refusals import error
from vnctoken.sandbox.vmmethods import VM_INFO, VmMethods

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from twisted.internet.interfaces import IAddress

    from vnctoken.sandbox.abyss import Clock
    from vnctoken.sandbox.calls import Call
    from vnctoken.sandbox.cloud import Cloud, User

VERSION = "6.10.0"
"""What ``one.system.version`` answers."""


class Oned:
    """The methods, over one cloud and but for those `without`; no network."""

    def __init__(self, cloud: Cloud, clock: Clock, without: Container[str] = ()) -> None:
        self._cloud = cloud
        self._clock = clock
        methods: Mapping[str, Callable[[Call, User], Answer]] = {
            **VmMethods(cloud).by_name,
            **AccountMethods(cloud).by_name,
            "one.system.version": _version,
        }
        self._methods = {name: method for name, method in methods.items() if name not in without}

    def answer(self, call: Call) -> Answer:
        """Return the answer to a call; raise `FaultError` if the method is unknown or an argument wrong."""
        method = self._methods.get(call.method)
        if method is None:
            raise FaultError(NO_SUCH_METHOD_ERROR, f"Method '{call.method}' not defined")
        # oned reads the session, then judges it, and only then reads the other arguments.
        user = self._cloud.who_is(call.string(0), self._clock.seconds())
        if user is None:
            text = "User couldn't be authenticated, aborting call."
            return error(call, text, ErrorCode.AUTHENTICATION)
        return method(call, user)


def _version(_call: Call, _user: User) -> Answer:
    return Answer(success=True, text=VERSION)


class OnedFactory(Factory):
    """The server: `behaviour` for every call, but for ``one.vm.info`` of the VMs in `ugly_guests` theirs.

    It does not know the methods `without`, as older ones do not.
    """

    noisy = False

    def __init__(
        self,
        cloud: Cloud,
        clock: Clock,
        behaviour: Behaviour = Behaviour(),  # noqa: B008 - it is frozen
        ugly_guests: Mapping[int, Behaviour] = MappingProxyType({}),
        without: Container[str] = (),
    ) -> None:
        self._oned = Oned(cloud, clock, without)
        self._clock = clock
        self._behaviour = behaviour
        self._ugly_guests = ugly_guests

    def buildProtocol(self, addr: IAddress | None) -> Abyss:  # noqa: ARG002 - everybody is served
        """Return the protocol of a new connection."""
        return Abyss(self._reply, self._clock)

    def _reply(self, request: bytes) -> tuple[bytes, Behaviour]:
        behaviour = self._behaviour
        try:
            call = decode_call(request)
            if call.method == VM_INFO and len(call.arguments) > 1:
                behaviour = self._ugly_guests.get(call.integer(1), behaviour)
            answer = self._oned.answer(call)
        except FaultError as fault:
            return fault.body, behaviour
        return spoil_answer(behaviour.kind, answer), behaviour
