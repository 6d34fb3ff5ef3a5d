"""The XML inside the sandbox's answers: always well-formed, and with the values that went in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from vnctoken.sandbox.cloud import ALICE, BOB, Guest, Stay, demo_cloud
from vnctoken.sandbox.rendering import guest_xml, pool_xml, user_xml

CLOUD = demo_cloud()

# What XML 1.0 can carry, without the carriage return that every parser makes a line feed of.
XML_TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff") | st.sampled_from("\t\n]>&<'\"")
)


def document(guest):
    return etree.fromstring(guest_xml(guest))


@given(password=XML_TEXT, name=XML_TEXT, host=XML_TEXT)
def test_whatever_text_goes_in_comes_out(password, name, host):
    guest = Guest(4, name, ALICE, {"PASSWD": password}, stays=(Stay(host),))
    vm = document(guest)
    assert vm.findtext("TEMPLATE/GRAPHICS/PASSWD") == password
    assert vm.findtext("NAME") == name
    assert vm.findtext("HISTORY_RECORDS/HISTORY/HOSTNAME") == host


@pytest.mark.parametrize("text", ["]]>", "x]]>y", "]]]]>>", "<![CDATA[", "]]", ">"])
def test_a_value_cannot_end_its_cdata_section(text):
    assert document(Guest(4, "vm", ALICE, {"PASSWD": text})).findtext(".//PASSWD") == text


def test_template_values_are_cdata_and_states_and_hosts_are_not():
    xml = guest_xml(CLOUD.guest(5))
    assert "<PASSWD><![CDATA[a<&>b'c]]></PASSWD>" in xml
    assert "<STATE>3</STATE>" in xml
    assert "<HOSTNAME>dummy-host-1</HOSTNAME>" in xml


def test_a_pool_has_its_vms_in_short_newest_first_and_hosts_are_cdata():
    # As a real oned 6.10.0 has answered, but for the moments.
    migrated, pending = CLOUD.guest(20), CLOUD.guest(6)
    assert pool_xml([pending, migrated]) == (
        "<VM_POOL>"
        "<VM><ID>20</ID><UID>2</UID><GID>1</GID><UNAME>alice</UNAME><GNAME>users</GNAME><NAME>vnc-migrated</NAME>"
        "<LAST_POLL>0</LAST_POLL><STATE>3</STATE><LCM_STATE>3</LCM_STATE><RESCHED>0</RESCHED>"
        "<STIME>1790000000</STIME><ETIME>0</ETIME><DEPLOY_ID>dummy-host-1:vnc-migrated:dummy</DEPLOY_ID>"
        "<TEMPLATE><CPU>0.1</CPU><MEMORY>64</MEMORY><VCPU></VCPU><GRAPHICS><LISTEN><![CDATA[0.0.0.0]]></LISTEN>"
        "<PORT><![CDATA[5920]]></PORT><TYPE><![CDATA[VNC]]></TYPE></GRAPHICS></TEMPLATE><MONITORING/><USER_TEMPLATE/>"
        "<HISTORY_RECORDS><HISTORY><OID>20</OID><SEQ>1</SEQ><HOSTNAME><![CDATA[dummy-host-2.example.org]]></HOSTNAME>"
        "<HID>1</HID><CID>0</CID><DS_ID>100</DS_ID><VM_MAD><![CDATA[dummy]]></VM_MAD><TM_MAD><![CDATA[dummy]]></TM_MAD>"
        "<ACTION><![CDATA[0]]></ACTION></HISTORY></HISTORY_RECORDS></VM>"
        "<VM><ID>6</ID><UID>2</UID><GID>1</GID><UNAME>alice</UNAME><GNAME>users</GNAME><NAME>vnc-pending</NAME>"
        "<LAST_POLL>0</LAST_POLL><STATE>1</STATE><LCM_STATE>0</LCM_STATE><RESCHED>0</RESCHED>"
        "<STIME>1790000000</STIME><ETIME>0</ETIME><DEPLOY_ID></DEPLOY_ID>"
        "<TEMPLATE><CPU>0.1</CPU><MEMORY>64</MEMORY><VCPU></VCPU><GRAPHICS><LISTEN><![CDATA[0.0.0.0]]></LISTEN>"
        "<TYPE><![CDATA[VNC]]></TYPE></GRAPHICS></TEMPLATE><MONITORING/><USER_TEMPLATE/><HISTORY_RECORDS/></VM>"
        "</VM_POOL>"
    )
    assert pool_xml([]) == "<VM_POOL></VM_POOL>"


def test_an_extended_pool_has_nearly_all_but_the_monitoring_and_the_earlier_history():
    (vm,) = etree.fromstring(pool_xml([CLOUD.guest(20)], extended=True))
    full = document(CLOUD.guest(20))
    assert [element.tag for element in vm] == [element.tag for element in full]
    assert [len(vm.find("MONITORING")), vm.findtext("LAST_POLL")] == [0, "0"]
    (stay,) = vm.find("HISTORY_RECORDS")
    assert etree.tostring(stay) == etree.tostring(full.find("HISTORY_RECORDS")[-1])


@pytest.mark.parametrize("extended", [False, True])
def test_a_pool_does_not_tell_the_host_of_a_vcenter_vm(extended):
    assert "esx7" not in pool_xml([CLOUD.guest(19)], extended=extended)


def test_the_short_form_does_not_say_that_a_vm_is_a_vcenters():
    assert "<USER_TEMPLATE></USER_TEMPLATE>" in pool_xml([CLOUD.guest(19)])


def test_template_attributes_are_sorted_by_name():
    template = document(CLOUD.guest(1)).find("TEMPLATE")
    for element in (template, template.find("GRAPHICS")):
        names = [child.tag for child in element]
        assert names == sorted(names)


def test_a_vm_that_was_never_on_a_host_has_an_empty_history():
    xml = guest_xml(CLOUD.guest(6))
    assert "<HISTORY_RECORDS/>" in xml
    assert "<DEPLOY_ID></DEPLOY_ID>" in xml
    assert "TM_MAD_SYSTEM" not in xml


def test_a_migrated_vm_has_left_its_first_host_and_is_on_the_last():
    first, last = document(CLOUD.guest(20)).findall("HISTORY_RECORDS/HISTORY")
    assert (first.findtext("HOSTNAME"), last.findtext("HOSTNAME")) == (
        "dummy-host-1",
        "dummy-host-2.example.org",
    )
    assert first.findtext("ETIME") != "0"
    assert last.findtext("ETIME") == "0"
    assert [record.findtext("SEQ") for record in (first, last)] == ["0", "1"]


def test_a_done_vm_has_ended_and_was_cleaned_up():
    vm = document(CLOUD.guest(18))
    assert vm.findtext("STATE") == "6"
    assert vm.findtext("ETIME") != "0"
    history = vm.find("HISTORY_RECORDS/HISTORY")
    assert all(history.findtext(name) != "0" for name in ("ETIME", "RETIME", "ESTIME", "EETIME"))


def test_a_vm_without_graphics_has_no_such_element():
    assert document(CLOUD.guest(4)).find("TEMPLATE/GRAPHICS") is None


def test_a_vcenter_vm_names_its_host_in_its_monitoring():
    vm = document(CLOUD.guest(19))
    assert vm.findtext("USER_TEMPLATE/HYPERVISOR") == "vcenter"
    assert vm.findtext("MONITORING/VCENTER_ESX_HOST") == "esx7.example.org"


@pytest.mark.parametrize(
    ("mode", "bits"), [(0o600, "110000000"), (0o640, "110100000"), (0o604, "110000100"), (0o751, "111101001")]
)
def test_permission_bits_are_written_for_owner_group_and_others(mode, bits):
    permissions = document(Guest(1, "vm", ALICE, None, mode=mode)).find("PERMISSIONS")
    assert "".join(bit.text for bit in permissions) == bits
    assert [bit.tag for bit in permissions][::3] == ["OWNER_U", "GROUP_U", "OTHER_U"]


def test_an_account_shows_what_its_vms_use():
    user = etree.fromstring(user_xml(BOB, [Guest(1, "a", BOB, None), Guest(2, "b", BOB, None, state=8)]))
    quota = user.find("VM_QUOTA/VM")
    assert (quota.findtext("VMS_USED"), quota.findtext("RUNNING_VMS_USED")) == ("2", "1")
    assert (quota.findtext("CPU_USED"), quota.findtext("MEMORY_USED")) == ("0.20", "128")


def test_an_account_without_vms_has_an_empty_quota():
    assert "<VM_QUOTA></VM_QUOTA>" in user_xml(BOB, [])


def test_an_account_shows_the_hash_of_the_password_and_never_the_password():
    xml = user_xml(ALICE, [])
    assert "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b" in xml
    assert ">secret<" not in xml
    assert "[secret]" not in xml
