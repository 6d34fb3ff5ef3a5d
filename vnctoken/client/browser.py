"""Show a link in the user's browser, and in no list of processes.

A browser is started with an address among its arguments, where everybody on the machine can read it. So the address
that it is given is one of our own, good for one look within seconds, and what is there leads to the link.
"""

from __future__ import annotations

import http.server
import re
import secrets
import threading
import webbrowser
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vnctoken.client.errors import ClientError

if TYPE_CHECKING:
    from collections.abc import Callable

BROWSER_SECONDS = 60
"""How long a browser may take to start."""


def show_link(link: str, start: Callable[[str], bool] = webbrowser.open) -> None:
    """Show a link in the browser that `start` runs with an address. Raises ClientError if none comes for it."""
    if urlsplit(link).scheme not in ("http", "https") or not re.fullmatch("[!-~]+", link):
        raise ClientError("the answer's link is no http:// or https:// address")
    with _Signpost(link) as signpost:
        threading.Thread(target=signpost.serve_forever, args=(0.05,), daemon=True).start()
        try:
            started = start(signpost.address)
            if not signpost.passed.wait(BROWSER_SECONDS if started else 0):
                raise ClientError(
                    f"the browser did not ask for the console within {BROWSER_SECONDS} seconds"
                    if started
                    else "no browser can be started here; set BROWSER to the command that starts yours"
                )
        finally:
            signpost.shutdown()


class _Signpost(http.server.ThreadingHTTPServer):
    """Sends the first who asks for its address on to a link."""

    daemon_threads = True

    def __init__(self, link: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.passed = threading.Event()
        self._link = link
        self._path = f"/{secrets.token_urlsafe(16)}"
        self._once = threading.Lock()

    @property
    def address(self) -> str:
        """What to give to the browser."""
        return f"http://127.0.0.1:{self.server_port}{self._path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of somebody who goes away."""

    def way(self, path: str) -> str | None:
        """Return where to go from a path, for the first who asks for the right one."""
        if secrets.compare_digest(path.encode(), self._path.encode()) and self._once.acquire(blocking=False):
            return self._link
        return None


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Signpost
    timeout = 10

    def do_GET(self) -> None:
        link = self.server.way(self.path)
        self.send_response(HTTPStatus.NOT_FOUND if link is None else HTTPStatus.SEE_OTHER)
        if link is not None:
            self.send_header("Location", link)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Length", "0")
        self.end_headers()
        if link is not None:
            self.server.passed.set()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (http.server's name)
        """Log nothing."""
