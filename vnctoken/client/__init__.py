"""Consoles for portals written in Python: the service's methods as functions, plain or under Twisted.

`Client` waits for its answers; `vnctoken.client.twisted.AsyncClient` has the same methods as coroutines. Both raise
what `vnctoken.client.errors` draws.
"""

from vnctoken.client.calls import Console, LiveToken
from vnctoken.client.errors import (
    ActionError,
    ApiError,
    AuthenticationError,
    AuthorizationError,
    ClientError,
    ErrorCode,
    InternalError,
    NoExistsError,
    TokenStoreError,
    VnctokenError,
)
from vnctoken.client.sync import Client

__all__ = [
    "ActionError",
    "ApiError",
    "AuthenticationError",
    "AuthorizationError",
    "Client",
    "ClientError",
    "Console",
    "ErrorCode",
    "InternalError",
    "LiveToken",
    "NoExistsError",
    "TokenStoreError",
    "VnctokenError",
]
