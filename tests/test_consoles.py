"""Who may have which console, with an oned and a token folder in memory."""

import re
from dataclasses import replace

import pytest
from twisted.internet.defer import CancelledError, Deferred

from vnctoken.config import Config
from vnctoken.consoles import Console, Consoles
from vnctoken.errors import ActionError, AuthorizationError, ErrorCode, NoExistsError, TokenStoreError
from vnctoken.vm import VirtualMachine

CONSOLE_STATES = Config().console_states
RUNNING = VirtualMachine(
    state=3,
    lcm_state=3,
    graphics_type="VNC",
    listen="0.0.0.0",
    port="5900",
    password="s3cr3tpw",
    host="dummy-host-1",
    host_attribute="HISTORY/HOSTNAME",
)


class MemoryOned:
    """Answers with one VM or error; `questions` are those it was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.questions = []

    async def vm_info(self, session, vm_id):
        self.questions.append((session, vm_id))
        if isinstance(self.answer, Exception):
            raise self.answer
        return await self.answer if isinstance(self.answer, Deferred) else self.answer


class MemoryTokens:
    """Remembers tokens."""

    def __init__(self, error=None):
        self.error = error
        self.kept = []

    def put(self, vm_id, token, host, port):
        if self.error is not None:
            raise self.error
        self.kept.append((vm_id, token, host, port))


def opening(answer, *, tokens=None, ports=range(5900, 65536), states=CONSOLE_STATES, wss=False, link=None):  # noqa: PLR0913
    """Return the Deferred of VM 7's console."""
    consoles = Consoles(
        MemoryOned(answer), MemoryTokens() if tokens is None else tokens, states=states, ports=ports, wss=wss, link=link
    )
    return Deferred.fromCoroutine(consoles.open("alice:secret", 7))


def opened(vm=RUNNING, **more):
    """Return VM 7's console, or raise what opening it raises, and check that no token is left then."""
    tokens = MemoryTokens()
    results = []
    opening(vm, tokens=tokens, **more).addBoth(results.append)
    (result,) = results
    if not isinstance(result, Console):
        assert tokens.kept == []
        result.raiseException()
    assert tokens.kept == [(7, result.token, result.host, result.port)]
    return result


def refusal(vm, error=ActionError, **more):
    with pytest.raises(error) as caught:
        opened(vm, **more)
    return str(caught.value)


def test_a_running_vm_has_a_console_and_its_token_is_kept():
    console = opened()
    assert re.fullmatch("[0-9a-f]{32}", console.token)
    assert console == Console(7, "dummy-host-1", "VNC", 5900, "0.0.0.0", "s3cr3tpw", False, console.token)


def test_oned_is_asked_with_the_callers_own_session():
    oned = MemoryOned(RUNNING)
    consoles = Consoles(oned, MemoryTokens(), states={3}, ports=range(5900, 5901), wss=False)
    Deferred.fromCoroutine(consoles.open("alice:a:b", 7))
    assert oned.questions == [("alice:a:b", 7)]


def test_every_console_has_another_token():
    assert len({opened().token for _ in range(100)}) == 100


def test_viewers_are_told_whether_the_proxy_speaks_tls():
    assert [opened(wss=wss).wss for wss in (True, False)] == [True, False]


def test_the_consoles_link_has_its_token_and_never_its_password():
    console = opened(link="https://a/#{id}&{host}&{port}&{path}")
    assert console.url == f"https://a/#7&dummy-host-1&5900&websockify%3Ftoken%3D{console.token}"
    assert "s3cr3tpw" not in console.url
    assert opened().url is None


def test_secrets_are_not_shown_by_accident():
    console = opened(link="https://a/#{token}")
    assert "s3cr3tpw" not in repr(console)
    assert console.token not in repr(console)


@pytest.mark.parametrize("graphics_type", ["VNC", "vnc", "Vnc", " vnc ", "\tVNC\n"])
def test_vnc_may_be_written_in_any_case_and_is_answered_as_stored(graphics_type):
    assert opened(replace(RUNNING, graphics_type=graphics_type)).type == graphics_type


@pytest.mark.parametrize("graphics_type", ["SPICE", "", "VNCS", "V NC", "\uff36\uff2e\uff23"])
def test_other_graphics_have_no_vnc_console(graphics_type):
    message = refusal(replace(RUNNING, graphics_type=graphics_type), NoExistsError)
    assert message == f"Graphics type '{graphics_type}' but 'VNC' expected"
    assert NoExistsError.code == ErrorCode.NO_EXISTS == 0x0400


def test_a_type_of_any_length_is_quoted_in_short():
    message = refusal(replace(RUNNING, graphics_type="x" * 100_000), NoExistsError)
    assert message == f"Graphics type '{'x' * 64}...' but 'VNC' expected"


@pytest.mark.parametrize("lcm_state", sorted(CONSOLE_STATES))
def test_a_vm_has_a_console_wherever_the_hypervisor_runs_the_guest(lcm_state):
    assert opened(replace(RUNNING, lcm_state=lcm_state)).vm_id == 7


@pytest.mark.parametrize(
    ("state", "lcm_state"),
    [(state, 0) for state in (0, 1, 2, 4, 5, 6, 8, 9, 10, 11)]
    + [(state, 3) for state in (0, 1, 2, 4, 5, 6, 8, 9, 10, 11)]
    + [(3, lcm_state) for lcm_state in range(80) if lcm_state not in CONSOLE_STATES],
)
def test_a_vm_in_another_state_has_none(state, lcm_state):
    message = refusal(replace(RUNNING, state=state, lcm_state=lcm_state))
    assert message == f"Unsupported VM state! STATE:{state} LCM_STATE:{lcm_state}"
    assert ActionError.code == ErrorCode.ACTION == 0x0800


def test_the_states_are_configured():
    assert opened(replace(RUNNING, lcm_state=36), states={36}).vm_id == 7
    assert refusal(RUNNING, states={36}) == "Unsupported VM state! STATE:3 LCM_STATE:3"


def test_the_type_is_judged_before_the_state_and_the_state_before_the_target():
    nothing = replace(RUNNING, graphics_type="SPICE", state=1, host="", port="")
    assert "Graphics type" in refusal(nothing, NoExistsError)
    assert "STATE:1" in refusal(replace(nothing, graphics_type="VNC"))
    assert "HISTORY/HOSTNAME" in refusal(replace(nothing, graphics_type="VNC", state=3))
    assert "GRAPHICS/PORT" in refusal(replace(nothing, graphics_type="VNC", state=3, host="a"))


# Hosts

HOSTS = ["dummy-host-1", "node_1.example.org", "NODE", "127.0.0.1", "1", "a.", "_vnc", "h" * 253]
IPV6 = ["2001:db8::1", "::1", "::", "fe80::1", "::ffff:192.0.2.1", "2001:DB8:0:0:0:0:0:1"]


@pytest.mark.parametrize("host", HOSTS + IPV6)
def test_a_host_is_a_name_or_an_address(host):
    assert opened(replace(RUNNING, host=host)).host == host


@pytest.mark.parametrize(
    "host",
    [
        "",
        *["unix_socket", "UNIX_SOCKET", "Unix_Socket"],
        *["a b", "a\tb", "a\nb", "a\n", "a\r", "dummy-host-1 127.0.0.1", "dummy-host-1\nforged: 127.0.0.1", "a\u2028b"],
        *["[2001:db8::1]", "[::1]:22", "::1%lo", "fe80::1%eth0", "fe80::1%", "2001:db8::1:", ":::", ":"],
        *["a:22", "127.0.0.1:22", "a: b", "a/b", "../a", "a#b", "#a", "user@a", "a\\b", "a%20b", "a;b", "a$b", "a\0b"],
        *[
            "-a",
            ".a",
            "-",
            ".",
            "höst",
            "\uff48\uff4f\uff53\uff54",
            "\u0661\u0662\u0667.0.0.1",
            "h" * 254,
            "\uff12\uff10\uff10\uff11::1",
        ],
    ],
)
def test_a_host_that_could_be_anything_else_is_refused(host):
    message = refusal(replace(RUNNING, host=host))
    shown = host if len(host) <= 64 else host[:64] + "..."
    assert message == f"HISTORY/HOSTNAME is '{shown}' but a host name or an IP address expected"


def test_a_refused_host_is_named_by_where_it_was_read():
    message = refusal(replace(RUNNING, host="", host_attribute="MONITORING/VCENTER_ESX_HOST"))
    assert message == "MONITORING/VCENTER_ESX_HOST is '' but a host name or an IP address expected"


# Ports


@pytest.mark.parametrize(
    ("port", "number"), [("5900", 5900), ("65535", 65535), (" 5900\n", 5900), ("05900", 5900), ("5901", 5901)]
)
def test_a_port_is_a_number_in_the_range(port, number):
    console = opened(replace(RUNNING, port=port))
    assert console.port == number
    assert type(console.port) is int


@pytest.mark.parametrize(
    "port",
    [
        *["", " ", "22", "5899", "65536", "0", "-5900", "+5900", "99999", "100000", "005900", "9" * 5000],
        *["5900 127.0.0.1:22", "5900:22", "5900\n22", "5900.0", "0x170c", "5_900", "5 900", "abc"],
        *["\uff15\uff19\uff10\uff10", "\u0665\u0669\u0660\u0660", "²²²²"],
    ],
)
def test_any_other_port_is_refused_with_the_attribute_its_value_and_the_rule(port):
    message = refusal(replace(RUNNING, port=port))
    shown = port if len(port) <= 64 else port[:64] + "..."
    assert message == f"GRAPHICS/PORT is '{shown}' but a number from 5900 to 65535 (:vnc_ports:) expected"


def test_the_ports_are_configured():
    assert opened(replace(RUNNING, port="22"), ports=range(1, 65536)).port == 22
    message = refusal(RUNNING, ports=range(6000, 6001))
    assert message == "GRAPHICS/PORT is '5900' but a number from 6000 to 6000 (:vnc_ports:) expected"


# When something fails


def test_what_oned_refuses_is_refused_in_its_words():
    assert refusal(AuthorizationError("[one.vm.info] no"), AuthorizationError) == "[one.vm.info] no"


def test_without_a_stored_token_there_is_no_console():
    failures = []
    opening(RUNNING, tokens=MemoryTokens(TokenStoreError("full"))).addErrback(failures.append)
    assert failures[0].check(TokenStoreError)


def test_whoever_goes_away_while_oned_is_asked_leaves_no_token():
    asked, tokens, failures = Deferred(), MemoryTokens(), []
    console = opening(asked, tokens=tokens)
    console.addErrback(failures.append)
    console.cancel()
    assert failures[0].check(CancelledError)
    assert tokens.kept == []
