"""Who and what is in the standard cloud."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from vnctoken.sandbox.accounts import Group, LoginToken, User
from vnctoken.sandbox.guests import DONE, PENDING, POWEROFF, SUSPENDED, VCENTER_HOST, Guest, Stay

if TYPE_CHECKING:
    from collections.abc import Mapping

HOSTS: Mapping[int, str] = {0: "dummy-host-1", 1: "dummy-host-2.example.org"}
"""The hosts of the standard cloud that VMs can be moved to, by id."""


def _token_password(name: str) -> str:
    """Return what oned would choose at random when a user is created."""
    return hashlib.sha256(f"token of {name}".encode()).hexdigest()


ONEADMIN_GROUP, USERS_GROUP, GUESTS_GROUP = Group(0, "oneadmin"), Group(1, "users"), Group(100, "guests")

ONEADMIN = User(0, "oneadmin", "opennebula", ONEADMIN_GROUP, token_password=_token_password("oneadmin"))
SERVERADMIN = User(
    1,
    "serveradmin",
    "serveradmin-secret-for-tests",
    ONEADMIN_GROUP,
    auth_driver="server_cipher",
    token_password=_token_password("serveradmin"),
)
ALICE = User(
    2,
    "alice",
    "secret",
    USERS_GROUP,
    # With it, known context tokens were made by OpenNebula's own code.
    token_password="b502616feb472186c273d0000230e0492dac5d2b99df29685487060c497759df",  # noqa: S106
)
BOB = User(3, "bob", "secret", USERS_GROUP, token_password=_token_password("bob"))
SERVERX509 = User(
    4,
    "serverx509",
    "/C=XX/O=onelab/CN=serverx509",
    ONEADMIN_GROUP,
    auth_driver="server_x509",
    token_password=_token_password("serverx509"),
)
CAROL = User(
    5,
    "carol",
    "secret",
    USERS_GROUP,
    token_password=_token_password("carol"),
    login_tokens=(
        LoginToken("1f1b0cd5a4a4fcd1d6a0b8f7d0d1a4b0c5a3e6ef2ca0a2c1b1a7d4b8c9e0f132", expires=1_700_000_000),
        LoginToken("9c1d7be6a2f05c8e3b40d7a916f2c5e88ab3d4f1e0697c2b5d8a3f6e4b1c0d97"),
    ),
)
DAVE = User(6, "dave", "secret", USERS_GROUP, enabled=False, token_password=_token_password("dave"))
EVE = User(7, "eve", "with:colons:in:it", GUESTS_GROUP, token_password=_token_password("eve"))
XENIA = User(
    8,
    "xenia",
    "/C=XX/O=onelab/CN=xenia|/DC=org/DC=example/CN=xenia",
    USERS_GROUP,
    auth_driver="x509",
    token_password=_token_password("xenia"),
)
REMY = User(9, "remy", "remy@EXAMPLE.ORG", USERS_GROUP, auth_driver="public", token_password=_token_password("remy"))
GINA = User(
    10,
    "gina",
    "secret",
    USERS_GROUP,
    secondary_groups=(GUESTS_GROUP,),
    token_password=_token_password("gina"),
)

USERS = (ONEADMIN, SERVERADMIN, ALICE, BOB, SERVERX509, CAROL, DAVE, EVE, XENIA, REMY, GINA)

_GONE = User(99, "gone", "secret", USERS_GROUP, token_password=_token_password("gone"))
_SECOND = Stay("dummy-host-2.example.org", host_id=1)


def vnc(port: object, **more: str) -> dict[str, str]:
    """Return the GRAPHICS of a VM whose screen is at a port."""
    return {"LISTEN": "0.0.0.0", "PORT": str(port), "TYPE": "VNC", **more}  # noqa: S104 - only quoted


def _at(host: str) -> tuple[Stay, ...]:
    return (Stay(host),)


_NO_PORT = {"LISTEN": "0.0.0.0", "TYPE": "VNC"}  # noqa: S104 - only quoted
_LIVE_MIGRATED = (Stay("dummy-host-1", action=2, asked_by=ONEADMIN), _SECOND)
_POWERED_OFF = (Stay("dummy-host-1", action=19, asked_by=ALICE),)
_TERMINATED = (Stay("dummy-host-1", action=27, asked_by=ALICE),)
_AT_VCENTER = _at("vcenter-cluster")
_UMLAUT = "pässwörd-東京"
_SPACE = _at("dummy-host-1 127.0.0.1")
_NEWLINE = _at("dummy-host-1\nforged: 127.0.0.1")
_IS_VCENTER, _ON_ESX = {"HYPERVISOR": "vcenter"}, {VCENTER_HOST: "esx7.example.org"}
_KNOWN_START = 1_795_316_222

# Ids 0 1 3 4 6 7 9 18 20 mean here what they mean in the cloud with a real oned that the answers were learned from.
GUESTS = (
    # Consoles that work.
    Guest(0, "vnc-plain", ALICE, vnc(5900), created_by=ALICE),
    Guest(1, "vnc-passwd", ALICE, vnc(5901, PASSWD="s3cr3tpw")),  # noqa: S106
    Guest(2, "vnc-lower-case", ALICE, vnc(5902, TYPE=" vnc ")),
    Guest(5, "vnc-xml-passwd", ALICE, vnc(5905, PASSWD="a<&>b'c")),  # noqa: S106
    Guest(13, "host-ipv6", ALICE, vnc(5913), stays=_at("2001:db8::1")),
    Guest(19, "vcenter", ALICE, vnc(5919), stays=_AT_VCENTER, user_template=_IS_VCENTER, monitoring=_ON_ESX),
    Guest(20, "vnc-migrated", ALICE, vnc(5920), stays=_LIVE_MIGRATED),
    Guest(27, "größe-東京", ALICE, vnc(5927, PASSWD=_UMLAUT)),
    Guest(28, "vnc-cdata-passwd", ALICE, vnc(5928, PASSWD="x]]>y")),  # noqa: S106
    # Who may use them.
    Guest(9, "bobs-own", BOB, vnc(5909), created_by=BOB),
    Guest(16, "bobs-for-his-group", BOB, vnc(5916), mode=0o640),
    Guest(17, "for-everybody", ONEADMIN, vnc(5917), mode=0o604),
    Guest(29, "not-even-for-its-owner", ALICE, vnc(5929), mode=0o000),
    Guest(34, "eves-for-her-group", EVE, vnc(5934), mode=0o640, created_by=EVE),
    Guest(35, "xenias-own", XENIA, vnc(5935)),
    Guest(36, "remys-own", REMY, vnc(5936)),
    # Who created them: somebody else, somebody who is no more, somebody who is disabled.
    Guest(32, "given-away", BOB, vnc(5932), created_by=ALICE),
    Guest(33, "creator-gone", ALICE, vnc(5933), created_by=_GONE),
    Guest(37, "daves-own", DAVE, vnc(5937), created_by=DAVE),
    # Other states.
    Guest(6, "vnc-pending", ALICE, _NO_PORT, state=PENDING, lcm_state=0, stays=()),
    Guest(
        7,
        "vnc-poweroff",
        ALICE,
        vnc(5907),
        state=POWEROFF,
        lcm_state=0,
        stays=_POWERED_OFF,
        created_by=ALICE,
        started=_KNOWN_START,
    ),
    Guest(8, "vnc-suspended", ALICE, vnc(5908), state=SUSPENDED, lcm_state=0),
    Guest(18, "vnc-done", ALICE, _NO_PORT, state=DONE, lcm_state=0, stays=_TERMINATED),
    Guest(21, "in-migrate", ALICE, vnc(5921), lcm_state=4),
    Guest(22, "in-shutdown", ALICE, vnc(5922), lcm_state=12),
    Guest(23, "in-unknown", ALICE, vnc(5923), lcm_state=16),
    Guest(24, "in-hotplug", ALICE, vnc(5924), lcm_state=17),
    Guest(25, "in-backup", ALICE, vnc(5925), lcm_state=69),
    Guest(26, "in-prolog", ALICE, vnc(5926), lcm_state=1),
    # No VNC, no port, no host that a console may go to.
    Guest(3, "spice", ALICE, vnc(5903, TYPE="SPICE")),
    Guest(4, "no-graphics", ALICE, None),
    Guest(10, "port-22", ALICE, vnc(22)),
    Guest(11, "port-missing", ALICE, _NO_PORT),
    Guest(12, "port-not-a-number", ALICE, vnc("5900 127.0.0.1:22")),
    Guest(14, "host-with-space", ALICE, vnc(5914), stays=_SPACE),
    Guest(15, "host-unix-socket", ALICE, vnc(5915), stays=_at("unix_socket")),
    Guest(30, "host-with-newline", ALICE, vnc(5930), stays=_NEWLINE),
    Guest(31, "port-too-high", ALICE, vnc(65536)),
)
