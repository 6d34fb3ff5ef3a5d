"""The picture that a sandbox VM shows, and which parts of it depend on what."""

import pytest
from PIL import Image, ImageChops, ImageDraw
from twisted.internet.task import Clock

from vnctoken.sandbox.lettering import Letters
from vnctoken.sandbox.pixels import Copy
from vnctoken.sandbox.screen import BACKSPACE, ECHO_SECONDS, FRAME_SECONDS, KEYPAD_ENTER, MAX_TYPED, RETURN, Screen

NOW = 1_795_316_606.5
UNICODE = 0x01000000
WHOLE = (0, 0, *Screen.size)


def screen_at(now=NOW, name="test", vm_id=7, owner="alice", typed=""):
    clock = Clock()
    clock.advance(now)
    screen = Screen(name, vm_id, owner=owner, clock=clock)
    enter(screen, typed)
    return screen


def enter(screen, text):
    for character in text:
        screen.key(ord(character) if ord(character) < 256 else UNICODE + ord(character))


def part(screen, box):
    return screen.image.crop(box).tobytes()


def changed(one, other):
    """Return the smallest box that holds all differences of two pictures, None if there are none."""
    return ImageChops.difference(one, other).getbbox()


@pytest.fixture
def clock():
    clock = Clock()
    clock.advance(NOW)
    return clock


@pytest.fixture
def screen(clock):
    return Screen("test", 7, owner="alice", clock=clock)


# What identifies the VM


def test_the_identity_stays_whatever_happens(screen, clock):
    before = part(screen, Screen.identity)
    enter(screen, "hello")
    screen.key(RETURN)
    enter(screen, "jgpqy|")
    for x, y in ((0, 0), (300, 60), (639, 111), (300, 115)):
        screen.point(x, y, 0xFF)
        clock.advance(3601)
        assert part(screen, Screen.identity) == before


def test_the_identity_is_the_same_for_everybody_who_paints_it():
    assert part(screen_at(0), Screen.identity) == part(screen_at(NOW, typed="x"), Screen.identity)


@pytest.mark.parametrize("other", [{"name": "Test"}, {"vm_id": 8}, {"owner": "bob"}])
def test_another_vm_has_another_identity(other):
    assert part(screen_at(**other), Screen.identity) != part(screen_at(), Screen.identity)


def test_no_two_vms_of_a_row_have_the_same_colour():
    corners = [screen_at(vm_id=vm_id).image.getpixel((2, 2)) for vm_id in range(60)]
    assert len(set(corners)) == 60


@pytest.mark.parametrize(
    "name", ["", "größe-東京", "\U0001f600", "x" * 300, "東" * 300, "a\nb\tc\0", "\u202eabc", "\u0301", "\ud800"]
)
def test_any_name_can_be_shown(name):
    assert screen_at(name=name).image.size == Screen.size


def test_the_title_names_the_vm():
    assert screen_at().title == "VM 7: test"


# What moves


def test_something_moves_with_every_frame_and_the_clock_with_every_second(screen, clock):
    right, left = (484, 122, 616, 254), (0, 122, 400, 254)
    pictures = []
    clock.advance(FRAME_SECONDS / 2)
    for _ in range(12):
        pictures.append(screen.image)
        clock.advance(FRAME_SECONDS)
    assert len({picture.crop(right).tobytes() for picture in pictures}) == 12
    assert 2 <= len({picture.crop(left).tobytes() for picture in pictures}) <= 3


def test_the_clock_shows_the_time_of_day_and_the_date_in_utc():
    day = 86400
    noon = screen_at(day / 2)
    assert changed(noon.image, screen_at(day / 2 + 0.05).image) is None
    assert changed(noon.image, screen_at(day / 2 + day).image), "the date should have changed"


def test_a_picture_stays_what_it_is_while_the_screen_goes_on(screen, clock):
    picture = screen.image
    before = picture.tobytes()
    assert screen.image is picture
    enter(screen, "hello")
    clock.advance(1)
    assert screen.image is not picture
    assert picture.tobytes() == before


# What is typed


@pytest.mark.parametrize(
    ("keysyms", "typed"),
    [
        ([0x48, 0x69], "Hi"),
        ([0x20, 0x7E], " ~"),
        ([0xE4, 0xDF, 0xFF], "äßÿ"),
        ([UNICODE + 0x20AC, UNICODE + 0x6771, UNICODE + 0x1F600], "€東\U0001f600"),
        ([UNICODE + 0x41], "A"),
        ([0xFFB0, 0xFFB9, 0xFFAB, 0xFFAF], "09+/"),
        ([0x61, 0x62, BACKSPACE, 0x63], "ac"),
        ([BACKSPACE, 0x61], "a"),
        ([0x61, RETURN, 0x62], "b"),
        ([0x61, KEYPAD_ENTER], ""),
        pytest.param([0xFFE1, 0x41, 0xFF51, 0xFFBE, 0xFE03], "A", id="shift, left, F1 and AltGr"),
        pytest.param([0, 0x1F, 0x7F, 0x80, 0x9F, 0xAD], "", id="control characters of Latin-1"),
        pytest.param([UNICODE, UNICODE + 0x0A, UNICODE + 0x202E], "", id="control characters of Unicode"),
        pytest.param([UNICODE + 0xD800, UNICODE + 0x110000, 0xFFFFFFFF], "", id="no characters at all"),
    ],
)
def test_keys_type_characters(screen, keysyms, typed):
    for keysym in keysyms:
        screen.key(keysym)
    assert screen.typed == typed
    assert screen.image.size == Screen.size


def test_the_typed_line_depends_on_the_vm_and_on_what_was_typed_alone(screen, clock):
    enter(screen, "the line before, jgpqy|")
    screen.key(RETURN)
    enter(screen, "hellp")
    screen.key(BACKSPACE)
    enter(screen, "o")
    clock.advance(3601)
    screen.point(320, 294, 0xFF)
    other = screen_at(0, name="other", owner="bob", typed="hello")
    assert part(screen, Screen.typed_line) == part(other, Screen.typed_line)


@pytest.mark.parametrize("other", ["hello ", "hellö", "hell東", "hell京", "Hello", ""])
def test_the_typed_line_shows_what_was_typed(other):
    assert part(screen_at(typed="hello"), Screen.typed_line) != part(screen_at(typed=other), Screen.typed_line)


def test_nothing_typed_is_drawn_outside_the_lines(screen):
    before = screen.image
    enter(screen, "W" * 100)
    screen.key(RETURN)
    enter(screen, "東" * 100)
    left, upper, right, lower = changed(before, screen.image)
    assert 24 <= left < right <= 616
    assert 262 <= upper < lower <= 346


def test_of_a_long_line_the_end_is_kept_and_shown():
    digits = "0123456789" * 20
    screen = screen_at(typed=digits)
    assert screen.typed == digits[-MAX_TYPED:]
    assert part(screen, Screen.typed_line) != part(screen_at(typed=digits + "0"), Screen.typed_line)


# The pointer


def test_the_pointer_is_shown_where_it_is(screen):
    before = screen.image
    screen.point(420, 180, 0)
    mark = changed(before.crop((0, 112, 640, 350)), screen.image.crop((0, 112, 640, 350)))
    left, upper, right, lower = mark
    assert (left + right) // 2 == 420
    assert 112 + (upper + lower) // 2 == 180
    assert right - left < 20


def test_the_pressed_buttons_are_shown():
    pictures = set()
    for buttons in range(32):
        screen = screen_at()
        screen.point(420, 180, buttons)
        pictures.add(screen.image.tobytes())
    assert len(pictures) == 32


def test_a_pointer_beyond_the_edge_is_at_the_edge():
    beyond, edge = screen_at(), screen_at()
    beyond.point(65535, 65535, 0xFF)
    edge.point(639, 399, 0xFF)
    assert changed(beyond.image, edge.image) is None


# Those who wait


def test_no_timer_runs_unless_somebody_waits(screen, clock):
    calls = []
    enter(screen, "hello")
    screen.image.load()
    assert clock.getDelayedCalls() == []
    screen.wait(lambda: calls.append(clock.seconds()))
    clock.advance(FRAME_SECONDS)
    assert calls == [NOW + FRAME_SECONDS]
    assert clock.getDelayedCalls() == []


def test_all_who_wait_are_called_once_and_at_the_same_time(screen, clock):
    calls = []
    first, second = (lambda: calls.append(1)), (lambda: calls.append(2))
    screen.wait(first)
    screen.wait(first)
    clock.advance(FRAME_SECONDS * 0.6)
    screen.wait(second)
    assert calls == []
    clock.advance(FRAME_SECONDS * 0.6)
    assert calls == [1, 2]
    clock.advance(1)
    assert calls == [1, 2]


def test_who_no_longer_waits_is_not_called(screen, clock):
    calls = []
    first, second = (lambda: calls.append(1)), (lambda: calls.append(2))
    screen.wait(first)
    screen.wait(second)
    screen.stop_waiting(first)
    screen.stop_waiting(first)
    clock.advance(FRAME_SECONDS)
    assert calls == [2]
    screen.wait(first)
    screen.stop_waiting(first)
    assert clock.getDelayedCalls() == []


def test_keys_and_the_pointer_do_not_have_to_wait_for_the_next_frame(screen, clock):
    calls = []
    screen.wait(lambda: calls.append(screen.typed))
    screen.key(0x61)
    clock.advance(ECHO_SECONDS)
    assert calls == ["a"]


def test_a_pointer_that_moves_all_the_time_does_not_put_the_picture_off(screen, clock):
    calls = []
    screen.wait(lambda: calls.append(clock.seconds() - NOW))
    for x in range(100):
        screen.point(x, 200, 0)
        clock.advance(0.001)
    assert calls == [pytest.approx(ECHO_SECONDS, abs=0.0015)]


# Letters and copies


def test_characters_that_the_font_lacks_are_told_apart_and_have_a_width():
    letters = Letters(40, (255, 255, 255))
    pictures = set()
    for character in "äö東京\U0001f600\U0001f601":
        image = Image.new("RGB", (100, 60))
        letters.write(ImageDraw.Draw(image), 5, 50, character)
        pictures.add(image.tobytes())
        left, _, right, _ = image.getbbox()
        assert left >= 5
        assert right <= 5 + letters.width(character)
    assert len(pictures) == 6


def test_a_text_is_as_wide_as_its_parts():
    letters = Letters(40, (255, 255, 255))
    assert letters.width("") == 0
    assert letters.width("ab東京cd") == pytest.approx(
        letters.width("ab") + letters.width("東京") + letters.width("cd"), abs=2
    )


def test_a_copy_follows_a_picture_by_its_changes():
    one = Image.new("RGB", (100, 80), (0, 0, 0))
    other = one.copy()
    other.putpixel((3, 4), (0, 0, 1))
    other.putpixel((90, 70), (255, 0, 0))
    copy = Copy((100, 80))
    whole = (0, 0, 100, 80)
    assert sum((right - left) * (lower - upper) for left, upper, right, lower in copy.changes(one, whole)) == 8000
    assert copy.changes(one, whole) == []
    assert copy.changes(other, (0, 0, 50, 80)) == [(3, 4, 4, 5)]
    assert copy.changes(other, whole) == [(90, 70, 91, 71)]
    copy.forget((10, 10, 20, 12))
    assert copy.changes(other, (0, 0, 15, 80)) == [(10, 10, 15, 12)]
    assert copy.changes(other, whole) == [(15, 10, 20, 12)]
