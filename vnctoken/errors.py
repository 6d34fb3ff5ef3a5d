"""What can go wrong, as one tree; each class carries the code that clients see.

::

    VnctokenError                 INTERNAL        our own fault, or a class without a better code
    ├── ConfigError               -               never reaches a client: the service does not start
    ├── AuthenticationError       AUTHENTICATION  oned does not know this session
    ├── AuthorizationError        AUTHORIZATION   the user may not use this VM
    ├── NoExistsError             NO_EXISTS       no such VM, or none with a VNC console
    ├── ActionError               ACTION          the VM is in no state, or on no target, for a console
    ├── ApiError                  XML_RPC_API     a call we do not have, or with wrong arguments
    ├── OnedError                 INTERNAL        oned is down, slow, full or talks nonsense
    ├── LimitError                INTERNAL        too many calls or tokens, and when to try again
    ├── AuditError                INTERNAL        what must be in the audit log cannot be written there
    └── TokenStoreError           ALLOCATE        the token could not be stored

The codes are OpenNebula's own (``include/Request.h``).
"""

from enum import IntEnum


class ErrorCode(IntEnum):
    """The third element of every answer, as OpenNebula numbers them."""

    SUCCESS = 0x0000
    AUTHENTICATION = 0x0100
    AUTHORIZATION = 0x0200
    NO_EXISTS = 0x0400
    ACTION = 0x0800
    XML_RPC_API = 0x1000
    INTERNAL = 0x2000
    ALLOCATE = 0x4000


class VnctokenError(Exception):
    """Base of every error this package raises on purpose.

    Its text is written for the person who made the call: it never holds a session, a password, a token
    or a path.
    """

    code = ErrorCode.INTERNAL
    reason = "internal"
    """What metrics and the audit log call it: a word from a fixed set."""


class ConfigError(VnctokenError):
    """Raised if the configuration, or what it points at, cannot be used."""


class AuthenticationError(VnctokenError):
    """Raised if oned does not accept the session."""

    code = ErrorCode.AUTHENTICATION
    reason = "authentication"


class AuthorizationError(VnctokenError):
    """Raised if oned does not let the user use the VM."""

    code = ErrorCode.AUTHORIZATION
    reason = "authorization"


class NoExistsError(VnctokenError):
    """Raised if there is no such VM, or it has no VNC console."""

    code = ErrorCode.NO_EXISTS
    reason = "no_exists"


class ActionError(VnctokenError):
    """Raised if the VM exists but offers no console now: wrong state, no host, or a port we do not open."""

    code = ErrorCode.ACTION
    reason = "action"


class ApiError(VnctokenError):
    """Raised if the method is unknown, or an argument is missing or of a wrong type."""

    code = ErrorCode.XML_RPC_API
    reason = "api"


class OnedError(VnctokenError):
    """Raised if oned could not be asked, or its answer could not be understood."""

    code = ErrorCode.INTERNAL
    reason = "oned"


class LimitError(VnctokenError):
    """Raised if somebody has made too many calls, or has too many tokens; it says when to try again.

    `kind` is which limit it is: user, vm, client or total.
    """

    reason = "limit"

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.reason = f"limit_{kind}"


class AuditError(VnctokenError):
    """Raised if a decision cannot be written to the audit log, and `:audit_required:` says that it must be."""

    reason = "audit"


class TokenStoreError(VnctokenError):
    """Raised if a token could not be stored. Nothing half-written is left."""

    code = ErrorCode.ALLOCATE
    reason = "store"
