"""`make demo`: a sandbox oned, the real vnctoken-server, and one call as a portal makes it."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import xmlrpc.client
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

SESSION = "alice:secret"
VM_ID = 0
TARGET = "dummy-host-1:5900"
STOP_SECONDS = 10
_AUTHENTICATION = 0x0100


class DemoError(Exception):
    """Raised if the demo did not show what it should; its text says what it showed instead."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Show a console call and its token; return 0 if everything was as it should be."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the call instead of waiting for Ctrl-C")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="vnctoken-demo-") as folder, contextlib.ExitStack() as started:
            _show(started, Path(folder))
            if not options.once:
                print("\nEverything keeps running. Ctrl-C ends it.", flush=True)
                signal.pause()
    except KeyboardInterrupt:
        print("\nStopped.")
    except DemoError as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    return 0


def _show(started: contextlib.ExitStack, folder: Path) -> None:
    """Start a cloud and the service, make a call, and print what a newcomer should see."""
    oned = started.enter_context(_program("vnctoken.sandbox", ["--listen", "127.0.0.1:0"], {}))
    print(f"A sandbox OpenNebula core (oned) listens on   {oned}")

    for name in ("etc", "var"):
        (folder / name).mkdir()
    config = f":port: 0\n:one_xmlrpc: {oned}\n"
    (folder / "etc" / "vnctoken-server.conf").write_text(config, encoding="utf-8")
    url = started.enter_context(_program("vnctoken.server", [], {"ONE_LOCATION": str(folder)}))
    print(f"vnctoken-server listens on                    {url}")

    print(f"\nA portal asks for the console of VM {VM_ID}:\n")
    print(f'  one.vm.vnctoken("{SESSION}", {VM_ID})')
    answer = _call(url, SESSION)
    success, result, code = answer
    if not (success is True and code == 0 and f"{result['Host']}:{result['Port']}" == TARGET):
        raise DemoError(f"one.vm.vnctoken answered {answer!r}")
    print(f"  -> {success}, code {code}, and a struct (each member under its documented and its deployed name):")
    for name, value in result.items():
        print(f"       {name:10}{value!r}")

    tokens = folder / "var" / "sunstone_vnc_tokens"
    file = tokens / f"one-{VM_ID}"
    line = file.read_text(encoding="utf-8")
    if line != f"{result['Token']}: {TARGET}\n":
        raise DemoError(f"{file} holds {line!r}")
    print(f"\nThe token file, which the websocket proxy reads (mode {file.stat().st_mode & 0o777:04o}):\n")
    print(f"  {file}:\n    {line}", end="")

    refusal = _call(url, "alice:wrong")
    if refusal[::2] != [False, _AUTHENTICATION]:
        raise DemoError(f"a wrong password was answered with {refusal!r}")
    print(f"\nWith a wrong password oned refuses, and so do we:\n\n  -> {refusal}")
    print(f"\nRepeat the call:\n\n{_curl(url)}")


def _call(url: str, session: str) -> Any:
    with xmlrpc.client.ServerProxy(url) as portal:
        return portal.one.vm.vnctoken(session, VM_ID)


def _curl(url: str) -> str:
    return (
        f"  curl -s {url} -H 'Content-Type: text/xml' --data '<methodCall><methodName>one.vm.vnctoken</methodName>"
        f"<params><param><value>{SESSION}</value></param><param><value><int>{VM_ID}</int></value></param></params>"
        "</methodCall>'"
    )


@contextlib.contextmanager
def _program(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    """Run one of our programs for the time of a block; the value is the URL that it says it listens on."""
    without_journal = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(  # noqa: S603 (our own modules)
        command, env={**without_journal, **environment}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield _url(module, process)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            process.kill()


def _url(module: str, process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline() if process.stdout else ""
    listening = re.search(r"listens on (\S+)", line)
    if listening is None:
        raise DemoError(f"{module} did not start: {line.strip() or 'see above'}")
    return listening[1]


if __name__ == "__main__":
    sys.exit(main())
