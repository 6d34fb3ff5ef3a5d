"""Tokens, and what becomes of whatever oned says about a console."""

import re
import tempfile
from pathlib import Path

import pytest
from callers import admission, caller, limits
from hypothesis import example, given, settings
from hypothesis import strategies as st
from readers import opens
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from vnctoken.config import Config
from vnctoken.consoles import Consoles, Terms
from vnctoken.errors import ActionError
from vnctoken.rules import ConsoleRules
from vnctoken.tokens import Grant, LiveToken, digest, fingerprint, new_token
from vnctoken.tokens.folder import TokenFolder
from vnctoken.vm import VirtualMachine

TOKEN = "0123456789abcdef" * 2
# printf 0123456789abcdef0123456789abcdef | sha256sum
DIGEST = "3eb1bd439947eb762998e566ccc2e099c791118b2f40579cc4f7da2b5061b7f9"
NOW = 1_795_316_218.5


def test_a_token_is_128_bits_in_characters_that_need_no_encoding():
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(re.fullmatch("[0-9a-f]{32}", token) for token in tokens)
    assert all(len({token[position] for token in tokens}) == 16 for position in range(32))


def test_a_token_is_looked_up_by_its_sha256_and_named_by_the_start_of_that():
    assert digest(TOKEN) == DIGEST
    assert fingerprint(TOKEN) == LiveToken(DIGEST, Grant(7, "h", 5900, NOW, 600)).fingerprint == DIGEST[:8]


def test_a_token_expires_so_many_seconds_after_its_issue_or_never():
    assert Grant(7, "h", 5900, NOW, 600).expires == NOW + 600
    assert Grant(7, "h", 5900, NOW, 0).expires == 0


@pytest.mark.parametrize(
    ("options", "restricted"), [({}, False), ({"single_use": True}, True), ({"client": "203.0.113.9"}, True)]
)
def test_what_only_the_resolver_can_promise_is_a_restriction(options, restricted):
    assert Grant(7, "h", 5900, NOW, 600, "alice", **options).restricted is restricted


# Whatever oned says.


class MemoryOned:
    def __init__(self, vm):
        self.vm = vm

    async def vm_info(self, session, vm_id):
        return self.vm


host_like = st.lists(
    st.sampled_from(
        ["a", "Z", "7", "-", ".", "_", ":", "::", "2001:db8", "127.0.0.1", "%", "[", "]", "/", "#", "\n", " "]
    )
    | st.characters(),
    max_size=12,
).map("".join)
hosts = host_like | st.ip_addresses().map(str) | st.from_regex(r"[a-zA-Z0-9_.-]{1,20}", fullmatch=True) | st.text()
ports = st.integers(0, 70000).map(str) | st.from_regex(r"\s*[0-9]{1,6}\s*") | st.text()


@settings(deadline=None)
@example("unix_socket", "5900")
@example("a\nb: c", "5900")
@example("2001:db8::1", " 5900 ")
@given(hosts, ports)
def test_whatever_host_and_port_a_console_has_websockify_reads_one_well_formed_line(host, port):
    vm = VirtualMachine(
        state=3,
        lcm_state=3,
        graphics_type="VNC",
        listen="",
        port=port,
        password="",
        host=host,
        host_attribute="HISTORY/HOSTNAME",
    )
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "tokens"
        folder = TokenFolder(path, Clock(), lambda: NOW, ttl=600, tokens_per_vm=8)
        assert folder.prepare() == []
        rules = ConsoleRules(states=Config().console_states, ports=range(5900, 65536))
        terms = Terms(ttl=600, ttl_max=600, resolved=False, wss=False)
        consoles = Consoles(admission(MemoryOned(vm)), folder, limits(), rules=rules, terms=terms, now=lambda: NOW)
        results = []
        Deferred.fromCoroutine(consoles.open(caller("alice:secret"), 7)).addBoth(results.append)
        (result,) = results
        if hasattr(result, "token"):
            assert [file.name for file in path.iterdir()] == ["one-7"]
            raw = (path / "one-7").read_bytes()
            comment, line, rest = raw.split(b"\n")
            assert rest == b""
            assert re.fullmatch(rb"# vnctoken \{[ -~]+\}", comment)
            assert re.fullmatch(rb"[0-9a-f]{32}: [A-Za-z0-9_.:-]+:[0-9]{4,5}", line)
            assert opens(path, result.token) == [host, str(int(port.strip()))]
            assert host.lower() != "unix_socket"
            assert 5900 <= int(port.strip()) <= 65535
        else:
            result.trap(ActionError)
            assert list(path.iterdir()) == []
