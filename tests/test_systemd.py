"""What the service tells systemd, and the socket that systemd hands over: a restart loses no call."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import xmlrpc.client

import pytest
from conftest import NO_LIMITS, START_SECONDS, free_port, ipv6_loopback, running
from twisted.internet.task import Clock

from vnctoken.systemd import RETRY_SECONDS, STATUS_SECONDS, Notifier

CALL = xmlrpc.client.dumps(("alice:secret", 0), "one.vm.vnctoken").encode()
READY = r"^vnctoken-server listens on (http://\S+/RPC2)$"


@contextlib.contextmanager
def systemd_at(address):
    """Provide systemd's end of the notification socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.settimeout(START_SECONDS)
        yield listening


@pytest.fixture
def address(tmp_path):
    return str(tmp_path / "notify")


@pytest.fixture
def systemd(address):
    with systemd_at(address) as listening:
        yield listening


@pytest.fixture
def telling():
    """Return what makes notifiers, and close them in the end."""
    with contextlib.ExitStack() as notifiers:

        def make(*args, **more):
            return notifiers.enter_context(contextlib.closing(Notifier(*args, **more)))

        yield make


def told(systemd):
    """Return the messages that are there, without waiting."""
    systemd.setblocking(False)
    messages = []
    with contextlib.suppress(BlockingIOError):
        while True:
            messages.append(systemd.recv(4096).decode())
    return messages


def fine():
    return "fine"


# What it is told.


def test_it_is_told_when_the_service_is_ready_and_how_it_is(telling, systemd, address):
    telling(address, Clock()).ready(fine)
    assert told(systemd) == ["READY=1\nSTATUS=fine"]


def test_an_abstract_socket_is_written_with_an_at(telling):
    name = f"@vnctoken-{os.getpid()}"
    with systemd_at(f"\0{name[1:]}") as systemd:
        telling(name, Clock()).ready(fine)
        assert told(systemd) == ["READY=1\nSTATUS=fine"]


def test_the_watchdog_has_two_signs_of_life_in_its_time_with_the_status_as_it_is_then(telling, systemd, address):
    clock, words = Clock(), iter(["one", "two", "three"])
    telling(address, clock, watchdog=30).ready(lambda: next(words))
    told(systemd)
    clock.advance(14.9)
    assert told(systemd) == []
    clock.advance(0.1)
    assert told(systemd) == ["WATCHDOG=1\nSTATUS=two"]
    clock.advance(15)
    assert told(systemd) == ["WATCHDOG=1\nSTATUS=three"]


def test_without_a_watchdog_the_status_is_kept_up_to_date_all_the_same(telling, systemd, address):
    clock = Clock()
    telling(address, clock).ready(fine)
    told(systemd)
    clock.advance(STATUS_SECONDS)
    assert told(systemd) == ["STATUS=fine"]


def test_a_reload_is_told_with_the_time_and_its_end(telling, systemd, address):
    notifier = telling(address, Clock())
    notifier.ready(fine)
    told(systemd)
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    notifier.reloaded()
    began, ended = told(systemd)
    assert before <= int(re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", began)[1]) <= time.monotonic_ns() // 1000
    assert ended == "READY=1\nSTATUS=fine"


def test_while_the_service_ends_it_gives_signs_of_life_but_takes_back_nothing(telling, systemd, address):
    clock = Clock()
    notifier = telling(address, clock, watchdog=2)
    notifier.ready(fine)
    told(systemd)
    notifier.stopping()
    clock.advance(1)
    assert told(systemd) == ["STOPPING=1\nSTATUS=finishing the calls in flight", "WATCHDOG=1"]


def test_a_status_of_several_lines_is_no_order_to_systemd(telling, systemd, address):
    telling(address, Clock()).ready(lambda: "bad:\nSTOPPING=1\r\nMAINPID=1")
    assert told(systemd) == ["READY=1\nSTATUS=bad: STOPPING=1 MAINPID=1"]


def test_what_systemd_has_no_room_for_is_told_later_in_its_order(systemd, telling, address):
    clock = Clock()
    notifier = telling(address, clock)
    with contextlib.ExitStack() as noise:
        while fill(noise.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)), address):
            pass
    notifier.ready(fine)
    notifier.reloading()
    notifier.reloaded()
    assert set(told(systemd)) == {"noise"}
    clock.advance(RETRY_SECONDS)
    assert [message.partition("=")[0] for message in told(systemd)] == ["READY", "RELOADING", "READY"]


def fill(sender, address):
    """Send what there is room for, and return whether there was any."""
    sender.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sender.sendto(b"noise", address)
            sent += 1
    return sent > 0


def test_the_service_goes_on_when_systemd_is_gone_and_finds_it_again(telling, tmp_path, address):
    clock = Clock()
    notifier = telling(address, clock, watchdog=2)
    notifier.ready(fine)
    with systemd_at(address) as systemd:
        clock.advance(1)
        assert told(systemd) == ["WATCHDOG=1\nSTATUS=fine"]
    clock.advance(1)
    (tmp_path / "notify").unlink()
    with systemd_at(address) as systemd:
        clock.advance(1)
        assert told(systemd) == ["WATCHDOG=1\nSTATUS=fine"]


# What it has set.


def notified(systemd, environment):
    """Return what is told at the start and a second later."""
    clock = Clock()
    with contextlib.closing(Notifier.from_environment(environment, clock)) as notifier:
        notifier.ready(fine)
        clock.advance(1)
    return told(systemd)


@pytest.mark.parametrize("watchdog_pid", [{}, {"WATCHDOG_PID": str(os.getpid())}])
def test_programs_that_the_service_starts_are_told_nothing_of_systemd(systemd, address, watchdog_pid):
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000", "HOME": "/", **watchdog_pid}
    assert notified(systemd, environment) == ["READY=1\nSTATUS=fine", "WATCHDOG=1\nSTATUS=fine"]
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize(
    "watchdog", [{}, {"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}]
)
def test_a_watchdog_that_is_not_for_this_process_or_is_off_gets_nothing(systemd, address, watchdog):
    assert notified(systemd, {"NOTIFY_SOCKET": address, **watchdog}) == ["READY=1\nSTATUS=fine"]


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_systemd_nothing_is_told_and_no_timer_runs(environment):
    clock = Clock()
    notifier = Notifier.from_environment(environment, clock)
    notifier.ready(fine)
    notifier.reloading()
    notifier.reloaded()
    notifier.stopping()
    assert clock.getDelayedCalls() == []


# The socket that is handed over. It has the number 3, so these are processes.

HAND_OVER = """
import os, sys
number, variables, *command = sys.argv[1:]
os.dup2(int(number), 3)
os.dup2(int(number), 4)
for variable in variables.split():
    name, _, value = variable.partition("=")
    os.environ[name] = value.replace("OWN", str(os.getpid()))
os.execv(command[0], command)
"""
ONE = "LISTEN_PID=OWN LISTEN_FDS=1"


def handed_over(passed, variables, *command):
    """Return a command that is run as systemd does it, with a socket."""
    return (sys.executable, "-c", HAND_OVER, str(passed.fileno()), variables, *command)


def found(passed, variables):
    """Return what the service finds, and which of the variables are left."""
    program = (
        "import os\n"
        "from vnctoken.errors import ConfigError\n"
        "from vnctoken.systemd import inherited_socket\n"
        "try:\n    number = inherited_socket(os.environ)\n    print(number)\n"
        "    print('hidden' if number and not os.get_inheritable(number) else '')\n"
        "except ConfigError as error:\n    print(error)\n    print()\n"
        "print(*(name for name in os.environ if name.startswith('LISTEN_')))\n"
    )
    run = subprocess.run(
        handed_over(passed, variables, sys.executable, "-c", program),
        pass_fds=[passed.fileno()],
        capture_output=True,
        text=True,
        check=True,
    )
    answer, hidden, left = run.stdout.split("\n")[:3]
    assert left == ""
    return answer, hidden


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.mark.parametrize("names", ["", " LISTEN_FDNAMES=vnctoken"])
def test_one_listening_socket_is_taken_also_without_a_name_and_no_program_we_start_gets_it(listening, names):
    assert found(listening, ONE + names) == ("3", "hidden")


@pytest.mark.parametrize("variables", ["HOME=/", "LISTEN_PID=1 LISTEN_FDS=1", "LISTEN_PID=OWN LISTEN_FDS=0"])
def test_what_is_for_another_process_or_nothing_is_not_taken(listening, variables):
    assert found(listening, variables) == ("None", "")


def test_of_several_sockets_none_is_chosen(listening):
    said, _ = found(listening, "LISTEN_PID=OWN LISTEN_FDS=2 LISTEN_FDNAMES=vnctoken:other")
    assert said == (
        "systemd has passed 2 sockets (vnctoken, other), but one socket that listens on TCP is expected, as in"
        " vnctoken.socket"
    )


def a_unix_socket(folder):
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "socket"))
    listening.listen()
    return listening


def an_unbound_socket(folder):
    return socket.socket()


def a_datagram_socket(folder):
    return socket.socket(type=socket.SOCK_DGRAM)


def a_file(folder):
    return (folder / "file").open("w")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (a_unix_socket, "a socket, SOCK_STREAM of AF_UNIX that listens,"),
        (an_unbound_socket, "a socket, SOCK_STREAM of AF_INET that does not listen,"),
        (a_datagram_socket, "a socket, SOCK_DGRAM of AF_INET that does not listen,"),
        (a_file, "what is no socket (Socket operation on non-socket),"),
    ],
)
def test_a_socket_of_another_kind_is_refused_and_named(tmp_path, make, what):
    with make(tmp_path) as passed:
        said, _ = found(passed, ONE)
    assert said == f"systemd has passed {what} but one socket that listens on TCP is expected, as in vnctoken.socket"


# The service with such a socket.


@pytest.fixture
def one(tmp_path, cloud):
    """Make a self-contained installation whose configured port is another one; the sandbox sets no limit."""
    for name in ("etc", "var"):
        (tmp_path / "one" / name).mkdir(parents=True)
    (tmp_path / "one" / "etc" / "vnctoken-server.conf").write_text(
        f":port: {free_port()}\n:one_xmlrpc: {cloud.url}\n:monitor_listen: none\n:recheck_interval: 0\n{NO_LIMITS}"
    )
    return tmp_path / "one"


@contextlib.contextmanager
def activated(one, passed, variables=ONE):
    """Run the service as systemd does, with a socket."""
    env = {**os.environ, "ONE_LOCATION": str(one)}
    env.pop("JOURNAL_STREAM", None)
    command = handed_over(passed, variables, sys.executable, "-m", "vnctoken.server")
    with running(*command, env=env, pass_fds=[passed.fileno()]) as process:
        yield process


def test_the_socket_counts_and_not_the_port_and_the_log_says_so(one, listening):
    port = listening.getsockname()[1]
    with activated(one, listening) as process:
        assert process.wait_for(READY)[1] == f"http://127.0.0.1:{port}/RPC2"
        with xmlrpc.client.ServerProxy(f"http://127.0.0.1:{port}/RPC2") as portal:
            assert portal.one.vm.vnctoken("alice:secret", 0)[0] is True
        assert process.stop() == 0
    said = f"it listens on 127.0.0.1:{port}, as the socket unit says; :host: and :port: do not count\n"
    assert said in (one / "var" / "vnctoken.error").read_text()


def test_an_ipv6_socket_does_as_well(one):
    if not ipv6_loopback():
        pytest.skip("there is no IPv6 loopback address here")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        url = f"http://[::1]:{listening.getsockname()[1]}/RPC2"
        with activated(one, listening) as process:
            assert process.wait_for(READY)[1] == url
            with xmlrpc.client.ServerProxy(url) as portal:
                assert portal.one.vm.vnctoken("alice:secret", 0)[0] is True


def test_sockets_that_cannot_be_taken_are_exit_78(one, listening):
    with activated(one, listening, "LISTEN_PID=OWN LISTEN_FDS=2") as process:
        process.process.wait(START_SECONDS)
        assert process.stop() == 78
    assert process.output.startswith("vnctoken-server: systemd has passed 2 sockets, but one ")


class Portal:
    """Clients that make one call after the other, each on a connection of its own, until they are told to end.

    Every other one takes its time between the connection and the request.
    """

    def __init__(self, port, clients):
        self.answered = 0
        self.lost = []
        self._port = port
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception):
        self.finish()

    def finish(self):
        """Make no more calls, and wait for the answers to those that were made."""
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _call(self, number):
        while not self._end.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=START_SECONDS)
            try:
                connection.connect()
                threading.Event().wait(0.05 * (number % 2))
                connection.request("POST", "/RPC2", CALL, {"Connection": "close"})
                ((answer,), _) = xmlrpc.client.loads(connection.getresponse().read())
            except Exception as error:  # noqa: BLE001 (whatever it is, the call is lost)
                answer = [error]
            finally:
                connection.close()
            with self._lock:
                if answer[0] is True:
                    self.answered += 1
                else:
                    self.lost.append(answer)

    def wait_for_more(self, calls):
        enough, deadline = self.answered + calls, time.monotonic() + START_SECONDS
        while self.answered < enough:
            assert time.monotonic() < deadline, f"no answers any more; lost: {self.lost}"
            threading.Event().wait(0.01)


def test_five_restarts_under_load_lose_no_call(one, listening):
    """Connections wait in the socket's backlog, and those that were accepted are answered before the end."""
    with Portal(listening.getsockname()[1], clients=16) as portal:
        for _ in range(5):
            with activated(one, listening) as process:
                process.wait_for(READY)
                portal.wait_for_more(50)
                process.process.send_signal(signal.SIGTERM)
                assert process.process.wait(START_SECONDS) == 0
        # Those who wait now have to be answered, too.
        with activated(one, listening) as process:
            process.wait_for(READY)
            portal.finish()
    assert portal.lost == []
    assert "cut off" not in (one / "var" / "vnctoken.log").read_text()


def test_systemd_is_told_of_the_start_signs_of_life_a_reload_and_the_end(one, systemd, address, listening):
    variables = f"{ONE} NOTIFY_SOCKET={address} WATCHDOG_USEC=400000 WATCHDOG_PID=OWN"
    with activated(one, listening, variables) as process:
        assert re.match(r"READY=1\nSTATUS=\S", systemd.recv(4096).decode())
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/RPC2"
        with xmlrpc.client.ServerProxy(url) as portal:
            assert portal.one.vm.vnctoken("alice:secret", 0)[0] is True
        assert systemd.recv(4096).startswith(b"WATCHDOG=1\nSTATUS=")
        process.process.send_signal(signal.SIGHUP)
        rest = []
        while not any(message.startswith("READY=1") for message in rest):
            rest.append(systemd.recv(4096).decode())
        assert rest[-2].startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert process.stop() == 0
        assert any(message.startswith("STOPPING=1") for message in told(systemd))
