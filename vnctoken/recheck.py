"""A token dies with its VM's console: what oned says of the VMs is held against the tokens that are alive."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from vnctoken.decisions import UNAUDITED, about, note
from vnctoken.errors import NoExistsError, TokenStoreError, VnctokenError
from vnctoken.tokens import PROBE_VM_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

    from vnctoken.decisions import Audit
    from vnctoken.oned import Oned
    from vnctoken.rules import ConsoleRules
    from vnctoken.tokens import Grant, LiveToken, TokenStore
    from vnctoken.vm import VirtualMachine

_ONED, _STORE = "oned", "the token store"


class Recheck:
    """Revokes tokens whose VM is gone, has left the console states, or has its console elsewhere.

    Every `interval` seconds (more than 0) oned is asked about all VMs with tokens at once, with the session string that
    `session` returns. While it cannot be asked, or does not accept the session, tokens live on until they expire.
    """

    _log = Logger()

    def __init__(  # noqa: PLR0913, PLR0917 (the collaborators of one decision)
        self,
        store: TokenStore,
        oned: Oned,
        session: Callable[[], str],
        rules: ConsoleRules,
        clock: IReactorTime,
        interval: float,
        audit: Audit = UNAUDITED,
    ) -> None:
        self._store = store
        self._oned = oned
        self._session = session
        self._rules = rules
        self._interval = interval
        self._audit = audit
        self._loop = LoopingCall(self._begin_check)
        self._loop.clock = clock
        self._checking: Deferred[None] | None = None
        self._busy = False
        self._revoking = DeferredLock()
        self._troubles: dict[str, type[VnctokenError]] = {}

    def start(self) -> None:
        """Check from now on, for the first time after an interval."""
        self._loop.start(self._interval, now=False).addErrback(_expect_cancelled)

    async def stop(self) -> None:
        """Check no more, and give up a check that is under way."""
        if self._loop.running:
            self._loop.stop()
        if self._checking is not None:
            self._checking.cancel()

    async def check(self) -> None:
        """Ask oned, and revoke what must die; while a check is under way there is no other. Raises nothing."""
        if self._busy:
            return
        self._busy = True
        problems: list[VnctokenError] = []
        try:
            with _noted(problems):
                if await self._ask(problems):
                    self._report(problems, _ONED)
                self._report(problems, _STORE)
        except CancelledError:
            raise
        except Exception:  # noqa: BLE001 (one bad round must not be the last)
            self._log.failure("the consoles of live tokens could not be checked")
        finally:
            self._busy = False

    async def saw(self, vm_id: int, vm: VirtualMachine) -> None:
        """Revoke what must die now that a VM is as oned's event says. Raises nothing but what is our own fault.

        In an event a VM has no monitoring, so it does not tell at which ESX host a vCenter VM is.
        """
        problems: list[VnctokenError] = []
        with _noted(problems):
            held = await self._store.live(vm_id)
            if not vm.host:
                held = [token for token in held if not self._differs_by_host(vm, token.grant)]
            await self._judge(vm_id, vm, held)
        self._report(problems, _STORE)

    def _begin_check(self) -> Deferred[None]:
        self._checking = Deferred.fromCoroutine(self.check())
        return self._checking

    async def _ask(self, problems: list[VnctokenError]) -> bool:
        """Check all tokens; return whether oned had to be asked."""
        targets = await self._store.targets()
        targets.pop(PROBE_VM_ID, None)
        if not targets:
            return False
        with _noted(problems):
            vms = await self._oned.vms(self._session(), targets)
            doubtful = [
                vm_id
                for vm_id, held in targets.items()
                if any(self._rules.problem(vms.get(vm_id), host, port) for host, port in held)
            ]
            if doubtful:
                await self._look_again(doubtful, problems)
        return True

    async def _look_again(self, vm_ids: Collection[int], problems: list[VnctokenError]) -> None:
        # A token that was issued while oned was asked may know better than the answer. So the tokens are listed first,
        # and then judged by an answer that is younger than all of them.
        held: dict[int, list[LiveToken]] = {}
        for vm_id in vm_ids:
            with _noted(problems):
                held[vm_id] = await self._store.live(vm_id)
        vms = await self._oned.vms(self._session(), held)
        for vm_id, tokens in held.items():
            with _noted(problems):
                vm = vms.get(vm_id)
                if vm is not None and any(self._differs_by_host(vm, token.grant) for token in tokens):
                    vm = await self._in_full(vm_id)
                await self._judge(vm_id, vm, tokens)

    async def _in_full(self, vm_id: int) -> VirtualMachine | None:
        # The short form that a pool has VMs in names the cluster of a vCenter VM, not its ESX host.
        try:
            return await self._oned.vm_info(self._session(), vm_id)
        except NoExistsError:
            return None

    async def _judge(self, vm_id: int, vm: VirtualMachine | None, tokens: Collection[LiveToken]) -> None:
        doomed: dict[str, list[LiveToken]] = {}
        for token in tokens:
            problem = self._rules.problem_of(vm, token.grant)
            if problem:
                doomed.setdefault(problem, []).append(token)
        for problem, dying in doomed.items():
            await self._revoke(vm_id, dying, problem)

    async def _revoke(self, vm_id: int, doomed: Collection[LiveToken], problem: str) -> None:
        await self._revoking.acquire()
        try:
            # Since they were listed, an event or a caller may have taken some back, which is written down already.
            live = {token.digest for token in await self._store.live(vm_id)}
            dying = [token for token in doomed if token.digest in live]
            count = await self._store.revoke(vm_id, frozenset(token.digest for token in dying)) if dying else 0
        finally:
            self._revoking.release()
        if count:
            for token in dying:
                note(self._audit, about(token, "revoked", problem))
            self._log.info(
                "VM {vm_id}: {count} token(s) revoked ({fingerprints}): {problem!r}",
                vm_id=vm_id,
                count=count,
                fingerprints=", ".join(token.fingerprint for token in dying),
                problem=problem,
            )

    def _differs_by_host(self, vm: VirtualMachine, grant: Grant) -> bool:
        return self._rules.problem_of(vm, grant) != "" and not self._rules.problem_of(
            replace(vm, host=grant.host), grant
        )

    def _report(self, problems: Collection[VnctokenError], whose: str) -> None:
        """Log that a trouble begins, or that it is over."""
        error = next((problem for problem in problems if _whose(problem) == whose), None)
        if error is None:
            if self._troubles.pop(whose, None):
                self._log.info("the consoles of live tokens can be checked again: {whose} answers", whose=whose)
        elif self._troubles.get(whose) is not type(error):
            self._troubles[whose] = type(error)
            self._log.warn(
                "the consoles of live tokens cannot be checked, so these live until they expire: {reason}",
                reason=str(error),
            )


def _expect_cancelled(failure: Failure) -> None:
    """Take the failure of the last check, which `stop` has given up."""
    if not isinstance(failure.value, CancelledError):
        failure.raiseException()


def _whose(error: VnctokenError) -> str:
    return _STORE if isinstance(error, TokenStoreError) else _ONED


@contextmanager
def _noted(problems: list[VnctokenError]) -> Iterator[None]:
    """Go on after what is nobody's fault here."""
    try:
        yield
    except VnctokenError as error:
        problems.append(error)
