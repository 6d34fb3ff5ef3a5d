"""A pytest plugin: Chromium, driven by Playwright, one for the whole run and a fresh profile per window.

A test module asks for it with `pytest_plugins = ("browsing",)`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import START_SECONDS, program
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from PIL import Image
from playwright.sync_api import Error, Page, sync_playwright
from webservers import HOST, make_certificate

NOVNC_FOLDERS = {
    "npm": Path(sys.prefix, "node_modules", "@novnc", "novnc"),
    "debian": Path("/usr/share/novnc"),
}
CHROMIUM_OPTIONS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Whatever a page names is here, and nothing is asked for elsewhere.
    "--host-resolver-rules=MAP * 127.0.0.1",
)


@pytest.fixture(scope="session", params=NOVNC_FOLDERS)
def novnc(request):
    """Return the folder of each noVNC in turn: npm's, which is today's, and Debian's."""
    folder = NOVNC_FOLDERS[request.param]
    if not (folder / "core" / "rfb.js").exists():
        message = f"noVNC is not in {folder}: make installs npm's, tests/system-programs Debian's"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Make a certificate that Chromium trusts; return the folder of certificate.pem and key.pem."""
    folder = tmp_path_factory.mktemp("certificate")
    make_certificate(folder, HOST)
    return folder


def _public_key_hash(certificate):
    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(info).digest()).decode()


@pytest.fixture(scope="session")
def chromium(certificate):
    """Run Debian's Chromium."""
    trusted = f"--ignore-certificate-errors-spki-list={_public_key_hash(certificate / 'certificate.pem')}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program("chromium"), args=[*CHROMIUM_OPTIONS, trusted], timeout=1000 * START_SECONDS
        )
        with contextlib.closing(browser):
            yield browser


@dataclass
class Tab:
    """A window with a profile of its own, and what happened in it."""

    page: Page
    screenshot_path: Path
    errors: list = field(default_factory=list)
    """Uncaught exceptions and errors on the console."""
    requested: list = field(default_factory=list)
    """The URLs that were asked for."""
    websockets: list = field(default_factory=list)
    """The URLs of the websockets that were opened."""
    tolerated: str | None = None

    def __post_init__(self):
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._listen)
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.on("websocket", lambda websocket: self.websockets.append(websocket.url))

    def _listen(self, message):
        url = message.location["url"]
        # Every browser asks every server for one; a page need not have it.
        if message.type == "error" and not url.endswith("/favicon.ico"):
            self.errors.append(f"{message.text} ({url})")

    def tolerate(self, pattern):
        """Let errors that fit the pattern pass; all others fail the test at its end."""
        self.tolerated = pattern

    def bad_errors(self):
        """Return the errors that must not be."""
        return [error for error in self.errors if not (self.tolerated and re.search(self.tolerated, error))]

    def screenshot(self):
        """Keep what the window shows now, in place of what was kept before, and return it."""
        self.screenshot_path.parent.mkdir(parents=True, exist_ok=True)
        return _opened(self.page.screenshot(path=self.screenshot_path))

    def wait_until(self, condition, what, seconds=START_SECONDS):
        """Wait until the condition holds, and return what it returned; fail with `what` and a screenshot otherwise."""
        deadline = time.monotonic() + seconds
        while True:
            # A page that is about to be replaced by the next one cannot be asked.
            with _navigating():
                if held := condition():
                    return held
            if time.monotonic() > deadline:
                self.screenshot()
                shown = self.page.inner_text("body")
                pytest.fail(f"waited in vain for {what}; the page says {shown!r}; see {self.screenshot_path}")
            # Playwright listens to the browser only while it is called.
            self.page.wait_for_timeout(50)

    def picture(self, canvas="canvas"):
        """Return the picture in a canvas, such as noVNC's, at its own size; None if there is no canvas or no size."""
        url = self.page.evaluate("(name) => document.querySelector(name)?.toDataURL() ?? 'data:,'", canvas)
        content = base64.b64decode(url.partition(",")[2])
        return _opened(content) if content else None

    def wait_for_picture(self, fits, what, canvas="canvas"):
        """Wait until the picture in a canvas fits, and return it."""

        def fitting():
            picture = self.picture(canvas)
            return picture if picture is not None and fits(picture) else None

        return self.wait_until(fitting, what)

    def wait_for_colour(self, colour, canvas="canvas"):
        """Wait until nearly all of a canvas has that colour, and return the picture."""
        return self.wait_for_picture(lambda picture: share(picture, colour) > 0.9, f"a screen of {colour}", canvas)

    def assert_light(self):
        """Check that the window shows a light page, and not a screen without a picture."""
        tones = self.screenshot().convert("L").histogram()
        assert sum(tones[:128]) < 0.05 * sum(tones), f"the window is mostly dark; see {self.screenshot_path}"

    def wait_for_text(self, text):
        """Wait until the page shows that text."""
        return self.wait_until(lambda: text in self.page.inner_text("body"), repr(text))


@contextlib.contextmanager
def _navigating():
    try:
        yield
    except Error as error:
        if "because of a navigation" not in error.message:
            raise


def _opened(content):
    return Image.open(io.BytesIO(content)).convert("RGB")


def share(picture, colour):
    """Return which part of a picture, 0 to 1, has exactly that colour."""
    counts = {found: count for count, found in picture.getcolors(picture.width * picture.height)}
    return counts.get(colour, 0) / (picture.width * picture.height)


def _artefacts(node):
    """Return the folder for what a test leaves behind to be looked at."""
    root = os.environ.get("VNCTOKEN_ARTEFACTS") or Path(tempfile.gettempdir(), "vnctoken-artefacts")
    return Path(root, node.path.stem, re.sub(r"[^\w.-]+", "-", node.name).strip("-"))


@pytest.fixture
def open_tab(chromium, request):
    """Return a function that opens a window; at the test's end each is photographed and must be without errors."""
    folder = _artefacts(request.node)
    print(f"screenshots: {folder}")  # noqa: T201 (pytest shows it if the test fails)
    tabs = []

    with contextlib.ExitStack() as stack:

        def open_one(width=1000, height=700):
            context = stack.enter_context(
                contextlib.closing(chromium.new_context(viewport={"width": width, "height": height}))
            )
            context.set_default_timeout(1000 * START_SECONDS)
            tabs.append(Tab(context.new_page(), folder / f"{len(tabs) + 1}.png"))
            return tabs[-1]

        yield open_one
        for tab in tabs:
            with contextlib.suppress(Error):
                tab.screenshot()
    errors = [error for tab in tabs for error in tab.bad_errors()]
    assert not errors, f"the browser reported {errors}"


@pytest.fixture
def tab(open_tab):
    """Open one window."""
    return open_tab()
