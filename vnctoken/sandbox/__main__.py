"""``python -m vnctoken.sandbox``: run the sandbox's oned in the foreground, if asked to with screens for its VMs."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from twisted.internet.task import react

from vnctoken.sandbox.behaviour import UGLY_GUESTS, Behaviour
from vnctoken.sandbox.cloud import demo_cloud
from vnctoken.sandbox.listening import address, serve
from vnctoken.sandbox.oned import OnedFactory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twisted.internet.defer import Deferred


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vnctoken.sandbox",
        description="A stand-in for OpenNebula's oned; alice:secret, bob:secret, oneadmin:opennebula log in.",
    )
    parser.add_argument(
        "--listen",
        type=address,
        default="127.0.0.1:2633",
        metavar="HOST:PORT",
        help="where to listen; port 0 takes a free one (default %(default)s)",
    )
    parser.add_argument("--delay", type=float, default=0, metavar="SECONDS", help="answer every call so much later")
    parser.add_argument(
        "--max-connections",
        type=int,
        metavar="N",
        help="leave further connections unaccepted, as oned does with MAX_CONN = 15 (default: no limit)",
    )
    parser.add_argument(
        "--screens", action="store_true", help="run a VNC screen on this machine for every VM that can have one"
    )
    parser.add_argument(
        "--vnc",
        type=address,
        metavar="HOST:PORT",
        help="like --screens, but that of VM 0 is a VNC server that is there already",
    )
    return parser.parse_args(arguments)


def _factory(reactor: Any, options: argparse.Namespace) -> OnedFactory:
    behaviour = Behaviour(delay=options.delay)
    if not (options.screens or options.vnc):
        return OnedFactory(demo_cloud(), reactor, behaviour, UGLY_GUESTS)
    try:
        # Not everybody who wants an oned has Pillow and cryptography.
        from vnctoken.sandbox.screens import start_screens  # noqa: PLC0415
    except ImportError as error:
        sys.exit(f"Screens need what is missing here: {error}. Install it with: pip install 'vnctoken[demo]'")
    return OnedFactory(start_screens(reactor, {0: options.vnc} if options.vnc else {}), reactor, behaviour)


def main(reactor: Any, *arguments: str) -> Deferred[None]:
    """Run until the process is told to end; exit with a message if the address cannot be had."""
    options = _arguments(arguments)
    factory = _factory(reactor, options)
    return serve(reactor, "oned sandbox listens on {url}RPC2", options.listen, factory, options.max_connections)


if __name__ == "__main__":
    react(main, sys.argv[1:])
