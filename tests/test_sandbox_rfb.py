"""The sandbox's VNC server over raw bytes: how it greets, whom it lets in, what it sends and what it takes."""

import math
import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from vnctoken.sandbox.pixels import PixelFormat
from vnctoken.sandbox.rfb import (
    MAX_CUT_TEXT,
    MESSAGE_SECONDS,
    PASSWORD_SECONDS,
    RfbFactory,
    authentication_response,
)
from vnctoken.sandbox.screen import Screen
from vnctoken.sandbox.updates import TAKING_SECONDS

NOW = 1_795_316_606.5
VERSION = b"RFB 003.008\n"
WIDTH, HEIGHT = Screen.size
WHOLE = (0, 0, WIDTH, HEIGHT)
SERVER_INIT = (
    struct.pack(">HH", WIDTH, HEIGHT)
    + bytes.fromhex("20 18 00 01 00ff 00ff 00ff 10 08 00 000000")
    + struct.pack(">I", 10)
    + b"VM 7: test"
)


def clock_at(now=NOW):
    clock = Clock()
    clock.advance(now)
    return clock


class Viewer:
    """A viewer in memory; what it has been shown is on its `canvas`."""

    def __init__(self, screen, clock, password=None):
        self.server = RfbFactory(screen, password, clock).buildProtocol(None)
        self.transport = StringTransport()
        self.canvas = Image.new("RGB", Screen.size)
        self.server.makeConnection(self.transport)

    def say(self, data):
        """Send bytes; return what they are answered with."""
        self.transport.clear()
        self.server.dataReceived(data)
        return self.received()

    def received(self):
        """Return what has come since the last look."""
        data = self.transport.value()
        self.transport.clear()
        return data

    def enter(self):
        """Shake hands where no password is asked for."""
        self.say(VERSION + b"\x01\x01")
        return self

    def request(self, box=WHOLE, *, incremental=True):
        """Ask for an update; return the boxes that came, painted on the canvas."""
        return self.show(self.say(request(box, incremental=incremental)))

    def show(self, data):
        """Paint the updates in the data on the canvas; return their boxes."""
        boxes = []
        while data:
            kind, rectangles = struct.unpack_from(">BxH", data)
            assert kind == 0
            data = data[4:]
            for _ in range(rectangles):
                x, y, width, height, encoding = struct.unpack_from(">4Hi", data)
                assert encoding == 0
                end = 12 + 4 * width * height
                self.canvas.paste(Image.frombytes("RGB", (width, height), data[12:end], "raw", "BGRX"), (x, y))
                data = data[end:]
                boxes.append((x, y, x + width, y + height))
        return boxes

    def leave(self):
        self.server.connectionLost(Failure(ConnectionDone()))


def request(box=WHOLE, *, incremental=True):
    left, upper, right, lower = box
    return struct.pack(">BB4H", 3, incremental, left, upper, right - left, lower - upper)


def key(keysym, *, pressed=True):
    return struct.pack(">BB2xI", 4, pressed, keysym)


def pointer(x, y, buttons=0):
    return struct.pack(">BBHH", 5, buttons, x, y)


def pixel_format(data):
    return b"\x00\x00\x00\x00" + data


@pytest.fixture
def clock():
    return clock_at()


@pytest.fixture
def screen(clock):
    return Screen("test", 7, owner="alice", clock=clock)


@pytest.fixture
def viewer(screen, clock):
    return Viewer(screen, clock).enter()


def same(canvas, image):
    return canvas.tobytes() == image.tobytes()


# The handshake


def test_a_screen_without_a_password_lets_everybody_in(screen, clock):
    viewer = Viewer(screen, clock)
    assert viewer.received() == VERSION
    assert viewer.say(VERSION) == b"\x01\x01"
    assert viewer.say(b"\x01") == b"\0\0\0\0"
    assert viewer.say(b"\x00") == SERVER_INIT


def test_the_title_names_the_vm_in_utf_8(clock):
    viewer = Viewer(Screen("größe-東京", 27, owner="alice", clock=clock), clock)
    assert viewer.say(VERSION + b"\x01\x00").endswith(b"\x00\x00\x00\x15VM 27: " + "größe-東京".encode())


@pytest.mark.parametrize("password", ["s3cr3tpw", "x]]>y", "pässwörd-東京", ""])
def test_who_knows_the_password_gets_in(screen, clock, password):
    viewer = Viewer(screen, clock, password)
    assert viewer.say(VERSION) == b"\x01\x02"
    challenge = viewer.say(b"\x02")
    assert len(challenge) == 16
    assert viewer.say(authentication_response(password, challenge)) == b"\0\0\0\0"
    assert viewer.say(b"\x01") == SERVER_INIT


# The challenge is 00 11 22 ... ff. The answers are those of noVNC's own DES and, the first, of OpenSSL's.
@pytest.mark.parametrize(
    ("password", "response"),
    [
        ("s3cr3tpw", "656791dfd0186ac3048db4048826d5ab"),
        ("a<&>b'c", "46b97e7dc7cc5cd6cc9f9951a5260cd5"),
        ("x]]>y", "f298244e9605933fb5ee8090a66c00ad"),
        ("pässwörd", "faa36c2cf74e50546cb5c2019e423987"),
        ("pässwörd-東京", "faa36c2cf74e50546cb5c2019e423987"),
        ("", "74f4ae777aa431e89ca4757b2414f4d7"),
    ],
)
def test_a_password_answers_a_challenge_as_with_other_vnc_programs(password, response):
    assert authentication_response(password, bytes(range(0, 256, 17))).hex() == response


def test_characters_that_a_vnc_password_cannot_have_count_as_question_marks():
    challenge = bytes(16)
    assert authentication_response("東京x", challenge) == authentication_response("??x", challenge)


@pytest.mark.parametrize("password", ["s3cr3tpW", "", "s3cr3tp"])
def test_a_wrong_password_is_refused_with_a_reason_and_the_connection_ends(screen, clock, password):
    viewer = Viewer(screen, clock, "s3cr3tpw")
    challenge = viewer.say(VERSION + b"\x02")[-16:]
    answer = viewer.say(authentication_response(password, challenge) + b"\x01")
    reason = b"Authentication failed: this is not the password of the screen."
    assert answer == struct.pack(">II", 1, len(reason)) + reason
    assert viewer.transport.disconnecting
    assert viewer.say(b"\x01" + request(incremental=False)) == b""


def test_a_recorded_answer_does_not_open_the_screen_again(screen, clock):
    first = Viewer(screen, clock, "s3cr3tpw")
    recorded = authentication_response("s3cr3tpw", first.say(VERSION + b"\x02")[-16:])
    second = Viewer(screen, clock, "s3cr3tpw")
    second.say(VERSION + b"\x02")
    assert second.say(recorded).startswith(b"\0\0\0\x01")


@pytest.mark.parametrize(("password", "offered", "chosen"), [("s3cr3tpw", 2, 1), (None, 1, 2), (None, 1, 0)])
def test_a_security_type_that_was_not_offered_is_refused(screen, clock, password, offered, chosen):
    viewer = Viewer(screen, clock, password)
    assert viewer.say(VERSION) == bytes([1, offered])
    answer = viewer.say(bytes([chosen]) + bytes(16) + request(incremental=False))
    assert answer[:4] == b"\0\0\0\x01"
    assert answer[8:].decode() == f"Security type {chosen} was not offered, only {offered}."
    assert viewer.transport.disconnecting


REFUSAL = b"RFB 3.8 is the only version that this screen speaks."


@pytest.mark.parametrize(
    ("version", "answer"),
    [
        (b"RFB 003.003\n", struct.pack(">II", 0, len(REFUSAL)) + REFUSAL),
        (b"RFB 003.007\n", struct.pack(">BI", 0, len(REFUSAL)) + REFUSAL),
        (b"RFB 003.889\n", struct.pack(">II", 0, len(REFUSAL)) + REFUSAL),
        (b"RFB 004.001\n", struct.pack(">II", 0, len(REFUSAL)) + REFUSAL),
    ],
)
def test_another_version_is_refused_in_its_own_words(screen, clock, version, answer):
    viewer = Viewer(screen, clock)
    assert viewer.say(version) == answer
    assert viewer.transport.disconnecting


def test_what_is_no_vnc_viewer_is_dropped_without_a_word(screen, clock):
    viewer = Viewer(screen, clock)
    assert viewer.say(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
    assert viewer.transport.disconnected


# Deadlines


@pytest.mark.parametrize("said", [b"", VERSION[:5], VERSION, VERSION + b"\x01"])
def test_a_viewer_that_does_not_finish_the_handshake_is_dropped(screen, clock, said):
    viewer = Viewer(screen, clock)
    viewer.say(said)
    clock.advance(MESSAGE_SECONDS - 1)
    assert not viewer.transport.disconnected
    clock.advance(1)
    assert viewer.transport.disconnected


def test_a_byte_now_and_then_does_not_prolong_the_handshake(screen, clock):
    viewer = Viewer(screen, clock)
    for byte in VERSION[:MESSAGE_SECONDS]:
        viewer.say(bytes([byte]))
        clock.advance(1)
    assert viewer.transport.disconnected


def test_somebody_may_take_his_time_to_type_the_password(screen, clock):
    viewer = Viewer(screen, clock, "s3cr3tpw")
    challenge = viewer.say(VERSION + b"\x02")[-16:]
    clock.advance(PASSWORD_SECONDS - 1)
    assert not viewer.transport.disconnected
    assert viewer.say(authentication_response("s3cr3tpw", challenge)) == b"\0\0\0\0"
    clock.advance(MESSAGE_SECONDS - 1)
    assert not viewer.transport.disconnected
    clock.advance(1)
    assert viewer.transport.disconnected, "but the last byte of the handshake is not his to type"


def test_a_password_is_not_awaited_for_ever(screen, clock):
    viewer = Viewer(screen, clock, "s3cr3tpw")
    viewer.say(VERSION + b"\x02")
    clock.advance(PASSWORD_SECONDS)
    assert viewer.transport.disconnected


def test_a_viewer_may_be_silent_for_hours(viewer, clock):
    clock.advance(36_000)
    assert not viewer.transport.disconnected
    assert viewer.request(incremental=False)


def test_a_message_that_was_begun_must_be_finished(viewer, clock):
    viewer.say(key(0x61)[:1])
    clock.advance(MESSAGE_SECONDS - 1)
    assert not viewer.transport.disconnected
    clock.advance(1)
    assert viewer.transport.disconnected


def test_nothing_goes_on_for_a_viewer_that_has_left(screen, clock):
    waiting, reading, entering = Viewer(screen, clock).enter(), Viewer(screen, clock).enter(), Viewer(screen, clock)
    waiting.request(incremental=False)
    waiting.request()
    reading.transport.producer.pauseProducing()
    assert len(clock.getDelayedCalls()) == 3
    for viewer in (waiting, reading, entering):
        viewer.leave()
    assert clock.getDelayedCalls() == []


# Updates


def test_a_full_update_shows_the_whole_screen(viewer, screen):
    viewer.request(incremental=False)
    assert same(viewer.canvas, screen.image)


def test_changes_are_sent_when_there_are_some_and_nothing_else_is(viewer, screen, clock):
    viewer.request(incremental=False)
    assert viewer.request() == []
    clock.advance(1)
    boxes = viewer.show(viewer.received())
    assert same(viewer.canvas, screen.image)
    assert boxes
    assert sum((right - left) * (lower - upper) for left, upper, right, lower in boxes) < WIDTH * HEIGHT / 8


def test_an_update_comes_only_when_it_was_asked_for(viewer, screen, clock):
    viewer.request(incremental=False)
    clock.advance(5)
    screen.key(0x61)
    clock.advance(5)
    assert viewer.received() == b""
    viewer.request()
    assert same(viewer.canvas, screen.image)


def test_no_timer_runs_for_viewers_that_ask_for_nothing(viewer, screen, clock):
    viewer.say(key(0x61) + pointer(1, 1))
    assert screen.typed == "a"
    viewer.request(incremental=False)
    assert clock.getDelayedCalls() == []


def test_what_is_typed_is_shown_before_the_next_frame_would_be(viewer, screen, clock):
    viewer.request(incremental=False)
    viewer.request()
    before = screen.image
    viewer.say(key(0x61) + key(0x61, pressed=False))
    clock.advance(0.03)
    viewer.show(viewer.received())
    assert same(viewer.canvas, screen.image)
    assert not same(viewer.canvas, before)


def test_a_region_is_sent_as_asked_for_and_the_rest_when_it_is(viewer, screen):
    box = (10, 20, 300, 150)
    viewer.request(box, incremental=False)
    assert same(viewer.canvas.crop(box), screen.image.crop(box))
    assert viewer.canvas.crop((0, 150, WIDTH, HEIGHT)).getbbox() is None
    viewer.request(box)
    viewer.request()
    assert same(viewer.canvas, screen.image)


@pytest.mark.parametrize("box", [(600, 380, 700, 500), (0, 399, 65535, 65535), (639, 0, 640, 65000)])
def test_a_region_ends_where_the_screen_does(viewer, screen, box):
    boxes = viewer.request(box, incremental=False)
    assert max(right for _, _, right, _ in boxes) == WIDTH
    assert max(lower for _, _, _, lower in boxes) == HEIGHT
    inside = (box[0], box[1], WIDTH, HEIGHT)
    assert same(viewer.canvas.crop(inside), screen.image.crop(inside))


@pytest.mark.parametrize("box", [(640, 0, 700, 10), (0, 400, 10, 500), (65535, 65535, 131070, 131070), (5, 5, 5, 9)])
@pytest.mark.parametrize("incremental", [True, False])
def test_a_region_without_a_pixel_of_the_screen_is_ignored(viewer, clock, box, incremental):
    assert viewer.request(box, incremental=incremental) == []
    assert clock.getDelayedCalls() == []
    assert viewer.request(incremental=False)


def test_of_two_regions_that_are_asked_for_neither_is_left_out(viewer, screen, clock):
    viewer.request(incremental=False)
    time_of_day, dial = (0, 120, 400, 250), (480, 120, 620, 258)
    viewer.request(time_of_day)
    viewer.request(dial)
    clock.advance(1)
    viewer.show(viewer.received())
    for region in (time_of_day, dial):
        assert same(viewer.canvas.crop(region), screen.image.crop(region))


def test_a_region_that_was_answered_is_no_longer_asked_for(viewer, clock):
    viewer.request(incremental=False)
    clock.advance(1)
    left, upper, right, lower = dial = (480, 120, 620, 258)
    boxes = viewer.request(dial)
    assert boxes
    assert all(left <= box[0] and upper <= box[1] and box[2] <= right and box[3] <= lower for box in boxes)
    viewer.transport.producer.resumeProducing()
    assert viewer.received() == b""


def test_what_was_forgotten_is_sent_again(viewer, screen):
    viewer.request(incremental=False)
    viewer.canvas = Image.new("RGB", Screen.size)
    viewer.request(Screen.identity, incremental=False)
    assert same(viewer.canvas.crop(Screen.identity), screen.image.crop(Screen.identity))


def test_a_viewer_that_does_not_read_gets_one_update_when_it_does_again(viewer, screen, clock):
    viewer.request(incremental=False)
    viewer.transport.producer.pauseProducing()
    for keysym in b"hello":
        viewer.say(key(keysym) + request() + request(incremental=False))
        clock.advance(1)
        assert viewer.received() == b""
    viewer.transport.producer.resumeProducing()
    data = viewer.received()
    assert struct.unpack_from(">BxH", data)[0] == 0
    viewer.show(data)
    assert same(viewer.canvas, screen.image)
    assert len(data) <= 4 * WIDTH * HEIGHT + 4 + 12 * 16


def test_a_viewer_that_does_not_read_is_dropped_in_the_end(viewer, clock):
    viewer.request(incremental=False)
    viewer.transport.producer.pauseProducing()
    clock.advance(TAKING_SECONDS)
    assert viewer.transport.disconnected


def test_one_that_reads_slowly_is_not(viewer, clock):
    for _ in range(3):
        viewer.request(incremental=False)
        viewer.transport.producer.pauseProducing()
        clock.advance(TAKING_SECONDS - 1)
        viewer.transport.producer.resumeProducing()
    clock.advance(TAKING_SECONDS)
    assert not viewer.transport.disconnected


def test_all_viewers_see_the_same_and_may_come_and_go(screen, clock):
    first, second = Viewer(screen, clock).enter(), Viewer(screen, clock).enter()
    first.request(incremental=False)
    second.request(incremental=False)
    first.say(key(0x61))
    second.say(key(0x62) + pointer(20, 300, 1))
    assert screen.typed == "ab"
    for viewer in (first, second):
        viewer.request()
        assert same(viewer.canvas, screen.image)
        viewer.request()
    clock.advance(1)
    for viewer in (first, second):
        viewer.show(viewer.received())
        assert same(viewer.canvas, screen.image)
        viewer.request()
    first.leave()
    clock.advance(1)
    second.show(second.received())
    assert same(second.canvas, screen.image)
    assert first.received() == b""


@pytest.mark.parametrize(
    ("encoded", "raw"),
    [
        ("20 18 00 01 00ff 00ff 00ff 00 08 10 000000", "RGBX"),
        ("20 18 01 01 00ff 00ff 00ff 10 08 00 000000", "XRGB"),
        ("10 10 00 01 001f 003f 001f 0b 05 00 000000", "BGR;16"),
    ],
)
def test_a_viewer_gets_the_pixels_that_it_asked_for(viewer, screen, encoded, raw):
    viewer.say(pixel_format(bytes.fromhex(encoded)))
    data = viewer.say(request((0, 0, 40, 20), incremental=False))
    width, height = struct.unpack_from(">4xHHHHi", data)[2:4]
    sent = Image.frombytes("RGB", (width, height), data[16:], "raw", raw)
    asked = screen.image.crop((0, 0, 40, 20))
    # With 5 bits a channel is at most 8 of 255 away.
    assert all(abs(one - other) <= 8 for one, other in zip(sent.tobytes(), asked.tobytes(), strict=True))


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param("08 08 00 00 0007 0007 0003 00 03 06 000000", id="a colour map"),
        pytest.param("18 18 00 01 00ff 00ff 00ff 10 08 00 000000", id="24 bits"),
        pytest.param("00 00 00 01 00ff 00ff 00ff 10 08 00 000000", id="0 bits"),
    ],
)
def test_a_viewer_that_wants_other_pixels_than_these_is_dropped(viewer, encoded):
    assert viewer.say(pixel_format(bytes.fromhex(encoded)) + request(incremental=False)) == b""
    assert viewer.transport.disconnected


# What viewers send


def test_keys_and_the_pointer_arrive(viewer, screen):
    viewer.say(key(0x48) + key(0x48, pressed=False) + key(0x69) + pointer(300, 200, 0b101))
    assert screen.typed == "Hi"
    other = Screen("test", 7, owner="alice", clock=clock_at())
    other.key(0x48)
    other.key(0x69)
    other.point(300, 200, 0b101)
    assert same(screen.image, other.image)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(struct.pack(">BxHiii", 2, 3, 0, -239, -223), id="encodings"),
        pytest.param(struct.pack(">BxH", 2, 0), id="no encodings"),
        pytest.param(struct.pack(">BxH", 2, 65535) + bytes(4 * 65535), id="many encodings"),
        pytest.param(struct.pack(">B3xI", 6, 0), id="an empty clipboard"),
        pytest.param(struct.pack(">B3xI", 6, 9) + b"clipboard", id="a clipboard"),
        pytest.param(struct.pack(">B3xI", 6, MAX_CUT_TEXT) + bytes(MAX_CUT_TEXT), id="a large clipboard"),
    ],
)
def test_what_a_viewer_may_say_and_the_screen_does_not_need_is_read_past(viewer, screen, message):
    viewer.say(message + key(0x61))
    assert screen.typed == "a"
    assert not viewer.transport.disconnecting


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(struct.pack(">B3xI", 6, MAX_CUT_TEXT + 1), id="too large a clipboard"),
        pytest.param(b"\x01" + bytes(20), id="a message for colour maps"),
        pytest.param(b"\xff" + bytes(20), id="an unknown message"),
    ],
)
def test_a_viewer_that_talks_nonsense_is_dropped_and_the_others_are_not(viewer, screen, clock, message):
    other = Viewer(screen, clock).enter()
    assert viewer.say(message + key(0x61) + request(incremental=False)) == b""
    assert viewer.transport.disconnected
    viewer.leave()
    assert other.request(incremental=False)
    assert screen.typed == ""


SMALL = st.tuples(st.integers(0, 660), st.integers(0, 420), st.integers(0, 40), st.integers(0, 40)).map(
    lambda numbers: (numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3])
)
FORMATS = st.builds(
    struct.Struct(">BB??3H3B3x").pack,
    st.sampled_from([8, 16, 32]),
    st.integers(0, 255),
    st.booleans(),
    st.sampled_from([True, True, True, False]),
    *[st.integers(0, 65535)] * 3,
    *[st.integers(0, 255)] * 3,
)
MESSAGES = st.one_of(
    st.builds(request, SMALL, incremental=st.booleans()),
    st.builds(key, st.integers(0, 2**32 - 1) | st.integers(0x20, 0x7E), pressed=st.booleans()),
    st.builds(pointer, st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 255)),
    st.builds(pixel_format, FORMATS),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5).map(
        lambda encodings: struct.pack(f">BxH{len(encodings)}i", 2, len(encodings), *encodings)
    ),
    st.binary(max_size=20).map(lambda text: struct.pack(">B3xI", 6, len(text)) + text),
    st.binary(max_size=20),
)
OPENINGS = st.sampled_from([VERSION + b"\x01\x01"] * 8 + [b"", VERSION, b"RFB 003.007\n"])
CONVERSATIONS = st.builds(lambda opening, said: opening + b"".join(said), OPENINGS, st.lists(MESSAGES, max_size=8))


def outcome(chunks):
    """Return all that shows what a viewer that sends these bytes has brought about."""
    clock = clock_at()
    screen = Screen("test", 7, owner="alice", clock=clock)
    viewer = Viewer(screen, clock)
    for chunk in chunks:
        viewer.server.dataReceived(chunk)
    clock.advance(1)
    ending = viewer.transport.disconnecting, viewer.transport.disconnected
    viewer.leave()
    assert clock.getDelayedCalls() == []
    return viewer.transport.value(), ending, screen.typed


@settings(deadline=None)
@given(data=CONVERSATIONS, cuts=st.lists(st.integers(0, 200), max_size=8))
def test_whatever_a_viewer_sends_it_does_not_matter_in_which_pieces(data, cuts):
    edges = [0, *sorted(cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(edges)]
    whole = outcome([data])
    assert outcome(pieces) == whole
    assert outcome([bytes([byte]) for byte in data]) == whole


# Pixel formats


def pixels(image, form):
    """Encode an image slowly, pixel by pixel, as RFC 6143 has it."""
    encoded = b""
    for y in range(image.height):
        for x in range(image.width):
            pixel = 0
            for value, maximum, shift in zip(image.getpixel((x, y)), form.maxima, form.shifts, strict=True):
                pixel |= math.floor(value * maximum / 255 + 0.5) << shift
            in_range = pixel % 2**form.bits_per_pixel
            encoded += in_range.to_bytes(form.bits_per_pixel // 8, "big" if form.big_endian else "little")
    return encoded


TRUE_COLOUR = st.builds(
    PixelFormat,
    st.sampled_from([8, 16, 32]),
    st.integers(0, 255),
    st.booleans(),
    st.tuples(*[st.sampled_from([0, 1, 3, 7, 15, 31, 63, 127, 255, 1023, 65535]) | st.integers(0, 65535)] * 3),
    st.tuples(*[st.integers(0, 32) | st.integers(0, 255)] * 3),
)
IMAGES = st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda size: st.binary(min_size=3 * size[0] * size[1], max_size=3 * size[0] * size[1]).map(
        lambda data: Image.frombytes("RGB", size, data)
    )
)


@settings(deadline=None)
@given(image=IMAGES, form=TRUE_COLOUR)
def test_any_true_colour_format_is_encoded_as_the_rfc_says(image, form):
    assert form.encode(image) == pixels(image, form)


@given(form=TRUE_COLOUR)
def test_a_format_is_read_as_it_is_written(form):
    assert PixelFormat.from_bytes(bytes(form)) == form
