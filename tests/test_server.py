"""The `vnctoken-server` command, as a process where it runs, and `twist vnctoken`."""

import contextlib
import http.client
import os
import re
import signal
import socket
import stat
import sys
import threading
import time
import xmlrpc.client

import pytest
import yaml
from conftest import ROOT, START_SECONDS, free_port, running, tokens_in, vnctoken_server

from vnctoken import __version__
from vnctoken.config import Config
from vnctoken.sandbox.calls import Answer
from vnctoken.sandbox.cloud import demo_cloud
from vnctoken.sandbox.rendering import guest_xml
from vnctoken.server import main
from vnctoken.service import SHUTDOWN_SECONDS
from vnctoken.tokens import fingerprint

COMMAND = (sys.executable, "-m", "vnctoken.server")
READY = r"^vnctoken-server listens on (http://\S+:\d+/RPC2)$"
CALL = xmlrpc.client.dumps(("alice:hunter2", 0), "one.vm.vnctoken").encode()


@pytest.fixture
def one(tmp_path):
    """Make a self-contained installation's folders."""
    for name in ("etc", "var"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def at_one(one, monkeypatch):
    """Let commands in this process find it."""
    monkeypatch.setenv("ONE_LOCATION", str(one))
    return one


def configure(one, text, name="vnctoken-server.conf"):
    file = one / "etc" / name
    file.write_text(text, encoding="utf-8")
    return file


def environment(one, **more):
    env = {**os.environ, "ONE_LOCATION": str(one)}
    env.pop("JOURNAL_STREAM", None)
    return env | more


def finished(one, *options, **more):
    """Return the exit code and the output of a command that ends by itself."""
    with running(*COMMAND, *options, env=environment(one, **more)) as process:
        process.process.wait(START_SECONDS)
        return process.stop(), process.output


@contextlib.contextmanager
def server(one, *options, **more):
    with running(*COMMAND, *options, env=environment(one, **more), ready=READY) as process:
        yield process


def url_of(process):
    return process.wait_for(READY).group(1)


def port_of(process):
    return int(re.search(r":(\d+)/", url_of(process)).group(1))


def until(condition):
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        threading.Event().wait(0.01)


def complaints(one):
    """Return the error log, without the line that says what is off where there is no server login."""
    lines = (one / "var" / "vnctoken.error").read_text().splitlines()
    return [line for line in lines if "(:recheck_interval:)" not in line]


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), START_SECONDS).close()
    except (ConnectionRefusedError, ConnectionResetError):
        # The second, if the port closes while the kernel shakes hands.
        return False
    return True


# Options


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"vnctoken-server {__version__}\n"


def test_the_help_names_the_options_and_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in (
        "--config",
        "--sunstone-config",
        "--check",
        "--doctor",
        "--json",
        "--verify-audit",
        "--version",
        "78",
        "/etc/one",
    ):
        assert word in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--chekc"],
        ["extra"],
        ["--config"],
        ["--json"],
        ["--check", "--json"],
        ["--check", "--doctor"],
        ["--verify-audit"],
        ["--verify-audit", "a", "--check"],
    ],
)
def test_wrong_options_are_refused_as_usual(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: vnctoken-server" in capsys.readouterr().err


def test_check_prints_the_effective_configuration_and_starts_nothing(at_one, capsys):
    configure(at_one, ":port: 1\n:debug_level: 3\n")
    configure(at_one, ":port: 9869\n:vnc_proxy_support_wss: only\n", "sunstone-server.conf")
    assert main(["--check"]) == 0
    output = capsys.readouterr()
    expected = Config(port=1, debug_level=3, vnc_proxy_support_wss=True)
    assert output.out == expected.to_yaml()
    assert yaml.safe_load(output.out)[":port"] == 1
    assert output.err == ""
    assert list((at_one / "var").iterdir()) == []


def test_check_warns_of_a_key_that_is_not_known(at_one, capsys):
    file = configure(at_one, ":prot: 1\n")
    assert main(["--check"]) == 0
    output = capsys.readouterr()
    assert output.out == Config().to_yaml()
    assert output.err == (
        f"vnctoken-server: warning: {file}: :prot: is not a key of this file and is ignored;"
        " the nearest one is :port:\n"
    )


def test_check_reads_the_files_that_are_named(at_one, capsys):
    configure(at_one, ":port: nope\n")
    ours, sunstone = configure(at_one, ":port: 5\n", "a"), configure(at_one, ":debug_level: 0\n", "b")
    assert main(["--check", "--config", str(ours), "--sunstone-config", str(sunstone)]) == 0
    written = yaml.safe_load(capsys.readouterr().out)
    assert (written[":port"], written[":debug_level"]) == (5, 0)


# --verify-audit


def test_an_audit_log_that_is_whole_is_exit_0_and_one_with_a_line_less_is_exit_1(tmp_path, cloud, capsys):
    audit = tmp_path / "audit.log"
    with (
        vnctoken_server(tmp_path / "one", cloud.url, f":audit_log: {audit}") as service,
        xmlrpc.client.ServerProxy(service.url) as portal,
    ):
        for _ in range(3):
            assert portal.one.vm.vnctoken("alice:secret", 0)[0] is True
    assert main(["--verify-audit", str(audit)]) == 0
    assert "lines in " in capsys.readouterr().out
    lines = audit.read_text().splitlines(keepends=True)
    audit.write_text("".join(lines[:1] + lines[2:]))
    assert main(["--verify-audit", str(audit)]) == 1
    assert f"{audit}, line 2: " in capsys.readouterr().out


def test_audit_logs_are_read_in_the_order_in_which_they_are_given(tmp_path, capsys):
    assert main(["--verify-audit", str(tmp_path / "first"), str(tmp_path / "second")]) == 1
    first, second = re.findall(r"(\S+): cannot be read", capsys.readouterr().out)
    assert (first, second) == (f"{tmp_path}/first", f"{tmp_path}/second")


# Exit 78: the configuration cannot be used


@pytest.mark.parametrize("options", [["--check"], []])
def test_a_wrong_value_is_exit_78_with_file_key_value_and_what_is_expected(one, options):
    file = configure(one, ":port: nope\n")
    expected = f"vnctoken-server: {file}: :port: is 'nope', but a whole number from 0 to 65535 is expected"
    assert finished(one, *options) == (78, expected)


@pytest.mark.parametrize("journal", [{}, {"JOURNAL_STREAM": "8:1"}])
@pytest.mark.parametrize("wrong", [":port: nope", ":token_folder_name: missing/tokens"])
def test_what_is_wrong_with_the_configuration_is_said_once(one, wrong, journal):
    configure(one, f"{wrong}\n")
    code, output = finished(one, **journal)
    assert code == 78
    assert len(output.splitlines()) == 1, output
    assert wrong.partition(" ")[0] in output


@pytest.mark.parametrize("name", ["vnctoken.log", "vnctoken.error"])
def test_a_log_that_cannot_be_opened_is_exit_78(one, name):
    (one / "var" / name).mkdir()
    code, output = finished(one)
    assert code == 78
    assert f"vnctoken-server: {one}/var/{name}: the log cannot be opened (Is a directory)" in output


def test_what_is_not_yaml_is_exit_78_with_its_line(at_one, capsys):
    file = configure(at_one, ":port: 1\n:host: [\n")
    assert main(["--check"]) == 78
    assert f"vnctoken-server: {file}, line 3: not YAML (" in capsys.readouterr().err


def test_a_date_that_does_not_exist_is_exit_78_and_no_traceback(at_one, capsys):
    file = configure(at_one, ":port: 2024-99-99\n")
    assert main(["--check"]) == 78
    assert f"vnctoken-server: {file}" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--config", "--sunstone-config"])
def test_a_file_that_is_not_there_is_exit_78(at_one, capsys, option):
    assert main(["--check", option, str(at_one / "none.conf")]) == 78
    assert f"{at_one}/none.conf: there is no such file" in capsys.readouterr().err


def test_no_folder_for_the_log_is_exit_78(one):
    (one / "var").rmdir()
    code, output = finished(one)
    assert code == 78
    assert output.startswith(f"vnctoken-server: {one}/var/vnctoken.log: the log cannot be opened")


def test_a_token_folder_that_cannot_be_used_is_exit_78_and_in_the_log(one):
    configure(one, ":port: 0\n:token_folder_name: missing/tokens\n")
    code, output = finished(one)
    assert code == 78
    (line,) = output.splitlines()
    assert line.startswith(f"vnctoken-server: :token_folder_name: is '{one}/var/missing/tokens', but ")
    assert line.removeprefix("vnctoken-server: ") in (one / "var" / "vnctoken.error").read_text()


def test_a_certificate_file_that_cannot_be_used_is_exit_78(one):
    configure(one, f":one_xmlrpc: https://localhost/RPC2\n:one_xmlrpc_ca: {one}/none.pem\n")
    code, output = finished(one)
    assert code == 78
    assert "vnctoken-server: :one_xmlrpc_ca: is " in output
    assert "Traceback" not in output


# Exit 1: the port is taken


def test_a_port_that_is_taken_is_exit_1_and_says_so(one):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        configure(one, f":port: {port}\n")
        code, output = finished(one)
    assert code == 1
    assert output.startswith(f"vnctoken-server: cannot listen on 127.0.0.1 port {port}: ")
    assert "Address already in use" in output
    assert len(output.splitlines()) == 1
    assert "Address already in use" in (one / "var" / "vnctoken.error").read_text()


def test_a_host_that_is_none_of_this_machines_is_exit_1_and_says_so(one):
    configure(one, ":port: 0\n:host: no-such-host.invalid\n")
    code, output = finished(one)
    assert code == 1
    assert output.startswith("vnctoken-server: cannot listen on no-such-host.invalid port 0: ")


# Running


def test_it_says_in_one_line_where_it_listens_also_when_the_port_was_0(one):
    configure(one, ":port: 0\n")
    with server(one) as process:
        assert accepts(port_of(process))
        assert process.stop() == 0
    assert process.lines == [f"vnctoken-server listens on {url_of(process)}"]
    log = (one / "var" / "vnctoken.log").read_text()
    assert f" INFO     vnctoken-server {__version__} listens on {url_of(process)}\n" in log
    assert complaints(one) == []


def test_an_ipv6_address_is_written_as_urls_have_it(one):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    configure(one, ':port: 0\n:host: "::1"\n')
    with server(one) as process:
        assert re.match(r"http://\[::1\]:[1-9]\d*/RPC2$", url_of(process))


def test_warnings_are_in_the_log(one):
    configure(one, ":port: 0\n:prot: 1\n")
    (one / "var" / "sunstone_vnc_tokens").mkdir()
    (one / "var" / "sunstone_vnc_tokens").chmod(0o755)
    with server(one):
        pass
    text = (one / "var" / "vnctoken.error").read_text()
    assert "the nearest one is :port:" in text
    assert "has mode 0755: " in text


def test_the_token_folder_is_there_before_the_first_call(one):
    configure(one, ":port: 0\n")
    with server(one):
        for name in ("sunstone_vnc_tokens", "sunstone_vnc_tokens.new"):
            assert stat.S_IMODE((one / "var" / name).stat().st_mode) == 0o700


def test_a_call_is_one_line_in_the_log_without_any_secret(service):
    with xmlrpc.client.ServerProxy(service.url) as portal:
        success, console, code = portal.one.vm.vnctoken("alice:secret", 1)
        portal.one.vm.vnctoken("alice:wrong", 1)
    assert (success, code) == (True, 0)
    text = service.log.read_text()
    first, second = [line for line in text.splitlines() if "one.vm.vnctoken" in line]
    token = fingerprint(console["Token"])
    call = r"^\S+ INFO     127\.0\.0\.1 one\.vm\.vnctoken vm=1 user=alice ms=\d+\.\d request=[0-9a-f]{12} code="
    assert re.search(rf"{call}0x0000 token={token}$", first)
    assert re.search(rf"{call}0x0100$", second)
    for secret in ("alice:", "s3cr3tpw", console["Token"]):
        assert secret not in text
    assert complaints(service.one_location) == []
    assert tokens_in(service.tokens / "one-1") == {console["Token"]: "dummy-host-1:5901"}


def test_trouble_with_oned_is_in_both_logs(tmp_path):
    nobody = f"http://127.0.0.1:{free_port()}/RPC2"
    with vnctoken_server(tmp_path / "one", nobody) as service, xmlrpc.client.ServerProxy(service.url) as portal:
        assert portal.one.vm.vnctoken("alice:secret", 1)[2] == 0x2000
        (line,) = complaints(service.one_location)
        assert re.search(r" ERROR    127\.0\.0\.1 one\.vm\.vnctoken vm=1 .* code=0x2000 reason=oned refuses", line)
        assert line in service.log.read_text()


def test_under_the_journal_lines_carry_their_priority_and_there_are_no_files(one, cloud):
    configure(one, f":port: 0\n:one_xmlrpc: {cloud.url}\n:prot: 1\n")
    with server(one, JOURNAL_STREAM="8:1") as process:
        with xmlrpc.client.ServerProxy(url_of(process)) as portal:
            portal.one.vm.vnctoken("alice:secret", 0)
        process.wait_for(r"^<6>127\.0\.0\.1 one\.vm\.vnctoken vm=0 user=alice .* code=0x0000 token=[0-9a-f]{8}$")
        process.wait_for(r"^<4>.*the nearest one is :port:$")
        assert process.stop() == 0
    assert [line for line in process.lines if not re.match(r"<\d>", line)] == [
        f"vnctoken-server listens on {url_of(process)}"
    ]
    assert sorted(path.name for path in (one / "var").iterdir()) == ["sunstone_vnc_tokens", "sunstone_vnc_tokens.new"]


@pytest.mark.parametrize(("level", "logged"), [(0, False), (1, False), (2, True), (3, True)])
def test_the_debug_level_decides_whether_calls_are_logged(tmp_path, cloud, level, logged):
    with vnctoken_server(tmp_path / "one", cloud.url, f":debug_level: {level}") as service:
        with xmlrpc.client.ServerProxy(service.url) as portal:
            portal.one.vm.vnctoken("alice:secret", 0)
        assert ("one.vm.vnctoken" in service.log.read_text()) is logged


# The end


class SlowOned:
    """An oned that takes a question and answers when it is told to."""

    def __init__(self, listening):
        self._listening = listening
        self._listening.settimeout(START_SECONDS)
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/RPC2"

    def take_question(self):
        """Wait for a question; from then on a call is in flight."""
        self._connection, _ = self._listening.accept()
        self._connection.settimeout(START_SECONDS)
        received = b""
        while not received.endswith(b"</methodCall>\n"):
            received += self._connection.recv(65536)
        assert b"alice:hunter2" in received

    def answer(self):
        body = Answer(success=True, text=guest_xml(demo_cloud().guest(0))).body
        self._connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        self.hang_up()

    def hang_up(self):
        self._connection.close()


@pytest.fixture
def slow_oned():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield SlowOned(listening)


@contextlib.contextmanager
def call_in_flight(service, oned):
    """Make a call and wait until oned is asked; `getresponse` of what is returned waits for the answer."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=START_SECONDS)) as portal:
        portal.request("POST", "/RPC2", CALL)
        oned.take_question()
        yield portal


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_takes_no_more_calls_and_finishes_the_one_in_flight(tmp_path, slow_oned, how):
    with (
        vnctoken_server(tmp_path / "one", slow_oned.url) as service,
        call_in_flight(service, slow_oned) as portal,
    ):
        service.process.process.send_signal(how)
        until(lambda: not accepts(service.port))
        assert service.process.process.poll() is None
        slow_oned.answer()
        ((answer,), _) = xmlrpc.client.loads(portal.getresponse().read())
        assert answer[0] is True
        assert tokens_in(service.tokens / "one-0")[answer[1]["Token"]] == "dummy-host-1:5900"
        assert service.process.process.wait(START_SECONDS) == 0
        assert " code=0x0000 " in service.log.read_text()
        assert complaints(service.one_location) == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_again_while_it_finishes_a_call_it_finishes_it_and_nothing_is_logged(tmp_path, slow_oned, how):
    with (
        vnctoken_server(tmp_path / "one", slow_oned.url) as service,
        call_in_flight(service, slow_oned) as portal,
    ):
        service.process.process.send_signal(how)
        until(lambda: not accepts(service.port))
        service.process.process.send_signal(signal.SIGTERM)
        service.process.process.send_signal(signal.SIGINT)
        slow_oned.answer()
        ((answer,), _) = xmlrpc.client.loads(portal.getresponse().read())
        assert answer[0] is True
        assert service.process.process.wait(START_SECONDS) == 0
        assert complaints(service.one_location) == []


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_call_that_takes_too_long_to_finish_is_cut_off(tmp_path, slow_oned, how):
    assert SHUTDOWN_SECONDS == 5
    with (
        vnctoken_server(tmp_path / "one", slow_oned.url, ":one_xmlrpc_timeout: 3600") as service,
        call_in_flight(service, slow_oned) as portal,
    ):
        service.process.process.send_signal(how)
        assert service.process.process.wait(START_SECONDS) == 0
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            portal.getresponse()
        slow_oned.hang_up()
        assert list(service.tokens.iterdir()) == []
        assert "1 calls were cut off" in (service.one_location / "var" / "vnctoken.error").read_text()
        assert "one.vm.vnctoken vm=0 user=alice" in service.log.read_text()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_while_idle_connections_are_open_it_ends(one, how):
    configure(one, ":port: 0\n")
    with server(one) as process, socket.create_connection(("127.0.0.1", port_of(process)), START_SECONDS) as idle:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 404 ")
        assert process.stop(how) == 0
    assert complaints(one) == []


# The time of day


def set_back(one, program, *arguments):
    """Return a command that runs a program, for which it is an hour earlier from when the file `flag` is there."""
    start = (
        "import os, runpy, sys, time; now = time.time\n"
        f"time.time = lambda: now() - 3600 * os.path.exists({str(one / 'flag')!r})\n"
        f"sys.argv = ['program', *{[str(argument) for argument in arguments]!r}]\n"
        f"runpy.run_module({program!r}, run_name='__main__', alter_sys=True)"
    )
    return (sys.executable, "-c", start)


def test_twisted_alone_makes_timers_an_hour_late(one):
    """Were this to change, the next test would prove nothing."""
    (one / "timer.py").write_text(
        "import pathlib, sys\n"
        "from twisted.internet import reactor\n"
        "timer = reactor.callLater(1, print)\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "print('seconds left:', round(timer.getTime() - reactor.seconds()), flush=True)\n",
        encoding="utf-8",
    )
    with running(*set_back(one, "timer", one / "flag"), env=environment(one, PYTHONPATH=str(one))) as process:
        process.wait_for("^seconds left: 3601$")


@pytest.mark.parametrize("command", ["vnctoken.server", "twisted"])
def test_a_clock_that_is_set_back_makes_no_call_wait_longer(one, slow_oned, command):
    port = free_port()
    file = configure(one, f":port: {port}\n:one_xmlrpc: {slow_oned.url}\n:one_xmlrpc_timeout: 1\n")
    arguments = ("--config", file) if command == "vnctoken.server" else ("vnctoken", "--config", file)
    with (
        running(*set_back(one, command, *arguments), env=environment(one), cwd=ROOT) as process,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)) as portal,
    ):
        process.wait_for("listens on|Starting reactor")
        until(lambda: accepts(port))
        portal.request("POST", "/RPC2", CALL)
        slow_oned.take_question()
        (one / "flag").touch()
        ((answer,), _) = xmlrpc.client.loads(portal.getresponse().read())
        slow_oned.hang_up()
    assert answer == [False, "oned did not answer within 1 seconds", 0x2000]


# twist


@contextlib.contextmanager
def twist(one, *options):
    command = (sys.executable, "-m", "twisted", "--log-format=text", "vnctoken", *options)
    with running(*command, env=environment(one), cwd=ROOT) as process:
        yield process


def test_twist_runs_the_same_service(one, cloud):
    port = free_port()
    file = configure(one, f":port: {port}\n:one_xmlrpc: {cloud.url}\n:prot: 1\n", "other.conf")
    with twist(one, "--config", file) as process:
        process.wait_for("Starting reactor")
        with xmlrpc.client.ServerProxy(f"http://127.0.0.1:{port}/RPC2") as portal:
            success, token, code = portal.one.vm.vnctokenonly("alice:secret", 0)
        assert (success, code) == (True, 0)
        assert tokens_in(one / "var" / "sunstone_vnc_tokens" / "one-0") == {token: "dummy-host-1:5900"}
        process.wait_for(
            rf"one\.vm\.vnctokenonly vm=0 user=alice ms=\S+ request=\S+ code=0x0000 token={fingerprint(token)}"
        )
        assert process.stop() in (0, -signal.SIGTERM)
    assert "Main loop terminated" in process.output
    assert token not in process.output
    assert "the nearest one is :port:" in process.output


def test_twist_says_what_is_wrong_with_the_configuration(one):
    file = configure(one, ":port: nope\n")
    with twist(one) as process:
        process.process.wait(START_SECONDS)
        assert process.stop() != 0
    assert f"{file}: :port: is 'nope', but a whole number from 0 to 65535 is expected" in process.output
    assert "Traceback" not in process.output
