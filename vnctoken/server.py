"""The `vnctoken-server` command."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.logger import Logger, globalLogBeginner
from twisted.python.failure import Failure

from vnctoken import __version__
from vnctoken.auditchain import verify_files
from vnctoken.checks import FAIL, Check
from vnctoken.config import load, usual_file
from vnctoken.errors import ConfigError
from vnctoken.log import logs_to_stderr, start_logging
from vnctoken.reload import Hangup, Reload
from vnctoken.systemd import Notifier, inherited_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vnctoken.config import Config

_log = Logger(namespace="vnctoken.server")

EX_CONFIG = 78
"""sysexits.h: the configuration is wrong; systemd does not restart on it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service until SIGTERM or SIGINT, or what else the arguments ask for, and return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.json and not options.doctor:
        parser.error("--json is for --doctor")
    if options.doctor:
        return _examine(options)
    if options.verify_audit:
        intact, lines = verify_files(options.verify_audit)
        print(*lines, sep="\n")
        return int(not intact)
    try:
        if options.check:
            return _check(options)
        return _run(options)
    except ConfigError as error:
        print(f"vnctoken-server: {error}", file=sys.stderr)
        return EX_CONFIG


def _check(options: argparse.Namespace) -> int:
    config, warnings = load(os.environ, options.config, options.sunstone_config)
    print(config.to_yaml(), end="")
    for warning in warnings:
        print(f"vnctoken-server: warning: {warning}", file=sys.stderr)
    return 0


def _run(options: argparse.Namespace) -> int:
    """Run the service and return the exit code. Raises ConfigError while there is no log yet."""
    # Says on standard error where a process hangs that systemd's watchdog ends, by SIGABRT.
    faulthandler.enable(2)
    hangup = Hangup()
    # Twisted's endpoints, which the service imports, take what says so out of the environment.
    inherited = inherited_socket(os.environ)

    ours: str | None = options.config

    def read() -> tuple[Config, list[str]]:
        nonlocal ours
        found = load(os.environ, ours, options.sunstone_config)
        # Who has had a file is not to go on by the defaults, which let everybody in, when it is gone at a reload.
        if ours is None and (usual := usual_file(os.environ)).exists():
            ours = str(usual)
        return found

    config, warnings = read()
    log = start_logging(config, os.environ)
    for warning in warnings:
        _log.warn("{warning}", warning=warning)

    from twisted.internet import reactor as installed  # noqa: PLC0415 (importing it installs it)

    from vnctoken.service import make_service  # noqa: PLC0415 (Twisted's endpoints come with it)

    reactor: Any = installed
    keep_steady_time(reactor)
    notifier = Notifier.from_environment(os.environ, reactor)
    try:
        service = make_service(config, reactor, inherited)
        service.startService()
    except ConfigError as error:
        return _failed(str(error), EX_CONFIG, config)
    except CannotListenError as error:
        at = f"{error.interface} port {error.port}" if error.interface else os.fsdecode(error.port)
        return _failed(f"cannot listen on {at}: {error.socketError}", 1, config)
    reload = Reload(
        config, read, service=service, log=log, notifier=notifier, now=lambda: datetime.now(timezone.utc).astimezone()
    )

    def begin() -> None:
        _announce(service.url)
        notifier.ready(lambda: reload.status)
        hangup.answer_by(lambda: reactor.callFromThread(reload.carry_out))

    reactor.addSystemEventTrigger("before", "shutdown", _be_told_once)
    reactor.addSystemEventTrigger("before", "shutdown", notifier.stopping)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    # Only once the reactor runs are the signal handlers there: whoever reads the line may stop us at once.
    reactor.callWhenRunning(begin)
    reactor.run()
    notifier.close()
    return 0


def keep_steady_time(reactor: Any) -> None:
    """Let a reactor's timers follow a clock that nobody sets; to be called before anything else uses the reactor.

    Twisted's own is the time of day: set back an hour, it makes every timer an hour late.
    """
    reactor.seconds = time.monotonic


def _be_told_once() -> None:
    """Take no notice of further signals: at a second one to end Twisted logs a traceback."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _announce(url: str) -> None:
    print(f"vnctoken-server listens on {url}", flush=True)
    _log.info("vnctoken-server {version} listens on {url}", version=__version__, url=url)


def _failed(problem: str, code: int, config: Config) -> int:
    """Say why the service does not start: in the log, and to whoever typed the command."""
    _log.critical("{problem}", problem=problem)
    if not logs_to_stderr(config, os.environ):
        print(f"vnctoken-server: {problem}", file=sys.stderr)
    return code


def _examine(options: argparse.Namespace) -> int:
    """Carry out --doctor and return its exit code."""
    from vnctoken.doctor import not_examined  # noqa: PLC0415 (Twisted's endpoints come with it)

    found: list[Check] = []

    def report(check: Check) -> None:
        found.append(check)
        if not options.json:
            print(check.line, flush=True)

    interrupted = False
    try:
        config, warnings = load(os.environ, options.config, options.sunstone_config)
    except ConfigError as error:
        for check in not_examined(str(error)):
            report(check)
    else:
        interrupted = not _run_doctor(config, warnings, report)
    if options.json:
        print(json.dumps([asdict(check) for check in found], indent=2))
    if interrupted:
        print("vnctoken-server: interrupted, not everything was looked at", file=sys.stderr)
    return int(interrupted or any(check.status == FAIL for check in found))


def _run_doctor(config: Config, warnings: Sequence[str], report: Callable[[Check], None]) -> bool:
    """Run the reactor for the doctor's checks; return whether all were made, False if a signal came before that."""
    from twisted.internet import reactor as installed  # noqa: PLC0415 (importing it installs it)

    from vnctoken.doctor import Collaborators, Doctor  # noqa: PLC0415 (Twisted's endpoints come with it)
    from vnctoken.parts import make_login, make_oned, make_store  # noqa: PLC0415 (as above)

    reactor: Any = installed
    keep_steady_time(reactor)
    # Standard output is for the findings, and what libraries log may hold anything.
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
    collaborators = Collaborators(
        oned=lambda: make_oned(config, reactor),
        store=lambda: make_store(config, reactor),
        login=lambda: make_login(config),
        now=time.time,
        user=os.geteuid(),
    )
    doctor = Doctor(config, reactor, collaborators)
    outcome: list[Any] = []
    ended: Deferred[None] = Deferred()

    def end(result: Any) -> None:
        outcome.append(result)
        ended.callback(None)
        with contextlib.suppress(ReactorNotRunning):
            reactor.stop()

    def interrupt() -> Deferred[None]:
        if not outcome:
            doctor.interrupt()
        return ended

    reactor.callWhenRunning(lambda: doctor.examine(warnings, report).addBoth(end))
    reactor.addSystemEventTrigger("before", "shutdown", interrupt)
    reactor.run()
    if not isinstance(outcome[0], Failure):
        return True
    outcome[0].trap(CancelledError)  # type: ignore[no-untyped-call]
    return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vnctoken-server",
        description="Hand out console tokens of OpenNebula virtual machines over XML-RPC.",
        epilog="Exit codes: 0 ended by a signal, 1 the port is taken, 78 the configuration cannot be used;"
        " of --doctor and --verify-audit: 0 nothing is wrong, 1 something is. SIGHUP reloads the configuration and"
        " opens log files anew.",
    )
    parser.add_argument("--config", metavar="FILE", help="instead of vnctoken-server.conf in /etc/one")
    parser.add_argument("--sunstone-config", metavar="FILE", help="instead of sunstone-server.conf in /etc/one")
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--check", action="store_true", help="validate and print the configuration, and end")
    task.add_argument(
        "--doctor", action="store_true", help="look whether everything works, from oned to the proxy, and end"
    )
    task.add_argument(
        "--verify-audit",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="look whether audit logs, oldest first, are complete and unchanged, and end",
    )
    parser.add_argument("--json", action="store_true", help="with --doctor: print what was found as JSON")
    parser.add_argument("--version", action="version", version=f"vnctoken-server {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
