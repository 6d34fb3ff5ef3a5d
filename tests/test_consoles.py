"""Who may have which console, with an oned and a token folder in memory."""

import re
from dataclasses import replace

import pytest
from callers import admission, caller, limits
from memory import MemoryStore
from outcomes import result_of
from twisted.internet.defer import CancelledError, Deferred

from vnctoken.arguments import Options
from vnctoken.config import Config
from vnctoken.consoles import Console, Consoles, Terms
from vnctoken.errors import (
    ActionError,
    AuthenticationError,
    AuthorizationError,
    ErrorCode,
    NoExistsError,
    OnedError,
    TokenStoreError,
)
from vnctoken.presence import Presence
from vnctoken.rules import ConsoleRules
from vnctoken.tokens import Grant, digest, fingerprint
from vnctoken.vm import VirtualMachine

NOW = 1_795_316_218.5
SERVICE = "serveradmin:serveradmin:login"

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
        answer = self.answer[vm_id] if isinstance(self.answer, dict) else self.answer
        if isinstance(answer, Exception):
            raise answer
        return await answer if isinstance(answer, Deferred) else answer


def consoles_of(oned, tokens, *, ports=range(5900, 65536), states=CONSOLE_STATES, presence=False, **terms):
    rules = ConsoleRules(states=states, ports=ports)
    terms = Terms(**{"ttl": 600, "ttl_max": 3600, "resolved": False, "wss": False} | terms)
    witness = Presence(oned, lambda: SERVICE, rules) if presence else None
    return Consoles(admission(oned), tokens, limits(), rules=rules, terms=terms, now=lambda: NOW, presence=witness)


def opening(answer, *, tokens=None, **more):
    """Return the Deferred of VM 7's console."""
    consoles = consoles_of(MemoryOned(answer), MemoryStore() if tokens is None else tokens, **more)
    return Deferred.fromCoroutine(consoles.open(caller("alice:secret"), 7))


def opened(vm=RUNNING, **more):
    """Return VM 7's console, or raise what opening it raises, and check that no token is left then."""
    tokens = MemoryStore()
    results = []
    opening(vm, tokens=tokens, **more).addBoth(results.append)
    (result,) = results
    if not isinstance(result, Console):
        assert tokens.kept == {}
        result.raiseException()
    assert tokens.kept.keys() == {digest(result.token)}
    assert tokens.grants == [Grant(7, result.host, result.port, NOW, result.ttl, "alice")]
    return result


def refusal(vm, error=ActionError, **more):
    with pytest.raises(error) as caught:
        opened(vm, **more)
    return str(caught.value)


def test_a_running_vm_has_a_console_and_its_token_is_kept():
    console = opened()
    assert re.fullmatch("[0-9a-f]{32}", console.token)
    assert console == Console(7, "dummy-host-1", "VNC", 5900, "0.0.0.0", "s3cr3tpw", False, console.token, 600)


def test_oned_is_asked_with_the_callers_own_session():
    oned = MemoryOned(RUNNING)
    result_of(consoles_of(oned, MemoryStore()).open(caller("alice:a:b"), 7))
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
    opening(RUNNING, tokens=MemoryStore(TokenStoreError("full"))).addErrback(failures.append)
    assert failures[0].check(TokenStoreError)


def test_a_store_that_cannot_be_asked_for_other_vms_tokens_is_told_like_one_that_takes_no_token():
    class Away(MemoryStore):
        async def holders(self, _host, _port):
            raise TokenStoreError("The tokens cannot be read or changed now. Redis is away")

    failures = []
    opening(RUNNING, tokens=Away()).addErrback(failures.append)
    assert failures[0].check(TokenStoreError)
    assert str(failures[0].value) == (
        "Cannot create VNC proxy token. The tokens cannot be read or changed now. Redis is away"
    )


def test_whoever_goes_away_while_oned_is_asked_leaves_no_token():
    asked, tokens, failures = Deferred(), MemoryStore(), []
    console = opening(asked, tokens=tokens)
    console.addErrback(failures.append)
    console.cancel()
    assert failures[0].check(CancelledError)
    assert tokens.kept == {}


# How long, how often, for whom


def granted(options, **terms):
    """Return what a token is good for that was asked for with these options."""
    tokens = MemoryStore()
    result_of(consoles_of(MemoryOned(RUNNING), tokens, **terms).open(caller("alice:secret"), 7, options))
    (grant,) = tokens.grants
    return grant


def test_a_token_lives_as_long_as_configured_and_the_viewer_is_told():
    assert (opened(ttl=60).ttl, opened(ttl=0).ttl) == (60, 0)


def test_a_caller_may_ask_for_a_shorter_or_longer_life_up_to_the_most():
    asked = [granted(Options(ttl=ttl), ttl=600, ttl_max=3600).ttl for ttl in (1, 60, 3600, 3601, 2**31 - 1)]
    assert asked == [1, 60, 3600, 3600, 3600]


def test_tokens_for_one_use_or_one_address_are_for_services_that_can_keep_that():
    grant = granted(Options(single_use=True, client="203.0.113.9"), resolved=True)
    assert (grant.single_use, grant.client) == (True, "203.0.113.9")
    for options in (Options(single_use=True), Options(client="203.0.113.9")):
        oned, tokens = MemoryOned(RUNNING), MemoryStore()
        with pytest.raises(ActionError, match="single_use and client need a resolver"):
            result_of(consoles_of(oned, tokens).open(caller("alice:secret"), 7, options))
        assert (oned.questions, tokens.kept) == ([], {})


@pytest.mark.parametrize(("session", "user"), [("alice:secret", "alice"), ("no-colon", ""), ("a b:c", "a?b")])
def test_a_token_knows_whose_it_is(session, user):
    tokens = MemoryStore()
    result_of(consoles_of(MemoryOned(RUNNING), tokens).open(caller(session), 7))
    assert tokens.grants[0].user == user


# Taking tokens back


def with_tokens(count, answer=RUNNING, vm_id=7):
    """Return consoles, their store, and the tokens of a VM."""
    tokens = MemoryStore()
    consoles = consoles_of(MemoryOned(RUNNING), tokens)
    issued = [result_of(consoles.open(caller("alice:secret"), vm_id)).token for _ in range(count)]
    return consoles_of(MemoryOned(answer), tokens), tokens, issued


def test_whoever_may_open_the_console_takes_all_its_tokens_back():
    consoles, tokens, _ = with_tokens(3)
    other = result_of(
        consoles_of(MemoryOned(replace(RUNNING, port="5901")), tokens).open(caller("bob:secret"), 8)
    ).token
    assert result_of(consoles.revoke(caller("alice:secret"), 7)) == 3
    assert tokens.kept.keys() == {digest(other)}


@pytest.mark.parametrize("called", [str, fingerprint, lambda token: fingerprint(token).upper()])
def test_one_token_is_taken_back_by_itself_or_by_its_fingerprint(called):
    consoles, tokens, (first, second) = with_tokens(2)
    assert result_of(consoles.revoke(caller("alice:secret"), 7, called(first))) == 1
    assert tokens.kept.keys() == {digest(second)}
    assert result_of(consoles.revoke(caller("alice:secret"), 7, called(first))) == 0


@pytest.mark.parametrize("called", ["", "0", "c", lambda token: digest(token)[:7], digest, lambda token: token[:8]])
def test_what_names_no_token_takes_none_back(called):
    consoles, tokens, (token,) = with_tokens(1)
    assert result_of(consoles.revoke(caller("alice:secret"), 7, called(token) if callable(called) else called)) == 0
    assert len(tokens.kept) == 1


def test_the_tokens_of_a_vm_that_is_off_are_taken_back_as_well():
    consoles, tokens, _ = with_tokens(1, replace(RUNNING, state=8, lcm_state=0))
    assert result_of(consoles.revoke(caller("alice:secret"), 7)) == 1
    assert tokens.kept == {}


@pytest.mark.parametrize(
    "error", [AuthenticationError("no"), AuthorizationError("no"), NoExistsError("no"), OnedError("no")]
)
def test_who_may_not_open_the_console_neither_takes_back_nor_sees_its_tokens(error):
    consoles, tokens, (token,) = with_tokens(1, error)
    for asked in (
        consoles.revoke(caller("eve:secret"), 7),
        consoles.revoke(caller("eve:secret"), 7, token),
        consoles.tokens(caller("eve:secret"), 7),
    ):
        with pytest.raises(type(error)):
            result_of(asked)
    assert len(tokens.kept) == 1


def test_the_live_tokens_of_a_vm_are_told():
    consoles, _, issued = with_tokens(2)
    live = result_of(consoles.tokens(caller("alice:secret"), 7))
    assert [one.fingerprint for one in live] == [fingerprint(token) for token in issued]
    assert result_of(consoles.tokens(caller("alice:secret"), 8)) == []


# Two VMs at one host and port

GONE = NoExistsError("[one.vm.info] Error getting virtual machine [7].")


def claimed(seven, *, presence, eight=RUNNING):
    """Open VM 8's console where VM 7's tokens lead, VM 7 being like this now; return VM 7's tokens that are left."""
    tokens = MemoryStore()
    result_of(consoles_of(MemoryOned(RUNNING), tokens).open(caller("alice:secret"), 7))
    result_of(consoles_of(MemoryOned(replace(RUNNING, port="5901")), tokens).open(caller("alice:secret"), 7))
    consoles = consoles_of(MemoryOned({7: seven, 8: eight}), tokens, presence=presence)
    result_of(consoles.open(caller("bob:secret"), 8))
    return [grant.port for grant in tokens.grants if grant.vm_id == 7]


@pytest.mark.parametrize("seven", [GONE, replace(RUNNING, state=8), replace(RUNNING, host="elsewhere")])
def test_an_earlier_vms_tokens_end_when_another_vm_has_its_host_and_port(seven):
    assert claimed(seven, presence=True) == [5901]


def test_two_live_vms_that_claim_one_host_and_port_are_refused():
    with pytest.raises(ActionError) as caught:
        claimed(RUNNING, presence=True)
    assert str(caught.value) == (
        "VM 8 and VM 7 both claim port 5900 of dummy-host-1, so neither console is certain to be the right one; the"
        " cloud's operator has to give one of them another GRAPHICS/PORT or host"
    )


def test_a_vm_with_spice_to_which_sunstone_gave_a_token_is_in_the_way_as_well():
    tokens = MemoryStore()
    result_of(tokens.issue(Grant(7, "dummy-host-1", 5900, NOW, 600)))
    oned = MemoryOned({7: replace(RUNNING, graphics_type="SPICE"), 8: RUNNING})
    with pytest.raises(ActionError, match="VM 8 and VM 7 both claim port 5900"):
        result_of(consoles_of(oned, tokens, presence=True).open(caller("bob:secret"), 8))


@pytest.mark.parametrize("trouble", [OnedError("down"), AuthenticationError("expired"), AuthorizationError("no")])
def test_when_oned_tells_the_service_nothing_the_later_vm_has_the_place(trouble):
    assert claimed(trouble, presence=True) == [5901]


def test_without_a_login_of_the_services_own_the_later_vm_has_the_place():
    assert claimed(RUNNING, presence=False) == [5901]


def test_a_vm_does_not_stand_in_its_own_way():
    consoles, tokens, _ = with_tokens(2)
    result_of(consoles.open(caller("alice:secret"), 7))
    assert len(tokens.kept) == 3


def test_the_other_vm_is_asked_for_with_the_services_own_login():
    tokens = MemoryStore()
    result_of(consoles_of(MemoryOned(RUNNING), tokens).open(caller("alice:secret"), 7))
    oned = MemoryOned({7: GONE, 8: RUNNING})
    result_of(consoles_of(oned, tokens, presence=True).open(caller("bob:secret"), 8))
    assert oned.questions == [("bob:secret", 8), (SERVICE, 7)]
