"""Who may log in to the sandbox's cloud, who may use which VM, and what the standard cloud holds."""

import base64
import hashlib
import subprocess
from dataclasses import replace

import pytest
from conftest import program
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from vnctoken.sandbox.behaviour import UGLY_GUESTS, Kind
from vnctoken.sandbox.cloud import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    EVE,
    GINA,
    ONEADMIN,
    REMY,
    SERVERADMIN,
    SERVERX509,
    XENIA,
    Cloud,
    Group,
    Guest,
    Right,
    User,
    demo_cloud,
    demo_cloud_with_screens,
)
from vnctoken.sandbox.serverx509 import new_certificate, subject

CLOUD = demo_cloud()
NOW = 1_799_999_999


@pytest.mark.parametrize(
    ("session", "user"),
    [
        ("alice:secret", ALICE),
        ("bob:secret", BOB),
        ("oneadmin:opennebula", ONEADMIN),
        ("eve:with:colons:in:it", EVE),
    ],
)
def test_a_session_belongs_to_the_user_with_that_password(session, user):
    assert CLOUD.who_is(session, NOW) == user


@pytest.mark.parametrize(
    "session",
    [
        "alice:wrong",
        "alice:",
        "alice",
        "",
        ":secret",
        "ALICE:secret",
        "alice:secret\n",
        "alice:sécret",
        "nobody:secret",
        f"{DAVE.name}:{DAVE.password}",
        f"{SERVERADMIN.name}:{SERVERADMIN.password}",
        f"{SERVERX509.name}:{SERVERX509.password}",
        f"{XENIA.name}:{XENIA.password}",
        f"{REMY.name}:{REMY.password}",
    ],
)
def test_any_other_session_belongs_to_nobody(session):
    """Among them a disabled user's, a server account's own password, and what x509 and public users are known by."""
    assert CLOUD.who_is(session, NOW) is None


def test_a_login_token_is_as_good_as_the_password_until_it_expires():
    expired, lasting = (login.token for login in CAROL.login_tokens)
    assert CLOUD.who_is(f"carol:{lasting}", NOW) == CAROL
    assert CLOUD.who_is(f"alice:{lasting}", NOW) is None
    assert CLOUD.who_is(f"carol:{expired}", NOW) is None
    assert CLOUD.who_is(f"carol:{expired}", 1_699_999_999) == CAROL


# Made by OpenNebula's own code for the password of SERVERADMIN; good until 1_800_000_000.
FOR_ALICE = "3wGIzKFbnxM2QjDRIEI92w3wlt2r4lZyBHZwEZSQmVo="
FOR_SERVERADMIN = "ay78BZPm4uJmDVERKllISq/nztrvGK2jtkO9OpmG2aTxE0X1NvUM1KHGcq96qYvS"


@pytest.mark.parametrize(
    ("session", "user"),
    [
        (f"serveradmin:alice:{FOR_ALICE}", ALICE),
        (f"serveradmin:serveradmin:{FOR_SERVERADMIN}", SERVERADMIN),
        # oned does not look at the target inside.
        (f"serveradmin:bob:{FOR_ALICE}", BOB),
        (f"serveradmin:oneadmin:{FOR_ALICE}", ONEADMIN),
        # Nor does it ask whether he is enabled, or how he logs in.
        (f"serveradmin:dave:{FOR_ALICE}", DAVE),
        (f"serveradmin:xenia:{FOR_ALICE}", XENIA),
        (f"serveradmin:remy:{FOR_ALICE}", REMY),
    ],
)
def test_a_server_logs_in_for_any_user_until_its_token_expires(session, user):
    assert CLOUD.who_is(session, NOW) == user
    assert CLOUD.who_is(session, NOW + 1) is None


def login(plain, password=SERVERADMIN.password):
    """Return what a server makes of a text with its password."""
    secret = hashlib.sha256(password.encode()).hexdigest().encode()
    encryptor = Cipher(algorithms.AES(secret[:32]), modes.CBC(secret[:16])).encryptor()
    padding = 16 - len(plain) % 16
    return base64.b64encode(encryptor.update(plain + bytes([padding]) * padding) + encryptor.finalize()).decode()


def test_the_standard_clouds_server_has_the_password_that_the_known_logins_were_made_with():
    assert login(b"serveradmin:alice:1800000000") == FOR_ALICE


@pytest.mark.parametrize(
    "session",
    [
        "serveradmin",
        "serveradmin:",
        "serveradmin:alice",
        "serveradmin:alice:",
        "serveradmin:alice:no base64",
        "serveradmin:alice:AAAA",
        f"serveradmin:nobody:{FOR_ALICE}",
        f"serveradmin:alice:{FOR_ALICE[4:]}",
        f"alice:alice:{FOR_ALICE}",
        f"serveradmin:alice:{login(b'serveradmin:alice:1800000000', 'wrong')}",
        f"serveradmin:alice:{login(b'oneadmin:alice:1800000000')}",
        f"serveradmin:alice:{login(b'serveradmin:alice:soon')}",
        f"serveradmin:alice:{login(b'serveradmin:alice:')}",
        f"serveradmin:alice:{login(b'serveradmin')}",
        f"serveradmin:alice:{login(bytes(range(128, 256)))}",
    ],
)
def test_any_other_login_of_a_server_is_nobodys(session):
    assert CLOUD.who_is(session, NOW) is None


def test_a_server_that_is_disabled_logs_in_for_nobody():
    cloud = demo_cloud()
    cloud.change_user(replace(SERVERADMIN, enabled=False))
    assert cloud.who_is(f"serveradmin:alice:{FOR_ALICE}", NOW) is None


@pytest.fixture(scope="module")
def server():
    """Return a certificate, its private key, and a cloud that knows it."""
    certificate, key = new_certificate()
    return certificate, key, demo_cloud(certificate)


# As OpenNebula's servers make one: server_x509_auth.rb and x509_auth.rb in src/authm_mad/remotes.
RUBY_LOGIN = """
require "openssl"
require "base64"
key = OpenSSL::PKey::RSA.new(STDIN.read)
ARGV.each do |text|
  encrypted = Base64.encode64(key.private_encrypt(text)).delete("\\n").strip
  puts Base64.encode64(encrypted).strip.delete("\\n")
end
"""


def x509_logins(key, *texts):
    """Return what a server makes of texts with its private key, as OpenNebula's own code does."""
    command = [program("ruby"), "-e", RUBY_LOGIN, *texts]
    result = subprocess.run(command, input=key, capture_output=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.decode().split()


def test_a_server_with_a_certificate_logs_in_for_any_user_until_its_token_expires(server):
    _, key, cloud = server
    (token,) = x509_logins(key, "serverx509:alice:1800000000")
    assert cloud.who_is(f"serverx509:alice:{token}", NOW) == ALICE
    assert cloud.who_is(f"serverx509:bob:{token}", NOW) == BOB
    assert cloud.who_is(f"serverx509:nobody:{token}", NOW) is None
    assert cloud.who_is(f"serveradmin:alice:{token}", NOW) is None
    assert cloud.who_is(f"serverx509:alice:{token}", NOW + 1) is None
    assert demo_cloud().who_is(f"serverx509:alice:{token}", NOW) is None


def test_any_other_login_of_a_server_with_a_certificate_is_nobodys(server):
    certificate, key, cloud = server
    other_name, no_time, other_user = x509_logins(
        key, "oneadmin:alice:1800000000", "serverx509:alice:soon", "serveradmin:alice:1800000000"
    )
    good, *_ = x509_logins(key, "serverx509:alice:1800000000")
    (by_another_key,) = x509_logins(new_certificate()[1], "serverx509:alice:1800000000")
    encoded_once = base64.b64decode(good).decode()
    wrong = [other_name, no_time, other_user, by_another_key, encoded_once, good[:-8], "", "AAAA", "no base64"]
    assert [token for token in wrong if cloud.who_is(f"serverx509:alice:{token}", NOW)] == []
    assert cloud.who_is(f"serverx509:alice:{good}", NOW) == ALICE
    renamed = Cloud([ALICE, replace(SERVERX509, password="/CN=other")], [], server_certificate=certificate)
    assert renamed.who_is(f"serverx509:alice:{good}", NOW) is None


def test_a_certificates_subject_is_written_as_openssl_does_and_spaces_as_opennebula_does():
    assert subject(new_certificate("a server")[0]) == "/C=XX/O=onelab/CN=a\\20server"
    assert subject(new_certificate()[0]) == SERVERX509.password


MEMBER = User(10, "member", "x", Group(7, "seven"))
OWNER = User(11, "owner", "x", Group(7, "seven"))
STRANGER = User(12, "stranger", "x", Group(8, "eight"))
OPERATOR = User(13, "operator", "x", Group(0, "oneadmin"))


@pytest.mark.parametrize(
    ("mode", "users"),
    [
        (0o000, set()),
        (0o400, {"owner"}),
        (0o600, {"owner"}),
        (0o300, set()),
        (0o040, {"owner", "member"}),
        (0o640, {"owner", "member"}),
        (0o030, set()),
        (0o004, {"owner", "member", "stranger"}),
        (0o003, set()),
    ],
)
def test_a_use_bit_that_applies_to_the_user_lets_him_use_the_vm(mode, users):
    """The owner is also a member of the group, and everybody is one of the others."""
    guest = Guest(1, "vm", OWNER, None, mode=mode)
    allowed = {user.name for user in (OWNER, MEMBER, STRANGER) if CLOUD.may(user, Right.USE, guest)}
    assert allowed == users


@pytest.mark.parametrize(("right", "mode"), [(Right.USE, 0o440), (Right.MANAGE, 0o220), (Right.ADMIN, 0o110)])
def test_every_right_has_its_own_bit(right, mode):
    guest = Guest(1, "vm", OWNER, None, mode=mode)
    assert [allowed for allowed in Right if CLOUD.may(OWNER, allowed, guest)] == [right]
    assert CLOUD.may(MEMBER, right, guest)
    assert not CLOUD.may(STRANGER, right, guest)


def test_a_secondary_group_counts_like_the_primary_one():
    vm = CLOUD.guest(34)
    assert (vm.owner, CLOUD.may(GINA, Right.USE, vm)) == (EVE, True)
    assert not CLOUD.may(ALICE, Right.USE, vm)
    assert CLOUD.may(GINA, Right.USE, CLOUD.guest(16))


SECONDLY_OPERATOR = User(14, "second", "x", Group(8, "eight"), secondary_groups=(Group(0, "oneadmin"),))


@pytest.mark.parametrize("administrator", [ONEADMIN, OPERATOR, SECONDLY_OPERATOR])
def test_an_administrator_may_use_every_vm_and_read_every_account(administrator):
    assert CLOUD.may(administrator, Right.ADMIN, Guest(1, "vm", OWNER, None, mode=0))
    assert CLOUD.may_read_account(administrator, STRANGER)


def test_an_ordinary_user_may_read_his_own_account_only():
    assert CLOUD.may_read_account(ALICE, ALICE)
    assert not CLOUD.may_read_account(ALICE, BOB)


def test_an_ordinary_user_sees_his_own_account_and_groups_and_an_administrator_all():
    assert CLOUD.users_for(GINA) == [GINA]
    assert {group.id for group in CLOUD.groups_for(GINA)} == {1, 100}
    assert len(CLOUD.users_for(SERVERADMIN)) == 11
    assert {group.id for group in CLOUD.groups_for(SERVERADMIN)} == {0, 1, 100}
    assert CLOUD.members(EVE.group) == [EVE, GINA]


def test_an_account_may_change_and_go():
    cloud = demo_cloud()
    cloud.change_user(replace(ALICE, enabled=False))
    assert cloud.who_is("alice:secret", NOW) is None
    assert 0 in {guest.id for guest in cloud.guests_of(cloud.user(2))}
    cloud.remove_user(ALICE)
    assert cloud.user(2) is None
    assert cloud.who_is(f"serveradmin:alice:{FOR_ALICE}", NOW) is None


def test_what_is_not_there_is_none():
    assert CLOUD.guest(999999) is None
    assert CLOUD.user(999999) is None


def test_a_quota_counts_the_vms_that_a_user_owns_and_that_are_not_done():
    cloud = Cloud(
        [OWNER, MEMBER],
        [
            Guest(1, "running", OWNER, None),
            Guest(2, "done", OWNER, None, state=6),
            Guest(3, "other's", MEMBER, None),
        ],
    )
    assert [guest.id for guest in cloud.guests_of(OWNER)] == [1]


def test_no_password_is_shown_when_a_user_is_printed():
    assert ALICE.password not in repr(ALICE)


@pytest.mark.parametrize(
    ("guest_id", "state", "lcm_state", "port", "host"),
    [
        (0, 3, 3, "5900", "dummy-host-1"),
        (7, 8, 0, "5907", "dummy-host-1"),
        (13, 3, 3, "5913", "2001:db8::1"),
        (15, 3, 3, "5915", "unix_socket"),
        (20, 3, 3, "5920", "dummy-host-2.example.org"),
        (21, 3, 4, "5921", "dummy-host-1"),
        (25, 3, 69, "5925", "dummy-host-1"),
    ],
)
def test_the_standard_cloud_keeps_its_numbers(guest_id, state, lcm_state, port, host):
    guest = CLOUD.guest(guest_id)
    assert (guest.state, guest.lcm_state) == (state, lcm_state)
    assert guest.graphics["PORT"] == port
    assert guest.stays[-1].host == host


def test_every_kind_of_behaviour_has_a_vm_of_alices():
    assert {behaviour.kind for behaviour in UGLY_GUESTS.values()} == set(Kind)
    assert all(CLOUD.guest(guest_id).owner == ALICE for guest_id in UGLY_GUESTS)


def test_who_watches_is_told_when_a_vm_changes_its_state_and_not_when_only_something_else_does():
    cloud, told = demo_cloud(), []
    cloud.watch(lambda before, after: told.append((before, after)))
    guest = cloud.guest(0)
    moved = guest.with_screen_at("elsewhere", 5999)
    cloud.change(moved)
    assert (cloud.guest(0), told) == (moved, [])
    off = replace(moved, state=8, lcm_state=0)
    cloud.change(off)
    assert told == [(moved, off)]


def test_a_vm_that_moves_between_the_hosts_of_the_cloud_with_screens_is_still_on_this_machine():
    cloud = demo_cloud_with_screens(lambda guest: ("127.0.0.1", 5900))
    assert [cloud.host(0), cloud.host(1), cloud.host(2)] == ["127.0.0.1", "localhost", None]
