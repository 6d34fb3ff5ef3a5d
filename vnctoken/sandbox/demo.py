"""`make demo`: a cloud of one machine, with a portal in front, as somebody who clicks "Console" sees it."""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sys
import tempfile
import textwrap
import xmlrpc.client
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vnctoken.sandbox.listening import address
from vnctoken.sandbox.programs import (
    START_SECONDS,
    Program,
    StartError,
    find_novnc,
    program,
    sandbox,
    vnctoken_server,
    vnctoken_websockify,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

SESSION = "alice:secret"
VM_ID = 0
_AUTHENTICATION = 0x0100


class DemoError(Exception):
    """Raised if the demo did not show what it should; its text says what it showed instead."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Start everything, show a console call, and wait for Ctrl-C; return 0 if everything was as it should be."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the call instead of waiting for Ctrl-C")
    parser.add_argument("--vnc", type=address, metavar="HOST:PORT", help=f"a VNC server to show as VM {VM_ID}")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="vnctoken-demo-") as folder, contextlib.ExitStack() as started:
            _show(started, Path(folder), options.vnc)
            if not options.once:
                print("Everything keeps running. Ctrl-C ends it.", flush=True)
                signal.pause()
    except KeyboardInterrupt:
        print("\nStopped.")
    except (DemoError, StartError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    return 0


def _show(started: contextlib.ExitStack, folder: Path, vnc: tuple[str, int] | None) -> None:
    """Start the cloud, its services and the portal, make a call, and print what a newcomer should see."""
    screens = ("--screens",) if vnc is None else ("--vnc", _joined(*vnc))
    oned = started.enter_context(sandbox(*screens)).url
    print(f"A sandbox OpenNebula core (oned) listens on   {oned}")
    url = started.enter_context(vnctoken_server(folder, oned)).url
    print(f"vnctoken-server listens on                    {url}")
    websocket = started.enter_context(vnctoken_websockify(folder)).url
    print(f"websockify listens on                         {websocket}")
    novnc = find_novnc()
    portal = started.enter_context(_portal(oned, url, websocket, novnc)).url
    print(f"A portal listens on                           {portal}")

    print(f"\nA portal asks for the console of VM {VM_ID}:\n")
    print(f'  one.vm.vnctoken("{SESSION}", {VM_ID})')
    answer = _call(url, SESSION)
    success, result, code = answer
    if not (success is True and code == 0):
        raise DemoError(f"one.vm.vnctoken answered {answer!r}")
    print(f"  -> {success}, code {code}, and a struct (each member under its documented and its deployed name):")
    for name, value in result.items():
        print(f"       {name:10}{value!r}")

    file = folder / "var" / "sunstone_vnc_tokens" / f"one-{VM_ID}"
    content = file.read_text(encoding="utf-8")
    if content.splitlines()[1:] != [f"{result['Token']}: {_joined(result['Host'], result['Port'], bare=True)}"]:
        raise DemoError(f"{file} holds {content!r}")
    print(f"\nThe token file, which websockify reads but for its comments (mode {file.stat().st_mode & 0o777:04o}):\n")
    print(f"  {file}:\n{textwrap.indent(content, '    ')}", end="")

    greeting = _greeting(websocket, result["Token"])
    if greeting.startswith(b"RFB "):
        print(f"\nWith the token, websockify lets a browser through to the VM's screen, which says {greeting!r}.")
    elif vnc is None:
        raise DemoError(f"websockify sent {greeting!r}, and not the greeting of a VNC server")
    else:
        print(f"\nThe VNC server at {_joined(*vnc)} does not answer. Is it running?")

    refusal = _call(url, "alice:wrong")
    if refusal[::2] != [False, _AUTHENTICATION]:
        raise DemoError(f"a wrong password was answered with {refusal!r}")
    print(f"\nWith a wrong password oned refuses, and so do we:\n\n  -> {refusal}")
    print(f"\nRepeat the call:\n\n{_curl(url)}")

    if novnc is None:
        print("\nnoVNC is missing, so the portal can only show tokens. Install npm, or Debian's package novnc.")
    print(f"\nThe portal is at {portal} - log in as alice or bob with the password secret.\n")


def _joined(host: str, port: int, *, bare: bool = False) -> str:
    return f"[{host}]:{port}" if ":" in host and not bare else f"{host}:{port}"


def _call(url: str, session: str) -> Any:
    with xmlrpc.client.ServerProxy(url) as portal:
        return portal.one.vm.vnctoken(session, VM_ID)


def _curl(url: str) -> str:
    return (
        f"  curl -s {url} -H 'Content-Type: text/xml' --data '<methodCall><methodName>one.vm.vnctoken</methodName>"
        f"<params><param><value>{SESSION}</value></param><param><value><int>{VM_ID}</int></value></param></params>"
        "</methodCall>'"
    )


def _portal(oned: str, vnctoken: str, websocket: str, novnc: Path | None) -> contextlib.AbstractContextManager[Program]:
    services = ("--oned", oned, "--vnctoken", vnctoken, "--websocket", websocket)
    viewer = () if novnc is None else ("--novnc", str(novnc))
    return program([sys.executable, "-m", "vnctoken.sandbox.portal", "--listen", "127.0.0.1:0", *services, *viewer])


def _greeting(websocket: str, token: str) -> bytes:
    """Return the first message that comes through websockify with a token, such as a VNC server's greeting.

    It is empty if there is none within START_SECONDS.
    """
    there = urlsplit(websocket)
    request = (
        f"GET {there.path}?token={token} HTTP/1.1\r\nHost: {there.netloc}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: binary\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    where = (there.hostname, there.port)
    with socket.create_connection(where, timeout=START_SECONDS) as connection, connection.makefile("rb") as answers:
        connection.sendall(request.encode())
        with contextlib.suppress(OSError):
            for line in answers:
                if not line.strip():
                    break
            # A short message comes as one frame: a byte of flags, its length, itself.
            head = answers.read(2)
            return answers.read(head[1]) if len(head) == 2 else b""  # noqa: PLR2004 (flags and length)
    return b""


if __name__ == "__main__":
    sys.exit(main())
