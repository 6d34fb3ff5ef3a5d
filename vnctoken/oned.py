"""Ask oned, OpenNebula's core: the only module that knows its XML-RPC dialect.

oned takes at most 15 connections and has a short backlog (measured: 32 at once make a p99 of 1 s), so a few are in
flight and the rest wait here, in a bounded queue, under one deadline. An oned that is down is spared (breaker.py).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

import pyone
from twisted.internet.defer import Deferred, DeferredSemaphore

from vnctoken.breaker import CircuitBreaker
from vnctoken.errors import (
    ActionError,
    ApiError,
    AuthenticationError,
    AuthorizationError,
    NoExistsError,
    OnedError,
    VnctokenError,
)
from vnctoken.measures import UNMEASURED
from vnctoken.safexml import DocumentError
from vnctoken.user import User, group_names, users
from vnctoken.vm import VirtualMachine, vms_by_id
from vnctoken.wire import Fault, read_answer, write_call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence

    from twisted.internet.interfaces import IReactorTime

    from vnctoken.measures import Measures

QUEUE_LENGTH = 256

BATCH = 1000
"""How many VMs one question is about at most: about 1.3 MB of answer."""

# xmlrpc-c's code for a method that the server does not have and arguments of one.vmpool.info.
_NO_SUCH_METHOD = -506
_EVERYBODYS = -2
_MYSELF = -1
_NOT_DONE = -1

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


_Result = TypeVar("_Result")


async def at_once(work: Callable[[], _Result]) -> _Result:
    """Return what some work returns, done here and now."""
    return work()


@contextmanager
def as_the_service() -> Iterator[None]:
    """Make an OnedError of whatever oned refuses to the service's own login: no caller can help it."""
    try:
        yield
    except OnedError:
        raise
    except (AuthenticationError, AuthorizationError):
        raise OnedError("oned refuses the service's own login") from None
    except VnctokenError as error:
        raise OnedError(f"oned does not answer the service's own login ({error.code.name})") from None


class _NoSuchMethodError(OnedError):
    """Raised if oned is older than the method."""


class Transport(Protocol):
    """Carries one request to oned and its answer back."""

    async def post(self, body: bytes) -> bytes:
        """Return the answer's body; raise OnedError. Can be cancelled at any time."""


class Oned:
    """oned as we see it.

    At most `connections` questions are in flight, QUEUE_LENGTH more wait, and each has `timeout` seconds from the
    moment it is asked, its waiting included. `aside` does work that takes long: tens of milliseconds for a thousand
    users.
    """

    def __init__(  # noqa: PLR0913 (what it works with)
        self,
        transport: Transport,
        clock: IReactorTime,
        *,
        timeout: float,
        connections: int,
        aside: Callable[[Callable[[], list[User]]], Awaitable[list[User]]] = at_once,
        measures: Measures = UNMEASURED,
    ) -> None:
        self._transport = transport
        self._aside = aside
        self._clock = clock
        self._timeout = timeout
        self._connections = connections
        self._slots = DeferredSemaphore(connections)
        self._measures = measures
        self._breaker = CircuitBreaker(clock)

    @property
    def connections(self) -> int:
        """How many questions are in flight."""
        return self._connections - self._slots.tokens

    @property
    def waiting(self) -> int:
        """How many questions wait for a connection."""
        return len(self._slots.waiting)

    @property
    def shut(self) -> bool:
        """Whether oned has failed so often that it is hardly asked."""
        return self._breaker.shut

    async def vm_info(self, session: str, vm_id: int) -> VirtualMachine:
        """Return a VM as the owner of `session` may see it.

        Raises the error for oned's refusal with oned's own words (see REFUSALS), and OnedError if oned could not be
        asked or understood.
        """
        return VirtualMachine.from_xml(await self._call(write_call("one.vm.info", session, vm_id)))

    async def vms(self, session: str, ids: Collection[int]) -> dict[int, VirtualMachine]:
        """Return those of some VMs that oned knows and the owner of `session` may see, by id.

        They are in oned's short form (see `vms_by_id`). Raises as `vm_info` does.
        """
        found: dict[int, VirtualMachine] = {}
        ordered = sorted(ids)
        for start in range(0, len(ordered), BATCH):
            found |= await self._batch(session, ordered[start : start + BATCH])
        return found

    async def _batch(self, session: str, ids: Sequence[int]) -> dict[int, VirtualMachine]:
        question = write_call("one.vmpool.infoset", session, ",".join(map(str, ids)), False)
        try:
            return vms_by_id(await self._call(question))
        except _NoSuchMethodError:
            # An older oned: everybody's VMs in a range of ids, but the DONE ones.
            question = write_call("one.vmpool.info", session, _EVERYBODYS, ids[0], ids[-1], _NOT_DONE)
            found = vms_by_id(await self._call(question))
            return {vm_id: found[vm_id] for vm_id in ids if vm_id in found}

    async def user(self, session: str) -> User:
        """Return the account of the owner of `session`. Raises as `vm_info` does."""
        return User.from_xml(await self._call(write_call("one.user.info", session, _MYSELF)))

    async def users(self, session: str) -> list[User]:
        """Return the accounts that the owner of `session` may see: an administrator all. Raises as `vm_info` does."""
        answer = await self._answer(write_call("one.userpool.info", session))
        return await self._aside(lambda: users(_success(answer)))

    async def groups(self, session: str) -> dict[int, str]:
        """Return the names of the groups that the owner of `session` may see, by id. Raises as `vm_info` does."""
        return group_names(await self._call(write_call("one.grouppool.info", session)))

    async def version(self, session: str) -> str:
        """Return oned's version, such as "6.10.0". Raises as `vm_info` does."""
        return await self._call(write_call("one.system.version", session))

    async def _call(self, request: bytes) -> str:
        return _success(await self._answer(request))

    async def _answer(self, request: bytes) -> bytes:
        if len(self._slots.waiting) >= QUEUE_LENGTH:
            raise OnedError(f"too many calls are waiting for oned ({QUEUE_LENGTH}); try again in a moment")
        return await self._breaker.guard(lambda: self._in_time(request))

    def _in_time(self, request: bytes) -> Deferred[bytes]:
        return Deferred.fromCoroutine(self._in_turn(request)).addTimeout(self._timeout, self._clock, _late)

    async def _in_turn(self, request: bytes) -> bytes:
        asked = self._clock.seconds()
        await self._slots.acquire()
        begun = self._clock.seconds()
        self._measures.spent("queue", begun - asked)
        try:
            return await self._transport.post(request)
        finally:
            self._slots.release()
            self._measures.spent("oned", self._clock.seconds() - begun)


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
        error = _NoSuchMethodError if fault.faultCode == _NO_SUCH_METHOD else OnedError
        raise error(f"oned did not accept our question: XML-RPC fault {fault.faultCode}") from None
    match value:
        case [True, str(text), *_]:
            return text
        case [False, str(text), int(code), *_] if code in _BY_CODE:
            ours, theirs = _BY_CODE[code]
            raise ours(text) from theirs(text)
        case [False, str(), int(code), *_]:
            raise OnedError(f"oned refused with a code we do not know: {code:#06x}")
    raise OnedError("oned's answer is not the array that it should be")
