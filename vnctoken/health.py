"""Whether the service could do its work now: what a load balancer asks before it sends anybody here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from vnctoken.errors import OnedError, VnctokenError

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from vnctoken.oned import Oned

CHECK_SECONDS = 2.5
"""How long a check may take; a little more than a Redis has by default, so that one hears what is wrong with it."""

FRESH_SECONDS = 2.0
"""For how long a report is used again, however many ask."""

Check = Callable[[], Awaitable[None]]
"""Raises VnctokenError if what it looks at is not as it should be."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: how long it took, and what the matter is, "" for nothing."""

    milliseconds: float
    problem: str

    @property
    def ok(self) -> bool:
        """Whether all is well."""
        return not self.problem


@dataclass(frozen=True, slots=True)
class Report:
    """What all checks found, by their names."""

    checks: Mapping[str, Finding]

    @property
    def ready(self) -> bool:
        """Whether calls can be answered."""
        return all(finding.ok for finding in self.checks.values())

    def as_json(self) -> dict[str, Any]:
        """Return the report as /readyz tells it."""
        return {"ready": self.ready, "checks": {name: _as_json(finding) for name, finding in self.checks.items()}}


class Health:
    """Carries out checks, all at once, when somebody asks; who asks meanwhile gets the same report."""

    _log = Logger()

    def __init__(self, checks: Mapping[str, Check], clock: IReactorTime) -> None:
        self._checks = checks
        self._clock = clock
        self._report: Report | None = None
        self._expires = 0.0
        self._waiting: list[Deferred[Report]] = []

    async def report(self) -> Report:
        """Return what the checks found, FRESH_SECONDS ago at most. It takes CHECK_SECONDS at most."""
        if self._report is not None and self._clock.seconds() < self._expires:
            return self._report
        waiting: Deferred[Report] = Deferred()
        self._waiting.append(waiting)
        if len(self._waiting) == 1:
            # On its own: who goes away takes nobody else's report along.
            Deferred.fromCoroutine(self._look())
        return await waiting

    async def _look(self) -> None:
        looking = [Deferred.fromCoroutine(self._finding(name, check)) for name, check in self._checks.items()]
        report = Report(dict(zip(self._checks, await gatherResults(looking), strict=True)))
        self._report, self._expires = report, self._clock.seconds() + FRESH_SECONDS
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.called:
                one.callback(report)

    async def _finding(self, name: str, check: Check) -> Finding:
        began = self._clock.seconds()
        problem = await self._problem(name, check)
        return Finding((self._clock.seconds() - began) * 1000, problem)

    async def _problem(self, name: str, check: Check) -> str:
        async def look() -> None:
            await check()

        try:
            await Deferred.fromCoroutine(look()).addTimeout(CHECK_SECONDS, self._clock, _late)
        except VnctokenError as error:
            return str(error) or type(error).__name__
        except Exception:  # noqa: BLE001
            # A bug of ours, which is for the log: its text may hold anything.
            self._log.failure("the check {name} broke", name=name)
            return "internal error; the log says more"
        return ""


async def oned_answers(oned: Oned, session: Callable[[], str]) -> None:
    """Look whether oned answers; a refusal is an answer. Raises OnedError."""
    credential = session()
    try:
        await oned.version(credential)
    except OnedError:
        raise
    except VnctokenError:
        return


def _late(_outcome: object, timeout: float) -> None:
    raise VnctokenError(f"no answer within {timeout:g} seconds")


def _as_json(finding: Finding) -> dict[str, Any]:
    told = {"ok": finding.ok, "ms": round(finding.milliseconds, 1)}
    return told if finding.ok else {**told, "problem": finding.problem}
