"""``python -m vnctoken.sandbox``: run the sandbox's oned in the foreground, if asked to with screens and events."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.task import react

from vnctoken.sandbox.behaviour import UGLY_GUESTS, Behaviour
from vnctoken.sandbox.cloud import demo_cloud
from vnctoken.sandbox.listening import address, serve
from vnctoken.sandbox.oned import OnedFactory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twisted.internet.defer import Deferred

    from vnctoken.sandbox.cloud import Cloud


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
    parser.add_argument(
        "--events",
        type=address,
        metavar="HOST:PORT",
        help="publish every change of a VM's state there, as oned does on port 2101; port 0 takes a free one",
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="METHOD",
        help="do not know a method, as an older oned does not know one.vmpool.infoset",
    )
    parser.add_argument(
        "--server-certificate",
        type=_content,
        default=b"",
        metavar="FILE",
        help="the certificate (PEM) whose private key the user serverx509 logs in with",
    )
    return parser.parse_args(arguments)


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be read: {error.strerror}") from None


def _cloud(reactor: Any, options: argparse.Namespace) -> Cloud:
    if not (options.screens or options.vnc):
        return demo_cloud(options.server_certificate)
    try:
        # Not everybody who wants an oned has Pillow and cryptography.
        from vnctoken.sandbox.screens import start_screens  # noqa: PLC0415
    except ImportError as error:
        sys.exit(f"Screens need what is missing here: {error}. Install it with: pip install 'vnctoken[demo]'")
    return start_screens(reactor, {0: options.vnc} if options.vnc else {}, options.server_certificate)


def _publish(reactor: Any, cloud: Cloud, host: str, port: int) -> str:
    """Publish the changes of the cloud's VMs until the reactor ends; return where."""
    try:
        # Not everybody who wants an oned has ZeroMQ.
        from vnctoken.sandbox.publishing import Publisher  # noqa: PLC0415
    except ImportError as error:
        sys.exit(f"Events need what is missing here: {error}. Install it with: pip install 'vnctoken[events]'")
    try:
        publisher = Publisher(host, port)
    except OSError as error:
        sys.exit(f"Cannot publish on {host} port {port}: {error.strerror}")
    cloud.watch(publisher.publish)
    reactor.addSystemEventTrigger("after", "shutdown", publisher.close)
    return publisher.endpoint


def main(reactor: Any, *arguments: str) -> Deferred[None]:
    """Run until the process is told to end; exit with a message if the address cannot be had."""
    options = _arguments(arguments)
    cloud = _cloud(reactor, options)
    ugly_guests = {} if options.screens or options.vnc else UGLY_GUESTS
    factory = OnedFactory(cloud, reactor, Behaviour(delay=options.delay), ugly_guests, options.without)
    running = serve(reactor, "oned sandbox listens on {url}RPC2", options.listen, factory, options.max_connections)
    if options.events is not None:
        endpoint = _publish(reactor, cloud, *options.events)
        reactor.callWhenRunning(print, f"oned sandbox publishes events at {endpoint}", flush=True)
    return running


if __name__ == "__main__":
    react(main, sys.argv[1:])
