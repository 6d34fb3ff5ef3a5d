"""SIGHUP: the configuration read again and the log files opened anew, while calls are answered."""

from __future__ import annotations

import os
import re
import signal
import sys
import xmlrpc.client
from datetime import datetime, timezone

import pytest
from conftest import running, vnctoken_server
from test_server import SlowOned, call_in_flight, slow_oned  # noqa: F401 (a fixture)
from twisted.logger import LogLevel, capturedLogs, eventAsText
from webservers import until

from vnctoken.config import Config
from vnctoken.errors import ConfigError
from vnctoken.reload import Hangup, Reload

NOON = datetime(2026, 11, 22, 12, 0, 0, tzinfo=timezone.utc)


class World:
    """A service, a log and systemd that keep what is done with them, in order."""

    running = 1
    status = "Listens on http://127.0.0.1:2644/RPC2"

    def __init__(self):
        self.done = []
        self.found = Config()
        self.warnings = []
        self.waiting = []
        self.problems = {}
        self.reload_of_it = Reload(Config(), self.read, service=self, log=self, notifier=self, now=lambda: NOON)

    def _do(self, name, *what):
        self.done.append((name, *what))
        if name in self.problems:
            raise self.problems[name]

    def read(self):
        self._do("read")
        return self.found, self.warnings

    def reload(self, config):
        self._do("service.reload", config)
        return self.waiting

    def reopen(self, config=None):
        self._do("log.reopen", config) if config is not None else self._do("service.reopen")

    def reloading(self):
        self._do("reloading")

    def reloaded(self):
        self._do("reloaded", self.reload_of_it.status)

    def hang_up(self):
        """Carry out a reload and return what is logged, with its level."""
        with capturedLogs() as events:
            self.reload_of_it.carry_out()
        return [
            (event["log_level"].name, eventAsText(event, includeTimestamp=False, includeSystem=False))
            for event in events
            if event["log_level"] > LogLevel.debug
        ]


def names(world):
    return [name for name, *_ in world.done]


def test_files_are_opened_anew_before_the_configuration_is_read_and_systemd_is_told_of_begin_and_end():
    world = World()
    world.found = Config(debug_level=3)
    world.hang_up()
    assert world.done == [
        ("reloading",),
        ("log.reopen", Config()),
        ("service.reopen",),
        ("read",),
        ("service.reload", Config(debug_level=3)),
        ("log.reopen", Config(debug_level=3)),
        ("reloaded", world.status),
    ]


def test_the_log_names_the_keys_that_changed_and_not_their_values():
    world = World()
    world.found = Config(token_ttl=77, permissions=frozenset({"vnc"}))
    assert world.hang_up() == [("info", "the configuration was reloaded; changed: :permissions:, :token_ttl:")]


def test_each_reload_is_compared_with_the_one_before():
    world = World()
    world.found = Config(token_ttl=77)
    world.hang_up()
    assert world.hang_up() == [("info", "the configuration was reloaded; changed: nothing")]


def test_keys_whose_change_takes_a_restart_are_a_warning_and_said_again_each_time():
    world = World()
    world.found = Config(port=1, log_system="syslog", token_ttl=77)
    world.waiting = [":port:", ":log:"]
    restart = ("warn", "a restart is needed for what was changed at :port:, :log:")
    assert world.hang_up() == [restart, ("info", "the configuration was reloaded; changed: :token_ttl:")]
    assert world.hang_up() == [restart, ("info", "the configuration was reloaded; changed: nothing")]


def test_warnings_of_the_configuration_are_logged():
    world = World()
    world.warnings = ["f: :prot: is not a key"]
    assert world.hang_up()[0] == ("warn", "f: :prot: is not a key")


def test_what_is_changed_back_before_the_restart_has_not_changed():
    world = World()
    world.found, world.waiting = Config(port=1, token_ttl=77), [":port:"]
    world.hang_up()
    world.found, world.waiting = Config(), []
    assert world.hang_up() == [("info", "the configuration was reloaded; changed: :token_ttl:")]


def test_the_audit_log_is_opened_anew_even_if_the_log_cannot_be():
    world = World()
    world.problems["log.reopen"] = ConfigError("/var/log/one/vnctoken.log cannot be written")
    world.hang_up()
    assert names(world) == ["reloading", "log.reopen", "service.reopen", "reloaded"]


@pytest.mark.parametrize("step", ["read", "service.reload", "log.reopen"])
def test_a_configuration_that_cannot_be_used_is_an_error_in_the_log_and_in_the_status(step):
    world = World()
    world.found = Config(token_ttl=77)
    world.problems[step] = ConfigError("f: :port: is 'x', but a number is expected")
    assert world.hang_up() == [
        ("error", "f: :port: is 'x', but a number is expected; what was read before stays in use")
    ]
    failed = "; the reload at 2026-11-22T12:00:00+00:00 failed: f: :port: is 'x', but a number is expected"
    assert world.done[-1] == ("reloaded", world.status + failed)
    world.problems.clear()
    assert world.hang_up() == [("info", "the configuration was reloaded; changed: :token_ttl:")]
    assert world.done[-1] == ("reloaded", world.status)


def test_a_bug_ends_the_reload_and_not_the_service():
    world = World()
    world.problems["service.reload"] = ZeroDivisionError("hunter2")
    (said,) = world.hang_up()
    assert said[0] == "critical"
    assert "what was read before stays in use" in said[1]
    status = world.done[-1][1]
    assert status.endswith("; the reload at 2026-11-22T12:00:00+00:00 failed: the log says why")


def test_a_service_that_ends_is_not_reloaded():
    world = World()
    world.running = 0
    assert world.hang_up() == []
    assert world.done == []


# The signal.


@pytest.fixture
def hangup():
    before = signal.getsignal(signal.SIGHUP)
    yield Hangup()
    signal.signal(signal.SIGHUP, before)


def test_a_signal_that_comes_before_anybody_can_answer_is_answered_later_and_once(hangup):
    answered = []
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)
    hangup.answer_by(lambda: answered.append(1))
    assert answered == [1]
    signal.raise_signal(signal.SIGHUP)
    assert answered == [1, 1]


def test_without_a_signal_nothing_is_answered(hangup):
    answered = []
    hangup.answer_by(lambda: answered.append(1))
    assert answered == []


# The service.


def configure(service, text):
    file = service.one_location / "etc" / "vnctoken-server.conf"
    lines = [line for line in file.read_text().splitlines() if not line.startswith(("permissions:", ":debug_level:"))]
    file.write_text("\n".join([*lines, text, ""]), encoding="utf-8")


def hang_up(service):
    """Send the signal, and wait until the log has another line about a reload; return the line."""
    logs = [service.log, service.log.with_suffix(".error")]
    pattern = r"(?m)^.*(?:was reloaded;|stays in use).*$"

    def lines():
        return [line for log in logs if log.exists() for line in re.findall(pattern, log.read_text())]

    before = len(lines())
    service.process.process.send_signal(signal.SIGHUP)
    until(lambda: len(lines()) > before)
    return lines()[-1]


def ask(service):
    with xmlrpc.client.ServerProxy(service.url) as portal:
        return portal.one.vm.vnctokenonly("alice:secret", 0)


OFF = "permissions: {vm: {vnctokenonly: false}}"


def test_a_changed_configuration_counts_from_the_next_call_on(service):
    assert ask(service)[2] == 0
    configure(service, OFF)
    assert hang_up(service).endswith("the configuration was reloaded; changed: :permissions:")
    assert ask(service)[2] == 0x0200
    configure(service, "")
    hang_up(service)
    assert ask(service)[2] == 0


def test_the_debug_level_changes_with_it(service):
    configure(service, ":debug_level: 1")
    service.process.process.send_signal(signal.SIGHUP)

    def silent():
        before = service.log.read_text()
        ask(service)
        return service.log.read_text() == before

    until(silent)
    configure(service, ":debug_level: 2")
    hang_up(service)
    before = service.log.read_text().count("one.vm.vnctokenonly")
    ask(service)
    assert service.log.read_text().count("one.vm.vnctokenonly") == before + 1


def test_with_a_wrong_configuration_the_one_before_stays_in_use(service):
    configure(service, OFF)
    hang_up(service)
    configure(service, f"{OFF.replace('false', 'true')}\n:token_ttl: nope")
    file = service.one_location / "etc" / "vnctoken-server.conf"
    line = hang_up(service)
    assert f" ERROR    {file}: :token_ttl: is 'nope', but " in line
    assert line.endswith("; what was read before stays in use")
    assert ask(service)[2] == 0x0200


def test_a_configuration_that_is_gone_lets_nobody_in_who_was_kept_out(service):
    configure(service, OFF)
    hang_up(service)
    file = service.one_location / "etc" / "vnctoken-server.conf"
    aside = file.rename(file.with_name("aside"))
    expected = "there is no such file; a configuration file in YAML is expected; what was read before stays in use"
    assert hang_up(service).endswith(f" ERROR    {file}: {expected}")
    assert ask(service)[2] == 0x0200
    aside.rename(file)
    configure(service, "")
    hang_up(service)
    assert ask(service)[2] == 0


def test_what_takes_a_restart_is_named_and_what_does_not_counts_at_once(service):
    file = service.one_location / "etc" / "vnctoken-server.conf"
    file.write_text(f"{file.read_text().replace(':port: 0', ':port: 1')}{OFF}\n", encoding="utf-8")
    assert hang_up(service).endswith("changed: :permissions:")
    errors = service.log.with_suffix(".error").read_text()
    assert "WARN     a restart is needed for what was changed at :port:\n" in errors
    assert ask(service)[2] == 0x0200


def test_lines_go_to_a_new_file_when_the_old_one_was_renamed(service):
    ask(service)
    aside = service.log.with_name("aside")
    service.log.rename(aside)
    ask(service)
    hang_up(service)
    ask(service)
    until(lambda: "one.vm.vnctokenonly" in service.log.read_text())
    assert aside.read_text().count("one.vm.vnctokenonly") == 2
    assert service.log.read_text().count("one.vm.vnctokenonly") == 1


def test_a_reload_amid_a_call_does_not_disturb_it(tmp_path, slow_oned):  # noqa: F811 (a fixture)
    with (
        vnctoken_server(tmp_path / "one", slow_oned.url) as service,
        call_in_flight(service, slow_oned) as portal,
    ):
        configure(service, "permissions: {vm: {vnctoken: false}}\n:one_xmlrpc_timeout: 3")
        hang_up(service)
        slow_oned.answer()
        ((answer,), _) = xmlrpc.client.loads(portal.getresponse().read())
        assert answer[0] is True


def test_many_signals_lose_no_call_and_the_last_configuration_counts(service):
    for number in range(30):
        configure(service, OFF if number % 2 else "")
        service.process.process.send_signal(signal.SIGHUP)
        assert ask(service)[2] in (0, 0x0200)
    until(lambda: ask(service)[2] == 0x0200)
    assert "CRITICAL" not in service.log.read_text()


def test_a_signal_before_the_service_is_up_does_not_end_it_and_is_carried_out(tmp_path, cloud):
    """Its configuration comes from a pipe, so that the test knows when it is being read."""
    for folder in ("etc", "var"):
        (tmp_path / folder).mkdir()
    pipe = tmp_path / "etc" / "vnctoken-server.conf"
    os.mkfifo(pipe)
    env = {**os.environ, "ONE_LOCATION": str(tmp_path)}
    env.pop("JOURNAL_STREAM", None)
    text = f":port: 0\n:one_xmlrpc: {cloud.url}\n:monitor_listen: none\n"
    with running(sys.executable, "-m", "vnctoken.server", env=env) as process:
        with pipe.open("w") as first:
            process.process.send_signal(signal.SIGHUP)
            first.write(text)
        process.wait_for("listens on")
        with pipe.open("w") as second:
            second.write(f"{text}{OFF}\n")
        log = tmp_path / "var" / "vnctoken.log"
        until(lambda: "the configuration was reloaded; changed: :permissions:\n" in log.read_text())


def test_under_the_journal_it_is_the_same(tmp_path, cloud):
    (tmp_path / "etc").mkdir()
    (tmp_path / "var").mkdir()
    (tmp_path / "etc" / "vnctoken-server.conf").write_text(
        f":port: 0\n:one_xmlrpc: {cloud.url}\n:monitor_listen: none\n", encoding="utf-8"
    )
    env = {**os.environ, "ONE_LOCATION": str(tmp_path), "JOURNAL_STREAM": "8:1"}
    with running(sys.executable, "-m", "vnctoken.server", env=env, ready="listens on") as process:
        process.process.send_signal(signal.SIGHUP)
        process.wait_for(r"^<6>the configuration was reloaded; changed: nothing$")
        assert process.stop() == 0
