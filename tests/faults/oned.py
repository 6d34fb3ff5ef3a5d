"""The sandbox's oned, with oned's limit of connections, that becomes slow or worse when a line on its stdin says so.

``python -m faults.oned HOST:PORT {"0": 5900, ...} [events HOST:PORT]``: the ports are those of the VMs' screens. Lines
are ``delay SECONDS`` and ``kind NAME``, one of `vnctoken.sandbox.behaviour.Kind`.
"""

from __future__ import annotations

import json
import sys

from twisted.internet.stdio import StandardIO
from twisted.internet.task import react
from twisted.protocols.basic import LineOnlyReceiver

from faults.judging import HOST
from vnctoken.sandbox.behaviour import Kind
from vnctoken.sandbox.cloud import demo_cloud_with_screens
from vnctoken.sandbox.listening import address, serve
from vnctoken.sandbox.oned import OnedFactory
from vnctoken.sandbox.publishing import Publisher

MAX_CONNECTIONS = 15
NOWHERE = 65000
"""Where the screens of the other VMs would be: no two at one place."""


class Mood:
    """A Behaviour that changes."""

    kind = Kind.NORMAL
    delay = 0.0
    pause = 0.1


class _Orders(LineOnlyReceiver):
    delimiter = b"\n"

    def __init__(self, mood):
        self._mood = mood

    def lineReceived(self, line):
        what, value = line.decode().split()
        if what == "delay":
            self._mood.delay = float(value)
        else:
            self._mood.kind = Kind[value]


def main(reactor, where, ports, events=None):
    ports = json.loads(ports)
    mood = Mood()
    cloud = demo_cloud_with_screens(lambda guest: (HOST, ports.get(str(guest.id), NOWHERE + guest.id)))
    if events is not None:
        publisher = Publisher(*address(events))
        cloud.watch(publisher.publish)
        reactor.addSystemEventTrigger("after", "shutdown", publisher.close)
    StandardIO(_Orders(mood))
    factory = OnedFactory(cloud, reactor, mood)
    return serve(reactor, "oned listens on {url}", address(where), factory, MAX_CONNECTIONS)


if __name__ == "__main__":
    react(main, sys.argv[1:])
