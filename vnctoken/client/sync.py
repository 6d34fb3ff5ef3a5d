"""A client that waits for its answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from vnctoken.arguments import Options
from vnctoken.client import calls
from vnctoken.client.endpoints import DEFAULT, endpoint
from vnctoken.client.http import post

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from vnctoken.client.calls import Console, LiveToken, Question
    from vnctoken.client.errors import VnctokenError

_Result = TypeVar("_Result")


class Client:
    """The service at an endpoint, in the name of a session's owner; good for several threads.

    `session` is `user:password` or `user:login-token`. An answer has `timeout` seconds to arrive in. The certificate of
    an https endpoint is verified with `tls`, by default with the authorities that the system trusts.

    Raises ValueError if the endpoint is no URL. The methods raise what `vnctoken.client.errors` draws.
    """

    def __init__(
        self, endpoint_url: str = DEFAULT, session: str = "", *, timeout: float = 30, tls: ssl.SSLContext | None = None
    ) -> None:
        self._endpoint = endpoint(endpoint_url)
        self._session = session
        self._timeout = timeout
        self._tls = tls

    def __repr__(self) -> str:
        return f"<Client of {self._endpoint.url}>"

    def console(
        self, vm_id: int, *, ttl: int | None = None, single_use: bool = False, client: str | None = None
    ) -> Console:
        """Open a VM's console: return where it is, and a token for it.

        The token lives for `ttl` seconds if that is given, opens one console if it is for a `single_use`, and only one
        for the browser at the address `client` if there is one.
        """
        return self._answer(calls.console(self._session, vm_id, Options(ttl, single_use, client or "")))

    def token(self, vm_id: int, *, ttl: int | None = None, single_use: bool = False, client: str | None = None) -> str:
        """Open a VM's console: return the token."""
        return self._answer(calls.token(self._session, vm_id, Options(ttl, single_use, client or "")))

    def xml(self, vm_id: int, *, ttl: int | None = None, single_use: bool = False, client: str | None = None) -> str:
        """Open a VM's console: return a VM element in XML."""
        return self._answer(calls.xml(self._session, vm_id, Options(ttl, single_use, client or "")))

    def revoke(self, vm_id: int, token: str | None = None) -> int:
        """Take back all tokens of a VM, or one, itself or by its fingerprint; return how many."""
        return self._answer(calls.revoke(self._session, vm_id, token))

    def tokens(self, vm_id: int) -> list[LiveToken]:
        """Return a VM's live tokens, the oldest first."""
        return self._answer(calls.tokens(self._session, vm_id))

    def tokens_by_vm(self, vm_ids: Sequence[int]) -> dict[int, list[LiveToken] | VnctokenError]:
        """Return the live tokens of many VMs, a few questions for all; an error takes the place of a refusal."""
        found: dict[int, list[LiveToken] | VnctokenError] = {}
        for question in calls.tokens_by_vm(self._session, vm_ids):
            answered = self._answer(question)
            found |= answered
        return found

    def _answer(self, question: Question[_Result]) -> _Result:
        return question.read(post(self._endpoint, question.body, self._timeout, self._tls))
