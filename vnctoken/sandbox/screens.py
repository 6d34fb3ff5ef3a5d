"""The screens of the demo cloud's VMs, each a VNC server on a port of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vnctoken.sandbox.cloud import VNC_PORTS, demo_cloud_with_screens
from vnctoken.sandbox.rfb import RfbFactory
from vnctoken.sandbox.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vnctoken.sandbox.cloud import Cloud, Guest

LOOPBACK = "127.0.0.1"


def start_screens(reactor: Any, elsewhere: Mapping[int, tuple[str, int]], server_certificate: bytes = b"") -> Cloud:
    """Start a screen for every VM of the demo cloud that has one, and return the cloud that says where they are.

    None is started for the VMs in `elsewhere`: theirs is at that host and port. `server_certificate` is as in `Cloud`.
    Raises CannotListenError.
    """

    def address(guest: Guest) -> tuple[str, int]:
        return elsewhere.get(guest.id) or (LOOPBACK, _start_screen(reactor, guest))

    return demo_cloud_with_screens(address, server_certificate)


def _start_screen(reactor: Any, guest: Guest) -> int:
    screen = Screen(guest.name, guest.id, owner=guest.owner.name, clock=reactor)
    factory = RfbFactory(screen, (guest.graphics or {}).get("PASSWD") or None, reactor)
    while True:
        listening = reactor.listenTCP(0, factory, interface=LOOPBACK)
        port: int = listening.getHost().port
        if port in VNC_PORTS:
            return port
        # A kernel may be told to hand out lower ones too.
        listening.stopListening()
