"""What of a virtual machine is read from oned's XML."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vnctoken.errors import ErrorCode, OnedError
from vnctoken.sandbox.cloud import ONEADMIN, Guest, Stay, demo_cloud
from vnctoken.sandbox.rendering import guest_xml
from vnctoken.vm import ACTIVE, LCM_STATES, VirtualMachine

GRAPHICS = {"TYPE": "VNC", "PORT": "5900", "LISTEN": "0.0.0.0", "PASSWD": "s3cr3tpw"}


def vm_of(**guest):
    return VirtualMachine.from_xml(guest_xml(Guest(7, "vm", ONEADMIN, **{"graphics": GRAPHICS, **guest})))


def test_a_running_vm_is_read_whole():
    vm = vm_of()
    assert replace(vm, owner="", created_by="", started="") == VirtualMachine(
        state=3,
        lcm_state=3,
        graphics_type="VNC",
        listen="0.0.0.0",
        port="5900",
        password="s3cr3tpw",
        host="dummy-host-1",
        host_attribute="HISTORY/HOSTNAME",
    )


def test_whose_a_vm_is_who_made_it_and_when_are_read_too():
    xml = "<VM><UNAME>alice</UNAME><STATE>3</STATE><LCM_STATE>3</LCM_STATE><STIME>1795316222</STIME>{}</VM>"
    made = "<TEMPLATE><CREATED_BY><![CDATA[2]]></CREATED_BY></TEMPLATE>"
    vms = [VirtualMachine.from_xml(xml.format(template)) for template in (made, "<TEMPLATE/>", "")]
    assert [(vm.owner, vm.created_by, vm.started) for vm in vms] == [
        ("alice", "2", "1795316222"),
        ("alice", "", "1795316222"),
        ("alice", "", "1795316222"),
    ]


def test_texts_are_as_stored():
    graphics = {"TYPE": " vnc ", "PORT": " 05900 ", "LISTEN": "", "PASSWD": "a<&>b'c]]>ü"}
    vm = vm_of(graphics=graphics)
    assert (vm.graphics_type, vm.port, vm.listen, vm.password) == (" vnc ", " 05900 ", "", "a<&>b'c]]>ü")


def test_of_elements_that_are_there_twice_the_first_one_counts():
    graphics = (
        "<GRAPHICS><TYPE>VNC</TYPE><TYPE>SPICE</TYPE><PORT>5900</PORT></GRAPHICS><GRAPHICS><PORT>22</PORT></GRAPHICS>"
    )
    vm = VirtualMachine.from_xml(
        f"<VM><STATE>3</STATE><LCM_STATE>3</LCM_STATE><TEMPLATE>{graphics}</TEMPLATE><STATE>6</STATE><TEMPLATE/></VM>"
    )
    assert (vm.state, vm.graphics_type, vm.port) == (3, "VNC", "5900")


def test_a_vm_without_graphics_has_empty_texts():
    vm = vm_of(graphics=None)
    assert (vm.graphics_type, vm.port, vm.listen, vm.password) == ("", "", "", "")


def test_a_pending_vm_has_no_host():
    vm = vm_of(state=1, lcm_state=0, stays=())
    assert (vm.state, vm.lcm_state, vm.host, vm.host_attribute) == (1, 0, "", "HISTORY/HOSTNAME")


def test_the_host_is_where_the_vm_is_now():
    assert vm_of(stays=(Stay("first"), Stay("second"), Stay(" third "))).host == "third"


@pytest.mark.parametrize("hypervisor", ["vcenter", "VCENTER", " vCenter "])
def test_a_vcenter_vm_is_on_the_esx_host_that_monitoring_names(hypervisor):
    vm = vm_of(user_template={"HYPERVISOR": hypervisor}, monitoring={"VCENTER_ESX_HOST": "esx7.example.org"})
    assert (vm.host, vm.host_attribute) == ("esx7.example.org", "MONITORING/VCENTER_ESX_HOST")


def test_a_vcenter_vm_without_that_has_no_host_and_not_its_clusters():
    vm = vm_of(user_template={"HYPERVISOR": "vcenter"})
    assert (vm.host, vm.host_attribute) == ("", "MONITORING/VCENTER_ESX_HOST")


def test_another_hypervisor_does_not_make_it_a_vcenter_vm():
    vm = vm_of(user_template={"HYPERVISOR": "kvm"}, monitoring={"VCENTER_ESX_HOST": "esx7.example.org"})
    assert (vm.host, vm.host_attribute) == ("dummy-host-1", "HISTORY/HOSTNAME")


def test_every_vm_of_the_sandbox_can_be_read():
    vms = [VirtualMachine.from_xml(guest_xml(demo_cloud().guest(number))) for number in (0, 4, 6, 13, 19, 27, 28)]
    assert [vm.host for vm in vms][3:5] == ["2001:db8::1", "esx7.example.org"]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "oned answered with a VM that is not XML"),
        ("no XML", "oned answered with a VM that is not XML"),
        ("<VM><STATE>3</STATE>", "oned answered with a VM that is not XML"),
        ("<!DOCTYPE VM><VM><STATE>3</STATE><LCM_STATE>3</LCM_STATE></VM>", "oned answered with a VM that is not XML"),
        ("<VM>\0</VM>", "oned answered with a VM that is not XML"),
        ("<HOST/>", "oned answered with something that is no VM"),
        ("<html><VM/></html>", "oned answered with something that is no VM"),
        ("<VM/>", "oned answered with a VM without a STATE"),
        ("<VM><STATE>3</STATE></VM>", "oned answered with a VM without a LCM_STATE"),
        *[
            (f"<VM><STATE>{state}</STATE><LCM_STATE>3</LCM_STATE></VM>", "oned answered with a VM without a STATE")
            for state in ("", "ACTIVE", "-1", "٣", "³", "1" * 10, "9" * 5000, "3.0", "<A>3</A>")
        ],
    ],
)
def test_what_is_no_vm_with_a_state_is_an_error_of_oneds(document, message):
    with pytest.raises(OnedError, match=f"^{re.escape(message)}$") as caught:
        VirtualMachine.from_xml(document)
    assert caught.value.code == ErrorCode.INTERNAL


def test_an_error_does_not_repeat_what_oned_said():
    with pytest.raises(OnedError) as caught:
        VirtualMachine.from_xml("<VM><PASSWD>s3cr3tpw</s3cr3tpw>")
    assert "s3cr3tpw" not in str(caught.value)


def test_a_password_is_not_shown_by_accident():
    assert "s3cr3tpw" not in repr(vm_of())


def test_the_states_are_opennebulas():
    assert ACTIVE == 3
    assert LCM_STATES["RUNNING"] == 3
    assert LCM_STATES["HOTPLUG_RESIZE"] == 66
    assert LCM_STATES["BACKUP"] == 69


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff"))
names = st.sampled_from(
    ["VM", "STATE", "LCM_STATE", "TEMPLATE", "GRAPHICS", "TYPE", "PORT", "HISTORY_RECORDS", "HISTORY", "USER_TEMPLATE"]
)


def element(name, content):
    return f"<{name}>{content}</{name}>"


trees = st.recursive(
    st.sampled_from(["", "3", "vcenter", "<![CDATA[x]]>", "<!-- x -->"]),
    lambda inner: st.lists(st.builds(element, names, inner), max_size=4).map("".join),
)


@settings(deadline=None)
@given(st.text() | trees | trees.map(lambda inner: f"<VM><STATE>3</STATE><LCM_STATE>3</LCM_STATE>{inner}</VM>"))
def test_whatever_oned_says_it_is_a_vm_of_texts_or_an_error_of_oneds(document):
    try:
        vm = VirtualMachine.from_xml(document)
    except OnedError:
        return
    assert vm.state >= 0
    assert vm.lcm_state >= 0
    assert all(isinstance(text, str) for text in (vm.graphics_type, vm.listen, vm.port, vm.password, vm.host))


@settings(deadline=None)
@given(texts.map(str.strip), texts)
def test_whatever_oned_stores_comes_out_as_it_was_stored(host, password):
    vm = vm_of(graphics=GRAPHICS | {"PASSWD": password}, stays=(Stay(host),))
    assert (vm.host, vm.password) == (host, password)
