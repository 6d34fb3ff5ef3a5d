"""The door `onegate`: a guest that proves with its context token which VM it is."""

from __future__ import annotations

import base64
import itertools
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from outcomes import result_of
from test_consoles import RUNNING, MemoryOned
from twisted.web.http_headers import Headers

from vnctoken.auth import CredentialError, HttpRequest, Identity
from vnctoken.auth.onegate import OneGateDoor, context_token
from vnctoken.auth.users import Users
from vnctoken.errors import ActionError, AuthenticationError, AuthorizationError, NoExistsError, OnedError
from vnctoken.user import User

TOKEN_PASSWORD = "b502616feb472186c273d0000230e0492dac5d2b99df29685487060c497759df"
# Made with Ruby's OpenSSL as OpenNebula 6.10 makes them.
RUBY = {(7, "1795316222"): "D4Hjv8dXcM7OYHYNUuHQDQ==", (12345, "1"): "MarPpdfWSU4DVKCYGGYrpw=="}
TOKEN_OF_7 = RUBY[7, "1795316222"]

OWN = "serveradmin:serveradmin:own-login"
ALICE = User(2, "alice", "core", True, "users", frozenset({1}), "", TOKEN_PASSWORD)
BOB = User(3, "bob", "core", True, "users", frozenset({1}), "", "c" * 64)
VM_7 = replace(RUNNING, owner="bob", created_by="2", started="1795316222")


def session_of(name):
    return f"serveradmin:{name}:login"


def door(oned, *users, session=session_of, error=None):
    async def pool():
        if error:
            raise error
        return Users(users or (ALICE, BOB))

    return OneGateDoor(oned=oned, users=pool, own_session=lambda: OWN, session=session)


def request(**headers):
    raw = Headers({f"X-ONEGATE-{name}": [value] for name, value in headers.items()})
    return HttpRequest(b"POST", b"/RPC2", raw, b"", "192.0.2.7")


def claimed(oned=None, **headers):
    return door(oned).claim(request(**headers))


def identity(vm=VM_7, *users, token=TOKEN_OF_7, vm_id="7", **more):
    """Return who a guest proves to be, or raise what is wrong with that."""
    return result_of(door(MemoryOned(vm), *users, **more).claim(request(TOKEN=token, VMID=vm_id)).prove())


def refusal(*args, **more):
    with pytest.raises(CredentialError) as caught:
        identity(*args, **more)
    return str(caught.value)


def token_of(vm_id, started, password=TOKEN_PASSWORD):
    return base64.b64encode(context_token(password[:32].encode(), vm_id, started)).decode()


@pytest.mark.parametrize(("vm_id", "started"), RUBY)
def test_tokens_are_those_that_opennebula_makes(vm_id, started):
    token = RUBY[vm_id, started]
    assert token_of(vm_id, started) == token
    assert identity(replace(VM_7, started=started), token=token, vm_id=str(vm_id)).vm_id == vm_id


def test_a_guest_may_have_its_own_console_as_its_vms_owner_whoever_created_the_vm():
    assert identity() == Identity("bob", "serveradmin:bob:login", 7)


def test_oned_is_asked_for_the_vm_with_the_services_own_login_and_with_nothing_of_the_guests():
    oned = MemoryOned(VM_7)
    claim = claimed(oned, TOKEN=TOKEN_OF_7, VMID="7")
    assert oned.questions == []
    result_of(claim.prove())
    assert oned.questions == [(OWN, 7)]


def test_guesses_are_counted_for_the_vm_that_is_claimed_however_it_is_written():
    assert {claimed(TOKEN=TOKEN_OF_7, VMID=vm_id).account for vm_id in ("7", "07", "0000000007")} == {"vm 7"}


def test_a_token_is_taken_again_for_as_long_as_the_vm_lives():
    # It is static: whoever has read it is the guest until the VM is DONE or its creator's TOKEN_PASSWORD changes.
    guests = door(MemoryOned(VM_7))
    proofs = [guests.claim(request(TOKEN=TOKEN_OF_7, VMID="7")).prove() for _ in range(3)]
    assert len({result_of(proof) for proof in proofs}) == 1
    changed = replace(ALICE, token_password="d" * 64)
    assert "not that of this VM" in refusal(VM_7, changed, BOB)


def test_a_request_without_these_headers_is_none_of_this_doors_matter():
    assert claimed() is None


@pytest.mark.parametrize("headers", [{"TOKEN": TOKEN_OF_7}, {"VMID": "7"}])
def test_one_header_alone_is_refused(headers):
    with pytest.raises(CredentialError, match="only one of the headers"):
        claimed(**headers)


@pytest.mark.parametrize(
    "vm_id",
    ["", " 7", "-1", "+7", "7.0", "0x7", "2147483648", "00000000007", "9" * 5000, "\u0667", "7\u2028", b"7\xff"],
)
def test_what_is_no_vms_id_is_refused(vm_id):
    with pytest.raises(CredentialError, match="X-ONEGATE-VMID is no"):
        claimed(TOKEN=TOKEN_OF_7, VMID=vm_id)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "D4Hjv8dXcM7OYHYNUuHQDQ",
        "D4Hjv8dXcM7OYHYNUuHQDQ==!",
        base64.b64encode(bytes(15)).decode(),
        base64.b64encode(bytes(48)).decode(),
        "A" * 1_000_000,
        "Ä4Hjv8dXcM7OYHYNUuHQDQ==",
        "7:1795316222",
        b"D4Hjv8dXcM7OYHYNUuHQDQ==\xff",
    ],
    ids=range(9),
)
def test_what_is_no_token_is_refused_and_not_quoted(token):
    with pytest.raises(CredentialError) as caught:
        claimed(TOKEN=token, VMID="7")
    assert str(caught.value) in (
        "the header X-ONEGATE-TOKEN is not the base64 of a context token",
        "the header X-ONEGATE-TOKEN is not UTF-8",
    )


def test_a_header_that_is_there_twice_is_refused():
    headers = Headers({"X-ONEGATE-TOKEN": [TOKEN_OF_7], "X-ONEGATE-VMID": ["7", "8"]})
    with pytest.raises(CredentialError, match="several headers X-ONEGATE-VMID"):
        door(None).claim(HttpRequest(b"POST", b"/RPC2", headers, b"", "192.0.2.7"))


@pytest.mark.parametrize("token", [f" {TOKEN_OF_7}\r\n", "D4Hjv8dXcM7O YHYNUuHQDQ=="])
def test_line_ends_in_the_token_do_not_matter(token):
    assert identity(token=token).vm_id == 7


def test_the_longest_token_that_there_can_be_is_taken():
    vm = replace(VM_7, started="4294967296")
    assert identity(vm, token=token_of(2_147_483_647, vm.started), vm_id="2147483647").vm_id == 2_147_483_647


def test_the_token_of_one_vm_is_nothing_for_another():
    neighbour = {7: VM_7, 8: VM_7}
    assert "not that of this VM" in refusal(neighbour, vm_id="8")


def test_a_token_made_with_another_users_password_is_refused():
    # Bob, who owns the VM, did not create it.
    assert "not that of this VM" in refusal(token=token_of(7, VM_7.started, BOB.token_password))
    assert "not that of this VM" in refusal(replace(VM_7, created_by="3"))


def test_no_bit_of_a_token_can_be_flipped():
    token = base64.b64decode(TOKEN_OF_7)
    for byte, bit in itertools.product(range(16), range(8)):
        flipped = bytearray(token)
        flipped[byte] ^= 1 << bit
        assert "not that of this VM" in refusal(token=base64.b64encode(flipped).decode())
    assert "not that of this VM" in refusal(token=base64.b64encode(token + token).decode())


def test_a_vm_of_the_same_number_but_another_start_wants_a_token_of_its_own():
    assert "not that of this VM" in refusal(replace(VM_7, started="1795316223"))


def test_the_token_of_a_vm_that_is_done_is_worth_nothing():
    assert refusal(replace(VM_7, state=6)) == "the VM is DONE"


@pytest.mark.parametrize("state", [3, 5, 8])
def test_what_state_the_vm_else_is_in_is_not_this_doors_matter(state):
    assert identity(replace(VM_7, state=state)).vm_id == 7


def test_a_vm_without_a_start_is_not_opened_with_a_token_for_nothing():
    assert "not that of this VM" in refusal(replace(VM_7, started=""), token=token_of(7, ""))


@pytest.mark.parametrize("created_by", ["", " 2", "-1", "alice", "4", "\u0662", "9" * 5000])
def test_a_vm_whose_creator_is_unknown_is_refused(created_by):
    assert "creator is not among the enabled users" in refusal(replace(VM_7, created_by=created_by))


@pytest.mark.parametrize("password", ["", TOKEN_PASSWORD[:31], "ä" * 32])
def test_a_creator_without_a_token_password_that_is_a_key_is_refused(password):
    assert "has no TOKEN_PASSWORD of 32" in refusal(VM_7, replace(ALICE, token_password=password), BOB)


@pytest.mark.parametrize("vm", [replace(VM_7, created_by=""), replace(VM_7, state=6), NoExistsError("no such VM")])
def test_the_key_that_stands_for_a_missing_one_opens_nothing(vm):
    for started in (VM_7.started, ""):
        refusal(vm, token=token_of(7, started, "\0" * 32))


def test_a_disabled_creator_and_a_disabled_owner_let_nobody_in():
    assert "creator is not" in refusal(VM_7, replace(ALICE, enabled=False), BOB)
    assert "owner is not" in refusal(VM_7, ALICE, replace(BOB, enabled=False))
    assert "owner is not" in refusal(replace(VM_7, owner="mallory"))


def test_a_vm_that_there_is_not_is_a_wrong_token_and_the_users_are_looked_up_as_well():
    assert refusal(NoExistsError("[one.vm.info] Error getting virtual machine [7].")) == "there is no such VM"
    with pytest.raises(OnedError):
        identity(NoExistsError("no such VM"), error=OnedError("oned did not answer"))


def test_an_owner_whose_name_cannot_stand_in_a_session_string_is_not_acted_for():
    def session(name):
        raise AuthenticationError("A user name with a space cannot be logged in")

    assert "nobody can act for this user: his name cannot stand in a session string" in refusal(session=session)


@pytest.mark.parametrize("error", [AuthenticationError, AuthorizationError, ActionError])
def test_that_oned_refuses_the_services_own_login_is_not_the_guests_fault(error):
    with pytest.raises(OnedError, match=r"^oned [a-z ]+ the service's own login( \(ACTION\))?$"):
        identity(error("[one.vm.info] User couldn't be authenticated, aborting call."))


def test_trouble_with_oned_is_not_the_guests_fault():
    trouble = OnedError("oned did not answer within 25 seconds")
    with pytest.raises(OnedError) as caught:
        identity(trouble)
    assert caught.value is trouble


def test_the_token_and_the_session_are_in_no_representation():
    claim = claimed(TOKEN=TOKEN_OF_7, VMID="7")
    assert repr(claim) == "Claim(account='vm 7')"
    assert "login" not in repr(identity())


NASTY = st.one_of(
    st.text(),
    st.binary(max_size=200),
    st.integers(0, 2**31).map(str),
    st.sampled_from([15, 16, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size)).map(base64.b64encode),
)


@given(st.lists(NASTY, max_size=2), st.lists(NASTY, max_size=2))
@example([TOKEN_OF_7], ["7"])
@example([TOKEN_OF_7], ["\u0663"])
@example(["\ud800"], ["7"])
def test_whatever_is_in_the_headers_is_no_claim_a_claim_that_proves_nothing_or_refused(tokens, vm_ids):
    raw = {"X-ONEGATE-TOKEN": tokens, "X-ONEGATE-VMID": vm_ids}
    headers = Headers()
    for name, values in raw.items():
        for value in values:
            line = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
            headers.addRawHeader(name.encode(), line)
    oned = MemoryOned(replace(VM_7, started="1"))
    try:
        claim = door(oned).claim(HttpRequest(b"POST", b"/RPC2", headers, b"", "192.0.2.7"))
    except CredentialError:
        claim = None
    assert oned.questions == []
    if claim is not None:
        with pytest.raises(CredentialError):
            result_of(claim.prove())
