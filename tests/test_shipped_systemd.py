"""The shipped unit, read by systemd itself, and the kernel's rule that shaped it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xmlrpc.client

import pytest
from conftest import ROOT, program, running

UNIT = ROOT / "systemd" / "vnctoken.service"
OTHERS = (
    "opennebula.service",
    "opennebula-sunstone.service",
    "opennebula-novnc.service",
    "opennebula-fireedge.service",
)


def settings():
    """Return what the unit says: section, key, and every value given to it."""
    found = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault((section, key), []).append(value)
    return found


def words(key, section="Service"):
    return " ".join(settings().get((section, key), [])).split()


def analyze(*args, **environment):
    tried = subprocess.run(
        [program("systemd-analyze"), "--no-pager", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    return tried.returncode, tried.stdout + tried.stderr


@pytest.fixture
def verified(tmp_path):
    """Return what `systemd-analyze verify` says about a unit text, beside OpenNebula's units."""

    def verify(text):
        command = tmp_path / "vnctoken-server"
        command.write_text("#!/bin/sh\n", encoding="utf-8")
        command.chmod(0o755)
        for name in OTHERS:
            (tmp_path / name).write_text("[Service]\nExecStart=/bin/true\n", encoding="utf-8")
        assert "ExecStart=/usr/bin/vnctoken-server\n" in text
        unit = tmp_path / "vnctoken.service"
        unit.write_text(
            text.replace("ExecStart=/usr/bin/vnctoken-server\n", f"ExecStart={command}\n"), encoding="utf-8"
        )
        return analyze("verify", "--man=no", unit, SYSTEMD_UNIT_PATH=f"{tmp_path}:")

    return verify


def test_systemd_finds_nothing_wrong_with_the_unit(verified):
    assert verified(UNIT.read_text(encoding="utf-8")) == (0, "")


def test_systemd_would_have_said_so(verified):
    _, said = verified(UNIT.read_text(encoding="utf-8") + "WantedBye=x\n")
    assert "WantedBye" in said


def test_the_sandbox_is_rated_ok():
    code, said = analyze("security", "--offline=true", UNIT)
    assert code == 0, said
    exposure, level = re.search(r"Overall exposure level for vnctoken.service: ([\d.]+) (\w+)", said).groups()
    assert level == "OK"
    assert float(exposure) <= 2.0


def test_it_comes_goes_and_reloads_with_sunstone():
    assert words("PartOf", "Unit") == ["opennebula-sunstone.service"]
    assert words("ReloadPropagatedFrom", "Unit") == ["opennebula-sunstone.service"]
    assert {*OTHERS, "network-online.target"} <= set(words("After", "Unit"))
    assert words("WantedBy", "Install") == ["opennebula-sunstone.service", "opennebula-fireedge.service"]


def test_sunstone_wants_it_without_systemctl_enable():
    link = ROOT / "systemd" / "opennebula-sunstone.service.wants" / "vnctoken.service"
    assert str(link.readlink()) == "../vnctoken.service"
    assert link.resolve() == UNIT


def test_it_runs_as_oneadmin_and_is_not_restarted_into_a_wrong_configuration():
    assert words("User") == words("Group") == ["oneadmin"]
    assert words("Restart") == ["on-failure"]
    assert words("RestartPreventExitStatus") == ["78"]


def test_what_opennebula_keeps_beside_the_token_folder_is_closed_to_it():
    assert words("ProtectSystem") == ["strict"]
    assert words("ReadWritePaths") == ["/var/lib/one", "/var/log/one"]
    hidden, read_only = (
        {path.removeprefix("-/var/lib/one/") for path in words(key)} for key in ("InaccessiblePaths", "ReadOnlyPaths")
    )
    assert {".ssh", "one.db", "datastores", "vms", "backups"} <= hidden
    assert {".one", "remotes", "config", ".bashrc", ".profile"} <= read_only
    for path in hidden | read_only:
        assert not path.startswith(("sunstone_vnc_tokens", "vnctoken")), "the service has to write there"
    # systemd 252, tried out: a path in NoExecPaths= is left out when ProtectSystem=strict makes all else read-only, so
    # a drop-in that takes it out of ReadWritePaths= would have no effect.
    assert words("NoExecPaths") == words("ExecPaths") == []


MOUNTS = {
    "each folder named": 'for folder in "$1"/sunstone_vnc_tokens*; do mount --bind "$folder" "$folder"; done',
    "their parent named": 'mount --bind "$1" "$1"',
}


def namespace(name):
    """Return a command that runs another one where paths are mounts of their own, as ReadWritePaths= makes them."""
    unshare = program("unshare")
    if subprocess.run([unshare, "--map-root-user", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make mounts, not even in a namespace of his own")
    return [unshare, "--map-root-user", "--mount", "sh", "-ec", f'{MOUNTS[name]}; shift; exec "$@"', "sh"]


@pytest.fixture
def one_location(tmp_path, cloud):
    for folder in ("etc", "var/sunstone_vnc_tokens", "var/sunstone_vnc_tokens.new"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "var" / "sunstone_vnc_tokens").chmod(0o700)
    (tmp_path / "etc" / "vnctoken-server.conf").write_text(f":port: 0\n:one_xmlrpc: {cloud.url}\n", encoding="utf-8")
    return tmp_path


def server_command(mounts, one_location):
    environment = {key: value for key, value in os.environ.items() if key != "JOURNAL_STREAM"}
    environment["ONE_LOCATION"] = str(one_location)
    command = [*namespace(mounts), one_location / "var", sys.executable, "-m", "vnctoken.server"]
    return command, environment


def test_two_mounts_even_of_one_file_system_are_refused_at_the_start(one_location):
    """Named singly in ReadWritePaths=, the folders would be such mounts."""
    command, environment = server_command("each folder named", one_location)
    tried = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert tried.returncode == 78, tried.stderr
    assert ":token_folder_name:" in tried.stderr
    assert "Invalid cross-device link" in tried.stderr


def test_one_mount_around_both_folders_takes_tokens(one_location):
    """This is why the unit opens /var/lib/one."""
    command, environment = server_command("their parent named", one_location)
    with running(*command, env=environment, ready="listens on") as process:
        url = process.wait_for(r"listens on (http://\S+)").group(1)
        with xmlrpc.client.ServerProxy(url) as server:
            ok, token, _ = server.one.vm.vnctokenonly("alice:secret", 0)
        assert ok, token
        written = one_location / "var" / "sunstone_vnc_tokens" / "one-0"
        assert written.read_text(encoding="utf-8") == f"{token}: dummy-host-1:5900\n"
