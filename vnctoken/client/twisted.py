"""A client for programs that run under Twisted."""

# twisted.web is typed only in part.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import os
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.error import ConnectionRefusedError as TCPRefusedError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.web.client import Agent, ResponseDone, ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from vnctoken.arguments import Options
from vnctoken.client import calls
from vnctoken.client.endpoints import DEFAULT, MAX_ANSWER_BYTES, endpoint
from vnctoken.client.errors import ClientError
from vnctoken.client.http import HEADERS, in_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twisted.internet.interfaces import IConsumer
    from twisted.python.failure import Failure
    from twisted.web.iweb import IAgent

    from vnctoken.client.calls import Console, LiveToken, Question
    from vnctoken.client.errors import VnctokenError

_Result = TypeVar("_Result")


class AsyncClient:
    """The service at an endpoint, in the name of a session's owner.

    `session` is `user:password` or `user:login-token`. An answer has `timeout` seconds to arrive in. The certificate of
    an https endpoint is verified with the authorities that the system trusts, which takes vnctoken[tls]; an `agent` of
    your own may trust others, or keep connections.

    Raises ValueError if the endpoint is no URL. The methods raise what `vnctoken.client.errors` draws; they can be
    cancelled.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint_url: str = DEFAULT,
        session: str = "",
        *,
        timeout: float = 30,
        agent: IAgent | None = None,
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint(endpoint_url)
        self._session = session
        self._timeout = timeout
        self._agent = Agent(reactor, connectTimeout=timeout) if agent is None else agent

    def __repr__(self) -> str:
        return f"<AsyncClient of {self._endpoint.url}>"

    async def console(
        self, vm_id: int, *, ttl: int | None = None, single_use: bool = False, client: str | None = None
    ) -> Console:
        """Open a VM's console: return where it is, and a token for it.

        The token lives for `ttl` seconds if that is given, opens one console if it is for a `single_use`, and only one
        for the browser at the address `client` if there is one.
        """
        return await self._answer(calls.console(self._session, vm_id, Options(ttl, single_use, client or "")))

    async def token(
        self, vm_id: int, *, ttl: int | None = None, single_use: bool = False, client: str | None = None
    ) -> str:
        """Open a VM's console: return the token."""
        return await self._answer(calls.token(self._session, vm_id, Options(ttl, single_use, client or "")))

    async def xml(
        self, vm_id: int, *, ttl: int | None = None, single_use: bool = False, client: str | None = None
    ) -> str:
        """Open a VM's console: return a VM element in XML."""
        return await self._answer(calls.xml(self._session, vm_id, Options(ttl, single_use, client or "")))

    async def revoke(self, vm_id: int, token: str | None = None) -> int:
        """Take back all tokens of a VM, or one, itself or by its fingerprint; return how many."""
        return await self._answer(calls.revoke(self._session, vm_id, token))

    async def tokens(self, vm_id: int) -> list[LiveToken]:
        """Return a VM's live tokens, the oldest first."""
        return await self._answer(calls.tokens(self._session, vm_id))

    async def tokens_by_vm(self, vm_ids: Sequence[int]) -> dict[int, list[LiveToken] | VnctokenError]:
        """Return the live tokens of many VMs, a few questions for all; an error takes the place of a refusal."""
        found: dict[int, list[LiveToken] | VnctokenError] = {}
        for question in calls.tokens_by_vm(self._session, vm_ids):
            answered = await self._answer(question)
            found |= answered
        return found

    async def _answer(self, question: Question[_Result]) -> _Result:
        posting = Deferred.fromCoroutine(self._post(question.body))
        return question.read(await posting.addTimeout(self._timeout, self._reactor, self._late))

    async def _post(self, body: bytes) -> bytes:
        headers = Headers({name: [value] for name, value in HEADERS.items()})
        try:
            response = await self._agent.request(b"POST", self._endpoint.url.encode(), headers, _Body(body))
            gathered = _Gathered()
            response.deliverBody(gathered)
            if response.code != HTTPStatus.OK:
                gathered.stop()
                raise ClientError(f"{self._endpoint.url}: {in_words(response.code)}")
            return await gathered.whole
        except ConnectingCancelledError:
            raise CancelledError from None
        except (OSError, ConnectError, DNSLookupError, ResponseFailed, NotImplementedError, ValueError) as error:
            if isinstance(error, ResponseFailed) and any(reason.check(CancelledError) for reason in error.reasons):
                raise CancelledError from None
            raise ClientError(f"{self._endpoint.url}: {_explained(error)}") from None

    def _late(self, _outcome: object, seconds: float) -> bytes:
        raise ClientError(f"{self._endpoint.url}: no answer within {seconds:g} seconds")


@implementer(IBodyProducer)
class _Body:
    """A request's body, written at once: it is short."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...

    def stopProducing(self) -> None: ...


class _Gathered(Protocol):
    """The body of an answer, up to a bound."""

    transport: Any  # of a response, which ITransport does not describe

    def __init__(self) -> None:
        self._data = bytearray()
        self.whole: Deferred[bytes] = Deferred(lambda _: self.stop())

    def stop(self) -> None:
        """Listen no longer."""
        self.transport.stopProducing()

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > MAX_ANSWER_BYTES and not self.whole.called:
            self.whole.errback(OSError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes"))
            self.stop()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.whole.called:
            return
        if reason.check(ResponseDone):
            self.whole.callback(bytes(self._data))
        else:
            self.whole.errback(OSError("the connection was closed in the middle of it"))


def _explained(error: BaseException) -> str:
    """Say why there is no answer, in words that hold nothing which was sent."""
    match error:
        case TCPRefusedError():
            return "the connection is refused: nobody listens there"
        case DNSLookupError() | ValueError():
            return "the host has no address"
        case ConnectError(osError=int(number)):
            return os.strerror(number)
        case ResponseFailed():
            return _broken([failure.value for failure in error.reasons])
        case NotImplementedError():
            return "an https endpoint needs vnctoken[tls]"
        case OSError(args=[str(text)]):
            return text
    return f"the connection broke ({type(error).__name__})"


def _broken(reasons: Sequence[BaseException]) -> str:
    """Say why a connection broke off; OpenSSL's errors are lists of (library, function, reason)."""
    for reason in reasons:
        match type(reason).__name__, getattr(reason, "args", ()):
            case "Error", [[[_, _, "certificate verify failed"], *_]]:
                return "the certificate is not accepted: it has expired, or no authority that is known here made it"
            case "Error", [[[_, _, str(problem)], *_]]:
                return f"TLS: {problem}"
            case "VerificationError", _:
                return "the certificate is not accepted: it is for another host"
            case "ParseError", _:
                return "what answers there does not speak HTTP"
    return "the connection was closed without a complete answer"
