"""From a portal's call to a live screen: Chromium, the shipped nginx file with TLS, the proxy, and real VNC servers."""

from __future__ import annotations

import contextlib
import re
import ssl
import xmlrpc.client
from dataclasses import dataclass

import pytest
from conftest import ROOT, free_port
from screens import BLUE, FAILED, GREEN, RED, SIZE, Consoles, VncServer, consoles, vnc_server
from webservers import HOST, Front, Upstreams, until, web_server

pytest_plugins = ("browsing",)

PORTAL = (ROOT / "docs" / "portal.md").read_text(encoding="utf-8")
PASSWORD = "sesame77"
NOT_OPENED = "The console did not open: the link has expired, or the VM's screen does not answer."
CLOSED = "The console was closed or cut off."


@dataclass
class Site:
    """A cloud's web site, and the VMs of its user: 0 is red, 1 is blue, 2 is green and has a password.

    VM 3 has no screen until one is started at `missing`.
    """

    front: Front
    trust: ssl.SSLContext
    consoles: Consoles
    red: VncServer
    missing: int

    @property
    def address(self):
        return f"{HOST}:{self.front.https_port}"

    def link(self, vm_id):
        """Return the Url that the service answers to a portal, with the port that the site has here."""
        with self.portal as server:
            ok, console, _ = server.one.vm.vnctoken("alice:secret", vm_id)
        assert ok, console
        return console["Url"].replace(f"https://{HOST}/", f"https://{self.address}/")

    @property
    def portal(self):
        return xmlrpc.client.ServerProxy(f"https://localhost:{self.front.https_port}/RPC2/vnctoken", context=self.trust)


@pytest.fixture(scope="module")
def site(tmp_path_factory, certificate):
    folder = tmp_path_factory.mktemp("screens")
    page = re.search(r"^```html\n(<!DOCTYPE html>.*?)^```$", PORTAL, re.DOTALL | re.MULTILINE).group(1)
    setting = re.search(r"^:console_url: .*$", PORTAL, re.MULTILINE).group()
    # Instead of the certificate that is made for each web server: Chromium is told when it starts which one to trust.
    known = (
        ("ssl_certificate ", f"ssl_certificate {certificate}/certificate.pem; #"),
        ("ssl_certificate_key ", f"ssl_certificate_key {certificate}/key.pem; #"),
    )
    with contextlib.ExitStack() as stack:
        red = stack.enter_context(vnc_server(folder / "red", free_port(), RED))
        blue = stack.enter_context(vnc_server(folder / "blue", free_port(), BLUE))
        green = stack.enter_context(vnc_server(folder / "green", free_port(), GREEN, PASSWORD))
        ports = (red.port, blue.port, green.port, free_port())
        graphics = {vm_id: {"PORT": str(port)} for vm_id, port in enumerate(ports)}
        opened = stack.enter_context(consoles(folder / "one", graphics, setting))
        upstreams = Upstreams(opened.oned_port, opened.service.port, opened.proxy_port)
        front = stack.enter_context(web_server("nginx", upstreams, known))
        (front.folder / "www" / "console.html").write_text(page, encoding="utf-8")
        trust = ssl.create_default_context(cafile=certificate / "certificate.pem")
        yield Site(front, trust, opened, red, ports[-1])


def test_the_link_in_the_answer_opens_the_screen_and_what_is_typed_arrives(site, tab):
    tab.page.goto(site.link(0))
    picture = tab.wait_for_colour(RED)
    assert picture.size == SIZE
    tab.page.keyboard.type("echo Hello from a browser, 0123456789\n")
    tab.wait_until(lambda: "echo Hello from a browser, 0123456789" in site.red.lines(), "the line typed")
    assert all(url.startswith(f"https://{site.address}/") for url in tab.requested if not url.startswith("data:"))
    (websocket,) = tab.websockets
    assert re.fullmatch(rf"wss://{site.address}/websockify\?token=[0-9a-f]{{32}}", websocket)


def test_a_screen_with_a_password_opens_and_the_password_is_in_no_address(site, tab):
    tab.page.goto(site.link(2))
    tab.wait_for_text("The screen has a password.")
    tab.page.keyboard.type(f"{PASSWORD}\n")
    tab.wait_for_colour(GREEN)
    assert not [url for url in [tab.page.url, *tab.requested, *tab.websockets] if PASSWORD in url]
    assert PASSWORD not in site.front.written


def test_a_wrong_password_is_told(site, tab):
    tab.tolerate(FAILED)
    tab.page.goto(site.link(2))
    tab.wait_for_text("The screen has a password.")
    tab.page.keyboard.type("wrong\n")
    tab.wait_for_text("The screen refused the password: Authentication failure. Open it again in the portal.")
    tab.assert_light()


def test_a_wrong_token_is_told_and_leaves_no_black_page(site, tab):
    tab.tolerate(FAILED)
    tab.page.goto(re.sub("[0-9a-f]{32}", 32 * "0", site.link(0)))
    tab.wait_for_text(NOT_OPENED)
    tab.assert_light()


def test_a_token_of_one_vm_never_shows_another_and_a_revoked_one_nothing(site, open_tab):
    def opened(link, colour):
        tab = open_tab()
        tab.page.goto(link)
        tab.wait_for_colour(colour)
        return tab

    first, second = site.link(0), site.link(0)
    red, again, blue = opened(first, RED), opened(second, RED), opened(site.link(1), BLUE)
    with site.portal as server:
        ok, count, _ = server.one.vm.vncrevoke("alice:secret", 0)
    assert ok, count
    assert count >= 2
    for link in (first, second):
        revoked = open_tab()
        revoked.tolerate(FAILED)
        revoked.page.goto(link)
        revoked.wait_for_text(NOT_OPENED)
        assert revoked.picture() is None
    for tab, colour in ((red, RED), (again, RED), (blue, BLUE)):
        tab.wait_for_colour(colour)


def test_the_end_of_a_screen_is_told_and_a_new_link_opens_it_when_it_is_back(site, tab, tmp_path):
    tab.tolerate(FAILED)
    with vnc_server(tmp_path / "before", site.missing, BLUE):
        tab.page.goto(site.link(3))
        tab.wait_for_colour(BLUE)
    tab.wait_for_text(CLOSED)
    tab.assert_light()
    tab.page.goto(site.link(3))
    tab.wait_for_text(NOT_OPENED)
    with vnc_server(tmp_path / "after", site.missing, GREEN) as back:
        tab.page.goto(site.link(3))
        tab.wait_for_colour(GREEN)
        tab.page.keyboard.type("back again\n")
        tab.wait_until(lambda: back.lines() == ["back again"], "the line typed")


def test_a_screen_fits_into_a_window_400_pixels_wide_and_can_be_used_there(site, open_tab):
    tab = open_tab(width=400, height=700)
    tab.page.goto(site.link(0))
    assert tab.wait_for_colour(RED).size == SIZE
    box = tab.page.locator("canvas").bounding_box()
    assert box["x"] >= 0
    assert 350 < box["width"] <= 400
    assert box["width"] / box["height"] == pytest.approx(SIZE[0] / SIZE[1], rel=0.02)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 400
    tab.page.locator("canvas").click()
    tab.page.keyboard.type("from a narrow window\n")
    tab.wait_until(lambda: "from a narrow window" in site.red.lines(), "the line typed")


def test_no_token_is_in_any_log_on_the_way(site, open_tab):
    good, bad = open_tab(), open_tab()
    bad.tolerate(FAILED)
    good.page.goto(site.link(0))
    good.wait_for_colour(RED)
    bad.page.goto(re.sub("[0-9a-f]{32}", 32 * "0", site.link(1)))
    bad.wait_for_text(NOT_OPENED)
    seen = len(re.findall("GET /websockify.* 101 ", site.front.written))
    # nginx writes about a websocket when it is closed.
    good.page.goto("about:blank")
    until(lambda: len(re.findall("GET /websockify.* 101 ", site.front.written)) > seen)
    service_log = site.consoles.service.log.read_text(encoding="utf-8")
    for url in (*good.websockets, *bad.websockets):
        (token,) = re.findall("token=([0-9a-f]{32})", url)
        for log in (site.front.written, site.consoles.proxy.output, service_log):
            assert log.strip()
            assert token not in log
