"""A stand-in for OpenNebula's core daemon: a few of its methods, for clients that must not notice.

It answers as oned 6.10.0 does, down to spelling, line ends and the order in which things are checked.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from twisted.internet.protocol import Factory

from vnctoken.errors import ErrorCode
from vnctoken.sandbox.abyss import Abyss
from vnctoken.sandbox.behaviour import Behaviour, spoil_answer
from vnctoken.sandbox.calls import NO_SUCH_METHOD_ERROR, Answer, FaultError, decode_call
from vnctoken.sandbox.cloud import DONE, Right
from vnctoken.sandbox.lifecycle import ACTIONS, LIVE_MIGRATE, MIGRATE, WrongStateError, acted_on, migrated
from vnctoken.sandbox.rendering import guest_xml, pool_xml, user_xml

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from twisted.internet.interfaces import IAddress

    from vnctoken.sandbox.abyss import Clock
    from vnctoken.sandbox.calls import Call
    from vnctoken.sandbox.cloud import Cloud, Guest, User

VERSION = "6.10.0"
"""What ``one.system.version`` answers."""

_VM_INFO = "one.vm.info"

# Arguments of one.vmpool.info: whose VMs (or a user's, by his id), and in which state (or a state).
_OWN_AND_GROUP, _ALL, _OWN = -1, -2, -3
_NOT_DONE, _ANY_STATE = -1, -2


class Oned:
    """The methods, over one cloud and but for those `without`; no network."""

    def __init__(self, cloud: Cloud, clock: Clock, without: Container[str] = ()) -> None:
        self._cloud = cloud
        self._clock = clock
        methods: Mapping[str, Callable[[Call, User], Answer]] = {
            _VM_INFO: self._vm_info,
            "one.vm.action": self._vm_action,
            "one.vm.migrate": self._vm_migrate,
            "one.vmpool.info": self._vm_pool_info,
            "one.vmpool.infoset": self._vm_pool_infoset,
            "one.user.info": self._user_info,
            "one.system.version": self._version,
        }
        self._methods = {name: method for name, method in methods.items() if name not in without}
        self._guest_answers: dict[int, tuple[Guest, Answer]] = {}

    def answer(self, call: Call) -> Answer:
        """Return the answer to a call; raise `FaultError` if the method is unknown or an argument wrong."""
        method = self._methods.get(call.method)
        if method is None:
            raise FaultError(NO_SUCH_METHOD_ERROR, f"Method '{call.method}' not defined")
        # oned reads the session, then judges it, and only then reads the other arguments.
        user = self._cloud.who_is(call.string(0), self._clock.seconds())
        if user is None:
            text = "User couldn't be authenticated, aborting call."
            return _error(call, text, ErrorCode.AUTHENTICATION)
        return method(call, user)

    def _vm_info(self, call: Call, user: User) -> Answer:
        guest = self._allowed(call, user, Right.USE, _object_id(call))
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
            return _error(call, f"Error getting virtual machine [{guest_id}].", ErrorCode.NO_EXISTS, guest_id)
        if not self._cloud.may(user, right, guest):
            return _not_authorized(call, user, f"VM [{guest_id}]", right)
        return guest

    def _vm_action(self, call: Call, user: User) -> Answer:
        action, guest_id = call.string(1), call.integer(2)
        guest = self._allowed(call, user, Right.MANAGE, guest_id)
        if isinstance(guest, Answer):
            return guest
        if action not in ACTIONS:
            return _error(call, f'Action "{action}" is not supported', ErrorCode.ACTION)
        try:
            steps = acted_on(guest, action, user)
        except WrongStateError as error:
            text = f'Error performing action "{action}": This action is not available for state {error}'
            return _error(call, text, ErrorCode.ACTION)
        return self._done(steps)

    def _vm_migrate(self, call: Call, user: User) -> Answer:
        guest_id, host_id, live = call.integer(1), call.integer(2), call.boolean(3)
        host = self._cloud.host(host_id)
        if host is None:
            return _error(call, f"Error getting host [{host_id}].", ErrorCode.NO_EXISTS, host_id)
        guest = self._allowed(call, user, Right.ADMIN, guest_id)
        if isinstance(guest, Answer):
            return guest
        try:
            steps = migrated(guest, LIVE_MIGRATE if live else MIGRATE, (host_id, host), user)
        except WrongStateError as error:
            return _error(call, f"Migrate action is not available for state {error}", ErrorCode.ACTION)
        if guest.stays[-1].host_id == host_id:
            return _error(call, f"VM is already running on host [{host_id}]", ErrorCode.ACTION)
        return self._done(steps)

    def _done(self, steps: list[Guest]) -> Answer:
        for guest in steps:
            self._cloud.change(guest)
        return Answer(success=True, number=steps[-1].id)

    def _vm_pool_info(self, call: Call, user: User) -> Answer:
        whose, first, last, state = (call.integer(number) for number in range(1, 5))
        owner_id = user.id if whose in (_OWN, _OWN_AND_GROUP) else whose
        guests = [
            guest
            for guest in self._cloud.guests_for(user)
            if (
                whose == _ALL
                or guest.owner.id == owner_id
                or (whose == _OWN_AND_GROUP and guest.owner.group == user.group)
            )
            and first <= guest.id <= (last if last >= 0 else guest.id)
            and (state in (_ANY_STATE, guest.state) or (state == _NOT_DONE and guest.state != DONE))
        ]
        return Answer(success=True, text=pool_xml(guests))

    def _vm_pool_infoset(self, call: Call, user: User) -> Answer:
        ids, extended = call.string(1).split(","), call.boolean(2)
        guests = [guest for guest in self._cloud.guests_for(user) if str(guest.id) in ids]
        return Answer(success=True, text=pool_xml(guests, extended=extended))

    def _user_info(self, call: Call, user: User) -> Answer:
        asked_id = _object_id(call)
        account = user if asked_id == -1 else self._cloud.user(asked_id)
        if account is None:
            return _error(call, f"Error getting user [{asked_id}].", ErrorCode.NO_EXISTS, asked_id)
        if not self._cloud.may_read_account(user, account):
            return _not_authorized(call, user, f"USER [{asked_id}]", Right.USE)
        return Answer(success=True, text=user_xml(account, self._cloud.guests_of(account)))

    def _version(self, _call: Call, _user: User) -> Answer:
        return Answer(success=True, text=VERSION)


def _object_id(call: Call) -> int:
    object_id = call.integer(1)
    if len(call.arguments) > 2:  # noqa: PLR2004 - whether to decrypt: checked for its type, else of no effect
        call.boolean(2)
    return object_id


def _not_authorized(call: Call, user: User, what: str, right: Right) -> Answer:
    return _error(call, f"User [{user.id}] : Not authorized to perform {right.name} {what}.", ErrorCode.AUTHORIZATION)


def _error(call: Call, text: str, code: ErrorCode, object_id: int = -1) -> Answer:
    return Answer(success=False, text=f"[{call.method}] {text}", code=code.value, object_id=object_id)


class OnedFactory(Factory):
    """The server: `behaviour` for every call, but for ``one.vm.info`` of the VMs in `ugly_guests` theirs.

    It does not know the methods `without`, as older ones do not.
    """

    noisy = False

    def __init__(
        self,
        cloud: Cloud,
        clock: Clock,
        behaviour: Behaviour = Behaviour(),  # noqa: B008 - it is frozen
        ugly_guests: Mapping[int, Behaviour] = MappingProxyType({}),
        without: Container[str] = (),
    ) -> None:
        self._oned = Oned(cloud, clock, without)
        self._clock = clock
        self._behaviour = behaviour
        self._ugly_guests = ugly_guests

    def buildProtocol(self, addr: IAddress | None) -> Abyss:  # noqa: ARG002 - everybody is served
        """Return the protocol of a new connection."""
        return Abyss(self._reply, self._clock)

    def _reply(self, request: bytes) -> tuple[bytes, Behaviour]:
        behaviour = self._behaviour
        try:
            call = decode_call(request)
            if call.method == _VM_INFO and len(call.arguments) > 1:
                behaviour = self._ugly_guests.get(call.integer(1), behaviour)
            answer = self._oned.answer(call)
        except FaultError as fault:
            return fault.body, behaviour
        return spoil_answer(behaviour.kind, answer), behaviour
