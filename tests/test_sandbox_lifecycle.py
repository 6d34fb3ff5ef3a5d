"""What becomes of the sandbox's VMs when somebody acts on them, and what is published of it."""

import pytest
from lxml import etree

from vnctoken.sandbox.cloud import ALICE, ONEADMIN, Stay, demo_cloud
from vnctoken.sandbox.lifecycle import (
    ACTIONS,
    LIVE_MIGRATE,
    MIGRATE,
    WrongStateError,
    acted_on,
    migrated,
    state_names,
)
from vnctoken.sandbox.publishing import event

CLOUD = demo_cloud()
RUNNING, PENDING, OFF, SUSPENDED, DONE, IN_PROLOG = (CLOUD.guest(number) for number in (0, 6, 7, 8, 18, 26))
SECOND_HOST = (1, "dummy-host-2.example.org")


def names(steps):
    """Return the states that a VM goes through, an ACTIVE one's by its LCM_STATE."""
    return [lcm_state if state == "ACTIVE" else state for state, lcm_state in map(state_names, steps)]


@pytest.mark.parametrize(
    ("guest", "action", "states"),
    [
        (RUNNING, "poweroff", ["SHUTDOWN_POWEROFF", "POWEROFF"]),
        (RUNNING, "poweroff-hard", ["SHUTDOWN_POWEROFF", "POWEROFF"]),
        (RUNNING, "suspend", ["SAVE_SUSPEND", "SUSPENDED"]),
        (RUNNING, "terminate", ["SHUTDOWN", "EPILOG", "DONE"]),
        (RUNNING, "terminate-hard", ["CANCEL", "EPILOG", "DONE"]),
        (OFF, "resume", ["BOOT_POWEROFF", "RUNNING"]),
        (OFF, "terminate", ["EPILOG", "DONE"]),
        (SUSPENDED, "resume", ["BOOT_SUSPENDED", "RUNNING"]),
        (SUSPENDED, "terminate-hard", ["EPILOG", "DONE"]),
        (PENDING, "terminate", ["DONE"]),
    ],
)
def test_an_action_leads_through_these_states(guest, action, states):
    assert names(acted_on(guest, action, ALICE)) == states


@pytest.mark.parametrize(
    ("guest", "action", "state"),
    [
        (RUNNING, "resume", "RUNNING"),
        (OFF, "poweroff", "POWEROFF"),
        (OFF, "suspend", "POWEROFF"),
        (DONE, "terminate", "DONE"),
        (PENDING, "resume", "PENDING"),
        (IN_PROLOG, "poweroff", "PROLOG"),
    ],
)
def test_an_action_in_the_wrong_state_is_refused_with_the_name_of_the_state(guest, action, state):
    with pytest.raises(WrongStateError, match=rf"^{state}$"):
        acted_on(guest, action, ALICE)


@pytest.mark.parametrize(
    ("guest", "action", "states"),
    [
        (RUNNING, LIVE_MIGRATE, ["MIGRATE", "RUNNING"]),
        (RUNNING, MIGRATE, ["SAVE_MIGRATE", "PROLOG_MIGRATE", "BOOT_MIGRATE", "RUNNING"]),
        (OFF, MIGRATE, ["PROLOG_MIGRATE_POWEROFF", "POWEROFF"]),
        (SUSPENDED, MIGRATE, ["PROLOG_MIGRATE_SUSPEND", "SUSPENDED"]),
    ],
)
def test_a_vm_that_moves_is_at_its_new_host_from_the_first_state_on(guest, action, states):
    steps = migrated(guest, action, SECOND_HOST, ONEADMIN)
    assert names(steps) == states
    assert {step.stays[-1] for step in steps} == {Stay(SECOND_HOST[1], SECOND_HOST[0])}


@pytest.mark.parametrize(("guest", "action"), [(DONE, MIGRATE), (PENDING, MIGRATE), (OFF, LIVE_MIGRATE)])
def test_a_vm_that_is_not_on_a_host_does_not_move(guest, action):
    with pytest.raises(WrongStateError):
        migrated(guest, action, SECOND_HOST, ONEADMIN)


@pytest.mark.parametrize("action", ["poweroff", "poweroff-hard", "suspend", "terminate"])
def test_the_history_says_who_ended_a_stay_and_how(action):
    on_the_way, *_, end = acted_on(RUNNING, action, ALICE)
    ended = Stay("dummy-host-1", action=ACTIONS[action], asked_by=ALICE)
    assert end.stays == (ended,)
    assert on_the_way.stays == (Stay("dummy-host-1", action=ACTIONS[action], asked_by=ALICE, under_way=True),)


def test_a_vm_that_is_resumed_begins_another_stay_on_the_host_where_it_was():
    end = acted_on(OFF, "resume", ALICE)[-1]
    assert end.stays == (*OFF.stays, Stay("dummy-host-1"))


def test_a_vm_that_is_done_has_no_port_any_more():
    end = acted_on(RUNNING, "terminate", ALICE)[-1]
    assert end.graphics == {"LISTEN": "0.0.0.0", "TYPE": "VNC"}


# Events


def test_an_event_is_named_after_the_state_with_a_space_at_its_end():
    on_the_way, end = acted_on(RUNNING, "poweroff", ALICE)
    assert event(RUNNING, on_the_way)[0] == "EVENT STATE VM/ACTIVE/SHUTDOWN_POWEROFF/0 "
    assert event(on_the_way, end)[0] == "EVENT STATE VM/POWEROFF/LCM_INIT/0 "


def test_the_events_of_a_live_migration_are_laid_out_as_oneds():
    """As a real oned 6.10.0 has published them, but for the moments."""
    on_the_way, end = migrated(RUNNING, LIVE_MIGRATE, SECOND_HOST, ONEADMIN)
    message = event(RUNNING, on_the_way)[1]
    assert message.startswith(
        "<HOOK_MESSAGE><HOOK_TYPE>STATE</HOOK_TYPE><HOOK_OBJECT>VM</HOOK_OBJECT><STATE>ACTIVE</STATE>"
        "<LCM_STATE>MIGRATE</LCM_STATE><RESOURCE_ID>0</RESOURCE_ID>"
        "<REMOTE_HOST>dummy-host-2.example.org</REMOTE_HOST><VM><ID>0</ID><UID>2</UID>"
    )
    assert message.endswith("<BACKUPS><BACKUP_CONFIG/><BACKUP_IDS></BACKUP_IDS></BACKUPS></VM></HOOK_MESSAGE>")
    assert "<MONITORING></MONITORING>" in message
    assert (
        "<LAST_POLL>0</LAST_POLL><STATE>3</STATE><LCM_STATE>4</LCM_STATE><PREV_STATE>3</PREV_STATE>"
        "<PREV_LCM_STATE>3</PREV_LCM_STATE>"
    ) in message
    times = ("ETIME", "RSTIME", "RETIME", "ACTION", "UID")
    left, there = etree.fromstring(message).findall("VM/HISTORY_RECORDS/HISTORY")
    assert [left.findtext(name) for name in times] == ["0", "1790000000", "0", "2", "0"]
    assert [there.findtext(name) for name in times] == ["0", "0", "0", "0", "-1"]
    left, there = etree.fromstring(event(on_the_way, end)[1]).findall("VM/HISTORY_RECORDS/HISTORY")
    assert [left.findtext(name) for name in times] == ["1790000000", "1790000000", "1790000000", "2", "0"]
    assert [there.findtext(name) for name in times] == ["0", "1790000000", "0", "0", "-1"]


def test_an_event_of_a_vm_that_was_never_on_a_host_names_none():
    assert "<REMOTE_HOST/>" in event(PENDING, acted_on(PENDING, "terminate", ALICE)[-1])[1]
