"""XML-RPC in and out: a request's body becomes a call, and whatever comes of it becomes the answer's body.

This is the one place where an exception becomes `[False, message, code]`, and where a call is logged, measured, and
written to the audit log if it was refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.logger import Logger, LogLevel

from vnctoken.arguments import quoted, read_session, read_vm_id
from vnctoken.auth import OPENNEBULA
from vnctoken.auth.entrance import Visit, shown, user_name
from vnctoken.auth.whois import nobody
from vnctoken.decisions import UNAUDITED, Decision, note
from vnctoken.errors import (
    ActionError,
    ApiError,
    AuditError,
    AuthorizationError,
    ErrorCode,
    LimitError,
    NoExistsError,
    OnedError,
    TokenStoreError,
    VnctokenError,
)
from vnctoken.measures import UNMEASURED
from vnctoken.methods import CONSOLE_METHODS, SYSTEM_METHODS, introspected
from vnctoken.wire import Fault, FaultCode, MethodCall, Value, read_call, write_answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    from twisted.internet.interfaces import IReactorTime

    from vnctoken.auth import Caller, HttpRequest
    from vnctoken.auth.entrance import Entrance
    from vnctoken.consoles import Consoles
    from vnctoken.decisions import Audit
    from vnctoken.limits import Limits
    from vnctoken.measures import Measures
    from vnctoken.user import User

_PREFIX = "one.vm."
# What an operator must look at, as against what a caller did wrong.
_TROUBLE = frozenset({ErrorCode.INTERNAL, ErrorCode.ALLOCATE})
# Refusals of a caller whom oned, or a door, has identified before.
_OF_SOMEBODY = (ActionError, AuthorizationError, LimitError, NoExistsError, TokenStoreError)
_BUG = "bug"


@dataclass
class _Entry:
    """What the log says of one call, and who was found to make it."""

    method: str
    client: str
    request: str
    began: float
    vm_id: int | str = "-"
    user: str = "-"
    note: str = ""
    caller: Caller | None = None


class Rpc:
    """The XML-RPC interface, without HTTP. The clock is for how long calls take.

    The methods that are `switched_off` are named without their `one.vm.`. `whois` tells the `audit` log a caller's
    account.
    """

    _log = Logger()

    def __init__(  # noqa: PLR0913 (what it works with)
        self,
        consoles: Consoles,
        entrance: Entrance,
        limits: Limits,
        clock: IReactorTime,
        *,
        switched_off: Container[str] = (),
        measures: Measures = UNMEASURED,
        audit: Audit = UNAUDITED,
        whois: Callable[[Caller], Awaitable[User | None]] = nobody,
    ) -> None:
        self._consoles = consoles
        self._entrance = entrance
        self._limits = limits
        self._switched_off = switched_off
        self._clock = clock
        self._measures = measures
        self._audit = audit
        self._whois = whois

    async def answer(self, request: HttpRequest) -> bytes:
        """Return the body of the answer to a request.

        Cancelling stops the work: then no token is written.
        """
        try:
            value = await self._carry_out(read_call(request.body), Visit(self._entrance, request))
        except Fault as fault:
            self._log.info("{client} fault code={code}", client=request.client, code=fault.faultCode)
            value = fault
        return write_answer(value)

    async def _carry_out(self, call: MethodCall, visit: Visit) -> Any:
        if call.method == "system.multicall":
            return await self._multicall(call, visit)
        if call.method in SYSTEM_METHODS:
            value = introspected(call)
            entry = _Entry(call.method, visit.client, visit.request, self._clock.seconds())
            self._log.info("{line} code=0x0000", line=self._line(entry))
            self._measures.began()
            self._measures.called(call.method, ErrorCode.SUCCESS, self._took(entry))
            return value
        return await self._open(call, visit)

    async def _multicall(self, call: MethodCall, visit: Visit) -> list[Any]:
        if not call.arguments or not isinstance(call.arguments[0], list):
            raise Fault(FaultCode.INVALID_PARAMETERS, "system.multicall: an array of calls is expected")
        # All at once: a portal that lists VMs waits for the slowest. The bound is oned's queue.
        entries = [Deferred.fromCoroutine(self._entry(entry, visit)) for entry in call.arguments[0]]
        answers = await DeferredList(entries, consumeErrors=True)
        # An entry fails in one way only: it was cancelled, as the client went away.
        return [answer if success else answer.raiseException() for success, answer in answers]

    async def _entry(self, entry: Value, visit: Visit) -> Any:
        try:
            match entry:
                case {"methodName": str(method), "params": [*arguments]} if method != "system.multicall":
                    return [await self._carry_out(MethodCall(method, arguments), visit)]
            raise Fault(
                FaultCode.INVALID_PARAMETERS,
                "system.multicall: each call is a struct of methodName, other than system.multicall, and params",
            )
        except Fault as fault:
            return {"faultCode": fault.faultCode, "faultString": fault.faultString}

    async def _open(self, call: MethodCall, visit: Visit) -> list[Any]:
        """Carry out a console method and log the call, in one line."""
        # A name that is not ours stays out of the log: who mixes up arguments may have put his session there.
        name = call.method if call.method in CONSOLE_METHODS else "unknown"
        entry = _Entry(name, visit.client, visit.request, self._clock.seconds())
        self._measures.began()
        try:
            answer = await self._answered(call, entry, visit)
        except CancelledError:
            self._log.info("{line} cancelled: the client went away", line=self._line(entry))
            self._measures.given_up()
            raise
        self._measures.called(name, answer[2], self._took(entry))
        return answer

    async def _answered(self, call: MethodCall, entry: _Entry, visit: Visit) -> list[Any]:
        try:
            try:
                result = await self._console(call, entry, visit)
            except VnctokenError as error:
                await self._write_down(error, entry)
                raise
        except VnctokenError as error:
            level = _level(error)
            self._log.emit(
                level,
                "{line} code={code:#06x}{reason}",
                line=self._line(entry),
                code=int(error.code),
                reason="" if level is LogLevel.info else f" reason={_reason(error)}",
            )
            self._measures.refused(error.reason)
            return [False, str(error), int(error.code)]
        except CancelledError:
            raise
        except Exception:  # noqa: BLE001
            # The last line of defence: a bug of ours is for the log, and never for the client.
            self._log.failure("{line} code=0x2000 internal error", line=self._line(entry))
            self._measures.refused(_BUG)
            note(self._audit, _refusal(entry, ErrorCode.INTERNAL, _BUG))
            return [False, "internal error", int(ErrorCode.INTERNAL)]
        self._log.info("{line} code=0x0000 {note}", line=self._line(entry), note=entry.note)
        return [True, result, int(ErrorCode.SUCCESS)]

    async def _write_down(self, error: VnctokenError, entry: _Entry) -> None:
        """Write a refusal to the audit log. Raises AuditError, which is answered then."""
        if isinstance(error, AuditError):
            return
        caller = entry.caller
        user = await self._whois(caller) if caller and isinstance(error, _OF_SOMEBODY) else None
        self._audit.record(_refusal(entry, error.code, error.reason, user))

    async def _console(self, call: MethodCall, entry: _Entry, visit: Visit) -> Any:
        method = CONSOLE_METHODS.get(call.method)
        if method is None:
            raise ApiError(f"Unknown method '{quoted(call.method)}'. Expected {json.dumps([*CONSOLE_METHODS])}")
        if (short := call.method.removeprefix(_PREFIX)) in self._switched_off:
            raise AuthorizationError(f"{call.method} is switched off here (:permissions: :vm: :{short}:)")
        self._limits.arrived(entry.client)
        session = read_session(call.arguments)
        entry.user = user_name(session) or "-"
        entry.vm_id = vm_id = read_vm_id(call.arguments)
        entry.caller = caller = replace(await visit.caller(session), method=call.method)
        if caller.door != OPENNEBULA:
            entry.user = f"{shown(caller.user)} door={caller.door}"
        outcome = await method.carry_out(self._consoles, caller, vm_id, call.arguments)
        entry.note = outcome.note
        return outcome.result

    def _line(self, entry: _Entry) -> str:
        ms = f"{self._took(entry) * 1000:.1f}"
        return f"{entry.client} {entry.method} vm={entry.vm_id} user={entry.user} ms={ms} request={entry.request}"

    def _took(self, entry: _Entry) -> float:
        return self._clock.seconds() - entry.began


def _refusal(entry: _Entry, code: ErrorCode, reason: str, user: User | None = None) -> Decision:
    """Return what the audit log is told: whose call it was as oned says, or else as he does himself."""
    caller = entry.caller
    claimed = "" if entry.user == "-" else entry.user
    return Decision(
        "refused",
        request=entry.request,
        method=entry.method,
        user=user.name if user else caller.user if caller else claimed,
        uid=user.id if user else None,
        door=caller.door if caller else "",
        client=entry.client,
        vm_id=entry.vm_id if isinstance(entry.vm_id, int) else None,
        code=int(code),
        reason=reason,
    )


def _level(error: VnctokenError) -> Any:
    """Return the log's level: what an operator must look at, should look at, and what is the caller's matter."""
    if isinstance(error, LimitError):
        return LogLevel.warn
    return LogLevel.error if error.code in _TROUBLE else LogLevel.info


def _reason(error: VnctokenError) -> str:
    """Tell the log what happened: in our own words only, as oned's text may repeat what it was asked."""
    if isinstance(error, AuditError | LimitError | OnedError | TokenStoreError):
        return str(error)
    return "oned had an error of its own; its log says which"
