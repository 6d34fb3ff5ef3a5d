"""The shipped units under a real systemd, which is booted in namespaces of its own."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import NO_LIMITS, ROOT, program, running
from machines import booted
from webservers import until

SHIPPED = ROOT / "systemd"
PASSWORD = "serveradmin:opennebula"
CONF = "/etc/one/vnctoken-server.conf"
AUDIT_LOG = "/var/log/one/vnctoken-audit.log"

# Python as it runs the tests, in places that the service's sandbox does not hide.
BROUGHT = {"opt/python": sys.base_prefix, "opt/packages": sysconfig.get_path("purelib"), "opt/sources": ROOT}
PYTHON = f"/opt/python/bin/{Path(sys.executable).resolve().name}"
COMMANDS = {
    "/usr/bin/vnctoken-python": "#!/bin/sh\n"
    f'exec env LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/sources:/opt/packages {PYTHON} "$@"\n',
    "/usr/bin/vnctoken-server": '#!/bin/sh\nexec /usr/bin/vnctoken-python -m vnctoken.server "$@"\n',
}
PREPARE = "\n".join(
    [
        "rm -rf etc/credstore",
        # Of its own, so that its journal holds nothing of this machine's.
        *(f"mount -t tmpfs -o mode=0755 none {folder}" for folder in ("var/log", "var/lib/systemd")),
        f"mkdir -p {' '.join(BROUGHT)}",
        *(shlex.join(["mount", "--bind", str(folder), there]) for there, folder in BROUGHT.items()),
    ]
)

# Sunstone does nothing here, and oned is the sandbox's. The shipped watchdog would take too long to wait for.
UNITS = {
    "vnctoken.service": (SHIPPED / "vnctoken.service").read_text(encoding="utf-8"),
    "vnctoken.socket": (SHIPPED / "vnctoken.socket").read_text(encoding="utf-8"),
    "vnctoken.service.d/quick.conf": "[Service]\nWatchdogSec=2\nRestartSec=100ms\n",
    "opennebula-sunstone.service": "[Service]\nExecStart=/bin/sleep infinity\nExecReload=/bin/true\n",
    "oned.service": "[Service]\nExecStart=/usr/bin/vnctoken-python -m vnctoken.sandbox --listen 127.0.0.1:2633\n",
}
CONFIGURATION = f":recheck_interval: 0\n{NO_LIMITS}"

CALL = """
import http.client, sys, threading, xmlrpc.client
clients = int(sys.argv[1])
body = xmlrpc.client.dumps(("alice:secret", 0), "one.vm.vnctoken").encode()
end, answered, lost = threading.Event(), [], []
def call():
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", 2644, timeout=30)
        try:
            connection.request("POST", "/RPC2", body, {"Connection": "close"})
            ((answer,), _) = xmlrpc.client.loads(connection.getresponse().read())
        except Exception as error:
            answer = [error]
        connection.close()
        (answered if answer[0] is True else lost).append(answer)
        if end.is_set():
            return
if clients == 1:
    end.set()
threads = [threading.Thread(target=call) for _ in range(clients)]
[thread.start() for thread in threads]
print("calling", flush=True)
if clients > 1:
    sys.stdin.read()
    end.set()
[thread.join() for thread in threads]
print("answered", len(answered), "lost", lost, flush=True)
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """Boot a machine where oned runs."""
    with booted(tmp_path_factory.mktemp("machine"), PREPARE) as machine:
        machine.run("useradd", "--user-group", "--uid", "9869", "--home-dir", "/var/lib/one", "oneadmin")
        machine.run("install", "-d", "-o", "oneadmin", "-g", "oneadmin", "/var/lib/one", "/var/log/one")
        for path, text in {**COMMANDS, **{f"/etc/systemd/system/{name}": text for name, text in UNITS.items()}}.items():
            write(machine, path, text)
        machine.run("chmod", "0755", *COMMANDS)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "start", "oned")
        yield machine


@pytest.fixture
def there(machine):
    """Provide the machine with the shipped configuration, the service not started."""
    write(machine, CONF, CONFIGURATION)
    yield machine
    machine.run("systemctl", "stop", "vnctoken.socket", "vnctoken.service", "opennebula-sunstone.service", code=None)
    machine.run("systemctl", "reset-failed", code=None)


def write(there, path, text):
    """Write a file there."""
    file = there.file(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def journal(there):
    """Return what the service has logged."""
    return there.run("journalctl", "--no-pager", "--output=cat", "--unit", "vnctoken")


def python(there, *arguments, **popen):
    """Run Python with these arguments, on the network of that machine and the files of this one, for a block."""
    return running(*there.on_its_network(), sys.executable, *arguments, **popen)


def call(there):
    """Make a call; fail unless a token comes."""
    with python(there, "-c", CALL, "1") as calling:
        calling.wait_for(r"answered 1 lost \[\]")


def test_it_has_started_when_it_takes_calls_and_it_says_how_it_is_to_systemd_and_to_monitors(there):
    there.run("systemctl", "start", "vnctoken")
    call(there)
    assert there.shows("vnctoken", "ActiveState", "NRestarts") == ["active", "0"]
    (status,) = there.shows("vnctoken", "StatusText")
    assert status.startswith("Listens on http://127.0.0.1:2644/RPC2; ")
    assert f'Status: "{status}"' in there.run("systemctl", "status", "--no-pager", "vnctoken")
    asked = 'import urllib.request; print(urllib.request.urlopen("http://127.0.0.1:2646/readyz", timeout=9).read())'
    with python(there, "-c", asked) as asking:
        asking.wait_for("oned")


def test_a_configuration_that_cannot_be_used_is_a_failed_start_without_another_try(there):
    write(there, CONF, ":port: nope\n")
    there.run("systemctl", "start", "vnctoken", code=1)
    assert there.shows("vnctoken", "ActiveState", "ExecMainStatus", "NRestarts") == ["failed", "78", "0"]


def test_a_reload_takes_what_is_right_and_says_what_is_wrong(there):
    there.run("systemctl", "start", "vnctoken")
    (before,) = there.shows("vnctoken", "MainPID")
    write(there, CONF, f"{CONFIGURATION}:token_ttl: 77\n")
    there.run("systemctl", "reload", "vnctoken")
    until(lambda: "the configuration was reloaded; changed: :token_ttl:" in journal(there))
    write(there, CONF, f"{CONFIGURATION}:token_ttl: nope\n")
    there.run("systemctl", "reload", "vnctoken")
    until(lambda: ":token_ttl: is 'nope', but " in there.shows("vnctoken", "StatusText")[0])
    call(there)
    write(there, CONF, CONFIGURATION)
    there.run("systemctl", "reload", "vnctoken")
    until(lambda: "failed" not in there.shows("vnctoken", "StatusText")[0])
    assert there.shows("vnctoken", "MainPID", "ActiveState") == [before, "active"]


def test_sunstones_reload_restart_and_end_are_the_services(there):
    there.run("systemctl", "start", "opennebula-sunstone", "vnctoken")
    (before,) = there.shows("vnctoken", "MainPID")
    lines = journal(there).count("was reloaded")
    there.run("systemctl", "reload", "opennebula-sunstone")
    until(lambda: journal(there).count("was reloaded") > lines)
    assert there.shows("vnctoken", "MainPID") == [before]
    there.run("systemctl", "restart", "opennebula-sunstone")
    until(lambda: there.shows("vnctoken", "ActiveState") == ["active"])
    assert there.shows("vnctoken", "MainPID") != [before]
    there.run("systemctl", "stop", "opennebula-sunstone")
    assert there.shows("vnctoken", "ActiveState", "Result") == ["inactive", "success"]


def test_a_service_that_hangs_is_ended_and_started_anew(there):
    there.run("systemctl", "start", "vnctoken")
    (before,) = there.shows("vnctoken", "MainPID")
    there.run("systemctl", "kill", "--signal=STOP", "vnctoken")
    until(lambda: there.shows("vnctoken", "NRestarts", "ActiveState") == ["1", "active"])
    assert there.shows("vnctoken", "MainPID") != [before]
    assert re.search(r'(?m)^  File ".*", line \d+ in ', journal(there)), "it does not say where it hung"
    call(there)


def test_with_the_socket_the_first_call_starts_the_service_and_restarts_lose_none(there):
    there.run("systemctl", "start", "vnctoken.socket")
    assert there.shows("vnctoken", "ActiveState") == ["inactive"]
    call(there)
    assert there.shows("vnctoken", "ActiveState") == ["active"]
    with python(there, "-c", CALL, "8", stdin=subprocess.PIPE) as calling:
        calling.wait_for("calling")
        for _ in range(2):
            there.run("systemctl", "restart", "vnctoken")
        calling.process.stdin.close()
        answered, lost = calling.wait_for(r"answered (\d+) lost (.*)").groups()
    assert lost == "[]"
    assert int(answered) >= 8


def test_a_file_that_root_alone_can_read_is_the_services_login_and_without_it_the_service_starts_too(there):
    write(there, CONF, "")
    there.run("systemctl", "start", "vnctoken")
    assert "(:recheck_interval:): there is no " in journal(there)
    there.run("systemctl", "stop", "vnctoken")
    there.run("install", "-d", "-m", "0700", "/etc/credstore")
    write(there, "/etc/credstore/vnctoken_auth", f"{PASSWORD}\n")
    there.run("chmod", "0600", "/etc/credstore/vnctoken_auth")
    before = journal(there).count("(:recheck_interval:)")
    there.run("systemctl", "start", "vnctoken")
    assert journal(there).count("(:recheck_interval:)") == before
    there.run("rm", "-r", "/etc/credstore")


def test_logrotate_begins_new_files_and_the_audit_log_stays_whole(there):
    program("logrotate")
    write(there, CONF, f"{CONFIGURATION}:audit_log: {AUDIT_LOG}\n")
    there.run("systemctl", "start", "vnctoken")
    call(there)
    write(there, "/etc/vnctoken.logrotate", (ROOT / "logrotate" / "vnctoken").read_text(encoding="utf-8"))
    there.run("logrotate", "--force", "--state", "/run/logrotate.state", "/etc/vnctoken.logrotate")
    until(lambda: there.file(AUDIT_LOG).exists() and there.file(AUDIT_LOG).stat().st_size)
    call(there)
    files = there.run("sh", "-c", f"ls -r {AUDIT_LOG}*").split()
    assert len(files) == 2
    there.run("vnctoken-server", "--verify-audit", *files)
    there.run("sed", "-i", "1d", files[1])
    there.run("vnctoken-server", "--verify-audit", *files, code=1)
