"""`make demo` as the person sees it who clicks "Console": in Chromium, up to the pixels of the VM's screen."""

import contextlib
import json
import re
import signal
import sys

import pytest
from conftest import free_port, running, tokens_in, vnctoken_server
from screens import vnc_server
from twisted.internet.task import Clock

from vnctoken.sandbox.cloud import demo_cloud
from vnctoken.sandbox.screen import Screen

pytest_plugins = ("browsing",)

CLOUD = demo_cloud()
REFUSED_CALL = r"Failed to load resource: the server responded with a status of (403|409)"
NO_CONNECTION = r"WebSocket|Failed when connecting|Connection closed"


@contextlib.contextmanager
def demo(*options):
    """Run the demo for the time of a block; the value is the portal's address."""
    with running(sys.executable, "-m", "vnctoken.sandbox.demo", *options) as process:
        process.wait_for("Ctrl-C ends it", seconds=60)
        try:
            yield process.wait_for(r"The portal is at (http://\S+)").group(1)
        finally:
            process.process.send_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def portal():
    with demo() as address:
        yield address


@pytest.fixture
def alice(tab, portal):
    """Open the portal and log alice in."""
    return logged_in(tab, portal)


def logged_in(tab, portal, user="alice"):
    tab.page.goto(portal)
    tab.page.get_by_label("User").fill(user)
    tab.page.get_by_label("Password", exact=True).fill("secret")
    tab.page.get_by_role("button", name="Log in").click()
    tab.page.get_by_role("heading", name="Virtual machines").wait_for()
    return tab


def open_console(tab, vm_id):
    tab.page.get_by_role("button", name=f"Console of VM {vm_id},").click()


def screen_of(vm_id):
    """Return the screen of a VM as it should be, at some moment."""
    guest = CLOUD.guest(vm_id)
    return Screen(guest.name, vm_id, owner=guest.owner.name, clock=Clock())


def part(picture, box):
    return picture.crop(box).tobytes()


def wait_for_screen(tab, vm_id):
    """Wait until the browser shows the VM's screen: its name, id and colour, pixel by pixel."""
    screen = screen_of(vm_id)
    expected = part(screen.image, screen.identity)
    return tab.wait_for_picture(
        lambda picture: picture.size == screen.size and part(picture, screen.identity) == expected,
        f"the screen of VM {vm_id}",
    )


def alert(tab):
    return tab.page.get_by_role("alert").inner_text()


def test_one_click_shows_the_screen_and_what_is_typed_arrives(alice):
    open_console(alice, 0)
    wait_for_screen(alice, 0)
    alice.page.get_by_text("Connected").wait_for()
    alice.page.keyboard.type("Hello, World")
    expected = screen_of(0)
    for character in "Hello, World":
        expected.key(ord(character))
    alice.wait_for_picture(
        lambda picture: part(picture, expected.typed_line) == part(expected.image, expected.typed_line),
        "what was typed",
    )


def test_the_picture_moves(alice):
    open_console(alice, 2)
    first = wait_for_screen(alice, 2).tobytes()
    alice.wait_for_picture(lambda picture: picture.tobytes() != first, "another picture")


def test_the_pointer_arrives(alice):
    open_console(alice, 28)
    before = wait_for_screen(alice, 28)
    canvas = alice.page.locator("canvas").bounding_box()
    alice.page.mouse.move(canvas["x"] + canvas["width"] * 0.25, canvas["y"] + canvas["height"] * 0.35)
    around = (150, 130, 170, 150)
    alice.wait_for_picture(lambda picture: part(picture, around) != part(before, around), "the pointer's mark")


def test_a_screens_password_is_handed_over_without_asking(alice):
    open_console(alice, 1)
    wait_for_screen(alice, 1)
    assert not alice.page.get_by_label("Password of the screen").is_visible()
    assert not any("s3cr3tpw" in url for url in (*alice.requested, *alice.websockets, alice.page.url))


def test_a_screens_password_may_have_umlauts(alice):
    open_console(alice, 27)
    wait_for_screen(alice, 27)


def test_each_console_shows_its_own_vm(open_tab, portal):
    windows = {}
    for vm_id in (0, 5, 20):
        windows[vm_id] = logged_in(open_tab(), portal)
        open_console(windows[vm_id], vm_id)
    for vm_id, window in windows.items():
        wait_for_screen(window, vm_id)


def test_the_next_console_takes_the_place_of_the_one_before(alice):
    open_console(alice, 0)
    wait_for_screen(alice, 0)
    alice.page.get_by_role("button", name="Console of VM 5,").click()
    wait_for_screen(alice, 5)
    assert alice.page.locator("canvas").count() == 1


def test_a_token_opens_its_own_vm_whatever_the_page_was_asked_for(alice):
    """The page asks for VM 5 and is given a token of VM 0: what is shown is VM 0, by its name and colour."""
    alice.page.route("**/console", lambda route: route.continue_(post_data=json.dumps({"id": 0})))
    open_console(alice, 5)
    wait_for_screen(alice, 0)


def test_a_wrong_token_is_a_clear_message_and_no_black_screen(alice):
    alice.tolerate(NO_CONNECTION)

    def forge(route):
        answer = route.fetch().json()
        route.fulfill(json=answer | {"websocket": re.sub("token=.*", "token=" + "0" * 32, answer["websocket"])})

    alice.page.route("**/console", forge)
    open_console(alice, 0)
    alice.wait_for_text("The console cannot be reached: its token is not valid any more")
    assert not alice.page.locator("#screen").is_visible()
    alice.page.unroute("**/console")
    alice.page.get_by_role("button", name="Try again").click()
    wait_for_screen(alice, 0)
    assert not alice.page.get_by_role("alert").is_visible()


@pytest.mark.parametrize(
    ("vm_id", "message"),
    [
        (7, "VM 7: Unsupported VM state! STATE:8 LCM_STATE:0 (0x0800)"),
        (3, "VM 3: Graphics type 'SPICE' but 'VNC' expected (0x0400)"),
    ],
)
def test_a_refusal_is_shown_in_the_services_own_words(vm_id, message, alice):
    alice.tolerate(REFUSED_CALL)
    open_console(alice, vm_id)
    alice.wait_for_text(message)
    assert alert(alice) == message
    assert not alice.page.locator("#screen").is_visible()


def test_somebody_elses_vm_is_refused_in_oneds_words(alice):
    alice.tolerate(REFUSED_CALL)
    assert alice.page.get_by_role("button", name="Console of VM 9,").count() == 0
    alice.page.get_by_label("Another VM, by its number").fill("9")
    alice.page.keyboard.press("Enter")
    alice.wait_for_text("VM 9: [one.vm.info] User [2] : Not authorized to perform USE VM [9]. (0x0200)")


def test_bob_has_his_own_list(tab, portal):
    logged_in(tab, portal, "bob")
    assert tab.page.get_by_role("row", name="bobs-own").get_by_text("running").count() == 1
    assert tab.page.get_by_role("row", name="vnc-plain").count() == 0
    open_console(tab, 9)
    wait_for_screen(tab, 9)


def test_a_wrong_password_is_told_and_the_next_try_may_succeed(tab, portal):
    tab.tolerate(REFUSED_CALL)
    tab.page.goto(portal)
    tab.page.get_by_label("User").fill("alice")
    tab.page.get_by_label("Password", exact=True).fill("wrong")
    tab.page.keyboard.press("Enter")
    tab.wait_for_text("User couldn't be authenticated")
    logged_in(tab, portal)
    assert not tab.page.get_by_role("alert").is_visible()


def test_reloading_keeps_the_login_and_logging_out_ends_it(alice, portal):
    alice.page.reload()
    alice.page.get_by_role("heading", name="Virtual machines").wait_for()
    alice.page.get_by_role("button", name="Log out").click()
    alice.page.get_by_role("heading", name="Log in").wait_for()
    alice.page.reload()
    alice.page.get_by_role("heading", name="Log in").wait_for()


def test_the_keyboard_is_enough(tab, portal):
    tab.page.goto(portal)
    tab.page.get_by_role("heading", name="Log in").wait_for()
    for text in ("alice", "Tab", "secret", "Enter"):
        tab.page.keyboard.press(text) if text[0].isupper() else tab.page.keyboard.type(text)
    tab.page.get_by_role("heading", name="Virtual machines").wait_for()

    def focused():
        return tab.page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.id")

    tab.wait_until(lambda: focused() == "Console of VM 0, vnc-plain", "the focus on the first VM")
    tab.page.keyboard.press("Tab")
    assert focused() == "Console of VM 1, vnc-passwd"
    tab.page.keyboard.press("Enter")
    wait_for_screen(tab, 1)
    tab.page.get_by_text("Connected").wait_for()
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.tagName") == "CANVAS", "Tab is the screen's, as all other keys"
    tab.page.keyboard.press("F8")
    assert focused() == "close"
    tab.page.keyboard.press("Enter")
    assert focused() == "Console of VM 1, vnc-passwd"
    assert not tab.page.locator("#screen").is_visible()


def test_a_telephone_shows_all_of_it(open_tab, portal):
    phone = open_tab(width=400, height=800)
    phone.page.goto(portal)

    def width():
        return phone.page.evaluate("document.scrollingElement.scrollWidth")

    assert width() == 400
    logged_in(phone, portal)
    assert width() == 400
    open_console(phone, 0)
    wait_for_screen(phone, 0)
    assert width() == 400
    canvas = phone.page.locator("canvas").bounding_box()
    assert canvas["x"] >= 0
    assert canvas["x"] + canvas["width"] <= 400
    assert canvas["width"] > 300, "scaled to be read, not cut off"


def test_a_dark_desktop_gets_a_dark_page(tab, portal):
    def background():
        return tab.page.evaluate("getComputedStyle(document.body).backgroundColor")

    tab.page.goto(portal)
    light = background()
    tab.page.emulate_media(color_scheme="dark")
    assert background() != light


def test_without_novnc_the_portal_says_so_and_shows_the_token(tab, cloud, tmp_path):
    with vnctoken_server(tmp_path / "one", cloud.url) as service:
        services = ("--oned", cloud.url, "--vnctoken", service.url, "--websocket", "ws://127.0.0.1:1/websockify")
        command = (sys.executable, "-m", "vnctoken.sandbox.portal", "--listen", "127.0.0.1:0", *services)
        with running(*command, ready="listens on") as portal:
            logged_in(tab, portal.wait_for(r"listens on (\S+)").group(1))
            open_console(tab, 0)
            tab.wait_for_text("noVNC is missing: install npm, or Debian's package novnc")
            (token,) = tokens_in(service.tokens / "one-0")
            tab.wait_for_text(f"It opens dummy-host-1:5900 at\nws://127.0.0.1:1/websockify?token={token}")


def test_a_real_vnc_server_can_stand_for_a_vm_and_comes_back_by_itself(tab, tmp_path):
    tab.tolerate(NO_CONNECTION)
    port, colour = free_port(), (40, 90, 60)
    with demo("--vnc", f"127.0.0.1:{port}") as portal:
        logged_in(tab, portal)
        with vnc_server(tmp_path / "first", port, colour, password="pw4test"):
            open_console(tab, 0)
            tab.page.get_by_label("Password of the screen").fill("wrong")
            tab.page.keyboard.press("Enter")
            tab.wait_for_text("The screen refuses the password.")
            tab.page.get_by_role("button", name="Try again").click()
            tab.page.get_by_label("Password of the screen").fill("pw4test")
            tab.page.keyboard.press("Enter")
            tab.wait_for_colour(colour)
        tab.wait_for_text("with a new token")
        with vnc_server(tmp_path / "again", port, (90, 40, 60)):
            tab.wait_for_colour((90, 40, 60))
            tab.page.get_by_role("button", name="Close").click()
        assert len(set(tab.websockets)) == len(tab.websockets) >= 3, "each attempt had a token of its own"
