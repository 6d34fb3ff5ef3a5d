"""What is counted and timed, told by those who do the work; metrics.py makes Prometheus' metrics of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Vitals:
    """What can be looked up at any time: numbers of things, an age in seconds (None without a token), and a state."""

    live_tokens: Callable[[], int]
    oldest_token: Callable[[], float | None]
    connections: Callable[[], int]
    oned_connections: Callable[[], int]
    oned_waiting: Callable[[], int]
    oned_shut: Callable[[], bool]


class Measures(Protocol):
    """Takes what is measured. All names come from fixed sets: never a user, a VM or a token."""

    def began(self) -> None:
        """Take the beginning of a call; `called` or `given_up` takes its end."""

    def called(self, method: str, code: int, seconds: float) -> None:
        """Take the end of a call: its method, or "unknown"; the code of its answer; how long it took in all."""

    def given_up(self) -> None:
        """Take the end of a call whose client went away."""

    def refused(self, reason: str) -> None:
        """Take a refusal; the reason is that of an error's class, or "bug"."""

    def spent(self, stage: str, seconds: float) -> None:
        """Take the time of one step: "queue" (waiting for a connection to oned), "oned" or "store"."""

    def resolved(self, outcome: str) -> None:
        """Take an answer of the resolver: "opened", "admitted", "refused" or "unknown" (it could not be told)."""

    def audit_failed(self) -> None:
        """Take that a line could not be written to the audit log."""


class Unmeasured:
    """Takes no notice."""

    def began(self) -> None:
        """Do nothing."""

    def called(self, method: str, code: int, seconds: float) -> None:
        """Do nothing."""

    def given_up(self) -> None:
        """Do nothing."""

    def refused(self, reason: str) -> None:
        """Do nothing."""

    def spent(self, stage: str, seconds: float) -> None:
        """Do nothing."""

    def resolved(self, outcome: str) -> None:
        """Do nothing."""

    def audit_failed(self) -> None:
        """Do nothing."""


UNMEASURED = Unmeasured()
