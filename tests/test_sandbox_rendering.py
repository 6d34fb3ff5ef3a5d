"""The XML inside the sandbox's answers: always well-formed, and with the values that went in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from vnctoken.sandbox.accountrendering import group_pool_xml, user_pool_xml, user_xml
from vnctoken.sandbox.accounts import Group, LoginToken
from vnctoken.sandbox.cloud import (
    ALICE,
    BOB,
    GINA,
    ONEADMIN,
    REMY,
    SERVERADMIN,
    SERVERX509,
    XENIA,
    Guest,
    Stay,
    User,
    demo_cloud,
)
from vnctoken.sandbox.rendering import guest_xml, pool_xml

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


NO_QUOTAS = (
    "<DATASTORE_QUOTA></DATASTORE_QUOTA><NETWORK_QUOTA></NETWORK_QUOTA><VM_QUOTA></VM_QUOTA><IMAGE_QUOTA></IMAGE_QUOTA>"
)


def test_an_account_is_laid_out_as_oneds():
    """As a real oned 6.10.0 has answered, whose alice had the same passwords."""
    assert user_xml(ALICE, []) == (
        "<USER><ID>2</ID><GID>1</GID><GROUPS><ID>1</ID></GROUPS><GNAME>users</GNAME><NAME>alice</NAME>"
        "<PASSWORD><![CDATA[2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b]]></PASSWORD>"
        "<AUTH_DRIVER><![CDATA[core]]></AUTH_DRIVER><ENABLED>1</ENABLED><TEMPLATE>"
        "<TOKEN_PASSWORD><![CDATA[b502616feb472186c273d0000230e0492dac5d2b99df29685487060c497759df]]></TOKEN_PASSWORD>"
        f"</TEMPLATE>{NO_QUOTAS}<DEFAULT_USER_QUOTAS>{NO_QUOTAS}</DEFAULT_USER_QUOTAS></USER>"
    )


def test_a_pool_of_accounts_has_them_newest_first_and_their_quotas_beside_them():
    one = User(3, "one", "secret", Group(1, "users"), enabled=False)
    two = User(
        5, "two", "a|b", Group(1, "users"), auth_driver="x509", login_tokens=(LoginToken("t2", 7), LoginToken("t1"))
    )
    xml = user_pool_xml([(one, []), (two, [])])
    assert xml == (
        "<USER_POOL><USER><ID>5</ID><GID>1</GID><GROUPS><ID>1</ID></GROUPS><GNAME>users</GNAME><NAME>two</NAME>"
        "<PASSWORD><![CDATA[a|b]]></PASSWORD><AUTH_DRIVER><![CDATA[x509]]></AUTH_DRIVER><ENABLED>1</ENABLED>"
        "<LOGIN_TOKEN><TOKEN>t1</TOKEN><EXPIRATION_TIME>-1</EXPIRATION_TIME><EGID>-1</EGID></LOGIN_TOKEN>"
        "<LOGIN_TOKEN><TOKEN>t2</TOKEN><EXPIRATION_TIME>7</EXPIRATION_TIME><EGID>-1</EGID></LOGIN_TOKEN>"
        f"<TEMPLATE></TEMPLATE></USER><QUOTAS><ID>5</ID>{NO_QUOTAS}</QUOTAS>"
        "<USER><ID>3</ID><GID>1</GID><GROUPS><ID>1</ID></GROUPS><GNAME>users</GNAME><NAME>one</NAME>"
        "<PASSWORD><![CDATA[2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b]]></PASSWORD>"
        "<AUTH_DRIVER><![CDATA[core]]></AUTH_DRIVER><ENABLED>0</ENABLED>"
        f"<TEMPLATE></TEMPLATE></USER><QUOTAS><ID>3</ID>{NO_QUOTAS}</QUOTAS>"
        f"<DEFAULT_USER_QUOTAS>{NO_QUOTAS}</DEFAULT_USER_QUOTAS></USER_POOL>"
    )


@pytest.mark.parametrize(
    ("user", "driver", "password"),
    [
        (SERVERADMIN, "server_cipher", "0eaa58fe6561"),
        (SERVERX509, "server_x509", "/C=XX/O=onelab/CN=serverx509"),
        (XENIA, "x509", "/C=XX/O=onelab/CN=xenia|/DC=org/DC=example/CN=xenia"),
        (REMY, "public", "remy@EXAMPLE.ORG"),
    ],
)
def test_what_is_stored_as_the_password_depends_on_the_driver(user, driver, password):
    account = etree.fromstring(user_xml(user, []))
    assert account.findtext("AUTH_DRIVER") == driver
    assert account.findtext("PASSWORD").startswith(password)


def test_a_user_of_several_groups_has_them_all_and_the_name_of_the_primary_one():
    account = etree.fromstring(user_xml(GINA, []))
    assert [number.text for number in account.find("GROUPS")] == ["1", "100"]
    assert [account.findtext("GID"), account.findtext("GNAME")] == ["1", "users"]


def test_a_pool_of_groups_has_them_newest_first_with_their_members():
    """After oned's sources: no real one's answer was at hand."""
    users, others = Group(1, "users"), Group(100, "others")
    xml = group_pool_xml([(users, [BOB, ALICE], []), (others, [], [])])
    assert xml == (
        "<GROUP_POOL><GROUP><ID>100</ID><NAME>others</NAME><TEMPLATE></TEMPLATE><USERS></USERS><ADMINS></ADMINS>"
        f"</GROUP><QUOTAS><ID>100</ID>{NO_QUOTAS}</QUOTAS>"
        "<GROUP><ID>1</ID><NAME>users</NAME><TEMPLATE><SUNSTONE><DEFAULT_VIEW><![CDATA[cloud]]></DEFAULT_VIEW>"
        "<GROUP_ADMIN_DEFAULT_VIEW><![CDATA[groupadmin]]></GROUP_ADMIN_DEFAULT_VIEW>"
        "<GROUP_ADMIN_VIEWS><![CDATA[groupadmin,cloud]]></GROUP_ADMIN_VIEWS><VIEWS><![CDATA[cloud]]></VIEWS></SUNSTONE>"
        "</TEMPLATE><USERS><ID>2</ID><ID>3</ID></USERS><ADMINS></ADMINS></GROUP>"
        f"<QUOTAS><ID>1</ID>{NO_QUOTAS}</QUOTAS>"
        f"<DEFAULT_GROUP_QUOTAS>{NO_QUOTAS}</DEFAULT_GROUP_QUOTAS></GROUP_POOL>"
    )


def test_a_vm_says_when_it_was_started_and_who_created_it_if_its_context_has_a_token():
    vm = document(Guest(7, "vm", BOB, None, created_by=ONEADMIN, started=1_795_316_222))
    assert [vm.findtext(name) for name in ("UID", "UNAME", "STIME")] == ["3", "bob", "1795316222"]
    assert vm.findtext("HISTORY_RECORDS/HISTORY/STIME") == "1795316222"
    assert vm.findtext("TEMPLATE/CREATED_BY") == "0"
    assert vm.findtext("TEMPLATE/CONTEXT/TOKEN") == "YES"


def test_a_vm_whose_context_has_no_token_does_not_say_who_created_it():
    vm = document(Guest(7, "vm", BOB, None))
    assert vm.find("TEMPLATE/CREATED_BY") is None
    assert vm.find("TEMPLATE/CONTEXT") is None
