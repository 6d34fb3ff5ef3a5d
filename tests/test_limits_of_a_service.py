"""The limits, with a real vnctoken-server before a real sandbox, and callers at several addresses of loopback."""

import contextlib
import http.client
import re
import time
import xmlrpc.client

import pytest
from conftest import vnctoken_server
from redisservers import redis_server

ALICE, BOB, CAROL = "alice:secret", "bob:secret", "carol:secret"
HERE, THERE, ELSEWHERE, PORTAL = "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.99"
EXEMPT = f":limits_exempt: [{PORTAL}/32]\n"
BOBS, FOR_EVERYBODY = 9, 17


def limited(name, settings):
    """Return a fixture of a vnctoken-server with some limits; each test has users, VMs and addresses of its own."""

    @pytest.fixture(scope="module", name=name)
    def service(tmp_path_factory, cloud):
        with vnctoken_server(tmp_path_factory.mktemp(name), cloud.url, settings + EXEMPT) as running:
            yield running

    return service


calls_limited = limited("calls_limited", ":calls_per_user: 20/min\n:calls_per_vm: 70/hour\n:auth_failures: 1000/min\n")
tokens_limited = limited("tokens_limited", ":tokens_per_user: 2\n:tokens_per_client: 3\n")


def call(service, vm_id, session=ALICE, client=HERE, **asked):
    """Return the answer to a call from an address, for a token unless another method is asked for."""
    arguments = (session, vm_id, *([asked["options"]] if "options" in asked else []))
    body = xmlrpc.client.dumps(arguments, asked.get("method", "one.vm.vnctokenonly"))
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30, source_address=(client, 0))
    with contextlib.closing(connection):
        connection.request("POST", "/RPC2", body, {"Content-Type": "text/xml"})
        return xmlrpc.client.loads(connection.getresponse().read())[0][0]


def let_in(service, times, *args):
    """Return how many of some calls are let in."""
    return sum(call(service, *args)[0] for _ in range(times))


def let_in_at_once(service, times, *args):
    """Return how many of some calls in one request are let in."""
    with xmlrpc.client.ServerProxy(service.url) as server:
        calls = xmlrpc.client.MultiCall(server)
        for _ in range(times):
            calls.one.vm.vnctokenonly(*args)
        return sum(success for success, _, _ in calls())


def refusal(service, *args):
    """Return what a refused call is told."""
    success, message, code = call(service, *args)
    assert (success, code) == (False, 0x2000)
    return message


def wait_as_told(message):
    seconds = int(re.search(r"try again in (\d+) seconds?", message)[1])
    assert 1 <= seconds <= 5
    time.sleep(seconds)


# Calls


def test_a_user_who_calls_too_often_waits_and_nobody_else_does(calls_limited):
    # While these are made, some more may be let in.
    assert 20 <= let_in(calls_limited, 30, 0) < 30
    message = refusal(calls_limited, 20, ALICE, THERE)
    assert re.fullmatch(
        r"Too many calls of the user alice \(:calls_per_user: 20/min\); try again in [1-3] seconds?", message
    )
    assert call(calls_limited, BOBS, BOB)[0]
    wait_as_told(message)
    assert call(calls_limited, 20)[0]
    assert "WARN" in next(line for line in calls_limited.log.read_text().splitlines() if message in line)


def test_whoever_gives_a_users_name_takes_none_of_his_calls(calls_limited):
    for _ in range(21):
        assert call(calls_limited, FOR_EVERYBODY, "carol:wrong", THERE)[2] == 0x0100
    assert call(calls_limited, FOR_EVERYBODY, CAROL)[0]


def test_a_portal_calls_for_everybody_by_one_account_and_a_vm_has_its_calls_whoever_makes_them(calls_limited):
    assert let_in(calls_limited, 75, 1, ALICE, PORTAL) == 70
    message = refusal(calls_limited, 1, "oneadmin:opennebula")
    assert re.fullmatch(r"Too many calls for VM 1 \(:calls_per_vm: 70/hour\); try again in \d\d seconds", message)


def test_an_address_has_its_calls_and_so_have_all_together(tmp_path, cloud):
    settings = ":calls_per_client: 3/hour\n:calls_total: 8/hour\n" + EXEMPT
    with vnctoken_server(tmp_path / "one", cloud.url, settings) as service:
        assert let_in(service, 9, 0, ALICE, THERE) == 3
        assert "calls from 127.0.0.2 (:calls_per_client: 3/hour)" in refusal(service, BOBS, BOB, THERE)
        assert let_in(service, 4, 0, ALICE, PORTAL) == 4
        assert let_in(service, 3, 0, ALICE, ELSEWHERE) == 1
        assert "calls in all (:calls_total: 8/hour)" in refusal(service, 0, ALICE, ELSEWHERE)
        assert "calls in all (:calls_total: 8/hour)" in refusal(service, 0, ALICE, PORTAL)


# Live tokens


def test_a_token_that_is_taken_back_makes_room(tokens_limited):
    assert call(tokens_limited, 0)[0]
    assert call(tokens_limited, 1)[0]
    assert re.fullmatch(
        r"Too many live tokens of the user alice \(:tokens_per_user: 2\); try again in \d+ seconds;"
        " one.vm.vncrevoke takes tokens back",
        refusal(tokens_limited, 20),
    )
    assert call(tokens_limited, 1, method="one.vm.vncrevoke")[1] == 1
    assert call(tokens_limited, 20)[0]


def test_a_token_whose_time_is_over_makes_room_when_it_was_told(tokens_limited):
    assert call(tokens_limited, BOBS, BOB, THERE)[0]
    assert call(tokens_limited, BOBS, BOB, THERE, options={"ttl": 2})[0]
    wait_as_told(refusal(tokens_limited, BOBS, BOB, THERE))
    assert call(tokens_limited, BOBS, BOB, THERE)[0]


def test_calls_that_come_at_once_get_no_more_tokens_than_there_is_room_for(tmp_path, cloud):
    """With an audit log, oned is asked whose a session is before the token is issued; Redis takes its time for it."""
    audited = f":audit_log: {tmp_path}/audit.log\n:tokens_per_user: 2\n"
    with vnctoken_server(tmp_path / "one", cloud.url, audited) as service:
        assert let_in_at_once(service, 8, ALICE, 0) == 2
    with redis_server() as redis:
        kept = f":token_store: redis\n:redis_servers: [127.0.0.1:{redis.port}]\n:tokens_per_user: 2\n"
        with vnctoken_server(tmp_path / "other", cloud.url, kept) as service:
            assert let_in_at_once(service, 8, ALICE, 0) == 2


def test_tokens_are_counted_for_the_address_that_asks_for_them_unless_it_is_a_portals(tokens_limited):
    assert let_in(tokens_limited, 2, FOR_EVERYBODY, CAROL, ELSEWHERE) == 2
    assert call(tokens_limited, FOR_EVERYBODY, "gina:secret", ELSEWHERE)[0]
    message = refusal(tokens_limited, FOR_EVERYBODY, "gina:secret", ELSEWHERE)
    assert "tokens from 127.0.0.3 (:tokens_per_client: 3)" in message
    assert let_in(tokens_limited, 5, FOR_EVERYBODY, "gina:secret", PORTAL) == 5


def test_tokens_in_all_are_those_in_the_store_after_a_restart_and_when_somebody_empties_it(tmp_path, cloud):
    """OpenNebula's proxy empties the folder when it starts."""
    settings = ":tokens_total: 2\n" + EXEMPT
    with vnctoken_server(tmp_path / "one", cloud.url, settings) as service:
        assert let_in(service, 3, 0, ALICE, PORTAL) == 2
    with vnctoken_server(tmp_path / "one", cloud.url, settings) as service:
        assert "tokens in all (:tokens_total: 2)" in refusal(service, BOBS, BOB)
        for file in service.tokens.iterdir():
            file.unlink()
        # Who was refused just now is not looked after again for a moment.
        wait = time.monotonic() + 10
        while not call(service, BOBS, BOB)[0]:
            assert time.monotonic() < wait
            time.sleep(0.1)
