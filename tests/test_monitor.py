"""What load balancers and Prometheus are answered, in memory: bytes in, bytes out."""

from __future__ import annotations

import json

import pytest
from test_web import CLIENT, Client, Wire
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from vnctoken.errors import OnedError
from vnctoken.health import Health
from vnctoken.measures import Vitals
from vnctoken.metrics import Metrics
from vnctoken.monitor import MonitorSite

VITALS = Vitals(lambda: 0, lambda: None, lambda: 0, lambda: 0, lambda: 0, lambda: False)


class World:
    """A monitor's site; oned is whatever the test says."""

    def __init__(self, *, metrics=True, max_connections=10):
        self.asked = 0
        self.error = None
        self.waiting = None
        self.clock = Clock()
        render = Metrics(VITALS).render if metrics else None
        self.site = MonitorSite(
            Health({"oned": self._oned}, self.clock), render, self.clock, max_connections=max_connections
        )

    async def _oned(self):
        self.asked += 1
        if self.waiting is not None:
            await self.waiting
        if self.error is not None:
            raise self.error

    def send(self, path, verb="GET", host="127.0.0.1:2646", fields=(), version="1.1"):
        wire = Wire(peer=CLIENT)
        wire.channel = self.site.buildProtocol(CLIENT)
        wire.channel.makeConnection(wire)
        client = Client(wire)
        hosts = [] if host is None else [f"Host: {host}"]
        client.send("\r\n".join([f"{verb} {path} HTTP/{version}", *hosts, *fields, "", ""]).encode("latin-1"))
        return client


@pytest.fixture
def world():
    return World()


def test_the_service_is_alive_whatever_else_is_the_matter(world):
    world.error = OnedError("oned is down")
    client = world.send("/healthz")
    assert (client.status, client.body) == (200, b"ok\n")
    assert world.asked == 0


def test_a_service_that_is_ready_says_so_in_json(world):
    client = world.send("/readyz")
    assert client.status == 200
    assert client.headers[b"Content-Type"] == b"application/json"
    assert json.loads(client.body) == {"ready": True, "checks": {"oned": {"ok": True, "ms": 0.0}}}


def test_a_service_that_is_not_ready_is_503_and_says_why(world):
    world.error = OnedError("oned refuses connections")
    client = world.send("/readyz")
    assert client.status == 503
    assert json.loads(client.body)["checks"]["oned"]["problem"] == "oned refuses connections"


def test_a_load_balancer_that_asks_often_costs_oned_one_question():
    world = World(max_connections=20)
    assert [world.send("/readyz").status for _ in range(20)] == [200] * 20
    assert world.asked == 1


def test_the_metrics_tell_what_readyz_tells_at_the_same_moment(world):
    assert b"vnctoken_ready 1.0\n" in world.send("/metrics").body
    world.clock.advance(60)
    world.error = OnedError("oned is down")
    body = world.send("/metrics").body
    assert b"vnctoken_ready 0.0\n" in body
    assert b'vnctoken_check_success{check="oned"} 0.0\n' in body


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;q=0.5",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
        ("application/openmetrics-text; version=x", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        (
            "application/openmetrics-text; version=9; escaping=\xff",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ],
)
def test_metrics_come_in_the_format_that_the_scraper_asks_for(world, accept, content_type):
    client = world.send("/metrics", fields=() if accept is None else (f"Accept: {accept}",))
    assert client.status == 200
    assert client.headers[b"Content-Type"] == content_type.encode()
    assert client.body.endswith(b"# EOF\n") == ("openmetrics" in content_type)


def test_without_prometheus_client_the_metrics_say_what_to_install_and_the_rest_works():
    world = World(metrics=False)
    client = world.send("/metrics")
    assert client.status == 501
    assert b"install vnctoken[metrics]" in client.body
    assert [world.send(path).status for path in ("/healthz", "/readyz")] == [200, 200]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_head_is_the_answer_without_its_body(world, path):
    whole, head = world.send(path), world.send(path, "HEAD")
    assert (head.status, head.body) == (200, b"")
    # The numbers among the metrics change from one moment to the next.
    assert abs(int(head.headers[b"Content-Length"]) - len(whole.body)) < 100
    assert int(head.headers[b"Content-Length"]) > 0


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
@pytest.mark.parametrize("verb", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_done_here_but_reading(world, verb, path):
    client = world.send(path, verb)
    assert (client.status, client.headers[b"Allow"]) == (405, b"GET, HEAD")
    assert world.asked == 0


@pytest.mark.parametrize("path", ["/", "/RPC2", "/metrics/", "/healthz/x", "/../metrics", "//healthz", "/Healthz"])
@pytest.mark.parametrize("verb", ["GET", "POST"])
def test_there_is_nothing_else(world, verb, path):
    client = world.send(path, verb)
    assert client.status == 404
    assert b"/healthz, /readyz and /metrics" in client.body


def test_a_query_does_not_matter(world):
    assert world.send("/healthz?from=haproxy").status == 200


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:2646", "localhost", "localhost:2646", "LOCALHOST", "[::1]:2646", "[::1]", "192.0.2.7"],
)
def test_programs_on_this_machine_are_answered(world, host):
    assert world.send("/metrics", host=host).status == 200


def test_a_probe_in_http_1_0_needs_no_host(world):
    assert world.send("/healthz", host=None, version="1.0").status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example:2646", "evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "[", "[::1", "\xff"],
)
@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/"])
def test_a_page_whose_name_was_made_to_lead_here_reads_nothing(world, host, path):
    client = world.send(path, host=host)
    assert client.status == 403
    assert world.asked == 0


def test_of_two_hosts_none_may_be_of_a_stranger(world):
    assert world.send("/metrics", fields=("Host: evil.example",)).status == 403


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/nothing"])
def test_no_page_of_another_site_is_let_read_and_nothing_is_kept(world, path):
    client = world.send(path, fields=("Origin: https://evil.example",))
    assert not [name for name in client.headers if name.lower().startswith(b"access-control")]
    assert client.headers[b"X-Content-Type-Options"] == b"nosniff"
    assert client.headers[b"Cache-Control"] == b"no-store"


def test_a_probe_that_goes_away_does_not_spoil_the_report_of_another(world):
    world.waiting = Deferred()
    first, second = world.send("/readyz"), world.send("/readyz")
    first.hang_up()
    world.waiting.callback(None)
    assert (second.status, world.asked) == (200, 1)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/nothing"])
def test_a_connection_has_one_answer_however_many_questions_come_at_once(world, path):
    client = world.send(f"{path} HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50 + path)
    assert client.received.count(b"HTTP/1.1 ") == 1
    assert client.headers[b"Connection"] == b"close"
    assert client.closed


def test_there_are_at_most_so_many_connections():
    world = World(max_connections=2)
    world.waiting = Deferred()
    with capturedLogs() as events:
        clients = [world.send("/readyz") for _ in range(3)]
    world.waiting.callback(None)
    assert [client.status for client in clients] == [200, 200, 503]
    (event,) = events
    assert event["log_format"].format(**event) == "2 connections are open (at :monitor_listen:); more are refused"
