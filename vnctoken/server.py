"""The `vnctoken-server` command."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from vnctoken import __version__
from vnctoken.config import load
from vnctoken.errors import ConfigError
from vnctoken.log import logs_to_stderr, start_logging
from vnctoken.service import make_service

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vnctoken.config import Config

_log = Logger(namespace="vnctoken.server")

EX_CONFIG = 78
"""sysexits.h: the configuration is wrong; systemd does not restart on it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service until SIGTERM or SIGINT and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        config, warnings = load(os.environ, options.config, options.sunstone_config)
        if options.check:
            print(config.to_yaml(), end="")
            for warning in warnings:
                print(f"vnctoken-server: warning: {warning}", file=sys.stderr)
            return 0
        start_logging(config, os.environ)
    except ConfigError as error:
        print(f"vnctoken-server: {error}", file=sys.stderr)
        return EX_CONFIG
    for warning in warnings:
        _log.warn("{warning}", warning=warning)

    from twisted.internet import reactor  # noqa: PLC0415 (importing it installs it)

    try:
        service = make_service(config, reactor)
        service.startService()
    except ConfigError as error:
        return _failed(str(error), EX_CONFIG, config)
    except CannotListenError as error:
        return _failed(f"cannot listen on {config.host} port {config.port}: {error.socketError}", 1, config)
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    # Only once the reactor runs are the signal handlers there: whoever reads the line may stop us at once.
    reactor.callWhenRunning(_announce, service.url)
    reactor.run()
    return 0


def _announce(url: str) -> None:
    print(f"vnctoken-server listens on {url}", flush=True)
    _log.info("vnctoken-server {version} listens on {url}", version=__version__, url=url)


def _failed(problem: str, code: int, config: Config) -> int:
    """Say why the service does not start: in the log, and to whoever typed the command."""
    _log.critical("{problem}", problem=problem)
    if not logs_to_stderr(config, os.environ):
        print(f"vnctoken-server: {problem}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vnctoken-server",
        description="Hand out console tokens of OpenNebula virtual machines over XML-RPC.",
        epilog="Exit codes: 0 ended by a signal, 1 the port is taken, 78 the configuration cannot be used.",
    )
    parser.add_argument("--config", metavar="FILE", help="instead of vnctoken-server.conf in /etc/one")
    parser.add_argument("--sunstone-config", metavar="FILE", help="instead of sunstone-server.conf in /etc/one")
    parser.add_argument("--check", action="store_true", help="validate and print the configuration, and end")
    parser.add_argument("--version", action="version", version=f"vnctoken-server {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
