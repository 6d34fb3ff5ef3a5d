"""The shipped units, read by systemd itself, and the kernel's rules that shaped them."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
import xmlrpc.client
from pathlib import Path

import pytest
from conftest import ROOT, START_SECONDS, free_port, ipv6_loopback, program, running
from test_resolver import resolver, without_proxy
from webservers import replaced
from wsclient import GREETING, WebSocket, screen

from vnctoken.config import Config
from vnctoken.oned import QUEUE_LENGTH

UNIT = ROOT / "systemd" / "vnctoken.service"
PROXY = ROOT / "systemd" / "vnctoken-websockify.service"
SOCKET = ROOT / "systemd" / "vnctoken.socket"
UNITS = {"vnctoken.service": UNIT, "vnctoken-websockify.service": PROXY, "vnctoken.socket": SOCKET}
PROXY_ENV = ROOT / "etc" / "one" / "vnctoken-websockify.env"
OTHERS = (
    "opennebula.service",
    "opennebula-sunstone.service",
    "opennebula-novnc.service",
    "opennebula-fireedge.service",
)


def settings(unit):
    """Return what a unit says: section, key, and every value given to it."""
    found = {}
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault((section, key), []).append(value)
    return found


def words(key, section="Service", unit=UNIT):
    return " ".join(settings(unit).get((section, key), [])).split()


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
    """Return what `systemd-analyze verify` says about a unit's text, beside ours and OpenNebula's units."""

    def verify(name, text):
        command = tmp_path / "command"
        command.write_text("#!/bin/sh\n", encoding="utf-8")
        command.chmod(0o755)
        for other in OTHERS:
            (tmp_path / other).write_text("[Service]\nExecStart=/bin/true\n", encoding="utf-8")
        for other, unit in UNITS.items():
            (tmp_path / other).write_text(installed(unit.read_text(encoding="utf-8"), command), encoding="utf-8")
        (tmp_path / name).write_text(installed(text, command), encoding="utf-8")
        return analyze("verify", "--man=no", tmp_path / name, SYSTEMD_UNIT_PATH=f"{tmp_path}:")

    return verify


def installed(text, command):
    """Return a unit's text with another command in place of ours, which is not installed."""
    text, found = re.subn(r"(?m)^(Exec\w+=)/usr/bin/vnctoken-\w+", rf"\1{command}", text)
    assert found or "[Socket]" in text
    return text


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_wrong_with_the_unit(verified, name):
    assert verified(name, UNITS[name].read_text(encoding="utf-8")) == (0, "")


@pytest.mark.parametrize("name", UNITS)
def test_systemd_would_have_said_so(verified, name):
    _, said = verified(name, UNITS[name].read_text(encoding="utf-8") + "WantedBye=x\n")
    assert "WantedBye" in said


@pytest.mark.parametrize(("name", "at_most"), [("vnctoken.service", 2.0), ("vnctoken-websockify.service", 1.1)])
def test_the_sandbox_is_rated_ok(name, at_most):
    code, said = analyze("security", "--offline=true", UNITS[name])
    assert code == 0, said
    exposure, level = re.search(rf"Overall exposure level for {name}: ([\d.]+) (\w+)", said).groups()
    assert level == "OK"
    assert float(exposure) <= at_most


def test_it_comes_goes_and_reloads_with_sunstone():
    assert words("PartOf", "Unit") == ["opennebula-sunstone.service"]
    assert words("ReloadPropagatedFrom", "Unit") == ["opennebula-sunstone.service"]
    assert {*OTHERS, "network-online.target"} <= set(words("After", "Unit"))
    assert words("WantedBy", "Install") == ["opennebula-sunstone.service", "opennebula-fireedge.service"]


def test_systemd_knows_when_it_takes_calls_that_it_is_alive_and_how_to_reload_it():
    assert words("Type") == ["notify"]
    assert words("NotifyAccess") == ["main"]
    assert 10 <= int(words("WatchdogSec")[0]) <= 60
    assert words("ExecReload") == ["/bin/kill", "-HUP", "$MAINPID"]
    assert words("LimitCORE") == ["0"], "what the watchdog ends would leave sessions on the disk"


def test_its_credentials_may_be_missing():
    """Where LoadCredential= names the path of a file that is not there, systemd 252 does not start the service."""
    assert words("LoadCredential") == ["vnctoken_auth", "vnctoken_redis_password"]


def test_the_socket_is_where_the_service_listens_by_default_and_there_for_the_operator_to_enable():
    default = Config()
    assert words("ListenStream", "Socket", SOCKET) == [f"{default.host}:{default.port}"]
    assert words("WantedBy", "Install", SOCKET) == ["sockets.target"]
    assert "vnctoken.socket" not in UNIT.read_text(encoding="utf-8")


def test_whoever_has_waited_at_the_socket_is_not_refused_for_want_of_room_at_oneds():
    assert int(words("Backlog", "Socket", SOCKET)[0]) <= QUEUE_LENGTH


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


def test_the_proxy_stays_when_sunstone_or_the_service_is_restarted():
    """Its end would be the end of the open consoles."""
    for key in ("PartOf", "BindsTo", "Requires", "Requisite", "ReloadPropagatedFrom", "StopPropagatedFrom", "Upholds"):
        assert words(key, "Unit", PROXY) == []
    assert words("WantedBy", "Install", PROXY) == ["multi-user.target"]
    assert {"vnctoken.service", "network-online.target"} <= set(words("After", "Unit", PROXY))
    assert not list((ROOT / "systemd").glob("*/vnctoken-websockify.service")), "nothing wants it unless it is enabled"


def test_the_proxy_runs_as_oneadmin_and_is_not_restarted_into_wrong_options():
    assert words("User", unit=PROXY) == words("Group", unit=PROXY) == ["oneadmin"]
    assert words("Restart", unit=PROXY) == ["on-failure"]
    assert words("RestartPreventExitStatus", unit=PROXY) == ["2"]
    assert words("OOMPolicy", unit=PROXY) == ["continue"], "a console that needs too much does not end the others"


def test_the_proxy_may_write_nothing_and_see_the_token_folder_alone():
    folder = "/var/lib/one/sunstone_vnc_tokens"
    assert words("ProtectSystem", unit=PROXY) == ["strict"]
    assert words("ReadWritePaths", unit=PROXY) == words("BindPaths", unit=PROXY) == []
    assert words("TemporaryFileSystem", unit=PROXY) == ["/var/lib/one:ro", "/var/log:ro"]
    assert words("BindReadOnlyPaths", unit=PROXY) == [folder]
    assert words("StateDirectory", unit=PROXY) == [folder.removeprefix("/var/lib/")]
    assert words("StateDirectoryMode", unit=PROXY) == ["0700"]
    assert "-/etc/one" in words("InaccessiblePaths", unit=PROXY)
    # systemd 252, tried out: with ProtectProc= or ProcSubset=, ProtectSystem=strict leaves /run writable.
    assert {"/run", "/tmp", "/var/tmp"} <= set(words("ReadOnlyPaths", unit=PROXY))


# What each unit has for itself.
OWN = {"ExecStart", "RestartPreventExitStatus", "Type", "LimitNOFILE", "SyslogIdentifier", "SystemCallFilter"}
OWN |= {"RuntimeDirectory", "RuntimeDirectoryMode"}
OWN |= {"NotifyAccess", "WatchdogSec", "ExecReload", "LimitCORE", "LoadCredential"}
OWN_PATHS = {"ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths"}


@pytest.mark.parametrize("key", sorted({key for where, key in settings(UNIT) if where == "Service"} - OWN - OWN_PATHS))
def test_what_the_services_unit_takes_away_the_proxys_does_too(key):
    assert words(key, unit=PROXY) == words(key)


def test_the_service_may_do_what_libzmq_cannot_do_without_and_the_proxy_may_not():
    """Its threads set the scheduling policy that they have anyway, and it aborts the process if they may not."""
    assert words("SystemCallFilter") == [*words("SystemCallFilter", unit=PROXY), "sched_setscheduler"]
    assert words("RestrictRealtime") == ["yes"]


def test_the_resolvers_socket_has_a_place_where_else_nothing_can_be_written():
    assert words("RuntimeDirectory") == ["vnctoken"]
    assert words("RuntimeDirectoryMode") == ["0750"]
    assert "/run" in words("ReadOnlyPaths")


def environment(file=""):
    """Return the proxy's variables: the unit's own, and those of an environment file's text over them."""
    own = [word for value in settings(PROXY)["Service", "Environment"] for word in shlex.split(value)]
    changed = [line for line in file.splitlines() if line and not line.startswith("#")]
    return dict(assignment.split("=", 1) for assignment in own + changed)


def expanded(key, variables):
    """Return a command of the unit as systemd runs it: "$NAME" becomes words, "${NAME}" a part of one."""
    command = []
    for word in words(key, unit=PROXY):
        if word.startswith("$") and not word.startswith("${"):
            command += shlex.split(variables[word.removeprefix("$")])
        else:
            command.append(re.sub(r"\$\{(\w+)\}", lambda name: variables[name[1]], word))
    assert command[0] == "/usr/bin/vnctoken-websockify"
    return command[1:]


def offered():
    """Return what the environment file shows: for each name its values, the default first."""
    found = {}
    for name, value in re.findall(r"(?m)^#([A-Z]+)=(.*)$", PROXY_ENV.read_text(encoding="utf-8")):
        found.setdefault(name, []).append(value)
    return found


def test_the_proxys_environment_file_shows_the_defaults_that_are_in_effect_without_it():
    assert environment(PROXY_ENV.read_text(encoding="utf-8")) == environment(), "every setting is commented out"
    assert {name: values[0] for name, values in offered().items()} == environment()
    assert words("EnvironmentFile", unit=PROXY) == ["-/etc/one/vnctoken-websockify.env"]


def test_nothing_in_the_proxys_files_is_what_systemd_would_take_for_something_else():
    """It reads quotes and backslashes in both. "%" means something in the unit, but not in the environment file."""
    for values in offered().values():
        for value in values:
            assert not set("\"'\\") & set(value)
    assert "%" not in "".join(settings(PROXY)["Service", "Environment"])


def test_questions_to_the_resolver_do_not_go_through_a_web_proxy():
    """JSONTokenApi's HTTP client takes one from the environment, and the token is in the URL."""
    taken_away = set(words("UnsetEnvironment", unit=PROXY))
    assert {"HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"} <= taken_away


def test_the_proxy_asks_the_resolver_after_one_line_of_its_environment_file_is_put_to_use(tmp_path):
    _, shown = offered()["TOKENS"]
    at = f"127.0.0.1:{free_port()}"
    with screen() as vnc_port, resolver(tmp_path / "tokens", {"port": vnc_port, "single_use": True}) as answering:
        changed = replaced(shown, [("127.0.0.1:2647", answering.at)])
        variables = environment(f"TOKENS={changed}\nLISTEN={at}\n")
        command = (sys.executable, "-m", "vnctoken.proxy", *expanded("ExecStart", variables))
        with running(*command, ready="proxying from", env=without_proxy()):
            connection = socket.create_connection(("127.0.0.1", int(at.rpartition(":")[2])), START_SECONDS)
            token = answering.tokens[0]
            with contextlib.closing(WebSocket.connect(connection, f"/websockify?token={token}")) as console:
                assert console.receive_exactly(len(GREETING)) == GREETING


def test_the_proxy_listens_where_opennebulas_own_does_not():
    assert environment()["LISTEN"] == "127.0.0.1:29877"


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_the_proxys_commands_do_as_they_say_in_a_namespace_with_the_token_folder_alone(one_location, host):
    """Tokens that are issued later, by rename(2) outside, get in; what else there is does not."""
    if host == "[::1]" and not ipv6_loopback():
        pytest.skip("there is no IPv6 loopback address here")
    var = one_location / "var"
    (var / "one.db").write_text("secret", encoding="utf-8")
    at = f"{host}:{free_port()}"
    variables = {
        **environment(f"LISTEN={at}\n"),
        "TOKENS": environment()["TOKENS"].replace("/var/lib/one", str(var)),
    }
    assert str(var) in variables["TOKENS"]
    run = (sys.executable, "-m", "vnctoken.proxy")
    started = [*namespace("the token folder alone"), var, *run, *expanded("ExecStart", variables)]
    with running(*started, ready="proxying from") as process:
        checked = subprocess.run(
            [*run, *expanded("ExecStartPost", variables)], capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stdout) == (0, f"vnctoken-websockify: {at} serves connections\n")
        inside = Path(f"/proc/{process.process.pid}/root{var}")
        assert [path.name for path in inside.iterdir()] == ["sunstone_vnc_tokens"]
        with pytest.raises(OSError, match="Read-only file system"):
            (inside / "sunstone_vnc_tokens" / "one-1").touch()
        with screen() as vnc_port:
            (var / "sunstone_vnc_tokens.new" / "one-7").write_text(f"token7: localhost:{vnc_port}\n", encoding="utf-8")
            (var / "sunstone_vnc_tokens.new" / "one-7").rename(var / "sunstone_vnc_tokens" / "one-7")
            connection = socket.create_connection((host.strip("[]"), int(at.rpartition(":")[2])), START_SECONDS)
            with contextlib.closing(WebSocket.connect(connection, "/websockify?token=token7")) as console:
                assert console.receive_exactly(len(GREETING)) == GREETING
        assert process.stop() == 0


MOUNTS = {
    "each folder named": 'for folder in "$1"/sunstone_vnc_tokens*; do mount --bind "$folder" "$folder"; done',
    "their parent named": 'mount --bind "$1" "$1"',
    "the token folder alone": (
        'mount --bind "$1/sunstone_vnc_tokens" /mnt; mount -t tmpfs tmpfs "$1"; mkdir "$1/sunstone_vnc_tokens";'
        ' mount --bind /mnt "$1/sunstone_vnc_tokens"; mount -o remount,bind,ro "$1/sunstone_vnc_tokens";'
        ' mount -o remount,ro "$1"; umount /mnt'
    ),
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
        assert written.read_text(encoding="utf-8").endswith(f"\n{token}: dummy-host-1:5900\n")
