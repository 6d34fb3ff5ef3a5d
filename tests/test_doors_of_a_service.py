"""The settings of the doors, with real vnctoken-servers before a real sandbox, over HTTP."""

import base64
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import xmlrpc.client

import pytest
from conftest import running, vnctoken_server

from vnctoken.sandbox.cloud import SERVERADMIN
from vnctoken.sandbox.serverx509 import new_certificate

ALL = ":auth: [opennebula, basic, x509, remote, ec2, onegate]\n"
THROUGH_NGINX = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.9"}
REMY = THROUGH_NGINX | {"X-Auth-Username": "remy@EXAMPLE.ORG"}
MINE = 36


def basic(user, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def with_login(folder, text=f"{SERVERADMIN.name}:{SERVERADMIN.password}\n"):
    """Give a service a login of its own at the sandbox's oned."""
    (folder / "var" / ".one").mkdir(parents=True)
    (folder / "var" / ".one" / "sunstone_auth").write_text(text, encoding="utf-8")
    return folder


def call(connection, session, vm_id=0, headers=(), method="one.vm.vnctokenonly"):
    body = xmlrpc.client.dumps((session, vm_id), method)
    with contextlib.closing(connection):
        connection.request("POST", "/RPC2", body, {"Content-Type": "text/xml", **dict(headers)})
        return xmlrpc.client.loads(connection.getresponse().read())[0][0]


def called(service, session, vm_id=0, headers=(), method="one.vm.vnctokenonly"):
    return call(http.client.HTTPConnection("127.0.0.1", service.port, timeout=30), session, vm_id, headers, method)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self._path))


def test_nothing_but_the_default_door_is_open_unless_it_is_listed(service):
    for headers in (basic("alice", "secret"), {"X-ONEGATE-VMID": "0", "X-ONEGATE-TOKEN": "x"}, {}):
        assert called(service, "", headers=headers) == [
            False,
            "Argument 1, the session, must be a non-empty string, but is an empty string",
            0x1000,
        ]
    assert called(service, "alice:secret")[0] is True


def test_a_door_listed_in_sunstones_file_is_not_open(tmp_path, cloud):
    one = with_login(tmp_path / "one")
    (one / "etc").mkdir()
    (one / "etc" / "sunstone-server.conf").write_text(":auth: x509\n:trusted_proxies: [127.0.0.1]\n")
    with vnctoken_server(one, cloud.url) as service:
        assert called(service, "", MINE, REMY)[2] == 0x0100
        assert called(service, "", MINE)[2] == 0x1000


def test_a_proxys_unix_socket_is_one_more_way_in_and_the_only_trusted_one(tmp_path, cloud):
    path = tmp_path / "proxy.sock"
    settings = f"{ALL}:trusted_proxies: unix:{path}\n"
    with vnctoken_server(with_login(tmp_path / "one"), cloud.url, settings) as service:
        assert path.stat().st_mode & 0o777 == 0o660
        assert call(UnixConnection(path), "", MINE, REMY)[0] is True
        assert call(UnixConnection(path), "alice:secret", 0, THROUGH_NGINX)[0] is True
        success, told, code = called(service, "", MINE, REMY)
        assert (success, code) == (False, 0x0100)
        assert "which counts only from a proxy in :trusted_proxies:" in told
        assert called(service, "alice:secret")[0] is True
        # Two listeners, each with an idle connection, and the service ends at once all the same.
        idle = [UnixConnection(path), http.client.HTTPConnection("127.0.0.1", service.port)]
        for connection in idle:
            connection.connect()
        assert service.process.stop(signal.SIGTERM, seconds=4) == 0
        for connection in idle:
            connection.close()
        log = service.log.read_text()
    assert not path.exists()
    assert f"192.0.2.9 one.vm.vnctokenonly vm={MINE} user=remy door=remote" in log
    assert "127.0.0.1 sent REMOTE_USER" not in log
    assert (
        "127.0.0.1 sent X-Auth-Username, X-Forwarded-For, X-Forwarded-Proto, which only one of :trusted_proxies: may"
        in log
    )


def test_the_service_acts_for_users_by_a_private_key_too(tmp_path):
    certificate, key = new_certificate()
    auth = tmp_path / "one" / "etc" / "auth"
    auth.mkdir(parents=True)
    (auth / "cert.pem").write_bytes(certificate)
    (auth / "key.pem").write_bytes(key)
    (auth / "server_x509_auth.conf").write_text(
        f":srv_user: serverx509\n:one_cert: {auth}/cert.pem\n:one_key: {auth}/key.pem\n"
    )
    command = (sys.executable, "-m", "vnctoken.sandbox", "--listen", "127.0.0.1:0")
    with running(*command, "--server-certificate", auth / "cert.pem", ready="listens on") as sandbox:
        url = sandbox.wait_for(r"listens on (http://\S+)").group(1)
        settings = f"{ALL}:core_auth: x509\n:trusted_proxies: [127.0.0.1]\n"
        with vnctoken_server(tmp_path / "one", url, settings) as service:
            assert called(service, "", MINE, REMY)[0] is True
            assert called(service, "", 0, REMY)[2] == 0x0200


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            ":auth: [opennebula, x509]\n",
            ":auth: has x509, which needs a login of the service's own at oned: there is no",
        ),
        (":auth: onegate\n:core_auth: x509\n", "server_x509_auth.conf"),
        (":auth: []\n", ":auth: is []"),
        (":auth: [kerberos]\n", ":auth: is ['kerberos']"),
        (":expire_delta: 200\n:expire_margin: 300\n", ":expire_delta: is 200"),
        (":trusted_proxies: [0.0.0.0/0]\n", "(this network is everybody)"),
    ],
)
def test_doors_that_cannot_open_keep_the_service_from_starting_and_it_says_why(tmp_path, settings, named):
    (tmp_path / "etc").mkdir()
    (tmp_path / "var").mkdir()
    (tmp_path / "etc" / "vnctoken-server.conf").write_text(f":port: 0\n:monitor_listen: none\n{settings}")
    ended = subprocess.run(
        (sys.executable, "-m", "vnctoken.server"),
        env={**os.environ, "ONE_LOCATION": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 78
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_method_that_is_switched_off_says_by_which_setting_and_asks_nobody(tmp_path, cloud):
    settings = ":permissions:\n  :vm:\n    :vncrevoke: false\n    :vnc: true\n"
    with vnctoken_server(tmp_path / "one", cloud.url, settings) as service:
        assert called(service, "alice:wrong", method="one.vm.vncrevoke") == [
            False,
            "one.vm.vncrevoke is switched off here (:permissions: :vm: :vncrevoke:)",
            0x0200,
        ]
        for method in ("one.vm.vnctoken", "one.vm.vnctokenonly", "one.vm.vnc", "one.vm.vnctokens"):
            assert called(service, "alice:secret", method=method)[0] is True


def test_groups_may_be_let_in_or_kept_out(tmp_path, cloud):
    for settings, let_in in (
        (":allowed_groups: [guests]\n", {"eve:with:colons:in:it", "gina:secret"}),
        (":allowed_groups: [1]\n:restricted_groups: [guests]\n", {"alice:secret"}),
    ):
        with vnctoken_server(tmp_path / settings[1:8], cloud.url, settings) as service:
            answers = {
                session: called(service, session, vm_id)
                for session, vm_id in (("eve:with:colons:in:it", 34), ("gina:secret", 34), ("alice:secret", 0))
            }
        assert {session for session, answer in answers.items() if answer[0]} == let_in
        assert {answer[2] for answer in answers.values()} == {0, 0x0200}
        assert all("_groups:)" in answer[1] for answer in answers.values() if not answer[0])


def test_guesses_cost_and_while_somebody_waits_oned_is_not_asked(tmp_path):
    command = (sys.executable, "-m", "vnctoken.sandbox", "--listen", "127.0.0.1:0")
    with running(*command, ready="listens on") as sandbox:
        url = sandbox.wait_for(r"listens on (http://\S+)").group(1)
        with vnctoken_server(tmp_path / "one", url, ":auth_failures: 3/hour\n") as service:
            for number in range(3):
                assert called(service, f"alice:{number}")[1] == (
                    "[one.vm.info] User couldn't be authenticated, aborting call."
                )
            sandbox.stop()
            success, told, code = called(service, "alice:secret")
            assert (success, code) == (False, 0x0100)
            assert "Too many failed attempts to log in (:auth_failures:); try again in 1" in told


def test_a_login_of_the_service_that_oned_refuses_is_not_the_callers_fault(tmp_path, cloud):
    one = with_login(tmp_path / "one", "serveradmin:another password\n")
    with vnctoken_server(one, cloud.url, f"{ALL}:trusted_proxies: [127.0.0.1]\n:recheck_interval: 0\n") as service:
        assert called(service, "", MINE, REMY) == [False, "oned refuses the service's own login", 0x2000]
        assert called(service, "alice:secret")[0] is True
