"""What the service decides, as it is written down: one value a decision. audit.py writes them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from vnctoken.errors import AuditError

if TYPE_CHECKING:
    from vnctoken.tokens import LiveToken

Event = Literal["issued", "refused", "revoked", "expired", "resolved"]


@dataclass(frozen=True, slots=True)
class Decision:
    """A token was issued, resolved, revoked, or has expired; or somebody was refused.

    What is not known, or does not apply, is left as it is. `user` is who called, or whose the token was; `uid` is his
    number in oned. `token` is the fingerprint, never the token; `reason` a word from a fixed set, or a sentence of our
    own; `request` the id that the log line of the same request has.
    """

    event: Event
    request: str = ""
    method: str = ""
    user: str = ""
    uid: int | None = None
    door: str = ""
    client: str = ""
    vm_id: int | None = None
    host: str = ""
    port: int | None = None
    token: str = ""
    code: int | None = None
    reason: str = ""


class Audit(Protocol):
    """Where decisions are written down."""

    def record(self, decision: Decision) -> None:
        """Write a decision down, now. Raises AuditError if it must be and cannot."""


class Unaudited:
    """Writes nothing down."""

    def record(self, decision: Decision) -> None:
        """Do nothing."""


def about(token: LiveToken, event: Event, reason: str) -> Decision:
    """Return what was decided about a token that was issued some time ago."""
    grant = token.grant
    return Decision(
        event,
        user=grant.user,
        vm_id=grant.vm_id,
        host=grant.host,
        port=grant.port,
        token=token.fingerprint,
        reason=reason,
    )


def note(audit: Audit, decision: Decision) -> None:
    """Write down what happens by itself, so that there is nobody to be refused; the audit log tells of its trouble."""
    with contextlib.suppress(AuditError):
        audit.record(decision)


UNAUDITED = Unaudited()
