"""docs/portal.md: its pages and its program, as they are written there, in Chromium with either noVNC."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
import xmlrpc.client
from dataclasses import dataclass
from urllib.parse import quote

import pytest
from conftest import ROOT, free_port, program, running, tokens_in, vnctoken_server
from screens import BLUE, FAILED, GREEN, RED, Consoles, VncServer, consoles, vnc_server
from webservers import wait_for_port, write_nginx_main

pytest_plugins = ("browsing",)

PORTAL = (ROOT / "docs" / "portal.md").read_text(encoding="utf-8")
DOCUMENTED_URL = "http://127.0.0.1:2644/RPC2"
PASSWORD = "sesame77"

NGINX = """
types {{ text/html html; text/javascript js; }}
server {{
    listen 127.0.0.1:{port};
    access_log off;
    root {folder}/pages;
    location /novnc/ {{ alias {novnc}/; }}
    location /console/ {{ proxy_pass http://127.0.0.1:{back_end}; }}
    location /websockify {{
        proxy_pass http://127.0.0.1:{proxy};
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection upgrade;
    }}
}}
"""


def snippet(language, containing):
    snippets = re.findall(rf"^```{language}\n(.*?)^```$", PORTAL, re.DOTALL | re.MULTILINE)
    (found,) = (text for text in snippets if containing in text)
    return found


def documented_console(url):
    """Return the function `console` of the document, for a service at that address."""
    program_text = snippet("python", "def console")
    assert DOCUMENTED_URL in program_text
    names = {}
    exec(program_text.replace(DOCUMENTED_URL, url), names)
    return names["console"]


class BackEnd(http.server.BaseHTTPRequestHandler):
    """A portal's back end in which alice is logged in: POST /console/VM_ID answers what the server's `console` does."""

    def do_POST(self):
        answer = json.dumps(self.server.console("alice:secret", int(self.path.removeprefix("/console/")))).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def back_end():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), BackEnd) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Screens:
    """VNC servers, and the consoles of the VMs that are there.

    VM 0 has the red one. VM 1 has the blue one, which has a password; for VM 20 OpenNebula knows it, for VM 21 it has a
    wrong one. VM 22's is missing; it may be started at `missing`.
    """

    red: VncServer
    blue: VncServer
    missing: int
    consoles: Consoles


@pytest.fixture(scope="module")
def screens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("screens")
    with (
        vnc_server(folder / "red", free_port(), RED) as red,
        vnc_server(folder / "blue", free_port(), BLUE, PASSWORD) as blue,
    ):
        missing = free_port()
        graphics = {
            0: {"PORT": str(red.port)},
            1: {"PORT": str(blue.port)},
            20: {"PORT": str(blue.port), "PASSWD": PASSWORD},
            21: {"PORT": str(blue.port), "PASSWD": "another"},
            22: {"PORT": str(missing)},
        }
        with consoles(folder / "one", graphics) as running_consoles:
            yield Screens(red, blue, missing, running_consoles)


@dataclass
class Portal:
    """A web server with the document's pages, noVNC, the websocket proxy and a back end."""

    url: str
    back_end: http.server.HTTPServer

    def link(self, path, host="dummy-host-1"):
        """Return the Url that the document's :console_url: makes."""
        return f"{self.url}/console.html#host={quote(host, safe='')}&path={quote(path, safe='')}"


@contextlib.contextmanager
def portal_of(folder, novnc, proxy_port):
    pages = folder / "pages"
    pages.mkdir()
    (pages / "console.html").write_text(snippet("html", "<!DOCTYPE html>"), encoding="utf-8")
    for name, containing in (("embedded", "button.onclick"), ("twenty", "const { path")):
        (pages / f"{name}.html").write_text(
            f'<!DOCTYPE html><html lang="en"><meta charset="utf-8">{snippet("html", containing)}', encoding="utf-8"
        )
    port = free_port()
    with back_end() as server:
        ports = {"port": port, "proxy": proxy_port, "back_end": server.server_port}
        (folder / "portal.conf").write_text(NGINX.format(folder=folder, novnc=novnc, **ports), encoding="utf-8")
        main = write_nginx_main(folder, ["portal"])
        with running(program("nginx"), "-p", folder, "-e", "stderr", "-c", main) as process:
            wait_for_port(port, process)
            yield Portal(f"http://127.0.0.1:{port}", server)


@pytest.fixture(scope="module")
def portal(tmp_path_factory, novnc, screens):
    with portal_of(tmp_path_factory.mktemp("portal"), novnc, screens.consoles.proxy_port) as running_portal:
        yield running_portal


@pytest.fixture
def opened(screens, portal, tab):
    """Return a function that opens the link to a VM's console in the window."""

    def open_link(vm_id):
        tab.page.goto(portal.link(path_of(screens.consoles.open(vm_id))))
        return tab

    return open_link


@pytest.fixture
def embedded(screens, portal, tab):
    """Return a function that opens the embedding page and presses its button; its VM 20 is the one that is given."""
    console = documented_console(screens.consoles.service.url)

    def open_page(vm_id=20, console=console, page="embedded"):
        def answer(session, asked):
            assert asked == 20
            return console(session, vm_id)

        portal.back_end.console = answer
        tab.page.goto(f"{portal.url}/{page}.html")
        if page == "embedded":
            tab.page.click("text=Console")
        return tab

    return open_page


def path_of(console):
    return f"websockify?token={console['Token']}"


def addresses(tab):
    """Return every URL that the window showed last, asked for or opened a websocket to."""
    return [tab.page.url, *tab.requested, *tab.websockets]


def test_the_link_opens_the_screen_and_what_is_typed_arrives(opened, screens):
    tab = opened(0)
    tab.wait_for_colour(RED)
    tab.page.keyboard.type("hello from a browser\n")
    tab.wait_until(lambda: "hello from a browser" in screens.red.lines(), "the line typed")


def test_the_token_stays_in_no_address_and_the_host_is_a_title(opened, portal):
    tab = opened(0)
    tab.wait_for_colour(RED)
    assert tab.page.url == f"{portal.url}/console.html"
    assert tab.page.title() == "Console dummy-host-1"
    assert not [url for url in tab.requested if "token" in url], "what is behind # is sent to nobody"


def test_a_password_is_asked_for_and_is_in_no_address(opened):
    tab = opened(1)
    tab.wait_for_text("The screen has a password.")
    tab.page.keyboard.type(f"{PASSWORD}\n")
    tab.wait_for_colour(BLUE)
    assert not tab.page.is_visible("form")
    assert not [url for url in addresses(tab) if PASSWORD in url]


def test_a_wrong_password_is_called_so(opened):
    tab = opened(1)
    tab.tolerate(FAILED)
    tab.wait_for_text("The screen has a password.")
    tab.page.fill("input", "wrong")
    tab.page.click("text=Open")
    tab.wait_for_text("The screen refused the password: Authentication failure. Open it again in the portal.")
    tab.assert_light()


def test_a_wrong_password_is_called_so_by_a_server_that_gives_no_reason(tmp_path, screens, opened):
    with vnc_server(tmp_path / "old", screens.missing, GREEN, PASSWORD, options=("-Protocol3.3",)):
        tab = opened(22)
        tab.tolerate(FAILED)
        tab.wait_for_text("The screen has a password.")
        tab.page.keyboard.type("wrong\n")
        tab.wait_for_text("The screen refused the password: no reason given. Open it again in the portal.")


def test_a_token_that_opens_nothing_leaves_no_black_page(portal, screens, tab):
    tab.tolerate(FAILED)
    for path in (f"websockify?token={32 * '0'}", path_of(screens.consoles.open(22))):
        tab.page.goto(portal.link(path))
        tab.wait_for_text("The console did not open: the link has expired, or the VM's screen does not answer.")
        tab.assert_light()
        tab.page.goto("about:blank")
    assert len(tab.websockets) == 2


def test_the_end_of_the_vm_is_told(tmp_path, screens, opened):
    with vnc_server(tmp_path / "green", screens.missing, GREEN):
        tab = opened(22)
        tab.wait_for_colour(GREEN)
    tab.wait_for_text("The console was closed or cut off. Open it again in the portal.")
    tab.assert_light()


def test_a_forged_path_is_not_connected_to(portal, tab):
    for path in (
        "",
        "//attacker.example/websockify?token=a",
        "/websockify?token=a",
        "wss://attacker.example/websockify?token=a",
        "websockify?token=",
        "websockify?token=a&token=b",
        "websockify?token=a#b",
        "websockify?token=a\n",
        "@attacker.example/websockify?token=a",
        r"\\attacker.example/websockify?token=a",
        "../websockify?token=a",
        "websockify/../admin?token=a",
    ):
        tab.page.goto(portal.link(path))
        tab.wait_for_text("This link leads to no console. Open the console in the portal.")
        assert tab.websockets == [], path
        tab.page.goto("about:blank")
    tab.page.goto(f"{portal.url}/console.html")
    tab.wait_for_text("This link leads to no console. Open the console in the portal.")
    tab.assert_light()


def test_a_forged_host_is_text_and_nothing_to_connect_to(portal, screens, tab):
    host = "attacker.example/<img src=x onerror=document.body.remove()>"
    tab.page.goto(portal.link(path_of(screens.consoles.open(0)), host=host))
    tab.wait_for_text(f"Console {host}")
    tab.wait_for_colour(RED)
    (websocket,) = tab.websockets
    assert websocket.startswith(f"{portal.url.replace('http', 'ws')}/websockify?token=")


def test_the_next_link_in_the_same_window_opens_the_next_screen(opened, screens, portal):
    tab = opened(0)
    tab.wait_for_colour(RED)
    link = portal.link(path_of(screens.consoles.open(1)))
    tab.page.evaluate("(link) => { location.href = link }", link)
    tab.wait_for_text("The screen has a password.")
    tab.page.keyboard.type(f"{PASSWORD}\n")
    tab.wait_for_colour(BLUE)


def test_without_novnc_the_page_says_so(tmp_path, tab):
    tab.tolerate("404")
    with portal_of(tmp_path, tmp_path / "nothing", 1) as portal:
        tab.page.goto(portal.link("websockify?token=a"))
        tab.wait_for_text("noVNC is missing at /novnc/.")
        tab.assert_light()


def test_twenty_lines_are_enough_for_a_screen_with_a_password(embedded, screens):
    assert len(snippet("html", "const { path").splitlines()) <= 20
    tab = embedded(page="twenty")
    tab.wait_for_text("Connected.")
    tab.wait_for_colour(BLUE)
    tab.page.keyboard.type("hello to the short one\n")
    tab.wait_until(lambda: "hello to the short one" in screens.blue.lines(), "the line typed")
    assert not [url for url in addresses(tab) if PASSWORD in url]


@pytest.mark.parametrize(
    ("vm_id", "text"),
    [
        (21, "The screen refused the password: Authentication failure."),
        (22, "The console did not open: the VM's screen does not answer."),
        (999, "[one.vm.info] Error getting virtual machine [999]."),
    ],
)
def test_twenty_lines_are_enough_to_say_what_is_wrong(vm_id, text, embedded):
    tab = embedded(vm_id, page="twenty")
    tab.tolerate(FAILED)
    tab.wait_for_text(text)


def test_the_embedded_console_opens_with_the_password_that_the_back_end_knows(embedded, screens):
    tab = embedded()
    tab.wait_for_text("Connected.")
    tab.wait_for_colour(BLUE)
    tab.page.keyboard.type("hello to the embedded one\n")
    tab.wait_until(lambda: "hello to the embedded one" in screens.blue.lines(), "the line typed")
    assert not [url for url in addresses(tab) if PASSWORD in url]


def test_the_embedded_console_can_be_opened_as_soon_as_it_is_loaded_and_not_before(portal, tab):
    held = []
    tab.page.route("**/core/rfb.js", lambda route: held.append(route))  # noqa: PLW0108 (Playwright takes Python functions only)
    tab.page.goto(f"{portal.url}/embedded.html", wait_until="commit")
    tab.wait_until(lambda: held, "noVNC is asked for")
    assert tab.page.locator("#open").is_disabled()
    held[0].continue_()
    tab.wait_until(lambda: tab.page.locator("#open").is_enabled(), "the button")


def test_the_embedded_console_tells_of_a_wrong_password_and_does_not_insist(embedded):
    tab = embedded(vm_id=21)
    tab.tolerate(FAILED)
    tab.wait_for_text("The screen refused the password: Authentication failure.")
    tab.wait_until(lambda: tab.page.is_enabled("text=Console"), "the button")
    assert len(tab.websockets) == 1


def test_the_embedded_console_comes_back_with_a_new_token_for_every_attempt(embedded, screens, tmp_path):
    with vnc_server(tmp_path / "first", screens.missing, GREEN):
        tab = embedded(vm_id=22)
        tab.tolerate(FAILED)
        tab.wait_for_colour(GREEN)
    tab.wait_for_text("The console was closed or cut off. Trying again in 1 s.")
    tab.wait_for_text("The VM's screen does not answer. Trying again in 2 s.")
    with vnc_server(tmp_path / "second", screens.missing, RED):
        tab.wait_for_colour(RED)
        assert len(tab.websockets) == len(set(tab.websockets)) >= 3


def test_the_embedded_console_shows_a_refusal_as_the_service_words_it(embedded):
    tab = embedded(vm_id=999)
    tab.wait_for_text("[one.vm.info] Error getting virtual machine [999].")
    tab.wait_until(lambda: tab.page.is_enabled("text=Console"), "the button")
    assert tab.websockets == []


def test_the_embedded_console_tries_again_for_a_while_where_that_may_help(embedded):
    answers = [{"retry": "The console service has a problem."}, {"error": "The VM has been powered off."}]
    tab = embedded(console=lambda *_: answers.pop(0))
    tab.wait_for_text("The console service has a problem. Trying again in 1 s.")
    tab.wait_for_text("The VM has been powered off.")


def test_the_embedded_console_gives_up_after_half_a_minute(embedded, tab):
    asked = []
    tab.page.clock.install()

    def console(*_):
        asked.append(None)
        return {"retry": "The console service has a problem."}

    embedded(console=console)
    for attempt, seconds in enumerate((1, 2, 4, 8, 16), start=1):
        tab.wait_for_text(f"Trying again in {seconds} s.")
        assert len(asked) == attempt
        tab.page.clock.run_for(1000 * seconds)
    tab.wait_for_text("The console service has a problem. Please try again later.")
    assert tab.page.is_enabled("text=Console")
    assert len(asked) == 5


@pytest.mark.parametrize(
    ("session", "vm_id", "answer"),
    [
        ("alice:secret", 7, {"error": "Unsupported VM state! STATE:8 LCM_STATE:0"}),
        ("alice:secret", 3, {"error": "Graphics type 'SPICE' but 'VNC' expected"}),
        ("alice:secret", 9, {"error": "[one.vm.info] User [2] : Not authorized to perform USE VM [9]."}),
        ("alice:wrong", 0, {"error": "Please log in again."}),
        ("alice:secret", 904, {"retry": "The console service has a problem."}),
    ],
)
def test_the_back_end_passes_on_what_the_user_can_act_on(session, vm_id, answer, service):
    assert documented_console(service.url)(session, vm_id) == answer


def test_the_back_end_calls_a_wrong_call_an_error_of_its_own(service):
    with pytest.raises(ValueError, match="Argument 2, the VM id, must be an int") as raised:
        documented_console(service.url)("alice:secret", "twenty")
    assert "secret" not in str(raised.value)


def test_the_back_end_answers_with_path_and_password(service):
    answer = documented_console(service.url)("alice:secret", 1)
    (token,) = tokens_in(service.tokens / "one-1")
    assert answer == {"path": f"websockify?token={token}", "password": "s3cr3tpw"}


def test_the_back_end_survives_a_service_that_is_away():
    url = f"http://127.0.0.1:{free_port()}/RPC2"
    assert documented_console(url)("alice:secret", 0) == {"retry": "The console service does not answer."}


def test_the_documents_console_url_makes_the_link_that_its_page_takes(tmp_path, cloud):
    setting = snippet("yaml", ":console_url:")
    with vnctoken_server(tmp_path, cloud.url, setting) as service, xmlrpc.client.ServerProxy(service.url) as server:
        _, console, _ = server.one.vm.vnctoken("alice:secret", 0)
    assert console["Url"] == Portal("https://cloud.example.org", None).link(path_of(console))


def test_every_sentence_that_the_document_lists_is_one_that_its_page_shows():
    sentences = re.findall(r"\| (The (?:console|screen) [^|]+) \|$", PORTAL, re.MULTILINE)
    assert len(sentences) == 4
    for sentence in sentences:
        assert sentence in snippet("html", "<!DOCTYPE html>")
