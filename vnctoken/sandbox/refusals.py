"""What the methods of the sandbox's oned have in common: how they refuse, and how an object's id is told them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vnctoken.errors import ErrorCode
from vnctoken.sandbox.calls import Answer

if TYPE_CHECKING:
    from vnctoken.sandbox.accounts import User
    from vnctoken.sandbox.calls import Call
    from vnctoken.sandbox.cloud import Right


def object_id(call: Call) -> int:
    """Return the id that `one.vm.info` and `one.user.info` are asked with."""
    number = call.integer(1)
    if len(call.arguments) > 2:  # noqa: PLR2004 - whether to decrypt: checked for its type, else of no effect
        call.boolean(2)
    return number


def not_authorized(call: Call, user: User, what: str, right: Right) -> Answer:
    """Return the refusal of a right that the user does not have."""
    return error(call, f"User [{user.id}] : Not authorized to perform {right.name} {what}.", ErrorCode.AUTHORIZATION)


def no_such(call: Call, kind: str, number: int) -> Answer:
    """Return the refusal for an object that is not there."""
    return error(call, f"Error getting {kind} [{number}].", ErrorCode.NO_EXISTS, number)


def error(call: Call, text: str, code: ErrorCode, number: int = -1) -> Answer:
    """Return a refusal; `number` is the id of the object that is missing."""
    return Answer(success=False, text=f"[{call.method}] {text}", code=code.value, object_id=number)
