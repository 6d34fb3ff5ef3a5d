"""Ask oned, OpenNebula's core: the only module that knows its XML-RPC dialect.

oned takes at most 15 connections and has a short backlog (measured: 32 at once make a p99 of 1 s), so a few are in
flight and the rest wait here, in a bounded queue, under one deadline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pyone
from twisted.internet.defer import Deferred, DeferredSemaphore

from vnctoken.errors import (
    ActionError,
    ApiError,
    AuthenticationError,
    AuthorizationError,
    NoExistsError,
    OnedError,
    VnctokenError,
)
from vnctoken.safexml import DocumentError
from vnctoken.vm import VirtualMachine
from vnctoken.wire import Fault, read_answer, write_call

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twisted.internet.interfaces import IReactorTime

QUEUE_LENGTH = 256

REFUSALS: Mapping[type[pyone.OneException], type[VnctokenError]] = {
    pyone.OneAuthenticationException: AuthenticationError,
    pyone.OneAuthorizationException: AuthorizationError,
    pyone.OneNoExistsException: NoExistsError,
    pyone.OneActionException: ActionError,
    pyone.OneApiException: ApiError,
    pyone.OneInternalException: VnctokenError,
}
"""What each refusal of oned is called by pyone, and by us."""

_BY_CODE: Mapping[int, tuple[type[VnctokenError], type[pyone.OneException]]] = {
    ours.code: (ours, theirs) for theirs, ours in REFUSALS.items()
}


class Transport(Protocol):
    """Carries one request to oned and its answer back."""

    async def post(self, body: bytes) -> bytes:
        """Return the answer's body; raise OnedError. Can be cancelled at any time."""


class Oned:
    """oned as we see it.

    At most `connections` questions are in flight, QUEUE_LENGTH more wait, and each has `timeout` seconds from the
    moment it is asked, its waiting included.
    """

    def __init__(self, transport: Transport, clock: IReactorTime, *, timeout: float, connections: int) -> None:
        self._transport = transport
        self._clock = clock
        self._timeout = timeout
        self._connections = connections
        self._slots = DeferredSemaphore(connections)

    async def vm_info(self, session: str, vm_id: int) -> VirtualMachine:
        """Return a VM as the owner of `session` may see it.

        Raises the error for oned's refusal with oned's own words (see REFUSALS), and OnedError if oned could not be
        asked or understood.
        """
        return VirtualMachine.from_xml(await self._call(write_call("one.vm.info", session, vm_id)))

    async def _call(self, request: bytes) -> str:
        if len(self._slots.waiting) >= QUEUE_LENGTH:
            raise OnedError(f"too many calls are waiting for oned ({QUEUE_LENGTH}); try again in a moment")
        asked = Deferred.fromCoroutine(self._in_turn(request)).addTimeout(self._timeout, self._clock, _late)
        return _success(await asked)

    async def _in_turn(self, request: bytes) -> bytes:
        await self._slots.acquire()
        try:
            return await self._transport.post(request)
        finally:
            self._slots.release()


def _late(_outcome: object, timeout: float) -> bytes:
    """Take the place of whatever comes of a question that was given up: Twisted has many names for that."""
    raise OnedError(f"oned did not answer within {timeout:g} seconds")


def _success(answer: bytes) -> str:
    """Return the text of a successful answer: `[true, text, 0]`; a refusal is `[false, text, code, ...]`.

    Nothing of what oned wrote gets into an error but the text of a refusal: it may repeat what it was asked.
    """
    try:
        value = read_answer(answer)
    except DocumentError:
        raise OnedError("oned's answer is not XML-RPC") from None
    except Fault as fault:
        raise OnedError(f"oned did not accept our question: XML-RPC fault {fault.faultCode}") from None
    match value:
        case [True, str(text), *_]:
            return text
        case [False, str(text), int(code), *_] if code in _BY_CODE:
            ours, theirs = _BY_CODE[code]
            raise ours(text) from theirs(text)
        case [False, str(), int(code), *_]:
            raise OnedError(f"oned refused with a code we do not know: {code:#06x}")
    raise OnedError("oned's answer is not the array that it should be")
