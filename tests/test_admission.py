"""What a caller may have: his own VM, by his groups; and what session strings cost that oned refuses."""

from dataclasses import replace

import pytest
from callers import CLIENT, admission, caller, limits
from outcomes import result_of
from twisted.internet.task import Clock

from vnctoken.auth import Caller
from vnctoken.auth.admission import Admission, GroupRules
from vnctoken.auth.guessing import Guessing
from vnctoken.errors import AuthenticationError, AuthorizationError, LimitError, NoExistsError, OnedError
from vnctoken.user import User

ALICE = User(2, "alice", "core", enabled=True, group="users", groups=frozenset({1}), password="", token_password="")
NAMES = {0: "oneadmin", 1: "users", 100: "guests"}
WRONG = AuthenticationError("[one.vm.info] User couldn't be authenticated, aborting call.")


class MemoryOned:
    """Knows one user and one VM, or has an error for who asks; `questions` are those it was asked."""

    def __init__(self, user=ALICE, names=NAMES, answer="a VM"):
        self.account = user
        self.names = names
        self.answer = answer
        self.questions = []

    async def vm_info(self, session, vm_id):
        self.questions.append(("vm_info", session, vm_id))
        return self._answered(self.answer)

    async def user(self, session):
        self.questions.append(("user", session))
        return self._answered(self.account)

    async def groups(self, session):
        self.questions.append(("groups", session))
        return self.names

    @staticmethod
    def _answered(answer):
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_caller_is_judged_by_oned_and_nobody_else_is_asked():
    oned = MemoryOned()
    assert result_of(admission(oned).vm_info(caller("alice:secret"), 7)) == "a VM"
    assert oned.questions == [("vm_info", "alice:secret", 7)]


def test_a_vm_may_have_its_own_console_only_and_oned_is_not_asked_for_another():
    oned = MemoryOned()
    guest = Caller("onegate", "alice", "serveradmin:alice:login", CLIENT, vm_id=7)
    assert result_of(admission(oned).vm_info(guest, 7)) == "a VM"
    for other in (0, 8):
        with pytest.raises(AuthorizationError, match=f"VM 7 may have its own console only, and not that of VM {other}"):
            result_of(admission(oned).vm_info(guest, other))
    assert len(oned.questions) == 1
    vm_zero = replace(guest, vm_id=0)
    with pytest.raises(AuthorizationError):
        result_of(admission(oned).vm_info(vm_zero, 7))


# Groups

BOTH = replace(ALICE, groups=frozenset({1, 100}))


@pytest.mark.parametrize(
    ("user", "groups", "allowed"),
    [
        (ALICE, {"allowed": ["users"]}, True),
        (ALICE, {"allowed": [1]}, True),
        (ALICE, {"allowed": ["guests", 100]}, False),
        (ALICE, {"allowed": ["1"]}, False),
        (ALICE, {"restricted": ["users"]}, False),
        (ALICE, {"restricted": [1]}, False),
        (ALICE, {"restricted": ["guests", 0]}, True),
        (BOTH, {"allowed": ["guests"]}, True),
        (BOTH, {"allowed": [100]}, True),
        (BOTH, {"restricted": ["guests"]}, False),
        (BOTH, {"restricted": [100]}, False),
        (BOTH, {"allowed": ["users"], "restricted": ["guests"]}, False),
        (BOTH, {"allowed": ["oneadmin"], "restricted": [0]}, False),
    ],
)
@pytest.mark.parametrize("door", ["opennebula", "x509"])
def test_groups_may_be_allowed_or_restricted_by_name_or_id_and_secondary_ones_count(user, groups, allowed, door):
    oned = MemoryOned(user)
    somebody = replace(caller("alice:secret"), door=door)
    if allowed:
        assert result_of(admission(oned, **groups).vm_info(somebody, 7)) == "a VM"
        return
    setting = (
        ":restricted_groups:"
        if "restricted" in groups and groups != {"allowed": ["oneadmin"], "restricted": [0]}
        else ":allowed_groups:"
    )
    with pytest.raises(AuthorizationError, match=setting):
        result_of(admission(oned, **groups).vm_info(somebody, 7))
    assert "vm_info" not in [question[0] for question in oned.questions]


def test_oned_is_asked_for_the_names_of_groups_only_if_they_matter():
    for user, groups in ((ALICE, {"allowed": ["users"]}), (BOTH, {"allowed": [100]})):
        oned = MemoryOned(user)
        result_of(admission(oned, **groups).vm_info(caller("alice:secret"), 7))
        assert oned.questions == [("user", "alice:secret"), ("vm_info", "alice:secret", 7)]


def test_who_is_in_a_group_whose_name_oned_does_not_tell_is_refused():
    oned = MemoryOned(BOTH, {1: "users"})
    with pytest.raises(AuthorizationError, match="oned does not tell the names of all groups of yours"):
        result_of(admission(oned, restricted=["guests"]).vm_info(caller("alice:secret"), 7))


# Session strings that oned refuses


def test_session_strings_that_oned_refuses_cost_and_then_it_is_not_asked():
    oned, clock = MemoryOned(answer=WRONG), Clock()
    rules = GroupRules(oned, restricted=(), allowed=())
    vms = Admission(oned, Guessing(clock, 10, 60), rules, limits())
    for number in range(10):
        with pytest.raises(AuthenticationError, match="aborting call"):
            result_of(vms.vm_info(caller(f"alice:{number}"), 7))
    oned.answer = "a VM"
    for session, client in (("alice:secret", CLIENT), ("bob:secret", CLIENT), ("alice:secret", "192.0.2.99")):
        with pytest.raises(AuthenticationError, match=r"Too many failed attempts to log in .*; try again in 6 seconds"):
            result_of(vms.vm_info(caller(session, client), 7))
    assert len(oned.questions) == 10
    assert result_of(vms.vm_info(caller("bob:secret", "192.0.2.99"), 7)) == "a VM"
    clock.advance(6)
    assert result_of(vms.vm_info(caller("alice:secret"), 7)) == "a VM"


@pytest.mark.parametrize("error", [AuthorizationError("not yours"), NoExistsError("no such VM"), OnedError("down")])
def test_other_refusals_of_oned_cost_nothing(error):
    vms = admission(MemoryOned(answer=error))
    for _ in range(100):
        with pytest.raises(type(error)):
            result_of(vms.vm_info(caller("alice:secret"), 7))


@pytest.mark.parametrize("error", [AuthorizationError("not yours"), NoExistsError("no such VM")])
def test_who_asks_for_what_he_may_not_have_uses_up_his_own_calls_and_not_the_vms(error):
    oned = MemoryOned(answer=error)
    vms = admission(oned, limits(calls_per_user=(3, 60), calls_per_vm=(1, 60)))
    for _ in range(3):
        with pytest.raises(type(error)):
            result_of(vms.vm_info(caller("alice:secret"), 7))
    with pytest.raises(LimitError, match="of the user alice"):
        result_of(vms.vm_info(caller("alice:secret"), 7))
    oned.answer = "a VM"
    assert result_of(vms.vm_info(caller("bob:secret"), 7)) == "a VM"


@pytest.mark.parametrize("error", [WRONG, OnedError("down")])
def test_a_call_whose_user_is_not_known_uses_up_nobodys(error):
    oned = MemoryOned(answer=error)
    vms = admission(oned, limits(calls_per_user=(1, 60)))
    for _ in range(3):
        with pytest.raises(type(error)):
            result_of(vms.vm_info(caller("alice:guess"), 7))
    oned.answer = "a VM"
    assert result_of(vms.vm_info(caller("alice:secret"), 7)) == "a VM"


def test_a_session_that_is_refused_when_its_groups_are_asked_for_costs_too():
    oned = MemoryOned(user=WRONG)
    vms = admission(oned, allowed=[1])
    for _ in range(12):
        with pytest.raises(AuthenticationError):
            result_of(vms.vm_info(caller("alice:wrong"), 7))
    assert len(oned.questions) == 10


def test_a_callers_door_has_counted_already_so_a_user_whom_oned_does_not_know_costs_him_nothing_more():
    oned = MemoryOned(answer=WRONG)
    vms = admission(oned)
    for _ in range(12):
        with pytest.raises(AuthenticationError, match="aborting call"):
            result_of(vms.vm_info(Caller("x509", "alice", "serveradmin:alice:login", CLIENT), 7))
    assert len(oned.questions) == 12
