"""The demo's portal, asked by HTTP as its page asks it. What the page shows is in test_demo_in_a_browser.py."""

import contextlib
import http.client
import json
import sys
import threading
import warnings
from xmlrpc.server import SimpleXMLRPCServer

import pytest
from conftest import START_SECONDS, free_port, running, vnctoken_server
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock

with warnings.catch_warnings():
    # Twisted's own modules use what it has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from vnctoken.sandbox.asking import ANSWER_SECONDS, Cloud, ProblemError

WEBSOCKET = "ws://127.0.0.1:1/websockify"


class Visitor:
    """Somebody's browser: keeps the cookie it is given."""

    def __init__(self, port):
        self._port = port
        self.cookie = None
        self.set_cookie = None

    def exchange(self, verb, path, body=None, content_type="application/json"):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=START_SECONDS)
        headers = {"Content-Type": content_type} | ({"Cookie": self.cookie} if self.cookie else {})
        with contextlib.closing(connection):
            connection.request(verb, path, body, headers)
            answer = connection.getresponse()
            self.set_cookie = answer.getheader("Set-Cookie")
            return answer, answer.read()

    def ask(self, what, **question):
        answer, body = self.exchange("POST", f"/{what}", json.dumps(question))
        return answer.status, json.loads(body)

    def login(self, user, password="secret"):
        answered = self.ask("login", user=user, password=password)
        if self.set_cookie:
            self.cookie = self.set_cookie.split(";")[0]
        return answered


@contextlib.contextmanager
def portal_of(oned, vnctoken, *more):
    args = ("--listen", "127.0.0.1:0", "--oned", oned, "--vnctoken", vnctoken, "--websocket", WEBSOCKET, *more)
    with running(sys.executable, "-m", "vnctoken.sandbox.portal", *args, ready="listens on") as process:
        yield int(process.wait_for(r"portal listens on http://127\.0\.0\.1:(\d+)/").group(1))


@pytest.fixture(scope="module")
def service(cloud, tmp_path_factory):
    with vnctoken_server(tmp_path_factory.mktemp("one"), cloud.url) as running_service:
        yield running_service


@pytest.fixture(scope="module")
def portal_port(cloud, service):
    with portal_of(cloud.url, service.url) as port:
        yield port


@pytest.fixture
def visitor(portal_port):
    return Visitor(portal_port)


def test_a_user_sees_the_vms_that_he_may_use_with_state_and_owner(visitor):
    status, answer = visitor.login("alice")
    assert (status, answer["user"]) == (200, "alice")
    vms = {vm["id"]: vm for vm in answer["vms"]}
    assert list(vms) == sorted(vms)
    assert vms[0] == {"id": 0, "name": "vnc-plain", "owner": "alice", "state": "running"}
    assert (vms[7]["state"], vms[21]["state"], vms[17]["owner"]) == ("poweroff", "migrate", "oneadmin")
    assert not {9, 18} & set(vms), "bob's own, and a VM that is done"
    assert visitor.ask("vms") == (200, answer)


def test_who_is_not_a_user_reads_what_oned_says(visitor):
    message = "[one.vmpool.info] User couldn't be authenticated, aborting call."
    assert visitor.login("alice", "wrong") == (403, {"error": message})
    assert visitor.cookie is None
    assert visitor.ask("vms") == (200, {"user": None})


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(visitor):
    visitor.login("alice")
    attributes = {part.strip().lower() for part in visitor.set_cookie.split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= attributes
    assert "secret" not in visitor.set_cookie


def test_a_console_is_opened_with_the_users_own_session(visitor, service):
    visitor.login("alice")
    status, answer = visitor.ask("console", id=1)
    lines = (service.tokens / "one-1").read_text(encoding="utf-8").splitlines()
    token = next(line for line in lines if not line.startswith("#")).partition(":")[0]
    assert (status, answer) == (
        200,
        {
            "websocket": f"{WEBSOCKET}?token={token}",
            "password": "s3cr3tpw",
            "target": "dummy-host-1:5901",
            "novnc": False,
        },
    )
    assert "one.vm.vnctoken vm=1 user=alice" in service.log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("vm_id", "message"),
    [
        (3, "Graphics type 'SPICE' but 'VNC' expected (0x0400)"),
        (7, "Unsupported VM state! STATE:8 LCM_STATE:0 (0x0800)"),
        (9, "[one.vm.info] User [2] : Not authorized to perform USE VM [9]. (0x0200)"),
    ],
)
def test_a_refusal_is_the_services_own_message(vm_id, message, visitor):
    visitor.login("alice")
    assert visitor.ask("console", id=vm_id) == (409, {"error": message})


def test_nobody_gets_a_console_without_logging_in_nor_after_logging_out(visitor):
    assert visitor.ask("console", id=0) == (401, {"error": "Please log in."})
    visitor.login("alice")
    assert visitor.ask("logout") == (200, {})
    assert visitor.ask("console", id=0) == (401, {"error": "Please log in."})


@pytest.mark.parametrize("vm_id", ["0", None, True, 1.5, [0], -1, 2**31])
def test_what_is_no_vm_number_is_refused(vm_id, visitor):
    visitor.login("alice")
    assert visitor.ask("console", id=vm_id) == (400, {"error": "The number of a VM is expected."})


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [("{}", "text/plain", 415), ("{", "application/json", 400), ("[]", "application/json", 400)],
)
def test_what_is_not_the_pages_json_is_refused(body, content_type, status, visitor):
    answer, text = visitor.exchange("POST", "/vms", body, content_type)
    assert answer.status == status
    assert "JSON" in json.loads(text)["error"]


def test_pages_may_load_from_here_and_connect_to_the_websocket_only(visitor):
    for path in ("/", "/portal.js", "/portal.css"):
        answer, body = visitor.exchange("GET", path)
        assert (answer.status, answer.getheader("X-Frame-Options")) == (200, "DENY")
        policy = answer.getheader("Content-Security-Policy")
        assert policy == f"default-src 'self'; img-src 'self' data:; connect-src 'self' {WEBSOCKET}"
        assert b"https://" not in body, "nothing from a CDN"


def test_a_service_that_is_down_is_named():
    nobody = f"http://127.0.0.1:{free_port()}/RPC2"
    with portal_of(nobody, nobody) as port:
        assert Visitor(port).login("alice") == (502, {"error": "oned does not answer. Is it running?"})


def test_vnctoken_being_down_is_named(cloud):
    with portal_of(cloud.url, f"http://127.0.0.1:{free_port()}/RPC2") as port:
        visitor = Visitor(port)
        visitor.login("alice")
        assert visitor.ask("console", id=0) == (502, {"error": "vnctoken-server does not answer. Is it running?"})


def test_a_service_that_hangs_is_given_up_on():
    reactor = MemoryReactorClock()
    url = "http://127.0.0.1:1/RPC2"
    asked = Deferred.fromCoroutine(Cloud(url, url, reactor).console("alice:secret", 0))
    reactor.advance(ANSWER_SECONDS - 1)
    assert not asked.called
    reactor.advance(1)
    problems = []
    asked.addErrback(problems.append)
    assert problems[0].check(ProblemError)
    assert problems[0].getErrorMessage() == "vnctoken-server does not answer. Is it running?"


def test_what_nobody_thought_of_gets_an_answer_too():
    with SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False) as strange:
        strange.register_function(lambda *_: 7, "one.vmpool.info")
        thread = threading.Thread(target=strange.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{strange.server_address[1]}/RPC2"
        with portal_of(url, url) as port:
            status, answer = Visitor(port).login("alice")
        thread.join()
    assert (status, answer) == (500, {"error": "The portal has made a mistake. Its log says which."})


def test_novnc_is_served_from_where_it_is(cloud, service, tmp_path):
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "rfb.js").write_text("export default 7;\n", encoding="utf-8")
    with portal_of(cloud.url, service.url, "--novnc", tmp_path) as port:
        answer, body = Visitor(port).exchange("GET", "/novnc/core/rfb.js")
        assert (answer.status, body) == (200, b"export default 7;\n")
        assert "javascript" in answer.getheader("Content-Type")
