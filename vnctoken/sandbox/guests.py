"""What a virtual machine of the sandbox's cloud is, as oned stores it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vnctoken.sandbox.accounts import User

PENDING, ACTIVE, SUSPENDED, DONE, POWEROFF = 1, 3, 5, 6, 8
"""The STATEs met in the sandbox, as OpenNebula numbers them; an LCM_STATE means something in ACTIVE only."""

VNC_PORTS = range(5900, 65536)
"""Where a VM's screen may be."""

VCENTER_HOST = "VCENTER_ESX_HOST"
"""What a vCenter VM's monitoring calls its host."""

_RUNNING = 3  # The LCM_STATEs before it are those of a VM that is still to be started.


@dataclass(frozen=True)
class Stay:
    """One history record: a VM on a host.

    `action` is OpenNebula's number of what ended the stay and `asked_by` who wanted it; 0 and None while
    nothing did. It may still be `under_way`.
    """

    host: str
    host_id: int = 0
    action: int = 0
    asked_by: User | None = None
    under_way: bool = False


@dataclass(frozen=True)
class Guest:
    """A virtual machine as oned stores it, sense or nonsense: nothing is checked.

    `mode` holds the permission bits as ``onevm chmod`` takes them (0o640: the owner may use and manage, his
    group may use). `graphics` is None where the template has no GRAPHICS. `stays` is oldest first.

    `created_by` is who created it if its context was to have a token (``CONTEXT = [ TOKEN = "YES" ]``): oned notes him
    for those alone, and keeps him when the VM gets another owner. `started` is when it was created, in seconds since
    the epoch: STIME. All that has happened to it happened then: the same question has the same answer.
    """

    id: int
    name: str
    owner: User
    graphics: Mapping[str, str] | None
    state: int = ACTIVE
    lcm_state: int = 3
    mode: int = 0o600
    stays: tuple[Stay, ...] = (Stay("dummy-host-1"),)
    user_template: Mapping[str, str] = field(default_factory=dict)
    monitoring: Mapping[str, str] = field(default_factory=dict)
    created_by: User | None = None
    started: int = 1_790_000_000

    @property
    def has_screen(self) -> bool:
        """Whether a hypervisor runs it, with a VNC screen, at a host and port that a viewer could connect to."""
        graphics = self.graphics or {}
        port = graphics.get("PORT", "")
        return bool(
            self.state == ACTIVE
            and self.lcm_state >= _RUNNING
            and graphics.get("TYPE", "").strip().upper() == "VNC"
            and re.fullmatch("[0-9]{4,5}", port)
            and int(port) in VNC_PORTS
            and re.fullmatch("[A-Za-z0-9.:-]+", self._host)
        )

    @property
    def _host(self) -> str:
        if self._is_at_vcenter:
            return self.monitoring.get(VCENTER_HOST, "")
        return self.stays[-1].host if self.stays else ""

    @property
    def _is_at_vcenter(self) -> bool:
        return self.user_template.get("HYPERVISOR") == "vcenter"

    def with_screen_at(self, host: str, port: int) -> Guest:
        """Return the same VM, only that oned names another host and port where its screen is."""
        moved = replace(self, graphics={**(self.graphics or {}), "PORT": str(port)})
        if self._is_at_vcenter:
            return replace(moved, monitoring={**self.monitoring, VCENTER_HOST: host})
        *before, last = self.stays
        return replace(moved, stays=(*before, replace(last, host=host)))
