"""The HTTP side, in memory: bytes in, bytes out, and a clock that the tests turn."""

from __future__ import annotations

import gc
import re
import xmlrpc.client
from dataclasses import dataclass

import pytest
from callers import entrance, limits
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, eventAsText
from twisted.python.failure import Failure

from vnctoken.auth.proxies import TrustedProxies
from vnctoken.consoles import Console
from vnctoken.httpconnection import FIRST_REQUEST_SECONDS, MAX_HEADER_BYTES, MAX_HEADERS, REQUEST_SECONDS
from vnctoken.httpserver import MAX_REFUSALS, REFUSAL_SECONDS
from vnctoken.rpc import Rpc
from vnctoken.web import RpcSite

LIMIT = 2000
DRAIN_SECONDS = 5
CLIENT = IPv4Address("TCP", "192.0.2.9", 54321)


class Answers:
    """Stands for the XML-RPC side: keeps what it is asked, and answers at once or when the test says so."""

    def __init__(self, *, at_once=True):
        self.at_once = at_once
        self.questions = []
        self.waiting = []
        self.cancelled = 0

    async def answer(self, request):
        body = request.body
        self.questions.append((body, request.client))
        if not self.at_once:
            self.waiting.append(Deferred())
            try:
                return await self.waiting[-1]
            except CancelledError:
                self.cancelled += 1
                raise
        return b"<answer to='%d bytes'/>" % len(body)


class Wire(StringTransport):
    """A connection whose client reads what it is sent, so that a close ends it; unless it is `stuck`."""

    def __init__(self, *, stuck=False, peer=CLIENT):
        super().__init__(peerAddress=peer)
        self.stuck = stuck
        self.ended = False
        self.aborted = False
        self.half_closed = False

    def loseConnection(self):
        super().loseConnection()
        if not self.stuck:
            self.end(ConnectionDone)

    def loseWriteConnection(self):
        self.half_closed = True

    def abortConnection(self):
        self.aborted = True
        self.disconnecting = True
        self.end(ConnectionAborted)

    def end(self, error=ConnectionLost):
        if not self.ended:
            self.ended = True
            self.channel.connectionLost(Failure(error()))


@dataclass
class Client:
    """One connection to the site, seen from the client."""

    wire: Wire

    def send(self, *pieces):
        for piece in filter(None, pieces):
            if self.wire.disconnecting:
                break
            self.wire.channel.dataReceived(piece)

    @property
    def received(self):
        return self.wire.value()

    @property
    def status(self):
        return int(self.received.split(b" ")[1])

    @property
    def headers(self):
        lines = self.received.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
        return dict(line.split(b": ", 1) for line in lines)

    @property
    def body(self):
        return self.received.partition(b"\r\n\r\n")[2]

    @property
    def closed(self):
        return self.wire.disconnecting

    def hang_up(self, error=ConnectionLost):
        self.wire.end(error)


class World:
    """A site, its clock, and what answers behind it."""

    def __init__(self, answers=None, *, max_connections=10):
        self.clock = Clock()
        self.answers = answers or Answers()
        self.site = RpcSite(
            self.answers, self.clock, TrustedProxies([]), max_connections=max_connections, max_request_bytes=LIMIT
        )

    def connect(self, *, stuck=False, peer=CLIENT):
        wire = Wire(stuck=stuck, peer=peer)
        wire.channel = self.site.buildProtocol(CLIENT)
        wire.channel.makeConnection(wire)
        return Client(wire)


def slow_world(**settings):
    return World(Answers(at_once=False), **settings)


@pytest.fixture
def events():
    """Capture the log, and see to it that nothing ends up in it as a failure that nobody handled."""
    with capturedLogs() as captured:
        yield captured
        gc.collect()
    assert [eventAsText(event) for event in captured if "log_failure" in event] == []


def request(body=b"hello", *, verb=b"POST", path=b"/RPC2", fields=(), version=b"1.1"):
    lines = [b"%b %b HTTP/%b" % (verb, path, version), b"Host: localhost", *fields]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


def chunked(*pieces, fields=()):
    head = request(None, fields=(b"Transfer-Encoding: chunked", *fields))
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


def asked(data):
    """Return the client of a site of its own that has sent this, and the bodies that were taken for questions."""
    world = World()
    client = world.connect()
    client.send(data)
    return client, [body for body, _ in world.answers.questions]


def bytewise(data):
    return [data[at : at + 1] for at in range(len(data))]


def answer_bytes(body):
    """Return the whole HTTP answer to a question, with the Date that it had left out."""
    text = b"<answer to='%d bytes'/>" % len(body)
    return b"Content-Type: text/xml; charset=utf-8\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)


# Paths, verbs, types.


@pytest.mark.parametrize(
    "path", [b"/RPC2", b"/RPC2/", b"/RPC2/vnctoken", b"/RPC2x?y=1", b"//RPC2", b"/RPC2?", b"/%52PC2", b"///RPC2/a//b"]
)
@pytest.mark.parametrize("verb", [b"POST", b"GET"])
def test_every_path_that_starts_with_rpc2_is_served_by_post_and_by_get_with_a_body(verb, path):
    client, questions = asked(request(b"<call/>", verb=verb, path=path))
    assert (client.status, questions) == (200, [b"<call/>"])
    assert client.headers[b"Content-Type"] == b"text/xml; charset=utf-8"
    assert client.body == b"<answer to='7 bytes'/>"
    assert client.headers[b"Content-Length"] == b"22"
    assert not client.closed


@pytest.mark.parametrize(
    "path", [b"/", b"//", b"/rpc2", b"/RPC", b"/x/RPC2", b"/xRPC2", b"/?/RPC2", b"/..//RPC", b"http://a/RPC2", b"x"]
)
@pytest.mark.parametrize("verb", [b"POST", b"GET", b"PUT"])
def test_any_other_path_is_not_found(verb, path):
    client, questions = asked(request(verb=verb, path=path))
    assert (client.status, questions) == (404, [])
    assert client.body == b"XML-RPC is at /RPC2\n"
    assert client.headers[b"Content-Type"] == b"text/plain; charset=utf-8"


@pytest.mark.parametrize("verb", [b"PUT", b"OPTIONS", b"DELETE", b"PATCH", b"TRACE", b"post", b"BREW", b"HEAD"])
def test_another_verb_is_not_allowed_and_told_which_ones_are(verb):
    client, questions = asked(request(verb=verb))
    assert (client.status, questions) == (405, [])
    assert client.headers[b"Allow"] == b"GET, POST"
    assert client.body == (b"" if verb == b"HEAD" else b"XML-RPC calls are POSTs\n")


@pytest.mark.parametrize(
    "content_type",
    [
        b"text/xml",
        b"application/json",
        b"multipart/form-data",
        b"multipart/form-data; boundary=x",
        b"application/x-www-form-urlencoded",
        b"text/xml; charset=hunter2",
        b"",
        b"\xff",
    ],
)
@pytest.mark.parametrize("verb", [b"POST", b"GET"])
def test_the_content_type_of_a_request_does_not_count(content_type, verb):
    client, questions = asked(request(b"a=b&c", verb=verb, fields=[b"Content-Type: " + content_type]))
    assert (client.status, questions) == (200, [b"a=b&c"])


@pytest.mark.parametrize("verb", [b"POST", b"GET"])
def test_a_request_without_a_body_is_a_question_without_a_byte(verb):
    client, questions = asked(request(None, verb=verb))
    assert (client.status, questions) == (200, [b""])


def test_the_callers_address_comes_along():
    world = World()
    world.connect().send(request())
    assert world.answers.questions == [(b"hello", "192.0.2.9")]


# Connections that are used again, and bodies in pieces.


def test_a_connection_can_be_used_again_and_again():
    world = World()
    client = world.connect()
    for number in range(5):
        client.wire.clear()
        client.send(request(b"x" * number))
        assert client.received.endswith(answer_bytes(b"x" * number))
        world.clock.advance(REQUEST_SECONDS - 1)
    assert not client.closed


@pytest.mark.parametrize("cut", [lambda data: [data], bytewise])
def test_requests_sent_without_waiting_are_answered_one_after_the_other(cut):
    world = slow_world()
    client = world.connect()
    client.send(*cut(request(b"1") + request(b"2") + request(b"3")))
    for number in range(3):
        assert len(world.answers.questions) == number + 1
        assert client.received.count(b"HTTP/1.1 200") == number
        world.answers.waiting[number].callback(b"answer %d" % number)
    assert client.received.count(b"HTTP/1.1 200") == 3
    assert [body for body, _ in world.answers.questions] == [b"1", b"2", b"3"]
    positions = [client.received.index(b"answer %d" % number) for number in range(3)]
    assert positions == sorted(positions)


def test_who_sends_many_requests_at_once_keeps_nobody_else_waiting():
    """Hundreds have room in what is read of a connection at once."""
    world = World()
    greedy, other, gone = world.connect(), world.connect(), world.connect()
    greedy.send(b"".join(request(b"%d" % number) for number in range(500)))
    gone.send(request(b"a") + request(b"b"))
    gone.hang_up()
    other.send(request(b"other"))
    assert [body for body, _ in world.answers.questions] == [b"0", b"a", b"other"]
    world.clock.advance(0)
    assert [body for body, _ in world.answers.questions[3:]] == [b"%d" % number for number in range(1, 500)]
    assert greedy.received.count(b"HTTP/1.1 200") == 500
    assert not greedy.closed


def test_after_connection_close_the_connection_ends_with_the_answer():
    client, questions = asked(request(b"1", fields=[b"Connection: close"]) + request(b"2"))
    assert client.headers[b"Connection"] == b"close"
    assert client.received.endswith(answer_bytes(b"1"))
    assert (client.closed, questions) == (True, [b"1"])


def test_http_1_0_is_answered_and_closed():
    client, questions = asked(request(b"1", version=b"1.0"))
    assert client.status == 200
    assert client.received.endswith(answer_bytes(b"1"))
    assert (client.closed, questions) == (True, [b"1"])


@pytest.mark.parametrize("cut", [lambda data: [data], bytewise])
def test_a_chunked_body_is_put_together(cut):
    world = World()
    client = world.connect()
    client.send(*cut(chunked(b"<call>", b"x", b"</call>") + request(b"next")))
    world.clock.advance(0)
    assert [body for body, _ in world.answers.questions] == [b"<call>x</call>", b"next"]
    assert client.received.count(b"HTTP/1.1 200") == 2


# How much a request may weigh.


@pytest.mark.parametrize("cut", [lambda data: [data], lambda data: [data[:1000], data[1000:]]])
@pytest.mark.parametrize(
    "data", [request(b"x" * LIMIT), chunked(b"x" * LIMIT), chunked(b"x" * (LIMIT - 1), b"x")], ids=["", "one", "two"]
)
def test_a_body_exactly_at_the_limit_is_taken(data, cut):
    world = World()
    client = world.connect()
    client.send(*cut(data))
    assert client.status == 200
    assert [len(body) for body, _ in world.answers.questions] == [LIMIT]


def assert_too_large(client):
    assert client.status == 413
    assert client.headers[b"Connection"] == b"close"
    assert client.headers[b"Content-Type"] == b"text/plain; charset=utf-8"
    assert client.body == b"a request may have 2000 bytes\n"
    assert client.headers[b"Content-Length"] == b"%d" % len(client.body)


@pytest.mark.parametrize("length", [LIMIT + 1, 10**9, 10**30])
def test_a_length_over_the_limit_is_refused_before_a_byte_of_the_body_has_come(length):
    client, questions = asked(request(None, fields=[b"Content-Length: %d" % length]))
    assert_too_large(client)
    assert questions == []


def test_the_rest_of_a_refused_body_is_thrown_away_so_that_the_client_can_read_the_answer():
    world = World()
    client = world.connect()
    client.send(request(None, fields=[b"Content-Length: %d" % (LIMIT * 3)]))
    client.send(*[b"x" * LIMIT] * 2)
    assert not client.closed
    client.send(b"x" * LIMIT)
    assert client.closed
    assert_too_large(client)
    assert world.answers.questions == []


@pytest.mark.parametrize("pieces", [(b"x" * (LIMIT + 1),), (b"x" * LIMIT, b"x"), (b"x" * LIMIT, b"x" * 999, b"x")])
def test_a_chunked_body_over_the_limit_is_refused(pieces):
    world = World()
    client = world.connect()
    client.send(*bytewise(chunked(*pieces)))
    assert_too_large(client)
    assert client.closed
    assert world.answers.questions == []


def test_a_refused_client_that_goes_on_sending_is_cut_off():
    world = World()
    client = world.connect()
    client.send(request(None, fields=[b"Content-Length: %d" % 10**9]))
    for _ in range(REQUEST_SECONDS - 1):
        world.clock.advance(1)
        client.send(b"x" * 1000)
        assert not client.closed
    world.clock.advance(1)
    assert client.closed
    assert_too_large(client)


def test_who_asks_before_he_sends_too_much_is_not_encouraged():
    head = [b"Expect: 100-continue", b"Content-Length: %d" % (LIMIT + 1)]
    client, questions = asked(request(None, fields=head))
    assert_too_large(client)
    assert questions == []


def test_who_asks_before_he_sends_a_body_within_the_limit_is_told_to_go_on():
    world = World()
    client = world.connect()
    client.send(request(None, fields=[b"Expect: 100-continue", b"Content-Length: %d" % LIMIT]))
    assert client.received == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.wire.clear()
    client.send(b"x" * LIMIT)
    assert client.status == 200


def test_as_many_headers_and_as_much_of_them_as_the_limits_say_are_taken():
    fields = [b"X-%d: y" % number for number in range(MAX_HEADERS - 2)]  # with Host and Content-Length
    assert asked(request(fields=fields))[0].status == 200
    lines = request(fields=[b"X: "]).split(b"\r\n\r\n")[0].split(b"\r\n")
    padding = b"y" * (MAX_HEADER_BYTES - sum(map(len, lines)))
    assert asked(request(fields=[b"X: " + padding]))[0].status == 200


@pytest.mark.parametrize(
    "data",
    [
        request(fields=[b"X-%d: y" % number for number in range(MAX_HEADERS - 1)]),
        request(fields=[b"X-%d: %b" % (number, b"y" * 1000) for number in range(17)]),
        request(path=b"/RPC2" + b"x" * (MAX_HEADER_BYTES // 2), fields=[b"X: " + b"y" * (MAX_HEADER_BYTES // 2)]),
        request(fields=[b"no colon"]),
        request(fields=[b"a b: c"]),
        request(fields=[b"Content-Length: 5"]),
        request(None, fields=[b"Content-Length: x"]),
        request(None, fields=[b"Content-Length: -1"]),
        request(None, fields=[b"Transfer-Encoding: gzip"]),
        request(fields=[b"Transfer-Encoding: chunked"]),
        request(None, fields=[b"Transfer-Encoding: chunked"]) + b"x\r\n",
        b"hello\r\n\r\n",
        b"POST /RPC2\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\r\n\r\n",
    ],
)
def test_what_is_no_request_or_one_with_too_many_headers_is_a_bad_request(data, events):
    client, questions = asked(data)
    assert client.received.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert (client.closed, questions) == (True, [])


@pytest.mark.parametrize("start", [b"POST /RPC2 HTTP/1.1\r\nX: ", b"POST /RPC2"])
@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_a_line_of_the_head_that_is_too_long_is_a_bad_request(start, end):
    client, questions = asked(start + b"y" * (MAX_HEADER_BYTES + 1) + end)
    assert (client.closed, questions) == (True, [])
    assert client.received.startswith(b"HTTP/1.1 4")


def test_a_content_length_of_5000_digits_is_refused():
    client, questions = asked(request(None, fields=[b"Content-Length: " + b"9" * 5000]))
    assert client.status in (400, 413)
    assert (client.closed, questions) == (True, [])


# How long a request may take.


@pytest.mark.parametrize("data", [request(b"x" * 20), chunked(b"x" * 20)])
def test_a_request_that_comes_byte_by_byte_has_its_time_from_the_first_byte_on(data):
    world = World()
    client = world.connect()
    world.clock.advance(REQUEST_SECONDS - 0.1)  # as an idle connection
    for piece in bytewise(data)[: REQUEST_SECONDS // 2]:
        assert not client.closed
        client.send(piece)
        world.clock.advance(2)
    assert client.closed
    assert client.status == 408
    assert client.headers[b"Connection"] == b"close"
    assert client.body == b"a request must arrive within 10 seconds\n"
    assert world.answers.questions == []


def test_a_slow_body_is_cut_off_too():
    world = World()
    client = world.connect()
    client.send(request(None, fields=[b"Content-Length: 100"]))
    for _ in range(REQUEST_SECONDS):
        assert not client.closed
        client.send(b"x")
        world.clock.advance(1)
    assert (client.closed, client.status) == (True, 408)


def test_a_request_that_is_whole_in_the_last_moment_is_answered():
    world = World()
    client = world.connect()
    data = request()
    client.send(data[:-1])
    world.clock.advance(REQUEST_SECONDS - 0.1)
    client.send(data[-1:])
    assert client.status == 200


@pytest.mark.parametrize("first", [b"", request()])
def test_an_idle_connection_is_closed_without_a_word(first):
    world = World()
    client = world.connect()
    client.send(first)
    client.wire.clear()
    world.clock.advance(REQUEST_SECONDS - 0.1)
    assert not client.closed
    world.clock.advance(0.1)
    assert client.closed
    assert client.received == b""


def test_a_request_that_waits_for_oned_is_not_cut_off_and_the_next_one_has_its_full_time():
    world = slow_world()
    client = world.connect()
    client.send(request())
    world.clock.advance(3600)
    assert not client.closed
    world.answers.waiting[0].callback(b"at last")
    assert (client.status, client.body) == (200, b"at last")
    client.wire.clear()
    world.clock.advance(REQUEST_SECONDS - 1)
    client.send(request()[:-1])
    world.clock.advance(REQUEST_SECONDS - 1)
    assert not client.closed
    world.clock.advance(1)
    assert (client.closed, client.status) == (True, 408)


def test_a_request_that_begins_behind_another_has_its_time_from_there_on():
    world = World()
    client = world.connect()
    client.send(request(None, verb=b"GET") + b"POST /RPC2 HTTP/1.1\r\nHost")
    client.wire.clear()
    for _ in range(REQUEST_SECONDS // 2):
        world.clock.advance(2)
        client.send(b"x")
    assert (client.closed, client.status) == (True, 408)


def test_a_line_end_too_many_after_a_body_begins_no_request():
    world = World()
    client = world.connect()
    client.send(request() + b"\r\n")
    client.wire.clear()
    world.clock.advance(REQUEST_SECONDS)
    assert client.closed
    assert client.received == b""


def test_a_client_that_does_not_read_is_cut_off_for_good_a_while_after_its_time():
    world = World()
    client = world.connect(stuck=True)
    client.send(request())
    world.clock.advance(REQUEST_SECONDS)
    assert (client.closed, client.wire.aborted) == (True, False)
    world.clock.advance(60)
    assert client.wire.aborted


@pytest.mark.parametrize(
    "data",
    [
        request(fields=[b"Connection: close"]),
        request(version=b"1.0"),
        request(b"x" * (LIMIT + 1)),
        request(fields=[b"Connection: close"], verb=b"PUT"),
    ],
    ids=["close", "http 1.0", "413", "405"],
)
def test_a_client_that_does_not_read_its_last_answer_is_cut_off_too(data):
    world = World()
    client = world.connect(stuck=True)
    client.send(data)
    assert (client.closed, client.wire.aborted) == (True, False)
    world.clock.advance(600)
    assert client.wire.aborted


# How many connections.


def test_one_connection_too_many_is_told_so_and_there_is_room_again_when_one_ends(events):
    world = World(max_connections=2)
    clients = [world.connect() for _ in range(2)]
    for _ in range(3):
        refused = world.connect()
        assert refused.status == 503
        assert refused.headers[b"Connection"] == b"close"
        assert refused.body == b"too many connections\n"
        assert refused.wire.half_closed
    assert lines(events) == ["2 connections are open (:max_connections:); more are refused"]
    clients[0].hang_up()
    clients.append(world.connect())
    clients[-1].send(request())
    assert clients[-1].status == 200
    assert world.connect().status == 503
    assert len(events) == 2  # it is told again, as it had ended in between


def test_what_a_refused_client_sends_goes_nowhere():
    world = World(max_connections=1)
    world.connect()
    refused = world.connect(stuck=True)
    refused.send(request())
    assert refused.received.count(b"HTTP/1.1") == 1
    refused.hang_up()
    assert world.connect().status == 503
    assert world.answers.questions == []


def test_a_refused_client_has_a_second_to_take_its_answer():
    world = World(max_connections=1)
    world.connect()
    first, second = world.connect(), world.connect()
    world.clock.advance(REFUSAL_SECONDS / 2)
    first.hang_up()
    second.send(request())
    assert not second.closed
    world.clock.advance(REFUSAL_SECONDS / 2)
    assert second.wire.aborted
    assert not first.wire.aborted


def test_of_a_flood_of_clients_few_are_waited_for():
    world = World(max_connections=1)
    world.connect()
    flood = [world.connect() for _ in range(MAX_REFUSALS + 10)]
    assert [client.wire.half_closed for client in flood] == [True] * MAX_REFUSALS + [False] * 10
    assert all(client.closed and client.status == 503 for client in flood[MAX_REFUSALS:])
    world.clock.advance(REFUSAL_SECONDS)
    assert all(client.closed for client in flood)
    assert world.connect().wire.half_closed


def test_connections_that_end_by_our_doing_make_room_too():
    world = World(max_connections=1)
    for _ in range(3):
        client = world.connect()
        client.send(b"nonsense\r\n\r\n")
        assert (client.status, client.closed) == (400, True)


# Clients that leave, and bugs.


@pytest.mark.parametrize("error", [ConnectionDone, ConnectionLost])
def test_when_the_client_leaves_the_work_for_it_is_cancelled(error, events):
    world = slow_world()
    client = world.connect()
    client.send(request())
    assert world.answers.cancelled == 0
    client.hang_up(error)
    assert world.answers.cancelled == 1
    assert client.received == b""
    gc.collect()
    assert events == []


def test_when_the_client_leaves_requests_that_had_to_wait_are_never_begun(events):
    world = slow_world()
    client = world.connect()
    client.send(request(b"1") + request(b"2"))
    client.hang_up()
    assert world.answers.cancelled == 1
    assert len(world.answers.questions) == 1


class Stubborn:
    """Answers although it was cancelled, as work does that is past the point of return."""

    def __init__(self, result):
        self.result = result

    async def answer(self, request):
        try:
            await Deferred()
        except CancelledError:
            if isinstance(self.result, Exception):
                raise self.result from None
        return self.result


def test_an_answer_that_comes_after_the_client_has_left_goes_nowhere(events):
    client = World(Stubborn(b"late")).connect()
    client.send(request())
    client.hang_up()
    assert client.received == b""


def test_a_bug_that_shows_after_the_client_has_left_is_logged():
    with capturedLogs() as events:
        client = World(Stubborn(ZeroDivisionError("hunter2"))).connect()
        client.send(request())
        client.hang_up()
    assert client.received == b""
    assert [event["log_failure"].type for event in events] == [ZeroDivisionError]


class Counting:
    """Stands for the consoles behind the XML-RPC side: counts the tokens that were written."""

    def __init__(self):
        self.asked = 0
        self.written = 0

    async def open(self, caller, vm_id, options):
        self.asked += 1
        await Deferred()
        self.written += 1
        return Console(vm_id, "host", "VNC", 5900, "", "", wss=False, token="f" * 32, ttl=600)


def test_who_comes_by_the_unix_socket_is_a_trusted_proxy_and_nobody_else_passes_for_one():
    world = World()
    for peer in (UNIXAddress(None), object()):
        with capturedLogs() as events:
            client = world.connect(peer=peer)
            client.send(request(fields=[b"X-Forwarded-For: 192.0.2.77"]))
        assert client.received.startswith(b"HTTP/1.1 200" if events == [] else b"HTTP/1.1 500")
    assert world.answers.questions == [(b"hello", "192.0.2.77")]


def lines(events):
    """Return what was logged, without the names of the requests, each of which has its own."""
    texts = [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in events]
    return [re.sub("request=[0-9a-f]{12}", "request=#", text) for text in texts]


def test_the_client_that_leaves_while_oned_is_asked_gets_no_token_and_one_line_in_the_log(events):
    consoles = Counting()
    client = World(Rpc(consoles, entrance(), limits(), Clock())).connect()
    client.send(request(xmlrpc.client.dumps(("alice:secret", 7), "one.vm.vnctoken").encode()))
    assert consoles.asked == 1
    client.hang_up()
    assert (client.received, consoles.written) == (b"", 0)
    gc.collect()
    assert lines(events) == [
        "192.0.2.9 one.vm.vnctoken vm=7 user=alice ms=0.0 request=# cancelled: the client went away"
    ]


def test_the_client_that_leaves_during_a_multicall_gets_no_token_and_one_line_per_call():
    consoles = Counting()
    client = World(Rpc(consoles, entrance(), limits(), Clock())).connect()
    calls = [{"methodName": "one.vm.vnctoken", "params": ["alice:secret", vm_id]} for vm_id in (7, 8, 9)]
    with capturedLogs() as events:
        client.send(request(xmlrpc.client.dumps((calls,), "system.multicall").encode()))
        assert consoles.asked == 3
        client.hang_up()
        gc.collect()
    assert (client.received, consoles.written) == (b"", 0)
    assert lines(events) == [
        f"192.0.2.9 one.vm.vnctoken vm={vm_id} user=alice ms=0.0 request=# cancelled: the client went away"
        for vm_id in (7, 8, 9)
    ]


@pytest.mark.parametrize("at_once", [True, False])
def test_an_unexpected_error_is_a_500_without_its_text_and_the_connection_goes_on(at_once):
    class Broken:
        broken = True

        async def answer(self, request):
            if not at_once:
                await later
            if self.broken:
                raise ZeroDivisionError("hunter2")
            return b"fine"

    later = Deferred()
    world = World(Broken())
    client = world.connect()
    with capturedLogs() as events:
        client.send(request())
        later.callback(None)
    assert (client.status, client.headers[b"Content-Type"]) == (500, b"text/plain; charset=utf-8")
    assert b"internal error\n" in client.body
    assert b"hunter2" not in client.received
    assert b"Zero" not in client.received
    assert [event["log_failure"].type for event in events] == [ZeroDivisionError]

    world.answers.broken = False
    client.wire.clear()
    later = Deferred()
    client.send(request())
    later.callback(None)
    assert (client.status, client.body) == (200, b"fine")


@pytest.mark.parametrize("path", [b"/RPC2?session=alice:hunter2", b"/alice:hunter2"])
def test_what_is_in_the_url_of_a_request_is_not_logged(path):
    with capturedLogs() as events:
        for verb in (b"GET", b"POST", b"PUT", b"OPTIONS", b"BREW", b"HEAD"):
            client, _ = asked(request(verb=verb, path=path))
            assert client.status in (200, 404, 405)
    assert [eventAsText(event) for event in events if "hunter2" in eventAsText(event)] == []


def test_there_is_no_access_log(events):
    asked(request())
    asked(request(path=b"/"))
    asked(request(verb=b"PUT"))
    assert events == []


# The end.


def drain(world):
    return Deferred.fromCoroutine(world.site.drain(DRAIN_SECONDS))


def test_idle_connections_are_closed_at_once_when_the_service_ends():
    world = World()
    clients = [world.connect() for _ in range(3)]
    for client in clients:
        client.send(request())
    drained = drain(world)
    assert [client.closed for client in clients] == [True] * 3
    assert drained.called
    assert world.clock.getDelayedCalls() == []


def test_who_has_just_connected_when_the_service_ends_has_a_moment_to_send_the_request():
    """It is on its way: the client would lose the call."""
    world = World()
    client = world.connect()
    drained = drain(world)
    world.clock.advance(FIRST_REQUEST_SECONDS - 0.1)
    assert not client.closed
    client.send(request())
    assert (client.status, client.closed, drained.called) == (200, True, True)
    assert client.received.endswith(answer_bytes(b"hello"))


def test_who_has_connected_and_says_nothing_is_not_waited_for_longer(events):
    assert FIRST_REQUEST_SECONDS <= 2
    world = World()
    clients = [world.connect() for _ in range(2)]
    clients[0].send(b"\r\n")
    drained = drain(world)
    world.clock.advance(FIRST_REQUEST_SECONDS)
    assert [(client.closed, client.received) for client in clients] == [(True, b"")] * 2
    assert drained.called
    assert events == []


def test_a_request_that_began_in_that_moment_has_the_usual_time():
    world = World()
    client = world.connect()
    drained = drain(world)
    client.send(request()[:-1])
    world.clock.advance(DRAIN_SECONDS - 0.1)
    assert not drained.called
    client.send(request()[-1:])
    assert (client.status, client.closed, drained.called) == (200, True, True)


def test_without_connections_there_is_nothing_to_wait_for():
    assert drain(World()).called


def test_busy_connections_are_closed_after_their_answers():
    world = slow_world()
    waiting, arriving, idle = (world.connect() for _ in range(3))
    idle.send(request(path=b"/nowhere"))
    waiting.send(request())
    arriving.send(request()[:-1])
    drained = drain(world)
    assert [client.closed for client in (waiting, arriving, idle)] == [False, False, True]
    world.clock.advance(DRAIN_SECONDS - 1)
    arriving.send(request()[-1:])
    for answer in world.answers.waiting:
        answer.callback(b"done")
    for client in (waiting, arriving):
        assert (client.status, client.body, client.closed) == (200, b"done", True)
    assert drained.called


def test_a_connection_whose_client_leaves_is_not_waited_for(events):
    world = slow_world()
    client = world.connect()
    client.send(request())
    drained = drain(world)
    assert not drained.called
    client.hang_up()
    assert drained.called
    assert events == []


def test_stragglers_are_cut_off_when_the_time_is_over(events):
    world = slow_world()
    clients = [world.connect() for _ in range(3)]
    for client in clients[:2]:
        client.send(request())
    drained = drain(world)
    world.clock.advance(DRAIN_SECONDS - 0.1)
    assert not drained.called
    assert not clients[0].closed
    world.clock.advance(0.1)
    assert drained.called
    assert [client.wire.aborted for client in clients] == [True, True, False]
    assert world.answers.cancelled == 2
    assert lines(events) == ["2 calls were cut off: they took longer to finish"]


def test_a_request_that_came_behind_another_is_answered_before_the_end():
    world = slow_world()
    client = world.connect()
    client.send(request(None, path=b"/nowhere") + request())
    client.wire.clear()
    drained = drain(world)
    assert not client.closed
    world.clock.advance(0)
    assert len(world.answers.questions) == 1
    world.answers.waiting[0].callback(b"done")
    assert (client.status, client.body, client.closed, drained.called) == (200, b"done", True, True)
