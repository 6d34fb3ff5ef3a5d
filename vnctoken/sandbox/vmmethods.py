"""The methods of the sandbox's oned that are about VMs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vnctoken.errors import ErrorCode
from vnctoken.sandbox.calls import Answer
from vnctoken.sandbox.cloud import DONE, Right
from vnctoken.sandbox.lifecycle import ACTIONS, LIVE_MIGRATE, MIGRATE, WrongStateError, acted_on, migrated
from vnctoken.sandbox.refusals import error, no_such, not_authorized, object_id
from vnctoken.sandbox.rendering import guest_xml, pool_xml

if TYPE_CHECKING:
    from vnctoken.sandbox.calls import Call
    from vnctoken.sandbox.cloud import Cloud, Guest, User

VM_INFO = "one.vm.info"

# Arguments of one.vmpool.info: whose VMs (or a user's, by his id), and in which state (or a state).
_OWN_AND_GROUP, _ALL, _OWN = -1, -2, -3
_NOT_DONE, _ANY_STATE = -1, -2


class VmMethods:
    """The methods, over the VMs of a cloud."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._guest_answers: dict[int, tuple[Guest, Answer]] = {}
        self.by_name = {
            VM_INFO: self._info,
            "one.vm.action": self._action,
            "one.vm.migrate": self._migrate,
            "one.vmpool.info": self._pool_info,
            "one.vmpool.infoset": self._pool_infoset,
        }

    def _info(self, call: Call, user: User) -> Answer:
        guest = self._allowed(call, user, Right.USE, object_id(call))
        if isinstance(guest, Answer):
            return guest
        cached, answer = self._guest_answers.get(guest.id, (None, None))
        if answer is None or cached is not guest:
            answer = Answer(success=True, text=guest_xml(guest))
            self._guest_answers[guest.id] = guest, answer
        return answer

    def _allowed(self, call: Call, user: User, right: Right, guest_id: int) -> Guest | Answer:
        """Return the VM if the user has this right, else the answer that refuses it."""
        guest = self._cloud.guest(guest_id)
        if guest is None:
            return no_such(call, "virtual machine", guest_id)
        if not self._cloud.may(user, right, guest):
            return not_authorized(call, user, f"VM [{guest_id}]", right)
        return guest

    def _action(self, call: Call, user: User) -> Answer:
        action, guest_id = call.string(1), call.integer(2)
        guest = self._allowed(call, user, Right.MANAGE, guest_id)
        if isinstance(guest, Answer):
            return guest
        if action not in ACTIONS:
            return error(call, f'Action "{action}" is not supported', ErrorCode.ACTION)
        try:
            steps = acted_on(guest, action, user)
        except WrongStateError as wrong:
            text = f'Error performing action "{action}": This action is not available for state {wrong}'
            return error(call, text, ErrorCode.ACTION)
        return self._done(steps)

    def _migrate(self, call: Call, user: User) -> Answer:
        guest_id, host_id, live = call.integer(1), call.integer(2), call.boolean(3)
        host = self._cloud.host(host_id)
        if host is None:
            return no_such(call, "host", host_id)
        guest = self._allowed(call, user, Right.ADMIN, guest_id)
        if isinstance(guest, Answer):
            return guest
        try:
            steps = migrated(guest, LIVE_MIGRATE if live else MIGRATE, (host_id, host), user)
        except WrongStateError as wrong:
            return error(call, f"Migrate action is not available for state {wrong}", ErrorCode.ACTION)
        if guest.stays[-1].host_id == host_id:
            return error(call, f"VM is already running on host [{host_id}]", ErrorCode.ACTION)
        return self._done(steps)

    def _done(self, steps: list[Guest]) -> Answer:
        for guest in steps:
            self._cloud.change(guest)
        return Answer(success=True, number=steps[-1].id)

    def _pool_info(self, call: Call, user: User) -> Answer:
        whose, first, last, state = (call.integer(number) for number in range(1, 5))
        owner_id = user.id if whose in (_OWN, _OWN_AND_GROUP) else whose
        guests = [
            guest
            for guest in self._cloud.guests_for(user)
            if (
                whose == _ALL
                or guest.owner.id == owner_id
                or (whose == _OWN_AND_GROUP and guest.owner.group in user.groups)
            )
            and first <= guest.id <= (last if last >= 0 else guest.id)
            and (state in (_ANY_STATE, guest.state) or (state == _NOT_DONE and guest.state != DONE))
        ]
        return Answer(success=True, text=pool_xml(guests))

    def _pool_infoset(self, call: Call, user: User) -> Answer:
        ids, extended = call.string(1).split(","), call.boolean(2)
        guests = [guest for guest in self._cloud.guests_for(user) if str(guest.id) in ids]
        return Answer(success=True, text=pool_xml(guests, extended=extended))
