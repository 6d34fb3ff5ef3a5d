"""Who may have which console: oned judges the caller, we judge the VM, and a token comes out."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vnctoken.errors import ActionError, NoExistsError
from vnctoken.links import console_link
from vnctoken.tokens import new_token
from vnctoken.vm import ACTIVE

if TYPE_CHECKING:
    from collections.abc import Container

    from vnctoken.oned import Oned
    from vnctoken.tokens.folder import TokenFolder
    from vnctoken.vm import VirtualMachine

# What a resolver takes for a host name; underscores are common in /etc/hosts.
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})", re.ASCII)
_QUOTED_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class Console:
    """An opened console: what a viewer needs to connect."""

    vm_id: int
    host: str
    type: str
    port: int
    listen: str
    password: str = field(repr=False)
    wss: bool
    token: str = field(repr=False)
    url: str | None = field(default=None, repr=False)


class Consoles:
    """Opens consoles.

    `states` are the LCM states in which a VM has one, `ports` the TCP ports that may be opened, and `wss` is passed on
    to viewers: whether the websocket proxy speaks TLS. `link` is the template of the console's URL, if there is one.
    """

    def __init__(  # noqa: PLR0913 (what it works with, and each rule by its name)
        self,
        oned: Oned,
        tokens: TokenFolder,
        *,
        states: Container[int],
        ports: range,
        wss: bool,
        link: str | None = None,
    ) -> None:
        self._oned = oned
        self._tokens = tokens
        self._states = states
        self._ports = ports
        self._wss = wss
        self._link = link

    async def open(self, session: str, vm_id: int) -> Console:
        """Return a console of the VM, with a token that the websocket proxy accepts from now on.

        Raises what `Oned.vm_info` raises, NoExistsError if the VM has no VNC graphics, ActionError if it is in no
        state or on no target for a console, and TokenStoreError.
        """
        vm = await self._oned.vm_info(session, vm_id)
        if vm.graphics_type.strip().upper() != "VNC":
            raise NoExistsError(f"Graphics type '{_quoted(vm.graphics_type)}' but 'VNC' expected")
        if vm.state != ACTIVE or vm.lcm_state not in self._states:
            raise ActionError(f"Unsupported VM state! STATE:{vm.state} LCM_STATE:{vm.lcm_state}")
        host, port = _checked_host(vm), self._checked_port(vm)
        token = new_token()
        self._tokens.put(vm_id, token, host, port)
        url = self._link and console_link(self._link, vm_id=vm_id, host=host, port=port, token=token)
        return Console(vm_id, host, vm.graphics_type, port, vm.listen, vm.password, self._wss, token, url)

    def _checked_port(self, vm: VirtualMachine) -> int:
        # Whoever owns a VM writes any PORT into its template: without this rule port 22 opens the hypervisor's ssh.
        text = vm.port.strip()
        if text.isascii() and text.isdigit() and len(text) <= len("65535") and int(text) in self._ports:
            return int(text)
        raise ActionError(
            f"GRAPHICS/PORT is '{_quoted(vm.port)}' but a number from {self._ports[0]} to {self._ports[-1]}"
            " (:vnc_ports:) expected"
        )


def _checked_host(vm: VirtualMachine) -> str:
    """Return the host if it can stand in a token line; websockify takes `unix_socket` for a path to open."""
    if vm.host.lower() != "unix_socket" and (_HOST_NAME.fullmatch(vm.host) or _is_ipv6(vm.host)):
        return vm.host
    raise ActionError(f"{vm.host_attribute} is '{_quoted(vm.host)}' but a host name or an IP address expected")


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.IPv6Address(text).scope_id is None
    except ValueError:
        return False


def _quoted(text: str) -> str:
    return text if len(text) <= _QUOTED_CHARACTERS else text[:_QUOTED_CHARACTERS] + "..."
