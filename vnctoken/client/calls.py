"""The service's methods as bytes to send and values to read: all of a client but the network."""

from __future__ import annotations

import re
import xmlrpc.client
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vnctoken.arguments import Options
from vnctoken.client.errors import ApiError, ClientError, VnctokenError, refusal
from vnctoken.safexml import DocumentError
from vnctoken.wire import Fault, read_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vnctoken.wire import Value

BATCH = 64
"""VMs that one question lists the tokens of. The service takes each to oned, eight at a time; 256 may wait there."""

Result = TypeVar("Result")

# What XML has no way to write: control characters, and halves of characters.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Console:
    """An opened console: what a viewer needs to connect, within `ttl` seconds (0: at any time).

    `url` leads to a page that shows it, None where the service has no `:console_url:`.
    """

    vm_id: int
    host: str
    type: str
    port: int
    listen: str
    password: str = field(repr=False)
    wss: bool
    token: str = field(repr=False)
    ttl: int
    url: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class LiveToken:
    """A token that opens a console now, by its fingerprint; the token itself is nowhere to be had again.

    The times are seconds of the epoch: `expires` is 0 for never, `used` 0 for not yet (that the resolver saw). `user`
    is "" for a token that Sunstone wrote, `client` the one address that may use it, "" for any.
    """

    fingerprint: str
    user: str
    issued: int
    expires: int
    used: int
    single_use: bool
    client: str


@dataclass(frozen=True)
class Question(Generic[Result]):
    """A request's body, and how to read the body of its answer."""

    body: bytes = field(repr=False)
    read: Callable[[bytes], Result]
    """Raises what `vnctoken.client.errors` draws."""


def console(session: str, vm_id: int, options: Options) -> Question[Console]:
    """Ask for a console."""
    return _asked(_console, "one.vm.vnctoken", session, vm_id, *_given(options))


def token(session: str, vm_id: int, options: Options) -> Question[str]:
    """Ask for a token alone."""
    return _asked(_string, "one.vm.vnctokenonly", session, vm_id, *_given(options))


def xml(session: str, vm_id: int, options: Options) -> Question[str]:
    """Ask for a console as XML."""
    return _asked(_string, "one.vm.vnc", session, vm_id, *_given(options))


def revoke(session: str, vm_id: int, token: str | None = None) -> Question[int]:
    """Take tokens back: all of a VM, or one, itself or by its fingerprint."""
    return _asked(_count, "one.vm.vncrevoke", session, vm_id, *(() if token is None else (token,)))


def tokens(session: str, vm_id: int) -> Question[list[LiveToken]]:
    """Ask for a VM's live tokens."""
    return _asked(_live_tokens, "one.vm.vnctokens", session, vm_id)


def tokens_by_vm(session: str, vm_ids: Sequence[int]) -> Iterator[Question[dict[int, list[LiveToken] | VnctokenError]]]:
    """Ask for the live tokens of many VMs, BATCH of them with each question; an error takes the place of a refusal."""
    for start in range(0, len(vm_ids), BATCH):
        yield _batch(session, vm_ids[start : start + BATCH])


def _batch(session: str, vm_ids: Sequence[int]) -> Question[dict[int, list[LiveToken] | VnctokenError]]:
    calls = [{"methodName": "one.vm.vnctokens", "params": [session, vm_id]} for vm_id in vm_ids]

    def one(entry: Value) -> list[LiveToken] | VnctokenError:
        match entry:
            case [answer]:
                try:
                    return _live_tokens(_success(answer))
                except VnctokenError as error:
                    return error
            case {"faultCode": int(code)}:
                return ClientError(f"the service answered with XML-RPC fault {code}")
        raise _nonsense()

    def read(answer: bytes) -> dict[int, list[LiveToken] | VnctokenError]:
        entries = read_value(answer)
        if not isinstance(entries, list) or len(entries) != len(vm_ids):
            raise _nonsense()
        return {vm_id: one(entry) for vm_id, entry in zip(vm_ids, entries, strict=True)}

    return Question(written("system.multicall", calls), read)


def written(method: str, *arguments: Any) -> bytes:
    """Return the body of a call. Raises ValueError for a text, and ApiError for a number, that cannot be in one."""
    try:
        body = xmlrpc.client.dumps(arguments, method)
    except OverflowError:
        raise ApiError("a number of more than 32 bits is neither the id of a VM nor a number of seconds") from None
    if _NOT_XML.search(body):
        # It is not told which: the session may be the one.
        raise ValueError("the session and all other texts must be Unicode, without control characters")
    # A carriage return that is written as it is would be read as a line feed.
    return body.replace("\r", "&#13;").encode()


def read_value(answer: bytes) -> Value:
    """Return the value that a methodResponse holds; raise ClientError if it is none, or a fault."""
    try:
        return read_answer(answer)
    except DocumentError:
        raise ClientError("the answer is not XML-RPC; is this the address of vnctoken-server?") from None
    except Fault as fault:
        # Its text stays out: who misunderstood us may repeat what he was asked.
        raise ClientError(f"the service answered with XML-RPC fault {fault.faultCode}") from None


def _asked(result: Callable[[Value], Result], method: str, *arguments: Any) -> Question[Result]:
    return Question(written(method, *arguments), lambda answer: result(_success(read_value(answer))))


def _given(options: Options) -> tuple[dict[str, Any], ...]:
    """Return the options that were given: an older service knows none."""
    unset = asdict(Options())
    given = {name: value for name, value in asdict(options).items() if value != unset[name]}
    return (given,) if given else ()


def _success(value: Value) -> Value:
    match value:
        case [True, result, *_]:
            return result
        case [False, str(message), int(code), *_]:
            raise refusal(code, message)
    raise _nonsense()


def _nonsense() -> ClientError:
    return ClientError("the answer is not the one that vnctoken-server gives to this call; is this its address?")


def _console(value: Value) -> Console:
    match value:
        case {
            "VmId": int(vm_id),
            "Host": str(host),
            "Type": str(type_),
            "Port": int(port),
            "Listen": str(listen),
            "Password": str(password),
            "Wss": bool(wss),
            "Token": str(token),
            "Ttl": int(ttl),
            **others,
        }:
            url = others.get("Url")
            if url is None or isinstance(url, str):
                return Console(vm_id, host, type_, port, listen, password, wss, token, ttl, url)
    raise _nonsense()


def _string(value: Value) -> str:
    if not isinstance(value, str):
        raise _nonsense()
    return value


def _count(value: Value) -> int:
    if not isinstance(value, int):
        raise _nonsense()
    return value


def _live_tokens(value: Value) -> list[LiveToken]:
    if not isinstance(value, list):
        raise _nonsense()
    return [_live_token(entry) for entry in value]


def _live_token(value: Value) -> LiveToken:
    match value:
        case {
            "fingerprint": str(fingerprint),
            "user": str(user),
            "issued": int(issued),
            "expires": int(expires),
            "used": int(used),
            "single_use": bool(single_use),
            "client": str(client),
        }:
            return LiveToken(fingerprint, user, issued, expires, used, single_use, client)
    raise _nonsense()
