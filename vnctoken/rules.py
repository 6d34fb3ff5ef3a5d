"""Which VM has a console, and where it leads."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from vnctoken.errors import ActionError, NoExistsError
from vnctoken.vm import ACTIVE

if TYPE_CHECKING:
    from collections.abc import Container

    from vnctoken.tokens import Grant
    from vnctoken.vm import VirtualMachine

# What a resolver takes for a host name; underscores are common in /etc/hosts.
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})", re.ASCII)
_QUOTED_CHARACTERS = 64


class ConsoleRules:
    """The rules: `states` are the LCM states in which a VM has a console, `ports` the TCP ports that may be opened."""

    def __init__(self, *, states: Container[int], ports: range) -> None:
        self._states = states
        self._ports = ports

    def target(self, vm: VirtualMachine) -> tuple[str, int]:
        """Return the host and port of a VM's console.

        Raises NoExistsError if the VM has no VNC graphics, and ActionError if it is in no state or on no target for a
        console.
        """
        if vm.graphics_type.strip().upper() != "VNC":
            raise NoExistsError(f"Graphics type '{_quoted(vm.graphics_type)}' but 'VNC' expected")
        if vm.state != ACTIVE or vm.lcm_state not in self._states:
            raise ActionError(f"Unsupported VM state! STATE:{vm.state} LCM_STATE:{vm.lcm_state}")
        return _checked_host(vm), self._checked_port(vm)

    def problem(self, vm: VirtualMachine | None, host: str, port: int) -> str:
        """Return why a VM's console does not, or no longer, lead to a host and port; "" if it does."""
        if vm is None:
            return "the VM is gone"
        try:
            target = self.target(vm)
        except (NoExistsError, ActionError) as error:
            return str(error)
        return "" if target == (host, port) else f"the console is at {target[0]} port {target[1]} now"

    def problem_of(self, vm: VirtualMachine | None, grant: Grant) -> str:
        """Return why a token does not, or no longer, lead to the VM's console; "" if it does."""
        if vm is not None and not grant.user:
            # Sunstone writes tokens for SPICE, too.
            vm = replace(vm, graphics_type="VNC")
        return self.problem(vm, grant.host, grant.port)

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
