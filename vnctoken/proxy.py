"""The `vnctoken-websockify` command: websockify with its own options, a log without tokens, and a health check."""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from vnctoken.tokens import fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMAND = "vnctoken-websockify"
CHECK_SECONDS = 10

_LIBRARIES = {"JSONTokenApi": "requests", "TokenRedis": "redis", "JWTTokenApi": "jwcrypto.jwt"}

# What websockify 0.10 to 0.13 and the http.server below it log of a request:
#   127.0.0.1: Path: '/websockify?token=...'
#   127.0.0.1: Token '...' not found                                    TokenRedis: resolving token '...'
#   127.0.0.1 - - [...] "GET /websockify?token=... HTTP/1.1" 405 -      --verbose
#   127.0.0.1 - - [...] code 400, message Bad request syntax ('GET /websockify?token=...')
# and what the HTTP client below JSONTokenApi logs of its questions to the resolver:
#   http://127.0.0.1:2647 "GET /token/... HTTP/1.1" 404 14              --verbose
#   handler exception: [...] Max retries exceeded with url: /token/... (Caused by [...])
# Repetitions that a client could make long are bounded, so that 64 KiB of quotes take no longer than other requests.
_NAMED = re.compile(r"(?P<before>\btoken ')(?P<token>.*)'", re.DOTALL | re.IGNORECASE)
_REFUSED = re.compile(r"(?P<before>\bcode \d{3}, message [^(]{0,40})\(.*\)", re.DOTALL)
_ASKED = re.compile(r"""(?P<before>(?:\burl: |"GET |://[^\s/]{1,300})/token/)(?P<token>\S+)""")
_QUERY = re.compile(
    r"""(?P<before> \? | %(?:25)*3f | (?=\btoken=) )    # however it was spelled
        (?P<query> .*? )
        (?P<after> (?:\ HTTP/\d\.\d)?"\ \d{3}\ \S{1,9} | ['")]{0,3} ) $""",
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
# A token of ours, or a JWT, that got somewhere else, such as into the message of an exception.
_BARE = re.compile(
    r"(?<![0-9a-z])[0-9a-f]{32}(?![0-9a-z]) | (?<![0-9a-z_-])eyJ[0-9a-z_-]{10,}(?:\.[0-9a-z_-]*){2,4}",
    re.VERBOSE | re.IGNORECASE,
)


def without_tokens(text: str) -> str:
    """Return a message with each token in it replaced by its fingerprint, and the rest of a query string left out.

    What http.server quotes of a request that it cannot read is left out as a whole.
    """
    text = _NAMED.sub(lambda found: f"{found['before']}{fingerprint(found['token'])}'", text)
    text = _REFUSED.sub(r"\g<before>(...)", text)
    text = _ASKED.sub(lambda found: f"{found['before']}{fingerprint(unquote(found['token']))}", text)
    text = _QUERY.sub(_shown_query, text)
    return _BARE.sub(lambda found: fingerprint(found[0]), text)


def _shown_query(found: re.Match[str]) -> str:
    # As websockify takes a token out of a path.
    tokens = parse_qs(found["query"].partition("#")[0]).get("token")
    shown = "token=" + fingerprint(tokens[0].rstrip("\n")) if tokens else "..."
    return f"{found['before']}{shown}{found['after']}"


def record_without_tokens(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """Make a log record as `logging.LogRecord` does, without tokens in its message and its traceback.

    Every logger and handler of a process gets such records after `logging.setLogRecordFactory`.
    """
    record = logging.LogRecord(*args, **kwargs)
    record.msg, record.args = without_tokens(record.getMessage()), ()
    if record.exc_info:
        traceback = logging.Formatter().formatException(record.exc_info)
        record.exc_text = "\n".join(map(without_tokens, traceback.splitlines()))
        record.exc_info = None
    return record


def trouble(host: str, port: int, seconds: float = CHECK_SECONDS) -> str | None:
    """Return why no console can be opened through the websockify at an address, or None if it serves connections.

    It does if it answers an HTTP request, whatever the answer: that comes from the process that it starts for each
    connection, and without --web it is a 405. It has so many seconds to begin to listen and to answer.
    """
    deadline = time.monotonic() + seconds

    def left() -> float:
        return max(deadline - time.monotonic(), 0.001)

    while True:
        try:
            connection = socket.create_connection((host, port), timeout=left())
            break
        except ConnectionRefusedError:
            if time.monotonic() >= deadline:
                return f"nobody listens there, after {seconds} seconds; its log says why"
            time.sleep(0.05)
        except OSError as error:
            return f"no connection: {error}"
    answer = b""
    with connection:
        try:
            # HTTP/1.0: the server closes the connection, so that this end does not cut it off amid the answer.
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while received := connection.recv(65536):
                answer = answer or received
                if time.monotonic() >= deadline:
                    break
                connection.settimeout(left())
        except TimeoutError:
            if not answer:
                return f"connections are accepted, but there was no answer within {seconds} seconds"
        except OSError:
            # Closed with our request unread.
            pass
    if not answer:
        return (
            "connections are accepted and closed without a byte. websockify does this where it cannot hand them to"
            " processes of their own, as happens under Python 3.14 (novnc/websockify#643), and with --ssl-only"
        )
    return None if b"\r\nServer: WebSockify" in answer else "another program listens there, not websockify"


def check(address: str) -> int:
    """Print whether the websockify at ADDRESS:PORT serves connections, and return the command's exit code."""
    parts = re.fullmatch(r"(?:(\S*):)?([0-9]{1,5})", address)
    if parts is None or int(parts[2]) not in range(1, 65536):
        return _fail(f"--check {address}: ADDRESS:PORT is expected, such as 127.0.0.1:29877 or [::1]:29877", 2)
    problem = trouble((parts[1] or "").strip("[]") or "localhost", int(parts[2]))
    if problem is not None:
        return _fail(f"{address}: {problem}", 1)
    sys.stdout.write(f"{COMMAND}: {address} serves connections\n")
    return 0


def run(arguments: Sequence[str]) -> int:
    """Run websockify with these arguments until it is told to end, and return the command's exit code.

    Raises SystemExit with 2 for options that websockify does not know.
    """
    try:
        websockify = import_module("websockify.websocketproxy")
    except ModuleNotFoundError as error:
        if error.name != "websockify":
            raise
        return _fail("websockify is not installed; pip install 'vnctoken[proxy]' brings it", 1)
    logging.setLogRecordFactory(record_without_tokens)
    # Python 3.14 changed the default to "forkserver". There a connection's process is a fresh interpreter, without this
    # log, and what is handed to it has to be picklable, or every connection breaks (novnc/websockify#643).
    multiprocessing.set_start_method("fork", force=True)
    os.register_at_fork(after_in_child=_end_when_told)
    _make_ready(arguments)
    sys.argv = [COMMAND, *arguments]
    try:
        websockify.websockify_init()
    except SystemExit as ended:
        # It says why it cannot begin, and then ends as if all were well.
        if ended.code is None:
            return 1
        raise
    except OSError as error:
        return _fail(str(error), 1)
    return 0


def _make_ready(arguments: Sequence[str]) -> None:
    """Import what the token plugin needs, which would do so itself in each connection's process: 90 ms for requests."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--token-plugin", default="")
    options.add_argument("--token-source", default="")
    given, _ = options.parse_known_args(arguments)
    plugin = given.token_plugin.rpartition(".")[2]
    # Without the library the plugin itself says what is missing.
    with contextlib.suppress(ModuleNotFoundError):
        library: Any = import_module(_LIBRARIES[plugin]) if plugin in _LIBRARIES else None
        if plugin == "JWTTokenApi":
            library.JWT_expect_type = not _is_symmetric(Path(given.token_source))


def _is_symmetric(key: Path) -> bool:
    """Whether JWTTokenApi may read encrypted tokens with a key.

    jwcrypto refuses them unless a program says that it expects some (CVE-2022-3102), and JWTTokenApi does not say so.
    With an RSA key that is as well: there whoever has the public half could make tokens.
    """
    try:
        return not key.read_bytes().lstrip().startswith(b"-----BEGIN")
    except OSError:
        return False


def _end_when_told() -> None:
    # A connection's process would inherit websockify's handlers, which end it with a traceback on standard error.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"{COMMAND}: {message}\n")
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 ended by a signal, or healthy; 1 trouble; 2 wrong options."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return check(" ".join(words[1:])) if words[:1] == ["--check"] else run(words)


if __name__ == "__main__":
    sys.exit(main())
