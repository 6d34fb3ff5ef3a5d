"""What a client raises, as one tree; the refusals are the service's own classes.

::

    VnctokenError
    ├── AuthenticationError   0x0100  the session is not known, or too many attempts have failed
    ├── AuthorizationError    0x0200  the user may not use this VM, or this method
    ├── NoExistsError         0x0400  no such VM, or none with a VNC console
    ├── ActionError           0x0800  the VM has no console now, or an option cannot be kept
    ├── ApiError              0x1000  the service has no such method, or took an argument for wrong
    ├── InternalError         0x2000  oned is down, slow or unintelligible, or a limit is reached
    ├── TokenStoreError       0x4000  the token store cannot be used
    └── ClientError           0x2000  no answer came, or none that can be understood

Each has its `code`. With those of 0x2000 and 0x4000 trying again may help. No text holds a session, a password or a
token.
"""

from vnctoken.errors import (
    ActionError,
    ApiError,
    AuthenticationError,
    AuthorizationError,
    ErrorCode,
    NoExistsError,
    TokenStoreError,
    VnctokenError,
)

__all__ = [
    "ActionError",
    "ApiError",
    "AuthenticationError",
    "AuthorizationError",
    "ClientError",
    "ErrorCode",
    "InternalError",
    "NoExistsError",
    "TokenStoreError",
    "VnctokenError",
    "refusal",
]


class InternalError(VnctokenError):
    """Raised if the service could not do what it was asked, through no fault of the caller's."""

    code = ErrorCode.INTERNAL


class ClientError(VnctokenError):
    """Raised if the endpoint did not answer, or with something that is no answer."""

    code = ErrorCode.INTERNAL
    reason = "client"


_BY_CODE: dict[int, type[VnctokenError]] = {
    refused.code: refused
    for refused in (
        AuthenticationError,
        AuthorizationError,
        NoExistsError,
        ActionError,
        ApiError,
        InternalError,
        TokenStoreError,
    )
}


def refusal(code: int, message: str) -> VnctokenError:
    """Return the error for an answer `[false, message, code]`; a code that there is not counts as 0x2000."""
    return _BY_CODE.get(code, InternalError)(message)
