"""The token in the context of the sandbox's VMs, as OpenNebula makes it."""

import subprocess
from dataclasses import replace

import pytest
from conftest import program

from vnctoken.sandbox.cloud import ALICE, BOB, Guest, demo_cloud
from vnctoken.sandbox.contexts import context_token

CLOUD = demo_cloud()


@pytest.mark.parametrize(
    ("vm_id", "started", "token"), [(7, 1795316222, "D4Hjv8dXcM7OYHYNUuHQDQ=="), (12345, 1, "MarPpdfWSU4DVKCYGGYrpw==")]
)
def test_a_token_is_the_one_that_opennebulas_own_code_has_made(vm_id, started, token):
    assert context_token(Guest(vm_id, "vm", ALICE, None, created_by=ALICE, started=started)) == token


def test_the_standard_clouds_vm_7_has_a_known_token():
    assert context_token(CLOUD.guest(7)) == "D4Hjv8dXcM7OYHYNUuHQDQ=="


def test_a_vm_that_was_given_away_keeps_the_token_of_who_created_it():
    vm = Guest(7, "vm", ALICE, None, created_by=ALICE)
    assert context_token(replace(vm, owner=BOB)) == context_token(vm)
    assert context_token(replace(vm, created_by=BOB)) != context_token(vm)
    assert context_token(replace(vm, created_by=None)) == context_token(vm)


def test_in_the_standard_cloud_not_every_creator_owns_his_vm_and_not_every_vm_has_one():
    given_away, orphan, without = (CLOUD.guest(number) for number in (32, 33, 1))
    assert (given_away.owner, given_away.created_by) == (BOB, ALICE)
    assert CLOUD.user(orphan.created_by.id) is None
    assert without.created_by is None


# As OneGate reads it: src/cloud/common/CloudAuth/OneGateCloudAuth.rb.
ONEGATE = """
require "openssl"
require "base64"
password, token = ARGV
cipher = OpenSSL::Cipher.new("aes-256-cbc")
cipher.decrypt
cipher.key = password[0..31]
print cipher.update(Base64.decode64(token)) + cipher.final
"""


def test_onegate_reads_from_a_token_which_vm_it_is_of():
    vm = CLOUD.guest(9)
    command = [program("ruby"), "-e", ONEGATE, BOB.token_password, context_token(vm)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, f"9:{vm.started}"), result.stderr
