"""systemd's side of the service: what it is told (sd_notify(3)), and the socket it hands over (sd_listen_fds(3))."""

from __future__ import annotations

import os
import re
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from vnctoken.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

STATUS_SECONDS = 15
"""How often systemd is told the status where it has no watchdog; with one, it is told with each sign of life."""

RETRY_SECONDS = 0.5
"""When what systemd had no room for is sent again."""

_FIRST_DESCRIPTOR = 3
_MOST_WAITING = 64
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Notifier:
    """Tells systemd how the service is; without an `address`, of a Unix datagram socket, it does nothing.

    It never waits and never fails: systemd may be busy, or gone. `watchdog` is how many seconds systemd waits for a
    sign of life before it restarts the service.
    """

    def __init__(self, address: str | None, clock: Any, *, watchdog: float | None = None) -> None:
        self._address = re.sub("^@", "\0", address or "")
        self._clock = clock
        self._watchdog = watchdog
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._stopping = False
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str], clock: Any) -> Notifier:
        """Read what systemd has set, and take it away: it is not for programs that this one may start."""
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        for_us = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watched = for_us and re.fullmatch("0*[1-9][0-9]{0,17}", microseconds, re.ASCII)
        return cls(address or None, clock, watchdog=int(microseconds) / 1e6 if watched else None)

    def ready(self, status: Callable[[], str]) -> None:
        """Say that the service takes calls; from now on, give signs of life and what `status` returns."""
        self._status = status
        self._send("READY=1", self._status_line())
        if self._address:
            self._live_on()

    def reloading(self) -> None:
        """Say that the configuration is being read again; `reloaded` must follow."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={microseconds}")

    def reloaded(self) -> None:
        """Say that it is over, however it went; the status tells."""
        self._send("READY=1", self._status_line())

    def stopping(self) -> None:
        """Say that the service ends, once what is in flight has been answered."""
        self._stopping = True
        self._send("STOPPING=1", "STATUS=finishing the calls in flight")

    def close(self) -> None:
        """Tell nothing more."""
        if self._address:
            self._socket.close()

    def _live_on(self) -> None:
        self._clock.callLater(self._watchdog / 2 if self._watchdog else STATUS_SECONDS, self._give_sign)

    def _give_sign(self) -> None:
        self._live_on()
        if self._waiting:
            return  # that will be the sign of life
        lines = ["WATCHDOG=1"] if self._watchdog else []
        if not self._stopping:
            lines.append(self._status_line())
        self._send(*lines)

    def _status_line(self) -> str:
        # A line end in it would be another word to systemd.
        return f"STATUS={' '.join(self._status().split())}"

    def _send(self, *lines: str) -> None:
        if self._address and lines:
            self._waiting.append("\n".join(lines).encode())
            if len(self._waiting) == 1:
                self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting:
            try:
                self._socket.sendto(self._waiting[0], self._address)
            except BlockingIOError:
                self._clock.callLater(RETRY_SECONDS, self._send_waiting)
                return
            except OSError:
                pass  # nobody listens there now
            self._waiting.popleft()


def inherited_socket(environment: MutableMapping[str, str]) -> int | None:
    """Return the number of the listening socket that systemd has handed over, None if there is none.

    What says so is taken out of the environment. Twisted's ListenFDs overlooks sockets without names, which
    `systemd-socket-activate` passes. Raises ConfigError unless it is one socket that listens on TCP: who comes by a
    Unix socket is a trusted proxy, and such sockets are for the configuration to name.
    """
    for_us = environment.pop("LISTEN_PID", "") == str(os.getpid())
    number = environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "")
    if not for_us or number in {"", "0"}:
        return None
    expected = "one socket that listens on TCP is expected, as in vnctoken.socket"
    if number != "1":
        listed = f" ({names.replace(':', ', ')})" if names else ""
        raise ConfigError(f"systemd has passed {number} sockets{listed}, but {expected}")
    try:
        with socket.socket(fileno=os.dup(_FIRST_DESCRIPTOR)) as passed:
            kind = passed.type
            listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            family = passed.family
    except OSError as error:
        raise ConfigError(f"systemd has passed what is no socket ({error.strerror}), but {expected}") from None
    if kind != socket.SOCK_STREAM or not listens or family not in _FAMILIES:
        what = "that listens" if listens else "that does not listen"
        found = f"{_name(kind)} of {_name(family)} {what}"
        raise ConfigError(f"systemd has passed a socket, {found}, but {expected}")
    os.set_inheritable(_FIRST_DESCRIPTOR, False)
    return _FIRST_DESCRIPTOR


def _name(number: Any) -> str:
    return getattr(number, "name", str(number))
